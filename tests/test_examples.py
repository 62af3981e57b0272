"""The examples in docstrings: they run, they print what they say, and no public function is without one."""

import doctest
import functools
import importlib
import inspect

import matplotlib.pyplot as plt
import pytest
import torch
from test_house import MODULES, public

from mmlib import data

PACKAGES = {"checkup": ("checkup", "checkup.overfit", "checkup.compare")}
FUNCTIONS = [
    (name, key)
    for top in MODULES
    if "." not in top
    for name in PACKAGES.get(top, (top,))
    for key, obj in public(name)
    if inspect.isfunction(obj) and "." not in key
]


def examples_of(name, key):
    module = importlib.import_module(f"mmlib.{name}")
    finder = doctest.DocTestFinder(exclude_empty=False, recurse=False)
    (found,) = finder.find(getattr(module, key), key, module)
    return found


@pytest.mark.parametrize("name, key", FUNCTIONS, ids=map(".".join, FUNCTIONS))
def test_a_public_function_has_an_example(name, key):
    assert examples_of(name, key).examples, f"mmlib.{name}.{key}: no example in its docstring"


WRITTEN = [
    (name, key)
    for name in MODULES
    for key, obj in public(name)
    if "." not in key and ">>> " in (inspect.getdoc(obj) or "")
]


@pytest.fixture(scope="module", autouse=True)
def the_corpus_is_made_once():
    """Every third example begins with it, and nothing changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "corpus", functools.cache(data.corpus))
        yield


@pytest.mark.parametrize("name, key", WRITTEN, ids=map(".".join, WRITTEN))
def test_an_example_prints_what_it_says(name, key, capsys):
    test = examples_of(name, key)
    try:
        with torch.random.fork_rng():
            result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    finally:
        plt.close("all")
    assert result.attempted and not result.failed, capsys.readouterr().out


def test_an_example_that_does_not_hold_is_seen():
    parser = doctest.DocTestParser()
    test = parser.get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
