import hashlib
import http.server
import importlib.util
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference_run
import torch
from reference_run import BATCHNORM_LOSSES, DEEP_ACTIVATIONS, DEEP_NAMES, PUBLISHED, Run

from mmlib.ensemble import stack, unstack
from mmlib.rng import generator
from mmlib.stats import saturation

ROOT = Path(__file__).parent.parent
STABLE = reference_run.stages()[1:]
STEPS = 10_001


@pytest.fixture(scope="module")
def names():
    if reference_run.nearby() is None:
        pytest.skip(f"the lecture's names are not here: {reference_run.VARIABLE} is not set, and no copy was kept")
    return reference_run.read_names()


@pytest.fixture(scope="module")
def splits(names):
    return reference_run.splits(names)


@pytest.fixture(scope="module")
def few(names):
    """Splits of which to evaluate all takes no time."""
    return reference_run.splits(names[:500])


@pytest.fixture(scope="module")
def figures():
    """What `make reproduce` stored after the runs at full length."""
    stored = ROOT / "reproduction" / "figures.json"
    if not stored.exists():
        pytest.skip("no figures of the runs at full length are stored: make reproduce")
    return json.loads(stored.read_text(encoding="utf-8"))


def test_splits_have_the_published_sizes(splits):
    found = {part: len(getattr(splits, part).targets) for part in PUBLISHED["examples"]}
    assert {part: str(size) for part, size in found.items()} == PUBLISHED["examples"]
    assert len(splits.vocabulary) == 27


@pytest.mark.parametrize("stage", (*reference_run.stages(), "deep"))
def test_first_loss_and_parameter_count_are_the_published_ones(splits, stage):
    run = Run(stage, splits)
    parameters = sum(p.numel() for p in run.model.parameters())
    assert str(parameters) == PUBLISHED["parameters"].get(stage, "11897")
    assert f"{run.train(1).loss.values[0]:.4f}" == PUBLISHED["loss at step 0"][stage]


@pytest.fixture(scope="module")
def first_steps(splits):
    """The minibatch losses of the first 10,001 steps, by stage: four stages as one stack, and the fifth."""
    plain = reference_run.together([Run(stage, splits) for stage in reference_run.stages()[:-1]]).train(STEPS).loss
    normalised = Run("BatchNorm", splits).train(STEPS).loss
    values = torch.cat([plain.values, normalised.values.unsqueeze(-1)], -1)
    return {stage: plain._replace(values=values[:, k]) for k, stage in enumerate(reference_run.stages())}


def test_losses_after_10_000_steps_are_those_that_the_lecture_prints(first_steps):
    printed = {"softmax": "2.1900", "tanh": "2.1648", "Kaiming": "2.1910", "BatchNorm": BATCHNORM_LOSSES[1]}
    assert {stage: f"{first_steps[stage].values[10_000]:.4f}" for stage in printed} == printed


@pytest.mark.parametrize("stage", reference_run.stages())
def test_stored_figures_are_those_of_a_fresh_run(first_steps, figures, stage):
    """Every step counts: means of 1,000 losses each. The first stage is chaotic, so that only its course is held."""
    means = first_steps[stage].block_means(1_000).values
    stored = torch.tensor(figures["mean loss of 1,000 steps"][stage][: len(means)])
    torch.testing.assert_close(means.float(), stored, rtol=0, atol=0.03 if stage == "original" else 2e-4)
    losses = torch.tensor(figures["loss every 10,000 steps"][stage][: 1 if stage == "original" else 2])
    torch.testing.assert_close(first_steps[stage].values[: len(losses) * 10_000 : 10_000], losses, rtol=0, atol=2e-5)


def test_the_deep_network_looks_as_published_and_draws_the_same_names(splits):
    run = reference_run.deep(splits)
    outputs = reference_run.dashboard(run).trace.outputs
    hidden = [outputs[f"act{k}"] for k in range(1, 6)]
    assert tuple((f"{h.std():.2f}", f"{float(saturation(h, 0.97)):.2%}") for h in hidden) == DEEP_ACTIVATIONS
    end = run.evaluate()
    assert end["train"] == pytest.approx(float(PUBLISHED["final train loss"]["deep"]), abs=2e-6)
    assert end["dev"] == pytest.approx(float(PUBLISHED["final dev loss"]["deep"]), abs=2e-6)
    assert tuple(run.names()) == DEEP_NAMES


def test_stored_figures_meet_the_published_ones(figures):
    for what, stage in (("examples", "train"), ("parameters", "BatchNorm"), ("parameters", "deep")):
        assert str(figures[what][stage]) == PUBLISHED[what][stage]
    assert tuple(figures["names of the deep network"]) == DEEP_NAMES
    for stage in STABLE:
        for part in ("final train loss", "final dev loss"):
            digits = len(PUBLISHED[part][stage].partition(".")[2])
            off = abs(figures[part][stage] - float(PUBLISHED[part][stage]))
            assert off <= max(2e-6, 0.5 * 10**-digits), f"{stage}, {part}"
    # The fourth decimal may be rounded the other way.
    losses = figures["loss every 10,000 steps"]["BatchNorm"]
    assert max(abs(ours - float(printed)) for ours, printed in zip(losses, BATCHNORM_LOSSES, strict=True)) < 6e-5


