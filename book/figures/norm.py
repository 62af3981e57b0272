"""One feature of a batch, and one row of weights before a norm."""

import math

import torch
from torch import Tensor

from mmlib.moving import Choice, Grid, Mark, Moving, Number, Panel, Slider
from mmlib.norm import BatchNorm1d, moments, standardize
from mmlib.plots import Axis
from mmlib.rng import generator

DRAGGED = (-16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
SIZES = (2, 4, 8, 16, 32)
MODES = {"training": None, "evaluation after 2 steps": 2, "evaluation after 20 steps": 20}
SEEN = (0, 1, 2, 3, 5, 8, 12, 16, 20, 30, 40)


def batch(size: int) -> Tensor:
    """A column for every place the first example is dragged to; its mates are the same in all: (size, places)."""
    mates = torch.randn(max(SIZES), dtype=torch.float64, generator=generator(3, "mates"))[:size]
    x = mates.unsqueeze(1).repeat(1, len(DRAGGED))
    x[0] = torch.tensor(DRAGGED, dtype=torch.float64)
    return x


def normalised(x: Tensor, steps: int | None) -> Tensor:
    """The batch norm of x in training, or in evaluation after it has seen x so many times."""
    norm = BatchNorm1d(len(DRAGGED)).double()
    if steps is not None:
        for _ in range(steps):
            norm(x)
        norm.eval()
    return norm(x).detach()


def running(x: Tensor) -> Tensor:
    """The running mean after so many steps on x, for every place: (places, SEEN)."""
    norm, means = BatchNorm1d(len(DRAGGED)).double(), {0: torch.zeros(len(DRAGGED), dtype=torch.float64)}
    for step in range(1, SEEN[-1] + 1):
        norm(x)
        means[step] = norm.running_mean.clone()
    return torch.stack([means[step] for step in SEEN], 1)


def padded(x: Tensor) -> Tensor:
    """(n, places) to (places, 32), the last mate repeated: it is drawn on itself."""
    return torch.cat([x, x[-1:].expand(max(SIZES) - len(x), -1)]).T


def batch_feature() -> Moving:
    """One feature of a batch: drag one example's value and see what becomes of all."""
    batches = [batch(n) for n in SIZES]
    x_hat = torch.stack([torch.stack([padded(normalised(x, steps)) for x in batches]) for steps in MODES.values()])
    in_order = [1, *range(2, max(SIZES))]
    mean = torch.stack([moments(x, 0)[0][0] for x in batches])
    tracked = torch.stack([running(x) for x in batches])
    used = torch.stack([tracked[..., SEEN.index(steps)] if steps else mean for steps in MODES.values()])
    cap = torch.tensor([math.sqrt(n - 1) for n in SIZES], dtype=torch.float64)
    over = ("mode", "n", "value")
    arrays = {
        "mates": Grid(("n",), torch.stack([padded(x)[0] for x in batches])[:, in_order], decimals=2),
        "mates_hat": Grid(over, x_hat[..., in_order], decimals=2),
        "own_hat": Grid(over, x_hat[..., 0], decimals=4),
        "cap": Grid(("n",), cap),
        "below": Grid(("n",), -cap),
        "mean": Grid(("n", "value"), mean, decimals=4),
        "running": Grid(("n", "value"), tracked, decimals=3),
        "second": Grid(over, x_hat[..., 1], decimals=4),
        "step": Grid((), torch.tensor(SEEN)),
        "used": Grid(over, used, decimals=4),
    }
    return Moving(
        "batch-feature",
        "One feature of a batch",
        "In training no example gets beyond the square root of n − 1, however far it is dragged: it takes mean and "
        "standard deviation with it, and its mates crowd together at the other side. In evaluation mates do not count, "
        "and the running mean, a tenth nearer with every step, needs some twenty steps to be the batch's.",
        {
            "value": Slider("value of one example", DRAGGED, 24.0),
            "n": Slider("batch size n", SIZES, 8),
            "mode": Choice("mode", list(MODES)),
        },
        arrays,
        [
            Panel(
                "Before and after",
                "The dragged example and its mates: value across, normalised value up, all on one straight line.",
                Axis("x", -18, 34),
                Axis("normalised x", -11, 13),
                [
                    Mark("across", "cap", "cap", "±√(n − 1)", "theory"),
                    Mark("across", "below", "below", "", "theory"),
                    Mark("points", "mates", "mates_hat", "mates", 0),
                    Mark("points", "value", "own_hat", "the dragged one", 1),
                ],
            ),
            Panel(
                "The running mean lags",
                "The running mean starts at 0 and approaches the batch's own mean, most of the way in twenty steps.",
                Axis("training steps on this batch", 0, 40),
                Axis("mean", -9, 17),
                [
                    Mark("across", "mean", "mean", "mean of the batch", "theory"),
                    Mark("line", "step", "running", "running mean", 0),
                ],
            ),
        ],
        [
            Number("the dragged one becomes", "own_hat"),
            Number("its first mate", "second"),
            Number("cap √(n − 1)", "cap"),
            Number("mean of the batch", "mean"),
            Number("mean used", "used"),
        ],
    )


LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
RATES = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0)
STEPS = 20


