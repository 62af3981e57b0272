"""What a checkup costs, as a multiple of one forward and backward pass: `python -m benchmarks.checkup.cost`.

One thread, processor time. The pass and the checkup, without and with an optimiser, take turns; a ratio is the median
over rounds of the ratios within a round, so that it holds when the machine's speed drifts.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.checkup.healthy.networks import Decoder, resnet
from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    Trial,
    blobs,
    flat_cross_entropy,
    last_step,
    mlp,
    seeded,
    series,
    text,
)
from mmlib.checkup import checkup

COLUMNS = ["network", "parameters", "ms", "checkup", "with optimizer"]


def pictures(n: int, size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, size, size), torch.randint(10, (n,))


def mobilenet(layers: int = 20, channels: int = 8) -> nn.Sequential:
    """Many small operations: depthwise and pointwise convolutions of few channels."""
    body = [nn.Conv2d(3, channels, 3, padding=1)]
    for _ in range(layers):
        body += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.BatchNorm2d(channels), nn.ReLU6()]
        body += [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def lstm() -> nn.Module:
    return last_step(nn.LSTM(64, 704, batch_first=True), 704, 10)


NETWORKS: dict[str, Callable[[], Trial]] = {
    "MLP": lambda: Trial(mlp(256, 1024, 1024, 1024, 10), *blobs(128, 256), CROSS_ENTROPY),
    "ResNet": lambda: Trial(resnet(15, 96), *pictures(16, 16), CROSS_ENTROPY),
    "GPT": lambda: Trial(Decoder(6, 256, 4, 512, 64), *text(16, 64, 512), flat_cross_entropy),
    "LSTM": lambda: Trial(lstm(), *series(32, 32, 64, 10), CROSS_ENTROPY),
    "ResNet, 56 layers of 8 channels": lambda: Trial(resnet(27, 8), *pictures(16, 16), CROSS_ENTROPY),
    "MobileNet, 42 layers of 8 channels": lambda: Trial(mobilenet(), *pictures(8, 16), CROSS_ENTROPY),
}


def cost(make: Callable[[], Trial], rounds: int = 9) -> tuple[int, float, float, float]:
    """Parameters, milliseconds of one forward and backward pass, and the times a checkup takes of it, without and with
    an optimiser: medians over rounds in which all three take turns, in processor time."""
    with seeded(0):
        trial = make()
    model, optimizer = trial.model, torch.optim.Adam(trial.model.parameters())

    def once():
        loss = trial.loss_fn(model(trial.inputs), trial.targets)
        torch.autograd.grad(loss, list(model.parameters()))

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    works = once, lambda: checkup(*trial[:4]), lambda: checkup(*trial[:4], optimizer=optimizer)
    times = [[seconds(work) for work in works] for _ in range(rounds + 1)][1:]
    plain, bare, stepped = ([row[k] for row in times] for k in range(3))
    ratios = [median(b / a for a, b in zip(plain, other, strict=True)) for other in (bare, stepped)]
    return sum(p.numel() for p in model.parameters()), 1000 * median(plain), *ratios


def costs() -> list[list[str]]:
    rows = []
    for name, make in NETWORKS.items():
        parameters, milliseconds, bare, stepped = cost(make)
        rows.append([name, f"{parameters / 1e6:.2f} M", f"{milliseconds:.0f}", f"{bare:.1f}", f"{stepped:.1f}"])
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in [COLUMNS, *costs()]:
        print("  ".join([row[0].ljust(36), *(cell.rjust(14) for cell in row[1:])]))
