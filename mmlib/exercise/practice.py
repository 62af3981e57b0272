"""The exercises on the dashboard, comparisons, chaos, a recipe for your own network, bugs, and the reference run."""

import itertools
import math

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor, nn

from mmlib import rng
from mmlib.exercise.kinds import Choice, Exercise, Function, Number, Numbers, draws
from mmlib.gaussian import expectation
from mmlib.layers import Embedding, Linear
from mmlib.models import MLP
from mmlib.norm import moments, standardize

# The dashboard


def _update_data(before: dict, after: dict, *, log=torch.log10, spread=False, base="before", least: int = 2) -> dict:
    ratios = {}
    for name, W in before.items():
        if W.dim() >= least:
            change = after[name].std() - W.std() if spread else (after[name] - W).std()
            ratios[name] = log(change.abs() / (W if base == "before" else after[name]).std())
    return ratios


def _snapshots(u: float) -> tuple[dict, dict]:
    W, dW = draws(2, 30, 20)
    before = {"a.weight": W, "b.weight": 100 * W, "b.bias": W[0]}
    change = 10**u * dW * W.std() / dW.std()
    return before, {name: x + (change if name.endswith("weight") else 1 + x.sin()) for name, x in before.items()}


_STEP = 10**-2.6

_DASHBOARD = {
    "ex-13-log": Numbers(
        {
            "log10 now": Number(
                "log10 of update:data in this run",
                -6.2 / math.log(10),
                {-6.2: "That is the natural logarithm.", -3.0: "That is where the line stands, not the run."},
                "-6.2 / ln 10.",
            ),
            "the line": Number(
                "where the line stands in natural logarithms",
                math.log(1e-3),
                {-3.0: "A natural logarithm of -3 is a ratio of 1/20.", -3 / math.log(10): "Multiply by ln 10."},
                "ln(1/1000).",
            ),
            "the new rate": Number(
                "log10 of update:data at 25 times the rate",
                math.log10(25 * math.exp(-6.2)),
                {
                    math.log(25) - 6.2: "That is the natural logarithm.",
                    -6.2 / math.log(10) - math.log10(25): "A larger rate moves it up.",
                },
                "log10(25) more than now.",
            ),
        }
    ),
    "ex-13-smaller": Numbers(
        {
            "linear3": Number(
                "log10 of update:data of linear3 with confidence 0.001",
                -5.0,
                {
                    -3.0: "Its gradient comes through the output weights, which are 100 times smaller.",
                    -1.0: "Smaller output weights let less gradient through.",
                },
                "Two decades below -3.0.",
                0.02,
            ),
            "output": Number(
                "log10 of update:data of the output layer",
                1.1,
                {
                    -0.9: "The gradient is the same, and the weights that it is compared with are 100 times smaller.",
                    -2.9: "The data are smaller, so that the ratio is larger.",
                },
                "Two decades above -0.9.",
                0.1,
            ),
        }
    ),
    "ex-13-batch": Function(
        "grad:data at batch size B, from that at batch size A, for independent gradients of mean 0: f(at_A, A, B)",
        lambda at, a, b: at * math.sqrt(a / b),
        {"from 8 to 128": lambda: (0.018, 8, 128), "from 128 to 32": lambda: (0.5, 128, 32)},
        {
            "That is how the variance shrinks; a standard deviation has its root.": lambda at, a, b: at * a / b,
            "A larger batch has the smaller noise.": lambda at, a, b: at * math.sqrt(b / a),
            "It is a mean over the batch, and the noise of a mean shrinks.": lambda at, a, b: at,
        },
        "A mean of B independent vectors shrinks as 1/sqrt(B).",
    ),
    "ex-13-snapshots": Function(
        "update_data(before, after)",
        _update_data,
        {f"for an update of 10^{u:g}": lambda u=u: _snapshots(u) for u in (-1.0, -3.0)},
        {
            "Matrices only: a bias begins at 0, and its ratio says nothing.": lambda *x: _update_data(*x, least=1),
            "That is the natural logarithm.": lambda *x: _update_data(*x, log=torch.log),
            "That is how the spread of the weights changes, not how the weights do.": lambda *x: _update_data(
                *x, spread=True
            ),
            "Relative to the weights before the step, not after it.": lambda *x: _update_data(*x, base="after"),
            "The logarithm is missing.": lambda *x: _update_data(*x, log=lambda r: r),
        },
        "log10 of std(after - before) / std(before), by name.",
        within=1e-3,
    ),
    "ex-13-far": Numbers(
        {
            "aligned": Number(
                "how far 120 aligned steps of 10^-2.6 get",
                120 * _STEP,
                {
                    math.sqrt(120) * _STEP: "That is for orthogonal steps.",
                    120 * -2.6: "The share of a step is 10^-2.6.",
                },
                "Aligned steps add up.",
            ),
            "orthogonal": Number(
                "how far 120 orthogonal steps get",
                math.sqrt(120) * _STEP,
                {
                    120 * _STEP: "That is for aligned steps; orthogonal ones add in squares.",
                    120 * _STEP**2: "Take the root.",
                },
                "Orthogonal steps add in squares.",
            ),
        }
    ),
}

