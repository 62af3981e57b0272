import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init

from mmlib import rng
from mmlib.activations import IDENTITY, RELU, TANH
from mmlib.data import Examples
from mmlib.ensemble import stack
from mmlib.layers import Embedding, Flatten, Linear, Maxout, Nonlinearity
from mmlib.models import MLP
from mmlib.rng import generator
from mmlib.trace import first_not_finite, first_not_finite_gradient, layer_outputs, trace, undisturbed
from mmlib.train import descend, train
from tests.small import draws, equal, mlp, numbers, randn

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def weights(seed=0):
    return rng.generator(seed, "weights")


def plain():
    return MLP(width=8, depth=2).build(weights())


def with_torch_layers():
    """Batch statistics and dropout inside: buffers that move, and a forward pass that draws."""
    g = weights()
    return nn.Sequential(
        Embedding(27, 4, generator=g),
        Flatten(),
        nn.Sequential(Linear(12, 8, generator=g), nn.BatchNorm1d(8)),
        nn.Dropout(0.4),
        Nonlinearity(TANH),
        Linear(8, 27, generator=g),
    )


def with_maxout():
    g = weights()
    return nn.Sequential(
        *(Embedding(27, 4, generator=g), Flatten(), Maxout(12, 6, 2, generator=g), Nonlinearity(IDENTITY)),
        *(nn.ReLU(), Linear(6, 27, generator=g)),
    )


MODELS = [plain, with_torch_layers, with_maxout]
every_model = pytest.mark.parametrize("build", MODELS)


@pytest.fixture
def batch(symbols):
    return Examples(symbols(16, 3), symbols(16))


