"""What a kernel finds imported."""

import gc
import os
import sys

PATH = list(sys.path)  # a new interpreter's

# Both are read once, when a module is imported: the kernel's figures go into the notebook, and it ends with its parent.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
os.environ["JPY_PARENT_PID"] = str(os.getpid())

import ipykernel.kernelapp  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import torch._dynamo  # noqa: E402, F401  # by the first optimizer

# What is imported stays; no collection goes through it again, nor copies its pages into the kernel for that.
gc.collect()
gc.freeze()
