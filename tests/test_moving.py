import base64
import io
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from mmlib.moving import BUDGET, Check, Choice, Fault, Game, Grid, Mark, Moving, Number, Panel, Slider, shown
from mmlib.plots import KINDS, Axis
from tests.plugins.outputs import same_text

pytestmark = pytest.mark.usefixtures("no_global_randomness")

GAINS, NORMS = (0.5, 1.0, 5 / 3), ("none", "batch")


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def grids():
    return {
        "layer": Grid((), torch.arange(1, 5)),
        "rms": Grid(("gain", "norm"), torch.arange(24, dtype=torch.float64).view(3, 2, 4) / 7),
        "last": Grid(("gain",), double([0.12345, 1234.5, -1e-5])),
        "words": Grid(("norm",), ["</script> quiet", "loud & clear"]),
    }


def figure(**changes):
    panel = Panel(
        "Signal",
        "What is seen.",
        Axis("layer", 0, 5),
        Axis("rms", 0.01, 10, log=True),
        [Mark("line", "layer", "rms", "by layer"), Mark("points", "gain", "last", "", 1, along="gain")],
    )
    given = {
        "name": "a-figure",
        "title": "A figure",
        "summary": "It moves.",
        "controls": {"gain": Slider("gain g", GAINS, 1.0), "norm": Choice("norm", NORMS)},
        "arrays": grids(),
        "panels": [panel],
        "numbers": [Number("last", "last", "nats"), Number("verdict", "words")],
    }
    return Moving(**{**given, **changes})


def html(moving):
    return BeautifulSoup(moving._repr_html_(), "html.parser")


def states(moving):
    sizes = [range(len(control.values)) for control in moving.controls.values()]
    return [dict(zip(moving.controls, place, strict=True)) for place in itertools.product(*sizes)]


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"),
        (1.5925, "1.59"),
        (0.9996, "1.00"),
        (123.4, "123"),
        (1235.0, "1240"),
        (99999.0, "1.00 × 10⁵"),
        (1e-4, "1.00 × 10⁻⁴"),
        (-0.01, "−0.0100"),
        (7, "7"),
        ("words", "words"),
    ],
)
def test_a_number_is_written_in_three_digits(value, text):
    assert shown(value) == text


def test_no_more_decimals_are_written_than_are_kept():
    assert shown(0.39, 3, 2) == "0.39" and shown(12.3, 3, 1) == "12.3" and shown(1e-5, 3, 6) == "1.0 × 10⁻⁵"


def test_the_data_are_json_with_sorted_keys_and_rounded_numbers():
    data = figure().data
    parsed = json.loads(data)
    keys = [list(parsed), list(parsed["arrays"]), list(parsed["controls"])]
    assert keys == [sorted(k) for k in keys]
    assert parsed["arrays"]["last"] == {"over": ["gain"], "values": [0.123, 1230.0, -1e-5]}
    assert '"values":[0.123,1.23E+3,-0.0000100]' in data
    np.testing.assert_allclose(parsed["arrays"]["rms"]["values"], grids()["rms"].array, rtol=5e-3, atol=0)
    assert parsed["arrays"]["layer"]["values"] == [1, 2, 3, 4]


def test_every_rounded_number_may_move_by_one_unit_and_no_more():
    values = torch.logspace(-30, 30, 200, dtype=torch.float64)
    texts = [
        figure(arrays={**grids(), "many": Grid((), values * factor, digits=3)}).data for factor in (1, 1 + 1e-12, 1.02)
    ]
    assert same_text(texts[0], texts[1]) and not same_text(texts[0], texts[2])


@pytest.mark.parametrize("decimals, stored", [(2, [0.0, 0.12, 12.3]), (25, [0.00123, 0.123, 12.3])])
def test_what_is_below_the_decimals_is_nought(decimals, stored):
    arrays = {**grids(), "small": Grid((), double([0.00123, 0.123, 12.34]), decimals=decimals)}
    assert json.loads(figure(arrays=arrays).data)["arrays"]["small"]["values"] == stored


@pytest.fixture(scope="module")
def bundle():
    """The three outputs of the figure, the picture among them, which takes longest."""
    return figure()._repr_mimebundle_()


def test_one_output_has_page_picture_and_text(bundle):
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as picture:
        assert picture.format == "PNG" and picture.width > 300
    assert bundle["text/plain"] == str(figure())


def test_two_runs_give_the_same_to_the_letter(bundle):
    assert figure()._repr_mimebundle_() == bundle


def test_the_text_says_the_table_of_the_start():
    lines = str(figure()).splitlines()
    assert lines[:2] == ["A figure", "norm: none"]
    assert [re.split("  +", line) for line in lines[3:]] == [
        ["gain g", "last (nats)", "verdict"],
        ["0.5", "0.123", "</script> quiet"],
        ["1", "1230", "</script> quiet"],
        ["1.67", "−1.00 × 10⁻⁵", "</script> quiet"],
    ]


