"""How far a long run is: a bar for a person who watches, and nothing written otherwise."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def bar(steps: Iterable[T], total: int | None, shown: bool) -> Iterator[T]:
    """The steps, with a bar if it is to be shown and somebody can see it. It is gone afterwards.

    >>> list(bar(range(3), 3, shown=False))
    [0, 1, 2]
    """
    if not (shown and watched()):
        return iter(steps)
    from tqdm import tqdm  # no more is needed to import the library than to compute with it

    return iter(tqdm(steps, total=total, unit="step", leave=False))


def watched() -> bool:
    """Whether a person can see what is written to standard error now: a terminal, or a notebook open in a browser.

    A notebook that is executed to be stored or compared has nobody who could answer `input()`; its kernel is told so
    with every cell.

    >>> import contextlib, io
    >>> with contextlib.redirect_stderr(io.StringIO()):  # text that nobody sees
    ...     watched()
    False
    """
    kernel = getattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel", None)
    if kernel is not None:
        return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))
    return sys.stderr is not None and sys.stderr.isatty()
