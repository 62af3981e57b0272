"""Rounding noise on purpose: what any other processor might have computed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmlib.rng import generator

# What processors round in different ways: sums, in their order, and functions that are computed by approximation.
# A single addition, product, quotient or square root is rounded alike on all of them (IEEE 754).
_PRODUCTS = "matmul __matmul__ __rmatmul__ mm bmm mv dot addmm baddbmm linear bilinear einsum tensordot conv1d conv2d"
_SUMS = "sum mean var std var_mean std_mean norm linalg_norm linalg_vector_norm cumsum batch_norm layer_norm group_norm"
_LOSSES = "softmax log_softmax logsumexp cross_entropy nll_loss mse_loss"
_FUNCTIONS = "exp expm1 log log1p tanh sigmoid erf erfc erfinv gelu silu elu softplus"
_ROUNDED = frozenset(" ".join((_PRODUCTS, _SUMS, _LOSSES, _FUNCTIONS)).split())
_DRAWN = 2**21


@contextmanager
def noise(seed: int) -> Iterator[None]:
    """Within it results x become x (1 + u eps), with u from {-1, 0, 1} for each element, and eps that of x's dtype.

    These results are matrix products, sums, means, variances, norms, softmax, the losses, and functions such as the
    exponential and tanh; gradients on their way back through them are multiplied alike. Digits that differ from one
    seed to the next were decided by a processor's rounding; those that do not are the result's own. The global random
    state is not touched.

    Monte Carlo arithmetic: Parker (1997); Denis, de Oliveira Castro and Petit (2016). Raises TypeError unless `seed` is
    an integer.

    >>> x = torch.ones(1000)
    >>> with noise(1):
    ...     total = x.sum()
    >>> abs(total.item() - 1000) < 1e-3
    True
    """
    with _Noise(generator=generator(seed, "noise")):
        yield


class _Noise(TorchFunctionMode):
    def __init__(self, *, generator: torch.Generator) -> None:
        super().__init__()
        self._starts = _places(generator=generator)
        # Drawn once and read round and round from a random place: a draw for each element would cost more than tanh.
        self._u = torch.randint(-1, 2, (_DRAWN,), generator=generator, dtype=torch.int8)
        self._factors: dict[torch.dtype, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _ROUNDED:
            return self._rounded(result)
        if name.removesuffix("_") in _ROUNDED and isinstance(result, Tensor) and result.is_floating_point():  # in place
            return result.mul_(self._factor(result))
        return result

    def _rounded(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            rounded = result.is_floating_point() and result.layout == torch.strided
            return result * self._factor(result) if rounded else result
        return type(result)(map(self._rounded, result)) if isinstance(result, tuple) else result

    def _factor(self, x: Tensor) -> Tensor:
        """1 + u eps for every element of x."""
        start, n = next(self._starts), x.numel()
        factors = self._factors.get(x.dtype)
        if factors is None or len(factors) < _DRAWN + n:  # from every start on, as many as there are elements
            u = self._u.repeat(1 + math.ceil(n / _DRAWN))
            factors = self._factors[x.dtype] = 1 + u.to(x.dtype) * torch.finfo(x.dtype).eps
        return factors[start : start + n].view(x.shape)


def _places(*, generator: torch.Generator) -> Iterator[int]:
    """One draw for many gives the same numbers as a draw each, for less."""
    while True:
        yield from torch.randint(_DRAWN, (1024,), generator=generator).tolist()
