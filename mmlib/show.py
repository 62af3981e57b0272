"""A definition's own source, for a chapter."""

import ast
import inspect
import textwrap
from typing import Any


def source(obj: Any) -> str:
    """The source of a class or function, each docstring cut to its first line.

    Raises TypeError for an object that has no source of its own, such as a number or an instance.

    >>> from mmlib.train import constant
    >>> source(constant).split('\\n')[0]
    'def constant(lr: Rate) -> Schedule:'
    """
    try:
        text = textwrap.dedent(inspect.getsource(obj))
    except (TypeError, OSError) as error:
        raise TypeError(f"show: a class, function or module with Python source is needed, got {obj!r}") from error
    lines = text.splitlines()
    drop: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node, clean=False):
            first, last = node.body[0].lineno, node.body[0].end_lineno
            if last and last > first:
                opening = lines[first - 1].rstrip()
                if opening.endswith('"""'):  # the text begins on the next line
                    opening += lines[first].strip()
                lines[first - 1] = opening + '"""'
                drop.update(range(first, last))
    return "\n".join(line for i, line in enumerate(lines) if i not in drop)


def show(*objects: Any) -> None:
    """Display the definitions of classes or functions in a notebook, as highlighted Python.

    >>> from mmlib.train import constant
    >>> show(constant)
    <IPython.core.display.Markdown object>
    """
    from IPython.display import Markdown, display

    code = "\n\n\n".join(source(obj) for obj in objects)
    display(Markdown(f"```python\n{code}\n```"))
