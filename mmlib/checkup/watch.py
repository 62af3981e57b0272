"""Hooks see each module's call; a function mode sees each call of an activation or a loss function, and of what else
tells something, also those that a `forward` makes without a module. Only sums and flags are kept.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmlib.activations import Activation
from mmlib.checkup.found import tensors
from mmlib.checkup.functions import DROPOUT, ELEMENTWISE, ENDS, FROM_OUTPUT, MOVES, dropout_share
from mmlib.checkup.row import (
    BOUNDED,
    RECTIFIERS,
    Row,
    Spans,
    flat_spans,
    is_layer,
    is_norm,
    mean_square,
    numbers,
    units_axis,
)
from mmlib.checkup.terms import LOSSES, REGRESSION, Term, term

MODEL = "(model)"


def in_transform() -> bool:
    """Whether a transform of torch.func, such as vmap, is at work: its tensors have no numbers that could be read."""
    return torch._C._functorch.peek_interpreter_stack() is not None


class Watch(TorchFunctionMode):
    """Everything seen of one pass: first of the forward pass, then, after `turn`, of the loss."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        names = {m: n for n, m in model.named_modules() if "parametrizations" not in n.split(".")}
        self.names = {m: n.removeprefix("_orig_mod").lstrip(".") or MODEL for m, n in names.items()}
        self.names = {m: n for m, n in self.names.items() if not isinstance(m, torch.jit.ScriptModule)}
        self.layers = {m for m in self.names if is_layer(m)}
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.terms: list[Term] = []
        self.called: set[str] = set()
        self.unseen: set[str] = set()
        self.dropped: list[tuple[str, float]] = []  # where, and what share
        self.reads: list[tuple[str, str]] = []  # an input, and the layer that takes it as it is
        self.data: set[int] = set()  # what forward itself made require a gradient
        self.squashed: list[str] = []  # what a second softmax was taken of
        self.peaked: dict[str, float] = {}  # the share of a softmax's rows that have one entry above 0.99
        self.unconnected: list[str] = []  # loss functions of what nothing trains
        self.broadcast: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self.forward, self.targets_read = True, False
        self._running: list[tuple[nn.Module, float, str, str]] = []
        self._last: Row | None = None
        self._written: dict[int, tuple[Tensor, Row]] = {}  # kept, so that no other tensor gets its place in memory
        self._source: dict[int, tuple[Tensor, str]] = {}  # the same, also of what functions made of it elementwise
        self._spans: dict[tuple[Any, ...], Spans] = {}
        self._activated: tuple[str, Tensor] | None = None
        self._raw: dict[int, tuple[Tensor, frozenset[str]]] = {id(x): (x, frozenset({n})) for n, x in inputs.items()}
        self._sides: dict[int, tuple[Tensor, str, bool]] = {}  # in the loss: of outputs, targets; an axis added
        self._plain: set[int] = set()  # outputs as they are, but for their shape
        self._kept: list[Tensor] = []
        self._noted = sys.exc_info()[1]  # what is being handled around the checkup is none of its business
        self._handles: list[Any] = []
        self._handlers: dict[str, Callable[..., Any]] = dict.fromkeys(LOSSES, self._loss)
        self._handlers |= dict.fromkeys(BOUNDED | RECTIFIERS, self._activation)
        self._handlers |= dict.fromkeys(ENDS, self._end) | dict.fromkeys(DROPOUT, self._drop)
        self._handlers |= dict.fromkeys(MOVES, self._move) | {"requires_grad": self._own}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """With hooks on every module, which go when it ends."""
        try:
            for module in self.names:
                self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
            yield
        finally:
            for handle in self._handles:
                handle.remove()

    def turn(self, outputs: Any, targets: Any) -> None:
        """From here on it is the loss that is watched."""
        self.forward = False
        self._plain = {id(x) for x in tensors(outputs)}
        self._sides = {id(x): (x, side, False) for side, xs in (("o", outputs), ("t", targets)) for x in tensors(xs)}

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.forward:  # a checkpointed layer runs again in the backward pass
            return
        square, source, raw = 0.0, "", ""
        if module in self.layers and not in_transform():
            first = next((x for x in tensors([args, kwargs]) if x.is_floating_point() or x.is_complex()), None)
            if first is not None:
                square = mean_square(numbers(first))
                source = self._source.get(first.data_ptr(), (first, ""))[1]
                raw = self._written[first.data_ptr()][1].name if first.data_ptr() in self._written else ""
                if is_norm(module) and first.data_ptr() in self._written:
                    self._written[first.data_ptr()][1].norm = self.names[module]
                elif not is_norm(module):
                    self.reads += [(n, self.names[module]) for n in self._raw.get(id(first), (first, ()))[1]]
        self._running.append((module, square, source, raw))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self.forward:
            return
        _, square, source, raw = self._running.pop()
        name, error = self.names[module], sys.exc_info()[1]
        if output is None and error is not self._noted:
            error.add_note(f"checkup: raised in layer {name!r}")
            self._noted = error
        self.called.add(name)
        if module not in self.layers:
            return
        out = next(tensors(output), None)
        if out is None or not (out.is_floating_point() or out.is_complex()):
            return
        if in_transform():
            self.unseen.add(name)
            return
        row = self.rows.setdefault((name, "", ""), Row(name, type(module).__name__, module=module))
        if isinstance(module, nn.RNN) and module.nonlinearity == "tanh":
            row.activation = "tanh"
            row.see_activation(None, out, -1)
        row.square_in += square
        row.sources += (source,)
        row.raw = raw
        self._see(row, out, units_axis(module, out))
        self._last = row
        self._written[out.data_ptr()] = out.detach(), row
        self._source[out.data_ptr()] = out.detach(), name

    def _passes_on(self, given: Any, output: Any) -> None:
        if isinstance(given, Tensor) and isinstance(output, Tensor) and given.data_ptr() in self._source:
            self._source[output.data_ptr()] = output.detach(), self._source[given.data_ptr()][1]

    def _see(self, row: Row, output: Tensor, axis: int) -> None:
        row.see(output, axis)
        if output.requires_grad:
            self._handles.append(output.register_hook(row.see_gradient))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        if not self.forward and self._sides:
            return self._in_loss(name, func, args, kwargs)
        handler = self._handlers.get(name)
        return handler(name, func, args, kwargs) if handler and not in_transform() else func(*args, **kwargs)

    def _in_loss(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mine = [self._sides[id(x)] for x in (*args, *kwargs.values()) if id(x) in self._sides]
        self.targets_read |= any("t" in side for _, side, _ in mine)
        handler = self._loss if name in LOSSES else self._end if name in ENDS else None
        handler = None if in_transform() else handler
        output = handler(name, func, args, kwargs) if handler else func(*args, **kwargs)
        if not mine or not isinstance(output, Tensor):
            return output
        if name in ELEMENTWISE and len(mine) == 2 and sorted(side for _, side, _ in mine) in (["o", "t"], ["ot", "t"]):
            (a, of_a, new_a), (b, _, new_b) = mine
            # With an axis added on both sides, or with one added and as many axes on both, it is meant.
            accident = not (new_a or new_b) or (new_a != new_b and a.dim() != b.dim())
            if accident and output.numel() > max(a.numel(), b.numel()):
                shapes = tuple(a.shape), tuple(b.shape)
                self.broadcast = self.broadcast or (shapes if "o" in of_a else shapes[::-1])
        elif name in ELEMENTWISE and len(mine) == 1 and not mine[0][2] and len(args) == 2:
            pair = [tuple(x.shape) for x in args if isinstance(x, Tensor)]
            if len(pair) == 2 and output.dim() and set(pair) == {(n := output.shape[0],), (n, 1)} and n > 1:
                self.broadcast = self.broadcast or (pair[0], pair[1])  # say, of weights
        side = "".join(sorted({letter for _, side, _ in mine for letter in side}))
        added = any(new for *_, new in mine) or output.dim() > max(x.dim() for x, *_ in mine)
        self._sides[id(output)] = output, side, added
        if side == "o" and name in MOVES:
            self._plain.add(id(output))
        return output

    def _loss(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if name in REGRESSION and len(args) >= 2 and args[1].requires_grad and not args[0].requires_grad:
            args = (args[1], args[0], *args[2:])  # the other way round, which for these is the same
        value, seen = term(name, func, args, kwargs)
        if seen is None:
            return value
        if not value.requires_grad:
            self.unconnected.append(name)
        own = self.forward or id(args[0] if args else kwargs["input"]) in self._plain
        self.terms.append(self.placed(seen, seen.prediction)._replace(own=own))
        return value

    def placed(self, seen: Term, prediction: Tensor) -> Term:
        """A term with the activation function or the layer that its prediction came out of."""
        place = prediction.data_ptr()
        activated = self._activated is not None and self._activated[1].data_ptr() == place
        layer = self._written[place][1].name if place in self._written else ""
        return seen._replace(passed=self._activated[0] if activated else "", layer=layer)

    def _activation(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point() or not args[0].numel():
            return func(*args, **kwargs)
        x: Tensor | None = None
        spans: tuple[tuple[float, float], ...] = ()
        if name not in FROM_OUTPUT:
            call = name, args[1:], tuple(kwargs.items())
            if call not in self._spans:
                rest = {k: v for k, v in kwargs.items() if k != "inplace"}
                self._spans[call] = flat_spans(Activation(name, lambda x: func(x.clone(), *args[1:], **rest)))
            x, spans = args[0].detach(), self._spans[call]
            in_place = func.__name__.endswith("_") or kwargs.get("inplace") or True in args[1:]
            x = x.clone() if in_place else x
        output = func(*args, **kwargs)
        after, module = self._last.name if self._last else MODEL, self._running[-1][0] if self._running else None
        if module is not None and not module._modules:
            key = self.names[module], type(module).__name__, after
        else:
            key = after, f"{name}()", ""
        row = self.rows.setdefault(key, Row(*key, activation=name))
        axis = self._last.axis if self._last and output.dim() > 2 else -1
        row.see_activation(x, output, axis, spans)
        self._see(row, output, axis)
        self._activated = name, output
        self._passes_on(args[0], output)
        return output

    def _end(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        before, squashed = self._activated or ("", given)
        again = name.endswith("softmax") and before in ("softmax", "sigmoid") and given is not None
        if again and squashed.data_ptr() == given.data_ptr():
            self.squashed.append(before)
        output = func(*args, **kwargs)
        self._activated = name, output
        self._passes_on(given, output)
        if name == "softmax" and self.forward and output.dim() > 2 and output.shape[-1] >= 4:
            share = (output.detach().amax(-1) > 0.99).float().mean().item()
            self.peaked[self._last.name if self._last else MODEL] = share
        return output

    def _drop(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        self._passes_on(args[0], output)
        if share := dropout_share(name, args, kwargs):
            self.dropped.append((self._here(), share))
            self._activated = "dropout", output
        return output

    def _here(self) -> str:
        return self.names[self._running[-1][0]] if self._running else MODEL

    def _move(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        parts = args[0] if args and isinstance(args[0], (tuple, list)) else args[:1]
        names = frozenset().union(*(self._raw[id(x)][1] for x in parts if id(x) in self._raw))
        if names and isinstance(output, Tensor):
            self._raw[id(output)] = output, names
        return output

    def _own(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = func(*args, **kwargs)
        self.data.add(id(args[0]))
        self._kept.append(args[0])  # so that no other tensor gets its number
        return output
