"""Gradient descent as an iterator of steps, and the book-keeping around it."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmlib.data import Examples
from mmlib.ensemble import Ensemble, check_batch, repeated
from mmlib.history import History, Series, Step
from mmlib.layers import cross_entropy
from mmlib.show import watched
from mmlib.trace import first_not_finite, undisturbed

Rate = float | Tensor
Schedule = Callable[[int], Rate]

_EVALUATED_AT_ONCE = 2**15


def constant(lr: Rate) -> Schedule:
    """The same learning rate at every step."""
    return lambda index: lr


def drop(lr: Rate, at: int, to: Rate) -> Schedule:
    """The learning rate `lr` before step `at`, `to` from it on."""
    return lambda index: lr if index < at else to


def descend(model: nn.Sequential, batches: Iterable[Examples], *, lr: Rate | Schedule) -> Iterator[Step]:
    """Plain gradient descent on the cross-entropy: for each batch, p <- p - lr * d loss / d p, and the step taken.

    `lr` is a number, or a function of the step's index. For R stacked models it may be a tensor of R rates. The model
    is used in the mode it is in; parameters that do not require a gradient stay as they are.

    Raises ValueError if a batch or a tensor of rates does not fit the model; FloatingPointError, with the step and the
    first layer concerned, when the loss is nan or infinite: the step that would follow is not taken, though buffers
    such as running means have seen that batch.
    """
    schedule = lr if callable(lr) else constant(lr)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves, values = list(parameters.values()), [p.detach() for p in parameters.values()]
    for index, batch in enumerate(batches):
        check_batch(model, batch)
        loss = cross_entropy(model(batch.contexts), batch.targets)
        total = loss.sum() if loss.dim() else loss
        if not math.isfinite(total.item()):
            raise FloatingPointError(_not_finite(model, batch, index, loss))
        grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        rate = schedule(index)
        _check_rate(rate, model)
        if isinstance(rate, Tensor):
            torch._foreach_sub_(values, [grad * _per_replica(rate, grad) for grad in grads])
        else:
            torch._foreach_sub_(values, grads, alpha=rate)
        yield Step(index, rate, loss.detach(), parameters, dict(zip(parameters, grads, strict=True)))


def _check_rate(rate: Rate, model: nn.Module) -> None:
    if not isinstance(rate, Tensor) or not rate.dim():
        return
    if not isinstance(model, Ensemble):
        raise ValueError(f"lr: a single model needs one rate, got a tensor of shape {tuple(rate.shape)}")
    if rate.shape != (model.replicas,):
        n = model.replicas
        raise ValueError(f"lr: {n} stacked models need one rate or a tensor ({n},), got shape {tuple(rate.shape)}")


def _per_replica(rate: Rate, p: Tensor) -> Rate:
    return rate.view(-1, *[1] * (p.dim() - 1)) if isinstance(rate, Tensor) and rate.dim() else rate


def _not_finite(model: nn.Sequential, batch: Examples, index: int, loss: Tensor) -> str:
    layer = first_not_finite(model, batch)
    where = "the logits are finite" if layer is None else f"the first layer with such an output is {layer!r}"
    bad = "" if not loss.dim() else f" in replicas {(~loss.isfinite()).nonzero().flatten().tolist()}"
    value = loss[~loss.isfinite()].flatten()[0].item() if loss.dim() else loss.item()
    return f"step {index}: the loss is {value}{bad}; {where}. A smaller learning rate or first weights may help."


def train(
    model: nn.Sequential,
    batches: Iterable[Examples],
    *,
    lr: Rate | Schedule,
    probe: Callable[[Step], dict[str, Tensor | float]] | None = None,
    every: int = 1,
    progress: bool = False,
) -> History:
    """Descends through all batches and returns what happened.

    `probe` is asked after every `every`-th step, the first included, and gives numbers by name. `progress` shows a bar
    to a person who watches, and writes nothing otherwise.

    Raises what `descend` raises, and ValueError if steps were announced but no batch was there, as with an iterator
    that is used up, or if `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every: at least 1 is needed, got {every}")
    total = len(batches) if hasattr(batches, "__len__") else None
    losses, rates, probed = [], [], {}
    steps = descend(model, batches, lr=lr)
    for step in tqdm(steps, total=total, unit="step", leave=False, disable=not (progress and watched())):
        losses.append(step.loss)
        rates.append(step.lr)
        if probe is not None and step.index % every == 0:
            for name, value in probe(step).items():
                at, values = probed.setdefault(name, ([], []))
                at.append(step.index)
                values.append(torch.as_tensor(value).detach().clone())
    if not losses and total != 0:
        raise ValueError("batches: no minibatch was drawn; an iterator that was used before has none left")
    index = torch.arange(len(losses))
    return History(
        Series(index, torch.stack(losses) if losses else torch.empty(0)),
        Series(index, _series(rates)),
        {name: Series(torch.tensor(at), torch.stack(values)) for name, (at, values) in probed.items()},
    )


def _series(rates: list[Rate]) -> Tensor:
    if any(isinstance(rate, Tensor) for rate in rates):
        return torch.stack(list(map(torch.as_tensor, rates)))
    return torch.tensor(rates)


@torch.no_grad()
def evaluate(model: nn.Module, data: Examples) -> float | Tensor:
    """The mean cross-entropy on all examples, in nats, in evaluation mode; for R stacked models a tensor (R,).

    `data` has no leading axis: every replica sees the same examples. The model is left as found.
    Raises ValueError if there are no examples.
    """
    n = len(data.targets)
    if data.targets.dim() != 1 or not n:
        raise ValueError(f"data: targets of shape (n,) with n > 0 are needed, got {tuple(data.targets.shape)}")
    rows = max(1, _EVALUATED_AT_ONCE // (model.replicas if isinstance(model, Ensemble) else 1))
    total = torch.zeros((), dtype=torch.float64)
    with undisturbed(model):
        model.eval()
        for start in range(0, n, rows):
            part = repeated(Examples(*(x[start : start + rows] for x in data)), model)
            total = total + cross_entropy(model(part.contexts), part.targets).double() * part.targets.shape[-1]
    return total / n if total.dim() else float(total) / n
