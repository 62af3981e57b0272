import copy
import gc
import math
import operator
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.scalar import Value

# name: (operation on two numbers, of which some use the first only; where it is smooth and of moderate size)
OPERATIONS = {
    "+": (operator.add, lambda a, b: True),
    "-": (operator.sub, lambda a, b: True),
    "*": (operator.mul, lambda a, b: True),
    "/": (operator.truediv, lambda a, b: abs(b) > 0.1),
    "** Value": (operator.pow, lambda a, b: a > 0.1 and abs(b * math.log(a)) < 5),
    "** 2": (lambda a, b: a**2, lambda a, b: True),
    "** 3": (lambda a, b: a**3, lambda a, b: True),
    "** 0": (lambda a, b: a**0, lambda a, b: True),
    "** -1.5": (lambda a, b: a**-1.5, lambda a, b: a > 0.1),
    "2.5 **": (lambda a, b: 2.5**a, lambda a, b: abs(a) < 5),
    "2 +": (lambda a, b: 2 + a, lambda a, b: True),
    "2 -": (lambda a, b: 2 - a, lambda a, b: True),
    "- 2": (lambda a, b: a - 2, lambda a, b: True),
    "3 *": (lambda a, b: 3 * a, lambda a, b: True),
    "2 /": (lambda a, b: 2 / a, lambda a, b: abs(a) > 0.1),
    "/ 3": (lambda a, b: a / 3, lambda a, b: True),
    "negative": (lambda a, b: -a, lambda a, b: True),
    "exp": (lambda a, b: a.exp(), lambda a, b: abs(a) < 5),
    "log": (lambda a, b: a.log(), lambda a, b: a > 0.1),
    "tanh": (lambda a, b: a.tanh(), lambda a, b: True),
    "relu": (lambda a, b: a.relu(), lambda a, b: abs(a) > 1e-6),
}

numbers = st.floats(-3, 3)
programs = st.lists(st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 99), st.integers(0, 99)), max_size=15)


def run(leaves, program):
    """The values of a program, each made from any two before it, in both libraries: operands are shared at will."""
    ours, theirs = [Value(x) for x in leaves], [torch.tensor(x, dtype=torch.float64) for x in leaves]
    for x in theirs:
        x.requires_grad_()
    for name, i, j in program:
        f, allowed = OPERATIONS[name]
        i, j = i % len(ours), j % len(ours)
        if allowed(ours[i].data, ours[j].data):
            y = f(ours[i], ours[j])
            if abs(y.data) < 100:
                ours.append(y)
                theirs.append(f(theirs[i], theirs[j]))
    return ours, theirs


