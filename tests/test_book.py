"""What holds for every chapter as a file.

That its outputs are right is nbval's business; that a wrong one is seen is tested in test_outputs.py.
"""

import functools
import io
import itertools
import re
import runpy
import tokenize
from pathlib import Path

import nbformat
import pytest
import yaml
from nbval.plugin import find_comment_markers, find_metadata_tags

import mmlib
from mmlib.table import LINE

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
IMAGES = {"image/png", "image/jpeg", "image/svg+xml"}
LARGEST = 1_000_000
SHORTEST_ALT = 40

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)


@functools.cache
def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    """(where, cell) for every code cell that is not empty; `where` names notebook, cell and first line."""
    for i, cell in enumerate(read(path).cells):
        if cell.cell_type == "code" and cell.source.strip():
            yield f"{path.name}, cell {i} ({cell.source.strip().splitlines()[0][:60]!r})", cell


def pictures(cell):
    """Outputs that are a picture alone. A moving figure is a page with descriptions and numbers of its own."""
    return [o for o in cell.outputs if IMAGES & set(o.get("data", {})) and "text/html" not in o.data]


@every_chapter
def test_every_cell_was_run_once_and_in_order(path):
    for expected, (where, cell) in enumerate(code_cells(path), start=1):
        assert cell.execution_count == expected, (
            f"{where}: execution count is {cell.execution_count}, not {expected}: "
            f"make execute CHAPTERS=book/{path.name}"
        )


@every_chapter
def test_no_output_is_exempt_from_comparison(path):
    for where, cell in code_cells(path):
        told = dict(find_metadata_tags(cell.metadata)) | dict(find_comment_markers(cell.source))
        exempt = told.get("skip", False) or not told.get("check", True)
        assert not exempt, f"{where}: a tag or comment exempts it; make the output reproducible instead"


def test_few_cells_are_about_exact_arithmetic():
    exact = [where for path in CHAPTERS for where, cell in code_cells(path) if "exact" in cell.metadata.get("tags", [])]
    assert len(exact) <= 12, f"a dozen cells may be tagged `exact`, and these are: {exact}"


@every_chapter
def test_nothing_was_written_to_stderr(path):
    for where, cell in code_cells(path):
        for output in cell.outputs:
            assert output.get("name") != "stderr", f"{where} stores stderr: {output.text[:200]!r}"


@every_chapter
def test_errors_are_announced(path):
    for where, cell in code_cells(path):
        raised = [output.ename for output in cell.outputs if output.output_type == "error"]
        if "raises-exception" in cell.metadata.get("tags", []):
            assert raised, f"{where} is tagged raises-exception, and nothing was raised"
        else:
            assert not raised, f"{where} stores an error ({raised[0]}); if it is meant, tag the cell raises-exception"


@every_chapter
def test_every_figure_is_described(path):
    for where, cell in code_cells(path):
        shown = pictures(cell)
        if not shown:
            continue
        assert len(shown) == 1, (
            f"{where} shows {len(shown)} pictures; a description belongs to one, so show one per cell"
        )
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert len(alt) >= SHORTEST_ALT, (
            f"{where}: the metadata mystnb.image.alt says what the figure shows in at least {SHORTEST_ALT} characters; "
            f"it is {alt!r}"
        )
        assert cell.metadata.get("alt") == alt, (
            f"{where}: the metadata `alt` is the same text as mystnb.image.alt, for nbconvert; "
            f"it is {cell.metadata.get('alt')!r}"
        )


@every_chapter
def test_every_figure_has_its_numbers_beside_it(path):
    for where, cell in code_cells(path):
        if pictures(cell):
            told = [
                output
                for output in cell.outputs
                if output.get("name") == "stdout"
                or (
                    output not in pictures(cell)
                    and {"text/plain", "text/html", "text/markdown"} & set(output.get("data", {}))
                )
            ]
            assert told, f"{where}: print the numbers that carry what the figure shows; the picture alone checks little"


def ends_in_semicolon(source):
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    ends = (tokenize.NEWLINE, tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER)
    return [a.start[0] for a, b in itertools.pairwise(tokens) if a.string == ";" and b.type in ends]


@every_chapter
def test_no_line_ends_in_a_semicolon(path):
    for where, cell in code_cells(path):
        if not cell.source.lstrip().startswith("%%"):
            lines = ends_in_semicolon(cell.source)
            assert not lines, f"{where}, line {lines[0]} ends in a semicolon; assign to _ or end with plt.show()"


@every_chapter
def test_size(path):
    size = path.stat().st_size
    assert size < LARGEST, f"{path.name} has {size:,} bytes; fewer than {LARGEST:,} are allowed"


