"""Randomness is an argument: named streams of random numbers under one seed."""

import hashlib
import math
import operator
from typing import SupportsIndex

import torch
from torch import Tensor


def generator(seed: SupportsIndex, stream: str) -> torch.Generator:
    """A generator for one named use of randomness, such as "weights" or "batches", under one seed.

    Streams with different names are independent, so that drawing one weight more never shifts the minibatches. The
    state is a BLAKE2 hash of seed and name: the same on every machine. The global random state is not touched.

    Raises TypeError if `seed` is not an integer or `stream` is not a string, ValueError if `stream` is empty.

    >>> torch.randn(3, generator=generator(0, 'weights')).shape
    torch.Size([3])
    >>> generator(0, 'weights').initial_seed() == generator(0, 'batches').initial_seed()
    False
    """
    try:
        if isinstance(seed, bool):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: an integer is needed, got {seed!r}") from None
    if not isinstance(stream, str):
        raise TypeError(f"stream: a name such as 'weights' is needed, got {stream!r}")
    if not stream:
        raise ValueError("stream: the name is empty; give one such as 'weights' or 'batches'")
    digest = hashlib.blake2b(f"{number}:{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def given(generator: torch.Generator) -> torch.Generator:
    """`generator` itself. Raises TypeError for anything else: torch would take None for the global random state.

    >>> stream = generator(0, 'weights')
    >>> given(stream) is stream
    True
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator: a torch.Generator is needed, such as mmlib.rng.generator(0, 'weights'), got {generator!r}"
        )
    return generator


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Independent draws from N(0, 1), in torch's default dtype: those of torch.randn, on every processor the same.

    torch.randn makes two of them from two uniform numbers by z = sqrt(-2 log(1 - u)) (cos 2 pi v, sin 2 pi v), in
    float32 with functions that differ from one instruction set to another in the sixth digit. Here the same uniform
    numbers go through the same formula in float64 (Box and Muller, A Note on the Generation of Random Normal Deviates,
    1958).

    >>> normal(2, 3, generator=generator(0, 'weights')).shape
    torch.Size([2, 3])
    """
    n = math.prod(shape)
    if n < 16 or torch.get_default_dtype() != torch.float32:  # then torch itself computes in float64
        return torch.randn(shape, generator=given(generator))
    z = _box_muller(torch.rand(n, generator=given(generator))[: n - n % 16])
    if n % 16:  # as torch, which draws the last sixteen anew
        z = torch.cat([z[: n - 16], _box_muller(torch.rand(16, generator=generator))])
    return z.view(shape)


def _box_muller(uniform: Tensor) -> Tensor:
    u, v = uniform.double().view(-1, 2, 8).unbind(1)
    r, theta = (-2 * (1 - u).log()).sqrt(), 2 * math.pi * v
    return torch.stack([r * theta.cos(), r * theta.sin()], 1).flatten().float()
