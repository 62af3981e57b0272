"""One forward and backward pass laid open, with nothing attached to the model and nothing left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlib.data import Examples
from mmlib.ensemble import check_batch
from mmlib.layers import cross_entropy


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Within it anything may run; after it the model is as it was: modes, buffers, `.grad`, and the random state.

    Also when the body raises. Parameters are not saved: nothing that only looks changes them.
    """
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(m, n, b, b.clone()) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    grads = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    try:
        with torch.random.fork_rng():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
            for p, grad, value in grads:
                p.grad = grad if grad is None else grad.copy_(value)


class Trace(NamedTuple):
    """Everything one pass computes, by name, detached.

    `loss` is () or (R,); `outputs` and `output_grads` hold what each layer put out and d loss / d output, in the
    order of the layers; `parameters` and `parameter_grads` likewise.
    """

    loss: Tensor
    outputs: dict[str, Tensor]
    output_grads: dict[str, Tensor]
    parameters: dict[str, Tensor]
    parameter_grads: dict[str, Tensor]


def fold(model: nn.Sequential, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, output) of each layer in turn. Raises TypeError if the model is not a chain, ValueError if it uses one
    layer object twice, for whose outputs there would be one name."""
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model: an nn.Sequential is needed to trace layer by layer, got {type(model).__name__}")
    names: dict[nn.Module, str] = {}
    for name, layer in model._modules.items():
        if layer in names:
            raise ValueError(f"model: {names[layer]!r} and {name!r} are the same layer object; give each its own")
        names[layer] = name
    for layer, name in names.items():
        x = layer(x)
        yield name, x


def trace(model: nn.Sequential, batch: Examples) -> Trace:
    """The loss, outputs, parameters and all their gradients for one batch, in the model's present mode.

    The model is left as found: buffers, modes, `.grad` and the global random state.
    Raises ValueError if the batch does not fit the model, or the model shares a layer object.
    """
    check_batch(model, batch)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), torch.enable_grad():
        outputs = {}
        for name, x in fold(model, batch.contexts.detach()):
            outputs[name] = x if x.requires_grad else x.requires_grad_()
        loss = cross_entropy(x, batch.targets)
        grads = torch.autograd.grad(
            loss.sum(), [*outputs.values(), *parameters.values()], allow_unused=True, materialize_grads=True
        )
    return Trace(
        loss.detach(),
        {name: x.detach() for name, x in outputs.items()},
        dict(zip(outputs, grads, strict=False)),
        {name: p.detach() for name, p in parameters.items()},
        dict(zip(parameters, grads[len(outputs) :], strict=True)),
    )


def first_not_finite(model: nn.Sequential, batch: Examples) -> str | None:
    """The name of the first layer whose output on the batch has a nan or an infinity, None if there is none."""
    with undisturbed(model), torch.no_grad():
        return next((name for name, x in fold(model, batch.contexts) if not x.isfinite().all()), None)
