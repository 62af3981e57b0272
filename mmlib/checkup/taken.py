"""The optimiser's next step, taken on a copy and measured."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmlib.checkup.found import copied
from mmlib.checkup.row import numbers


class Taken(NamedTuple):
    """What one step did: the std of each parameter's change, the loss after it on the same batch, the change's product with
    the gradient (below 0 is downhill), and by how much weight decay outweighs the rest of the step."""

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


def take(
    model: nn.Module, optimizer: torch.optim.Optimizer, grads: dict[str, Tensor], loss: Callable[[nn.Module], float]
) -> Taken:
    """`grads` by the parameters' names; `loss` gives that of a model. A schedule counts with its first rate."""
    groups = optimizer.param_groups
    held = {id(p) for group in groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if name in grads and id(p) not in held]
    name, lr = type(optimizer).__name__, float(max(group["lr"] for group in groups))
    scheduled = any("initial_lr" in group for group in groups)
    state = Taken(name, lr, scheduled, missing, {}, 0.0, 0.0, 0.0, not optimizer.state, "")
    try:
        stepped, changes = _step(model, optimizer, grads)
        decay = 0.0
        if any(group.get("weight_decay") for group in groups):
            plain = _step(model, optimizer, grads, decay=False)[1]
            size = sum((changes[n] - plain[n]).square().sum().item() for n in grads) ** 0.5
            decay = size / max(sum(plain[n].square().sum().item() for n in grads) ** 0.5, 1e-30)
    except TypeError as error:
        if "closure" not in str(error):
            raise
        return state._replace(refused=f"a step of {name} needs a closure, and is not measured")
    slope = sum((changes[n] * grads[n]).real.sum().item() for n in grads)
    sizes = {n: numbers(x).std().item() for n, x in changes.items() if x.numel() > 1}
    return state._replace(changes=sizes, loss=loss(stepped), slope=slope, decay=decay)
