import math
import os
import subprocess
import sys
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

import mmlib
from mmlib import meanfield
from mmlib.activations import ACTIVATIONS, ELU, GELU, IDENTITY, LEAKY_RELU, RELU, SIGMOID, SILU, STEP, TANH, Activation
from mmlib.data import Examples
from mmlib.gaussian import expectation
from mmlib.init import VarianceScaling
from mmlib.meanfield import (
    chi,
    correlation_map,
    expected_first_loss,
    expected_saturation,
    fixed_point,
    propagate,
    variance_map,
)
from mmlib.models import MLP
from mmlib.rng import generator
from mmlib.trace import trace
from tests.small import randn

pytestmark = pytest.mark.usefixtures("no_global_randomness")

near = partial(pytest.approx, abs=0)  # of small numbers too, for which pytest.approx allows 1e-12 whatever `rel` says


def simulated(std, classes, draws=40_000):
    """Mean and standard error of logsumexp(std z) - std mean(z), whose expectation is the same and whose noise less."""
    z = torch.randn(draws, classes, generator=generator(0, "logits"), dtype=torch.float64)
    losses = (std * z).logsumexp(1) - std * z.mean(1)
    return float(losses.mean()), float(losses.std()) / math.sqrt(draws)


@pytest.mark.parametrize("std", [0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("classes", [2, 27])
def test_expected_first_loss_is_the_mean_of_random_logits(std, classes):
    mean, error = simulated(std, classes)
    assert abs(expected_first_loss(std, classes) - mean) < 4 * error


@pytest.mark.parametrize("std", [0.01, 0.3, 1.0, 4.0, 12.49, 30.0])
def test_expected_first_loss_agrees_with_one_integral_for_two_classes(std):
    # log(e^a + e^b) = (a + b) / 2 + log(2 cosh((a - b) / 2)), and a - b ~ N(0, 2 std^2)
    def log_two_cosh(z):
        x = (std / math.sqrt(2) * z).abs()
        return x + torch.log1p(torch.exp(-2 * x))

    assert expected_first_loss(std, 2) == pytest.approx(expectation(log_two_cosh), abs=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 27, 1000])
def test_expected_first_loss_starts_at_log_classes_and_grows_as_the_square(classes):
    assert expected_first_loss(0.0, classes) == pytest.approx(math.log(classes), abs=1e-11)
    growth = (expected_first_loss(0.01, classes) - math.log(classes)) / 0.01**2
    assert growth == pytest.approx((1 - 1 / classes) / 2, abs=1e-4)


@pytest.mark.parametrize("classes, k", [(2, 1), (3, 1.5)])
def test_expected_first_loss_of_large_logits_is_nearly_the_expected_maximum(classes, k):
    # E max is k / sqrt(pi). The gap between the two largest has the density k / sqrt(pi) at 0, and E log(1 + exp(-gap))
    # is that times pi^2 / 12 for a wide one.
    std = 30.0
    expected = std * k / math.sqrt(math.pi) * (1 + math.pi**2 / 12 / std**2)
    assert expected_first_loss(std, classes) == near(expected, rel=1e-5)


@pytest.mark.parametrize(("std", "classes", "said"), [(-1, 27, "-1"), (math.nan, 27, "nan"), (1, 0, "classes")])
def test_bad_arguments(std, classes, said):
    with pytest.raises(ValueError, match=said):
        expected_first_loss(std, classes)


# The variance, and the way back.

ERF, SINE = Activation("erf", torch.erf), Activation("sine", torch.sin)
VARIANCES = [1e-8, 0.01, 1.0, 7.3, 100.0, 1e3, 1e4, 1e6]
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
CLOSED = {  # E phi(sqrt(q) Z)^2, and the same of phi'; erf: Williams (1997)
    RELU: (lambda q: q / 2, lambda q: 1 / 2),
    LEAKY_RELU: (lambda q: q * (1 + 1e-4) / 2, lambda q: (1 + 1e-4) / 2),
    IDENTITY: (lambda q: q, lambda q: 1),
    STEP: (lambda q: 1 / 2, lambda q: 0),
    ERF: (lambda q: 2 / math.pi * math.asin(2 * q / (1 + 2 * q)), lambda q: 4 / math.pi / math.sqrt(1 + 4 * q)),
    SINE: (lambda q: -math.expm1(-2 * q) / 2, lambda q: (1 + math.exp(-2 * q)) / 2),
}
every_closed_form = pytest.mark.parametrize("activation", CLOSED, ids=[a.name for a in CLOSED])


@every_closed_form
@pytest.mark.parametrize("q", VARIANCES)
def test_variance_and_chi_agree_with_closed_forms(activation, q):
    if activation is SINE and q > 100:
        return  # waves that short are beyond the quadrature, and no activation of the book has them
    square, slope = CLOSED[activation]
    for gain in (0.3, 1.0, math.sqrt(2)):
        assert variance_map(q, activation, gain) == near(gain**2 * square(q), rel=1e-11)
        assert chi(q, activation, gain) == near(gain**2 * slope(q), rel=1e-11)


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize(
    "activation, phi, slope",
    [
        (TANH, np.tanh, lambda x: np.cosh(min(abs(x), 300)) ** -2),
        (SIGMOID, special.expit, lambda x: special.expit(x) * special.expit(-x)),
        (SILU, lambda x: x * special.expit(x), lambda x: special.expit(x) * (1 + x * special.expit(-x))),
        (
            GELU,
            lambda x: x * special.ndtr(x),
            lambda x: special.ndtr(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
        ),
        (ELU, lambda x: x if x > 0 else np.expm1(x), lambda x: 1 if x > 0 else np.exp(x)),
    ],
    ids=["tanh", "sigmoid", "SiLU", "GELU", "ELU"],
)
def test_variance_and_chi_agree_with_another_quadrature(activation, phi, slope, q):
    def mean_square(f):
        # By x = sqrt(q) z, in pieces: where phi changes, and the rest of the normal density.
        scale = math.sqrt(q)
        edges = sorted({side * x for side in (-1, 1) for x in (0, 1, 3, 10, 30, scale, 3 * scale, 12 * scale)})
        pieces = [(a, b) for a, b in pairwise(edges) if abs(a + b) / 2 < 12 * scale]
        density = lambda x: math.exp(-((x / scale) ** 2) / 2) / scale / math.sqrt(2 * math.pi)  # noqa: E731
        parts = [integrate.quad(lambda x: f(x) ** 2 * density(x), a, b, epsabs=0, epsrel=1e-13) for a, b in pieces]
        return math.fsum(value for value, _ in parts)

    assert variance_map(q, activation, 1.3) == near(1.3**2 * mean_square(phi), rel=1e-12)
    assert chi(q, activation, 1.3) == near(1.3**2 * mean_square(slope), rel=1e-12)


def test_the_gain_of_an_activation_keeps_unit_mean_square():
    for activation in ACTIVATIONS.values():
        assert variance_map(1.0, activation, activation.gain) == near(1, rel=1e-12)
        if activation is not STEP:
            assert chi(1.0, activation, activation.backward_gain) == near(1, rel=1e-12)


def test_no_variance_at_all():
    assert variance_map(0.0, TANH, 2.0) == variance_map(0.0, STEP, 2.0) == 0
    assert variance_map(0.0, SIGMOID, 2.0) == near(1, rel=1e-14)
    for activation, slope in ((TANH, 1), (RELU, 1 / 2), (SIGMOID, 1 / 16), (ELU, 1), (GELU, 1 / 4)):
        assert chi(0.0, activation, 2.0) == near(4 * slope, rel=1e-12)


@pytest.mark.parametrize("std", [1e6, 1e10])
def test_the_few_units_on_the_slope_of_a_saturated_layer_are_resolved(std):
    # tanh'^2 = sech^4, with the integral 4 / 3, is so narrow beside the density that only the density at 0 matters.
    assert chi(std**2, TANH, 1.0) == near(4 / 3 / (std * math.sqrt(2 * math.pi)), rel=1e-10)


# Where the variance settles.


def test_tanh_at_five_thirds():
    q = fixed_point(TANH, 5 / 3)
    assert q == pytest.approx(1.1785, abs=5e-5)
    assert math.sqrt(variance_map(q, TANH, 1.0)) == pytest.approx(0.6513, abs=5e-5)
    assert expected_saturation(q, TANH, 0.97) == pytest.approx(0.0539, abs=5e-5)
    assert expected_saturation(q, TANH) == pytest.approx(0.0148, abs=5e-5)
    assert chi(q, TANH, 5 / 3) == pytest.approx(1.2098, abs=5e-5)
    assert chi(q, TANH, 5 / 3) ** 25 == pytest.approx(117, abs=0.5)  # the square root, 50 layers


@pytest.mark.parametrize("gain, growth", [(5 / 3, 1.0999), (1.5925, 1.0853), (2, 1.1673)])
def test_a_gradient_grows_on_its_way_back_through_tanh(gain, growth):
    assert math.sqrt(chi(fixed_point(TANH, gain), TANH, gain)) == pytest.approx(growth, abs=5e-5)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.floats(1.05, 30))
def test_a_fixed_point_of_tanh_is_where_depth_leads(gain):
    q = fixed_point(TANH, gain)
    assert variance_map(q, TANH, gain) == near(q, rel=1e-12)
    assert float(propagate(TANH, gain, 300).q[-1]) == near(q, rel=1e-9)


@every_activation
@pytest.mark.parametrize("gain", [0.3, 0.99, 1.2, 1.5, 2.5, 1000.0])
def test_a_fixed_point_is_where_depth_leads(activation, gain):
    q = fixed_point(activation, gain)
    if 0 < q < math.inf:
        assert variance_map(q, activation, gain) == near(q, rel=1e-11)
        assert float(propagate(activation, gain, 400).q[-1]) == near(q, rel=1e-6)
    elif q == 0:
        assert float(propagate(activation, gain, 1200).q[-1]) < 1e-10 * gain**2
    else:
        with pytest.raises(OverflowError, match=f"with gain {gain} the variance is beyond float64 from layer"):
            propagate(activation, gain, 10_000)


def test_fixed_points_on_either_side_of_the_critical_gain():
    assert fixed_point(TANH, 1.0) == fixed_point(TANH, 0.9) == fixed_point(TANH, 0.0) == 0
    # tanh x = x - x^3 / 3 gives V(q) = gain^2 (q - 2 q^2 + ...), so that q* is near (1 - 1 / gain^2) / 2
    assert fixed_point(TANH, 1 + 1e-6) == near(1e-6, rel=1e-4)
    assert fixed_point(RELU, 1.4142) == 0 and fixed_point(RELU, 1.4143) == math.inf
    assert fixed_point(RELU, math.sqrt(2)) == near(2, rel=1e-14)
    assert fixed_point(IDENTITY, 1.0) == 1 and fixed_point(IDENTITY, 0.999) == 0
    assert fixed_point(LEAKY_RELU, LEAKY_RELU.gain) == near(LEAKY_RELU.gain**2, rel=1e-14)
    assert fixed_point(STEP, 3.0) == near(4.5, rel=1e-12)
    assert fixed_point(GELU, 1.42) == 0 and fixed_point(GELU, 1.9) == math.inf
    assert fixed_point(ELU, 0.99) == 0 and fixed_point(ELU, 1.4143) == math.inf


@pytest.mark.parametrize("gain", [0.8, 1.0, 1.7])
def test_a_fixed_point_above_the_first_variance(gain):
    doubled = Activation("doubled", lambda x: 2 * torch.tanh(x))
    q = fixed_point(doubled, gain)
    assert gain**2 < q == near(fixed_point(TANH, 2 * gain), rel=1e-12)


@pytest.mark.parametrize("first, second, sign", [(1.3, 1.6, 1), (0.8, 0.65, -1)])
def test_of_two_fixed_points_close_together_the_first_is_the_limit(first, second, sign, monkeypatch):
    monkeypatch.setattr(meanfield, "variance_map", lambda q, *_: q * (1 + sign * (q - first) * (q - second)))
    assert fixed_point(TANH, 1.0) == near(first, rel=1e-12)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.1, 0.99))
