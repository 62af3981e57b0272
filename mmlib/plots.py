"""Finished numbers onto Axes. Nothing here sees a model, computes a result or shows a figure."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from mmlib.comparison import Comparison
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

    >>> sorted(look('tanh'))
    ['color', 'linestyle', 'marker']
    """
    turn, place = divmod(name if isinstance(name, int) else _PLACES[name], len(_COLOURS))
    shape = (place + turn) % len(_COLOURS)
    return {"color": _COLOURS[place], "linestyle": _DASHES[shape], "marker": _MARKERS[shape]}


THEORY: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2, "zorder": 3}
"""How a predicted curve is drawn through the measured points."""


def _line(name: str, index: int) -> dict[str, Any]:
    return {**look(name if name in _PLACES else index), "marker": ""}


def densities_by_layer(ax: Axes, values: Mapping[str, Tensor], *, bins: int = 80, log: bool = False) -> None:
    """One normalised histogram a layer, drawn as a line: values of any shape by the layer's name.

    With `log` it is the density of log10 |x|, per decade, in ten bins a decade instead of `bins`, on logarithmic axes:
    a needle and a wide curve have the same shape there and differ in place. A normal distribution of standard deviation
    s has its peak at s. Zeros have no place on that axis; the area under the line is the share of the others.

    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> densities_by_layer(ax, {'layer 1': torch.linspace(-1, 1, 100), 'layer 2': torch.linspace(-1, 1, 100)})
    >>> len(ax.lines)
    2
    """
    for index, (name, x) in enumerate(values.items()):
        flat = x.detach().flatten().numpy()
        seen = flat
        edges: int | np.ndarray = bins
        if log:
            seen = np.log10(np.abs(flat[flat != 0]))
            # Whole tenths: the smallest number is another one on another machine, and the largest |tanh| may be 1.
            edges = np.arange(np.floor(10 * seen.min()), np.ceil(np.round(10 * seen.max(), 3)) + 1) / 10
            seen = seen.clip(max=edges[-1])
        density, edges = np.histogram(seen, bins=edges, density=True)
        centres = (edges[1:] + edges[:-1]) / 2
        if log:
            centres, density = 10**centres, density * len(seen) / len(flat)
        ax.plot(centres, density, label=name, **_line(name, index))
    if log:
        ax.set_xscale("log")
    ax.set_ylabel("density per decade" if log else "density")
    ax.legend()


