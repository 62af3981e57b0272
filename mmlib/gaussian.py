"""Expectations under the standard normal distribution."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

_LIMIT = 12.0  # the mass beyond is 4e-33, below what a float64 sum near 1 can show
_PANEL = 0.25
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def quadrature(breaks: Sequence[float] = (0.0,)) -> tuple[Tensor, Tensor]:
    """Nodes z and weights w, float64, with sum(w * f(z)) = E f(Z) for Z ~ N(0, 1).

    Gauss-Legendre quadrature on panels at most 1/4 wide over [-12, 12], with a panel edge at every break.

    >>> nodes, weights = quadrature()
    >>> round(float(weights.sum()), 6), round(float((weights * nodes**2).sum()), 6)
    (1.0, 1.0)
    """
    inner = sorted({-_LIMIT, *(b for b in breaks if -_LIMIT < b < _LIMIT), _LIMIT})
    edges = [np.linspace(a, b, math.ceil((b - a) / _PANEL) + 1)[:-1] for a, b in pairwise(inner)]
    left = np.concatenate([*edges, [_LIMIT]])
    centre, half = (left[1:] + left[:-1]) / 2, np.diff(left) / 2
    z = (centre[:, None] + half[:, None] * _NODES).ravel()
    w = (half[:, None] * _WEIGHTS).ravel() * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(z), torch.from_numpy(w)


def expectation(f: Callable[[Tensor], Tensor], breaks: Sequence[float] = (0.0,)) -> float:
    """E f(Z) for Z ~ N(0, 1), in float64.

    `f` takes a tensor of any shape and works elementwise. `breaks` lists the points where f or its derivative jumps;
    away from them f should be smooth. The error is then below 1e-12 for functions of moderate growth.

    >>> round(expectation(lambda z: z**4), 6)
    3.0
    """
    z, w = quadrature(breaks)
    return float((w * f(z)).sum())
