"""The exercises on batch normalisation, its gradient, other norms, and building blocks."""

import math

import torch
from torch import Tensor, nn

from mmlib import rng
from mmlib.backward import standardize_backward
from mmlib.exercise.kinds import Choice, Exercise, Function, Number, Numbers, draws
from mmlib.layers import Linear
from mmlib.norm import BatchNorm1d, moments, standardize

# Batch normalisation


class _Norm(BatchNorm1d):
    """A batch normalisation that may have one fault."""

    fault = ""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.fault != "no gradient"):
            mean, var = x.mean(0), x.var(0, correction=int(self.fault == "unbiased"))
        if self.training or self.fault == "moves":
            with torch.no_grad():
                a = 0.9 if self.fault == "momentum" else 0.1
                n = len(x) if self.fault == "biased record" else len(x) - 1
                self.running_mean += a * (mean - self.running_mean)
                self.running_var += a * (x.var(0, correction=0) * len(x) / n - self.running_var)
        if not (self.training or self.fault == "own batch"):
            mean, var = self.running_mean, self.running_var
        return self.weight * (x - mean) / (var + (self.fault != "no eps") * 1e-5).sqrt() + self.bias


def _faulty(fault: str) -> type[nn.Module]:
    return type("Faulty", (_Norm,), {"fault": fault})


def _over_steps(answer, features: int) -> dict[str, Tensor]:
    layer, g = answer(features).double(), rng.generator(0, "check")
    with torch.no_grad():
        layer.weight.copy_(1 + 0.5 * torch.randn(features, generator=g).double())
        layer.bias.copy_(torch.randn(features, generator=g).double())
    seen = {}
    for mode in ("training", "training", "evaluation", "evaluation"):
        layer.train(mode == "training")
        x, cotangent = (torch.randn(8, features, generator=g).double() for _ in range(2))
        x = 3 * x + 2
        x[:, 0] *= 1e-3  # where epsilon counts
        x.requires_grad_()
        y = layer(x)
        seen[f"the output in {mode}"] = y
        seen[f"dL/dx in {mode}"] = torch.autograd.grad(y, x, cotangent)[0]
        seen[f"running_mean in {mode}"] = layer.running_mean.clone()
        seen[f"running_var in {mode}"] = layer.running_var.clone()
    return seen


def _folded(norm: BatchNorm1d, linear: Linear, *, rows=False, shifts=True, eps=None) -> tuple[Tensor, Tensor]:
    s = norm.weight / (norm.running_var + (norm.eps if eps is None else eps)).sqrt()
    c = norm.bias - norm.running_mean * s
    W = linear.weight * (s.unsqueeze(-1) if rows else s)
    return W, linear.bias + linear.weight @ c if shifts else linear.bias


def _norm_and_linear() -> tuple[BatchNorm1d, Linear]:
    norm, linear = BatchNorm1d(6, eps=0.1).double().eval(), Linear(6, 6, generator=rng.generator(0, "weights")).double()
    with torch.no_grad():
        for k, p in enumerate((norm.weight, norm.bias, norm.running_mean, linear.bias)):
            p.copy_(draws(6, seed=k))
        norm.running_var.copy_(draws(6, seed=9).square() + 0.1)
    return norm, linear


def _after(steps: float, a: float) -> float:
    return float(math.ceil(math.log(steps) / math.log1p(-a)))


