import itertools
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from mmlib import plots
from mmlib.activations import ACTIVATIONS, TANH
from mmlib.comparison import Comparison
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
    plots.intervals(ax, rows)
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


def test_loss_against_rate_is_a_curve_a_recipe_with_its_best_rate_ringed(ax):
    rows = torch.tensor([[3.0, 2.0, 2.5], [2.0, 2.5, 3.0]]).double()
    loss = (rows.unsqueeze(-1) + torch.tensor([0.0, 0.1, 0.3]).double()).unsqueeze(-1)
    comparison = Comparison(("LeCun", "mine"), (0.1, 0.3, 1.0), (0,), (1, 2), (50,), loss)
    plots.against_rate(ax, comparison)
    curve, ring, other, arrow = (line for line in ax.lines if len(line.get_xdata()))
    assert drawn(curve)[0].tolist() == [0.1, 0.3, 1] and drawn(curve)[1] == pytest.approx([3.2, 2.2, 2.7])
    assert [x.tolist() for x in drawn(ring)] == [[0.3], [pytest.approx(2.2)]] and ring.get_marker() == "o"
    assert [x.tolist() for x in drawn(arrow)] == [[0.1], [pytest.approx(2.2)]] and arrow.get_marker() == "<"
    assert curve.get_color() == plots.look("LeCun")["color"] == ring.get_color()
    assert other.get_color() == plots.look(1)["color"] == arrow.get_color()
    assert legend(ax) == ["LeCun", "mine"] and ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "0.3", "1"]
    assert len(ax.collections) == 2


def test_rates_above_a_given_one_are_not_drawn_but_count_for_what_is_best(ax):
    loss = torch.tensor([[3.0, 2.0, 2.5], [3.0, 2.0, 1.0]]).double().unsqueeze(-1).expand(2, 3, 3).unsqueeze(-1)
    plots.against_rate(ax, Comparison(("a", "b"), (0.1, 0.3, 1.0), (0,), (1, 2), (50,), loss), upto=0.3)
    first, ring, second = (line for line in ax.lines if len(line.get_xdata()))
    assert drawn(first)[0].tolist() == drawn(second)[0].tolist() == [0.1, 0.3]
    assert drawn(ring)[0].tolist() == [0.3] and ring.get_marker() == "o"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "0.3"]


def test_a_rate_at_which_a_run_diverged_is_a_cross_and_no_point(ax):
    loss = torch.tensor([[[3.0, 3, 3], [2, 2, 2.5], [1, 1, math.inf]]]).double().unsqueeze(-1)
    loss[0, 2, 0] = math.inf
    plots.against_rate(ax, Comparison(("a",), (0.1, 0.3, 1.0), (0,), (1, 2), (50,), loss))
    curve, cross, ring = ax.lines
    assert drawn(curve)[0].tolist() == [0.1, 0.3]
    assert drawn(cross)[0].tolist() == [1.0] and cross.get_marker() == "x"
    assert drawn(ring)[0].tolist() == [0.3]


def between(mean, half):
    mean = torch.tensor(mean)
    return Interval(mean, mean - half, mean + half)


def test_points_stand_with_their_theory_and_one_entry_for_it(ax):
    measured = {"tanh": between([1.0, 2.0], 0.1), "mine": between([3.0, 4.0], 0.1)}
    plots.against_theory(ax, [1, 2], measured, {"tanh": [1.1, 2.1], "mine": torch.tensor([3.1, 4.1])})
    assert legend(ax) == ["theory", "tanh", "mine"]
    lines = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [drawn(line)[1].tolist() for line in lines] == [[1.1, 2.1], pytest.approx([3.1, 4.1])]
    assert [c.lines[0].get_color() for c in ax.containers] == [plots.look("tanh")["color"], plots.look(1)["color"]]
    assert [drawn(c.lines[0])[1].tolist() for c in ax.containers] == [[1, 2], [3, 4]]


def test_theory_may_have_a_grid_of_its_own(ax):
    plots.against_theory(ax, [1, 2], {"mine": between([1.0, 2.0], 0.1)}, {"mine": [1, 2, 3]}, grid=[1, 1.5, 2])
    (line,) = (line for line in ax.lines if line.get_linestyle() == "--")
    assert drawn(line)[0].tolist() == [1, 1.5, 2]