def test_runs_together_are_the_runs_alone(few):
    stages = reference_run.stages()[:-1]
    together = reference_run.together([Run(stage, few) for stage in stages])
    losses, ends = together.train(30).loss.values, together.evaluate()
    for r, stage in enumerate(stages):
        run = Run(stage, few)
        torch.testing.assert_close(losses[:, r], run.train(30).loss.values, rtol=1e-4, atol=1e-5)
        assert run.evaluate()["dev"] == pytest.approx(ends["dev"][r].item(), rel=1e-4)


def test_seeds_of_the_batchnorm_stage_together_are_the_seeds_alone(splits):
    together = reference_run.together([Run("BatchNorm", splits, seed=seed) for seed in (1, 2, 3)])
    losses = together.train(30).loss.values
    for r, seed in enumerate((1, 2, 3)):
        run = Run("BatchNorm", splits, seed=seed)
        torch.testing.assert_close(losses[:, r], run.train(30).loss.values, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            unstack(together.model)[r].norm1.running_std, run.model.norm1.running_std, rtol=1e-4, atol=1e-5
        )


def test_a_nudge_changes_the_first_weights_by_its_size_and_nothing_else(splits):
    run, nudged = Run("tanh", splits), Run("tanh", splits)
    nudged.nudge(1e-3, generator=generator(0, "nudge"))
    ratio = nudged.model.linear1.weight / run.model.linear1.weight - 1
    assert ratio.std().item() == pytest.approx(1e-3, rel=0.05)
    for name, p in run.model.named_parameters():
        assert torch.equal(p, nudged.model.get_parameter(name)) == (name != "linear1.weight")


def test_another_seed_is_another_run(splits):
    first, second = (Run("tanh", splits, seed=seed).model.linear1.weight for seed in (1, 2))
    assert not torch.equal(first, second)


def test_the_dashboard_sees_every_step(splits):
    seen = reference_run.dashboard(reference_run.deep(splits), steps=3)
    assert {len(series.steps) for series in seen.update_ratios.values()} == {3}
    assert set(seen.grad_data_ratios) == {"embedding.weight", *(f"linear{k}.weight" for k in range(1, 7))}


