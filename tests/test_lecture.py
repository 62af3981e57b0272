import os

import pytest
import torch

from mmlib import lecture

STEP_0 = {
    "original": 27.8817,
    "softmax": 3.3221,
    "tanh": 3.3135,
    "Kaiming": 3.3179,
    "BatchNorm": 3.3239,
    "deep": 3.2870,
}
PARAMETERS = {"original": 11897, "softmax": 11897, "tanh": 11897, "Kaiming": 11897, "BatchNorm": 12097, "deep": 47024}


@pytest.fixture(scope="module")
def splits():
    if not os.environ.get(lecture.VARIABLE):
        pytest.skip(f"the lecture's names are not here: {lecture.VARIABLE} is not set")
    return lecture.splits(lecture.read_names())


def test_splits_have_the_published_sizes(splits):
    assert [len(part.targets) for part in splits[1:]] == [182_625, 22_655, 22_866]
    assert len(splits.vocabulary) == 27


@pytest.mark.parametrize("stage", STEP_0)
def test_first_loss_and_parameter_count_are_the_published_ones(splits, stage):
    run = lecture.Run(stage, splits)
    assert sum(p.numel() for p in run.model.parameters()) == PARAMETERS[stage]
    assert round(run.train(1).loss.values[0].item(), 4) == STEP_0[stage]


def test_another_seed_is_another_run(splits):
    first, second = (lecture.Run("tanh", splits, seed=seed).model.linear1.weight for seed in (1, 2))
    assert not torch.equal(first, second)


def test_the_dashboard_sees_every_step(splits):
    seen = lecture.dashboard(lecture.deep(splits), steps=3)
    assert {len(series.steps) for series in seen.update_ratios.values()} == {3}
    assert set(seen.grad_data_ratios) == {"embedding.weight", *(f"linear{k}.weight" for k in range(1, 7))}


def test_stages_stand_in_the_order_of_the_lecture():
    assert lecture.stages() == ("original", "softmax", "tanh", "Kaiming", "BatchNorm")


def test_a_file_that_is_another_one_is_refused_with_both_checksums(tmp_path):
    (tmp_path / "names.txt").write_text("emma\n")
    with pytest.raises(ValueError, match=f"not the lecture's names.txt: its SHA-256 is .*, not {lecture.SHA256}"):
        lecture.read_names(tmp_path / "names.txt")


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(lecture.VARIABLE, str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        lecture.read_names()


def test_offline_the_error_says_all_four_ways(tmp_path, monkeypatch):
    monkeypatch.delenv(lecture.VARIABLE, raising=False)
    monkeypatch.setattr(lecture.pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(lecture, "URL", "http://localhost:9/names.txt")
    with pytest.raises(FileNotFoundError, match=r"pass its path .* MMLIB_LECTURE_NAMES .* put a copy at .* downloaded"):
        lecture.read_names()
    assert not list(tmp_path.rglob("*.txt"))


def test_a_stage_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"stage: one of original, .* is needed, got 'kaiming'"):
        lecture.Run("kaiming", None)


@pytest.mark.parametrize("layer", [lecture.UnbiasedBatchNorm, lecture.StdBatchNorm])
def test_both_normalisations_divide_by_the_unbiased_deviation(layer, normal):
    x = 3 * normal(8, 5) + 1
    expected = (x - x.mean(0)) / x.std(0)
    torch.testing.assert_close(layer(5).double()(x), expected, rtol=1e-4, atol=1e-5)