def test_a_fixed_point_of_a_sine(share):
    # q = gain^2 (1 - exp(-2 q)) / 2 has the gain sqrt(2 q / (1 - exp(-2 q))): choose q, and find it
    q = 3 * share
    gain = math.sqrt(2 * q / -math.expm1(-2 * q))
    assert fixed_point(SINE, gain) == near(q, rel=1e-10)


# Saturation.


def tail(z):
    """P(|Z| > z)."""
    return math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("q", [0.01, 0.3, 1.0, 25.0, 1e8])
def test_saturation_of_activations_that_can_be_inverted(q):
    std = math.sqrt(q)
    cases = [
        (TANH, 0.97, tail(math.atanh(0.97) / std)),
        (TANH, 0.5, tail(math.atanh(0.5) / std)),
        (SIGMOID, 0.99, tail(math.log(99) / std) / 2),
        (SIGMOID, 0.3, 1 - tail(math.log(7 / 3) / std) / 2),
        (RELU, 0.7, tail(0.7 / std) / 2),
        (RELU, 0.0, 0.5),
        (IDENTITY, 2.0, tail(2 / std)),
        (STEP, 0.99, 0.5),
        (STEP, 1.0, 0.0),
        (TANH, 1.0, 0.0),
        (TANH, 0.0, 1.0),
        (ELU, 0.9, tail(0.9 / std) / 2 + tail(math.log(10) / std) / 2),
    ]
    for activation, threshold, expected in cases:
        share = expected_saturation(q, activation, threshold)
        assert share == pytest.approx(expected, rel=1e-11, abs=1e-300), activation


