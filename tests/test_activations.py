import dataclasses
import math

import pytest
import torch
from scipy import integrate
from torch import nn

from mmlib.activations import (
    ACTIVATIONS,
    ELU,
    GELU,
    IDENTITY,
    LEAKY_RELU,
    RELU,
    SIGMOID,
    SILU,
    STEP,
    TANH,
    Activation,
)
from mmlib.gaussian import expectation
from mmlib.init import kaiming

pytestmark = pytest.mark.usefixtures("no_global_randomness")

REFERENCE = {
    "identity": nn.Identity(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "ReLU": nn.ReLU(),
    "leaky ReLU": nn.LeakyReLU(),
    "ELU": nn.ELU(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
}
smooth = pytest.mark.parametrize("name", REFERENCE)
every = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)


def test_the_table_has_each_activation_under_its_name():
    assert ACTIVATIONS == {
        "step": STEP,
        "identity": IDENTITY,
        "sigmoid": SIGMOID,
        "tanh": TANH,
        "ReLU": RELU,
        "leaky ReLU": LEAKY_RELU,
        "ELU": ELU,
        "GELU": GELU,
        "SiLU": SILU,
    }


@smooth
def test_values_are_those_of_torch(name, normal):
    x = 3 * normal(4, 5, 6)
    assert torch.equal(ACTIVATIONS[name](x), REFERENCE[name](x))


@smooth
def test_derivatives_are_those_of_torch(name, normal):
    x, cotangent = 3 * normal(4, 5, 6), normal(4, 5, 6)
    x.view(-1)[0] = 0.0
    x.requires_grad_()
    (expected,) = torch.autograd.grad(REFERENCE[name](x), x, cotangent)
    torch.testing.assert_close(cotangent * ACTIVATIONS[name].derivative(x), expected, rtol=1e-12, atol=1e-15)


@every
def test_derivatives_are_slopes(activation, normal):
    x, h = 2 * normal(200), 1e-6
    slope = (activation(x + h) - activation(x - h)) / (2 * h)
    torch.testing.assert_close(activation.derivative(x), slope, rtol=1e-6, atol=1e-8)


def test_step_is_one_beyond_zero_and_its_slope_zero():
    x = torch.tensor([-1.0, 0.0, 2.0])
    assert STEP(x).tolist() == [0, 0, 1] and STEP.derivative(x).tolist() == [0, 0, 0]


@every
def test_a_derivative_leaves_its_argument_alone(activation, normal):
    x = normal(3, 2).requires_grad_()
    with torch.no_grad():
        slope = activation.derivative(x)
        assert not torch.is_grad_enabled()
    assert x.grad is None and x.requires_grad and not slope.requires_grad and slope.shape == x.shape
    plain = normal(3)
    activation.derivative(plain)
    assert not plain.requires_grad


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_kept(activation, dtype):
    x = torch.linspace(-2, 2, 12, dtype=dtype).view(2, 3, 2)
    for y in (activation(x), activation.derivative(x)):
        assert y.shape == x.shape and y.dtype == dtype


BELOW_1, BELOW_2 = (math.erfc(t / math.sqrt(2)) / 2 for t in (1, 2))
CLOSED = {  # E phi(Z)^2, E phi'(Z)^2
    "step": (1 / 2, 0),
    "identity": (1, 1),
    "ReLU": (1 / 2, 1 / 2),
    "leaky ReLU": ((1 + 1e-4) / 2, (1 + 1e-4) / 2),
    "ELU": (1 + math.e**2 * BELOW_2 - 2 * math.e**0.5 * BELOW_1, 1 / 2 + math.e**2 * BELOW_2),
    "GELU": (1 / 3 + 1 / (2 * math.pi * math.sqrt(3)), None),
}


@pytest.mark.parametrize("name", CLOSED)
def test_gains_have_their_closed_form(name):
    forward, backward = CLOSED[name]
    assert ACTIVATIONS[name].gain == pytest.approx(1 / math.sqrt(forward), rel=1e-12)
    if backward is not None:
        expected = 1 / math.sqrt(backward) if backward else math.inf
        assert ACTIVATIONS[name].backward_gain == pytest.approx(expected, rel=1e-12)


@every
def test_gains_are_those_of_another_quadrature(activation):
    def second_moment(f):
        def integrand(z):
            return float(f(torch.tensor(z, dtype=torch.float64))) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        return sum(integrate.quad(integrand, *ends, epsabs=1e-12)[0] for ends in ((-10, 0), (0, 10)))

    assert activation.gain == pytest.approx(second_moment(activation) ** -0.5, rel=1e-9)
    if activation is not STEP:
        assert activation.backward_gain == pytest.approx(second_moment(activation.derivative) ** -0.5, rel=1e-9)


@pytest.mark.parametrize(
    "activation, gain", [(TANH, 1.5925), (SIGMOID, 1.846), (SILU, 1.677), (RELU, math.sqrt(2)), (ELU, 1.245)]
)
def test_gains_are_the_known_numbers(activation, gain):
    assert activation.gain == pytest.approx(gain, abs=5e-4)


@pytest.mark.parametrize(
    "activation, reference", [(RELU, ("relu",)), (LEAKY_RELU, ("leaky_relu", 0.01)), (IDENTITY, ("linear",))]
)
def test_gains_agree_with_torch_where_torch_derives_them(activation, reference):
    assert activation.gain == pytest.approx(nn.init.calculate_gain(*reference), rel=1e-12)


def test_five_thirds_is_not_the_gain_of_tanh_and_the_gradient_grows_under_it():
    assert nn.init.calculate_gain("tanh") - TANH.gain > 0.07

    def map_of_variance(q):
        return (5 / 3) ** 2 * expectation(lambda z: TANH(q**0.5 * z) ** 2)

    q = 1.0
    for _ in range(500):
        q = map_of_variance(q)
    assert q == pytest.approx(1.1785, abs=1e-4)
    chi = (5 / 3) ** 2 * expectation(lambda z: TANH.derivative(q**0.5 * z) ** 2)
    assert chi == pytest.approx(1.2098, abs=1e-4)


@every
def test_the_gain_keeps_the_second_moment_of_a_wide_layer(activation):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 400, generator=g)
    h = activation(x @ kaiming(IDENTITY)(400, 400, generator=g).T)
    expected = expectation(lambda z: activation(z) ** 2)
    assert float(h.square().mean()) * activation.gain**2 == pytest.approx(1, abs=0.05)
    assert expected * activation.gain**2 == pytest.approx(1, rel=1e-12)


def test_an_activation_is_a_frozen_value_with_a_name():
    assert repr(TANH) == "Activation('tanh')"
    with pytest.raises(dataclasses.FrozenInstanceError):
        TANH.name = "other"


def test_a_new_activation_has_its_gain_computed():
    square = Activation("square", torch.square)
    assert square.gain == pytest.approx(3**-0.5, rel=1e-12)
    assert square.backward_gain == pytest.approx(1 / 2, rel=1e-12)
