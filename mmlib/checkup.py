"""The diagnosis, for any module: what one forward and one backward pass give away, against what is healthy.

Small rules, causes before consequences, each with its threshold and the reason for it. A rule is silent unless a
number is beyond twice what the widest of the usual recipes gives, or beyond what chance allows.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmlib import meanfield
from mmlib.activations import TANH
from mmlib.gaussian import expectation
from mmlib.record import (
    BINARY,
    BOUNDED,
    LABELS,
    MODEL,
    RECTIFIERS,
    Parameter,
    Record,
    Row,
    Term,
    classes,
    finite,
    is_norm,
    record,
)
from mmlib.report import Finding, Layer, Report

# Rules: Record -> findings. A rule yields severity, layers, measured, healthy, why, action.
Found = Iterator[tuple[str, list[str], str, str, str, str]]


class Rule(NamedTuple):
    """A rule, the chapter that explains it, and the rules whose findings would only be its consequences."""

    name: str
    chapter: str
    find: Callable[[Record], Found]
    silences: frozenset[str]


RULES: list[Rule] = []


def _rule(name: str, chapter: str, silences: str = "") -> Callable:
    def add(find: Callable[[Record], Found]) -> Callable[[Record], Found]:
        RULES.append(Rule(name, chapter, find, frozenset(filter(None, silences.split(", ")))))
        return find

    return add


def _findings(seen: Record) -> Iterator[Finding]:
    silenced: set[str] = set()
    for name, chapter, find, silences in RULES:
        if name in silenced or "everything" in silenced:
            continue
        for severity, layers, measured, healthy, why, action in find(seen):
            silenced |= silences
            first, *also = dict.fromkeys(layers)
            yield Finding(name, severity, first, measured, healthy, why, action, chapter, tuple(also))


@_rule("not finite", "5 Vanishing and exploding", silences="everything")
def _not_finite(seen: Record) -> Found:
    grads = {p.layer: p.name for p in seen.parameters if p.grad is not None and not finite(p.grad)}
    if math.isfinite(seen.loss) and not grads:
        return
    bad = [p for p in seen.parameters if not finite(p.data)]
    inputs = [name for name, x in seen.inputs.items() if not finite(x)]
    if bad:
        layer, measured = bad[0].layer, f"the parameter {bad[0].name} holds nan or inf"
        action = "load or initialise it again; if a step did this, take a smaller learning rate or clip the gradient"
    elif inputs:
        layer, measured, action = inputs[0], "the batch itself holds nan or inf", "clean the data"
    elif seen.first_not_finite:
        layer, measured = seen.first_not_finite, "its inputs are finite, its output holds nan or inf: here it appears"
        action = "look for log or sqrt of 0 or less, a division by 0, or exp of a large number"
    elif not math.isfinite(seen.loss):
        layer, measured = "loss_fn", f"the model's output is finite, the loss is {seen.loss}"
        action = "look for log(0) in the loss, or a mean over no element"
    else:
        order = [row.name for row in seen.rows if row.name in grads]
        layer = order[-1] if order else next(iter(grads))
        measured = f"every output is finite, the gradient of {grads[layer]} is not"
        action = "look for the slope of sqrt or norm at 0 right after it, or for both branches of torch.where"
    why = "one such number reaches every parameter with the next step"
    yield "error", [layer], measured, "only finite numbers", why, action


@_rule("targets out of range", "2 The loss you should expect", silences="first loss, unused outputs")
def _targets(seen: Record) -> Found:
    for term in seen.terms:
        if term.outside:
            why = "a class the model has no output for cannot be learned; outside 0 to 1 this loss has no lower bound"
            action = "number the classes from 0, or give the output layer one unit for each"
            yield "error", ["targets"], term.outside, "every target in range", why, action


@_rule("shapes broadcast", "2 The loss you should expect", silences="first loss")
def _broadcast(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in LABELS and term.prediction.shape != term.target.shape:
            measured = f"predictions {tuple(term.prediction.shape)} against targets {tuple(term.target.shape)}"
            why = "broadcasting compares every prediction with every target; the best answer is then one constant"
            yield "error", ["loss_fn"], measured, "equal shapes", why, "squeeze or reshape one of the two"


@_rule("logits already squashed", "2 The loss you should expect")
def _squashed(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in ("cross_entropy", "binary_cross_entropy_with_logits"):
            continue
        z, k = torch.atleast_2d(term.prediction), classes(term.prediction)
        normalised = k > 1 and z.min() >= 0 and ((z.sum(1) - 1).abs() < 1e-3).all()
        if normalised and term.function == "cross_entropy":
            floor = math.log(1 + (k - 1) / math.e)
            measured = f"rows of {k} non-negative numbers that sum to 1, as after a softmax"
            why = f"cross-entropy takes the softmax itself; of a second one it cannot go below {floor:.3f}"
        elif term.passed in BOUNDED | {"relu"}:
            measured = f"the logits come out of {term.passed}"
            why = "a logit needs both signs and any size: squashed or cut off, it cannot say 'surely not'"
        else:
            continue
        yield "error", [_last(seen)], measured, "raw logits", why, "leave the last activation out; the loss has its own"


@_rule("logits where log-probabilities belong", "2 The loss you should expect", silences="first loss")
def _not_log_probabilities(seen: Record) -> Found:
    for term in seen.terms:
        if term.function == "nll_loss":
            off = torch.atleast_2d(term.prediction).logsumexp(1).abs().max().item()
            if off > 1e-2:
                measured = f"log of the summed probabilities is up to {off:.3g} away from 0"
                why = "nll_loss only picks a number out of each row; without log_softmax it has no lower bound"
                action = "use cross_entropy, or put log_softmax last"
                yield "error", [_last(seen)], measured, "rows of log_softmax", why, action


@_rule("targets all the same", "2 The loss you should expect", silences="first loss, unused outputs")
def _constant_targets(seen: Record) -> Found:
    for term in seen.terms:
        t, n = term.target, term.target.numel()
        if term.function not in BINARY and n >= 32 and (t == t.flatten()[0]).all():
            why = "a constant answers such a batch; with more than one class, chance hardly ever draws one"
            action = "shuffle the data; look at how the targets are made"
            yield "warning", ["targets"], f"all {n} targets are {t.flatten()[0].item():g}", "they differ", why, action


@_rule("unused outputs", "2 The loss you should expect")
def _unused_outputs(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in LABELS or term.target.is_floating_point():
            continue
        k, labels = classes(term.prediction), term.target[term.target >= 0].unique()
        used = len(labels)
        if 1 < used <= k / 10 and used == labels.max() + 1 and term.target.numel() >= 4 * used:
            measured = f"{k} outputs, but the labels of this batch are 0 to {used - 1}, each of them present"
            why = f"a uniform guess costs log {k} = {math.log(k):.3f} instead of log {used} = {math.log(used):.3f}"
            action = f"give the output layer {used} units, if there are no other labels in the data"
            yield "warning", [_last(seen)], measured, "about one output for each label", why, action


_LARGE_INPUT, _SMALL_INPUT = 10, 0.05


@_rule(
    "input scale",
    "6 Choosing the scale",
    silences="first loss, activation scale, gradient slope, saturation, dead units, same for all examples, step size",
)
def _input_scale(seen: Record) -> Found:
    first = next(((name, x) for name, x in seen.inputs.items() if x.is_floating_point()), None)
    if first is None or not seen.weighted or seen.weighted[0].norm or is_norm(seen.rows[0].module):
        return
    name, x = first
    rms, largest = x.double().square().mean().sqrt().item(), x.abs().max().item()
    if rms > _LARGE_INPUT or 0 < largest < _SMALL_INPUT:
        measured = f"rms {rms:.3g}, mean {x.double().mean().item():.3g}, largest magnitude {largest:.3g}"
        why = (
            "every init scheme assumes inputs of variance 1; the first pre-activations, and the gradient of the first "
            f"weights, take over the scale: at rms 10, {_saturated(10):.0%} of tanh units sit beyond 0.99"
        )
        action = "subtract the mean and divide by the standard deviation of each feature, over the training data"
        yield "warning", [name], measured, f"rms about 1, in any case below {_LARGE_INPUT}", why, action


@_rule("examples repeat", "16 A recipe for your own network", silences="same for all examples")
def _repeated(seen: Record) -> Found:
    for name, x in seen.inputs.items():
        if x.is_floating_point() and x.dim() > 1 and len(x) >= 4 and x[0].numel() > 1:
            distinct = len(x.flatten(1).unique(dim=0))
            if distinct <= len(x) / 2:
                why = "repeated rows add nothing to the gradient but their weight"
                measured = f"{distinct} distinct rows among {len(x)}"
                yield "warning", [name], measured, "every row another example", why, "look at how batches are drawn"
            return


@_rule("mixed modes", "9 Batch normalisation, forward", silences="statistics not run")
def _mixed_modes(seen: Record) -> Found:
    odd = [n or MODEL for n, m in seen.model.named_modules() if m.training != seen.model.training and _has_modes(m)]
    if odd:
        mode = ("evaluation", "training")
        measured = f"in {mode[not seen.model.training]} mode, while the model is in {mode[seen.model.training]} mode"
        why = "a batch norm then uses the other statistics than its neighbours, dropout drops when it should not"
        action = "model.train() or model.eval() once; to freeze a norm on purpose, freeze its parameters too"
        yield "warning", odd, measured, "one mode throughout", why, action


def _has_modes(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    frozen = own and not any(p.requires_grad for p in own)
    tracks = getattr(module, "running_mean", None) is not None
    return (tracks and not frozen) or "Dropout" in type(module).__name__


@_rule("statistics not run", "9 Batch normalisation, forward", silences="first loss, activation scale, gradient slope")
def _statistics(seen: Record) -> Found:
    fresh = [n or MODEL for n, m in seen.model.named_modules() if not m.training and _never_run(m)]
    if fresh:
        why = "in evaluation mode these are what it normalises by: with mean 0 and variance 1 it does nothing"
        action = "run some batches in training mode first, or load the buffers with the weights"
        measured = "running mean 0 and running variance 1, as when it was built"
        yield "warning", fresh, measured, "statistics of the data", why, action


def _never_run(module: nn.Module) -> bool:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and bool((mean == 0).all() and (var == 1).all())


@_rule(
    "zero weights block the gradient",
    "6 Choosing the scale",
    silences="zero gradient, same for all examples, gradient slope, activation scale, dead units, units all alike",
)
def _zero_weights(seen: Record) -> Found:
    zero = [row.name for row in seen.weighted if all((p == 0).all() for p in _matrices(seen, row.name))]
    blocked = [p.layer for p in _without_gradient(seen) if p.layer not in zero[:1]]
    if zero and blocked:
        measured = f"all its weights are 0, and the gradient of {len(set(blocked))} layers before it is 0"
        why = "the gradient passes back through the weights; until they have moved, nothing before them learns"
        action = "draw them small instead, say 0.1/sqrt(fan_in); on purpose, at the end of a residual branch, 0 is fine"
        yield "warning", zero, measured, "weights that are small but not 0", why, action


@_rule(
    "dead units",
    "4 Saturation",
    silences="zero gradient, same for all examples, gradient slope, activation scale",
)
def _dead_units(seen: Record) -> Found:
    found = []
    for row in seen.rows:
        if row.activation in RECTIFIERS and row.shape[0] > 1:
            off, on, units = row.dead.sum().item(), row.on.sum().item(), len(row.dead)
            if off == units or off - on > max(0.1 * units, 4 * math.sqrt(off + on)):
                found.append((row, off, on, units))
    if found:
        row, off, on, units = found[0]
        measured = f"{off} of {units} {row.activation} units are flat for every example, {on} on{_after(row)}"
        healthy = "as many off as on, but for a tenth of the units or, if more, 4 standard errors, 4 sqrt(off + on)"
        why = (
            "weights drawn symmetrically around 0 leave a unit off for every example as often as on; one that is off "
            "passes no gradient to its weights"
        )
        action = "start the biases at 0 and shrink the weights before it; if training did this, lower the learning rate"
        yield "error" if off == units else "warning", [r.name for r, *_ in found], measured, healthy, why, action


@_rule("saturation", "4 Saturation", silences="gradient slope, same for all examples, zero gradient")
def _saturation(seen: Record) -> Found:
    usual = _saturated(5 / 3)
    limit = 2 * usual
    found = [row for row in seen.rows if row.activation in BOUNDED and row.flat > limit]
    if found:
        worst = max(found, key=lambda row: row.flat)
        measured = f"{found[0].flat:.0%} of its elements are flat{_after(found[0])}" + (
            f", up to {worst.flat:.0%} in {worst.name}" if worst is not found[0] else ""
        )
        healthy = f"below {limit:.0%}"
        why = (
            f"twice the {usual:.0%} that the widest usual gain, 5/3, gives on inputs of variance 1; "
            "where the slope is below 2 %, the weights before it get next to no gradient"
        )
        action = "draw the weights before it with gain/sqrt(fan_in), and normalise what comes in"
        yield "warning", [row.name for row in found], measured, healthy, why, action


@cache
def _saturated(std: float) -> float:
    return meanfield.saturation(std**2, TANH, 0.99)


_DECADES = 2
_HEALTHY_DECADES = f"less than a factor {10**_DECADES} over the depth"
_WHY_DECADES = (
    "one learning rate must fit all layers: where one end moves by 1/1000 a step, the other would by 1/10 or 1e-5"
)


@_rule(
    "activation scale",
    "6 Choosing the scale",
    silences="gradient slope, first loss, same for all examples, step size",
)
def _activation_scale(seen: Record) -> Found:
    rows = _hidden(seen)
    scale = [row.rms for row in rows]
    if _is_steep(scale):
        measured = f"rms {scale[0]:.2g} here, {scale[-1]:.2g} in {rows[-1].name}: x {10 ** _slope(scale):.2f} a layer"
        why = f"{_WHY_DECADES}; each layer multiplies the scale by gain * sqrt(E phi^2), which kaiming sets to 1"
        action = "draw the weights with kaiming(activation), or put a norm after each layer"
        yield "warning", [rows[0].name, rows[-1].name], measured, _HEALTHY_DECADES, why, action


@_rule("gradient slope", "5 Vanishing and exploding", silences="same for all examples")
def _gradient_slope(seen: Record) -> Found:
    rows = _hidden(seen)
    scale = [row.gradient for row in rows]
    if _is_steep(scale):
        step = 10 ** -_slope(scale)
        verb = "grows" if step > 1 else "shrinks"
        measured = f"the gradient {verb} on its way back, x {step:.2f} a layer, from {rows[-1].name} to {rows[0].name}"
        why = f"{_WHY_DECADES}; theory's factor is sqrt(chi) = gain * sqrt(E phi'^2), healthy near 1"
        action = "choose the gain by the activation, replace sigmoids, add norms or skip connections"
        yield "warning", [rows[0].name], measured, _HEALTHY_DECADES, why, action


@_rule("first loss", "2 The loss you should expect")
def _first_loss(seen: Record) -> Found:
    value, uniform = sum(t.value for t in seen.terms), sum(t.uniform for t in seen.terms)
    limit = sum(t.uniform + _room(t) * (1 + 3 / math.sqrt(_independent(seen, t.target.numel()))) for t in seen.terms)
    if seen.terms and value > limit:
        loudest = max(seen.weighted, key=lambda row: row.gain, default=None)
        layer = loudest.name if loudest and loudest.gain > 2 else _last(seen)
        spread = seen.terms[-1].prediction.double().std(correction=0).item()
        measured = (
            f"loss {value:.4g}, where {_guess(seen.terms)} gives {uniform:.4g}; predictions have std {spread:.3g}"
        )
        why = "that is what predictions of std 2 cost, wider than any usual scheme makes them: it is sure and wrong"
        action = f"scale the output layer's weights down once (x {min(0.1, 1 / max(spread, 1)):.1g}), its bias to 0"
        if layer != _last(seen):
            action = f"its output is {loudest.gain:.0f} times its input: draw its weights smaller by as much"
        elif seen.terms[-1].function not in LABELS | BINARY:
            action = "standardise the targets, or start the output bias at their mean and its weights small"
        yield "warning", [layer], measured, f"below {limit:.4g}", why, action


def _independent(seen: Record, n: int) -> float:
    """How many independent examples n are worth whose outputs have the correlation 1 - spread^2."""
    spread = (seen.weighted[-1].spread if seen.weighted else None) or 0.0
    return n / (1 + (n - 1) * (1 - min(spread, 1.0) ** 2))


def _room(term: Term) -> float:
    """What predictions of std 2 cost above an uninformed guess; for numbers, in units of the targets' spread."""
    if term.function in LABELS:
        k = classes(term.prediction)
        return term.uniform * (_expected_loss(k) / math.log(k) - 1) if k > 1 else math.inf
    if term.function in BINARY:
        return term.uniform * (expectation(lambda z: torch.nn.functional.softplus(2 * z)) / math.log(2) - 1)
    return term.uniform * (4 if term.function == "mse_loss" else math.sqrt(5) - 1)


