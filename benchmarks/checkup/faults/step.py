"""Faults of the step: the optimiser, its rate, what it holds.

Kinds from the taxonomy of N. Humbatova et al. (ICSE 2020: hyperparameters, optimiser), J. Cao et al., DeepFD (ICSE
2022: learning rate, optimiser), Y. Jiang et al. (OSDI 2025: parameters that an optimiser does not hold), and the
threads named below.
"""

import copy

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    blobs,
    convnet,
    curve,
    fault,
    images,
    kind,
    last_step,
    mlp,
    series,
    tokens,
    trained,
)

TOO_LARGE = kind("rate too large", "step size")
TOO_SMALL = kind("rate too small", "step size")
NOT_HELD = kind("parameters that the optimiser does not hold", "not in the optimiser")
OTHER_MODEL = kind("an optimiser of another model", "not in the optimiser, raises ValueError")
DECAY = kind("weight decay far too large", "weight decay", "step size")
SETTINGS = kind("an optimiser with wrong settings", "step goes uphill, optimiser settings", "step size")


@fault(TOO_LARGE)
def gradient_descent_at_ten(broken):
    """A rate of 10."""
    model = mlp(20, 64, 64, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, SGD(model.parameters(), lr=10.0 if broken else 0.1))


@fault(TOO_LARGE)
def adam_at_one(broken):
    """A rate for gradient descent, kept when the optimiser was changed to Adam."""
    model = mlp(20, 64, 64, 1)
    return Trial(model, *curve(), MSE, Adam(model.parameters(), lr=1.0 if broken else 1e-3))


@fault(TOO_LARGE)
def adam_at_a_tenth_for_a_transformer(broken):
    """Adam at 0.1, where 1e-3 is already large."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    run = lambda net, x: net.head(net.layer(net.embedding(x)).mean(1))
    model = Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY, Adam(model.parameters(), lr=0.1 if broken else 1e-3))


@fault(TOO_LARGE)
def rmsprop_at_one_half_for_a_convnet(broken):
    """RMSprop with a rate of 0.5."""
    model = convnet(norm=False)
    return Trial(model, *images(), CROSS_ENTROPY, RMSprop(model.parameters(), lr=0.5 if broken else 1e-3))


@fault(TOO_LARGE)
def sum_of_losses_with_the_rate_of_a_mean(broken):
    """reduction="sum" over 512 examples at the rate that was right for the mean."""
    model = mlp(20, 64, 64, 10)
    loss = nn.CrossEntropyLoss(reduction="sum" if broken else "mean")
    return Trial(model, *blobs(512), loss, SGD(model.parameters(), lr=0.1))


@fault(TOO_LARGE)
def momentum_and_a_rate_of_two(broken):
    """SGD(lr=2, momentum=0.9) on a network without norms."""
    model = convnet(norm=False)
    return Trial(model, *images(), CROSS_ENTROPY, SGD(model.parameters(), lr=2.0 if broken else 0.02, momentum=0.9))


@fault(TOO_LARGE)
def fine_tuning_at_a_hundred_times_the_rate(broken):
    """A trained network taken up with Adam at 0.5."""
    trial = trained(Trial(mlp(20, 64, 64, 10), *blobs(), CROSS_ENTROPY), 60)
    return trial._replace(optimizer=Adam(trial.model.parameters(), lr=0.5 if broken else 1e-4))


@fault(TOO_SMALL)
def adam_at_a_billionth(broken):
    """A rate of 1e-9, the end of a schedule that had run before."""
    model = mlp(20, 64, 64, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters(), lr=1e-9 if broken else 1e-3))


@fault(TOO_SMALL)
def gradient_descent_at_a_millionth(broken):
    """The rate that was needed with unscaled inputs, kept after they were scaled."""
    model = convnet()
    return Trial(model, *images(), CROSS_ENTROPY, SGD(model.parameters(), lr=1e-6 if broken else 0.05))


@fault(TOO_SMALL)
def rate_of_zero_after_warm_up(broken):
    """A warm-up schedule whose factor is an integer division, and stays 0."""
    body = nn.LSTM(8, 32, batch_first=True)
    model = last_step(body, 32)
    return Trial(model, *series(), CROSS_ENTROPY, AdamW(model.parameters(), lr=1e-3 * (10 // 100 if broken else 1)))


@fault(TOO_SMALL)
def adagrad_at_a_hundred_millionth(broken):
    """A rate with two minus signs too many."""
    model = mlp(20, 64, 64, 1)
    return Trial(model, *curve(), MSE, Adagrad(model.parameters(), lr=1e-8 if broken else 0.01))


@fault(NOT_HELD)
def head_replaced_after_the_optimiser_was_made(broken):
    """microsoft/nni#4521; hustzxd/EfficientPyTorch#1."""
    model = convnet()
    optimizer = SGD(model.parameters(), lr=0.05)
    if broken:
        model[-1] = nn.Linear(32 * 16, 10)
    return Trial(model, *images(), CROSS_ENTROPY, optimizer)


