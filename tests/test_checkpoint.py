"""A run that was stopped, written, read and gone on with is the run that was not."""

import copy
import functools
import multiprocessing
import os
import signal
import sys

import pytest
import torch

from mmlib import checkpoint
from mmlib.checkpoint import resume, save
from mmlib.data import minibatches
from mmlib.ensemble import stack
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d
from mmlib.rng import generator
from mmlib.stats import update_ratios
from mmlib.train import drop, train
from tests.small import mlp

pytestmark = pytest.mark.usefixtures("no_global_randomness")
OPTIONS = {"probe": update_ratios, "every": 7}


def start(stacked):
    recipe = MLP(width=8, depth=2, norm=BatchNorm1d)
    models = [recipe.build(generator(s, "weights")) for s in range(3 if stacked else 1)]
    streams = [generator(s, "batches") for s in range(3)]
    return (stack(models), streams) if stacked else (models[0], streams[0])


def rates(stacked):
    return drop(torch.tensor([0.1, 0.2, 0.3]) if stacked else 0.1, 30, 0.01)


def assert_same(a, b):
    assert a[0].state_dict().keys() == b[0].state_dict().keys()
    assert all(torch.equal(x, b[0].state_dict()[k]) for k, x in a[0].state_dict().items())
    (one, other) = (run[1] for run in (a, b))
    assert one.probes.keys() == other.probes.keys() and (one.ended, one.diverged) == (other.ended, other.diverged)
    for x, y in ((one.loss, other.loss), (one.lr, other.lr), *((x, other.probes[k]) for k, x in one.probes.items())):
        assert torch.equal(x.steps, y.steps) and torch.equal(x.values, y.values) and x.values.dtype == y.values.dtype


@pytest.fixture(scope="module")
def whole(corpus):
    """whole(stacked): a model after forty steps in one, and their history."""

    @functools.cache
    def trained(stacked):
        model, g = start(stacked)
        return model, train(model, minibatches(corpus.train, 8, 40, generator=g), lr=rates(stacked), **OPTIONS)

    return trained


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("stop", [1, 20, 39])
def test_forty_steps_are_some_and_the_rest_bit_by_bit(stacked, stop, whole, corpus, tmp_path):
    lr = rates(stacked)
    first, h = start(stacked)
    save(
        tmp_path / "run",
        first,
        train(first, minibatches(corpus.train, 8, stop, generator=h), lr=lr, **OPTIONS),
        generator=h,
    )
    second, i = start(stacked)
    for p in second.parameters():
        p.data.fill_(7)
    done = resume(tmp_path / "run", second, generator=i)
    rest = train(second, minibatches(corpus.train, 8, 40 - stop, generator=i), lr=lr, after=done, **OPTIONS)
    assert_same(whole(stacked), (second, rest))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_stopped_in_the_middle_of_batches_that_were_drawn_ahead_goes_on_with_the_next(corpus, tmp_path):
    model, g = start(True)
    whole = train(model, minibatches(corpus.train, 8, 40, generator=g), lr=0.1)
    stopped, h = start(True)

    def probe(step):
        if step.index == 15:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    part = train(stopped, minibatches(corpus.train, 8, 40, generator=h), lr=0.1, probe=probe)
    assert part.ended == "interrupted" and part.loss.steps.tolist() == list(range(16))
    save(tmp_path / "run", stopped, part, generator=h)
    again, i = start(True)
    done = resume(tmp_path / "run", again, generator=i)
    rest = train(again, minibatches(corpus.train, 8, 24, generator=i), lr=0.1, after=done)
    assert_same((model, whole), (again, rest))


def test_what_has_diverged_stands_still_after_it_was_read_too(corpus, tmp_path):
    lr = torch.tensor([0.1, 1e30, 0.1])
    model, g = start(True)
    model.norm1.eval(), model.norm2.eval()
    first = train(model, minibatches(corpus.train, 8, 50, generator=g), lr=lr)
    assert list(first.diverged) == [1]
    save(tmp_path / "run", model, first, generator=g)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    other, h = start(True)
    history = train(
        other,
        minibatches(corpus.train, 8, 50, generator=h),
        lr=lr,
        after=resume(tmp_path / "run", other, generator=h),
    )
    assert history.diverged == first.diverged and history.loss.values[50:, 1].isnan().all()
    for k, v in other.state_dict().items():
        assert torch.equal(v[1], before[k][1])
    assert not torch.equal(other.output.weight[0], before["output.weight"][0])


