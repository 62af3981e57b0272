"""What training makes small: the cross-entropy, with a check of the symbols that it is given."""

import torch
import torch.nn.functional as F
from torch import Tensor

_IGNORE_NOTHING = torch.iinfo(torch.int64).min  # F.cross_entropy leaves out targets of -100 unless told otherwise


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean of -log softmax(logits)[target] over the batch, in nats.

    Logits (..., batch, classes) and integer targets (..., batch) give a loss of shape (...): one per model.
    Raises ValueError for a target outside the classes, an empty batch, other kinds of numbers, or where the shapes do
    not fit.

    >>> round(cross_entropy(torch.zeros(5, 27), torch.arange(5)).item(), 4)  # log 27
    3.2958
    """
    if logits.dim() < 2 or logits.shape[:-1] != targets.shape:
        raise ValueError(f"cross_entropy: logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}")
    if not logits.is_floating_point():
        raise ValueError(f"cross_entropy: floating-point logits are needed, got {logits.dtype}")
    if not targets.shape[-1]:
        raise ValueError(f"cross_entropy: at least one example is needed, got targets {tuple(targets.shape)}")
    targets = integers("cross_entropy", "targets", targets)
    try:
        if logits.dim() == 2:
            return F.cross_entropy(logits, targets, ignore_index=_IGNORE_NOTHING)
        losses = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), ignore_index=_IGNORE_NOTHING, reduction="none"
        )
    except IndexError as error:
        raise ValueError(f"cross_entropy: target {outside(targets, logits.shape[-1])}") from error
    return losses.view(targets.shape).mean(-1)


def integers(place: str, what: str, x: Tensor) -> Tensor:
    """x as int64. Raises ValueError, naming the place and what is needed there, for other kinds of numbers.

    >>> integers('here', 'symbols', torch.tensor([1, 2], dtype=torch.uint8)).dtype
    torch.int64
    """
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{place}: integer {what} are needed, got {x.dtype}")
    return x.long()


def outside(x: Tensor, tokens: int) -> str:
    """The first symbol that is not among `tokens`, in words.

    >>> outside(torch.tensor([3, 99]), 27)
    'symbol 99 at position [1] is outside the vocabulary, 0 to 26'
    """
    where = ((x < 0) | (x >= tokens)).nonzero()[0].tolist()
    return f"symbol {int(x[tuple(where)])} at position {where} is outside the vocabulary, 0 to {tokens - 1}"
