import copy
import gc
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from mmlib import rng
from mmlib.activations import RELU, TANH
from mmlib.checkup import checkup
from mmlib.checkup.record import record
from mmlib.data import Vocabulary, examples
from mmlib.ensemble import stack
from mmlib.init import VarianceScaling, kaiming
from mmlib.layers import cross_entropy
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d, LayerNorm
from mmlib.table import LINE

CROSS_ENTROPY = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def seeded():
    """Stock layers draw from the global random state: each test gets its own, and leaves the state as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def kaiming_(module):
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def mlp(depth=4, width=128, norm=False, act=nn.ReLU, init=True):
    layers, fan_in = [], 32
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width, bias=not norm), *([nn.BatchNorm1d(width)] if norm else []), act()]
        fan_in = width
    model = nn.Sequential(*layers, nn.Linear(fan_in, 10))
    return model.apply(kaiming_) if init else model


def stock(act=nn.ReLU, outputs=10):
    return nn.Sequential(nn.Linear(32, 64), act(), nn.Linear(64, outputs))


class Conv(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=not norm)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(32) if norm else nn.Identity()
        self.output = nn.Linear(32 * 16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x)), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        return self.output(x.flatten(1))


class Transformer(nn.Module):
    def __init__(self, layers=3, norm_first=True, activation="relu"):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.position = nn.Parameter(torch.randn(1, 12, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, norm_first=norm_first, batch_first=True, activation=activation)
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(32), enable_nested_tensor=False)
        self.output = nn.Linear(32, 10)

    def forward(self, tokens):
        return self.output(self.encoder(self.embedding(tokens) + self.position).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.recurrent = kind(32, 64, batch_first=True)
        self.output = nn.Linear(64, 10)

    def forward(self, tokens):
        return self.output(self.recurrent(self.embedding(tokens))[0][:, -1])


def blobs(n=64, classes=10):
    """Ten clouds in 32 dimensions, each coordinate of variance about 1."""
    y = torch.randint(classes, (n,))
    return (torch.randn(classes, 32)[y] + torch.randn(n, 32)) / 2**0.5, y


def images(n=32):
    """Grey pictures from 0 to 1, smooth, and alike within a class."""
    y = torch.randint(10, (n,))
    patterns = torch.rand(10, 1, 4, 4)[y].repeat_interleave(4, 2).repeat_interleave(4, 3)
    return 0.7 * patterns + 0.3 * torch.rand(n, 1, 16, 16), y


def tokens(n=32):
    return torch.randint(50, (n, 12)), torch.randint(10, (n,))


def regression():
    x = torch.randn(64, 32)
    return stock(outputs=1), x, x[:, :1] + 0.3 * torch.randn(64, 1), nn.MSELoss()


def binary():
    x = torch.randn(64, 32)
    model = nn.Sequential(*stock(nn.Tanh, 1), nn.Flatten(0))
    return model, x, (x[:, 0] > 1).float(), nn.BCEWithLogitsLoss()


def characters(names, **recipe):
    chosen = [names[i] for i in torch.randint(len(names), (8,)).tolist()]
    contexts, targets = examples(chosen, Vocabulary.of(names), 3)
    seed = int(torch.randint(1000, ()))
    return MLP(**recipe).build(rng.generator(seed, "weights")), contexts, targets, cross_entropy


HEALTHY = {
    "MLP, Kaiming": lambda: (mlp(), *blobs(), CROSS_ENTROPY),
    "MLP, Kaiming, narrow": lambda: (mlp(2, 16), *blobs(16), CROSS_ENTROPY),
    "MLP, Kaiming, batch of 4": lambda: (mlp(), *blobs(4), CROSS_ENTROPY),
    "MLP, BatchNorm": lambda: (mlp(norm=True), *blobs(), CROSS_ENTROPY),
    "MLP, GELU": lambda: (mlp(act=nn.GELU), *blobs(), CROSS_ENTROPY),
    "convolutions": lambda: (Conv(), *images(), CROSS_ENTROPY),
    "convolutions, BatchNorm": lambda: (Conv(norm=True), *images(), CROSS_ENTROPY),
    "transformer, pre-norm": lambda: (Transformer(), *tokens(), CROSS_ENTROPY),
    "transformer, pre-norm, evaluation": lambda: (Transformer(activation="gelu").eval(), *tokens(), CROSS_ENTROPY),
    "transformer, post-norm": lambda: (Transformer(norm_first=False), *tokens(), CROSS_ENTROPY),
    "LSTM": lambda: (Recurrent(), *tokens(), CROSS_ENTROPY),
    "GRU": lambda: (Recurrent(nn.GRU), *tokens(), CROSS_ENTROPY),
    "RNN": lambda: (Recurrent(nn.RNN), *tokens(), CROSS_ENTROPY),
    "stock, ReLU": lambda: (stock(), *blobs(), CROSS_ENTROPY),
    "stock, tanh": lambda: (stock(nn.Tanh), *blobs(), CROSS_ENTROPY),
    "stock, sigmoid": lambda: (stock(nn.Sigmoid), *blobs(), CROSS_ENTROPY),
    "regression": regression,
    "binary": binary,
    "log-softmax into cross-entropy": lambda: (nn.Sequential(*stock(), nn.LogSoftmax(1)), *blobs(), CROSS_ENTROPY),
    "log-softmax into nll": lambda: (nn.Sequential(*stock(), nn.LogSoftmax(1)), *blobs(), nn.NLLLoss()),
    "a sum, not a mean": lambda: (stock(), *blobs(), nn.CrossEntropyLoss(reduction="sum")),
    "output layer of zeros": lambda: (changed(mlp(), lambda m: m[8].weight.zero_()), *blobs(), CROSS_ENTROPY),
    "pixels to 255 into a norm": lambda: (Conv(norm=True), *(lambda x, y: (x * 255, y))(*images()), CROSS_ENTROPY),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_healthy_networks_over_ten_seeds(name):
    for seed in range(10):
        torch.manual_seed(seed)
        report = checkup(*HEALTHY[name](), lr=0.01)
        assert not list(report), f"seed {seed}:\n{report}"


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"init": kaiming(TANH)},
        {"init": kaiming(TANH), "norm": BatchNorm1d},
        {"init": kaiming(RELU), "activation": RELU, "norm": LayerNorm},
        {"init": kaiming(TANH), "depth": 1, "width": 200},
    ],
)
def test_silent_on_the_book_s_own_healthy_networks(names, recipe):
    for seed in range(10):
        torch.manual_seed(seed)
        report = checkup(*characters(names, **recipe), lr=0.1)
        assert not list(report), f"seed {seed}:\n{report}"


class Log(nn.Module):
    def forward(self, x):
        return torch.log(x)


class LogBetween(nn.Module):
    """A function call between two layers makes the nan; the layer after it finishes first."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.b(self.a(x).tanh().log())


