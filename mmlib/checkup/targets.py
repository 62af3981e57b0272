"""Rules that speak of the targets, and of what the loss makes of them."""

import math

import torch
from torch import Tensor

from mmlib.checkup.found import tensors
from mmlib.checkup.loss import end, one_class
from mmlib.checkup.record import Record
from mmlib.checkup.rules import Found, rule
from mmlib.checkup.terms import BINARY, LABELS, REGRESSION, Term, classes

_LOSS = "2 The loss you should expect"

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
    "abs": (0, math.inf),
    "square": (0, math.inf),
    "gelu": (-0.17, math.inf),
    "silu": (-0.28, math.inf),
    "elu": (-1, math.inf),
    "log_softmax": (-math.inf, 0),
    "logsigmoid": (-math.inf, 0),
}


@rule("targets out of range", _LOSS, silences="first loss, unused outputs, loss below its floor")
def _targets(seen: Record) -> Found:
    for term in seen.terms:
        if term.outside and not one_class(term):
            why = "the loss is made for these targets only; for others it measures something else, or has no lower end"
            action = "number classes from 0 and give the output one unit for each; else make the targets what it takes"
            yield "error", ["targets"], term.outside, "every target in range", why, action


@rule("one class", _LOSS, silences="targets all the same, first loss, zero gradient, constant predictions, no gradient")
def _single(seen: Record) -> Found:
    for term in seen.terms:
        if one_class(term):
            why = "a softmax over one number is 1 whatever it is, so that the loss and its gradient are 0"
            action = "use binary_cross_entropy_with_logits, or give the output layer one unit for each class"
            shape = tuple(term.prediction.shape)
            yield "error", [end(seen)], f"{term.function} over predictions {shape}", "two classes or more", why, action
        elif term.function == "cross_entropy" and term.prediction.dim() == 1 and len(term.prediction) == _batch(seen):
            why = "predictions of shape (n,) are taken for n classes of one example"
            action = "use mse_loss for numbers, binary_cross_entropy_with_logits for two classes"
            yield "error", ["loss_fn"], "cross_entropy over the batch", "predictions (n, classes)", why, action
        elif term.passed in ("softmax", "log_softmax") and term.prediction.dim() > 1 and _last_axis(term) == 1:
            why = "a softmax over one unit is 1 whatever comes in"
            yield "error", [end(seen)], f"a {term.passed} over one unit", "two units or more", why, "use a sigmoid"


def _last_axis(term: Term) -> int:
    return term.prediction.shape[-1] if term.prediction.dim() == 2 else classes(term.prediction)


def _batch(seen: Record) -> int:
    return next((len(x) for x in seen.inputs.values() if x.dim()), 0)


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


@rule("output range", _LOSS, silences="first loss, target scale, dead units, saturation")
def _range(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in REGRESSION or term.passed not in _RANGES or not term.target.numel():
            continue
        low, high = _RANGES[term.passed]
        t = term.target.cpu().double()
        room = 0.02 * max(t.std(correction=0).item(), 1e-6)
        out = ((t < low - room) | (t > high + room)).float().mean().item()
        if out > 0.01:
            measured = (
                f"the predictions come out of {term.passed}, {low:g} to {high:g}; {out:.0%} of the targets lie beyond, "
                f"which run from {t.min().item():.3g} to {t.max().item():.3g}"
            )
            why = "no weights bring a prediction where the last function does not reach"
            action = "leave the last activation out, or scale the targets into its range"
            yield "error", [end(seen)], measured, "targets within the range of the outputs", why, action


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
            yield "warning", [end(seen)], measured, "about one output for each label", why, action


@rule(
    "targets not used",
    _LOSS,
    silences="loss below its floor, first loss, zero gradient, no gradient, targets all the same",
)
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


@rule("target scale", _LOSS, silences="first loss, step size")
def _target_scale(seen: Record) -> Found:
    for term in seen.terms:
        if term.function not in REGRESSION:
            continue
        target, predicted = _size(term.target), _size(term.prediction)
        spread = term.target.cpu().double().std(correction=0).item() if term.target.numel() > 1 else target
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
    return x.cpu().double().square().mean().sqrt().item() if x.numel() else 0.0
