import math

import numpy as np
import pytest
import torch

from mmlib.history import Recorder, Series

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


# A series as it grows


def recorded(values, before=None):
    recorder, start = Recorder("x", before), 0 if before is None else len(before.steps)
    for step, value in enumerate(values, start):
        recorder.add(step, value)
    return recorder.series()


def assert_same(got, values):
    assert got.steps.dtype == torch.int64 and got.steps.tolist() == list(range(len(values)))
    assert torch.equal(got.values, values) and got.values.dtype == values.dtype


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_what_is_recorded_comes_back_in_order(count, shape, dtype):
    values = torch.arange(count * math.prod(shape), dtype=dtype).view(count, *shape)
    assert_same(recorded(values), values)


@pytest.mark.parametrize("values, dtype", [([3, -1], torch.int64), ([0.5, 2.0], torch.float32)])
def test_plain_numbers_are_recorded_in_the_type_that_torch_gives_them(values, dtype):
    assert_same(recorded(values), torch.tensor(values, dtype=dtype))


def test_no_digit_is_lost_where_the_type_changes():
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert_same(recorded([0.5, third, 7, 0.25]), torch.tensor([0.5, 1 / 3, 7, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
@pytest.mark.parametrize("asked", [False, True])
def test_a_number_among_tensors_stands_for_all_their_elements(shape, asked):
    recorder, value = Recorder("x"), torch.arange(6.0).view(2, 3).reshape(-1)[: math.prod(shape)].view(shape)
    recorder.add(0, 0.5), recorder.add(1, 1.5)
    if asked:
        assert recorder.series().values.tolist() == [0.5, 1.5]
    recorder.add(2, value), recorder.add(3, 2.5)
    ones = torch.ones(shape)
    assert_same(recorder.series(), torch.stack([0.5 * ones, 1.5 * ones, value, 2.5 * ones]))


@pytest.mark.parametrize("first, second", [((2,), (3,)), ((3,), (2,)), ((2,), (2, 1)), ((1,), (4,))])
@pytest.mark.parametrize("later", [False, True])
def test_another_shape_is_refused(first, second, later):
    recorder = Recorder("rms", recorded([torch.zeros(first)]) if later else None)
    recorder.add(4, torch.zeros(first))
    with pytest.raises(ValueError) as error:
        recorder.add(5, torch.zeros(second))
    assert str(error.value) == f"rms: one shape at every step is needed, got {second} at step 5 after {first}"
    assert len(recorder.series().steps) == 1 + later


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_series_goes_on_where_another_ended(shape, at):
    values = torch.arange(5.0 * math.prod(shape)).view(5, *shape)
    before = recorded(values[:at])
    assert_same(recorded(values[at:], before), values)
    assert_same(recorded([], before), values[:at] if at else torch.empty(0))


def test_what_was_recorded_is_a_copy_and_stays():
    recorder, value = Recorder("x"), torch.zeros(2, requires_grad=True)
    recorder.add(0, value)
    first = recorder.series()
    with torch.no_grad():
        value += 1
    recorder.add(1, value)
    assert first.values.tolist() == [[0, 0]] and not first.values.requires_grad
    assert recorder.series().values.tolist() == [[0, 0], [1, 1]] == recorder.series().values.tolist()


@pytest.mark.parametrize(
    "elements, rows", [(0, 1024), (1, 1024), (2**12, 1024), (2**13, 512), (3 * 2**20, 1), (2**22 + 1, 1)]
)
def test_a_block_has_1024_records_or_four_million_numbers(elements, rows):
    recorder = Recorder("x")
    recorder.add(0, torch.zeros(elements, dtype=torch.int8))
    assert recorder._values.shape == (rows, elements) and recorder._values.dtype == torch.int8
    block = recorder._values
    recorder.add(1, torch.zeros(elements, dtype=torch.int8))
    assert (recorder._values is block) == (rows > 1)


def test_what_torch_can_make_a_tensor_of_is_recorded_too():
    recorder = Recorder("x")
    recorder.add(0, np.float32(0.5))
    recorder.add(1, np.float32(0.25))
    assert recorder.series().values.tolist() == [0.5, 0.25]
    axes = Recorder("y")
    axes.add(0, [1.0, 2.0])
    assert axes.series().values.tolist() == [[1.0, 2.0]]
