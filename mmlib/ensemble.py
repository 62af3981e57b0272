"""R models as one, with a leading axis: one forward pass, one backward pass, R independent runs."""

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain, product
from typing import NoReturn

import torch
from torch import Tensor, nn

from mmlib.examples import Examples
from mmlib.layers import Linear
from mmlib.rng import generator


class Ensemble(nn.Sequential):
    """R models of one architecture. Parameters and buffers carry a leading axis of length R; so do the data.

    Made by `stack`; names and modes are those of one model. A slice of it is a stack of the models' slices.
    """

    @property
    def replicas(self) -> int:
        """R. Raises ValueError for a slice without a parameter or buffer, which does not know it."""
        for tensor in chain(self.parameters(), self.buffers()):
            return len(tensor)
        raise ValueError("ensemble: no layer has a parameter or buffer, so that nothing has a leading axis")

    def append(self, *layers: object) -> NoReturn:
        """Raises TypeError: a layer has to be in each model before they are stacked."""
        raise TypeError("ensemble: a stack takes no further layer; add one to each model and stack them again")

    insert = __setitem__ = __iadd__ = append  # type: ignore[assignment]

    def extra_repr(self) -> str:
        known = next(chain(self.parameters(), self.buffers()), None) is not None
        return f"replicas={self.replicas}" if known else ""


def _check_same(models: Sequence[nn.Sequential]) -> None:
    state: dict[str, Tensor] = {}
    for r, model in enumerate(models):
        if not isinstance(model, nn.Sequential) or isinstance(model, Ensemble):
            raise TypeError(f"models[{r}]: an nn.Sequential of mmlib layers is needed, got {type(model).__name__}")
        if type(model).forward is not nn.Sequential.forward:
            raise TypeError(f"models[{r}]: {type(model).__name__} has a forward of its own, which would be lost")
        for name, module in model.named_modules():
            of_parameters = (p._backward_hooks for p in module.parameters(recurse=False))
            if any(getattr(module, hooks) for hooks in _HOOKS) or any(of_parameters):
                raise ValueError(f"models[{r}]: {name or 'it'} has a hook; remove it, and register it on the stack")
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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check_untied(place: str, model: nn.Module) -> None:
    owners: dict[nn.Parameter, str] = {}
    for layer, module in model.named_modules():
        for name, p in module.named_parameters(layer, recurse=False):
            if p in owners:
                raise ValueError(f"{place}: {owners[p]} and {name} are one parameter; stacked they would come apart")
            owners[p] = name


def stack(models: Sequence[nn.Sequential], *, probe: Tensor | None = None) -> Ensemble:
    """The models as one, which trains them as if each were trained alone. The models themselves are left as they are.

    That is put to the proof, layer by layer, on copies with disturbed weights of the first two models and of each that
    may differ from them in more than its numbers. `probe` is an input for one model, and needed only if none is found
    that the first model takes.

    Raises ValueError if there is no model, if architectures, shapes, dtypes, modes or what is frozen differ, if two
    layers share a parameter, if there is a hook, if a layer gives another result in the stack than alone, or if the
    first model does not take `probe`; TypeError for anything but an nn.Sequential whose layers broadcast over leading
    axes.

    >>> from mmlib.models import MLP
    >>> many = stack([MLP(width=8, depth=1).build(generator(r, 'weights')) for r in range(4)])
    >>> many.replicas, many(torch.zeros(4, 32, 3, dtype=torch.long)).shape
    (4, torch.Size([4, 32, 27]))
    """
    models = list(models)
    if not models:
        raise ValueError("models: at least one is needed, got R = 0")
    _check_same(models)
    _prove(models, probe)
    return _stacked(models)


def _stacked(models: Sequence[nn.Sequential]) -> Ensemble:
    ensemble = Ensemble(OrderedDict(copy.deepcopy(models[0])._modules))
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


_TENSORS = {"_parameters", "_buffers", "_modules"}


def _alike(model: nn.Module, other: nn.Module) -> bool:
    """Whether all that their layers compute with, but for the numbers in parameters and buffers, is surely the same."""
    return all(
        type(a) is type(b)
        and vars(a).keys() == vars(b).keys()
        and all(_same(vars(a)[key], vars(b)[key]) for key in vars(a).keys() - _TENSORS)
        for a, b in zip(model.modules(), other.modules(), strict=True)
    )


def _same(a: object, b: object) -> bool:
    if isinstance(a, (int, float, str)):
        return type(a) is type(b) and a == b
    return a is b or (isinstance(a, (dict, set)) and type(a) is type(b) and not a and not b)


def _disturbed(model: nn.Sequential, dtype: torch.dtype | None, *, generator: torch.Generator) -> nn.Sequential:
    """A copy whose numbers differ from those of every other: equal ones would hide what is added to the wrong model."""
    # A module's empty collections of hooks take most of the time of a copy; this one shares them.
    hooks = {id(x): x for module in model.modules() for name, x in vars(module).items() if "hooks" in name}
    model = copy.deepcopy(model, hooks).to(dtype)
    for x in chain(model.parameters(), model.buffers()):
        if x.is_floating_point():
            noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x)
            x.data = x.data + 0.1 * noise * torch.where(x.data == 0, 1.0, x.data.abs()).to(x)  # no sign changes
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return model


