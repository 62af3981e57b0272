"""The dashboard of one network over its settings, and the blind diagnosis of six."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from mmlib.activations import TANH
from mmlib.checkup.record import record
from mmlib.checkup.rules import findings
from mmlib.data import Examples, Vocabulary, corpus, counting_floor, examples, minibatches, read_names, split
from mmlib.ensemble import repeated, stack
from mmlib.init import VarianceScaling, kaiming
from mmlib.layers import cross_entropy
from mmlib.models import MLP
from mmlib.moving import Check, Choice, Fault, Game, Grid, Mark, Moving, Number, Panel, Slider
from mmlib.norm import BatchNorm1d
from mmlib.plots import Axis
from mmlib.rng import generator
from mmlib.stats import rms, saturation, update_ratios
from mmlib.trace import Trace, trace
from mmlib.train import train

GAINS = (0.5, 1.0, TANH.gain, 2.0, 3.0)
CONFIDENCES = (0.01, 0.1, 1.0, 3.0)
RATES = (0.001, 0.01, 0.1, 1.0)
NORMS = {"none": None, "BatchNorm": BatchNorm1d}
HEALTHY = (GAINS.index(TANH.gain), CONFIDENCES.index(0.1), RATES.index(0.1))
WIDTH, STEPS, EVERY, BINS = 50, 11, 2, 24  # after more steps the loudest settings are chaos
WEIGHTS = ("linear1", "linear2", "linear3", "linear4", "linear5", "output")
SHOWN = ("linear1", "linear3", "linear5", "output")

Look = tuple[Trace, dict[str, Tensor], Tensor, list[str]]


def look(norm: Callable[[int], nn.Module] | None, few: list[Examples]) -> Look:
    """All settings, float64: the first pass of the networks, and for each with each rate, one after the other, as one
    stack: update:data and loss by step, and the checkup's verdicts.
    """
    recipe = MLP(depth=5, width=WIDTH, norm=norm)
    recipes = [replace(recipe, init=VarianceScaling(gain=g), confidence=c) for g, c in product(GAINS, CONFIDENCES)]
    networks = [r.build(generator(0, "weights")).double() for r in recipes]
    words = [word for model in networks for word in verdicts(model, few[0], *RATES)]
    alone = stack(networks)
    start = trace(alone, repeated(few[0], alone))
    models = stack([model for model in networks for _ in RATES])
    lr = torch.tensor(RATES, dtype=torch.float64).repeat(len(networks))
    history = train(models, (repeated(b, models) for b in few), lr=lr, probe=update_ratios, every=EVERY)
    updates = {name: series.values.T for name, series in history.probes.items()}
    return start, updates, history.loss.values.T, words


def verdicts(model: nn.Module, batch: Examples, *rates: float) -> list[str]:
    """The rules that a checkup finds broken at each rate, each with the first layer. It looks only once."""
    seen = record(model, *batch, cross_entropy)
    found = [findings(seen._replace(lr=rate), set()) for rate in rates]
    return ["; ".join(f"{one.rule} ({one.layer})" for one in some) or "no finding" for some in found]


def densities(h: Tensor) -> Tensor:
    """A histogram of each network's activations, as densities: (networks, BINS)."""
    return torch.stack([torch.histc(x, BINS, -1, 1) / x.numel() * BINS / 2 for x in h.flatten(1)])


