"""What a training step costs: mmlib, one model or many stacked, beside a plain loop, torch.nn and bare matrix products.

    make benchmark                  the table of ratios (about two minutes)
    make benchmark ARGS=--figure    also how cost grows with R, width, depth and batch: benchmarks/training.png

One thread, processor time. All variants take turns in every round, and a ratio is the median over rounds of the ratios
within a round, so that it holds when the machine's speed drifts. A model-step is one step of one model: R stacked
models make R of them.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from mmlib.data import Examples, corpus, minibatches
from mmlib.ensemble import stack
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d
from mmlib.rng import generator
from mmlib.train import train

Run = Callable[[int], None]


@dataclass(frozen=True)
class Case:
    recipe: MLP
    data: Examples
    batch: int = 32

    def fans(self) -> list[tuple[int, int]]:
        r = self.recipe
        sizes = [r.block_size * r.embedding, *[r.width] * r.depth, r.tokens]
        return list(zip(sizes[1:], sizes[:-1], strict=True))


def plain(case: Case) -> Run:
    """(a) One model on raw tensors: autograd for the gradients, everything else written out."""
    (X, Y), r, g = case.data, case.recipe, generator(0, "benchmark")
    C = torch.randn(r.tokens, r.embedding, generator=g)
    W = [torch.randn(n_in, n_out, generator=g) / n_in**0.5 for n_out, n_in in case.fans()]
    b = [torch.zeros(w.shape[1]) for w in (W[-1:] if r.norm else W)]
    scale, shift = [torch.ones(r.width) for _ in W[1:]], [torch.zeros(r.width) for _ in W[1:]]
    mean, var = [torch.zeros(r.width) for _ in W[1:]], [torch.ones(r.width) for _ in W[1:]]
    parameters = [C, *W, *b, *(scale + shift if r.norm else [])]
    for p in parameters:
        p.requires_grad_()

    def run(steps: int) -> None:
        for _ in range(steps):
            index = torch.randint(len(Y), (case.batch,), generator=g)
            h = C[X[index]].view(case.batch, -1)
            for k, w in enumerate(W[:-1]):
                z = h @ w
                if r.norm:
                    m, v = z.mean(0, keepdim=True), z.var(0, keepdim=True, unbiased=True)
                    z = scale[k] * (z - m) / torch.sqrt(v + 1e-5) + shift[k]
                    with torch.no_grad():
                        mean[k] = 0.9 * mean[k] + 0.1 * m
                        var[k] = 0.9 * var[k] + 0.1 * v
                else:
                    z = z + b[k]
                h = torch.tanh(z)
            loss = F.cross_entropy(h @ W[-1] + b[-1], Y[index])
            for p in parameters:
                p.grad = None
            loss.backward()
            for p in parameters:
                p.data += -0.1 * p.grad

    return run


def torch_nn(case: Case) -> Run:
    """(b) One model of torch.nn layers with torch.optim.SGD."""
    (X, Y), r, g = case.data, case.recipe, generator(0, "benchmark")
    layers: list[nn.Module] = [nn.Embedding(r.tokens, r.embedding), nn.Flatten()]
    for n_out, n_in in case.fans()[:-1]:
        layers += [nn.Linear(n_in, n_out, bias=r.norm is None)]
        layers += [nn.BatchNorm1d(n_out)] if r.norm else []
        layers += [nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(r.width, r.tokens))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(steps: int) -> None:
        for _ in range(steps):
            index = torch.randint(len(Y), (case.batch,), generator=g)
            loss = F.cross_entropy(model(X[index]), Y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    return run


def mmlib(case: Case, replicas: int | None = None) -> Run:
    """(c) One model of mmlib; (d) with `replicas`, that many stacked, each with its own weights and batches."""
    models = [case.recipe.build(generator(s, "weights")) for s in range(replicas or 1)]
    batches = [generator(s, "batches") for s in range(replicas or 1)]
    model, stream = (stack(models), batches) if replicas else (models[0], batches[0])

    def run(steps: int) -> None:
        train(model, minibatches(case.data, case.batch, steps, generator=stream), lr=0.1)

    return run


def floor(case: Case, replicas: int) -> Run:
    """(e) Only the matrix products of forward and backward for R models, into outputs that are there already."""
    products = []
    for n_out, n_in in case.fans():
        x, w = torch.randn(replicas, case.batch, n_in), torch.randn(replicas, n_out, n_in)
        y = torch.empty(replicas, case.batch, n_out)
        products += [(x, w.mT, y), (y, w, torch.empty_like(x)), (y.mT, x, torch.empty_like(w))]

    def run(steps: int) -> None:
        for _ in range(steps):
            for left, right, out in products:
                torch.bmm(left, right, out=out)

    return run


STACKS = (8, 16, 32)


def cases() -> dict[str, Case]:
    data = corpus().train
    return {
        "one hidden layer of 200": Case(MLP(depth=1, width=200), data),
        "six layers with BatchNorm": Case(MLP(depth=5, width=100, norm=BatchNorm1d), data),
    }


def variants(case: Case) -> dict[str, Callable[[], tuple[Run, int]]]:
    """What builds each run, by name, with the number of models it trains at once."""
    return {
        "(a) plain loop": lambda: (plain(case), 1),
        "(b) torch.nn, SGD": lambda: (torch_nn(case), 1),
        "(c) mmlib, one model": lambda: (mmlib(case), 1),
        **{f"(d) mmlib, R = {r}": lambda r=r: (mmlib(case, r), r) for r in STACKS},
        f"(e) products only, R = {STACKS[-1]}": lambda: (floor(case, STACKS[-1]), STACKS[-1]),
    }


def seconds_per_model_step(run: Run, replicas: int, seconds: float = 0.5) -> Callable[[], float]:
    """A measurement that takes about `seconds`; the first call of `run` is not part of it."""
    run(3)
    start = time.process_time()
    run(10)
    steps = max(10, round(10 * seconds / (time.process_time() - start)))

    def measure() -> float:
        start = time.process_time()
        run(steps)
        return (time.process_time() - start) / (steps * replicas)

    return measure


def measured(runs: dict[str, tuple[Run, int]], rounds: int, seconds: float) -> dict[str, list[float]]:
    measures = {name: seconds_per_model_step(*run, seconds) for name, run in runs.items()}
    results: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, measure in measures.items():
            results[name].append(measure())
    return results


def ratio(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def peak_megabytes(case: str, variant: str) -> float:
    """What a fresh process adds to its memory at most by building and running a variant."""
    command = [sys.executable, __file__, "--peak", case, variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def print_peak(case: str, variant: str) -> None:
    chosen = cases()[case]
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _status("VmRSS")
    variants(chosen)[variant]()[0](50)
    print(_status("VmHWM") - before)


def print_table(rounds: int) -> None:
    for name, case in cases().items():
        results = measured({k: make() for k, make in variants(case).items()}, rounds, seconds=0.5)
        first, *_, last = results.values()
        print(f"\n{name}, batch {case.batch}")
        print(f"{'':26}{'us/model-step':>14}{'steps/s of (a)':>16}{'cost of (e)':>13}{'MB':>6}")
        for variant, times in results.items():
            speed, cost = ratio(first, times), ratio(times, last)
            memory = peak_megabytes(name, variant)
            print(f"{variant:26}{1e6 * median(times):14.1f}{speed:16.2f}{cost:13.2f}{memory:6.0f}")


def figure(path: Path) -> None:
    import matplotlib.pyplot as plt

    plt.style.use(Path(__file__).parent.parent / "book" / "book.mplstyle")
    case = cases()["six layers with BatchNorm"]
    sweeps = {
        "replicas R": {r: (case, r) for r in (1, 2, 4, 8, 16, 32, 64)},
        "width": {w: (replace(case, recipe=replace(case.recipe, width=w)), 8) for w in (25, 50, 100, 200, 400)},
        "hidden layers": {d: (replace(case, recipe=replace(case.recipe, depth=d)), 8) for d in (1, 2, 4, 8, 16)},
        "batch": {n: (replace(case, batch=n), 8) for n in (8, 16, 32, 64, 128, 256)},
    }
    _, axes = plt.subplots(1, 4, figsize=(12, 3.4), sharey=True)
    for ax, (label, points) in zip(axes, sweeps.items(), strict=True):
        for name, mark, make in (("mmlib, stacked", "o-", mmlib), ("products only", "s--", floor)):
            cost = {x: min(measured({"": (make(c, r), r)}, 3, 0.2)[""]) for x, (c, r) in points.items()}
            ax.loglog(list(cost), [1e6 * t for t in cost.values()], mark, label=name)
            print(f"{label:14} {name:15}", {x: round(1e6 * t) for x, t in cost.items()})
        ax.set_xlabel(label if label == "replicas R" else f"{label} (R = 8)")
        ax.set_xticks(list(points), [str(x) for x in points])
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes[0].set_ylabel("µs per model-step")
    axes[0].legend()
    plt.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often every variant is timed (default 7)")
    parser.add_argument("--figure", action="store_true", help="also measure growth and draw benchmarks/training.png")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(*options.peak)
        return
    print_table(options.rounds)
    if options.figure:
        figure(Path(__file__).with_suffix(".png"))


if __name__ == "__main__":
    main()
