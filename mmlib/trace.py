"""One forward and backward pass laid open, with nothing attached to the model and nothing left behind."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlib.ensemble import check_batch
from mmlib.examples import Examples
from mmlib.losses import cross_entropy
from mmlib.undisturbed import undisturbed

_ALL = slice(None)


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


def layer_outputs(model: nn.Sequential, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """(name, output) of each layer in turn. A layer that works in place is given a copy.

    Raises TypeError if the model is not a chain, ValueError if it has no layer or uses one layer object twice, for
    whose outputs there would be one name.

    >>> model = nn.Sequential(nn.Flatten(), nn.ReLU())
    >>> {name: tuple(y.shape) for name, y in layer_outputs(model, torch.zeros(4, 2, 3))}
    {'0': (4, 6), '1': (4, 6)}
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"model: an nn.Sequential is needed to trace layer by layer, got {type(model).__name__}")
    if type(model).forward is not nn.Sequential.forward:
        raise TypeError(
            f"model: {type(model).__name__} has a forward of its own, which need not be its layers in turn; "
            "a plain nn.Sequential is needed"
        )
    if not len(model):
        raise ValueError("model: an nn.Sequential of at least one layer is needed, got none")
    names: dict[nn.Module, str] = {}
    for name, layer in model._modules.items():
        if layer in names:
            raise ValueError(f"model: {names[layer]!r} and {name!r} are the same layer object; give each its own")
        names[layer] = name
    for layer, name in names.items():
        x = layer(x.clone())
        yield name, x


def trace(model: nn.Sequential, batch: Examples) -> Trace:
    """The loss, outputs, parameters and all their gradients for one batch, in the model's present mode.

    The model is left as found: buffers, modes, `.grad` and the global random state.
    Raises ValueError if the batch does not fit the model, or the model shares a layer object; RuntimeError within
    torch.inference_mode, where there are no gradients.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> t = trace(MLP(width=8, depth=1).build(generator(0, 'weights')), corpus().dev)
    >>> round(float(t.loss), 1), t.output_grads['act1'].shape == t.outputs['act1'].shape
    (3.3, True)
    """
    check_batch(model, batch)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("trace: there are no gradients within torch.inference_mode; call it outside")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with undisturbed(model), torch.enable_grad():
        outputs = {}
        for name, x in layer_outputs(model, batch.contexts.detach()):
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


def first_not_finite(model: nn.Sequential, batch: Examples, replicas: slice | list[int] = _ALL) -> str | None:
    """The name of the first layer whose output on the batch has a nan or an infinity, None if there is none.

    `replicas` restricts it to some of several stacked models.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> model = MLP(width=8, depth=1).build(generator(0, 'weights'))
    >>> _ = model.linear1.weight.data.fill_(float('inf'))
    >>> first_not_finite(model, corpus().dev)
    'linear1'
    """
    with undisturbed(model), torch.no_grad():
        outputs = layer_outputs(model, batch.contexts)
        return next((name for name, x in outputs if not x[replicas].isfinite().all()), None)


def first_not_finite_gradient(model: nn.Sequential, batch: Examples, replicas: slice | list[int] = _ALL) -> str | None:
    """The layer, on the way back from the loss, whose backward pass first gives a nan or an infinity.

    "the loss" if that is the loss itself; None if all gradients are finite.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> first_not_finite_gradient(MLP(width=8, depth=1).build(generator(0, 'weights')), corpus().dev) is None
    True
    """
    seen = trace(model, batch)
    after = "the loss"
    for name in reversed(seen.outputs):
        if not seen.output_grads[name][replicas].isfinite().all():
            return after
        own = (g for key, g in seen.parameter_grads.items() if key.startswith(f"{name}."))
        if not all(g[replicas].isfinite().all() for g in own):
            return name
        after = name
    return None
