"""Faulty programs by what the fault is in: importing this keeps them all in FAULTS."""

from benchmarks.checkup.faults import axes, data, gradient, loss, signal, step, structure
from benchmarks.checkup.programs import FAULTS

__all__ = ["FAULTS", "axes", "data", "gradient", "loss", "signal", "step", "structure"]
