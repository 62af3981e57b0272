"""Faulty programs by what the fault is in; importing this keeps them all in `programs.FAULTS`."""

from benchmarks.checkup.faults import data, gradient, loss, signal, step, structure

__all__ = ["data", "gradient", "loss", "signal", "step", "structure"]