def _inputs(model: nn.Sequential, rows: int, *, generator: torch.Generator) -> Iterator[Tensor]:
    """Inputs that a model may take, the likely ones first: features, and symbols in blocks."""
    shapes = [tuple(x.shape) for x in chain(model.parameters(), model.buffers()) if x.dim()]
    dtype = next((x.dtype for x in chain(model.parameters(), model.buffers()) if x.is_floating_point()), None)
    for features in dict.fromkeys(shape[-1] for shape in shapes):
        for trailing in ((), (1,)):
            yield torch.randn(rows, features, *trailing, generator=generator, dtype=torch.float64).to(dtype)
    if not shapes:
        return
    tokens, dim = shapes[0][0], shapes[0][-1]
    for block in dict.fromkeys((*(shape[-1] // dim for shape in shapes if not shape[-1] % dim), *range(2, 9))):
        yield torch.randint(tokens, (rows, block), generator=generator)


@torch.no_grad()
def _prove(models: Sequence[nn.Sequential], probe: Tensor | None) -> None:
    """Raises unless each layer gives each model what it gives it alone. In float64, if the layers can.

    The batch is longer than the stack of these copies, so that no axis of one passes for the other; of 64 or so for
    layers that cut it up.
    """
    places: list[int] = []
    for r, model in enumerate(models):
        # One like another shows nothing new, but for the second, since one alone might broadcast over any axis.
        if r < 2 or not any(_alike(model, models[place]) for place in places):
            places.append(r)
    n, refused = len(places), None
    for dtype, rows in product((torch.float64, None), (n + 1, 64 * (n // 64 + 1))):
        g = generator(0, "probe")
        with torch.random.fork_rng():
            copies = [_disturbed(models[r], dtype, generator=g) for r in places]
            trial = copy.deepcopy(copies[0])
            for one in _inputs(trial, rows, generator=g) if probe is None else [probe]:
                try:
                    trial(one.clone())
                except Exception as error:
                    refused = error
                    continue
                _compare(copies, [one[torch.randperm(len(one), generator=g)] for _ in copies], places)
                return
    if probe is not None:
        raise ValueError(f"probe: models[0] does not take it: {refused}") from refused
    raise ValueError(
        "models: no input that models[0] takes was found to prove the stack on; give one: stack(models, probe=contexts)"
    )


def _compare(models: Sequence[nn.Sequential], inputs: list[Tensor], places: Sequence[int]) -> None:
    x = torch.stack(inputs)
    for name, layer in _stacked(models).named_children():
        kind = f"{name}: {type(layer).__name__}"
        inputs = [model.get_submodule(name)(one) for model, one in zip(models, inputs, strict=True)]
        try:
            x = layer(x)
        except Exception as error:
            raise TypeError(f"{kind} does not take a leading axis, one for each model: {error}") from error
        alike = [x.shape == (len(inputs), *one.shape) for one in inputs]
        for r, agree in zip(places, _close(x, torch.stack(inputs)) if all(alike) else alike, strict=True):
            if not agree:
                raise ValueError(
                    f"{kind} gives models[{r}] another result in the stack than alone: its function differs from that "
                    "in models[0], or it does not work on the last axes alone"
                )


def _close(x: Tensor, y: Tensor) -> list[bool]:
    """For each model whether its numbers agree, measured by the largest of them that is finite."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    same = (x == y) | (x.isnan() & y.isnan())
    if y.is_floating_point() and y.numel():
        largest = y.where(y.isfinite(), 0.0).abs().amax(1, keepdim=True)
        same |= (x - y).abs() <= math.sqrt(torch.finfo(y.dtype).eps) * largest
    return same.all(1).tolist()


def unstack(ensemble: Ensemble) -> list[nn.Sequential]:
    """The R models, each with its own copy of the weights and buffers. Raises TypeError for a single model.

    >>> from mmlib.models import MLP
    >>> recipe = MLP(width=8, depth=1)
    >>> first, second = unstack(stack([recipe.build(generator(r, 'weights')) for r in range(2)]))
    >>> torch.equal(second.output.weight, recipe.build(generator(1, 'weights')).output.weight)
    True
    """
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
    """Raises ValueError unless a stacked model is given a batch with its leading axis, a single model one without.

    >>> from mmlib.data import corpus
    >>> check_batch(nn.Sequential(), corpus().dev)
    """
    shape = tuple(batch.contexts.shape)
    if isinstance(model, Ensemble):
        if len(shape) != 3 or shape[0] != model.replicas:
            raise ValueError(
                f"batch: {model.replicas} stacked models need contexts ({model.replicas}, batch, block), got {shape}"
            )
    elif len(shape) != 2:
        raise ValueError(f"batch: a single model needs contexts (batch, block), got {shape}")


def repeated(data: Examples, model: nn.Module) -> Examples:
    """The same examples for every replica of a stacked model, without a copy; for a single model, `data` itself.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> many = stack([MLP(width=8, depth=1).build(generator(r, 'weights')) for r in range(4)])
    >>> repeated(corpus().dev, many).contexts.shape[0]
    4
    """
    if not isinstance(model, Ensemble):
        return data
    return Examples(*(_expand(x, model.replicas) for x in data))


def _expand(x: Tensor, replicas: int) -> Tensor:
    return x.expand(replicas, *x.shape)