@cache
def _expected_loss(k: int) -> float:
    return meanfield.expected_first_loss(2.0, k)


@_rule("useless bias", "10 Batch normalisation, backward and invariance")
def _useless_bias(seen: Record) -> Found:
    found = []
    for row in seen.rows:
        bias = getattr(row.module, "bias", None)
        if row.norm and isinstance(bias, nn.Parameter) and bias.requires_grad and row.gradient:
            left = (row.gradient_sum.norm() / row.gradient_abs.norm()).item()
            if left < math.sqrt(torch.finfo(bias.dtype).eps):
                found.append((row, left))
    if found:
        row, left = found[0]
        measured = (
            f"the bias's gradient cancels to {left:.0e} of its parts; {row.norm} subtracts the mean right after it"
        )
        why = "a norm removes every constant, so that the gradient is exactly 0 but for rounding"
        action = "build it with bias=False: the norm has its own"
        yield "note", [row.name for row, _ in found], measured, "no bias before a norm that removes it", why, action


@_rule("units all alike", "6 Choosing the scale", silences="zero gradient")
def _alike(seen: Record) -> Found:
    alike = {p.layer for p in seen.parameters if p.data.dim() > 1 and _same_rows(p.data) and _same_rows(p.grad)}
    found = [row.name for row in seen.weighted if row.name in alike]
    if found:
        why = "units that start alike and get the same gradient stay alike for ever: the layer is one unit wide"
        action = "draw the weights at random"
        yield "error", found, "every unit has the same weights and the same gradient", "no two alike", why, action


