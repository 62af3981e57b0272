"""A tanh unit, a deep network, and the variance map, as theory predicts them."""

import math

import torch
from torch import Tensor

from mmlib.activations import GELU, RELU, SIGMOID, TANH, Activation
from mmlib.gaussian import expectation
from mmlib.meanfield import chi, expected_saturation, fixed_point, propagate, variance_map
from mmlib.moving import Choice, Grid, Mark, Moving, Number, Panel, Slider
from mmlib.plots import Axis


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SPREADS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 5.48, 6.0, 8.0, 10.0)
BINS = 20


def shares(spread: float) -> Tensor:
    """P(a < tanh(spread Z) < b) for equal bins from -1 to 1."""
    z = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64).atanh() / spread
    return torch.special.ndtr(z).diff()


def saturated_unit() -> Moving:
    """One tanh unit: the histogram of h, the share that is saturated, and the gradient that is left."""
    left = _double([expectation(lambda z, s=s: TANH.derivative(s * z)) for s in SPREADS])
    flat = _double([expected_saturation(s**2, TANH, 0.99) for s in SPREADS])
    edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64)
    arrays = {
        "h": Grid((), (edges[1:] + edges[:-1]) / 2, digits=4),
        "share": Grid(("spread",), 100 * torch.stack([shares(s) for s in SPREADS]), decimals=3),
        "left": Grid(("spread",), 100 * left),
        "flat": Grid(("spread",), 100 * flat, decimals=2),
    }
    return Moving(
        "saturated-unit",
        "One tanh unit",
        "At a spread of 1 hardly anything is saturated and 61 % of the gradient passes. At 5.48, the naive start's, "
        "63 % of all h lie beyond 0.99 and the mean slope is down to 14 %: what is left comes from the few between.",
        {"spread": Slider("spread of the pre-activations", SPREADS, 5.48)},
        arrays,
        [
            Panel(
                "The activation h",
                "A bell for small spread; two towers at −1 and 1 with next to nothing between them for a large one.",
                Axis("h = tanh(spread × Z)", -1, 1, ticks=(-1, -0.5, 0, 0.5, 1)),
                Axis("share of examples (%)", 0, 50),
                [Mark("bars", "h", "share", "", 0)],
            ),
            Panel(
                "What is saturated, what passes",
                "As the spread grows, the saturated share rises from 0 and the mean slope falls from 100 %.",
                Axis("spread of the pre-activations", 0, 10.5),
                Axis("%", 0, 105),
                [
                    Mark("line", "spread", "flat", "|h| > 0.99", 0, along="spread"),
                    Mark("line", "spread", "left", "mean slope 1 − h²", 1, along="spread"),
                    Mark("points", "spread", "flat", "", 0),
                    Mark("points", "spread", "left", "", 1),
                ],
            ),
        ],
        [
            Number("saturated, |h| > 0.99", "flat", "%"),
            Number("gradient left, mean of 1 − h²", "left", "%"),
        ],
    )


GAINS = (0.5, 0.75, 1.0, 1.25, 1.5, 5 / 3, 1.75, 2.0, 2.5, 3.0)
DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50)
PHIS = (TANH, SIGMOID, RELU, GELU)
STEEPEST = {"sigmoid": 0.25, "GELU": 1.129}
NORMS = ("none", "BatchNorm", "RMSNorm")


SLOPES = {phi: Activation(f"slope of {phi.name}", phi.derivative) for phi in PHIS}


def flat(q: float, phi: Activation) -> float:
    """The share of units whose slope is below 2 % of its largest; for tanh those beyond 0.99."""
    return 1 - expected_saturation(q, SLOPES[phi], 0.02 * STEEPEST.get(phi.name, 1.0))


def normed(phi: Activation, norm: str) -> tuple[Tensor, Tensor, Tensor]:
    """rms, gradient and flat share by depth when a norm before phi makes every variance 1.

    It divides the gradient by what it divides the signal by. BatchNorm takes the mean off, which is most of a
    sigmoid's or a ReLU's h: the factor on a gradient's variance is E phi'^2 / Var phi, for ReLU pi / (pi - 1).
    """
    square = expectation(lambda z: phi(z) ** 2)
    spread = square - expectation(phi) ** 2 if norm == "BatchNorm" else square
    factor = chi(1.0, phi, 1.0) / spread
    depth = _double(DEPTHS)
    same = torch.ones_like(depth)
    return math.sqrt(square) * same, factor ** ((depth - 1) / 2), flat(1.0, phi) * same