def dashboard() -> Moving:
    """Gain, confidence, learning rate and norm: the four panels, a healthy network behind, the checkup's verdict."""
    few = list(minibatches(corpus(block_size=3).train, 32, STEPS, generator=generator(0, "batches")))
    looks = [look(norm, few) for norm in NORMS.values()]

    def at_start(take: Callable[[Trace], Tensor]) -> Tensor:
        """(norm, gain, confidence, ...)"""
        return torch.stack([take(seen[0]).unflatten(0, (len(GAINS), len(CONFIDENCES))) for seen in looks])

    def over_all(take: Callable[[Look], Tensor]) -> Tensor:
        """(norm, gain, confidence, rate, ...)"""
        shape = len(GAINS), len(CONFIDENCES), len(RATES)
        return torch.stack([take(seen).unflatten(0, shape) for seen in looks])

    over = ("norm", "gain", "confidence", "rate")
    h = {k: at_start(lambda s, k=k: densities(s.outputs[f"act{k}"]))[:, :, 0] for k in (1, 3, 5)}
    grads = at_start(lambda s: torch.stack([rms(s.output_grads[f"act{k}"]) for k in range(1, 6)], 1))
    weights = at_start(lambda s: torch.stack([rms(s.parameter_grads[f"{n}.weight"]) for n in WEIGHTS], 1))
    updates = {n: over_all(lambda s, n=n: s[1][f"{n}.weight"]) for n in SHOWN}
    loss = over_all(lambda s: s[2])
    flat = at_start(lambda s: torch.stack([saturation(s.outputs[f"act{k}"]) for k in range(1, 6)], 1).amax(1))
    words = [seen[3] for seen in looks]
    shape = (len(NORMS), len(GAINS), len(CONFIDENCES), len(RATES))
    gain, confidence, rate = HEALTHY
    centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * 2 / BINS - 1
    arrays = {
        "h": Grid((), centres),
        "layer": Grid((), torch.arange(1, 6)),
        "matrix": Grid((), torch.arange(1, 7)),
        "step": Grid((), torch.arange(0, STEPS, EVERY)),
        "thousandth": Grid((), torch.tensor(-3.0, dtype=torch.float64)),
        "gradient": Grid(over[:3], grads),
        "gradient healthy": Grid((), grads[0, gain, confidence]),
        "weight": Grid(over[:3], weights),
        "weight healthy": Grid((), weights[0, gain, confidence]),
        "first": Grid(over[:3], loss[..., 0, 0]),
        "last": Grid(over, loss[..., -5:].mean(-1), digits=2),
        "flat": Grid(over[:2], 100 * flat[:, :, 0], digits=2, decimals=1),
        "verdict": Grid(over, [unflattened(w, shape[1:]) for w in words]),
    }
    for k, x in h.items():
        arrays |= {f"h{k}": Grid(over[:2], x, decimals=2), f"h{k} healthy": Grid((), x[0, gain], decimals=2)}
    for name, x in updates.items():
        arrays |= {name: Grid(over, x, decimals=2)}
        arrays |= {f"{name} healthy": Grid((), x[0, gain, confidence, rate], decimals=2)}
    names = dict(zip(SHOWN, ("layer 1", "layer 3", "layer 5", "output"), strict=True))
    return Moving(
        "dashboard",
        "The dashboard",
        "Grey is a healthy network: Kaiming's gain, confidence 0.1, learning rate 0.1. The gain leaves its mark on all "
        "four panels; the confidence on the gradients of all layers but the last, and with them on the last panel; the "
        "learning rate on the last panel alone. With BatchNorm the gain no longer moves the activations, "
        "but still the size of the steps: the same gradient turns larger weights less.",
        {
            "gain": Slider("gain", GAINS, TANH.gain),
            "confidence": Slider("confidence", CONFIDENCES, 0.1),
            "rate": Slider("learning rate", RATES, 0.1),
            "norm": Choice("norm", list(NORMS)),
        },
        arrays,
        [
            Panel(
                "Activations",
                "Densities of h in layers 1, 3 and 5, over those of the healthy network.",
                Axis("h", -1, 1, ticks=(-1, -0.5, 0, 0.5, 1)),
                Axis("density", 0, 3),
                [
                    *(Mark("line", "h", f"h{k} healthy", "healthy" * (k == 1), "ghost") for k in h),
                    *(Mark("line", "h", f"h{k}", f"layer {k}", i) for i, k in enumerate(h)),
                ],
            ),
            Panel(
                "Their gradients",
                "The rms of the gradient by hidden layer, over that of the healthy network.",
                Axis("layer", 0.8, 5.2, ticks=(1, 2, 3, 4, 5)),
                Axis("rms of dL/dh", 1e-7, 1, log=True),
                [
                    Mark("line", "layer", "gradient healthy", "healthy", "ghost"),
                    Mark("line", "layer", "gradient", "", 0),
                    Mark("points", "layer", "gradient", "", 0),
                ],
            ),
            Panel(
                "Gradients of the weights",
                "The rms of the gradient of each weight matrix, the output layer the sixth, over the healthy network.",
                Axis("matrix, the 6th the output", 0.8, 6.2, ticks=(1, 2, 3, 4, 5, 6)),
                Axis("rms of dL/dW", 1e-7, 1, log=True),
                [
                    Mark("line", "matrix", "weight healthy", "healthy", "ghost"),
                    Mark("line", "matrix", "weight", "", 0),
                    Mark("points", "matrix", "weight", "", 0),
                ],
            ),
            Panel(
                "Update to data",
                "log10 of update:data over ten steps for four matrices, over the healthy network and the line at −3.",
                Axis("step", 0, 10),
                Axis("log10 update:data", -7, 2),
                [
                    *(Mark("line", "step", f"{n} healthy", "healthy" * (n == "output"), "ghost") for n in SHOWN),
                    Mark("across", "thousandth", "thousandth", "−3", "theory"),
                    *(Mark("line", "step", n, names[n], i) for i, n in enumerate(SHOWN)),
                ],
            ),
        ],
        [
            Number("loss at step 0", "first"),
            Number("loss in steps 6 to 10", "last"),
            Number("flat, worst layer", "flat", "%"),
            Number("checkup:", "verdict"),
        ],
    )


