"""Normalisation: standardize, and the four layers that differ in which axes they average over.

As all layers, these work on (..., batch, features); batch normalisation averages over the batch, the others over the
features of each row by itself.
"""

import copy
from collections.abc import Iterator
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib.examples import Examples
from mmlib.layers import Linear
from mmlib.undisturbed import undisturbed

_HALF = (torch.float16, torch.bfloat16)


def _wide(x: Tensor) -> Tensor:
    """x, in float32 if it is of half precision, whose squares overflow and whose means lose most digits."""
    return x.float() if x.dtype in _HALF else x


def moments(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance E (x - mean)^2 along one axis, which is kept with length 1; float32 for half precision.

    The deviations are squared, not the values: E x^2 - (E x)^2 cancels in float32 when the mean is large.
    Raises ValueError if the axis is empty.

    >>> mean, var = moments(torch.tensor([[1.0], [3.0]]), 0)
    >>> mean.item(), var.item()
    (2.0, 1.0)
    """
    if not x.shape[dim]:
        raise ValueError(f"moments: no mean along the empty axis {dim} of {tuple(x.shape)}")
    x = _wide(x)
    mean = x.mean(dim, keepdim=True)
    return mean, (x - mean).square().mean(dim, keepdim=True)


def standardize(x: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps): zero mean and unit variance if these are x's own. Ioffe and Szegedy (2015), 3.

    Computed in float32, and given so, for half precision.

    >>> x = torch.tensor([[1.0], [3.0]])
    >>> standardize(x, *moments(x, 0), 1e-5).round(decimals=4).tolist()
    [[-1.0], [1.0]]
    """
    x, var = _wide(x), _wide(var)
    return (x - mean) * torch.rsqrt(var + eps)


class Norm(nn.Module):
    """A learned scale (weight, 1 at the start) and shift (bias, 0) for each feature, around a standardisation.

    >>> Norm(3, eps=1e-5).weight.tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(self, features: int, *, eps: float, shift: bool = True) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features: at least 1 is needed, got {features}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps: a positive number is needed, got {eps}")
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features)) if shift else None

    def _check(self, x: Tensor) -> None:
        kind, weight = type(self).__name__, tuple(self.weight.shape)
        if not x.is_floating_point():
            raise ValueError(f"{kind}: a floating-point tensor is needed, got {x.dtype}")
        if x.dtype != self.weight.dtype and (x.dtype not in _HALF or self.weight.dtype != torch.float32):
            raise ValueError(f"{kind}: input of {x.dtype} does not fit weights of {self.weight.dtype}")
        if x.dim() < 2 or x.shape[-1] != weight[-1] or (len(weight) > 1 and x.shape[:-2] != weight[:-1]):
            raise ValueError(f"{kind}: input {tuple(x.shape)} does not fit weight {weight}")

    def _check_batch(self, x: Tensor) -> None:
        if (n := x.shape[-2]) < 2:
            raise ValueError(
                f"{type(self).__name__}: in training a batch of at least 2 is needed to have a variance, got {n}; "
                "use evaluation mode for single examples"
            )

    def _scale_and_shift(self, y: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.weight.dtype
        scale = _wide(self.weight).unsqueeze(-2)
        y = y * scale if self.bias is None else torch.addcmul(_wide(self.bias).unsqueeze(-2), y, scale)
        return y.to(dtype) if dtype in _HALF else y  # rounded once, at the end

    def extra_repr(self) -> str:
        return f"{self.weight.shape[-1]}, eps={self.eps}"


class BatchNorm1d(Norm):
    """Standardises each feature over the batch, then scales and shifts: weight * x_hat + bias.

    In training the batch's own mean and biased variance are used, and running_mean and running_var move towards that
    mean and the unbiased variance by the share `momentum`; in evaluation the running statistics are used. Parameters,
    buffers and conventions are those of torch.nn.BatchNorm1d.

    Raises ValueError for a batch of one in training, an input that does not fit or is not floating point, eps not
    positive, or momentum that is no number from 0 to 1. Ioffe and Szegedy (2015), algorithms 1 and 2.

    >>> norm = BatchNorm1d(1)
    >>> norm(torch.tensor([[1.0], [3.0]])).round(decimals=2).tolist()
    [[-1.0], [1.0]]
    >>> round(norm.running_mean.item(), 2)
    0.2
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(features, eps=eps)
        if not isinstance(momentum, Real) or not 0 <= momentum <= 1:
            raise ValueError(f"momentum: a number from 0 to 1 is needed, got {momentum}")
        self.momentum: float = momentum
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if not self.training:
            return self._evaluated(x)
        self._check_batch(x)
        self.num_batches_tracked += 1
        return self._trained(x)

    def _trained(self, x: Tensor) -> Tensor:
        """_scale_and_shift(standardize(x, *moments(x, -2), eps)), after which the running statistics have moved.

        Torch's fused kernel does it in a third of the time. R models are one with R times the features to it.
        """
        matrix = x.movedim(-2, 0).flatten(1)
        running = self.running_mean, self.running_var
        moved = self.running_mean.flatten(), self.running_var.flatten()
        weight, bias = self.weight.flatten(), None if self.bias is None else self.bias.flatten()
        y = F.batch_norm(matrix, *moved, weight, bias, training=True, momentum=self.momentum, eps=self.eps)
        for buffer, flat in zip(running, moved, strict=True):
            if not buffer.is_contiguous():  # then it was copied, to be seen as one axis
                buffer.copy_(flat.view_as(buffer))
        return y.unflatten(1, self.weight.shape).movedim(0, -2)

    def _evaluated(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean.unsqueeze(-2), self.running_var.unsqueeze(-2)
        return self._scale_and_shift(standardize(x, mean, var, self.eps), x.dtype)

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if x.shape[:-2] != self.weight.shape[:-1]:
            raise ValueError(f"BatchNorm1d: input {tuple(x.shape)} does not fit weight {tuple(self.weight.shape)}")

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, n: int, momentum: float) -> None:
        for running, new in ((self.running_mean, mean), (self.running_var, var * (n / (n - 1)))):
            running.lerp_(new.view_as(running).to(running.dtype), momentum)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}"


