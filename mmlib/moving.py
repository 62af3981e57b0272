"""Figures that move under the reader's hand without a kernel: numbers over a grid of controls, as one rich output.

The page carries every number that a control can reach, rounded, and a picture and a table of the state at the start.
A script of the book redraws the picture; without it, and on paper, the picture and the table are what is seen.
"""

import base64
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
from torch import Tensor

from mmlib.plots import KINDS, Axis, Curve, Frame, png, stairs

BUDGET = 60_000
"""Bytes of data that one figure may bring to a page."""

_ROWS = 9  # of the table that stands for a slider


@dataclass(frozen=True)
class Slider:
    """A quantity that the reader drags: its values in the order of the slider, and the one at the start."""

    label: str
    values: Sequence[float]
    start: float
    unit: str = ""

    @property
    def names(self) -> list[str]:
        """What each position is called."""
        return [f"{value:.3g} {self.unit}".strip().replace("-", "−") for value in self.values]

    @property
    def first(self) -> int:
        """The position at the start."""
        return list(self.values).index(self.start)


@dataclass(frozen=True)
class Choice:
    """A native select: its options, the first of them at the start unless `start` names another."""

    label: str
    values: Sequence[str]
    start: str = ""

    @property
    def names(self) -> list[str]:
        """What each position is called."""
        return list(self.values)

    @property
    def first(self) -> int:
        """The position at the start."""
        return self.names.index(self.start) if self.start else 0


Control = Slider | Choice


@dataclass(frozen=True)
class Grid:
    """Numbers for every combination of some controls: one axis for each, in the order named, then at most one more.

    Stored with `digits` significant digits and at most `decimals` decimals: give fewer where fewer hold on another
    processor. Integers are stored as they are. Instead of numbers there may be (nested) lists of words.
    """

    controls: tuple[str, ...]
    values: Tensor | Sequence[Any]
    digits: int = 3
    decimals: int = 25

    @cached_property
    def array(self) -> np.ndarray:
        """The values as a NumPy array."""
        return self.values.detach().numpy() if isinstance(self.values, Tensor) else np.asarray(self.values)