@every_activation
@pytest.mark.parametrize("threshold", [0.1, 0.16, 0.9])  # SiLU dips to -0.278, GELU to -0.170
def test_saturation_of_any_activation_is_a_share_of_quantiles(activation, threshold):
    n, q = 200_001, 2.0
    z = torch.from_numpy(special.ndtri((np.arange(n) + 0.5) / n))
    share = float((activation(math.sqrt(q) * z).abs() > threshold).double().mean())
    assert expected_saturation(q, activation, threshold) == pytest.approx(share, abs=5 / n)


@pytest.mark.parametrize("side", [-1, 1])
def test_saturation_of_a_band(side):
    bump, half = Activation("bump", lambda x: torch.exp(-((x - 3 * side) ** 2))), math.sqrt(math.log(2))
    expected = (tail((3 - half) / 1.5) - tail((3 + half) / 1.5)) / 2
    assert expected_saturation(1.5**2, bump, 0.5) == near(expected, rel=1e-12)


def test_saturation_far_in_the_tail_keeps_its_digits():
    assert expected_saturation(0.01, IDENTITY, 3.0) == near(tail(30), rel=1e-10) and tail(30) < 1e-190


def test_saturation_of_a_layer_on_thirty_normal_inputs():
    assert expected_saturation(30.0, TANH) == pytest.approx(0.629, abs=5e-4)  # weights N(0, 1)