class Root(nn.Module):
    """x, by way of a branch that is never taken and whose slope, at 0, is infinite: backward, 0 * inf."""

    def forward(self, x):
        return x + torch.where(x > 9, (x * 0).sqrt(), 0.0)


class Cut(nn.Module):
    """Three layers; `mend` says whether the second one's input is attached to the first."""

    def __init__(self, attached=False, spare=False):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.attached = attached
        if spare:
            self.spare = nn.Linear(4, 4)

    def forward(self, x):
        h = self.a(x).relu()
        return self.c(self.b(h if self.attached else h.detach()).relu())


@torch.no_grad()
def changed(model, change):
    change(model)
    return model


def deep(act, depth=10):
    return mlp(depth, 64, act=act, init=False)


def swap(given, **change):
    names = ("model", "inputs", "targets", "loss_fn")
    return tuple({**dict(zip(names, given, strict=True)), **change}[name] for name in names)


def loud(model):
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(2)


def fill(model):
    for p in model.parameters():
        p.fill_(0.1)


def one_norm_in_evaluation():
    model = mlp(norm=True)
    for _ in range(20):
        model(blobs()[0])
    model[4].eval()
    return model


def biased():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16 * 14 * 14, 10)
    )


def shifted():
    x, y = blobs()
    return stock(), x, y + 1, CROSS_ENTROPY


