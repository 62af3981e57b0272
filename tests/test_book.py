"""What holds for every chapter as a file.

That its outputs are right is nbval's business; that nbval sees a wrong one is tested at the end.
"""

import base64
import io
import itertools
import json
import re
import runpy
import shutil
import tokenize
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))
IMAGES = {"image/png", "image/jpeg", "image/svg+xml"}
LARGEST = 1_000_000
SHORTEST_ALT = 40

every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.name)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    """(where, cell) for every code cell that is not empty; `where` names notebook, cell and first line."""
    for i, cell in enumerate(read(path).cells):
        if cell.cell_type == "code" and cell.source.strip():
            yield f"{path.name}, cell {i} ({cell.source.strip().splitlines()[0][:60]!r})", cell


def pictures(cell):
    return [output for output in cell.outputs if IMAGES & set(output.get("data", {}))]


@every_chapter
def test_every_cell_was_run_once_and_in_order(path):
    for expected, (where, cell) in enumerate(code_cells(path), start=1):
        assert cell.execution_count == expected, (
            f"{where}: execution count is {cell.execution_count}, not {expected}: "
            f"make execute CHAPTERS=book/{path.name}"
        )


@every_chapter
def test_no_output_is_exempt_from_comparison(path):
    found = re.search(r"nbval[_-](ignore[_-]output|skip)", path.read_text(encoding="utf-8"), re.IGNORECASE)
    assert not found, f"{path.name} contains {found.group()!r}; make the output reproducible instead"


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
    described = set(re.findall(r"automodule:: mmlib\.([\w.]+)", (ROOT / "book" / "api.md").read_text(encoding="utf-8")))
    files = [path.relative_to(ROOT / "mmlib").with_suffix("") for path in (ROOT / "mmlib").rglob("*.py")]
    modules = {".".join(part for part in path.parts if part != "__init__") for path in files} - {""}
    assert described == modules, f"book/api.md lacks {modules - described} and has too much {described - modules}"


# --- that a wrong output is found ---------------------------------------------------------------------------------


def png(shift=0, noise=0):
    """A white picture with a black band; `shift` moves the band, `noise` brightens single pixels by one of 255."""
    pixels = np.full((100, 200, 3), 255, np.uint8)
    pixels[40 + shift : 45 + shift, 20:180] = 0
    pixels[45 + shift, 20 : 20 + noise] = 254
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def shows(picture, stored):
    source = f"import base64\nfrom IPython.display import Image\nImage(base64.b64decode({picture!r}))"
    data = {"image/png": stored, "text/plain": "<IPython.core.display.Image object>"}
    return source, [nbformat.v4.new_output("execute_result", data, execution_count=1)]


def says(text, stored, name="stdout"):
    source = f"import sys\nprint({text!r}, file=sys.{name})"
    return source, [nbformat.v4.new_output("stream", name=name, text=stored + "\n")]


def test_wrong_outputs_are_found(pytester):
    cells = {
        "same picture": shows(png(), png()),
        "a few pixels differ by one": shows(png(noise=9), png()),
        "moved band": shows(png(shift=30), png()),
        "same text": says("0.123", "0.123"),
        "last digit differs": says("0.124", "0.123"),
        "stderr differs": says("warning 2", "warning 1", name="stderr"),
        "output was not stored": ("print(1)", []),
    }
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [
        nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=i + 1)
        for i, (source, outputs) in enumerate(cells.values())
    ]
    shutil.copy(ROOT / "conftest.py", pytester.path)
    (pytester.path / "small.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    pytester.makeini("[pytest]\n")
    result = pytester.runpytest_subprocess("--nbval", "--nbval-current-env", "-v", "--color=no")
    verdicts = re.findall(r"::Cell \d+ (PASSED|FAILED)", result.stdout.str())
    assert dict(zip(cells, verdicts, strict=True)) == {
        "same picture": "PASSED",
        "a few pixels differ by one": "PASSED",
        "moved band": "FAILED",
        "same text": "PASSED",
        "last digit differs": "FAILED",
        "stderr differs": "PASSED",
        "output was not stored": "FAILED",
    }
