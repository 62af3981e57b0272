"""A published reference run, reproduced: the character-level MLP of part 3 of a public lecture on language models.

Same data, same random draws in the same order, same minibatches; the layers are those of mmlib. The lecture stores
weights as (fan_in, fan_out) and normalises batches in two ways of its own, so draws are transposed and its two
normalisations stand here. The data, 32,033 names, are not part of this package.
"""

import copy
import math
import os
import random
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import TqdmWarning

from mmlib import data, rng
from mmlib.activations import TANH
from mmlib.data import Corpus, Minibatches, Vocabulary, examples, minibatches
from mmlib.ensemble import stack
from mmlib.history import History, Series
from mmlib.layers import Embedding, Flatten, Linear, Nonlinearity
from mmlib.models import sample
from mmlib.norm import BatchNorm1d, Norm, moments, standardize
from mmlib.progress import watched
from mmlib.stats import grad_data_ratios, update_ratios
from mmlib.trace import Trace, trace
from mmlib.train import Schedule, drop, evaluate, train

with warnings.catch_warnings():
    # In a notebook without widgets its import warns that the progress bar will be plain text, which it is meant to be.
    warnings.simplefilter("ignore", TqdmWarning)
    import pooch

SEED = 2147483647
SHA256 = "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
URL = "https://raw.githubusercontent.com/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt"
VARIABLE = "MMLIB_LECTURE_NAMES"

PUBLISHED: dict[str, dict[str, str]] = {
    "examples": {"train": "182625", "dev": "22655", "test": "22866"},
    "parameters": {"BatchNorm": "12097", "deep": "47024"},
    "loss at step 0": {
        "original": "27.8817",
        "softmax": "3.3221",
        "tanh": "3.3135",
        "Kaiming": "3.3179",
        "BatchNorm": "3.3239",
        "deep": "3.2870",
    },
    "final train loss": {
        "original": "2.1245",
        "softmax": "2.07",
        "tanh": "2.0355966",
        "Kaiming": "2.0376642",
        "BatchNorm": "2.0674145",
        "deep": "2.4002976",
    },
    "final dev loss": {
        "original": "2.1682",
        "softmax": "2.13",
        "tanh": "2.1026785",
        "Kaiming": "2.1069896",
        "BatchNorm": "2.1056840",
        "deep": "2.3982468",
    },
}
"""The lecture's figures, with the digits it gives: final is after 200,000 steps, 1,001 for the deep network."""

BATCHNORM_LOSSES = (
    *("3.3239", "2.0322", "2.5675", "2.0125", "2.2446", "1.8897", "2.0785", "2.3681", "2.2918", "2.0238"),
    *("2.3673", "2.3132", "1.6414", "1.9311", "2.2231", "2.0027", "2.0997", "2.4949", "2.0199", "2.1707"),
)
"""The minibatch losses that the lecture prints every 10,000 steps for the BatchNorm stage."""

DEEP_ACTIVATIONS = (("0.63", "2.78%"), ("0.64", "2.56%"), ("0.65", "2.25%"), ("0.65", "1.69%"), ("0.65", "1.88%"))
"""Standard deviation and share beyond 0.97 that the lecture prints for the deep network's tanh layers."""

DEEP_NAMES = (
    *("carpah", "qarlileif", "jmrix", "thty", "sacansa", "jazhnte", "dpn", "arciigqeiunellaia", "chriiv", "kalein"),
    *("dhlm", "join", "qhinn", "sroin", "arian", "quiqaelogiearyxix", "kaeklinsan", "ed", "ecoia", "gtleley"),
)
"""The twenty names that the lecture draws from its deep network after 1,001 steps."""


def read_names(path: str | PathLike[str] | None = None) -> list[str]:
    """The lecture's 32,033 names, in the order of the file.

    From the path given, or the file named by the environment variable MMLIB_LECTURE_NAMES, or a copy kept by an
    earlier download, or a download, in this order. Whatever its source, the file is checked against its SHA-256; a
    download is written whole or not at all.

    Raises FileNotFoundError if none of the four is there, ValueError if the file is another one.
    """
    file = Path(path) if path else nearby() or _downloaded()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the lecture's names.txt is needed")
    found = pooch.file_hash(str(file))
    if found != SHA256:
        raise ValueError(f"{file}: this is not the lecture's names.txt: its SHA-256 is {found}, not {SHA256}")
    return data.read_names(file)


