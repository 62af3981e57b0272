"""Kinds of faults that one look at numbers does not show, each beside programs like it that are healthy."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.checkup import RULES, checkup
from mmlib.checkup.rules import EVERYTHING, ordered, rule

CROSS_ENTROPY = nn.CrossEntropyLoss()


class Model(nn.Module):
    """Parts by name, and a forward function of them."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, *inputs):
        return self.run(self, *inputs)


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def vectors(n=32, d=20):
    return torch.randn(n, d)


def labels(n=32, classes=10):
    return torch.randint(classes, (n,))


def classify(model, x=None, classes=10):
    x = vectors() if x is None else x
    return model, x, labels(len(x), classes), CROSS_ENTROPY


def series(n=24, length=9, d=6):
    return torch.randn(n, length, d)


def recurrent(kind=nn.GRU, **options):
    return Model(lambda m, x: m.head(m.body(x)[0][:, -1]), body=kind(6, 24, **options), head=nn.Linear(24, 4))


def text(n=12, length=10):
    t = torch.randint(40, (n, length + 1))
    return t[:, :-1].contiguous(), t[:, 1:].contiguous()


def per_token(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def language(body, run=lambda m, x: m.head(m.body(m.embedding(x))[0])):
    return Model(run, embedding=nn.Embedding(40, 24), body=body, head=nn.Linear(24, 40))


def attention(causal):
    layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(10) if causal else None
    return language(layer, lambda m, x: m.head(m.body(m.embedding(x), src_mask=mask)))


def regress(model, x=None, y=None, loss_fn=None):
    x = vectors() if x is None else x
    return model, x, x[:, :1] + 0.1 * torch.randn(len(x), 1) if y is None else y, loss_fn or nn.MSELoss()


def squared(o, t):
    return ((o - t) ** 2).mean()


def graph():
    edges = ((torch.rand(32, 32) < 0.1) | torch.eye(32, dtype=torch.bool)).float()
    edges = edges / edges.sum(1, keepdim=True)
    return Model(lambda m, x: edges @ m.b((edges @ m.a(x)).relu()), a=nn.Linear(20, 24), b=nn.Linear(24, 10))


def residual(scale):
    run = lambda m, x: m.head(m.first(x) + m.scale * m.body(m.first(x)))  # noqa: E731
    return Model(run, first=nn.Linear(20, 24), body=mlp(24, 24, 24), head=nn.Linear(24, 10), scale=scale)


def chained(times):
    def run(m, x):
        x = m.a(x).relu()
        for _ in range(times):
            x = m.b(x).relu()
        return m.c(x)

    return Model(run, a=nn.Linear(20, 24), b=nn.Linear(24, 24), c=nn.Linear(24, 10))


def convolutions(n, norm=nn.BatchNorm2d):
    body = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(32, 10)), torch.randn(n, 1, 8, 8), labels(n), CROSS_ENTROPY


def dropping(share):
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(share), nn.Linear(64, 10))


def functional(flag):
    run = lambda m, x: m.b(F.dropout(m.a(x).relu(), 0.3, training=m.training if flag else True))  # noqa: E731
    return Model(run, a=nn.Linear(20, 64), b=nn.Linear(64, 10))


def with_nan():
    x, y = vectors(), torch.randn(32, 1)
    y[3] = math.nan
    return mlp(20, 24, 1), x, y, nn.MSELoss()


def masked():
    model, x, y, _ = with_nan()
    return model, x, y, lambda o, t: (o - t)[t.isfinite()].square().mean()


def two_inputs(scale):
    run = lambda m, a, b: m.c(torch.cat([m.a(a), m.b(b)], 1).relu())  # noqa: E731
    model = Model(run, a=nn.Linear(20, 16), b=nn.Linear(5, 16), c=nn.Linear(32, 10))
    return model, (vectors(), scale * vectors(d=5)), labels(), CROSS_ENTROPY


def step_number():
    """A time from 0 to 1000 that only a sine sees."""
    run = lambda m, x, t: m.body(torch.cat([x, (t / 10).sin(), (t / 10).cos()], 1))  # noqa: E731
    return Model(run, body=mlp(22, 24, 10)), (vectors(), torch.randint(1000, (32, 1)).float()), labels(), CROSS_ENTROPY


