"""Numbers as a table of text: columns that line up, and digits that another machine prints too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mmlib.stats import Interval

LINE = 96  # characters of a line of output that a page of the book shows without scrolling
_DIGITS = 3  # significant digits of the largest number of a column


def _decimals(size: float, digits: int) -> int:
    """How many decimals show `size` with that many significant digits."""
    return max(0, digits - 1 - math.floor(math.log10(size))) if size and math.isfinite(size) else digits - 1


def _number(x: float, decimals: int, sign: str) -> str:
    return f"{x:{sign}z,.{decimals}f}"


def _interval(x: Interval, decimals: int | None, sign: str) -> str:
    mean, low, high = map(float, x)
    if not math.isfinite(high - low):
        return f"{_number(mean, decimals or 0, sign)} [no interval]"
    if decimals is None:
        decimals = max(0, math.ceil(math.log10(5 / half))) if (half := (high - low) / 2) else _DIGITS
    texts = [_number(value, decimals, sign) for value in (mean, low, high)]
    return "{} [{}, {}]".format(*texts)


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2


def _column(cells: Sequence[Any], decimals: int | None, sign: str) -> list[str]:
    cells = [x.item() if isinstance(x, (Tensor, np.generic)) and math.prod(x.shape) == 1 else x for x in cells]
    flat = [y for x in cells for y in (map(float, x) if _is_pair(x) else (x,))]
    numbers = [abs(x) for x in flat if isinstance(x, float) and math.isfinite(x)]
    common = _decimals(max(numbers, default=0.0), _DIGITS) if decimals is None else decimals
    text = []
    for x in cells:
        if isinstance(x, Interval):
            text.append(_interval(x, decimals, sign))
        elif _is_pair(x):
            text.append("{} ({})".format(*(_number(float(value), common, sign) for value in x)))
        elif isinstance(x, float):
            text.append(_number(x, common, sign))
        elif isinstance(x, int) and not isinstance(x, bool):
            text.append(f"{x:,}")
        elif isinstance(x, str):
            text.append(x)
        else:
            raise TypeError(f"cells: a number, an Interval, a pair or a word is needed, got {x!r}")
    return text


def table(
    rows: Mapping[Any, Sequence[Any] | Any],
    columns: Sequence[str] = (),
    *,
    digits: int | Sequence[int | None] | None = None,
    sign: bool | Sequence[bool] = False,
) -> str:
    """Lines of text: the name of each row, then its cells under the names of their columns, flush right.

    `rows` maps a name to a sequence of cells, or to a single one. A cell is a number, a tensor of one number, an
    `Interval`, written as mean [low, high], a pair, written as measured (predicted), or a word. `digits` is the number
    of decimals, for all columns or for each; None, as without it, gives the largest number of a column three
    significant digits, and an interval so many that a unit of the last place is at most a fifth of its half width: a
    difference between machines that is far below the noise of the seeds is not seen. Whole numbers are written out.
    `sign` puts a + before positive numbers, as for differences, in all columns or in some. No line ends in a space.

    Raises ValueError if rows differ in length, or columns, digits or sign do not fit; TypeError for any other cell.

    >>> print(table({'tanh': [0.5, 12], 'ReLU': [0.25, 7]}, ['rms', 'units']))
            rms  units
    tanh  0.500     12
    ReLU  0.250      7
    """
    cells = [list(row) if _is_row(row) else [row] for row in rows.values()]
    width = len(cells[0]) if cells else len(columns)
    if any(len(row) != width for row in cells) or (columns and len(columns) != width):
        raise ValueError(f"rows: {len(columns) or width} cells in each are needed, got {[len(row) for row in cells]}")
    each = [digits] * width if digits is None or isinstance(digits, int) else list(digits)
    signs = [sign] * width if isinstance(sign, bool) else list(sign)
    for name, given in (("digits", each), ("sign", signs)):
        if len(given) != width:
            raise ValueError(f"{name}: one for each of {width} columns is needed, got {len(given)}")
    grid = [list(map(str, rows))]
    columns_of = zip(zip(*cells, strict=True) if cells else [()] * width, each, signs, strict=True)
    grid += [_column(column, decimals, "+" if plus else "") for column, decimals, plus in columns_of]
    if columns:
        grid = [[head, *column] for head, column in zip(["", *columns], grid, strict=True)]
    widths = [max(map(len, column), default=0) for column in grid]
    lines = []
    for first, *rest in zip(*grid, strict=True):
        padded = [first.ljust(widths[0]), *(x.rjust(w) for x, w in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _is_row(row: Any) -> bool:
    if isinstance(row, Tensor):
        return row.dim() > 0
    return isinstance(row, (list, tuple)) and not isinstance(row, Interval)