def test_stages_stand_in_the_order_of_the_lecture():
    assert reference_run.stages() == ("original", "softmax", "tanh", "Kaiming", "BatchNorm")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No name, no copy kept, and nothing online: a fresh machine, whose data have another checksum."""
    monkeypatch.delenv(reference_run.VARIABLE, raising=False)
    monkeypatch.setattr(reference_run.pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(reference_run, "URL", "http://localhost:9/names.txt")
    return tmp_path


def right(monkeypatch, content):
    monkeypatch.setattr(reference_run, "SHA256", hashlib.sha256(content.encode()).hexdigest())


def test_the_path_given_comes_first_then_the_file_that_is_named_then_the_copy(elsewhere, monkeypatch):
    places = {"given": elsewhere / "given.txt", "named": elsewhere / "named.txt", "kept": reference_run._kept()}
    for name, file in places.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{name}\n")
    right(monkeypatch, "kept\n")
    assert reference_run.nearby() == places["kept"]
    assert reference_run.read_names() == ["kept"]
    monkeypatch.setenv(reference_run.VARIABLE, str(places["named"]))
    right(monkeypatch, "named\n")
    assert reference_run.nearby() == places["named"]
    assert reference_run.read_names() == ["named"]
    right(monkeypatch, "given\n")
    assert reference_run.read_names(places["given"]) == ["given"]


def test_a_file_that_is_another_one_is_refused_with_both_checksums(tmp_path):
    (tmp_path / "names.txt").write_text("emma\n")
    with pytest.raises(ValueError, match=f"not the lecture's names.txt: its SHA-256 is .*, not {reference_run.SHA256}"):
        reference_run.read_names(tmp_path / "names.txt")


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(reference_run.VARIABLE, str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        reference_run.read_names()


@pytest.fixture
def online(elsewhere, monkeypatch):
    """A server on this machine in place of the public repository; the list of what was asked of it."""
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"emma\n")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("localhost", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(reference_run, "URL", f"http://localhost:{server.server_port}/names.txt")
        yield asked
        server.shutdown()
        thread.join()


def test_a_download_is_checked_kept_and_not_repeated(online, monkeypatch):
    right(monkeypatch, "emma\n")
    assert reference_run.nearby() is None
    assert reference_run.read_names() == ["emma"]
    assert reference_run.nearby() == reference_run._kept()
    assert reference_run.read_names() == ["emma"]
    assert online == ["/names.txt"]


def test_a_download_that_is_another_file_is_refused_and_leaves_nothing(online):
    with pytest.raises(ValueError, match=rf"(?s)SHA256 hash of downloaded file.*{reference_run.SHA256}"):
        reference_run.read_names()
    assert not [file for file in reference_run._kept().parent.rglob("*") if file.is_file()]


def test_offline_the_error_says_all_four_ways(elsewhere):
    with pytest.raises(FileNotFoundError, match=r"pass its path .* MMLIB_LECTURE_NAMES .* put a copy at .* downloaded"):
        reference_run.read_names()
    assert not list(elsewhere.rglob("*.txt"))


def test_a_stage_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"stage: one of original, .* is needed, got 'kaiming'"):
        Run("kaiming", None)


@pytest.mark.parametrize("layer", [reference_run.UnbiasedBatchNorm, reference_run.StdBatchNorm])
def test_both_normalisations_divide_by_the_unbiased_deviation(layer, normal):
    x = 3 * normal(8, 5) + 1
    expected = (x - x.mean(0)) / x.std(0)
    torch.testing.assert_close(layer(5).double()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [reference_run.UnbiasedBatchNorm, reference_run.StdBatchNorm])
def test_both_normalisations_stacked_are_three_alone(layer, normal):
    """Outputs, gradients and running statistics, in training and in evaluation; the cotangent is random."""
    models = [torch.nn.Sequential(layer(5)).double() for _ in range(3)]
    with torch.no_grad():
        for model in models:
            for p in model.parameters():
                p.copy_(normal(5))
    stacked = stack(models)
    for mode in (True, True, False):
        x, cotangent = 3 * normal(3, 8, 5) + 1, normal(3, 8, 5)
        stacked.train(mode)
        x.requires_grad_()
        y = stacked(x)
        grads = torch.autograd.grad(y, [x, *stacked.parameters()], cotangent)
        for r, model in enumerate(models):
            model.train(mode)
            alone = x[r].detach().requires_grad_()
            z = model(alone)
            torch.testing.assert_close(y[r], z)
            expected = torch.autograd.grad(z, [alone, *model.parameters()], cotangent[r])
            for together, single in zip(grads, expected, strict=True):
                torch.testing.assert_close(together[r], single)
            for name, buffer in model.named_buffers():
                torch.testing.assert_close(stacked.get_buffer(name)[r], buffer)


def test_running_statistics_of_both_normalisations_are_those_of_the_lecture(normal):
    """Mean and unbiased variance by 0.1; mean and standard deviation by 0.001. In evaluation they take the place."""
    x = 3 * normal(8, 5) + 1
    deep, shallow = reference_run.UnbiasedBatchNorm(5).double(), reference_run.StdBatchNorm(5).double()
    deep(x), shallow(x)
    torch.testing.assert_close(deep.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(deep.running_var, 0.9 + 0.1 * x.var(0))
    torch.testing.assert_close(shallow.running_mean, 0.001 * x.mean(0))
    torch.testing.assert_close(shallow.running_std, 0.999 + 0.001 * x.std(0))
    expected = (x - deep.running_mean) / (deep.running_var + 1e-5).sqrt()
    torch.testing.assert_close(deep.eval()(x), expected)
    torch.testing.assert_close(shallow.eval()(x), (x - shallow.running_mean) / shallow.running_std)


CHAPTER = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": 1,
            "id": "c1",
            "metadata": {},
            "outputs": [],
            "source": "import reference_run",
        }
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def test_without_the_data_a_chapter_on_them_is_skipped_and_says_why(pytester, monkeypatch):
    shutil.copy(ROOT / "conftest.py", pytester.path)
    (pytester.path / "chapter.ipynb").write_text(json.dumps(CHAPTER), encoding="utf-8")
    pytester.makeini("[pytest]\n")
    monkeypatch.delenv(reference_run.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "cache"))
    result = pytester.runpytest_inprocess("--nbval", "--nbval-current-env", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*the data of the reference run are not here; set MMLIB_LECTURE_NAMES*"])


@pytest.mark.parametrize("place, excluded", [(None, True), (Path("names.txt"), False)])
def test_without_the_data_a_chapter_on_them_is_shown_as_stored(monkeypatch, tmp_path, place, excluded):
    specification = importlib.util.spec_from_file_location("execution", ROOT / "book" / "_ext" / "execution.py")
    execution = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(execution)
    (tmp_path / "19-on-them.ipynb").write_text(json.dumps(CHAPTER), encoding="utf-8")
    (tmp_path / "20-on-others.ipynb").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(execution, "BOOK", tmp_path)
    monkeypatch.setattr(reference_run, "nearby", lambda: place)
    config = SimpleNamespace(nb_execution_excludepatterns=["draft.ipynb"])
    execution.leave_out(None, config)
    assert config.nb_execution_excludepatterns == ["draft.ipynb", *(["19-on-them.ipynb"] if excluded else [])]
