"""Anything that trains in plain torch can be checked, and is left as it was found."""

import collections
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_checkup_kinds import Model, classify, mlp
from torch import nn

from mmlib.checkup import checkup, overfit

CROSS_ENTROPY = nn.CrossEntropyLoss()
Pair = collections.namedtuple("Pair", "a b")


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def rules(report):
    return [finding.rule for finding in report]


BY_HAND = {
    "root of the mean square": lambda o, t: ((o - t) ** 2).mean().sqrt(),
    "Huber": lambda o, t: torch.where((o - t).abs() < 1, (o - t) ** 2 / 2, (o - t).abs() - 0.5).mean(),
    "log-cosh": lambda o, t: (o - t).cosh().log().mean(),
    "twice the mean square": lambda o, t: 2 * ((o - t) ** 2).mean(),
    "sum of squares": lambda o, t: ((t - o) ** 2).sum(),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_loss_by_hand_may_broadcast(name):
    x = torch.randn(64, 20)
    assert rules(checkup(mlp(20, 24, 1), x, x[:, 0], BY_HAND[name])) == ["shapes broadcast"]
    assert not checkup(mlp(20, 24, 1), x, x[:, :1], BY_HAND[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("loss_fn", [nn.L1Loss(), nn.MSELoss(), nn.HuberLoss(), *BY_HAND.values()])
def test_any_precision(dtype, loss_fn):
    x = torch.randn(64, 20, dtype=dtype)
    assert not checkup(mlp(20, 24, 1).to(dtype), x, x[:, :1] + 0.1, loss_fn)


def compiled_whole():
    return torch.compile(mlp(20, 24, 10), backend="eager")


def compiled_in_place():
    model = mlp(20, 24, 10)
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("build", [compiled_whole, compiled_in_place])
def test_a_compiled_model(build):
    model, x, y, loss_fn = classify(build())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = checkup(model, x, y, loss_fn, optimizer=torch.optim.Adam(model.parameters()))
        assert not report and [layer.name for layer in report.layers] == ["0", "1", "2"]


def jit(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


def sparse():
    model = Model(
        lambda m, x: m.h(torch.sparse.mm(x, m.w).relu()), w=nn.Parameter(torch.randn(20, 24) / 4), h=nn.Linear(24, 10)
    )
    return classify(model, torch.randn(32, 20).relu().to_sparse())


def nested(layout):
    parts = [torch.randn(2 + k % 3, 20) for k in range(32)]
    run = lambda m, x: m.h(m.f(x).to_padded_tensor(0.0).mean(1).relu())  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.nested.nested_tensor(parts, layout=layout)
    return Model(run, f=nn.Linear(20, 24), h=nn.Linear(24, 10)), x, torch.randint(10, (32,)), CROSS_ENTROPY


def spectrum():
    weight = nn.Parameter(torch.randn(20, 24, dtype=torch.cfloat) / 20)
    return classify(Model(lambda m, x: m.h((torch.fft.fft(x) @ m.w).abs()), w=weight, h=nn.Linear(24, 10)))


def two_losses():
    model = Model(lambda m, x: {"a": m.a(x), "b": m.b(x)}, a=mlp(20, 24, 10), b=mlp(20, 24, 1))
    x = torch.randn(32, 20)
    targets = torch.randint(10, (32,)), x[:, :1]
    return model, x, targets, lambda o, t: CROSS_ENTROPY(o["a"], t[0]) + 0.3 * F.mse_loss(o["b"], t[1])


def distribution():
    x = torch.randn(32, 20)
    model = Model(lambda m, x: torch.distributions.Normal(m.a(x), 1.0), a=mlp(20, 24, 1))
    return model, x, x[:, :1], lambda o, t: -o.log_prob(t).mean()


def inside():
    x = torch.randn(32, 20), torch.randint(10, (32,))
    return Model(lambda m, x, y: F.cross_entropy(m.a(x), y), a=mlp(20, 24, 10)), x, None, lambda o, _: o


def named():
    model, x, y, _ = classify(Model(lambda m, x: Pair(m.a(x), 1), a=mlp(20, 24, 10)))
    return model, x, y, lambda o, t: CROSS_ENTROPY(o.a, t)


def checkpointed():
    run = lambda m, x: m.h(torch.utils.checkpoint.checkpoint(m.f, x, use_reentrant=True))  # noqa: E731
    x = torch.randn(32, 20, requires_grad=True)
    return classify(Model(run, f=nn.Sequential(nn.Linear(20, 24), nn.ReLU()), h=nn.Linear(24, 10)), x)


ANYTHING = {
    "vmap": lambda: classify(Model(lambda m, x: m.h(torch.vmap(m.f)(x)), f=mlp(20, 24, 16), h=nn.Linear(16, 10))),
    "a scripted part": lambda: classify(Model(lambda m, x: m.h(m.f(x)), f=jit(mlp(20, 24, 16)), h=nn.Linear(16, 10))),
    "wrapped": lambda: classify(nn.DataParallel(mlp(20, 24, 10))),
    "sparse": sparse,
    "nested": lambda: nested(torch.strided),
    "jagged": lambda: nested(torch.jagged),
    "complex": spectrum,
    "two losses": two_losses,
    "a distribution": distribution,
    "a loss inside": inside,
    "a named tuple": named,
    "a list": lambda: (
        Model(lambda m, xs: m.f(xs[0] + xs[1]), f=mlp(20, 24, 10)),
        [torch.randn(32, 20), torch.randn(32, 20)],
        torch.randint(10, (32,)),
        CROSS_ENTROPY,
    ),
    "checkpointed, the old way": checkpointed,
    "one example": lambda: classify(mlp(20, 24, 10), torch.randn(1, 20)),
    "no example": lambda: (mlp(20, 24, 10), torch.randn(0, 20), None, lambda o, _: o.sum()),
}


@pytest.mark.parametrize("name", ANYTHING)
def test_what_trains_can_be_checked(name):
    model, x, y, loss_fn = ANYTHING[name]()
    assert not checkup(model, x, y, loss_fn, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), ignore="step size")


def test_what_a_transform_calls_is_said_to_be_unseen():
    report = checkup(*ANYTHING["vmap"]())
    assert "Not looked into: f.0, f.2, called within a transform of torch.func" in str(report)


def test_under_inference_mode_it_sees_what_it_sees_outside():
    model, x, y, loss_fn = classify(mlp(20, 24, 10))
    outside = checkup(model, x, y, loss_fn)
    with torch.inference_mode():
        assert checkup(model, x.clone(), y, loss_fn).layers == outside.layers


@torch.inference_mode()
def unable():
    return mlp(20, 10)


def meta():
    return nn.Sequential(nn.Linear(20, 24, device="meta"), nn.Linear(24, 10, device="meta"))


def pieces():
    return nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 10, device="meta"))


def in_a_list():
    model = Model(lambda m, x: m.layers[0](x))
    model.layers = [nn.Linear(20, 10)]
    return model


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: jit(mlp(20, 10)), TypeError, "scripted or traced model cannot be looked into; pass the module it was"),
        (unable, ValueError, "0.weight was made under inference_mode"),
        (meta, ValueError, "0.weight is on the meta device and holds no numbers"),
        (pieces, ValueError, "in pieces on several devices, 0.weight on cpu, 1.weight on meta; move it to one"),
        (in_a_list, ValueError, r"no parameters; layers\[0\].weight is not registered: keep layers in nn.ModuleList"),
    ],
)
def test_what_cannot_be_looked_into_is_refused_in_words(build, error, message):
    with pytest.raises(error, match=message):
        checkup(*classify(build()))


