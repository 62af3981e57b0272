"""A model left as it was found, and a copy of one that may be trained."""

import copy
import dataclasses
import inspect
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlib.undisturbed import undisturbed


def tensors(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dictionaries and dataclasses, but for empty, sparse and nested ones."""
    if isinstance(x, Tensor):
        if x.layout == torch.strided and not x.is_nested and x.numel():
            yield x
    elif isinstance(x, (tuple, list, Mapping)):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from tensors(item)
    elif dataclasses.is_dataclass(x) and not isinstance(x, type):
        yield from tensors([getattr(x, field.name) for field in dataclasses.fields(x)])


def mapped(x: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and dictionaries with f applied to every tensor in them."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, Mapping):
        return {key: mapped(value, f) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(mapped(item, f) for item in x))
    return type(x)(mapped(item, f) for item in x) if type(x) in (tuple, list) else x


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs for a tensor, a tuple of positional or a dictionary of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if type(inputs) is tuple else model(inputs)


def fresh(x: Any) -> Any:
    """Copies of the tensors in x, which nothing that happens to them leads back to."""
    return mapped(x, lambda t: t.detach().clone().requires_grad_(t.requires_grad))


_PLAIN = (int, float, str, bool, type(None))
_DEPTH = 4  # a module may know its trainer, which knows the data
_LEFT = frozenset(vars(nn.Module())) - {"_parameters", "_buffers"}  # hooks are many; _modules come one by one


class AsFound:
    """What modules hold, their parameters' values and the random states of Python, NumPy and torch.

    `rewind` brings all back, for another pass; within, buffers are clones, since one changed in place would break a
    pending backward pass. `lost` names, after `restore`, what had moved and cannot be brought back: generators and
    other iterators.
    """

    def __init__(self, *roots: nn.Module) -> None:
        self.lost: list[str] = []
        self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._parameters = [(p, p.detach().clone()) for root in roots for p in root.parameters()]
        self._modules = {m: name for root in roots for name, m in root.named_modules()}
        self._undo: list[Callable[[], Any]] = []
        self._marks: list[tuple[str, Any, Any]] = []
        self._seen: set[int] = {id(p) for p, _ in self._parameters}
        for module, name in self._modules.items():
            self._keep(vars(module), name)
        self.changes: dict[nn.Parameter, Tensor] = {}
        self._clone_buffers()

    def _clone_buffers(self) -> None:
        clones: dict[Tensor, Tensor] = {}
        for module in self._modules:
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = clones.setdefault(buffer, buffer.clone())

    def _keep(self, x: Any, name: str, depth: int = 0) -> None:
        if id(x) in self._seen or depth > _DEPTH:
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor):
            if x.is_leaf and not x.is_inference():
                self._undo.append(partial(x.data.copy_, x.detach().clone()))
        elif isinstance(x, np.ndarray):
            self._undo.append(partial(np.copyto, x, x.copy()))
        elif isinstance(x, torch.Generator):
            self._undo.append(partial(x.set_state, x.get_state()))
        elif isinstance(x, random.Random):
            self._undo.append(partial(x.setstate, x.getstate()))
        elif isinstance(x, np.random.Generator):
            self._undo.append(partial(setattr, x.bit_generator, "state", x.bit_generator.state))
        elif isinstance(x, (dict, list, set, deque)):
            self._undo.append(partial(_refill, x, copy.copy(x)))
            items = [(k, v) for k, v in x.items() if k not in _LEFT] if isinstance(x, dict) else enumerate(x)
            for key, item in items:
                if not isinstance(item, _PLAIN):
                    self._keep(item, f"{name}.{key}".lstrip("."), depth + 1)
        elif isinstance(x, tuple):
            for key, item in enumerate(x):
                self._keep(item, f"{name}.{key}", depth + 1)
        elif hasattr(x, "__next__"):
            self._marks.append((name, x, _mark(x)))
        elif (hasattr(x, "__dict__") and not callable(x)) or isinstance(x, nn.Module):
            self._keep(vars(x), name, depth + 1)

    def rewind(self) -> None:
        """Everything as it was at first, for another pass, but for `changes` that are added to parameters."""
        self.restore()
        self._clone_buffers()
        for p, change in self.changes.items():
            p.data.add_(change)

    def restore(self) -> None:
        """Everything as it was, the buffers' own tensors included."""
        for undo in self._undo:
            undo()
        if self._parameters:  # through .data, which a pending backward pass does not notice
            torch._foreach_copy_([p.data for p, _ in self._parameters], [value for _, value in self._parameters])
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])
        torch.set_rng_state(self._states[2])
        self.lost = [name for name, x, mark in self._marks if _mark(x) != mark]


def _refill(x: Any, value: Any) -> None:
    x.clear()
    x.update(value) if isinstance(x, (dict, set)) else x.extend(value)


def _mark(x: Any) -> Any:
    return x.gi_frame and x.gi_frame.f_lasti if inspect.isgenerator(x) else repr(x)


@contextmanager
def as_found(model: nn.Module, *others: Any) -> Iterator[AsFound]:
    """Within it anything may happen to the model, and to modules among the others; after it all is as it was.

    As `undisturbed`, and also parameters, the attributes of modules, and the random states of Python and NumPy.
    """
    kept = AsFound(model, *(m for m in others if isinstance(m, nn.Module)))
    try:
        with undisturbed(model):
            yield kept
    finally:
        kept.restore()


def copied(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of a model, and one of its optimiser, state included, that holds the copy's parameters.

    The optimiser's hooks, and what a schedule has put around its step, stay behind. Raises TypeError for a model that
    `copy.deepcopy` cannot copy.
    """
    held = [x for m in model.modules() for x in tensors(list(vars(m).values())) if not x.is_leaf]
    memo: dict[int, Any] = {id(x): x.detach().clone() for x in held}  # deepcopy copies only leaves
    memo |= {id(x): x for m in model.modules() for x in vars(m).values() if hasattr(x, "__next__")}  # cannot be copied
    try:
        model = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(f"model: copy.deepcopy must be able to copy it, and raised {error!r}") from error
    other = type(optimizer).__new__(type(optimizer))
    attributes = {k: v for k, v in vars(optimizer).items() if "hook" not in k and k != "step"}
    vars(other).update(copy.deepcopy(attributes, memo))
    other.__setstate__({})  # makes the hooks anew
    return model, other
