import pytest
import torch

from mmlib.history import Series

SERIES = Series(torch.arange(7) * 10, torch.tensor([1.0, 3, 5, 7, 9, 11, 100]))


def test_block_means_by_hand():
    steps, values = SERIES.block_means(2)
    assert steps.tolist() == [5, 25, 45] and values.tolist() == [2, 6, 10]
    assert [x.tolist() for x in SERIES.block_means(3)] == [[10, 40], [3, 9]]


def test_a_block_of_one_is_the_series_and_a_block_of_all_its_mean():
    assert [x.tolist() for x in SERIES.block_means(1)] == [x.tolist() for x in SERIES]
    assert [x.tolist() for x in SERIES.block_means(7)] == [[30], [136 / 7]]


def test_block_means_keep_the_axes_of_stacked_models():
    both = Series(SERIES.steps, torch.stack([SERIES.values, -SERIES.values], dim=1))
    assert both.block_means(2).values.tolist() == [[2, -2], [6, -6], [10, -10]]


def test_block_means_are_float64():
    assert Series(torch.arange(2), torch.tensor([2.0**24, 1.0])).block_means(2).values.tolist() == [(2**24 + 1) / 2]


@pytest.mark.parametrize("length", [0, -1, 8])
def test_a_length_that_is_not_there_is_refused(length):
    with pytest.raises(ValueError, match=f"length: 1 to 7 records are there, got {length}"):
        SERIES.block_means(length)
