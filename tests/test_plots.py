import itertools

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mmlib import plots
from mmlib.activations import ACTIVATIONS, TANH
from mmlib.history import Series
from mmlib.init import schemes
from mmlib.stats import Interval

pytestmark = pytest.mark.usefixtures("no_global_randomness", "style_untouched")

FAMILIES = {
    "activations": ["tanh", "sigmoid", "ReLU", "leaky ReLU", "ELU", "GELU", "SiLU", "step", "identity", "Maxout"],
    "schemes": list(schemes(TANH)),
    "norms": ["no norm", "BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm"],
    "starts": ["healthy start", "naive start"],
    "numbers": range(16),
}


@pytest.fixture
def style_untouched():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


@pytest.fixture
def ax():
    return Figure().add_subplot()


def drawn(line):
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_members_of_a_family_look_different(family):
    for a, b in itertools.combinations(map(plots.look, family), 2):
        for key in ("linestyle", "marker"):
            assert (a["color"], a[key]) != (b["color"], b[key])


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_first_eight_differ_in_colour_dash_and_marker_each(family):
    for key in ("color", "linestyle", "marker"):
        first = [str(plots.look(name)[key]) for name in list(family)[:8]]
        assert len(set(first)) == len(first)


def test_every_activation_and_scheme_has_its_look():
    assert ACTIVATIONS.keys() < set(FAMILIES["activations"])
    for name in (*ACTIVATIONS, *schemes(TANH)):
        assert plots.look(name)["color"]


def test_a_name_always_looks_the_same_and_the_first_like_number_zero():
    assert plots.look("tanh") == plots.look("Kaiming") == plots.look(0) == plots.look("tanh")


def test_a_look_is_a_copy():
    plots.look("tanh")["color"] = "red"
    assert plots.look("tanh")["color"] != "red"


def test_an_unknown_name_has_no_look():
    with pytest.raises(KeyError, match="tanhh"):
        plots.look("tanhh")


def test_theory_looks_like_no_measurement():
    assert to_hex(plots.THEORY["color"]) == "#000000" and plots.THEORY["linestyle"] == "--"


def test_densities_are_normalised_histograms_by_layer(ax, normal):
    values = {"act1": normal(50, 20), "ReLU": normal(7, 6, 5).requires_grad_()}
    plots.densities_by_layer(ax, values, bins=30)
    assert len(ax.lines) == 2 and legend(ax) == list(values) and ax.get_ylabel() == "density"
    for line, (name, x) in zip(ax.lines, values.items(), strict=True):
        centres, density = drawn(line)
        expected, edges = np.histogram(x.detach().numpy().ravel(), bins=30, density=True)
        np.testing.assert_allclose(density, expected)
        np.testing.assert_allclose(centres, (edges[:-1] + edges[1:]) / 2)
        assert density.sum() * np.diff(edges)[0] == pytest.approx(1)
        assert line.get_label() == name and line.get_marker() == ""
    assert ax.lines[0].get_color() == plots.look(0)["color"]
    assert ax.lines[1].get_color() == plots.look("ReLU")["color"]


def test_a_series_over_time_is_its_line(ax):
    series = {"Kaiming": Series(torch.tensor([0, 10, 20]), torch.tensor([3.0, 2.0, 1.5]))}
    plots.over_time(ax, series)
    (line,) = ax.lines
    assert [x.tolist() for x in drawn(line)] == [[0, 10, 20], [3, 2, 1.5]]
    assert legend(ax) == ["Kaiming"] and ax.get_xlabel() == "step" and not ax.collections
    assert line.get_color() == plots.look("Kaiming")["color"]


def test_series_of_several_seeds_are_their_mean_and_range(ax):
    values = torch.tensor([[3.0, 5.0, 1.0], [2.0, 2.0, 8.0]])
    plots.over_time(ax, {"a": Series(torch.tensor([0, 10]), values), "b": Series(torch.tensor([0, 10]), -values)})
    assert [drawn(line)[1].tolist() for line in ax.lines] == [[3, 4], [-3, -4]]
    assert len(ax.collections) == 2
    corners = {tuple(xy) for xy in ax.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(0, 1), (0, 5), (10, 2), (10, 8)}
    assert legend(ax) == ["a", "b"]
    for k, (line, band) in enumerate(zip(ax.lines, ax.collections, strict=True)):
        assert line.get_color() == plots.look(k)["color"] == to_hex(band.get_facecolor()).upper()


def test_a_raster_is_true_in_black_by_example_and_unit(ax):
    mask = torch.tensor([[True, False, False], [False, True, True]])
    plots.raster(ax, mask)
    (image,) = ax.images
    assert image.get_array().astype(bool).tolist() == mask.tolist()
    assert image.to_rgba(np.array([[1.0, 0.0]]))[0, :, 0].tolist() == [0, 1]
    assert ax.get_xlabel() == "unit" and ax.get_ylabel() == "example"


