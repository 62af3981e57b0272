"""Rules that speak of the signal on its way forward."""

import math
import statistics
from functools import cache
from itertools import pairwise

from mmlib import meanfield
from mmlib.activations import TANH
from mmlib.checkup.record import Record
from mmlib.checkup.row import BOUNDED, RECTIFIERS, Row, is_norm, is_zero, numbers
from mmlib.checkup.rules import Found, rule

_SCALE, _SATURATION = "6 Choosing the scale", "4 Saturation"
_LARGE_INPUT, _SMALL_INPUT = 10, 0.05


@rule(
    "input scale",
    _SCALE,
    silences="first loss, activation scale, gradient slope, saturation, dead units, same for all examples, step size, "
    "constant predictions, zero gradient",
)
def _input_scale(seen: Record) -> Found:
    normed = {row.name for row in seen.rows if row.norm}
    for name in dict.fromkeys(name for name, layer in seen.watch.reads if layer not in normed):
        x = numbers(seen.inputs[name])
        rms, largest = math.sqrt(x.square().mean().item()), x.abs().max().item()
        if rms > _LARGE_INPUT or 0 < largest < _SMALL_INPUT:
            size = "too large" if rms > _LARGE_INPUT else "too small"
            measured = f"{size}: rms {rms:.3g}, mean {x.mean().item():.3g}, largest magnitude {largest:.3g}"
            why = (
                "every init scheme assumes inputs of variance 1; the first pre-activations, and the gradient of the "
                f"first weights, take over the scale: at rms 10, {_saturated(10):.0%} of tanh units sit beyond 0.99"
            )
            action = "subtract the mean and divide by the standard deviation of each feature, over the training data"
            yield "warning", [name], measured, f"rms about 1, in any case below {_LARGE_INPUT}", why, action


@rule(
    "dead units",
    _SATURATION,
    silences="zero gradient, same for all examples, gradient slope, activation scale, constant predictions",
)
def _dead_units(seen: Record) -> Found:
    found = []
    for row in seen.rows:
        if row.activation in RECTIFIERS and row.shape and row.shape[0] > 1:
            off, on, units = row.dead.sum().item(), row.on.sum().item(), len(row.dead)
            if off - on > max(0.1 * units, 4 * math.sqrt(off + on)) or (off == units and _blocked(seen)):
                found.append((row, off, on, units))
    if found:
        row, off, on, units = found[0]
        measured = f"{off} of {units} {row.activation} units are flat for every example, {on} on{after(row)}"
        healthy = "as many off as on, but for a tenth of the units or, if more, 4 standard errors, 4 sqrt(off + on)"
        why = (
            "weights drawn symmetrically around 0 leave a unit off for every example as often as on; one that is off "
            "passes no gradient to its weights"
        )
        action = "start the biases at 0 and shrink the weights before it; if training did this, lower the learning rate"
        yield "error" if off == units else "warning", [r.name for r, *_ in found], measured, healthy, why, action


def _blocked(seen: Record) -> bool:
    """Whether the predictions no longer depend on the inputs: of few units, chance may turn all off beside others."""
    return bool(seen.weighted) and (seen.weighted[-1].spread or 0) < SPREAD


@rule("saturation", _SATURATION, silences="gradient slope, same for all examples, zero gradient, constant predictions")
def _saturation(seen: Record) -> Found:
    usual = _saturated(5 / 3)
    limit = 2 * usual
    found = [row for row in seen.rows if row.activation in BOUNDED and row.flat > limit and not _answers(seen, row)]
    if found:
        worst = max(found, key=lambda row: row.flat)
        measured = f"{found[0].flat:.0%} of its elements are flat{after(found[0])}" + (
            f", up to {worst.flat:.0%} in {worst.name}" if worst is not found[0] else ""
        )
        healthy = f"below {limit:.0%}"
        why = (
            f"twice the {usual:.0%} that the widest usual gain, 5/3, gives on inputs of variance 1; "
            "where the slope is below 2 %, the weights before it get next to no gradient"
        )
        action = "draw the weights before it with gain/sqrt(fan_in), and normalise what comes in"
        yield "warning", [row.name for row in found], measured, healthy, why, action
    peaked = {name: share for name, share in seen.watch.peaked.items() if share > 0.5}
    if peaked and not seen.trained:
        measured = f"{max(peaked.values()):.0%} of the rows of the softmax after it have one entry above 0.99"
        why = "where a softmax has made its choice its slope is next to 0; scores q k of d numbers have std sqrt(d)"
        action = "divide the scores by sqrt(d), and draw the weights before them with gain/sqrt(fan_in)"
        yield "warning", list(peaked), measured, "below half", why, action


