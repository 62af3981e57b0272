"""Names, as text, as contexts and targets, as minibatches."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmlib import rng
from mmlib.baselines import counting_floor as counting_floor
from mmlib.baselines import counting_loss as counting_loss
from mmlib.examples import Examples as Examples

BOUNDARY = "."
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


def read_names(path: str | PathLike[str] | None = None) -> list[str]:
    """The names in a file, one a line, lower-case a to z; without a path, the corpus that comes with the book.

    Raises FileNotFoundError if there is no such file, ValueError with the line number for a blank line, a byte-order
    mark, a carriage return, or any character but a to z, and for an empty file.

    >>> names = read_names()
    >>> len(names), names[0].islower()
    (32000, True)
    """
    file = resources.files("mmlib").joinpath("names.txt") if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a text file with one name a line is needed")
    content = file.read_bytes()
    if not content:
        raise ValueError(f"{file}: the file is empty; one name a line is needed")
    if content.startswith(b"\xef\xbb\xbf"):
        raise ValueError(f"{file}, line 1: the file starts with a byte-order mark; save it as UTF-8 without one")
    names = content.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(names, start=1):
        _check_line(f"{file}, line {number}", line)
    return [name.decode() for name in names]


def _check_line(place: str, line: bytes) -> None:
    if not line:
        raise ValueError(f"{place}: the line is blank; one name a line is needed")
    if line.endswith(b"\r"):
        raise ValueError(f"{place}: the line ends with a carriage return; save the file with Unix line ends")
    text = line.decode("utf-8", errors="replace")
    if _LETTERS.issuperset(text):
        return
    for column, character in enumerate(text, start=1):
        if character not in _LETTERS:
            raise ValueError(f"{place}, column {column}: {character!r} in {text!r}; only a to z are allowed")


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a corpus: the boundary "." as 0, then its characters in order.

    >>> vocabulary = Vocabulary.of(['ada', 'bea'])
    >>> vocabulary.encode('bea')
    [2, 4, 1]
    >>> vocabulary.decode([2, 3, 1, 0])
    'bda.'
    """

    characters: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Vocabulary":
        """The vocabulary of all characters that occur in `names`. Raises ValueError if there are none."""
        characters = sorted(set("".join(names)))
        if not characters:
            raise ValueError("names: there is no name to take characters from")
        if BOUNDARY in characters:
            raise ValueError(f"names: {BOUNDARY!r} marks the boundary of a name and cannot be in one")
        return cls((BOUNDARY, *characters))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, name: str) -> list[int]:
        """The symbols of a name. Raises ValueError for a character outside the vocabulary."""
        try:
            return [self._symbols[c] for c in name]
        except KeyError:
            unknown = next(c for c in name if c not in self.characters[1:])
            allowed = "".join(self.characters[1:])
            raise ValueError(f"{unknown!r} in the name {name!r} is outside the vocabulary {allowed!r}") from None

    @cached_property
    def _symbols(self) -> dict[str, int]:
        return {c: symbol for symbol, c in enumerate(self.characters[1:], 1)}

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The characters of symbols. Raises ValueError for a symbol outside the vocabulary."""
        tokens = [int(t) for t in tokens]
        for t in tokens:
            if not 0 <= t < len(self):
                raise ValueError(f"symbol {t} is outside the vocabulary, 0 to {len(self) - 1}")
        return "".join(self.characters[t] for t in tokens)


def split(names: Sequence[str], *fractions: float, generator: torch.Generator) -> list[list[str]]:
    """The names in random order, cut into parts of the given fractions; no name is in two parts unless it repeats.

    Raises ValueError unless the fractions are positive, sum to 1, and leave no part empty.

    >>> from mmlib.rng import generator
    >>> [len(part) for part in split(['ada', 'bea', 'cleo', 'dora'], 0.75, 0.25, generator=generator(0, 'split'))]
    [3, 1]
    """
    if not fractions or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-9):
        raise ValueError(f"fractions: positive numbers that sum to 1 are needed, got {fractions}")
    cuts = [round(len(names) * sum(fractions[:k])) for k in range(len(fractions) + 1)]
    for fraction, (a, b) in zip(fractions, pairwise(cuts), strict=True):
        if a == b:
            raise ValueError(f"fractions: {fraction} of {len(names)} names leaves a part without a name")
    shuffled = [names[i] for i in torch.randperm(len(names), generator=rng.given(generator)).tolist()]
    return [shuffled[a:b] for a, b in pairwise(cuts)]


def examples(names: Sequence[str], vocabulary: Vocabulary, block_size: int) -> Examples:
    """Every symbol of every name, its closing boundary included, as a target after the `block_size` symbols before it.

    Contexts that reach back beyond the start are filled with the boundary. Raises ValueError if there is no name, if
    block_size is below 1, or for a character outside the vocabulary.

    >>> contexts, targets = examples(['ab'], Vocabulary.of(['ab']), 2)
    >>> contexts.tolist(), targets.tolist()
    ([[0, 0], [0, 1], [1, 2]], [1, 2, 0])
    """
    if block_size < 1:
        raise ValueError(f"block_size: at least 1 is needed, got {block_size}")
    if not names:
        raise ValueError("names: at least one name is needed")
    symbols: list[int] = []
    for name in names:
        symbols += [*[0] * block_size, *vocabulary.encode(name), 0]
    # A list of numbers becomes an array in a fifth of the time that it takes to become a tensor.
    lengths = np.ravel([(block_size, len(name) + 1) for name in names])
    is_target = torch.from_numpy(np.repeat(np.tile([False, True], len(names)), lengths))
    windows = torch.from_numpy(np.array(symbols)).unfold(0, block_size + 1, 1)[is_target[block_size:]]
    return Examples(windows[:, :-1].contiguous(), windows[:, -1].contiguous())


class Corpus(NamedTuple):
    """The examples of one corpus in three parts, split by name, and the vocabulary of all of it."""

    vocabulary: Vocabulary
    train: Examples
    dev: Examples
    test: Examples


def corpus(block_size: int = 3, *, path: str | PathLike[str] | None = None, seed: int = 0) -> Corpus:
    """The names of `read_names(path)`, 80 % to train on, 10 % to choose by (dev), 10 % to test once, as examples.

    >>> corpus().train.contexts.shape[1:], len(corpus().vocabulary)
    (torch.Size([3]), 27)
    """
    names = read_names(path)
    vocabulary = Vocabulary.of(names)
    parts = split(names, 0.8, 0.1, 0.1, generator=rng.generator(seed, "split"))
    return Corpus(vocabulary, *(examples(part, vocabulary, block_size) for part in parts))


@dataclass(frozen=True)
class Minibatches:
    """`steps` random minibatches of `size` examples, drawn with replacement each time it is iterated over.

    Each generator stands behind the minibatches that were handed out, also when a loop is left early and goes on with
    another iterator. Within a loop it is ahead: numbers drawn from it there are others than those of the minibatches.
    """

    data: Examples
    size: int
    steps: int
    generators: tuple[torch.Generator, ...]
    stacked: bool

    _AHEAD = 2**18  # examples; one draw for many steps gives the same numbers as a draw a step, for less

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Examples]:
        n, replicas = len(self.data.targets), len(self.generators)
        ahead = max(1, min(256, self._AHEAD // (replicas * self.size)))
        for done in range(0, self.steps, ahead):
            shape = (min(ahead, self.steps - done), self.size)
            before = [g.get_state() for g in self.generators]
            index = torch.stack([torch.randint(n, shape, generator=g) for g in self.generators], dim=1)
            after = [g.get_state() for g in self.generators]
            index = index if self.stacked else index[:, 0]
            given = 0
            try:
                for rows in index:
                    given += 1
                    yield Examples(*(x.index_select(0, rows.flatten()).unflatten(0, rows.shape) for x in self.data))
            finally:
                if given < shape[0]:
                    for g, start, end in zip(self.generators, before, after, strict=True):
                        if torch.equal(g.get_state(), end):  # nobody else has drawn from it
                            g.set_state(start)
                            torch.randint(n, (given, self.size), generator=g)


def minibatches(
    data: Examples, size: int, steps: int, *, generator: torch.Generator | Sequence[torch.Generator]
) -> Minibatches:
    """`steps` minibatches of `size` examples each, with replacement.

    With a sequence of R generators, minibatches for R stacked models: contexts (R, size, block_size), each replica's
    own stream. Raises ValueError for a size below 1, negative steps, no data, or R = 0.

    >>> batches = minibatches(corpus().train, 32, 100, generator=rng.generator(0, 'batches'))
    >>> len(batches), next(iter(batches)).contexts.shape
    (100, torch.Size([32, 3]))
    """
    if size < 1:
        raise ValueError(f"size: at least 1 is needed, got {size}")
    if steps < 0:
        raise ValueError(f"steps: 0 or more are needed, got {steps}")
    if data.targets.dim() != 1 or not len(data.targets):
        raise ValueError(f"data: targets of shape (n,) with n > 0 are needed, got {tuple(data.targets.shape)}")
    stacked = isinstance(generator, Sequence)
    generators = tuple(generator) if isinstance(generator, Sequence) else (generator,)
    if not generators:
        raise ValueError("generator: at least one is needed, got an empty sequence")
    return Minibatches(data, size, steps, tuple(map(rng.given, generators)), stacked)
