"""A rule: what is measured, what is healthy and why, what to do, where the book tells; and the order of rules."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

from mmlib.checkup.record import Record
from mmlib.checkup.report import Finding

# Rules: Record -> findings. A rule yields severity, layers, measured, healthy, why, action.
Found = Iterator[tuple[str, list[str], str, str, str, str]]
EVERYTHING = "everything"
_FILES = ("loss", "targets", "structure", "modes", "signal", "gradient", "step")  # whose rules come in this order
SEVERITIES = ("error", "warning", "note")


class Rule(NamedTuple):
    """A rule, the chapter that explains it, and the rules whose findings would only be its consequences."""

    name: str
    chapter: str
    find: Callable[[Record], Found]
    silences: frozenset[str]


RULES: dict[str, Rule] = {}


def rule(name: str, chapter: str, silences: str = "") -> Callable[..., Any]:
    """Adds a function to the rules. `silences` are names with commas between them, or "everything".

    Raises ValueError for a name that is taken.
    """

    def add(find: Callable[[Record], Found]) -> Callable[[Record], Found]:
        if name in RULES:
            raise ValueError(f"two rules are called {name!r}")
        ordered.cache_clear()
        RULES[name] = Rule(name, chapter, find, frozenset(filter(None, silences.split(", "))))
        return find

    return add


@cache
def ordered() -> list[Rule]:
    """All rules, causes before consequences, otherwise in the order in which they were added.

    Raises ValueError for a rule that silences one that there is not, `graphlib.CycleError` if two silence each other.
    """
    causes: dict[str, set[str]] = {name: set() for name in RULES}
    for cause in RULES.values():
        for name in (RULES.keys() - {cause.name}) if EVERYTHING in cause.silences else cause.silences:
            if name not in RULES:
                raise ValueError(f"rule {cause.name!r} silences {name!r}, which is no rule")
            causes[name].add(cause.name)
    files = {name: _FILES.index(r.find.__module__.rpartition(".")[2]) for name, r in RULES.items()}
    sorter, order = TopologicalSorter(causes), []
    sorter.prepare()
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=files.__getitem__)
        order.append(RULES[ready[0]])
        sorter.done(ready.pop(0))
    return order


def check_ignored(names: str | Iterable[str]) -> set[str]:
    """The names of rules to leave out. Raises ValueError for one that is no rule."""
    ignored = {names} if isinstance(names, str) else set(names)
    if unknown := ignored - RULES.keys():
        raise ValueError(f"ignore: no rule is called {sorted(unknown)[0]!r}; there are {', '.join(sorted(RULES))}")
    return ignored


def findings(seen: Record, ignored: set[str]) -> list[Finding]:
    """What the rules find: errors before warnings before notes, and causes before consequences."""
    silenced, found = set(ignored), []
    for name, chapter, find, silences in ordered():
        if name in silenced or EVERYTHING in silenced:
            continue
        for severity, layers, measured, healthy, why, action in find(seen):
            silenced |= silences
            first, *also = dict.fromkeys(layers)
            found.append(Finding(name, severity, first, measured, healthy, why, action, chapter, tuple(also)))
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))
