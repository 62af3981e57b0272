"""Mutation testing: every module of mmlib changed in one place at a time, against its own test file.

    python tools/mutation.py [--processes N] [--survivors] MODULE...

cosmic-ray makes the mutants. Each is written into a copy of the checkout, never into the checkout, and tested in a fork
of this process, which has the slow imports (torch, SciPy, pytest) behind it but not mmlib. Left out, since they would
count as killed for nothing: mutants that Python does not compile or warns of, those in a type annotation, which nothing
computes with, and arithmetic operators replaced by bitwise ones or the other way round, which floats and types lack.

A mutant is killed if a test fails; it is timed out if a test, or all of them, take LIMIT times the processor time, and
2 s more, that they take without it, which a reader would notice too. What survives has to stand in
tests/mutation/survivors.toml with a reason. The table in tests/mutation/README.md is written here, module by module.
With --survivors, only what survived in the last run is tried again, and the table is left alone.
"""

import argparse
import ast
import gc
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter, defaultdict
from pathlib import Path

# For every fork at once. A mutant's bytecode must not be stored: one of the same size and second would be taken for it.
import hypothesis
import matplotlib.pyplot  # noqa: F401
import nbval.plugin  # noqa: F401
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats  # noqa: F401
import torch
import torch.func  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".cache" / "mutation"
SURVIVORS = ROOT / "tests" / "mutation" / "survivors.toml"
TABLE = ROOT / "tests" / "mutation" / "README.md"
COPIED = ("mmlib", "tests", "conftest.py", "pyproject.toml")
WANTED = 0.9
LIMIT = 5
MEMORY = 12 << 30

_ARITHMETIC, _BITWISE = "(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)", "(BitOr|BitAnd|BitXor|LShift|RShift)"
LEFT_OUT = re.compile(f".*BinaryOperator_({_ARITHMETIC}_{_BITWISE}|{_BITWISE}_{_ARITHMETIC})")

HEAD = """# Mutants by module

Written by `make mutation`. Each module of `mmlib` is changed in one place at a time (`a + b` to `a - b`, 1 to 2, `<` to
`<=`, a decorator removed, ...) and tested by its own test file alone. Timed out: the change makes a test run
for ever, or {limit} times as long and 2 s more. [survivors.toml](survivors.toml) says of each survivor why the change
means nothing. A row stands for the code, docstrings apart, and the test file of which it gives the digest.

| module | mutants | killed | timed out | survived | killed or timed out | of |
|---|---:|---:|---:|---:|---:|---|
"""


def mutants(module: str) -> dict[tuple[str, str], list[str]]:
    """The sources of all mutants of a module, by the line that changes and what it becomes."""
    source = (ROOT / "mmlib" / f"{module}.py").read_text(encoding="utf-8")
    annotations = [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for parent in ast.walk(ast.parse(source))
        for node in (getattr(parent, "annotation", None), getattr(parent, "returns", None))
        if node is not None
    ]
    nodes, found = list(ast_nodes(get_ast(source))), defaultdict(list)
    for name in operator_names():
        if LEFT_OUT.fullmatch(name) or get_operator(name).arguments():
            continue  # an operator with arguments replaces variables that have to be named
        operator = get_operator(name)()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(places):
            changed = mutate_code(source, operator, occurrence)
            try:
                with warnings.catch_warnings(action="error"):
                    compile(changed, module, "exec")
            except (SyntaxError, SyntaxWarning):
                continue
            if not any(start <= place < end for start, end in annotations):
                found[_difference(source, changed)].append(changed)
    return found


def _difference(a: str, b: str) -> tuple[str, str]:
    old, new = a.splitlines(), b.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return tuple(" ".join(" ".join(lines).split()) for lines in (old, new))


class Order:
    """A pytest plugin: quick tests first; how long each took, in `seconds`. If limited, a slow one ends the process."""

    def __init__(self, seconds: dict[str, float], limited: bool) -> None:
        self.known, self.limited, self.seconds = seconds, limited, {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.limited:
            signal.setitimer(signal.ITIMER_PROF, LIMIT * self.known.get(nodeid, 0.0) + 2)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def run_tests(copy: Path, module: str, seconds: dict[str, float], limit: float | None, log: Path) -> None:
    """In a fork: the module's tests in `copy`, up to the first that fails. The exit code is that of pytest."""
    os.setsid()
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if limit is not None:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 10))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # An example that fails need not be made small.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", deadline=None, derandomize=True, database=None, phases=phases)
    order = Order(seconds, limit is not None)
    options = ["-x", "-q", "-o", f"cache_dir={copy}/.cache", "--hypothesis-profile=mutation"]
    options += ["-p", "_hypothesis_pytestplugin", "--assert=plain"]
    code = pytest.main([*options, f"tests/test_{module}.py"], plugins=[order])
    if limit is None:
        used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        (copy / "seconds.json").write_text(json.dumps([used, order.seconds]))
    sys.stdout.flush()
    os._exit(code)


