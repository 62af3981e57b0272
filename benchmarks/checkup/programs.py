"""What a program of the record is, the lists they are kept in, and the data and layers that they share.

A program draws from torch's global random state, which `Program.build` seeds and puts back. Data are standardised, and
the targets can be learned from the inputs, so that whatever is wrong is what a program does itself.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROSS_ENTROPY, MSE, BCE_LOGITS = nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()


class Trial(NamedTuple):
    """The arguments of one checkup."""

    model: nn.Module
    inputs: Any
    targets: Any
    loss_fn: Callable[[Any, Any], Tensor]
    optimizer: torch.optim.Optimizer | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `exact` are the rules that name it, `related` those that name a consequence or a neighbour of it
    and lead there, `beside` those whose claim is true of such programs but leads elsewhere."""

    name: str
    exact: frozenset[str] = frozenset()
    related: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Program:
    """A faulty program with its repaired version, or, where `kind` is None, a healthy one."""

    name: str
    make: Callable[..., Trial]
    kind: Kind | None = None

    def build(self, seed: int, broken: bool = True) -> Trial:
        with seeded(seed):
            return self.make(broken) if self.kind else self.make()


FAULTS: dict[str, Program] = {}
HEALTHY: dict[str, Program] = {}


def kind(name: str, exact: str = "", related: str = "", beside: str = "") -> Kind:
    """A kind whose rules are given as names with commas between them."""
    return Kind(name, *(frozenset(filter(None, rules.split(", "))) for rules in (exact, related, beside)))


def fault(kind: Kind) -> Callable[[Callable[[bool], Trial]], Callable[[bool], Trial]]:
    """Keeps a function of `broken` as a faulty program of this kind, under its name."""
    return lambda make: _keep(FAULTS, make, kind)


def healthy(make: Callable[[], Trial]) -> Callable[[], Trial]:
    """Keeps a function without arguments as a healthy program, under its name."""
    return _keep(HEALTHY, make, None)


def _keep(programs: dict[str, Program], make: Callable[..., Trial], kind: Kind | None) -> Callable[..., Trial]:
    name = make.__name__.strip("_").replace("_", " ")
    if name in FAULTS or name in HEALTHY:
        raise ValueError(f"two programs are called {name!r}")
    programs[name] = Program(name, make, kind)
    return make


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's, numpy's and Python's global random states set to a seed, and put back afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


class Net(nn.Module):
    """Parts by name, and a forward function of them: Net(lambda net, x: net.head(net.body(x)), body=..., head=...)."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them, as torch initialises them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def convnet(channels: int = 3, classes: int = 10, norm: bool = True) -> nn.Sequential:
    """Two blocks of 3 x 3 convolutions for images of 16 x 16, and a linear head."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((channels, 16), (16, 32)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(fan_out)] if norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, classes))


def last_step(body: nn.Module, width: int, outputs: int = 4) -> Net:
    """A recurrent layer, batch first, and a linear layer of its last step."""
    return Net(lambda net, x: net.head(net.body(x)[0][:, -1]), body=body, head=nn.Linear(width, outputs))


def causal(length: int) -> Tensor:
    """The mask of a decoder, which every position adds to its scores."""
    return nn.Transformer.generate_square_subsequent_mask(length)


def language_model(body: nn.Module, width: int = 32, vocabulary: int = 50) -> Net:
    """An embedding, a body of (n, length, width), and an output for each token."""
    run = lambda net, x: net.head(net.body(net.embedding(x)))
    return Net(run, embedding=nn.Embedding(vocabulary, width), body=body, head=nn.Linear(width, vocabulary))


def draw(model: nn.Module, weights: Callable[[Tensor], Any], biases: Callable[[Tensor], Any] = nn.init.zeros_):
    """The model with every weight matrix and every bias of its layers drawn anew."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            weights(module.weight)
            if module.bias is not None:
                biases(module.bias)
    return model


def kaiming(model: nn.Module) -> nn.Module:
    return draw(model, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"))


def xavier(model: nn.Module) -> nn.Module:
    return draw(model, nn.init.xavier_normal_)


def trained(trial: Trial, steps: int, lr: float = 1e-3) -> Trial:
    """The trial after some steps of Adam on its batch, with that optimiser."""
    optimizer = torch.optim.Adam(trial.model.parameters(), lr=lr)
    for _ in range(steps):
        given = trial.inputs if isinstance(trial.inputs, tuple) else (trial.inputs,)
        loss = trial.loss_fn(trial.model(*given), trial.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return trial._replace(optimizer=optimizer)


def blobs(n: int = 64, features: int = 20, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Clouds, one for each class, each coordinate of variance 1."""
    y = torch.randint(classes, (n,))
    return (torch.randn(classes, features)[y] + torch.randn(n, features)) / 2**0.5, y


def curve(n: int = 64, features: int = 20) -> tuple[Tensor, Tensor]:
    """Inputs (n, features), and targets (n, 1) of mean about 0 and variance about 1."""
    x = torch.randn(n, features)
    return x, 1.4 * torch.sin(x @ torch.randn(features, 1) / features**0.5 * 2) + 0.1 * torch.randn(n, 1)


def binary(n: int = 64, features: int = 20) -> tuple[Tensor, Tensor]:
    """Inputs (n, features), and targets (n, 1) of 0 and 1."""
    x, y = curve(n, features)
    return x, (y > 0).float()


def images(n: int = 32, channels: int = 3, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Standardised images of 16 x 16, smooth, alike within a class."""
    y = torch.randint(classes, (n,))
    x = F.interpolate(torch.randn(classes, channels, 4, 4), scale_factor=4)[y] + 0.5 * torch.randn(n, channels, 16, 16)
    return x / x.std(), y


def series(n: int = 32, length: int = 12, features: int = 8, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Sequences (n, length, features) of numbers, a class for each."""
    y = torch.randint(classes, (n,))
    return (torch.randn(classes, 1, features)[y] + torch.randn(n, length, features)) / 2**0.5, y


def tokens(n: int = 32, length: int = 12, vocabulary: int = 50, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Sequences of tokens, a class for each: which quarter of the vocabulary its tokens come from mostly."""
    y = torch.randint(classes, (n,))
    biased = torch.randint(vocabulary // classes, (n, length)) + (vocabulary // classes) * y[:, None]
    return torch.where(torch.rand(n, length) < 0.5, biased, torch.randint(vocabulary, (n, length))), y


def text(n: int = 32, length: int = 12, vocabulary: int = 50) -> tuple[Tensor, Tensor]:
    """Tokens (n, length) that mostly follow a fixed successor, and the same shifted by one."""
    successor, sequence = torch.randperm(vocabulary), [torch.randint(vocabulary, (n,))]
    for _ in range(length):
        sequence.append(torch.where(torch.rand(n) < 0.7, successor[sequence[-1]], torch.randint(vocabulary, (n,))))
    whole = torch.stack(sequence, 1)
    return whole[:, :-1], whole[:, 1:]


def flat_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (n, length, classes) against targets (n, length)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
