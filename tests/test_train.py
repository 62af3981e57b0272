import copy
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmlib
from mmlib import rng
from mmlib import train as train_module
from mmlib.activations import RELU
from mmlib.data import Examples, minibatches
from mmlib.ensemble import stack, unstack
from mmlib.history import Recorder
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d
from mmlib.rng import generator
from mmlib.stats import update_ratios
from mmlib.train import constant, descend, drop, evaluate, train
from tests.small import draws, equal, numbers
from tests.small import mlp as small

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def mlp(seed=0, **recipe):
    return MLP(**{"width": 8, "depth": 2} | recipe).build(rng.generator(seed, "weights")).double()


def batches(corpus, steps, seeds=0, size=8):
    streams = (
        [rng.generator(s, "batches") for s in seeds] if isinstance(seeds, range) else rng.generator(seeds, "batches")
    )
    return minibatches(corpus.dev, size, steps, generator=streams)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# A step


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d], ids=["plain", "BatchNorm1d"])
def test_steps_are_those_of_torch_sgd(norm, corpus):
    model = mlp(norm=norm)
    reference = copy.deepcopy(model)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.3)
    for step, batch in zip(descend(model, batches(corpus, 5), lr=0.3), batches(corpus, 5), strict=True):
        optimiser.zero_grad()
        loss = F.cross_entropy(reference(batch.contexts), batch.targets)
        loss.backward()
        optimiser.step()
        assert torch.equal(step.loss, loss.detach()) and step.loss.shape == ()
        assert equal(step.grads, {name: p.grad for name, p in reference.named_parameters()})
        assert equal(parameters(model), parameters(reference))
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_step_says_what_was_done(corpus):
    model = mlp()
    before = parameters(model)
    for index, step in enumerate(descend(model, batches(corpus, 3), lr=lambda index: 0.1 * (index + 1))):
        assert step.index == index and step.lr == pytest.approx(0.1 * (index + 1))
        for name, p in model.named_parameters():
            assert step.parameters[name] is p
            torch.testing.assert_close(p.detach(), before[name] - step.lr * step.grads[name], rtol=1e-15, atol=1e-16)
        assert not step.loss.requires_grad and not any(g.requires_grad for g in step.grads.values())
        before = parameters(model)


def test_no_step_is_taken_before_it_is_asked_for(corpus):
    model = mlp()
    before = parameters(model)
    steps = descend(model, batches(corpus, 3), lr=0.1)
    assert equal(parameters(model), before)
    next(steps)
    first = parameters(model)
    assert not equal(first, before)
    next(steps)
    assert not equal(parameters(model), first)


def test_no_gradient_is_left_on_the_model_and_none_is_read(corpus):
    model, other = mlp(), mlp()
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e9)
    train(model, batches(corpus, 2), lr=0.1)
    train(other, batches(corpus, 2), lr=0.1)
    assert equal(parameters(model), parameters(other))
    assert all(p.grad is None for p in other.parameters()) and all(
        bool((p.grad == 1e9).all()) for p in model.parameters()
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_trained_in_the_mode_it_is_in(training, corpus):
    model = mlp(norm=nn.BatchNorm1d).train(training)
    train(model, batches(corpus, 2), lr=0.1)
    assert all(m.training is training for m in model.modules())
    assert model.norm1.running_mean.any().item() is training


def test_a_frozen_parameter_stays_as_it_is(corpus):
    model = mlp()
    model.linear1.weight.requires_grad_(False)
    before = parameters(model)
    history = train(model, batches(corpus, 3), lr=0.1, probe=lambda step: {"n": float(len(step.parameters))})
    changed = {name for name, p in parameters(model).items() if not torch.equal(p, before[name])}
    assert changed == before.keys() - {"linear1.weight"} and history.probes["n"].values.tolist() == [6, 6, 6]


def test_training_lowers_the_loss(corpus):
    model = mlp(width=30)
    start = evaluate(model, corpus.dev)
    train(model, batches(corpus, 300, size=32), lr=0.5)
    assert start == pytest.approx(math.log(27), abs=0.02) and evaluate(model, corpus.dev) < 2.8


# Learning rates


def test_schedules():
    assert [constant(0.3)(k) for k in (0, 5)] == [0.3, 0.3]
    assert [drop(0.1, 2, 0.01)(k) for k in range(4)] == [0.1, 0.1, 0.01, 0.01]


def test_a_schedule_is_asked_for_every_step_and_recorded(corpus):
    model, same = mlp(), mlp()
    history = train(model, batches(corpus, 4), lr=drop(0.5, 2, 0.25))
    assert history.lr.values.tolist() == [0.5, 0.5, 0.25, 0.25] and history.lr.steps.tolist() == [0, 1, 2, 3]
    source = list(batches(corpus, 4))
    train(same, source[:2], lr=0.5)
    train(same, source[2:], lr=0.25)
    assert equal(parameters(model), parameters(same))


def test_a_rate_as_a_tensor_is_the_same_rate(corpus):
    model, same = mlp(), mlp()
    train(model, batches(corpus, 5), lr=0.25)
    train(same, batches(corpus, 5), lr=torch.tensor(0.25))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, same.get_parameter(name), rtol=1e-14, atol=1e-15)


