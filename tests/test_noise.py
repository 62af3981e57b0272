import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from mmlib.layers import Linear
from mmlib.noise import _ROUNDED, noise
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


ROUNDED = """
x @ w
x.__rmatmul__(w)
x.matmul(w)
x.mm(w)
x[None].bmm(w[None])
x.mv(w[0])
x[0].dot(w[0])
x[0].vdot(w[0])
x.inner(w)
x.addmm(x, w)
x[0].addmv(x, w[0])
x.addbmm(x[None], w[None])
x[None].baddbmm(x[None], w[None])
x.matrix_power(3)
linalg.matmul(x, w)
linalg.multi_dot([x, w, x])
linalg.vecdot(x, w)
torch.einsum("ij,jk->ik", x, w)
torch.tensordot(x, w, 1)
F.linear(x, w)
F.bilinear(x, x, w.expand(2, 40, 40))
F.conv1d(x[None], w[:, :, None])
F.conv2d(x[None, None], w[None, None, :3, :3])
F.conv3d(x[None, None, None], w[None, None, None, :3, :3])
F.scaled_dot_product_attention(x, w, x)
filled(nn.MultiheadAttention(40, 2))(x, w, x)[0]
filled(nn.RNN(40, 3))(x)[0]
filled(nn.LSTM(40, 3))(x)[1][0]
filled(nn.GRU(40, 3))(x)[0]
filled(nn.RNNCell(40, 3))(x)
filled(nn.LSTMCell(40, 3))(x)[1]
filled(nn.GRUCell(40, 3))(x)
Linear(40, 3, generator=generator(0, "w"))(x)

x.sum(1)
torch.sum(x, 0)
x.nansum()
x.mean(0)
x.nanmean(0)
x.var(0)
x.std(0)
torch.var_mean(x, 0)[1]
torch.std_mean(x, 0)[0]
x.prod(0)
x.cumsum(0)
x.clone().cumsum_(0)
x.cumprod(0)
x.logcumsumexp(0)
x.trace()
torch.trapezoid(x)
x.cov()
x.corrcoef()
x.sum_to_size(40, 1)
x.index_add(0, torch.zeros(40, dtype=torch.long), w)
x.scatter_add(0, torch.zeros(40, 40, dtype=torch.long), w)
x.norm()
linalg.norm(x, dim=0)
linalg.vector_norm(x)
linalg.matrix_norm(x)
x.dist(w)
torch.cdist(x, w)
F.pairwise_distance(x, w)
F.cosine_similarity(x, w)
F.normalize(x)
nn.BatchNorm1d(40)(x)
nn.InstanceNorm1d(40)(x[None])
nn.LayerNorm(40)(x)
nn.GroupNorm(2, 40)(x)
nn.RMSNorm(40)(x)
F.avg_pool1d(x, 3)
F.avg_pool2d(x[None], 3)
F.adaptive_avg_pool1d(x, 3)
F.adaptive_avg_pool2d(x[None], 3)

x.softmax(-1)
F.softmin(x, -1)
torch.log_softmax(x, -1)
special.softmax(x, -1)
special.log_softmax(x, -1)
x.logsumexp(-1)
special.logsumexp(x, -1)
x.logaddexp(w)
F.cross_entropy(x, torch.arange(40))
F.nll_loss(x, torch.arange(40))
F.binary_cross_entropy(x / 2, w / 2)
F.binary_cross_entropy_with_logits(x, w)
F.mse_loss(x, w)
F.l1_loss(x, w)
F.smooth_l1_loss(x, w)
F.huber_loss(x, w)

x.exp()
x.exp2()
x.expm1()
2.5**x
x.log()
x.log2()
x.log10()
x.log1p()
x.sin()
x.cos()
x.tan()
x.sinh()
x.cosh()
torch.tanh(x)
x.clone().tanh_()
(x / 2).asin()
(x / 2).acos()
x.atan()
x.atan2(w)
x.asinh()
(x + 1).acosh()
(x / 2).atanh()
x.sigmoid()
F.logsigmoid(x)
F.softplus(x)
x.erf()
x.erfc()
(x / 2).erfinv()
F.gelu(x)
F.silu(x)
F.mish(x)
F.elu(-x)
F.selu(-x)
F.celu(-x)
special.expm1(x)
special.exp2(x)
special.expit(x)
special.erf(x)
special.erfcx(x)
special.log1p(x)
special.ndtr(x)
special.ndtri(x / 2)
special.log_ndtr(x)
x.lgamma()
x.digamma()
torch.exp(x, out=torch.empty(40, 40))
torch.mm(x, w, out=torch.empty(40, 40))
into(torch.tanh, x)

x.inverse()
linalg.inv(x)
linalg.solve(x, w)
linalg.cholesky(x * x.T + 40 * torch.eye(40))
linalg.qr(x)[0]
linalg.svd(x)[1]
linalg.svdvals(x)
linalg.eigh(x + x.T)[0]
linalg.eigvalsh(x + x.T)
linalg.det(x)
linalg.slogdet(x)[1]
linalg.pinv(x)
linalg.cond(x)
"""


