import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.activations import ACTIVATIONS, STEP, TANH
from mmlib.backward import activation_backward, cross_entropy_backward, linear_backward, standardize_backward
from mmlib.layers import cross_entropy
from mmlib.norm import BatchNorm1d, LayerNorm, moments, standardize

pytestmark = pytest.mark.usefixtures("no_global_randomness")

N, IN, OUT = 7, 5, 4
LEADING = {"one model": (), "three models": (3,), "two by three models": (2, 3)}
every_leading = pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING)


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def autograd(output, grad, *inputs):
    return torch.autograd.grad(output, inputs, grad)


@every_leading
@pytest.mark.parametrize("shared", ["nothing", "x", "weight"])
def test_linear(leading, shared, normal):
    x = normal(*(() if shared == "x" else leading), N, IN).requires_grad_()
    weight = normal(*(() if shared == "weight" else leading), OUT, IN).requires_grad_()
    bias = normal(*weight.shape[:-1]).requires_grad_()
    grad = normal(*leading, N, OUT)
    expected = autograd(x @ weight.mT + bias.unsqueeze(-2), grad, x, weight, bias)
    grads = linear_backward(grad, x.detach(), weight.detach())
    assert grads._fields == ("x", "weight", "bias")
    for ours, theirs in zip(grads, expected, strict=True):
        assert_same(ours, theirs)


@every_leading
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activation(leading, activation, normal):
    x, grad = 2 * normal(*leading, N, IN), normal(*leading, N, IN)
    x[..., 0, 0] = 0
    y = activation(x.requires_grad_())
    expected = torch.zeros_like(x) if activation is STEP else autograd(y, grad, x)[0]
    assert_same(activation_backward(grad, x.detach(), activation), expected)


@every_leading
@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5, 100.0])
@pytest.mark.parametrize("offset", [0, 3.0])
def test_standardize(leading, dim, eps, offset, normal):
    x = (offset + 0.7 * normal(*leading, N, IN)).requires_grad_()
    grad = normal(*leading, N, IN)
    mean, var = moments(x, dim)
    y = standardize(x, mean, var, eps)
    (expected,) = autograd(y, grad, x)
    assert_same(standardize_backward(grad, y.detach(), var.detach(), eps, dim), expected)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([-2, -1]), st.floats(1e-8, 10), st.integers(0, 2**31))
def test_standardize_for_any_shape_and_eps(n, features, dim, eps, seed):
    g = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(2, n, features, generator=g, dtype=torch.float64) for _ in range(2))
    mean, var = moments(x.requires_grad_(), dim)
    y = standardize(x, mean, var, eps)
    (expected,) = autograd(y, grad, x)
    scale = float(1 / (var.detach() + eps).min().sqrt())
    ours = standardize_backward(grad, y.detach(), var.detach(), eps, dim)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12 * max(1, scale))


@pytest.mark.parametrize("layer, dim", [(BatchNorm1d(IN, eps=0.1), -2), (LayerNorm(IN, eps=0.1), -1)])
def test_standardize_is_what_the_layers_send_back(layer, dim, normal):
    x, grad = normal(N, IN).requires_grad_(), normal(N, IN)
    y = layer.double()(x)  # scale 1 and shift 0, so that y is the standardised x
    (expected,) = autograd(y, grad, x)
    assert_same(standardize_backward(grad, y.detach(), moments(x.detach(), dim)[1], 0.1, dim), expected)


def test_what_standardize_sends_back_has_no_mean_and_with_eps_0_no_part_along_y(normal):
    x, grad = normal(N, IN), normal(N, IN)
    mean, var = moments(x, -2)
    y = standardize(x, mean, var, 0.0)
    back = standardize_backward(grad, y, var, 0.0, -2)
    for part in (back.mean(-2), (back * y).mean(-2)):
        assert_same(part, torch.zeros(IN, dtype=torch.float64))


def test_a_variance_without_the_batch_axis_is_one_for_each_feature(normal):
    x, grad = normal(N, IN), normal(N, IN)
    mean, var = moments(x, -2)
    y = standardize(x, mean, var, 1e-5)
    assert_same(standardize_backward(grad, y, var[0], 1e-5, -2), standardize_backward(grad, y, var, 1e-5, -2))


@every_leading
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_cross_entropy(leading, scale, normal, symbols):
    logits = (scale * normal(*leading, N, 27)).requires_grad_()
    targets = symbols(*leading, N)
    (expected,) = autograd(cross_entropy(logits, targets).sum(), None, logits)
    assert_same(cross_entropy_backward(logits.detach(), targets), expected)