# Does each fix matter?


def _flip_p(d: Tensor, *, sides: int = 2, strict=False, extra: int = 0) -> float:
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=len(d)))).double()
    means, found = (signs * d).mean(1), d.mean()
    if sides == 2:
        means, found = means.abs(), found.abs()
    above = means > found + 1e-12 if strict else means >= found - 1e-12
    return float(above.sum() + extra) / (len(signs) + extra)


def _seeds(s: float, d: float, quantile=lambda n: float(stdtrit(n - 1, 0.975)), power: int = 2) -> int:
    return next(n for n in itertools.count(2) if n >= (quantile(n) * s / d) ** power)


def _best_of(n: int) -> float:
    """E of the largest of n standard normal numbers."""
    return expectation(lambda z: n * z * torch.special.ndtr(z) ** (n - 1))


_T3 = float(stdtrit(3, 0.975))
_PAPER = torch.tensor([-0.02, -0.01, 0.0, -0.05]).double()
_S = float(_PAPER.std())

_FIXES = {
    "ex-14-paper": Numbers(
        {
            "mean": Number(
                "the mean difference", -0.02, {0.02: "The sign says which of the two is lower."}, "Add and divide."
            ),
            "s": Number(
                "s",
                _S,
                {float(_PAPER.std(correction=0)): "Divide by n - 1 = 3.", _S**2: "That is the variance."},
                "The root of 0.0014/3.",
            ),
            "half width": Number(
                "the half width of the interval",
                _T3 * _S / 2,
                {
                    1.96 * _S / 2: "Four seeds have Student's 3.18, not the normal 1.96.",
                    _T3 * _S: "Divide by sqrt(4).",
                },
                "t s / sqrt(n).",
            ),
            "seeds": Number(
                "the seeds for a half width of 0.01",
                float(_seeds(_S, 0.01)),
                {
                    float(math.ceil((1.96 * _S / 0.01) ** 2)): "t depends on n, and is above 1.96.",
                    float(math.ceil((_T3 * _S / 0.01) ** 2)): "With more seeds t is smaller than 3.18.",
                },
                "The least n with n >= (t s/0.01)^2.",
                0.001,
            ),
        }
    ),
    "ex-14-best": Number(
        "how much better the best of five looks, in sigma",
        _best_of(5),
        {
            float(ndtri(0.8)): "That is the 80 % point; the mean of the best lies above it.",
            _best_of(2): "That is the best of two.",
            _best_of(6): "That is the best of six.",
        },
        "E max of five: the integral of 5 z phi(z) Phi(z)^4.",
        0.005,
    ),
    "ex-14-flip": Function(
        "flip_p(d)",
        _flip_p,
        {
            f"for d = {list(d)}": lambda d=d: (torch.tensor(d).double(),)
            for d in ((1.0, 2.0, 3.0, 4.0), (-1.0, -2.0, -3.0, -4.0), (3.0, -1.0, 2.0, 0.5, -0.25), (0.0, 0.0, 0.0))
        },
        {
            "It looks at one side only: take |mean|.": lambda d: _flip_p(d, sides=1),
            "At least as large: the one that you found counts too.": lambda d: _flip_p(d, strict=True),
            "All sign flips are counted here, none is drawn: no 1 is to be added.": lambda d: _flip_p(d, extra=1),
        },
        "The share of all 2^n choices of signs with a |mean| that is at least yours, up to rounding.",
        observe=lambda answer, d: float(answer(d)),
    ),
    "ex-14-unpaired": Function(
        "how many seeds make the half width t s/sqrt(n) no larger than d: f(s, d)",
        _seeds,
        {f"for s = {s}, d = {d}": lambda s=s, d=d: (s, d) for s, d in ((1.0, 1.0), (0.02, 0.01), (0.03, 0.005))},
        {
            "1.96 is for many seeds; Student's t depends on n.": lambda s, d: _seeds(s, d, lambda n: 1.96),
            "Student's t has n - 1 degrees of freedom, not n.": lambda s, d: _seeds(
                s, d, lambda n: float(stdtrit(n, 0.975))
            ),
            "The interval has two ends: its t is the 97.5 % point.": lambda s, d: _seeds(
                s, d, lambda n: float(stdtrit(n - 1, 0.95))
            ),
            "The half width falls with the root of n: square the ratio.": lambda s, d: _seeds(s, d, power=1),
        },
        "Go up from n = 2 until n >= (t s/d)^2.",
    ),
}

