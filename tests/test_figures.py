"""The moving figures of the chapters: what their captions say is what their numbers are.

Whether these hold on another processor is asked where all outputs are, in the chapters under rounding noise. What two
figures take seconds to compute is asked of the pages that chapters store, which are compared with a fresh run there;
the functions themselves run here over few settings.
"""

import functools
import html
import importlib
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from mmlib.activations import TANH
from mmlib.data import minibatches
from mmlib.moving import BUDGET

BOOK = Path(__file__).parent.parent / "book"
PLACES = {
    "loss": ["first_loss"],
    "signal": ["saturated_unit", "deep_signal", "variance_staircase"],
    "norm": ["batch_feature", "weight_row"],
    "statistics": ["power", "twins"],
    "dashboard": ["dashboard", "blind_diagnosis"],
}


@pytest.fixture(scope="module")
def make():
    """make(name): the function that makes a figure."""
    sys.path.insert(0, str(BOOK))
    found = {name: importlib.import_module(f"figures.{home}") for home, names in PLACES.items() for name in names}
    yield lambda name: getattr(found[name], name)
    sys.path.remove(str(BOOK))


FEW = {
    "dashboard": {
        "GAINS": (0.5, TANH.gain, 3.0),
        "CONFIDENCES": (0.01, 0.1),
        "RATES": (0.01, 0.1),
        "HEALTHY": (1, 1, 1),
    },
    "blind_diagnosis": {
        "TRIED": (0.3,),
        "SEEDS": range(1),
        "minibatches": lambda data, size, steps, **options: minibatches(data, size, min(steps, 3), **options),
    },
}


@pytest.fixture(scope="module")
def made(make):
    """made(name): the figure, made once, over few settings where each takes long."""

    @functools.cache
    def once(name):
        with pytest.MonkeyPatch.context() as patch:
            for constant, few in FEW.get(name, {}).items():
                patch.setattr(sys.modules[make(name).__module__], constant, few)
            return make(name)()

    return once


@dataclass(frozen=True)
class Page:
    """A figure as a chapter stores it: its name, its data, and the rows of its table, the head first."""

    name: str
    data: str
    table: list[list[str]]


@pytest.fixture(scope="module")
def stored():
    """stored(name): the page of the figure in the one chapter that shows it."""
    chapters = [nbformat.read(path, as_version=4) for path in sorted(BOOK.glob("*.ipynb"))]
    outputs = [o for chapter in chapters for cell in chapter.cells for o in cell.get("outputs", ())]
    pages = [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]

    def page(name):
        (found,) = (text for text in pages if f'id="moving-{name.replace("_", "-")}"' in text)
        rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", found, re.S))
        return Page(
            re.search(r'id="moving-([^"]+)"', found)[1],
            re.search(r'<script type="application/json">(.*)</script>', found, re.S)[1],
            [[html.unescape(cell) for cell in row] for row in rows],
        )

    return page


@pytest.fixture(scope="module")
def at(made):
    """at(name, array, **settings): the number at these settings of its controls, the others as at the start."""

    def number(name, array, **settings):
        figure = made(name)
        state = {key: list(figure.controls[key].values).index(value) for key, value in settings.items()}
        return figure._at(array, {**figure.start, **state})

    return number


every_figure = pytest.mark.parametrize("name", [name for names in PLACES.values() for name in names])


@every_figure
@pytest.mark.usefixtures("no_global_randomness")
def test_a_figure_is_small_and_named_after_its_function(made, stored, name):
    figure = made(name)
    shown = stored(name) if name in FEW else figure
    assert figure.name == shown.name == name.replace("_", "-")
    assert 1000 < len(shown.data.encode()) < BUDGET


def test_first_loss(at):
    assert at("first_loss", "loss", s=0.3) == pytest.approx(math.log(27), rel=0.015)
    assert at("first_loss", "largest", s=0.3) < 2 * 100 / 27
    assert at("first_loss", "largest", s=13.1) > 50 and round(at("first_loss", "loss", s=13.1)) == 26


def test_saturated_unit(at):
    assert round(at("saturated_unit", "left", spread=1.0)) == 61 and at("saturated_unit", "flat", spread=1.0) < 1
    assert (
        round(at("saturated_unit", "flat", spread=5.48)) == 63
        and round(at("saturated_unit", "left", spread=5.48)) == 14
    )
    assert sum(at("saturated_unit", "share", spread=2.0)) == pytest.approx(100)


