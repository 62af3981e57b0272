"""Finished numbers onto Axes. Nothing here sees a model, computes a result or shows a figure."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from mmlib.history import Series
from mmlib.stats import Interval

# Okabe and Ito's palette, which stays apart for colour-blind readers; the yellow is too light for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FAMILIES = (
    ("tanh", "sigmoid", "ReLU", "leaky ReLU", "ELU", "GELU", "SiLU", "step", "Maxout", "identity"),
    ("Kaiming", "standard normal", "LeCun", "Xavier", "PyTorch default", "orthogonal"),
    ("no norm", "BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm"),
    ("healthy start", "naive start"),
)
_PLACES = {name: place for family in _FAMILIES for place, name in enumerate(family)}


def look(name: str | int) -> dict[str, Any]:
    """Colour, dash and marker of a curve: the same for one scheme, activation or norm in every figure.

    A number counts through the same list, for curves that have no name of their own, such as layers. From the ninth on
    colours return, with another dash and marker. Raises KeyError for an unknown name.
    """
    turn, place = divmod(name if isinstance(name, int) else _PLACES[name], len(_COLOURS))
    shape = (place + turn) % len(_COLOURS)
    return {"color": _COLOURS[place], "linestyle": _DASHES[shape], "marker": _MARKERS[shape]}


THEORY: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2, "zorder": 3}
"""How a predicted curve is drawn through the measured points."""


def _line(name: str, index: int) -> dict[str, Any]:
    return {**look(name if name in _PLACES else index), "marker": ""}


def densities_by_layer(ax: Axes, values: Mapping[str, Tensor], *, bins: int = 80) -> None:
    """One normalised histogram a layer, drawn as a line: values of any shape by the layer's name."""
    for index, (name, x) in enumerate(values.items()):
        density, edges = np.histogram(x.detach().flatten().numpy(), bins=bins, density=True)
        ax.plot((edges[1:] + edges[:-1]) / 2, density, label=name, **_line(name, index))
    ax.set_ylabel("density")
    ax.legend()


def over_time(ax: Axes, series: Mapping[str, Series]) -> None:
    """One line for each series against the step; where values have a second axis, the seeds, their mean and range."""
    for index, (name, (steps, values)) in enumerate(series.items()):
        steps, values = steps.numpy(), values.detach().numpy()
        style = _line(name, index)
        if values.ndim == 1:
            ax.plot(steps, values, label=name, **style)
        else:
            ax.plot(steps, values.mean(1), label=name, **style)
            ax.fill_between(steps, values.min(1), values.max(1), color=style["color"], alpha=0.25, linewidth=0)
    ax.set_xlabel("step")
    ax.legend()


def points(ax: Axes, x: Tensor | Sequence[float], values: Interval, name: str | int, **style: Any) -> None:
    """Measured points at x, no line between them, each with a bar from low to high. `name` is their look and label.

    `values` holds tensors of the length of x. `style` overrides, such as label=, color= or marker=.
    """
    mean, low, high = (value.detach().numpy() for value in values)
    # Of a bar without length, rounding may put an end on the other side of the mean.
    bars = (mean - low).clip(min=0), (high - mean).clip(min=0)
    ax.errorbar(x, mean, bars, **{**look(name), "label": name, "linestyle": "", **style})


def raster(ax: Axes, mask: Tensor) -> None:
    """A boolean map (examples, units), true in black."""
    ax.imshow(mask.detach().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ax.set_xlabel("unit")
    ax.set_ylabel("example")
    ax.grid(False)


def interval(ax: Axes, rows: Mapping[str, Interval]) -> None:
    """One row for each name, from the top down: a mark at the mean and a bar from low to high."""
    for index, (name, (mean, low, high)) in enumerate(rows.items()):
        style = look(name if name in _PLACES else 0)
        ax.plot([float(low), float(high)], [index, index], color=style["color"], linestyle="-", linewidth=2)
        ax.plot(float(mean), index, color=style["color"], marker=style["marker"])
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)


