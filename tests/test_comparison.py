import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmlib import comparison as module
from mmlib import rng
from mmlib.activations import Activation
from mmlib.comparison import Comparison, compare
from mmlib.data import Examples, minibatches
from mmlib.ensemble import stack
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d, calibrate
from mmlib.stats import interval
from mmlib.train import descend, evaluate, train

pytestmark = pytest.mark.usefixtures("no_global_randomness")

SMALL = MLP(depth=1, width=8, embedding=4)


def head(data, n):
    return Examples(*(x[:n] for x in data))


@pytest.fixture
def parts(corpus):
    return head(corpus.train, 300), head(corpus.dev, 200)


def compared(parts, recipes, **options):
    given = {"rates": (0.1, 0.5), "choose": (0, 1), "judge": (5, 6, 7), "steps": 6, "size": 4} | options
    return compare(recipes, *parts, **given)


def alone(parts, recipe, rate, seed, steps, size=4, calibrated=None):
    model = recipe.build(rng.generator(seed, "weights"))
    batches = minibatches(parts[0], size, steps, generator=rng.generator(seed, "batches"))
    train(model, batches, lr=rate)
    if calibrated is not None:
        calibrate(model, calibrated)
    return evaluate(model, parts[1])


# The runs


@pytest.mark.parametrize("norm", [None, BatchNorm1d], ids=["plain", "BatchNorm1d"])
def test_every_run_is_what_it_is_alone(norm, parts):
    recipe = MLP(depth=1, width=8, embedding=4, norm=norm)
    result = compared(parts, {"a": recipe}, steps=(2, 6), calibrated=parts[0])
    assert result.loss.shape == (1, 2, 5, 2) and result.loss.dtype == torch.float64
    for i, rate in enumerate(result.rates):
        for j, seed in enumerate((0, 1, 5, 6, 7)):
            for k, steps in enumerate((2, 6)):
                expected = alone(parts, recipe, rate, seed, steps, calibrated=parts[0])
                assert float(result.loss[0, i, j, k]) == pytest.approx(expected, abs=1e-5)


def test_recipes_share_noise_and_minibatches(parts):
    result = compared(parts, {"a": SMALL, "b": SMALL.build, "c": MLP(depth=2, width=8, embedding=4)})
    assert torch.equal(result.loss[0], result.loss[1])
    assert not torch.equal(result.loss[0], result.loss[2])


def test_stacks_are_cut_to_the_size_that_is_fast(parts, monkeypatch):
    whole = compared(parts, {"a": SMALL})
    sizes = []
    monkeypatch.setattr(module, "_AT_ONCE", 4)
    monkeypatch.setattr(module, "stack", lambda models: sizes.append(len(models)) or stack(models))
    cut = compared(parts, {"a": SMALL})
    assert sizes == [4, 4, 2]
    torch.testing.assert_close(cut.loss, whole.loss)


@pytest.mark.parametrize("curves, sizes", [(True, [20, 10, 10]), (False, [8, 4, 4, 6, 3, 3])])
def test_recipes_of_one_architecture_share_a_stack(curves, sizes, parts, monkeypatch):
    other = Activation("tanh", lambda x: torch.tanh(2 * x))
    recipes = {
        "a": SMALL,
        "deep": replace(SMALL, depth=2),
        "less sure": replace(SMALL, confidence=0.1),
        "of one name": replace(SMALL, activation=other),
    }
    alone = [compared(parts, {name: recipe}, curves=curves).loss[0] for name, recipe in recipes.items()]
    trained, seen = module._trained, []
    monkeypatch.setattr(module, "_trained", lambda runs, *setting: seen.append(len(runs)) or trained(runs, *setting))
    together = compared(parts, recipes, curves=curves).loss
    assert seen == sizes
    torch.testing.assert_close(together, torch.stack(alone), equal_nan=True)


def test_a_schedule_multiplies_each_rate_and_counts_through_all_budgets(parts):
    seen = []
    schedule = lambda t: seen.append(t) or (1.0 if t < 3 else 0.0)  # noqa: E731
    result = compared(parts, {"a": SMALL}, steps=(2, 3, 6), schedule=schedule)
    plain = compared(parts, {"a": SMALL}, steps=(2, 3))
    assert seen == list(range(6))
    torch.testing.assert_close(result.loss[..., :2], plain.loss)
    assert torch.equal(result.loss[..., 1], result.loss[..., 2])


