"""A second look: whether a copy of the model can learn one batch by heart."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlib.checkup.found import as_found, called, copied, fresh
from mmlib.checkup.record import record
from mmlib.checkup.taken import check_optimizer


@dataclass(frozen=True)
class Overfit:
    """How the loss of one batch fell, step by step.

    `floor` is the least loss that these targets allow, None for a loss function that is not known; `reached`, whether
    the loss came within 5 % of the way down of it (without a floor: whether it fell by 95 %, or below 0); `stopped` is
    the step from which on it fell no further; `moved` is, for each layer, the length of its last tenth of steps over
    that of its first; `still` names the layers that stopped, or never moved.
    """

    losses: tuple[float, ...]
    floor: float | None
    reached: bool
    stopped: int | None
    moved: dict[str, float]
    still: tuple[str, ...]

    def __str__(self) -> str:
        first, last = self.losses[0], self.losses[-1]
        floor = "" if self.floor is None else f", where the least possible is {self.floor:.4g}"
        lines = [f"Loss {first:.4g} to {last:.4g} in {len(self.losses) - 1} steps{floor}"]
        lines.append("The batch is learned by heart." if self.reached else "The batch is not learned by heart.")
        if self.stopped is not None and not self.reached:
            lines.append(f"From step {self.stopped} on the loss falls no further.")
        if self.still and not self.reached:
            lines.append(f"These layers stopped moving: {', '.join(self.still)}")
        return "\n".join(lines)


def overfit(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss_fn: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    steps: int = 200,
) -> Overfit:
    """Trains a copy on the one batch, in the model's present mode, and says whether the loss falls to its floor.

    A model that cannot learn a few examples by heart has a fault that more data will not mend. Model, optimiser, inputs
    and random states are left as found. Raises what `checkup` raises, and ValueError for fewer than ten steps.

    >>> from mmlib.rng import generator, normal
    >>> with torch.random.fork_rng():
    ...     model = nn.Linear(4, 1)
    >>> x, optimizer = normal(3, 4, generator=generator(0, 'x')), torch.optim.SGD(model.parameters(), lr=0.1)
    >>> print(str(overfit(model, x, torch.ones(3, 1), nn.MSELoss(), optimizer)).splitlines()[-1])
    The batch is learned by heart.
    """
    if not isinstance(steps, (int, np.integer)) or steps < 10:
        raise ValueError(f"steps: an integer of at least 10 is needed, got {steps!r}")
    check_optimizer(optimizer, model)
    terms = record(model, inputs, targets, loss_fn).terms
    with torch.inference_mode(False), as_found(model, loss_fn), torch.enable_grad():
        given, expected = fresh(inputs), fresh(targets)
        student, optimizer = copied(model, optimizer)
        parameters = {name: p for name, p in student.named_parameters() if p.requires_grad}
        losses: list[float] = []
        paths: dict[str, list[float]] = {name: [] for name in parameters}
        for _ in range(steps):
            optimizer.zero_grad()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = loss_fn(called(student, fresh(given)), fresh(expected))
                if loss.requires_grad:
                    loss.backward()
                losses.append(loss.item())
                return loss

            before = {name: p.detach().clone() for name, p in parameters.items()}
            seen = len(losses)
            optimizer.step(closure)  # type: ignore[arg-type]  # torch's own closures return tensors
            del losses[seen + 1 :]  # a method that looks for its step calls it more than once
            for name, p in parameters.items():
                paths[name].append((p.detach() - before[name]).norm().item())
            if not math.isfinite(losses[-1]):
                break
        with torch.no_grad():
            losses.append(loss_fn(called(student, fresh(given)), fresh(expected)).item())
    return _judged(losses, sum(t.best for t in terms) if terms else None, paths)


def _judged(losses: list[float], floor: float | None, paths: dict[str, list[float]]) -> Overfit:
    tenth = max(1, len(losses) // 10)
    first, last = losses[0], statistics.fmean(losses[-tenth:])
    if floor is not None and last < floor - 1e-6 * max(1.0, abs(floor)):
        floor = None  # there are other terms in it
    goal = first - 0.95 * (first - (floor or 0.0))
    smooth = [min(losses[max(0, k - tenth) : k + 1]) for k in range(len(losses))]
    near = smooth[-1] + 0.02 * abs(first - smooth[-1])
    stopped = next((k for k, x in enumerate(smooth) if x <= near), None) if math.isfinite(last) else None
    layers: dict[str, list[str]] = {}
    for name in paths:
        layers.setdefault(name.rpartition(".")[0] or "(model)", []).append(name)
    moved = {}
    for layer, names in layers.items():
        start, end = (sum(sum(paths[n][s]) for n in names) for s in (slice(tenth), slice(-tenth, None)))
        moved[layer] = end / start if start else 0.0
    still = tuple(layer for layer, share in moved.items() if share < 1e-3)
    return Overfit(tuple(losses), floor, last <= goal, stopped if stopped != len(losses) - 1 else None, moved, still)