class LayerNorm(Norm):
    """Standardises each row over its features, then scales and shifts. Same in training and evaluation.

    Raises ValueError for an input that does not fit or is not floating point, or eps not positive.
    Ba, Kiros and Hinton (2016), section 3.

    >>> LayerNorm(4)(torch.tensor([[1.0, 1.0, 3.0, 3.0]])).round(decimals=2).tolist()
    [[-1.0, -1.0, 1.0, 1.0]]
    """

    def __init__(self, features: int, *, eps: float = 1e-5) -> None:
        super().__init__(features, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._scale_and_shift(standardize(x, *moments(x, -1), self.eps), x.dtype)


class GroupNorm(Norm):
    """Standardises each row over each of `groups` equal runs of its features, then scales and shifts each feature.

    One group is layer normalisation. Raises ValueError if the groups do not divide the features, and as LayerNorm.
    Wu and He (2018), section 3.

    >>> GroupNorm(2, 4)(torch.tensor([[1.0, 3.0, 10.0, 30.0]])).round(decimals=2).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    def __init__(self, groups: int, features: int, *, eps: float = 1e-5) -> None:
        super().__init__(features, eps=eps)
        if groups < 1 or features % groups:
            raise ValueError(f"groups: a divisor of features = {features} is needed, got {groups}")
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        grouped = x.unflatten(-1, (self.groups, -1))
        return self._scale_and_shift(standardize(grouped, *moments(grouped, -1), self.eps).flatten(-2), x.dtype)

    def extra_repr(self) -> str:
        return f"{self.groups}, {super().extra_repr()}"


class RMSNorm(Norm):
    """Divides each row by its root mean square, x / sqrt(mean x^2 + eps), then scales: no mean, no shift.

    Raises ValueError as LayerNorm. Zhang and Sennrich (2019), section 4.

    >>> RMSNorm(2)(torch.tensor([[2.0, -2.0]])).round(decimals=2).tolist()
    [[1.0, -1.0]]
    """

    def __init__(self, features: int, *, eps: float = 1e-5) -> None:
        super().__init__(features, eps=eps, shift=False)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        y = _wide(x)
        return self._scale_and_shift(y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps), x.dtype)


def _chain(model: nn.Module, place: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers that a forward pass calls one after the other, those of sequences within sequences too."""
    if type(model).forward is not nn.Sequential.forward:
        raise TypeError(f"calibrate: an nn.Sequential is needed, got {type(model).__name__}")
    for name, layer in model.named_children():
        name = f"{place}{name}"
        if type(layer).forward is nn.Sequential.forward:
            yield from _chain(layer, f"{name}.")
            continue
        if not isinstance(layer, BatchNorm1d) and any(b.endswith("running_mean") for b, _ in layer.named_buffers()):
            raise TypeError(f"calibrate: {name}, {type(layer).__name__}, keeps statistics, but is no BatchNorm1d")
        yield name, layer


@torch.no_grad()
def calibrate(model: nn.Sequential, data: Examples) -> None:
    """Sets the running statistics of every BatchNorm1d to those of all `data`: mean and unbiased variance.

    Layer by layer, each on what the calibrated layers before it put out in evaluation. Modes and parameters stay.
    Data for R stacked models need their leading axis. All layers are calibrated or, if an error is raised, none.

    Raises ValueError for fewer than two examples, or statistics that are not finite; TypeError for what is no
    nn.Sequential, or has a layer within that keeps statistics of another kind.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> model = MLP(depth=1, width=8, norm=BatchNorm1d).build(generator(0, 'weights'))
    >>> calibrate(model, corpus().dev)
    >>> bool(model.norm1.running_mean.any())
    True
    """
    n = data.targets.shape[-1]
    if n < 2:
        raise ValueError(f"data: at least two examples are needed for a variance, got {n}")
    found, x = [], data.contexts
    with undisturbed(model):
        model.eval()
        for name, layer in _chain(model):
            if isinstance(layer, BatchNorm1d):
                mean, var = moments(x, -2)
                if not (mean.isfinite().all() and var.isfinite().all()):
                    raise ValueError(f"calibrate: what {name} is given has a mean or variance that is not finite")
                layer._track(mean, var, n, momentum=1.0)
                found.append((layer, mean, var))
            x = layer(x)
    for layer, mean, var in found:
        layer._track(mean, var, n, momentum=1.0)


@torch.no_grad()
def fold(linear: Linear, norm: BatchNorm1d) -> Linear:
    """One Linear equal to norm(linear(x)) in evaluation mode.

    W' = W * s and b' = (b - running_mean) * s + bias, with s = weight / sqrt(running_var + eps) for each output.
    Neither argument is changed.

    Raises ValueError if the sizes differ, TypeError for other kinds of layer.

    >>> from mmlib.rng import generator
    >>> linear, norm = Linear(3, 4, generator=generator(0, 'weights')), BatchNorm1d(4).eval()
    >>> x = torch.randn(5, 3, generator=generator(0, 'x'))
    >>> torch.allclose(fold(linear, norm)(x), norm(linear(x)), atol=1e-6)
    True
    """
    if not isinstance(linear, Linear) or not isinstance(norm, BatchNorm1d):
        raise TypeError(f"fold: a Linear and a BatchNorm1d are needed, got {type(linear)} and {type(norm)}")
    if linear.weight.shape[:-1] != norm.weight.shape:
        raise ValueError(
            f"fold: weight {tuple(linear.weight.shape)} does not fit {tuple(norm.weight.shape)} features of the norm"
        )
    s = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    bias = -norm.running_mean if linear.bias is None else linear.bias - norm.running_mean
    folded = copy.deepcopy(linear)
    trained = linear.weight.requires_grad
    folded.weight = nn.Parameter(linear.weight * s.unsqueeze(-1), requires_grad=trained)
    folded.bias = nn.Parameter(bias * s + (0 if norm.bias is None else norm.bias), requires_grad=trained)
    return folded
