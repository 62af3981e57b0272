"""Healthy networks on images."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam, AdamW

from benchmarks.checkup.healthy.networks import resnet, transformer
from benchmarks.checkup.programs import CROSS_ENTROPY, Net, Trial, blobs, convnet, healthy, images, mlp


@healthy
def plain_convnet():
    model = convnet(norm=False)
    return Trial(model, *images(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def convnet_with_group_norm():
    layers = [
        m for a in (3, 16) for m in (nn.Conv2d(a, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return Trial(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10)), *images(), CROSS_ENTROPY)


@healthy
def small_resnet():
    model = resnet()
    return Trial(model, *images(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True))


@healthy
def resnet_whose_blocks_start_at_zero():
    return Trial(resnet(zero=True), *images(), CROSS_ENTROPY)


@healthy
def residual_scale_that_starts_at_zero():
    """ReZero (T. Bachlechner et al., 2020)."""

    def run(net, x):
        h = net.first(x)
        for block, scale in zip(net.blocks, net.scales, strict=True):
            h = h + scale * block(h)
        return net.head(h)

    scales = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(6))
    blocks = nn.ModuleList(mlp(64, 64, 64) for _ in range(6))
    model = Net(run, first=nn.Linear(20, 64), blocks=blocks, scales=scales, head=nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def squeeze_and_excitation():
    """A squeeze of four units (J. Hu et al., 2018)."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *mlp(16, 4, 16), nn.Sigmoid())
    run = lambda net, x: net.head(net.body(x) * net.gate(net.body(x))[..., None, None])
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    return Trial(Net(run, body=body, gate=gate, head=head), *images(), CROSS_ENTROPY)


@healthy
def depthwise_separable_convolutions():
    block = lambda a, b: [
        nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False),
        nn.BatchNorm2d(a),
        nn.ReLU6(),
        nn.Conv2d(a, b, 1, bias=False),
        nn.BatchNorm2d(b),
        nn.ReLU6(),
    ]
    body = [nn.Conv2d(3, 16, 3, padding=1), *block(16, 32), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Trial(nn.Sequential(*body, nn.Linear(32, 10)), *images(), CROSS_ENTROPY)


@healthy
def vision_transformer():
    def run(net, x):
        h = net.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([net.token.expand(len(h), -1, -1), h], 1) + net.position
        return net.head(net.norm(net.body(h))[:, 0])

    parts = {"token": nn.Parameter(torch.zeros(1, 1, 32)), "position": nn.Parameter(0.02 * torch.randn(1, 17, 32))}
    body = nn.Sequential(*[transformer(norm_first=True, activation="gelu") for _ in range(3)])
    model = Net(run, patch=nn.Conv2d(3, 32, 4, 4), body=body, norm=nn.LayerNorm(32), head=nn.Linear(32, 10), **parts)
    return Trial(model, *images(), CROSS_ENTROPY, AdamW(model.parameters(), lr=3e-4, weight_decay=0.05))


@healthy
def unet_for_segmentation():
    def run(net, x):
        a = net.down(x)
        b = net.middle(F.max_pool2d(a, 2))
        return net.out(torch.cat([a, F.interpolate(b, scale_factor=2)], 1))

    block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    out = nn.Sequential(block(48, 16), nn.Conv2d(16, 3, 1))
    x, _ = images(8)
    y = (x.mean(1) > 0).long() + (x[:, 0] > 1).long()
    return Trial(Net(run, down=block(3, 16), middle=block(16, 32), out=out), x, y, CROSS_ENTROPY)


@healthy
def segmentation_with_an_ignored_border():
    x, _ = images(8)
    y = (x.mean(1) > 0).long()
    y[:, 0] = 255
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    return Trial(model, x, y, nn.CrossEntropyLoss(ignore_index=255))


@healthy
def boxes_and_classes():
    """Two heads and two losses on a dictionary."""
    run = lambda net, x: {"boxes": net.box(net.body(x)).sigmoid(), "logits": net.classes(net.body(x))}
    body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
    model = Net(run, body=body, box=nn.Linear(512, 4), classes=nn.Linear(512, 10))
    x, y = images()
    targets = {"boxes": torch.rand(32, 4), "labels": y}
    loss = lambda out, t: F.l1_loss(out["boxes"], t["boxes"]) + F.cross_entropy(out["logits"], t["labels"])
    return Trial(model, x, targets, loss)


@healthy
def inception_block():
    run = lambda net, x: net.head(torch.cat([net.a(x), net.b(x), net.c(x)], 1).relu())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 10))
    return Trial(
        Net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 3, padding=1), c=nn.Conv2d(3, 8, 5, padding=2), head=head),
        *images(),
        CROSS_ENTROPY,
    )


@healthy
def densely_connected_layers():
    def run(net, x):
        for layer in net.layers:
            x = torch.cat([x, layer(x)], 1)
        return net.head(x.mean((2, 3)))

    layers = nn.ModuleList(
        nn.Sequential(nn.BatchNorm2d(3 + 8 * k), nn.ReLU(), nn.Conv2d(3 + 8 * k, 8, 3, padding=1, bias=False))
        for k in range(4)
    )
    model = Net(run, layers=layers, head=nn.Linear(35, 10))
    return Trial(model, *images(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.1, momentum=0.9))


@healthy
def mlp_mixer():
    def run(net, x):
        h = net.patch(x).flatten(2).transpose(1, 2)
        for a, b, na, nb in net.blocks:
            h = h + a(na(h).transpose(1, 2)).transpose(1, 2)
            h = h + b(nb(h))
        return net.head(net.norm(h).mean(1))

    blocks = nn.ModuleList(
        nn.ModuleList([mlp(16, 32, 16, act=nn.GELU), mlp(32, 64, 32, act=nn.GELU), nn.LayerNorm(32), nn.LayerNorm(32)])
        for _ in range(2)
    )
    model = Net(run, patch=nn.Conv2d(3, 32, 4, 4), blocks=blocks, norm=nn.LayerNorm(32), head=nn.Linear(32, 10))
    nn.init.zeros_(model.head.weight)
    return Trial(model, *images(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def head_that_starts_at_zero():
    model = convnet()
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return Trial(model, *images(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.05, momentum=0.9))


@healthy
def detector_with_a_prior_in_its_bias():
    """Focal loss, the last bias at log(0.01 / 0.99) (T. Lin et al., 2017)."""
    x, _ = images(16)
    y = (torch.rand(16, 4, 16, 16) < 0.01).float()
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1))
    nn.init.constant_(model[-1].bias, math.log(0.01 / 0.99))

    def loss(z, t):
        ce = F.binary_cross_entropy_with_logits(z, t, reduction="none")
        p = z.sigmoid()
        return ((t * (1 - p) ** 2 + (1 - t) * p**2) * ce).sum() / t.sum().clamp(min=1)

    return Trial(model, x, y, loss, Adam(model.parameters(), lr=1e-4))


@healthy
def spatial_dropout():
    layers = [
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256, 10),
    ]
    return Trial(nn.Sequential(*layers), *images(), CROSS_ENTROPY)


@healthy
def inputs_between_zero_and_one():
    x, y = images()
    x = torch.sigmoid(1.5 * x)
    model = convnet(norm=False)
    return Trial(model, x, y, CROSS_ENTROPY, Adam(model.parameters()))
