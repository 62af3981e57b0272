"""What a few examples show in evaluation mode when some of them are exchanged for others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmlib.checkup.found import AsFound, called, fresh, mapped, tensors
from mmlib.checkup.functions import dropout_share
from mmlib.checkup.row import is_layer, numbers
from mmlib.checkup.traced import named
from mmlib.checkup.watch import MODEL

_FEW = 8
_MOVED = 1e-4  # of the largest output; rounding moves a few 1e-6


class Probe(NamedTuple):
    """`mixed` is how far outputs move whose own inputs stay, as a share of the largest output, and `mixes` the first
    layer where they do. `constant` says that outputs stay though their inputs change, `affine` that the last layer's
    do what an affine function's would, `dropped` where something was dropped all the same, `orderless` that outputs are
    the same for tokens in another order, or change places with them."""

    mixed: float
    mixes: str
    constant: bool
    affine: bool
    dropped: dict[str, float]
    orderless: bool


class _Light(TorchFunctionMode):
    """What the layers put out, and what is dropped."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {m: n.removeprefix("_orig_mod").lstrip(".") or MODEL for n, m in model.named_modules()}
        self.outputs: dict[str, Tensor] = {}
        self.dropped: dict[str, float] = {}
        self.graph = self.attends = False
        self._inside = MODEL

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if share := dropout_share(name, args, kwargs or {}):
            self.dropped[self._inside] = share
        self.attends |= name in _ATTENTION
        if name in _SPREAD_OVER_ROWS and not self.graph:
            self.graph = _graph(name, args)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def attached(self) -> Iterator[None]:
        """With hooks on the innermost modules."""
        inner = [m for m in self.names if not m._modules or is_layer(m)]
        inner = [m for m in inner if not isinstance(m, torch.jit.ScriptModule)]
        handles = [m.register_forward_hook(self._leave) for m in inner]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside = self.names[module]
        out = next(tensors(output), None)
        if out is not None and out.is_floating_point():
            self.outputs[self.names[module]] = numbers(out)


_ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "softmax"})
_SPREAD_OVER_ROWS = frozenset({"matmul", "__matmul__", "mm", "spmm", "index_add", "index_add_", "scatter_add"})
_SPREAD_OVER_ROWS |= {"__getitem__", "scatter_add_", "scatter_reduce", "scatter_reduce_"}