def _same_rows(x: Tensor | None) -> bool:
    if x is None or len(x) < 2 or not x.abs().max():
        return False
    x = x.detach().flatten(1).double()
    return bool((x - x[0]).abs().max() <= 1e-4 * x.abs().max())


@_rule("no gradient", "13 The dashboard")
def _no_gradient(seen: Record) -> Found:
    trained = [p for p in seen.parameters if p.data.requires_grad]
    cut = [p for p in trained if p.grad is None]
    why = "a parameter without a gradient stays where it is"
    if not trained:
        yield "warning", [MODEL], "every parameter is frozen", "something to train", why, "call requires_grad_(True)"
    elif cut:
        if cut[0].layer in seen.called:
            reason = "no path leads from the loss to it"
            action = "look for detach, .data, no_grad, item or argmax between it and the loss"
        else:
            reason, action = "its layer was never called", "call it in forward, or remove it"
        yield "error", [p.layer for p in cut], f"{cut[0].name}: {reason}", "every parameter has one", why, action


_SPREAD = 1e-3


@_rule("same for all examples", "5 Vanishing and exploding", silences="zero gradient")
def _collapsed(seen: Record) -> Found:
    rows = [row for row in seen.rows if row.spread is not None and "Embedding" not in row.kind]
    last = seen.weighted[-1] if seen.weighted else None
    first = next((row for row in rows if row.spread < _SPREAD), None)
    if first and last and first is not last and (last.spread or 0) < _SPREAD:
        measured = f"its output varies over the examples by {first.spread:.1g} of its size{_after(first)}"
        why = "what no longer depends on the input cannot be told apart by any later layer; 1/1000 is near rounding"
        action = "look for a norm over one feature, a huge bias, or a mean or softmax over the wrong axis"
        yield "error", [first.name], measured, f"above {_SPREAD}", why, action