@every_chapter
def test_every_exercise_has_a_folded_solution(path):
    prose = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    exercises = re.findall(r"^[`:]{3,}\{exercise(?:-start)?\}[^\n]*\n((?::[^\n]*\n)*)", prose, re.MULTILINE)
    labels = [re.search(r"^:label:\s*(\S+)", options, re.MULTILINE) for options in exercises]
    assert all(labels), f"{path.name}: an exercise has no :label:"
    solutions = dict(re.findall(r"^[`:]{3,}\{solution(?:-start)?\}\s*(\S+)\s*\n((?::[^\n]*\n)*)", prose, re.MULTILINE))
    for label in (match.group(1) for match in labels):
        assert label in solutions, f"{path.name}: exercise {label} has no solution"
        assert re.search(r"^:class:.*\bdropdown\b", solutions[label], re.MULTILINE), (
            f"{path.name}: the solution of {label} needs ':class: dropdown', so that it is folded"
        )
    for kind in ("exercise", "solution"):
        begun = len(re.findall(rf"\{{{kind}-start\}}", prose))
        ended = len(re.findall(rf"\{{{kind}-end\}}", prose))
        assert begun == ended, f"{path.name}: {begun} {kind}-start, {ended} {kind}-end"


@every_chapter
def test_kernelspec(path):
    name = read(path).metadata.get("kernelspec", {}).get("name")
    assert name == "python3", f"{path.name}: kernelspec is {name!r}, not 'python3'"


def listed(node):
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("root", "file"))
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from listed(item)


@every_chapter
def test_listed_in_the_table_of_contents(path):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert f"book/{path.stem}" in set(listed(toc)), f"book/{path.stem} is not in _toc.yml"


def test_the_index_of_exercises_is_that_of_the_chapters():
    made = runpy.run_path(str(ROOT / "tools" / "exercises.py"))
    assert made["INDEX"].read_text(encoding="utf-8") == made["index"](), "make it anew: python tools/exercises.py"
    prose = "\n".join(path.read_text(encoding="utf-8") for path in CHAPTERS)
    assert made["index"]().count("{ref}") == len(re.findall(r"\{exercise(?:-start)?\}", prose))


def test_every_module_is_in_the_reference():
    pages = [ROOT / "book" / "api.md", *sorted((ROOT / "book" / "library").glob("*.md"))]
    index, *parts = (path.read_text(encoding="utf-8") for path in pages)
    described = set(re.findall(r"automodule:: mmlib\.(\w+)", "".join(parts)))
    modules = {path.stem for path in (ROOT / "mmlib").glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in (ROOT / "mmlib").glob("*/__init__.py")}
    assert described == modules, f"book/library lacks {modules - described} and has too much {described - modules}"
    order = re.findall(r"^    (\w+) ", mmlib.__doc__, re.MULTILINE)
    assert re.findall(r"^   mmlib\.(\w+)$", index, re.MULTILINE) == order, "book/api.md does not follow the map"


LONGEST = 12
FOLDED = {"hide-input", "hide-cell", "remove-input", "script"}
DRAWN = "look|points|intervals|differences|level|ticks|raster|shared_legend|against_rate|against_theory|over_time"
SHOWN = re.compile(rf"\bprint\(|\bplt\.|\bax(es)?\b.*\.\w+\(|^\s*({DRAWN})\(")


def open_cells(path):
    """Code that stands open: not folded, no part of a solution, which is, and no `script` that is to be read whole."""
    solution = False
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for kind in re.findall(r"\{solution-(start|end)\}", cell.source):
                solution = kind == "start"
        elif not solution and not FOLDED & set(cell.metadata.get("tags", [])):
            yield [line for line in cell.source.splitlines() if line.strip()]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)
def test_what_stands_open_is_short_and_computes(path):
    cells = list(open_cells(path))
    long = [lines[0] for lines in cells if len(lines) > LONGEST]
    assert not long, f"{path.name}: open cells of more than {LONGEST} lines begin with {long}; fold what draws"
    lines = list(itertools.chain(*cells))
    shown = [line for line in lines if SHOWN.search(line)]
    assert len(shown) <= 0.1 * len(lines), f"{path.name}: {len(shown)} of {len(lines)} open lines print or draw"


@every_chapter
def test_a_line_of_code_fits_the_page(path):
    for where, cell in code_cells(path):
        if not FOLDED & set(cell.metadata.get("tags", [])):
            long = [line for line in cell.source.splitlines() if len(line) >= LINE]  # the frame takes one
            assert not long, f"{where}: lines of {LINE} characters and more scroll on the page: {long}"
