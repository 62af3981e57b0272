"""The built book to take away: python tools/take.py pdf|zip

pdf prints each chapter, and the whole book as one file, by a headless Chromium; zip packs the site, which needs no
server. Both are put into the folder files/ of the site, and each page then links to what is there.
"""

import re
import sys
import zipfile
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from bs4 import BeautifulSoup

import mmlib

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "site"))

from built import ROOT, SITE, chromium, served

FILES = SITE / "files"
BOOK = "before-the-first-step"
SHEET = "print-sheet.html"
SLOT = re.compile(r'<li\b[^>]*\bdata-files="([^"]*)"[^>]*>.*?</li>', re.DOTALL)


def parse(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def contents() -> list[tuple[str, list[Path]]]:
    """The parts of the book, each with its pages, as the first page lists them."""
    tree = parse(SITE / "book" / "intro.html").select_one(".sidebar-tree")
    parts = []
    for caption in tree.select("p.caption"):
        links = caption.find_next_sibling("ul").select("a.reference")
        parts.append((caption.get_text(strip=True), [SITE / "book" / link["href"] for link in links]))
    return parts


def at_the_end(article: BeautifulSoup, stem: str) -> None:
    """Solutions, unfolded, after the chapter, each linked with its exercise."""
    solutions = article.select("details.solution")
    if not solutions:
        return
    maker = BeautifulSoup("", "html.parser")
    end = maker.new_tag("section", attrs={"id": f"{stem}--solutions", "class": "solutions"})
    end.append(maker.new_tag("h2", string="Solutions"))
    for solution in solutions:
        exercise = solution.find_previous(class_="exercise")
        number = exercise.select_one(".caption-number").get_text(strip=True)
        forth = maker.new_tag("p")
        forth.append(maker.new_tag("a", href=f"#{solution['id']}", string="Solution"))
        solution.replace_with(forth)
        solution.name = "section"
        solution["class"] = "solution"
        summary = solution.select_one("summary")
        summary.name, summary.string, summary["class"] = "h3", "", ""
        summary.append(maker.new_tag("a", href=f"#{exercise['id']}", string=number))
        end.append(solution)
    article.append(end)


def article(path: Path, together: set[Path]) -> BeautifulSoup:
    """The text of a page, with addresses that are right in one document with the pages in `together`."""
    found = parse(path).select_one("article")
    for part in found.select("nav.take, a.headerlink, button"):
        part.decompose()
    for tag in found.find_all(id=True):
        tag["id"] = f"{path.stem}--{tag['id']}"
    for link in found.select("a[href]"):
        address, anchor = urldefrag(link["href"])
        target = (path.parent / address).resolve() if address else path.resolve()
        if urlsplit(address).scheme:
            continue
        if target in together:
            link["href"] = f"#{target.stem}--{anchor}" if anchor else f"#{target.stem}"
        else:  # another page of the site, which paper does not lead to
            link.name = "span"
            del link["href"]
    for image in found.select("img"):
        image["src"] = f"/{(path.parent / image['src']).resolve().relative_to(SITE.resolve()).as_posix()}"
        del image["loading"]
    at_the_end(found, path.stem)
    found.name = "section"
    found["id"] = path.stem
    found["class"] = "sheet"
    del found["role"]
    return found


def sheet(pages: list[Path], front: str = "") -> str:
    """One document of several pages."""
    together = {path.resolve() for path in pages}
    styles, bodies = {}, []
    for path in pages:
        styles |= dict.fromkeys(str(style) for style in parse(path).select("head style"))
        bodies.append(str(article(path, together)))
    title = parse(pages[0]).title.string if len(pages) == 1 else "Before the First Step"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{"".join(styles)}'
        "<style>section.sheet { break-before: page } section.sheet:first-child { break-before: auto }</style></head>"
        f'<body data-theme="light"><article>{front}{"".join(bodies)}</article></body></html>'
    )


def front_page(parts: list[tuple[str, list[Path]]]) -> str:
    lines = [f"<section class='sheet'><h1>Before the First Step</h1><p>Version {mmlib.__version__}</p>"]
    for caption, pages in parts:
        titles = [(path.stem, parse(path).select_one("article h1")) for path in pages]
        for _, title in titles:
            for link in title.select("a.headerlink"):
                link.decompose()
        items = "".join(f'<li><a href="#{stem}">{title.get_text()}</a></li>' for stem, title in titles)
        lines.append(f"<p><strong>{caption}</strong></p><ul>{items}</ul>")
    return "".join([*lines, "</section>"])


def printed(browser, address: str, text: str, target: Path) -> None:
    path = SITE / "book" / SHEET
    path.write_text(text, encoding="utf-8")
    try:
        view = browser.new_page()
        view.set_default_timeout(300_000)
        view.goto(f"{address}/book/{SHEET}", wait_until="networkidle")
        view.evaluate("() => document.fonts.ready.then(() => true)")
        view.pdf(path=target, prefer_css_page_size=True, outline=True, tagged=True)
        view.close()
    finally:
        path.unlink()
    print(f"{target.relative_to(ROOT)}  {target.stat().st_size / 1e6:.1f} MB", flush=True)


def pdf() -> None:
    FILES.mkdir(exist_ok=True)
    parts = contents()
    pages = [path for _, found in parts for path in found]
    with served() as address, chromium() as browser:
        for path in pages:
            if path.stem[:2].isdigit():
                printed(browser, address, sheet([path]), FILES / f"{path.stem}.pdf")
        first = SITE / "book" / "intro.html"
        printed(browser, address, sheet([first, *pages], front_page(parts)), FILES / f"{BOOK}.pdf")


def pack() -> None:
    FILES.mkdir(exist_ok=True)
    target = FILES / f"{BOOK}.zip"
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(SITE.rglob("*")):
            if path.is_file() and FILES not in path.parents and path.name not in (".buildinfo", ".nojekyll"):
                archive.write(path, Path(BOOK, path.relative_to(SITE)))
    unfinished.replace(target)
    print(f"{target.relative_to(ROOT)}  {target.stat().st_size / 1e6:.1f} MB")


def link() -> None:
    """Each page names what was made: its own PDF, that of the book, the site."""
    for path in sorted(SITE.rglob("*.html")):
        offered = {f"{path.stem}.pdf": "This chapter as PDF", f"{BOOK}.pdf": "The book as PDF"}
        offered |= {f"{BOOK}.zip": "The site as zip"}

        def made(match, offered=offered):
            root = match.group(1)
            links = [f'<a href="{root}{name}">{text}</a>' for name, text in offered.items() if (FILES / name).exists()]
            return f'<li data-files="{root}"{"" if links else " hidden"}>{" · ".join(links)}</li>'

        page = path.read_text(encoding="utf-8")
        linked = SLOT.sub(made, page)
        if linked != page:
            path.write_text(linked, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] not in (["pdf"], ["zip"]):
        sys.exit(__doc__)
    if not (SITE / "index.html").exists():
        sys.exit("There is no site yet: make book")
    pdf() if sys.argv[1] == "pdf" else pack()
    link()
