"""Rules that speak of the step that follows: its size, its direction, and what it leaves out."""

import math
import statistics
from typing import Any

from mmlib.checkup.record import Record
from mmlib.checkup.row import Row
from mmlib.checkup.rules import Found, rule

_DASHBOARD = "13 The dashboard"
_SLOW = -5
_ADAPTIVE = frozenset({"Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Rprop", "Lion"})


@rule("not in the optimiser", _DASHBOARD, silences="step size")
def _missing(seen: Record) -> Found:
    if seen.taken and seen.taken.missing:
        layers = {p.name: p.layer for p in seen.parameters}
        n = len(seen.taken.missing)
        measured = f"{seen.taken.missing[0]} has a gradient and is in no group of the optimiser ({n} such parameters)"
        why = "it stays where it is; whoever means that saves the time of its gradient by requires_grad_(False)"
        action = "build the optimiser from model.parameters() after the last layer is in place"
        found = [layers[name] for name in seen.taken.missing]
        yield "warning", found, measured, "every parameter that has a gradient", why, action


@rule("step goes uphill", _DASHBOARD, silences="step size")
def _uphill(seen: Record) -> Found:
    if seen.taken and seen.taken.changes and seen.taken.fresh and seen.taken.slope > 0 and seen.taken.decay < 0.5:
        measured = (
            f"the first step of {seen.taken.optimizer} changes the loss by {seen.taken.slope:+.2g} to first order"
        )
        why = "a step along the gradient makes the loss larger"
        yield "error", ["optimizer"], measured, "below 0", why, "look for maximize=True, a negative rate, or its sign"


@rule("optimiser settings", _DASHBOARD, silences="step size")
def _settings(seen: Record) -> Found:
    group = seen.taken.settings if seen.taken else {}
    typical = statistics.median([p.norm / math.sqrt(p.data.numel()) for p in seen.parameters if p.norm] or [0.0])
    if group.get("momentum", 0) >= 1:
        measured, why = f"momentum {group['momentum']:g}", "at 1 or more, no earlier gradient is ever forgotten"
        yield "error", ["optimizer"], measured, "below 1, usually 0.9", why, "momentum=0.9"
    elif seen.taken and seen.taken.optimizer in _ADAPTIVE and group.get("eps", 0) > max(1e-3, 10 * typical):
        measured = f"eps {group['eps']:g}, where gradients are about {typical:.1g}"
        why = "what the gradient is divided by is then eps: the method no longer adapts, and its steps are small"
        yield "warning", ["optimizer"], measured, "far below the gradients", why, "leave eps at its default"


@rule("weight decay", _DASHBOARD, silences="step size")
def _decay(seen: Record) -> Found:
    if seen.taken and seen.taken.decay > 5 and not seen.trained:
        measured = f"weight decay makes {seen.taken.decay:.2g} times as large a step as the gradient"
        why = "the weights then shrink towards 0 whatever the data say"
        yield "warning", ["optimizer"], measured, "the smaller part of the step", why, "take a tenth of it, or less"


@rule("step size", _DASHBOARD)
def _step_size(seen: Record) -> Found:
    taken = seen.taken if seen.taken and seen.taken.changes else None
    room = (
        0.5 if taken and taken.optimizer in _ADAPTIVE else 0.0
    )  # an adaptive method's first step is its largest, and more than rank one
    moved = [row for row in seen.weighted if any(p.norm and not p.zero for p in _matrices(seen, row))]
    rows = [(row, u, _outweighs(seen, row) + room) for row in moved if (u := update_data(seen, row)) is not None]
    if not rows and not (taken and not any(taken.changes.values())):
        return
    middle = statistics.median([u for _, u, _ in rows] or [-math.inf])
    beyond = statistics.median([u - limit for _, u, limit in rows] or [-math.inf])
    rate = taken.lr if taken else seen.lr
    uniform = sum(t.uniform for t in seen.terms)
    worse = taken and not taken.loss <= 2 * max(seen.loss, uniform) and seen.loss > 0
    if beyond > 0 or worse:
        yield _too_large(seen, max(rows, key=lambda found: found[1] - found[2], default=None), middle, rate)
    elif middle < _SLOW and not seen.trained and not (taken and taken.scheduled and taken.lr == 0):
        yield _too_small(seen, rows, middle, rate)


