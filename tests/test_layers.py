

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import skip_init

from mmlib import rng
from mmlib.activations import ACTIVATIONS, TANH
from mmlib.ensemble import stack
from mmlib.init import PYTORCH, Orthogonal
from mmlib.layers import Embedding, Flatten, Linear, Maxout, Nonlinearity, cross_entropy
from tests.small import mlp, randn

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def weights():
    return rng.generator(0, "weights")


def randomise(module, normal):
    """Float64 and random parameters, loaded through the state dict."""
    module.double().load_state_dict({name: normal(*p.shape) for name, p in module.state_dict().items()})
    return module


def gradients(module, x, cotangent):
    """The output, and the gradients of the input, if it has one, and of every parameter by name."""
    parameters = dict(module.named_parameters())
    inputs = [x.clone().requires_grad_()] if x.is_floating_point() else []
    y = module(inputs[0] if inputs else x)
    grads = torch.autograd.grad(y, [*inputs, *parameters.values()], cotangent)
    return y, grads[: len(inputs)], dict(zip(parameters, grads[len(inputs) :], strict=True))


def assert_same(ours, theirs, x, cotangent):
    for a, b in zip(gradients(ours, x, cotangent), gradients(theirs, x, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(6,), (2, 6), (3, 2, 6)])
def test_linear_is_torch_linear(bias, leading, normal):
    ours = randomise(Linear(4, 5, bias=bias, generator=weights()), normal)
    theirs = skip_init(nn.Linear, 4, 5, bias=bias, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, normal(*leading, 4), normal(*leading, 5))


@pytest.mark.parametrize("leading", [(6,), (6, 3), (2, 6, 3)])
def test_embedding_is_torch_embedding(leading, normal, symbols):
    ours = randomise(Embedding(27, 5, generator=weights()), normal)
    theirs = skip_init(nn.Embedding, 27, 5, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, symbols(*leading), normal(*leading, 5))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_nonlinearity_is_the_activation(activation, normal):
    x = normal(2, 6, 4)
    assert torch.equal(Nonlinearity(activation)(x), activation(x))
    assert not list(Nonlinearity(activation).parameters())