def dashboard(
    axes: np.ndarray,
    activations: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    weight_gradients: Mapping[str, Tensor],
    updates: Mapping[str, Series],
    *,
    bins: int = 80,
) -> None:
    """The four figures of one network on axes (2, 2), by layer: three densities, and log10(update:data) against -3.

    One legend for all four, with the names in `updates`, stands above them: the k-th layer of each mapping looks alike.
    """
    titles = ("activations", "their gradients", "weight gradients")
    for ax, title, values in zip(axes.flat, titles, (activations, gradients, weight_gradients), strict=False):
        densities_by_layer(ax, values, bins=bins)
        ax.get_legend().remove()
        ax.set_title(title)
    last = axes[1, 1]
    over_time(last, updates)
    last.get_legend().remove()
    last.axhline(-3, **THEORY)
    last.set_title("log10 update:data")
    axes[0, 1].set_ylabel("")
    last.figure.legend(*last.get_legend_handles_labels(), loc="outside upper center", ncols=len(updates))


class Axis(NamedTuple):
    """One axis: what it shows, from where to where, in powers of ten or not, and the ticks if they are not to be found.

    `low` and `high` stay as they are whatever is drawn, so that a change can be seen; what lies beyond is cut off.
    """

    label: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = ()


class Curve(NamedTuple):
    """Numbers to draw: `kind` is one of KINDS; `look` counts through the colours, or is "theory" or "ghost".

    "line" and "points" are what they say, "bars" stand on the axis around x, at equal distances. "across" is a line at
    height y, "up" one at x. "stairs" goes from (q_1, q_1) up to q_2, across to (q_2, q_2), and on.
    """

    kind: str
    x: Sequence[float]
    y: Sequence[float]
    label: str
    look: int | str


class Frame(NamedTuple):
    """A pair of axes with curves on it."""

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve]


KINDS = ("line", "points", "bars", "across", "up", "stairs")
_COLOURS_OF_A_PICTURE = 64  # a quarter of the bytes of all colours, and no difference that can be seen
_GHOST = {"color": "0.75", "linestyle": "-", "linewidth": 4, "zorder": 1}


def stairs(q: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of a staircase between a map and the diagonal: (q_1, q_1), (q_1, q_2), (q_2, q_2), ..."""
    twice = [value for value in q for _ in range(2)]
    return twice[:-1], [twice[0], *twice[2:]]


def frames(axes: Sequence[Axes], drawn: Sequence[Frame]) -> None:
    """One frame on each of the axes, each with a legend of its named curves below it."""
    for ax, (title, x, y, curves) in zip(axes, drawn, strict=True):
        ax.set(title=title, xlabel=x.label, ylabel=y.label)
        for axis, (_, low, high, log, ticks) in (("x", x), ("y", y)):
            ax.set(**{f"{axis}scale": "log" if log else "linear", f"{axis}lim": (low, high)})
            if ticks:
                ax.set(**{f"{axis}ticks": ticks, f"{axis}ticklabels": [f"{tick:g}" for tick in ticks]})
                getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())
        for curve in curves:
            _draw(ax, curve)
        if any(curve.label for curve in curves):
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize="small")


def _draw(ax: Axes, curve: Curve) -> None:
    kind, x, y, label, chosen = curve
    style = {"theory": THEORY, "ghost": _GHOST}.get(chosen) or {**look(chosen), "marker": ""}
    style = {**style, "label": label or None}
    if kind == "across":
        ax.axhline(float(y[0]), **style)
    elif kind == "up":
        ax.axvline(float(x[0]), **style)
    elif kind == "bars":
        ax.bar(x, y, width=0.9 * (x[1] - x[0]), color=style["color"], label=style["label"])
    elif kind == "points":
        ax.plot(x, y, **{**style, "linestyle": "", "marker": "o", "zorder": 4})
    else:
        ax.plot(*(stairs(y) if kind == "stairs" else (x, y)), **style)


def png(drawn: Sequence[Frame]) -> bytes:
    """The frames as a PNG picture, at most two beside each other."""
    rows, columns = -(-len(drawn) // 2), min(2, len(drawn))
    figure = Figure(figsize=(4.4 * columns, 3.8 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[len(drawn) :]:
        ax.remove()
    frames(axes[: len(drawn)], drawn)
    canvas, file = FigureCanvasAgg(figure), io.BytesIO()
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(_COLOURS_OF_A_PICTURE).save(file, "PNG", optimize=True)
    return file.getvalue()