# Chaos


def _twins(kind: str) -> tuple[nn.Sequential, nn.Sequential]:
    make = MLP(depth=1, width=20).build
    a, b = make(rng.generator(0, "weights")), make(rng.generator(1 if kind == "another seed" else 0, "weights"))
    order = torch.randperm(20, generator=rng.generator(0, "order"))
    with torch.no_grad():
        for model in (a, b):
            model.output.weight.mul_(10)
        if kind == "permuted":
            b.linear1.weight.copy_(b.linear1.weight[order])
            b.linear1.bias.copy_(b.linear1.bias[order])
            b.output.weight.copy_(b.output.weight[:, order])
        if kind == "shifted":
            b.output.bias.add_(1.0)
    return a, b


@torch.no_grad()
def _function_distance(a: nn.Module, b: nn.Module, of=lambda z: z.log_softmax(-1)) -> float:
    contexts = torch.randint(27, (200, 3), generator=rng.generator(0, "contexts"))
    p, q = (of(model(contexts)) for model in (a, b))
    return float((p - q).norm() / p.norm())


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _curves() -> tuple[Tensor, Tensor]:
    """Two curves of losses that part below 1: b is smaller by a share that grows from 1e-9 to 1e-1."""
    t = torch.arange(60).double()
    a = 0.3 + 0.2 * (-t / 20).exp()
    return a, a * (1 - 10 ** (-9 + 8 * t / 59))


def _first_divergent(a: Tensor, b: Tensor, digits: int) -> int | None:
    apart = ((a - b).abs() > 10.0**-digits * a.abs()).nonzero()
    return int(apart[0]) if len(apart) else None


def _stretch(rate: float, low: float, high: float) -> float:
    return max(abs(1 - rate * low), abs(1 - rate * high))