def _too_large(seen: Record, worst: tuple[Row, float, float] | None, middle: float, rate: float) -> tuple[Any, ...]:
    taken = seen.taken
    row, update, limit = worst or (None, math.nan, math.nan)
    measured = f"too large: log10(update:data) is {middle:.1f} in the middle layer at learning rate {rate:g}"
    measured += f", {update:.1f} here" if row else ""
    if taken and taken.changes:
        measured += (
            f"; the step of {taken.optimizer} takes the loss of this batch from {seen.loss:.3g} to {taken.loss:.3g}"
        )
    why = (
        "at -3 a thousand steps renew the weights; a step has rank near one, and beyond 1/sqrt(fan_in) + "
        f"1/sqrt(fan_out), {limit:.1f} here, its singular value exceeds that of the random weights"
    )
    action = _advice(seen, rate, 10 ** (max(-3.0 - middle, -4.0)))
    return (
        "warning",
        [row.name if row else "optimizer"],
        measured,
        f"about -3, in any case below {limit:.1f}",
        why,
        action,
    )


def _too_small(seen: Record, rows: list[Any], middle: float, rate: float) -> tuple[Any, ...]:
    row = min(rows, key=lambda found: found[1])[0] if rows else None
    measured = f"too small: log10(update:data) is {middle:.1f} in the middle layer at learning rate {rate:g}"
    why = "at -3 a thousand steps renew the weights, at -5 a hundred thousand"
    action = _advice(seen, rate, 10 ** (-3 - middle))
    return "warning", [row.name if row else "optimizer"], measured, f"about -3, in any case above {_SLOW}", why, action


def _advice(seen: Record, rate: float, factor: float) -> str:
    if not math.isfinite(factor) or (factor > 1e3 * (1 + 1e-9) and (seen.trained or rate * factor > 10)):
        return "look at why the gradient is so small before you change the rate"
    name = seen.taken.optimizer if seen.taken else ""
    if name in _ADAPTIVE:
        return f"a rate of {name} near {min(rate * factor, 1e-2):.0e}: each weight moves by about that much a step"
    method = f"for {name}" if name else "for plain gradient descent"
    return f"{method} a rate near {rate * factor:.0e} would give -3"


def _outweighs(seen: Record, row: Row) -> float:
    """log10(update:data) at which an update of rank one has the largest singular value of n x m random weights."""
    n, m = max((p.data.flatten(1).shape for p in _matrices(seen, row)), key=math.prod)
    return math.log10(1 / math.sqrt(n) + 1 / math.sqrt(m))


def _matrices(seen: Record, row: Row) -> list[Any]:
    return [p for p in seen.parameters if p.layer == row.name and p.data.dim() > 1 and p.data.numel() > 1]


def grad_data(seen: Record, row: Row) -> float | None:
    """The largest std(grad) / std(data) among the layer's matrices."""
    own = _matrices(seen, row) if row.module is not None else []
    return max((p.grad_std / p.std for p in own if p.grad is not None and p.std > 0), default=None)


def update_data(seen: Record, row: Row) -> float | None:
    """log10 of update over data: the rms of the optimiser's own step, or lr times the gradient's std, over the std."""
    if row.module is not None and seen.taken and seen.taken.changes:
        changes = seen.taken.changes
        ratio = max(
            (changes[p.name] / p.std for p in _matrices(seen, row) if p.name in changes and p.std > 0), default=0
        )
        return math.log10(ratio) if ratio else None
    ratio = grad_data(seen, row)
    return math.log10(seen.lr * ratio) if ratio and seen.lr else None