@_rule("zero gradient", "13 The dashboard")
def _zero_gradient(seen: Record) -> Found:
    zero = _without_gradient(seen)
    if zero:
        measured = f"the gradient of {zero[0].name} is 0 but for rounding, though a path leads there"
        why = "a factor on the path is 0, and the weights stay where they are"
        action = "look at what comes in (all 0?) and at what the output is multiplied by"
        yield "warning", [p.layer for p in zero], measured, "above the rounding errors of the others", why, action


_SLOW = -5


@_rule("step size", "13 The dashboard")
def _step_size(seen: Record) -> Found:
    rows = [(row, u, _outweighs(seen, row)) for row in seen.weighted if (u := _update_data(seen, row)) is not None]
    if not rows:
        return
    middle = statistics.median(u for _, u, _ in rows)
    if middle >= _SLOW and statistics.median(u - limit for _, u, limit in rows) <= 0:
        return
    row, update, limit = max(rows, key=lambda found: found[1] - found[2])
    measured = f"log10(update:data) is {middle:.1f} in the middle layer at learning rate {seen.lr:g}, {update:.1f} here"
    why = (
        "at -3 a thousand steps renew the weights, at -5 a hundred thousand; a step has rank near one, and beyond "
        f"1/sqrt(fan_in) + 1/sqrt(fan_out), {limit:.1f} here, its singular value exceeds that of the random weights"
    )
    action = f"for plain gradient descent a rate near {seen.lr * 10 ** (-3 - middle):.0e} would give -3"
    yield "warning", [row.name], measured, f"about -3, in any case between {_SLOW} and {limit:.1f}", why, action


