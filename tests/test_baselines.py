import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.data import (
    Examples,
    Vocabulary,
    counting_floor,
    counting_loss,
    examples,
)

pytestmark = pytest.mark.usefixtures("no_global_randomness")

TINY = ["ab", "b", "aab"]
VOCABULARY = Vocabulary((".", "a", "b"))


def brute_force_floor(names, order, block_size):
    """-1/N sum log(count(context, target) / count(context)), by dictionaries of strings."""
    follows = defaultdict(Counter)
    for name in names:
        padded = "." * block_size + name + "."
        for i in range(block_size, len(padded)):
            follows[padded[i - order : i]][padded[i]] += 1
    total = sum(c.total() for c in follows.values())
    return -sum(n * math.log(n / c.total()) for c in follows.values() for n in c.values()) / total


@pytest.mark.parametrize("order", range(4))
def test_the_floor_is_that_of_brute_force(order, names):
    for some in (TINY, names[::100]):
        floor = counting_floor(examples(some, Vocabulary.of(some), 3), order)
        assert floor == pytest.approx(brute_force_floor(some, order, 3), rel=1e-12)


def test_the_floor_without_context_is_the_unigram_entropy():
    source = Examples(torch.zeros(8, 1, dtype=torch.long), torch.tensor([0, 0, 0, 0, 1, 1, 2, 3]))
    assert counting_floor(source, 0) == pytest.approx(1.75 * math.log(2), rel=1e-12)


def test_the_floor_of_equally_frequent_symbols_is_the_logarithm_of_their_number():
    source = Examples(torch.zeros(54, 2, dtype=torch.long), torch.arange(54) % 27)
    assert counting_floor(source, 2) == pytest.approx(math.log(27), rel=1e-12)


def test_the_floor_of_what_is_certain_is_zero():
    assert counting_floor(examples(["ab"], VOCABULARY, 2), 1) == 0


@given(st.lists(st.text("ab", max_size=6), min_size=1, max_size=8))
def test_more_context_never_raises_the_floor(names):
    source = examples(names, VOCABULARY, 3)
    floors = [counting_floor(source, order) for order in range(4)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(floors)) and floors[0] <= math.log(3) + 1e-12


def test_a_model_of_smoothed_counts_by_hand():
    seen, source = examples(["ab", "b"], VOCABULARY, 1), examples(["a"], VOCABULARY, 1)
    # after ".": a once, b once; after "a": b once. "a" asks for a after "." and "." after a.
    assert counting_loss(seen, source, 1, tokens=3) == pytest.approx(-(math.log(2 / 5) + math.log(1 / 4)) / 2)
    assert counting_loss(seen, source, 1, tokens=3, smoothing=0.5) == pytest.approx(
        -(math.log(1.5 / 3.5) + math.log(0.5 / 2.5)) / 2
    )


@pytest.mark.parametrize("order", range(4))
def test_on_the_counted_data_the_loss_falls_to_the_floor_as_smoothing_vanishes(order, corpus):
    floor = counting_floor(corpus.dev, order)
    losses = [counting_loss(corpus.dev, corpus.dev, order, tokens=27, smoothing=s) for s in (1, 1e-2, 1e-9)]
    assert losses[0] > losses[1] > losses[2] > floor - 1e-12
    assert losses[2] == pytest.approx(floor, abs=1e-6)


def test_endless_smoothing_is_the_uniform_guess(corpus):
    assert counting_loss(corpus.train, corpus.dev, 2, tokens=27, smoothing=1e12) == pytest.approx(
        math.log(27), rel=1e-6
    )


def test_on_other_data_counts_do_worse_than_on_their_own(corpus):
    own, other = (counting_loss(corpus.train, part, 3, tokens=27) for part in (corpus.train, corpus.dev))
    assert counting_floor(corpus.train, 3) < own < other < math.log(27)


@pytest.mark.parametrize("order", [-1, 4])
def test_an_order_beyond_the_block_is_refused(order):
    source = examples(TINY, VOCABULARY, 3)
    message = f"order: 0 to block_size = 3 symbols of context are there, got {order}"
    with pytest.raises(ValueError, match=message):
        counting_floor(source, order)
    with pytest.raises(ValueError, match=message):
        counting_loss(source, source, order, tokens=3)


@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.nan])
def test_smoothing_that_is_not_positive_is_refused(smoothing):
    source = examples(TINY, VOCABULARY, 3)
    with pytest.raises(ValueError, match=f"smoothing: a positive number is needed, got {smoothing}"):
        counting_loss(source, source, 1, tokens=3, smoothing=smoothing)


def test_counts_of_a_symbol_outside_the_vocabulary_are_refused():
    source = examples(TINY, VOCABULARY, 3)
    with pytest.raises(ValueError, match="tokens: symbol 2 is outside the vocabulary, 0 to 1"):
        counting_loss(source, source, 1, tokens=2)


def test_counting_is_possible_at_any_order_and_kind_of_integer(names):
    from mmlib.data import Vocabulary

    data = examples(names[:2000], Vocabulary.of(names), 16)
    floors = [counting_floor(data, order) for order in range(17)]
    assert floors == sorted(floors, reverse=True) and floors[0] > 2 > floors[16]
    small = Examples(*(x.to(torch.uint8) for x in data))
    assert [counting_floor(small, order) for order in (0, 2, 9)] == [floors[order] for order in (0, 2, 9)]
    assert counting_loss(small, small, 2, tokens=27) == counting_loss(data, data, 2, tokens=27)
    assert counting_loss(data, data, 16, tokens=27, smoothing=1e-9) == pytest.approx(floors[16], abs=1e-6)
    one = Examples(torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert math.copysign(1, counting_floor(one, 2)) == 1


@pytest.mark.parametrize("smoothing", [math.inf, math.nan, 0.0, -1.0])
def test_smoothing_that_gives_no_probability_is_refused(smoothing, corpus):
    with pytest.raises(ValueError, match=f"smoothing: a positive number is needed, got {smoothing}"):
        counting_loss(corpus.dev, corpus.dev, 1, tokens=27, smoothing=smoothing)


def test_counts_of_nothing_and_of_negative_symbols_are_refused():
    none = Examples(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"data: targets of shape \(n,\) with n > 0 are needed, got \(0,\)"):
        counting_floor(none, 1)
    one = Examples(torch.tensor([[1, 2]]), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"data: targets of shape \(n,\) with n > 0 are needed, got \(0,\)"):
        counting_loss(one, none, 1, tokens=27)
    assert counting_loss(none, one, 1, tokens=27) == pytest.approx(math.log(27))
    with pytest.raises(ValueError, match="data: symbols of 0 or more are needed, got a negative one"):
        counting_floor(Examples(torch.tensor([[-1, 2]]), torch.tensor([1])), 1)
