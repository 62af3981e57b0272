"""One forward and backward pass of any module, seen from outside.

Hooks see each module's call; a function mode sees each call of an activation or a loss function, also those that a
`forward` makes without a module. Only sums and flags are kept.
"""

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from mmlib.activations import Activation
from mmlib.stats import dead
from mmlib.trace import undisturbed

MODEL = "(model)"
BOUNDED = frozenset({"tanh", "sigmoid"})
RECTIFIERS = frozenset({"relu", "relu6", "hardtanh", "gelu", "silu", "mish", "elu"})
LABELS = frozenset({"cross_entropy", "nll_loss"})
BINARY = frozenset({"binary_cross_entropy_with_logits", "binary_cross_entropy"})
FLAT = 1 - 0.99**2  # the slope of tanh where it is 0.99, of 1 at its steepest

_STEEPEST = {"sigmoid": 0.25}
_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def classes(prediction: Tensor) -> int:
    """The number of classes that logits (classes,) or (batch, classes, ...) speak of."""
    return torch.atleast_2d(prediction).shape[1]


def _best_constant(statistic: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    def predicted(prediction: Tensor, target: Tensor) -> Tensor:
        target = target.to(prediction.dtype)
        one = target.dim() == 0 or len(target) == 1  # whose own value would be no guess
        return statistic(target.flatten() if one else target, 0).expand_as(target)

    return predicted


# What to predict when nothing is known of the inputs: all classes alike; for numbers, the best constant.
_UNINFORMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda z, t: torch.zeros_like(z),
    "nll_loss": lambda z, t: torch.full_like(z, -math.log(classes(z))),
    "binary_cross_entropy_with_logits": lambda z, t: torch.zeros_like(z),
    "binary_cross_entropy": lambda z, t: torch.full_like(z, 0.5),
    "mse_loss": _best_constant(torch.mean),
    "smooth_l1_loss": _best_constant(torch.mean),
    "huber_loss": _best_constant(torch.mean),
    "l1_loss": _best_constant(lambda t, dim: torch.quantile(t, 0.5, dim)),
}


class Term(NamedTuple):
    """One call of a loss function: its value, and its value for a prediction that knows nothing of the inputs.

    `passed` is the name of the activation function that the prediction came out of, if any; `outside` describes the
    first target that is out of range.
    """

    function: str
    prediction: Tensor
    target: Tensor
    value: float
    uniform: float
    outside: str
    passed: str


class Parameter(NamedTuple):
    """A parameter, its gradient (None if the loss does not reach it), and the layer it belongs to."""

    name: str
    layer: str
    data: nn.Parameter
    grad: Tensor | None


@dataclass
class Row:
    """What the calls of one layer, or of one activation function after one layer, put out.

    `flat` is the share of elements where |phi'| is below 2 % of its largest value, `dead` says which units are so for
    every example, `on` which get a positive input from every example. `spread` is the rms
    of a unit's deviations over the examples, relative to `rms`.
    """

    name: str
    kind: str
    after: str = ""
    module: nn.Module | None = None
    activation: str = ""
    axis: int = -1
    shape: tuple[int, ...] = ()
    calls: int = 0
    square: float = 0.0
    square_in: float = 0.0
    spread: float | None = None
    flat: float | None = None
    dead: Tensor | None = None
    on: Tensor | None = None
    gradient_square: float | None = None
    gradient_sum: Tensor | float = 0.0
    gradient_abs: Tensor | float = 0.0
    norm: str = ""  # the norm that reads this output

    @property
    def rms(self) -> float:
        """sqrt(mean x^2) of the output."""
        return math.sqrt(self.square / self.calls)

    @property
    def gain(self) -> float:
        """rms of the output over rms of the input."""
        return math.sqrt(self.square / self.square_in) if self.square_in > 0 else 0.0

    @property
    def gradient(self) -> float | None:
        """The Euclidean norm of d loss / d output."""
        return None if self.gradient_square is None else math.sqrt(self.gradient_square)

    def see(self, output: Tensor, axis: int) -> None:
        """Adds the output of one call, whose units lie along `axis`."""
        x = _units(output.detach(), axis).double()
        square = x.square().mean().item()
        self.axis, self.shape = axis, tuple(output.shape)
        self.calls, self.square = self.calls + 1, self.square + square
        if len(x) > 1:
            spread = math.sqrt(x.var(0, correction=0).mean().item() / square) if square > 0 else 0.0
            self.spread = max(spread, self.spread or 0.0)

    def see_slope(self, slope: Tensor, positive: Tensor, axis: int) -> None:
        """Adds phi' at one call, relative to its largest value, and where the input was positive."""
        slope, on = _units(slope, axis), _units(positive, axis).all(0)
        off, share = dead(slope, FLAT), (slope.abs() <= FLAT).double().mean().item()
        again = self.dead is not None and self.dead.shape == off.shape
        self.dead, self.on = (self.dead & off, self.on & on) if again else (off, on)
        self.flat = (share + (self.flat or 0.0) * self.calls) / (self.calls + 1)

    def see_gradient(self, grad: Tensor) -> None:
        """Adds d loss / d output of one call."""
        grad = _units(grad, self.axis).double()
        self.gradient_square = (self.gradient_square or 0.0) + grad.square().sum().item()
        self.gradient_sum = self.gradient_sum + grad.sum(0)
        self.gradient_abs = self.gradient_abs + grad.abs().sum(0)