# name: (what to check, the rule, the layer). Exactly this one finding is due.
FAULTS = {
    "output layer too confident": (
        lambda: (changed(mlp(), lambda m: m[8].weight.mul_(20)), *blobs(), CROSS_ENTROPY),
        ("first loss", "8"),
    ),
    "hidden layer too loud": (
        lambda: (changed(mlp(), lambda m: m[4].weight.mul_(50)), *blobs(), CROSS_ENTROPY),
        ("first loss", "4"),
    ),
    "saturated tanh": (
        lambda: (changed(mlp(2, act=nn.Tanh), lambda m: m[2].weight.mul_(5)), *blobs(), CROSS_ENTROPY),
        ("saturation", "3"),
    ),
    "dead ReLU layer": (
        lambda: (changed(mlp(), lambda m: m[2].bias.fill_(-20)), *blobs(), CROSS_ENTROPY),
        ("dead units", "3"),
    ),
    "a third of the ReLUs dead": (
        lambda: (changed(mlp(), lambda m: m[2].bias[:40].fill_(-20)), *blobs(), CROSS_ENTROPY),
        ("dead units", "3"),
    ),
    "dead GELUs": (
        lambda: (changed(mlp(act=nn.GELU), lambda m: m[4].bias.fill_(-20)), *blobs(), CROSS_ENTROPY),
        ("dead units", "5"),
    ),
    "dead channels after a function call": (
        lambda: (changed(Conv(), lambda m: m.conv2.bias[:24].fill_(-20)), *images(), CROSS_ENTROPY),
        ("dead units", "conv2"),
    ),
    "deep sigmoids": (lambda: (deep(nn.Sigmoid), *blobs(), CROSS_ENTROPY), ("gradient slope", "0")),
    "deep ReLUs at the default init": (lambda: (deep(nn.ReLU), *blobs(), CROSS_ENTROPY), ("gradient slope", "0")),
    "exploding": (lambda: (changed(mlp(9), loud), *blobs(), CROSS_ENTROPY), ("activation scale", "0")),
    "nan in a weight": (
        lambda: (changed(mlp(), lambda m: m[4].weight[3, 3].fill_(float("nan"))), *blobs(), CROSS_ENTROPY),
        ("not finite", "4"),
    ),
    "inf in the inputs": (
        lambda: (
            stock(),
            *(lambda x, y: (x.index_fill(1, torch.tensor([3]), float("inf")), y))(*blobs()),
            CROSS_ENTROPY,
        ),
        ("not finite", "inputs"),
    ),
    "log of a negative number": (
        lambda: (nn.Sequential(nn.Linear(32, 64), nn.Tanh(), Log(), nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY),
        ("not finite", "2"),
    ),
    "log of a negative number, between two layers": (
        lambda: (nn.Sequential(nn.Linear(32, 32), LogBetween()), *blobs(), CROSS_ENTROPY),
        ("not finite", "1"),
    ),
    "nan in the gradient only": (
        lambda: (nn.Sequential(nn.Linear(32, 64), nn.ReLU(), Root(), nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY),
        ("not finite", "0"),
    ),
    "nan in the loss": (
        lambda: (stock(), *blobs(), lambda z, t: F.cross_entropy(z, t) + torch.log(-z.square().sum())),
        ("not finite", "loss_fn"),
    ),
    "one norm in evaluation mode": (
        lambda: (one_norm_in_evaluation(), *blobs(), CROSS_ENTROPY),
        ("mixed modes", "4"),
    ),
    "statistics never run": (
        lambda: (mlp(norm=True).eval(), *blobs(), CROSS_ENTROPY),
        ("statistics not run", "1"),
    ),
    "bias before a norm": (lambda: (biased(), *images(), CROSS_ENTROPY), ("useless bias", "0")),
    "a detached layer": (lambda: (Cut(), *blobs(), CROSS_ENTROPY), ("no gradient", "a")),
    "a layer never called": (lambda: (Cut(True, spare=True), *blobs(), CROSS_ENTROPY), ("no gradient", "spare")),
    "everything frozen": (
        lambda: (stock().requires_grad_(False), *blobs(), CROSS_ENTROPY),
        ("no gradient", "(model)"),
    ),
    "a softmax before cross-entropy": (
        lambda: (nn.Sequential(*stock(), nn.Softmax(1)), *blobs(), CROSS_ENTROPY),
        ("logits already squashed", "2"),
    ),
    "a ReLU before cross-entropy": (
        lambda: (nn.Sequential(*stock(), nn.ReLU()), *blobs(), CROSS_ENTROPY),
        ("logits already squashed", "2"),
    ),
    "a sigmoid before BCE with logits": (
        lambda: swap(binary(), model=nn.Sequential(*stock(nn.Tanh, 1), nn.Sigmoid(), nn.Flatten(0))),
        ("logits already squashed", "2"),
    ),
    "logits into nll": (lambda: (stock(), *blobs(), nn.NLLLoss()), ("logits where log-probabilities belong", "2")),
    "classes counted from 1": (shifted, ("targets out of range", "targets")),
    "targets -1 and 1 into BCE": (
        lambda: (lambda m, x, t, loss: (m, x, 2 * t - 1, loss))(*binary()),
        ("targets out of range", "targets"),
    ),
    "zeros in two layers in a row": (
        lambda: (
            changed(mlp(act=nn.Tanh), lambda m: (m[6].weight.zero_(), m[8].weight.zero_())),
            *blobs(),
            CROSS_ENTROPY,
        ),
        ("zero weights block the gradient", "6"),
    ),
    "all weights the same": (
        lambda: (changed(stock(), fill), *blobs(), CROSS_ENTROPY),
        ("units all alike", "0"),
    ),
    "200 outputs for 4 labels": (
        lambda: (stock(outputs=200), *blobs(classes=4), CROSS_ENTROPY),
        ("unused outputs", "2"),
    ),
    "pixels to 255": (
        lambda: (Conv(), *(lambda x, y: (x * 255, y))(*images()), CROSS_ENTROPY),
        ("input scale", "inputs"),
    ),
    "a norm over one feature": (
        lambda: (
            nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1), nn.LayerNorm(1), nn.Linear(1, 10)),
            *blobs(),
            CROSS_ENTROPY,
        ),
        ("same for all examples", "3"),
    ),
    "one example repeated": (
        lambda: (stock(), blobs()[0][:1].repeat(64, 1), blobs()[1], CROSS_ENTROPY),
        ("examples repeat", "inputs"),
    ),
    "one class only": (
        lambda: (stock(), blobs()[0], torch.full((64,), 3), CROSS_ENTROPY),
        ("targets all the same", "targets"),
    ),
    "(n, 1) against (n,)": (
        lambda: (lambda m, x, t, loss: (m, x, t[:, 0], loss))(*regression()),
        ("shapes broadcast", "loss_fn"),
    ),
    "(n, 1) against (n,), written out": (
        lambda: (lambda m, x, t, loss: (m, x, t[:, 0], lambda y, t: (y - t).square().mean()))(*regression()),
        ("shapes broadcast", "loss_fn"),
    ),
    "targets far from 0": (
        lambda: (lambda m, x, t, loss: (m, x, t + 300, loss))(*regression()),
        ("target scale", "targets"),
    ),
    "sequences of length 1": (
        lambda: (nn.RNN(32, 10), torch.randn(1, 64, 32), torch.randn(1, 64, 10), lambda o, t: F.mse_loss(o[0], t)),
        ("zero gradient", "(model)"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_where_it_is_and_nothing_else(name):
    build, expected = FAULTS[name]
    for seed in range(5):
        torch.manual_seed(seed)
        report = checkup(*build())
        assert [(f.rule, f.layer) for f in report] == [expected], f"seed {seed}:\n{report}"


def test_the_naive_start_has_two_causes_and_both_are_named(names):
    naive = VarianceScaling(fan="one")
    report = checkup(*characters(names, depth=1, width=200, init=naive, confidence=1.0))
    assert [(f.rule, f.layer) for f in report] == [("saturation", "act1"), ("first loss", "output")]


def test_what_makes_the_first_loss_large_is_looked_for_behind_the_last_norm():
    model = nn.Sequential(nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 27))
    with torch.no_grad():
        for layer, std in ((model[0], 100.0), (model[2], 1 / 8), (model[4], 2.0)):
            layer.weight.normal_(0, std, generator=rng.generator(0, str(std)))
    x = torch.randn(64, 8, generator=rng.generator(0, "x"))
    y = torch.randint(27, (64,), generator=rng.generator(0, "y"))
    (found,) = checkup(model, x, y, CROSS_ENTROPY)
    assert (found.rule, found.layer) == ("first loss", "4")
    before = CROSS_ENTROPY(model(x), y).item()
    with torch.no_grad():
        model[0].weight.div_(100)
    assert CROSS_ENTROPY(model(x), y).item() > 0.9 * before  # the loudest layer by far, and not the cause


def test_the_step_size_is_judged_only_when_asked_for():
    given = mlp(), *blobs(), CROSS_ENTROPY
    assert not checkup(*given) and not checkup(*given, lr=0.01)
    for lr in (100.0, 1e-7):
        (finding,) = checkup(*given, lr=lr)
        assert finding.rule == "step size"
    layer = checkup(*given, lr=0.1).layers[0]
    assert layer.update_data == pytest.approx(torch.log10(torch.tensor(0.1 * layer.grad_data)).item())


def test_a_frozen_norm_in_evaluation_mode_is_meant():
    model = one_norm_in_evaluation()
    model[4].requires_grad_(False)
    assert not checkup(model, *blobs(), CROSS_ENTROPY)


class Conditioned(nn.Module):
    """One branch sees the same for every example, as the embedding of a step or a segment does."""

    def __init__(self):
        super().__init__()
        self.branch, self.main, self.output = nn.Linear(4, 64), nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.output((self.main(x) + self.branch(torch.ones(len(x), 4))).relu())


@pytest.mark.parametrize("left", [0.0, 1e-7, -1e-7])
def test_a_gradient_of_a_few_rounding_errors_is_as_good_as_none(left):
    """On another processor, what is 0 here may be that."""

    class Factor(nn.Module):
        def forward(self, x):
            return 1 + left * x

    model = nn.Sequential(nn.Linear(32, 64), Factor(), nn.Linear(64, 10))
    rules_fired = [f.rule for f in checkup(model, *blobs(), CROSS_ENTROPY)]
    assert rules_fired == ["constant predictions"]


def test_rows_that_differ_by_rounding_errors_are_alike():
    model = changed(stock(), fill)
    model[0].weight.data.mul_(1 + 1e-6 * torch.randint(-1, 2, (64, 32)))
    assert [f.rule for f in checkup(model, *blobs(), CROSS_ENTROPY)] == ["units all alike"]


def test_a_branch_may_be_the_same_for_all_examples_if_the_output_is_not():
    assert not checkup(Conditioned(), *blobs(), CROSS_ENTROPY)


def test_units_that_start_alike_but_get_different_gradients_are_not_alike_for_ever():
    model = changed(stock(nn.Tanh), lambda m: m[0].weight.fill_(0.05))
    assert not checkup(model, *blobs(), CROSS_ENTROPY)


def test_few_labels_among_many_outputs_are_a_fault_only_if_they_are_the_first():
    x, y = blobs(classes=4)
    assert checkup(stock(outputs=200), x, y, CROSS_ENTROPY)
    assert not checkup(stock(outputs=200), x, 6 * y + 1, CROSS_ENTROPY)


def test_positive_logits_are_not_taken_for_a_softmax():
    model = changed(stock(), lambda m: m[2].bias.copy_(torch.linspace(1, 2, 10)))
    assert not checkup(model, *blobs(), CROSS_ENTROPY)


def test_rows_that_sum_to_one_with_both_signs_are_not_taken_for_a_softmax():
    class SumsToOne(nn.Module):
        def forward(self, z):
            return z - z.mean(1, keepdim=True) + 1 / z.shape[1]

    assert not checkup(nn.Sequential(*stock(), SumsToOne()), *blobs(), CROSS_ENTROPY)


# What is measured.


@pytest.mark.parametrize(
    "loss_fn, uniform",
    [
        (CROSS_ENTROPY, 2.302585),
        (lambda z, t: F.cross_entropy(z, t), 2.302585),
        (cross_entropy, 2.302585),
        (nn.CrossEntropyLoss(label_smoothing=0.1), 2.302585),
        (lambda z, t: -z.log_softmax(1).gather(1, t[:, None]).mean(), 2.302585),
        (nn.CrossEntropyLoss(reduction="sum"), 64 * 2.302585),
        (nn.MultiMarginLoss(), None),
    ],
)
def test_what_an_uninformed_guess_gives(loss_fn, uniform):
    report = checkup(stock(), *blobs(), loss_fn)
    assert report.uniform is None if uniform is None else report.uniform == pytest.approx(uniform, rel=1e-6)


def test_what_the_best_constant_gives():
    model, x, t, loss_fn = regression()
    assert checkup(model, x, t, loss_fn).uniform == pytest.approx(t.var(correction=0).item(), rel=1e-5)
    assert checkup(*binary()).uniform == pytest.approx(0.693147, rel=1e-5)


def test_a_prediction_may_be_one_number():
    model, x, t, loss_fn = binary()
    report = checkup(model, x[:1], t[0], lambda z, t: loss_fn(z.squeeze(), t))
    assert report.uniform == pytest.approx(0.693147, rel=1e-5)


def test_the_table_holds_what_autograd_says():
    model, (x, y) = mlp(2), blobs()
    report = checkup(model, x, y, CROSS_ENTROPY)
    outputs = [x]
    for layer in model:
        outputs.append(layer(outputs[-1]))
    grads = torch.autograd.grad(CROSS_ENTROPY(outputs[-1], y), outputs[1:])
    assert [layer.name for layer in report.layers] == ["0", "1", "2", "3", "4"]
    for layer, h, g in zip(report.layers, outputs[1:], grads, strict=True):
        assert layer.rms == pytest.approx(h.square().mean().sqrt().item(), rel=1e-5)
        assert layer.gradient == pytest.approx(g.norm().item(), rel=1e-5)
    assert report.layers[1].flat == pytest.approx((outputs[2] == 0).double().mean().item())
    assert report.layers[1].dead == pytest.approx((outputs[2] == 0).all(0).double().mean().item())


def test_flat_means_the_same_for_tanh_and_sigmoid():
    x, y = blobs()
    for act, centred in ((nn.Tanh, lambda h: h), (nn.Sigmoid, lambda h: 2 * h - 1)):
        model = changed(stock(act), lambda m: m[0].weight.mul_(12))
        flat = (centred(model[1](model[0](x))).abs() > 0.99).double().mean().item()
        assert flat > 0.05 and checkup(model, x, y, CROSS_ENTROPY).layers[1].flat == pytest.approx(flat, abs=1e-3)


def test_the_output_layer_s_own_scale_does_not_bend_the_gradient_s_slope(names):
    torch.manual_seed(0)
    loud = checkup(*characters(names, init=kaiming(TANH), confidence=0.1)).gradient_growth
    torch.manual_seed(0)
    quiet = checkup(*characters(names, init=kaiming(TANH), confidence=1e-3)).gradient_growth
    assert loud == pytest.approx(quiet, rel=0.02)


def test_a_checkpointed_layer_runs_twice_and_counts_once():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    plain = mlp(2)
    given = (*blobs(), CROSS_ENTROPY)
    report = checkup(Checkpointed(*plain), *given)
    assert [x.rms for x in report.layers] == [x.rms for x in checkup(plain, *given).layers] and not report


def test_in_place_activations_give_the_same_numbers():
    model = mlp(3)
    other = copy.deepcopy(model)
    for layer in other:
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    given = (*blobs(), CROSS_ENTROPY)
    assert checkup(model, *given).layers == checkup(other, *given).layers


def test_a_shared_activation_is_told_apart_by_what_it_follows():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.act = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 10), nn.ReLU()

        def forward(self, x):
            return self.c(self.act(self.b(self.act(self.a(x)))))

    layers = checkup(Shared(), *blobs(), CROSS_ENTROPY).layers
    assert [(x.name, x.kind) for x in layers[1::2]] == [("act", "ReLU after a"), ("act", "ReLU after b")]


def test_a_layer_called_many_times_is_one_row():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.output = nn.GRUCell(32, 64), nn.Linear(64, 10)

        def forward(self, x):
            h = None
            for _ in range(7):
                h = self.cell(x, h)
            return self.output(h)

    report = checkup(Loop(), *blobs(), CROSS_ENTROPY)
    assert [layer.name for layer in report.layers] == ["cell", "output"] and not report


# Anything can be checked.


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.EmbeddingBag(50, 16), nn.Linear(48, 10)

    def forward(self, bags, x):
        return self.linear(torch.cat([self.embedding(bags), x], 1)), {"unused": x}


def test_inputs_as_a_tuple_or_a_dictionary():
    bags, (x, y) = torch.randint(50, (64, 12)), blobs()
    for inputs in ((bags, x), {"x": x, "bags": bags}):
        report = checkup(TwoInputs(), inputs, y, lambda out, t: F.cross_entropy(out[0], t))
        assert [layer.name for layer in report.layers] == ["embedding", "linear"] and not report


def test_double_precision_tied_weights_and_parametrizations():
    x, y = blobs()
    assert checkup(mlp(2).double(), x.double(), y, CROSS_ENTROPY).layers[0].gradient
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)), nn.Tanh(), nn.Linear(32, 32))
    model[2].weight = nn.Linear(32, 32).weight
    tied = nn.Sequential(*model, nn.Linear(32, 32))
    tied[3].weight = tied[2].weight
    report = checkup(tied, x, torch.randint(32, (64,)), CROSS_ENTROPY, ignore="no activation")
    assert [layer.name for layer in report.layers] == ["0", "1", "2", "3"] and not report
    assert all(layer.grad_data for layer in report.layers if layer.kind != "Tanh")
    assert report.parameters == sum(p.numel() for p in tied.parameters())