def over_time(ax: Axes, series: Mapping[str, Series]) -> None:
    """One line for each series against the step; where values have a second axis, the seeds, their mean and range.

    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> over_time(ax, {'loss': Series(torch.arange(3), torch.tensor([3.3, 3.0, 2.8]))})
    >>> ax.lines[0].get_label()
    'loss'
    """
    for index, (name, one) in enumerate(series.items()):
        steps, values = (x.detach().numpy() for x in one)
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

    >>> from mmlib.stats import interval
    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> points(ax, [1, 2], interval(torch.tensor([[1.0, 2.0], [1.2, 2.1]])), 'tanh')
    >>> ax.get_legend_handles_labels()[1]
    ['tanh']
    """
    mean, low, high = (value.detach().numpy() for value in values)
    # Of a bar without length, rounding may put an end on the other side of the mean.
    bars = (mean - low).clip(min=0), (high - mean).clip(min=0)
    ax.errorbar(x, mean, bars, **{**look(name), "label": name, "linestyle": "", **style})


def against_theory(
    ax: Axes,
    x: Tensor | Sequence[float],
    measured: Mapping[str, Interval],
    theory: Mapping[str, Tensor | Sequence[float]],
    *,
    grid: Tensor | Sequence[float] | None = None,
) -> None:
    """Points with bars at x for each name, and a dashed line through them where `theory` has a curve of that name.

    The curves are over `grid`, or x without it; all together have one entry in the legend.

    >>> from mmlib.stats import interval
    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> against_theory(ax, [1, 2], {'tanh': interval(torch.tensor([[1.0, 2.0], [1.2, 2.1]]))}, {'tanh': [0.0, 0.0]})
    >>> ax.get_legend_handles_labels()[1]
    ['theory', 'tanh']
    """
    for index, (name, values) in enumerate(measured.items()):
        points(ax, x, values, name if name in _PLACES else index, label=name)
    for index, curve in enumerate(theory.values()):
        ax.plot(x if grid is None else grid, curve, label=None if index else "theory", **THEORY)
    ax.legend()


def against_rate(ax: Axes, comparison: Comparison, steps: int | None = None, upto: float = math.inf) -> None:
    """Dev loss against the learning rate: a curve with its interval for each recipe, its best rate ringed.

    Over the judging seeds, while the rings were chosen on others. At an edge of the grid, where no rate can be called
    best, the ring is an open arrow that points beyond. A rate at which a run diverged has a cross at the top instead.
    Rates above `upto`, where runs may amplify rounding errors, are not drawn.

    >>> from mmlib.comparison import compare
    >>> import matplotlib.pyplot as plt
    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> _, ax = plt.subplots()
    >>> names, rates = corpus(), (0.1, 0.3, 1.0)
    >>> recipes = {'narrow': MLP(width=4, depth=1), 'wide': MLP(width=16, depth=1)}
    >>> result = compare(recipes, names.train, names.dev, rates=rates, choose=[0], judge=[1, 2], steps=20)
    >>> against_rate(ax, result)
    >>> ax.get_xscale()
    'log'
    """
    for index, (name, best) in enumerate(comparison.best(steps).items()):
        style = look(name if name in _PLACES else index)
        rates = np.array(comparison.rates)
        drawn = rates <= upto
        rates, curve = rates[drawn], comparison.curve(name, steps)
        mean, low, high = (value.detach().numpy()[drawn] for value in curve)
        ran = np.isfinite(mean)
        ax.plot(rates[ran], mean[ran], label=name, **style)
        ax.fill_between(rates[ran], low[ran], high[ran], color=style["color"], alpha=0.25, linewidth=0)
        top = ax.get_xaxis_transform()
        ax.plot(rates[~ran], np.full((~ran).sum(), 0.97), "x", color=style["color"], transform=top)
        if np.isfinite(float(best.loss.mean)) and best.rate <= upto:
            marker = {"": "o", "lowest": "<", "highest": ">"}[best.edge]
            ring = {"marker": marker, "markersize": 14, "linestyle": "", "color": style["color"], "fillstyle": "none"}
            ax.plot(best.rate, float(best.loss.mean), **ring, markeredgewidth=2)
    ax.set(xscale="log", xlabel="learning rate", ylabel="dev loss (nats)")
    ticks(ax, x=[rate for rate in comparison.rates if rate <= upto])
    ax.legend()


def raster(ax: Axes, mask: Tensor) -> None:
    """A boolean map (examples, units), true in black.

    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> raster(ax, torch.eye(3) > 0)
    """
    ax.imshow(mask.detach().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ax.set_xlabel("unit")
    ax.set_ylabel("example")
    ax.grid(False)


def intervals(ax: Axes, rows: Mapping[str, Interval]) -> None:
    """One row for each name, from the top down: a mark at the mean and a bar from low to high.

    >>> from mmlib.stats import interval
    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> intervals(ax, {'a': interval(torch.tensor([1.0, 1.2])), 'b': interval(torch.tensor([1.0, 1.2]))})
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['a', 'b']
    """
    for index, (name, (mean, low, high)) in enumerate(rows.items()):
        style = look(name if name in _PLACES else 0)
        ax.plot([float(low), float(high)], [index, index], color=style["color"], linestyle="-", linewidth=2)
        ax.plot(float(mean), index, color=style["color"], marker=style["marker"])
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)


def differences(ax: Axes, rows: Mapping[str, Interval], label: str) -> None:
    """Intervals of differences as rows, with a line at 0; `label` says what was subtracted from what, and the unit.

    >>> from mmlib.stats import interval
    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> differences(ax, {'a': interval(torch.tensor([1.0, 1.2]))}, 'loss minus that of b, nats')
    >>> ax.get_xlabel()
    'loss minus that of b, nats'
    """
    intervals(ax, rows)
    ax.axvline(0, color="black", linewidth=1, zorder=1)
    ax.set_xlabel(label)


def level(ax: Axes, y: float, text: str) -> None:
    """A thin line at a height that is known beforehand, such as log 27, with its name at the right end.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> level(ax, 3.2958, 'log 27')
    """
    ax.axhline(y, color="0.6", linewidth=1, zorder=1)
    ax.text(1, y, text, ha="right", va="bottom", transform=ax.get_yaxis_transform())


def ticks(ax: Axes, *, x: Sequence[float] | None = None, y: Sequence[float] | None = None) -> None:
    """Ticks at these numbers alone, written out: what a logarithmic axis with few of them needs.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> ticks(ax, x=[1, 2, 5])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['1', '2', '5']
    """
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        if values is not None:
            axis.set_ticks(values, [f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in values])
            axis.set_ticks([], minor=True)


def shared_legend(axes: np.ndarray | Sequence[Axes], *, columns: int = 4) -> None:
    """One legend above the figure for all axes, each name once, in place of their own.

    The figure's layout has to be constrained. Raises ValueError if no curve has a name.

    >>> import matplotlib.pyplot as plt
    >>> figure, axes = plt.subplots(1, 2, layout='constrained')
    >>> for ax in axes:
    ...     _ = ax.plot([1, 2], label='tanh')
    >>> shared_legend(axes)
    >>> len(figure.legends)
    1
    """
    flat = list(np.ravel(np.asarray(axes, dtype=object)))
    named: dict[str, Any] = {}
    for ax in flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
        if ax.get_legend() is not None:
            ax.get_legend().remove()
    if not named:
        raise ValueError("axes: no curve has a label, so that a legend would be empty")
    flat[0].figure.legend(named.values(), named, loc="outside upper center", ncols=min(columns, len(named)))


def dashboard(
    axes: np.ndarray,
    activations: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    weight_gradients: Mapping[str, Tensor],
    updates: Mapping[str, Series],
    *,
    bins: int = 80,
    log: bool = False,
) -> None:
    """The four figures of one network on axes (2, 2), by layer: three densities, and log10(update:data) against -3.

    With `log` the densities are those of log10 |x|, as `densities_by_layer` draws them, over axes named |x|. One legend
    for all four, with the names in `updates`, stands above them: the k-th layer of each mapping looks alike.

    >>> import torch
    >>> import matplotlib.pyplot as plt
    >>> from mmlib.history import Series
    >>> _, axes = plt.subplots(2, 2, layout='constrained')
    >>> values = {'layer 1': torch.linspace(-1, 1, 100)}
    >>> updates = {'layer 1': Series(torch.arange(3), torch.tensor([-3.1, -3.0, -2.9]))}
    >>> dashboard(axes, values, values, values, updates)
    >>> [ax.get_xlabel() != '' for ax in axes.flat]
    [False, False, False, True]
    """
    titles = ("activations", "their gradients", "weight gradients")
    for ax, title, values in zip(axes.flat, titles, (activations, gradients, weight_gradients), strict=False):
        densities_by_layer(ax, values, bins=bins, log=log)
        ax.get_legend().remove()
        ax.set_title(title)
        if log:
            ax.set_xlabel("|x|")
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
_LETTERS_BELOW = 40  # in a legend of three columns; more is wider than the frame, and squeezes it
_GHOST = {"color": "0.75", "linestyle": "-", "linewidth": 4, "zorder": 1}


def stairs(q: Sequence[float]) -> tuple[list[float], list[float]]:
    """The corners of a staircase between a map and the diagonal: (q_1, q_1), (q_1, q_2), (q_2, q_2), ...

    >>> stairs([4, 2, 1])
    ([4, 4, 2, 2, 1], [4, 2, 2, 1, 1])
    """
    twice = [value for value in q for _ in range(2)]
    return twice[:-1], [twice[0], *twice[2:]]


def frames(axes: np.ndarray | Sequence[Axes], drawn: Sequence[Frame]) -> None:
    """One frame on each of the axes, each with a legend of its named curves below it.

    >>> import matplotlib.pyplot as plt
    >>> _, ax = plt.subplots()
    >>> frames([ax], [Frame('a line', Axis('x', 0, 1), Axis('y', 0, 1), [Curve('line', [0, 1], [0, 1], '', 0)])])
    >>> ax.get_title()
    'a line'
    """
    for ax, (title, x, y, curves) in zip(axes, drawn, strict=True):
        ax.set(title=title, xlabel=x.label, ylabel=y.label)
        for axis, (_, low, high, log, ticks) in (("x", x), ("y", y)):
            ax.set(**{f"{axis}scale": "log" if log else "linear", f"{axis}lim": (low, high)})
            if ticks:
                ax.set(**{f"{axis}ticks": ticks, f"{axis}ticklabels": [f"{tick:g}" for tick in ticks]})
                getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())
        for curve in curves:
            _draw(ax, curve)
        if words := "".join(curve.label for curve in curves):
            columns = 3 if len(words) <= _LETTERS_BELOW else 1
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False, fontsize="small")


def _draw(ax: Axes, curve: Curve) -> None:
    kind, x, y, label, chosen = curve
    style = {"theory": THEORY, "ghost": _GHOST}.get(str(chosen)) or {**look(chosen), "marker": ""}
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
    """The frames as a PNG picture, at most two beside each other.

    >>> curve = Curve('line', [0, 1], [0, 1], '', 0)
    >>> png([Frame('', Axis('x', 0, 1), Axis('y', 0, 1), [curve])])[1:4]
    b'PNG'
    """
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
