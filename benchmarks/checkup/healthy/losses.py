"""Healthy programs by their loss."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam, NAdam

from benchmarks.checkup.programs import BCE_LOGITS, MSE, Net, Trial, binary, blobs, convnet, curve, healthy, images, mlp


@healthy
def huber_regression():
    return Trial(mlp(20, 64, 64, 1), *curve(), nn.HuberLoss())


@healthy
def log_cosh_regression():
    return Trial(mlp(20, 64, 1), *curve(), lambda o, t: (F.softplus(2 * (o - t)) - (o - t) - math.log(2)).mean())


@healthy
def poisson_counts():
    x = torch.randn(64, 20)
    return Trial(mlp(20, 64, 1), x, torch.poisson((0.5 * x[:, :1]).exp()), nn.PoissonNLLLoss())


@healthy
def gaussian_with_its_variance():
    run = lambda net, x: (net.mean(net.body(x)), F.softplus(net.variance(net.body(x))) + 1e-4)
    body = nn.Sequential(nn.Linear(20, 64), nn.ReLU())
    model = Net(run, body=body, mean=nn.Linear(64, 1), variance=nn.Linear(64, 1))
    return Trial(model, *curve(), lambda out, y: F.gaussian_nll_loss(out[0], y, out[1]))


@healthy
def three_quantiles():
    levels = torch.tensor([0.1, 0.5, 0.9])
    loss = lambda q, y: torch.maximum(levels * (y - q), (levels - 1) * (y - q)).mean()
    return Trial(mlp(20, 64, 3), *curve(), loss)


@healthy
def positive_targets_through_softplus():
    x, y = curve()
    return Trial(mlp(20, 64, 1).append(nn.Softplus()), x, y.abs(), MSE)


@healthy
def several_labels_at_once():
    x = torch.randn(64, 20)
    y = (x @ torch.randn(20, 6) > 2).float()
    return Trial(mlp(20, 64, 6), x, y, nn.BCEWithLogitsLoss(pos_weight=torch.full((6,), 2.0)))


@healthy
def smoothed_labels_and_class_weights():
    loss = nn.CrossEntropyLoss(weight=torch.rand(10) + 0.5, label_smoothing=0.1)
    return Trial(mlp(20, 64, 10), *blobs(), loss)


@healthy
def focal_loss():
    loss = lambda z, y: (
        (1 - (-F.cross_entropy(z, y, reduction="none")).exp()) ** 2 * F.cross_entropy(z, y, reduction="none")
    ).mean()
    return Trial(convnet(), *images(), loss)


@healthy
def hinge_of_support_vectors():
    x, y = binary()
    return Trial(mlp(20, 64, 1), x, 2 * y - 1, lambda o, t: F.relu(1 - o * t).mean())


@healthy
def survival_of_a_risk_set():
    """Cox's partial likelihood compares the examples with each other in the loss."""
    x = torch.randn(64, 20)
    loss = lambda risk, t: (torch.where(t[:, None] <= t, risk[:, 0], -1e4).logsumexp(1) - risk[:, 0]).mean()
    return Trial(mlp(20, 64, 1), x, torch.rand(64), loss)


@healthy
def dice_and_cross_entropy():
    x, _ = images(8)
    mask = (x.mean(1, keepdim=True) > 0.5).float()

    def loss(z, t):
        p = z.sigmoid()
        return F.binary_cross_entropy_with_logits(z, t) + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

    return Trial(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)), x, mask, loss)


@healthy
def pairs_to_be_ranked():
    a, b = torch.randn(64, 20), torch.randn(64, 20)
    y = ((a - b)[:, 0] > 0).float() * 2 - 1
    return Trial(
        Net(lambda net, a, b: (net.body(a)[:, 0], net.body(b)[:, 0]), body=mlp(20, 32, 1)),
        (a, b),
        y,
        lambda o, t: F.margin_ranking_loss(*o, t, margin=1.0),
    )


@healthy
def adaptive_softmax():
    x, y = blobs(128, classes=200)
    y = y % 200
    model = Net(
        lambda net, x: net.body(x),
        body=nn.Sequential(nn.Linear(20, 64), nn.ReLU()),
        soft=nn.AdaptiveLogSoftmaxWithLoss(64, 200, [20, 100]),
    )
    return Trial(model, x, y, lambda h, y: model.soft(h, y).loss)


@healthy
def shares_through_a_softmax():
    x = torch.randn(64, 20)
    y = F.softmax(x @ torch.randn(20, 5) / 3, dim=1)
    return Trial(mlp(20, 64, 5).append(nn.Softmax(dim=1)), x, y, MSE)


@healthy
def ordered_classes_by_cumulative_logits():
    x, y = curve()
    grade = torch.bucketize(y, torch.tensor([-1.0, 0.0, 1.0]))
    target = (grade > torch.arange(3)).float()
    model = Net(
        lambda net, x: net.body(x) + net.cuts, body=mlp(20, 64, 1), cuts=nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
    )
    return Trial(model, x, target, BCE_LOGITS)


@healthy
def value_that_is_clipped():
    x, y = curve()
    model = mlp(20, 64, 1)
    return Trial(
        model,
        x,
        y,
        lambda o, t: torch.maximum((o - t) ** 2, (o.clamp(-0.2, 0.2) - t) ** 2).mean(),
        Adam(model.parameters(), lr=3e-4),
    )


@healthy
def regression_on_skewed_positive_targets():
    x, y = curve(128)
    model = mlp(20, 64, 64, 1)
    return Trial(model, x, (0.5 * y).exp(), nn.L1Loss(), NAdam(model.parameters()))
