"""Rules that speak of the loss and its targets."""

import math
from functools import cache

import torch
from torch import Tensor

from mmlib import meanfield
from mmlib.checkup.found import tensors
from mmlib.checkup.record import Record
from mmlib.checkup.row import BOUNDED, finite
from mmlib.checkup.rules import EVERYTHING, Found, rule
from mmlib.checkup.terms import BINARY, LABELS, REGRESSION, Term, classes
from mmlib.checkup.watch import MODEL
from mmlib.gaussian import expectation

_LOSS = "2 The loss you should expect"


@rule("not finite", "5 Vanishing and exploding", silences=EVERYTHING)
def _not_finite(seen: Record) -> Found:
    grads = {p.layer: p.name for p in seen.parameters if not math.isfinite(p.norm)}
    if math.isfinite(seen.loss) and not grads:
        return
    bad = [p for p in seen.parameters if not finite(p.data)]
    inputs = [name for name, x in seen.inputs.items() if not finite(x)]
    targets = [t for t in tensors(seen.targets) if not finite(t)]
    place, line = seen.broken or ("", "")
    if bad:
        layer, measured = bad[0].layer, f"the parameter {bad[0].name} holds nan or inf"
        action = "load or initialise it again; if a step did this, take a smaller learning rate or clip the gradient"
    elif inputs:
        layer, measured, action = inputs[0], "the batch itself holds nan or inf", "clean the data"
    elif place not in ("", "loss_fn"):
        layer, measured = place, "its inputs are finite, its output holds nan or inf: here it appears"
        action = "look for log or sqrt of 0 or less, a division by 0, or exp of a large number"
    elif targets:
        layer, action = "targets", "clean the data, or leave these out of the loss"
        measured = f"{int((~targets[0].isfinite()).sum())} of {targets[0].numel()} targets are nan or inf"
    elif not math.isfinite(seen.loss):
        layer, measured = "loss_fn", f"the model's output is finite, the loss is {seen.loss}"
        action = "look for log(0) in the loss, or a mean over no element"
    else:
        order = [row.name for row in seen.rows if row.name in grads]
        layer = order[-1] if order else next(iter(grads))
        measured = f"every output is finite, the gradient of {grads[layer]} is not"
        action = "look for the slope of sqrt or norm at 0 right after it, or for both branches of torch.where"
    if line and layer == place:
        measured += f" ({line})"
    why = "one such number reaches every parameter with the next step"
    yield "error", [layer], measured, "only finite numbers", why, action


@rule("targets out of range", _LOSS, silences="first loss, unused outputs, loss below its floor")
def _targets(seen: Record) -> Found:
    for term in seen.terms:
        if term.outside and not _one_class(term):
            why = "the loss is made for these targets only; for others it measures something else, or has no lower end"
            action = "number classes from 0 and give the output one unit for each; else make the targets what it takes"
            yield "error", ["targets"], term.outside, "every target in range", why, action


def _one_class(term: Term) -> bool:
    return term.function in LABELS and classes(term.prediction) == 1


@rule("one class", _LOSS, silences="targets all the same, first loss, zero gradient, constant predictions, no gradient")
def _single(seen: Record) -> Found:
    for term in seen.terms:
        if _one_class(term):
            why = "a softmax over one number is 1 whatever it is, so that the loss and its gradient are 0"
            action = "use binary_cross_entropy_with_logits, or give the output layer one unit for each class"
            shape = tuple(term.prediction.shape)
            yield "error", [_end(seen)], f"{term.function} over predictions {shape}", "two classes or more", why, action
        elif term.function == "cross_entropy" and term.prediction.dim() == 1 and len(term.prediction) == _batch(seen):
            why = "predictions of shape (n,) are taken for n classes of one example"
            action = "use mse_loss for numbers, binary_cross_entropy_with_logits for two classes"
            yield "error", ["loss_fn"], "cross_entropy over the batch", "predictions (n, classes)", why, action
        elif term.passed in ("softmax", "log_softmax") and term.prediction.dim() > 1 and _last_axis(term) == 1:
            why = "a softmax over one unit is 1 whatever comes in"
            yield "error", [_end(seen)], f"a {term.passed} over one unit", "two units or more", why, "use a sigmoid"


def _last_axis(term: Term) -> int:
    return term.prediction.shape[-1] if term.prediction.dim() == 2 else classes(term.prediction)


def _batch(seen: Record) -> int:
    return next((len(x) for x in seen.inputs.values() if x.dim()), 0)


def _end(seen: Record) -> str:
    """The last layer with weights."""
    return seen.weighted[-1].name if seen.weighted else MODEL


@rule("shapes broadcast", _LOSS, silences="first loss, target scale, output range")
def _broadcast(seen: Record) -> Found:
    pairs = [(t.prediction, t.target) for t in seen.terms if t.function in BINARY | REGRESSION]
    shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in pairs if a.shape != b.shape]
    if seen.watch.broadcast and not shapes:
        shapes = [seen.watch.broadcast]
    if shapes:
        measured = f"predictions {shapes[0][0]} against targets {shapes[0][1]}"
        why = "broadcasting compares every prediction with every target; the best answer is then one constant"
        yield "error", ["loss_fn"], measured, "equal shapes", why, "squeeze or reshape one of the two"


