"""What a reader's browser does with the site: requests, errors, formulas, a phone's width, accessibility."""

from urllib.parse import urlsplit

import pytest
from built import SITE

# sphinx-thebe writes the same inline script twice; the second declaration fails and nothing depends on it.
KNOWN_ERRORS = ("Identifier 'THEBE_JS_URL' has already been declared",)
# In the theme's own markup: the logo outside of a landmark, the label of the search and theme buttons.
ADMITTED = {"region", "label-content-name-mismatch"}
PHONE = {"width": 375, "height": 800}


@pytest.fixture(params=["light", "dark"])
def mode(request):
    return request.param


def opened(browser, address, page, mode="light", viewport=None):
    """The page when all its formulas are set, and what it asked for and complained about on the way."""
    view = browser.new_page(color_scheme=mode, viewport=viewport or {"width": 1280, "height": 900})
    view.set_default_timeout(60_000)
    requests, errors = [], []
    view.on("request", lambda request: requests.append(request.url))
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.goto(f"{address}/{page.relative_to(SITE).as_posix()}", wait_until="load")
    view.evaluate("() => window.MathJax?.startup?.promise")
    return view, requests, errors


def test_nothing_foreign_is_asked_for_and_nothing_fails(browser, address, page):
    view, requests, errors = opened(browser, address, page, viewport=PHONE)
    # Lazily loaded parts ask for more when the reader scrolls.
    view.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    view.wait_for_load_state("networkidle")
    wrong = view.locator("mjx-merror, [data-mjx-error]").all_text_contents()
    width, shown = view.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    view.close()
    foreign = {url for url in requests if urlsplit(url).hostname not in (None, "127.0.0.1")}
    assert not foreign, f"{page.name} asks for {sorted(foreign)}"
    assert not wrong, f"{page.name} has TeX errors: {wrong}"
    unknown = [error for error in errors if not any(known in error for known in KNOWN_ERRORS)]
    assert not unknown, f"{page.name} raises {unknown}"
    assert width <= shown, f"{page.name} is {width} px wide on a screen of {shown} px"


def test_accessibility(browser, address, page, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view, _, _ = opened(browser, address, page, mode)
    if mode == "dark":
        assert view.evaluate("() => document.documentElement.dataset.theme") == "dark"
    view.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    found = axe.run(view).response["violations"]
    view.close()
    violations = {
        rule["id"]: [node["html"][:200] for node in rule["nodes"][:3]] for rule in found if rule["id"] not in ADMITTED
    }
    assert not violations, f"{page.name}, {mode}: {violations}"
