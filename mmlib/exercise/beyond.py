"""The exercises on other optimisers, on networks beyond the running example, and on things that people say."""

import math

import torch
from torch import Tensor, nn

from mmlib.exercise.kinds import Choice, Exercise, Function, Number, Numbers, draws

# Adam and momentum


def _adamw(
    W: Tensor,
    G: Tensor,
    M: Tensor,
    S: Tensor,
    t: int,
    eta: float,
    decay: float,
    *,
    coupled=0.0,
    corrected=True,
    share=1.0,
) -> Tensor:
    G = G + coupled * decay * W
    M.lerp_(G, 0.1)
    S.lerp_(G**2, 0.001)
    up, down = (1 - 0.9**t, 1 - 0.999**t) if corrected else (1.0, 1.0)
    return (1 - share * decay) * W - eta * (M / up) / ((S / down).sqrt() + 1e-8)


def _coupled(W: Tensor, G: Tensor, M: Tensor, S: Tensor, t: int, eta: float, decay: float) -> Tensor:
    return _adamw(W, G, M, S, t, eta, decay, coupled=1.0, share=0.0)


def _decoupled(
    W: Tensor, G: Tensor, M: Tensor, S: Tensor, t: int, eta: float, decay: float, *, times=None, **options
) -> Tensor:
    return _adamw(W, G, M, S, t, eta, decay, share=eta if times is None else times, **options)


def _three_steps(step, eta: float, decay: float) -> list[Tensor]:
    W, M, S = draws(4, 3), torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    path = []
    for t in (1, 2, 3):
        W = step(W, draws(4, 3, seed=t), M, S, t, eta, decay)
        path.append(W.clone())
    return path


_ADAM = {
    "ex-18-first": Function(
        "how many times as long the first step is without the two corrections, from beta1 and beta2",
        lambda b1, b2: (1 - b1) / math.sqrt(1 - b2),
        {f"for {b1} and {b2}": lambda b1=b1, b2=b2: (b1, b2) for b1, b2 in ((0.9, 0.999), (0.9, 0.95), (0.5, 0.99))},
        {
            "S is under a root.": lambda b1, b2: (1 - b1) / (1 - b2),
            "That is how many times as long it is with them.": lambda b1, b2: math.sqrt(1 - b2) / (1 - b1),
            "S is too small as well, and it is divided by.": lambda b1, b2: 1 - b1,
        },
        "At t = 1, M = (1 - beta1) G and S = (1 - beta2) G^2.",
    ),
    "ex-18-torch": Function(
        "the rate for torch's SGD with momentum that takes the steps of rate eta here, from eta and beta1",
        lambda eta, b: eta * (1 - b),
        {f"for {eta} and {b}": lambda eta=eta, b=b: (eta, b) for eta, b in ((0.3, 0.9), (1.0, 0.5), (0.1, 0.99))},
        {
            "Torch's sum is the larger one, so that its rate is the smaller.": lambda eta, b: eta / (1 - b),
            "Torch adds the gradients up and does not take a mean of them.": lambda eta, b: eta,
            "A gradient is counted 1 + beta1 + beta1^2 + ... times in all.": lambda eta, b: eta * b,
        },
        "Torch's buffer is M / (1 - beta1).",
    ),
    "ex-18-noise": Function(
        "the rms of M for independent gradients of mean 0 and rms 1, long after the start, from beta1",
        lambda b: math.sqrt((1 - b) / (1 + b)),
        {f"for beta1 = {b}": lambda b=b: (b,) for b in (0.0, 0.5, 0.9, 0.99)},
        {
            "That is its variance.": lambda b: (1 - b) / (1 + b),
            "That is the share of the newest gradient alone.": lambda b: 1 - b,
            "The squares of the shares add up to (1 - beta1)^2 / (1 - beta1^2), not to 1 - beta1.": lambda b: math.sqrt(
                1 - b
            ),
            "That is the ratio upside down.": lambda b: math.sqrt((1 + b) / (1 - b)),
        },
        "Add (1 - beta1)^2 beta1^(2k) over all k, and take the root.",
    ),
    "ex-18-adamw": Function(
        "step(W, G, M, S, t, eta, decay), the weights after one step",
        _decoupled,
        {
            f"for eta = {eta} and decay = {decay}": lambda eta=eta, decay=decay: (eta, decay)
            for eta, decay in ((0.01, 0.0), (0.01, 0.1), (0.1, 1.0))
        },
        {
            "That decay goes through the gradient, where it is divided by the root of S.": _coupled,
            "The share that decays in a step is eta times decay.": lambda *x: _decoupled(*x, times=x[-1]),
            "The corrections by 1 - beta^t are missing.": lambda *x: _decoupled(*x, corrected=False),
            "Decay makes the weights smaller.": lambda *x: _decoupled(*x, times=-x[-2]),
        },
        "(1 - eta decay) W - eta U, with U of the gradient alone.",
        observe=_three_steps,
    ),
    "ex-18-long": Number(
        "the steps until a tenth of the excess of W^2 is left",
        math.log(10) / (2e-5),
        {
            math.log(10) / 1e-5: "W shrinks by eta lambda in a step, W^2 by twice that.",
            1 / 2e-5: "That is how long until 1/e is left.",
            math.log(10) / 2e-2: "Both the rate and the decay are in the exponent.",
        },
        "The excess shrinks by 2 eta lambda in every step.",
    ),
    "ex-18-loss": Choice(
        "the names of those that take another path",
        {
            "plain descent": "Its step is a hundred times as long.",
            "momentum": "M is a mean of gradients, and a hundred times as large.",
            "Adam, coupled decay": "Beside gradients a hundred times as large, decay W is next to nothing.",
        },
        {
            "Adam": "M and the root of S grow alike.",
            "Adam, decoupled decay": "Neither U nor the share that decays has to do with the loss.",
        },
    ),
}

