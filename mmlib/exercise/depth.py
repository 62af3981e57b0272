"""The exercises on depth, the scale of weights, torch's gain for tanh, and why a nonlinearity is needed."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from mmlib import rng
from mmlib.activations import RELU, SIGMOID, TANH, Activation
from mmlib.exercise.kinds import Choice, Exercise, Function, Number, Numbers, draws
from mmlib.gaussian import expectation
from mmlib.layers import Linear, Nonlinearity
from mmlib.meanfield import chi, fixed_point, variance_map

# Vanishing and exploding


def _keeping_gain(activation: Activation, at=fixed_point) -> float:
    low, high = 2.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if chi(at(activation, middle), activation, middle) > 1 else (middle, high)
    return low


def _by_hand(z: list, W: list, phi: Activation, last: Tensor, *, turned=False, late=0, slope=True) -> list[Tensor]:
    deltas = [last]
    for k in (2, 1, 0):
        back = deltas[0] @ (W[k + 1].T if turned else W[k + 1])
        deltas.insert(0, back * phi.derivative(z[k + late]) if slope else back)
    return deltas


# Written down, as propagate through thousands of layers takes a second; the chapter's solution counts them anew.
_LAYERS = {1: 72, 20: 1848}

_DEPTH = {
    "ex-05-tenth": Numbers(
        {
            "ReLU": Number(
                "after how many layers a tenth of the gradient is left, for ReLU at gain 1.3",
                math.log(0.1) / math.log(1.3 / 2**0.5),
                {
                    math.log(0.1)
                    / math.log(1.3**2 / 2): "1.3^2/2 is the factor on the mean square; the gradient has its root.",
                    math.log(10) / math.log(1.3): "ReLU takes half of the squares: the factor is 1.3/sqrt(2), below 1.",
                },
                "The factor is 1.3/sqrt(2) in each layer.",
            ),
            **{
                f"tanh, from layer {start}": Number(
                    f"how many layers from layer {start} on, for tanh at gain 1",
                    layers,
                    {
                        90: "That takes chi of layer 20 for all layers; it comes closer to 1 from layer to layer.",
                        99 * start: "That is the approximation for deep layers; count with propagate.",
                    },
                    "growth[start - 1] / growth[m - 1] of propagate(TANH, 1, depth) first reaches 1/10 at layer m.",
                    0.02,
                )
                for start, layers in _LAYERS.items()
            },
        }
    ),
    "ex-05-bits": Number(
        "from which layer down a first step leaves most weights unchanged",
        3,
        {
            6: "chi is the factor on the mean square; the step shrinks by its root, 0.24, in each layer.",
            7: "Count the layers from layer 10 down: it takes that many layers, and 10 minus that is asked.",
        },
        "A change below half the distance to the next number, about 10^-7.4 of the weight, is lost.",
    ),
    "ex-05-sigmoid": Function(
        "keeping_gain(activation)",
        _keeping_gain,
        {
            "for the sigmoid": lambda: (SIGMOID,),
            "for sigmoid(2 z)": lambda: (Activation("sigmoid(2 z)", lambda z: SIGMOID(2 * z)),),
        },
        {
            "chi is to be taken at the variance where a deep network settles, not at 1.": lambda a: _keeping_gain(
                a, at=lambda *_: 1.0
            ),
            "That is the limit of large gains, 6 sqrt(pi) for the sigmoid; bisect for the exact one.": lambda a: (
                6 * math.sqrt(math.pi) / (2 if "2" in a.name else 1)
            ),
            "That is the gain which keeps q = 1, and it says nothing about the gradient.": lambda a: a.gain,
        },
        "Bisect between 2 and 20 on chi(fixed_point(activation, g), activation, g) = 1.",
        within=1e-3,
    ),
    "ex-05-hand": Function(
        "by_hand(z, W, phi, last)",
        _by_hand,
        {
            "with four layers of 6 units": lambda: (
                list(draws(4, 5, 6)),
                list(draws(4, 6, 6, seed=1)),
                TANH,
                draws(5, 6, seed=2),
            )
        },
        {
            "Forward is h W^T, so backward is delta W: with square matrices the transpose fits too, and is wrong.": (
                lambda *x: _by_hand(*x, turned=True)
            ),
            "The slope belongs to the layer that the gradient arrives at: phi'(z[k]), not of the one above.": (
                lambda *x: _by_hand(*x, late=1)
            ),
            "The slope of the activation is missing.": lambda *x: _by_hand(*x, slope=False),
            "The list runs from the first layer to the last.": lambda *x: _by_hand(*x)[::-1],
        },
        "delta[k] = (delta[k + 1] W[k + 1]) * phi'(z[k]).",
    ),
    "ex-05-skip": Numbers(
        {
            "alpha 1": Number(
                "how much the gradient's rms grows in 30 ReLU layers with alpha = 1",
                2.0**15,
                {
                    2.0**30: "That is the growth of the mean square; the rms has its root.",
                    1.0: "The branch adds 1 to the factor.",
                },
                "The squares add: a factor 1 + alpha^2 on the mean square of each layer.",
            ),
            "alpha 1/sqrt(30)": Number(
                "the same with alpha = 1/sqrt(30)",
                (1 + 1 / 30) ** 15,
                {
                    (1 + 1 / 30) ** 30: "That is the growth of the mean square; the rms has its root.",
                    (1 + 30**-0.5) ** 30: "alpha enters the mean square as alpha^2.",
                },
                "(1 + 1/30) on the mean square, thirty times.",
            ),
        }
    ),
}

# Choosing the scale


def _bound(fan_in: int, p: float, activation: Activation) -> float:
    return activation.gain * math.sqrt(3 * (1 - p) / fan_in)


_CUT = [expectation(lambda z, k=k: z**k * (z.abs() < 2), breaks=(-2, 2)) for k in range(3)]  # E Z^k [|Z| < 2]

_CHOOSING = {
    "ex-06-concat": Numbers(
        {
            "embeddings": Number(
                "the std for three joined embeddings of dimension 10",
                30**-0.5,
                {10**-0.5: "A unit sums 30 products, not 10.", 1 / 30: "The variance is 1/30; the std is its root."},
                "fan-in times Var W times E x^2 = 1.",
            ),
            "one-hot": Number(
                "the std for three joined one-hot vectors",
                3**-0.5,
                {
                    1 / 9: "That assumes E x^2 = 1; one entry in 27 is 1.",
                    81**-1: "Divide by 81 E x^2, and take the root.",
                },
                "81 inputs, E x^2 = 1/27.",
            ),
        }
    ),
    "ex-06-funnel": Numbers(
        {
            "LeCun backward": Number(
                "the rms of the gradient with LECUN",
                0.25,
                {
                    4.0: "That is upside down: a unit feeds fewer units than it has inputs.",
                    1 / 16: "The factor on the rms is the root of n_out/n_in.",
                },
                "sqrt(n_out/n_in) in each layer.",
            ),
            "fan-out forward": Number(
                "the rms of the output with the fan-out",
                4.0,
                {0.25: "That is upside down.", 16.0: "Take the root: rms, not mean square."},
                "sqrt(n_in/n_out) in each layer.",
            ),
            "Xavier forward": Number(
                "the rms of the output with XAVIER",
                (4 / 3) ** 2,
                {(4 / 3) ** 4: "Take the root: rms, not mean square.", (2 / 3) ** 2: "That is the gradient's."},
                "sqrt(2/(1 + r)) in each layer, with r = n_out/n_in = 1/2.",
            ),
        }
    ),
    "ex-06-dropout": Function(
        "bound(fan_in, p, activation)",
        _bound,
        {"for ReLU, p = 1/2": lambda: (200, 0.5, RELU), "for tanh, p = 0.1": lambda: (30, 0.1, TANH)},
        {
            "That is the std; a uniform distribution on +-a has std a/sqrt(3).": lambda *x: _bound(*x) / math.sqrt(3),
            "That knows nothing of dropout: E x^2 changes.": lambda fan_in, p, phi: _bound(fan_in, 0.0, phi),
            "Dropout makes E x^2 larger, by 1/(1 - p); the weights become narrower.": lambda fan_in, p, phi: (
                _bound(fan_in, p, phi) / (1 - p)
            ),
            "1 - p is a factor on the variance; the bound takes its root.": lambda fan_in, p, phi: (
                _bound(fan_in, p, phi) * math.sqrt(1 - p)
            ),
            "The inputs are phi(Z), not Z: the gain is missing.": lambda fan_in, p, phi: (
                _bound(fan_in, p, phi) / phi.gain
            ),
            "Per weight: divide by the root of the fan-in.": lambda fan_in, p, phi: (
                _bound(fan_in, p, phi) * math.sqrt(fan_in)
            ),
        },
        "fan_in a^2/3 E x^2 = 1, with E x^2 = E phi(Z)^2/(1 - p).",
    ),
    "ex-06-truncated": Number(
        "the std of a normal weight that is cut off at two standard deviations",
        math.sqrt(_CUT[2] / _CUT[0]),
        {_CUT[2] / _CUT[0]: "That is the variance; take the root.", _CUT[0]: "That is the share within the cut."},
        "Var = E Z^2 [|Z| < 2] / E [|Z| < 2].",
        0.002,
    ),
    "ex-06-conv": Numbers(
        {
            "fan-in": Number(
                "the fan-in",
                144,
                {9: "Sixteen channels are read: 16 times 3 times 3.", 288: "That counts output channels."},
                "How many products are summed into one number?",
                0.001,
            ),
            "fan-out": Number(
                "the fan-out",
                72,
                {
                    288: "With stride 2 an input is in a quarter as many windows: 9/4 on average.",
                    144: "Per side the stride halves; there are two sides.",
                },
                "How many numbers does one input number feed, on average?",
                0.001,
            ),
        }
    ),
}

# The truth about five thirds

_CHI = chi(fixed_point(TANH, 5 / 3), TANH, 5 / 3)
_QUARTER = math.sqrt(0.25 / variance_map(0.25, TANH, 1.0))

_FIVE_THIRDS = {
    "ex-07-quarter": Numbers(
        {
            "gain": Number(
                "the gain that settles at q* = 0.25",
                _QUARTER,
                {
                    1 / TANH.gain: "That is upside down.",
                    TANH.gain: "That is the gain which keeps q = 1.",
                    _QUARTER**2: "The gain enters q as its square: take the root.",
                },
                "g^2 = q / E tanh(sqrt(q) Z)^2.",
                0.005,
            ),
            "std of h": Number(
                "the std of h",
                0.5 / _QUARTER,
                {0.5: "That is the std of z; z = g h in the mean square.", 0.25: "That is q."},
                "sqrt(q)/g.",
                0.005,
            ),
            "chi": Number(
                "chi",
                chi(0.25, TANH, _QUARTER),
                {chi(1.0, TANH, _QUARTER): "That is chi at q = 1; it belongs to q = 0.25."},
                "g^2 E tanh'(sqrt(q) Z)^2.",
                0.005,
            ),
        }
    ),
    "ex-07-budget": Number(
        "how deep a network may be at gain 5/3, all layers at the fixed point",
        float(int(1 + 2 * math.log(10) / math.log(_CHI))),
        {
            float(
                int(1 + math.log(10) / math.log(_CHI))
            ): "chi is the factor on the mean square; the gradient has its root.",
            float(int(2 * math.log(10) / math.log(_CHI))): "L layers have L - 1 steps between them.",
        },
        "chi^((L - 1)/2) is to be at most 10.",
        0.001,
    ),
    "ex-07-first": Function(
        "first(gain)",
        lambda gain: math.sqrt(fixed_point(TANH, gain)),
        {f"for gain {gain:.2f}": lambda gain=gain: (gain,) for gain in (1.2, 5 / 3, 3.0)},
        {
            "That divides by the gain that keeps q = 1, which is right for no other gain.": lambda gain: (
                gain / TANH.gain
            ),
            "That is q*; the first gain is its root, since its inputs have mean square 1.": lambda gain: fixed_point(
                TANH, gain
            ),
            "With the same gain in the first layer, q starts at its square and has to come down.": lambda gain: gain,
        },
        "q of the first layer is first(gain)^2; it has to be the fixed point.",
    ),
    "ex-07-another": Number(
        "c",
        5 / 3,
        {17 / 3: "1/(1 - x) also has the term x^2, which is 4 q^2 here.", -5 / 3: "The sign is turned."},
        "q' = q (1 - 2 q + 17/3 q^2); expand 1/q'.",
    ),
}

# Why a nonlinearity


def _deep(*sizes: int) -> tuple[nn.Sequential]:
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        linear = Linear(a, b, generator=rng.generator(k, "layer")).double()
        linear.bias.data = draws(b, seed=k)
        layers += [linear, Nonlinearity(Activation("identity", lambda z: z))]
    return (nn.Sequential(*layers),)


def _collapsed(model: nn.Sequential, *, bias=lambda W, c, b: W @ c + b):
    A, c = None, None
    for layer in model:
        if isinstance(layer, Linear):
            A, c = (layer.weight, layer.bias) if A is None else (layer.weight @ A, bias(layer.weight, c, layer.bias))
    return lambda x: x @ A.T + c


def _lines(answer, model: nn.Sequential) -> Tensor:
    x = draws(9, model[0].weight.shape[1], seed=7)
    one = answer(model)
    del model[:]  # what is given has to stand without it
    return one(x)


def _zigzag(s: Tensor, factor: float = 2.0, first: int = 1) -> Tensor:
    h = RELU(s)
    for k in range(1, 3):
        h = h + factor * (-1) ** k * RELU(s - k - first + 1)
    return h


_NONLINEAR = {
    "ex-08-between": Choice(
        "the names of the affine ones",
        {
            "residual": "z + zW is z (I + W), a matrix.",
            "mean of pairs": "A mean is a matrix with entries 1/2.",
            "fixed vector": "Multiplying by a fixed vector is a diagonal matrix.",
            "minus its mean": "Taking off the mean of six is a matrix.",
        },
        {
            "maximum of pairs": "The maximum of a mixture is not the mixture of the maxima.",
            "projection": "Both factors depend on z: it grows as its square.",
            "softmax": "It divides by a sum that depends on z.",
        },
    ),
    "ex-08-collapse": Function(
        "collapse(model)",
        _collapsed,
        {f"for widths {sizes}": lambda sizes=sizes: _deep(*sizes) for sizes in ((7, 5), (7, 5, 5), (7, 20, 3, 5))},
        {
            "An earlier bias goes through the later matrices as well: c becomes W c + b.": lambda m: _collapsed(
                m, bias=lambda W, c, b: c + b if c.shape == b.shape else W @ c + b
            ),
            "The earlier biases are left out.": lambda m: _collapsed(m, bias=lambda W, c, b: b),
        },
        "W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).",
        observe=_lines,
    ),
    "ex-08-ranks": Numbers(
        {
            "(10, 32)": Number(
                "the rank of both tables, d = 10 and w = 32",
                20,
                {
                    10: "Each table has rank 10; side by side they have 20.",
                    27: "There are 54 rows, and only 10 directions in each table.",
                },
                "Each table is limited by d.",
                0.001,
            ),
            "(10, 5)": Number(
                "the rank of both, d = 10 and w = 5",
                5,
                {
                    10: "The layer stands behind both positions: it limits them together.",
                    20: "The five units are behind both.",
                },
                "The layer is limited by w.",
                0.001,
            ),
            "(3, 32)": Number(
                "the rank of both, d = 3 and w = 32", 6, {3: "That is the rank of one table."}, "2 d.", 0.001
            ),
        }
    ),
    "ex-08-parity": Function(
        "h(s), the parity of three bits from their sum, with three ReLU units",
        _zigzag,
        {
            "for s = 0, 1, 2, 3": lambda: (torch.arange(4.0),),
            "for s = 0.5, 1.5 and 2.5": lambda: (torch.tensor([0.5, 1.5, 2.5]),),
        },
        {
            "Each bend has to turn the slope from 1 to -1: the factor is 2.": lambda s: _zigzag(s, 1.0),
            "The bends are at 1 and 2: after s = 1 it goes down.": lambda s: _zigzag(s, first=2),
            "It is right on whole numbers, and no sum of three ReLU units of s.": lambda s: s.floor() % 2 + 0 * s,
        },
        "ReLU(s) - 2 ReLU(s - 1) + ...",
    ),
    "ex-08-edge": Function(
        "largest(s, L), the largest rate that still comes closer",
        lambda s, L: 2 / (L * s ** (2 - 2 / L)),
        {f"for s = 2, L = {L}": lambda L=L: (2.0, L) for L in (1, 2, 4)},
        {
            "There the step lands on the target; it comes closer up to twice that.": lambda s, L: (
                1 / (L * s ** (2 - 2 / L))
            ),
            "The L layers all move: L stands in front too.": lambda s, L: 2 / s ** (2 - 2 / L),
        },
        "Near s a step multiplies the distance by 1 - rate times L s^(2 - 2/L); keep it above -1.",
    ),
}

EXERCISES: dict[str, Exercise] = {**_DEPTH, **_CHOOSING, **_FIVE_THIRDS, **_NONLINEAR}
