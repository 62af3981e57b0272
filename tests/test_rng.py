import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib import rng
from mmlib.activations import TANH
from mmlib.data import Examples, Vocabulary, minibatches, split
from mmlib.init import LECUN, Orthogonal, VarianceScaling
from mmlib.layers import Embedding, Linear, Maxout
from mmlib.models import MLP, sample
from mmlib.rng import generator

pytestmark = pytest.mark.usefixtures("no_global_randomness")

MODEL = MLP(tokens=2, width=2, depth=1).build(torch.Generator())
EXAMPLES = Examples(torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, dtype=torch.long))


def draws(seed, stream, n=4):
    return torch.randint(2**31, (n,), generator=rng.generator(seed, stream)).tolist()


def test_first_draws_are_pinned():
    assert rng.generator(0, "weights").initial_seed() == 1055468394997592402
    assert draws(0, "weights") == [793554590, 1520954686, 231297314, 1072794796]
    torch.testing.assert_close(
        torch.randn(3, generator=rng.generator(0, "weights")),
        torch.tensor([-1.2987430, 0.3115912, 1.1477309]),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", [(1,), (15,), (16,), (17,), (3, 5, 7), (27, 10), (200, 30), (0, 4)], ids=str)
def test_normal_draws_are_those_of_torch_to_its_rounding(shape):
    ours, theirs = rng.generator(0, "weights"), rng.generator(0, "weights")
    torch.testing.assert_close(
        rng.normal(*shape, generator=ours), torch.randn(shape, generator=theirs), rtol=0, atol=2e-6
    )
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("n, digest", [(16, "6355eab104eff073"), (1000, "234634ee7d2fb586")])
def test_normal_draws_are_the_same_bits_on_every_processor(n, digest):
    draws = rng.normal(n, generator=rng.generator(0, "weights"))
    assert draws.dtype == torch.float32
    assert hashlib.sha256(draws.numpy().tobytes()).hexdigest()[:16] == digest


def test_normal_draws_of_another_default_dtype_are_torch_s():
    torch.set_default_dtype(torch.float64)
    try:
        ours = rng.normal(100, generator=rng.generator(0, "weights"))
        assert torch.equal(ours, torch.randn(100, generator=rng.generator(0, "weights")))
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_process_draws_the_same():
    code = "import torch; from mmlib.rng import generator; print(torch.rand(5, generator=generator(7, 'é')).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == str(torch.rand(5, generator=rng.generator(7, "é")).tolist())


def test_one_seed_and_stream_give_one_sequence():
    assert draws(3, "batches") == draws(3, "batches")


pairs = st.tuples(st.integers(), st.text(st.characters(codec="utf-8"), min_size=1))


@settings(max_examples=50)
@given(pairs, pairs)
def test_another_seed_or_stream_gives_another_sequence(a, b):
    assert (rng.generator(*a).initial_seed() == rng.generator(*b).initial_seed()) == (a == b)


@pytest.mark.parametrize("a, b", [((0, "weights"), (0, "batches")), ((0, "weights"), (1, "weights"))])
def test_streams_are_uncorrelated(a, b):
    n = 100_000
    x, y = (rng.normal(n, generator=rng.generator(*s)).double() for s in (a, b))
    for lag in range(3):
        assert abs(float((x[lag:] * y[: n - lag]).mean())) < 4 / n**0.5
    assert abs(float(x.mean())) < 4 / n**0.5


def test_a_seed_and_its_negative_are_two():
    assert len({rng.generator(seed, "weights").initial_seed() for seed in (-2, -1, 0, 1, 2)}) == 5


def test_seeds_fit_what_a_generator_takes():
    for seed in (-1, 0, 2**100):
        assert 0 <= rng.generator(seed, "x").initial_seed() < 2**63


def test_more_weights_do_not_shift_the_batches():
    def contexts(width):
        MLP(width=width).build(rng.generator(0, "weights"))
        data = Examples(torch.arange(300).view(100, 3), torch.arange(100))
        return [b.contexts.tolist() for b in minibatches(data, 4, 3, generator=rng.generator(0, "batches"))]

    assert contexts(5) == contexts(50)


def test_normal_is_torch_randn_of_the_generator():
    x = rng.normal(2, 3, generator=rng.generator(0, "x"))
    assert torch.equal(x, torch.randn(2, 3, generator=rng.generator(0, "x"))) and x.dtype == torch.float32


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError, match=rf"seed: an integer is needed, got {seed!r}"):
        rng.generator(seed, "weights")


def test_a_stream_without_a_name_is_refused():
    with pytest.raises(TypeError, match=r"stream: .*'weights'.* got None"):
        rng.generator(0, None)
    with pytest.raises(ValueError, match="stream: the name is empty"):
        rng.generator(0, "")


def test_given_hands_back_the_generator_itself():
    g = torch.Generator()
    assert rng.given(g) is g


RANDOM = {
    "given": lambda g: rng.given(g),
    "normal": lambda g: rng.normal(2, generator=g),
    "VarianceScaling normal": lambda g: LECUN(2, 3, generator=g),
    "VarianceScaling uniform": lambda g: VarianceScaling(law="uniform")(2, 3, generator=g),
    "Orthogonal": lambda g: Orthogonal()(2, 3, generator=g),
    "Linear": lambda g: Linear(2, 3, generator=g),
    "Embedding": lambda g: Embedding(2, 3, generator=g),
    "Maxout": lambda g: Maxout(2, 3, 2, generator=g),
    "MLP": lambda g: MLP(activation=TANH).build(g),
    "split": lambda g: split(["a", "b"], 0.5, 0.5, generator=g),
    "minibatches": lambda g: minibatches(EXAMPLES, 2, 2, generator=g),
    "minibatches of several": lambda g: minibatches(EXAMPLES, 2, 2, generator=[torch.Generator(), g]),
    "sample": lambda g: sample(MODEL, Vocabulary((".", "a")), 3, generator=g),
}


@pytest.mark.parametrize("use", RANDOM.values(), ids=RANDOM)
@pytest.mark.parametrize("wrong", [None, 0])
def test_randomness_without_a_generator_is_refused(use, wrong):
    with pytest.raises(TypeError, match=rf"generator: a torch.Generator is needed, such as .* got {wrong}"):
        use(wrong)


@pytest.mark.parametrize("use", [LECUN, Orthogonal(), Linear, Embedding, Maxout], ids=str)
def test_a_generator_that_is_left_out_is_refused(use):
    with pytest.raises(TypeError, match="generator"):
        use(2, 3)


# Edges


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_an_integer_of_any_library_is_a_seed(three):
    assert torch.equal(generator(three, "x").get_state(), generator(3, "x").get_state())


@pytest.mark.parametrize("seed", [True, 3.0, np.float64(3), "3", None, torch.tensor(3.0)])
def test_what_is_no_integer_is_no_seed(seed):
    with pytest.raises(TypeError, match="seed: an integer is needed, got"):
        generator(seed, "x")
