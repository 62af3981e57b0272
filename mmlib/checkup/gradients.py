"""Gradients, which of them are 0, and whether they stay so."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmlib.checkup.found import AsFound
from mmlib.checkup.traced import checkpointed

_GAP = 4 * torch.finfo(torch.float32).eps

Gradients = dict[nn.Parameter, Tensor | None]


def gradients(loss: Tensor, wanted: list[nn.Parameter]) -> Gradients:
    """Those of the loss, None for parameters that it does not reach."""
    if not wanted or not loss.requires_grad:
        return dict.fromkeys(wanted)
    again = checkpointed(loss)
    found: Sequence[Tensor | None]
    found = torch.autograd.grad(loss.sum(), wanted, allow_unused=True, retain_graph=again)
    if again and None in found:  # what is checkpointed with use_reentrant is reached by backward alone
        for p in wanted:
            p.grad = None
        loss.sum().backward()
        found = [p.grad for p in wanted]
    return {p: g.to_dense() if g is not None and g.is_sparse else g for p, g in zip(wanted, found, strict=True)}


def norms_of(grads: Gradients) -> tuple[dict[nn.Parameter, float], set[nn.Parameter]]:
    """The norm of each gradient, and which are 0."""
    norms = {
        p: torch.linalg.vector_norm(g.abs() if g.is_complex() else g).item() for p, g in grads.items() if g is not None
    }
    order = sorted((x for x in norms.values() if math.isfinite(x)), reverse=True)
    floor = next((low for high, low in pairwise(order) if low <= _GAP * high), 0.0)
    return norms, {p for p, x in norms.items() if x <= floor}


def stuck_of(
    run: Callable[[], Tensor], grads: Gradients, zero: set[nn.Parameter], kept: AsFound
) -> set[nn.Parameter]:
    """Those whose gradient is 0 still after three small steps of all that have one."""
    for _ in range(3):
        kept.changes = _stepped(grads, kept.changes)
        kept.rewind()
        grads = gradients(run(), list(grads))
        zero = zero & norms_of(grads)[1]
        if not zero:
            break
    kept.changes = {}
    kept.rewind()
    return zero


def begun(zeros: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Small numbers for weights that are 0 on purpose and will not stay so, to see what the model is like then."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {p: 0.05 * torch.randn_like(p) for p in zeros}


def _stepped(grads: Gradients, before: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """The changes after one more small step, of the same relative size for all that have a gradient."""
    norms, zero = norms_of(grads)
    steps = dict(before)
    for p, g in grads.items():
        if norms.get(p) and p not in zero and math.isfinite(norms[p]):
            size = max(0.02 * p.detach().abs().mean().item(), 0.01)
            steps[p] = steps.get(p, 0) - size * math.sqrt(p.numel()) / norms[p] * g
    return steps