def assert_same(ours, theirs):
    ours, theirs = torch.tensor(ours, dtype=torch.float64), torch.stack(list(theirs)).detach()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12 * max(1.0, float(theirs.abs().max())))


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.lists(numbers, min_size=1, max_size=4), programs)
def test_values_and_gradients_agree_with_torch_on_random_expressions(leaves, program):
    ours, theirs = run(leaves, program)
    ours[-1].backward()
    assert_same([v.data for v in ours], theirs)
    assert_same(
        [v.grad for v in ours], torch.autograd.grad(theirs[-1], theirs, allow_unused=True, materialize_grads=True)
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_agrees_with_torch(name):
    for a, b in [(0.7, 1.3), (2.0, 0.4), (-1.3, -2.0), (-0.6, 0.9)]:
        if OPERATIONS[name][1](a, b):
            ours, theirs = run([a, b], [(name, 0, 1)])
            assert len(ours) == 3
            ours[-1].backward()
            assert_same([v.data for v in ours], theirs)
            grads = torch.autograd.grad(theirs[-1], theirs, allow_unused=True, materialize_grads=True)
            assert_same([v.grad for v in ours], grads)


def test_a_value_used_twice_gathers_both_shares():
    x = Value(3)
    (x * x + x).backward()
    assert x.grad == 7
    y = Value(2)
    (y + y).backward()
    assert y.grad == 2


def test_several_backward_passes_add_up_and_never_multiply():
    x = Value(2)
    y = x * x
    z = y * 3
    for times in (1, 2, 3):
        z.backward()
        assert (x.grad, y.grad, z.grad) == (12 * times, 3 * times, times)
    y.backward()
    assert (x.grad, y.grad, z.grad) == (40, 10, 3)


def test_a_value_waits_for_everything_that_was_made_from_it():
    # Depth first without that order, a is passed on before the long way round has reached it.
    x = Value(1.5)
    a = x * 2
    b = a.tanh()
    (a + (a * b).exp()).backward()
    t = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (t * 2 + (t * 2 * (t * 2).tanh()).exp()).backward()
    assert x.grad == pytest.approx(float(t.grad), rel=1e-13)


def test_backward_touches_only_what_the_result_was_made_from():
    x, y = Value(1), Value(2)
    result, other = x * 2, x * y
    result.backward()
    assert (y.grad, other.grad, x.grad) == (0, 0, 2)


def test_doubling_a_thousand_times_over_is_one_pass():
    x = y = Value(1)
    for _ in range(1000):
        y = y + y  # 2^1000 paths
    y.backward()
    assert y.data == x.grad == 2.0**1000


def test_a_long_chain_stays_clear_of_the_recursion_limit():
    x, length = Value(1), 100_000
    y = x
    for _ in range(length):
        y = y + x
    assert length > 5 * sys.getrecursionlimit()
    y.backward()
    assert x.grad == length + 1
    del y
    gc.collect()


def test_a_deep_copy_is_a_graph_of_its_own_with_the_same_sharing():
    x = Value(3)
    both = copy.deepcopy([x, x * x + x.exp()])
    both[1].backward()
    assert both[1].data == 9 + math.exp(3) and both[0].grad == 6 + math.exp(3)
    assert x.grad == 0


def test_tanh_does_not_overflow():
    for x in (400.0, 1e300, -400.0):
        v = Value(x)
        y = v.tanh()
        y.backward()
        assert (y.data, v.grad) == (math.copysign(1, x), 0)


def test_relu_has_slope_zero_at_zero():
    for x, value, slope in ((0.0, 0, 0), (-1.0, 0, 0), (2.0, 2, 1)):
        v = Value(x)
        y = v.relu()
        y.backward()
        assert (y.data, v.grad) == (value, slope)


def test_a_power_of_zero():
    for exponent, value, slope in ((0, 1, 0), (1, 0, 1), (2, 0, 0)):
        v = Value(0)
        y = v**exponent
        y.backward()
        assert (y.data, v.grad) == (value, slope)


def test_a_negative_base_takes_whole_exponents():
    v = Value(-2)
    y = v**-3
    y.backward()
    assert (y.data, v.grad) == (-1 / 8, -3 / 16)


def test_a_neuron():
    w, b = [Value(-3.0), Value(1.0)], Value(6.88)
    y = (sum(wi * xi for wi, xi in zip(w, (2.0, 0.0), strict=True)) + b).tanh()
    y.backward()
    slope = 1 - math.tanh(0.88) ** 2
    assert [v.grad for v in (*w, b)] == pytest.approx([2 * slope, 0, slope])


def test_numbers_are_kept_as_floats_and_shown():
    x = Value(np.float64(0.1)) + np.float32(0.5) + 1
    assert type(x.data) is float and x.data == pytest.approx(1.6)
    assert type((np.float64(2) * x).data) is float
    assert repr(Value(2) * 1.5) == "Value(data=3, grad=0)"


SMALL = 5e-324
BAD = {
    "log of zero": (lambda: Value(0).log(), ValueError, "the logarithm of 0.0"),
    "log of a negative": (lambda: Value(-1.5).log(), ValueError, "the logarithm of -1.5"),
    "zero to a negative": (lambda: Value(0) ** -1, ValueError, "the power -1 of 0.0"),
    "the slope of a root at zero": (lambda: Value(0) ** 0.5, ValueError, "the power 0.5 of 0.0"),
    "root of a negative": (lambda: Value(-2) ** 0.5, ValueError, "the power 0.5 of -2.0"),
    "negative to a Value": (lambda: Value(-2) ** Value(2), ValueError, "the logarithm of -2.0"),
    "negative number to a Value": (lambda: (-2) ** Value(2), ValueError, "the logarithm of -2.0"),
    "division by zero": (lambda: Value(2) / 0, ZeroDivisionError, "the quotient of 2.0 and 0.0"),
    "a number by zero": (lambda: 2 / Value(0), ZeroDivisionError, "the quotient of 2.0 and 0.0"),
    "exp": (lambda: Value(1000).exp(), OverflowError, "the exponential of 1000.0"),
    "power": (lambda: Value(1e200) ** 2, OverflowError, r"the power 2 of 1e\+200"),
    "product": (lambda: Value(1e200) * 1e200, OverflowError, r"the product of 1e\+200 and 1e\+200"),
    "a slope alone": (lambda: Value(SMALL).log(), OverflowError, "the logarithm of 5e-324"),
    "nan": (lambda: Value(math.nan) + 1, OverflowError, "the sum of nan and 1.0"),
}


@pytest.mark.parametrize("expression, error, said", BAD.values(), ids=BAD)
def test_what_is_not_a_finite_number_is_refused_in_words(expression, error, said):
    with pytest.raises(error, match=f"^{said}: its value or its derivative is not a finite number$"):
        expression()


@pytest.mark.parametrize("other", ["2", None, 1j, [1.0], torch.ones(2)], ids=lambda x: type(x).__name__)
def test_an_operand_that_is_no_number_is_refused(other):
    v = Value(2)
    ways = [lambda: Value(other), lambda: v + other, lambda: v - other, lambda: v * other, lambda: v / other]
    ways += [lambda: v**other, lambda: other - v, lambda: other / v, lambda: other**v]
    for way in ways:
        with pytest.raises(TypeError, match=f"a real number is needed, got .* of type {type(other).__name__}"):
            way()
    assert (v.data, v.grad) == (2, 0)


# Edges

def test_a_long_chain_of_values_can_be_copied():
    first = value = Value(1.0)
    for _ in range(20_000):
        value = value + 1e-4
    value.backward()
    twin = copy.deepcopy({"end": value, "start": first})
    assert twin["start"] is not first and (twin["start"].grad, twin["end"].data) == (1.0, value.data)
    twin["end"].backward()
    assert (twin["start"].grad, first.grad) == (2.0, 1.0)
