"""One forward and backward pass of any module, seen from outside, and what a second look must tell."""

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from mmlib.checkup.found import AsFound, as_found, called, fresh, tensors
from mmlib.checkup.gradients import begun, gradients, norms_of, stuck_of
from mmlib.checkup.probe import Probe, by_design, probe, sees_ahead
from mmlib.checkup.row import Row, is_zero, std
from mmlib.checkup.taken import Taken, check_optimizer, take
from mmlib.checkup.terms import Term, by_hand
from mmlib.checkup.traced import hidden, located, named, shift_of, unregistered_in
from mmlib.checkup.watch import MODEL, Watch


class Parameter(NamedTuple):
    """A parameter, its gradient (None if the loss does not reach it) with its norm, and the layer it belongs to.

    `zero` says that the gradient is 0 but for rounding: exactly 0, or below a gap of 4 eps among the norms of all. What
    is 0 on one processor is some eps on another, as the slope of tanh where it is 1 or 1 - eps; a gradient that
    vanishes does so by a factor in every layer. `stuck` says that it is so still after some steps of the others.
    """

    name: str
    layer: str
    data: nn.Parameter
    grad: Tensor | None
    norm: float
    zero: bool
    stuck: bool
    std: float  # of a matrix: that of its numbers, and of their gradient
    grad_std: float


class Record(NamedTuple):
    """Everything that one pass gave away; `rows` in the order of the first calls, `inputs` by name."""

    model: nn.Module
    inputs: dict[str, Tensor]
    targets: Any
    loss: float
    connected: bool
    terms: list[Term]
    sign: int
    rows: list[Row]
    parameters: list[Parameter]
    watch: Watch
    broken: tuple[str, str] | None  # the first layer with a number that is not finite, and the line that made it
    unregistered: list[str]
    shift: int | None  # 1 if the targets are the next inputs, 0 if they are the inputs
    ahead: bool | None
    probe: Probe | None
    taken: Taken | None
    lr: float | None
    lost: list[str]

    @property
    def weighted(self) -> list[Row]:
        """The rows of layers that have a weight matrix, or a kernel."""
        owners = {p.layer for p in self.parameters if p.data.dim() > 1}
        return [row for row in self.rows if row.module is not None and row.name in owners]

    @property
    def trained(self) -> bool:
        """Whether the loss is already well below that of an uninformed guess."""
        uniform = sum(t.uniform for t in self.terms)
        return bool(self.terms) and self.loss < 0.7 * uniform


def _check(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model: a scripted or traced model cannot be looked into; pass the module it was made from")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: a torch.nn.Module is needed, got {type(model).__name__}")
    places: dict[str, str] = {}
    for name, p in model.named_parameters():
        places.setdefault(str(p.device), name)
    if len(places) > 1:
        pieces = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise ValueError(f"model: it is in pieces on several devices, {pieces}; move it to one, as with model.cpu()")
    for name, p in model.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"model: {name} has no shape yet; run one batch through the lazy layer first")
        if p.is_meta:
            raise ValueError(f"model: {name} is on the meta device and holds no numbers; load them first")
        if p.is_inference():
            raise ValueError(f"model: {name} was made under inference_mode and can have no gradient; build it outside")
    if not any(True for _ in model.parameters()):
        where = next((path for path, _ in hidden(model)), None)
        reason = "there is nothing that could train"
        if where:
            reason = f"{where} is not registered: keep layers in nn.ModuleList, tensors as nn.Parameter"
        raise ValueError(f"model: {type(model).__name__} has no parameters; {reason}")


def _rate(lr: Any) -> float | None:
    rate = lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr
    if rate is None:
        return None
    if not isinstance(rate, (float, Real)) or not 0 < float(rate) < math.inf:
        raise ValueError(f"lr: a positive number is needed, got {lr!r}")
    return float(rate)


def _loss(loss_fn: Callable[..., Any], outputs: Any, targets: Any) -> Tensor:
    try:
        loss = loss_fn(outputs, targets)
    except Exception as error:
        error.add_note("checkup: raised in loss_fn")
        raise
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn: a tensor with one number is needed, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"loss_fn: one number is needed, got a loss of shape {tuple(loss.shape)}; take its mean")
    return loss


def _owner(parameter: str, layers: set[str]) -> str:
    path = module = parameter.rpartition(".")[0]
    while path and path not in layers:
        path = path.rpartition(".")[0]
    return path or module or MODEL