class Record(NamedTuple):
    """Everything that one pass gave away; `rows` in the order of the first calls, `inputs` by name."""

    model: nn.Module
    inputs: dict[str, Tensor]
    loss: float
    terms: list[Term]
    rows: list[Row]
    parameters: list[Parameter]
    called: set[str]
    first_not_finite: str | None
    lr: float | None

    @property
    def weighted(self) -> list[Row]:
        """The rows of layers that have a weight matrix, or a kernel."""
        owners = {p.layer for p in self.parameters if p.data.dim() > 1}
        return [row for row in self.rows if row.module is not None and row.name in owners]


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {m: n or MODEL for n, m in model.named_modules() if "parametrizations" not in n.split(".")}
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.terms: list[Term] = []
        self.called: set[str] = set()
        self.first_not_finite: str | None = None
        self.forward = True
        self._running: list[tuple[nn.Module, bool, float]] = []
        self._last: Row | None = None
        self._written: dict[int, tuple[Tensor, Row]] = {}  # kept, so that no other tensor gets its place in memory
        self._activated: tuple[str, Tensor] | None = None
        self._noted = sys.exc_info()[1]  # what is being handled around the checkup is none of its business
        self._handles: list[Any] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        try:
            for module in self.names:
                self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
            yield
        finally:
            for handle in self._handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.forward:  # a checkpointed layer runs again in the backward pass
            return
        given = [*tensors(args), *tensors(kwargs)]
        first = next((x.detach() for x in given if x.is_floating_point()), None)
        square = first.double().square().mean().item() if first is not None and is_layer(module) else 0.0
        self._running.append((module, all(map(finite, given)), square))
        if is_norm(module) and first is not None and first.data_ptr() in self._written:
            self._written[first.data_ptr()][1].norm = self.names[module]

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not self.forward:
            return
        _, finite_in, square_in = self._running.pop()
        name, outputs = self.names[module], list(tensors(output))
        error = sys.exc_info()[1]
        if output is None and error is not self._noted:
            error.add_note(f"checkup: raised in layer {name!r}")
            self._noted = error
        self.called.add(name)
        if self.first_not_finite is None and finite_in and not all(map(finite, outputs)):
            self.first_not_finite = name
        if not is_layer(module) or not outputs or not outputs[0].is_floating_point():
            return
        row = self.rows.setdefault((name, "", ""), Row(name, type(module).__name__, module=module))
        axis = 1 if isinstance(module, _CHANNELS_FIRST) and outputs[0].dim() > 2 else -1
        if isinstance(module, nn.RNN) and module.nonlinearity == "tanh":
            row.activation = "tanh"
            row.see_slope(1 - outputs[0].detach().square(), outputs[0] > 0, axis)
        row.square_in += square_in
        self._see(row, outputs[0], axis)
        self._last = row
        self._written[outputs[0].data_ptr()] = outputs[0].detach(), row

    def _see(self, row: Row, output: Tensor, axis: int) -> None:
        row.see(output, axis)
        if output.requires_grad:
            self._handles.append(output.register_hook(row.see_gradient))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removesuffix("_")
        if name in _UNINFORMED:
            return self._loss(name, func, args, kwargs)
        seen = self.forward and name in BOUNDED | RECTIFIERS and args and args[0].is_floating_point()
        if not seen:
            return func(*args, **kwargs)
        # Differentiated before the call, which may be in place, and through a copy, for the same reason.
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):  # not those of a checkpoint around it
            slope = Activation(name, lambda x: func(x.clone(), *args[1:], **kwargs)).derivative(args[0])
        positive = args[0].detach() > 0
        output = func(*args, **kwargs)
        self._activation(name, slope / _STEEPEST.get(name, 1.0), positive, output)
        return output

    def _activation(self, name: str, slope: Tensor, positive: Tensor, output: Tensor) -> None:
        after, module = self._last.name if self._last else MODEL, self._running[-1][0] if self._running else None
        if module is not None and not any(module.children()):
            key = self.names[module], type(module).__name__, after
        else:
            key = after, f"{name}()", ""
        row = self.rows.setdefault(key, Row(*key, activation=name))
        axis = self._last.axis if self._last and output.dim() > 2 else -1
        row.see_slope(slope, positive, axis)
        self._see(row, output, axis)
        self._activated = name, output

    def _loss(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        call = inspect.signature(func).bind(*args, **kwargs)
        call.apply_defaults()
        prediction, target = call.arguments["input"], call.arguments["target"]
        outside = _outside(name, prediction, target, call.arguments.get("ignore_index"))
        if outside and name in LABELS:  # so that the rest can be looked at
            call.arguments["target"] = target = target.clamp(0, classes(prediction) - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that broadcast: a finding says it
            value = func(*call.args, **call.kwargs)
        with torch.no_grad():
            call.arguments["input"] = _UNINFORMED[name](prediction, target)
            uniform = func(*call.args, **call.kwargs).mean().item()
        activated = self._activated is not None and self._activated[1].data_ptr() == prediction.data_ptr()
        passed = self._activated[0] if activated else ""
        mean = value.detach().mean().item()
        self.terms.append(Term(name, prediction.detach(), target.detach(), mean, uniform, outside, passed))
        return value


def _units(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, -1).flatten(0, -2) if x.dim() > 1 else x.reshape(-1, 1)


def _outside(name: str, prediction: Tensor, target: Tensor, ignored: int | None) -> str:
    if name in LABELS and not target.is_floating_point():
        bad, allowed = (target < 0) | (target >= classes(prediction)), f"0 to {classes(prediction) - 1}"
        bad &= target != ignored
    elif name in BINARY:
        bad, allowed = (target < 0) | (target > 1), "0 to 1"
    else:
        return ""
    if not bad.any():
        return ""
    where = bad.nonzero()[0].tolist()
    value = target[tuple(where)].item()
    return f"{int(bad.sum())} of {target.numel()} targets are outside {allowed}, the first {value:g} at {where}"


def finite(x: Tensor) -> bool:
    """Whether no element is nan or infinite."""
    return not x.is_floating_point() or bool(x.detach().isfinite().all())


def tensors(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, but for empty, sparse and nested ones."""
    if isinstance(x, Tensor):
        if x.layout == torch.strided and not x.is_nested and x.numel():
            yield x
    elif isinstance(x, (tuple, list, Mapping)):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from tensors(item)


def is_norm(module: nn.Module) -> bool:
    """Whether it is called a norm."""
    return "norm" in type(module).__name__.lower()


def is_layer(module: nn.Module) -> bool:
    """Whether its own parameters act in its own forward: no container, but also multi-head attention."""
    if hasattr(module, "parametrizations"):
        return True
    whole = not any(module.children()) or isinstance(module, nn.MultiheadAttention)
    return whole and (is_norm(module) or any(True for _ in module.parameters(recurse=False)))


def _copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, Mapping):
        return {key: _copied(value) for key, value in x.items()}
    return type(x)(map(_copied, x)) if type(x) in (tuple, list) else x


def _named_inputs(inputs: Any) -> dict[str, Tensor]:
    if isinstance(inputs, Mapping):
        named = {f"inputs[{key!r}]": x for key, x in inputs.items()}
    elif type(inputs) is tuple:
        named = {f"inputs[{k}]": x for k, x in enumerate(inputs)}
    else:
        named = {"inputs": inputs}
    return {name: x for name, x in named.items() if isinstance(x, Tensor) and list(tensors(x))}


def _owner(parameter: str, layers: set[str]) -> str:
    path = module = parameter.rpartition(".")[0]
    while path and path not in layers:
        path = path.rpartition(".")[0]
    return path or module or MODEL


def _check(model: nn.Module, lr: float | None) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: a torch.nn.Module is needed, got {type(model).__name__}")
    for name, p in model.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise ValueError(f"model: {name} has no shape yet; run one batch through the lazy layer first")
    if not any(True for _ in model.parameters()):
        raise ValueError(f"model: {type(model).__name__} has no parameters; there is nothing that could train")
    if lr is not None and not (isinstance(lr, (int, float)) and 0 < lr < math.inf):
        raise ValueError(f"lr: a positive number is needed, got {lr!r}")


def _handwritten(outputs: Any, targets: Any, loss: Tensor, watch: _Watch) -> list[Term]:
    """The known loss function that has the value of one that was written out."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return []
    if not targets.is_floating_point():
        if not targets.dim() or outputs.shape[:-1] != targets.shape:
            return []
        outputs, targets, names = outputs.flatten(0, -2), targets.flatten().long(), ["cross_entropy"]
    else:
        n = targets.numel()
        if outputs.shape != targets.shape and {outputs.shape, targets.shape} != {(n,), (n, 1)}:
            return []
        names = ["mse_loss", "l1_loss", "binary_cross_entropy_with_logits"]
    for name in names:
        watch._loss(name, getattr(F, name), (outputs, targets), {})
        if math.isclose(watch.terms[-1].value, loss.item(), rel_tol=1e-4):
            return watch.terms[-1:]
    return []


def record(model: nn.Module, inputs: Any, targets: Any, loss_fn: Callable, lr: float | None = None) -> Record:
    """The loss of one batch and its gradient, in the model's present mode, with everything seen on the way.

    `inputs` is a tensor, a tuple of positional or a dictionary of keyword arguments. The model, its hooks, the
    inputs and the random state are left as found, also when something raises; the exception then carries a note on
    where. Raises TypeError for a model that is no module or a loss that is no tensor, ValueError for a model without
    parameters, a loss that is not one number, or a learning rate that is not positive.
    """
    _check(model, lr)
    given, expected = _copied(inputs), _copied(targets)
    watch = _Watch(model)
    with undisturbed(model), torch.enable_grad(), watch.attached():
        with watch:
            if isinstance(given, Mapping):
                outputs = model(**given)
            else:
                outputs = model(*given) if type(given) is tuple else model(given)
            watch.forward = False
            loss = loss_fn(outputs, expected)
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_fn: a tensor with one number is needed, got {type(loss).__name__}")
        if loss.numel() != 1:
            raise ValueError(f"loss_fn: one number is needed, got a loss of shape {tuple(loss.shape)}; take its mean")
        named = dict(model.named_parameters(remove_duplicate=False))  # tied weights belong to each of their layers
        wanted = list({p for p in named.values() if p.requires_grad}) if loss.requires_grad else []
        found = torch.autograd.grad(loss.sum(), wanted, allow_unused=True) if wanted else []
    grads = {p: g.to_dense() if g is not None and g.is_sparse else g for p, g in zip(wanted, found, strict=True)}
    layers = {row.name for row in watch.rows.values() if row.module is not None}
    parameters = [Parameter(name, _owner(name, layers), p, grads.get(p)) for name, p in named.items()]
    terms = watch.terms or _handwritten(outputs, expected, loss, watch)
    named_inputs, rows = _named_inputs(inputs), list(watch.rows.values())
    return Record(model, named_inputs, loss.item(), terms, rows, parameters, watch.called, watch.first_not_finite, lr)