# Beyond this model


def _fans(conv: nn.Conv2d, *, area=True, groups=True, transposed=False) -> list[int]:
    size = math.prod(conv.kernel_size) if area else 1
    into, out = conv.in_channels * size, conv.out_channels * size
    fans = [n // (conv.groups if groups else 1) for n in (into, out)]
    return fans[::-1] if transposed else fans


def _conv(channels: int, units: int, kernel: int | tuple[int, int], groups: int) -> tuple[nn.Conv2d]:
    with torch.random.fork_rng():
        return (nn.Conv2d(channels, units, kernel, groups=groups),)


def _normalised(x: Tensor, eps: float, *, over=(0, 2, 3), correction: int = 0) -> Tensor:
    mean, var = x.mean(over, keepdim=True), x.var(over, correction=correction, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def _images(n: int, size: int) -> tuple[Tensor, float]:
    return 3 * draws(n, 4, size, size) + draws(4, 1, 1, seed=1), 1e-5


_BEYOND = {
    "ex-19-blocks": Numbers(
        {
            "no norm, alpha 1": Number(
                "the rms after 24 blocks without a norm, alpha 1",
                2.0**12,
                {2.0**24: "That is the mean square; take the root.", 25.0: "Each block adds what it is given, not 1."},
                "The mean square doubles with each block.",
            ),
            "no norm, alpha 1/sqrt(24)": Number(
                "the rms after 24 blocks without a norm, alpha 1/sqrt(24)",
                (25 / 24) ** 12,
                {
                    (25 / 24) ** 24: "That is the mean square; take the root.",
                    (1 + 1 / math.sqrt(24)) ** 24: "The two terms are uncorrelated: their squares add.",
                },
                "The mean square is multiplied by 25/24.",
            ),
            "pre-norm, alpha 1": Number(
                "the rms after 24 pre-norm blocks, alpha 1",
                5.0,
                {25.0: "That is the mean square; take the root.", 2.0**12: "A norm gives every branch the size 1."},
                "Each block adds 1 to the mean square.",
            ),
        }
    ),
    "ex-19-fans": Function(
        "fans(conv), fan-in and fan-out of an nn.Conv2d",
        _fans,
        {
            "for 3 to 16 channels, 5 x 5": lambda: _conv(3, 16, 5, 1),
            "for 8 to 4 channels, 1 x 7": lambda: _conv(8, 4, (1, 7), 1),
            "for 8 to 16 channels in 4 groups, 3 x 3": lambda: _conv(8, 16, 3, 4),
        },
        {
            "Every output sums over the area of the kernel too.": lambda c: _fans(c, area=False),
            "A unit sees the channels of its own group only.": lambda c: _fans(c, groups=False),
            "Fan-in comes first.": lambda c: _fans(c, transposed=True),
        },
        "Channels of one group times the area of the kernel.",
    ),
    "ex-19-images": Function(
        "normalised(x, eps) for images (n, channels, height, width)",
        _normalised,
        {"for 8 images of 6 x 6": lambda: _images(8, 6), "for 2 images of 3 x 3": lambda: _images(2, 3)},
        {
            "Those are statistics of each pixel; a channel has one mean for all its places.": lambda x, eps: (
                _normalised(x, eps, over=(0,))
            ),
            "That is instance normalisation: each image by itself.": lambda x, eps: _normalised(x, eps, over=(2, 3)),
            "That is layer normalisation over all of an image.": lambda x, eps: _normalised(x, eps, over=(1, 2, 3)),
            "Batch normalisation divides by n, here the number of images times the area.": lambda x, eps: _normalised(
                x, eps, correction=1
            ),
        },
        "One mean and one variance for each channel, over images, rows and columns.",
    ),
    "ex-19-scores": Numbers(
        {
            "as they are": Number(
                "the std of the scores q k, d = 64",
                8.0,
                {64.0: "That is their variance.", 1.0: "64 products add up."},
                "64 products of variance 1.",
            ),
            "over sqrt d": Number("their std after division by sqrt d", 1.0, {8.0: "Divide."}, "8 / 8."),
            "over d": Number(
                "their std after division by d",
                1 / 8,
                {1.0: "That is division by sqrt d."},
                "8 / 64.",
            ),
            "keys of rms 3": Number(
                "their std after division by sqrt d, if the keys have rms 3",
                3.0,
                {9.0: "Only the keys are larger, not the queries.", math.sqrt(3): "An rms of 3 is a variance of 9."},
                "Scores are linear in the keys.",
            ),
        }
    ),
    "ex-19-rounds": Numbers(
        {
            name: Number(
                f"log10 of the largest step that leaves a {name} weight of 1 as it is",
                -(bits + 1) * math.log10(2),
                {
                    -bits * math.log10(2): "That is the spacing; what is below half of it is rounded away.",
                    -(bits + 1) * math.log(2): "That is the natural logarithm.",
                    -(bits + 2) * math.log10(2): "Above 1 the spacing is 2^-(bits of the fraction).",
                },
                f"Half of 2^-{bits}.",
                0.005,
            )
            for name, bits in (("bfloat16", 7), ("float16", 10), ("float32", 23))
        }
    ),
}

# Things people say


def _tanh(x: float) -> float:
    u = math.expm1(-2 * abs(x))
    return math.copysign(-u / (u + 2), x)


def _exponentials(x: float) -> float:
    return (math.exp(2 * x) - 1) / (math.exp(2 * x) + 1)


def _folded(x: float) -> float:
    small = math.exp(-2 * abs(x))
    return math.copysign((1 - small) / (1 + small), x)


def _update(rate: float, weight: Tensor, grad: Tensor) -> Tensor:
    return torch.log10(rate * grad.std() / weight.std())


def _two_softmaxes(classes: int) -> float:
    return math.log(math.e + classes - 1) - 1


_SAID = {
    "ex-say-true": Choice(
        "the numbers of the statements that hold as they stand",
        {
            6: "It holds; in PyTorch the losses apply it.",
            20: "The norm takes away what the bias added.",
            21: "All that is above or below them is zero.",
        },
        {
            1: "The loss is minus the logarithm, 3.30.",
            2: "The weights, once; a factor on the logits stays.",
            5: "A habit; a reason there is for the sigmoid in gates only.",
            7: "It squashes pre-activations; the weights keep their size and lose their gradient.",
            10: "Its inputs may change, and a batch is not all data.",
            14: "The 5 % is for the threshold 0.97 at the depth where a stack settles.",
            15: "It sets mean and variance, and leaves the shape.",
            16: "Forward only: relative steps still go with the scale.",
            17: "What it can represent collapses; how it trains does not.",
        },
    ),
    "ex-say-floor": Function(
        "the loss that two softmaxes cannot go below, from the number of classes",
        _two_softmaxes,
        {f"for {k} classes": lambda k=k: (k,) for k in (2, 10, 27, 1000)},
        {
            "There is one right class, and K - 1 others get the logit 0.": lambda k: math.log(math.e + k) - 1,
            "That is the probability; the loss is minus its logarithm.": lambda k: math.e / (math.e + k - 1),
            "That is the loss of a uniform guess.": lambda k: math.log(k),
        },
        "-log of e / (e + K - 1).",
    ),
    "ex-say-tanh": Function(
        "tanh(x) for a float",
        _tanh,
        {
            f"for x = {x:g}": lambda x=x: (x,)
            for x in (-1000.0, -20.0, -1e-8, 0.0, 1e-12, 1e-3, 0.5, 354.0, 400.0, 710.0)
        },
        {
            "It overflows where e^(2x) does.": _exponentials,
            "Near 0 it takes the difference of two numbers that are nearly equal.": _folded,
            "The sign is lost.": lambda x: abs(_tanh(x)),
        },
        "math.expm1(u) is e^u - 1 without the loss of digits near 0.",
        within=1e-13,
    ),
    "ex-say-ratio": Function(
        "ratio(rate, weight, grad)",
        _update,
        {
            "for weights of mean 0": lambda: (0.1, draws(30, 20), 0.05 * draws(30, 20, seed=1)),
            "for weights of mean 1": lambda: (0.1, draws(30, 20) / 10 + 1, 0.05 * draws(30, 20, seed=1)),
        },
        {
            "That is the natural logarithm.": lambda *x: _update(*x) * math.log(10),
            "A mean that is not 0 is in the norm and not in the standard deviation.": lambda rate, W, G: torch.log10(
                rate * G.norm() / W.norm()
            ),
            "The rate is missing.": lambda rate, W, G: _update(1.0, W, G),
        },
        "log10 of rate std(grad) / std(weight).",
    ),
}

EXERCISES: dict[str, Exercise] = {**_ADAM, **_BEYOND, **_SAID}
