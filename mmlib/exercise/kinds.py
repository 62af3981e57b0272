"""Kinds of answers: a number, several numbers, a choice among items, a function. Each says in words what is wrong."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    def solution(self) -> set[Any]:
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


def returned(answer: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns: how most are observed."""
    return answer(*arguments)


@dataclass(frozen=True)
class Function:
    """A function (or class), observed on every one of `cases`, words to a maker of its arguments, beside the solution.

    `observe(answer, *arguments)` gives what is compared: numbers, tensors, words, or lists and dictionaries of them,
    equal within a share `within` of each value. `mistakes` are words for wrong functions: an answer that does what one
    of them does, in all cases or in a whole tensor where it differs first, is told so; any other is told that place.
    """

    asks: str
    solution: Callable[..., Any]
    cases: Mapping[str, Callable[[], tuple[Any, ...]]]
    mistakes: Mapping[str, Callable[..., Any]]
    hint: str
    observe: Callable[..., Any] = returned
    within: float = 1e-4

    def _seen(self, answer: Callable[..., Any]) -> dict[str, Any]:
        return {case: _observed(self.observe, answer, make) for case, make in self.cases.items()}

    def wrong(self, answer: Any) -> str | None:
        """What is wrong with a function, or None. Raises WrongType for anything that cannot be called."""
        if not callable(answer):
            raise WrongType(f"{self.asks}, a function, is needed, and this is {_named(answer)}")
        seen = self._seen(answer)
        found = difference(seen, self._seen(self.solution), self.within)
        if found is None:
            return None
        mistaken = {words: self._seen(mistake) for words, mistake in self.mistakes.items()}
        # All of one mistake; or the first of several, where a whole tensor agrees: a single number may do so by chance.
        first = _at(seen, found.place)
        many = isinstance(first, Tensor) and first.numel() > 1
        for place in ((), found.place) if many else ((),):
            for words, other in mistaken.items():
                if difference(_at(seen, place), _at(other, place), self.within) is None:
                    return words
        names = ", ".join(key for key in found.place if isinstance(key, str))
        return f"{names}: {found.words}. {self.hint}"

    def planted(self) -> Iterator[tuple[str, Any]]:
        """Each of the usual mistakes: what is said of it, and a function that makes it."""
        yield from self.mistakes.items()


Exercise = Number | Numbers | Choice | Function


def _observed(observe: Callable[..., Any], answer: Callable[..., Any], make: Callable[[], tuple[Any, ...]]) -> Any:
    arguments = make()
    try:
        return observe(answer, *arguments)
    except (Exception, SystemExit) as error:
        first, *_ = str(error).splitlines() or [""]
        return Raised(type(error).__name__, first[:80])


class Difference(NamedTuple):
    """The first place, keys and indices from outside in, where two observations differ, and how in words."""

    place: tuple[str | int, ...]
    words: str


def difference(got: Any, expected: Any, within: float) -> Difference | None:
    """Where and how two observations differ, or None if they do not. Numbers are equal within a share of each."""
    words = None
    if isinstance(expected, Raised):
        words = None if isinstance(got, Raised) and got.kind == expected.kind else f"it gives {_named(got)}"
    elif isinstance(got, Raised):
        words = str(got)
    elif isinstance(expected, Mapping):
        if isinstance(got, Mapping) and got.keys() == expected.keys():
            return _first(((key, got[key], value) for key, value in expected.items()), within)
        names = sorted(map(str, got)) if isinstance(got, Mapping) else _named(got)
        words = f"it gives {names} where {sorted(map(str, expected))} are needed"
    elif isinstance(expected, (list, tuple)):
        if isinstance(got, (list, tuple)) and len(got) == len(expected):
            return _first(((k, *pair) for k, pair in enumerate(zip(got, expected, strict=True))), within)
        words = f"it gives {_named(got)} where {len(expected)} values are needed"
    else:
        words = _unlike(got, expected, within)
    return None if words is None else Difference((), words)


def _first(parts: Iterable[tuple[str | int, Any, Any]], within: float) -> Difference | None:
    for key, got, expected in parts:
        if found := difference(got, expected, within):
            return Difference((key, *found.place), found.words)
    return None


def _at(observation: Any, place: tuple[str | int, ...]) -> Any:
    """The part of an observation at that place, or how far it goes."""
    for key in place:
        if isinstance(observation, Raised) or (isinstance(observation, Mapping) and key not in observation):
            return observation
        if isinstance(observation, (list, tuple)) and not int(key) < len(observation):
            return observation
        observation = observation[key]
    return observation


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