def test_differences_are_intervals_beside_zero(ax):
    plots.differences(ax, {"LeCun": between(0.5, 0.1), "mine": between(-0.5, 0.1)}, "minus Kaiming (nats)")
    *_, zero = ax.lines
    assert drawn(zero)[0].tolist() == [0, 0] and ax.get_xlabel() == "minus Kaiming (nats)"
    assert [text.get_text() for text in ax.get_yticklabels()] == ["LeCun", "mine"]


def test_a_level_is_a_line_with_its_name_at_the_right_end(ax):
    plots.level(ax, 3.3, "log 27")
    (line,), (text,) = ax.lines, ax.texts
    assert drawn(line)[1].tolist() == [3.3, 3.3]
    assert text.get_text() == "log 27" and text.get_position() == (1, 3.3) and text.get_ha() == "right"


def test_ticks_are_the_given_numbers_and_no_others(ax):
    ax.plot([1, 1600], [0.35, 2])
    ax.set(xscale="log", yscale="log")
    plots.ticks(ax, x=(25, 1600), y=(0.35, 1.0, 2.0))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["25", "1,600"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.35", "1", "2"]
    assert len(ax.xaxis.get_minorticklocs()) == len(ax.yaxis.get_minorticklocs()) == 0
    other = Figure().add_subplot()
    before = list(other.get_yticks())
    plots.ticks(other, x=(0, 1))
    assert list(other.get_yticks()) == before


def test_a_shared_legend_has_each_name_once_and_takes_the_place_of_others():
    fig = Figure(layout="constrained")
    left, right = axes = fig.subplots(1, 2)
    for ax, names in ((left, ("a", "b")), (right, ("b", "c"))):
        for name in names:
            ax.plot([0, 1], label=name)
        ax.legend()
    plots.shared_legend(axes, columns=2)
    (shared,) = fig.legends
    assert [text.get_text() for text in shared.get_texts()] == ["a", "b", "c"]
    assert left.get_legend() is None and right.get_legend() is None
    assert shared._ncols == 2
    with pytest.raises(ValueError, match="axes: no curve has a label"):
        plots.shared_legend([Figure().add_subplot()])


@pytest.mark.parametrize("labels", [("a", "b", "c"), ("along the first axis", "along the second one", "along both")])
def test_a_legend_of_long_names_does_not_squeeze_its_frame(labels):
    figure = Figure(figsize=(4.4, 3.8), dpi=80, layout="constrained")
    ax, numbers = figure.add_subplot(), [0.0, 1.0]
    curves = [plots.Curve("line", numbers, numbers, label, k) for k, label in enumerate(labels)]
    plots.frames([ax], [plots.Frame("title", plots.Axis("x", 0, 1), plots.Axis("y", 0, 1), curves)])
    figure.draw_without_rendering()
    below = ax.get_legend().get_window_extent()
    assert ax.get_position().width > 0.75 and below.x0 >= 0 and below.x1 <= figure.bbox.x1


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


def test_on_a_logarithmic_axis_a_density_is_that_of_the_logarithm_and_only_moves_with_the_scale(ax, normal):
    x = normal(400, 50)
    x[0, :] = 0
    plots.densities_by_layer(ax, {"narrow": 1e-4 * x, "wide": 100 * x}, log=True)
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "density per decade"
    narrow, wide = map(drawn, ax.lines)
    np.testing.assert_allclose(wide[0], 1e6 * narrow[0], rtol=1e-5)
    np.testing.assert_allclose(wide[1], narrow[1], rtol=1e-3, atol=1e-3)
    width = np.diff(np.log10(narrow[0]))
    np.testing.assert_allclose(width, 0.1, rtol=1e-5)
    assert narrow[1].sum() * width[0] == pytest.approx(1 - 1 / 400)
    peak = wide[0][wide[1].argmax()]
    assert 70 < peak < 150


def test_a_dashboard_may_stand_on_logarithmic_axes(normal):
    axes = Figure(layout="constrained").subplots(2, 2)
    kinds = [{"1": normal(4, 9), "2": normal(4, 9)} for _ in range(3)]
    updates = {name: Series(torch.tensor([0, 10]), torch.tensor([-3.0, -2.5])) for name in ("1", "2")}
    plots.dashboard(axes, *kinds, updates, log=True)
    assert [ax.get_xscale() for ax in axes.flat] == ["log"] * 3 + ["linear"]
    assert [ax.get_xlabel() for ax in axes.flat] == ["|x|"] * 3 + ["step"]
