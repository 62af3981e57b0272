import math

import numpy as np
import pytest
import torch

from mmlib.stats import Interval
from mmlib.table import table


def between(mean, low, high):
    return Interval(*map(torch.tensor, (mean, low, high)))


def test_columns_line_up_under_their_names():
    rows = {"Kaiming": (0.1, 2.6441, 3), "LeCun": (1.0, 12.0, 12000)}
    assert table(rows, ("rate", "dev loss", "steps")) == (
        "         rate  dev loss   steps\nKaiming  0.10       2.6       3\nLeCun    1.00      12.0  12,000"
    )


def test_the_largest_number_of_a_column_has_three_significant_digits():
    assert table({"a": 0.012345, "b": 0.5}) == "a  0.012\nb  0.500"
    assert table({"a": 1234.5}) == "a  1,234"
    assert table({"a": 0.0}) == "a  0.00"
    assert table({"a": math.nan, "b": math.inf, "c": 2.0}) == "a   nan\nb   inf\nc  2.00"


def test_digits_may_be_given_for_all_columns_or_for_each():
    rows = {"a": (1.23456, 1.23456)}
    assert table(rows, digits=1) == "a  1.2  1.2"
    assert table(rows, digits=(0, 4)) == "a  1  1.2346"
    assert table(rows, digits=(None, 0)) == "a  1.23  1"


def test_an_interval_shows_at_least_a_fifth_of_its_half_width():
    assert table({"a": between(0.12345, 0.11345, 0.13345)}) == "a  0.123 [0.113, 0.133]"
    assert table({"a": between(-0.5, -0.9, -0.1)}, sign=True) == "a  -0.50 [-0.90, -0.10]"
    assert table({"a": between(20.0, 10.0, 30.0)}) == "a  20 [10, 30]"
    assert table({"a": between(0.5, 0.5, 0.5)}) == "a  0.500 [0.500, 0.500]"
    assert table({"a": between(math.inf, math.nan, math.nan)}) == "a  inf [no interval]"


def test_a_sign_is_shown_when_asked_and_zero_has_none_of_its_own():
    assert table({"a": -0.0001, "b": 0.5}, digits=2, sign=True) == "a  +0.00\nb  +0.50"
    assert table({"a": 3, "b": "-"}, sign=True) == "a  3\nb  -"
    assert table({"a": (1.0, 1.0)}, digits=0, sign=(False, True)) == "a  1  +1"
    with pytest.raises(ValueError, match="sign: one for each of 2 columns is needed, got 1"):
        table({"a": (1.0, 1.0)}, sign=(True,))


def test_a_pair_is_a_measurement_and_its_prediction():
    rows = {"tanh": [(0.6281, torch.tensor(0.6279)), (1.0, 12.0)], "ReLU": [(torch.tensor(0.5), 0.5), (3.0, 4.0)]}
    assert table(rows) == "tanh  0.628 (0.628)  1.0 (12.0)\nReLU  0.500 (0.500)   3.0 (4.0)"


def test_tensors_are_rows_and_numbers():
    assert table({"a": torch.tensor([1.0, 2.0]), "b": [torch.tensor(3.0), 4.5]}) == "a  1.00  2.00\nb  3.00  4.50"


def test_no_line_ends_in_a_space():
    text = table({"a": ("", "x"), "bcd": ("y", "")}, ("one", "two"))
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    "rows, options, message",
    [
        ({"a": (1, 2), "b": (1,)}, {}, r"rows: 2 cells in each are needed, got \[2, 1\]"),
        ({"a": (1, 2)}, {"columns": ("one",)}, r"rows: 1 cells in each are needed, got \[2\]"),
        ({"a": (1, 2)}, {"digits": (1,)}, "digits: one for each of 2 columns is needed, got 1"),
    ],
)
def test_what_does_not_fit_is_an_error(rows, options, message):
    with pytest.raises(ValueError, match=message):
        table(rows, **options)


def test_numbers_of_numpy_are_numbers():
    assert table({"a": [np.int64(1200), np.float32(0.5)]}) == table({"a": [1200, 0.5]})


def test_without_rows_there_is_a_head():
    assert table({}, ["rms", "units"]) == "  rms  units"


@pytest.mark.parametrize("cell", [True, None, torch.ones(2, 2), 1j])
def test_a_cell_that_is_no_number_is_an_error(cell):
    with pytest.raises(TypeError, match="cells: a number, an Interval, a pair or a word is needed"):
        table({"a": [cell]})