def test_a_long_slider_has_a_short_table_with_both_ends_and_the_start():
    values = tuple(range(60))
    arrays = {"last": Grid(("gain",), torch.arange(60.0))}
    moving = figure(
        controls={"gain": Slider("gain", values, 13)}, arrays=arrays, panels=[], numbers=[Number("last", "last")]
    )
    rows = [row[0] for row in moving.table[1:]]
    assert rows[0] == "0" and rows[-1] == "59" and "13" in rows and len(rows) <= 11


def test_the_page_has_labelled_native_controls():
    page = html(figure())
    slider, select = page.select_one("input[type=range]"), page.select_one("select")
    assert (slider["min"], slider["max"], slider["value"], slider["aria-valuetext"]) == ("0", "2", "1", "1")
    assert slider.find_parent("label").get_text(" ", strip=True).startswith("gain g")
    assert [option.get_text() for option in select.select("option")] == list(NORMS)
    assert select.select_one("option[selected]").get_text() == "none"
    assert page.select_one("output")["aria-live"] == "polite"
    assert page.select_one("svg[role=img]")["aria-label"] == "What is seen."
    assert page.select_one("figcaption").get_text() == "It moves."


def test_ids_come_from_the_name_and_no_handler_is_inline():
    page = html(figure())
    assert [tag["id"] for tag in page.find_all(id=True)] == ["moving-a-figure"]
    assert not [key for tag in page.find_all() for key in tag.attrs if key.startswith("on")]
    (script,) = page.find_all("script")
    assert script["type"] == "application/json" and json.loads(script.string) == json.loads(figure().data)


def test_without_a_script_the_controls_are_hidden_and_the_table_is_open():
    page = html(figure())
    assert page.select_one(".moving-controls").has_attr("hidden")
    assert page.select_one(".moving-table").has_attr("open")
    assert [[cell.get_text() for cell in row.select("th, td")] for row in page.select("tr")] == figure().table


def test_a_line_is_where_its_numbers_are():
    d = html(figure()).select_one(".moving-drawn .moving-line")["d"]
    points = [tuple(map(float, point.split())) for point in d.removeprefix("M ").split(" L ")]
    rms = grids()["rms"].array[1, 0]
    expected = [(284 * k / 5, 146 * (1 - (math.log10(y) + 2) / 3)) for k, y in enumerate(rms, start=1)]
    np.testing.assert_allclose(points, expected, atol=0.06)


def test_paths_are_numbers_that_can_be_compared_as_numbers():
    page = figure()._repr_html_()
    first = re.search(r'd="M (\d+\.\d)', page[page.index("moving-drawn") :])[1]
    moved = page.replace(f'd="M {first} ', f'd="M {float(first) + 0.1:.1f} ')
    further = page.replace(f'd="M {first} ', f'd="M {float(first) + 0.3:.1f} ')
    assert page != moved and same_text(page, moved) and not same_text(page, further)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_mark_is_drawn(kind):
    panel = replace(figure().panels[0], marks=[Mark(kind, "layer", "rms", "a name")])
    drawn = html(figure(panels=[panel])).select_one(".moving-drawn path")
    assert drawn["d"].startswith("M ") and f"moving-{kind}" in drawn["class"]


def test_every_kind_of_mark_is_drawn_in_a_picture():
    panel = replace(figure().panels[0], marks=[Mark(kind, "layer", "rms", "a name") for kind in KINDS])
    assert figure(panels=[panel])._repr_mimebundle_()["image/png"]


def test_logarithmic_axes_have_powers_of_ten():
    panel = replace(figure().panels[0], y=Axis("y", 1e-6, 1e6, log=True))
    texts = [text.get_text() for text in html(figure(panels=[panel])).select("svg text")]
    assert {"10⁻⁶", "10⁻³", "1", "10³", "10⁶"} <= set(texts)


def test_what_is_said_is_what_is_stored():
    moving = figure()
    data = json.loads(moving.data)
    for state in states(moving):
        last, verdict = moving.said(state)
        assert last == shown(float(data["arrays"]["last"]["values"][state["gain"]]))
        assert verdict == data["arrays"]["words"]["words"][data["arrays"]["words"]["values"][state["norm"]]]


