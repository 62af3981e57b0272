"""What can be seen in the files of the site without a browser."""

import functools
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup
from built import SITE
from spellchecker import SpellChecker

# What a browser fetches by itself. Links that a reader may follow are not among them.
SPELLER = SpellChecker()
FETCHED = [("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("audio", "src")]
FETCHED += [("embed", "src"), ("object", "data"), ("img", "srcset"), ("source", "srcset")]
RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
IN_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)['"]?((?:https?:)?//[^'")\s]+)""")


@functools.cache
def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def foreign(url):
    return bool(urlsplit(url.strip()).netloc)


def test_pages_fetch_nothing_foreign(page):
    html = soup(page)
    fetched = [tag[name] for kind, name in FETCHED for tag in html.find_all(kind) if tag.get(name)]
    fetched += [
        link["href"]
        for link in html.find_all("link")
        if link.get("href") and RELATIONS & {relation.lower() for relation in link.get("rel") or []}
    ]
    found = [url for url in fetched if foreign(url)]
    for style in [*html.find_all("style"), *html.find_all(style=True)]:
        found += IN_STYLE.findall(style.string or "" if style.name == "style" else style["style"])
    assert not found, f"{page.name} fetches {found}"


def test_styles_fetch_nothing_foreign():
    for path in SITE.rglob("*.css"):
        found = IN_STYLE.findall(path.read_text(encoding="utf-8"))
        assert not found, f"{path.relative_to(SITE)} fetches {found}"


def test_images_are_described(page):
    for image in soup(page).find_all("img"):
        # The logo is described by the link around it.
        if image.find_parent(class_="navbar-brand"):
            continue
        alt, src = image.get("alt"), image.get("src", "")
        assert alt and alt.strip(), f"{page.name}: {src} has no alternative text"
        assert unquote(alt) != unquote(src), f"{page.name}: the alternative text of {src} is its address"


def test_formulas_have_no_error(page):
    assert not soup(page).select("mjx-merror, merror"), f"{page.name} shows a TeX error"


@functools.cache
def anchors(path):
    html = soup(path)
    return {tag["id"] for tag in html.find_all(id=True)} | {tag["name"] for tag in html.select("a[name]")}


def test_internal_links_lead_somewhere(page):
    # The page for a missing address is served at any address, so its links carry the prefix of the published site.
    if page.name == "404.html":
        return
    for tag in soup(page).find_all(["a", "link", "script", "img"]):
        url = tag.get("href") or tag.get("src")
        if not url or foreign(url) or urlsplit(url).scheme:
            continue
        parts = urlsplit(url)
        target = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
        assert target.exists(), f"{page.name} links to {url}, which does not exist"
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in anchors(target), f"{page.name} links to {url}; there is no such place"


def test_pages_say_what_they_are(page):
    head = soup(page).head
    tags = head.select('meta[name="description"]')
    assert len(tags) == 1, f"{page.name} has {len(tags)} descriptions"
    assert 25 <= len(tags[0]["content"]) <= 160, f"{page.name}: {tags[0]['content']!r}"
    assert len(head.select('meta[name="viewport"]')) == 1
    assert head.title.string.strip()


def test_pictures_have_a_size_and_wait(page):
    for image in soup(page).select("article img:not(.toggler)"):
        assert image.get("width") and image.get("height"), f"{page.name}: {image['src']} has no size"
        assert image.get("loading") == "lazy", f"{page.name}: {image['src']} does not wait"


def test_a_chapter_has_the_number_of_its_file():
    links = soup(SITE / "book" / "intro.html").select(".sidebar-tree a")
    numbers = [(int(link["href"][:2]), link.get_text()) for link in links if re.match(r"\d", link["href"])]
    assert len(numbers) > 10
    wrong = [text for number, text in numbers if not text.startswith(f"{number}. ")]
    assert not wrong, f"chapters that do not have the number of their file: {wrong}"


def test_names_in_cells_lead_to_the_library():
    chapters = sorted((SITE / "book").glob("[0-9][0-9]-*.html"))
    link = '.cell_input a[href*="/library/"][href*="#mmlib"]'
    without = [path.name for path in chapters if not soup(path).select(link)]
    assert not without, f"no name in a cell of {without} leads to the library"


def test_entries_of_the_library_lead_to_the_chapters():
    parts = map(soup, sorted((SITE / "book" / "library").glob("*.html")))
    entries = [term for html in parts for term in html.select("dt.sig.py[id]") if term["id"].count(".") == 2]
    used = [term["id"] for term in entries if term.find_next_sibling("dd").select("p.uses a")]
    assert len(used) >= len(entries) / 2, f"only {len(used)} of {len(entries)} entries name a chapter that uses them"


KNOWN = frozenset((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split())
UNSPELT = "code, pre, math, script, style, nav, .sig, .field-list, .citation, .citation-list, a.external, svg, cite"


def test_spelling(page):
    if {"_modules"} & set(page.parts) or page.name in ("genindex.html", "py-modindex.html", "bibliography.html"):
        return
    html = BeautifulSoup(str(soup(page).select_one("article")), "html.parser")
    for part in html.select(UNSPELT):
        part.decompose()
    found = set(re.findall(r"(?<![\w@.])[A-Za-z]{3,}(?:'[a-z]+)?(?![\w@(])", html.get_text(" ").replace("’", "'")))
    plain = {re.sub(r"'s?$", "", word) for word in found if not word.isupper() and word[1:].islower()}
    lower = {word.lower() for word in plain} - KNOWN
    unknown = SPELLER.unknown(lower) if lower else set()
    assert not unknown, f"{page.name}: {sorted(unknown)}; if they are right, add them to tests/site/words.txt"