def unflattened(words: list[str], shape: tuple[int, ...]) -> list:
    """A flat list as nested lists."""
    if len(shape) == 1:
        return words
    size = math.prod(shape[1:])
    return [unflattened(words[k * size : (k + 1) * size], shape[1:]) for k in range(shape[0])]


RECIPE = MLP(block_size=8, depth=2, width=48, init=kaiming(TANH))
SEEDS = range(4)


def sound(seed: int) -> nn.Sequential:
    """Two hidden layers of 48 tanh units."""
    return RECIPE.build(generator(seed, "weights")).double()


def loud(seed: int) -> nn.Sequential:
    """Output weights 30 times as wide."""
    return replace(RECIPE, confidence=3).build(generator(seed, "weights")).double()


def dead(seed: int) -> nn.Sequential:
    """The second hidden layer is pushed out of reach."""
    model = sound(seed)
    with torch.no_grad():
        model.linear2.bias += 20
    return model


def squashed(seed: int) -> nn.Sequential:
    """A softmax, and cross-entropy takes another."""
    return nn.Sequential(*sound(seed), nn.Softmax(-1))


def as_is(batch: Examples) -> Examples:
    """The batch."""
    return batch


def late(batch: Examples) -> Examples:
    """The newest character is missing."""
    contexts = batch.contexts.roll(1, -1)
    contexts[..., 0] = 0
    return Examples(contexts, batch.targets)


def unpaired(batch: Examples) -> Examples:
    """Each input meets its neighbour's target."""
    return Examples(batch.contexts.roll(1, -2), batch.targets)


def zeros(batch: Examples) -> Examples:
    """A batch without inputs."""
    return Examples(torch.zeros_like(batch.contexts), batch.targets)


WARD = {
    "nothing is wrong": (sound, as_is, "It passes every check.", "None of the checks finds anything in it."),
    "inputs end a character too early": (
        sound,
        late,
        "Read aloud, the rows skip a letter. No number shows it: as a task it is sound, only not the one you meant.",
        "Only the rows themselves show it.",
    ),
    "inputs and targets belong to different examples": (
        sound,
        unpaired,
        "It learns one batch by heart, and on fresh ones inputs help less than none.",
        "Compare it with a network that sees nothing, or read the rows.",
    ),
    "output weights too wide": (
        loud,
        as_is,
        "The first loss is twice log 27: it is sure before it has seen anything.",
        "One forward pass shows it.",
    ),
    "a hidden layer is saturated": (
        dead,
        as_is,
        "Nothing of the input reaches the output: one batch stops at the entropy of its targets.",
        "One batch by heart, and where it stops, shows it; so does a checkup.",
    ),
    "softmax twice": (
        squashed,
        as_is,
        "The loss cannot get below 2.36, not even on one batch.",
        "One batch by heart, and where it stops, shows it; so does a checkup.",
    ),
}
HIDDEN = (4, 1, 3, 0, 5, 2)
TRIED = (0.03, 0.1, 0.3, 1.0)


