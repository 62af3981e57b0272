"""What theory predicts for the numbers that are measured at the start: expectations over random weights."""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mmlib.activations import Activation
from mmlib.gaussian import quadrature

_SPACING = 0.25  # the trapezoidal rule's error is exp(-pi^2 / spacing), 1e-17, for integrands this smooth
_AT_ONCE = 8_000_000  # numbers of a table, 64 MB
_TAIL = 10.0  # standard deviations; the mass beyond is 2e-23


def expected_first_loss(std: float, classes: int) -> float:
    """The cross-entropy, in nats, to expect of logits that are independent draws from N(0, std^2): E logsumexp(std Z).

    Logits that know nothing of the target contribute E[-logit of the target] = 0. The expectation over all classes
    V is two nested integrals over one variable each: if S = sum_i exp(std Z_i) and G has the Gumbel distribution
    P(G <= u) = exp(-exp(-u)), then log S + G <= u has the probability F(u)^V with F(u) = E exp(-exp(std Z - u)), so

        E log S = int [exp(-exp(-u)) - F(u)^V] du.

    log V for std = 0; log V + (1 - 1/V) std^2 / 2 for small std; std * E max_i Z_i for large. The error is below 1e-9
    up to std = 30; the time grows with std^2, a second at 100.
    Raises ValueError for a std that is negative or not finite, or fewer than one class.

    >>> round(expected_first_loss(0.0, 27), 4)  # log 27
    3.2958
    >>> round(expected_first_loss(1.0, 27), 2)
    3.77
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std: a finite number, 0 or more, is needed, got {std}")
    if classes < 1:
        raise ValueError(f"classes: at least 1 is needed, got {classes}")
    spacing = _SPACING / max(1.0, std)
    z = torch.arange(-_TAIL, _TAIL + spacing, spacing, dtype=torch.float64)
    weight = spacing * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    u = torch.arange(-_TAIL * std - 5, _TAIL * std + 40, _SPACING, dtype=torch.float64)  # from log V on
    rows = max(1, _AT_ONCE // len(z))
    below = torch.cat([torch.exp(-torch.exp(std * z - part[:, None]) / classes) @ weight for part in u.split(rows)])
    return math.log(classes) + _SPACING * float((torch.exp(-torch.exp(-u)) - below**classes).sum())


# Wide layers. A unit of layer l + 1 adds up fan_in independent products, so that over random weights of variance
# gain^2 / fan_in, with biases 0, its pre-activation is normal with variance q_{l+1} = gain^2 * mean h_l^2 when fan_in
# is large; and mean h_l^2 = E phi(sqrt(q_l) Z)^2.

_SMALLEST_VARIANCE = 1e-200  # stands for the limit q -> 0: the square of its root is still a normal float64
_FINEST = 60  # halvings; what lies between 0 and the last panel has no weight in float64


@lru_cache
def _nodes(octave: int) -> tuple[Tensor, Tensor]:
    """Quadrature on panels 1/4 wide that halve `octave` times towards 0."""
    return quadrature((0.0, *(side * 2.0**-k for k in range(3, 3 + octave) for side in (-1, 1))))


def _resolving(q: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes that resolve phi(sqrt(q) Z), whose features, of the order of 1 in sqrt(q) Z, shrink towards Z = 0."""
    return _nodes(min(max(0, math.ceil(math.log2(max(1.0, float(q.max()))) / 2)), _FINEST))


def _mean(f: Callable[[Tensor], Tensor], q: Tensor) -> Tensor:
    """E f(sqrt(q) Z) for every q."""
    z, w = _resolving(q)
    return f(q.sqrt().unsqueeze(-1) * z) @ w


def _squared(activation: Activation) -> Callable[[Tensor], Tensor]:
    return lambda x: activation(x) ** 2


def _nonnegative(name: str, value: float) -> Tensor:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: a finite number, 0 or more, is needed, got {value}")
    return torch.tensor(float(value), dtype=torch.float64)


def variance_map(q: float, activation: Activation, gain: float) -> float:
    """The pre-activation variance one layer on: gain^2 E phi(sqrt(q) Z)^2, for weights of variance gain^2 / fan_in.

    gain^2 q / 2 for ReLU. Raises ValueError if q or gain is negative or not finite.
    He et al. (2015), section 2.2, for rectifiers; Poole et al. (2016), the length map.

    >>> from mmlib.activations import RELU
    >>> round(variance_map(1.0, RELU, 2**0.5), 6)  # Kaiming's gain keeps it
    1.0
    """
    return float(_nonnegative("gain", gain) ** 2 * _mean(_squared(activation), _nonnegative("q", q)))


