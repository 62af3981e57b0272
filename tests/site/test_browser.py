"""What a reader's browser does with the site: weight, errors, formulas, a phone's width, paper, no script, access."""

import functools
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from built import ROOT, SITE

PHONE = {"width": 375, "height": 800}
DESK = {"width": 1280, "height": 900}
# An A4 page at 96 pixels an inch, less the margins of the print style.
PAPER = {"width": 680, "height": 1000}
BUDGET = json.loads((Path(__file__).parent / "budget.json").read_text(encoding="utf-8"))
WIDER = """() => [...document.querySelectorAll("article math")].filter(formula => {
  const box = formula.closest("span.math.wide, div.math, .table-wrapper, pre");
  return formula.checkVisibility() && formula.getBoundingClientRect().right > innerWidth
    && !(box && ["auto", "scroll"].includes(getComputedStyle(box).overflowX));
}).map(formula => formula.textContent)"""
UNSET = """() => [...document.querySelectorAll("div.math, span.math")]
  .filter(place => !place.querySelector("math")).map(place => place.textContent)"""
# A root over one letter: how far its box goes on behind the letter and below it, in letters' heights.
ROOTS = """() => [...document.querySelectorAll("article msqrt")]
  .filter(root => root.checkVisibility() && /^.$/u.test(root.textContent)).map(root => {
    const [box, letter] = [root, root.lastElementChild].map(element => element.getBoundingClientRect());
    return [(box.right - letter.right) / letter.height, (box.bottom - letter.bottom) / letter.height];
  })"""
CLIPPED = """() => [...document.querySelectorAll("article pre, article img, article table, article div.math")]
  .filter(part => part.scrollWidth > part.clientWidth + 1 || part.getBoundingClientRect().right > innerWidth + 1)
  .map(part => (part.alt || part.textContent).trim().slice(0, 60))"""


@pytest.fixture(params=["light", "dark"])
def mode(request):
    return request.param


def opened(browser, address, page, mode="light", viewport=None, **options):
    """The page, and what it asked for, how many bytes that took, and what it complained about on the way."""
    view = browser.new_page(color_scheme=mode, viewport=viewport or DESK, **options)
    view.set_default_timeout(60_000)
    requests, errors, sizes = [], [], []
    network = view.context.new_cdp_session(view)
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    view.on("request", lambda request: requests.append(request.url))
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    view.goto(f"{address}/{page.relative_to(SITE).as_posix()}", wait_until="load")
    return view, requests, errors, sizes


def scrolled(view):
    """Lazily loaded parts arrive when the reader scrolls."""
    view.evaluate("() => document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    view.wait_for_load_state("networkidle")
    view.evaluate("() => Promise.all([...document.images].map(image => image.decode()))")


def allowed(page):
    """(bytes, requests) that the budget allows the page, pictures included."""
    name = page.relative_to(SITE).as_posix()
    return next(limits for pattern, limits in BUDGET.items() if re.fullmatch(pattern, name))


def test_a_page_is_light_and_nothing_fails(browser, address, page):
    view, requests, errors, sizes = opened(browser, address, page, viewport=PHONE)
    scrolled(view)
    width, shown = view.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    unset, wider, roots = view.evaluate(UNSET), view.evaluate(WIDER), view.evaluate(ROOTS)
    view.close()
    foreign = {url for url in requests if urlsplit(url).hostname not in (None, "127.0.0.1")}
    assert not foreign, f"{page.name} asks for {sorted(foreign)}"
    assert not errors, f"{page.name} complains: {errors}"
    assert not unset, f"{page.name} has formulas that are not set: {unset}"
    assert not wider, f"{page.name} has formulas that leave a phone's screen: {wider}"
    assert all(behind < 0.1 and below < 0.7 for behind, below in roots), f"{page.name}: roots off their line: {roots}"
    assert width <= shown, f"{page.name} is {width} px wide on a screen of {shown} px"
    bytes_allowed, requests_allowed = allowed(page)
    assert sum(sizes) <= bytes_allowed, f"{page.name} takes {sum(sizes):,.0f} bytes, and {bytes_allowed:,} are allowed"
    assert len(requests) <= requests_allowed, f"{page.name} makes {len(requests)} requests: {requests}"


def test_accessibility(browser, address, page, mode):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view, *_ = opened(browser, address, page, mode)
    view.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    view.evaluate("() => document.querySelectorAll('details').forEach(part => part.open = true)")
    ground = view.evaluate("() => getComputedStyle(document.body).backgroundColor")
    found = axe.run(view).response["violations"]
    view.close()
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 3 * 128) == (mode == "dark"), f"{mode} shows {ground}"
    violations = {rule["id"]: [node["html"][:200] for node in rule["nodes"][:3]] for rule in found}
    assert not violations, f"{page.name}, {mode}: {violations}"


