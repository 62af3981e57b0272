import math

import pytest
import torch
from scipy import stats as scipy_stats

from mmlib import rng, stats
from mmlib.data import Examples
from mmlib.ensemble import stack
from mmlib.history import Step
from mmlib.models import MLP
from mmlib.stats import dead, distances, grad_data_ratios, interval, rms, saturation, update_ratios
from mmlib.trace import Trace, trace
from mmlib.train import descend
from tests.small import randn

pytestmark = pytest.mark.usefixtures("no_global_randomness")

H = torch.tensor([[1.0, -1.0, 0.99], [0.995, 0.0, -0.5]])


def test_rms_by_hand():
    # rows of different mean squares: the mean of their roots is another number
    assert float(rms(torch.tensor([[3.0, -4.0], [0.0, 1.0]]))) == pytest.approx(math.sqrt(26 / 4))


def test_saturation_by_hand():
    assert float(saturation(H)) == pytest.approx(3 / 6)
    assert float(saturation(H, threshold=0.4)) == pytest.approx(5 / 6)
    assert float(saturation(H, threshold=1.0)) == 0


def test_dead_by_hand():
    slope = torch.tensor([[0.0, 0.0, 1e-9, -1.0], [0.0, 2.0, -1e-9, 0.0]])
    assert dead(slope).tolist() == [True, False, False, False]
    assert dead(slope, tolerance=1e-8).tolist() == [True, False, True, False]
    assert dead(slope, tolerance=1e-9 / 2).tolist() == [True, False, False, False]


@pytest.mark.parametrize("statistic, shape", [(rms, (2, 3)), (saturation, (2, 3)), (dead, (2, 3, 5))])
def test_leading_axes_are_kept(statistic, shape, normal):
    x = normal(2, 3, 4, 5).round()
    got = statistic(x)
    assert got.shape == shape
    for i in range(2):
        for j in range(3):
            assert torch.equal(got[i, j], statistic(x[i, j]))


def by_hand(x):
    mean = sum(x) / len(x)
    return math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1))


WEIGHT, GRAD = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[0.1, 0.0], [0.0, 0.3]])


def test_ratios_of_gradient_and_data_by_hand():
    nothing = {}
    got = grad_data_ratios(
        Trace(
            *(torch.tensor(1.0), nothing, nothing),
            {"w": WEIGHT, "b": GRAD[0], "kernel": WEIGHT.view(1, 4, 1)},
            {"w": GRAD, "b": GRAD[0], "kernel": GRAD.view(1, 4, 1)},
        )
    )
    assert list(got) == ["w", "kernel"] and got["kernel"] == got["w"]
    assert float(got["w"]) == pytest.approx(by_hand([0.1, 0, 0, 0.3]) / by_hand([1, 2, 3, 6]))


def test_update_ratios_by_hand_are_logarithms_to_base_ten():
    got = update_ratios(Step(0, 0.1, torch.tensor(1.0), {"w": WEIGHT, "b": GRAD[0]}, {"w": GRAD, "b": GRAD[0]}))
    assert list(got) == ["w"]
    assert float(got["w"]) == pytest.approx(math.log10(0.1 * by_hand([0.1, 0, 0, 0.3]) / by_hand([1, 2, 3, 6])))


def stacked_and_single(symbols, lr, lrs):
    models = [MLP(width=8, depth=1).build(rng.generator(r, "weights")) for r in range(3)]
    batch = Examples(symbols(3, 16, 3), symbols(3, 16))
    batches = [Examples(batch.contexts[r], batch.targets[r]) for r in range(3)]
    stacked = stack(models)
    together = trace(stacked, batch), next(descend(stacked, [batch], lr=lr))
    alone = [(trace(m, b), next(descend(m, [b], lr=rate))) for m, b, rate in zip(models, batches, lrs, strict=True)]
    return together, alone


@pytest.mark.parametrize(
    "lr, lrs", [(0.1, [0.1] * 3), (torch.tensor([0.1, 1.0, 10.0]), [0.1, 1.0, 10.0])], ids=["one rate", "three rates"]
)
def test_ratios_of_stacked_models_are_those_of_each(lr, lrs, symbols):
    (seen, step), alone = stacked_and_single(symbols, lr, lrs)
    together = grad_data_ratios(seen), update_ratios(step)
    for r, (seen_r, step_r) in enumerate(alone):
        for a, b in zip(together, (grad_data_ratios(seen_r), update_ratios(step_r)), strict=True):
            assert list(a) == list(b) == ["embedding.weight", "linear1.weight", "output.weight"]
            for name in b:
                torch.testing.assert_close(a[name][r], b[name], rtol=1e-4, atol=0)