def filled(module):
    """The module, with the same weights each time."""
    for p in module.parameters():
        p.data.copy_(torch.rand(p.shape, generator=generator(0, "w")) / 10)
    return module


def into(f, x):
    out = torch.empty_like(x)
    f(x, out=out)
    return out


def result(expression):
    """What it is for two matrices."""
    x, w = (torch.rand(40, 40, generator=generator(seed, "x")) + 0.2 for seed in (0, 1))
    names = {"torch": torch, "linalg": torch.linalg, "special": torch.special, "F": F, "nn": nn}
    return eval(
        expression, names | {"Linear": Linear, "generator": generator, "filled": filled, "into": into, "x": x, "w": w}
    )


class Names(TorchFunctionMode):
    """Those of the functions that are called."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.called.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("expression", filter(None, ROUNDED.splitlines()))
def test_what_processors_round_in_different_ways(expression):
    exact = result(expression)
    assert torch.equal(result(expression), exact)
    with noise(0):
        noisy = [result(expression) for _ in range(8)]  # a single number stays as it is in a third of the cases
    assert not all(torch.equal(one, exact) for one in noisy)
    assert all(torch.allclose(one, exact, rtol=3 * EPS, atol=1e-6) for one in noisy)
    assert torch.equal(result(expression), exact)


def test_every_function_that_is_rounded_is_tried():
    with Names() as names:
        for expression in filter(None, ROUNDED.splitlines()):
            result(expression)
    assert _ROUNDED - names.called == set()


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
    exact = torch.autograd.grad(x.exp().sum(), x)[0]  # of what the forward pass has not made noisy
    with noise(0):
        noisy = torch.autograd.grad(x.exp().sum(), x)[0]
    assert set(relative(noisy, exact).round().tolist()) >= {-1, 0, 1}
    assert torch.allclose(noisy, exact, rtol=4 * EPS, atol=0)


def test_a_result_that_autograd_has_saved_may_be_noisy_in_place():
    x = torch.rand(1000, generator=generator(0, "x")).requires_grad_()
    with noise(0):
        (grad,) = torch.autograd.grad((2 * x).tanh_().sum(), x)
    assert torch.allclose(grad, 2 * (1 - (2 * x).tanh().square()), rtol=1e-4, atol=0)


def test_noise_does_not_end():
    x = torch.linspace(0, 1, 1000)
    with noise(0):
        for _ in range(3000):
            noisy = x.exp()
        assert not torch.equal(noisy, x.exp())


def test_tensors_of_any_layout_and_device():
    x = torch.eye(3).to_sparse()
    with noise(0):
        torch.testing.assert_close(x.tanh().to_dense(), torch.eye(3).tanh())
        assert torch.zeros(3, device="meta").exp().shape == (3,)


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