def by_retain_grad(model, batch):
    """The same numbers from backward() on a copy that keeps every gradient, with the same random state."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng():
        outputs, x = {}, batch.contexts
        for name, layer in model.named_children():
            x = outputs[name] = layer(x)
            x.retain_grad()
        loss = F.cross_entropy(x, batch.targets)
        loss.backward()
    return model, loss, outputs


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_every_gradient_is_that_of_retain_grad(build, training, batch):
    model = build().double().train(training)
    got = trace(model, batch)
    reference, loss, outputs = by_retain_grad(model, batch)
    assert list(got.outputs) == list(got.output_grads) == list(outputs)
    assert list(got.parameters) == list(got.parameter_grads) == [name for name, _ in reference.named_parameters()]
    torch.testing.assert_close(got.loss, loss.detach(), rtol=1e-14, atol=0)
    for name, x in outputs.items():
        torch.testing.assert_close(got.outputs[name], x.detach(), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(got.output_grads[name], x.grad, rtol=1e-13, atol=1e-15)
    for name, p in reference.named_parameters():
        assert torch.equal(got.parameters[name], p)
        torch.testing.assert_close(got.parameter_grads[name], p.grad, rtol=1e-13, atol=1e-15)
        assert got.parameter_grads[name].any()


def test_a_trace_of_stacked_models_is_that_of_each(symbols):
    models = [MLP(width=8, depth=2).build(weights(r)).double() for r in range(3)]
    batch = Examples(symbols(3, 16, 3), symbols(3, 16))
    together = trace(stack(models), batch)
    assert together.loss.shape == (3,)
    for r, model in enumerate(models):
        alone = trace(model, Examples(batch.contexts[r], batch.targets[r]))
        for a, b in zip(together, alone, strict=True):
            a, b = (x if isinstance(x, dict) else {"loss": x} for x in (a, b))
            for name in b:
                torch.testing.assert_close(a[name][r], b[name], rtol=1e-11, atol=1e-13)


def test_nothing_in_a_trace_carries_a_graph(batch):
    got = trace(plain(), batch)
    for part in got[1:]:
        assert not any(x.requires_grad for x in part.values())
    assert not got.loss.requires_grad


def state(model):
    """Everything that a pass could leave behind."""
    return (
        {k: v.detach().clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_unchanged(model, before):
    torch.testing.assert_close(state(model), before, rtol=0, atol=0, equal_nan=True)


LOOKS = {"trace": trace, "first_not_finite": first_not_finite}


@every_model
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("with_grads", [True, False])
def test_looking_leaves_nothing_behind(build, look, with_grads, batch):
    model = build()
    model[3].eval()
    if with_grads:
        for p in model.parameters():
            p.grad = torch.full_like(p, 7)
    before, ids = state(model), [id(b) for b in model.buffers()] + [id(p.grad) for p in model.parameters()]
    look(model, batch)
    assert_unchanged(model, before)
    assert [id(b) for b in model.buffers()] + [id(p.grad) for p in model.parameters()] == ids
    assert not batch.contexts.requires_grad


def test_a_trace_under_no_grad_is_the_same(batch):
    model = plain()
    with torch.no_grad():
        inside = trace(model, batch)
        assert not torch.is_grad_enabled()
    for a, b in zip(inside.parameter_grads.values(), trace(model, batch).parameter_grads.values(), strict=True):
        assert torch.equal(a, b)


def test_a_frozen_parameter_is_left_out_and_its_output_still_has_a_gradient(batch):
    model = plain()
    whole = trace(model, batch)
    model.embedding.weight.requires_grad_(False)
    part = trace(model, batch)
    assert "embedding.weight" not in part.parameters and not model.embedding.weight.requires_grad
    assert torch.equal(part.output_grads["embedding"], whole.output_grads["embedding"])


def test_inputs_handed_on_unchanged_are_not_marked(normal, symbols):
    contexts = normal(6, 4).float()
    trace(nn.Sequential(nn.Identity(), Linear(4, 27, generator=weights())), Examples(contexts, symbols(6)))
    assert not contexts.requires_grad


def test_a_parameter_without_a_part_in_the_loss_has_gradient_zero(batch):
    model = plain()
    model.act1.unused = nn.Parameter(torch.ones(2))
    assert trace(model, batch).parameter_grads["act1.unused"].tolist() == [0, 0]


def test_a_saturated_unit_passes_no_gradient_to_its_weights(batch):
    model = plain()
    with torch.no_grad():
        model.linear1.bias[3] = 50
    got = trace(model, batch)
    assert bool((got.outputs["act1"][:, 3] == 1).all()) and not got.parameter_grads["linear1.weight"][3].any()
    assert got.parameter_grads["linear1.weight"][2].any()


def test_a_batch_that_does_not_fit_is_refused(batch):
    model = with_torch_layers()
    before = state(model)
    with pytest.raises(ValueError, match="batch: a single model needs contexts"):
        trace(model, Examples(batch.contexts[None], batch.targets[None]))
    with pytest.raises(ValueError, match="cross_entropy: target symbol 27 at position"):
        trace(model, Examples(batch.contexts, batch.targets.where(batch.targets > 20, 27)))
    assert_unchanged(model, before)


def test_a_layer_used_twice_is_refused(batch):
    act = Nonlinearity(RELU)
    g = weights()
    model = nn.Sequential(Embedding(27, 4, generator=g), act, Flatten(), act, Linear(12, 27, generator=g))
    with pytest.raises(ValueError, match="model: '1' and '3' are the same layer object"):
        trace(model, batch)


def test_what_is_no_chain_is_refused(batch):
    with pytest.raises(TypeError, match=r"model: an nn.Sequential is needed .*, got Identity"):
        trace(nn.Identity(), batch)


def test_fold_gives_each_output_by_name(batch):
    model = plain()
    for name, x in layer_outputs(model, batch.contexts):
        last = name, x
    assert last[0] == "output" and torch.equal(last[1], model(batch.contexts))


# The first layer that is not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "parameter, layer", [("embedding.weight", "embedding"), ("linear2.bias", "linear2"), ("output.bias", "output")]
)
def test_the_first_layer_with_a_nan_or_an_infinity_is_named(value, parameter, layer, batch):
    model = plain()
    assert first_not_finite(model, batch) is None
    with torch.no_grad():
        model.get_parameter(parameter)[...] = value
    assert first_not_finite(model, batch) == layer


# undisturbed


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("raises", [False, True])
def test_within_undisturbed_anything_may_run(raises, batch):
    model = with_torch_layers()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    model[2][1].eval()
    before = state(model)
    try:
        with undisturbed(model) as same:
            assert same is model
            torch.manual_seed(5)
            model.train()
            F.cross_entropy(model(batch.contexts), batch.targets).backward()
            model.eval()
            model(batch.contexts)
            model.zero_grad(set_to_none=True)
            model[2][1].running_mean = torch.full((8,), 3.0)
            torch.randn(3)
            if raises:
                raise Interrupted
    except Interrupted:
        assert raises
    else:
        assert not raises
    assert_unchanged(model, before)


def test_buffers_do_move_without_it(batch):
    model = with_torch_layers()
    before = model[2][1].running_mean.clone()
    with torch.random.fork_rng():
        model(batch.contexts)
    assert not torch.equal(model[2][1].running_mean, before)


def test_undisturbed_keeps_the_buffers_of_torch_norms_exactly(normal):
    norm = skip_init(nn.BatchNorm1d, 4, dtype=torch.float64)
    norm.reset_parameters()
    norm(normal(8, 4))
    before = state(norm)
    with undisturbed(norm):
        norm(normal(8, 4))
    assert_unchanged(norm, before)
    assert int(norm.num_batches_tracked) == 1


# Edges


class Chained(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def with_layer(layer, r=0, at=4):
    layers = list(mlp(r))
    return nn.Sequential(*layers[:at], layer, *layers[at:])


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