def _outweighs(seen: Record, row: Row) -> float:
    """log10(update:data) at which an update of rank one has the largest singular value of n x m random weights."""
    n, m = max((w.flatten(1).shape for w in _matrices(seen, row.name)), key=math.prod)
    return math.log10(1 / math.sqrt(n) + 1 / math.sqrt(m))


def _matrices(seen: Record, layer: str) -> list[Tensor]:
    return [p.data for p in seen.parameters if p.layer == layer and p.data.dim() > 1]


def _without_gradient(seen: Record) -> list[Parameter]:
    """The matrices whose gradient is 0 but for rounding: exactly 0, or below a gap of 4 eps among the norms of all.

    What is 0 on one processor is some eps on another, as the slope of tanh where it is 1 or 1 - eps. No healthy layer
    takes that much off at once; a gradient that vanishes does so by a factor in every layer.
    """
    norms = {p.name: p.grad.norm().item() for p in seen.parameters if p.data.dim() > 1 and p.grad is not None}
    gap = 4 * torch.finfo(torch.float32).eps
    floor = next((low for high, low in pairwise(sorted(norms.values(), reverse=True)) if low <= gap * high), 0.0)
    return [p for p in seen.parameters if norms.get(p.name, math.inf) <= floor]


def _hidden(seen: Record) -> list[Row]:
    """The rows of all layers with weights but the output layer, whose scale may be small on purpose."""
    return [row for row in seen.weighted[:-1] if row.gradient and 0 < row.rms * row.gradient < math.inf]


