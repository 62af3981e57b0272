"""Rules that speak of the loss and its targets."""

import math
from functools import cache

import torch

from mmlib import meanfield
from mmlib.checkup.found import tensors
from mmlib.checkup.record import Record
from mmlib.checkup.row import BOUNDED, Row, finite, is_norm
from mmlib.checkup.rules import EVERYTHING, Found, rule
from mmlib.checkup.terms import BINARY, LABELS, Term, classes
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
        yield "error", [end(seen)], measured, "raw logits", why, "leave the last activation out; the loss has its own"
        return
    if seen.watch.squashed:
        measured = f"a softmax is taken of what comes out of {seen.watch.squashed[0]}"
        why = "of numbers between 0 and 1 a softmax makes no probability near 0 or 1"
        yield "error", [end(seen)], measured, "a softmax of raw logits", why, "leave the first one out"


@rule("logits where log-probabilities belong", _LOSS, silences="first loss, loss below its floor")
def _not_log_probabilities(seen: Record) -> Found:
    for term in seen.terms:
        if term.function in ("nll_loss", "kl_div") and not one_class(term):
            z = torch.atleast_2d(term.prediction).float()
            axis = -1 if term.function == "kl_div" else 1
            off = min(z.logsumexp(a).abs().max().item() for a in {1, axis})
            if off > 1e-2:
                measured = f"log of the summed probabilities is up to {off:.3g} away from 0"
                why = f"{term.function} multiplies numbers out of each row; without log_softmax it has no lower end"
                action = "use cross_entropy, or put log_softmax last"
                yield "error", [end(seen)], measured, "rows of log_softmax", why, action


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


@rule("first loss", _LOSS)
def _first_loss(seen: Record) -> Found:
    terms = [t for t in seen.terms if t.own]  # what a loss makes of outputs first, a margin or a scale, is its own
    value, uniform = sum(t.value for t in terms), sum(t.uniform for t in terms)
    limit = sum(t.uniform + _room(t) * (1 + 3 / math.sqrt(_independent(seen, t.target.numel()))) for t in terms)
    if not terms or uniform <= 0:  # constant targets, which say nothing of the scale
        return
    spread, kinds = terms[-1].prediction.cpu().double().std(correction=0).item(), {t.function for t in terms}
    if spread >= 4 and kinds <= LABELS | BINARY:  # beyond what chance allows as it is
        limit = sum(t.uniform + _room(t) for t in terms)
    if value <= limit:
        return
    loudest = max(_behind_norms(seen), key=lambda row: row.gain, default=None)
    layer = loudest.name if loudest and loudest.gain > 2 else end(seen)
    measured = f"loss {value:.4g}, too large: {guess(terms)} gives {uniform:.4g}; predictions have std {spread:.3g}"
    if kinds <= LABELS | BINARY and spread >= 1:
        why = f"{limit:.4g} is what predictions of std 2 cost, wider than any usual scheme makes them"
    elif kinds <= LABELS | BINARY:
        why = "predictions as narrow as these cost more than a guess only if they are off by a constant: an offset"
    else:
        why = "an error of five standard deviations of the targets, most of which is offset or scale, not the fit"
    action = f"scale the output layer's weights down once (x {min(0.1, 1 / max(spread, 1)):.1g}), its bias to 0"
    if layer != end(seen):
        action = f"its output is {loudest.gain:.0f} times its input: draw its weights smaller by as much"
    elif not kinds <= LABELS | BINARY:
        action = "standardise the targets, or start the output bias at their mean and its weights small"
    yield "warning", [layer], measured, f"below {limit:.4g}", why, action


def _behind_norms(seen: Record) -> list[Row]:
    """The layers with weights after the last norm, which takes away the scale of what comes before it."""
    norms = [i for i, row in enumerate(seen.rows) if row.module is not None and is_norm(row.module)]
    behind = {row.name for row in seen.rows[norms[-1] + 1 if norms else 0 :]}
    return [row for row in seen.weighted if row.name in behind]


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


def end(seen: Record) -> str:
    """The last layer with weights."""
    return seen.weighted[-1].name if seen.weighted else MODEL


def one_class(term: Term) -> bool:
    """Whether it is a loss of classes with one output."""
    return term.function in LABELS and classes(term.prediction) == 1
