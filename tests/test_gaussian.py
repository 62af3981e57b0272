import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from mmlib.gaussian import expectation, quadrature

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def tail(t):
    """P(Z > t)."""
    return math.erfc(t / math.sqrt(2)) / 2


def density(t):
    return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def exactly(value):
    return pytest.approx(value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("k", range(13))
def test_moments(k):
    assert expectation(lambda z: z**k) == exactly(0 if k % 2 else math.prod(range(1, k, 2)))


@pytest.mark.parametrize("a", [0.3, 1.0, 2.0])
def test_exponentials_and_waves(a):
    assert expectation(lambda z: torch.exp(a * z)) == exactly(math.exp(a * a / 2))
    assert expectation(lambda z: torch.cos(a * z)) == exactly(math.exp(-a * a / 2))
    assert expectation(lambda z: torch.cosh(a * z)) == exactly(math.exp(a * a / 2))


@given(st.floats(-4, 4), st.floats(-4, 4))
def test_error_functions(a, b):
    expected = special.ndtr(b / math.sqrt(1 + a * a))
    assert expectation(lambda z: torch.special.ndtr(a * z + b)) == exactly(expected)
    assert expectation(lambda z: torch.erf(a * z + b)) == exactly(math.erf(b / math.sqrt(1 + 2 * a * a)))


def test_absolute_value():
    assert expectation(torch.abs) == exactly(math.sqrt(2 / math.pi))


@given(st.floats(-6, 6))
def test_a_jump_or_a_kink_at_a_break_is_exact(t):
    assert expectation(lambda z: (z > t).double(), breaks=(t,)) == exactly(tail(t))
    assert expectation(lambda z: (z - t).clamp(min=0), breaks=(t,)) == exactly(density(t) - t * tail(t))


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_several_breaks_in_any_order(a, b):
    low, high = min(a, b), max(a, b)
    inside = expectation(lambda z: ((z > low) & (z < high)).double(), breaks=(high, low, 0))
    assert inside == exactly(tail(low) - tail(high))


def test_a_jump_away_from_a_break_is_not_exact():
    assert abs(expectation(lambda z: (z > 0.1).double()) - tail(0.1)) > 1e-6


def test_breaks_outside_the_range_and_repeated_ones_change_nothing():
    z, w = quadrature()
    for breaks in ((0, 0), (0, 50, -math.inf), (0, 12, -12)):
        assert all(map(torch.equal, quadrature(breaks), (z, w)))


@pytest.mark.parametrize("breaks", [(0.0,), (0.1,), (-3.0, 2.95, 3.0)])
def test_panels_are_a_quarter_wide_at_most_between_the_breaks_and_as_many_as_that_takes(breaks):
    z, _ = quadrature(breaks)
    nodes = np.polynomial.legendre.leggauss(16)[0]
    panels = z.view(-1, 16).numpy()
    half, centre = (panels[:, -1] - panels[:, 0]) / 2 / nodes[-1], panels.mean(1)
    np.testing.assert_allclose(panels, centre[:, None] + half[:, None] * nodes, rtol=0, atol=1e-13)
    edges = [-12.0, *breaks, 12.0]
    expected = np.concatenate(
        [np.linspace(a, b, n, endpoint=False) for a, b in pairwise(edges) for n in [math.ceil((b - a) * 4)]]
    )
    np.testing.assert_allclose(centre - half, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose((centre + half)[-1], 12, rtol=1e-14)


def test_weights_are_a_probability_and_nodes_rise():
    z, w = quadrature((0.1, -3))
    assert z.dtype == w.dtype == torch.float64
    assert bool((w > 0).all()) and float(w.sum()) == exactly(1) and bool((np.diff(z) > 0).all())


def test_the_result_is_a_float():
    assert type(expectation(torch.ones_like)) is float