def _last(seen: Record) -> str:
    return seen.weighted[-1].name if seen.weighted else MODEL


def _after(row: Row) -> str:
    return f", in {row.kind} after it" if row.kind.endswith("()") else ""


def _slope(values: list[float]) -> float | None:
    """log10 of the factor from one value to the next, by least squares; None for fewer than four values."""
    logs = [math.log10(x) for x in values]
    return statistics.linear_regression(range(len(logs)), logs).slope if len(logs) >= 4 else None


def _is_steep(values: list[float]) -> bool:
    """Whether the trend is beyond two decades, and beyond one without its largest step: not one loud layer."""
    decades = (_slope(values) or 0.0) * (len(values) - 1)
    sign = math.copysign(1, decades)
    largest = max((sign * math.log10(b / a) for a, b in pairwise(values)), default=0.0)
    return abs(decades) > _DECADES and abs(decades) - largest > _DECADES / 2


def _grad_data(seen: Record, row: Row) -> float | None:
    if row.module is None:
        return None
    own = [p for p in seen.parameters if p.layer == row.name and p.data.dim() > 1 and p.data.numel() > 1]
    spreads = [(p.grad.double().std().item(), p.data.detach().double().std().item()) for p in own if p.grad is not None]
    ratios = [of_grad / of_data for of_grad, of_data in spreads if of_data > 0]
    return max(ratios, default=None)


