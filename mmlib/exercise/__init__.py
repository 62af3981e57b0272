"""Exercises that answer: `check` tries a reader's own number or function, and says in words what is wrong with it."""

import difflib
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mmlib.exercise import beyond, depth, norms, practice, start
from mmlib.exercise.kinds import Exercise, WrongType, shown
from mmlib.table import LINE

EXERCISES: dict[str, Exercise] = {
    **start.EXERCISES,
    **depth.EXERCISES,
    **norms.EXERCISES,
    **practice.EXERCISES,
    **beyond.EXERCISES,
}
"""Every exercise that answers, by its label."""


class _TooLong(BaseException):
    """After how many seconds. No Exception, which an answer might catch."""


def _run(call: Callable[[], Any]) -> Any:
    return call()


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns. Raises _TooLong after that much computing, or ten times as long by the clock.

    It does so in the main thread of a system with interval timers.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return _run(call)
    computed, began = time.thread_time(), time.monotonic()

    def strike(signum: int, frame: FrameType | None) -> None:
        # On a busy machine the clock goes on while the answer waits for a processor; one that sleeps computes nothing.
        long, late = time.thread_time() - computed >= seconds, time.monotonic() - began >= 10 * seconds
        # Outside of the answer, as when it has just returned, nothing is to be stopped.
        while frame is not None and (long or late):
            if frame.f_code is _run.__code__:
                raise _TooLong(f"{seconds if long else 10 * seconds:g}")
            frame = frame.f_back

    handler, timer = signal.signal(signal.SIGALRM, strike), signal.getitimer(signal.ITIMER_REAL)
    # Again and again: an answer may catch everything, but only where it tries to; one strike will fall elsewhere.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.001)
    try:
        return _run(call)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def verdict(name: str = "", answer: Any = None, *, seconds: float = 10.0) -> str:
    """What `check` prints.

    >>> verdict('ex-13-log')[:26]
    'ex-13-log: no answer yet. '
    """
    if not isinstance(name, str) or name not in EXERCISES:
        near = difflib.get_close_matches(shown(name), EXERCISES, n=1)
        return f"There is no exercise {shown(name)} to check" + (f"; did you mean {near[0]!r}?" if near else ".")
    exercise = EXERCISES[name]
    if answer is None or answer is ...:
        return f"{name}: no answer yet. It asks for {exercise.asks}."
    try:
        words = _within(seconds, lambda: exercise.wrong(answer))
    except _TooLong as error:
        return f"{name}: not yet. Your answer was stopped after {error} seconds; is there a loop that never ends?"
    except WrongType as error:
        return f"{name}: not yet. What is asked cannot be read from this: {error}."
    except (Exception, SystemExit) as error:
        return f"{name}: not yet. Trying your answer raised {type(error).__name__}."
    return f"{name}: not yet. {words}" if words else f"{name}: right."


def check(name: str = "", answer: Any = None, *, seconds: float = 10.0) -> None:
    """Tries an answer to the exercise with this label and prints whether it is right, or in words what is wrong.

    An answer is a number, a list of numbers, a set of items, or a function, as the exercise asks. No exception escapes
    but the reader's own interrupt: no answer, one of another type, a function that raises and one that does not return
    within `seconds` of computing, or ten times as long by the clock, are each told in a sentence, and the notebook goes
    on. The limit is an interval timer (SIGALRM). It holds in the main thread on Linux and macOS, where a notebook runs
    its cells, and for an endless loop in Python; on Windows, in another thread and within one call into compiled code
    there is none, and the kernel's interrupt remains.

    >>> check('ex-00-none', 1)
    There is no exercise 'ex-00-none' to check; did you mean 'ex-06-funnel'?
    """
    print(textwrap.fill(verdict(name, answer, seconds=seconds), LINE, break_long_words=False, break_on_hyphens=False))