@rule("logits already squashed", _LOSS, silences="output range")
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
        elif term.passed in BOUNDED | {"relu", "softmax", "softplus", "hardsigmoid"}:
            measured = f"the logits come out of {term.passed}"
            why = "a logit needs both signs and any size: squashed or cut off, it cannot say 'surely not'"
        else:
            continue
        yield "error", [_end(seen)], measured, "raw logits", why, "leave the last activation out; the loss has its own"
        return
    if seen.watch.squashed:
        measured = f"a softmax is taken of what comes out of {seen.watch.squashed[0]}"
        why = "of numbers between 0 and 1 a softmax makes no probability near 0 or 1"
        yield "error", [_end(seen)], measured, "a softmax of raw logits", why, "leave the first one out"


@rule("logits where log-probabilities belong", _LOSS, silences="first loss, loss below its floor")
def _not_log_probabilities(seen: Record) -> Found:
    for term in seen.terms:
        if term.function in ("nll_loss", "kl_div") and not _one_class(term):
            z = torch.atleast_2d(term.prediction).float()
            axis = -1 if term.function == "kl_div" else 1
            off = min(z.logsumexp(a).abs().max().item() for a in {1, axis})
            if off > 1e-2:
                measured = f"log of the summed probabilities is up to {off:.3g} away from 0"
                why = f"{term.function} multiplies numbers out of each row; without log_softmax it has no lower end"
                action = "use cross_entropy, or put log_softmax last"
                yield "error", [_end(seen)], measured, "rows of log_softmax", why, action


# What an activation function can put out at all.
_RANGES = {
    "sigmoid": (0, 1),
    "hardsigmoid": (0, 1),
    "softmax": (0, 1),
    "tanh": (-1, 1),
    "hardtanh": (-1, 1),
    "relu": (0, math.inf),
    "relu6": (0, 6),
    "softplus": (0, math.inf),
    "exp": (0, math.inf),
    "gelu": (-0.17, math.inf),
    "silu": (-0.28, math.inf),
    "elu": (-1, math.inf),
    "log_softmax": (-math.inf, 0),
    "logsigmoid": (-math.inf, 0),
}


@rule("output range", _LOSS, silences="first loss, target scale, dead units, saturation")
def _range(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in REGRESSION or term.passed not in _RANGES or not term.target.numel():
            continue
        low, high = _RANGES[term.passed]
        t = term.target.double()
        room = 0.02 * max(t.std(correction=0).item(), 1e-6)
        out = ((t < low - room) | (t > high + room)).double().mean().item()
        if out > 0.01:
            measured = (
                f"the predictions come out of {term.passed}, {low:g} to {high:g}; {out:.0%} of the targets lie outside, "
                f"which run from {t.min().item():.3g} to {t.max().item():.3g}"
            )
            why = "no weights bring a prediction where the last function does not reach"
            action = "leave the last activation out, or scale the targets into its range"
            yield "error", [_end(seen)], measured, "targets within the range of the outputs", why, action


@rule("targets all the same", _LOSS, silences="first loss, unused outputs, target scale")
def _constant_targets(seen: Record) -> Found:
    for term in seen.terms:
        t, n = term.target, term.target.numel()
        if term.function in BINARY | {"kl_div"} or n < 32 or not (t == t.flatten()[0]).all() or term.outside:
            continue
        value = t.flatten()[0].item()
        # An adversary's 1, an equation's 0, the pair at place 0 of a comparison: these are meant.
        by_design = not term.layer if term.function in LABELS else value in (1, -1) or (value == 0 and not term.layer)
        if not by_design:
            why = "a constant answers such a batch; with more than one class, chance hardly ever draws one"
            action = "shuffle the data; look at how the targets are made"
            yield "warning", ["targets"], f"all {n} targets are {value:g}", "they differ", why, action


@rule("unused outputs", _LOSS)
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
            yield "warning", [_end(seen)], measured, "about one output for each label", why, action


@rule("targets not used", _LOSS, silences="loss below its floor, first loss, zero gradient, no gradient, targets all the same")
def _targets_not_used(seen: Record) -> Found:
    if any(term.ignored for term in seen.terms):
        why = "a loss over no target is 0 or nan, and so is its gradient"
        action = "look at ignore_index, and at how the targets are made"
        yield "error", ["targets"], "every target is one that ignore_index leaves out", "some that count", why, action
    given = [t for t in tensors(seen.targets) if t.numel() > 1 and (t != t.flatten()[0]).any()]
    if given and not seen.watch.targets_read and not any(_equal(t, x) for t in given for x in seen.inputs.values()):
        why = "a loss that never looks at the targets is the same for all of them"
        action = "look for a name used twice in the loss; give None where there are no targets"
        yield "warning", ["loss_fn"], "no operation of the loss reads the targets", "they are compared", why, action


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b.to(a.dtype))


