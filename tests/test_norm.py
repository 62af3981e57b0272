import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_run import StdBatchNorm, UnbiasedBatchNorm
from torch import nn

from mmlib.data import Examples
from mmlib.ensemble import stack, unstack
from mmlib.layers import Linear
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d, GroupNorm, LayerNorm, Norm, RMSNorm, calibrate, fold, moments, standardize
from mmlib.rng import generator
from mmlib.train import evaluate, train
from tests.small import draws, equal, mlp, numbers
from tests.small import randn as normal


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed, "test"), dtype=dtype)


PAIRS = {
    "BatchNorm1d": (lambda f, **k: BatchNorm1d(f, **k), lambda f, **k: nn.BatchNorm1d(f, **k)),
    "LayerNorm": (lambda f, **k: LayerNorm(f, **k), lambda f, **k: nn.LayerNorm(f, **k)),
    "GroupNorm": (lambda f, **k: GroupNorm(2, f, **k), lambda f, **k: nn.GroupNorm(2, f, **k)),
    "RMSNorm": (lambda f, **k: RMSNorm(f, **k), lambda f, **k: nn.RMSNorm(f, **k)),
}


def twins(ours, reference, seed=0):
    """The two layers in float64 with the same random parameters."""
    ours, reference = ours.double(), reference.double()
    state = {
        name: value if name == "num_batches_tracked" else randn(*value.shape, seed=seed + i).abs() + 0.1
        for i, (name, value) in enumerate(reference.state_dict().items())
    }
    ours.load_state_dict(state)
    reference.load_state_dict(state)
    return ours, reference


def assert_agree(ours, reference, x, cotangent, atol=1e-12):
    """Output, input gradient, parameter gradients and buffers, for one call of each."""
    results = []
    for layer in (ours, reference):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        parameters = dict(layer.named_parameters())
        grads = torch.autograd.grad(y, [leaf, *parameters.values()], cotangent)
        results.append({"output": y, "input": grads[0], **dict(zip(parameters, grads[1:], strict=True))})
        results[-1] |= {f"buffer {name}": b.clone() for name, b in layer.named_buffers()}
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-10, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", PAIRS)
def test_agrees_with_torch_over_steps_and_then_in_evaluation(kind):
    make, reference = PAIRS[kind]
    ours, theirs = twins(make(6, eps=1e-5), reference(6, eps=1e-5))
    for step in range(4):
        assert_agree(ours, theirs, 3 * randn(8, 6, seed=step) + 2, randn(8, 6, seed=50 + step))
    ours.eval(), theirs.eval()
    for step in range(2):
        assert_agree(ours, theirs, randn(8, 6, seed=step), randn(8, 6, seed=70 + step))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    kind=st.sampled_from(sorted(PAIRS)),
    batch=st.integers(2, 9),
    half=st.integers(1, 8),
    eps=st.floats(1e-8, 1.0),
    momentum=st.floats(0, 1),
    scale=st.floats(1e-2, 1e2),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_torch_for_any_shape_eps_and_momentum(kind, batch, half, eps, momentum, scale, training, seed):
    options = {"eps": eps, "momentum": momentum} if kind == "BatchNorm1d" else {"eps": eps}
    make, reference = PAIRS[kind]
    ours, theirs = twins(make(2 * half, **options), reference(2 * half, **options), seed)
    ours.train(training), theirs.train(training)
    # rows whose variance is far below eps divide by sqrt(eps): the error grows with the gradient
    x, cotangent = scale * randn(batch, 2 * half, seed=seed + 1), randn(batch, 2 * half, seed=seed + 2)
    assert_agree(ours, theirs, x, cotangent, atol=1e-9)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(groups=st.integers(1, 6), per_group=st.integers(2, 5), batch=st.integers(1, 5), seed=st.integers(0, 1000))