def _update_data(seen: Record, row: Row) -> float | None:
    ratio = _grad_data(seen, row)
    return math.log10(seen.lr * ratio) if ratio and seen.lr else None


def _guess(terms: list[Term]) -> str:
    kinds = {t.function for t in terms}
    if len(terms) == 1 and kinds <= LABELS:
        return f"a uniform guess over {classes(terms[0].prediction)} classes"
    return "a uniform guess" if kinds <= LABELS | BINARY else "the best constant"


def checkup(model: nn.Module, inputs: Any, targets: Any, loss_fn: Callable, *, lr: float | None = None) -> Report:
    """What one batch says about the health of a model, in its present mode.

    `inputs` is a tensor, a tuple of positional or a dictionary of keyword arguments for the model;
    loss_fn(outputs, targets) gives one number. With `lr`, the learning rate of plain gradient descent, the update
    that a step would make is measured against the weights. Model, gradients, buffers, modes, hooks, inputs and random
    state are left as found, also when the forward pass or the loss raises.

    Raises TypeError for a model that is no module, or a loss that is no tensor; ValueError for a model without
    parameters, a loss of more than one number, or a learning rate that is not positive.
    """
    seen = record(model, inputs, targets, loss_fn, lr)
    repeated = [row.name for row in seen.rows if row.after]
    layers = tuple(
        Layer(
            row.name,
            f"{row.kind} after {row.after}" if row.after and repeated.count(row.name) > 1 else row.kind,
            row.shape,
            row.rms,
            row.flat,
            None if row.dead is None else row.dead.double().mean().item(),
            row.gradient,
            _grad_data(seen, row),
            _update_data(seen, row),
        )
        for row in seen.rows
    )
    slope = _slope([row.gradient for row in _hidden(seen)])
    return Report(
        type(model).__name__,
        "training" if model.training else "evaluation",
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        seen.loss,
        sum(t.uniform for t in seen.terms) if seen.terms else None,
        _guess(seen.terms),
        None if slope is None else 10**-slope,
        layers,
        tuple(_findings(seen)),
    )