def fixed_point(activation: Activation, gain: float) -> float:
    """q*, the variance at which a deep network settles: the limit of q_l for inputs with E x^2 = 1, so q_1 = gain^2.

    0 if the signal dies out, as for tanh up to gain 1 or ReLU below sqrt 2; math.inf if it grows without end, as for
    ReLU above sqrt 2. Where every q is fixed, as for ReLU at sqrt 2, what the input gave: gain^2. Some activations have
    two limits, GELU at gain 1.5 both 0 and infinity, and another input may go to the other one.

    A factor of 1e10 from gain^2 counts as 0 or infinite. Raises ValueError for a gain that is negative or not finite.
    Poole et al. (2016).

    >>> from mmlib.activations import TANH
    >>> round(fixed_point(TANH, 5 / 3), 3)
    1.178
    """

    def change(q: float) -> float:
        return variance_map(q, activation, gain) / q - 1

    start = float(_nonnegative("gain", gain)) ** 2
    if start == 0 or abs(change(start)) < 1e-12:
        return start
    rises = change(start) > 0
    near, step = start, 1.1 if rises else 0.9
    while (change(near * step) > 0) == rises:
        near *= step
        if not 1e-10 < near / start < 1e10:
            return math.inf if rises else 0.0
    far = near * step
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if (change(middle) > 0) == rises else (near, middle)
    return far


def _chi(q: Tensor, activation: Activation, gain: Tensor | float) -> Tensor:
    return gain**2 * _mean(lambda x: activation.derivative(x) ** 2, q.clamp(min=_SMALLEST_VARIANCE))


def chi(q: float, activation: Activation, gain: float) -> float:
    """gain^2 E phi'(sqrt(q) Z)^2: a gradient's variance is multiplied by it for every layer that it goes back.

    Its standard deviation grows by sqrt(chi). gain^2 / 2 for ReLU, 0 for a step; at q = 0 the limit q -> 0. At a fixed
    point it is also the slope of the correlation map at c = 1: below 1, two inputs that are nearly alike become more so
    from layer to layer; above 1, less so.

    Raises ValueError if q or gain is negative or not finite. Poole et al. (2016); Schoenholz et al. (2017).

    >>> from mmlib.activations import RELU
    >>> round(chi(1.0, RELU, 2**0.5), 6)
    1.0
    """
    return float(_chi(_nonnegative("q", q), activation, _nonnegative("gain", gain)))


@lru_cache
def _crossings(activation: Activation, threshold: float) -> tuple[Tensor, bool]:
    """The points, in rising order, where |phi| crosses the threshold, and whether it is beyond it before the first."""
    right = torch.logspace(-12, 12, 5000, dtype=torch.float64)
    x = torch.cat([-right.flip(0), right])
    beyond = activation(x).abs() > threshold
    at = (beyond[1:] != beyond[:-1]).nonzero().flatten()
    low, high = x[at], x[at + 1]
    for _ in range(64):
        middle = (low + high) / 2
        unchanged = (activation(middle).abs() > threshold) == beyond[at]
        low, high = torch.where(unchanged, middle, low), torch.where(unchanged, high, middle)
    return high, bool(beyond[0])


def _above(z: Tensor) -> Tensor:
    """P(Z > z), accurate far in the tail, where torch.special.ndtr(-z) is not."""
    return torch.erfc(z / math.sqrt(2)) / 2


def _saturation(q: Tensor, activation: Activation, threshold: float) -> Tensor:
    crossings, beyond_at_first = _crossings(activation, float(_nonnegative("threshold", threshold)))
    edge = crossings.new_tensor([math.inf])
    z = torch.cat([-edge, crossings, edge]) / q.clamp(min=_SMALLEST_VARIANCE).sqrt().unsqueeze(-1)
    a, b = z[..., :-1], z[..., 1:]
    share = torch.where(a > 0, _above(a) - _above(b), _above(-b) - _above(-a))  # of small numbers in either tail
    return share[..., 0 if beyond_at_first else 1 :: 2].sum(-1)


def expected_saturation(q: float, activation: Activation, threshold: float = 0.99) -> float:
    """P(|phi(sqrt(q) Z)| > threshold), the share of units beyond it, exact for a phi that crosses it at a few points.

    Raises ValueError if q or threshold is negative or not finite.

    >>> from mmlib.activations import TANH
    >>> round(expected_saturation(30.0, TANH), 3)  # weights N(0, 1) on thirty unit inputs
    0.629
    """
    return float(_saturation(_nonnegative("q", q), activation, threshold))


class Propagation(NamedTuple):
    """What to expect of layers 1 to depth: float64 tensors of shape (depth,), the first layer first.

    `q` is the variance of the pre-activations z_l and `rms` = sqrt(E h_l^2) that of h_l = phi(z_l), with `saturation`
    the share of |h_l| beyond the threshold. `chi` is the factor on the variance of dL/dz on its way from layer l + 1 to
    l, and `growth` the resulting rms of dL/dz_l in units of that at the last layer.
    """

    q: Tensor
    rms: Tensor
    saturation: Tensor
    chi: Tensor
    growth: Tensor


