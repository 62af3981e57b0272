"""The layers of a multilayer perceptron.

Every layer works on (..., batch, features). A parameter may carry the same leading axes: R models that share one
forward pass have weights of shape (R, fan_out, fan_in) and inputs of shape (R, batch, fan_in).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import rng
from mmlib.activations import Activation
from mmlib.init import LECUN, Orthogonal, VarianceScaling
from mmlib.losses import cross_entropy as cross_entropy
from mmlib.losses import integers, outside

Init = VarianceScaling | Orthogonal


class Linear(nn.Module):
    """y = x W^T + b, with W of shape (fan_out, fan_in) as in torch.nn.Linear, and b = 0 at the start.

    Maps (..., batch, fan_in) to (..., batch, fan_out). Raises ValueError where the shapes do not fit.

    >>> Linear(30, 200, generator=rng.generator(0, 'weights'))(torch.zeros(32, 30)).shape
    torch.Size([32, 200])
    """

    def __init__(
        self, fan_in: int, fan_out: int, *, init: Init = LECUN, bias: bool = True, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(init(fan_out, fan_in, generator=generator))
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        try:
            if weight.dim() == 2:
                return F.linear(x, weight, bias)
            if bias is not None and x.dim() == 3 and x.shape[0] == weight.shape[0]:
                return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
            return x @ weight.mT if bias is None else x @ weight.mT + bias.unsqueeze(-2)
        except RuntimeError as error:
            raise ValueError(
                f"Linear: input {tuple(x.shape)} does not fit weight {tuple(weight.shape)} ({x.dtype}, {weight.dtype})"
            ) from error

    def extra_repr(self) -> str:
        fan_out, fan_in = self.weight.shape[-2:]
        return f"{fan_in}, {fan_out}, bias={self.bias is not None}"


class Embedding(nn.Module):
    """One learned vector of length dim for each of `tokens` symbols, drawn from N(0, 1).

    Maps integers (..., batch, block) to (..., batch, block, dim). Raises ValueError for a symbol outside the
    vocabulary, or where the leading axes do not fit.

    >>> Embedding(27, 10, generator=rng.generator(0, 'weights'))(torch.zeros(32, 3, dtype=torch.long)).shape
    torch.Size([32, 3, 10])
    """

    def __init__(self, tokens: int, dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(rng.normal(tokens, dim, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        x = x if x.dtype == torch.int64 else integers("Embedding", "symbols", x)
        if weight.dim() == 2:
            try:
                return F.embedding(x, weight)
            except IndexError as error:
                raise ValueError(outside(x, len(weight))) from error
        *leading, tokens, _ = weight.shape
        if x.shape[:-2] != weight.shape[:-2]:
            raise ValueError(f"Embedding: symbols {tuple(x.shape)} do not fit weight {tuple(weight.shape)}")
        if x.numel():
            low, high = x.aminmax()
            if low < 0 or high >= tokens:
                raise ValueError(outside(x, tokens))
        rows = x + tokens * torch.arange(math.prod(leading), device=x.device).view(*leading, 1, 1)
        return weight.flatten(0, -2).index_select(0, rows.flatten()).unflatten(0, x.shape)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[-2]}, {self.weight.shape[-1]}"


class Flatten(nn.Module):
    """Joins the last two axes: (..., batch, block, dim) to (..., batch, block * dim). Raises ValueError for fewer.

    >>> Flatten()(torch.zeros(32, 3, 10)).shape
    torch.Size([32, 30])
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2:
            raise ValueError(f"Flatten: at least two axes are needed, got {tuple(x.shape)}")
        return x.flatten(-2)


class Nonlinearity(nn.Module):
    """An activation function as a layer: h = phi(x), elementwise.

    >>> from mmlib.activations import RELU
    >>> Nonlinearity(RELU)(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def extra_repr(self) -> str:
        return self.activation.name


class Maxout(nn.Module):
    """h_j = max_k (x W_jk^T + b_jk): the largest of `pieces` affine functions for each of fan_out units.

    Not elementwise: it has weights of its own. Goodfellow et al. (2013), section 3.

    >>> Maxout(30, 200, generator=rng.generator(0, 'weights'))(torch.zeros(32, 30)).shape
    torch.Size([32, 200])
    """

    def __init__(
        self, fan_in: int, fan_out: int, pieces: int = 2, *, init: Init = LECUN, generator: torch.Generator
    ) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"pieces: at least 1 is needed, got {pieces}")
        self.pieces = pieces
        self.affine = Linear(fan_in, fan_out * pieces, init=init, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x).unflatten(-1, (-1, self.pieces)).max(-1).values

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"
