"""Rules that speak of modes: batch statistics, and what is dropped."""

from torch import Tensor, nn

from mmlib.checkup.record import Record
from mmlib.checkup.row import is_norm
from mmlib.checkup.rules import Found, rule
from mmlib.checkup.watch import MODEL

_RECIPE, _NORM = "16 A recipe for your own network", "9 Batch normalisation, forward"


@rule("mixed modes", _NORM, silences="statistics not run")
def _mixed_modes(seen: Record) -> Found:
    odd = [n or MODEL for n, m in seen.model.named_modules() if m.training != seen.model.training and _has_modes(m)]
    if odd:
        mode = ("evaluation", "training")
        measured = f"in {mode[not seen.model.training]} mode, while the model is in {mode[seen.model.training]} mode"
        why = "a batch norm then uses the other statistics than its neighbours, dropout drops when it should not"
        action = "model.train() or model.eval() once; to freeze a norm on purpose, freeze its parameters too"
        yield "warning", odd, measured, "one mode throughout", why, action


def _has_modes(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    frozen = own and not any(p.requires_grad for p in own)
    tracks = getattr(module, "running_mean", None) is not None
    return (tracks and not frozen) or ("Dropout" in type(module).__name__ and getattr(module, "p", 1) > 0)


@rule("evaluation mode", _NORM)
def _evaluation(seen: Record) -> Found:
    being_trained = seen.taken is not None or any(p.data.grad is not None for p in seen.parameters)
    odd = [n or MODEL for n, m in seen.model.named_modules() if not m.training and _has_modes(m)]
    if being_trained and not seen.model.training and odd:
        measured = "the model is in evaluation mode, and there is an optimiser or a gradient: it is being trained"
        why = "dropout does nothing and a batch norm's statistics stay as they are: what is trained is another network"
        yield "warning", odd, measured, "training mode while it trains", why, "call model.train() before each epoch"


@rule("statistics not run", _NORM, silences="first loss, activation scale, gradient slope")
def _statistics(seen: Record) -> Found:
    fresh = [n or MODEL for n, m in seen.model.named_modules() if not m.training and _never_run(m)]
    if fresh:
        why = "in evaluation mode these are what it normalises by: with mean 0 and variance 1 it does nothing"
        action = "run some batches in training mode first, or load the buffers with the weights"
        measured = "running mean 0 and running variance 1, as when it was built"
        yield "warning", fresh, measured, "statistics of the data", why, action


def _never_run(module: nn.Module) -> bool:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and bool((mean == 0).all() and (var == 1).all())


@rule("batch norm", _NORM, silences="same for all examples")
def _batch_norm(seen: Record) -> Found:
    norms = [r for r in seen.rows if getattr(r.module, "running_mean", None) is not None and is_norm(r.module)]
    norms = [row for row in norms if "Instance" not in row.kind]
    few = [row for row in norms if row.module.training and row.shape and row.shape[0] <= 2]
    if few:
        n = few[0].shape[0]
        measured = f"in training mode, on a batch of {n}"
        why = "mean and variance of one or two examples say more of these than of the data; of two numbers, only a sign"
        action = "take a larger batch, or a norm within each example: GroupNorm or LayerNorm"
        yield "warning", [row.name for row in few], measured, "statistics of eight examples or more", why, action
    shared = [row for row in norms if len(set(row.sources)) > 1]
    if shared:
        measured = f"one norm after {', '.join(sorted(set(shared[0].sources)))}"
        why = "its running statistics are then a mixture of what it sees in different places, and fit none of them"
        yield (
            "warning",
            [row.name for row in shared],
            measured,
            "one norm for one place",
            why,
            "build one for each place",
        )
    fast = [row for row in norms if (getattr(row.module, "momentum", None) or 0) > 0.5]
    if fast:
        momentum = getattr(fast[0].module, "momentum", 0.0)
        measured = f"momentum {momentum:g}, the share of the newest batch in the running statistics"
        why = "evaluation then rests on the last few batches; elsewhere momentum means the share of the old ones"
        action = f"momentum={1 - momentum:.3g}, or the default, 0.1"
        yield "warning", [row.name for row in fast], measured, "0.1 or less", why, action


@rule("dropout", _RECIPE)
def _dropout(seen: Record) -> Found:
    large = [(name, share) for name, share in seen.watch.dropped if share >= 0.8]
    if large:
        measured = f"{large[0][1]:.0%} of the numbers are set to 0"
        why = "p is the share that is dropped; elsewhere it was the share that is kept"
        yield (
            "warning",
            [name for name, _ in large],
            measured,
            "below 80%",
            why,
            f"p={1 - large[0][1]:.2g}, if that is meant",
        )
    if any(term.passed == "dropout" for term in seen.terms):
        why = "what is dropped of the predictions is an error that nothing can learn to avoid"
        yield (
            "warning",
            [seen.watch.dropped[-1][0]],
            "the predictions themselves are dropped",
            "none",
            why,
            "drop before the last layer",
        )
    always = dict(seen.watch.dropped) if not seen.model.training else seen.probe.dropped if seen.probe else {}
    training = {n or MODEL for n, m in seen.model.named_modules() if m.training} if not seen.model.training else set()
    always = {name: share for name, share in always.items() if name not in training}
    if always:
        share = next(iter(always.values()))
        measured = f"in evaluation mode, {share:.0%} of the numbers are still set to 0"
        why = "predictions are then random; functions drop unless they are told not to, whatever the mode"
        action = "F.dropout(x, p, training=self.training), or the module nn.Dropout; dropout_p=0 in evaluation"
        yield "warning", list(always), measured, "none", why, action