def propagate(
    activation: Activation, gain: float, depth: int, q0: float = 1.0, *, threshold: float = 0.99
) -> Propagation:
    """A signal through `depth` wide layers, and its gradient back, for inputs with E x^2 = q0, so that q_1 = gain^2 q0.

    The way back takes dL/dz of a layer to be independent of the weights before it; growth_l is then the square root of
    the product of chi from layer l to the last but one. For a linear network it is gain^(L - l).

    Raises ValueError for a depth below 1, or a gain, q0 or threshold that is negative or not finite; OverflowError,
    with the layer, if q exceeds the largest float64. Poole et al. (2016); Schoenholz et al. (2017).

    >>> from mmlib.activations import TANH
    >>> propagate(TANH, 5 / 3, 3).rms.round(decimals=2).tolist()
    [0.76, 0.69, 0.67]
    """
    if depth < 1:
        raise ValueError(f"depth: at least 1 is needed, got {depth}")
    factor = _nonnegative("gain", gain) ** 2
    variances, squares = [factor * _nonnegative("q0", q0)], []
    for layer in range(1, depth + 1):
        if not variances[-1].isfinite():
            raise OverflowError(f"propagate: with gain {gain} the variance is beyond float64 from layer {layer} on")
        squares.append(_mean(_squared(activation), variances[-1]))
        variances.append(factor * squares[-1])
    q = torch.stack(variances[:-1])
    back = _chi(q, activation, gain)
    growth = torch.cat([back[:-1].sqrt().flip(0).cumprod(0).flip(0), back.new_ones(1)])
    return Propagation(q, torch.stack(squares).sqrt(), _saturation(q, activation, threshold), back, growth)


def _tanh_sinh() -> tuple[Tensor, Tensor]:
    """Nodes and weights for an integral over [-1, 1]; they crowd to both ends, where the integrand changes fast."""
    spacing = 1 / 16
    t = torch.arange(-3.5, 3.5, spacing, dtype=torch.float64)
    s = math.pi / 2 * t.sinh()
    return s.tanh(), spacing * math.pi / 2 * t.cosh() / s.cosh() ** 2


def correlation_map(c: float, q: float, activation: Activation, gain: float) -> float:
    """The correlation, one layer on, of two inputs whose pre-activations have variance q each and correlation c:

        c' = gain^2 E phi(u) phi(v) / variance_map(q),   u, v ~ N(0, q) with E u v = c q

    The gain acts through q alone. For ReLU c' = (sin a + (pi - a) cos a) / pi with a = arccos c, the arc-cosine kernel
    of degree 1: Cho and Saul (2009). At q = 0 the limit q -> 0. The error is below 1e-8.

    With u = sqrt(q) r cos t and v = sqrt(q) r cos(t - a), a kink or jump of phi at 0 lies on rays t = const, between
    which the integrand is smooth, however close c is to 1. It is the same at t and a - t: t runs over the half circle
    from a / 2 on.

    Raises ValueError for c outside -1 to 1, a q that is negative or not finite, or a gain that is not positive and
    finite. Poole et al. (2016), the correlation map; Schoenholz et al. (2017).

    >>> from mmlib.activations import RELU
    >>> round(correlation_map(0.0, 1.0, RELU, 2**0.5), 4)  # 1 / pi
    0.3183
    """
    if not -1 <= c <= 1:
        raise ValueError(f"c: a number from -1 to 1 is needed, got {c}")
    if not _nonnegative("gain", gain) > 0:
        raise ValueError(f"gain: a positive number is needed, got {gain}")
    variance = _nonnegative("q", q).clamp(min=_SMALLEST_VARIANCE)
    a = math.acos(c)
    y, weight = _tanh_sinh()
    rays = (a / 2, math.pi / 2, math.pi / 2 + a, math.pi + a / 2)
    t = torch.cat([(low + high) / 2 + (high - low) / 2 * y for low, high in pairwise(rays)])
    w_t = torch.cat([(high - low) / 2 * weight for low, high in pairwise(rays)])
    z, w = _resolving(variance)
    r = z[z > 0]
    w_r = math.sqrt(2 / math.pi) * r * w[z > 0]
    scaled = variance.sqrt() * r.unsqueeze(-1)
    covariance = gain**2 * float(w_r @ (activation(scaled * t.cos()) * activation(scaled * (t - a).cos())) @ w_t)
    return min(1.0, max(-1.0, covariance / variance_map(float(variance), activation, gain)))