@dataclass(frozen=True)
class Mark:
    """What is drawn on a panel from arrays given by name: `kind` and `look` as in `plots.Curve`.

    An array is read at the present state of its controls; `along` names the one control whose whole axis is taken
    instead, so that a curve over all of a slider's values and the point at the present one share their numbers. The
    name of a slider stands for its own values.
    """

    kind: str
    x: str
    y: str
    label: str = ""
    look: int | str = 0
    along: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes, and in `alt` what it shows, for those who do not see it."""

    title: str
    alt: str
    x: Axis
    y: Axis
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Number:
    """A current number, or words, said in text: the array that holds it, at the present state."""

    label: str
    array: str
    unit: str = ""


def shown(value: float | str, digits: int = 3, decimals: int = 25) -> str:
    """A number in so many digits and decimals, as the page writes it; whole numbers and words as they are.

    >>> shown(1.5925), shown(0.0001), shown(7)
    ('1.59', '1.00 × 10⁻⁴', '7')
    """
    if isinstance(value, str):
        return value
    if value == 0 or isinstance(value, int):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    places = min(digits - 1 - power, decimals)
    if -3 <= power < 4:
        return f"{float(f'{mantissa}e{exponent}'):.{max(0, places)}f}".replace("-", "−")
    return f"{float(mantissa):.{max(0, places + power)}f} × {_power(power)}".replace("-", "−")


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _stored(value: float, digits: int, decimals: int) -> str:
    """A JSON number with a decimal point or an exponent, and no digit beyond those that count.

    Such numbers are compared to one unit of the last place; 1230.0 would claim two places too many.
    """
    power = math.floor(math.log10(abs(value))) if value else 0
    places = min(digits - 1 - power, decimals)
    rounded = Decimal(value).quantize(Decimal((0, (1,), -places)))
    if not rounded:
        return "0.0"
    return f"{rounded}" if places > 0 else f"{rounded:E}"


class _Output:
    """What a moving figure and a game have in common: words, and a budget for their data."""

    name: str
    title: str
    summary: str

    @property
    def _bytes(self) -> int:
        raise NotImplementedError

    def _refuse(self, what: str, reason: str) -> None:
        raise ValueError(f"moving figure {self.name!r}, {what}: {reason}")

    def _check_words(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.name):
            self._refuse("name", f"lower-case letters, digits and hyphens are needed, got {self.name!r}")
        for what in ("title", "summary"):
            if not getattr(self, what).strip():
                self._refuse(what, "words are needed, got none")

    def _check_budget(self, largest: str) -> None:
        if (size := self._bytes) > BUDGET:
            self._refuse(largest, f"{size / 1000:.1f} KB of data, of which most here; {BUDGET / 1000:.0f} are allowed")


@dataclass(frozen=True)
class Moving(_Output):
    """A figure whose `controls` move what `panels` draw and `numbers` say, out of `arrays` over the grid of controls.

    In a notebook it is one output: text/html, image/png and text/plain. Ids come from `name`. `summary` is the finding
    in a sentence or two, its caption.

    Raises ValueError, with the figure's name, the array and the reason, for an array that does not fit the grid, holds
    nan or infinity, or is not there; for a missing description or caption; and beyond BUDGET bytes.
    """

    name: str
    title: str
    summary: str
    controls: Mapping[str, Control]
    arrays: Mapping[str, Grid]
    panels: Sequence[Panel]
    numbers: Sequence[Number]

    def __post_init__(self) -> None:
        self._check_words()
        if not self.controls:
            self._refuse("controls", "at least one is needed")
        for key, control in self.controls.items():
            self._check_control(key, control)
        for key, grid in self.arrays.items():
            self._check_grid(key, grid)
        for panel in self.panels:
            if not panel.alt.strip():
                self._refuse(f"panel {panel.title!r}", "a description (alt) is needed, got none")
            for axis in (panel.x, panel.y):
                if not (math.isfinite(axis.low) and math.isfinite(axis.high) and axis.low < axis.high):
                    self._refuse(f"axis {axis.label!r}", f"low < high is needed, got {axis.low} and {axis.high}")
                if axis.log and axis.low <= 0:
                    self._refuse(f"axis {axis.label!r}", f"a logarithmic axis starts above 0, got {axis.low}")
            for mark in panel.marks:
                self._check_mark(mark)
        for number in self.numbers:
            if np.ndim(self._at(number.array, self.start)):
                self._refuse(number.array, "one number for each state is needed to be said in text")
        sizes = {key: len(_json(*self._plain(key)).encode()) for key in self.arrays}
        self._check_budget(max(sizes, key=lambda key: sizes[key], default="data"))

    def _check_control(self, key: str, control: Control) -> None:
        if not control.label.strip():
            self._refuse(key, "a control needs a label")
        if len(control.values) < 2 or len(set(control.names)) < len(control.names):
            self._refuse(key, f"at least two values that are shown differently are needed, got {control.names}")
        if control.start != "" and control.start not in list(control.values):
            self._refuse(key, f"the start is one of {control.names}, got {control.start}")

    def _check_grid(self, key: str, grid: Grid) -> None:
        unknown = [c for c in grid.controls if c not in self.controls]
        if unknown:
            self._refuse(key, f"its axes are controls, one of {list(self.controls)}, got {unknown[0]!r}")
        if key in self.controls:
            self._refuse(key, "is the name of a control, which stands for its own values")
        shape, expected = grid.array.shape, tuple(len(self.controls[c].values) for c in grid.controls)
        if shape[: len(expected)] != expected or len(shape) > len(expected) + 1:
            self._refuse(key, f"shape {expected}, or with one more axis, is needed over {grid.controls}, got {shape}")
        if grid.array.dtype.kind == "f" and not np.isfinite(grid.array).all():
            where = np.argwhere(~np.isfinite(grid.array))[0].tolist()
            self._refuse(key, f"finite numbers are needed, got {grid.array[tuple(where)]} at {where}")

    def _check_mark(self, mark: Mark) -> None:
        if mark.kind not in KINDS:
            self._refuse(f"mark {mark.label!r}", f"one of {', '.join(KINDS)} is needed, got {mark.kind!r}")
        if mark.along and mark.along not in self.controls:
            self._refuse(f"mark {mark.label!r}", f"along: one of {list(self.controls)} is needed, got {mark.along!r}")
        x, y = (np.atleast_1d(self._at(key, self.start, mark.along)) for key in (mark.x, mark.y))
        if mark.kind in ("line", "points", "bars") and x.shape != y.shape:
            self._refuse(mark.y, f"as many values as {mark.x} has are needed, {x.shape}, got {y.shape}")
        if mark.kind == "bars" and len(x) < 2:
            self._refuse(mark.x, "at least two bars are needed")

    @cached_property
    def start(self) -> dict[str, int]:
        """The position of every control at the start."""
        return {key: control.first for key, control in self.controls.items()}

    def _grid(self, key: str) -> Grid:
        if key in self.controls:
            return Grid((key,), self.controls[key].values)
        if key not in self.arrays:
            self._refuse(key, f"no such array; there are {[*self.arrays, *self.controls]}")
        return self.arrays[key]

    def _at(self, key: str, state: Mapping[str, int], along: str = "") -> Any:
        grid = self._grid(key)
        return grid.array[tuple(slice(None) if c == along else state[c] for c in grid.controls)]

    def said(self, state: Mapping[str, int]) -> list[str]:
        """The numbers at a state, as the page writes them, without their units."""
        return [self._shown(number.array, state) for number in self.numbers]

    def _shown(self, key: str, state: Mapping[str, int]) -> str:
        grid, value = self._grid(key), self._at(key, state).item()
        stored = float(_stored(value, grid.digits, grid.decimals)) if isinstance(value, float) else value
        return shown(stored, grid.digits, grid.decimals)

    def frames(self, state: Mapping[str, int]) -> list[Frame]:
        """What the panels show at a state."""
        return [
            Frame(panel.title, panel.x, panel.y, [self._curve(mark, state) for mark in panel.marks])
            for panel in self.panels
        ]

    def _precision(self, key: str) -> tuple[int, int]:
        """Digits and decimals; 0 digits for whole numbers and words."""
        grid = self._grid(key)
        return (grid.digits if grid.array.dtype.kind == "f" else 0), grid.decimals

    def _curve(self, mark: Mark, state: Mapping[str, int]) -> Curve:
        x, y = (np.atleast_1d(self._at(key, state, mark.along)).tolist() for key in (mark.x, mark.y))
        return Curve(mark.kind, x, y, mark.label, mark.look)

    def _plain(self, key: str) -> tuple[Any, int, int]:
        grid = self.arrays[key]
        if grid.array.dtype.kind not in "US":
            return {"over": list(grid.controls), "values": grid.array}, grid.digits, grid.decimals
        words, index = np.unique(grid.array, return_inverse=True)
        return {"over": list(grid.controls), "values": index.reshape(grid.array.shape), "words": words.tolist()}, 0, 0

    @property
    def _bytes(self) -> int:
        return len(self.data.encode())

    @cached_property
    def data(self) -> str:
        """Every number that a control can reach, as JSON with sorted keys."""
        arrays = ",".join(f"{json.dumps(key)}:{_json(*self._plain(key))}" for key in sorted(self.arrays))
        rest = {
            "controls": {key: list(control.values) for key, control in self.controls.items()},
            "numbers": [[n.array, n.unit, *self._precision(n.array)] for n in self.numbers],
            "panels": [
                {
                    "marks": [[m.kind, m.x, m.y, m.along] for m in panel.marks],
                    "x": [panel.x.low, panel.x.high, panel.x.log],
                    "y": [panel.y.low, panel.y.high, panel.y.log],
                }
                for panel in self.panels
            ],
        }
        controls, *others = (f"{json.dumps(key)}:{_json(value, 6, 12)}" for key, value in rest.items())
        return "{" + ",".join((f'"arrays":{{{arrays}}}', controls, *others)) + "}"

    @property
    def table(self) -> list[list[str]]:
        """The numbers in words, a head and then a row for values of the first control, the others as at the start."""
        key, control = next(iter(self.controls.items()))
        step = max(1, math.ceil((len(control.values) - 1) / (_ROWS - 1)))
        rows = sorted({*range(0, len(control.values), step), control.first, len(control.values) - 1})
        head = [control.label, *(f"{n.label} ({n.unit})" if n.unit else n.label for n in self.numbers)]
        return [head, *([control.names[k], *self.said({**self.start, key: k})] for k in rows)]

    def __str__(self) -> str:
        others = [f"{c.label}: {c.names[c.first]}" for c in itertools.islice(self.controls.values(), 1, None)]
        widths = [max(map(len, column)) for column in zip(*self.table, strict=True)]
        rows = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in self.table]
        return "\n".join([self.title, *others, "", *rows])

    def _repr_html_(self) -> str:
        return _page(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        picture = base64.b64encode(png(self.frames(self.start))).decode()
        return {"text/html": _page(self), "image/png": picture, "text/plain": str(self)}


def _json(value: Any, digits: int, decimals: int) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(k)}:{_json(value[k], digits, decimals)}" for k in sorted(value)) + "}"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_json(x, digits, decimals) for x in value) + "]"
    if isinstance(value, float):
        return _stored(value, digits, decimals)
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/")


# The picture. Coordinates are those of a panel, 340 wide; what is drawn on it stands in an inner svg, which cuts off
# what lies beyond. The script of the book draws the same paths; a test in a browser compares them.

WIDTH, HEIGHT = 340, 216
LEFT, TOP, ACROSS, DOWN = 46, 24, 284, 146
_BEYOND = 50  # how far outside a point may lie: a line that leaves keeps its direction near the edge, and few digits


def _scale(axis: Axis, value: float) -> float:
    """0 at the low end, 1 at the high."""
    low, high, value = (math.log10(max(x, 1e-300)) if axis.log else x for x in (axis.low, axis.high, value))
    return (value - low) / (high - low)


def _across(axis: Axis, value: float) -> float:
    return min(max(_scale(axis, value) * ACROSS, -_BEYOND), ACROSS + _BEYOND)


def _down(axis: Axis, value: float) -> float:
    return min(max((1 - _scale(axis, value)) * DOWN, -_BEYOND), DOWN + _BEYOND)


def _path(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    """The curve as an SVG path. Numbers stand apart, so that they can be compared as numbers."""
    kind, x, y, *_ = curve
    if kind == "across":
        return f"M 0.0 {_down(y_axis, y[0]):.1f} L {ACROSS:.1f} {_down(y_axis, y[0]):.1f}"
    if kind == "up":
        return f"M {_across(x_axis, x[0]):.1f} 0.0 L {_across(x_axis, x[0]):.1f} {DOWN:.1f}"
    if kind == "stairs":
        x, y = stairs(y)
    across = [_across(x_axis, value) for value in x]
    down = [_down(y_axis, value) for value in y]
    if kind == "points":
        return " ".join(f"M {a:.1f} {b:.1f} h 0.01" for a, b in zip(across, down, strict=True))
    if kind == "bars":
        half = 0.45 * abs(across[1] - across[0])
        sides = [(a - half, a + half) for a in across]
        return " ".join(
            f"M {left:.1f} {DOWN:.1f} L {left:.1f} {b:.1f} L {right:.1f} {b:.1f} L {right:.1f} {DOWN:.1f} Z"
            for (left, right), b in zip(sides, down, strict=True)
        )
    return "M " + " L ".join(f"{a:.1f} {b:.1f}" for a, b in zip(across, down, strict=True))


def _ticks(axis: Axis, most: int) -> Iterator[tuple[float, str]]:
    """At most about `most` places with their names: round numbers, or powers of ten."""
    if axis.ticks:
        yield from ((tick, f"{tick:g}".replace("-", "−")) for tick in axis.ticks)
    elif axis.log:
        low, high = math.ceil(math.log10(axis.low) - 1e-9), math.floor(math.log10(axis.high) + 1e-9)
        every = math.ceil((high - low + 1) / most)
        yield from ((10.0**k, "1" if k == 0 else _power(k)) for k in range(low, high + 1) if k % every == 0)
    else:
        rough = (axis.high - axis.low) / most
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
        first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
        yield from ((k * step, f"{round(k * step, 12):g}".replace("-", "−")) for k in range(first, last + 1))


def _svg(panel: Panel, frame: Frame) -> str:
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.alt)}">']
    parts.append(f'<text x="2" y="14">{escape(panel.y.label)}</text>')
    parts.append(f'<text x="{LEFT + ACROSS}" y="{HEIGHT - 8}" text-anchor="end">{escape(panel.x.label)}</text>')
    for value, name in _ticks(panel.x, 6):
        at = LEFT + _across(panel.x, value)
        parts.append(f'<path class="moving-grid" d="M {at:.1f} {TOP} v {DOWN}"/>')
        parts.append(f'<text x="{at:.1f}" y="{TOP + DOWN + 16}" text-anchor="middle">{name}</text>')
    for value, name in _ticks(panel.y, 5):
        at = TOP + _down(panel.y, value)
        parts.append(f'<path class="moving-grid" d="M {LEFT} {at:.1f} h {ACROSS}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{name}</text>')
    parts.append(f'<path class="moving-axes" d="M {LEFT} {TOP} v {DOWN} h {ACROSS}"/>')
    parts.append(f'<svg class="moving-drawn" x="{LEFT}" y="{TOP}" width="{ACROSS}" height="{DOWN}">')
    for curve in frame.curves:
        d = _path(curve, panel.x, panel.y)
        parts.append(f'<path class="moving-{curve.kind} moving-{curve.look}" d="{d}"/>')
    return "".join([*parts, "</svg></svg>"])


_SAMPLE = {"points": "M 13 5 h 0.01", "bars": "M 4 1 h 18 v 8 h -18 Z", "up": "M 13 0 v 10"}


def _legend(panel: Panel) -> str:
    items = (
        f'<li><svg viewBox="0 0 26 10" width="26" height="10" aria-hidden="true"><path class="moving-{m.kind} '
        f'moving-{m.look}" d="{_SAMPLE.get(m.kind, "M 0 5 h 26")}"/></svg> {escape(m.label)}</li>'
        for m in panel.marks
        if m.label
    )
    inner = "".join(items)
    return f'<ul class="moving-legend">{inner}</ul>' if inner else ""


def _control(key: str, control: Control) -> str:
    names = [escape(name) for name in control.names]
    if isinstance(control, Choice):
        options = "".join(
            f"<option{' selected' * (k == control.first)}>{name}</option>" for k, name in enumerate(names)
        )
        field = f'<select data-control="{key}">{options}</select>'
    else:
        value = names[control.first]
        field = (
            f'<input type="range" data-control="{key}" min="0" max="{len(names) - 1}" step="1" '
            f'value="{control.first}" aria-valuetext="{value}" data-names="{"|".join(names)}">'
            f'<span class="moving-value" aria-hidden="true">{value}</span>'
        )
    return f'<label class="moving-control"><span>{escape(control.label)}</span> {field}</label>'


def _table(title: str, caption: str, rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows[1:]
    )
    # It scrolls sideways on a phone, so the keyboard has to reach it.
    return (
        f'<details class="moving-table" open><summary>{escape(caption)}</summary>'
        f'<div tabindex="0" role="group" aria-label="{escape(title)}: {escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _page(figure: Moving) -> str:
    controls = "".join(_control(key, control) for key, control in figure.controls.items())
    panels = "".join(
        f'<div class="moving-panel"><p class="moving-title">{escape(panel.title)}</p>{_svg(panel, frame)}'
        f"{_legend(panel)}</div>"
        for panel, frame in zip(figure.panels, figure.frames(figure.start), strict=True)
    )
    said = "".join(
        f"<span>{escape(number.label)} <b>{escape(f'{value} {number.unit}'.strip())}</b></span>"
        for number, value in zip(figure.numbers, figure.said(figure.start), strict=True)
    )
    others = [f"{c.label} {c.names[c.first]}" for c in itertools.islice(figure.controls.values(), 1, None)]
    caption = "The numbers" + (f" ({', '.join(others)})" if others else "")
    title = escape(figure.title)
    return (
        f'<figure class="moving" id="moving-{figure.name}" role="group" aria-label="{title}">'
        f'<p class="moving-name">{title}</p>'
        f'<div class="moving-controls" hidden>{controls}</div>'
        f'<output class="moving-numbers" aria-live="polite">{said}</output>'
        f'<div class="moving-panels">{panels}</div>'
        f"{_table(figure.title, caption, figure.table)}"
        f"<figcaption>{escape(figure.summary)}</figcaption>"
        f'<script type="application/json">{figure.data}</script></figure>'
    )


@dataclass(frozen=True)
class Fault:
    """One thing that may be wrong: its name, how it is known, and the hint to who took it for something else."""

    name: str
    why: str
    hint: str


@dataclass(frozen=True)
class Check:
    """A question that can be bought, its cost, and the answer for every fault, in their order."""

    label: str
    cost: int
    results: Sequence[str]


@dataclass(frozen=True)
class Game(_Output):
    """A blind diagnosis: one hidden fault in each patient, checks to be bought in any order, a fault to be named.

    `hidden` gives for each patient the place of its fault in `faults`. One output as `Moving`, with the table of all
    results and what the patients have in place of the picture. Raises ValueError as `Moving` does.
    """

    name: str
    title: str
    summary: str
    unit: str
    faults: Sequence[Fault]
    checks: Sequence[Check]
    hidden: Sequence[int]

    def __post_init__(self) -> None:
        self._check_words()
        for check in self.checks:
            if len(check.results) != len(self.faults) or not all(map(str.strip, check.results)):
                self._refuse(check.label, f"a result for each of {len(self.faults)} faults is needed")
            if check.cost < 0:
                self._refuse(check.label, f"a cost of 0 or more is needed, got {check.cost}")
        if not self.hidden or not set(self.hidden) <= set(range(len(self.faults))):
            self._refuse("hidden", f"places in {len(self.faults)} faults are needed, got {list(self.hidden)}")
        self._check_budget("checks")

    @property
    def _bytes(self) -> int:
        return len(self.data.encode())

    @cached_property
    def data(self) -> str:
        """Checks, faults and what the patients have, as JSON with sorted keys."""
        checks = [{"cost": c.cost, "results": [c.results[fault] for fault in self.hidden]} for c in self.checks]
        faults = [{"name": fault.name, "why": fault.why, "hint": fault.hint} for fault in self.faults]
        return _json({"checks": checks, "faults": faults, "hidden": list(self.hidden), "unit": self.unit}, 3, 12)

    @property
    def patients(self) -> list[str]:
        """What the patients are called."""
        return [str(k) for k in range(1, len(self.hidden) + 1)]

    @property
    def table(self) -> list[list[str]]:
        """All results, and the fault in the last column."""
        head = ["patient", *(check.label for check in self.checks), "fault"]
        rows = zip(self.patients, self.hidden, strict=True)
        return [head, *([p, *(c.results[k] for c in self.checks), self.faults[k].name] for p, k in rows)]

    def __str__(self) -> str:
        return "\n".join([self.title, "", *("  ".join(row).strip() for row in self.table)])

    def _repr_html_(self) -> str:
        return _board(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": _board(self), "text/plain": str(self)}


def _select(label: str, names: Sequence[str]) -> str:
    options = "".join(f"<option>{escape(name)}</option>" for name in names)
    return f'<label class="moving-control"><span>{label}</span> <select>{options}</select></label>'


def _board(game: Game) -> str:
    checks = "".join(
        f'<div class="moving-check" data-check="{k}"><button type="button">{escape(check.label)} '
        f'({check.cost:,} {escape(game.unit)})</button><span class="moving-result" role="status"></span></div>'
        for k, check in enumerate(game.checks)
    )
    title = escape(game.title)
    answer = _select("its fault", [fault.name for fault in game.faults])
    return (
        f'<figure class="moving moving-game" id="moving-{game.name}" role="group" aria-label="{title}">'
        f'<p class="moving-name">{title}</p>'
        f'<div class="moving-controls" hidden>{_select("patient", game.patients)}</div>'
        f'<div class="moving-controls moving-checks" hidden><div>{checks}</div></div>'
        f'<div class="moving-controls" hidden>{answer}'
        '<button type="button" class="moving-answer">Name it</button></div>'
        '<output class="moving-numbers" aria-live="polite"></output>'
        f"{_table(game.title, 'All results, and what the patients have', game.table)}"
        f"<figcaption>{escape(game.summary)}</figcaption>"
        f'<script type="application/json">{game.data}</script></figure>'
    )
