"""What once gave a wrong result without a word, lost work, or failed with an error that says nothing. By module."""

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference_run as reference
import torch
import torch.nn.functional as F
from torch import nn

import mmlib
from mmlib import checkpoint, meanfield, stats
from mmlib.activations import ACTIVATIONS, RELU, TANH, Activation
from mmlib.data import Examples, counting_floor, counting_loss, examples, minibatches
from mmlib.ensemble import Ensemble, stack, unstack
from mmlib.history import Recorder
from mmlib.init import LECUN, Orthogonal, VarianceScaling
from mmlib.layers import Embedding, Flatten, Linear, Nonlinearity, cross_entropy
from mmlib.models import MLP, sample
from mmlib.norm import BatchNorm1d, GroupNorm, LayerNorm, RMSNorm, calibrate, fold, moments, standardize
from mmlib.rng import generator
from mmlib.scalar import Value
from mmlib.trace import first_not_finite, first_not_finite_gradient, trace, undisturbed
from mmlib.train import descend, drop, train

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def mlp(seed=0, **recipe):
    return MLP(**{"width": 8, "depth": 2} | recipe).build(generator(seed, "weights"))


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=generator(seed, "edges"), dtype=dtype)


def draws(corpus, steps, replicas=None, size=8):
    streams = [generator(s, "batches") for s in range(replicas or 1)]
    return minibatches(corpus.dev, size, steps, generator=streams if replicas else streams[0])


def numbers(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# rng


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_an_integer_of_any_library_is_a_seed(three):
    assert torch.equal(generator(three, "x").get_state(), generator(3, "x").get_state())


@pytest.mark.parametrize("seed", [True, 3.0, np.float64(3), "3", None, torch.tensor(3.0)])
def test_what_is_no_integer_is_no_seed(seed):
    with pytest.raises(TypeError, match="seed: an integer is needed, got"):
        generator(seed, "x")


# activations, gaussian, meanfield: within torch.inference_mode


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


def test_the_first_loss_of_wide_logits_takes_little_memory():
    code = (
        "import resource; from mmlib.meanfield import expected_first_loss; print(expected_first_loss(100., 27), "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    loss, kilobytes = map(float, done.stdout.split())
    assert loss == pytest.approx(100 * 1.9969, abs=0.3) and kilobytes < 900_000


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mmlib.__file__).parent.parent)}


# init


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


# layers


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_symbols_and_targets_may_be_integers_of_any_kind(dtype):
    model, x, y = mlp(), torch.arange(6).view(2, 3).to(dtype), torch.tensor([3, 4])
    assert torch.equal(model(x), model(x.long()))
    torch.testing.assert_close(stack([model])(x[None])[0], model(x))
    logits = model(x)
    assert torch.equal(cross_entropy(logits, y.to(dtype)), F.cross_entropy(logits, y))
    torch.testing.assert_close(cross_entropy(logits[None], y.to(dtype)[None])[0], F.cross_entropy(logits, y))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.float32, torch.complex64], ids=str)
def test_what_are_no_integers_are_no_symbols_and_no_targets(dtype):
    with pytest.raises(ValueError, match=f"Embedding: integer symbols are needed, got {dtype}"):
        mlp()(torch.zeros(2, 3, dtype=dtype))
    with pytest.raises(ValueError, match=f"cross_entropy: integer targets are needed, got {dtype}"):
        cross_entropy(randn(2, 5), torch.zeros(2, dtype=dtype))


