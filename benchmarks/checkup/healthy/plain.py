"""Healthy networks on rows of numbers."""

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from benchmarks.checkup.programs import (
    BCE_LOGITS,
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    binary,
    blobs,
    curve,
    draw,
    healthy,
    kaiming,
    mlp,
    tokens,
    xavier,
)


@healthy
def linear_regression():
    x, y = curve()
    model = nn.Linear(20, 1)
    return Trial(model, x, y, MSE, SGD(model.parameters(), lr=0.1))


@healthy
def logistic_regression():
    return Trial(nn.Linear(20, 10), *blobs(), CROSS_ENTROPY)


@healthy
def mlp_with_adam():
    model = mlp(20, 128, 128, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def mlp_with_momentum():
    model = kaiming(mlp(20, 128, 128, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4))


@healthy
def deep_mlp_of_tanh():
    model = xavier(mlp(20, *[100] * 6, 10, act=nn.Tanh))
    return Trial(model, *blobs(), CROSS_ENTROPY)


@healthy
def mlp_with_batch_norm_and_dropout():
    layers = [m for a, b in ((20, 64), (64, 64)) for m in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, AdamW(model.parameters()))


@healthy
def mlp_with_layer_norm_and_gelu():
    layers = [m for a, b in ((20, 64), (64, 64)) for m in (nn.Linear(a, b), nn.LayerNorm(b), nn.GELU())]
    return Trial(nn.Sequential(*layers, nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@healthy
def self_normalising_mlp():
    """G. Klambauer et al., 2017."""
    model = mlp(20, *[64] * 6, 10, act=nn.SELU)
    return Trial(draw(model, lambda w: nn.init.normal_(w, std=w.shape[1] ** -0.5)), *blobs(), CROSS_ENTROPY)


@healthy
def narrow_mlp_on_a_small_batch():
    return Trial(mlp(20, 8, 8, 3), *blobs(8, classes=3), CROSS_ENTROPY)


@healthy
def maxout_mlp():
    run = lambda net, x: net.head(net.body(x).unflatten(1, (64, 4)).amax(-1))
    return Trial(Net(run, body=nn.Linear(20, 256), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@healthy
def bottleneck_of_four_units():
    return Trial(mlp(20, 64, 4, 64, 10), *blobs(), CROSS_ENTROPY)


@healthy
def coordinates_through_sines():
    """V. Sitzmann et al., 2020: weights drawn for sin(30 x)."""

    def run(net, x):
        for layer in net.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return net.layers[-1](x)

    layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)])
    for k, layer in enumerate(layers):
        bound = 0.5 if k == 0 else (6 / 64) ** 0.5 / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    x = 2 * torch.rand(256, 2) - 1
    model = Net(run, layers=layers)
    return Trial(model, x, torch.sin(4 * x[:, :1]) * torch.cos(3 * x[:, 1:]), MSE, Adam(model.parameters(), lr=1e-4))


@healthy
def highway_layers():
    def run(net, x):
        x = net.first(x)
        for h, t in zip(net.h, net.t, strict=True):
            g = t(x).sigmoid()
            x = g * h(x).relu() + (1 - g) * x
        return net.head(x)

    t = nn.ModuleList(nn.Linear(64, 64) for _ in range(5))
    for layer in t:
        nn.init.constant_(layer.bias, -2)
    return Trial(
        Net(
            run,
            first=nn.Linear(20, 64),
            h=nn.ModuleList(nn.Linear(64, 64) for _ in range(5)),
            t=t,
            head=nn.Linear(64, 10),
        ),
        *blobs(),
        CROSS_ENTROPY,
    )


@healthy
def wide_and_deep():
    x, y = binary()
    ids = torch.randint(30, (64, 3))
    run = lambda net, x, ids: net.wide(x) + net.deep(torch.cat([x, net.embedding(ids).flatten(1)], 1))
    model = Net(run, wide=nn.Linear(20, 1), deep=mlp(44, 64, 1), embedding=nn.Embedding(30, 8))
    return Trial(model, (x, ids), y, BCE_LOGITS, Adam(model.parameters()))


@healthy
def factorisation_machine():
    ids = torch.randint(100, (128, 5))

    def run(net, ids):
        v = net.v(ids)
        return net.w(ids).sum(1) + 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1, keepdim=True)

    model = Net(run, v=nn.Embedding(100, 8), w=nn.Embedding(100, 1))
    nn.init.normal_(model.v.weight, std=0.01)
    nn.init.zeros_(model.w.weight)
    return Trial(model, ids, (torch.rand(128, 1) < 0.4).float(), BCE_LOGITS)


@healthy
def radiance_of_encoded_points():
    x = 2 * torch.rand(128, 3) - 1
    code = lambda x: torch.cat([x] + [f(2**k * x) for k in range(6) for f in (torch.sin, torch.cos)], 1)
    model = Net(lambda net, x: net.body(code(x)).sigmoid(), body=mlp(39, 64, 64, 4))
    return Trial(model, x, torch.rand(128, 4), MSE, Adam(model.parameters(), lr=5e-4))


@healthy
def rare_positives():
    x = torch.randn(64, 20)
    y = (x[:, :1] > 1.9).float()
    model = mlp(20, 64, 1)
    return Trial(model, x, y, nn.BCEWithLogitsLoss(pos_weight=torch.tensor(30.0)), Adam(model.parameters()))


@healthy
def residual_blocks_dropped_at_random():
    def run(net, x):
        h = net.first(x)
        for block in net.blocks:
            keep = (torch.rand(len(x), 1) < 0.8).float() / 0.8 if net.training else 1.0
            h = h + keep * block(h)
        return net.head(h)

    return Trial(
        Net(
            run,
            first=nn.Linear(20, 64),
            blocks=nn.ModuleList(nn.Sequential(nn.LayerNorm(64), *mlp(64, 64, 64)) for _ in range(4)),
            head=nn.Linear(64, 10),
        ),
        *blobs(),
        CROSS_ENTROPY,
    )


@healthy
def fifty_residual_layers_with_norms():
    blocks = [nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(25)]

    def run(net, x):
        h = net.first(x)
        for b in net.blocks:
            h = h + b(h)
        return net.head(net.norm(h))

    model = Net(
        run, first=nn.Linear(20, 64), blocks=nn.ModuleList(blocks), norm=nn.LayerNorm(64), head=nn.Linear(64, 10)
    )
    return Trial(model, *blobs(), CROSS_ENTROPY, AdamW(model.parameters(), lr=3e-4))


@healthy
def spectrum_of_a_signal():
    y = torch.randint(4, (32,))
    x = torch.sin(torch.arange(64) * (0.2 + 0.3 * y[:, None])) + 0.3 * torch.randn(32, 64)
    return Trial(
        Net(lambda net, x: net.body(torch.fft.rfft(x, norm="ortho").abs()), body=mlp(33, 64, 4)), x, y, CROSS_ENTROPY
    )


@healthy
def sparse_counts_as_features():
    """A bag of words: mostly zeros."""
    x, y = tokens(64, 12, 200)
    bag = torch.zeros(64, 200).scatter_add(1, x, torch.ones_like(x, dtype=torch.float))
    model = mlp(200, 64, 4)
    return Trial(model, bag, y, CROSS_ENTROPY, Adam(model.parameters()))
