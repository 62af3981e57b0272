"""What an experiment with n pairs can find, and how two runs that start nearly alike part."""

import math

import torch
from scipy.special import gammaincinv, ndtr, stdtrit
from torch import Tensor

from mmlib.moving import Grid, Mark, Moving, Number, Panel, Slider
from mmlib.plots import Axis

EFFECTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.0)
SEEDS = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
COMPARISONS = (1, 2, 4, 8, 16, 32)
QUANTILES = 1000


def findings(effect: float, n: int, level: float) -> tuple[float, float]:
    """The power of a paired t test with n differences, true mean d, spread 1; and what it reports when it finds.

    Given the measured spread s, the mean is N(d, 1/n) and is found beyond t s / sqrt(n): both are integrals over one
    normal, averaged over the quantiles of s. The report is E |mean| given that it was found, in units of d.
    """
    quantile = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    s = torch.from_numpy(2 * gammaincinv((n - 1) / 2, quantile.numpy()) / (n - 1)).sqrt()
    limit, mean = float(stdtrit(n - 1, 1 - level / 2)) * s, math.sqrt(n) * effect
    above, below = limit - mean, -limit - mean
    found = torch.from_numpy(ndtr(-above.numpy()) + ndtr(below.numpy()))
    bell = [torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in (above, below)]
    size = mean * torch.from_numpy(ndtr(-above.numpy()) - ndtr(below.numpy())) + bell[0] + bell[1]
    power = found.mean().item()
    return power, size.mean().item() / power / math.sqrt(n)


def power() -> Moving:
    """Power, exaggeration and false findings for true d/s, n and number of comparisons."""
    alone = [[findings(d, n, 0.05) for n in SEEDS] for d in EFFECTS]
    shared = [[[findings(d, n, 0.05 / m)[0] for m in COMPARISONS] for n in SEEDS] for d in EFFECTS]
    found, reported = torch.tensor(alone, dtype=torch.float64).unbind(-1)
    m = torch.tensor(COMPARISONS, dtype=torch.float64)
    arrays = {
        "found": Grid(("effect", "n"), 100 * found, decimals=2),
        "corrected": Grid(("effect", "n", "m"), 100 * torch.tensor(shared, dtype=torch.float64), decimals=2),
        "reported": Grid(("effect", "n"), reported),
        "false": Grid(("m",), 0.05 * m, digits=2),
        "one": Grid(("m",), 100 * (1 - 0.95**m)),
        "eighty": Grid((), torch.tensor(80.0, dtype=torch.float64)),
    }
    return Moving(
        "power",
        "What an experiment of n seeds finds",
        "Eight seeds find a true difference of 0.9 standard deviations in about six of ten experiments, "
        "one of 0.3 in one of nine. What they find then is reported almost three times too large, since only luck "
        "gets it past the limit. Sixteen comparisons of nothing have a false finding in more than half of all cases; "
        "dividing the level by their number prevents that, at a price in power.",
        {
            "n": Slider("seeds n", SEEDS, 8),
            "effect": Slider("true difference d/s", EFFECTS, 0.3),
            "m": Slider("number of comparisons", COMPARISONS, 16),
        },
        arrays,
        [
            Panel(
                "Found",
                "Power against the number of seeds: it rises, and is lower when the level is shared by many "
                "comparisons.",
                Axis("seeds n", 2.5, 70, log=True, ticks=(3, 8, 16, 32, 64)),
                Axis("experiments that find it (%)", 0, 105),
                [
                    Mark("across", "eighty", "eighty", "80 %", "theory"),
                    Mark("line", "n", "found", "at 5 %", 0, along="n"),
                    Mark("line", "n", "corrected", "at 5 % / comparisons", 1, along="n"),
                    Mark("points", "n", "found", "", 0),
                    Mark("points", "n", "corrected", "", 1),
                ],
            ),
            Panel(
                "Reported",
                "The size that is reported when something was found lies above the true one until n is large.",
                Axis("seeds n", 2.5, 70, log=True, ticks=(3, 8, 16, 32, 64)),
                Axis("difference, in s", 0, 2.5),
                [
                    Mark("across", "effect", "effect", "true", "theory"),
                    Mark("line", "n", "reported", "reported when found", 0, along="n"),
                    Mark("points", "n", "reported", "", 0),
                ],
            ),
        ],
        [
            Number("found", "found", "%"),
            Number("found at 5 % / comparisons", "corrected", "%"),
            Number("reported when found, in s", "reported"),
            Number("false findings if nothing is there", "false"),
            Number("at least one", "one", "%"),
        ],
    )