def test_what_does_not_fit_is_refused_with_name_array_and_reason():
    nan = grids()["rms"].array.copy()
    nan[1, 0, 2] = math.nan
    noise = torch.rand(3, 2, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = {
        "array-shape": ({"arrays": {**grids(), "last": Grid(("gain",), double([1, 2]))}}, "last: shape .3,."),
        "two-more-axes": ({"arrays": {**grids(), "last": Grid((), double([[1.0]]))}}, "last: shape"),
        "no-control": ({"arrays": {**grids(), "last": Grid(("depth",), double([1, 2]))}}, "last: .*'depth'"),
        "nan": (
            {"arrays": {**grids(), "rms": Grid(("gain", "norm"), torch.from_numpy(nan))}},
            r"rms: .*nan at .1, 0, 2",
        ),
        "infinite": ({"arrays": {**grids(), "last": Grid(("gain",), double([1, math.inf, 2]))}}, "last: .*inf at .1."),
        "budget": (
            {"arrays": {**grids(), "big": Grid(("gain", "norm"), noise)}},
            "big: .* KB of data.* 60 are allowed",
        ),
        "caption": ({"summary": " "}, "summary"),
        "title": ({"title": ""}, "title"),
        "name": ({"name": "A figure"}, "name"),
        "no-controls": ({"controls": {}}, "controls"),
        "one-value": ({"controls": {"gain": Slider("g", (1.0,), 1.0)}}, "gain"),
        "alike": ({"controls": {"gain": Slider("g", (1.0, 1.00001, 2.0), 1.0)}}, "gain"),
        "start": ({"controls": {"gain": Slider("g", GAINS, 2.0), "norm": Choice("n", NORMS)}}, "gain.*2.0"),
        "start-0": ({"controls": {"gain": Slider("g", GAINS, 0.0), "norm": Choice("n", NORMS)}}, "gain.*0.0"),
        "option": ({"controls": {"gain": Slider("g", GAINS, 1.0), "norm": Choice("n", NORMS, "layer")}}, "norm.*layer"),
        "label": ({"controls": {"gain": Slider("", GAINS, 1.0), "norm": Choice("n", NORMS)}}, "gain"),
        "absent": ({"numbers": [Number("x", "first")]}, "first: no such array"),
        "number": ({"numbers": [Number("x", "rms")]}, "rms: one number"),
        "taken": ({"arrays": {**grids(), "gain": Grid((), double(1.0))}}, "gain"),
    }
    for name, (change, message) in wrong.items():
        with pytest.raises(ValueError, match=f"moving figure .*{message}"):
            figure(**change)
            pytest.fail(f"{name} was let through")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alt": " "}, "panel 'Signal'.*description"),
        ({"marks": [Mark("circle", "layer", "rms")]}, "circle"),
        ({"marks": [Mark("line", "layer", "last", along="gain")]}, "last: as many values as layer"),
        ({"marks": [Mark("line", "layer", "rms", along="depth")]}, "depth"),
        ({"marks": [Mark("line", "layer", "first")]}, "first: no such array"),
        ({"marks": [Mark("bars", "gain", "last")]}, "bars"),
        ({"y": Axis("rms", 0.0, 1.0, log=True)}, "axis 'rms'"),
        ({"y": Axis("rms", 2.0, 1.0)}, "axis 'rms'"),
        ({"y": Axis("rms", 0.0, math.inf)}, "axis 'rms'"),
    ],
)
def test_panels_that_cannot_be_drawn(change, message):
    with pytest.raises(ValueError, match=f"moving figure 'a-figure', .*{message}"):
        figure(panels=[replace(figure().panels[0], **change)])


def test_the_budget_is_of_bytes():
    rows = torch.full((3, 2, 1000), 0.123, dtype=torch.float64)
    moving = figure(arrays={**grids(), "big": Grid(("gain", "norm"), rows)})
    assert BUDGET / 2 < len(moving.data.encode()) <= BUDGET


FAULTS = [Fault("none", "It is sound.", "Look again."), Fault("loud", "It shouts.", "Listen.")]


def game(**changes):
    checks = [Check("listen", 32, ["quiet", "loud"]), Check("look", 0, ["3.30 nats", "6.60 nats"])]
    given = {"name": "a-game", "title": "A game", "summary": "Find it.", "unit": "examples"}
    given |= {"faults": FAULTS, "checks": checks, "hidden": (1, 0, 1)}
    return Game(**{**given, **changes})


def test_a_game_hides_its_faults_in_the_order_of_its_patients():
    data = json.loads(game().data)
    assert [check["results"] for check in data["checks"]] == [
        ["loud", "quiet", "loud"],
        ["6.60 nats", "3.30 nats", "6.60 nats"],
    ]
    assert [row[-1] for row in game().table[1:]] == ["loud", "none", "loud"]


def test_a_game_is_a_page_and_a_text():
    page = html(game())
    assert len(page.select("select")) == 2 and len(page.select(".moving-check button")) == 2
    assert page.select_one("output")["aria-live"] == "polite"
    assert game()._repr_mimebundle_() == {"text/html": game()._repr_html_(), "text/plain": str(game())}
    assert "loud" in str(game()) and not page.select("[onclick]")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden": ()}, "hidden"),
        ({"hidden": (2,)}, "hidden"),
        ({"checks": [Check("listen", 1, ["quiet"])]}, "listen: a result for each of 2"),
        ({"checks": [Check("listen", 1, ["quiet", " "])]}, "listen: a result"),
        ({"checks": [Check("listen", -1, ["quiet", "loud"])]}, "listen: a cost"),
        ({"summary": ""}, "summary"),
        ({"name": "a game"}, "name"),
        ({"checks": [Check("listen", 1, ["x" * 40_000] * 2)]}, "KB of data"),
    ],
)
def test_games_that_cannot_be_played(change, message):
    with pytest.raises(ValueError, match=f"moving figure 'a.game', .*{message}"):
        game(**change)