_NORM = {
    "ex-09-four": Numbers(
        {
            "running mean": Number(
                "the running mean",
                0.4,
                {
                    4.0: "That is the batch's; the record moves a tenth of the way.",
                    3.6: "momentum is the share of the new batch: 0.1 of it.",
                },
                "0.9 times 0 plus 0.1 times 4.",
            ),
            "running variance": Number(
                "the running variance",
                0.9 + 2 / 3,
                {
                    1.4: "The record takes the unbiased variance, 20/3.",
                    20 / 3: "That is the batch's; the record begins at 1.",
                },
                "0.9 times 1 plus 0.1 times 20/3.",
                0.005,
            ),
            "for the input 4": Number(
                "what the norm gives for 4 in evaluation",
                3.6 / math.sqrt(0.9 + 2 / 3),
                {
                    0.0: "In evaluation the running mean counts, not that of the batch.",
                    3.6 / (0.9 + 2 / 3): "Divide by the root of the variance.",
                },
                "(4 - running mean) / sqrt(running variance).",
                0.005,
            ),
        }
    ),
    "ex-09-cold": Numbers(
        {
            f"alpha = {a}": Number(
                f"the steps until less than 1 % of the start is left, for alpha = {a}",
                _after(0.01, a),
                {
                    float(round(1 / a)): "After 1/alpha steps a share of 1/e is left, 37 %.",
                    _after(0.01, a) / math.log(100) * math.log(10): "That is where a tenth is left.",
                },
                "(1 - alpha)^t < 0.01.",
                0.002,
            )
            for a in (0.1, 0.01, 0.001)
        }
    ),
    "ex-09-write": Function(
        "a class of normalisation layers, given the number of features",
        _Norm,
        {"over two batches in training and two in evaluation": lambda: (5,)},
        {
            "It normalises with the unbiased variance; that belongs into the record only.": _faulty("unbiased"),
            "The outputs are right and the gradient is not: under no_grad mean and variance are constants.": _faulty(
                "no gradient"
            ),
            "running_var records the biased variance; it takes the unbiased one.": _faulty("biased record"),
            "The running statistics move in evaluation too.": _faulty("moves"),
            "Epsilon is left out of the variance.": _faulty("no eps"),
            "In evaluation it normalises with the batch's own statistics.": _faulty("own batch"),
            "momentum is the share of the new batch, 0.1, not that of the old record.": _faulty("momentum"),
        },
        "Training: the batch's mean and biased variance, and a record of both. Evaluation: the record.",
        observe=_over_steps,
    ),
    "ex-09-largest": Function(
        "a function of n that gives a batch (n, 1) with the largest x_hat there can be",
        lambda n: torch.eye(n)[:, :1],
        {f"for n = {n}": lambda n=n: (n,) for n in (2, 5, 32)},
        {
            "Evenly spaced examples reach about sqrt(3): let one differ from all others.": lambda n: torch.arange(
                float(n)
            ).unsqueeze(1),
            "Two that differ share it: only one example may be exceptional.": lambda n: (
                torch.eye(n)[:, :1] - torch.eye(n)[:, 1:2]
            ),
        },
        "The other n - 1 deviations are smallest when they are equal.",
        observe=lambda answer, n: (
            standardize((x := torch.as_tensor(answer(n)).double().view(n, 1)), *moments(x, 0), 0.0).abs().max()
        ),
    ),
    "ex-09-fold": Function(
        "folded(norm, linear), the weight and bias of one layer",
        _folded,
        {"for a layer of 6 units behind a norm of 6 features": _norm_and_linear},
        {
            "The norm stands before the layer: its scale multiplies the columns of W, not the rows.": lambda *x: (
                _folded(*x, rows=True)
            ),
            "The norm's shift goes through W and adds to the bias.": lambda *x: _folded(*x, shifts=False),
            "norm.eps is left out of the variance.": lambda *x: _folded(*x, eps=0.0),
        },
        "The norm is x -> s x + c; W (s x + c) + b = (W diag s) x + (W c + b).",
    ),
    "ex-09-shallow": Choice(
        "the gains at which BatchNorm is ahead",
        {
            "gain 0.3": "One layer alone loses some hundredths of a nat to weights that are too small.",
            "gain 10": "One saturated layer is enough to lose about a tenth of a nat.",
        },
        {"gain 1": "The start is good without a norm, and the interval holds 0."},
    ),
}

# Its gradient


