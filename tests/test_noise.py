import math

import pytest
import torch
from torch import nn

from mmlib.layers import Linear
from mmlib.noise import noise
from mmlib.rng import generator

EPS = torch.finfo(torch.float32).eps


def relative(x, exact):
    return ((x - exact) / exact).double() / EPS


def test_each_element_is_off_by_a_rounding_or_not_at_all():
    x = torch.rand(300, 1000, generator=generator(0, "x")) + 0.5
    with noise(0):
        noisy = x.exp()
    u = relative(noisy, x.exp())
    assert (u.abs() <= 1.51).all()  # the product is rounded itself
    for value in (-1, 0, 1):  # a third each, and independent from one element to the next
        assert math.isclose((u.round() == value).double().mean(), 1 / 3, abs_tol=0.005)
    assert abs((u[:, 1:] * u[:, :-1]).mean()) < 0.005


ROUNDED = {
    "matmul": lambda x, w: x @ w,
    "linear": lambda x, w: torch.nn.functional.linear(x, w),
    "layer": lambda x, w: Linear(40, 3, generator=generator(0, "w"))(x),
    "einsum": lambda x, w: torch.einsum("ij,jk->ik", x, w),
    "sum": lambda x, w: x.sum(1),
    "torch.sum": lambda x, w: torch.sum(x, 0),
    "mean": lambda x, w: x.mean(0),
    "var": lambda x, w: x.var(0),
    "std": lambda x, w: x.std(0),
    "norm": lambda x, w: torch.linalg.norm(x, dim=0),
    "softmax": lambda x, w: x.softmax(-1),
    "log_softmax": lambda x, w: torch.log_softmax(x, -1),
    "exp": lambda x, w: x.exp(),
    "tanh": lambda x, w: torch.tanh(x),
    "in place": lambda x, w: x.clone().tanh_(),
    "sigmoid": lambda x, w: x.sigmoid(),
    "batch norm": lambda x, w: nn.BatchNorm1d(40)(x),
    "several results": lambda x, w: torch.var_mean(x, 0)[1],
}


@pytest.mark.parametrize("f", ROUNDED.values(), ids=ROUNDED)
def test_what_processors_round_in_different_ways(f):
    x, w = torch.rand(40, 40, generator=generator(0, "x")), torch.rand(40, 40, generator=generator(1, "x"))
    exact = f(x, w)
    with noise(0):
        assert not torch.equal(f(x, w), exact)
        assert torch.allclose(f(x, w), exact, rtol=3 * EPS, atol=1e-6)
    assert torch.equal(f(x, w), exact)


EXACT = {
    "sum of two": lambda x: x + 1,
    "product": lambda x: x * 3,
    "quotient": lambda x: x / 3,
    "square root": lambda x: x.sqrt(),
    "maximum": lambda x: x.max(),
    "ReLU": lambda x: x.relu(),
    "whole numbers": lambda x: (x > 0.5).sum(),
    "whole numbers in place": lambda x: (x > 0.5).long().cumsum_(0),
    "draws": lambda x: torch.randn(3, generator=generator(0, "x")),
}


@pytest.mark.parametrize("f", EXACT.values(), ids=EXACT)
def test_what_every_processor_rounds_alike_stays(f):
    x = torch.rand(40, 40, generator=generator(0, "x"))
    exact = f(x)
    with noise(0):
        assert torch.equal(f(x), exact)


def test_the_same_seed_is_the_same_noise(no_global_randomness):
    x = torch.rand(1000, generator=generator(0, "x"))

    def once(seed):
        with noise(seed):
            return x.exp()

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))


def test_gradients_are_noisy_too():
    x = torch.rand(1000, generator=generator(0, "x")).requires_grad_()
    exact = torch.autograd.grad(x.tanh().square().sum(), x)[0]
    with noise(0):
        noisy = torch.autograd.grad(x.tanh().square().sum(), x)[0]
    assert not torch.equal(noisy, exact)
    assert torch.allclose(noisy, exact, rtol=8 * EPS, atol=EPS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_rounding_is_that_of_the_dtype(dtype):
    x = (torch.rand(1000, generator=generator(0, "x")) + 0.5).to(dtype)
    with noise(0):
        noisy = x.exp()
    off = ((noisy.double() - x.exp().double()) / x.exp().double()).abs().max() / torch.finfo(dtype).eps
    assert noisy.dtype == dtype
    assert 0.4 < off < 1.6  # of half a spacing to one and a half, once rounded again


def test_more_elements_than_were_drawn():
    x = torch.zeros(2**21 + 5)
    with noise(0):
        assert (x.exp() - 1).unique().numel() == 3


def test_a_seed_is_a_whole_number():
    with pytest.raises(TypeError, match="seed: an integer is needed, got 'a'"), noise("a"):
        pass


def test_the_same_call_again_is_rounded_in_another_way():
    x = torch.linspace(0, 1, 1000)
    with noise(1):
        once, again = x.exp(), x.exp()
    assert not torch.equal(once, again)
    torch.testing.assert_close(once, again, rtol=1e-6, atol=0)