def test_models_of_a_function_and_the_corpus_are_left_as_they_are(parts):
    built = []

    def build(generator):
        built.append(SMALL.build(generator))
        return built[-1]

    compared(parts, {"a": build})
    for model, seed in zip(built, (0, 1, 5, 6, 7), strict=True):
        again = SMALL.build(rng.generator(seed, "weights"))
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


class Limited(nn.Module):
    """Gives nan from the `until`-th training call on."""

    def __init__(self, until):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0.0))
        self.register_buffer("until", torch.tensor(float(until)))

    def forward(self, x):
        if self.training:
            self.calls += 1
        over = (self.calls > self.until).view(*self.calls.shape, *[1] * (x.dim() - self.calls.dim()))
        return torch.where(over, torch.nan, x)


def limited(generator):
    model = MLP(depth=1, width=8, embedding=4, norm=BatchNorm1d).build(generator)
    untils = {rng.generator(s, "weights").initial_seed(): u for s, u in ((1, 3), (6, 1))}
    model.add_module("limit", Limited(untils.get(generator.initial_seed(), 100)))
    return model


def test_a_run_that_diverges_is_left_out_and_costs_the_others_nothing(parts):
    result = compared(parts, {"a": limited}, steps=(2, 6), rates=(0.1,))
    assert result.loss[0, 0, :, 0].isinf().tolist() == [False, False, False, True, False]  # seeds 0 1 5 6 7
    assert result.loss[0, 0, :, 1].isinf().tolist() == [False, True, False, True, False]
    others = compared(parts, {"a": MLP(depth=1, width=8, embedding=4, norm=BatchNorm1d)}, steps=(2, 6), rates=(0.1,))
    for seed in (0, 2, 4):
        torch.testing.assert_close(result.loss[0, 0, seed], others.loss[0, 0, seed])


class Brink(nn.Module):
    """Adds 0; where s is 0, the gradient by s is nan."""

    def __init__(self, s):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(s))

    def forward(self, x):
        return x + (0 * self.s.sqrt()).view(*self.s.shape, *[1] * (x.dim() - self.s.dim()))


def test_a_run_whose_gradient_is_nan_at_a_finite_loss_is_left_out_alone(parts):
    def build(generator):
        model = SMALL.build(generator)
        at_0 = generator.initial_seed() == rng.generator(6, "weights").initial_seed()
        model.add_module("brink", Brink(0.0 if at_0 else 1.0))
        return model

    result, plain = compared(parts, {"a": build}, rates=(0.1,)), compared(parts, {"a": SMALL}, rates=(0.1,))
    assert result.loss[0, 0, :, 0].isinf().tolist() == [False, False, False, True, False]
    for seed in (0, 1, 2, 4):
        torch.testing.assert_close(result.loss[0, 0, seed], plain.loss[0, 0, seed])


def test_when_all_runs_diverge_all_are_counted(parts):
    huge = compared(parts, {"a": SMALL, "bad": nowhere}, rates=(0.1, 0.2))
    assert huge.loss[1].isinf().all() and huge.loss[0].isfinite().all()
    with pytest.raises(ValueError, match=r"'bad': a choosing run diverged at each rate of \(0.1, 0.2\)"):
        huge.best()


def nowhere(generator):
    model = SMALL.build(generator)
    with torch.no_grad():
        model.output.bias.fill_(math.nan)
    return model


def test_weights_that_the_last_step_ruined_are_a_run_that_diverged(parts):
    result = compared(parts, {"a": SMALL}, rates=(0.1, 3e38), steps=1)
    assert result.loss[0, 0].isfinite().all() and result.loss[0, 1].isinf().all()


def test_an_error_of_another_kind_is_raised(parts, monkeypatch):
    def failing(model, batches, *, lr):
        yield from descend(model, [next(batches)], lr=lr)
        next(batches)
        raise FloatingPointError("another cause")

    monkeypatch.setattr(module, "descend", failing)
    with pytest.raises(FloatingPointError, match="another cause"):
        compared(parts, {"a": SMALL})


