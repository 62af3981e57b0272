"""Kinds of answers: a number, several numbers, a choice among items, a function. Each says in words what is wrong."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmlib import rng

_SHOWN = 3  # significant digits; more would be another machine's


class WrongType(TypeError):
    """The answer is of another kind than the exercise asks for: the message says which is needed."""


def _named(answer: Any) -> str:
    return "a function" if callable(answer) else f"{type(answer).__name__}"


def shown(x: Any) -> str:
    """A short value as it is written; of all else the kind, since an address is another one in every process."""
    return repr(x)[:40] if isinstance(x, (str, int, float)) else _named(x)


def _float(answer: Any, needed: str) -> float:
    plain = answer
    if hasattr(answer, "item"):
        with contextlib.suppress(ValueError, RuntimeError):
            plain = answer.item()
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise WrongType(f"{needed} is needed, and this is {_named(answer)}")
    return float(plain)


@dataclass(frozen=True)
class Number:
    """A number, right within a share `within` of it; `mistakes` are words for the usual wrong values."""

    asks: str
    solution: float
    mistakes: Mapping[float, str]
    hint: str
    within: float = 0.01

    def _is(self, answer: float, value: float) -> bool:
        return abs(answer - value) <= self.within * (abs(value) or 1)

    def wrong(self, answer: Any) -> str | None:
        """What is wrong with an answer, or None. Raises WrongType for anything but a number."""
        x = _float(answer, f"{self.asks}, a number,")
        if self._is(x, self.solution):
            return None
        for value, words in self.mistakes.items():
            if self._is(x, value):
                return words
        side = "no number" if math.isnan(x) else "too large" if x > self.solution else "too small"
        return f"{x:.{_SHOWN}g} is {side}. {self.hint}"

    def planted(self) -> Iterator[tuple[str, Any]]:
        """Each of the usual mistakes: what is said of it, and an answer that makes it."""
        for value, words in self.mistakes.items():
            yield words, value


@dataclass(frozen=True)
class Numbers:
    """Several numbers in order, each a `Number`, by their names."""

    parts: Mapping[str, Number]

    @property
    def asks(self) -> str:
        """What is asked."""
        return f"{len(self.parts)} numbers ({', '.join(self.parts)})"

    @property
    def solution(self) -> list[float]:
        """The numbers in order."""
        return [part.solution for part in self.parts.values()]

    def wrong(self, answer: Any) -> str | None:
        """What is wrong with the first number that is, or None. Raises WrongType for anything but so many numbers."""
        if isinstance(answer, Mapping):
            answer = list(answer.values())
        if not isinstance(answer, (list, tuple, Tensor)) or len(answer) != len(self.parts):
            count = f" of {len(answer)}" if isinstance(answer, (list, tuple)) else ""
            raise WrongType(f"a list of {self.asks} is needed, and this is {_named(answer)}{count}")
        for (name, part), each in zip(self.parts.items(), answer, strict=True):
            try:
                words = part.wrong(each)
            except WrongType as error:
                raise WrongType(f"{name}: {error}") from None
            if words:
                return f"{name}: {words}"
        return None

    def planted(self) -> Iterator[tuple[str, Any]]:
        """Each usual mistake in one number, with the others right."""
        for at, part in enumerate(self.parts.values()):
            for words, value in part.planted():
                yield words, [value if k == at else x for k, x in enumerate(self.solution)]


@dataclass(frozen=True)
class Choice:
    """Those of several items that fit: `right` with words for one that was left out, `wrong` for one taken in."""

    asks: str
    right: Mapping[Any, str]
    wrongly: Mapping[Any, str]

    @property
    def solution(self) -> set:
        """The items that fit."""
        return set(self.right)

    def wrong(self, answer: Any) -> str | None:
        """What is wrong with the choice, or None. Raises WrongType for anything but items of the list."""
        chosen = list(answer) if isinstance(answer, (set, frozenset, list, tuple)) else [answer]
        items = [*self.right, *self.wrongly]
        for item in chosen:
            if item not in items:
                there = sorted(map(str, items))
                raise WrongType(f"{self.asks} are needed, out of {there}; {shown(item)} is not there")
        for item, words in self.right.items():
            if item not in chosen:
                return f"{item} is left out. {words}"
        for item, words in self.wrongly.items():
            if item in chosen:
                return f"{item} does not belong. {words}"
        return None

    def planted(self) -> Iterator[tuple[str, Any]]:
        """Each item wrongly left out or taken in."""
        for item, words in self.right.items():
            yield words, self.solution - {item}
        for item, words in self.wrongly.items():
            yield words, self.solution | {item}


@dataclass(frozen=True)
class Raised:
    """An observation: the answer raised this."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"it raises {self.kind}: {self.message}" if self.message else f"it raises {self.kind}"