def test_a_loss_of_nothing_and_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"at least one example is needed, got targets \(0,\)"):
        cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"logits \(5,\) do not fit targets \(\)"):
        cross_entropy(torch.zeros(5), torch.tensor(1))
    with pytest.raises(ValueError, match=r"floating-point logits are needed, got torch\.int64"):
        cross_entropy(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Flatten: at least two axes are needed, got \(3,\)"):
        Flatten()(torch.zeros(3))


# norm

HALF = [torch.float16, torch.bfloat16]
NORMS = {
    "BatchNorm1d": (BatchNorm1d, nn.BatchNorm1d),
    "LayerNorm": (LayerNorm, nn.LayerNorm),
    "GroupNorm": (lambda f: GroupNorm(4, f), lambda f: nn.GroupNorm(4, f)),
    "RMSNorm": (RMSNorm, lambda f: nn.RMSNorm(f, eps=1e-5)),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("mean, std", [(0, 1), (0, 200), (100, 1), (0, 1e-3)])
def test_norms_in_half_precision_are_those_of_torch(kind, training, dtype, mean, std):
    ours, theirs = (make(64).to(dtype).train(training) for make in NORMS[kind])
    state = {
        name: x if not x.dim() else 0.5 + randn(*x.shape, seed=k).abs().to(dtype)
        for k, (name, x) in enumerate(theirs.state_dict().items())
    }
    ours.load_state_dict(state), theirs.load_state_dict(state)
    x = (mean + std * randn(8, 64)).to(dtype)
    y, expected = ours(x), theirs(x)
    assert y.dtype == dtype and float(y.detach().float().square().mean()) > 0.1
    torch.testing.assert_close(y, expected, rtol=float(torch.finfo(dtype).eps), atol=1e-6)
    for b, c in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=float(torch.finfo(dtype).eps), atol=1e-6)


def test_moments_in_half_precision_are_float32():
    x = (300 + randn(64, 8)).half()
    mean, var = moments(x, -2)
    assert mean.dtype == var.dtype == standardize(x, mean, var, 1e-5).dtype == torch.float32
    torch.testing.assert_close(var, x.double().var(0, unbiased=False, keepdim=True).float())
    with pytest.raises(ValueError, match=r"moments: no mean along the empty axis -2 of \(0, 8\)"):
        moments(x[:0], -2)


def test_inputs_that_are_wider_than_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match=r"LayerNorm: input of torch\.float32 does not fit weights of torch\.float16"):
        LayerNorm(4).half()(randn(2, 4))


@pytest.mark.parametrize("momentum", [None, "0.1", math.nan, -0.1])
def test_a_momentum_that_is_no_share_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum: a number from 0 to 1 is needed, got"):
        BatchNorm1d(3, momentum=momentum)


@pytest.mark.parametrize("layout", ["transposed", "assigned", "strided"])
def test_running_statistics_move_in_any_layout(layout):
    ensemble, x = stack([nn.Sequential(BatchNorm1d(6)) for _ in range(3)]), randn(3, 8, 6)
    same = copy.deepcopy(ensemble)
    state = {k: v.mT.contiguous().mT if v.dim() > 1 else v for k, v in ensemble.state_dict().items()}
    if layout == "assigned":
        ensemble.load_state_dict(state, assign=True)
    elif layout == "transposed":
        ensemble[0].running_mean, ensemble[0].running_var = state["0.running_mean"], state["0.running_var"]
    else:
        for name in ("running_mean", "running_var"):
            setattr(ensemble[0], name, torch.stack([state[f"0.{name}"]] * 2, -1)[..., 0])
    assert not ensemble[0].running_mean.is_contiguous()
    torch.testing.assert_close(ensemble(x), same(x))
    assert ensemble[0].running_mean.any()
    torch.testing.assert_close(numbers(ensemble), numbers(same))


class Torch(nn.Sequential):
    """A network with batch normalisation of torch inside."""

    def __init__(self):
        super().__init__(*mlp(), BatchNorm1d(27), nn.BatchNorm1d(27))


def test_calibrate_goes_into_sequences_within_sequences(corpus):
    data = Examples(*(x[:500] for x in corpus.dev))
    flat = mlp(norm=BatchNorm1d)
    train(flat, draws(corpus, 3), lr=0.1)
    parts = list(copy.deepcopy(flat))
    nested = nn.Sequential(*parts[:2], nn.Sequential(*parts[2:5], nn.Sequential(*parts[5:7])), *parts[7:])
    calibrate(flat, data), calibrate(nested, data)
    assert all(torch.equal(a, b) for a, b in zip(flat.buffers(), nested.buffers(), strict=True))


@pytest.mark.parametrize(
    "build", [Torch, lambda: nn.Sequential(*mlp()[:3], reference.StdBatchNorm(8))], ids=["torch", "StdBatchNorm"]
)
def test_calibrate_refuses_statistics_that_it_does_not_know_and_changes_nothing(build, corpus):
    model = build()
    before, modes = numbers(model), [m.training for m in model.modules()]
    with pytest.raises(TypeError, match=r"calibrate: \w+, \w+, keeps statistics, but is no BatchNorm1d"):
        calibrate(model, corpus.dev)
    assert equal(numbers(model), before) and [m.training for m in model.modules()] == modes