@fault(NOT_HELD)
def only_the_decoder_is_trained(broken):
    """Encoder and decoder, one of them given to the optimiser."""
    x = images(channels=1)[0].flatten(1)
    model = Net(lambda net, x: net.decoder(net.encoder(x)), encoder=mlp(256, 64, 16), decoder=mlp(16, 64, 256))
    return Trial(model, x, x, MSE, Adam((model.decoder if broken else model).parameters()))


@fault(NOT_HELD)
def groups_by_name_that_leave_some_out(broken):
    """zjunlp/HVPNeT#5: groups chosen by name, of which one was never added."""
    model = Net(lambda net, x: net.classifier(net.features(x)), features=mlp(20, 64, 64), classifier=nn.Linear(64, 10))
    model.features.append(nn.ReLU())
    groups = [
        [p for name, p in model.named_parameters() if name.startswith(start)] for start in ("features", "classifier")
    ]
    return Trial(model, *blobs(), CROSS_ENTROPY, AdamW([{"params": g} for g in groups[: 1 if broken else 2]], lr=1e-3))


@fault(NOT_HELD)
def embedding_left_out_of_the_optimiser(broken):
    """Parameters of two of three parts in the list."""
    model = Net(
        lambda net, x: net.head(net.body(net.embedding(x))[0][:, -1]),
        embedding=nn.Embedding(50, 32),
        body=nn.GRU(32, 32, batch_first=True),
        head=nn.Linear(32, 4),
    )
    given = [*model.body.parameters(), *model.head.parameters()]
    return Trial(model, *tokens(), CROSS_ENTROPY, Adam(given if broken else model.parameters()))


@fault(OTHER_MODEL)
def optimiser_of_the_model_before_its_copy(broken):
    """A deep copy, or the model built anew in the next cell of a notebook."""
    model = mlp(20, 64, 64, 10)
    optimizer = Adam(model.parameters())
    if broken:
        return Trial(copy.deepcopy(model), *blobs(), CROSS_ENTROPY, optimizer)
    return Trial(model, *blobs(), CROSS_ENTROPY, optimizer)


@fault(OTHER_MODEL)
def optimiser_of_the_discriminator_for_the_generator(broken):
    """Two optimisers of a GAN mixed up."""
    generator, discriminator = mlp(16, 64, 64), mlp(64, 64, 1)
    optimizer = Adam((discriminator if broken else generator).parameters(), lr=2e-4)
    target = torch.tanh(torch.randn(32, 16) @ torch.randn(16, 64) / 4)
    return Trial(generator, torch.randn(32, 16), target, MSE, optimizer)


@fault(OTHER_MODEL)
def model_loaded_anew_after_the_optimiser(broken):
    """model = torch.load(...) after the optimiser was made."""
    old = convnet()
    model = copy.deepcopy(old) if broken else old
    return Trial(model, *images(), CROSS_ENTROPY, SGD(old.parameters(), lr=0.05, momentum=0.9))


@fault(DECAY)
def weight_decay_of_ten(broken):
    """Decay of 10 at a rate of 0.1: every step throws all weights away."""
    model = mlp(20, 64, 64, 10)
    decay = 10.0 if broken else 1e-4
    return Trial(model, *blobs(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.1, weight_decay=decay))


@fault(DECAY)
def decoupled_decay_of_one_thousand(broken):
    """AdamW with a decay that was tuned for something else."""
    model = convnet()
    return Trial(
        model, *images(), CROSS_ENTROPY, AdamW(model.parameters(), lr=1e-3, weight_decay=500 if broken else 0.01)
    )


@fault(DECAY)
def decay_added_to_the_gradient_of_adam(broken):
    """Adam(weight_decay=1): the decay's gradient is larger than the loss's."""
    model = mlp(20, 64, 64, 1)
    return Trial(model, *curve(), MSE, Adam(model.parameters(), lr=1e-3, weight_decay=1.0 if broken else 1e-5))


@fault(DECAY)
def weight_decay_in_place_of_momentum(broken):
    """SGD(params, 0.1, weight_decay=0.9): the number meant for momentum."""
    model = mlp(20, 64, 64, 10)
    return Trial(
        model,
        *blobs(),
        CROSS_ENTROPY,
        SGD(model.parameters(), lr=0.1, **{"weight_decay" if broken else "momentum": 0.9}),
    )


@fault(SETTINGS)
def loss_maximised(broken):
    """maximize=True left from reinforcement learning."""
    model = mlp(20, 64, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.1, maximize=broken))


@fault(SETTINGS)
def momentum_of_more_than_one(broken):
    """A momentum of 1 never forgets; keras users write 0.99 and a rate of 1."""
    model = mlp(20, 64, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.01, momentum=1.0 if broken else 0.9))


@fault(SETTINGS)
def epsilon_of_one_in_adam(broken):
    """eps=1.0, which swallows gradients of a hundredth."""
    model = mlp(20, 64, 64, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters(), lr=1e-3, eps=1.0 if broken else 1e-8))


@fault(SETTINGS)
def adamw_that_maximises(broken):
    """maximize=True with a loss that is to fall."""
    model = convnet()
    return Trial(model, *images(), CROSS_ENTROPY, AdamW(model.parameters(), lr=1e-3, maximize=broken))
