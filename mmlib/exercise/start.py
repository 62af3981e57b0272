"""The exercises on the model, its first loss, activation functions and saturation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlib import rng
from mmlib.activations import ELU, RELU, TANH
from mmlib.data import Examples, counting_floor
from mmlib.exercise.kinds import Choice, Exercise, Function, Number, Numbers
from mmlib.gaussian import expectation
from mmlib.meanfield import expected_first_loss, expected_saturation
from mmlib.models import MLP
from mmlib.stats import dead

_LN2 = math.log(2)


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
                "the loss of the first model, in nats",
                _LN2,
                {1.0: "That is in bits; nats use the natural logarithm."},
                "It pays -log(1/2) each time.",
            ),
            "1 or 1/27": Number(
                "the loss of the second, in nats",
                math.log(27) / 2,
                {
                    math.log(27): "It pays log 27 only half of the time.",
                    -math.log((1 + 1 / 27) / 2): "The loss is the mean of -log p, not -log of the mean p.",
                },
                "Half of the time it pays nothing, half of the time log 27.",
            ),
            "sure": Number(
                "the loss of the third, in nats",
                -(math.log(0.98) + math.log(0.02 / 26)) / 2,
                {
                    -(math.log(0.98) + math.log(0.02)) / 2: "The 0.02 are shared by 26 symbols; the truth got 0.02/26.",
                    -math.log(0.02 / 26): "It is wrong only half of the time.",
                },
                "Average -log 0.98 and -log of what the truth got when it was wrong.",
            ),
        }
    ),
    "ex-01-count": Function(
        "the floor of a model that sees one character, from examples",
        lambda data: counting_floor(data, 1),
        {"on 400 examples": lambda: (_few(),), "on 40 examples": lambda: (_few(n=40),)},
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
        "mixed(seen, data, longest, a)",
        _mixed,
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
            "Begin with no context: p_0 mixes the frequencies of the symbols with 1/27.": lambda seen, data, n, a: (
                _mixed(seen, data, n, a, shortest=min(1, n)) if n else _mixed(seen, data, 0, a)
            ),
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


def _weighted_loss(p: float, w: float, b: float) -> float:
    return w * p * math.log1p(math.exp(-b)) + (1 - p) * math.log1p(math.exp(b))


def _best_bias(p: float, w: float) -> tuple[float, float]:
    b = math.log(w * p / (1 - p))
    return b, _weighted_loss(p, w, b)


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
        "scale_of(loss, classes)",
        _scale_of,
        {
            f"for s = {s} and {classes} classes": lambda s=s, classes=classes: (
                expected_first_loss(s, classes),
                classes,
            )
            for s in (0.7, 4.0)
            for classes in (2, 27)
        },
        {
            "That is the expansion for small s, (1 - 1/V) s^2 / 2 above log V; it fails beyond.": lambda loss, v: (
                math.sqrt(2 * (loss - math.log(v)) / (1 - 1 / v))
            ),
            "That is the variance of the logits; s is the standard deviation.": lambda loss, v: _scale_of(loss, v) ** 2,
        },
        "The expected loss grows with s: halve an interval.",
        within=1e-3,
    ),
    "ex-02-width": Numbers(
        {
            "s at 800 units": Number(
                "s with 800 hidden units",
                _S_NAIVE,
                {2 * _S_NAIVE: "s^2 grows with the width, so s with its root."},
                "s^2 = 800 E tanh(sqrt(30) Z)^2.",
            ),
            "s with LeCun": Number(
                "s with weights of 1/sqrt(fan-in)",
                math.sqrt(_TANH2),
                {
                    _TANH2: "That is s^2: take the root.",
                    1.0: "The output layer reads tanh(z), which is smaller than z.",
                },
                "s^2 = E tanh(Z)^2, whatever the width.",
            ),
        }
    ),
    "ex-02-rare": Function(
        "best_bias(p, w), the best bias of a single logit and the loss there",
        _best_bias,
        {f"for p = {p} and w = {w}": lambda p=p, w=w: (p, w) for p, w in ((0.5, 3.0), (0.1, 1.0), (0.002, 20.0))},
        {
            "That is the best bias without a weight; w has its part in it too.": lambda p, w: (
                _best_bias(p, 1.0)[0],
                _weighted_loss(p, w, _best_bias(p, 1.0)[0]),
            ),
            "log wp would do for a softmax; one logit is compared with the 0 of the other class.": lambda p, w: (
                math.log(w * p),
                _weighted_loss(p, w, math.log(w * p)),
            ),
            "The sign is turned: that is the bias for the other class.": lambda p, w: (
                -_best_bias(p, w)[0],
                _weighted_loss(p, w, -_best_bias(p, w)[0]),
            ),
            "The bias is right; the loss of a positive is to be multiplied by w.": lambda p, w: (
                _best_bias(p, w)[0],
                _weighted_loss(p, 1.0, _best_bias(p, w)[0]),
            ),
            "The bias is right; the loss is the mean over examples, not divided by the mean weight.": lambda p, w: (
                _best_bias(p, w)[0],
                _best_bias(p, w)[1] / (w * p + 1 - p),
            ),
        },
        "Set the derivative of the mean loss by b to zero: sigmoid(b) is the weighted share of the positives.",
    ),
}

# Activation functions


def _value_and_slope(answer, z: Tensor, alpha: float) -> list[Tensor]:
    z = z.clone().requires_grad_()
    y = answer(z, alpha)
    return [y, torch.autograd.grad(y.sum(), z)[0]]


_OUTPUTS = {"sigmoid": [0.01, 0.5, 0.8], "tanh": [-0.99, 0.0, 0.5], "ELU": [-0.9, -0.2, 0.5, 3.0]}


def _slope_of_output(name: str, h: Tensor) -> Tensor:
    return {"sigmoid": h * (1 - h), "tanh": 1 - h**2, "ELU": torch.where(h > 0, 1.0, h + 1)}[name]


_M0, _M1 = expectation(RELU), expectation(ELU)
_ALPHA = _M0 / (_M0 - _M1)
_SELU = 1 / math.sqrt(expectation(lambda z: F.elu(z, _ALPHA) ** 2))
_ONE, _ZERO = math.log1p(math.exp(-1)), _LN2

_ACTIVATION = {
    "ex-03-abs": Numbers(
        {
            "gain": Number(
                "the gain of |z|",
                1.0,
                {math.sqrt(2): "That is ReLU's gain, which loses half of the squares; |z| loses none."},
                "1/sqrt(E |Z|^2).",
            ),
            "backward gain": Number(
                "the backward gain",
                1.0,
                {math.sqrt(2): "The slope is 1 or -1 everywhere: its square is 1, never 0."},
                "1/sqrt(E phi'(Z)^2).",
            ),
            "mean": Number(
                "E |Z|",
                math.sqrt(2 / math.pi),
                {0.0: "|z| is never negative, so its mean is not 0.", 1.0: "That is the mean square, not the mean."},
                "Twice the integral of z times the normal density from 0 on.",
            ),
        }
    ),
    "ex-03-tanh": Function(
        "slope(name, h), phi' from the output h",
        _slope_of_output,
        {name: lambda name=name, h=h: (name, torch.tensor(h).double()) for name, h in _OUTPUTS.items()},
        {
            "tanh: its slope is 1 at h = 0, and h (1 - h) is that of the sigmoid.": lambda name, h: (
                h * (1 - h) if name == "tanh" else _slope_of_output(name, h)
            ),
            "sigmoid: its slope is 1/4 at h = 1/2, and 1 - h^2 is that of tanh.": lambda name, h: (
                1 - h**2 if name == "sigmoid" else _slope_of_output(name, h)
            ),
            "ELU: below 0 its slope is exp(z), and h is exp(z) - 1.": lambda name, h: (
                torch.where(h > 0, 1.0, h) if name == "ELU" else _slope_of_output(name, h)
            ),
            "ELU: above 0 it is z itself, with slope 1.": lambda name, h: (
                h + 1 if name == "ELU" else _slope_of_output(name, h)
            ),
            "h is the output already: the function is not to be applied again.": lambda name, h: _slope_of_output(
                name, {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "ELU": F.elu}[name](h)
            ),
        },
        "Write phi' as a function of z, then z away.",
    ),
    "ex-03-elu": Function(
        "elu(z, alpha)",
        lambda z, alpha: torch.where(z > 0, z, alpha * torch.expm1(z.clamp(max=0))),
        {
            f"with alpha = {alpha}, z from -800 to 800": lambda alpha=alpha: (
                torch.tensor([-800, -3, -0.5, 0.5, 2, 800], dtype=torch.float64),
                alpha,
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
                "the alpha that centres ELU",
                _ALPHA,
                {
                    _ALPHA * _SELU: "That is alpha times the gain; the mean is 0 before any gain.",
                    1.0: "Its mean is 0.16.",
                },
                "The mean is affine in alpha: take it at 0 and at 1.",
                0.002,
            ),
            "gain": Number(
                "the gain of that ELU",
                _SELU,
                {1 / _SELU: "The gain is one over the root of the mean square.", _SELU**2: "Take the root."},
                "1/sqrt(E ELU(Z)^2) with that alpha.",
                0.002,
            ),
        }
    ),
    "ex-03-floors": Numbers(
        {
            "target 1": Number(
                "the least loss for target 1",
                _ONE,
                {0.0: "The loss takes p, at most 1, for a logit: it cannot be sure."},
                "log(1 + exp(-p)) at the best p.",
            ),
            "target 0": Number(
                "the least loss for target 0",
                _ZERO,
                {0.0: "p is at least 0, and a logit of 0 says one half."},
                "log(1 + exp(p)) at the best p.",
            ),
            "balanced": Number(
                "the least loss on average",
                (_ONE + _ZERO) / 2,
                {_LN2: "That is the floor of one of the two targets."},
                "Half of the examples have each target.",
            ),
            "step 0": Number(
                "the loss at step 0",
                (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(0.5))) / 2,
                {_LN2: "At step 0 p is one half, and that one half is taken for a logit."},
                "Put p = 1/2 into both.",
            ),
        }
    ),
}

# Saturation


def _beyond(q: float) -> float:
    return expected_saturation(q, TANH)


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
                "the share of |h| > 0.99 for W1 x 0.5",
                _beyond(7.5),
                {
                    _beyond(15): "Half the weights are a quarter of the variance: q = 7.5.",
                    _beyond(7.5) / 2: "Both ends are flat: count z below as well as above.",
                },
                "2 Phi(-artanh(0.99)/sqrt(q)), with q = 30 times 0.25.",
                0.02,
            ),
            "block size 8": Number(
                "the share for a block size of 8",
                _beyond(80),
                {_beyond(30): "q is the number of inputs, which is now 8 times 10."},
                "q = 80.",
                0.02,
            ),
        }
    ),
    "ex-04-gain": Function(
        "gain_for(share, threshold)",
        _gain_for,
        {"for 5 % beyond 0.97": lambda: (0.05, 0.97), "for half beyond 0.9": lambda: (0.5, 0.9)},
        {
            "The share is that of both ends: each has half of it.": lambda share, t: _gain_for(
                min(2 * share, 0.999999), t
            ),
            "That is q, the variance; the gain is its root.": lambda share, t: _gain_for(share, t) ** 2,
            "The threshold is on h = tanh(z): take it back to z with artanh.": lambda share, t: _gain_for(
                share, math.tanh(t)
            ),
        },
        "Solve share = 2 Phi(-artanh(threshold)/g) for g.",
    ),
    "ex-04-pieces": Function(
        "dead_everywhere(model, contexts, size)",
        _dead_everywhere,
        {f"in pieces of {size}": lambda size=size: _nearly_dead(size) for size in (7, 64, 400)},
        {
            "Those are dead on some piece; a unit that is alive on one piece is alive.": _dead_on_some,
            "That looks at one piece only.": lambda model, contexts, size: _dead_everywhere(
                model, contexts[:size], size
            ),
            "Those are the units that are alive.": lambda *x: ~_dead_everywhere(*x),
        },
        "Join the pieces by and; every unit begins as dead.",
        observe=lambda answer, *x: answer(*x).nonzero().flatten().tolist(),
    ),
    "ex-04-half": Numbers(
        {
            name: Number(
                f"the |z| from which the gradient of tanh is 0 in {name}",
                (p + 2) / 2 * _LN2,
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

EXERCISES: dict[str, Exercise] = {**_SPELLING, **_FIRST_LOSS, **_ACTIVATION, **_SATURATION}