def test_sparse_gradients_packed_sequences_and_attention_by_itself():
    model = nn.Sequential(nn.Embedding(50, 32, sparse=True), nn.Flatten(), nn.Linear(12 * 32, 10))
    assert not checkup(model, *tokens(), CROSS_ENTROPY)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 32), torch.randn(3, 32)])
    report = checkup(nn.LSTM(32, 8), packed, torch.zeros(2), lambda out, t: out[1][0].square().mean())
    assert report.layers[0].shape == (8, 8)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    x = torch.randn(8, 5, 32)
    report = checkup(attention, {"query": x, "key": x, "value": x}, x, lambda out, t: F.mse_loss(out[0], t))
    assert report.layers[0].grad_data and not report


def test_a_frozen_transformer_does_not_take_its_fast_path():
    model = Transformer().eval().requires_grad_(False)
    report = checkup(model, *tokens(), CROSS_ENTROPY)
    assert "encoder.layers.0.linear1" in [layer.name for layer in report.layers]


# Nothing is disturbed.


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("on purpose")


def state(model):
    return (
        [(name, m.training) for name, m in model.named_modules()],
        [len(h) for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)],
        {key: value.clone() for key, value in model.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p._backward_hooks for p in model.parameters()],
        torch.get_rng_state(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("fails", ["", "forward", "loss", "vector"])
def test_the_model_is_left_as_found(fails):
    model = nn.Sequential(nn.ReLU(inplace=True), *mlp(2, norm=True), nn.Dropout(0.5))
    (x, y), loss_fn = blobs(), CROSS_ENTROPY
    CROSS_ENTROPY(model(x.clone()), y).backward()
    model[2].eval()
    if fails == "forward":
        model.append(Raises())
    elif fails == "loss":
        y = y[:5]
    elif fails == "vector":
        loss_fn = nn.CrossEntropyLoss(reduction="none")
    before, grads, given = state(model), [p.grad for p in model.parameters()], (x.clone(), y.clone())
    if fails:
        with pytest.raises((RuntimeError, ValueError)):
            checkup(model, x, y, loss_fn)
    else:
        checkup(model, x, y, loss_fn)
    assert same(state(model), before) and same((x, y), given)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


def test_nothing_recorded_stays_alive():
    kept = []

    class Spy(nn.Module):
        def forward(self, x):
            y = x * 1
            kept.append(weakref.ref(y))
            return y

    model = nn.Sequential(*mlp(2), Spy())
    report = checkup(model, *blobs(), CROSS_ENTROPY)
    gc.collect()
    assert kept[0]() is None and len(report.layers) == 5


def test_a_call_under_no_grad_still_sees_gradients():
    with torch.no_grad():
        assert checkup(mlp(), *blobs(), CROSS_ENTROPY).layers[0].gradient


def test_an_exception_says_in_which_layer_it_was_raised():
    model = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Tanh(), Raises()))
    with pytest.raises(RuntimeError, match="on purpose") as raised:
        checkup(model, *blobs(), CROSS_ENTROPY)
    assert raised.value.__notes__ == ["checkup: raised in layer '1.1'"]