def test_every_replica_may_have_its_own_rate(corpus):
    rates = torch.tensor([0.5, 0.125, 0.0], dtype=torch.float64)
    models = [mlp(r) for r in range(3)]
    stacked = stack(models)
    history = train(
        stacked, batches(corpus, 20, range(3)), lr=drop(rates, 10, rates / 2), probe=update_ratios, every=10
    )
    assert history.lr.values.shape == (20, 3) and history.lr.values[-1].tolist() == [0.25, 0.0625, 0]
    for r, (model, part) in enumerate(zip(models, unstack(stacked), strict=True)):
        rate = float(rates[r])
        train(model, batches(corpus, 20, r), lr=drop(rate, 10, rate / 2))
        for name, p in model.named_parameters():
            torch.testing.assert_close(part.get_parameter(name), p, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shape", [(2,), (1,), (3, 1)])
def test_rates_for_another_number_of_replicas_are_refused(shape, corpus):
    stacked = stack([mlp(r) for r in range(3)])
    before = parameters(stacked)
    with pytest.raises(ValueError) as error:
        train(stacked, batches(corpus, 2, range(3)), lr=torch.ones(shape))
    assert "lr: " in str(error.value) and "3 stacked models" in str(error.value) and str(shape) in str(error.value)
    assert equal(parameters(stacked), before)


def test_several_rates_for_one_model_are_refused(corpus):
    model = mlp(embedding=27, width=27, block_size=3)
    before = parameters(model)
    with pytest.raises(ValueError, match=r"lr: .* single model .*\(27,\)"):
        train(model, batches(corpus, 2), lr=torch.ones(27))
    assert equal(parameters(model), before)


# What a run leaves behind


def test_a_history_has_the_minibatch_loss_of_every_step(corpus):
    model, same = mlp(), mlp()
    history = train(model, batches(corpus, 6), lr=0.1)
    losses = [float(step.loss) for step in descend(same, batches(corpus, 6), lr=0.1)]
    assert history.loss.values.tolist() == losses and history.loss.steps.tolist() == list(range(6))
    assert history.probes == {}


@pytest.mark.parametrize("every, asked", [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (7, [0]), (100, [0])])
def test_a_probe_is_asked_every_so_many_steps_from_the_first_on(every, asked, corpus):
    seen = []

    def probe(step):
        seen.append(step.index)
        return {"index": float(step.index), "bias": step.parameters["output.bias"]}

    history = train(mlp(), batches(corpus, 7), lr=0.1, probe=probe, every=every)
    assert seen == asked
    for series in history.probes.values():
        assert series.steps.tolist() == asked
    assert history.probes["index"].values.tolist() == asked
    assert history.probes["bias"].values.shape == (len(asked), 27)


def test_a_probe_sees_the_parameters_after_the_step_and_its_numbers_are_kept(corpus):
    model, same = mlp(), mlp()
    probe = {"bias": lambda step: step.parameters["output.bias"]}
    history = train(model, batches(corpus, 3), lr=0.1, probe=lambda step: {k: f(step) for k, f in probe.items()})
    expected = []
    for _ in descend(same, batches(corpus, 3), lr=0.1):
        expected.append(same.output.bias.detach().clone())
    values = history.probes["bias"].values
    assert torch.equal(values, torch.stack(expected)) and not values.requires_grad
    assert not torch.equal(values[0], values[1])


def test_a_number_that_a_probe_gives_now_and_then_keeps_its_steps(corpus):
    def probe(step):
        return {"always": 1.0} | ({"even": float(step.index)} if step.index % 2 == 0 else {})

    probes = train(mlp(), batches(corpus, 5), lr=0.1, probe=probe).probes
    assert probes["always"].steps.tolist() == [0, 1, 2, 3, 4]
    assert probes["even"].steps.tolist() == [0, 2, 4] == probes["even"].values.tolist()


@pytest.mark.parametrize("every", [0, -3])
def test_asking_every_zero_steps_is_refused(every, corpus):
    model = mlp()
    before = parameters(model)
    with pytest.raises(ValueError, match=f"every: at least 1 is needed, got {every}"):
        train(model, batches(corpus, 2), lr=0.1, probe=update_ratios, every=every)
    assert equal(parameters(model), before)


def test_steps_that_were_announced_and_not_drawn_are_refused(corpus):
    used = iter(batches(corpus, 3))
    model = mlp()
    train(model, used, lr=0.1)
    before = parameters(model)

    class Announced:
        def __len__(self):
            return 3

        def __iter__(self):
            return used

    for none_left in (used, Announced()):
        with pytest.raises(
            ValueError, match="batches: no minibatch was drawn; an iterator that was used before has none"
        ):
            train(model, none_left, lr=0.1)
    assert equal(parameters(model), before)


@pytest.mark.parametrize("none", [[], "no steps"])
def test_no_steps_leave_an_empty_history(none, corpus):
    model = mlp()
    before = parameters(model)
    history = train(model, batches(corpus, 0) if none else none, lr=0.1, probe=update_ratios)
    assert len(history.loss.steps) == len(history.loss.values) == len(history.lr.values) == 0 and history.probes == {}
    assert equal(parameters(model), before)


def test_a_batch_that_does_not_fit_is_refused(corpus):
    model = mlp()
    before = parameters(model)
    with pytest.raises(ValueError, match="batch: a single model needs contexts"):
        train(model, batches(corpus, 2, range(3)), lr=0.1)
    with pytest.raises(ValueError, match="batch: 1 stacked models need contexts"):
        train(stack([model]), batches(corpus, 2), lr=0.1)
    (batch,) = batches(corpus, 1)
    batch.targets[5] = 27
    with pytest.raises(ValueError, match=r"target symbol 27 at position \[5\] is outside the vocabulary, 0 to 26"):
        train(model, [batch], lr=0.1)
    assert equal(parameters(model), before)


# A loss that is not finite


def failing(model, source, **options):
    """The message, after checking that the parameters are those after the last step that was taken."""
    last = parameters(model)

    def probe(step):
        last.update(parameters(model))
        return {}

    with pytest.raises(FloatingPointError) as error:
        for step in descend(model, source, **options):
            probe(step)
    assert equal(parameters(model), last) and all(p.grad is None for p in model.parameters())
    return str(error.value)


def test_a_diverging_run_names_the_step_and_keeps_its_last_finite_parameters(corpus):
    model = mlp(activation=RELU)
    message = failing(model, batches(corpus, 50), lr=lambda index: 0.1 if index < 3 else 1e200)
    assert message.startswith("step 4: the loss is ") and "first layer with such an output is 'linear" in message
    assert "smaller learning rate" in message
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "parameter, layer", [("embedding.weight", "embedding"), ("linear2.weight", "linear2"), ("output.bias", "output")]
)
def test_a_nan_names_the_first_layer(parameter, layer, corpus):
    model = mlp()
    with torch.no_grad():
        model.get_parameter(parameter)[...] = torch.inf
    before = parameters(model)
    with pytest.raises(FloatingPointError, match=f"step 0: the loss is nan; the first layer .* is '{layer}'"):
        list(descend(model, batches(corpus, 5), lr=0.1))
    assert equal(parameters(model), before)