def _graph(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call takes sums over examples by a matrix that nothing trains, or by places: a graph's edges."""
    if "matm" in name or name in ("mm", "spmm"):
        a, b = args[0], args[1]
        return a.dim() == 2 and not a.requires_grad and a.shape[0] == a.shape[1] == b.shape[0] and b.requires_grad
    if name == "__getitem__":  # several rows for each
        place = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
        return isinstance(place, Tensor) and place.dtype == torch.int64 and place.dim() > 1 and args[0].requires_grad
    return len(args) > 1 and isinstance(args[1], int) and args[1] == 0


def _passes(model: nn.Module, inputs: Any, kept: AsFound) -> tuple[list[Tensor], _Light]:
    kept.rewind()
    model.eval()
    light = _Light(model)
    with light.attached():
        out = called(model, fresh(inputs))
    return [numbers(x) for x in tensors(out) if x.is_floating_point()], light


def _axis(x: Tensor, n: int) -> int | None:
    """The axis along which the n examples lie: the first, or for sequences with time first the second."""
    return next((k for k in range(min(2, x.dim())) if x.shape[k] == n), None)


def exchanged(inputs: Any, n: int, half: int, mix: Callable[[Tensor, Tensor], Tensor], axis: int | None = None) -> Any:
    """The inputs with their first `half` examples replaced by what `mix` makes of them and others."""

    def change(x: Tensor) -> Tensor:
        k = _axis(x, n) if axis is None else axis
        if k is None or x.dim() <= k or x.shape[k] != n or x.layout != torch.strided:
            return x
        own, others = x.narrow(k, 0, half), x.narrow(k, n - half, half)
        return torch.cat([mix(own, others), x.narrow(k, half, n - half)], k)

    return mapped(inputs, change)


def _apart(a: Tensor, b: Tensor, n: int, half: int) -> tuple[float, float] | None:
    """How far outputs of examples that were exchanged have moved, and how far those of the others."""
    if a.shape != b.shape or not a.isfinite().all() or not b.isfinite().all():
        return None
    k = _axis(a, n)
    if k is None:
        if not a.dim() or a.shape[0] % n:
            return None
        folded = [_apart(a.unflatten(0, shape), b.unflatten(0, shape), n, half) for shape in ((n, -1), (-1, n))]
        return min(folded, key=lambda moved: moved[1])
    gap, scale = (a - b).abs(), max(a.abs().max().item(), 1e-30)
    rest = gap.narrow(k, half, n - half)
    if a.dim() == 2 and a.shape == (n, n):  # of every example against every other
        rest = rest.narrow(1 - k, half, n - half)
    return gap.narrow(k, 0, half).max().item() / scale, rest.max().item() / scale


def by_design(model: nn.Module, inputs: dict[str, Tensor], n: int) -> bool:
    """Whether examples are meant to see each other: there is a graph between them, or a norm without statistics."""
    others = [x for m in model.modules() for x in [*m._buffers.values(), *vars(m).values()] if isinstance(x, Tensor)]
    _, *more = [*inputs.values()] or [None]
    graphs = [x for x in (*others, *more) if not isinstance(x, nn.Parameter) and x.dim() == 2]
    if any(
        x.layout != torch.strided or x.shape == (n, n) or (len(x) == 2 and not x.is_floating_point()) for x in graphs
    ):
        return True
    return any(
        getattr(m, "track_running_stats", True) is False and "Batch" in type(m).__name__ for m in model.modules()
    )


def _time_first(model: nn.Module) -> bool:
    return any(getattr(m, "batch_first", True) is False or isinstance(m, nn.RNNCellBase) for m in model.modules())


def probe(model: nn.Module, inputs: Any, targets: Any, kept: AsFound, time: int | None, last: str) -> Probe | None:
    """`time` is the axis of time where it is known, `last` the last layer with weights. None if it cannot be told."""
    first = next(tensors(inputs), None)
    by = next((x for x in tensors(targets) if x.dim()), first)
    if first is None or not by.dim() or len(by) < 2 or _axis(first, len(by)) is None:
        return None
    n = len(by)
    few = mapped(inputs, lambda x: x if _axis(x, n) is None else x.narrow(_axis(x, n), 0, min(n, _FEW)))
    for given, m in ((few, min(n, _FEW)), (inputs, n)):
        try:
            found = _probed(model, given, m, kept, time, last)
        except Exception:  # a model may want another batch than this, or other numbers
            found = None
        if found is not None:
            return found
        if m == n:
            break
    return None


def _probed(model: nn.Module, inputs: Any, n: int, kept: AsFound, time: int | None, last: str) -> Probe | None:
    half = n // 2
    given = [x for x in tensors(inputs) if _axis(x, n) is not None]
    smooth = all(x.is_floating_point() for x in given)
    mix = (lambda own, other: (own + other) / 2) if smooth else (lambda own, other: other)
    if all(torch.equal(x.narrow(_axis(x, n), 0, half), x.narrow(_axis(x, n), n - half, half)) for x in given):
        return None
    before, light = _passes(model, inputs, kept)
    after, other = _passes(model, exchanged(inputs, n, half, mix), kept)
    moved = [m for a, b in zip(before, after, strict=True) if (m := _apart(a, b, n, half))]
    if not moved:
        return None
    mixed = max(rest for _, rest in moved)
    if mixed > _MOVED and _time_first(model) and time != 1 and given[0].dim() > 1 and _axis(given[0], n) == 0:
        width = given[0].shape[1]  # perhaps time comes first, and the second axis holds the examples
        if width > 1 and before[0].dim() > 1 and before[0].shape[:2] == given[0].shape[:2]:
            sideways = exchanged(inputs, width, max(1, width // 2), lambda own, other: other.flip(1), axis=1)
            again, _ = _passes(model, sideways, kept)
            apart = _apart(before[0].movedim(1, 0), again[0].movedim(1, 0), width, max(1, width // 2))
            mixed = 0.0 if apart and apart[1] <= _MOVED else mixed
    mixed = 0.0 if light.graph else mixed
    mixes = ""
    if mixed > _MOVED:
        order = [k for k, a in light.outputs.items() if a.dim() and len(a) == n and k in other.outputs]
        gone = (k for k in order if (d := _apart(light.outputs[k], other.outputs[k], n, half)) and d[1] > _MOVED)
        mixes = next(gone, MODEL)
    constant = all(own <= 1e-6 for own, _ in moved)
    affine = smooth and not constant and mixed <= _MOVED and _affine(light, other, last, n, half, -0.5)
    if affine:  # far out, so that no kink is missed
        far, out = 30.0, _passes(model, exchanged(inputs, n, half, lambda a, b: a + 30.0 * (a - b)), kept)[1]
        affine = _affine(light, out, last, n, half, far)
    orderless = light.attends and not (constant or mixed > _MOVED or _time_first(model))
    orderless = orderless and _orderless(model, inputs, kept, before)
    return Probe(mixed if mixed > _MOVED else 0.0, mixes, constant, affine, light.dropped, orderless)


def _orderless(model: nn.Module, inputs: Any, kept: AsFound, before: list[Tensor]) -> bool:
    given = list(tensors(inputs))
    if len(given) != 1 or given[0].dim() != 2 or given[0].is_floating_point() or given[0].shape[1] < 4:
        return False
    (out, *_), _ = _passes(model, mapped(inputs, lambda x: x.roll(1, 1)), kept)
    moved = [before[0], before[0].roll(1, 1)] if before[0].shape[:2] == given[0].shape else [before[0]]
    return any((out - x).abs().max().item() <= _MOVED * x.abs().max().item() for x in moved)


def _affine(before: _Light, after: _Light, last: str, n: int, half: int, step: float) -> bool:
    """Whether f(a + step (a - b)) = f(a) + step (f(a) - f(b)) for what the last layer puts out."""
    a, b = before.outputs.get(last), after.outputs.get(last)
    if a is None or b is None or not a.dim() or len(a) != n or a.shape != b.shape:
        return False
    own, others = a[:half], a[n - half :]
    gap, off = (own - others).abs().max().item(), (b[:half] - own - step * (own - others)).abs().max().item()
    return gap > 1e-3 * a.abs().max().item() and off <= 1e-3 * gap * max(1.0, abs(step))


def sees_ahead(model: nn.Module, inputs: Any, name: str, time: int, kept: AsFound) -> bool | None:
    """Whether outputs of the first half of a sequence change with the second half of the input of that name; None if
    it cannot be told."""
    first = named(inputs)[name]
    length, n = first.shape[time], first.shape[1 - time]
    half = length // 2
    if half < 1 or n < 2:
        return None

    def change(x: Tensor) -> Tensor:
        if x is not first:
            return x
        return torch.cat([x.narrow(time, 0, half), x.narrow(time, half, length - half).roll(1, 1 - time)], time)

    try:
        before, after = (_passes(model, given, kept)[0] for given in (inputs, mapped(inputs, change)))
        folded = [
            x if x.shape[:2] == first.shape[:2] else x.unflatten(0, first.shape[:2]) for x in (before[0], after[0])
        ]
        a, b = (x.narrow(time, 0, half) for x in folded)
    except Exception:
        return None
    return (a - b).abs().max().item() > _MOVED * a.abs().max().item()