def record(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss_fn: Callable[..., Any],
    lr: float | Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Record:
    """The loss of one batch and its gradient, in the model's present mode, with everything seen on the way.

    `inputs` is a tensor, a tuple of positional or a dictionary of keyword arguments. The model, its hooks, the
    inputs and the random states are left as found, also when something raises; the exception then carries a note on
    where. Raises TypeError for a model that is no module or is scripted, or a loss that is no tensor, ValueError for a
    model without parameters, a loss that is not one number, or a learning rate that is not positive.
    """
    _check(model)
    rate = _rate(lr)
    if optimizer is not None:
        check_optimizer(optimizer, model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if "torch._dynamo" in sys.modules:  # a compiled model runs as it was written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        given, expected = fresh(inputs), fresh(targets)
        kept = stack.enter_context(as_found(model, loss_fn))
        stack.enter_context(torch.enable_grad())
        return _record(model, given, expected, loss_fn, rate, optimizer, kept)._replace(inputs=named(inputs))


def _record(
    model: nn.Module,
    given: Any,
    expected: Any,
    loss_fn: Callable[..., Any],
    lr: float | None,
    optimizer: torch.optim.Optimizer | None,
    kept: AsFound,
) -> Record:
    inputs = named(given)
    # An input that is changed in place must stay what it was for the passes after this one.
    first = fresh(given)
    watch = Watch(model, named(first))
    names = dict(model.named_parameters(remove_duplicate=False))  # tied weights belong to each of their layers
    with watch.attached():
        with watch:
            outputs = called(model, first)
            watch.turn(outputs, expected)
            loss = _loss(loss_fn, outputs, expected)
        grads = gradients(loss, list({p for p in names.values() if p.requires_grad}))
    norms, zero = norms_of(grads)
    bad = not math.isfinite(loss.item()) or not all(map(math.isfinite, norms.values()))
    leaves = [x for x in tensors(outputs) if x.requires_grad] or [loss]
    others = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
    others += list(loss_fn.parameters()) if isinstance(loss_fn, nn.Module) else []
    known = {id(x) for x in (*names.values(), *tensors([first, expected]), *others)} | watch.data
    unregistered = unregistered_in(model, leaves, known)

    def run() -> Tensor:
        return loss_fn(called(model, fresh(given)), fresh(expected))

    stuck: set[nn.Parameter] = set()
    broken = ahead = seen = taken = None
    terms, sign = watch.terms, 1
    if not terms:
        found, sign = by_hand(outputs, expected, loss.item())
        terms = [watch.placed(found, outputs)] if found else []
    layers = {row.name for row in watch.rows.values() if row.module is not None}
    biases = {p for name, p in names.items() if "bias" in name}
    shift, time, shifted = shift_of(inputs, [t.target for t in terms] or list(tensors(expected)))
    matrices = [name.rpartition(".")[0] for name, p in names.items() if p.dim() > 1]
    last = next((row.name for row in [*watch.rows.values()][::-1] if row.name in matrices and row.module), "")
    if bad:
        kept.rewind()
        broken = located(model, given, expected, loss_fn)
    else:
        matrix_zero = {p for p in zero if p.dim() > 1}
        if matrix_zero and any(norms.values()):
            stuck = stuck_of(run, grads, zero, kept)
        elif matrix_zero and loss.item():
            stuck = zero
        if optimizer is not None:
            kept.rewind()
            own = {name: grads[p] for name, p in model.named_parameters() if grads.get(p) is not None}

            def after(stepped: nn.Module) -> float:
                return loss_fn(called(stepped, fresh(given)), fresh(expected)).item()

            taken = take(model, optimizer, own, after)
        kept.changes = begun([p for p in grads if p not in biases and p not in stuck and is_zero(p)])
        if not by_design(model, inputs, _batch(inputs, expected)):
            seen = probe(model, given, expected, kept, time, last)
        if shift is not None:
            ahead = sees_ahead(model, given, shifted, time, kept)
        kept.changes = {}
    kept.rewind()
    parameters = [
        Parameter(
            *(name, _owner(name, layers), p, grads.get(p), norms.get(p, 0.0), p in zero, p in stuck),
            *(_std(p), _std(grads.get(p))),
        )
        for name, p in names.items()
    ]
    rows = list(watch.rows.values())
    return Record(
        *(model, inputs, expected, loss.item(), loss.requires_grad, terms, sign, rows, parameters, watch, broken),
        *(unregistered, shift, ahead, seen, taken, lr, kept.lost),
    )


def _std(x: Tensor | None) -> float:
    return std(x) if x is not None and x.dim() > 1 else 0.0


def _batch(inputs: dict[str, Tensor], targets: Any) -> int:
    """The number of examples, by the targets if they tell."""
    return next((len(x) for x in (*tensors(targets), *inputs.values()) if x.dim()), 0)