@rule("loss below its floor", _LOSS, silences="first loss")
def _below(seen: Record) -> Found:
    least, value = sum(t.best for t in seen.terms), sum(t.value for t in seen.terms)
    if not seen.terms or any(t.function == "kl_div" for t in seen.terms):
        return
    turned = seen.sign < 0 or (value > 0 and math.isclose(seen.loss, -value, rel_tol=1e-3))
    if turned:
        measured = f"the loss is {seen.loss:.4g}, {seen.terms[0].function} with the opposite sign"
        why = "what is minimised is then the likelihood of the data, or the quality of the fit"
        yield "error", ["loss_fn"], measured, f"{least:.4g} or more", why, "turn the sign of the loss"


@rule("target scale", _LOSS, silences="first loss, step size")
def _target_scale(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in REGRESSION:
            continue
        target, predicted = _size(term.target), _size(term.prediction)
        spread = term.target.double().std(correction=0).item() if term.target.numel() > 1 else target
        if target > _LARGE and predicted < target / _LARGE:
            measured = f"targets of rms {target:.3g}, predictions of rms {predicted:.3g}: too large"
            how = "thousands of steps go into the size alone, and the gradient has the size of the targets"
        elif 0 < spread < 1 / _LARGE and 0 < target < predicted / _LARGE:
            measured = f"targets of rms {target:.3g}, predictions of rms {predicted:.3g}: too small"
            how = "a prediction of 0 is nearly perfect, and all that remains to be learned is as small"
        else:
            continue
        why = f"outputs start near size 1; {how}"
        action = "standardise the targets by the mean and the standard deviation of the training data"
        yield "warning", ["targets"], measured, f"within a factor {_LARGE} of the predictions", why, action


_LARGE = 30


def _size(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


@rule("first loss", _LOSS)
def _first_loss(seen: Record) -> Found:
    terms = seen.terms
    value, uniform = sum(t.value for t in terms), sum(t.uniform for t in terms)
    limit = sum(t.uniform + _room(t) * (1 + 3 / math.sqrt(_independent(seen, t.target.numel()))) for t in terms)
    if not terms or value <= limit or uniform <= 0:  # constant targets, which say nothing of the scale
        return
    loudest = max(seen.weighted, key=lambda row: row.gain, default=None)
    layer = loudest.name if loudest and loudest.gain > 2 else _end(seen)
    spread = terms[-1].prediction.double().std(correction=0).item()
    measured = f"loss {value:.4g}, too large: {guess(terms)} gives {uniform:.4g}; predictions have std {spread:.3g}"
    kinds = {t.function for t in terms}
    if kinds <= LABELS | BINARY and spread >= 1:
        why = f"{limit:.4g} is what predictions of std 2 cost, wider than any usual scheme makes them"
    elif kinds <= LABELS | BINARY:
        why = "predictions as narrow as these cost more than a guess only if they are off by a constant: an offset"
    else:
        why = "an error of five standard deviations of the targets, most of which is offset or scale, not the fit"
    action = f"scale the output layer's weights down once (x {min(0.1, 1 / max(spread, 1)):.1g}), its bias to 0"
    if layer != _end(seen):
        action = f"its output is {loudest.gain:.0f} times its input: draw its weights smaller by as much"
    elif not kinds <= LABELS | BINARY:
        action = "standardise the targets, or start the output bias at their mean and its weights small"
    yield "warning", [layer], measured, f"below {limit:.4g}", why, action


def _independent(seen: Record, n: int) -> float:
    """How many independent examples n are worth whose outputs have the correlation 1 - spread^2."""
    spread = (seen.weighted[-1].spread if seen.weighted else None) or 0.0
    return n / (1 + (n - 1) * (1 - min(spread, 1.0) ** 2)) if n else 1.0


def _room(term: Term) -> float:
    """What predictions of std 2 cost above an uninformed guess; for numbers, an error of five of the targets' std."""
    if term.function in LABELS:
        k = classes(term.prediction)
        return term.uniform * (_expected_loss(k) / math.log(k) - 1) if k > 1 else math.inf
    if term.function in BINARY:
        return term.uniform * (expectation(lambda z: torch.nn.functional.softplus(2 * z)) / math.log(2) - 1)
    return {"mse_loss": 25.0, "kl_div": math.inf}.get(term.function, 5.0) * term.uniform


@cache
def _expected_loss(k: int) -> float:
    return meanfield.expected_first_loss(2.0, k)


def guess(terms: list[Term]) -> str:
    """What a prediction that knows nothing of the inputs is called."""
    kinds = {t.function for t in terms}
    if len(terms) == 1 and kinds <= LABELS:
        return f"a uniform guess over {classes(terms[0].prediction)} classes"
    return "a uniform guess" if kinds <= LABELS | BINARY else "the best constant"


