"""Gradient descent as an iterator of steps, and the book-keeping around it."""

import math
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from numbers import Real

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from mmlib.ensemble import Ensemble, check_batch, repeated
from mmlib.examples import Examples
from mmlib.history import Ended, History, Recorder, Step
from mmlib.losses import cross_entropy
from mmlib.progress import bar
from mmlib.trace import first_not_finite, first_not_finite_gradient
from mmlib.undisturbed import undisturbed

Rate = float | Tensor
Schedule = Callable[[int], Rate]

_EVALUATED_AT_ONCE = 2**15


def constant(lr: Rate) -> Schedule:
    """The same learning rate at every step.

    >>> constant(0.1)(7)
    0.1
    """
    return lambda index: lr


def drop(lr: Rate, at: int, to: Rate) -> Schedule:
    """The learning rate `lr` before step `at`, `to` from it on.

    >>> schedule = drop(0.1, at=100, to=0.01)
    >>> schedule(99), schedule(100)
    (0.1, 0.01)
    """
    return lambda index: lr if index < at else to


def descend(
    model: nn.Sequential,
    batches: Iterable[Examples],
    *,
    lr: Rate | Schedule,
    start: int = 0,
    diverged: dict[int, str] | None = None,
) -> Generator[Step, None, None]:
    """Plain gradient descent on the cross-entropy: for each batch, p <- p - lr * d loss / d p, and the step taken.

    `lr` is a number, or a function of the step's index, which counts from `start`. For R stacked models it may be a
    tensor of R rates. The model is used in the mode it is in; parameters that do not require a gradient stay as they
    are.

    Raises ValueError if a batch or a tensor of rates does not fit the model, a rate is not finite, or every parameter
    is frozen; RuntimeError where gradients are turned off; FloatingPointError, with the step and the layer where it
    arose, when the loss or a gradient is nan or infinite: that step is not taken, though buffers such as running means
    have seen its batch. With a dictionary as `diverged`, stacked models to which that happens stand still from then on,
    parameters and buffers, their sentences in it, while the others go on; it is raised when none is left.

    >>> from mmlib.data import corpus, minibatches
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> model = MLP(width=8, depth=1).build(generator(0, 'weights'))
    >>> batches = minibatches(corpus().train, 32, 3, generator=generator(0, 'batches'))
    >>> [step.index for step in descend(model, batches, lr=0.1)]
    [0, 1, 2]
    """
    schedule = lr if callable(lr) else constant(lr)
    parameters: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    leaves, values = list(parameters.values()), [p.detach() for p in parameters.values()]
    if not leaves:
        raise ValueError("model: no parameter requires a gradient, so that there is nothing to train")
    if diverged and len(diverged) == (model.replicas if isinstance(model, Ensemble) else 1):
        raise _Diverged(f"step {start}: no model is left to train, since earlier, at {diverged[min(diverged)]}")
    finite = _Finite(model, diverged)
    for index, batch in enumerate(batches, start):
        check_batch(model, batch)
        if not torch.is_grad_enabled():
            raise RuntimeError("descend: gradients are turned off, by torch.no_grad or torch.inference_mode")
        loss = cross_entropy(model(batch.contexts), batch.targets)
        total = loss.sum() if loss.dim() else loss
        grads = _gradients(total, leaves)
        rate = _checked(schedule(index), model)
        loss = loss.detach()
        if finite.still is not None or not finite.of_all(total.item(), grads):
            loss, grads = finite.held(index, batch, loss, grads)
        if isinstance(rate, Tensor):
            torch._foreach_addcmul_(values, grads, [_per_replica(rate, grad) for grad in grads], value=-1)
        else:
            torch._foreach_sub_(values, grads, alpha=rate)
        yield Step(index, rate, loss, parameters, dict(zip(parameters, grads, strict=True)))


