"""The diagnosis, for any module: what one forward and one backward pass give away, against what is healthy.

Rules are one function each, in files by what they speak of: `loss`, `targets`, `structure`, `modes`, `signal`,
`gradient`, `step`. A rule is silent unless a number is beyond twice what the widest of the usual recipes gives, or
beyond what chance allows.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmlib.checkup import gradient, loss, modes, signal, step, structure, targets
from mmlib.checkup.compare import Comparison, compare
from mmlib.checkup.overfit import Overfit, overfit
from mmlib.checkup.record import Record, record
from mmlib.checkup.report import Finding, Layer, Report
from mmlib.checkup.rules import RULES, check_ignored, findings, ordered

__all__ = ["RULES", "Comparison", "Finding", "Layer", "Overfit", "Report", "checkup", "compare", "overfit"]

ordered()  # names that are mistyped are an error here
_FILES = (loss, targets, structure, modes, signal, gradient, step)  # which add their rules as they are imported


def checkup(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss_fn: Callable[..., Any],
    *,
    lr: float | Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    ignore: str | Iterable[str] = (),
) -> Report:
    """What one batch says about the health of a model, in its present mode.

    `inputs` is a tensor, a tuple of positional or a dictionary of keyword arguments for the model;
    loss_fn(outputs, targets) gives one number. With `optimizer`, its next step is taken on a copy and measured against
    the weights, and parameters are named that it does not hold; `lr` does as much for plain gradient descent. `ignore`
    names rules to leave out, for what is on purpose. Some examples go through the model in evaluation mode as well.

    Model, gradients, buffers, modes, hooks, optimiser, inputs and random states are left as found, also when the
    forward pass or the loss raises.

    Raises TypeError for a model that is no module or is scripted, an optimiser that is none, or a loss that is no
    tensor; ValueError for a model without parameters, an optimiser that holds none of them, a loss of more than one
    number, a learning rate that is not positive, or a rule to ignore that there is not.

    >>> from torch.nn.functional import cross_entropy
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator, normal
    >>> naive = MLP(width=100, depth=1, init=normal, confidence=1.0).build(generator(0, 'weights'))
    >>> symbols = torch.arange(128) % 27
    >>> [finding.rule for finding in checkup(naive, symbols[:96].view(32, 3), symbols[96:], cross_entropy)]
    ['saturation', 'first loss']
    """
    ignored = check_ignored(ignore)
    seen = record(model, inputs, targets, loss_fn, lr, optimizer)
    repeated = [row.name for row in seen.rows if row.after]
    layers = tuple(
        Layer(
            row.name,
            f"{row.kind} after {row.after}" if row.after and repeated.count(row.name) > 1 else row.kind,
            row.shape,
            row.rms,
            row.flat,
            None if row.dead is None else row.dead.float().mean().item(),
            row.gradient,
            step.grad_data(seen, row),
            step.update_data(seen, row),
        )
        for row in seen.rows
    )
    growth = signal.slope([row.gradient for row in signal.hidden(seen)])
    return Report(
        type(getattr(model, "_orig_mod", model)).__name__,
        "training" if model.training else "evaluation",
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        seen.loss,
        _uniform(seen),
        loss.guess(seen.terms),
        None if growth is None else 10**-growth,
        layers,
        tuple(findings(seen, ignored)),
        _unseen(seen),
    )


def _uniform(seen: Record) -> float | None:
    """That of the known terms, if the loss is little else."""
    value = sum(t.value for t in seen.terms)
    known = bool(seen.terms) and not (math.isfinite(seen.loss) and abs(seen.loss - value) > 0.5 * abs(seen.loss))
    return sum(t.uniform for t in seen.terms) if known else None


def _unseen(seen: Record) -> tuple[str, ...]:
    names = sorted(seen.watch.unseen)
    inside = (f"{', '.join(names)}, called within a transform of torch.func",) if names else ()
    return inside + ((seen.taken.refused,) if seen.taken and seen.taken.refused else ())