def test_deep_signal(at):
    tanh = {"activation": "tanh", "norm": "none", "depth": 50}
    assert at("deep_signal", "gradient", gain=5 / 3, **tanh) == pytest.approx(80, rel=0.02)
    assert at("deep_signal", "gradient", gain=1.0, **tanh) < 0.2 and at("deep_signal", "rms", gain=1.0, **tanh) < 0.2
    relu = {"activation": "ReLU", "norm": "BatchNorm"}
    factors = [at("deep_signal", "gradient", gain=0.5, depth=depth, **relu) for depth in (1, 2)]
    assert factors[1] / factors[0] == pytest.approx(math.sqrt(math.pi / (math.pi - 1))) and round(factors[1], 2) == 1.21


def test_variance_staircase(at):
    low, high = (at("variance_staircase", "stairs", q1=q1)[-1] for q1 in (0.03, 10.0))
    assert low == pytest.approx(high, rel=1e-2) == at("variance_staircase", "star")
    assert math.sqrt(at("variance_staircase", "chi")) == pytest.approx(1.1, abs=2e-3)
    assert at("variance_staircase", "chi", gain=1.1) > 1


def test_batch_feature(at):
    for n in (2, 8, 32):
        own = at("batch_feature", "own_hat", value=32.0, n=n, mode="training")
        assert own == pytest.approx(math.sqrt(n - 1), rel=0.1) and own < math.sqrt(n - 1)
    mean, used = (at("batch_feature", key, mode="evaluation after 20 steps") for key in ("mean", "used"))
    assert used == pytest.approx((1 - 0.9**20) * mean)


def test_weight_row(at):
    path = [at("weight_row", "long", step=step) for step in range(21)]
    assert path == sorted(path)
    for step in (0, 5, 20):
        angles = (at("weight_row", "angle", step=step, length=a, rate=b) for a, b in ((1.0, 0.25), (2.0, 1.0)))
        assert next(angles) == pytest.approx(next(angles), abs=1e-9)


def test_power(at):
    assert 50 < at("power", "found", n=8, effect=0.9) < 65
    assert at("power", "found") == pytest.approx(100 / 9, rel=0.05)
    assert at("power", "reported") / 0.3 == pytest.approx(2.7, abs=0.1)
    assert at("power", "found", effect=0.0, n=4) == pytest.approx(5, abs=0.01)
    assert at("power", "one", m=16) > 50
    assert at("power", "corrected", effect=0.9, m=16) < at("power", "found", effect=0.9)


def test_power_is_that_of_the_noncentral_t(at):
    from scipy.special import nctdtr, stdtrit

    limit, centre = stdtrit(7, 0.975), math.sqrt(8) * 0.9
    exact = 1 - nctdtr(7, centre, limit) + nctdtr(7, centre, -limit)
    assert at("power", "found", n=8, effect=0.9) == pytest.approx(100 * exact, abs=0.02)


def test_twins(at):
    assert at("twins", "after", lr=1.9, bend=0.02) < 50 < 1e6 < at("twins", "after", lr=2.2, bend=0.02)
    assert at("twins", "by_up", lr=2.2) == pytest.approx(1.2) and at("twins", "by_up", lr=1.9) < 1


def test_dashboard(at):
    healthy = {"confidence": 0.1, "rate": 0.1, "norm": "none"}
    assert at("dashboard", "verdict", **healthy) == "no finding"
    assert "saturation" in at("dashboard", "verdict", gain=3.0, **{k: v for k, v in healthy.items()})
    by_c = [at("dashboard", "weight", confidence=c) for c in (0.01, 0.1)]
    assert (by_c[1] / by_c[0])[:5] == pytest.approx(10, rel=0.05) and (by_c[1] / by_c[0])[5] == pytest.approx(
        1, rel=0.05
    )
    normed = [at("dashboard", "flat", gain=g, norm="BatchNorm") for g in (0.5, 3.0)]
    assert normed[0] == pytest.approx(normed[1], abs=0.1)
    steps = [at("dashboard", "linear3", gain=g, norm="BatchNorm")[0] for g in (0.5, 3.0)]
    assert steps[0] - steps[1] == pytest.approx(math.log10(6), abs=0.05)


def test_every_fault_of_the_game_can_be_told_from_the_others(made, stored):
    page, game = stored("blind_diagnosis"), made("blind_diagnosis")
    head, *patients = page.table
    results = [tuple(row[1:-1]) for row in patients]
    faults = [row[-1] for row in patients]
    assert len(set(results)) == len(results) and sorted(faults) == sorted(fault.name for fault in game.faults)
    assert json.loads(page.data)["hidden"] == list(game.hidden)
    assert [game.faults[k].name for k in game.hidden] == faults and sorted(game.hidden) == list(range(len(game.faults)))
    said = {(label, row[-1]): result for row in patients for label, result in zip(head, row, strict=True)}
    assert said["the loss at step 0", "output weights too wide"].startswith("6.")
    assert "saturation" in said["a checkup", "a hidden layer is saturated"]
    assert said["a checkup", "nothing is wrong"] == "no finding"