def test_calibrate_is_in_evaluation_whatever_the_mode(corpus):
    data = Examples(*(x[:200] for x in corpus.dev))
    model = nn.Sequential(*mlp()[:4], nn.Dropout(0.5), Linear(8, 6, generator=generator(1, "w")), BatchNorm1d(6))
    quiet = copy.deepcopy(model).eval()
    calibrate(model, data), calibrate(quiet, data)
    assert all(m.training for m in model.modules()) and equal(numbers(model), numbers(quiet))


def test_calibrate_under_autocast_is_calibrate(corpus):
    data, model = Examples(*(x[:500] for x in corpus.dev)), mlp(norm=BatchNorm1d)
    same = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calibrate(model, data)
    calibrate(same, data)
    for a, b in zip(model.buffers(), same.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)


def test_calibrate_on_values_that_are_not_finite_changes_nothing(corpus):
    model = mlp(norm=BatchNorm1d)
    with torch.no_grad():
        model.linear2.weight[0, 0] = math.inf
    before = numbers(model)
    with pytest.raises(ValueError, match="calibrate: what norm2 is given has a mean or variance that is not finite"):
        calibrate(model, corpus.dev)
    assert equal(numbers(model), before)


def test_folding_keeps_a_frozen_layer_frozen():
    linear, norm = Linear(3, 4, generator=generator(0, "w")), BatchNorm1d(4)
    assert all(p.requires_grad for p in fold(linear, norm).parameters())
    assert not any(p.requires_grad for p in fold(linear.requires_grad_(False), norm).parameters())


# scalar


def test_a_long_chain_of_values_can_be_copied():
    first = value = Value(1.0)
    for _ in range(20_000):
        value = value + 1e-4
    value.backward()
    twin = copy.deepcopy({"end": value, "start": first})
    assert twin["start"] is not first and (twin["start"].grad, twin["end"].data) == (1.0, value.data)
    twin["end"].backward()
    assert (twin["start"].grad, first.grad) == (2.0, 1.0)


# data


def test_examples_are_equal_if_their_numbers_are(corpus):
    assert corpus.dev == Examples(*(x.clone() for x in corpus.dev)) and corpus.dev != corpus.test
    assert corpus.dev != tuple(corpus.dev) and corpus.dev != Examples(*(x[:5] for x in corpus.dev))


def test_counting_is_possible_at_any_order_and_kind_of_integer(names):
    from mmlib.data import Vocabulary

    data = examples(names[:2000], Vocabulary.of(names), 16)
    floors = [counting_floor(data, order) for order in range(17)]
    assert floors == sorted(floors, reverse=True) and floors[0] > 2 > floors[16]
    small = Examples(*(x.to(torch.uint8) for x in data))
    assert [counting_floor(small, order) for order in (0, 2, 9)] == [floors[order] for order in (0, 2, 9)]
    assert counting_loss(small, small, 2, tokens=27) == counting_loss(data, data, 2, tokens=27)
    assert counting_loss(data, data, 16, tokens=27, smoothing=1e-9) == pytest.approx(floors[16], abs=1e-6)
    one = Examples(torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert math.copysign(1, counting_floor(one, 2)) == 1


@pytest.mark.parametrize("smoothing", [math.inf, math.nan, 0.0, -1.0])
def test_smoothing_that_gives_no_probability_is_refused(smoothing, corpus):
    with pytest.raises(ValueError, match=f"smoothing: a positive number is needed, got {smoothing}"):
        counting_loss(corpus.dev, corpus.dev, 1, tokens=27, smoothing=smoothing)


def test_counts_of_nothing_and_of_negative_symbols_are_refused():
    none = Examples(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"data: targets of shape \(n,\) with n > 0 are needed, got \(0,\)"):
        counting_floor(none, 1)
    with pytest.raises(ValueError, match="data: symbols of 0 or more are needed, got a negative one"):
        counting_floor(Examples(torch.tensor([[-1, 2]]), torch.tensor([1])), 1)


@pytest.mark.parametrize("taken", [0, 1, 100, 256, 257, 300])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_loop_that_is_left_early_goes_on_with_the_next_minibatch(taken, stacked, corpus):
    def batches(g):
        return minibatches(corpus.dev, 4, 300, generator=g)

    def streams():
        return [generator(s, "b") for s in range(2)] if stacked else generator(0, "b")

    whole, g = list(batches(streams())), streams()
    iterator = iter(batches(g))
    first = [next(iterator) for _ in range(taken)]
    iterator.close()
    rest = list(batches(g))[: 300 - taken]
    assert all(a == b for a, b in zip([*first, *rest], whole, strict=True))


def test_draws_within_a_loop_are_not_taken_back(corpus):
    g = generator(0, "b")
    iterator = iter(minibatches(corpus.dev, 4, 300, generator=g))
    next(iterator)
    torch.rand(3, generator=g)
    after = g.get_state()
    iterator.close()
    assert torch.equal(g.get_state(), after)


# models


def test_a_layer_is_no_maker_of_layers():
    with pytest.raises(TypeError, match=r"norm: what makes a layer for a width is needed, .* got BatchNorm1d\(100"):
        MLP(norm=BatchNorm1d(100))
    for confidence in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=f"confidence: 0 or more is needed, got {confidence}"):
            MLP(confidence=confidence)


