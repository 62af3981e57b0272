"""A fair comparison: each recipe at its own best learning rate, chosen on some seeds and judged on others."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmlib import rng
from mmlib.data import Examples, minibatches
from mmlib.ensemble import Ensemble, repeated, stack, unstack
from mmlib.norm import calibrate
from mmlib.stats import Interval, interval
from mmlib.table import table
from mmlib.trace import trace
from mmlib.train import Schedule, constant, descend, evaluate

_AT_ONCE = 64  # replicas in a stack; with twice as many a step of one of them takes longer again


class Best(NamedTuple):
    """The learning rate with the least mean loss over the choosing seeds, and what the judging seeds reach with it.

    `edge` is "lowest" or "highest" where that rate ends the grid, and "" elsewhere: beyond an edge there may be a
    better rate, so that the recipe was not seen at its best. `diverged` counts the judging runs whose loss became nan
    or infinite; if there are any, the mean of `loss` is infinite and its ends are nan.
    """

    rate: float
    edge: str
    loss: Interval
    diverged: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """The dev loss of every run, in nats: axes (recipe, rate, seed, budget).

    It is infinite where the run diverged, nan where there was none: see `curves` of `compare`. The seeds are those of
    `choose`, then those of `judge`; a budget is a number of steps.
    """

    recipes: tuple[str, ...]
    rates: tuple[float, ...]
    choose: tuple[int, ...]
    judge: tuple[int, ...]
    budgets: tuple[int, ...]
    loss: Tensor

    def _at(self, steps: int | None) -> tuple[Tensor, Tensor]:
        """The losses (recipe, rate, seed) of the choosing and of the judging seeds; without `steps`, at the end."""
        if steps is not None and steps not in self.budgets:
            raise ValueError(f"steps: one of {self.budgets} is needed, got {steps}")
        at = self.loss[..., -1 if steps is None else self.budgets.index(steps)]
        return at.split((len(self.choose), len(self.judge)), -1)

    def _chosen(self, steps: int | None) -> tuple[list[int], Tensor]:
        """For each recipe the index of its best rate, and the judging seeds' losses (recipe, seed) there."""
        choosing, judging = self._at(steps)
        mean = choosing.mean(-1)
        for name, row in zip(self.recipes, mean, strict=True):
            if row.isinf().all():
                raise ValueError(f"{name!r}: a choosing run diverged at each rate of {self.rates}; add smaller ones")
        best = mean.argmin(1)
        return best.tolist(), judging[torch.arange(len(best)), best]

    def best(self, steps: int | None = None) -> dict[str, Best]:
        """The best rate of each recipe and what it reaches after `steps`, which is the last budget unless given.

        A rate at which a choosing run diverged is not taken. Raises ValueError if `steps` is no budget, or a recipe has
        no rate left.
        """
        ends = {0: "lowest", len(self.rates) - 1: "highest"}
        rows = zip(self.recipes, *self._chosen(steps), strict=True)
        return {
            name: Best(self.rates[k], ends.get(k, ""), _interval(loss), int(loss.isinf().sum()))
            for name, k, loss in rows
        }

    def differences(
        self, reference: str | Mapping[str, str], steps: int | None = None, *, comparisons: int | None = None
    ) -> dict[str, Interval]:
        """Loss minus that of the reference, each at its best rate, seed by seed: means and simultaneous 95 % intervals.

        `reference` is one recipe for all others, or says for each recipe which one it is compared with. Of all m
        intervals together, 95 % of such experiments have none that misses: each is Student's of confidence 1 - 0.05/m,
        by Bonferroni's inequality, whether the differences are independent or not (Dunn 1961). m is `comparisons`;
        without it, the number of differences times that of budgets, all of which can be looked at.

        Where a run diverged there is no interval: its ends are nan. Raises ValueError for an unknown recipe, for
        `comparisons` below the number of differences, and as `best`.
        """
        if isinstance(reference, str):
            reference = {name: reference for name in self.recipes if name != reference} or {reference: reference}
        for name in itertools.chain(*reference.items()):
            if name not in self.recipes:
                raise ValueError(f"reference: one of {', '.join(self.recipes)} is needed, got {name!r}")
        m = len(reference) * len(self.budgets) if comparisons is None else comparisons
        if m < len(reference):
            raise ValueError(f"comparisons: at least the {len(reference)} differences are counted, got {m}")
        loss = dict(zip(self.recipes, self._chosen(steps)[1], strict=True))
        return {name: _interval(loss[name] - loss[other], 1 - 0.05 / m) for name, other in reference.items()}

    def curve(self, recipe: str, steps: int | None = None) -> Interval:
        """The loss of one recipe at every rate, over the judging seeds; infinite where one of them diverged.

        Raises ValueError for an unknown recipe, and where `compare` was told to train no judging seed at some rate.
        """
        if recipe not in self.recipes:
            raise ValueError(f"recipe: one of {', '.join(self.recipes)} is needed, got {recipe!r}")
        loss = self._at(steps)[1][self.recipes.index(recipe)]
        if loss.isnan().any():
            raise ValueError(f"{recipe!r}: a curve needs judging seeds at every rate: compare(..., curves=True)")
        return _interval(loss.T)

    def summary(self, reference: str | Mapping[str, str], steps: int | None = None, digits: int | None = None) -> str:
        """A table: the best rate of each recipe, the loss there, and the difference to the reference: see `table`."""
        differences, rows, notes = self.differences(reference, steps), {}, []
        for name, best in self.best(steps).items():
            rows[name] = (f"{best.rate:g}", best.loss, differences.get(name, "-"))
            if best.edge:
                notes.append(f"{name}: the {best.edge} rate of the grid, so perhaps not its best")
            if best.diverged:
                notes.append(f"{name}: {best.diverged} of {len(self.judge)} runs diverged")
        columns = ("rate", "dev loss", "minus reference")
        return "\n".join([table(rows, columns, digits=(None, digits, digits), sign=(False, False, True)), *notes])


