"""Rules that speak of the gradient on its way back."""

import math

import torch
from torch import Tensor, nn

from mmlib.checkup.record import Record
from mmlib.checkup.row import is_zero
from mmlib.checkup.rules import Found, rule
from mmlib.checkup.signal import HEALTHY_DECADES, WHY_DECADES, hidden, is_steep, slope
from mmlib.checkup.watch import MODEL

_SCALE, _DASHBOARD = "6 Choosing the scale", "13 The dashboard"


@rule(
    "zero weights block the gradient",
    _SCALE,
    silences="zero gradient, same for all examples, gradient slope, activation scale, dead units, units all alike, "
    "constant predictions, first loss",
)
def _zero_weights(seen: Record) -> Found:
    zero = [p.layer for p in seen.parameters if p.data.dim() > 1 and p.stuck and is_zero(p.data)]
    if zero:
        measured = f"all its weights are 0, and so is their gradient, as in {len(set(zero))} layers; it stays so"
        why = "the gradient passes back through the weights: with two zero layers in a row neither gets one"
        action = "draw them small instead, say 0.1/sqrt(fan_in); one layer of zeros, at the end, is fine"
        yield "error", zero, measured, "weights that are small but not 0", why, action


@rule(
    "gradient slope", "5 Vanishing and exploding", silences="same for all examples, zero gradient, constant predictions"
)
def _gradient_slope(seen: Record) -> Found:
    rows = hidden(seen)
    scale = [row.gradient for row in rows]
    if is_steep(scale):
        step = 10 ** -slope(scale)
        verb = "grows" if step > 1 else "shrinks"
        measured = f"the gradient {verb} on its way back, x {step:.2f} a layer, from {rows[-1].name} to {rows[0].name}"
        why = f"{WHY_DECADES}; theory's factor is sqrt(chi) = gain * sqrt(E phi'^2), healthy near 1"
        action = "choose the gain by the activation, replace sigmoids, add norms or skip connections"
        yield "warning", [rows[0].name], measured, HEALTHY_DECADES, why, action


@rule("useless bias", "10 Batch normalisation, backward and invariance")
def _useless_bias(seen: Record) -> Found:
    found = []
    for row in seen.rows:
        bias = getattr(row.module, "bias", None)
        if row.norm and isinstance(bias, nn.Parameter) and bias.requires_grad and row.gradient:
            left = (torch.as_tensor(row.gradient_sum).norm() / torch.as_tensor(row.gradient_abs).norm()).item()
            if left < math.sqrt(torch.finfo(bias.dtype).eps):
                found.append((row, left))
    if found:
        row, left = found[0]
        measured = (
            f"the bias's gradient cancels to {left:.0e} of its parts; {row.norm} subtracts the mean right after it"
        )
        why = "a norm removes every constant, so that the gradient is 0 but for rounding"
        action = "build it with bias=False: the norm has its own"
        yield "note", [row.name for row, _ in found], measured, "no bias before a norm that removes it", why, action


@rule("units all alike", _SCALE, silences="zero gradient, gradient slope, activation scale, first loss")
def _alike(seen: Record) -> Found:
    alike = {p.layer for p in seen.parameters if p.data.dim() > 1 and _same_rows(p.data) and _same_rows(p.grad)}
    found = [row.name for row in seen.weighted if row.name in alike]
    if found:
        why = "units that start alike and get the same gradient stay alike for ever: the layer is one unit wide"
        action = "draw the weights at random"
        yield "error", found, "every unit has the same weights and the same gradient", "no two alike", why, action


def _same_rows(x: Tensor | None) -> bool:
    """Up to 1e-4: a product of some hundred terms may be off by some 1e-6 of its size."""
    if x is None or len(x) < 2 or x.is_complex():
        return False
    x = x.detach().flatten(1)
    largest = x[0].abs().max()
    if not largest or (x[1] - x[0]).abs().max() > 1e-4 * largest:
        return False
    return bool((x - x[0]).abs().max() <= 1e-4 * x.abs().max())


@rule("no gradient", _DASHBOARD, silences="constant predictions")
def _no_gradient(seen: Record) -> Found:
    trained = [p for p in seen.parameters if p.data.requires_grad]
    reached = {p.layer for p in trained if p.grad is not None}
    cut = [p for p in trained if p.grad is None and not _routed(seen, p.layer)]
    cut = [p for p in cut if p.data.dim() > 1 or p.layer not in reached]  # a constant, which a derivative loses
    why = "a parameter without a gradient stays where it is"
    if not trained:
        yield "warning", [MODEL], "every parameter is frozen", "something to train", why, "call requires_grad_(True)"
    elif not seen.connected:
        action = "look for detach, .data, no_grad, item, argmax, a comparison, or a tensor made anew of numbers"
        yield "error", ["loss_fn"], "the loss is connected to no parameter", "it is to every one", why, action
    elif seen.watch.unconnected:
        measured = f"a term of the loss, {seen.watch.unconnected[0]}, depends on nothing that trains"
        action = "look at what it compares, and for detach and no_grad on the way there"
        yield "warning", ["loss_fn"], measured, "every term reaches a parameter", "the term changes nothing", action
    elif cut:
        if cut[0].layer in seen.watch.called or cut[0].layer == MODEL:
            reason = "no path leads from the loss to it"
            action = "look for detach, .data, no_grad, item or argmax between it and the loss, or an output left unused"
        else:
            reason, action = "its layer was never called", "call it in forward, or remove it"
        yield "error", [p.layer for p in cut], f"{cut[0].name}: {reason}", "every parameter has one", why, action


def _routed(seen: Record, layer: str) -> bool:
    """Whether it is one of several alike of which each example takes some: experts, of which this batch needs few."""
    path = layer.split(".")
    for k, part in enumerate(path):
        if part.isdigit():
            beside = [
                r
                for r in seen.rows
                if r.name.split(".")[:k] == path[:k] and r.name.split(".")[k + 1 :] == path[k + 1 :]
            ]
            full = max((r.shape[0] for r in seen.rows if r.shape), default=0)
            if beside and all(r.shape and r.shape[0] < full for r in beside):
                return True
    return False


@rule("zero gradient", _DASHBOARD)
def _zero_gradient(seen: Record) -> Found:
    some = [p for p in seen.parameters if p.grad is not None]
    if some and not any(p.norm for p in some):
        if abs(seen.loss) > 1e-12:  # where it is 0, all is as it should be
            action = "look for sign, round, a comparison or clamp, whose slope is 0, and for a factor 0 in the loss"
            why = "nothing would move"
            measured = f"the loss is {seen.loss:.4g}, the gradient of every parameter 0"
            yield "error", ["loss_fn"], measured, "a gradient where there is a loss", why, action
        return
    zero = [p for p in some if p.data.dim() > 1 and p.stuck]
    if zero:
        measured = f"the gradient of {zero[0].name} is 0, though a path leads there, and stays so as the others move"
        why = "a factor on the path is 0, and the weights stay where they are"
        action = "look at what comes in (all 0?) and at what the output is multiplied by"
        yield "warning", [p.layer for p in zero], measured, "above the rounding errors of the others", why, action