def test_names_from_logits_that_are_not_finite_are_refused(corpus):
    model = mlp()
    with torch.no_grad():
        model.output.bias[3] = math.nan
    with pytest.raises(ValueError, match=r"sample: the logits after .* are not finite"):
        sample(model, corpus.vocabulary, 3, generator=generator(0, "s"))


def test_a_network_with_rms_norm_is_odd_up_to_its_output_bias():
    """Why a norm does not make a bias redundant in general."""
    model = mlp(norm=RMSNorm)
    x = randn(5, 30)
    with torch.no_grad():
        torch.testing.assert_close(model[2:](x), -model[2:](-x))


# ensemble: the stack is proved on a probe


class Scaled(nn.Module):
    """A layer that does not know of a leading axis."""

    def __init__(self, shape=(8,)):
        super().__init__()
        self.g = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return x * self.g


class Times(nn.Module):
    """A layer whose function its repr does not tell."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Chained(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


class Named(nn.Sequential):
    pass


def with_layer(layer, r=0, at=4):
    layers = list(mlp(r))
    return nn.Sequential(*layers[:at], layer, *layers[at:])


@pytest.mark.parametrize("replicas", [2, 3, 8, 32])
@pytest.mark.parametrize("shape", [(8,), ()])
def test_a_layer_that_does_not_know_of_a_leading_axis_is_refused(replicas, shape):
    with pytest.raises((TypeError, ValueError), match="4: Scaled"):
        stack([with_layer(Scaled(shape), r) for r in range(replicas)])


def test_activations_of_one_name_and_two_functions_are_refused():
    named = Activation("tanh", lambda x: torch.tanh(x) * 1.01)
    models = [mlp(0), mlp(1), mlp(2, activation=named)]
    with pytest.raises(ValueError, match=r"act1: Nonlinearity gives models\[2\] another result in the stack"):
        stack(models)
    with pytest.raises(ValueError, match=r"4: Times gives models\[1\] another result"):
        stack([with_layer(Times(2)), with_layer(Times(3))])
    stack([with_layer(Times(2), 0), with_layer(Times(2), 1)])


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.Flatten(), nn.Softmax(0), nn.LogSoftmax(1)], ids=repr)
def test_layers_of_torch_that_name_an_axis_from_the_front_are_refused(layer):
    with pytest.raises((TypeError, ValueError), match=f"4: {type(layer).__name__}"):
        stack([with_layer(layer, r) for r in range(3)])


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.Tanh(), nn.Dropout(0.5), nn.Identity()], ids=repr)
def test_layers_of_torch_that_work_on_the_last_axes_are_stacked(layer, symbols):
    models = [with_layer(layer, r).eval() for r in range(3)]
    x = symbols(3, 5, 3)
    y = stack(models)(x)
    for r, model in enumerate(models):
        torch.testing.assert_close(y[r], model(x[r]))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_is_refused(register):
    models = [mlp(0), mlp(1)]
    getattr(models[0].linear1, register)(lambda *_: None)
    with pytest.raises(ValueError, match=r"models\[0\]: linear1 has a hook; remove it"):
        stack(models)


def test_a_sequence_with_a_forward_of_its_own_is_refused():
    with pytest.raises(TypeError, match=r"models\[0\]: Chained has a forward of its own, which would be lost"):
        stack([Chained(*mlp(r)) for r in range(2)])
    assert stack([Named(*mlp(r)) for r in range(2)]).replicas == 2


def test_a_probe_may_be_given_and_is_asked_for():
    class Pictures(nn.Module):
        def forward(self, x):
            if x.shape[-3:] != (2, 5, 7):
                raise ValueError("pictures")
            return x.flatten(-3)

    models = [nn.Sequential(Pictures(), Linear(70, 3, generator=generator(r, "w"))) for r in range(2)]
    with pytest.raises(ValueError, match=r"no input that models\[0\] takes was found .* stack\(models, probe="):
        stack(models)
    assert stack(models, probe=randn(4, 2, 5, 7))(randn(2, 4, 2, 5, 7)).shape == (2, 4, 3)


class Single(nn.Module):
    """A layer that works in float32 alone."""

    def forward(self, x):
        return x @ torch.eye(x.shape[-1])


class Cut(nn.Module):
    """A layer for batches of a multiple of 16."""

    def forward(self, x):
        return x - x.unflatten(-2, (-1, 16)).mean(-2).repeat_interleave(16, -2)


def test_layers_that_cut_up_the_batch_are_stacked_too():
    assert stack([with_layer(Cut(), r) for r in range(3)]).replicas == 3


def test_layers_that_know_one_dtype_are_stacked_too():
    assert stack([with_layer(Single(), r) for r in range(2)]).replicas == 2


def test_stacking_leaves_the_models_as_they_are():
    models = [with_layer(nn.Dropout(0.5), r) for r in range(3)]
    before, modes = [numbers(m) for m in models], [[m.training for m in x.modules()] for x in models]
    stack(models)
    assert all(equal(a, numbers(b)) for a, b in zip(before, models, strict=True))
    assert modes == [[m.training for m in x.modules()] for x in models]


def test_the_number_of_replicas_is_read_off(symbols):
    ensemble = stack([mlp(r) for r in range(3)])
    assert ensemble[:3].replicas == ensemble[2:].replicas == copy.deepcopy(ensemble).replicas == 3
    assert pickle.loads(pickle.dumps(ensemble)).replicas == 3 and isinstance(ensemble[:3], Ensemble)
    with pytest.raises(ValueError, match="ensemble: no layer has a parameter or buffer"):
        _ = ensemble[1:2].replicas
    for add in (ensemble.append, lambda layer: ensemble.insert(0, layer), lambda layer: ensemble.extend([layer])):
        with pytest.raises(TypeError, match="ensemble: a stack takes no further layer"):
            add(Flatten())
    assert len(ensemble) == 7


# undisturbed


class Lazy(nn.Module):
    """Makes a mask as long as its first batch, and has a slot for one more."""

    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", None)

    def forward(self, x):
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.ones(len(x), 1))
            self.nothing = torch.zeros(1)
        return x * self.mask


def test_buffers_that_are_made_within_are_gone_after(symbols):
    model = nn.Sequential(*mlp()[:2], Lazy(), Linear(30, 27, generator=generator(0, "w")))
    trace(model, Examples(symbols(64, 3), symbols(64)))
    assert model[2].nothing is None and list(model[2]._buffers) == ["nothing"]
    assert trace(model, Examples(symbols(3, 3), symbols(3))).loss.isfinite()


@pytest.mark.parametrize("kind", ["expanded", "inference", "resized", "replaced", "deleted", "None"])
def test_buffers_of_any_kind_are_put_back_and_the_body_s_error_is_the_one_raised(kind):
    layer = nn.Module()
    with torch.inference_mode(kind == "inference"):
        buffer = torch.arange(3.0).clone().expand(3) if kind == "inference" else torch.arange(3.0)
    buffer = buffer[:1].expand(3) if kind == "expanded" else buffer
    layer.register_buffer("b", buffer)
    values = buffer.tolist()
    with pytest.raises(KeyError, match="the body's"), undisturbed(layer):
        if kind == "resized":
            layer.b.resize_(7)
        elif kind == "deleted":
            del layer.b
        elif kind == "None":
            layer.b = None
        elif kind == "replaced":
            layer.b = torch.zeros(2)
        else:
            layer.b = layer.b + 1
        raise KeyError("the body's")
    assert layer.b is buffer and layer.b.tolist() == values


def test_a_pending_backward_pass_still_runs(symbols):
    model, batch = mlp(norm=BatchNorm1d).eval(), Examples(symbols(8, 3), symbols(8))
    loss = cross_entropy(model(batch.contexts), batch.targets)
    versions = [b._version for b in model.buffers()]
    trace(model.train(), batch)
    assert [b._version for b in model.buffers()] == versions
    loss.backward()


def test_a_buffer_that_two_layers_share_stays_one_within():
    a, b = nn.Module(), nn.Module()
    a.register_buffer("b", torch.zeros(2))
    b.register_buffer("b", a.b)
    with undisturbed(nn.ModuleList([a, b])):
        assert a.b is b.b
    assert a.b is b.b


# trace


def test_a_forward_of_its_own_is_not_traced(symbols):
    batch = Examples(symbols(4, 3), symbols(4))
    for look in (trace, first_not_finite):
        with pytest.raises(TypeError, match="model: Chained has a forward of its own"):
            look(Chained(*mlp()), batch)
        with pytest.raises(ValueError, match=r"model: an nn\.Sequential of at least one layer is needed, got none"):
            look(nn.Sequential(), batch)


def test_layers_that_work_in_place_are_traced_as_those_that_do_not(symbols):
    def network(inplace):
        g = generator(0, "w")
        return nn.Sequential(
            *(Embedding(27, 4, generator=g), Flatten(), Linear(12, 8, generator=g), nn.ReLU(inplace)),
            *(Linear(8, 27, generator=g), nn.LeakyReLU(0.1, inplace)),
        )

    batch = Examples(symbols(16, 3), symbols(16))
    a, b = trace(network(True), batch), trace(network(False), batch)
    for part, other in zip(a[1:], b[1:], strict=True):
        assert equal(part, other)
    assert (a.outputs["2"] < 0).any()
    contexts = randn(4, 5)
    trace(
        nn.Sequential(nn.ReLU(inplace=True), Linear(5, 27, generator=generator(0, "w"))), Examples(contexts, symbols(4))
    )
    assert (contexts < 0).any()


def test_gradients_where_there_are_none_are_an_error_in_words(symbols, corpus):
    with torch.inference_mode(), pytest.raises(RuntimeError, match="trace: there are no gradients within"):
        trace(mlp(), Examples(symbols(4, 3), symbols(4)))
    for off in (torch.inference_mode(), torch.no_grad()):
        with off, pytest.raises(RuntimeError, match="descend: gradients are turned off"):
            train(mlp(), draws(corpus, 2), lr=0.1)


class Backfires(torch.autograd.Function):
    """The identity, with a gradient of nan."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