# Layer by layer.


@pytest.mark.parametrize(
    "gain, rms",
    [
        (5 / 3, [0.759, 0.693, 0.669, 0.659, 0.654]),
        (1, [0.628, 0.486, 0.408, 0.358, 0.322]),
        (0.5, [0.42, 0.20, 0.10, 0.05, 0.02]),
        (3, [0.86, 0.84, 0.84, 0.84, 0.84]),
    ],
)
def test_rms_by_layer_of_tanh(gain, rms):
    digits = 5e-4 if rms[0] in (0.759, 0.628) else 5e-3
    assert propagate(TANH, gain, 5).rms.tolist() == pytest.approx(rms, abs=digits)


def test_saturation_by_layer_of_tanh():
    shares = propagate(TANH, 5 / 3, 5, threshold=0.97).saturation.tolist()
    assert shares == pytest.approx([0.209, 0.098, 0.070, 0.060, 0.057], abs=5e-4)
    assert float(propagate(TANH, 3, 6, threshold=0.97).saturation[-1]) == pytest.approx(0.405, abs=5e-4)


def test_at_gain_one_the_variance_of_tanh_dies_as_one_over_twice_the_depth():
    assert float(propagate(TANH, 1, 2000).q[-1]) == near(1 / 4000, rel=0.01)


@every_activation
def test_propagation_is_the_maps_applied_again_and_again(activation):
    gain, q0 = 1.3, 0.6
    p = propagate(activation, gain, 7, q0, threshold=0.3)
    assert all(x.shape == (7,) and x.dtype == torch.float64 for x in p)
    q = gain**2 * q0
    for layer in range(7):
        assert float(p.q[layer]) == near(q, rel=1e-12)
        assert float(p.chi[layer]) == near(chi(q, activation, gain), rel=1e-12)
        assert float(p.saturation[layer]) == near(expected_saturation(q, activation, 0.3), rel=1e-12)
        following = variance_map(q, activation, gain)
        assert float(p.rms[layer]) == near(math.sqrt(following) / gain, rel=1e-12)
        growth = math.prod(float(x) for x in p.chi[layer:-1]) ** 0.5
        assert float(p.growth[layer]) == near(growth, rel=1e-12)
        q = following