def test_flatten_is_torch_flatten_of_the_last_two_axes(normal):
    x = normal(6, 3, 4)
    assert torch.equal(Flatten()(x), nn.Flatten()(x))
    assert torch.equal(Flatten()(x.view(2, 3, 3, 4)), nn.Flatten()(x).view(2, 3, 12))
    assert Flatten()(torch.zeros(3, 4)).shape == (12,)


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_maxout_is_the_largest_of_its_affine_functions(pieces, normal):
    ours = randomise(Maxout(4, 5, pieces, generator=weights()), normal)
    x, cotangent = normal(6, 4), normal(6, 5)
    w, b = ours.affine.weight.view(5, pieces, 4), ours.affine.bias.view(5, pieces)
    y, (x_grad,), grads = gradients(ours, x, cotangent)
    every = torch.einsum("ni,jki->njk", x, w) + b
    torch.testing.assert_close(y, every.amax(-1), rtol=1e-12, atol=1e-12)
    wins = torch.nn.functional.one_hot(every.argmax(-1), pieces).double() * cotangent[..., None]
    torch.testing.assert_close(x_grad, torch.einsum("njk,jki->ni", wins, w), rtol=1e-12, atol=1e-12)
    expected = torch.einsum("njk,ni->jki", wins, x).reshape(5 * pieces, 4)
    torch.testing.assert_close(grads["affine.weight"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads["affine.bias"], wins.sum(0).flatten(), rtol=1e-12, atol=1e-12)


LAYERS = {
    "Linear": (lambda: Linear(4, 5, generator=weights()), lambda n, s: n(3, 6, 4), (3, 6, 5)),
    "Linear without bias": (lambda: Linear(4, 5, bias=False, generator=weights()), lambda n, s: n(3, 6, 4), (3, 6, 5)),
    "Maxout": (lambda: Maxout(4, 5, 2, generator=weights()), lambda n, s: n(3, 6, 4), (3, 6, 5)),
    "Embedding": (lambda: Embedding(27, 4, generator=weights()), lambda n, s: s(3, 6, 2), (3, 6, 2, 4)),
    "Embedding of one": (lambda: Embedding(27, 4, generator=weights()), lambda n, s: s(3, 1, 1), (3, 1, 1, 4)),
}


@pytest.mark.parametrize("build, inputs, shape", LAYERS.values(), ids=LAYERS)
def test_parameters_with_a_leading_axis_are_so_many_layers(build, inputs, shape, normal, symbols):
    singles = [randomise(build(), normal) for _ in range(3)]
    stacked = build().double()
    for name, p in list(stacked.named_parameters()):
        owner = stacked.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(torch.stack([m.get_parameter(name) for m in singles])))
        assert p.shape == stacked.get_parameter(name).shape[1:]
    x, cotangent = inputs(normal, symbols), normal(*shape)
    y, x_grad, grads = gradients(stacked, x, cotangent)
    for r, single in enumerate(singles):
        y_r, x_grad_r, grads_r = gradients(single, x[r], cotangent[r])
        torch.testing.assert_close(y[r], y_r, rtol=1e-12, atol=1e-12)
        for a, b in zip(x_grad, x_grad_r, strict=True):
            torch.testing.assert_close(a[r], b, rtol=1e-12, atol=1e-12)
        for name in grads:
            torch.testing.assert_close(grads[name][r], grads_r[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4), (1, 6, 4), (3, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_each_replica_has_its_own_weights_and_bias_also_where_the_batch_is_as_long_as_the_ensemble(shape, bias, normal):
    layer = Linear(4, 5, bias=bias, generator=weights()).double()
    layer.weight, x = nn.Parameter(normal(3, 5, 4)), normal(*shape)
    if bias:
        layer.bias = nn.Parameter(normal(3, 5))
    for r, y in enumerate(layer(x)):
        alone = x if len(shape) == 2 else x[min(r, len(x) - 1)]
        expected = alone @ layer.weight[r].T + (layer.bias[r] if bias else 0)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_axes_before_those_of_the_replicas_broadcast(normal):
    layer = Linear(4, 5, generator=weights()).double()
    layer.weight, layer.bias, x = nn.Parameter(normal(3, 5, 4)), nn.Parameter(normal(3, 5)), normal(3, 3, 6, 4)
    torch.testing.assert_close(layer(x), torch.stack([layer(part) for part in x]), rtol=1e-12, atol=1e-12)


def test_stacked_layers_are_one_product_with_the_bias_in_it(normal):
    layer = Linear(4, 5, generator=weights()).double()
    layer.weight, layer.bias = nn.Parameter(normal(300, 5, 4)), nn.Parameter(normal(300, 5))
    assert layer(normal(300, 6, 4)).grad_fn.name() == "BaddbmmBackward0"


@pytest.mark.parametrize("leading", [(), (3,)])
def test_every_symbol_has_its_vector_and_a_batch_without_examples_none(leading, normal):
    layer = Embedding(27, 5, generator=weights())
    layer.weight = nn.Parameter(normal(*leading, 27, 5))
    every = torch.arange(27).expand(*leading, 1, 27)
    assert torch.equal(layer(every).squeeze(-3), layer.weight)
    assert layer(every[..., :0, :]).shape == (*leading, 0, 27, 5)


def test_a_layer_starts_with_the_weights_of_its_scheme_and_no_bias():
    layer = Linear(4, 5, init=PYTORCH, generator=weights())
    assert torch.equal(layer.weight, PYTORCH(5, 4, generator=weights())) and not layer.bias.any()
    assert torch.equal(Embedding(27, 5, generator=weights()).weight, rng.normal(27, 5, generator=weights()))
    maxout = Maxout(4, 5, 3, init=Orthogonal(), generator=weights())
    assert torch.equal(maxout.affine.weight, Orthogonal()(15, 4, generator=weights())) and not maxout.affine.bias.any()


def test_layers_are_made_float32_with_parameters_that_learn():
    for layer in (Linear(4, 5, generator=weights()), Embedding(27, 5, generator=weights())):
        assert all(p.dtype == torch.float32 and p.requires_grad and p.is_leaf for p in layer.parameters())


def test_a_layer_says_what_it_is():
    assert repr(Linear(4, 5, bias=False, generator=weights())) == "Linear(4, 5, bias=False)"
    assert repr(Embedding(27, 5, generator=weights())) == "Embedding(27, 5)"
    assert repr(Nonlinearity(TANH)) == "Nonlinearity(tanh)"
    assert "pieces=3" in repr(Maxout(4, 5, 3, generator=weights()))
    assert "pieces=2" in repr(Maxout(4, 5, generator=weights()))
    linear, embedding = Linear(4, 5, generator=weights()), Embedding(27, 5, generator=weights())
    for layer in (linear, embedding):
        layer.weight = nn.Parameter(torch.stack([layer.weight] * 3))
    assert repr(linear) == "Linear(4, 5, bias=True)" and repr(embedding) == "Embedding(27, 5)"


@pytest.mark.parametrize("layer, sizes", [(Linear, (4, 5)), (Embedding, (27, 5)), (Maxout, (4, 5, 2))])
def test_a_generator_is_given_by_name(layer, sizes):
    with pytest.raises(TypeError, match="positional"):
        layer(*sizes, weights())


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("bad", [-1, 27, 28])
def test_a_context_outside_the_vocabulary_is_refused(leading, bad, normal, symbols):
    layer = Embedding(27, 5, generator=weights())
    layer.weight = nn.Parameter(normal(*leading, 27, 5))
    x = symbols(*leading, 6, 3)
    x[..., 0, :] = 0
    x[(*[1] * len(leading), 4, 2)] = bad
    x[(*[1] * len(leading), 5, 0)] = 99 if bad > 0 else -9
    where = str([*[1] * len(leading), 4, 2])
    with pytest.raises(ValueError) as error:
        layer(x)
    assert str(error.value) == f"symbol {bad} at position {where} is outside the vocabulary, 0 to 26"


@pytest.mark.parametrize("bad", [-1, 27])
def test_one_symbol_just_outside_is_refused_in_a_stack_too(bad, normal):
    layer = Embedding(27, 5, generator=weights())
    layer.weight = nn.Parameter(normal(2, 27, 5))
    x = torch.zeros(2, 6, 3, dtype=torch.long)
    x[1, 4, 2] = bad
    with pytest.raises(ValueError, match=rf"symbol {bad} at position \[1, 4, 2\] is outside the vocabulary, 0 to 26"):
        layer(x)


def test_inputs_of_another_width_are_refused(normal):
    with pytest.raises(ValueError, match=r"Linear: input \(6, 3\) does not fit weight \(5, 4\)"):
        Linear(4, 5, generator=weights())(torch.zeros(6, 3))


def test_inputs_for_another_number_of_replicas_are_refused(normal, symbols):
    layer = Linear(4, 5, bias=False, generator=weights())
    layer.weight = nn.Parameter(normal(3, 5, 4))
    with pytest.raises(ValueError, match=r"Linear: input \(2, 6, 4\) does not fit weight \(3, 5, 4\)"):
        layer(normal(2, 6, 4))
    embedding = Embedding(27, 5, generator=weights())
    embedding.weight = nn.Parameter(normal(3, 27, 5))
    for shape in ((6, 3), (2, 6, 3), (4, 6, 3)):
        with pytest.raises(ValueError, match=r"Embedding: symbols .* do not fit weight \(3, 27, 5\)"):
            embedding(symbols(*shape))


def test_symbols_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match=r"Embedding: integer symbols are needed, got torch.float32"):
        Embedding(27, 5, generator=weights())(torch.zeros(6, 3))


def test_maxout_without_pieces_is_refused():
    with pytest.raises(ValueError, match="pieces: at least 1 is needed, got 0"):
        Maxout(4, 5, 0, generator=weights())


# Edges


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_symbols_and_targets_may_be_integers_of_any_kind(dtype):
    model, x, y = mlp(), torch.arange(6).view(2, 3).to(dtype), torch.tensor([3, 4])
    assert torch.equal(model(x), model(x.long()))
    torch.testing.assert_close(stack([model])(x[None])[0], model(x))
    logits = model(x)
    assert torch.equal(cross_entropy(logits, y.to(dtype)), F.cross_entropy(logits, y))
    torch.testing.assert_close(cross_entropy(logits[None], y.to(dtype)[None])[0], F.cross_entropy(logits, y))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.float32, torch.complex64], ids=str)
def test_what_are_no_integers_are_no_symbols_and_no_targets(dtype):
    with pytest.raises(ValueError, match=f"Embedding: integer symbols are needed, got {dtype}"):
        mlp()(torch.zeros(2, 3, dtype=dtype))
    with pytest.raises(ValueError, match=f"cross_entropy: integer targets are needed, got {dtype}"):
        cross_entropy(randn(2, 5), torch.zeros(2, dtype=dtype))


def test_a_loss_of_nothing_and_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"at least one example is needed, got targets \(0,\)"):
        cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"logits \(5,\) do not fit targets \(\)"):
        cross_entropy(torch.zeros(5), torch.tensor(1))
    with pytest.raises(ValueError, match=r"floating-point logits are needed, got torch\.int64"):
        cross_entropy(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"Flatten: at least two axes are needed, got \(3,\)"):
        Flatten()(torch.zeros(3))
