"""Looking at a model without leaving a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Within it anything may run; after it the model is as it was: modes, buffers, `.grad`, and the random state.

    Also when the body raises. The body works on copies of the buffers and of `.grad`; the tensors themselves are put
    back, so that a backward pass which waits for them still runs. Parameters are not saved: nothing that only looks
    changes them.

    >>> model = nn.BatchNorm1d(2)
    >>> with undisturbed(model):
    ...     _ = model(torch.ones(4, 2))
    >>> model.running_mean.tolist()
    [0.0, 0.0]
    """
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(m._buffers, dict(m._buffers.items())) for m in model.modules()]
    grads = [(p, p.grad) for p in model.parameters()]
    copies: dict[Tensor, Tensor] = {}  # a buffer that two modules share stays one
    try:
        for slots, found in buffers:
            for name, b in found.items():
                if b is not None:
                    slots[name] = copies.setdefault(b, b.clone())
        for p, grad in grads:
            p.grad = None if grad is None else grad.clone()
        with torch.random.fork_rng():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for slots, found in buffers:
            for name in slots.keys() - found.keys():
                del slots[name]
            for name, b in found.items():
                slots[name] = b
        for p, grad in grads:
            p.grad = grad