def test_an_all_true_raster_is_still_black(ax):
    plots.raster(ax, torch.ones(2, 2, dtype=torch.bool))
    assert ax.images[0].to_rgba(ax.images[0].get_array())[..., 0].max() == 0


def test_intervals_are_rows_from_the_top_down(ax):
    rows = {
        "LeCun": Interval(*map(torch.tensor, (1.0, 0.5, 1.5))),
        "mine": Interval(*map(torch.tensor, (2.0, 1.8, 2.2))),
    }
    plots.interval(ax, rows)
    bars, marks = ax.lines[::2], ax.lines[1::2]
    assert [drawn(bar)[0].tolist() for bar in bars] == [pytest.approx([0.5, 1.5]), pytest.approx([1.8, 2.2])]
    assert [drawn(bar)[1].tolist() for bar in bars] == [[0, 0], [1, 1]]
    assert [[x.tolist() for x in drawn(mark)] for mark in marks] == [[[1], [0]], [[2], [1]]]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["LeCun", "mine"]
    top, bottom = ax.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert top > bottom
    assert bars[0].get_color() == marks[0].get_color() == plots.look("LeCun")["color"]
    assert marks[0].get_marker() == plots.look("LeCun")["marker"]


def test_points_have_bars_and_no_line(ax):
    mean, low, high = torch.tensor([[2.0, 3.0], [1.5, 1.0], [2.25, 4.0]])
    plots.points(ax, [10, 20], Interval(mean, low, high), "Xavier", label="mine")
    (marks, _, (bars,)) = ax.containers[0]
    assert [x.tolist() for x in drawn(marks)] == [[10, 20], [2, 3]]
    assert [segment.tolist() for segment in bars.get_segments()] == [[[10, 1.5], [10, 2.25]], [[20, 1], [20, 4]]]
    assert marks.get_linestyle() == "None" and ax.get_legend_handles_labels()[1] == ["mine"]
    assert (marks.get_color(), marks.get_marker()) == (plots.look("Xavier")["color"], plots.look("Xavier")["marker"])
    plots.points(ax, [10, 20], Interval(mean, low, high), "LeCun")
    assert ax.get_legend_handles_labels()[1] == ["mine", "LeCun"]


def test_a_dashboard_is_three_densities_and_the_updates_under_one_legend(normal):
    fig = Figure(layout="constrained")
    axes = fig.subplots(2, 2)
    kinds = [{"1": normal(4, 9), "2": normal(4, 9)} for _ in range(3)]
    updates = {name: Series(torch.tensor([0, 10]), torch.tensor([-3.0, -2.5])) for name in ("1", "2", "out")}
    plots.dashboard(axes, *kinds, updates, bins=30)
    for ax, values in zip(axes.flat, kinds, strict=False):
        assert ax.get_legend() is None and ax.get_title()
        for line, x in zip(ax.lines, values.values(), strict=True):
            density, _ = np.histogram(x.numpy().ravel(), bins=30, density=True)
            np.testing.assert_allclose(drawn(line)[1], density)
    *lines, at = axes[1, 1].lines
    assert [drawn(line)[1].tolist() for line in lines] == [[-3, -2.5]] * 3
    assert set(drawn(at)[1]) == {-3.0} and at.get_color() == plots.THEORY["color"]
    (shared,) = fig.legends
    assert [text.get_text() for text in shared.get_texts()] == ["1", "2", "out"]
    assert [line.get_color() for line in axes[0, 0].lines] == [line.get_color() for line in lines[:2]]


def test_frames_draw_every_kind_of_curve(ax):
    numbers = [1.0, 2.0, 3.0]
    curves = [plots.Curve(kind, numbers, numbers, kind, k) for k, kind in enumerate(plots.KINDS)]
    x, y = plots.Axis("x", 0, 4), plots.Axis("y", 0.1, 10, log=True, ticks=(0.1, 1, 10))
    plots.frames([ax], [plots.Frame("title", x, y, curves)])
    lines = {line.get_label(): drawn(line) for line in ax.lines}
    assert [values.tolist() for values in lines["line"]] == [numbers, numbers]
    assert [values.tolist() for values in lines["stairs"]] == [[1, 1, 2, 2, 3], [1, 2, 2, 3, 3]]
    assert set(lines["across"][1]) == {1} and set(lines["up"][0]) == {1}
    assert [bar.get_height() for bar in ax.patches] == numbers
    assert (ax.get_xlim(), ax.get_ylim(), ax.get_yscale()) == ((0, 4), (0.1, 10), "log")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.1", "1", "10"]
    assert set(legend(ax)) == set(plots.KINDS)


def test_frames_become_one_picture():
    frame = plots.Frame("t", plots.Axis("x", 0, 1), plots.Axis("y", 0, 1), [plots.Curve("line", [0, 1], [0, 1], "", 0)])
    one, three = (plots.png([frame] * n) for n in (1, 3))
    assert one.startswith(b"\x89PNG") and three.startswith(b"\x89PNG") and one == plots.png([frame])
