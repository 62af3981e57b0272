import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib import rng
from mmlib.activations import ELU, RELU, TANH
from mmlib.data import Vocabulary
from mmlib.init import LECUN, PYTORCH, Orthogonal, kaiming
from mmlib.models import MLP, sample
from mmlib.norm import BatchNorm1d, RMSNorm
from mmlib.rng import generator
from tests.small import mlp, randn

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def weights(seed=0):
    return rng.generator(seed, "weights")


SMALL = {"block_size": 2, "embedding": 3, "width": 5, "depth": 2}


def test_the_layers_have_names_in_order():
    assert list(MLP(**SMALL).build(weights())._modules) == [
        *("embedding", "flatten", "linear1", "act1", "linear2", "act2", "output")
    ]
    assert list(MLP(**SMALL, norm=nn.LayerNorm).build(weights())._modules) == [
        *("embedding", "flatten", "linear1", "norm1", "act1", "linear2", "norm2", "act2", "output")
    ]


def test_the_parameters_have_their_shapes():
    shapes = {name: tuple(p.shape) for name, p in MLP(**SMALL).build(weights()).named_parameters()}
    assert shapes == {
        "embedding.weight": (27, 3),
        "linear1.weight": (5, 6),
        "linear1.bias": (5,),
        "linear2.weight": (5, 5),
        "linear2.bias": (5,),
        "output.weight": (27, 5),
        "output.bias": (27,),
    }


@pytest.mark.parametrize("activation", [TANH, RELU, ELU], ids=lambda a: a.name)
def test_the_output_is_the_equations_written_out(activation, symbols):
    model = MLP(**SMALL, activation=activation).build(weights())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(rng.normal(*p.shape, generator=weights(1)))
    p = dict(model.named_parameters())
    x = symbols(7, 2)
    h = p["embedding.weight"][x].reshape(7, 6)
    for k in (1, 2):
        h = activation(F.linear(h, p[f"linear{k}.weight"], p[f"linear{k}.bias"]))
    torch.testing.assert_close(model(x), F.linear(h, p["output.weight"], p["output.bias"]))


def test_a_norm_stands_before_the_activation_and_takes_the_place_of_the_bias(symbols):
    model = MLP(**SMALL, norm=nn.LayerNorm).build(weights())
    assert model.linear1.bias is None and model.linear2.bias is None and model.output.bias is not None
    assert model.norm1.normalized_shape == (5,)
    x = symbols(7, 2)
    before = model[:3](x)
    torch.testing.assert_close(model[:5](x), torch.tanh(F.layer_norm(before, (5,))))


def test_weights_are_drawn_from_the_input_on_by_the_scheme():
    model, g = MLP(**SMALL, init=PYTORCH, confidence=0.5).build(weights()), weights()
    assert torch.equal(model.embedding.weight, rng.normal(27, 3, generator=g))
    assert torch.equal(model.linear1.weight, PYTORCH(5, 6, generator=g))
    assert torch.equal(model.linear2.weight, PYTORCH(5, 5, generator=g))
    assert torch.equal(model.output.weight, 0.5 * PYTORCH(27, 5, generator=g))
    assert not any(model.get_parameter(f"{name}.bias").any() for name in ("linear1", "linear2", "output"))


@pytest.mark.parametrize("init", [LECUN, kaiming(RELU), Orthogonal()], ids=repr)
def test_confidence_scales_the_first_logits_and_nothing_else(init, symbols):
    x = symbols(9, 3)
    one, tenth, none = (MLP(init=init, confidence=c).build(weights()) for c in (1.0, 0.1, 0.0))
    torch.testing.assert_close(tenth(x), 0.1 * one(x))
    assert not none(x).any()
    for name, p in one.named_parameters():
        if name != "output.weight":
            assert torch.equal(p, tenth.get_parameter(name))


def test_one_generator_builds_one_model():
    recipe = MLP(**SMALL)
    a, b, c = (recipe.build(weights(s)).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["linear1.weight"], c["linear1.weight"])


def test_without_hidden_layers_the_embedding_feeds_the_logits(symbols):
    model = MLP(**SMALL | {"depth": 0}).build(weights())
    assert list(model._modules) == ["embedding", "flatten", "output"] and model(symbols(4, 2)).shape == (4, 27)


def test_a_new_model_is_in_training_mode_and_all_of_it_learns():
    model = MLP(**SMALL).build(weights())
    assert model.training and all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_the_smallest_recipe_is_a_model(symbols):
    recipe = MLP(tokens=1, block_size=1, embedding=1, width=1, depth=0, confidence=0)
    assert recipe.build(weights())(symbols(4, 1, tokens=1)).shape == (4, 1)


