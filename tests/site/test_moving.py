"""Every moving figure in a real browser, by keyboard: each step of each control shows the numbers that are stored."""

import itertools
import json
import re

import pytest
from moving_page import FIGURES, written

from mmlib.moving import Game

SVG_UNIT = 0.3  # a path is drawn in Python from all digits, in the browser from the rounded ones


@pytest.fixture(scope="session")
def site_is_there():
    """This page needs no built site."""


@pytest.fixture(scope="session")
def figures():
    return {name: make() for name, make in FIGURES.items()}


@pytest.fixture(scope="session")
def page_file(figures, tmp_path_factory):
    return written(tmp_path_factory.mktemp("moving"), figures)


@pytest.fixture
def opened(browser, page_file):
    """opened(width=, theme=, script=): the page from its file, and what it complained about."""
    contexts = []

    def open_page(width=1000, theme="light", script=True, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script, **settings)
        contexts.append(context)
        view, errors = context.new_page(), []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.on("console", lambda message: errors.append(message.text))
        view.on("request", lambda request: None if request.url.startswith("file:") else errors.append(request.url))
        view.goto(page_file.as_uri())
        if script:
            view.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        return view, errors

    yield open_page
    for context in contexts:
        context.close()


moving = pytest.mark.parametrize("name", [name for name in FIGURES if name != "blind-diagnosis"])


def expected(figure, state):
    pairs = zip(figure.numbers, figure.said(state), strict=True)
    return [f"{value} {number.unit}".strip() for number, value in pairs]


def press(control, key):
    control.focus()
    control.press(key)


@moving
def test_every_step_of_every_control_shows_what_is_stored(opened, figures, name):
    view, errors = opened()
    figure, place = figures[name], view.locator(f"#moving-{name}")
    said = place.locator(".moving-numbers b")
    state = dict(figure.start)
    assert said.all_text_contents() == expected(figure, state)
    for key, control in figure.controls.items():
        handle = place.locator(f"[data-control={key}]")
        press(handle, "Home")
        for step, called in enumerate(control.names):
            if step:
                press(handle, "ArrowRight" if handle.get_attribute("type") else "ArrowDown")
            state[key] = step
            assert said.all_text_contents() == expected(figure, state), f"{name}, {key} at {called}"
            if handle.get_attribute("type"):
                assert handle.get_attribute("aria-valuetext") == called
                assert place.locator(f"label:has([data-control={key}]) .moving-value").text_content() == called
    assert errors == []


@moving
def test_every_corner_of_the_grid_is_drawn_as_python_draws_it(opened, figures, name):
    view, errors = opened()
    figure, place = figures[name], view.locator(f"#moving-{name}")
    set_to = """(figure, state) => {
        for (const [key, step] of Object.entries(state)) {
            const control = figure.querySelector(`[data-control="${key}"]`);
            if (control.tagName === "SELECT") control.selectedIndex = step; else control.value = step;
            control.dispatchEvent(new Event("input", {bubbles: true}));
        }
        return [...figure.querySelectorAll(".moving-drawn path")].map((path) => path.getAttribute("d"));
    }"""
    corners = itertools.product(*({0, len(control.values) - 1} for control in figure.controls.values()))
    for corner in corners:
        state = dict(zip(figure.controls, corner, strict=True))
        drawn = place.evaluate(set_to, state)
        for d, wanted in zip(drawn, paths(figure, state), strict=True):
            (words, numbers), (as_words, as_numbers) = split(d), split(wanted)
            assert words == as_words, f"{name} at {state}"
            assert max(abs(a - b) for a, b in zip(numbers, as_numbers, strict=True)) <= tolerance(figure), (
                f"{name}, {state}"
            )
    assert errors == []


def paths(figure, state):
    from mmlib.moving import _path

    frames = figure.frames(state)
    return [_path(curve, p.x, p.y) for p, f in zip(figure.panels, frames, strict=True) for curve in f.curves]


def tolerance(figure):
    """Two digits are one in a hundred, of a panel 284 wide."""
    return 3 * SVG_UNIT if min(grid.digits for grid in figure.arrays.values()) > 2 else 10 * SVG_UNIT