def test_an_exception_keeps_the_notes_it_has_and_one_around_the_checkup_gets_none():
    class Noted(nn.Module):
        def forward(self, x):
            error = RuntimeError("on purpose")
            error.add_note("its own")
            raise error

    class Nothing(nn.Module):
        def forward(self, x):
            return None

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.nothing = nn.Linear(32, 10), Nothing()

        def forward(self, x):
            self.nothing(x)
            return self.layer(x)

    with pytest.raises(RuntimeError) as raised:
        checkup(nn.Sequential(nn.Linear(32, 32), Noted()), *blobs(), CROSS_ENTROPY)
    assert raised.value.__notes__ == ["its own", "checkup: raised in layer '1'"]
    try:
        raise KeyError("around")
    except KeyError as around:
        checkup(Calls(), *blobs(), CROSS_ENTROPY)
        assert not hasattr(around, "__notes__")


def test_an_exception_that_the_model_catches_is_its_own_affair():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Sequential(nn.Linear(32, 10), Raises()), nn.Linear(32, 10)

        def forward(self, x):
            try:
                return self.first(x)
            except RuntimeError:
                return 2 * self.second(x).relu()

    report = checkup(Tries(), *blobs(), CROSS_ENTROPY)
    assert [(f.rule, f.layer) for f in report] == [("no gradient", "first.0")]
    layers = [("first.0", "Linear"), ("second", "Linear"), ("second", "relu()")]
    assert [(row.name, row.kind) for row in report.layers] == layers


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"model": lambda x: x}, TypeError, "model: a torch.nn.Module is needed, got function"),
        ({"model": nn.ReLU()}, ValueError, "model: ReLU has no parameters"),
        ({"model": nn.Sequential(nn.LazyLinear(10))}, ValueError, r"model: 0.weight has no shape yet"),
        ({"loss_fn": nn.CrossEntropyLoss(reduction="none")}, ValueError, r"one number .* shape \(64,\)"),
        ({"loss_fn": lambda z, t: 1.0}, TypeError, "loss_fn: a tensor with one number is needed, got float"),
    ],
)
def test_bad_input_is_an_error_in_words(change, error, message):
    with pytest.raises(error, match=message):
        checkup(*swap((stock(), *blobs(), CROSS_ENTROPY), **change))


