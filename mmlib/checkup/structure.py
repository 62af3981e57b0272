"""Rules that speak of how a model is put together and called: the batch, the graph, the modes, the layers."""

import torch
from torch import Tensor, nn

from mmlib.checkup.record import Record
from mmlib.checkup.row import Row
from mmlib.checkup.rules import Found, rule
from mmlib.checkup.watch import MODEL

_RECIPE, _NORM, _BUGS = "16 A recipe for your own network", "9 Batch normalisation, forward", "17 Spot the bug"


@rule("not registered", _BUGS, silences="no gradient")
def _unregistered(seen: Record) -> Found:
    if seen.unregistered:
        why = "what the model does not know of is not in parameters(): no optimiser moves it, no state_dict keeps it"
        action = "keep layers in nn.ModuleList or nn.ModuleDict, tensors as nn.Parameter, and make both in __init__"
        measured = f"{seen.unregistered[0]} takes part, requires a gradient, and is no parameter of the model"
        yield "error", seen.unregistered, measured, "every weight is registered", why, action


@rule(
    "examples mixed",
    _BUGS,
    silences="same for all examples, logits where log-probabilities belong, constant predictions, first loss, "
    "logits already squashed, zero gradient, saturation",
)
def _mixed(seen: Record) -> Found:
    if seen.probe and seen.probe.mixed:
        measured = f"in evaluation mode, outputs move by {seen.probe.mixed:.1g} of their size as other examples change"
        why = "the answer to one example must not hang on which others are in its batch"
        action = "look for batch_first, a softmax or mean over axis 0, a view or reshape where transpose is meant"
        yield "error", [seen.probe.mixes], measured, "outputs that stay where they are", why, action


@rule("constant predictions", _BUGS, silences="zero gradient")
def _constant(seen: Record) -> Found:
    if seen.probe and seen.probe.constant:
        measured = "in evaluation mode, no output changes as the inputs do"
        why = "there is nothing that could tell one example from another"
        action = "look for an input that is not used, overwritten, or multiplied by 0, and for a mask that hides it all"
        yield "error", [MODEL], measured, "outputs that depend on the inputs", why, action


@rule("no activation", "1 Where the signal goes")
def _affine(seen: Record) -> Found:
    rows = [row for row in seen.weighted if "Embedding" not in row.kind and row.gradient is not None]
    first = {layer for _, layer in seen.watch.reads}
    why = "affine functions of affine functions are affine; no depth or width adds anything"
    action = "put an activation function between them, and use what it returns"
    healthy = "a function that bends between layers"
    if not seen.probe or not seen.probe.affine or len(rows) < 2 or rows[-1].name in first:
        if pairs := _in_a_row(seen):
            a, b = pairs[0]
            measured = f"{b.name} reads what {a.name} puts out, with nothing between them"
            yield "warning", [a.name for a, _ in pairs], measured, healthy, why, action
        return
    widths = [row.shape[row.axis] for row in rows if row.shape]
    narrow = len(rows) == 2 and widths[0] < widths[1] and widths[0] < _fan_in(rows[0])  # a factorisation in two
    if not narrow:
        measured = f"in evaluation mode, {len(rows)} layers together do what one would: their output is affine"
        yield "warning", [row.name for row in rows[:-1]], measured, healthy, why, action


def _in_a_row(seen: Record) -> list[tuple[Row, Row]]:
    """Layers of one kind that read what another put out as it is, and are not narrower between than at both ends."""
    by_name, pairs = {row.name: row for row in seen.weighted}, []
    for row in seen.weighted:
        before, parent = by_name.get(row.raw), row.name.rpartition(".")[0]
        chain = parent == row.raw.rpartition(".")[0] and isinstance(seen.model.get_submodule(parent), nn.Sequential)
        if (
            before is None
            or not chain
            or row.kind != before.kind
            or not isinstance(row.module, (nn.Linear, nn.Conv1d, nn.Conv2d))
        ):
            continue
        weight, width = row.module.weight, before.shape[before.axis]
        dense = getattr(row.module, "groups", 1) == getattr(before.module, "groups", 1) == 1
        alike = weight[0, 0].numel() == getattr(before.module, "weight", weight)[0, 0].numel()
        if dense and alike and width >= min(len(weight), _fan_in(before)):
            pairs.append((before, row))
    return pairs


def _fan_in(row: Row) -> int:
    weight = getattr(row.module, "weight", None)
    return weight[0].numel() if isinstance(weight, Tensor) else 0


@rule("positions lost", _BUGS)
def _orderless(seen: Record) -> Found:
    if seen.probe and seen.probe.orderless:
        measured = "with the tokens in another order, the outputs are the same, or change places with them"
        why = "attention by itself does not know where a token stands; no task that asks for order can be learned"
        action = "add a vector for each place, or rotate queries and keys by it; for a set, this is right"
        yield "note", [MODEL], measured, "outputs that depend on the order", why, action