def test_the_recipe_of_the_book_is_a_frozen_value():
    assert MLP() == MLP(27, 3, 10, 100, 5, TANH, LECUN, None, 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MLP().depth = 6


@pytest.mark.parametrize("name", ["tokens", "block_size", "embedding", "width"])
@pytest.mark.parametrize("size", [0, -2])
def test_a_size_below_one_is_refused(name, size):
    with pytest.raises(ValueError, match=f"{name}: at least 1 is needed, got {size}"):
        MLP(**{name: size})


@pytest.mark.parametrize("name, value", [("depth", -1), ("confidence", -0.1), ("confidence", float("nan"))])
def test_a_negative_depth_or_confidence_is_refused(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}: 0 or more is needed, got {value}")):
        MLP(**{name: value})


# Sampling

ABC = Vocabulary((".", "a", "b", "c"))


class Speller(nn.Module):
    """Spells one name and then nothing but boundaries; remembers the contexts it was given."""

    def __init__(self, name):
        super().__init__()
        self.tokens, self.contexts = [*ABC.encode(name), 0], []

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.contexts.append(x.tolist())
        return 1e4 * F.one_hot(torch.tensor([self.tokens[len(self.contexts) - 1]]), 4).float()


def test_a_name_is_spelt_from_the_characters_before():
    speller = Speller("cab")
    assert sample(speller, ABC, 2, generator=weights()) == "cab"
    assert speller.contexts == [[[0, 0]], [[0, 3]], [[3, 1]], [[1, 2]]]


def test_a_long_name_is_cut_off_too():
    assert len(sample(Speller("a" * 400), ABC, 2, generator=weights(), max_length=300)) == 300


def test_a_generator_is_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        sample(Speller("a"), ABC, 2, weights())


def test_a_name_may_be_empty_and_is_cut_off():
    assert sample(Speller(""), ABC, 2, generator=weights()) == ""
    assert sample(Speller("abcabc"), ABC, 2, generator=weights(), max_length=4) == "abca"
    assert len(sample(Speller("a" * 99), ABC, 2, generator=weights())) == 30


def test_characters_come_with_their_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])

    class Constant(nn.Module):
        def forward(self, x):
            return probabilities.log().expand(len(x), -1)

    g = weights()
    drawn = "".join(sample(Constant(), ABC, 1, generator=g) + "." for _ in range(2000))
    for character, p in zip(ABC.characters, probabilities.tolist(), strict=True):
        assert abs(drawn.count(character) - p * len(drawn)) < 4 * (len(drawn) * p * (1 - p)) ** 0.5


def test_one_generator_gives_one_sequence_of_names(corpus):
    model = MLP(width=8, depth=1).build(weights())
    a, b = ([sample(model, corpus.vocabulary, 3, generator=g) for _ in range(5)] for g in (weights(1), weights(1)))
    assert a == b and len(set(a)) > 1 and set("".join(a)) <= set(corpus.vocabulary.characters[1:])


def test_sampling_leaves_the_model_as_it_was(corpus):
    model = MLP(width=8, depth=1, norm=nn.BatchNorm1d).build(weights())
    model.act1.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    sample(model, corpus.vocabulary, 3, generator=weights(1))
    assert model.training and not model.act1.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_block_of_one_is_enough_to_sample():
    speller = Speller("ab")
    assert sample(speller, ABC, 1, generator=weights()) == "ab" and speller.contexts == [[[0]], [[1]], [[2]]]


def test_sampling_with_a_block_size_below_one_is_refused():
    speller = Speller("a")
    with pytest.raises(ValueError, match="block_size: at least 1 is needed, got 0"):
        sample(speller, ABC, 0, generator=weights())
    assert speller.contexts == []


def test_sampling_with_another_block_size_is_refused(corpus):
    with pytest.raises(ValueError, match=r"Linear: input \(1, 40\) does not fit weight"):
        sample(MLP(width=8, depth=1).build(weights()), corpus.vocabulary, 4, generator=weights(1))


# Edges


def test_a_layer_is_no_maker_of_layers():
    with pytest.raises(TypeError, match=r"norm: what makes a layer for a width is needed, .* got BatchNorm1d\(100"):
        MLP(norm=BatchNorm1d(100))
    for confidence in (math.nan, float("inf"), -1.0):
        with pytest.raises(ValueError, match=f"confidence: 0 or more is needed, got {confidence}"):
            MLP(confidence=confidence)


def test_names_from_logits_that_are_not_finite_are_refused(corpus):
    model = mlp()
    with torch.no_grad():
        model.output.bias[3] = math.nan
    with pytest.raises(ValueError, match=r"sample: the logits after .* are not finite"):
        sample(model, corpus.vocabulary, 3, generator=generator(0, "s"))


def test_a_network_with_rms_norm_is_odd_up_to_its_output_bias():
    """Why a norm does not make a bias redundant in general."""
    model = mlp(norm=RMSNorm)
    x = randn(5, 30)
    with torch.no_grad():
        torch.testing.assert_close(model[2:](x), -model[2:](-x))