_CHAOS = {
    "ex-15-parted": Function(
        "first_divergent(a, b, digits)",
        _first_divergent,
        {
            "for curves that part": lambda: (*_curves(), 3),
            "for losses around 20": lambda: (*(20 * x for x in _curves()), 3),
            "for more digits": lambda: (*_curves(), 6),
            "for fewer digits": lambda: (*_curves(), 2),
            "for a curve and itself": lambda: (_curves()[0], _curves()[0], 3),
        },
        {
            "A loss has no fixed size: the difference is taken relative to a.": lambda a, b, digits: _first_divergent(
                a / a, 1 + b - a, digits
            ),
            "That is the last step at which they agree; the next one is asked for.": lambda a, b, digits: (
                None if (t := _first_divergent(a, b, digits)) is None else t - 1
            ),
            "Where they never part, the answer is None.": lambda a, b, digits: (
                len(a) if (t := _first_divergent(a, b, digits)) is None else t
            ),
            "b may be above a or below: take the absolute value.": lambda a, b, digits: _first_divergent(
                a, torch.maximum(a, b), digits
            ),
        },
        "The first t with |a_t - b_t| > 10^-digits |a_t|.",
        observe=lambda answer, a, b, digits: "none" if (t := answer(a, b, digits)) is None else int(t),
    ),
    "ex-15-sum": Choice(
        "the true statements",
        {
            "sorted: same for every order": "After sorting the order is always the same.",
            "fsum: same for every order": "It rounds once, at the end.",
            "fsum: nearest to the true sum": "It keeps all digits until the end.",
        },
        {
            "loop: same for every order": "Every addition rounds, and which ones do depends on the order.",
            "loop: nearest to the true sum": "Every addition rounds.",
            "sorted: nearest to the true sum": "It is reproducible; every addition rounds all the same.",
        },
    ),
    "ex-15-distance": Function(
        "function_distance(a, b)",
        _function_distance,
        {
            "for the same function with its units in another order": lambda: _twins("permuted"),
            "for the same probabilities from logits shifted by 1": lambda: _twins("shifted"),
            "for two networks of different seeds": lambda: _twins("another seed"),
        },
        {
            "That compares parameters: a permuted network is the same function.": lambda a, b: float(
                (_flat(a) - _flat(b)).norm() / _flat(a).norm()
            ),
            "Adding a constant to all logits changes no probability: compare log-probabilities.": lambda a, b: (
                _function_distance(a, b, of=lambda z: z)
            ),
            "The difference of two norms is small for unlike networks too.": lambda a, b: (
                abs(float(_flat(a).norm() - _flat(b).norm())) / 100
            ),
        },
        "Compare what the two compute on examples, for instance their log-probabilities.",
        observe=lambda answer, a, b: (
            "over 0.02" if (d := float(answer(a, b))) > 0.02 else "near 0" if d < 1e-4 else "from 0.0001 to 0.02"
        ),
    ),
    "ex-15-edge": Function(
        "stretch(rate, low, high), the most that one step multiplies a deviation by",
        _stretch,
        {
            f"for the rate {rate:g} and eigenvalues from {low:g} to {high:g}": lambda x=(rate, low, high): x
            for rate, low, high in ((0.1, -30.0, 10.0), (0.1, 0.5, 30.0), (1.0, -0.6, 1.1), (0.5, 0.2, 1.1))
        },
        {
            "The lower end stretches too, where it is negative.": lambda rate, low, high: abs(1 - rate * high),
            "That takes the larger |lambda|, and loses its sign.": lambda rate, low, high: abs(
                1 - rate * max(abs(low), abs(high))
            ),
            "A factor of -3 stretches as one of 3 does: take the absolute value.": lambda rate, low, high: max(
                1 - rate * low, 1 - rate * high
            ),
        },
        "max |1 - rate lambda|, and the largest is at one of the ends.",
        observe=lambda answer, *x: float(answer(*x)),
    ),
}

# A recipe for your own network


class _Reader(nn.Module):
    """An encoder that reads its own example (""), or also other ones of the batch."""

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.reads = reads
        self.embedding = Embedding(27, 4, generator=rng.generator(0, "embedding"))
        self.output = Linear(12, 5, generator=rng.generator(0, "weights"))

    def forward(self, contexts: Tensor) -> Tensor:
        x = self.embedding(contexts).flatten(1)
        if self.reads == "all":
            x = x + x.mean(0)
        if self.reads == "along":
            x = x.cumsum(0)
        return self.output(x.tanh())


def _depends_on(model: nn.Module, contexts: Tensor, row: int = -1) -> list[int]:
    kept = []
    handle = model.embedding.register_forward_hook(lambda module, x, y: kept.append(y))
    total = model(contexts)[row].sum()
    handle.remove()
    (grad,) = torch.autograd.grad(total, kept[0])
    return grad.abs().amax((1, 2)).nonzero().flatten().tolist()