def draws(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers for cases, in float64: the same with each call."""
    return rng.normal(*shape, generator=rng.generator(seed, "exercise")).double()


def returned(answer: Callable, *arguments: Any) -> Any:
    """What a function returns: how most are observed."""
    return answer(*arguments)


@dataclass(frozen=True)
class Function:
    """A function (or class), observed on every one of `cases`, words to a maker of its arguments, beside the solution.

    `observe(answer, *arguments)` gives what is compared: numbers, tensors, words, or lists and dictionaries of them,
    equal within a share `within` of each value. `mistakes` are words for wrong functions: an answer that does what one
    of them does is told so, any other one the first case that differs and the hint.
    """

    asks: str
    solution: Callable
    cases: Mapping[str, Callable[[], tuple]]
    mistakes: Mapping[str, Callable]
    hint: str
    observe: Callable = returned
    within: float = 1e-4

    def _seen(self, answer: Callable) -> list[Any]:
        return [_observed(self.observe, answer, make) for make in self.cases.values()]

    def wrong(self, answer: Any) -> str | None:
        """What is wrong with a function, or None. Raises WrongType for anything that cannot be called."""
        if not callable(answer):
            raise WrongType(f"{self.asks}, a function, is needed, and this is {_named(answer)}")
        right, seen = self._seen(self.solution), self._seen(answer)
        found = [(case, difference(a, b, self.within)) for case, a, b in zip(self.cases, seen, right, strict=True)]
        found = [(case, words) for case, words in found if words]
        if not found:
            return None
        for words, mistake in self.mistakes.items():
            if not any(difference(a, b, self.within) for a, b in zip(seen, self._seen(mistake), strict=True)):
                return words
        case, words = found[0]
        return f"{case}: {words}. {self.hint}"

    def planted(self) -> Iterator[tuple[str, Any]]:
        """Each of the usual mistakes: what is said of it, and a function that makes it."""
        yield from self.mistakes.items()


Exercise = Number | Numbers | Choice | Function


def _observed(observe: Callable, answer: Callable, make: Callable[[], tuple]) -> Any:
    arguments = make()
    try:
        return observe(answer, *arguments)
    except (Exception, SystemExit) as error:
        first, *_ = str(error).splitlines() or [""]
        return Raised(type(error).__name__, first[:80])


def difference(got: Any, expected: Any, within: float) -> str | None:
    """In words what differs between two observations, or None. Numbers are equal within a share of each."""
    if isinstance(expected, Raised):
        return None if isinstance(got, Raised) and got.kind == expected.kind else f"it gives {_named(got)}"
    if isinstance(got, Raised):
        return str(got)
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or got.keys() != expected.keys():
            names = sorted(map(str, got)) if isinstance(got, Mapping) else _named(got)
            return f"it gives {names} where {sorted(map(str, expected))} are needed"
        parts = ((f"{key}, ", got[key], value) for key, value in expected.items())
    elif isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            return f"it gives {_named(got)} where {len(expected)} values are needed"
        parts = (("", a, b) for a, b in zip(got, expected, strict=True))
    else:
        return _unlike(got, expected, within)
    for name, a, b in parts:
        if words := difference(a, b, within):
            return f"{name}{words}"
    return None


def _unlike(got: Any, expected: Any, within: float) -> str | None:
    if isinstance(expected, (bool, str, set)):
        return None if got == expected else f"it gives {shown(got)}, not {shown(expected)}"
    try:
        a = torch.as_tensor(got).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return f"it gives {_named(got)} where numbers are needed"
    b = torch.as_tensor(expected).detach().double()
    if a.shape != b.shape and not a.numel() == b.numel() == 1:
        return f"it gives the shape {tuple(a.shape)} where {tuple(b.shape)} is needed"
    a, b = a.reshape(b.shape), b
    size = b[b.isfinite()].abs().max() if b.isfinite().any() else torch.tensor(0.0)
    if torch.allclose(a, b, rtol=within, atol=1e-9 * float(size) + 1e-300, equal_nan=True):
        return None
    if b.numel() == 1:
        return f"it gives {float(a):.{_SHOWN}g}, not {float(b):.{_SHOWN}g}"
    if not a.isfinite().all():
        return "it gives values that are not finite"
    return f"it is off by up to {float((a - b).abs().max() / size):.0%} of the largest value"