def test_an_error_in_the_loss_says_so():
    with pytest.raises(RuntimeError, match="on purpose") as raised:
        checkup(mlp(20, 10), torch.randn(8, 20), None, lambda o, t: (_ for _ in ()).throw(RuntimeError("on purpose")))
    assert raised.value.__notes__ == ["checkup: raised in loss_fn"]


def test_a_nan_is_traced_to_the_line_that_made_it():
    def run(model, x):
        h = model.a(x)
        h = h.log()  # here
        return model.b(h)

    (finding,) = checkup(*classify(Model(run, a=nn.Linear(20, 24), b=nn.Linear(24, 10))))
    assert finding.layer == "(model)" and "h = h.log()  # here" in finding.measured


# Nothing is disturbed.


def test_a_pending_backward_pass_still_works():
    model = nn.Sequential(nn.Linear(20, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
    _, x, y, loss_fn = classify(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = [g.clone() for g in torch.autograd.grad(loss_fn(model(x), y), list(model.parameters()))]
    loss = loss_fn(model(x), y)
    checkup(model, x, y, loss_fn, optimizer=optimizer)
    overfit(model, x, y, loss_fn, optimizer, steps=10)
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))
    assert not optimizer.state


class Remembers(nn.Module):
    """A forward pass that leaves traces wherever it can."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(20, 24), nn.Linear(20, 24).requires_grad_(False)
        self.head, self.steps, self.queue, self.seen = nn.Linear(24, 10), 0, [], {}
        self.total, self.array = torch.zeros(3), np.zeros(3)
        self.random, self.numpy = random.Random(1), np.random.default_rng(1)
        self.torch = torch.Generator().manual_seed(1)

    def forward(self, x):
        for p, q in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            q.data.mul_(0.9).add_(p.data, alpha=0.1)
        self.steps += 1
        self.queue.append(self.steps)
        self.seen[self.steps] = True
        self.total += 1
        self.array += 1
        self.last = x
        self.random.random(), self.numpy.random(), torch.rand(1, generator=self.torch)
        random.random(), np.random.rand(), torch.rand(1)
        return self.head((self.student(x) + self.teacher(x)).relu())


def traces(model):
    own = [
        *([p.tolist() for p in model.parameters()], model.steps, list(model.queue), dict(model.seen)),
        *(model.total.tolist(), model.array.tolist(), model.random.getstate(), model.numpy.bit_generator.state),
        *(model.torch.get_state().tolist(), hasattr(model, "last")),
    ]
    return [*own, random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_forward_pass_changes_is_put_back(fails):
    model, x, y, loss_fn = classify(Remembers())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    before = traces(model)
    if fails:
        with pytest.raises(ValueError):
            checkup(model, x, y[:5], loss_fn)
    else:
        assert not checkup(model, x, y, loss_fn, optimizer=optimizer)
        overfit(model, x, y, loss_fn, optimizer, steps=10)
    assert traces(model) == before


def test_what_cannot_be_put_back_is_said():
    model, *given = classify(Model(lambda m, x: m.f(x) + 0 * next(m.numbers), f=mlp(20, 24, 10)))
    model.numbers = (k for k in range(1000))
    (finding,) = checkup(model, *given)
    assert (finding.rule, finding.layer, finding.severity) == ("not left as found", "numbers", "note")