@rule("sees its target", _BUGS)
def _sees_target(seen: Record) -> Found:
    why = "the answer stands in the input: the loss falls to nothing, and nothing is learned of what comes next"
    if seen.shift == 1 and seen.ahead:
        measured = "the targets are the inputs one step on, and outputs change with inputs that come after them"
        action = "mask what comes later (is_causal, a triangle of -inf), or use a network of one direction"
        yield "error", [MODEL], measured, "outputs that see nothing later", why, action
    elif seen.shift == 0 and seen.ahead is False and _labels(seen):
        measured = "the targets are the inputs themselves, not one step on, and each output sees its own"
        yield (
            "error",
            ["targets"],
            measured,
            "the target of a position is the next input",
            why,
            "shift the targets by one",
        )
    elif seen.shift == 2:
        measured = "the targets are the inputs two steps on"
        why = "where the model, the loss or a library shifts by one as well as the data, one step is skipped"
        yield "warning", ["targets"], measured, "one step on", why, "shift once"
    elif seen.shift is None:
        for name, x in seen.inputs.items():
            t = seen.targets
            whole = isinstance(t, Tensor) and t.dim() == 1 and x.dim() == 2 and len(x) == len(t) >= 16
            if whole and not (x.is_floating_point() or t.is_floating_point()) and torch.equal(x[:, -1], t):
                measured = f"every target is the last entry of {name}"
                action = "let the inputs end one step before the target"
                yield "warning", ["targets"], measured, "a target that comes after the inputs", why, action


def _labels(seen: Record) -> bool:
    return any(not t.target.is_floating_point() for t in seen.terms)


@rule("examples repeat", _RECIPE, silences="same for all examples")
def _repeated(seen: Record) -> Found:
    for name, x in seen.inputs.items():
        if x.is_floating_point() and x.dim() > 1 and len(x) >= 4 and x[0].numel() > 1:
            if torch.equal(x[0], x[1]) or torch.equal(x[0], x[len(x) // 2]) or torch.equal(x[-1], x[-2]):
                distinct = len(x.flatten(1).unique(dim=0))
                if distinct <= len(x) / 2:
                    why = "repeated rows add nothing to the gradient but their weight"
                    measured = f"{distinct} distinct rows among {len(x)}"
                    yield "warning", [name], measured, "every row another example", why, "look at how batches are drawn"
            return


@rule("called several times", _BUGS)
def _repeatedly(seen: Record) -> Found:
    again = [r for r in seen.weighted if 1 < r.calls <= 4 and r.sources[1:] == (r.name,) * (r.calls - 1)]
    again = [row for row in again if not isinstance(row.module, (nn.RNNCellBase, nn.RNNBase))]
    names: dict[nn.Module, list[str]] = {}
    for name, module in seen.model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    several = {m: n for m, n in names.items() if len({x.rpartition(".")[0] for x in n}) == 1 < len(n) and _holds(m)}
    if several:
        found = next(iter(several.values()))
        measured = f"{', '.join(found)} are one and the same layer"
        yield "warning", found, measured, *_ONE
    elif again:
        measured = (
            f"it is called {again[0].calls} times, each time on its own output: one layer in {again[0].calls} places"
        )
        yield "warning", [row.name for row in again], measured, *_ONE


_ONE = (
    "a layer for each place",
    "it has one set of weights for all of these places, and the network fewer parameters than it seems",
    "build a new layer for each place; [layer] * n repeats one. Sharing on purpose is fine",
)


def _holds(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


@rule("inputs all the same", _RECIPE, silences="same for all examples, constant predictions, input scale")
def _all_the_same(seen: Record) -> Found:
    read = {name for name, _ in seen.watch.reads}
    for name, x in seen.inputs.items():
        one = x.numel() > 1 and x.dim() > 1 and len(x) > 1 and bool((x == x.flatten()[0]).all())
        if one and (name in read or len(seen.inputs) == 1):
            measured = f"all {x.numel()} numbers are {x.flatten()[0].item():g}"
            why = "such a batch says nothing of its examples"
            yield "warning", [name], measured, "examples that differ", why, "look at how the batch is made"


@rule("not left as found", _RECIPE)
def _lost(seen: Record) -> Found:
    if seen.lost:
        measured = f"{seen.lost[0]} has moved on and cannot be brought back"
        why = "an iterator remembers where it is and cannot be copied; everything else is as it was"
        yield "note", seen.lost, measured, "nothing that a forward pass uses up", why, "make it anew before training"
