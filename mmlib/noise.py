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
_PRODUCTS = """matmul __rmatmul__ mm bmm mv dot vdot inner addmm addmv addbmm baddbmm linear bilinear einsum tensordot
    matrix_power linalg_matmul linalg_multi_dot linalg_vecdot conv1d conv2d conv3d scaled_dot_product_attention
    multi_head_attention_forward rnn_tanh_cell lstm_cell gru_cell rnn_tanh lstm gru"""
_SUMS = """sum nansum mean nanmean var std var_mean std_mean prod cumsum cumprod logcumsumexp trace trapezoid cov
    corrcoef sum_to_size index_add scatter_add norm linalg_norm linalg_vector_norm linalg_matrix_norm dist cdist
    pairwise_distance cosine_similarity normalize batch_norm instance_norm layer_norm group_norm rms_norm avg_pool1d
    avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d"""
_LOSSES = """softmax softmin log_softmax special_softmax special_log_softmax logsumexp special_logsumexp logaddexp
    cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss
    huber_loss"""
_FUNCTIONS = """exp exp2 expm1 __rpow__ log log2 log10 log1p sin cos tan sinh cosh tanh asin acos atan atan2 asinh acosh
    atanh sigmoid log_sigmoid softplus erf erfc erfinv gelu silu mish elu selu celu special_expm1 special_exp2
    special_expit special_erf special_erfcx special_log1p special_ndtr special_ndtri special_log_ndtr lgamma digamma"""
_ALGEBRA = """inverse linalg_inv linalg_solve linalg_cholesky linalg_qr linalg_svd linalg_svdvals linalg_eigh
    linalg_eigvalsh linalg_det linalg_slogdet linalg_pinv linalg_cond"""
_ROUNDED = frozenset(" ".join((_PRODUCTS, _SUMS, _LOSSES, _FUNCTIONS, _ALGEBRA)).split())
_DRAWN = 2**21


@contextmanager
def noise(seed: int) -> Iterator[None]:
    """Within it results x become x (1 + u eps), with u from {-1, 0, 1} for each element, and eps that of x's dtype.

    These results are matrix products, sums, means, variances, norms, softmax, the losses, functions such as the
    exponential and tanh, and linear algebra; gradients on their way back through them are multiplied alike, but for
    functions that work in place. Digits that differ from one seed to the next were decided by a processor's rounding;
    those that do not are the result's own. The global random state is not touched.

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
        self._factors: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _ROUNDED and kwargs.get("out") is None:
            return self._rounded(result)
        if name.removesuffix("_") in _ROUNDED and isinstance(result, Tensor) and result.is_floating_point():
            result.data.mul_(self._factor(result))  # in place, unseen by autograd, which may have saved it
        return result

    def _rounded(self, result: Any) -> Any:
        if isinstance(result, Tensor):
            rounded = result.is_floating_point() and result.layout == torch.strided
            return result * self._factor(result) if rounded else result
        return type(result)(map(self._rounded, result)) if isinstance(result, tuple) else result

    def _factor(self, x: Tensor) -> Tensor:
        """1 + u eps for every element of x."""
        start, n = next(self._starts), x.numel()
        factors = self._factors.get((x.dtype, x.device))
        if factors is None or len(factors) < _DRAWN + n:  # from every start on, as many as there are elements
            u = self._u.repeat(1 + math.ceil(n / _DRAWN)).to(x.device, x.dtype)
            factors = self._factors[x.dtype, x.device] = 1 + u * torch.finfo(x.dtype).eps
        return factors[start : start + n].view(x.shape)


def _places(*, generator: torch.Generator) -> Iterator[int]:
    """One draw for many gives the same numbers as a draw each, for less."""
    while True:
        yield from torch.randint(_DRAWN, (1024,), generator=generator).tolist()
