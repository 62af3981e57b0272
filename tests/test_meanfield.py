import math

import pytest
import torch

from mmlib.gaussian import expectation
from mmlib.meanfield import expected_first_loss
from mmlib.rng import generator


def simulated(std, classes, draws=40_000):
    """Mean and standard error of logsumexp(std z) - std mean(z), whose expectation is the same and whose noise less."""
    z = torch.randn(draws, classes, generator=generator(0, "logits"), dtype=torch.float64)
    losses = (std * z).logsumexp(1) - std * z.mean(1)
    return float(losses.mean()), float(losses.std()) / math.sqrt(draws)


@pytest.mark.parametrize("std", [0.01, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("classes", [2, 27])
def test_expected_first_loss_is_the_mean_of_random_logits(std, classes):
    mean, error = simulated(std, classes)
    assert abs(expected_first_loss(std, classes) - mean) < 4 * error


@pytest.mark.parametrize("std", [0.01, 0.3, 1.0, 4.0, 12.49, 30.0])
def test_expected_first_loss_agrees_with_one_integral_for_two_classes(std):
    # log(e^a + e^b) = (a + b) / 2 + log(2 cosh((a - b) / 2)), and a - b ~ N(0, 2 std^2)
    def log_two_cosh(z):
        x = (std / math.sqrt(2) * z).abs()
        return x + torch.log1p(torch.exp(-2 * x))

    assert expected_first_loss(std, 2) == pytest.approx(expectation(log_two_cosh), abs=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 27, 1000])
def test_expected_first_loss_starts_at_log_classes_and_grows_as_the_square(classes):
    assert expected_first_loss(0.0, classes) == pytest.approx(math.log(classes), abs=1e-11)
    growth = (expected_first_loss(0.01, classes) - math.log(classes)) / 0.01**2
    assert growth == pytest.approx((1 - 1 / classes) / 2, abs=1e-4)


def test_expected_first_loss_of_large_logits_is_the_expected_maximum():
    # E max of 2 standard normals is 1 / sqrt(pi), of 3 is 3 / (2 sqrt(pi))
    for classes, maximum in ((2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))):
        assert expected_first_loss(100.0, classes) / 100 == pytest.approx(maximum, rel=1e-3)


@pytest.mark.parametrize(("std", "classes", "said"), [(-1, 27, "-1"), (math.nan, 27, "nan"), (1, 0, "classes")])
def test_bad_arguments(std, classes, said):
    with pytest.raises(ValueError, match=said):
        expected_first_loss(std, classes)