def test_one_layer():
    numbers = [float(x) for x in propagate(IDENTITY, 3.0, 1, q0=2.0)]
    assert numbers == near([18, 18**0.5, expected_saturation(18.0, IDENTITY), 9, 1], rel=1e-12)


def test_a_signal_that_is_gone():
    p = propagate(TANH, 0.0, 3)
    assert p.q.tolist() == p.rms.tolist() == p.saturation.tolist() == [0, 0, 0]
    assert propagate(TANH, 0.1, 1000).q[-1] == 0  # below the smallest float64
    assert not propagate(TANH, 0.1, 1000).chi.isnan().any()


# Two inputs.

CORRELATIONS = [-1.0, -0.999999, -0.7, 0.0, 0.3, 0.95, 1 - 1e-4, 1 - 1e-9, 1.0]


@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("q", [0.0, 1e-6, 0.5, 3.0, 100.0, 1e4])
def test_correlations_agree_with_closed_forms(c, q):
    angle = math.acos(c)
    cases = [
        (IDENTITY, c),
        (RELU, (math.sin(angle) + (math.pi - angle) * c) / math.pi),
        (STEP, 1 - angle / math.pi),
        (ERF, math.asin(2 * q * c / (1 + 2 * q)) / math.asin(2 * q / (1 + 2 * q)) if q else c),
    ]
    if q < 10:
        cases.append((SINE, math.sinh(q * c) / math.sinh(q) if q else c))
    for activation, expected in cases:
        assert correlation_map(c, q, activation, 1.7) == pytest.approx(expected, abs=1e-11), activation


@pytest.mark.parametrize("c", [-0.9, 0.2, 0.8])
@pytest.mark.parametrize("activation", [TANH, SIGMOID, GELU, SILU], ids=["tanh", "sigmoid", "GELU", "SiLU"])
def test_correlations_of_smooth_activations_agree_with_gauss_and_hermite(activation, c):
    q = 1.2
    x, w = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(240))
    plus, minus = (math.sqrt(q * (1 + side * c) / 2) * x for side in (1, -1))
    product = activation(plus[:, None] + minus) * activation(plus[:, None] - minus)
    expected = float(w @ product @ w) / (2 * math.pi * expectation(lambda z: activation(math.sqrt(q) * z) ** 2))
    assert correlation_map(c, q, activation, 2.0) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("c", [-0.9, 0.8])
@pytest.mark.parametrize("activation", [STEP, LEAKY_RELU, ELU], ids=["step", "leaky ReLU", "ELU"])
def test_correlations_of_activations_with_a_break_agree_with_the_conditional_expectation(activation, c):
    std, rest = math.sqrt(1.2), math.sqrt(1 - c * c)

    def given_first(z):
        return expectation(lambda y: activation(std * (c * z + rest * y)), breaks=(-c * z / rest,))

    def product(z):
        inner = [given_first(x) if abs(x) < 8 else 0.0 for x in z.tolist()]  # the mass beyond is 1e-15
        return activation(std * z) * torch.tensor(inner, dtype=torch.float64)

    expected = expectation(product) / expectation(lambda z: activation(std * z) ** 2)
    assert correlation_map(c, 1.2, activation, 2.0) == pytest.approx(expected, abs=1e-10)