class Backfire(nn.Module):
    def forward(self, x):
        return Backfires.apply(x)


class RootWeight(nn.Module):
    """Its output is finite at weight 0, its weight's gradient is not."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return x + self.w.unsqueeze(-2).abs().sqrt()


@pytest.mark.parametrize("layer, parameters", [(Backfire(), 0), (RootWeight(), 1)])
def test_a_gradient_that_is_not_finite_stops_before_the_step_and_is_named_where_it_arose(layer, parameters, corpus):
    model = with_layer(layer)
    before = numbers(model)
    (batch,) = draws(corpus, 1)
    assert first_not_finite(model, batch) is None and first_not_finite_gradient(model, batch) == "4"
    assert first_not_finite_gradient(mlp(), batch) is None
    with pytest.raises(FloatingPointError, match=r"step 0: a gradient is nan or infinite, .* it arises in '4'\."):
        list(descend(model, draws(corpus, 3), lr=0.1))
    history = train(model, draws(corpus, 3), lr=0.1)
    assert history.ended == "diverged" and "arises in '4'" in history.diverged[0] and not len(history.loss.steps)
    assert equal(numbers(model), before)


def test_an_expanded_gradient_is_no_obstacle(corpus):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return x + self.w.sum()

    model = with_layer(Shift())
    assert train(model, draws(corpus, 3), lr=0.1).ended == "done" and model[4].w.any()


# train

MEMORY = """
import resource
from mmlib import data, ensemble, models, rng, train

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

