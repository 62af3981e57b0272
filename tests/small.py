"""Small models, what they are given, and their numbers, for the tests of several modules."""

import torch

from mmlib.data import minibatches
from mmlib.models import MLP
from mmlib.rng import generator


def mlp(seed=0, **recipe):
    return MLP(**{"width": 8, "depth": 2} | recipe).build(generator(seed, "weights"))


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=generator(seed, "edges"), dtype=dtype)


def draws(corpus, steps, replicas=None, size=8):
    streams = [generator(s, "batches") for s in range(replicas or 1)]
    return minibatches(corpus.dev, size, steps, generator=streams if replicas else streams[0])


def numbers(model):
    return {name: x.detach().clone() for name, x in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
