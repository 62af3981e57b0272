"""What several test files share: no window, the corpus, given random tensors, a watch on the global random state."""

import random

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings

from mmlib import data

matplotlib.use("Agg")
# The same cases everywhere, no time limit on a busy machine, no directory left behind.
settings.register_profile("mmlib", deadline=None, derandomize=True, database=None)
settings.load_profile("mmlib")


@pytest.fixture(scope="session", autouse=True)
def seeds_are_those_of_the_processor():
    """Without an accelerator torch.manual_seed keeps each seed for one, with the stack of its call: that takes long."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.accelerator.is_available():
            patch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)
        yield


@pytest.fixture(scope="session")
def names():
    return data.read_names()


@pytest.fixture(scope="session")
def corpus():
    return data.corpus()


@pytest.fixture
def normal():
    """normal(*shape): float64 noise, another with every call, the same in every run."""
    g = torch.Generator().manual_seed(20240229)
    return lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)


@pytest.fixture
def symbols():
    """symbols(*shape, tokens=27): integers below `tokens`."""
    g = torch.Generator().manual_seed(19841026)
    return lambda *shape, tokens=27: torch.randint(tokens, shape, generator=g)


@pytest.fixture
def no_global_randomness():
    """The test fails if anything in it moves the global random state of torch, NumPy or Python."""
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