def test_an_infinite_loss_of_finite_logits_says_so(corpus):
    model = mlp().float()
    with torch.no_grad():
        model.output.bias[:] = 3e38 * (-1.0) ** torch.arange(27)
    assert failing(model, batches(corpus, 5), lr=0.1).startswith("step 0: the loss is inf; the logits are finite.")


def test_stacked_models_name_the_replicas_too(corpus):
    stacked = stack([mlp(r) for r in range(4)])
    with torch.no_grad():
        stacked.linear2.bias[1, 0] = torch.nan
        stacked.output.bias[3] = torch.nan
    before = parameters(stacked)
    with pytest.raises(FloatingPointError) as error:
        list(descend(stacked, batches(corpus, 5, range(4)), lr=0.1))
    assert "step 0: the loss is nan in replicas [1, 3]; the first layer with such an output is 'linear2'" in str(
        error.value
    )
    torch.testing.assert_close(parameters(stacked), before, rtol=0, atol=0, equal_nan=True)


class Root(nn.Module):
    """Adds the root of the sum of three numbers to every logit: of no effect, with a gradient that no memory holds."""

    def __init__(self, *values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x):
        return x + self.values.sum().sqrt()


def test_a_gradient_that_is_one_number_repeated_is_checked_too(corpus):
    model = nn.Sequential(*mlp(), Root(1.0, 2.0, 3.0))
    (step,) = descend(model, batches(corpus, 1), lr=0.1)
    assert step.grads["7.values"].abs().max() < 1e-15 and step.grads["0.weight"].any()
    model = nn.Sequential(*mlp(), Root(0.0, 0.0, 0.0))
    message = failing(model, batches(corpus, 5), lr=0.1)
    assert message.startswith("step 0: a gradient is nan or infinite, though the loss is not; ")
    assert model[-1].values.tolist() == [0, 0, 0]


