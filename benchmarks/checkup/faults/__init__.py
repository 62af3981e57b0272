"""Faulty programs by what the fault is in: importing this keeps them all in FAULTS."""

from benchmarks.checkup.faults import data, gradient, loss, signal, step, structure
from benchmarks.checkup.programs import FAULTS

__all__ = ["FAULTS", "data", "gradient", "loss", "signal", "step", "structure"]