def split(d):
    return re.sub(r"-?\d+\.?\d*", "#", d), [float(number) for number in re.findall(r"-?\d+\.?\d*", d)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_has_nothing_to_say(opened, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view, _ = opened(theme=theme)
    for table in (False, True):
        view.evaluate("open => document.querySelectorAll('details').forEach(d => d.open = open)", table)
        found = axe.run(view).response["violations"]
        assert {rule["id"]: [node["html"][:200] for node in rule["nodes"][:3]] for rule in found} == {}


@pytest.mark.parametrize("width", [320, 375])
def test_no_figure_is_wider_than_a_phone(opened, width):
    view, _ = opened(width=width)
    assert view.evaluate("() => document.documentElement.scrollWidth") <= width
    sizes = view.locator(".moving-controls input").evaluate_all("inputs => inputs.map(i => i.clientWidth)")
    assert min(sizes) > width / 2


def test_without_a_script_the_picture_and_the_table_are_there(opened, figures):
    view, _ = opened(script=False)
    for name, figure in figures.items():
        place = view.locator(f"#moving-{name}")
        assert not place.locator("input, select, button").evaluate_all("c => c.some(e => e.checkVisibility())")
        rows = place.locator("tr").all()
        assert [row.locator("th, td").all_text_contents() for row in rows] == figure.table
        assert all(row.is_visible() for row in rows)
        if not isinstance(figure, Game):
            assert place.locator(".moving-panel > svg").count() == len(figure.panels)
            assert place.locator(".moving-drawn path").first.get_attribute("d").startswith("M ")


def test_on_paper_the_table_is_seen_and_the_controls_are_not(opened):
    view, _ = opened()
    view.emulate_media(media="print")
    table = view.locator("#moving-first-loss table")
    assert table.bounding_box()["height"] > 100
    assert not view.locator("#moving-first-loss input").is_visible()


def test_the_tab_key_goes_through_the_controls_in_their_order(opened, figures):
    view, _ = opened()
    figure, place = figures["deep-signal"], view.locator("#moving-deep-signal")
    place.locator("[data-control]").first.focus()
    seen = []
    for _ in range(len(figure.controls)):
        seen.append(view.evaluate("() => document.activeElement.dataset.control"))
        view.keyboard.press("Tab")
    assert seen == list(figure.controls)
    assert view.evaluate("() => document.activeElement.tagName") == "SUMMARY"


def test_the_same_figure_twice_moves_twice(opened, figures):
    view, errors = opened()
    view.evaluate("""() => {
        const figure = document.getElementById("moving-twins");
        document.querySelector("main").innerHTML = figure.outerHTML.repeat(2);
        const script = document.createElement("script");
        script.src = "moving.js";
        document.body.append(script);
        return new Promise((done) => { script.onload = done; });
    }""")
    figure, both = figures["twins"], view.locator("figure.moving")
    press(both.nth(1).locator("[data-control=lr]"), "Home")
    assert both.nth(0).locator(".moving-numbers b").all_text_contents() == expected(figure, figure.start)
    assert both.nth(1).locator(".moving-numbers b").all_text_contents() == expected(figure, {**figure.start, "lr": 0})
    assert view.locator("#moving-twins").count() == 1 and errors == []


def test_the_game_is_played_by_keyboard(opened, figures):
    view, errors = opened()
    game, place = figures["blind-diagnosis"], view.locator("#moving-blind-diagnosis")
    data, said = json.loads(game.data), place.locator(".moving-numbers")
    patient, fault = place.locator("select").all()
    press(patient, "Home")
    for k in range(len(game.hidden)):
        if k:
            press(patient, "ArrowDown")
        assert place.locator(".moving-result").all_text_contents() == [""] * len(game.checks)
        cost = 0
        for bought, check in reversed(list(enumerate(data["checks"]))):
            button = place.locator(f"[data-check='{bought}'] button")
            press(button, "Enter")
            press(button, "Enter")  # bought already: nothing is paid twice
            cost += check["cost"]
            assert place.locator(f"[data-check='{bought}'] .moving-result").text_content() == check["results"][k]
            assert f" {cost:,} examples" in said.text_content()
        for named, one in enumerate(game.faults):
            press(fault, "Home" if named == 0 else "ArrowDown")
            press(place.locator(".moving-answer"), "Enter")
            truth = game.faults[game.hidden[k]]
            assert (
                f"Right: {truth.why}" in said.text_content()
                if one is truth
                else f"No: {truth.hint}" in said.text_content()
            )
    assert errors == []


def test_reduced_motion_changes_nothing_because_nothing_is_animated(opened):
    view, _ = opened(reduced_motion="no-preference")
    press(view.locator("#moving-twins [data-control=lr]"), "Home")
    assert view.evaluate("() => document.getAnimations().length") == 0
