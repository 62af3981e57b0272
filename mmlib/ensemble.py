"""R models as one, with a leading axis: one forward pass, one backward pass, R independent runs."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlib.data import Examples
from mmlib.layers import Linear


class Ensemble(nn.Sequential):
    """R models of one architecture. Parameters and buffers carry a leading axis of length R; so do the data.

    Made by `stack`; names and modes are those of one model.
    """

    replicas: int

    def extra_repr(self) -> str:
        return f"replicas={self.replicas}"


def _check_same(models: Sequence[nn.Sequential]) -> None:
    state: dict[str, Tensor] = {}
    for r, model in enumerate(models):
        if not isinstance(model, nn.Sequential) or isinstance(model, Ensemble):
            raise TypeError(f"models[{r}]: an nn.Sequential of mmlib layers is needed, got {type(model).__name__}")
        if repr(model) != repr(models[0]):
            raise ValueError(f"models[{r}] has another architecture than models[0]:\n{model}\nis not\n{models[0]}")
        _check_untied(f"models[{r}]", model)
        state = state or models[0].state_dict()
        for key, value in model.state_dict().items():
            first = state[key]
            if value.shape != first.shape or value.dtype != first.dtype:
                raise ValueError(
                    f"models[{r}]: {key} is {value.dtype} {tuple(value.shape)}, not {first.dtype} {tuple(first.shape)}"
                )
        for (key, p), first in zip(model.named_parameters(), models[0].parameters(), strict=True):
            if p.requires_grad != first.requires_grad:
                raise ValueError(f"models[{r}]: {key} is frozen in only one of it and models[0]")
        if [m.training for m in model.modules()] != [m.training for m in models[0].modules()]:
            raise ValueError(f"models[{r}] is not in the same mode, training or evaluation, as models[0]")
    for name, module in models[0].named_modules():
        if type(module).__module__.startswith("torch.nn") and (module._parameters or module._buffers):
            raise TypeError(f"{name}: torch.nn.{type(module).__name__} has no leading axis; use the layer of mmlib")


def _check_untied(place: str, model: nn.Module) -> None:
    owners: dict[nn.Parameter, str] = {}
    for layer, module in model.named_modules():
        for name, p in module.named_parameters(layer, recurse=False):
            if p in owners:
                raise ValueError(f"{place}: {owners[p]} and {name} are one parameter; stacked they would come apart")
            owners[p] = name


def stack(models: Sequence[nn.Sequential]) -> Ensemble:
    """The models as one, which trains them as if each were trained alone. The models themselves are left as they are.

    Raises ValueError if there is no model, if architectures, shapes, dtypes, modes or what is frozen differ, or if two
    layers share a parameter; TypeError for anything but an nn.Sequential whose layers broadcast over leading axes.
    """
    models = list(models)
    if not models:
        raise ValueError("models: at least one is needed, got R = 0")
    _check_same(models)
    ensemble = Ensemble(OrderedDict(copy.deepcopy(models[0])._modules))
    ensemble.replicas = len(models)
    for target, *sources in zip(ensemble.modules(), *(m.modules() for m in models), strict=True):
        target.training = sources[0].training
        for name, p in sources[0]._parameters.items():
            if p is not None:
                stacked = torch.stack([s._parameters[name].detach() for s in sources])
                if isinstance(target, Linear) and name == "weight":
                    stacked = stacked.mT.contiguous().mT  # as autograd lays out dL/dW; updates are 4 times faster
                target._parameters[name] = nn.Parameter(stacked, requires_grad=p.requires_grad)
        for name, b in sources[0]._buffers.items():
            if b is not None:
                target._buffers[name] = torch.stack([s._buffers[name] for s in sources])
    return ensemble


def unstack(ensemble: Ensemble) -> list[nn.Sequential]:
    """The R models, each with its own copy of the weights and buffers. Raises TypeError for a single model."""
    if not isinstance(ensemble, Ensemble):
        raise TypeError(f"ensemble: a stacked model, made by stack, is needed, got {type(ensemble).__name__}")
    models = []
    for r in range(ensemble.replicas):
        model = nn.Sequential(OrderedDict(copy.deepcopy(ensemble)._modules))
        for target, source in zip(model.modules(), ensemble.modules(), strict=True):
            target.training = source.training
            for name, p in source._parameters.items():
                if p is not None:
                    target._parameters[name] = nn.Parameter(
                        p[r].detach().clone(memory_format=torch.contiguous_format), requires_grad=p.requires_grad
                    )
            for name, b in source._buffers.items():
                if b is not None:
                    target._buffers[name] = b[r].clone()
        models.append(model)
    return models


def check_batch(model: nn.Module, batch: Examples) -> None:
    """Raises ValueError unless a stacked model is given a batch with its leading axis, a single model one without."""
    shape = tuple(batch.contexts.shape)
    if isinstance(model, Ensemble):
        if len(shape) != 3 or shape[0] != model.replicas:
            raise ValueError(
                f"batch: {model.replicas} stacked models need contexts ({model.replicas}, batch, block), got {shape}"
            )
    elif len(shape) != 2:
        raise ValueError(f"batch: a single model needs contexts (batch, block), got {shape}")


def repeated(data: Examples, model: nn.Module) -> Examples:
    """The same examples for every replica of a stacked model, without a copy; for a single model, `data` itself."""
    if not isinstance(model, Ensemble):
        return data
    return Examples(*(_expand(x, model.replicas) for x in data))


def _expand(x: Tensor, replicas: int) -> Tensor:
    return x.expand(replicas, *x.shape)