def _six(reads: str) -> tuple[nn.Module, Tensor]:
    return _Reader(reads).eval(), torch.randint(27, (6, 3), generator=rng.generator(0, "contexts"))


def _column() -> tuple[Tensor, Tensor]:
    return draws(8, 1), draws(8, seed=1)


_TWO_SOFTMAXES = math.log(1 + 9 / math.e)

_RECIPE = {
    "ex-16-stopped": Numbers(
        {
            "two labels": Number(
                "the floor when every input occurs twice with two labels",
                math.log(2),
                {0.0: "Neither label can be sure: the best is one half.", 1.0: "That is in bits."},
                "The entropy of a coin.",
            ),
            "two softmaxes": Number(
                "the floor with two softmaxes over ten classes",
                _TWO_SOFTMAXES,
                {
                    math.log(1 + math.exp(-1)): "There are nine other classes, not one.",
                    math.log(10): "The right class still gets the logit 1, the others 0.",
                },
                "-log of e / (e + 9).",
            ),
            "nothing of the inputs": Number(
                "the floor when nothing of the inputs is used, ten balanced classes",
                math.log(10),
                {math.log10(10): "That is a logarithm to base 10."},
                "The entropy of the targets.",
            ),
        }
    ),
    "ex-16-mean": Function(
        "squared_error(y, target)",
        lambda y, t: (y.squeeze(-1) - t).square().mean(),
        {"for predictions (8, 1) and targets (8,)": _column},
        {
            "(8, 1) against (8,) broadcasts to 8 x 8: every prediction is compared with every target.": lambda y, t: (
                (y - t).square().mean()
            ),
            "That is the sum over the examples; the mean is asked for.": lambda y, t: (
                (y.squeeze(-1) - t).square().sum()
            ),
            "That is the absolute error.": lambda y, t: (y.squeeze(-1) - t).abs().mean(),
        },
        "Bring both to the same shape, then take the mean of the squares.",
    ),
    "ex-16-sideways": Function(
        "depends_on(model, contexts)",
        _depends_on,
        {
            "for a model that reads its own example": lambda: _six(""),
            "for one that mixes in the mean of the batch": lambda: _six("all"),
            "for one that runs along the batch": lambda: _six("along"),
        },
        {
            "That is every example, whether it matters or not.": lambda model, contexts: list(range(len(contexts))),
            "Take the output of the last example: in a model that runs along the batch, the first knows no other.": (
                lambda model, contexts: _depends_on(model, contexts, row=0)
            ),
        },
        "Differentiate the last example's outputs by the embedded inputs; list the rows that are not 0.",
        observe=lambda answer, model, contexts: list(map(int, answer(model, contexts))),
    ),
    "ex-16-report": Numbers(
        {
            name: Number(
                f"the std of the weights of {name}",
                1.0,
                {
                    1
                    / math.sqrt(
                        fan_in
                    ): "That is what it should be; divide the two rows of the table, then by sqrt(n_in).",
                    math.sqrt(fan_in): f"Divide the ratio of the two rows by sqrt({fan_in}).",
                },
                "std W = rms z / (sqrt(n_in) rms x).",
                0.1,
            )
            for name, fan_in in (("linear1", 32), ("linear2", 64))
        }
    ),
}

# Spot the bug


def _regression(w: Tensor, X: Tensor, y: Tensor, *, half: float = 1.0) -> tuple[Tensor, Tensor]:
    """Loss and gradient, each times `half`."""
    error = X @ w - y
    return half * error.square().mean(), half * 2 * X.T @ error / len(y)


def _row(n: int) -> tuple[Tensor, Tensor, Tensor]:
    return draws(5), draws(n, 5, seed=1), draws(n, seed=2)


def _standardised(x: Tensor, correction: int = 0) -> Tensor:
    mean, var = moments(x, 0)
    n = len(x)
    return standardize(x, mean, var * n / (n - correction), eps=1e-5)


def _in_one_pass(x: Tensor) -> Tensor:
    mean = x.mean(0)
    return (x - mean) / (x.square().mean(0) - mean**2 + 1e-5).sqrt()