def nearby() -> Path | None:
    """Where `read_names()` finds the names without going online: the file that is named, or a copy kept earlier."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    kept = _kept()
    return kept if kept.is_file() and pooch.file_hash(str(kept)) == SHA256 else None


def _kept() -> Path:
    return Path(pooch.os_cache("mmlib")) / "lecture-names.txt"


def _downloaded() -> Path:
    kept = _kept()
    try:
        pooch.retrieve(URL, f"sha256:{SHA256}", fname=kept.name, path=kept.parent, progressbar=watched())
    except OSError as error:
        raise FileNotFoundError(
            "the lecture's names.txt is not there. Four ways to give it: pass its path to read_names; set the "
            f"environment variable {VARIABLE} to its path; put a copy at {kept}; or go online, and it is downloaded "
            f"from {URL} (just now: {type(error).__name__})"
        ) from None
    return kept


def splits(names: Sequence[str]) -> Corpus:
    """The lecture's training, dev and test examples, 80, 10 and 10 % of the names in its shuffled order."""
    shuffled = list(names)
    random.Random(42).shuffle(shuffled)
    cuts = [0, int(0.8 * len(names)), int(0.9 * len(names)), len(names)]
    vocabulary = Vocabulary.of(names)
    return Corpus(vocabulary, *(examples(shuffled[a:b], vocabulary, 3) for a, b in pairwise(cuts)))


class UnbiasedBatchNorm(BatchNorm1d):
    """Batch normalisation by the unbiased variance: (x - mean) / sqrt(n / (n - 1) var + eps)."""

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if not self.training:
            return self._evaluated(x)
        self._check_batch(x)
        (mean, var), n = moments(x, -2), x.shape[-2]
        self._track(mean, var, n, self.momentum)
        return self._scale_and_shift(standardize(x, mean, var * (n / (n - 1)), self.eps))


class StdBatchNorm(Norm):
    """Batch normalisation by the unbiased standard deviation, without eps; that is also what is averaged over steps."""

    def __init__(self, features: int) -> None:
        super().__init__(features, eps=1.0)
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_std", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        if self.training:
            self._check_batch(x)
            mean, var = moments(x, -2)
            std = (var * (x.shape[-2] / (x.shape[-2] - 1))).sqrt()
            with torch.no_grad():
                self.running_mean.lerp_(mean.squeeze(-2), 0.001)
                self.running_std.lerp_(std.squeeze(-2), 0.001)
        else:
            mean, std = self.running_mean.unsqueeze(-2), self.running_std.unsqueeze(-2)
        return self._scale_and_shift((x - mean) / std)


@dataclass(frozen=True)
class Stage:
    """What one stage multiplies its N(0, 1) draws by; a norm takes the place of the first bias."""

    W1: float = 1.0
    b1: float = 1.0
    W2: float = 1.0
    b2: float = 1.0
    norm: bool = False


_KAIMING = (5 / 3) / math.sqrt(30)
_STAGES = {
    "original": Stage(),
    "softmax": Stage(W2=0.01, b2=0.0),
    "tanh": Stage(W1=0.2, b1=0.01, W2=0.01, b2=0.0),
    "Kaiming": Stage(W1=_KAIMING, b1=0.01, W2=0.01, b2=0.0),
    "BatchNorm": Stage(W1=_KAIMING, W2=0.01, b2=0.0, norm=True),
}


def stages() -> tuple[str, ...]:
    """The five stages of the shallow network, in the lecture's order."""
    return tuple(_STAGES)


def _linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """A Linear that holds a weight stored as (fan_in, fan_out)."""
    fan_in, fan_out = weight.shape
    linear = Linear(fan_in, fan_out, bias=bias is not None, generator=rng.generator(0, "replaced at once"))
    linear.weight = nn.Parameter(weight.T.contiguous())
    linear.bias = None if bias is None else nn.Parameter(bias)
    return linear


def _embedding(weight: Tensor) -> Embedding:
    embedding = Embedding(*weight.shape, generator=rng.generator(0, "replaced at once"))
    embedding.weight = nn.Parameter(weight)
    return embedding


def _shallow(stage: Stage, g: torch.Generator) -> nn.Sequential:
    C = torch.randn(27, 10, generator=g)
    W1 = torch.randn(30, 200, generator=g) * stage.W1
    b1 = None if stage.norm else torch.randn(200, generator=g) * stage.b1
    W2 = torch.randn(200, 27, generator=g) * stage.W2
    b2 = torch.randn(27, generator=g) * stage.b2
    layers = [("embedding", _embedding(C)), ("flatten", Flatten()), ("linear1", _linear(W1, b1))]
    layers += [("norm1", StdBatchNorm(200))] if stage.norm else []
    layers += [("act1", Nonlinearity(TANH)), ("output", _linear(W2, b2))]
    return nn.Sequential(OrderedDict(layers))