def descent() -> tuple[Tensor, Tensor]:
    """A row w of two weights before a norm, from every length at every rate: w and dL/dw, (lengths, rates, steps, 2).

    The norm sees 64 products w x and has to give back those of one direction: L depends on the direction of w alone.
    """
    x = torch.randn(64, 2, dtype=torch.float64, generator=generator(0, "inputs"))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    target = standardize(x[:, :1], *moments(x[:, :1], 0), 0.0)
    start = torch.tensor([math.cos(2.0), math.sin(2.0)], dtype=torch.float64)
    w = (torch.tensor(LENGTHS, dtype=torch.float64).repeat_interleave(len(RATES))[:, None] * start).requires_grad_()
    rate = torch.tensor(RATES, dtype=torch.float64).repeat(len(LENGTHS))[:, None]
    path, slopes = [], []
    for _ in range(STEPS + 1):
        z = x @ w.T
        loss = (standardize(z, *moments(z, 0), 1e-30) - target).square().mean(0).sum()
        (g,) = torch.autograd.grad(loss, w)
        path.append(w.detach())
        slopes.append(g)
        w = (w - rate * g).detach().requires_grad_()
    return tuple(torch.stack(s, 1).unflatten(0, (len(LENGTHS), len(RATES))) for s in (path, slopes))


def weight_row() -> Moving:
    """A weight row before a norm: its length and the learning rate; the angle per step, the growing length."""
    w, g = descent()
    length = w.norm(dim=-1)
    rate = torch.tensor(RATES, dtype=torch.float64)[:, None]
    angle = (rate * g.norm(dim=-1) / length).atan() * 180 / math.pi
    over = ("length", "rate", "step")
    arrays = {
        "w1": Grid(over, w[..., 0], decimals=3),
        "w2": Grid(over, w[..., 1], decimals=3),
        "long": Grid(over, length, digits=4, decimals=4),
        "angle": Grid(over, angle, decimals=2),
        "target1": Grid((), torch.tensor([0.0, 9.0], dtype=torch.float64)),
        "target2": Grid((), torch.tensor([0.0, 0.0], dtype=torch.float64)),
        "effective": Grid(over, rate / length**2, decimals=4),
    }
    return Moving(
        "weight-row",
        "A weight row before a norm",
        "Every step leads off at a right angle, so the row only gets longer. What turns it is the rate divided by the "
        "length squared: twice the length at four times the rate takes the same angles. A short row leaps once and "
        "then is a long one.",
        {
            "step": Slider("step", range(STEPS + 1), 3),
            "length": Slider("length at the start", LENGTHS, 0.5),
            "rate": Slider("learning rate", RATES, 0.25),
        },
        arrays,
        [
            Panel(
                "The row in its plane",
                "The end of the row moves outwards on its way round to the direction where the loss is least.",
                Axis("first weight", -3, 6.7),
                Axis("second weight", -1, 4),
                [
                    Mark("line", "target1", "target2", "least loss", "theory"),
                    Mark("line", "w1", "w2", "way of the row", 0, along="step"),
                    Mark("points", "w1", "w2", "now", 1),
                ],
            ),
            Panel(
                "Length",
                "The length rises step by step and never falls.",
                Axis("step", 0, STEPS + 1),
                Axis("length", 0, 5),
                [
                    Mark("line", "step", "long", "length of the row", 0, along="step"),
                    Mark("points", "step", "long", "now", 1),
                ],
            ),
            Panel(
                "Angle of a step",
                "The angle that each step turns the row by, on a logarithmic axis.",
                Axis("step", 0, STEPS + 1),
                Axis("degrees a step", 0.1, 100, log=True, ticks=(0.1, 1, 10, 100)),
                [
                    Mark("line", "step", "angle", "angle of the step", 0, along="step"),
                    Mark("points", "step", "angle", "now", 1),
                ],
            ),
        ],
        [
            Number("length", "long"),
            Number("degrees turned by this step", "angle"),
            Number("rate / length²", "effective"),
        ],
    )