def losses(build: Callable[[int], nn.Sequential], batches: list[Examples], *rates: float) -> Tensor:
    """The loss of four seeds at each rate, all on the same batches: (steps, rates, seeds)."""
    models = stack([build(seed) for _ in rates for seed in SEEDS]).float()
    lr = torch.tensor(rates).repeat_interleave(len(SEEDS))
    loss = train(models, (repeated(batch, models) for batch in batches), lr=lr).loss.values
    return loss.view(len(loss), len(rates), -1)


def reached(build: Callable[[int], nn.Sequential], batches: list[Examples]) -> Tensor:
    """The mean loss of the last 30 steps at the best of the rates TRIED, which behind a second softmax are larger."""
    rates = [27 * rate if build is squashed else rate for rate in TRIED]
    return losses(build, batches, *rates)[-30:].mean((0, 2)).nan_to_num(math.inf).min()


def blind_diagnosis() -> Game:
    """One hidden fault each, checks at their cost in examples, a fault to be named."""
    names = read_names()
    vocabulary = Vocabulary.of(names)
    fifth, _ = split(names, 0.2, 0.8, generator=generator(0, "split"))
    data = examples(fifth, vocabulary, 8)
    one, *fresh = minibatches(data, 32, 81, generator=generator(0, "batches"))
    costs = {
        "read six rows of the batch": 0,
        "the loss at step 0": 32,
        "a checkup": 32 + 16,  # some go forward again while one of them is exchanged
        "one batch by heart": 90 * 32,
        "against a network that sees nothing": 2 * len(TRIED) * 80 * 32,
    }
    blind = {build: reached(build, [*map(zeros, fresh)]) for build, *_ in WARD.values()}
    answers = [answered(build, path, one, fresh, blind[build], vocabulary) for build, path, *_ in WARD.values()]
    checks = [Check(label, cost, [a[k] for a in answers]) for k, (label, cost) in enumerate(costs.items())]
    return Game(
        "blind-diagnosis",
        "Six networks: what is wrong with each?",
        "Every network predicts the next letter of a name from eight. At most one thing is wrong with each. The cost "
        "of a check is the number of examples that go through the network; reading costs none, and a minute of yours.",
        "examples",
        [Fault(name, why, hint) for name, (_, _, why, hint) in WARD.items()],
        checks,
        HIDDEN,
    )


def answered(
    build: Callable, path: Callable, one: Examples, fresh: list[Examples], blind: Tensor, vocabulary: Vocabulary
) -> list[str]:
    """What each check says of one patient."""
    given, decode = path(one), vocabulary.decode
    rows = "\n".join(f"{decode(given.contexts[k])} → {decode(given.targets[k : k + 1])}" for k in range(6))
    with torch.no_grad():
        first = torch.stack([cross_entropy(build(seed)(given.contexts), given.targets) for seed in SEEDS]).mean()
    heart = losses(build, [given] * 90, 0.2)[-1].mean()
    _, inverse = given.contexts.unique(dim=0, return_inverse=True)
    floor = counting_floor(Examples(inverse[:, None], given.targets), 1)
    gain = blind - reached(build, [*map(path, fresh)])
    return [
        rows,
        f"{first:.2f}; log 27 is {math.log(27):.2f}",
        *verdicts(build(0), given, 0.1),
        f"{heart:.1f} nats after 90 steps; the least possible on this batch is {floor:.1f}",
        f"its inputs are worth {gain:+.1f} nats, each run at its best rate".replace("-0.0", "+0.0"),
    ]
