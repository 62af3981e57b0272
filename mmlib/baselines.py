"""What counting alone can reach: the loss to beat, and the loss below which no model of a few symbols gets."""

import math

import torch
from torch import Tensor

from mmlib.examples import Examples


def _check(data: Examples) -> None:
    if data.targets.dim() != 1 or not len(data.targets):
        raise ValueError(f"data: targets of shape (n,) with n > 0 are needed, got {tuple(data.targets.shape)}")


def _symbols(data: Examples, order: int) -> tuple[Tensor, Tensor]:
    """The last `order` symbols of every context, as one number that stands for them, and the targets."""
    block_size = data.contexts.shape[-1]
    if not 0 <= order <= block_size:
        raise ValueError(f"order: 0 to block_size = {block_size} symbols of context are there, got {order}")
    _check(data)
    contexts, targets = (x.long() for x in data)
    if min(int(contexts.min()), int(targets.min())) < 0:
        raise ValueError("data: symbols of 0 or more are needed, got a negative one")
    code = torch.zeros_like(targets)
    for symbol in contexts[:, block_size - order :].T:
        code = _pair(code, symbol)
    return code, targets


def _pair(a: Tensor, b: Tensor) -> Tensor:
    """Numbers from 0 on, below len(a), that are equal where both a and b are."""
    return torch.unique(a * (b.max() + 1) + b, return_inverse=True)[1]


def counting_floor(data: Examples, order: int) -> float:
    """The least cross-entropy, in nats a symbol, that any model which sees `order` symbols can reach on `data`.

    H(target | last `order` symbols), from counts on the same data: 0 is the unigram entropy.
    Raises ValueError for an order outside 0 to block_size, no data, or a negative symbol.

    >>> from mmlib.data import corpus
    >>> round(counting_floor(corpus().train, 0), 2)  # the entropy of single letters
    2.92
    """
    contexts, targets = _symbols(data, order)
    seen, both = torch.bincount(contexts)[contexts], _pair(contexts, targets)
    return float((seen / torch.bincount(both)[both].double()).log().mean())


def counting_loss(seen: Examples, data: Examples, order: int, *, tokens: int, smoothing: float = 1.0) -> float:
    """The cross-entropy on `data`, in nats a symbol, of counts on `seen` with `smoothing` added to each of them.

    Raises ValueError for an order outside 0 to block_size, smoothing that is not positive and finite, no data, or a
    symbol that is not among `tokens`.

    >>> from mmlib.data import corpus
    >>> names = corpus()
    >>> round(counting_loss(names.train, names.dev, 1, tokens=27), 2)
    2.61
    """
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing: a positive number is needed, got {smoothing}")
    _check(data)
    largest = max((int(x.max()) for x in (*seen, *data) if x.numel()), default=0)
    if largest >= tokens:
        raise ValueError(f"tokens: symbol {largest} is outside the vocabulary, 0 to {tokens - 1}")
    contexts, targets = _symbols(Examples(*map(torch.cat, zip(seen, data, strict=True))), order)
    both, n = _pair(contexts, targets), len(seen.targets)

    def count(of: Tensor) -> Tensor:
        """How often each of `data` was in `seen`."""
        return torch.bincount(of[:n], minlength=int(of.max()) + 1)[of[n:]].double()

    return float(((count(contexts) + smoothing * tokens).log() - (count(both) + smoothing).log()).mean())
