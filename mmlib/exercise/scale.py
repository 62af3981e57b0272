"""The exercises on the model, its first loss, activation functions, saturation, depth and the scale of weights."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import rng
from mmlib.activations import ELU, RELU, SIGMOID, TANH, Activation
from mmlib.data import Examples, counting_floor
from mmlib.exercise.kinds import Choice, Exercise, Function, Number, Numbers
from mmlib.gaussian import expectation
from mmlib.layers import Linear, Nonlinearity
from mmlib.meanfield import chi, expected_first_loss, fixed_point, saturation, variance_map
from mmlib.models import MLP
from mmlib.stats import dead

_LN2 = math.log(2)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return rng.normal(*shape, generator=rng.generator(seed, "exercise")).double()


def _few(seed: int = 0, tokens: int = 27, n: int = 400) -> Examples:
    g = rng.generator(seed, "exercise")
    contexts = torch.randint(tokens, (n, 3), generator=g)
    return Examples(contexts, (contexts[:, -1] + torch.randint(4, (n,), generator=g)) % tokens)


# A model that spells names


def _counts(data: Examples, column: int = -1) -> Tensor:
    counts = torch.zeros(27, 27, dtype=torch.float64)
    at = data.contexts[:, column], data.targets
    return counts.index_put_(at, torch.ones(len(data.targets), dtype=torch.float64), accumulate=True)


def _conditional(counts: Tensor) -> float:
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return float(-torch.special.xlogy(counts, shares).sum() / counts.sum())


def _joint(data: Examples) -> float:
    p = _counts(data).flatten() / len(data.targets)
    return float(-torch.special.xlogy(p, p).sum())


def _mean_of_rows(data: Examples) -> float:
    shares = _counts(data) / _counts(data).sum(1, keepdim=True).clamp(min=1)
    return float(-torch.special.xlogy(shares, shares).sum(1).mean())


def _no_zero(data: Examples) -> float:
    shares = _counts(data) / _counts(data).sum(1, keepdim=True)
    return float(-(_counts(data) * shares.log()).sum() / len(data.targets))


def _mixed(seen: Examples, data: Examples, longest: int, a: float, *, prior=lambda p: p, shortest: int = 0) -> float:
    p = torch.full(data.targets.shape, 1 / 27, dtype=torch.float64)
    for k in range(shortest, longest + 1):
        powers = 27 ** torch.arange(k + 1)
        counted, asked = (torch.column_stack(x)[:, -k - 1 :] @ powers for x in (seen, data))
        n = torch.bincount(counted, minlength=27 ** (k + 1))
        p = (n[asked] + a * prior(p)) / (n.view(27, -1).sum(0)[asked % 27**k] + a)
    return float(-p.log().mean())


_SPELLING = {
    "ex-01-half": Numbers(
        {
            "always 1/2": Number(
                "the loss of the first model, in nats", _LN2, {1.0: "That is in bits; nats use the natural logarithm."},
                "It pays -log(1/2) each time.",
            ),
            "1 or 1/27": Number(
                "the loss of the second, in nats", math.log(27) / 2,
                {
                    math.log(27): "It pays log 27 only half of the time.",
                    -math.log((1 + 1 / 27) / 2): "The loss is the mean of -log p, not -log of the mean p.",
                },
                "Half of the time it pays nothing, half of the time log 27.",
            ),
            "sure": Number(
                "the loss of the third, in nats", -(math.log(0.98) + math.log(0.02 / 26)) / 2,
                {
                    -(math.log(0.98) + math.log(0.02)) / 2: "The 0.02 are shared by 26 symbols; the truth got 0.02/26.",
                    -math.log(0.02 / 26): "It is wrong only half of the time.",
                },
                "Average -log 0.98 and -log of what the truth got when it was wrong.",
            ),
        }
    ),
    "ex-01-bias": Function(
        "the best output bias, from the 27 counts of the targets", lambda counts: (counts / counts.sum()).log(),
        {"for counts 1 to 27": lambda: (torch.arange(1, 28).double(),), "for 27 equal counts": lambda: (torch.ones(27),)},
        {
            "The softmax takes the exponential of the bias: a frequency itself is one step short.": lambda n: n / n.sum(),
            "The sign is turned: rare symbols would become frequent.": lambda n: -(n / n.sum()).log(),
        },
        "Softmax of the bias has to be the frequencies.",
        observe=lambda answer, counts: torch.as_tensor(answer(counts)).double().softmax(-1),
    ),
    "ex-01-count": Function(
        "the floor of a model that sees one character, from examples", lambda data: counting_floor(data, 1),
        {"on 400 examples": lambda: (_few(),), "on 5 examples": lambda: (_few(n=5),)},
        {
            "That is the floor with no context at all: count pairs, not targets.": lambda d: counting_floor(d, 0),
            "That is the entropy of the pairs: divide each row of counts by its own sum.": _joint,
            "The character before the target is the last of the context, not the first.": lambda d: _conditional(
                _counts(d, 0)
            ),
            "Each context counts as often as it occurs; yours counts each of the 27 once.": _mean_of_rows,
            "0 log 0 is nan in floating point; a pair that does not occur contributes 0.": _no_zero,
            "That is in bits: use the natural logarithm.": lambda d: counting_floor(d, 1) / _LN2,
        },
        "It is the mean over examples of -log(count of the pair / count of its context).",
    ),
    "ex-01-mix": Function(
        "mixed(seen, data, longest, a)", _mixed,
        {
            "with no context": lambda: (_few(0), _few(1), 0, 2.0),
            "with two characters": lambda: (_few(0), _few(1), 2, 5.0),
        },
        {
            "Each length starts from the prediction of the one before, not from 1/27 again.": lambda *x: _mixed(
                *x, prior=lambda p: 1 / 27
            ),
            "The a in the numerator is to be multiplied by the shorter prediction.": lambda *x: _mixed(
                *x, prior=lambda p: 1.0
            ),
            "Begin with no context: p_0 mixes the frequencies of the symbols with 1/27.": lambda seen, data, n, a: _mixed(
                seen, data, n, a, shortest=min(1, n)
            ) if n else _mixed(seen, data, 0, a),
        },
        "Evaluate the equation for k = 0, 1, ... up to longest, on the contexts of data with the counts of seen.",
    ),
}

# The loss you should expect


def _scale_of(loss: float, classes: int) -> float:
    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_first_loss(middle, classes) < loss else (low, middle)
    return low


_S_NAIVE = math.sqrt(800 * expectation(lambda z: TANH(math.sqrt(30) * z) ** 2))
_TANH2 = expectation(lambda z: TANH(z) ** 2)

_FIRST_LOSS = {
    "ex-02-four": Choice(
        "the numbers of the healthy starts",
        {1: "log 10 = 2.30.", 3: "log 1000 = 6.91."},
        {
            2: "Ten classes: log 10 = 2.30, and 16 belongs to logits that are wide.",
            4: "Ten classes: below 2.30 before any step, it knows something that it should not.",
        },
    ),
    "ex-02-inverse": Function(
        "scale_of(loss, classes)", _scale_of,
        {
            f"for s = {s} and {classes} classes": lambda s=s, classes=classes: (expected_first_loss(s, classes), classes)
            for s in (0.7, 4.0) for classes in (2, 27)
        },
        {
            "That is the expansion for small s, (1 - 1/V) s^2 / 2 above log V; it fails beyond.": lambda loss, v: math.sqrt(
                2 * (loss - math.log(v)) / (1 - 1 / v)
            ),
            "That is the variance of the logits; s is the standard deviation.": lambda loss, v: _scale_of(loss, v) ** 2,
        },
        "The expected loss grows with s: halve an interval.",
        within=1e-3,
    ),
    "ex-02-width": Numbers(
        {
            "s at 800 units": Number(
                "s with 800 hidden units", _S_NAIVE,
                {2 * _S_NAIVE: "s^2 grows with the width, so s with its root."}, "s^2 = 800 E tanh(sqrt(30) Z)^2.",
            ),
            "s with LeCun": Number(
                "s with weights of 1/sqrt(fan-in)", math.sqrt(_TANH2),
                {
                    _TANH2: "That is s^2: take the root.",
                    1.0: "The output layer reads tanh(z), which is smaller than z.",
                },
                "s^2 = E tanh(Z)^2, whatever the width.",
            ),
        }
    ),
    "ex-02-rare": Function(
        "the best bias of a single logit, from the frequency p of the class", lambda p: math.log(p / (1 - p)),
        {f"for p = {p}": lambda p=p: (p,) for p in (0.5, 0.1, 0.002)},
        {
            "log p would do for a softmax; one logit is compared with 0, which stands for the other class.": math.log,
            "The sign is turned: that is the bias for the other class.": lambda p: math.log((1 - p) / p),
            "The sigmoid of the bias has to be p, not the bias itself.": lambda p: p,
        },
        "Solve sigmoid(b) = p for b.",
    ),
}

# Activation functions


def _value_and_slope(answer, z: Tensor, alpha: float) -> list[Tensor]:
    z = z.clone().requires_grad_()
    y = answer(z, alpha)
    return [y, torch.autograd.grad(y.sum(), z)[0]]


_M0, _M1 = expectation(RELU), expectation(ELU)
_ALPHA = _M0 / (_M0 - _M1)
_SELU = 1 / math.sqrt(expectation(lambda z: F.elu(z, _ALPHA) ** 2))
_ONE, _ZERO = math.log1p(math.exp(-1)), _LN2

_ACTIVATION = {
    "ex-03-abs": Numbers(
        {
            "gain": Number(
                "the gain of |z|", 1.0, {math.sqrt(2): "That is ReLU's gain, which loses half of the squares; |z| loses none."},
                "1/sqrt(E |Z|^2).",
            ),
            "backward gain": Number(
                "the backward gain", 1.0, {math.sqrt(2): "The slope is 1 or -1 everywhere: its square is 1, never 0."},
                "1/sqrt(E phi'(Z)^2).",
            ),
            "mean": Number(
                "E |Z|", math.sqrt(2 / math.pi),
                {0.0: "|z| is never negative, so its mean is not 0.", 1.0: "That is the mean square, not the mean."},
                "Twice the integral of z times the normal density from 0 on.",
            ),
        }
    ),
    "ex-03-tanh": Number(
        "the |z| beyond which tanh' is below 0.01", math.atanh(math.sqrt(0.99)),
        {math.atanh(0.99): "There tanh(z) is 0.99, and the slope 1 - h^2 is still 0.02."},
        "tanh' = 1 - tanh^2: solve 1 - h^2 = 0.01 for h, then for z.",
    ),
    "ex-03-elu": Function(
        "elu(z, alpha)", lambda z, alpha: torch.where(z > 0, z, alpha * torch.expm1(z.clamp(max=0))),
        {
            f"with alpha = {alpha}, z from -800 to 800": lambda alpha=alpha: (
                torch.tensor([-800, -3, -0.5, 0.5, 2, 800], dtype=torch.float64), alpha
            )
            for alpha in (1.0, 0.5, 2.0)
        },
        {
            "alpha is accepted and not used.": lambda z, alpha: torch.where(z > 0, z, torch.expm1(z.clamp(max=0))),
            "alpha belongs in front of exp(z) - 1, not into the exponent.": lambda z, alpha: torch.where(
                z > 0, z, torch.expm1(alpha * z.clamp(max=0))
            ),
            "The values are right and a gradient is nan: torch.where differentiates the branch that it does not take, "
            "where exp(800) is infinite.": lambda z, alpha: torch.where(z > 0, z, alpha * (torch.exp(z) - 1)),
            "Below 0 it is alpha (exp(z) - 1): a 1 is missing.": lambda z, alpha: torch.where(
                z > 0, z, alpha * torch.exp(z.clamp(max=0))
            ),
        },
        "z above 0, alpha (exp(z) - 1) below, and values and slopes that are finite for all z.",
        observe=_value_and_slope,
    ),
    "ex-03-selu": Numbers(
        {
            "alpha": Number(
                "the alpha that centres ELU", _ALPHA,
                {_ALPHA * _SELU: "That is alpha times the gain; the mean is 0 before any gain.", 1.0: "Its mean is 0.16."},
                "The mean is affine in alpha: take it at 0 and at 1.", 0.002,
            ),
            "gain": Number(
                "the gain of that ELU", _SELU,
                {1 / _SELU: "The gain is one over the root of the mean square.", _SELU**2: "Take the root."},
                "1/sqrt(E ELU(Z)^2) with that alpha.", 0.002,
            ),
        }
    ),
    "ex-03-floors": Numbers(
        {
            "target 1": Number(
                "the least loss for target 1", _ONE, {0.0: "The loss takes p, at most 1, for a logit: it cannot be sure."},
                "log(1 + exp(-p)) at the best p.",
            ),
            "target 0": Number(
                "the least loss for target 0", _ZERO, {0.0: "p is at least 0, and a logit of 0 says one half."},
                "log(1 + exp(p)) at the best p.",
            ),
            "balanced": Number(
                "the least loss on average", (_ONE + _ZERO) / 2, {_LN2: "That is the floor of one of the two targets."},
                "Half of the examples have each target.",
            ),
            "step 0": Number(
                "the loss at step 0", (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5))) / 2,
                {_LN2: "At step 0 p is one half, and that one half is taken for a logit."}, "Put p = 1/2 into both.",
            ),
        }
    ),
}

# Saturation


def _beyond(q: float) -> float:
    return saturation(q, TANH)


def _gain_for(share: float, threshold: float) -> float:
    return math.atanh(threshold) / -float(torch.special.ndtri(torch.tensor(share / 2).double()))


def _dead_everywhere(model: nn.Sequential, contexts: Tensor, size: int) -> Tensor:
    with torch.no_grad():
        pieces = [dead(RELU.derivative(model[:3](piece))) for piece in contexts.split(size)]
    return torch.stack(pieces).all(0)


def _dead_on_some(model: nn.Sequential, contexts: Tensor, size: int) -> Tensor:
    with torch.no_grad():
        return torch.stack([dead(RELU.derivative(model[:3](piece))) for piece in contexts.split(size)]).any(0)


def _nearly_dead(size: int) -> tuple[nn.Sequential, Tensor, int]:
    """Ten units that are dead on all contexts, and one that is alive for one of them alone."""
    model = MLP(depth=1, width=50, activation=RELU).build(rng.generator(0, "weights"))
    contexts = _few().contexts
    with torch.no_grad():
        model.linear1.bias[:10] = -1000
        model.linear1.bias[10] = -model[:3](contexts)[:, 10].topk(2).values.mean()
    return model, contexts, size


_SATURATION = {
    "ex-04-scales": Numbers(
        {
            "x 0.5": Number(
                "the share of |h| > 0.99 for W1 x 0.5", _beyond(7.5),
                {
                    _beyond(15): "Half the weights are a quarter of the variance: q = 7.5.",
                    _beyond(7.5) / 2: "Both ends are flat: count z below as well as above.",
                },
                "2 Phi(-artanh(0.99)/sqrt(q)), with q = 30 times 0.25.", 0.02,
            ),
            "block size 8": Number(
                "the share for a block size of 8", _beyond(80),
                {_beyond(30): "q is the number of inputs, which is now 8 times 10."}, "q = 80.", 0.02,
            ),
        }
    ),
    "ex-04-gain": Function(
        "gain_for(share, threshold)", _gain_for,
        {
            "for 5 % beyond 0.97": lambda: (0.05, 0.97),
            "for half beyond 0.9": lambda: (0.5, 0.9),
        },
        {
            "The share is that of both ends: each has half of it.": lambda share, t: _gain_for(min(2 * share, 0.999999), t),
            "That is q, the variance; the gain is its root.": lambda share, t: _gain_for(share, t) ** 2,
            "The threshold is on h = tanh(z): take it back to z with artanh.": lambda share, t: _gain_for(
                share, math.tanh(t)
            ),
        },
        "Solve share = 2 Phi(-artanh(threshold)/g) for g.",
    ),
    "ex-04-pieces": Function(
        "dead_everywhere(model, contexts, size)", _dead_everywhere,
        {f"in pieces of {size}": lambda size=size: _nearly_dead(size) for size in (7, 64, 400)},
        {
            "Those are dead on some piece; a unit that is alive on one piece is alive.": _dead_on_some,
            "That looks at one piece only.": lambda model, contexts, size: _dead_everywhere(model, contexts[:size], size),
            "Those are the units that are alive.": lambda *x: ~_dead_everywhere(*x),
        },
        "Join the pieces by and; every unit begins as dead.",
        observe=lambda answer, *x: answer(*x).nonzero().flatten().tolist(),
    ),
    "ex-04-half": Numbers(
        {
            name: Number(
                f"the |z| from which the gradient of tanh is 0 in {name}", (p + 2) / 2 * _LN2,
                {
                    (p + 2) * _LN2: "1 - h^2 falls as exp(-2 z): halve the exponent.",
                    p / 2 * _LN2: "1 - h is 2 exp(-2 z), and it rounds to 0 below half a unit: two more binary digits.",
                },
                "2 exp(-2 z) is to be half of a unit in the last place below 1, 2^-(p + 1).",
            )
            for name, p in (("bfloat16", 8), ("float16", 11))
        }
    ),
}

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


_DEPTH = {
    "ex-05-tenth": Number(
        "after how many layers a tenth of the gradient is left, for ReLU at gain 1.3", math.log(0.1) / math.log(1.3 / 2**0.5),
        {
            math.log(0.1) / math.log(1.3**2 / 2): "1.3^2/2 is the factor on the mean square; the gradient has its root.",
            math.log(10) / math.log(1.3): "ReLU takes half of the squares: the factor is 1.3/sqrt(2), below 1.",
        },
        "The factor is 1.3/sqrt(2) in each layer.",
    ),
    "ex-05-sigmoid": Function(
        "keeping_gain(activation)", _keeping_gain,
        {
            "for the sigmoid": lambda: (SIGMOID,),
            "for sigmoid(2 z)": lambda: (Activation("sigmoid(2 z)", lambda z: SIGMOID(2 * z)),),
        },
        {
            "chi is to be taken at the variance where a deep network settles, not at 1.": lambda a: _keeping_gain(
                a, at=lambda *_: 1.0
            ),
            "That is the limit of large gains, 6 sqrt(pi) for the sigmoid; bisect for the exact one.": lambda a: 6
            * math.sqrt(math.pi) / (2 if "2" in a.name else 1),
            "That is the gain which keeps q = 1, and it says nothing about the gradient.": lambda a: a.gain,
        },
        "Bisect between 2 and 20 on chi(fixed_point(activation, g), activation, g) = 1.",
        within=1e-3,
    ),
    "ex-05-hand": Function(
        "by_hand(z, W, phi, last)", _by_hand,
        {
            "with four layers of 6 units": lambda: (
                list(_normal(4, 5, 6)), list(_normal(4, 6, 6, seed=1)), TANH, _normal(5, 6, seed=2)
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
                "how much the gradient's rms grows in 30 ReLU layers with alpha = 1", 2.0**15,
                {2.0**30: "That is the growth of the mean square; the rms has its root.", 1.0: "The branch adds 1 to the factor."},
                "The squares add: a factor 1 + alpha^2 on the mean square of each layer.",
            ),
            "alpha 1/sqrt(30)": Number(
                "the same with alpha = 1/sqrt(30)", (1 + 1 / 30) ** 15,
                {(1 + 1 / 30) ** 30: "That is the growth of the mean square; the rms has its root.",
                 (1 + 30**-0.5) ** 30: "alpha enters the mean square as alpha^2."},
                "(1 + 1/30) on the mean square, thirty times.",
            ),
        }
    ),
}

# Choosing the scale


def _uniform(fan_out: int, fan_in: int, gain: float, g: torch.Generator, *, width: float = 3**0.5) -> Tensor:
    return width * gain / math.sqrt(fan_in) * (2 * torch.rand(fan_out, fan_in, generator=g) - 1)


def _shape_and_std(answer, fan_out: int, fan_in: int, gain: float) -> dict:
    W = answer(fan_out, fan_in, gain, rng.generator(0, "weights"))
    right = gain / math.sqrt(fan_in)
    largest = float(W.abs().max()) / right < 1.75
    std = float(W.double().square().mean().sqrt()) / right
    return {"the shape": list(W.shape), "rms over the right std": std, "within sqrt(3) std": largest,
            "mean near 0": abs(float(W.mean())) < 0.1 * right}


_CHOOSING = {
    "ex-06-concat": Numbers(
        {
            "embeddings": Number(
                "the std for three joined embeddings of dimension 10", 30**-0.5,
                {10**-0.5: "A unit sums 30 products, not 10.", 1 / 30: "The variance is 1/30; the std is its root."},
                "fan-in times Var W times E x^2 = 1.",
            ),
            "one-hot": Number(
                "the std for three joined one-hot vectors", 3**-0.5,
                {1 / 9: "That assumes E x^2 = 1; one entry in 27 is 1.", 81**-1: "Divide by 81 E x^2, and take the root."},
                "81 inputs, E x^2 = 1/27.",
            ),
        }
    ),
    "ex-06-funnel": Numbers(
        {
            "LeCun backward": Number(
                "the rms of the gradient with LECUN", 0.25, {4.0: "That is upside down: a unit feeds fewer units than it has inputs.",
                1 / 16: "The factor on the rms is the root of n_out/n_in."}, "sqrt(n_out/n_in) in each layer.",
            ),
            "fan-out forward": Number(
                "the rms of the output with the fan-out", 4.0, {0.25: "That is upside down.", 16.0: "Take the root: rms, not mean square."},
                "sqrt(n_in/n_out) in each layer.",
            ),
            "Xavier forward": Number(
                "the rms of the output with XAVIER", (4 / 3) ** 2,
                {(4 / 3) ** 4: "Take the root: rms, not mean square.", (2 / 3) ** 2: "That is the gradient's."},
                "sqrt(2/(1 + r)) in each layer, with r = n_out/n_in = 1/2.",
            ),
        }
    ),
    "ex-06-uniform": Function(
        "uniform_weights(fan_out, fan_in, gain, generator)", _uniform,
        {
            "for 200 x 30 at gain 5/3": lambda: (200, 30, 5 / 3),
            "for 30 x 200 at gain 1": lambda: (30, 200, 1.0),
        },
        {
            "That takes the std for the bound: a uniform distribution on +-a has std a/sqrt(3).": lambda *x: _uniform(*x, width=1),
            "Divide by the root of the fan-in, not of the fan-out.": lambda o, i, gain, g: _uniform(o, i, gain, g) * math.sqrt(i / o),
            "The shape is (fan_out, fan_in).": lambda *x: _uniform(*x).T,
            "torch.rand is never negative: spread it over both signs.": lambda *x: _uniform(*x).abs(),
        },
        "Draw with torch.rand between -a and a, with a = sqrt(3) gain / sqrt(fan-in).",
        observe=_shape_and_std, within=0.03,
    ),
    "ex-06-truncated": Number(
        "the std of a normal weight that is cut off at two standard deviations", 0.87963,
        {0.77374: "That is the variance; take the root.", 0.95450: "That is the share within the cut."},
        "Var = E Z^2 [|Z| < 2] / E [|Z| < 2].", 0.002,
    ),
    "ex-06-conv": Numbers(
        {
            "fan-in": Number(
                "the fan-in", 144, {9: "Sixteen channels are read: 16 times 3 times 3.", 288: "That counts output channels."},
                "How many products are summed into one number?", 0.001,
            ),
            "fan-out": Number(
                "the fan-out", 72,
                {288: "With stride 2 an input is in a quarter as many windows: 9/4 on average.", 144: "Per side the stride halves; there are two sides."},
                "How many numbers does one input number feed, on average?", 0.001,
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
                "the gain that settles at q* = 0.25", _QUARTER,
                {1 / TANH.gain: "That is upside down.", TANH.gain: "That is the gain which keeps q = 1.",
                 _QUARTER**2: "The gain enters q as its square: take the root."},
                "g^2 = q / E tanh(sqrt(q) Z)^2.", 0.005,
            ),
            "std of h": Number(
                "the std of h", 0.5 / _QUARTER, {0.5: "That is the std of z; z = g h in the mean square.", 0.25: "That is q."},
                "sqrt(q)/g.", 0.005,
            ),
            "chi": Number(
                "chi", chi(0.25, TANH, _QUARTER), {chi(1.0, TANH, _QUARTER): "That is chi at q = 1; it belongs to q = 0.25."},
                "g^2 E tanh'(sqrt(q) Z)^2.", 0.005,
            ),
        }
    ),
    "ex-07-budget": Number(
        "how deep a network may be at gain 5/3, all layers at the fixed point",
        float(int(1 + 2 * math.log(10) / math.log(_CHI))),
        {
            float(int(1 + math.log(10) / math.log(_CHI))): "chi is the factor on the mean square; the gradient has its root.",
            float(int(2 * math.log(10) / math.log(_CHI))): "L layers have L - 1 steps between them.",
        },
        "chi^((L - 1)/2) is to be at most 10.", 0.001,
    ),
    "ex-07-first": Function(
        "first(gain)", lambda gain: math.sqrt(fixed_point(TANH, gain)),
        {f"for gain {gain:.2f}": lambda gain=gain: (gain,) for gain in (1.2, 5 / 3, 3.0)},
        {
            "That divides by the gain that keeps q = 1, which is right for no other gain.": lambda gain: gain / TANH.gain,
            "That is q*; the first gain is its root, since its inputs have mean square 1.": lambda gain: fixed_point(TANH, gain),
            "With the same gain in the first layer, q starts at its square and has to come down.": lambda gain: gain,
        },
        "q of the first layer is first(gain)^2; it has to be the fixed point.",
    ),
    "ex-07-another": Number(
        "c", 5 / 3, {17 / 3: "1/(1 - x) also has the term x^2, which is 4 q^2 here.", -5 / 3: "The sign is turned."},
        "q' = q (1 - 2 q + 17/3 q^2); expand 1/q'.",
    ),
}

# Why a nonlinearity


def _deep(*sizes: int) -> tuple[nn.Sequential]:
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        linear = Linear(a, b, generator=rng.generator(k, "layer")).double()
        linear.bias.data = _normal(b, seed=k)
        layers += [linear, Nonlinearity(Activation("identity", lambda z: z))]
    return (nn.Sequential(*layers),)


def _collapsed(model: nn.Sequential, *, bias=lambda W, c, b: W @ c + b):
    A, c = None, None
    for layer in model:
        if isinstance(layer, Linear):
            A, c = (layer.weight, layer.bias) if A is None else (layer.weight @ A, bias(layer.weight, c, layer.bias))
    return lambda x: x @ A.T + c


def _lines(answer, model: nn.Sequential) -> Tensor:
    return answer(model)(_normal(9, model[0].weight.shape[1], seed=7))


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
        "collapse(model)", _collapsed,
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
                "the rank of both tables, d = 10 and w = 32", 20, {10: "Each table has rank 10; side by side they have 20.",
                27: "There are 54 rows, and only 10 directions in each table."}, "Each table is limited by d.", 0.001,
            ),
            "(10, 5)": Number(
                "the rank of both, d = 10 and w = 5", 5, {10: "The layer stands behind both positions: it limits them together.",
                20: "The five units are behind both."}, "The layer is limited by w.", 0.001,
            ),
            "(3, 32)": Number("the rank of both, d = 3 and w = 32", 6, {3: "That is the rank of one table."}, "2 d.", 0.001),
        }
    ),
    "ex-08-parity": Function(
        "h(s), the parity of three bits from their sum, with three ReLU units", _zigzag,
        {"for s = 0, 1, 2, 3": lambda: (torch.arange(4.0),), "for s = 0.5 and 2.5": lambda: (torch.tensor([0.5, 2.5]),)},
        {
            "Each bend has to turn the slope from 1 to -1: the factor is 2.": lambda s: _zigzag(s, 1.0),
            "The bends are at 1 and 2: after s = 1 it goes down.": lambda s: _zigzag(s, first=2),
            "It is right on whole numbers, and no sum of three ReLU units of s.": lambda s: s.floor() % 2 + 0 * s,
        },
        "ReLU(s) - 2 ReLU(s - 1) + ...",
    ),
    "ex-08-edge": Function(
        "largest(s, L), the largest rate that still comes closer", lambda s, L: 2 / (L * s ** (2 - 2 / L)),
        {f"for s = 2, L = {L}": lambda L=L: (2.0, L) for L in (1, 2, 4)},
        {
            "There the step lands on the target; it comes closer up to twice that.": lambda s, L: 1 / (L * s ** (2 - 2 / L)),
            "The L layers all move: L stands in front too.": lambda s, L: 2 / s ** (2 - 2 / L),
        },
        "Near s a step multiplies the distance by 1 - rate times L s^(2 - 2/L); keep it above -1.",
    ),
}

EXERCISES: dict[str, Exercise] = {
    **_SPELLING, **_FIRST_LOSS, **_ACTIVATION, **_SATURATION, **_DEPTH, **_CHOOSING, **_FIVE_THIRDS, **_NONLINEAR
}