def test_without_curves_only_chosen_rates_are_judged_and_all_else_is_the_same(parts):
    recipes = {"a": SMALL, "b": MLP(depth=2, width=8, embedding=4)}
    given = {"rates": (0.001, 0.1, 0.5, 1e4), "steps": (2, 6), "choose": (0, 1, 2)}
    whole, lean = compared(parts, recipes, **given), compared(parts, recipes, curves=False, **given)
    torch.testing.assert_close(lean.loss[:, :, :3], whole.loss[:, :, :3])
    assert 2 <= int((~lean.loss[:, :, 3:].isnan()).any(-1).any(-1).sum()) <= 4  # of 8 pairs of a recipe and a rate
    for steps in given["steps"]:
        for name, best in whole.best(steps).items():
            assert lean.best(steps)[name].rate == best.rate
            torch.testing.assert_close(lean.best(steps)[name].loss, best.loss)
        torch.testing.assert_close(lean.differences("a", steps)["b"], whole.differences("a", steps)["b"])
    with pytest.raises(ValueError, match=r"'a': a curve needs judging seeds at every rate"):
        lean.curve("a")


def test_without_curves_a_recipe_that_never_learns_is_refused_as_with_them(parts):
    lean = compared(parts, {"bad": nowhere}, curves=False)
    with pytest.raises(ValueError, match=r"'bad': a choosing run diverged at each rate of \(0.1, 0.5\)"):
        lean.best()


# What is made of the losses


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def made(loss, **given):
    """Losses (recipe, rate, seed) as a comparison with two choosing seeds."""
    loss = torch.tensor(loss, dtype=torch.float64).unsqueeze(-1)
    recipes, rates, seeds, _ = loss.shape
    return Comparison(
        tuple("abcdef"[:recipes]), tuple(10.0**k for k in range(rates)), (0, 1), tuple(range(2, seeds)), (9,), loss
    )


def test_the_rate_is_chosen_on_some_seeds_and_judged_on_others():
    best = made([[[5, 5, 9, 9.5], [1, 2, 7, 8], [2, 3, 1, 2]]]).best()["a"]
    assert (best.rate, best.edge, best.diverged) == (10.0, "", 0)
    assert float(best.loss.mean) == 7.5
    assert best.loss == interval(torch.tensor([7.0, 8.0]))


@pytest.mark.parametrize("means, edge", [((1, 2, 3), "lowest"), ((3, 2, 1), "highest"), ((3, 1, 2), "")])
def test_a_best_rate_at_the_edge_of_the_grid_is_said(means, edge):
    best = made([[[m, m, m, m + 1] for m in means]]).best()["a"]
    assert best.edge == edge
    text = made([[[m, m, m, m + 1] for m in means]]).summary("a")
    assert (f"a: the {edge} rate of the grid, so perhaps not its best" in text) == bool(edge)


def test_a_rate_at_which_a_choosing_run_diverged_is_not_taken():
    best = made([[[3, 3, 3, 3], [2, 2, 2, 2.5], [0, math.inf, 0, 0]]]).best()["a"]
    assert best.rate == 10.0


def test_judging_runs_that_diverged_are_counted_and_not_averaged():
    result = made([[[3, 3, 3, 3], [2, 2, 2, math.inf], [4, 4, 4, 4]], [[3, 3, 3, 3], [2, 2, 2, 3], [4, 4, 4, 4]]])
    best, difference = result.best()["a"], result.differences("b")["a"]
    assert best.diverged == 1 and best.loss.mean.isinf() and best.loss.low.isnan()
    assert difference.mean.isinf() and difference.low.isnan() and difference.high.isnan()
    assert "a: 1 of 2 runs diverged" in result.summary("b")


def test_differences_are_paired_by_seed_and_their_intervals_simultaneous():
    a, b, c = [1.0, 2.0, 4.0], [1.5, 2.4, 4.6], [0.0, 5.0, 1.0]
    result = made([[[9, 9, *a]], [[9, 9, *b]], [[9, 9, *c]]])
    got = result.differences("a")
    assert list(got) == ["b", "c"]
    for name, loss in (("b", b), ("c", c)):
        expected = interval(doubles(loss) - doubles(a), 1 - 0.05 / 2)
        torch.testing.assert_close(got[name], expected)
    for m in (2, 24):
        expected = interval(doubles(b) - doubles(a), 1 - 0.05 / m)
        torch.testing.assert_close(result.differences("a", comparisons=m)["b"], expected)


def test_each_recipe_may_have_a_reference_of_its_own():
    result = made([[[9, 9, 1, 2]], [[9, 9, 2, 3.5]], [[9, 9, 4, 5]]])
    got = result.differences({"b": "a", "c": "b"})
    assert [float(d.mean) for d in got.values()] == [1.25, 1.75]