def test_a_gradient_that_is_nan_at_a_finite_loss_stops_before_the_step(corpus):
    class Bent(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(27, dtype=torch.float64))

        def forward(self, x):
            return x + self.scale.sqrt()

    model = nn.Sequential(*mlp(), Bent())
    assert "a gradient is nan or infinite" in failing(model, batches(corpus, 5), lr=0.1)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_parameter_that_takes_no_part_has_gradient_zero(corpus):
    model = mlp()
    model.embedding.register_parameter("idle", nn.Parameter(torch.ones(2)))
    for step in descend(model, batches(corpus, 2), lr=0.1):
        assert step.grads["embedding.idle"].tolist() == [0, 0]
    assert model.embedding.idle.tolist() == [1, 1]


def test_a_replica_that_stands_still_stays_where_it_is_though_its_loss_is_finite(corpus):
    stacked = stack([small(0), small(1)])
    before = parameters(stacked)
    for step in descend(stacked, draws(corpus, 3, 2), lr=0.1, diverged={0: "earlier"}):
        assert step.loss.isnan().tolist() == [True, False]
    for name, p in stacked.named_parameters():
        assert torch.equal(p[0], before[name][0]) and not torch.equal(p[1], before[name][1])


def test_each_of_several_that_diverge_at_once_is_told_its_own_layer_and_loss(corpus):
    stacked = stack([small(r) for r in range(3)])
    with torch.no_grad():
        stacked.linear1.weight[0] = math.nan
        stacked.output.bias[1] = math.inf
    history = train(stacked, draws(corpus, 2, 3), lr=0.1)
    assert history.ended == "done" and list(history.diverged) == [0, 1]
    assert "'linear1'" in history.diverged[0] and "'output'" in history.diverged[1]


def test_the_first_of_several_losses_is_told(corpus):
    stacked = stack([small(r) for r in range(2)])
    with torch.no_grad():
        stacked.output.bias[0] = 3e38 * (-1.0) ** torch.arange(27)
        stacked.output.bias[1] = math.nan
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is inf in replicas \[0, 1\]"):
        list(descend(stacked, draws(corpus, 2, 2), lr=0.1))


def test_a_run_in_a_thread_leaves_interruptions_to_the_main_one(corpus):
    with ThreadPoolExecutor(1) as executor:
        history = executor.submit(train, small(), draws(corpus, 3), lr=0.1).result()
    assert history.ended == "done" and len(history.loss.steps) == 3


def test_no_bar_is_asked_for_unless_one_is_wanted(corpus, monkeypatch):
    asked = []
    monkeypatch.setattr(train_module, "bar", lambda steps, total, progress: asked.append((total, progress)) or steps)
    train(small(), draws(corpus, 2), lr=0.1)
    train(model=small(), batches=draws(corpus, 3), lr=0.1, progress=True)
    assert asked == [(2, False), (3, True)]
    assert len(list(descend(model=small(), batches=draws(corpus, 3), lr=0.1))) == 3