def plain(phi: Activation, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    """rms of h_l, the gradient at layer 1 in units of that at layer l, and the flat share, at every depth l."""
    flow = propagate(phi, gain, DEPTHS[-1])
    at = torch.tensor(DEPTHS) - 1
    share = _double([flat(q, phi) for q in flow.q[at].tolist()])
    return flow.rms[at], (flow.growth[0] / flow.growth)[at], share


def deep_signal() -> Moving:
    """Gain, depth, activation and norm: activation rms, gradient and flat share by layer, fifty layers."""
    cases = [
        [[plain(phi, g) if norm == "none" else normed(phi, norm) for g in GAINS] for norm in NORMS] for phi in PHIS
    ]
    stacked = torch.stack([torch.stack([torch.stack([torch.stack(c) for c in n]) for n in a]) for a in cases])
    over = ("activation", "norm", "gain", "depth")
    rms, gradient, share = stacked.unbind(3)
    arrays = {
        "rms": Grid(over, rms, digits=2),
        "gradient": Grid(over, gradient, digits=2),
        "flat": Grid(over, 100 * share, digits=2, decimals=1),
        "one": Grid((), _double(1.0)),
    }
    depth, wide = Axis("layer l", 0, 52), {"log": True}
    line = {"x": "depth", "label": "", "look": 0, "along": "depth"}

    def marks(array: str) -> list[Mark]:
        return [Mark("line", y=array, **line), Mark("points", "depth", array, "at this depth", 1)]

    return Moving(
        "deep-signal",
        "Gain, depth, activation and norm",
        "For tanh no gain keeps both directions: at 5/3 the signal stays and the gradient of a fifty-layer network "
        "grows eightyfold going back; at 1 both fade. ReLU keeps both at the square root of 2 only. A norm makes the "
        "gain irrelevant; BatchNorm still lets ReLU's gradient grow by the square root of π/(π − 1), 21 % a layer.",
        {
            "gain": Slider("gain", GAINS, 5 / 3),
            "depth": Slider("depth", DEPTHS, 50),
            "activation": Choice("activation", [phi.name for phi in PHIS]),
            "norm": Choice("norm before the activation", NORMS),
        },
        arrays,
        [
            Panel(
                "Signal",
                "The rms of h by layer: level at the right gain or with a norm, a straight line down or up otherwise.",
                depth,
                Axis("rms of h", 1e-8, 1e8, **wide),
                [Mark("across", "one", "one", "unchanged", "theory"), *marks("rms")],
            ),
            Panel(
                "Gradient",
                "The gradient at layer 1 in units of that at layer l: how a network of depth l shrinks or blows it up.",
                depth,
                Axis("gradient, layer 1 : layer l", 1e-8, 1e8, **wide),
                [Mark("across", "one", "one", "unchanged", "theory"), *marks("gradient")],
            ),
            Panel(
                "Flat units",
                "The share of units with a slope below 2 % of the largest, by layer.",
                depth,
                Axis("flat (%)", 0, 100),
                marks("flat"),
            ),
        ],
        [
            Number("rms of h", "rms"),
            Number("gradient, first layer : last", "gradient"),
            Number("flat", "flat", "%"),
        ],
    )


MAP_GAINS = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.4, 1.5, 1.5925, 5 / 3, 1.8, 2.0, 2.25, 2.5, 3.0)
FIRST = (0.01, 0.03, 0.1, 0.3, 1.0, 2.78, 10.0)
STEPS, LAYERS = 14, (1, 2, 3, 5, 8, 12, 17, 23, 30, 40, 50)


def variance_staircase() -> Moving:
    """The variance map of tanh with its staircase, and what follows from where it ends."""
    curve = torch.logspace(-2.3, 1.2, 30, dtype=torch.float64)
    flows = [[propagate(TANH, g, LAYERS[-1], q1 / g**2) for q1 in FIRST] for g in MAP_GAINS]
    star = [fixed_point(TANH, g) for g in MAP_GAINS]
    at = torch.tensor(LAYERS) - 1
    growth = torch.stack([torch.stack([(f.growth[0] / f.growth)[at] for f in row]) for row in flows])
    per_gain = {
        "star": _double(star),
        "std": _double([math.sqrt(q) / g for q, g in zip(star, MAP_GAINS, strict=True)]),
        "beyond": _double([100 * expected_saturation(q, TANH, 0.97) for q in star]),
        "chi": _double([chi(q, TANH, g) for q, g in zip(star, MAP_GAINS, strict=True)]),
        "map": _double([[variance_map(q, TANH, g) for q in curve.tolist()] for g in MAP_GAINS]),
    }
    arrays = {key: Grid(("gain",), values, decimals=5) for key, values in per_gain.items()}
    arrays |= {
        "q": Grid((), curve),
        "stairs": Grid(("gain", "q1"), torch.stack([torch.stack([f.q[:STEPS] for f in row]) for row in flows])),
        "layer": Grid((), torch.tensor(LAYERS)),
        "growth": Grid(("gain", "q1"), growth, digits=3),
        "fifty": Grid(("gain", "q1"), growth[..., -1]),
        "one": Grid((), _double(1.0)),
    }
    return Moving(
        "variance-staircase",
        "The variance map and its staircase",
        "Above gain 1 every start climbs or falls to the same q*, within a few layers. There χ is above 1 whatever the "
        "gain: what keeps the signal makes the gradient grow going back, at 5/3 by 10 % a layer.",
        {"gain": Slider("gain", MAP_GAINS, 5 / 3), "q1": Slider("q₁, variance in the first layer", FIRST, 0.03)},
        arrays,
        [
            Panel(
                "From one layer to the next",
                "The map crosses the diagonal at q*; the staircase between them starts at q1 and ends there.",
                Axis("q of layer l", 0.005, 15, log=True, ticks=(0.01, 0.1, 1, 10)),
                Axis("q of layer l + 1", 0.005, 15, log=True, ticks=(0.01, 0.1, 1, 10)),
                [
                    Mark("line", "q", "q", "same q", "theory"),
                    Mark("line", "q", "map", "gain² E tanh²(√q Z)", 0),
                    Mark("stairs", "stairs", "stairs", "layer by layer", 1),
                ],
            ),
            Panel(
                "Going back",
                "The gradient at layer 1 in units of that at layer l, on a logarithmic axis.",
                Axis("layer l", 0, 50),
                Axis("gradient, layer 1 : layer l", 1e-6, 1e6, log=True),
                [
                    Mark("across", "one", "one", "unchanged", "theory"),
                    Mark("line", "layer", "growth", "", 1),
                ],
            ),
        ],
        [
            Number("q*", "star"),
            Number("std of h", "std"),
            Number("beyond 0.97", "beyond", "%"),
            Number("χ", "chi"),
            Number("gradient over fifty layers: times", "fifty"),
        ],
    )