def test_works_without_a_script(browser, address, page):
    view, requests, *_ = opened(browser, address, page, java_script_enabled=False)
    if page.name == "search.html":
        assert view.locator("noscript, #fallback").count(), "the search page does not say that it needs a script"
        view.close()
        return
    assert view.locator("article h1").first.is_visible()
    solutions = view.locator("details.solution")
    for k in range(solutions.count()):
        inside = solutions.nth(k).locator("summary ~ *").first
        assert not inside.is_visible(), f"{page.name}: solution {k} is not folded"
    if solutions.count():
        solutions.first.locator("summary").click()
        assert solutions.first.locator("summary ~ *").first.is_visible(), f"{page.name}: a solution does not open"
    assert not [url for url in requests if url.endswith(".js")], f"{page.name} ran a script"
    view.close()


def test_a_link_opens_the_solution_that_it_names(browser, address):
    page = next(path for path in sorted((SITE / "book").glob("*.html")) if 'id="sol-' in path.read_text("utf-8"))
    view, *_ = opened(browser, address, page)
    name = view.locator("details.solution").last.get_attribute("id")
    view.goto(f"{view.url}#{name}")
    view.wait_for_selector(f"#{name}[open]")  # the page hears of the new fragment only after the browser is there
    view.close()


def test_a_copied_formula_is_its_tex(browser, address):
    page = next(path for path in sorted((SITE / "book").glob("*.html")) if "<math" in path.read_text("utf-8"))
    view, *_ = opened(browser, address, page)
    tex = view.locator("article annotation").first.text_content()
    copied = view.evaluate("""() => {
      const paragraph = document.querySelector("article math").closest("p, li, div");
      getSelection().selectAllChildren(paragraph);
      const data = new DataTransfer();
      document.dispatchEvent(new ClipboardEvent("copy", {clipboardData: data, cancelable: true}));
      return data.getData("text/plain");
    }""")
    view.close()
    assert f"${tex}$" in copied, f"{tex} is not in {copied!r}"


def test_prints(browser, address, page):
    if page.name == "search.html":
        return
    view, *_ = opened(browser, address, page, viewport=PAPER)
    scrolled(view)
    view.emulate_media(media="print")
    clipped = view.evaluate(CLIPPED)
    sheets = len(re.findall(rb"/Type\s*/Page\b", view.pdf(format="A4", prefer_css_page_size=True)))
    words = len(view.locator("article").inner_text().split())
    view.close()
    assert not clipped, f"{page.name}: cut off on paper: {clipped}"
    assert 1 <= sheets <= 4 + words / 90, f"{page.name} takes {sheets} sheets for {words} words"


@functools.cache
def chapter():
    return next(iter(sorted((SITE / "book").glob("*.html"))))


def test_the_search_index_is_not_loaded_before_a_search(browser, address):
    view, requests, *_ = opened(browser, address, chapter())
    assert not [url for url in requests if "searchindex" in url]
    view.keyboard.press("/")
    view.keyboard.type("saturation")
    view.keyboard.press("Enter")
    view.wait_for_selector("ul.search li")
    assert [url for url in requests if "searchindex" in url]
    view.close()


def test_works_from_the_file_system(browser):
    view = browser.new_page()
    failed = []
    view.on("requestfailed", lambda request: failed.append(request))
    view.goto(chapter().as_uri(), wait_until="load")
    assert view.locator("article h1").first.is_visible()
    view.goto((SITE / "search.html").as_uri() + "?q=saturation", wait_until="load")
    view.wait_for_selector("ul.search li")
    view.close()
    # What the first page was still asking for when it was left is dropped, and is no file that is missing.
    missing = [request.url for request in failed if request.failure != "net::ERR_ABORTED"]
    assert not missing, f"not found from {ROOT.name}'s files: {missing}"
