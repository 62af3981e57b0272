"""Healthy programs: every finding of more than a note here is a false alarm. Importing this keeps them all in HEALTHY.

What people build that trains as it is, with torch's own initialisation unless a paper says otherwise; the designs whose
numbers look odd on purpose (zeros to start from, constant targets, tiny layers, mixed examples) are here for that.
"""

from benchmarks.checkup.healthy import designs, generative, images, losses, plain, sequences, trained
from benchmarks.checkup.programs import HEALTHY

__all__ = ["HEALTHY", "designs", "generative", "images", "losses", "plain", "sequences", "trained"]
