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
    """sqrt(mean x^2) over the last two axes. Raises ValueError if there are fewer, or nothing in them.

    >>> rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item()
    2.5
    """
    _check("rms", x)
    return x.square().mean((-2, -1)).sqrt()


def saturation(h: Tensor, threshold: float = 0.99) -> Tensor:
    """The share of |h| > threshold over the last two axes, examples and units; nan where one of them is nan.

    Raises ValueError if there are fewer axes, or nothing in them.

    >>> saturation(torch.tensor([[0.999, -0.995], [0.5, 0.0]])).item()
    0.5
    """
    _check("saturation", h)
    return (h.abs() > threshold).double().where(~h.isnan(), math.nan).mean((-2, -1))


def dead(slope: Tensor, tolerance: float = 0.0) -> Tensor:
    """Which units have |phi'(x)| <= tolerance for every one of the examples: (..., n, units) to boolean (..., units).

    On a batch, on all data, or for ever are three different things: this speaks of the examples given.
    Raises ValueError if there are none.

    >>> dead(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).tolist()  # slopes of two units for two examples
    [True, False]
    """
    _check("dead", slope)
    return (slope.abs() <= tolerance).all(-2)


def _ratios(data: dict[str, Tensor], grads: dict[str, Tensor], leading: int) -> dict[str, Tensor]:
    def spread(x: Tensor) -> Tensor:
        return x.detach().flatten(leading).std(-1)

    return {name: spread(grads[name]) / spread(p) for name, p in data.items() if p.dim() - leading >= 2}


def grad_data_ratios(trace: Trace) -> dict[str, Tensor]:
    """std(d loss / d W) / std(W), both with n - 1, for every weight matrix.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> from mmlib.trace import trace
    >>> list(grad_data_ratios(trace(MLP(width=8, depth=1).build(generator(0, 'weights')), corpus().dev)))
    ['embedding.weight', 'linear1.weight', 'output.weight']
    """
    return _ratios(trace.parameters, trace.parameter_grads, trace.loss.dim())


def update_ratios(step: Step) -> dict[str, Tensor]:
    """log10(std(lr * d loss / d W) / std(W)) for every weight matrix: a probe for `train`. About -3 is healthy.

    >>> from mmlib.data import corpus, minibatches
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> from mmlib.train import descend
    >>> model = MLP(width=8, depth=1).build(generator(0, 'weights'))
    >>> (step,) = descend(model, minibatches(corpus().train, 32, 1, generator=generator(0, 'batches')), lr=0.1)
    >>> list(update_ratios(step))
    ['embedding.weight', 'linear1.weight', 'output.weight']
    """
    ratios = _ratios(step.parameters, step.grads, step.loss.dim())
    return {name: (ratio * step.lr).log10() for name, ratio in ratios.items()}


def distances(step: Step, reference: Sequence[int]) -> Tensor:
    """|theta_r - theta_s| / |theta_s| over what is trained, for R stacked models and s = reference[r]: shape (R,).

    Raises ValueError unless the step is of stacked models and `reference` names one of them for each.

    >>> from mmlib.data import corpus, minibatches
    >>> from mmlib.ensemble import stack
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> from mmlib.train import descend
    >>> models = stack([MLP(width=8, depth=1).build(generator(0, 'weights')) for _ in range(2)])
    >>> streams = [generator(0, 'batches'), generator(1, 'batches')]
    >>> (step,) = descend(models, minibatches(corpus().train, 32, 1, generator=streams), lr=0.1)
    >>> (distances(step, [0, 0]) > 0).tolist()
    [False, True]
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

    For a paired comparison give it the differences. Raises ValueError for fewer than two values, a value that is nan or
    infinite, or a confidence outside 0 to 1.

    >>> mean, low, high = interval(torch.tensor([2.1, 2.3, 2.2, 2.4]))
    >>> f'{mean:.2f} [{low:.2f}, {high:.2f}]'
    '2.25 [2.04, 2.46]'
    """
    n = len(values) if values.dim() else 1
    if n < 2 or not values.numel():
        raise ValueError(f"values: at least two along the first axis are needed, got shape {tuple(values.shape)}")
    if not values.isfinite().all():
        at = (~values.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"values: finite numbers are needed, got {values[tuple(at)].item()} at {at}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: a number between 0 and 1 is needed, got {confidence}")
    values = values.double()
    mean, half = values.mean(0), float(stdtrit(n - 1, (1 + confidence) / 2)) * values.std(0) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)
