"""Plant the faults of tests/faults.toml one by one, and see what turns red: python tools/faults.py [NAME ...]

For each fault the unit test and the chapter that it names are run, the chapter up to its first red cell; both must
fail. That all of them pass without a fault is seen first. A cell that lists the library's source shows a fault without
noticing it, so that its output is not compared. Everything happens in copies; the checkout stays as it is.

Prints a Markdown table and how many were seen twice. Exit status 1 if one was not, or if something is red before.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple
from xml.etree import ElementTree

import nbformat

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "faults.toml"
COPIED = ("mmlib", "tests", "book", "conftest.py", "pyproject.toml")
COPIES = 2
NBVAL = ("--nbval", "--nbval-current-env", "--nbval-cell-timeout=120")


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in mmlib/`module`.py: `test` in tests/test_`module`.py and book/`chapter`.ipynb turn red."""

    name: str
    what: str
    module: str
    old: str
    new: str
    test: str
    chapter: str

    @property
    def source(self) -> Path:
        return Path("mmlib", f"{self.module}.py")

    @property
    def unit(self) -> str:
        return f"tests/test_{self.module}.py::{self.test}"

    @property
    def notebook(self) -> str:
        return f"book/{self.chapter}.ipynb"

    def check(self, root: Path) -> None:
        """Raises ValueError, naming the fault, unless it can be planted and what should notice it is there."""
        place = f"fault {self.name!r}"
        for path in (self.source, self.unit.partition("::")[0], self.notebook):
            if not (root / path).is_file():
                raise ValueError(f"{place}: {path}: no such file")
        times = (root / self.source).read_text(encoding="utf-8").count(self.old) if self.old else 0
        if times != 1:
            raise ValueError(f"{place}: old: {self.old!r} occurs {times} times in {self.source}, once is needed")
        if self.new == self.old:
            raise ValueError(f"{place}: new: {self.new!r} is what is there already")
        tests = (root / self.unit.partition("::")[0]).read_text(encoding="utf-8")
        if not re.search(rf"^def {re.escape(self.test)}\(", tests, re.MULTILINE):
            raise ValueError(f"{place}: test: there is no {self.unit}")


def read(path: Path) -> list[Fault]:
    """The faults of a table. Raises ValueError, naming the entry, for one that is malformed."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: {error}") from error
    keys = [field.name for field in fields(Fault)][1:]
    for name, entry in entries.items():
        texts = [key for key, value in entry.items() if isinstance(value, str)] if isinstance(entry, dict) else []
        if sorted(texts) != sorted(keys) or len(entry) > len(keys):
            raise ValueError(f"fault {name!r}: a text for each of {', '.join(keys)} is needed, got {entry}")
    return [Fault(name, **entry) for name, entry in entries.items()]


class Outcome(NamedTuple):
    """What a run of tests gave: the first that failed, if any did, and, for anything but a failure, what was said."""

    red: str | None
    problem: str | None


def run(nodes: list[str], folder: Path) -> Outcome:
    """Runs tests or chapters in a copy up to the first that fails."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *nodes, *NBVAL, "-x", "-q", f"--junitxml={report}"],
        cwd=folder,
        # Two faults may differ neither in length nor in the second at which they were planted: no compiled files.
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode == 0:
        return Outcome(None, None)
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    failed = next((case for case in cases if case.find("failure") is not None), None)
    if process.returncode != 1 or failed is None:
        return Outcome(None, "\n".join((process.stdout + process.stderr).strip().splitlines()[-15:]))
    return Outcome(_place(folder, failed), None)


def _place(folder: Path, case: ElementTree.Element) -> str:
    """A test by its name; a cell by its index over all cells of the file, where nbval counts those with code."""
    number = re.fullmatch(r"Cell (\d+)", case.get("name"))
    if number is None:
        return case.get("name")
    chapter = case.get("classname").split(".")[1]
    cells = nbformat.read(folder / "book" / f"{chapter}.ipynb", as_version=4).cells
    return f"{chapter}, cell {[i for i, cell in enumerate(cells) if cell.cell_type == 'code'][int(number[1])]}"


def copy(folder: Path) -> Path:
    """The checkout, as far as tests need it, with the outputs that list source exempt from comparison."""
    folder.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    for path in (folder / "book").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if any(_lists_source(output) for output in cell.get("outputs", ())):
                cell.metadata["tags"] = [*cell.metadata.get("tags", ()), "nbval-ignore-output"]
        nbformat.write(notebook, path)
    return folder


def _lists_source(output: nbformat.NotebookNode) -> bool:
    return output.get("data", {}).get("text/markdown", "").startswith("```python")


@contextmanager
def planted(fault: Fault, folder: Path) -> Iterator[None]:
    """Within it the copy has the fault."""
    path = folder / fault.source
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(sound, encoding="utf-8")


def seen(fault: Fault, folder: Path) -> tuple[Outcome, Outcome]:
    with planted(fault, folder):
        return run([fault.unit], folder), run([fault.notebook], folder)


def row(fault: Fault, outcomes: tuple[Outcome, Outcome]) -> str:
    cells = (o.red or f"**{'does not run' if o.problem else 'green'}**" for o in outcomes)
    return f"| {' | '.join([fault.name, fault.what, *(cell.replace('|', chr(92) + '|') for cell in cells)])} |"


def main(names: list[str]) -> int:
    try:
        faults = read(TABLE)
        for fault in faults:
            fault.check(ROOT)
    except ValueError as error:
        sys.exit(str(error))
    if unknown := set(names) - {fault.name for fault in faults}:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in faults)}")
    faults = [fault for fault in faults if not names or fault.name in names]

    within = ROOT / ".cache" / "tmp"
    within.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="faults-", dir=within) as folder:
        free = SimpleQueue()
        for number in range(COPIES):
            free.put(copy(Path(folder, str(number))))

        def in_a_copy(job, subject):
            place = free.get()
            try:
                return job(subject, place)
            finally:
                free.put(place)

        with ThreadPoolExecutor(COPIES) as pool:
            units = sorted({fault.unit for fault in faults})
            sound = [units, *([notebook] for notebook in sorted({fault.notebook for fault in faults}))]
            before = list(pool.map(partial(in_a_copy, run), sound))
            if bad := [o.red or o.problem for o in before if o != Outcome(None, None)]:
                sys.exit("without any fault these are red:\n" + "\n".join(bad))
            print("| fault | what is wrong | unit test | chapter |\n|---|---|---|---|", flush=True)
            twice = 0
            for fault, outcomes in zip(faults, pool.map(partial(in_a_copy, seen), faults), strict=True):
                print(row(fault, outcomes), flush=True)
                twice += all(o.red for o in outcomes)
                for o in outcomes:
                    if o.problem:
                        print(f"{fault.name}:\n{o.problem}", file=sys.stderr, flush=True)
    print(f"\n{twice} of {len(faults)} seen twice")
    return int(twice < len(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
