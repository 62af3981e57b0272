"""Initialisation schemes as data: how wide the first weights are drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlib import rng
from mmlib.activations import Activation

_FANS: dict[str, Callable[[int, int], float]] = {
    "in": lambda fan_out, fan_in: fan_in,
    "out": lambda fan_out, fan_in: fan_out,
    "average": lambda fan_out, fan_in: (fan_out + fan_in) / 2,
    "one": lambda fan_out, fan_in: 1,
}
_LAWS: dict[str, Callable[[tuple[int, int], torch.Generator], Tensor]] = {
    "normal": lambda shape, generator: rng.normal(*shape, generator=generator),
    "uniform": lambda shape, generator: (2 * torch.rand(shape, generator=generator) - 1) * math.sqrt(3),
}


def _check_gain(gain: float) -> None:
    if not (math.isfinite(gain) and gain >= 0):
        raise ValueError(f"gain: a finite number, 0 or more, is needed, got {gain}")


def _check_fans(fan_out: int, fan_in: int) -> None:
    for name, value in (("fan_out", fan_out), ("fan_in", fan_in)):
        if value < 1:
            raise ValueError(f"{name}: at least 1 is needed, got {value}")


@dataclass(frozen=True)
class VarianceScaling:
    """Independent weights of mean 0 and standard deviation gain / sqrt(fan).

    `fan` is "in" (the number of inputs of a unit), "out", "average" of both, or "one" (no scaling). `law` is "normal"
    or "uniform", the latter on +- sqrt(3) standard deviations. The noise is drawn standardised and then scaled:
    schemes that differ in gain or fan share it under one seed.

    Raises ValueError for an unknown fan or law, or a gain that is negative or not finite.
    LeCun et al. (1998), section 4.6; Glorot and Bengio (2010), section 4.2; He et al. (2015), section 2.2.

    >>> from mmlib.rng import generator
    >>> round(VarianceScaling(gain=5 / 3).std(200, 30), 4)  # 5/3 / sqrt(30)
    0.3043
    >>> LECUN(200, 30, generator=generator(0, 'weights')).shape
    torch.Size([200, 30])
    """

    gain: float = 1.0
    fan: str = "in"
    law: str = "normal"

    def __post_init__(self) -> None:
        if self.fan not in _FANS:
            raise ValueError(f"fan: one of {', '.join(_FANS)} is needed, got {self.fan!r}")
        if self.law not in _LAWS:
            raise ValueError(f"law: one of {', '.join(_LAWS)} is needed, got {self.law!r}")
        _check_gain(self.gain)

    def std(self, fan_out: int, fan_in: int) -> float:
        """The standard deviation of one weight: gain / sqrt(fan)."""
        _check_fans(fan_out, fan_in)
        return self.gain / math.sqrt(_FANS[self.fan](fan_out, fan_in))

    def __call__(self, fan_out: int, fan_in: int, *, generator: torch.Generator) -> Tensor:
        """A weight matrix of shape (fan_out, fan_in), in torch's default dtype."""
        std = self.std(fan_out, fan_in)
        return std * _LAWS[self.law]((fan_out, fan_in), rng.given(generator))


@dataclass(frozen=True)
class Orthogonal:
    """gain times a random matrix with orthonormal rows (or columns, if there are more rows than columns).

    Uniform over such matrices: the Q of a Gaussian matrix's QR decomposition, with the signs of R's diagonal.
    Raises ValueError for a gain that is negative or not finite. Saxe et al. (2014), section 3.

    >>> from mmlib.rng import generator
    >>> W = Orthogonal()(3, 5, generator=generator(0, 'weights'))
    >>> torch.allclose(W @ W.T, torch.eye(3), atol=1e-5)
    True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        _check_gain(self.gain)

    def std(self, fan_out: int, fan_in: int) -> float:
        """The standard deviation of one weight: gain / sqrt(the larger fan)."""
        _check_fans(fan_out, fan_in)
        return self.gain / math.sqrt(max(fan_out, fan_in))

    def __call__(self, fan_out: int, fan_in: int, *, generator: torch.Generator) -> Tensor:
        """A weight matrix of shape (fan_out, fan_in), in torch's default dtype."""
        _check_fans(fan_out, fan_in)
        noise = rng.normal(fan_out, fan_in, generator=generator)
        q, r = torch.linalg.qr((noise if fan_out >= fan_in else noise.T).double())
        q = q * r.diagonal().sign()
        return (self.gain * (q if fan_out >= fan_in else q.T)).to(noise.dtype).contiguous()


LECUN = VarianceScaling()
XAVIER = VarianceScaling(fan="average", law="uniform")
PYTORCH = VarianceScaling(gain=1 / math.sqrt(3), law="uniform")  # the default of torch.nn.Linear


def kaiming(activation: Activation) -> VarianceScaling:
    """gain / sqrt(fan_in), with the gain computed from the activation that follows. He et al. (2015), section 2.2.

    >>> from mmlib.activations import RELU
    >>> kaiming(RELU)
    VarianceScaling(gain=1.414213562373095, fan='in', law='normal')
    """
    return VarianceScaling(gain=activation.gain)


def schemes(activation: Activation) -> dict[str, VarianceScaling | Orthogonal]:
    """The schemes that the book compares, by name, for layers followed by `activation`.

    >>> from mmlib.activations import TANH
    >>> list(schemes(TANH))
    ['standard normal', 'LeCun', 'Xavier', 'PyTorch default', 'Kaiming', 'orthogonal']
    """
    return {
        "standard normal": VarianceScaling(fan="one"),
        "LeCun": LECUN,
        "Xavier": XAVIER,
        "PyTorch default": PYTORCH,
        "Kaiming": kaiming(activation),
        "orthogonal": Orthogonal(activation.gain),
    }