# Evaluation


@pytest.mark.parametrize("replicas", [1, 4])
def test_at_most_32768_examples_of_all_models_are_evaluated_at_once(replicas):
    rows, n = [], 2**15 // replicas
    model = stack([small(r) for r in range(replicas)]) if replicas > 1 else nn.Sequential(*small())
    model[0].register_forward_hook(lambda module, args, output: rows.append(args[0].shape[-2]))
    k = torch.arange(n + 1)
    evaluate(model, Examples(torch.stack([k // 729 % 27, k // 27 % 27, k % 27], 1), k % 27))
    assert rows == [min(n, 27**3 - 1), 1]  # contexts: there are 27**3, and each is in one pass


def test_a_context_that_occurs_often_is_computed_once(corpus):
    rows, model = [], nn.Sequential(*mlp())
    data = Examples(*(x[torch.arange(500).repeat(3)] for x in corpus.dev))
    model[0].register_forward_hook(lambda module, args, output: rows.append(args[0]))
    got = evaluate(model, data)
    (seen,) = rows
    assert len(seen) == len(seen.unique(dim=0)) == len(data.contexts.unique(dim=0)) < 500
    assert got == pytest.approx(F.cross_entropy(model(data.contexts), data.targets).item(), rel=1e-12)


def test_long_contexts_are_told_apart(symbols):
    data = Examples(symbols(300, 8, tokens=3), symbols(300))  # keys that run over, so that symbols may only fall
    model = mlp(block_size=8)
    assert evaluate(model, data) == pytest.approx(
        F.cross_entropy(model(data.contexts), data.targets).item(), rel=1e-12
    )


@pytest.mark.parametrize("at_once, n", [(1, 500), (7, 500), (100, 500), (10**6, 500), (10**6, 1)])
def test_evaluation_in_chunks_is_one_pass(at_once, n, corpus, monkeypatch):
    data = Examples(*(x[:n] for x in corpus.dev))
    model = mlp()
    monkeypatch.setattr(train_module, "_EVALUATED_AT_ONCE", at_once)
    got = evaluate(model, data)
    assert type(got) is float
    assert got == pytest.approx(F.cross_entropy(model(data.contexts), data.targets).item(), rel=1e-13)


def test_evaluation_adds_up_in_float64(corpus):
    models = [mlp(r).float() for r in range(3)]
    got = evaluate(stack(models), corpus.dev)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx([evaluate(model, corpus.dev) for model in models], rel=1e-6)


@pytest.mark.parametrize("at_once", [1, 7, 100, 10**6])
def test_stacked_models_are_evaluated_as_each(at_once, corpus, monkeypatch):
    data = Examples(*(x[:500] for x in corpus.dev))
    models = [mlp(r, confidence=1.0) for r in range(3)]
    expected = [evaluate(m, data) for m in models]
    monkeypatch.setattr(train_module, "_EVALUATED_AT_ONCE", at_once)
    got = evaluate(stack(models), data)
    assert got.shape == (3,) and got.tolist() == pytest.approx(expected, rel=1e-13)


def test_no_more_rows_than_allowed_are_evaluated_at_once(corpus, monkeypatch):
    rows = []
    model = nn.Sequential(*mlp())
    model[0].register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    monkeypatch.setattr(train_module, "_EVALUATED_AT_ONCE", 200)
    contexts = corpus.dev.contexts.unique(dim=0)[:500]
    evaluate(model, Examples(contexts, corpus.dev.targets[:500]))
    assert rows == [200, 200, 100]


def test_evaluation_is_in_evaluation_mode_and_leaves_the_model_as_found(corpus):
    model = mlp(norm=nn.BatchNorm1d)
    train(model, batches(corpus, 3), lr=0.1)
    model.act1.eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    got = evaluate(model, corpus.dev)
    assert [m.training for m in model.modules()] == modes and equal(dict(model.state_dict()), state)
    in_training = float(F.cross_entropy(copy.deepcopy(model)(corpus.dev.contexts), corpus.dev.targets).detach())
    model.eval()
    in_evaluation = float(F.cross_entropy(model(corpus.dev.contexts), corpus.dev.targets).detach())
    assert got == pytest.approx(in_evaluation, rel=1e-12) and got != pytest.approx(in_training, rel=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (2, 5)])
def test_evaluation_without_examples_is_refused(shape):
    with pytest.raises(ValueError, match=r"data: targets of shape \(n,\) with n > 0 are needed, got"):
        evaluate(mlp(), Examples(torch.zeros(*shape, 3, dtype=torch.long), torch.zeros(shape, dtype=torch.long)))


# Edges


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mmlib.__file__).parent.parent)}


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
    # 300 steps take 70 to 80 MB if each leaves its tensor of losses, and at most 3 as it is.
    code = MEMORY.format(steps=300)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    megabytes, steps = map(float, done.stdout.split())
    assert steps == 300 and megabytes < 30