def test_group_norm_agrees_with_torch_for_any_groups(groups, per_group, batch, seed):
    features = groups * per_group
    ours, theirs = twins(GroupNorm(groups, features), nn.GroupNorm(groups, features), seed)
    x, cotangent = randn(batch, features, seed=seed + 1), randn(batch, features, seed=seed + 2)
    assert_agree(ours, theirs, x, cotangent, atol=1e-9)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_batch_norm_in_training_is_scale_and_shift_of_standardize(leading):
    norm = BatchNorm1d(5).double()
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = randn(*leading, 5, seed=len(name))
        setattr(norm, name, nn.Parameter(values) if name in norm._parameters else values)
    x, cotangent = 3 * randn(*leading, 7, 5) + 2, randn(*leading, 7, 5, seed=1)
    mean, var = moments(x, -2)
    expected = {
        "running_mean": torch.lerp(norm.running_mean, mean.squeeze(-2), 0.1),
        "running_var": torch.lerp(norm.running_var, 7 / 6 * var.squeeze(-2), 0.1),
    }

    def by_definition(x):
        return norm.weight.unsqueeze(-2) * standardize(x, *moments(x, -2), norm.eps) + norm.bias.unsqueeze(-2)

    x.requires_grad_()
    outputs = [by_definition(x), norm(x)]
    grads = [torch.autograd.grad(y, [x, norm.weight, norm.bias], cotangent) for y in outputs]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close({name: getattr(norm, name) for name in expected}, expected, rtol=1e-10, atol=1e-12)


def test_one_group_is_layer_norm():
    x = randn(5, 6)
    torch.testing.assert_close(GroupNorm(1, 6).double()(x), LayerNorm(6).double()(x))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_large_mean_in_float32_loses_nothing_but_digits(kind):
    make, reference = PAIRS[kind]
    x = 1e4 + randn(64, 64, dtype=torch.float32)
    exact = reference(64).double()(x.double())
    spacing = 2**-10  # of float32 numbers near 1e4: the mean cannot be known better than to half of it
    # Torch's kernel for batches sums up the mean in float32, and takes x w / s - mean w / s, two such numbers.
    spacings = 4 if kind == "BatchNorm1d" else 2
    torch.testing.assert_close(make(64)(x).double(), exact, rtol=0, atol=spacings * spacing)


def test_batch_norm_in_float32_is_that_of_torch_to_the_last_bit():
    ours, theirs, x = BatchNorm1d(64), nn.BatchNorm1d(64), 1e4 + randn(32, 64, dtype=torch.float32)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(b, theirs.state_dict()[name]) for name, b in ours.state_dict().items())


def test_batch_of_two_agrees():
    ours, theirs = twins(BatchNorm1d(3), nn.BatchNorm1d(3))
    assert_agree(ours, theirs, randn(2, 3), randn(2, 3, seed=9))


def test_batch_of_one_is_an_error_in_words_in_training_and_fine_in_evaluation():
    norm = BatchNorm1d(3)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(ValueError, match=r"batch of at least 2 .* got 1; use evaluation mode"):
        norm(torch.randn(1, 3, generator=generator(0, "x")))
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
    assert norm.eval()(torch.zeros(1, 3)).shape == (1, 3)


def test_running_statistics_take_the_unbiased_variance_and_keep_no_graph():
    norm, x = BatchNorm1d(3, momentum=1.0), randn(4, 3, dtype=torch.float32)
    norm(x.requires_grad_())
    torch.testing.assert_close(norm.running_mean, x.detach().mean(0))
    torch.testing.assert_close(norm.running_var, x.detach().var(0, unbiased=True))
    assert not norm.running_mean.requires_grad and not norm.running_var.requires_grad
    assert norm.num_batches_tracked == 1