def hidden_list():
    model = Model(lambda m, x: m.head(m.layers[0](x).relu()), head=nn.Linear(24, 10))
    model.layers = [nn.Linear(20, 24)]
    return model


def plain_tensor():
    model = Model(lambda m, x: m.head((x @ m.weight).relu()), head=nn.Linear(24, 10))
    model.weight = torch.randn(20, 24, requires_grad=True)
    return model


def derivative():
    """Forces are slopes of an energy: forward asks for a gradient of its own input."""

    def run(m, x):
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(m.energy(x).sum(), x, create_graph=True)[0]

    return Model(run, energy=mlp(20, 24, 24, 1, act=nn.Tanh))


FAULTS = {
    "a recurrence over the examples": (lambda: classify(recurrent(), series(), 4), "examples mixed"),
    "a transformer over the examples": (
        lambda: classify(
            Model(lambda m, x: m.h(m.t(x).mean(1)), t=nn.TransformerEncoderLayer(6, 2, 12), h=nn.Linear(6, 4)),
            series(),
            4,
        ),
        "examples mixed",
    ),
    "a softmax over the examples": (
        lambda: classify(
            Model(
                lambda m, x: (m.a(x).softmax(0) * 32) @ m.b,
                a=nn.Linear(20, 24),
                b=nn.Parameter(torch.randn(24, 10) / 5),
            )
        ),
        "examples mixed",
    ),
    "a reshape for a transpose": (
        lambda: classify(
            Model(
                lambda m, x: m.h(m.a(x.reshape(6, 24, 9).transpose(0, 1).flatten(1)).relu()),
                a=nn.Linear(54, 24),
                h=nn.Linear(24, 4),
            ),
            series(),
            4,
        ),
        "examples mixed",
    ),
    "a mean over the batch": (
        lambda: classify(
            Model(lambda m, x: m.b((m.a(x) - m.a(x).mean(0)).relu()), a=nn.Linear(20, 24), b=nn.Linear(24, 10))
        ),
        "examples mixed",
    ),
    "layers in a list": (lambda: classify(hidden_list()), "not registered"),
    "a tensor that is no parameter": (lambda: classify(plain_tensor()), "not registered"),
    "a layer made in forward": (
        lambda: classify(Model(lambda m, x: nn.Linear(24, 10)(m.a(x).relu()), a=nn.Linear(20, 24))),
        "not registered",
    ),
    "a ReLU at the end of a regression": (lambda: regress(mlp(20, 24, 1).append(nn.ReLU())), "output range"),
    "a sigmoid for targets of both signs": (lambda: regress(mlp(20, 24, 1).append(nn.Sigmoid())), "output range"),
    "a softplus in forward": (
        lambda: regress(Model(lambda m, x: F.softplus(m.a(x)), a=mlp(20, 24, 1)), loss_fn=squared),
        "output range",
    ),
    "a softmax over one unit": (
        lambda: regress(mlp(20, 24, 1).append(nn.Softmax(-1)), y=torch.rand(32, 1).round()),
        "one class",
    ),
    "cross-entropy of one output": (lambda: (mlp(20, 24, 1), vectors(), labels(classes=2), CROSS_ENTROPY), "one class"),
    "cross-entropy over the batch": (
        lambda: (mlp(20, 24, 1).append(nn.Flatten(0)), vectors(), torch.rand(32).softmax(0), CROSS_ENTROPY),
        "one class",
    ),
    "no activation": (
        lambda: classify(nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 10))),
        "no activation",
    ),
    "an activation whose result is dropped": (
        lambda: classify(
            Model(lambda m, x: (F.relu(m.a(x)), m.b(m.a(x)))[1], a=nn.Linear(20, 24), b=nn.Linear(24, 10))
        ),
        "no activation",
    ),
    "two layers in a row in a head": (
        lambda: classify(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 10))),
        "no activation",
    ),
    "inputs that are not used": (
        lambda: classify(Model(lambda m, x: m.a(torch.ones_like(x)), a=mlp(20, 24, 10))),
        "same for all examples",
    ),
    "inputs multiplied by 0": (
        lambda: classify(Model(lambda m, x: m.a(0 * x), a=nn.Linear(20, 10))),
        "constant predictions",
    ),
    "attention without a mask": (lambda: (attention(False), *text(), per_token), "sees its target"),
    "a language model of both directions": (
        lambda: (language(nn.LSTM(24, 12, batch_first=True, bidirectional=True)), *text(), per_token),
        "sees its target",
    ),
    "no positions": (
        lambda: classify(
            Model(
                lambda m, x: m.h(m.t(m.e(x)).mean(1)),
                e=nn.Embedding(40, 24),
                t=nn.TransformerEncoderLayer(24, 4, 48, batch_first=True),
                h=nn.Linear(24, 10),
            ),
            text()[0],
        ),
        "positions lost",
    ),
    "targets that are the inputs": (
        lambda: (language(nn.GRU(24, 24, batch_first=True)), (x := text()[0]), x, per_token),
        "sees its target",
    ),
    "by hand, broadcast": (lambda: regress(mlp(20, 24, 1), y=torch.randn(32), loss_fn=squared), "shapes broadcast"),
    "a ratio, broadcast": (
        lambda: regress(mlp(20, 24, 1), y=torch.randn(32), loss_fn=lambda o, t: (o / (1 + t.abs()) - 1).abs().mean()),
        "shapes broadcast",
    ),
    "log-cosh of a column that was added": (
        lambda: regress(
            mlp(20, 24, 1).append(nn.Flatten(0)),
            y=torch.randn(32),
            loss_fn=lambda o, t: (o - t[:, None]).cosh().log().mean(),
        ),
        "shapes broadcast",
    ),
    "one layer for two": (lambda: classify(chained(2)), "called several times"),
    "one layer times three": (
        lambda: classify(nn.Sequential(nn.Linear(20, 24), *[nn.Linear(24, 24), nn.ReLU()] * 3, nn.Linear(24, 10))),
        "called several times",
    ),
    "dropout of 0.9": (lambda: classify(dropping(0.9)), "dropout"),
    "dropout without its flag": (lambda: classify(functional(False)), "dropout"),
    "a batch of two": (lambda: convolutions(2), "batch norm"),
    "one batch norm in two places": (
        lambda: classify(
            Model(
                lambda m, x: m.c(m.n(m.b(m.n(m.a(x)).relu())).relu()),
                a=nn.Linear(20, 24, bias=False),
                b=nn.Linear(24, 24, bias=False),
                c=nn.Linear(24, 10),
                n=nn.BatchNorm1d(24),
            )
        ),
        "batch norm",
    ),
    "nan in the targets": (with_nan, "not finite"),
    "the second input in metres": (lambda: two_inputs(3000.0), "input scale"),
    "bytes": (
        lambda: classify(
            Model(lambda m, x: m.a(x.float()), a=mlp(20, 24, 10)), torch.randint(256, (32, 20), dtype=torch.uint8)
        ),
        "input scale",
    ),
    "the likelihood": (
        lambda: (mlp(20, 24, 10), vectors(), labels(), lambda o, t: o.log_softmax(1).gather(1, t[:, None]).mean()),
        "loss below its floor",
    ),
    "a loss of itself": (
        lambda: (mlp(20, 24, 1), vectors(), torch.randn(32, 1), lambda o, t: (o - o.detach() + 1).square().mean()),
        "targets not used",
    ),
    "prices": (lambda: regress(mlp(20, 24, 1), y=2e5 + 7e4 * torch.randn(32, 1)), "target scale"),
    "two softmaxes": (
        lambda: (
            mlp(20, 24, 10).append(nn.Softmax(1)),
            vectors(),
            labels(),
            lambda o, t: F.nll_loss(o.log_softmax(1), t),
        ),
        "logits already squashed",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_each_kind_is_the_first_that_is_named(name):
    build, expected = FAULTS[name]
    for seed in range(4):
        torch.manual_seed(seed)
        report = checkup(*build())
        assert report and report[0].rule == expected, f"seed {seed}:\n{report}"


HEALTHY = {
    "a recurrence over time": lambda: classify(recurrent(batch_first=True), series(), 4),
    "time first": lambda: (
        Model(lambda m, x: m.h(m.b(x)[0][-1]), b=nn.GRU(6, 24), h=nn.Linear(24, 4)),
        torch.randn(9, 24, 6),
        labels(24, 4),
        CROSS_ENTROPY,
    ),
    "time first, a target for every step": lambda: (
        Model(lambda m, x: m.h(m.b(x)[0]), b=nn.LSTM(6, 24), h=nn.Linear(24, 4)),
        torch.randn(9, 24, 6),
        torch.randint(4, (9, 24)),
        per_token,
    ),
    "a language model, time first": lambda: (language(nn.LSTM(24, 24)), *(t.T.contiguous() for t in text()), per_token),
    "a graph": lambda: classify(graph()),
    "every example against every other": lambda: (
        Model(lambda m, a, b: 5 * F.normalize(m.a(a)) @ F.normalize(m.b(b)).T, a=mlp(20, 24, 8), b=mlp(20, 24, 8)),
        (vectors(), vectors()),
        torch.arange(32),
        CROSS_ENTROPY,
    ),
    "a gradient of the input in forward": lambda: regress(derivative(), y=torch.randn(32, 20)),
    "an energy's unused constant": lambda: regress(derivative(), y=torch.randn(32, 20), loss_fn=nn.L1Loss()),
    "a loss with weights of its own": lambda: (mlp(20, 24, 10), vectors(), labels(), Margin()),
    "softplus for positive targets": lambda: regress(mlp(20, 24, 1).append(nn.Softplus()), y=torch.rand(32, 1) + 0.1),
    "tanh for targets within it": lambda: regress(mlp(20, 24, 1).append(nn.Tanh()), y=torch.randn(32, 1).tanh()),
    "one affine layer": lambda: classify(nn.Linear(20, 10)),
    "two heads of one layer": lambda: (
        Model(lambda m, x: (m.a(x), m.b(x)), a=nn.Linear(20, 1), b=nn.Linear(20, 1)),
        vectors(),
        torch.randn(32, 1),
        lambda o, t: (o[1] + (t - o[0]) ** 2 * (-o[1]).exp()).mean(),
    ),
    "a factorisation": lambda: regress(nn.Sequential(nn.Linear(20, 3), nn.Linear(3, 20)), *[vectors()] * 2),
    "a residual scale of 0": lambda: classify(residual(nn.Parameter(torch.zeros(())))),
    "positions": lambda: classify(
        Model(
            lambda m, x: m.h(m.t(m.e(x) + m.p).mean(1)),
            e=nn.Embedding(40, 24),
            p=nn.Parameter(0.1 * torch.randn(10, 24)),
            t=nn.TransformerEncoderLayer(24, 4, 48, batch_first=True),
            h=nn.Linear(24, 10),
        ),
        text()[0],
    ),
    "attention, time first": lambda: (
        Model(
            lambda m, x: m.h(m.t(m.e(x) + m.p)),
            e=nn.Embedding(40, 24),
            p=nn.Parameter(0.1 * torch.randn(10, 1, 24)),
            t=nn.TransformerEncoderLayer(24, 4, 48),
            h=nn.Linear(24, 4),
        ),
        torch.randint(40, (10, 16)),
        torch.randint(4, (10, 16)),
        per_token,
    ),
    "a bag of words": lambda: classify(nn.Sequential(nn.EmbeddingBag(40, 24), nn.ReLU(), nn.Linear(24, 10)), text()[0]),
    "attention with a mask": lambda: (attention(True), *text(), per_token),
    "shifted in the loss": lambda: (
        language(nn.GRU(24, 24, batch_first=True)),
        (x := text()[0]),
        x,
        lambda o, t: per_token(o[:, :-1], t[:, 1:]),
    ),
    "an autoencoder of tokens": lambda: (
        language(mlp(240, 16, 240), lambda m, x: m.head(m.body(m.embedding(x).flatten(1)).unflatten(1, (10, 24)))),
        (x := text()[0]),
        x,
        per_token,
    ),
    "quantiles": lambda: regress(
        mlp(20, 24, 3),
        loss_fn=lambda o, t: torch.maximum((q := torch.tensor([0.1, 0.5, 0.9])) * (t - o), (q - 1) * (t - o)).mean(),
    ),
    "all pairs on purpose": lambda: regress(
        mlp(20, 24, 1).append(nn.Flatten(0)),
        y=torch.randn(32),
        loss_fn=lambda o, t: F.softplus(-(o[:, None] - o) * (t[:, None] - t).sign()).mean(),
    ),
    "a recurrence of one's own": lambda: classify(looped(), series(), 4),
    "one network for two inputs": lambda: (
        Model(lambda m, a, b: m.h((m.f(a) - m.f(b)).abs()), f=mlp(20, 24, 12), h=nn.Linear(12, 10)),
        (vectors(), vectors()),
        labels(),
        CROSS_ENTROPY,
    ),
    "half is dropped": lambda: classify(dropping(0.5)),
    "dropout with its flag": lambda: classify(functional(True)),
    "two examples in groups": lambda: convolutions(2, lambda n: nn.GroupNorm(2, n)),
    "targets that are left out": masked,
    "two inputs": lambda: two_inputs(1.0),
    "a step number": step_number,
    "bytes that the model divides": lambda: classify(
        Model(lambda m, x: m.a(x.float() / 128 - 1), a=mlp(20, 24, 10)), torch.randint(256, (32, 20), dtype=torch.uint8)
    ),
    "zero for a factor of an adapter": lambda: classify(adapter()),
    "a head of zeros": lambda: classify(zeroed(mlp(20, 24, 24, 10))),
    "an adversary's ones": lambda: regress(mlp(20, 24, 1), y=torch.ones(32, 1)),
    "the first of many": lambda: (
        Model(lambda m, x: F.normalize(m.f(x)) @ m.bank, f=mlp(20, 24, 8), bank=F.normalize(torch.randn(8, 40), dim=0)),
        vectors(),
        torch.zeros(32, dtype=torch.long),
        CROSS_ENTROPY,
    ),
    "3 + x": lambda: regress(mlp(1, 24, 1), x := torch.randn(32, 1), 3 + x),
    "nothing left to learn": lambda: (mlp(20, 24, 1), vectors(), None, lambda o, t: (o.abs() - 99).relu().sum()),
}


class Margin(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(10, 10))

    def forward(self, z, t):
        return F.cross_entropy(F.normalize(z) @ F.normalize(self.centres).T * 8, t)


def looped():
    def run(m, x):
        h = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            h = torch.tanh(m.i(x[:, t]) + m.r(h))
        return m.h(h)

    return Model(run, i=nn.Linear(6, 24), r=nn.Linear(24, 24), h=nn.Linear(24, 4))


def adapter():
    run = lambda m, x: m.base(x) + x @ m.down @ m.up  # noqa: E731
    base = mlp(20, 24, 10).requires_grad_(False)
    return Model(run, base=base, down=nn.Parameter(0.2 * torch.randn(20, 4)), up=nn.Parameter(torch.zeros(4, 10)))


def zeroed(model):
    nn.init.zeros_(model[-1].weight)
    return model


@pytest.mark.parametrize("name", HEALTHY)
def test_what_looks_like_a_fault_and_is_none(name):
    for seed in range(6):
        torch.manual_seed(seed)
        report = checkup(*HEALTHY[name]())
        assert not report, f"seed {seed}:\n{report}"


def test_a_model_in_evaluation_mode_is_a_fault_only_while_it_is_trained():
    model, x, y, loss_fn = classify(dropping(0.5).eval())
    assert not checkup(model, x, y, loss_fn)
    (finding,) = checkup(model, x, y, loss_fn, optimizer=torch.optim.Adam(model.parameters()))
    assert finding.rule == "evaluation mode"


def test_rules_silence_rules_that_there_are_and_causes_come_first():
    order = [r.name for r in ordered()]
    assert sorted(order) == sorted(RULES) and order[0] == "not finite"
    for place, name in enumerate(order):
        assert RULES[name].silences <= {EVERYTHING, *order[place + 1 :]}, name


def test_a_rule_of_a_name_that_is_taken_or_that_silences_none_is_an_error():
    with pytest.raises(ValueError, match="two rules are called 'dead units'"):
        rule("dead units", "")(lambda seen: iter(()))
    RULES["odd"] = RULES["dead units"]._replace(name="odd", silences=frozenset({"ded units"}))
    ordered.cache_clear()
    try:
        with pytest.raises(ValueError, match="rule 'odd' silences 'ded units', which is no rule"):
            ordered()
    finally:
        del RULES["odd"]
        ordered.cache_clear()