def _x_hat(n: int, correction: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    x, g = draws(n, 5), draws(n, 5, seed=1)
    s = (x.var(0, correction=correction) + 1e-5).sqrt()
    return g, (x - x.mean(0)) / s, s


_BACKWARD = {
    "ex-10-two": Numbers(
        {
            f"n = {n}": Number(
                f"the share of |delta|^2 that is left in a batch of {n}",
                (n - 2) / n,
                {(n - 1) / n: "Two directions go: the mean and x_hat."},
                "Two of n directions are taken out.",
                0.02,
            )
            for n in (2, 3, 4)
        }
    ),
    "ex-10-test": Choice(
        "the pairs (test finds fault)",
        {
            "sum finds delta/s": "With delta = 1 the right answer is 0, and delta/s is not.",
            "sum of squares finds delta/s": "Its delta = 2 x_hat lies along x_hat, which delta/s keeps.",
            "sum of squares finds (delta - mean)/s": "Its delta = 2 x_hat lies along x_hat, which this fault keeps.",
            "random finds delta/s": "A random delta has all parts.",
            "random finds (delta - mean)/s": "A random delta has all parts.",
            "random finds no 1/s": "Only a gradient that is not 0 shows a missing factor.",
        },
        {
            "sum finds (delta - mean)/s": "With delta = 1 both give 0.",
            "sum finds no 1/s": "With delta = 1 both give 0, with the factor or without.",
            "sum of squares finds no 1/s": "With delta = 2 x_hat both give 0, with the factor or without.",
        },
    ),
    "ex-10-unbiased": Function(
        "backward(delta_hat, x_hat, s)",
        lambda g, x_hat, s: (g - g.mean(0) - x_hat * (g * x_hat).sum(0) / (len(g) - 1)) / s,
        {f"for a batch of {n}": lambda n=n: _x_hat(n) for n in (3, 32)},
        {
            "That is the gradient for the biased variance: the sum that belongs to s is divided by n - 1 too.": (
                lambda g, x_hat, s: (g - g.mean(0) - x_hat * (g * x_hat).mean(0)) / s
            ),
            "The mean of delta_hat is still over n; only s has n - 1.": lambda g, x_hat, s: (
                (g - g.sum(0) / (len(g) - 1) - x_hat * (g * x_hat).sum(0) / (len(g) - 1)) / s
            ),
            "The factor 1/s is missing.": lambda g, x_hat, s: g - g.mean(0) - x_hat * (g * x_hat).sum(0) / (len(g) - 1),
            "The statistics depend on x too: delta_hat/s alone is too much.": lambda g, x_hat, s: g / s,
        },
        "ds/dx_i = x_hat_i / (n - 1).",
    ),
    "ex-10-decay": Function(
        "the relative step at which decay and gradient balance, from the rate and the decay",
        lambda eta, decay: math.sqrt(2 * eta * decay),
        {"for rate 0.5 and decay 0.02": lambda: (0.5, 0.02), "for rate 0.1 and decay 0.001": lambda: (0.1, 0.001)},
        {
            "(1 - x)^2 is 1 - 2 x: the square of the norm shrinks by twice the share.": lambda eta, d: math.sqrt(
                eta * d
            ),
            "The gradient adds the square of the relative step: take the root.": lambda eta, d: 2 * eta * d,
            "The relative step includes the rate: multiply by it.": lambda eta, d: math.sqrt(2 * d / eta),
        },
        "2 rate decay |w|^2 = rate^2 |gradient|^2.",
        within=0.01,  # an exact balance, whichever of step and decay comes first, differs by less
    ),
    "ex-10-momentum": Function(
        "how much faster the norm grows, in units of rate^2 |v|^2, from rho",
        lambda rho: (1 + rho) / (1 - rho),
        {f"for rho = {rho}": lambda rho=rho: (rho,) for rho in (0.0, 0.5, 0.9)},
        {
            "That is how much longer the step becomes; the norm grows by 1 + 2 rho/(1 - rho).": lambda rho: (
                1 / (1 - rho)
            ),
            "The 1 is missing: the step adds its own square too.": lambda rho: 2 * rho / (1 - rho),
        },
        "|w|^2 grows by -2 rate <w, v> + rate^2 |v|^2, and <w, v> settles at -rho/(1 - rho) rate |v|^2.",
    ),
}

# Batch-mates and other norms


def _instance(x: Tensor, eps: float, dim=-1, correction: int = 0, grad: bool = True) -> Tensor:
    with torch.set_grad_enabled(grad):
        mean, var = x.mean(dim, keepdim=True), x.var(dim, correction=correction, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


def _with_gradient(answer, shape: tuple[int, ...], eps: float) -> dict[str, Tensor]:
    x = draws(*shape).requires_grad_()
    y = answer(x, eps)
    return {"the output": y, "the gradient": torch.autograd.grad(y, x, draws(*shape, seed=1))[0]}


_WEIGHTS = {  # what is done, and which norms do not notice
    "3 W": ("Batch Layer RMS", "It scales all of z."),
    "units scaled": ("Batch", "It scales each feature of z."),
    "gamma added to W": ("Layer", "It shifts each row of z."),
    "added to x": ("Batch", "It shifts each feature of z."),
    "rows scaled": ("Layer RMS", "It scales each row of z."),
}

_MATES = {
    "ex-11-groups": Numbers(
        {
            "of one": Number(
                "the largest |output| with one feature in a group",
                0.0,
                {1.0: "One number is its own mean: what is left is 0."},
                "Take off the mean of one number.",
            ),
            "of two": Number(
                "the largest |output| with two features in a group",
                1.0,
                {
                    0.0: "Two numbers differ from their mean, by the same amount.",
                    math.sqrt(0.5): "The variance is the biased one.",
                },
                "Two numbers are +-d around their mean, and d is the standard deviation.",
            ),
        }
    ),
    "ex-11-weights": Choice(
        "the pairs (change: norm) that stay the same",
        {f"{what}: {norm}": why for what, (same, why) in _WEIGHTS.items() for norm in same.split()},
        {
            f"{what}: {norm}": why
            for what, (same, why) in _WEIGHTS.items()
            for norm in ("Batch", "Layer", "RMS")
            if norm not in same
        },
    ),
    "ex-11-eps": Number(
        "the c at which the standard deviation of LN(c x) is one half",
        math.sqrt(1e-5 / 3),
        {
            math.sqrt(1e-5): "There c^2 = eps, and the std is 1/sqrt(2).",
            math.sqrt(3e-5): "Upside down: c^2 = eps/3.",
            1e-5 / 3: "That is c^2: take the root.",
        },
        "Solve c / sqrt(c^2 + eps) = 1/2, with eps = 1e-5.",
    ),
    "ex-11-instance": Function(
        "instance_norm(x, eps)",
        _instance,
        {
            "for 6 rows, 4 channels, 3 positions": lambda: ((6, 4, 3), 1e-5),
            "with a large eps": lambda: ((6, 4, 3), 0.5),
        },
        {
            "It divides by n - 1: with three positions the output is too small by sqrt(2/3).": lambda x, eps: _instance(
                x, eps, correction=1
            ),
            "That averages over the rows as well, as BatchNorm does: each row has its own statistics.": lambda x, eps: (
                _instance(x, eps, dim=(0, -1))
            ),
            "That averages over the channels as well, as LayerNorm does.": lambda x, eps: _instance(
                x, eps, dim=(1, -1)
            ),
            "The output is right and the gradient is not: mean and variance depend on x.": lambda x, eps: _instance(
                x, eps, grad=False
            ),
            "eps is left out.": lambda x, eps: _instance(x, 0.0),
        },
        "Mean and biased variance over the positions of one channel in one row.",
        observe=_with_gradient,
    ),
}

# Building blocks


class _Dropout(nn.Module):
    def __init__(self, p: float, g: torch.Generator, *, scaled=True, always=False, turned=False) -> None:
        super().__init__()
        self.p, self.g, self.scaled, self.always, self.turned = p, g, scaled, always, turned

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.always):
            return x
        keep = torch.rand(x.shape, generator=self.g) >= (1 - self.p if self.turned else self.p)
        return x * keep / (1 - self.p if self.scaled else 1)


def _masked(answer, p: float) -> dict:
    layer = nn.Sequential(answer(p, rng.generator(0, "masks")))
    x = torch.ones(400, 400)
    y = layer(x)
    zero = float((y == 0).double().mean())
    same = bool(torch.equal(layer.eval()(x), x))
    return {
        "the share of zeros": zero,
        "the mean": float(y.mean()),
        "evaluation changes nothing": same,
        "one mask for all": bool(y.std() == 0),
    }


def _layernorm_backward(grad: Tensor, gamma: Tensor, x_hat: Tensor, v: Tensor, *, scaled=True, dim=-2, mean=False):
    d_x = standardize_backward(grad * gamma if scaled else grad, x_hat, v, 1e-5, -1)
    reduce = torch.mean if mean else torch.sum
    return d_x, reduce(grad * x_hat, dim), reduce(grad, dim)


def _rows() -> tuple[Tensor, ...]:
    x = draws(8, 8)
    m, v = moments(x, -1)
    return draws(8, 8, seed=1), draws(8, seed=2), standardize(x, m, v, 1e-5), v


_BLOCKS = {
    "ex-12-registered": Choice(
        "the names that named_parameters() gives",
        {
            "a": "A Parameter that is assigned to an attribute is registered.",
            "d.x": "A ParameterDict is a module, and hands its parameters on.",
            "e.weight": "A layer's parameters are given under its name.",
            "e.bias": "A layer's parameters are given under its name.",
        },
        {
            "b": "The product of a parameter is a tensor, and no parameter.",
            "c": "A tensor that asks for a gradient is no parameter.",
            "f.weight": "It is the same parameter as e.weight, and given once.",
            "f.bias": "It is the same parameter as e.bias, and given once.",
            "g.layer.weight": "A layer in a dictionary of Python is not seen.",
            "g.layer.bias": "A layer in a dictionary of Python is not seen.",
            "h": "A buffer is no parameter.",
            "k": "A buffer is no parameter, saved or not.",
        },
    ),
    "ex-12-dropout": Function(
        "a class Dropout, given p and a generator",
        _Dropout,
        {f"for p = {p}": lambda p=p: (p,) for p in (0.2, 0.8)},
        {
            "The mean is no longer 1: divide what stays by 1 - p.": lambda p, g: _Dropout(p, g, scaled=False),
            "It drops in evaluation too: ask self.training.": lambda p, g: _Dropout(p, g, always=True),
            "p is the share that is dropped, not the one that stays.": lambda p, g: _Dropout(p, g, turned=True),
        },
        "In training, 0 with probability p and x / (1 - p) otherwise; in evaluation x.",
        observe=_masked,
        within=0.03,
    ),
    "ex-12-layernorm": Function(
        "layernorm_backward(grad, gamma, x_hat, v)",
        _layernorm_backward,
        {"for 8 rows of 8 features": _rows},
        {
            "The gradient passes gamma before it reaches the standardisation.": lambda *x: _layernorm_backward(
                *x, scaled=False
            ),
            "gamma_j and beta_j act on feature j of every row: their sums run over the rows.": lambda *x: (
                _layernorm_backward(*x, dim=-1)
            ),
            "The gradients of gamma and beta are sums over the rows, not means.": lambda *x: _layernorm_backward(
                *x, mean=True
            ),
        },
        "dL/dx, dL/dgamma, dL/dbeta in this order, with eps = 1e-5.",
    ),
    "ex-12-tied": Number(
        "how many parameters go away",
        27 * 24,
        {
            2 * 27 * 24: "One of the two matrices stays.",
            27 * 25: "The output's bias stays: only 27 times 24 weights are shared.",
        },
        "Both matrices are 27 x 24, and one is left.",
        0.0005,
    ),
}

EXERCISES: dict[str, Exercise] = {**_NORM, **_BACKWARD, **_MATES, **_BLOCKS}
