"""What one layer, or one activation function, put out and got back, in a few numbers."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmlib.activations import Activation

BOUNDED = frozenset({"tanh", "sigmoid"})
RECTIFIERS = frozenset({"relu", "relu6", "hardtanh", "gelu", "silu", "mish", "elu"})
FLAT = 1 - 0.99**2  # the slope of tanh where it is 0.99, of 1 at its steepest

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def numbers(x: Tensor) -> Tensor:
    """Detached, in a precision that statistics can be taken in; complex numbers as pairs."""
    x = x.detach()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def finite(x: Tensor) -> bool:
    """Whether no element is nan or infinite."""
    return not (x.is_floating_point() or x.is_complex()) or bool(x.detach().isfinite().all())


def mean_square(x: Tensor) -> float:
    """mean x^2, in double precision where single would overflow."""
    square = torch.linalg.vector_norm(x).item() ** 2
    if not 1e-30 < square < math.inf and x.dtype == torch.float32 and x.device.type != "mps":
        square = torch.linalg.vector_norm(x, dtype=torch.float64).item() ** 2
    return square / x.numel()


def is_zero(x: Tensor) -> bool:
    """Whether every number is 0; the first few tell it of most tensors."""
    return not x.detach().reshape(-1)[:8].any() and not x.detach().any()


def std(x: Tensor) -> float:
    """The standard deviation, with n - 1."""
    x, n = numbers(x), x.numel()
    square, mean = mean_square(x), x.mean().item()
    variance = (square - mean * mean) * n / max(n - 1, 1)
    return math.sqrt(variance) if variance > 1e-3 * square else x.std().item() if n > 1 else 0.0


def is_norm(module: nn.Module) -> bool:
    """Whether it is called a norm."""
    return "norm" in type(module).__name__.lower()


def is_layer(module: nn.Module) -> bool:
    """Whether its own parameters act in its own forward: no container, but also multi-head attention."""
    if "parametrizations" in module._modules:
        return True
    whole = not module._modules or isinstance(module, nn.MultiheadAttention)
    return whole and (is_norm(module) or any(p is not None for p in module._parameters.values()))


def units_axis(module: nn.Module, output: Tensor) -> int:
    """The axis of a layer's units in what it puts out."""
    return 1 if isinstance(module, _CHANNELS_FIRST) and output.dim() > 2 else -1


Spans = tuple[tuple[float, float], ...]
_SIGMOID = math.sqrt(1 - FLAT) / 2  # the distance of a sigmoid from 1/2 where its slope is FLAT of its steepest
_GRID = torch.linspace(-30, 30, 60001, dtype=torch.float64)


def flat_spans(phi: Activation) -> Spans:
    """The intervals in which |phi'| is at most FLAT."""
    flat = (phi.derivative(_GRID).abs() <= FLAT).int()
    edges = torch.diff(flat, prepend=flat.new_zeros(1), append=flat.new_zeros(1)).nonzero().flatten().tolist()
    at = _GRID.tolist()
    ends = [(at[a], at[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return tuple((-math.inf if a == at[0] else a, math.inf if b == at[-1] else b) for a, b in ends)


@dataclass
class Row:
    """What the calls of one layer, or of one activation function after one layer, put out.

    `flat` is the share of elements where |phi'| is below 2 % of its largest value, `dead` says which units are so for
    every example, `on` which get a positive input from every example. `spread` is the rms of a unit's deviations over
    the examples, relative to `rms`. `sources` are the layers that each call read from, through
    activation functions, and `raw` is the one that the last call read from with nothing between.
    """

    name: str
    kind: str
    after: str = ""
    module: nn.Module | None = None
    activation: str = ""
    axis: int = -1
    shape: tuple[int, ...] = ()
    calls: int = 0
    square: float = 0.0
    square_in: float = 0.0
    spread: float | None = None
    flat: float | None = None
    dead: Tensor | None = None
    on: Tensor | None = None
    gradient_square: float | None = None
    gradient_sum: Tensor | float = 0.0
    gradient_abs: Tensor | float = 0.0
    norm: str = ""  # the norm that reads this output
    sources: tuple[str, ...] = ()
    raw: str = ""

    @property
    def rms(self) -> float:
        """sqrt(mean x^2) of the output."""
        return math.sqrt(self.square / self.calls)

    @property
    def gain(self) -> float:
        """rms of the output over rms of the input."""
        return math.sqrt(self.square / self.square_in) if self.square_in > 0 else 0.0

    @property
    def gradient(self) -> float | None:
        """The Euclidean norm of d loss / d output."""
        return None if self.gradient_square is None else math.sqrt(self.gradient_square)

    def _over(self, x: Tensor) -> tuple[int, ...]:
        """Every axis but that of the units."""
        return tuple(k for k in range(x.dim()) if k != self.axis % x.dim()) if x.dim() > 1 else ()

    def see(self, output: Tensor, axis: int) -> None:
        """Adds the output of one call, whose units lie along `axis`."""
        x = numbers(output)
        self.axis, self.shape = axis, tuple(output.shape)
        square = mean_square(x)
        self.calls, self.square = self.calls + 1, self.square + square
        over = self._over(x) if x.dim() > 1 else (0,)
        if x.dim() and math.prod(x.shape[k] for k in over) > 1:
            share = 1 - mean_square(x.mean(over)) / square if 0 < square < math.inf else 0.0
            if share < 1e-3 and square > 0:  # of nearly equal numbers, to be taken with care
                share = x.var(over, correction=0).mean().item() / square
            self.spread = max(math.sqrt(max(share, 0.0)), self.spread or 0.0)

    def see_activation(self, x: Tensor | None, output: Tensor, axis: int, flat: Spans = ()) -> None:
        """Adds where one call of the activation function was flat: by its output, or by the input x and the spans in
        which it is flat, where the output alone does not tell."""
        self.axis, y = axis, numbers(output)
        over = self._over(y)
        if not flat and self.activation == "relu":
            off, on = y.amax(over) <= 0, y.amin(over) > 0
            share = 1 - y.count_nonzero().item() / y.numel()
        else:
            x = numbers(x) if x is not None else y if self.activation == "tanh" else y - 0.5
            low, high = (-0.99, 0.99) if self.activation == "tanh" else (-_SIGMOID, _SIGMOID)
            spans = flat or ((-math.inf, low), (high, math.inf))
            inside: Any = sum(
                (x >= a) & (x <= b) if -math.inf < a and b < math.inf else x <= b if a < 0 else x >= a for a, b in spans
            )
            count = inside.float().sum(over) if over else inside.float()
            off, on = count >= x.numel() / count.numel(), x.amin(over) > 0
            share = count.sum().item() / x.numel()
        off, on = off.reshape(-1), on.reshape(-1)
        again = self.dead is not None and self.dead.shape == off.shape
        self.dead, self.on = (self.dead & off, self.on & on) if again else (off, on)
        self.flat = (share + (self.flat or 0.0) * self.calls) / (self.calls + 1)

    def see_gradient(self, grad: Tensor) -> None:
        """Adds d loss / d output of one call."""
        grad = numbers(grad)
        self.gradient_square = (self.gradient_square or 0.0) + mean_square(grad) * grad.numel()
        if self.norm and getattr(self.module, "bias", None) is not None:
            over = self._over(grad)
            self.gradient_sum = self.gradient_sum + (grad.sum(over) if over else grad)
            self.gradient_abs = self.gradient_abs + (grad.abs().sum(over) if over else grad.abs())
