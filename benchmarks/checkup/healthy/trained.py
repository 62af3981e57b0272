"""Healthy networks of other types, after training, and with their optimiser's groups."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import LBFGS, Adam, AdamW, RMSprop

from benchmarks.checkup.healthy.networks import Decoder, resnet, transformer
from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    blobs,
    convnet,
    curve,
    flat_cross_entropy,
    healthy,
    images,
    last_step,
    mlp,
    series,
    text,
    tokens,
    trained,
)


@healthy
def mlp_in_double_precision():
    x, y = blobs()
    model = mlp(20, 64, 10).double()
    return Trial(model, x.double(), y, CROSS_ENTROPY)


@healthy
def mlp_in_bfloat16():
    x, y = curve()
    return Trial(mlp(20, 64, 1).bfloat16(), x.bfloat16(), y.bfloat16(), nn.L1Loss())


@healthy
def autocast_in_forward():
    def run(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.body(x)

    return Trial(Net(run, body=mlp(20, 64, 64, 10)), *blobs(), lambda z, y: F.cross_entropy(z.float(), y))


@healthy
def mlp_after_training():
    return trained(Trial(mlp(20, 64, 64, 10), *blobs(256), CROSS_ENTROPY), 200)


@healthy
def convnet_after_training():
    return trained(Trial(convnet(), *images(64), CROSS_ENTROPY), 100)


@healthy
def regression_after_training():
    return trained(Trial(mlp(20, 64, 64, 1, act=nn.Tanh), *curve(256), MSE), 300)


@healthy
def lstm_after_training():
    return trained(Trial(last_step(nn.LSTM(8, 32, batch_first=True), 32), *series(64), CROSS_ENTROPY), 100, lr=3e-3)


@healthy
def decoder_after_training():
    return trained(Trial(Decoder(layers=2), *text(), flat_cross_entropy), 100)


@healthy
def resnet_after_training_in_evaluation_mode_to_be_looked_at():
    """A trained network in evaluation mode, without an optimiser: a look at a batch of validation."""
    trial = trained(Trial(resnet(2), *images(64), CROSS_ENTROPY), 60)
    return trial._replace(model=trial.model.eval(), optimizer=None)


@healthy
def gradient_descent_after_many_steps_of_rmsprop():
    trial = Trial(mlp(20, 64, 10), *blobs(128), CROSS_ENTROPY)
    optimizer = RMSprop(trial.model.parameters(), lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        trial.loss_fn(trial.model(trial.inputs), trial.targets).backward()
        optimizer.step()
    return trial._replace(optimizer=optimizer)


@healthy
def only_the_biases_are_tuned():
    trial = trained(Trial(mlp(20, 64, 64, 10), *blobs(), CROSS_ENTROPY), 50)
    for name, p in trial.model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    return trial._replace(optimizer=Adam([p for p in trial.model.parameters() if p.requires_grad], lr=1e-3))


@healthy
def transformer_in_bfloat16():
    model = Net(
        lambda net, x: net.head(net.layer(net.embedding(x)).mean(1)),
        embedding=nn.Embedding(50, 32),
        layer=transformer(),
        head=nn.Linear(32, 4),
    ).bfloat16()
    return Trial(model, *tokens(), lambda z, y: F.cross_entropy(z.float(), y))


@healthy
def fitted_by_lbfgs():
    model = mlp(20, 32, 1, act=nn.Tanh)
    return Trial(model, *curve(), MSE, LBFGS(model.parameters(), lr=1.0))


@healthy
def groups_with_their_own_rates():
    model = trained(Trial(convnet(), *images(), CROSS_ENTROPY), 40).model
    groups = [{"params": model[:-1].parameters(), "lr": 1e-5}, {"params": model[-1].parameters(), "lr": 1e-3}]
    return Trial(model, *images(), CROSS_ENTROPY, AdamW(groups))


@healthy
def no_decay_for_norms():
    model = Decoder(2)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=6e-4)
    return Trial(model, *text(), flat_cross_entropy, optimizer)


@healthy
def trained_to_the_end_with_a_small_rate():
    trial = trained(Trial(mlp(20, 128, 10), *blobs(), CROSS_ENTROPY), 400, lr=3e-3)
    trial.optimizer.param_groups[0]["lr"] = 3e-5
    return trial


@healthy
def knowledge_distilled_from_a_frozen_teacher():
    teacher = trained(Trial(mlp(20, 128, 10), *blobs(), CROSS_ENTROPY), 50).model.requires_grad_(False)
    model = Net(lambda net, x: (net.student(x), net.teacher(x)), student=mlp(20, 32, 10), teacher=teacher)
    loss = lambda o, y: (
        F.cross_entropy(o[0], y) + 4 * F.kl_div((o[0] / 2).log_softmax(1), (o[1] / 2).softmax(1), reduction="batchmean")
    )
    return Trial(model, *blobs(), loss, Adam(model.student.parameters()))
