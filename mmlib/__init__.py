"""A small PyTorch library that shows what happens in a neural network before and while it trains.

Every concept is one definition in one module; nothing is imported, read, seeded or set by importing the package.
"""

__version__ = "1.0.0"
