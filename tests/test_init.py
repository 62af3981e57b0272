import dataclasses
import math

import pytest
import torch
from torch import nn

from mmlib import rng
from mmlib.activations import ACTIVATIONS, RELU, TANH
from mmlib.init import LECUN, PYTORCH, XAVIER, Orthogonal, VarianceScaling, kaiming, schemes
from mmlib.models import MLP
from mmlib.rng import generator

pytestmark = pytest.mark.usefixtures("no_global_randomness")

FAN_OUT, FAN_IN = 300, 400
FANS = {"in": 400, "out": 300, "average": 350, "one": 1}
every_fan = pytest.mark.parametrize("fan", FANS)
every_law = pytest.mark.parametrize("law", ["normal", "uniform"])


def draw(scheme, fan_out=FAN_OUT, fan_in=FAN_IN, seed=0):
    return scheme(fan_out, fan_in, generator=rng.generator(seed, "weights"))


@every_fan
@every_law
@pytest.mark.parametrize("gain", [1.0, 0.2, 5 / 3])
def test_std_is_gain_over_root_fan(fan, law, gain):
    scheme = VarianceScaling(gain=gain, fan=fan, law=law)
    assert scheme.std(FAN_OUT, FAN_IN) == pytest.approx(gain / math.sqrt(FANS[fan]), rel=1e-15)


def test_an_average_of_fans_need_not_be_whole():
    assert VarianceScaling(fan="average").std(3, 4) == pytest.approx(1 / math.sqrt(3.5), rel=1e-15)


@every_fan
@every_law
def test_a_sample_has_mean_zero_and_that_std(fan, law):
    scheme = VarianceScaling(gain=1.7, fan=fan, law=law)
    w, std = draw(scheme).double(), scheme.std(FAN_OUT, FAN_IN)
    n, kurtosis = w.numel(), {"normal": 3, "uniform": 9 / 5}[law]
    assert w.shape == (FAN_OUT, FAN_IN)
    assert abs(float(w.mean())) < 4 * std / math.sqrt(n)
    assert abs(float(w.square().mean()) / std**2 - 1) < 4 * math.sqrt((kurtosis - 1) / n)
    assert float((w**4).mean()) / std**4 == pytest.approx(kurtosis, rel=0.05)


@every_fan
def test_a_uniform_law_fills_root_three_stds_and_no_more(fan):
    scheme = VarianceScaling(gain=0.7, fan=fan, law="uniform")
    bound = math.sqrt(3) * scheme.std(FAN_OUT, FAN_IN)
    w = draw(scheme)
    assert float(w.abs().max()) <= bound * (1 + 1e-6)
    assert float(w.max()) > 0.999 * bound and float(w.min()) < -0.999 * bound


REFERENCE = {
    "Xavier": (XAVIER, lambda w, g: nn.init.xavier_uniform_(w, generator=g)),
    "Xavier normal": (VarianceScaling(fan="average"), lambda w, g: nn.init.xavier_normal_(w, generator=g)),
    "Kaiming": (kaiming(RELU), lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=g)),
    "Kaiming fan out": (
        VarianceScaling(RELU.gain, fan="out"),
        lambda w, g: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=g),
    ),
    "LeCun": (LECUN, lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="linear", generator=g)),
    "nn.Linear": (PYTORCH, lambda w, g: nn.init.kaiming_uniform_(w, a=math.sqrt(5), generator=g)),
    "standard": (VarianceScaling(fan="one"), lambda w, g: nn.init.normal_(w, generator=g)),
    "orthogonal": (Orthogonal(1.3), lambda w, g: nn.init.orthogonal_(w, gain=1.3, generator=g)),
}