corpus = data.corpus()
recipe = models.MLP(width=200, depth=1)
model = ensemble.stack([recipe.build(rng.generator(s, "weights")) for s in range(32)])
streams = [rng.generator(s, "batches") for s in range(32)]
train.train(model, data.minibatches(corpus.train, 32, 20, generator=streams), lr=0.1)
before = resident()
history = train.train(model, data.minibatches(corpus.train, 32, {steps}, generator=streams), lr=0.1)
print(resident() - before, history.loss.values.shape[0])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_the_memory_of_a_run_is_that_of_its_numbers():
    """1,000 steps took 80 MB when each step left a tensor; the bound is 40 MB for 5,000."""
    code = MEMORY.format(steps=1000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    megabytes, steps = map(float, done.stdout.split())
    assert steps == 1000 and megabytes < 30


def test_rates_of_changing_shape_are_recorded(corpus):
    rates = torch.tensor([0.1, 0.2])
    for lr in (drop(rates, 2, 0.01), drop(0.01, 2, rates)):
        history = train(stack([mlp(0), mlp(1)]), draws(corpus, 4, 2), lr=lr)
        expected = torch.stack([torch.as_tensor(lr(k)).expand(2) for k in range(4)])
        torch.testing.assert_close(history.lr.values, expected)


def test_a_schedule_that_changes_its_own_tensor_does_not_change_what_was_recorded(corpus):
    rate = torch.tensor(1.0)
    history = train(mlp(), draws(corpus, 3), lr=lambda index: rate.div_(2))
    assert history.lr.values.tolist() == [0.5, 0.25, 0.125]


def test_a_probe_that_changes_shape_fails_at_that_step_and_what_was_recorded_is_there(corpus):
    with pytest.raises(ValueError, match=r"probe: 'x': one shape .* got \(3,\) at step 2 after \(2,\)") as error:
        train(mlp(), draws(corpus, 9), lr=0.1, probe=lambda step: {"x": torch.zeros(2 + step.index // 2)})
    history = error.value.history
    assert history.loss.steps.tolist() == [0, 1, 2] and history.probes["x"].values.shape == (2, 2)


def test_any_error_leaves_the_history(corpus):
    def probe(step):
        return {"x": 1 / (3 - step.index)}

    with pytest.raises(ZeroDivisionError) as error:
        train(mlp(), draws(corpus, 9), lr=0.1, probe=probe)
    assert error.value.history.loss.steps.tolist() == [0, 1, 2, 3]
    assert error.value.history.probes["x"].steps.tolist() == [0, 1, 2]


def test_a_run_says_that_it_is_done(corpus):
    history = train(mlp(), draws(corpus, 3), lr=0.1)
    assert history.ended == "done" and history.diverged == {}


@pytest.mark.parametrize("how", ["signal", "raised"])
def test_an_interruption_ends_the_run_after_a_whole_step_with_its_history(how, corpus):
    model, same, handler = mlp(), mlp(), signal.getsignal(signal.SIGINT)

    def probe(step):
        if step.index == 4:
            if how == "raised":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)
        return {"x": float(step.index)}

    history = train(model, draws(corpus, 9), lr=0.1, probe=probe)
    assert history.ended == "interrupted" and history.loss.steps.tolist() == [0, 1, 2, 3, 4]
    assert history.probes["x"].steps.tolist() == [0, 1, 2, 3, 4][: 4 + (how == "signal")]
    assert signal.getsignal(signal.SIGINT) is handler
    train(same, draws(corpus, 5), lr=0.1)
    assert equal(numbers(model), numbers(same))


def test_a_second_interruption_does_not_wait_for_the_step(corpus):
    def probe(step):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    assert train(mlp(), draws(corpus, 9), lr=0.1, probe=probe).ended == "interrupted"


def test_a_run_that_diverges_ends_with_its_history(corpus):
    model = mlp(activation=RELU)
    history = train(model, draws(corpus, 50), lr=lambda index: 0.1 if index < 3 else 1e30)
    assert history.ended == "diverged" and len(history.loss.steps) == 4 and history.loss.values.isfinite().all()
    assert history.diverged[0].startswith("step 4: the loss is ") and all(
        p.isfinite().all() for p in model.parameters()
    )


def test_one_replica_that_diverges_stands_still_and_the_others_go_on_as_if_alone(corpus):
    models = [mlp(r, norm=BatchNorm1d, activation=RELU) for r in range(4)]
    stacked, rates = stack(models), torch.tensor([0.1, 0.1, 0.1, 0.1])
    kept = {}

    def probe(step):
        if step.index == 5:
            kept.update(numbers(stacked))
            with torch.no_grad():
                stacked.linear2.weight[2, 0, 0] = math.inf
        return {}

    history = train(stacked, draws(corpus, 30, 4), lr=rates, probe=probe)
    assert history.ended == "done" and list(history.diverged) == [2]
    assert history.diverged[2].startswith("step 6: the loss is nan; the first layer with such an output is 'linear2'")
    assert history.loss.values[:6].isfinite().all() and history.loss.values[6:, 2].isnan().all()
    assert history.loss.values[:, [0, 1, 3]].isfinite().all()
    parts = unstack(stacked)
    for r in (0, 1, 3):
        alone = train(models[r], minibatches(corpus.dev, 8, 30, generator=generator(r, "batches")), lr=0.1)
        torch.testing.assert_close(history.loss.values[:, r], alone.loss.values, rtol=1e-4, atol=1e-5)
        for name, x in numbers(models[r]).items():
            torch.testing.assert_close(parts[r].state_dict()[name], x, rtol=1e-3, atol=1e-4)
    for name, x in numbers(parts[2]).items():
        if name.startswith(("linear1", "output", "embedding")):
            assert torch.equal(x, kept[name][2])
        assert name != "norm1.num_batches_tracked" or x == 7


def test_when_all_replicas_have_diverged_the_run_ends(corpus):
    stacked = stack([mlp(r, activation=RELU) for r in range(2)])
    history = train(stacked, draws(corpus, 50, 2), lr=torch.tensor([1e30, 1e25]))
    assert history.ended == "diverged" and sorted(history.diverged) == [0, 1] and len(history.loss.steps) < 10


def test_a_sum_of_losses_that_overflows_is_no_divergence(corpus):
    def stacked():
        models = [mlp(r) for r in range(2)]
        for model in models:
            with torch.no_grad():
                model.output.bias.fill_(0).index_fill_(0, torch.arange(1, 27), 3e38)
        return stack(models)

    contexts, targets = torch.zeros(2, 1, 3, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)
    history = train(stacked(), [Examples(contexts, targets)] * 2, lr=0.1)
    assert history.ended == "done" and history.loss.values.isfinite().all() and history.loss.values.min() > 2e38


@pytest.mark.parametrize("lr", [math.nan, math.inf, "0.1", None, torch.tensor(math.nan)])
def test_a_rate_that_is_no_number_is_refused_before_the_step(lr, corpus):
    model = mlp()
    before = numbers(model)
    with pytest.raises(ValueError, match="lr: "):
        train(model, draws(corpus, 3), lr=lr)
    assert equal(numbers(model), before)


def test_a_model_without_anything_to_train_is_refused(corpus):
    with pytest.raises(ValueError, match="model: no parameter requires a gradient"):
        train(mlp().requires_grad_(False), draws(corpus, 3), lr=0.1)


def test_a_record_goes_on_and_joins_kinds_of_numbers():
    record = Recorder("x")
    for step in range(600):
        record.add(step, step)
    record.add(600, torch.tensor(0.5, dtype=torch.float64))
    again = Recorder("x", record.series())
    again.add(601, 2)
    assert again.series().values.dtype == torch.float64 and again.series().steps.tolist() == list(range(602))
    assert again.series().values[-3:].tolist() == [599, 0.5, 2] and len(record.series().steps) == 601


# stats


def test_a_layer_of_nan_does_not_look_healthy():
    h = randn(2, 4, 5)
    h[1, 2, 3] = math.nan
    share = stats.saturation(h, 0.5)
    assert share[1].isnan() and share[0] == (h[0].abs() > 0.5).double().mean()


@pytest.mark.parametrize("measure", [stats.rms, stats.saturation, stats.dead])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 5), (5,), ()])
def test_numbers_about_nothing_are_refused(measure, shape):
    with pytest.raises(ValueError, match=rf"{measure.__name__}: at least one row and one column are needed, got"):
        measure(torch.zeros(shape))


def test_an_interval_of_nan_is_refused_and_of_an_infinite_loss_is_none():
    values = torch.zeros(3, 4)
    values[1, 2] = math.inf
    mean, low, high = stats.interval(values)
    assert mean.tolist() == [0, 0, math.inf, 0] and low.isnan().tolist() == high.isnan().tolist() == [0, 0, 1, 0]
    values[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"values: numbers are needed, got nan at \[1, 2\]"):
        stats.interval(values)
    with pytest.raises(ValueError, match="values: at least two"):
        stats.interval(torch.tensor(1.0))


# The house


def test_pytest_runs_without_a_cache():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "tests/test_rng.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=ENVIRONMENT | {"PYTEST_ADDOPTS": ""})
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_saved_is_read_by_torch_without_code(corpus, tmp_path):
    model, g = mlp(), generator(0, "batches")
    history = train(model, minibatches(corpus.dev, 8, 3, generator=g), lr=0.1)
    checkpoint.save(tmp_path / "run", model, history, generator=g)
    assert torch.load(tmp_path / "run", weights_only=True)["ended"] == "done"


def test_a_nonlinearity_is_a_layer_of_the_stack():
    assert isinstance(stack([mlp(0), mlp(1)]).act1, Nonlinearity)