def test_rates_of_changing_shape_are_recorded(corpus):
    rates = torch.tensor([0.1, 0.2])
    for lr in (drop(rates, 2, 0.01), drop(0.01, 2, rates)):
        history = train(stack([small(0), small(1)]), draws(corpus, 4, 2), lr=lr)
        expected = torch.stack([torch.as_tensor(lr(k)).expand(2) for k in range(4)])
        torch.testing.assert_close(history.lr.values, expected)


def test_a_schedule_that_changes_its_own_tensor_does_not_change_what_was_recorded(corpus):
    rate = torch.tensor(1.0)
    history = train(small(), draws(corpus, 3), lr=lambda index: rate.div_(2))
    assert history.lr.values.tolist() == [0.5, 0.25, 0.125]


def test_a_probe_that_changes_shape_fails_at_that_step_and_what_was_recorded_is_there(corpus):
    with pytest.raises(ValueError, match=r"probe: 'x': one shape .* got \(3,\) at step 2 after \(2,\)") as error:
        train(small(), draws(corpus, 9), lr=0.1, probe=lambda step: {"x": torch.zeros(2 + step.index // 2)})
    history = error.value.history
    assert history.loss.steps.tolist() == [0, 1, 2] and history.probes["x"].values.shape == (2, 2)


def test_any_error_leaves_the_history(corpus):
    def probe(step):
        return {"x": 1 / (3 - step.index)}

    with pytest.raises(ZeroDivisionError) as error:
        train(small(), draws(corpus, 9), lr=0.1, probe=probe)
    assert error.value.history.loss.steps.tolist() == [0, 1, 2, 3]
    assert error.value.history.probes["x"].steps.tolist() == [0, 1, 2]


def test_a_run_says_that_it_is_done(corpus):
    history = train(small(), draws(corpus, 3), lr=0.1)
    assert history.ended == "done" and history.diverged == {}


@pytest.mark.parametrize("how", ["signal", "raised"])
def test_an_interruption_ends_the_run_after_a_whole_step_with_its_history(how, corpus):
    model, same, handler = small(), small(), signal.getsignal(signal.SIGINT)

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

    assert train(small(), draws(corpus, 9), lr=0.1, probe=probe).ended == "interrupted"


def test_a_run_that_diverges_ends_with_its_history(corpus):
    model = small(activation=RELU)
    history = train(model, draws(corpus, 50), lr=lambda index: 0.1 if index < 3 else 1e30)
    assert history.ended == "diverged" and len(history.loss.steps) == 4 and history.loss.values.isfinite().all()
    assert history.diverged[0].startswith("step 4: the loss is ") and all(
        p.isfinite().all() for p in model.parameters()
    )


def test_one_replica_that_diverges_stands_still_and_the_others_go_on_as_if_alone(corpus):
    models = [small(r, norm=BatchNorm1d, activation=RELU) for r in range(4)]
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
            torch.testing.assert_close(parts[r].state_dict()[name], x, rtol=1e-4, atol=1e-6)
    for name, x in numbers(parts[2]).items():
        if name.startswith(("linear1", "output", "embedding")):
            assert torch.equal(x, kept[name][2])
        assert name != "norm1.num_batches_tracked" or x == 7


def test_when_all_replicas_have_diverged_the_run_ends(corpus):
    stacked = stack([small(r, activation=RELU) for r in range(2)])
    history = train(stacked, draws(corpus, 50, 2), lr=torch.tensor([1e30, 1e25]))
    assert history.ended == "diverged" and sorted(history.diverged) == [0, 1] and len(history.loss.steps) < 10


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_run_of_which_all_has_diverged_does_not_go_on(replicas, corpus):
    models = [small(r, norm=BatchNorm1d, activation=RELU) for r in range(replicas)]
    model, rows = (stack(models), replicas) if replicas > 1 else (models[0], None)
    before = train(model, draws(corpus, 50, rows), lr=1e30)
    assert before.ended == "diverged"
    kept = numbers(model)
    after = train(model, draws(corpus, 5, rows), lr=0.1, after=before)
    assert after.ended == "diverged" and after.diverged == before.diverged
    assert torch.equal(after.loss.values, before.loss.values)
    with pytest.raises(FloatingPointError, match=r"step 3: no model is left to train, since earlier, at step \d"):
        next(descend(model, draws(corpus, 5, rows), lr=0.1, start=3, diverged=dict(before.diverged)))
    torch.testing.assert_close(numbers(model), kept, rtol=0, atol=0, equal_nan=True)


def test_a_sum_of_losses_that_overflows_is_no_divergence(corpus):
    def stacked():
        models = [small(r) for r in range(2)]
        for model in models:
            with torch.no_grad():
                model.output.bias.fill_(0).index_fill_(0, torch.arange(1, 27), 3e38)
        return stack(models)

    contexts, targets = torch.zeros(2, 1, 3, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)
    history = train(stacked(), [Examples(contexts, targets)] * 2, lr=0.1)
    assert history.ended == "done" and history.loss.values.isfinite().all() and history.loss.values.min() > 2e38


class Pushed(nn.Module):
    """Hands on what it is given, and a gradient of one number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: torch.full_like(gradient, self.number))
        return x * 1.0


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("only", [(), ("output.bias",)], ids=["all parameters", "one"])
def test_a_gradient_that_is_infinite_ends_the_run_though_the_loss_is_not(number, only, corpus):
    model = small().append(Pushed(number))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not only or name in only)
    with pytest.raises(FloatingPointError, match="step 0: a gradient is nan or infinite, though the loss is not"):
        next(descend(model, draws(corpus, 1), lr=0.1))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_sum_of_a_gradient_that_overflows_is_no_divergence(replicas, corpus):
    models = [small(r).append(Pushed(4e36)) for r in range(replicas)]
    for model in models:
        model[:-2].requires_grad_(False)
    model, batches = (stack(models), draws(corpus, 2, replicas)) if replicas > 1 else (models[0], draws(corpus, 2))
    biases = [step.grads["output.bias"] for step in descend(model, batches, lr=0.0)]
    assert len(biases) == 2 and all(bias.isfinite().all() and not bias.sum().isfinite() for bias in biases)


@pytest.mark.parametrize("lr", [math.nan, math.inf, "0.1", None, torch.tensor(math.nan)])
def test_a_rate_that_is_no_number_is_refused_before_the_step(lr, corpus):
    model = small()
    before = numbers(model)
    with pytest.raises(ValueError, match="lr: "):
        train(model, draws(corpus, 3), lr=lr)
    assert equal(numbers(model), before)


@pytest.mark.parametrize("lr", [Fraction(1, 4), np.float32(0.25)])
def test_a_rate_may_be_any_real_number(lr, corpus):
    one, other = small(), small()
    train(one, draws(corpus, 3), lr=lr)
    history = train(other, draws(corpus, 3), lr=0.25)
    assert equal(numbers(one), numbers(other)) and history.lr.values.tolist() == [0.25] * 3


def test_a_model_without_anything_to_train_is_refused(corpus):
    with pytest.raises(ValueError, match="model: no parameter requires a gradient"):
        train(small().requires_grad_(False), draws(corpus, 3), lr=0.1)


def test_a_record_goes_on_and_joins_kinds_of_numbers():
    record = Recorder("x")
    for step in range(600):
        record.add(step, step)
    record.add(600, torch.tensor(0.5, dtype=torch.float64))
    again = Recorder("x", record.series())
    again.add(601, 2)
    assert again.series().values.dtype == torch.float64 and again.series().steps.tolist() == list(range(602))
    assert again.series().values[-3:].tolist() == [599, 0.5, 2] and len(record.series().steps) == 601