RATES = (0.1, 0.2, 0.5, 1.0, 1.5, 1.8, 1.9, 2.0, 2.05, 2.1, 2.2, 2.4, 2.7, 3.0)
BENDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
AT = (0, 2, 4, 6, 8, 10, 14, 18, 22, 26, 30, 36, 42, 48, 54, 60, 70, 80, 90, 100)
NUDGE = 3e-7


def distance(rates: Tensor, curvature: Tensor) -> Tensor:
    """|1 - lr curvature|^t times the nudge, in the last axis for every step in AT."""
    return NUDGE * (1 - rates * curvature).abs().unsqueeze(-1) ** torch.tensor(AT, dtype=torch.float64)


def twins() -> Moving:
    """Twins parting on a quadratic with one positive curvature, 1, and one negative."""
    rate, bend = (torch.tensor(x, dtype=torch.float64) for x in (RATES, BENDS))
    up, down = distance(rate, torch.ones(())), distance(rate[:, None], -bend)
    both = (up[:, None] ** 2 + down**2).sqrt()
    arrays = {
        "at": Grid((), torch.tensor(AT)),
        "up": Grid(("lr",), up, digits=2),
        "down": Grid(("lr", "bend"), down, digits=2),
        "both": Grid(("lr", "bend"), both, digits=2),
        "after": Grid(("lr", "bend"), both[..., -1] / (math.sqrt(2) * NUDGE)),
        "unchanged": Grid((), torch.tensor(1.0, dtype=torch.float64)),
        "by_up": Grid(("lr",), (1 - rate).abs(), decimals=4),
        "by_down": Grid(("lr", "bend"), 1 + rate[:, None] * bend, digits=4),
    }
    return Moving(
        "twins",
        "Twins parting",
        "Below a learning rate of 2 the positive curvature draws the twins together and only the negative one parts "
        "them, slowly. Beyond 2 the positive one parts them too, by 1.2 a step at 2.2, and soon outruns the other.",
        {
            "lr": Slider("learning rate", RATES, 2.2),
            "bend": Slider("negative curvature, minus", BENDS, 0.02),
        },
        arrays,
        [
            Panel(
                "Distance between the twins",
                "Along the positive curvature the distance falls below a rate of 2 and rises above; along the other "
                "it rises.",
                Axis("step", 0, 104),
                Axis("distance", 1e-12, 1e6, log=True),
                [
                    Mark("line", "at", "both", "both together", "ghost"),
                    Mark("line", "at", "up", "along curvature 1", 0),
                    Mark("line", "at", "down", "along the negative one", 1),
                ],
            ),
            Panel(
                "Factor a step",
                "Against the learning rate: 1 minus it for the positive curvature, beyond 1 from a rate of 2 on; a "
                "slow rise.",
                Axis("learning rate", 0, 3.1),
                Axis("factor on the distance", 0, 2.1),
                [
                    Mark("across", "unchanged", "unchanged", "unchanged", "theory"),
                    Mark("line", "lr", "by_up", "along curvature 1", 0, along="lr"),
                    Mark("line", "lr", "by_down", "along the negative one", 1, along="lr"),
                    Mark("points", "lr", "by_up", "", 0),
                    Mark("points", "lr", "by_down", "", 1),
                ],
            ),
        ],
        [
            Number("per step, along curvature 1: times", "by_up"),
            Number("along the negative one: times", "by_down"),
            Number("after 100 steps: times", "after"),
        ],
    )