def test_a_frozen_layer_stays_frozen():
    norm = BatchNorm1d(3).eval().requires_grad_(False)
    before = copy.deepcopy(norm.state_dict())
    with torch.enable_grad():
        norm(randn(8, 3, dtype=torch.float32))
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_the_mode_is_the_module_s_not_the_gradient_flag_s():
    norm, x = BatchNorm1d(3), 5 + randn(8, 3, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(norm(x).mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("kind", PAIRS)
def test_stacked_equals_each_alone(kind):
    make, _ = PAIRS[kind]
    models = [nn.Sequential(make(6)).double() for _ in range(3)]
    for r, model in enumerate(models):
        model[0].load_state_dict({k: v + 0.1 * r for k, v in model[0].state_dict().items()})
    ensemble = stack(models)
    x, cotangent = randn(3, 5, 6).requires_grad_(), randn(3, 5, 6, seed=1)
    (grad,) = torch.autograd.grad(ensemble(x), x, cotangent)
    for r, (model, back) in enumerate(zip(models, unstack(ensemble), strict=True)):
        leaf = x[r].detach().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(model(leaf), leaf, cotangent[r])[0], grad[r])
        for name, value in model.state_dict().items():
            torch.testing.assert_close(back.state_dict()[name], value)


@pytest.mark.parametrize("kind", PAIRS)
def test_shapes_and_types_that_do_not_fit_are_named(kind):
    layer = PAIRS[kind][0](6)
    with pytest.raises(ValueError, match=r"\(4, 5\) does not fit weight \(6,\)"):
        layer(torch.zeros(4, 5))
    for shape in ((4, 7), (6,)):
        with pytest.raises(ValueError, match=rf"^{kind}: input {re.escape(str(shape))} does not fit weight \(6,\)$"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"floating-point tensor is needed, got torch.int64"):
        layer(torch.zeros(4, 6, dtype=torch.long))


@pytest.mark.parametrize("kind", PAIRS)
def test_an_input_for_another_number_of_replicas_is_named(kind):
    stacked = stack([nn.Sequential(PAIRS[kind][0](6)) for _ in range(3)])
    for shape in ((2, 4, 6), (4, 4, 6), (4, 6), (6,)):
        with pytest.raises(ValueError, match=rf"^{kind}: input {re.escape(str(shape))} does not fit weight \(3, 6\)$"):
            stacked(torch.zeros(shape))


@pytest.mark.parametrize("kind", ["LayerNorm", "GroupNorm", "RMSNorm"])
def test_norms_of_rows_take_any_leading_axes_and_any_number_of_features(kind):
    layer, x = PAIRS[kind][0](300).double(), randn(2, 3, 4, 300)
    torch.testing.assert_close(layer(x), torch.stack([torch.stack([layer(b) for b in a]) for a in x]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", PAIRS)
def test_weights_in_float32_take_half_precision_and_give_it_back(kind, dtype):
    layer, x = PAIRS[kind][0](6), randn(5, 6).to(dtype)
    assert layer(x).dtype == layer.eval()(x).dtype == dtype
    narrow, other = layer.to(dtype), torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(ValueError, match=rf"^{kind}: input of {other} does not fit weights of {dtype}$"):
        narrow(x.to(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_one_s_own_gives_half_precision_back(dtype):
    layer, x = UnbiasedBatchNorm(6).to(dtype), randn(5, 6).to(dtype)
    assert layer(x).dtype == layer.eval()(x).dtype == dtype


def test_statistics_that_a_norm_of_one_s_own_tracks_keep_no_graph():
    layer = UnbiasedBatchNorm(6)
    layer(randn(5, 6, dtype=torch.float32).requires_grad_())
    assert not layer.running_mean.requires_grad and not layer.running_var.requires_grad


def test_stacked_statistics_that_are_no_single_block_of_memory_move_too():
    models = [nn.Sequential(BatchNorm1d(2)) for _ in range(3)]
    stacked, x = stack(models)[0], randn(3, 5, 2, dtype=torch.float32)
    for name in ("running_mean", "running_var"):
        setattr(stacked, name, getattr(stacked, name).t().contiguous().t())
        assert not getattr(stacked, name).is_contiguous()
    stacked(x)
    for r, model in enumerate(models):
        model(x[r])
        torch.testing.assert_close(stacked.running_mean[r], model[0].running_mean)
        torch.testing.assert_close(stacked.running_var[r], model[0].running_var)


def test_a_stacked_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="a batch of at least 2 is needed to have a variance, got 1"):
        stack([nn.Sequential(BatchNorm1d(2)) for _ in range(3)])(torch.zeros(3, 1, 2))


@pytest.mark.parametrize("make", [Norm, BatchNorm1d, LayerNorm, RMSNorm, lambda f, eps: GroupNorm(1, f, eps)])
def test_eps_is_given_by_name(make):
    with pytest.raises(TypeError, match="positional argument"):
        make(3, 1e-5)


def test_batch_norm_refuses_leading_axes_it_has_no_statistics_for():
    with pytest.raises(ValueError, match=r"\(2, 4, 6\) does not fit weight \(6,\)"):
        BatchNorm1d(6)(torch.zeros(2, 4, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchNorm1d(3, eps=0.0), "eps: a positive number is needed, got 0.0"),
        (lambda: LayerNorm(3, eps=-1.0), "eps: a positive number is needed, got -1.0"),
        (lambda: LayerNorm(3, eps=float("inf")), "eps: a positive number is needed, got inf"),
        (lambda: RMSNorm(3, eps=float("nan")), "eps: a positive number is needed, got nan"),
        (lambda: BatchNorm1d(3, momentum=1.5), "momentum: a number from 0 to 1 is needed, got 1.5"),
        (lambda: BatchNorm1d(3, momentum=-0.1), "momentum: a number from 0 to 1 is needed, got -0.1"),
        (lambda: GroupNorm(4, 6), "groups: a divisor of features = 6 is needed, got 4"),
        (lambda: GroupNorm(0, 6), "groups: a divisor of features = 6 is needed, got 0"),
        (lambda: LayerNorm(0), "features: at least 1 is needed, got 0"),
    ],
)
def test_values_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_norm_says_what_it_is_and_starts_as_the_standardisation_alone():
    assert repr(BatchNorm1d(6)) == "BatchNorm1d(6, eps=1e-05, momentum=0.1)"
    assert repr(GroupNorm(2, 6, eps=0.5)) == "GroupNorm(2, 6, eps=0.5)"
    assert repr(LayerNorm(1)) == "LayerNorm(1, eps=1e-05)" and repr(RMSNorm(6)) == "RMSNorm(6, eps=1e-05)"
    assert repr(stack([nn.Sequential(LayerNorm(6))] * 2)[0]) == "LayerNorm(6, eps=1e-05)"
    for make, reference in PAIRS.values():
        ours, theirs = make(6).state_dict(), reference(6).state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_standardize_gives_zero_mean_and_unit_variance():
    x = 3 + 2 * randn(50, 4)
    y = standardize(x, *moments(x, -2), 1e-12)
    torch.testing.assert_close(y.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.square().mean(0), torch.ones(4, dtype=torch.float64))


def examples(n=40):
    g = generator(3, "examples")
    return Examples(torch.randint(27, (n, 3), generator=g), torch.randint(27, (n,), generator=g))


def test_calibrate_sets_whole_data_statistics_layer_by_layer():
    model = MLP(depth=2, width=8, norm=BatchNorm1d).build(generator(0, "weights")).double().train()
    data = examples()
    calibrate(model, data)
    assert all(m.training for m in model.modules())
    model.eval()
    x = data.contexts
    for name, layer in model.named_children():
        if name.startswith("norm"):
            torch.testing.assert_close(layer.running_mean, x.mean(0))
            torch.testing.assert_close(layer.running_var, x.var(0))
            assert layer.num_batches_tracked == 0
        x = layer(x)


def test_calibrate_on_stacked_models_equals_each_alone():
    models = [MLP(depth=2, width=8, norm=BatchNorm1d).build(generator(r, "weights")).double() for r in range(3)]
    ensemble, data = stack(models), examples()
    calibrate(ensemble, Examples(*(x.expand(3, *x.shape) for x in data)))
    for model, back in zip(models, unstack(ensemble), strict=True):
        calibrate(model, data)
        torch.testing.assert_close(back.norm2.running_var, model.norm2.running_var)
    torch.testing.assert_close(evaluate(ensemble, data), torch.tensor([evaluate(m, data) for m in models]).double())


def test_calibrate_reaches_layers_after_and_within_a_sequence():
    inner = nn.Sequential(BatchNorm1d(2), nn.Tanh())
    model = nn.Sequential(inner, Linear(2, 3, generator=generator(0, "weights")), BatchNorm1d(3))
    x = randn(2, 2, dtype=torch.float32)  # two examples are enough
    calibrate(model, Examples(x, torch.zeros(2, dtype=torch.long)))
    model.eval()
    torch.testing.assert_close(inner[0].running_var, x.var(0))
    torch.testing.assert_close(model[2].running_var, model[1](inner(x)).var(0))


def test_calibrate_refuses_statistics_that_are_not_finite():
    model = nn.Sequential(BatchNorm1d(1))
    for x in ([[3e38], [-3e38]], [[float("nan")], [1.0]]):  # a mean of 0 with an infinite variance; neither
        with pytest.raises(ValueError, match="what 0 is given has a mean or variance that is not finite"):
            calibrate(model, Examples(torch.tensor(x), torch.zeros(2, dtype=torch.long)))
    assert (model[0].running_mean, model[0].running_var) == (torch.zeros(1), torch.ones(1))


def test_calibrate_refuses_a_single_example():
    with pytest.raises(ValueError, match="at least two examples are needed for a variance, got 1"):
        calibrate(MLP(norm=BatchNorm1d).build(generator(0, "weights")), examples(1))


@pytest.mark.parametrize("bias", [True, False])
def test_fold_equals_linear_then_norm_in_evaluation(bias):
    linear = Linear(5, 4, bias=bias, generator=generator(0, "weights")).double()
    norm, _ = twins(BatchNorm1d(4), nn.BatchNorm1d(4))
    before = copy.deepcopy((linear.state_dict(), norm.state_dict()))
    norm.eps = 0.3
    x = randn(7, 5)
    torch.testing.assert_close(fold(linear, norm)(x), norm.eval()(linear(x)), rtol=1e-12, atol=1e-12)
    for state, layer in zip(before, (linear, norm), strict=True):
        assert all(torch.equal(state[k], v) for k, v in layer.state_dict().items())


def test_fold_of_stacked_layers_is_that_of_each():
    pairs = [nn.Sequential(Linear(5, 4, generator=generator(r, "weights")), BatchNorm1d(4)) for r in range(4)]
    for r, (_, norm) in enumerate(pairs):
        norm.running_mean.copy_(randn(4, seed=r))
        norm.running_var.copy_(randn(4, seed=9 + r).square())
    linear, norm = stack(pairs)
    x = randn(4, 7, 5, dtype=torch.float32)
    torch.testing.assert_close(fold(linear, norm)(x), torch.stack([fold(*p)(x[r]) for r, p in enumerate(pairs)]))
    with pytest.raises(ValueError, match=r"weight \(4, 5\) does not fit \(4, 4\)"):
        fold(pairs[0][0], norm)


def test_fold_takes_a_norm_without_a_shift():
    linear, norm = Linear(5, 4, generator=generator(0, "weights")), BatchNorm1d(4).eval()
    norm.bias = None
    x = randn(7, 5, dtype=torch.float32)
    torch.testing.assert_close(fold(linear, norm)(x), norm(linear(x)))


def test_fold_refuses_what_does_not_fit():
    linear = Linear(5, 4, generator=generator(0, "weights"))
    with pytest.raises(ValueError, match=r"weight \(4, 5\) does not fit \(3,\)"):
        fold(linear, BatchNorm1d(3))
    with pytest.raises(TypeError, match="a Linear and a BatchNorm1d are needed"):
        fold(linear, LayerNorm(4))


# Edges


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
        name: x if not x.dim() else 0.5 + normal(*x.shape, seed=k).abs().to(dtype)
        for k, (name, x) in enumerate(theirs.state_dict().items())
    }
    ours.load_state_dict(state), theirs.load_state_dict(state)
    x = (mean + std * normal(8, 64)).to(dtype)
    y, expected = ours(x), theirs(x)
    assert y.dtype == dtype and float(y.detach().float().square().mean()) > 0.1
    torch.testing.assert_close(y, expected, rtol=float(torch.finfo(dtype).eps), atol=1e-6)
    for b, c in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=float(torch.finfo(dtype).eps), atol=1e-6)


def test_moments_in_half_precision_are_float32():
    x = (300 + normal(64, 8)).half()
    mean, var = moments(x, -2)
    assert mean.dtype == var.dtype == standardize(x, mean, var, 1e-5).dtype == torch.float32
    torch.testing.assert_close(var, x.double().var(0, unbiased=False, keepdim=True).float())
    with pytest.raises(ValueError, match=r"moments: no mean along the empty axis -2 of \(0, 8\)"):
        moments(x[:0], -2)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("x", "weights"),
    [
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
        (torch.float16, torch.float64),
    ],
)
def test_inputs_of_another_precision_than_the_weights_are_refused(kind, x, weights):
    layer = PAIRS[kind][0](4).to(weights)
    for mode in (layer.train(), layer.eval()):
        with pytest.raises(ValueError, match=rf"^{kind}: input of {x} does not fit weights of {weights}$"):
            mode(torch.ones(2, 4, dtype=x))


@pytest.mark.parametrize("momentum", [None, "0.1", math.nan, -0.1])
def test_a_momentum_that_is_no_share_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum: a number from 0 to 1 is needed, got"):
        BatchNorm1d(3, momentum=momentum)


@pytest.mark.parametrize("layout", ["transposed", "assigned", "strided"])
def test_running_statistics_move_in_any_layout(layout):
    ensemble, x = stack([nn.Sequential(BatchNorm1d(6)) for _ in range(3)]), normal(3, 8, 6)
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
    "build", [Torch, lambda: nn.Sequential(*mlp()[:3], StdBatchNorm(8))], ids=["torch", "StdBatchNorm"]
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
