import ast
import importlib
import inspect
import pkgutil

import pytest

import mmlib
from mmlib import activations, init, layers, show
from mmlib.layers import Linear
from mmlib.trace import undisturbed

MODULES = [importlib.import_module(f"mmlib.{m.name}") for m in pkgutil.iter_modules(mmlib.__path__)]
OWN = [
    obj
    for module in MODULES
    for obj in vars(module).values()
    if (inspect.isclass(obj) or inspect.isfunction(obj))
    and obj.__module__ == module.__name__
    and not obj.__name__.startswith("_")
]


def documented(tree):
    return [
        n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(n)
    ]


def bare(tree):
    for node in documented(tree):
        del node.body[0]
    return ast.dump(tree)


@pytest.mark.parametrize("obj", [*OWN, *MODULES], ids=lambda o: getattr(o, "__qualname__", o.__name__))
def test_a_source_is_the_definition_with_docstrings_of_one_line(obj):
    whole, shown = (ast.parse(text) for text in (inspect.getsource(obj), show.source(obj)))
    before, after = ([ast.get_docstring(node) for node in documented(tree)] for tree in (whole, shown))
    assert after == [text.splitlines()[0] for text in before]
    assert bare(whole) == bare(shown)


def example(x):
    """One line.

    And more.
    """
    text = """not
    a docstring"""

    def inner():
        """Another kind."""

    return text, x, inner


def late(x):
    """
    Begins on the next line.

    And more.
    """
    return x


def test_a_docstring_that_begins_with_a_line_break():
    assert show.source(late).splitlines() == ["def late(x):", '    """Begins on the next line."""', "    return x"]


def test_a_source_by_hand():
    assert show.source(example) == (
        "def example(x):\n"
        '    """One line."""\n'
        '    text = """not\n'
        '    a docstring"""\n'
        "\n"
        "    def inner():\n"
        '        """Another kind."""\n'
        "\n"
        "    return text, x, inner"
    )


def test_a_method_is_shown_from_the_margin():
    assert show.source(Linear.extra_repr).startswith("def extra_repr(self)")


def test_a_decorator_is_shown():
    assert show.source(undisturbed).startswith("@contextmanager\ndef undisturbed")


@pytest.mark.parametrize("obj", [3, "text", activations.TANH, init.LECUN, len], ids=repr)
def test_what_has_no_source_is_refused(obj):
    with pytest.raises(TypeError, match="show: a class, function or module with Python source is needed, got"):
        show.source(obj)


def test_show_displays_highlighted_python(monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    assert show.show(layers.Flatten, layers.Nonlinearity) is None
    (markdown,) = displayed
    expected = show.source(layers.Flatten) + "\n\n\n" + show.source(layers.Nonlinearity)
    assert markdown.data == f"```python\n{expected}\n```"