def _six_layers(g: torch.Generator) -> nn.Sequential:
    widths = [30, 100, 100, 100, 100, 100, 27]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["embedding"], layers["flatten"] = _embedding(torch.randn(27, 10, generator=g)), Flatten()
    for k, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layers[f"linear{k}"] = _linear(torch.randn(fan_in, fan_out, generator=g) / fan_in**0.5, None)
        layers[f"norm{k}"] = UnbiasedBatchNorm(fan_out)
        if k < 6:
            layers[f"act{k}"] = Nonlinearity(TANH)
    with torch.no_grad():
        layers["norm6"].weight.mul_(0.1)
    return nn.Sequential(layers)


class Run:
    """One run of the lecture: a stage's `model` with the lecture's draws, and its minibatches from the same generator.

    `stage` is one of `stages()`, or "deep" for the six layers with batch normalisation. Another `seed` gives another
    run of the same kind. Raises ValueError for a stage that is not there.
    """

    def __init__(self, stage: str, corpus: Corpus, seed: int = SEED) -> None:
        if stage not in (*_STAGES, "deep"):
            raise ValueError(f"stage: one of {', '.join((*_STAGES, 'deep'))} is needed, got {stage!r}")
        self.stage, self.corpus = stage, corpus
        self.generator: torch.Generator | list[torch.Generator] = torch.Generator().manual_seed(seed)
        self.model = _six_layers(self.generator) if stage == "deep" else _shallow(_STAGES[stage], self.generator)

    @torch.no_grad()
    def nudge(self, size: float, *, generator: torch.Generator) -> None:
        """Multiplies each of the first layer's weights by 1 + size * N(0, 1): rounding, as it were, at one place."""
        weight = self.model.linear1.weight
        weight.mul_(1 + size * rng.normal(*weight.shape, generator=generator).to(weight.dtype))

    def batches(self, steps: int) -> Minibatches:
        """The next `steps` minibatches of 32, in the lecture's order."""
        return minibatches(self.corpus.train, 32, steps, generator=self.generator)

    def train(self, steps: int = 200_000, **options: Any) -> History:
        """The first `steps` steps: learning rate 0.1, and 0.01 from step 100,000 on (150,000 for the deep network).

        `options` are those of `mmlib.train.train`: probe, every, progress, after.
        """
        return train(self.model, self.batches(steps), lr=self.schedule, **options)

    @property
    def schedule(self) -> Schedule:
        """The learning rate by step."""
        return drop(0.1, at=150_000 if self.stage == "deep" else 100_000, to=0.01)

    def evaluate(self) -> dict[str, float | Tensor]:
        """The loss on the whole training, dev and test examples, in evaluation mode."""
        return {part: evaluate(self.model, getattr(self.corpus, part)) for part in ("train", "dev", "test")}

    def names(self, count: int = 20) -> list[str]:
        """Names drawn with the lecture's generator for sampling."""
        g = torch.Generator().manual_seed(SEED + 10)
        return [sample(self.model, self.corpus.vocabulary, 3, generator=g) for _ in range(count)]


def together(runs: Sequence[Run]) -> Run:
    """Several runs as one: their models are stacked, each has its own minibatches, one pass trains them all.

    What a single run gives as a number is then a tensor with one entry a run. Use the runs themselves no more: their
    generators are shared. Raises ValueError if their networks are not of one architecture.
    """
    one = copy.copy(runs[0])
    one.model, one.generator = stack([run.model for run in runs]), [run.generator for run in runs]
    return one


class Dashboard(NamedTuple):
    """What the lecture looks at in its deep network: the last pass laid open, and every step's update:data ratios."""

    trace: Trace
    grad_data_ratios: dict[str, Tensor]
    update_ratios: dict[str, Series]


def deep(corpus: Corpus) -> Run:
    """The six-layer network with batch normalisation."""
    return Run("deep", corpus)


def dashboard(run: Run, steps: int = 1001) -> Dashboard:
    """Trains `run` for `steps` steps and looks at the last of them: its trace is that before the step is taken."""
    batches = list(run.batches(steps))
    history = train(run.model, batches[:-1], lr=run.schedule, probe=update_ratios)
    last = trace(run.model, batches[-1])
    end = train(run.model, batches[-1:], lr=run.schedule(steps - 1), probe=update_ratios)
    series = {
        name: Series(torch.arange(steps), torch.cat([values.values, end.probes[name].values]))
        for name, values in history.probes.items()
    }
    return Dashboard(last, grad_data_ratios(last), series)