@pytest.mark.parametrize("ours, reference", REFERENCE.values(), ids=REFERENCE)
def test_torch_draws_the_same_weights_from_the_same_generator(ours, reference):
    expected = reference(torch.empty(30, 40), rng.generator(3, "weights"))
    torch.testing.assert_close(draw(ours, 30, 40, seed=3), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fan_out, fan_in", [(40, 40), (40, 30), (30, 40)])
def test_torch_draws_the_same_orthogonal_matrix_of_any_shape(fan_out, fan_in):
    expected = nn.init.orthogonal_(torch.empty(fan_out, fan_in), generator=rng.generator(3, "weights"))
    torch.testing.assert_close(draw(Orthogonal(), fan_out, fan_in, seed=3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [4, 900])
def test_the_default_of_torch_linear_has_its_bound(width):
    with torch.random.fork_rng():
        theirs = nn.Linear(width, 50).weight
    bound = 1 / math.sqrt(width)
    assert float(theirs.detach().abs().max()) <= bound
    assert PYTORCH.std(50, width) * math.sqrt(3) == pytest.approx(bound, rel=1e-15)


@every_law
def test_schemes_share_their_noise_under_one_seed(law):
    unit = draw(VarianceScaling(fan="one", law=law))
    for fan in FANS:
        scheme = VarianceScaling(gain=3.0, fan=fan, law=law)
        torch.testing.assert_close(draw(scheme), unit * scheme.std(FAN_OUT, FAN_IN))


def test_another_seed_gives_other_noise():
    assert not torch.allclose(draw(LECUN), draw(LECUN, seed=1))


@pytest.mark.parametrize("fan_out, fan_in", [(30, 50), (50, 30), (40, 40), (1, 7), (7, 1)])
@pytest.mark.parametrize("gain", [1.0, 1.6])
def test_an_orthogonal_matrix_has_orthonormal_rows_or_columns(fan_out, fan_in, gain):
    scheme = Orthogonal(gain)
    w = draw(scheme, fan_out, fan_in)
    assert w.shape == (fan_out, fan_in) and w.is_contiguous()
    w = w.double()
    gram = w @ w.T if fan_out <= fan_in else w.T @ w
    torch.testing.assert_close(gram, gain**2 * torch.eye(min(fan_out, fan_in), dtype=torch.float64), rtol=0, atol=1e-5)
    assert float(w.square().mean().sqrt()) == pytest.approx(scheme.std(fan_out, fan_in), rel=1e-6)


def test_an_orthogonal_matrix_is_as_orthogonal_as_its_dtype_can_tell():
    w = draw(Orthogonal(), 200, 200).double()  # decomposed in float32 it is 30 times as far off
    torch.testing.assert_close(w @ w.T, torch.eye(200, dtype=torch.float64), rtol=0, atol=1e-7)


def test_orthogonal_matrices_favour_no_direction():
    first = torch.stack([draw(Orthogonal(), 2, 2, seed=s)[0] for s in range(400)]).double()
    assert bool((first.mean(0).abs() < 4 * math.sqrt(0.5 / 400)).all())
    assert 120 < int((torch.stack([torch.det(draw(Orthogonal(), 2, 2, seed=s)) for s in range(400)]) > 0).sum()) < 280


def test_kaiming_takes_the_gain_of_the_activation():
    for activation in ACTIVATIONS.values():
        assert kaiming(activation) == VarianceScaling(gain=activation.gain)


def test_schemes_by_name():
    assert schemes(TANH) == {
        "standard normal": VarianceScaling(fan="one"),
        "LeCun": VarianceScaling(),
        "Xavier": VarianceScaling(fan="average", law="uniform"),
        "PyTorch default": VarianceScaling(gain=1 / math.sqrt(3), law="uniform"),
        "Kaiming": VarianceScaling(gain=TANH.gain),
        "orthogonal": Orthogonal(TANH.gain),
    }


@pytest.mark.parametrize("scheme", schemes(RELU).values(), ids=schemes(RELU))
def test_every_scheme_draws_float32_of_its_stated_std(scheme):
    w = draw(scheme)
    assert w.dtype == torch.float32 and w.shape == (FAN_OUT, FAN_IN)
    assert float(w.std()) == pytest.approx(scheme.std(FAN_OUT, FAN_IN), rel=0.01)


def test_a_gain_of_zero_gives_zeros():
    assert not draw(VarianceScaling(gain=0.0)).any()


@pytest.mark.parametrize("scheme", [LECUN, Orthogonal()], ids=["VarianceScaling", "Orthogonal"])
def test_a_generator_is_given_by_name(scheme):
    with pytest.raises(TypeError, match="positional"):
        scheme(3, 4, rng.generator(0, "weights"))


def test_a_scheme_is_a_frozen_value():
    assert VarianceScaling(2.0) == VarianceScaling(gain=2.0) and hash(Orthogonal(2.0)) == hash(Orthogonal(2.0))
    for scheme in (LECUN, Orthogonal()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            scheme.gain = 2.0


def test_an_unknown_fan_is_refused():
    with pytest.raises(ValueError, match="fan: one of in, out, average, one is needed, got 'fan_in'"):
        VarianceScaling(fan="fan_in")


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="law: one of normal, uniform is needed, got 'gaussian'"):
        VarianceScaling(law="gaussian")


@pytest.mark.parametrize("gain", [-1.0, math.nan, math.inf])
def test_a_gain_that_is_no_scale_is_refused(gain):
    with pytest.raises(ValueError, match=f"gain: a finite number, 0 or more, is needed, got {gain}"):
        VarianceScaling(gain=gain)


@pytest.mark.parametrize("scheme", [LECUN, Orthogonal()], ids=["VarianceScaling", "Orthogonal"])
@pytest.mark.parametrize("fans, name", [((0, 3), "fan_out"), ((3, -1), "fan_in")])
def test_a_matrix_without_rows_or_columns_is_refused(scheme, fans, name):
    g = rng.generator(0, "weights")
    state = g.get_state()
    for use in (scheme.std, lambda *fans: scheme(*fans, generator=g)):
        with pytest.raises(ValueError, match=f"{name}: at least 1 is needed, got {min(fans)}"):
            use(*fans)
    assert torch.equal(g.get_state(), state)


# Edges


@pytest.mark.parametrize("scheme", [LECUN, VarianceScaling(law="uniform"), Orthogonal(1.5)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_are_of_the_default_dtype(scheme, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        weight = scheme(5, 3, generator=generator(0, "x"))
        model = MLP(width=4, depth=1, init=scheme).build(generator(0, "weights"))
        assert weight.dtype == dtype and model(torch.zeros(2, 3, dtype=torch.long)).dtype == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("gain", [math.nan, math.inf, -1.0])
def test_a_gain_that_is_no_number_is_refused_by_every_scheme(gain):
    for scheme in (VarianceScaling, Orthogonal):
        with pytest.raises(ValueError, match=f"gain: a finite number, 0 or more, is needed, got {gain}"):
            scheme(gain)