@every_leading
def test_a_two_layer_network_by_hand(leading, normal, symbols):
    x, targets, eps = normal(*leading, N, IN), symbols(*leading, N), 1e-3
    w1, w2 = normal(*leading, 6, IN).requires_grad_(), normal(*leading, 27, 6).requires_grad_()
    z = x @ w1.mT
    mean, var = moments(z, -2)
    y = standardize(z, mean, var, eps)
    h = TANH(y)
    logits = h @ w2.mT
    expected = autograd(cross_entropy(logits, targets).sum(), None, w1, w2)
    with torch.no_grad():
        output = linear_backward(cross_entropy_backward(logits, targets), h, w2)
        grad = standardize_backward(activation_backward(output.x, y, TANH), y, var, eps, -2)
        assert_same(linear_backward(grad, x, w1).weight, expected[0])
        assert_same(output.weight, expected[1])


@pytest.mark.parametrize(
    "grad, x, weight",
    [
        ((7, 4), (7, 5), (4, 6)),
        ((7, 4), (7, 5), (3, 5)),
        ((7, 4), (6, 5), (4, 5)),
        ((7, 4), (7, 5), (5, 4)),
        ((3, 7, 4), (2, 7, 5), (4, 5)),
        ((7, 4), (3, 7, 5), (4, 5)),
        ((7, 4), (7, 5), (3, 4, 5)),
        ((4,), (5,), (4, 5)),
        ((), (), ()),
    ],
)
def test_linear_shapes_that_do_not_fit(grad, x, weight):
    with pytest.raises(ValueError) as error:
        linear_backward(torch.ones(grad), torch.ones(x), torch.ones(weight))
    assert str(error.value) == f"linear_backward: grad {grad} does not fit x {x} and weight {weight}"


@pytest.mark.parametrize("var", [(7, 1), (7, 5), (3, 5), (7,)])
def test_a_variance_along_another_axis_is_refused(var):
    y = torch.ones(7, 5)
    with pytest.raises(ValueError, match=r"var .* does not fit y \(7, 5\): with dim=-2, its shape is \(1, 5\)"):
        standardize_backward(y, y, torch.ones(var), 1.0, -2)


def test_a_variance_of_features_is_refused_along_the_features():
    y = torch.ones(5, 5)
    with pytest.raises(ValueError, match=r"var \(5,\) does not fit y \(5, 5\): with dim=-1, its shape is \(5, 1\)"):
        standardize_backward(y, y, torch.ones(5), 1.0, -1)


@pytest.mark.parametrize("shape", [(7, 1), (8, 5), (5,)])
def test_a_gradient_of_another_shape_is_refused(shape):
    x, grad = torch.ones(7, 5), torch.ones(shape)
    with pytest.raises(ValueError) as error:
        activation_backward(grad, x, TANH)
    assert str(error.value) == f"activation_backward: grad {shape} does not fit x (7, 5)"
    with pytest.raises(ValueError) as error:
        standardize_backward(grad, x, torch.ones(5), 1.0, -2)
    assert str(error.value) == f"standardize_backward: grad {shape} does not fit y (7, 5)"


@pytest.mark.parametrize("n", [5, 9])
def test_targets_that_do_not_fit_are_refused(n):
    with pytest.raises(ValueError, match=rf"logits \(7, 5\) do not fit targets \({n},\)"):
        cross_entropy_backward(torch.ones(7, 5), torch.zeros(n, dtype=torch.long))


@pytest.mark.parametrize("target", [5, 6, -1])
def test_the_first_target_outside_the_classes_is_named(target):
    where = rf"^cross_entropy_backward: target symbol {target} at position \[1\] is outside the vocabulary, 0 to 4$"
    with pytest.raises(ValueError, match=where):
        cross_entropy_backward(torch.ones(3, 5), torch.tensor([0, target, -7]))
    with pytest.raises(ValueError, match=where):
        cross_entropy_backward(torch.ones(3, 5), torch.tensor([0, target, 4]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_any_integer_is_a_target(dtype):
    logits, targets = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 0.5]]), torch.tensor([2, 0])
    assert torch.equal(cross_entropy_backward(logits, targets.to(dtype)), cross_entropy_backward(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_targets_that_are_no_integers_are_refused(dtype):
    with pytest.raises(ValueError, match=f"^cross_entropy_backward: integer targets are needed, got {dtype}$"):
        cross_entropy_backward(torch.ones(2, 3), torch.ones(2, dtype=dtype))


def test_gradients_of_a_single_case_by_arithmetic():
    third = cross_entropy_backward(torch.tensor([[0.0, math.log(2), 0.0]], dtype=torch.float64), torch.tensor([1]))
    assert third[0].tolist() == pytest.approx([0.25, -0.5, 0.25], rel=1e-15)