def outcome(copy: Path, module: str, seconds: dict[str, float], limit: float | None) -> str:
    process = multiprocessing.Process(target=run_tests, args=(copy, module, seconds, limit, copy / "log"))
    process.start()
    # Processor time is what is limited; the clock, on a busy machine, only where nothing is computed at all.
    process.join(None if limit is None else 10 * limit)
    alive = process.is_alive()
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if alive or process.exitcode in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL):
        return "timed out"
    return "killed" if process.exitcode else "survived"


def work(copy: Path, module: str, share: list, seconds: dict[str, float], limit: float, results) -> None:
    path = copy / "mmlib" / f"{module}.py"
    for key, source in share:
        path.write_text(source, encoding="utf-8")
        results.put((key, outcome(copy, module, seconds, limit)))


def examine(module: str, processes: int, only: set[tuple[str, str]] | None) -> dict[tuple[str, str], Counter]:
    """How often each change of a module had which outcome. Raises SystemExit if its tests fail without any change."""
    todo = [(k, source) for k, sources in mutants(module).items() if only is None or k in only for source in sources]
    results, found = multiprocessing.Queue(), defaultdict(Counter)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copies = [Path(folder) / str(i) for i in range(processes)]
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            (copies[0]).mkdir(exist_ok=True)
            copy(ROOT / part, copies[0] / part)
        if outcome(copies[0], module, {}, None) != "survived":
            sys.exit(f"tests/test_{module}.py fails without any change:\n{(copies[0] / 'log').read_text()}")
        used, seconds = json.loads((copies[0] / "seconds.json").read_text())
        for stored in (copies[0] / "mmlib" / "__pycache__").glob(f"{module}.*"):
            stored.unlink()
        for copy in copies[1:]:
            shutil.copytree(copies[0], copy)
        limit = LIMIT * used + 2
        workers = [
            multiprocessing.Process(target=work, args=(copy, module, todo[i::processes], seconds, limit, results))
            for i, copy in enumerate(copies)
        ]
        for worker in workers:
            worker.start()
        for done in range(1, len(todo) + 1):
            key, what = results.get()
            found[key][what] += 1
            if done % 50 == 0:
                print(f"{module}: {done} of {len(todo)}", flush=True)
        for worker in workers:
            worker.join()
    return found


def reasons() -> dict[tuple[str, str, str], str]:
    """Why a change means nothing, by module, line and what the line becomes."""
    if not SURVIVORS.exists():
        return {}
    entries = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))
    return {
        (module, entry["line"], becomes): entry["why"]
        for module, listed in entries.items()
        for entry in listed
        for becomes in entry["becomes"]
    }


def digest(module: str) -> str:
    """Of a module's code, without comments and docstrings, and of its test file."""
    code = ast.parse((ROOT / "mmlib" / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    tests = (ROOT / "tests" / f"test_{module}.py").read_bytes()
    return hashlib.blake2b(ast.dump(code).encode() + tests, digest_size=4).hexdigest()


def stored(module: str) -> Path:
    return STATE / f"{module}.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="+", metavar="MODULE")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--survivors", action="store_true")
    arguments = parser.parse_args()
    for module in arguments.modules:
        if not ((ROOT / "mmlib" / f"{module}.py").exists() and (ROOT / "tests" / f"test_{module}.py").exists()):
            sys.exit(f"MODULES: {module!r} has no mmlib/{module}.py with a tests/test_{module}.py")
    gc.freeze()  # what is imported here need not be searched in every fork, as pytest does five times
    STATE.mkdir(parents=True, exist_ok=True)
    explained, right = reasons(), True
    rows = {}
    if TABLE.exists():
        lines = TABLE.read_text(encoding="utf-8").splitlines()
        rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and "mutants" not in line}
    for module in arguments.modules:
        start, before, only = time.monotonic(), digest(module), None
        if arguments.survivors:
            last = json.loads(stored(module).read_text())
            only = {(line, becomes) for line, becomes, counts in last if "survived" in counts}
        found = examine(module, arguments.processes, only)
        if only is not None:
            found = {**{(line, becomes): Counter(counts) for line, becomes, counts in last}, **found}
        stored(module).write_text(json.dumps([[*key, counts] for key, counts in found.items()]))
        total = sum(found.values(), Counter())
        share = 1 - total["survived"] / total.total()
        counts = (total.total(), total["killed"], total["timed out"], total["survived"], f"{share:.1%}")
        rows[module] = f"| {' | '.join(map(str, (module, *counts, before)))} |"
        if not arguments.survivors:
            table = HEAD.format(limit=LIMIT) + "\n".join(rows[key] for key in sorted(rows)) + "\n"
            TABLE.write_text(table, encoding="utf-8")
        print(f"{rows[module]} in {time.monotonic() - start:.0f} s", flush=True)
        alive = {(module, *key) for key, counts in found.items() if counts["survived"]}
        for _, line, becomes in sorted(alive - explained.keys()):
            print(f"  survived without a reason: {line}\n    -> {becomes}")
        stale = {key for key in explained if key[0] == module} - alive
        for _, line, becomes in sorted(stale):
            print(f"  stands in {SURVIVORS.name} and does not survive: {line}\n    -> {becomes}")
        right &= share >= WANTED and alive <= explained.keys() and not stale
    sys.exit(not right)


if __name__ == "__main__":
    main()