def _interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Student's interval over the seeds; where one of them diverged, an infinite mean, and ends that are nan."""
    finite = values.isfinite()
    mean, low, high = interval(values.where(finite, 0.0), confidence)
    bad = ~finite.all(0)
    return Interval(mean.masked_fill(bad, math.inf), low.masked_fill(bad, math.nan), high.masked_fill(bad, math.nan))


def compare(
    recipes: Mapping[str, Any],
    train: Examples,
    dev: Examples,
    *,
    rates: Sequence[float],
    choose: Iterable[int],
    judge: Iterable[int],
    steps: int | Sequence[int],
    size: int = 32,
    schedule: Callable[[int], float] | None = None,
    calibrated: Examples | None = None,
    curves: bool = True,
) -> Comparison:
    """Trains every recipe at every rate from every seed, and evaluates each run on `dev` after each budget of `steps`.

    Hyperparameters have three parts to play, in the words of Godbole et al., Deep Learning Tuning Playbook (2023):

    - scientific are those that the question is about: here the recipe;
    - nuisance are those that are chosen anew for each of these, or the answer would be about the choice: the rate;
    - fixed are all others, and the answer holds for their values alone: minibatch size, steps, schedule.

    A recipe has a method `build`, as `MLP`, or is a function; it is given a generator and returns a model. The same
    seed is the same noise behind the weights and the same minibatches, for all recipes and rates, so that runs are
    paired by seed. `choose` are the seeds that select the rate and `judge` those whose losses are then taken: the least
    of several noisy means is too small. Both are evaluated on `dev`; the test part is for what comes of it.

    The rate at step t is `schedule(t)` times one of `rates`; with several budgets t counts through the single run. With
    `calibrated`, batch normalisation takes its running statistics from these examples before each evaluation. A run
    whose loss becomes nan or infinite is left out from there on and its loss is infinite from the next budget on.

    Without `curves`, judging seeds are trained only at the rates that are chosen, of which a budget has one: everything
    but `Comparison.curve` is the same, for half of the runs where four rates, four seeds to choose, eight to judge and
    one budget meet.

    Raises ValueError if there is no recipe, rates do not ascend from above 0, a seed occurs twice or fewer than two
    judge, or budgets are no whole numbers that ascend from 1; TypeError for a recipe that builds nothing.

    >>> from mmlib.data import corpus
    >>> from mmlib.models import MLP
    >>> names = corpus()
    >>> recipes = {'narrow': MLP(width=4, depth=1), 'wide': MLP(width=16, depth=1)}
    >>> result = compare(recipes, names.train, names.dev, rates=(0.1, 0.3), choose=[0], judge=[1, 2], steps=20)
    >>> result.best()['wide'].rate in (0.1, 0.3), sorted(result.differences('narrow'))
    (True, ['wide'])
    """
    rates, choose, judge = tuple(map(float, rates)), tuple(choose), tuple(judge)
    budgets = tuple(np.atleast_1d(steps).tolist())
    seeds = choose + judge
    if not recipes:
        raise ValueError("recipes: at least one is needed")
    if not rates or not rates[0] > 0 or not _ascending(rates):
        raise ValueError(f"rates: finite numbers that ascend from above 0 are needed, got {rates}")
    if not budgets or not all(isinstance(b, int) for b in budgets) or budgets[0] < 1 or not _ascending(budgets):
        raise ValueError(f"steps: whole numbers that ascend from 1 or more are needed, got {budgets}")
    if not choose or len(judge) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"choose, judge: one seed or more and other two or more are needed, got {choose} and {judge}")
    setting = train, dev, budgets, size, schedule or constant(1.0), calibrated
    models = []
    for name, recipe in recipes.items():
        build = getattr(recipe, "build", recipe)
        if not callable(build):
            raise TypeError(f"recipes: {name!r} is neither a function nor has a method build, got {recipe!r}")
        models.append([build(rng.generator(seed, "weights")) for seed in seeds])
    loss = torch.full((len(models), len(rates), len(seeds), len(budgets)), math.nan, dtype=torch.float64)
    kinds = _kinds([each[0] for each in models])

    def run(places: Sequence[tuple[int, int, int]]) -> None:
        for kind in kinds:
            own = [place for place in places if place[0] in kind]
            for start in range(0, len(own), _AT_ONCE):
                some = own[start : start + _AT_ONCE]
                stacked = [(models[recipe][seed], rates[rate], seeds[seed]) for recipe, rate, seed in some]
                loss[tuple(zip(*some, strict=True))] = _trained(stacked, *setting)

    choosing, judging = range(len(choose)), range(len(choose), len(seeds))
    run(list(itertools.product(range(len(models)), range(len(rates)), range(len(seeds)) if curves else choosing)))
    if not curves:
        best = loss[:, :, choosing].mean(2).argmin(1)
        run([(recipe, k, seed) for recipe, some in enumerate(best) for k in some.unique().tolist() for seed in judging])
    return Comparison(tuple(recipes), rates, choose, judge, budgets, loss)