def test_distances_of_stacked_models_are_those_of_their_parameters_one_by_one(symbols):
    (_, step), alone = stacked_and_single(symbols, 0.1, [0.1] * 3)
    theta = [torch.cat([p.detach().flatten() for p in single.parameters.values()]) for _, single in alone]
    reference = [2, 1, 0]
    expected = [(theta[r] - theta[s]).norm() / theta[s].norm() for r, s in enumerate(reference)]
    got = distances(step, reference)
    torch.testing.assert_close(got, torch.stack(expected))
    assert got[1] == 0 and got[0] != got[2] > 0.1


@pytest.mark.parametrize("reference", [[0, 1], [0, 1, 3], [0, 1, 4], [0, 1, -1]])
def test_distances_need_a_reference_for_each_model(reference, symbols):
    (_, step), alone = stacked_and_single(symbols, 0.1, [0.1] * 3)
    with pytest.raises(ValueError, match=r"reference: one stacked model for each .* loss \(3,\)"):
        distances(step, reference)
    with pytest.raises(ValueError, match=r"got \[0\] for a loss \(\)"):
        distances(alone[0][1], [0])


# Intervals


@pytest.mark.parametrize("confidence, t", [(0.95, 2.776445105), (0.99, 4.604094871), (0.9, 2.131846786)])
def test_an_interval_by_hand_with_the_t_of_the_table(confidence, t):
    mean, low, high = interval(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), confidence)
    half = t * math.sqrt(2.5) / math.sqrt(5)
    assert [float(x) for x in (mean, low, high)] == pytest.approx([3, 3 - half, 3 + half], rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_an_interval_is_that_of_scipy(n, normal):
    values = normal(n)
    got = interval(values, 0.8)
    expected = scipy_stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.8)
    assert [float(got.low), float(got.high)] == pytest.approx(list(expected), rel=1e-12)


def test_intervals_of_several_columns_are_those_of_each(normal):
    values = normal(6, 3)
    got = interval(values)
    for k in range(3):
        for a, b in zip(got, interval(values[:, k]), strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-14, atol=1e-15)


def test_an_interval_is_float64():
    assert interval(torch.tensor([1e8, 1e8 + 8], dtype=torch.float32)).mean.item() == 1e8 + 4
    assert interval(torch.tensor([1, 2])).mean.item() == 1.5


def test_an_interval_covers_the_mean_as_often_as_it_says(normal):
    low, high = interval(normal(5, 4000), 0.9)[1:]
    covered = float(((low < 0) & (high > 0)).double().mean())
    assert abs(covered - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 4000)


@pytest.mark.parametrize("n", [0, 1])
def test_an_interval_of_fewer_than_two_values_is_refused(n):
    with pytest.raises(ValueError, match=rf"values: at least two along the first axis are needed, got shape \({n}"):
        interval(torch.zeros(n))


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.1, math.nan])
def test_a_confidence_outside_zero_to_one_is_refused(confidence):
    with pytest.raises(ValueError, match=f"confidence: a number between 0 and 1 is needed, got {confidence}"):
        interval(torch.zeros(3), confidence)


# Edges


def test_a_layer_of_nan_does_not_look_healthy():
    h = randn(2, 4, 5)
    h[1, 2, 3] = math.nan
    share = stats.saturation(h, 0.5)
    assert share[1].isnan() and share[0] == (h[0].abs() > 0.5).double().mean()


@pytest.mark.parametrize("measure", [stats.rms, stats.saturation, stats.dead])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 5), (3, 5, 0), (5,), ()])
def test_numbers_about_nothing_are_refused(measure, shape):
    with pytest.raises(ValueError, match=rf"{measure.__name__}: at least one row and one column are needed, got"):
        measure(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_interval_of_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match=rf"values: finite numbers are needed, got {value} at \[1, 2\]"):
        values = torch.zeros(3, 4)
        values[1, 2] = values[2, 0] = value
        stats.interval(values)
    with pytest.raises(ValueError, match="values: at least two"):
        stats.interval(torch.tensor(1.0))
