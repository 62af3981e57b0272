"""The optimiser's next step, taken on a copy and measured."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmlib.checkup.found import copied
from mmlib.checkup.row import mean_square, numbers


class Taken(NamedTuple):
    """What one step did: the rms of each parameter's change, the loss after it on the same batch, the product of change
    and gradient (below 0 is downhill), and by how much weight decay outweighs the rest of the step."""

    optimizer: str
    lr: float
    scheduled: bool
    missing: list[str]
    changes: dict[str, float]
    loss: float
    slope: float
    decay: float
    fresh: bool
    refused: str
    settings: dict[str, float]


def check_optimizer(optimizer: object, model: nn.Module) -> None:
    """Raises TypeError unless it is an optimiser, ValueError if it holds none of the model's parameters."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: a torch.optim.Optimizer is needed, got {type(optimizer).__name__}")
    own = {id(p) for p in model.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in own for p in held):
        raise ValueError(
            f"optimizer: none of its {len(held)} parameters is one of the model's; build it from model.parameters(), "
            "after the last change of the model"
        )


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, grads: dict[str, Tensor], decay: bool = True
) -> tuple[nn.Module, dict[str, Tensor]]:
    model, optimizer = copied(model, optimizer)
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    for name, p in parameters.items():
        p.grad = grads[name].clone() if name in grads else None
    for group in optimizer.param_groups:
        if group["lr"] < group.get("initial_lr", 0.0):
            group["lr"] = group["initial_lr"]
        if not decay:
            group["weight_decay"] = 0.0
    optimizer.step()
    return model, {name: p.detach() - before[name] for name, p in parameters.items()}


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    return {
        key: value for key, value in group.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _norm(x: dict[str, Tensor], names: Iterable[str]) -> float:
    return math.sqrt(sum(torch.linalg.vector_norm(x[n]).item() ** 2 for n in names))


def _coupled(model: nn.Module, optimizer: torch.optim.Optimizer, grads: dict[str, Tensor]) -> float:
    """How many times larger than the gradient the decay is that is added to it, before both are rescaled."""
    if "AdamW" in type(optimizer).__name__ or any(g.get("decoupled_weight_decay") for g in optimizer.param_groups):
        return 0.0
    rate = {id(p): g.get("weight_decay", 0.0) for g in optimizer.param_groups for p in g["params"]}
    own = {n: rate.get(id(p), 0.0) * p.detach() for n, p in model.named_parameters() if n in grads}
    return _norm(own, grads) / max(_norm(grads, grads), 1e-30)


def take(
    model: nn.Module, optimizer: torch.optim.Optimizer, grads: dict[str, Tensor], loss: Callable[[nn.Module], float]
) -> Taken:
    """`grads` by the parameters' names; `loss` gives that of a model. A schedule counts with its first rate."""
    groups = optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if name in grads and id(p) not in held]
    name, lr = type(optimizer).__name__, float(max(group["lr"] for group in groups))
    scheduled = any("initial_lr" in group for group in groups)
    state = Taken(name, lr, scheduled, missing, {}, 0.0, 0.0, 0.0, not optimizer.state, "", _numbers(groups[0]))
    try:
        stepped, changes = _step(model, optimizer, grads)
        decay = 0.0
        if any(group.get("weight_decay") for group in groups):
            plain = _step(model, optimizer, grads, decay=False)[1]
            size = _norm({n: changes[n] - plain[n] for n in grads}, grads)
            decay = max(size / max(_norm(plain, grads), 1e-30), _coupled(model, optimizer, grads))
    except TypeError as error:
        if "closure" in str(error):
            return state._replace(refused=f"a step of {name}, which needs a closure")
        if "copy.deepcopy" in str(error):
            return state._replace(refused=f"a step of {name}, since {error}")
        raise
    slope = sum((changes[n] * grads[n]).real.sum().item() for n in grads)
    sizes = {n: math.sqrt(mean_square(numbers(x))) for n, x in changes.items() if x.numel()}
    return state._replace(changes=sizes, loss=loss(stepped), slope=slope, decay=decay)