def test_a_file_is_written_whole_or_not_at_all(corpus, tmp_path, monkeypatch):
    model, g = start(False)
    history = train(model, minibatches(corpus.train, 8, 3, generator=g), lr=0.1)
    save(tmp_path / "run", model, history, generator=g)
    before = (tmp_path / "run").read_bytes()

    def breaks(run, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.torch, "save", breaks)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "run", model, history, generator=g)
    assert (tmp_path / "run").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("content", [b"", b"half", None, "format"])
def test_what_is_no_run_is_refused_and_nothing_changes(content, corpus, tmp_path):
    model, g = start(False)
    history = train(model, minibatches(corpus.train, 8, 3, generator=g), lr=0.1)
    path = tmp_path / "run"
    save(path, model, history, generator=g)
    if content == "format":
        torch.save({"format": 99}, path)
    else:
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    before, state = copy.deepcopy(model.state_dict()), g.get_state()
    with pytest.raises(ValueError, match=r"run: this is not a run that was written whole by save"):
        resume(path, model, generator=g)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and torch.equal(g.get_state(), state)


def test_the_run_of_something_else_is_refused_and_nothing_changes(corpus, tmp_path):
    model, g = start(False)
    save(
        tmp_path / "run",
        model,
        train(model, minibatches(corpus.train, 8, 3, generator=g), lr=0.1),
        generator=g,
    )
    wider = MLP(width=9, depth=2, norm=BatchNorm1d).build(generator(0, "weights"))
    before, state = copy.deepcopy(wider.state_dict()), g.get_state()
    with pytest.raises(ValueError, match=r"the run of another model; these differ: .*linear1\.weight.*\(8, 30\)"):
        resume(tmp_path / "run", wider, generator=g)
    assert all(torch.equal(v, before[k]) for k, v in wider.state_dict().items())
    with pytest.raises(ValueError, match=r"the run of another model; these differ: .*float32.*float64"):
        resume(tmp_path / "run", copy.deepcopy(model).double(), generator=g)
    with pytest.raises(ValueError, match="a run with 1 generators, got 2"):
        resume(tmp_path / "run", model, generator=[g, g])
    with pytest.raises(FileNotFoundError, match="nothing: no such file; a run that was written by save is needed"):
        resume(tmp_path / "nothing", model, generator=g)
    with pytest.raises(TypeError, match=r"generator: a torch\.Generator is needed"):
        resume(tmp_path / "run", model, generator=None)
    assert torch.equal(g.get_state(), state)


def goes_on_for_ever(path, corpus, saved):
    torch.set_num_threads(1)  # others do not survive a fork
    model, g = MLP(width=8, depth=1).build(generator(0, "weights")), generator(0, "batches")
    history = None
    while True:
        history = train(model, minibatches(corpus.dev, 8, 5, generator=g), lr=0.1, after=history)
        save(path, model, history, generator=g)
        saved.send(None)


def test_a_process_that_is_killed_leaves_a_run_that_goes_on(corpus, tmp_path):
    path = tmp_path / "run"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # a fork has torch at once
    received, saved = context.Pipe(duplex=False)
    process = context.Process(target=goes_on_for_ever, args=(path, corpus, saved), daemon=True)
    process.start()
    saved.close()
    for _ in range(5):
        received.recv()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    model, g = MLP(width=8, depth=1).build(generator(0, "weights")), generator(0, "batches")
    done = len(resume(path, model, generator=g).loss.steps)
    fresh, h = MLP(width=8, depth=1).build(generator(0, "weights")), generator(0, "batches")
    train(fresh, minibatches(corpus.dev, 8, done, generator=h), lr=0.1)
    assert done >= 25 and torch.equal(g.get_state(), h.get_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in fresh.state_dict().items())


# What was saved


def test_what_was_saved_is_read_by_torch_without_code(corpus, tmp_path):
    model, g = mlp(), generator(0, "batches")
    history = train(model, minibatches(corpus.dev, 8, 3, generator=g), lr=0.1)
    checkpoint.save(tmp_path / "run", model, history, generator=g)
    assert torch.load(tmp_path / "run", weights_only=True)["ended"] == "done"