def _gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Of a number in every leaf, 0 where it does not depend on one."""
    # What torch.autograd.grad calls once it has checked its arguments, which takes a sixth of a small model's step.
    found = Variable._execution_engine.run_backward(
        (total,), (torch.ones_like(total),), False, False, tuple(leaves), allow_unreachable=True, accumulate_grad=False
    )
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(leaves, found, strict=True)]


def _checked(rate: Rate, model: nn.Module) -> Rate:
    if not isinstance(rate, Tensor):
        if not isinstance(rate, (float, Real)) or not math.isfinite(rate):
            raise ValueError(f"lr: a finite number is needed, got {rate!r}")
        return float(rate)  # fractions and booleans, with which torch does not multiply
    if not rate.isfinite().all():
        raise ValueError(f"lr: finite numbers are needed, got {rate.tolist()}")
    if not rate.dim():
        return rate
    if not isinstance(model, Ensemble):
        raise ValueError(f"lr: a single model needs one rate, got a tensor of shape {tuple(rate.shape)}")
    if rate.shape != (model.replicas,):
        n = model.replicas
        raise ValueError(f"lr: {n} stacked models need one rate or a tensor ({n},), got shape {tuple(rate.shape)}")
    return rate


def _per_replica(rate: Tensor, p: Tensor) -> Tensor:
    return rate.view(-1, *[1] * (p.dim() - 1)) if rate.dim() else rate


class _Diverged(FloatingPointError):
    pass


class _Finite:
    """Lets no step be taken that is not finite, and holds the models still to which that happened."""

    def __init__(self, model: nn.Sequential, diverged: dict[int, str] | None) -> None:
        self.model, self.diverged = model, diverged
        self._hold()

    def _hold(self) -> None:
        self.still = torch.tensor(sorted(self.diverged), dtype=torch.long) if self.diverged else None
        self.kept = [] if self.still is None else [(b, b[self.still].clone()) for b in self.model.buffers()]

    @staticmethod
    def of_all(loss: float, grads: list[Tensor]) -> bool:
        """False unless all are finite: then so are their sums, but for one that overflows, into which `held` looks."""
        # Sums cost a twentieth of asking each number.
        return math.isfinite(loss + sum(float(grad.sum()) for grad in grads))

    def held(self, index: int, batch: Examples, loss: Tensor, grads: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, nan for models that stand still, and the gradients, 0 for them."""
        still = self.still
        if still is not None:
            loss, grads = self._zeroed(still, loss, grads)
            for buffer, values in self.kept:
                buffer[still] = values
        if not self.of_all(loss.sum().item(), grads):  # the sum of finite losses may be infinite
            each = zip(loss, *grads, strict=True) if loss.dim() else iter([(loss, *grads)])
            bad = [r for r, own in enumerate(each) if not all(x.isfinite().all() for x in own)]
            if bad:
                self._stop(index, batch, loss, bad)
                grads = grads if self.still is None else self._zeroed(self.still, loss, grads)[1]
        return loss if still is None else loss.index_fill(0, still, math.nan), grads

    @staticmethod
    def _zeroed(still: Tensor, loss: Tensor, grads: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return loss.index_fill(0, still, 0), [g.index_fill(0, still, 0) for g in grads]

    def _stop(self, index: int, batch: Examples, loss: Tensor, bad: list[int]) -> None:
        if self.diverged is not None:
            self.diverged.update({r: _not_finite(self.model, batch, index, loss, [r]) for r in bad})
            if loss.dim() and len(self.diverged) < len(loss):
                self._hold()
                return
        raise _Diverged(_not_finite(self.model, batch, index, loss, bad))


def _not_finite(model: nn.Sequential, batch: Examples, index: int, loss: Tensor, bad: list[int]) -> str:
    """What happened at a step, to all models or, if `bad` is one of several, to that one."""
    where: slice | list[int] = bad if loss.dim() else slice(None)
    among = f" in replicas {bad}" if loss.dim() and len(bad) != 1 else ""
    wrong = [x for x in loss.view(-1)[bad].tolist() if not math.isfinite(x)]
    if wrong:
        layer = first_not_finite(model, batch, where)
        place = "the logits are finite" if layer is None else f"the first layer with such an output is {layer!r}"
        what = f"the loss is {wrong[0]}{among}; {place}"
    else:
        layer = first_not_finite_gradient(model, batch, where)
        what = f"a gradient is nan or infinite{among}, though the loss is not; on the way back it arises in {layer!r}"
    return f"step {index}: {what}. A smaller learning rate or first weights may help."


def train(
    model: nn.Sequential,
    batches: Iterable[Examples],
    *,
    lr: Rate | Schedule,
    probe: Callable[[Step], Mapping[str, Tensor | float]] | None = None,
    every: int = 1,
    progress: bool = False,
    after: History | None = None,
) -> History:
    """Descends through all batches and returns what happened, and why it ended: see History.

    `probe` is asked after every `every`-th step, the first included, and gives numbers by name. `progress` shows a bar
    to a person who watches, and writes nothing otherwise. With `after`, the history of earlier steps, the run goes on:
    steps count from there, what diverged stands still, and the result tells of both; if all did, it is that history.

    An interruption from the keyboard ends the run after the step that is under way, and the history until then is
    returned; as it is when the model, or every one of several, diverges. One of several that does stands still.

    Raises what `descend` raises but FloatingPointError, and ValueError if steps were announced but no batch was there,
    as with an iterator that is used up, if `every` is below 1, or if a number of the probe changes its shape. An error
    on the way has what was recorded as its attribute `history`.

    >>> from mmlib.data import corpus, minibatches
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> model = MLP(width=8, depth=1).build(generator(0, 'weights'))
    >>> history = train(model, minibatches(corpus().train, 32, 100, generator=generator(0, 'batches')), lr=0.1)
    >>> history.ended, len(history.loss.steps), round(float(history.loss.values[0]), 1)
    ('done', 100, 3.3)
    """
    if every < 1:
        raise ValueError(f"every: at least 1 is needed, got {every}")
    total = len(batches) if isinstance(batches, Sized) else None
    before = after or History(Recorder("loss").series(), Recorder("lr").series(), {}, "done", {})
    start, diverged = len(before.loss.steps), dict(before.diverged)
    losses, rates = Recorder("loss", before.loss), Recorder("lr", before.lr)
    probed = {name: Recorder(f"probe: {name!r}", series) for name, series in before.probes.items()}

    def history(ended: Ended) -> History:
        return History(
            losses.series(), rates.series(), {name: r.series() for name, r in probed.items()}, ended, diverged
        )

    steps = descend(model, batches, lr=lr, start=start, diverged=diverged)
    try:
        with _between_steps() as asked:
            for step in bar(steps, total, progress):
                losses.add(step.index, step.loss)
                rates.add(step.index, step.lr)
                if probe is not None and step.index % every == 0:
                    for name, value in probe(step).items():
                        probed.setdefault(name, Recorder(f"probe: {name!r}")).add(step.index, value)
                if asked:
                    return history("interrupted")
    except _Diverged:
        return history("diverged")
    except KeyboardInterrupt:
        return history("interrupted")
    except Exception as error:
        error.history = history("interrupted")  # type: ignore[attr-defined]
        raise
    finally:
        steps.close()
    found = history("done")
    if len(found.loss.steps) == start and total != 0:
        raise ValueError("batches: no minibatch was drawn; an iterator that was used before has none left")
    return found


@contextmanager
def _between_steps() -> Iterator[list[bool]]:
    """Within it an interruption from the keyboard is noted, so that no step is left half done; a second is raised."""
    asked: list[bool] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    usual = signal.default_int_handler
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is usual
    if mine:
        signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        if mine:
            signal.signal(signal.SIGINT, usual)


@torch.no_grad()
def evaluate(model: nn.Module, data: Examples) -> float | Tensor:
    """The mean cross-entropy on all examples, in nats, in evaluation mode; for R stacked models a tensor (R,).

    `data` has no leading axis: every replica sees the same examples. A context that occurs often is computed once: what
    a model says of one must not depend on the others, as in evaluation mode it does not. The model is left as found.
    Raises ValueError if there are no examples.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> from mmlib.rng import generator
    >>> round(evaluate(MLP().build(generator(0, 'weights')), corpus().dev), 1)  # before training: log 27
    3.3
    """
    if data.targets.dim() != 1 or not len(data.targets):
        raise ValueError(f"data: targets of shape (n,) with n > 0 are needed, got {tuple(data.targets.shape)}")
    n = len(data.targets)
    rows = max(1, _EVALUATED_AT_ONCE // (model.replicas if isinstance(model, Ensemble) else 1))
    # Equal contexts side by side; others with one key between them would cost a little time.
    keys = data.contexts.flatten(1).long() * 1_000_003 ** torch.arange(data.contexts[0].numel())
    by_context = keys.sum(1).argsort(stable=True)
    total = torch.zeros((), dtype=torch.float64)
    with undisturbed(model):
        model.eval()
        for some in by_context.split(rows):
            contexts = data.contexts[some]
            new = torch.ones(len(some), dtype=torch.bool)  # unlike the one before; unique_consecutive is far slower
            new[1:] = (contexts[1:] != contexts[:-1]).flatten(1).any(1)
            part = repeated(Examples(contexts[new], data.targets[some]), model)
            logits = model(part.contexts)[..., new.cumsum(0) - 1, :]
            total = total + cross_entropy(logits, part.targets).double() * len(some)
    return total / n if total.dim() else float(total) / n
