"""Loss functions that are known by name: what an uninformed guess costs in them, and what the best answer does."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = frozenset({"cross_entropy", "nll_loss"})
BINARY = frozenset({"binary_cross_entropy_with_logits", "binary_cross_entropy"})
REGRESSION = frozenset({"mse_loss", "smooth_l1_loss", "huber_loss", "l1_loss"})
SIGNS = frozenset({"soft_margin_loss", "hinge_embedding_loss"})


def classes(prediction: Tensor) -> int:
    """The number of classes that logits (classes,) or (batch, classes, ...) speak of."""
    return torch.atleast_2d(prediction).shape[1]


def _constant(statistic: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def predicted(prediction: Tensor, target: Tensor, _: dict[str, Any]) -> Tensor:
        target = target.to(prediction.dtype)
        one = target.dim() == 0 or len(target) == 1  # whose own value would be no guess
        best = statistic((target.flatten() if one else target).float()).to(prediction.dtype)
        return best.expand_as(target)

    return predicted


def _median(t: Tensor) -> Tensor:
    ordered = t.sort(0).values
    return (ordered[(len(t) - 1) // 2] + ordered[len(t) // 2]) / 2


def _log_target(prediction: Tensor, target: Tensor, call: dict[str, Any]) -> Tensor:
    """The log-probabilities that cost least."""
    k = classes(prediction)
    if not target.is_floating_point():
        axis = 1 if prediction.dim() > 1 else 0
        target = F.one_hot(target.clamp(0, k - 1), k).movedim(-1, axis).to(prediction.dtype)
        target = target * (1 - call.get("label_smoothing", 0.0)) + call.get("label_smoothing", 0.0) / k
    return target.to(prediction.dtype).clamp_min(1e-30).log()


def _logit(prediction: Tensor, target: Tensor, _: dict[str, Any]) -> Tensor:
    return target.to(prediction.dtype).clamp(1e-30, 1 - torch.finfo(prediction.dtype).eps).logit()


def _same(prediction: Tensor, target: Tensor, _: dict[str, Any]) -> Tensor:
    return target.to(prediction.dtype)


def _zeros(prediction: Tensor, target: Tensor, _: dict[str, Any]) -> Tensor:
    return torch.zeros_like(prediction)


def _log_uniform(prediction: Tensor, target: Tensor, _: dict[str, Any]) -> Tensor:
    return torch.full_like(prediction, -math.log(classes(prediction)))


# What to predict when nothing is known of the inputs (all classes alike; for numbers, the best constant), and when the
# targets are.
_GUESSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cross_entropy": (_zeros, _log_target),
    "nll_loss": (_log_uniform, _log_target),
    "kl_div": (_log_uniform, lambda z, t, call: t if call["log_target"] else t.clamp_min(1e-30).log()),
    "binary_cross_entropy_with_logits": (_zeros, _logit),
    "binary_cross_entropy": (lambda z, t, _: torch.full_like(z, 0.5), _same),
    "mse_loss": (_constant(lambda t: t.mean(0)), _same),
    "smooth_l1_loss": (_constant(lambda t: t.mean(0)), _same),
    "huber_loss": (_constant(lambda t: t.mean(0)), _same),
    "l1_loss": (_constant(_median), _same),
    "soft_margin_loss": (_zeros, lambda z, t, _: 1e3 * t),
    "hinge_embedding_loss": (_zeros, lambda z, t, _: -1e3 * t),
}
LOSSES = frozenset(_GUESSES)


class Term(NamedTuple):
    """One call of a loss function: its value, that for a prediction that knows nothing of the inputs, and the least.

    `outside` describes the first target that is out of range, `passed` is the name of the activation function that the
    prediction came out of, if any, `layer` that of the layer that put it out, if it is a layer's own output; `ignored`
    says that every target is one that the loss leaves out, `own` that the prediction is an output as it is.
    """

    function: str
    prediction: Tensor
    target: Tensor
    value: float
    uniform: float
    best: float
    outside: str
    ignored: bool = False
    passed: str = ""
    layer: str = ""
    own: bool = True


def term(
    name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Term | None]:
    """The value of a call of a loss function, and what there is to say of it.

    Labels out of range are brought into it, so that the rest can be looked at.
    """
    call = inspect.signature(func).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    prediction, target = given["input"], given["target"]
    if not isinstance(target, Tensor) or not prediction.numel() or not target.numel():
        return func(*args, **kwargs), None
    outside = _outside(name, prediction, target, given.get("ignore_index"))
    if outside and name in LABELS and not target.is_floating_point():
        given["target"] = target.clamp(0, classes(prediction) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that broadcast: a finding says it
        value = func(*call.args, **call.kwargs)
    levels = []  # of the guess that knows nothing, and the least
    for guess in _GUESSES[name]:
        given["input"] = guess(prediction.detach(), given["target"].detach(), given)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            levels.append(func(*call.args, **call.kwargs).mean().item())
    ignored = name in LABELS and not target.is_floating_point() and bool((target == given["ignore_index"]).all())
    mean = value.detach().mean().item()
    return value, Term(name, prediction.detach(), target.detach(), mean, levels[0], levels[1], outside, ignored)


def _outside(name: str, prediction: Tensor, target: Tensor, ignored: int | None) -> str:
    if name in LABELS and not target.is_floating_point():
        bad, allowed = (target < 0) | (target >= classes(prediction)), f"0 to {classes(prediction) - 1}"
        bad &= target != ignored
    elif name in BINARY:
        bad, allowed = (target < 0) | (target > 1), "0 to 1"
    elif name in SIGNS:
        bad, allowed = target.abs() != 1, "-1 and 1"
    elif name == "cross_entropy" and prediction.dim() > 1:
        total = target.sum(1)
        off = ((total - 1).abs() > 1e-2) | (target.amin(1) < 0)
        return (
            f"{int(off.sum())} of {off.numel()} rows of targets are no probabilities that sum to 1" if off.any() else ""
        )
    else:
        return ""
    if not bad.any():
        return ""
    where = bad.nonzero()[0].tolist()
    value = target[tuple(where)].item()
    return f"{int(bad.sum())} of {target.numel()} targets are outside {allowed}, the first {value:g} at {where}"


def by_hand(outputs: Any, targets: Any, loss: float) -> tuple[Term | None, int]:
    """The known loss function whose value is that of one that was written out, and the sign with which it is."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return None, 1
    outputs, targets = outputs.detach().float(), targets.detach()
    if targets.is_floating_point():
        n, names = targets.numel(), ["mse_loss", "l1_loss"]
        if outputs.shape != targets.shape:
            return None, 1
        if n and targets.min() >= 0 and targets.max() <= 1:
            names.append("binary_cross_entropy_with_logits")
    elif not targets.dim() or outputs.shape[:-1] != targets.shape or targets.dtype == torch.bool or not targets.numel():
        return None, 1
    else:
        outputs, targets, names = outputs.flatten(0, -2), targets.flatten().long(), ["cross_entropy"]
    for name in names:
        _, found = term(name, getattr(F, name), (outputs, targets), {})
        for sign in (1, -1):
            if math.isclose(sign * found.value, loss, rel_tol=1e-3) and not found.outside:
                return found, sign
    return None, 1
