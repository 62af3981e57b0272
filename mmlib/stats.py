"""One tensor to one number; for stacked models, to one number a replica."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from mmlib.history import Step
from mmlib.trace import Trace


def _check(place: str, x: Tensor) -> None:
    if x.dim() < 2 or not x.shape[-1] or not x.shape[-2]:
        raise ValueError(f"{place}: at least one row and one column are needed, got {tuple(x.shape)}")


def rms(x: Tensor) -> Tensor:
    """sqrt(mean x^2) over the last two axes. Raises ValueError if there are fewer, or nothing in them."""
    _check("rms", x)
    return x.square().mean((-2, -1)).sqrt()


def saturation(h: Tensor, threshold: float = 0.99) -> Tensor:
    """The share of |h| > threshold over the last two axes, examples and units; nan where one of them is nan.

    Raises ValueError if there are fewer axes, or nothing in them.
    """
    _check("saturation", h)
    return (h.abs() > threshold).double().where(~h.isnan(), math.nan).mean((-2, -1))


def dead(slope: Tensor, tolerance: float = 0.0) -> Tensor:
    """Which units have |phi'(x)| <= tolerance for every one of the examples: (..., n, units) to boolean (..., units).

    On a batch, on all data, or for ever are three different things: this speaks of the examples given.
    Raises ValueError if there are none.
    """
    _check("dead", slope)
    return (slope.abs() <= tolerance).all(-2)


def _ratios(data: dict[str, Tensor], grads: dict[str, Tensor], leading: int) -> dict[str, Tensor]:
    def spread(x: Tensor) -> Tensor:
        return x.detach().flatten(leading).std(-1)

    return {name: spread(grads[name]) / spread(p) for name, p in data.items() if p.dim() - leading >= 2}


def grad_data_ratios(trace: Trace) -> dict[str, Tensor]:
    """std(d loss / d W) / std(W), both with n - 1, for every weight matrix."""
    return _ratios(trace.parameters, trace.parameter_grads, trace.loss.dim())


def update_ratios(step: Step) -> dict[str, Tensor]:
    """log10(std(lr * d loss / d W) / std(W)) for every weight matrix: a probe for `train`. About -3 is healthy."""
    ratios = _ratios(step.parameters, step.grads, step.loss.dim())
    return {name: (ratio * step.lr).log10() for name, ratio in ratios.items()}


def distances(step: Step, reference: Sequence[int]) -> Tensor:
    """|theta_r - theta_s| / |theta_s| over all parameters, for R stacked models and s = reference[r]: shape (R,).

    Raises ValueError unless the step is of stacked models and `reference` names one of them for each.
    """
    shape = tuple(step.loss.shape)
    if shape != (len(reference),) or not all(0 <= s < len(reference) for s in reference):
        raise ValueError(f"reference: one stacked model for each is needed, got {list(reference)} for a loss {shape}")
    theta = torch.cat([p.detach().flatten(1) for p in step.parameters.values()], 1)
    other = theta[list(reference)]
    return (theta - other).norm(dim=-1) / other.norm(dim=-1)


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: Tensor
    low: Tensor
    high: Tensor


def interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Student's t interval for the mean over the first axis, the seeds: mean +- t * std / sqrt(n), std with n - 1.

    For a paired comparison give it the differences. Where a value is infinite, such as the loss of a run that diverged,
    so is the mean, and the ends are nan: there is no interval. Raises ValueError for fewer than two values, one that is
    nan, or a confidence outside 0 to 1.
    """
    n = len(values) if values.dim() else 1
    if n < 2 or not values.numel():
        raise ValueError(f"values: at least two along the first axis are needed, got shape {tuple(values.shape)}")
    if values.isnan().any():
        raise ValueError(f"values: numbers are needed, got nan at {values.isnan().nonzero()[0].tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: a number between 0 and 1 is needed, got {confidence}")
    values = values.double()
    mean, half = values.mean(0), float(stdtrit(n - 1, (1 + confidence) / 2)) * values.std(0) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)