def _offset(by: float) -> tuple[Tensor]:
    return (draws(64, 100).float() + by,)


def _spread(answer, x: Tensor) -> dict:
    y = answer(x)
    centred = bool(y.mean(0).abs().max() < 0.01)
    return {"the standard deviation of each feature": y.std(0, correction=0), "centred": centred}


def _through(answer, x: Tensor) -> dict[str, Tensor]:
    x = x.requires_grad_()
    y = answer(x)
    grad = torch.autograd.grad(y, x, draws(*x.shape, seed=9))[0] if y.requires_grad else torch.zeros_like(x)
    return {"output": y.detach(), "gradient": grad}


def _with_constants(x: Tensor, *names: str) -> Tensor:
    statistics = dict(zip(("mean", "var"), moments(x, 0), strict=True))
    constant = {name: value.detach() if name in names else value for name, value in statistics.items()}
    return standardize(x, **constant, eps=1e-5)


def _kept(answer, running: Tensor, x: Tensor) -> dict:
    y = answer(running, x.requires_grad_())
    return {"value": y.detach(), "hangs on a graph": y.requires_grad}


_SCRIPT = {
    "first": (6, "Call twice what is called twice."),
    "second": (34, "Compare what was meant with what the model holds."),
    "third": (43, "Ten times the step: by how much should it rise?"),
}

_BUGS = {
    "ex-17-case2": Function(
        "loss_and_gradient(w, X, y)",
        _regression,
        {f"for {n} examples": lambda n=n: _row(n) for n in (8, 30)},
        {
            "The gradient is half of what autograd finds.": lambda w, X, y: (
                _regression(w, X, y)[0],
                _regression(w, X, y, half=0.5)[1],
            ),
            "That halves the loss to fit its gradient; the loss is the mean of the squares.": lambda w, X, y: (
                _regression(w, X, y, half=0.5)
            ),
            "That is the gradient of the sum, not of the mean.": lambda w, X, y: (
                _regression(w, X, y)[0],
                len(y) * _regression(w, X, y)[1],
            ),
        },
        "Differentiate the mean of (Xw - y)^2 by w, and compare with autograd.",
    ),
    "ex-17-case4": Function(
        "normalise(x)",
        _standardised,
        {f"for an offset of {by:g}": lambda by=by: _offset(by) for by in (0.0, 100.0, 10_000.0)},
        {
            "The difference of two large numbers cancels: subtract the mean first, then square.": _in_one_pass,
            "Divide by n, not by n - 1, as the code did.": lambda x: _standardised(x, correction=1),
            "The statistics are those of a feature, over the batch.": lambda x: _standardised(x.T).T,
        },
        "Take the variance of x minus its mean.",
        observe=_spread,
        within=2e-3,
    ),
    "ex-17-case8": Function(
        "keep(running, x)",
        lambda running, x: (0.9 * running + 0.1 * x.mean(0)).detach(),
        {"for a batch of 8": lambda: (draws(5), draws(8, 5, seed=1))},
        {
            "The value is right, and it still holds on to the graph of x.": lambda running, x: (
                0.9 * running + 0.1 * x.mean(0)
            ),
            "The shares are the wrong way round: nine tenths stay.": lambda running, x: (
                0.1 * running + 0.9 * x.mean(0)
            ).detach(),
        },
        "The record of a statistic is a number without a graph.",
        observe=_kept,
    ),
    "ex-17-case9": Function(
        "normalise(x)",
        _standardised,
        {"for a batch of 32": lambda: (3 * draws(32, 20) + 1,)},
        {
            "Mean and variance depend on x: the gradient lacks both their terms.": lambda x: _with_constants(
                x, "mean", "var"
            ),
            "The variance depends on x too.": lambda x: _with_constants(x, "var"),
            "The mean depends on x too.": lambda x: _with_constants(x, "mean"),
            "Torch normalises by the variance with n, not n - 1.": lambda x: _standardised(x, correction=1),
        },
        "Compare output and gradient with nn.BatchNorm1d, for a random cotangent.",
        observe=_through,
    ),
    "ex-17-script": Numbers(
        {
            name: Number(
                f"the number of the {name} line",
                float(line),
                {51.0: "The rows are drawn anew in each step, with replacement: no bug."}
                if name != "third"
                else {44.0: "That line is empty: count from the first line of the script."},
                hint,
                1e-6,
            )
            for name, (line, hint) in _SCRIPT.items()
        }
    ),
}

