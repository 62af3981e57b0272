"""Where things come from: the weights of a graph, the line of a nan, the targets of a sequence."""

import linecache
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmlib.checkup.found import called, fresh, tensors
from mmlib.checkup.row import finite
from mmlib.checkup.watch import MODEL


def named(inputs: Any) -> dict[str, Tensor]:
    """The tensors among the arguments of a model, by name."""
    if isinstance(inputs, Mapping):
        pairs = {f"inputs[{key!r}]": x for key, x in inputs.items()}
    elif type(inputs) in (tuple, list):
        pairs = {f"inputs[{k}]": x for k, x in enumerate(inputs)}
    else:
        pairs = {"inputs": inputs}
    return {name: x for name, x in pairs.items() if isinstance(x, Tensor) and list(tensors(x))}


def hidden(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that require a gradient in plain attributes, lists and dictionaries, with where they are."""

    def walk(x: Any, path: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        if isinstance(x, nn.Module):
            yield from ((f"{path}.{name}", p) for name, p in x.named_parameters())
        elif isinstance(x, Tensor):
            if x.requires_grad and x.is_leaf:
                yield path, x
        elif isinstance(x, (list, tuple, dict, set)) and depth < 4:
            for key, item in x.items() if isinstance(x, dict) else enumerate(x):
                yield from walk(item, f"{path}[{key!r}]", depth + 1)

    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_modules"):
                yield from walk(value, f"{name}.{key}".lstrip("."), 0)


def _nodes(outputs: list[Tensor]) -> Iterator[Any]:
    """The nodes of a graph."""
    nodes, seen = [x.grad_fn for x in outputs if x.grad_fn is not None], set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        nodes += [n for n, _ in node.next_functions if n is not None]


def checkpointed(loss: Tensor) -> bool:
    """Whether some part of the graph is made anew in the backward pass, out of sight of `torch.autograd.grad`."""
    return any("CheckpointFunction" in type(node).__name__ for node in _nodes([loss]))


def unregistered_in(model: nn.Module, outputs: list[Tensor], known: set[int]) -> list[str]:
    """Where the leaves of the outputs' graph are kept that require a gradient and are not known."""
    strange = [x for n in _nodes(outputs) if (x := getattr(n, "variable", None)) is not None and id(x) not in known]
    where = {id(x): path for path, x in hidden(model)} if strange else {}
    return list(dict.fromkeys(where.get(id(x), f"a tensor {tuple(x.shape)} made in forward") for x in strange))


def shift_of(inputs: dict[str, Tensor], targets: list[Tensor]) -> tuple[int | None, int | None, str]:
    """By how many steps targets run ahead of an input, 0 to 2, the axis of time, and the input's name."""
    for name, x in inputs.items():
        if x.dim() < 2 or x.shape[1] < 3 or x.is_complex() or x.dtype == torch.bool:
            continue
        for t in targets:
            for steps, time in ((0, 1), (1, 1), (1, 0), (2, 1)):
                length = x.shape[time]
                n, whole = length - steps, t.numel() * length // x.numel()
                if n < 2 or (steps == 2 and x.is_floating_point()):  # of numbers, a forecast may well look further
                    continue
                shape = [*x.shape]
                shape[time] = whole if n <= whole <= length else n
                if t.numel() != math.prod(shape):
                    continue
                if torch.equal(t.reshape(shape).narrow(time, 0, n), x.narrow(time, steps, n).to(t.dtype)):
                    return steps, time, name
    return None, None, ""


class _Locate(TorchFunctionMode):
    """The first call whose result is not finite though what it got was: its module, and its line."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {m: n or MODEL for n, m in model.named_modules()}
        self.running: list[str] = []
        self.found: tuple[str, str] | None = None

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append(self.names[module])

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        good = self.found is not None or all(map(finite, tensors([args, kwargs])))
        output = func(*args, **kwargs)
        if self.found is None and good and not all(map(finite, tensors(output))):
            self.found = (self.running[-1] if self.running else "loss_fn"), _line()
        return output


def _line() -> str:
    """The line of the reader's own code that is being run."""
    frame = sys._getframe(2)
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    while frame and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() if frame else ""
    return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}: {text}" if text else ""


def located(model: nn.Module, inputs: Any, targets: Any, loss_fn: Callable[..., Any]) -> tuple[str, str] | None:
    """The first module with a number that is not finite, and the line that made it."""
    locate = _Locate(model)
    inner = [m for m in locate.names if not isinstance(m, torch.jit.ScriptModule)]
    handles = [m.register_forward_pre_hook(locate.enter) for m in inner]
    handles += [m.register_forward_hook(locate.leave, always_call=True) for m in inner]
    try:
        with locate:
            loss_fn(called(model, fresh(inputs)), fresh(targets))
    finally:
        for handle in handles:
            handle.remove()
    return locate.found
