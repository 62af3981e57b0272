"""How the library is laid out: imports run downhill, everything public says what it is."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import mmlib

ROOT = Path(mmlib.__file__).parent
ORDER = (
    *("rng", "gaussian", "activations", "init", "losses", "layers", "examples", "baselines", "data"),
    *("undisturbed", "norm", "models", "ensemble", "history", "checkpoint", "progress", "trace", "train"),
    *("stats", "meanfield", "noise", "table", "comparison", "scalar", "backward"),
    *("checkup.found", "checkup.row", "checkup.functions", "checkup.terms", "checkup.watch", "checkup.traced"),
    *("checkup.gradients", "checkup.probe", "checkup.taken", "checkup.record", "checkup.report", "checkup.compare"),
    *("checkup.rules", "checkup.loss", "checkup.targets", "checkup.structure", "checkup.modes", "checkup.signal"),
    *("checkup.gradient", "checkup.step", "checkup.overfit", "checkup", "plots", "moving", "show"),
    *("exercise.kinds", "exercise.start", "exercise.depth", "exercise.norms", "exercise.practice"),
    *("exercise.beyond", "exercise"),
)
CONTRACT = {
    "rng": "generator",
    "noise": "noise",
    "gaussian": "expectation",
    "activations": "Activation STEP IDENTITY SIGMOID TANH RELU LEAKY_RELU ELU GELU SILU ACTIVATIONS",
    "init": "VarianceScaling Orthogonal LECUN XAVIER PYTORCH kaiming schemes",
    "losses": "cross_entropy",
    "layers": "Linear Embedding Flatten Nonlinearity Maxout",
    "norm": "standardize BatchNorm1d LayerNorm GroupNorm RMSNorm fold calibrate",
    "scalar": "Value",
    "backward": "linear_backward activation_backward standardize_backward cross_entropy_backward",
    "examples": "Examples",
    "baselines": "counting_floor counting_loss",
    "progress": "",
    "data": "read_names Vocabulary split Examples examples minibatches counting_floor",
    "models": "MLP sample",
    "ensemble": "stack unstack",
    "history": "Step Series History",
    "undisturbed": "undisturbed",
    "trace": "trace Trace undisturbed layer_outputs",
    "checkpoint": "save resume",
    "train": "descend train evaluate constant drop",
    "stats": "rms saturation dead grad_data_ratios update_ratios distances",
    "table": "table",
    "comparison": "compare Comparison Best",
    "meanfield": "expected_saturation expected_first_loss",
    "checkup": "checkup overfit compare Report",
    "plots": "densities_by_layer over_time raster intervals differences against_rate against_theory level ticks "
    "shared_legend",
    "moving": "Slider Choice Grid Mark Panel Number Moving Game Check Fault",
    "exercise": "check EXERCISES",
    "show": "show",
}


def named(path):
    """A file's module below mmlib, with dots; a package has the name of its directory."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[1:] and parts[-1] == "__init__" else parts)


SOURCES = {named(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
MODULES = [name for name in ORDER if name in SOURCES]
every_module = pytest.mark.parametrize("name", MODULES)


def imports(tree):
    """(module, names) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module, [alias.name for alias in node.names]


def own_imports(tree):
    """The modules of mmlib that a file imports."""
    for module, names in imports(tree):
        if module == "mmlib" or module.startswith("mmlib."):
            name = module.removeprefix("mmlib").lstrip(".")
            inner = [f"{name}.{each}".lstrip(".") for each in names]
            yield from [each for each in inner if each in SOURCES] or [name or "__init__"]


def files_that_import(library):
    return {name for name, tree in SOURCES.items() for m, _ in imports(tree) if m.split(".")[0] == library}


def test_every_file_has_its_place_in_the_order():
    assert SOURCES.keys() - {"__init__"} == set(MODULES)
    assert CONTRACT.keys() == {name for name in ORDER if "." not in name}  # the inside of a package is its own


def test_the_map_is_the_order():
    """What `help(mmlib)` shows, in the order in which imports run downhill."""
    assert re.findall(r"^    (\w+)  ", mmlib.__doc__, re.M) == [name for name in ORDER if "." not in name]


@every_module
def test_imports_run_downhill(name):
    for imported in own_imports(SOURCES[name]):
        assert imported in ORDER[: ORDER.index(name)], f"{name} imports {imported}, which does not stand above it"


def test_the_package_itself_imports_nothing():
    assert not list(imports(SOURCES["__init__"]))


@every_module
def test_imports_name_what_they_take(name):
    assert not any("*" in names for _, names in imports(SOURCES[name]))


@pytest.mark.parametrize("library, home", [("matplotlib", "plots"), ("IPython", "show")])
def test_only_one_file_knows(library, home):
    assert files_that_import(library) == {home}


def test_ipython_is_imported_only_when_something_is_shown():
    at_import = (node for node in SOURCES["show"].body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert not any(m.startswith("IPython") for node in at_import for m, _ in imports(node))


@every_module
def test_the_names_of_the_contract_are_there(name):
    module = importlib.import_module(f"mmlib.{name}")
    assert [n for n in CONTRACT.get(name, "").split() if not hasattr(module, n)] == []


def public(name):
    """(qualified name, object) of every public class, function and method that a module defines."""
    module = importlib.import_module(f"mmlib.{name}")
    for key, obj in vars(module).items():
        if key.startswith("_") or getattr(obj, "__module__", None) != module.__name__:
            continue
        if getattr(obj, "__name__", key) != key:  # a second name, kept for those who know it
            continue
        if inspect.isfunction(obj) or inspect.isclass(obj):
            yield key, obj
        if inspect.isclass(obj):
            for method, member in vars(obj).items():
                member = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
                if not method.startswith("_") and inspect.isfunction(member) and member.__module__ == module.__name__:
                    yield f"{key}.{method}", member


@every_module
def test_everything_public_has_a_docstring(name):
    assert ast.get_docstring(SOURCES[name])
    written = {
        node.name: ast.get_docstring(node)
        for node in SOURCES[name].body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    }
    for key, obj in public(name):
        # A method that takes the place of a documented one, such as forward, has the docstring of that one.
        assert written[key] if "." not in key else inspect.getdoc(obj), f"mmlib.{name}.{key} has no docstring"


@every_module
def test_docstrings_begin_with_a_sentence(name):
    for key, obj in public(name):
        text = obj.__doc__
        if text:
            assert text[0].strip() and text.split("\n\n")[0].rstrip()[-1] in ".:!)", (
                f"mmlib.{name}.{key}: {text[:80]!r}"
            )


@every_module
def test_randomness_is_a_keyword_without_a_default(name):
    """`build`, whose one argument it is, and `given`, which checks it, may take a generator by position."""
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.FunctionDef):
            keywords = {a.arg: default for a, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)}
            by_position = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            assert "generator" not in by_position or node.name in ("build", "given"), f"mmlib.{name}: {node.name}"
            assert keywords.get("generator") is None, f"mmlib.{name}: {node.name}"


def test_pytest_runs_without_a_cache(pytester):
    root = ROOT.parent
    options = ("-p", "no:cacheprovider", "--collect-only", "-q", f"--rootdir={root}", "-c", root / "pyproject.toml")
    result = pytester.runpytest_inprocess(*options, root / "tests" / "test_rng.py")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()