# The reference run


def _draw(g: torch.Generator, *, last: bool = True, order: bool = True, scale: float = 0.2) -> tuple[Tensor, ...]:
    C = torch.randn(27, 10, generator=g)
    W1 = scale * torch.randn(30, 200, generator=g)
    if order:
        b1, W2 = 0.01 * torch.randn(200, generator=g), 0.01 * torch.randn(200, 27, generator=g)
    else:
        W2, b1 = 0.01 * torch.randn(200, 27, generator=g), 0.01 * torch.randn(200, generator=g)
    return C, W1, b1, W2, 0 * torch.randn(27, generator=g) if last else torch.zeros(27)


def _and_batch(answer, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    tensors = dict(zip(("C", "W1", "b1", "W2", "b2"), answer(g), strict=True))
    return tensors | {"the batch that is drawn next": torch.randint(1000, (32,), generator=g)}


_COUNT = 27 * 10 + (30 + 1) * 200 + (200 + 1) * 27
_DEEP = 27 * 10 + 30 * 100 + 4 * 100 * 100 + 100 * 27 + 2 * (5 * 100 + 27)

_REFERENCE = {
    "ex-20-count": Numbers(
        {
            "tanh": Number(
                "the parameters of the tanh stage",
                _COUNT,
                {_COUNT - 227: "The biases are missing.", _COUNT - 270: "The embedding is missing."},
                "270 + 6200 + 5427.",
                0.0001,
            ),
            "BatchNorm": Number(
                "the parameters of the BatchNorm stage",
                _COUNT + 200,
                {
                    _COUNT + 400: "Before the norm there is no bias.",
                    _COUNT: "Scale and shift, in place of one bias.",
                    _COUNT + 600: "Running statistics are buffers, and no parameters.",
                },
                "270 + 6000 + 400 + 5427.",
                0.0001,
            ),
            "deep": Number(
                "the parameters of the deep network",
                _DEEP,
                {
                    _DEEP - 54: "The logits are normalised too: 27 scales and shifts.",
                    _DEEP + 527: "No layer has a bias.",
                    _DEEP + 10_000: "Five hidden layers have four square matrices.",
                },
                "270 + 3000 + 40,000 + 2700 + 2 times 527.",
                0.0001,
            ),
        }
    ),
    "ex-20-draws": Function(
        "draw(g), the five tensors of the tanh stage",
        _draw,
        {f"for seed {seed}": lambda seed=seed: (seed,) for seed in (0, 1)},
        {
            "b2 is 0, but it is drawn: without that, the next batch is another one.": lambda g: _draw(g, last=False),
            "The order of the draws is C, W1, b1, W2, b2.": lambda g: _draw(g, order=False),
            "W1 is multiplied by 0.2.": lambda g: _draw(g, scale=1.0),
        },
        "torch.randn with this generator, in the order C, W1, b1, W2, b2.",
        observe=_and_batch,
    ),
    "ex-20-n": Function(
        "the output of the stage's norm in training for a batch x (n, features), scale 1, shift 0, eps 0",
        lambda x: (x - x.mean(0)) / x.std(0),
        {"for 4 examples": lambda: (draws(4, 3),), "for 32": lambda: (draws(32, 3),)},
        {
            "That is BatchNorm1d, which divides by n; the stage divides by n - 1.": lambda x: (
                (x - x.mean(0)) / x.std(0, correction=0)
            ),
            "The statistics are those of a feature, over the batch.": lambda x: (
                (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
            ),
        },
        "Take off the mean over the batch and divide by the standard deviation with n - 1.",
    ),
}

EXERCISES: dict[str, Exercise] = {**_DASHBOARD, **_FIXES, **_CHAOS, **_RECIPE, **_BUGS, **_REFERENCE}