def test_simultaneous_intervals_cover_as_often_as_they_say(normal):
    """2,000 experiments of three recipes that do not differ: all intervals hold 0 in 95 % of them, or somewhat more."""
    noise = normal(2000, 4, 1, 8, 1)
    missed = 0
    for loss in noise:
        result = Comparison(tuple("abcd"), (1.0,), (0,), tuple(range(1, 8)), (9,), loss)
        missed += any(d.low > 0 or d.high < 0 for d in result.differences("a").values())
    assert 0.02 < missed / 2000 < 0.055


def test_budgets_count_among_the_comparisons_and_rates_are_chosen_anew():
    loss = torch.tensor([[[[1, 5.0], [1, 5], [2, 3], [2, 4]], [[2, 1], [2, 1], [5, 8], [7, 6]]]] * 2).double()
    loss[1] += doubles([0.1, 0.2, 0.3, 0.6]).view(4, 1)
    result = Comparison(("a", "b"), (0.1, 1.0), (0, 1), (2, 3), (10, 20), loss)
    assert result.best(10)["a"].rate == 0.1 and result.best(20)["a"].rate == 1.0
    assert result.best() == result.best(20)
    expected = interval(doubles([0.3, 0.6]), 1 - 0.05 / 2)
    torch.testing.assert_close(result.differences("a", 10)["b"], expected)


def test_a_curve_is_over_the_judging_seeds():
    result = made([[[9, 9, 1, 2], [9, 9, 3, math.inf]]])
    mean, low, _ = result.curve("a")
    assert mean.tolist() == [1.5, math.inf] and low[1].isnan()


def test_a_summary_is_one_table():
    wide = [9.0] * 5
    result = made([[wide, [1, 1, 2.9, 3.0, 3.1], wide], [wide, [1, 1, 2.8, 2.92, 3.01], wide]])
    assert result.summary("a").splitlines() == [
        "   rate           dev loss          minus reference",
        "a    10  3.00 [2.75, 3.25]                        -",
        "b    10  2.91 [2.65, 3.17]  -0.090 [-0.115, -0.065]",
    ]
    assert result.summary("a", digits=1).splitlines()[-1] == "b    10  2.9 [2.6, 3.2]  -0.1 [-0.1, -0.1]"


def test_budgets_may_be_whole_numbers_of_numpy(parts):
    for steps in ((2, 6), 6):
        one, other = (compared(parts, {"small": SMALL}, steps=given) for given in (np.array(steps), steps))
        assert torch.equal(one.loss, other.loss) and one.budgets == other.budgets


# What cannot be compared


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rates": ()}, "rates: finite numbers that ascend"),
        ({"rates": (0.0, 1.0)}, "rates: finite numbers that ascend"),
        ({"rates": (1.0, 0.1)}, "rates: finite numbers that ascend"),
        ({"rates": (0.1, math.inf)}, "rates: finite numbers that ascend"),
        ({"rates": (0.1, math.nan)}, "rates: finite numbers that ascend"),
        ({"steps": 0}, "steps: whole numbers that ascend"),
        ({"steps": (4, 2)}, "steps: whole numbers that ascend"),
        ({"steps": ()}, "steps: whole numbers that ascend"),
        ({"steps": (2.5, 3)}, "steps: whole numbers that ascend"),
        ({"choose": ()}, "choose, judge: one seed or more"),
        ({"judge": (5,)}, "choose, judge: one seed or more"),
        ({"judge": (1, 2)}, "choose, judge: one seed or more"),
    ],
)
def test_bad_arguments_are_errors(parts, options, message):
    with pytest.raises(ValueError, match=message):
        compared(parts, {"a": SMALL}, **options)


def test_a_recipe_builds_models(parts):
    with pytest.raises(TypeError, match="recipes: 'a' is neither a function nor has a method build, got 3"):
        compared(parts, {"a": 3})


def test_there_must_be_a_recipe(parts):
    with pytest.raises(ValueError, match="recipes: at least one"):
        compared(parts, {})


def test_names_and_budgets_are_checked():
    result = made([[[9, 9, 1, 2]], [[9, 9, 2, 3]]])
    with pytest.raises(ValueError, match="reference: one of a, b is needed, got 'z'"):
        result.differences("z")
    with pytest.raises(ValueError, match="recipe: one of a, b is needed, got 'z'"):
        result.curve("z")
    with pytest.raises(ValueError, match=r"steps: one of \(9,\) is needed, got 10"):
        result.best(10)
    with pytest.raises(ValueError, match="comparisons: at least the 1 differences are counted, got 0"):
        result.differences("a", comparisons=0)
