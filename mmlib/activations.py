"""Activation functions: phi, its derivative, and the gains that keep a signal's scale."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlib.gaussian import expectation


@dataclass(frozen=True)
class Activation:
    """An elementwise function phi with a name.

    `phi` maps a tensor of any shape to one of the same shape, and may have a kink or a jump at 0 only.

    >>> RELU(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    >>> round(RELU.gain, 4), round(TANH.gain, 4)
    (1.4142, 1.5925)
    >>> RELU.derivative(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 1.0]
    """

    name: str
    phi: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """phi(x), elementwise."""
        return self.phi(x)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def derivative(self, x: Tensor) -> Tensor:
        """phi'(x), elementwise; at a kink, the one-sided value that torch's autograd takes; 0 for a step."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            y = self.phi(x)
            if not y.requires_grad:
                return torch.zeros_like(x)
            return torch.autograd.grad(y.sum(), x)[0]

    @cached_property
    def gain(self) -> float:
        """The factor on weights that keeps E h^2 = 1 for inputs of variance 1, 1 / sqrt(E phi(Z)^2) with Z ~ N(0, 1).

        He et al. (2015), section 2.2, for ReLU, where it is sqrt 2; here the same expectation for any phi.
        """
        return 1 / math.sqrt(expectation(lambda z: self(z) ** 2))

    @cached_property
    def backward_gain(self) -> float:
        """The factor that keeps the gradient's scale instead, which is 1 / sqrt(E phi'(Z)^2); infinite for a step."""
        square = expectation(lambda z: self.derivative(z) ** 2)
        return 1 / math.sqrt(square) if square else math.inf


def _identity(x: Tensor) -> Tensor:
    return x


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


STEP = Activation("step", _step)
IDENTITY = Activation("identity", _identity)
SIGMOID = Activation("sigmoid", torch.sigmoid)
TANH = Activation("tanh", torch.tanh)
RELU = Activation("ReLU", torch.relu)
LEAKY_RELU = Activation("leaky ReLU", F.leaky_relu)
ELU = Activation("ELU", F.elu)
GELU = Activation("GELU", F.gelu)
SILU = Activation("SiLU", F.silu)

ACTIVATIONS = {a.name: a for a in (STEP, IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU, ELU, GELU, SILU)}
