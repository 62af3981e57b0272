"""What logits cost that know nothing of the target."""

import math

import torch

from mmlib.meanfield import expected_first_loss
from mmlib.moving import Grid, Mark, Moving, Number, Panel, Slider
from mmlib.plots import Axis
from mmlib.rng import generator

CLASSES, DRAWS = 27, 2000
SCALES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.1, 16.0, 20.0)


def predicted(scale: float) -> torch.Tensor:
    """E of softmax(s Z) in falling order, over many draws of Z: the distribution that such logits predict."""
    z = torch.randn(DRAWS, CLASSES, dtype=torch.float64, generator=generator(0, "logits"))
    return (scale * z).softmax(-1).sort(descending=True).values.mean(0)


def first_loss() -> Moving:
    """The first loss against the scale of the logits, and the distribution that is predicted."""
    loss = torch.tensor([expected_first_loss(s, CLASSES) for s in SCALES], dtype=torch.float64)
    p = torch.stack([predicted(s) for s in SCALES])
    arrays = {
        "loss": Grid(("s",), loss, digits=4),
        "above": Grid(("s",), loss - math.log(CLASSES), decimals=4),
        "p": Grid(("s",), p, decimals=4),
        "largest": Grid(("s",), 100 * p[:, 0]),
        "rank": Grid((), torch.arange(1, CLASSES + 1)),
        "uniform": Grid((), torch.tensor(1 / CLASSES, dtype=torch.float64)),
        "log27": Grid((), torch.tensor(math.log(CLASSES), dtype=torch.float64), digits=4),
    }
    return Moving(
        "first-loss",
        "The first loss and the scale of the logits",
        "Up to s = 0.3 the first loss is log 27 = 3.30 and the prediction nearly uniform. At s = 13, where the naive "
        "start is, one symbol of 27 gets most of the probability, whatever the input, and the loss is 26.",
        {"s": Slider("s, standard deviation of the logits", SCALES, 13.1)},
        arrays,
        [
            Panel(
                "Expected loss",
                "The loss stays at log 27 up to s = 0.3 and then rises, in the end by two nats for each unit of s.",
                Axis("s", 0.01, 25, log=True),
                Axis("loss at step 0 (nats)", 2.5, 50, log=True, ticks=(3, 5, 10, 20, 40)),
                [
                    Mark("across", "log27", "log27", "log 27", "theory"),
                    Mark("line", "s", "loss", "E log Σ exp(s Z)", 0, along="s"),
                    Mark("points", "s", "loss", "here", 1),
                ],
            ),
            Panel(
                "Predicted distribution",
                "The 27 probabilities in falling order: nearly equal for small s, one of them near 1 for large s.",
                Axis("symbol, most likely first", 0, 28),
                Axis("probability", 0, 1),
                [
                    Mark("bars", "rank", "p", "mean over draws", 0),
                    Mark("across", "uniform", "uniform", "1/27", "theory"),
                ],
            ),
        ],
        [
            Number("expected first loss", "loss", "nats"),
            Number("above log 27", "above", "nats"),
            Number("most likely symbol", "largest", "%"),
        ],
    )