def test_equal_inputs_stay_equal_and_odd_functions_keep_opposite_ones():
    for activation in ACTIVATIONS.values():
        for q in (1e-3, 1.0, 400.0):
            assert correlation_map(1.0, q, activation, 1.0) == pytest.approx(1, abs=1e-12)
    assert correlation_map(-1.0, 2.0, TANH, 1.0) == pytest.approx(-1, abs=1e-12)
    for q in (0.5, 1.0, 2.0, 4.0, 8.0):  # so that it can be applied again
        assert abs(correlation_map(1.0, q, TANH, 1.0)) <= 1 and abs(correlation_map(-1.0, q, TANH, 1.0)) <= 1
    assert correlation_map(-1.0, 2.0, RELU, 1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("activation, gain", [(TANH, 5 / 3), (TANH, 1.2), (TANH, 3.0), (SIGMOID, 4.0), (ELU, 1.2)])
def test_chi_is_the_slope_of_the_correlation_map_at_one(activation, gain):
    q, step = fixed_point(activation, gain), 1e-6
    slope = (1 - correlation_map(1 - step, q, activation, gain)) / step
    assert slope == near(chi(q, activation, gain), rel=1e-4)


def test_the_gain_acts_on_correlations_through_the_variance_alone():
    assert correlation_map(0.3, 1.5, TANH, 0.1) == near(correlation_map(0.3, 1.5, TANH, 9.0), rel=1e-13)


@pytest.mark.parametrize("gain, parted", [(0.9, False), (5 / 3, True), (3.0, True)])
def test_nearly_equal_inputs_part_where_gradients_explode(gain, parted):
    q, c = fixed_point(TANH, gain), 0.999
    for _ in range(100):
        c = correlation_map(c, q, TANH, gain)
    assert (c < 0.5) == parted and (chi(q, TANH, gain) > 1) == parted


# Wide random networks: the mean over independent ones lies within ERRORS standard errors of the theory.

WIDTH, DEPTH, ROWS, SEEDS, ERRORS = 256, 6, 48, 20, 5
WIDE = {
    "tanh 1": (TANH, 1.0),
    "tanh 5/3": (TANH, 5 / 3),
    "tanh 3": (TANH, 3.0),
    "ReLU": (RELU, RELU.gain),
    "sigmoid": (SIGMOID, 4.0),
    "GELU": (GELU, GELU.gain),
}
every_wide_network = pytest.mark.parametrize("activation, gain", WIDE.values(), ids=WIDE)


@cache
def wide(activation, gain):
    """One trace for each seed, of inputs with mean square 1 exactly; the second half of the rows repeats the first
    but for its last symbol."""
    traces = []
    for seed in range(SEEDS):
        recipe = MLP(embedding=300, width=WIDTH, depth=DEPTH, activation=activation, init=VarianceScaling(gain))
        model = recipe.build(generator(seed, "weights"))
        with torch.no_grad():
            vectors = model.embedding.weight
            vectors /= vectors.square().mean(1, keepdim=True).sqrt()
        g = generator(seed, "batches")
        first = torch.randint(27, (ROWS // 2, 3), generator=g)
        second = first.clone()
        second[:, -1] = (second[:, -1] + 1) % 27
        targets = torch.randint(27, (ROWS,), generator=g)
        t = trace(model, Examples(torch.cat([first, second]), targets))
        traces.append((t.outputs, t.output_grads))
    return traces


def layers(kind, values):
    return torch.stack([values[f"{kind}{k}"].double() for k in range(1, DEPTH + 1)])


def assert_within(measured, theory):
    """measured: one row for each seed; theory: one number for each column, or one row for each seed."""
    difference = torch.stack(measured) - theory
    error = difference.std(0) / math.sqrt(SEEDS)
    assert bool((difference.mean(0).abs() < ERRORS * error).all()), (difference.mean(0) / error).tolist()
    return error


@every_wide_network
def test_variance_by_layer_of_wide_networks(activation, gain):
    theory = propagate(activation, gain, DEPTH)
    z = [layers("linear", outputs).square().mean((1, 2)) for outputs, _ in wide(activation, gain)]
    error = assert_within(z, theory.q)
    assert bool((error < 0.05 * theory.q).all())  # so that it can fail
    h = [layers("act", outputs).square().mean((1, 2)).sqrt() for outputs, _ in wide(activation, gain)]
    assert_within(h, theory.rms)


@every_wide_network
def test_saturation_by_layer_of_wide_networks(activation, gain):
    theory = propagate(activation, gain, DEPTH, threshold=0.9).saturation
    expected = theory > 1e-4  # enough of them to be counted
    assert bool(expected.any())
    shares = [
        (layers("act", outputs).abs() > 0.9).double().mean((1, 2))[expected] for outputs, _ in wide(activation, gain)
    ]
    assert_within(shares, theory[expected])


@every_wide_network
def test_gradient_growth_of_wide_networks(activation, gain):
    rms = [layers("linear", grads).square().mean((1, 2)).sqrt() for _, grads in wide(activation, gain)]
    growth = [(x / x[-1])[:-1] for x in rms]
    theory = propagate(activation, gain, DEPTH).growth[:-1]
    error = assert_within(growth, theory)
    assert bool((error < 0.015 * theory).all())


@every_wide_network
def test_correlations_by_layer_of_wide_networks(activation, gain):
    q = propagate(activation, gain, DEPTH).q.tolist()
    measured, theory = [], []
    for outputs, _ in wide(activation, gain):
        x = torch.stack(outputs["flatten"].double().chunk(2))
        predicted = [float((x[0] * x[1]).mean())]
        for variance in q[:-1]:
            predicted.append(correlation_map(predicted[-1], variance, activation, gain))
        a, b = layers("linear", outputs).chunk(2, dim=1)
        measured.append((a * b).mean((1, 2)) / (a.square().mean((1, 2)) * b.square().mean((1, 2))).sqrt())
        theory.append(torch.tensor(predicted, dtype=torch.float64))
    error = assert_within(measured, torch.stack(theory))
    assert bool((error < 0.02).all())


# Bad input.


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_what_is_no_variance_and_no_gain_is_refused(bad):
    cases = [
        ("q", lambda: variance_map(bad, TANH, 1.0)),
        ("gain", lambda: variance_map(1.0, TANH, bad)),
        ("gain", lambda: fixed_point(TANH, bad)),
        ("q", lambda: chi(bad, TANH, 1.0)),
        ("gain", lambda: chi(1.0, TANH, bad)),
        ("q", lambda: expected_saturation(bad, TANH)),
        ("threshold", lambda: expected_saturation(1.0, TANH, bad)),
        ("gain", lambda: propagate(TANH, bad, 3)),
        ("q0", lambda: propagate(TANH, 1.0, 3, bad)),
        ("threshold", lambda: propagate(TANH, 1.0, 3, threshold=bad)),
        ("q", lambda: correlation_map(0.5, bad, TANH, 1.0)),
        ("gain", lambda: correlation_map(0.5, 1.0, TANH, bad)),
    ]
    for name, call in cases:
        with pytest.raises(ValueError, match=f"^{name}: a finite number, 0 or more, is needed, got {bad}$"):
            call()


def test_other_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="depth: at least 1 is needed, got 0"):
        propagate(TANH, 1.0, 0)
    with pytest.raises(ValueError, match="gain: a positive number is needed, got 0"):
        correlation_map(0.5, 1.0, TANH, 0)
    for c in (1.0000001, -1.1, math.nan):
        with pytest.raises(ValueError, match=f"c: a number from -1 to 1 is needed, got {c}"):
            correlation_map(c, 1.0, TANH, 1.0)


# Within torch.inference_mode


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mmlib.__file__).parent.parent)}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gains_and_derivatives_are_the_same_in_inference_mode(name):
    fresh, x = Activation("fresh", ACTIVATIONS[name].phi), randn(4, 5)
    expected = ACTIVATIONS[name].gain, ACTIVATIONS[name].backward_gain, ACTIVATIONS[name].derivative(x)
    with torch.inference_mode():
        inside = fresh.gain, fresh.backward_gain, fresh.derivative(x)
        assert torch.equal(fresh.derivative(x * 1), expected[2])
    assert inside[:2] == expected[:2] == (fresh.gain, fresh.backward_gain)
    assert torch.equal(inside[2], expected[2])


def test_theory_is_the_same_in_inference_mode_and_after_it():
    activation = Activation("fresh", torch.tanh)
    meanfield._nodes.cache_clear()
    with torch.inference_mode():
        inside = meanfield.chi(2.0, activation, 1.5)
    assert inside == meanfield.chi(2.0, activation, 1.5) == meanfield.chi(2.0, TANH, 1.5) > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_the_first_loss_of_wide_logits_takes_little_memory():
    code = (
        "from mmlib.meanfield import expected_first_loss; print(expected_first_loss(100., 27)); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    loss, kilobytes = map(float, done.stdout.split())
    assert loss == pytest.approx(100 * 1.9969, abs=0.3) and kilobytes < 900_000