@pytest.mark.parametrize("lr", [0, -0.1, float("nan"), float("inf"), "0.1"])
def test_a_learning_rate_is_positive(lr):
    with pytest.raises(ValueError, match="lr: a positive number is needed"):
        checkup(stock(), *blobs(), CROSS_ENTROPY, lr=lr)


@pytest.mark.parametrize("lr", [np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])], ids=repr)
def test_a_learning_rate_may_be_a_number_of_numpy_or_torch(lr):
    model, batch = stock(), blobs()
    assert str(checkup(model, *batch, CROSS_ENTROPY, lr=lr)) == str(checkup(model, *batch, CROSS_ENTROPY, lr=0.5))


def test_a_stacked_model_has_a_loss_for_each():
    recipe = MLP(depth=1)
    model = stack([recipe.build(rng.generator(r, "weights")) for r in range(2)])
    with pytest.raises(ValueError, match=r"one number .* shape \(2,\)"):
        checkup(model, torch.zeros(2, 8, 3, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long), cross_entropy)


# The page.


def test_the_page_names_what_a_reader_needs():
    report = checkup(changed(mlp(2), lambda m: m[2].bias[:64].fill_(-20)), *blobs(), CROSS_ENTROPY, lr=0.1)
    page = " ".join(str(report).split())
    (finding,) = report
    for text in ("22,026 parameters", "training mode", "a uniform guess over 10 classes gives 2.303", "update:data"):
        assert text in page
    for text in (finding.layer, finding.measured, finding.healthy, finding.why, finding.action, finding.chapter):
        assert text and text in page
    assert max(map(len, str(report).splitlines())) <= LINE
    assert str(checkup(mlp(2), *blobs(), CROSS_ENTROPY)).split("\n\n")[1] == "No finding."


def test_in_a_notebook_it_is_a_table_with_headings_and_nothing_of_the_model_s_runs_as_html():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>", nn.Linear(32, 10))

        def forward(self, x):
            return self._modules["<b>"](x) * 100

    html = checkup(Odd(), *blobs(), CROSS_ENTROPY)._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;" in html
    assert html.count("<table>") == html.count("<caption>") == 2
    assert '<th scope="col">layer</th>' in html and '<th scope="row">&lt;b&gt;</th>' in html


def test_a_record_is_what_rules_read():
    seen = record(mlp(2), *blobs(), CROSS_ENTROPY)
    assert [row.name for row in seen.weighted] == ["0", "2", "4"]
    assert [p.layer for p in seen.parameters] == ["0", "0", "2", "2", "4", "4"]