def _answers(seen: Record, row: Row) -> bool:
    """Whether it is the output of a network that is trained, whose answers are sure because they are right."""
    last = seen.weighted[-1].name if seen.weighted else ""
    return seen.trained and last in (row.name, row.after)


@cache
def _saturated(std: float) -> float:
    return meanfield.expected_saturation(std**2, TANH, 0.99)


DECADES = 2
_FAINT = 0.03
HEALTHY_DECADES = f"less than a factor {10**DECADES} over the depth"
WHY_DECADES = (
    "one learning rate must fit all layers: where one end moves by 1/1000 a step, the other would by 1/10 or 1e-5"
)


@rule(
    "activation scale",
    _SCALE,
    silences="gradient slope, first loss, same for all examples, step size, constant predictions, zero gradient",
)
def _activation_scale(seen: Record) -> Found:
    rows = hidden(seen)
    scale = [row.rms for row in rows]
    if is_steep(scale):
        factor = 10 ** slope(scale)
        size = "grows" if factor > 1 else "shrinks"
        measured = f"rms {scale[0]:.2g} here {size} to {scale[-1]:.2g} in {rows[-1].name}: x {factor:.2f} a layer"
        why = f"{WHY_DECADES}; each layer multiplies the scale by gain * sqrt(E phi^2), which kaiming sets to 1"
        action = "draw the weights with kaiming(activation), or put a norm after each layer"
        yield "warning", [rows[0].name, rows[-1].name], measured, HEALTHY_DECADES, why, action
        return
    plain = [row for row in rows if row.square_in > 0 and not row.norm and not is_norm(row.module)]
    if len(plain) > 1 and max(row.gain for row in plain) < _FAINT:
        worst = max(plain, key=lambda row: row.gain)
        measured = f"each layer's output is {worst.gain:.1g} of its input or less: too small"
        why = "what reaches the end is too faint to learn from, and the gradient loses as much on its way back"
        action = "draw the weights with kaiming(activation), not with a fixed small std"
        yield "warning", [row.name for row in plain], measured, f"above {_FAINT}", why, action


SPREAD = 1e-3


@rule("same for all examples", "5 Vanishing and exploding", silences="zero gradient, constant predictions")
def _collapsed(seen: Record) -> Found:
    rows = [row for row in seen.rows if row.spread is not None and "Embedding" not in row.kind]
    last = seen.weighted[-1] if seen.weighted else None
    first = next((row for row in rows if row.spread < SPREAD), None)
    begins = seen.probe is not None and not seen.probe.constant and _starts_at_zero(seen)
    if first and last and first is not last and (last.spread or 0) < SPREAD and not begins:
        measured = f"its output varies over the examples by {first.spread:.1g} of its size{after(first)}"
        why = "what no longer depends on the input cannot be told apart by any later layer; 1/1000 is near rounding"
        action = "look for a norm over one feature, a huge bias, or a mean or softmax over the wrong axis"
        yield "error", [first.name], measured, f"above {SPREAD}", why, action


def _starts_at_zero(seen: Record) -> bool:
    """Whether some weights are 0 and will move."""
    return any(p.norm and "bias" not in p.name and is_zero(p.data) for p in seen.parameters)


def hidden(seen: Record) -> list[Row]:
    """The rows of all layers with weights but the output layer, whose scale may be small on purpose."""
    return [row for row in seen.weighted[:-1] if row.gradient and 0 < row.rms * row.gradient < math.inf]


def after(row: Row) -> str:
    """Where it is, if it is a function that is called after a layer."""
    return f", in {row.kind} after it" if row.kind.endswith("()") else ""


def slope(values: list[float]) -> float | None:
    """log10 of the factor from one value to the next, by least squares; None for fewer than four values."""
    logs = [math.log10(x) for x in values]
    return statistics.linear_regression(range(len(logs)), logs).slope if len(logs) >= 4 else None


def is_steep(values: list[float]) -> bool:
    """Whether the trend is beyond two decades, and beyond one without its largest step: not one loud layer."""
    decades = (slope(values) or 0.0) * (len(values) - 1)
    sign = math.copysign(1, decades)
    largest = max((sign * math.log10(b / a) for a, b in pairwise(values)), default=0.0)
    return abs(decades) > DECADES and abs(decades) - largest > DECADES / 2