def _ascending(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values)) and values[-1] < math.inf


def _kinds(models: Sequence[nn.Sequential]) -> list[list[int]]:
    """The places of models, those side by side that can share a stack."""
    kinds: list[list[int]] = []
    for place, model in enumerate(models):
        for kind in kinds:
            with suppress(ValueError):  # another architecture, or another function
                stack([models[kind[0]], model])
                kind.append(place)
                break
        else:
            kinds.append([place])
    return kinds


def _trained(
    runs: Sequence[tuple[nn.Sequential, float, int]],
    train: Examples,
    dev: Examples,
    budgets: Sequence[int],
    size: int,
    schedule: Schedule,
    calibrated: Examples | None,
) -> Tensor:
    """The losses (run, budget) of one stack of runs, each a model, a rate and a seed."""
    replicas, alive = stack([model for model, _, _ in runs]), torch.arange(len(runs))
    rates = torch.tensor([rate for _, rate, _ in runs])
    streams = [rng.generator(seed, "batches") for _, _, seed in runs]
    losses = torch.full((len(runs), len(budgets)), math.inf, dtype=torch.float64)
    done = 0
    for k, budget in enumerate(budgets):
        batches = map(partial(_rows, alive), minibatches(train, size, budget - done, generator=streams))
        while done < budget:
            lr = partial(_scheduled, rates[alive], schedule, done)
            finite, taken, left = _descended(replicas, batches, lr)
            done += taken
            if not finite.all():
                alive = alive[finite]
                if not len(alive):
                    return losses
                replicas = stack([model for model, kept in zip(unstack(replicas), finite, strict=True) if kept])
                batches = map(partial(_rows, finite), itertools.chain(left, batches))
        if calibrated is not None:
            calibrate(replicas, repeated(calibrated, replicas))
        reached = torch.as_tensor(evaluate(replicas, dev)).double()
        losses[alive, k] = reached.where(reached.isfinite(), math.inf)
    return losses


def _scheduled(rates: Tensor, schedule: Schedule, done: int, index: int) -> Tensor:
    return rates * schedule(done + index)


def _rows(kept: Tensor, batch: Examples) -> Examples:
    return Examples(*(x[kept] for x in batch))


def _descended(
    replicas: Ensemble, batches: Iterable[Examples], lr: Callable[[int], Tensor]
) -> tuple[Tensor, int, list[Examples]]:
    """Descends until a loss is not finite: which replicas are sound, the steps taken, and the batch left over.

    `descend` refuses such a step, and that batch is the other replicas' next one: buffers are put back.
    """
    left: list[Examples] = []
    taken, finite = 0, torch.ones(replicas.replicas, dtype=torch.bool)
    buffers = [buffer.clone() for buffer in replicas.buffers()]

    def copied(sources: Iterable[Tensor], targets: Iterable[Tensor]) -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    def watched() -> Iterator[Examples]:
        for batch in batches:
            left[:] = [batch]
            copied(replicas.buffers(), buffers)
            yield batch

    try:
        for step in descend(replicas, watched(), lr=lr):
            taken += 1
            finite &= step.loss.isfinite()
    except FloatingPointError:
        copied(buffers, replicas.buffers())
        laid_open = trace(replicas, *left)
        for x in (laid_open.loss, *laid_open.parameter_grads.values()):
            finite &= x.isfinite().reshape(len(finite), -1).all(1)
        if finite.all():
            raise
        return finite, taken, left
    return finite, taken, []
