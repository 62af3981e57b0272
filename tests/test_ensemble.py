import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn

from mmlib import ensemble, rng
from mmlib.activations import RELU, TANH, Activation
from mmlib.data import Examples, minibatches
from mmlib.ensemble import Ensemble, check_batch, repeated, stack, unstack
from mmlib.layers import Embedding, Flatten, Linear, Maxout, Nonlinearity
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d
from mmlib.rng import generator
from mmlib.train import train
from tests.small import equal, numbers, randn
from tests.small import mlp as small

pytestmark = pytest.mark.usefixtures("no_global_randomness")

R = 3


def mlp(r):
    return MLP(width=12, depth=2, activation=TANH).build(rng.generator(r, "weights"))


def maxout(r):
    g = rng.generator(r, "weights")
    return nn.Sequential(
        Embedding(27, 4, generator=g),
        Flatten(),
        nn.Sequential(Maxout(12, 9, 2, generator=g)),
        Linear(9, 27, generator=g),
    )


class Noted(nn.Module):
    """A layer with buffers: what it was given, and nothing."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("noted", torch.full((2,), float(value)))
        self.register_buffer("nothing", None)

    def forward(self, x):
        return x


def replicas(build=mlp):
    return [build(r) for r in range(R)]


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("build", [mlp, maxout])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_stacked_models_train_as_if_alone(build, dtype, tolerance, corpus):
    def streams():
        return [rng.generator(r, "batches") for r in range(R)]

    models = [m.to(dtype) for m in replicas(build)]
    stacked = stack(models)
    together = train(stacked, minibatches(corpus.train, 16, 200, generator=streams()), lr=0.1)
    assert together.loss.values.shape == (200, R)
    for r, (model, g, part) in enumerate(zip(models, streams(), unstack(stacked), strict=True)):
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        alone = train(model, minibatches(corpus.train, 16, 200, generator=g), lr=0.1)
        torch.testing.assert_close(together.loss.values[:, r], alone.loss.values, rtol=tolerance, atol=tolerance)
        for name, p in model.named_parameters():
            torch.testing.assert_close(part.get_parameter(name), p, rtol=tolerance, atol=tolerance)
            assert not torch.allclose(p, start[name], rtol=1e-3, atol=1e-3)


def test_stacking_gives_every_parameter_a_leading_axis():
    models = replicas()
    stacked = stack(models)
    assert isinstance(stacked, Ensemble) and stacked.replicas == R and f"replicas={R}" in repr(stacked)
    assert list(stacked.state_dict()) == list(models[0].state_dict())
    for name, p in stacked.named_parameters():
        assert p.is_leaf and p.requires_grad and p.shape[0] == R
        assert all(torch.equal(p[r], m.get_parameter(name)) for r, m in enumerate(models))
        # Only the matrices of a product lie as their gradients do.
        product = name.endswith(".weight") and name != "embedding.weight"
        assert (p.mT if product else p).is_contiguous() and p.is_contiguous() != product


def test_the_output_is_that_of_each_model(symbols):
    models, x = replicas(), symbols(R, 8, 3)
    y = stack(models)(x)
    for r, model in enumerate(models):
        torch.testing.assert_close(y[r], model(x[r]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [mlp, maxout])
@pytest.mark.parametrize("count", [1, R])
def test_unstacking_undoes_stacking(build, count):
    models = replicas(build)[:count]
    back = unstack(stack(models))
    assert len(back) == count
    for a, b in zip(models, back, strict=True):
        assert same(a, b) and repr(a) == repr(b) and type(b) is nn.Sequential
    again = stack(back)
    assert same(again, stack(models))


def test_stacking_copies():
    models = replicas()
    before = copy.deepcopy(models)
    stacked = stack(models)
    with torch.no_grad():
        for p in stacked.parameters():
            p.zero_()
    assert all(same(a, b) for a, b in zip(models, before, strict=True))
    assert all(p.grad is None for m in models for p in m.parameters())


def test_unstacking_copies():
    stacked = stack(replicas())
    before = copy.deepcopy(stacked)
    first, second, _ = unstack(stacked)
    with torch.no_grad():
        first.output.weight.zero_()
    assert same(stacked, before) and second.output.weight.any()


def test_buffers_are_stacked_too():
    models = [nn.Sequential(Noted(r)) for r in range(R)]
    stacked = stack(models)
    assert stacked[0].noted.tolist() == [[0, 0], [1, 1], [2, 2]] and stacked[0].nothing is None
    back = unstack(stacked)
    assert [m[0].noted.tolist() for m in back] == [[0, 0], [1, 1], [2, 2]]
    back[0][0].noted.fill_(9)
    assert stacked[0].noted[0].tolist() == [0, 0]


def test_a_frozen_parameter_stays_frozen(corpus):
    models = replicas()
    for model in models:
        model.embedding.weight.requires_grad_(False)
    stacked = stack(models)
    assert not stacked.embedding.weight.requires_grad and stacked.output.weight.requires_grad
    train(stacked, minibatches(corpus.dev, 8, 3, generator=[rng.generator(r, "b") for r in range(R)]), lr=0.1)
    for model, part in zip(models, unstack(stacked), strict=True):
        assert torch.equal(model.embedding.weight, part.embedding.weight) and not part.embedding.weight.requires_grad
        assert not torch.equal(model.output.weight, part.output.weight) and part.output.weight.requires_grad


def test_modes_are_carried():
    models = replicas()
    for model in models:
        model.eval()
        model.act1.train()
    stacked = stack(models)
    assert [m.training for m in stacked.modules()] == [m.training for m in models[0].modules()]
    for part in unstack(stacked):
        assert [m.training for m in part.modules()] == [m.training for m in models[0].modules()]


def refused(error, models, *words):
    before = copy.deepcopy(models)
    with pytest.raises(error) as raised:
        stack(models)
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert all(same(a, b) for a, b in zip(models, before, strict=True))


def test_no_models_are_refused():
    refused(ValueError, [], "models: at least one is needed, got R = 0")


def test_another_architecture_is_refused():
    for other in (MLP(width=13, depth=2), MLP(width=12, depth=1), MLP(width=12, depth=2, activation=RELU)):
        refused(
            ValueError, [mlp(0), other.build(rng.generator(0, "weights"))], "models[1]", "architecture", "models[0]"
        )


def test_the_first_model_is_what_another_architecture_is_compared_with():
    others = [MLP(width=width, depth=1).build(rng.generator(0, "weights")) for width in (5, 6, 7)]
    refused(ValueError, others, f"models[1] has another architecture than models[0]:\n{others[1]}\nis not\n{others[0]}")


@pytest.mark.parametrize("length", [1, 13])
def test_another_shape_that_the_architecture_does_not_say_is_refused(length):
    other = mlp(1)
    other.linear1.bias = nn.Parameter(torch.zeros(length))
    refused(ValueError, [mlp(0), other], "models[1]", "linear1.bias", f"({length},)", "(12,)")


def test_another_dtype_is_refused():
    refused(ValueError, [mlp(0), mlp(1), mlp(2).double()], "models[2]", "embedding.weight", "float64", "float32")


def test_another_mode_is_refused():
    refused(ValueError, [mlp(0), mlp(1).eval()], "models[1]", "mode")
    refused(ValueError, [mlp(0).eval(), mlp(1)], "models[1]", "mode")
    partly = mlp(1)
    partly.act1.eval()
    refused(ValueError, [mlp(0), partly], "models[1]", "mode")


def test_another_frozen_parameter_is_refused():
    other = mlp(1)
    other.embedding.weight.requires_grad_(False)
    refused(ValueError, [mlp(0), other], "models[1]", "embedding.weight", "frozen")
    refused(ValueError, [other, mlp(0)], "models[1]", "embedding.weight", "frozen")


def test_a_parameter_of_two_layers_is_refused():
    def tied(r):
        model = mlp(r)
        model.linear2.bias = model.linear1.bias
        return model

    refused(ValueError, replicas(tied), "models[0]", "linear1.bias", "linear2.bias")


def test_layers_of_torch_without_a_leading_axis_are_refused():
    with torch.random.fork_rng():
        layer = nn.Linear(2, 3)
    refused(TypeError, [nn.Sequential(layer)], "torch.nn.Linear", "leading axis")
    norm = MLP(width=4, depth=1, norm=nn.BatchNorm1d).build(rng.generator(0, "weights"))
    refused(TypeError, [norm], "norm1", "torch.nn.BatchNorm1d")


def test_what_is_no_sequence_of_layers_is_refused():
    refused(TypeError, [mlp(0), nn.Identity()], "models[1]", "nn.Sequential", "Identity")
    refused(TypeError, [stack([mlp(0)])], "models[0]", "Ensemble")
    with pytest.raises(TypeError, match="ensemble: a stacked model, made by stack, is needed, got Sequential"):
        unstack(mlp(0))


def batch(*leading):
    return Examples(torch.zeros(*leading, 3, dtype=torch.long), torch.zeros(leading, dtype=torch.long))


def test_a_batch_has_a_leading_axis_for_stacked_models_only():
    check_batch(mlp(0), batch(5))
    check_batch(stack(replicas()), batch(R, 5))
    for wrong, shape in ((batch(R, 5), "(3, 5, 3)"), (batch(), "(3,)")):
        with pytest.raises(ValueError, match=rf"batch: a single model needs .* got {re.escape(shape)}"):
            check_batch(mlp(0), wrong)
    for wrong in (batch(), batch(5), batch(2, 5), batch(R + 1, 5), batch(R, R, 5)):
        with pytest.raises(ValueError, match=r"batch: 3 stacked models need contexts \(3, batch, block\), got"):
            check_batch(stack(replicas()), wrong)


def test_hundreds_of_models_fit_their_batch():
    many = stack([nn.Sequential(Linear(1, 1, generator=rng.generator(0, "weights"))) for _ in range(300)])
    check_batch(many, batch(300, 2))


def test_examples_are_repeated_for_every_replica_without_a_copy():
    data = Examples(torch.arange(12).view(4, 3), torch.arange(4))
    assert repeated(data, mlp(0)) is data
    many = repeated(data, stack(replicas()))
    assert many.contexts.tolist() == [data.contexts.tolist()] * R and many.targets.tolist() == [[0, 1, 2, 3]] * R
    assert many.contexts.data_ptr() == data.contexts.data_ptr()


# The stack is proved on a probe


class Scaled(nn.Module):
    """A layer that does not know of a leading axis."""

    def __init__(self, shape=(8,)):
        super().__init__()
        self.g = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return x * self.g


class Times(nn.Module):
    """A layer whose function its repr does not tell."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Chained(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


class Named(nn.Sequential):
    pass


def with_layer(layer, r=0, at=4):
    layers = list(small(r))
    return nn.Sequential(*layers[:at], layer, *layers[at:])


@pytest.mark.parametrize("replicas", [2, 3, 8, 32])
@pytest.mark.parametrize("shape", [(8,), ()])
def test_a_layer_that_does_not_know_of_a_leading_axis_is_refused(replicas, shape):
    with pytest.raises((TypeError, ValueError), match="4: Scaled"):
        stack([with_layer(Scaled(shape), r) for r in range(replicas)])


def test_activations_of_one_name_and_two_functions_are_refused():
    named = Activation("tanh", lambda x: torch.tanh(x) * 1.01)
    models = [small(0), small(1), small(2, activation=named)]
    with pytest.raises(ValueError, match=r"act1: Nonlinearity gives models\[2\] another result in the stack"):
        stack(models)
    with pytest.raises(ValueError, match=r"4: Times gives models\[1\] another result"):
        stack([with_layer(Times(2)), with_layer(Times(3))])
    stack([with_layer(Times(2), 0), with_layer(Times(2), 1)])


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.Flatten(), nn.Softmax(0), nn.LogSoftmax(1)], ids=repr)
def test_layers_of_torch_that_name_an_axis_from_the_front_are_refused(layer):
    with pytest.raises((TypeError, ValueError), match=f"4: {type(layer).__name__}"):
        stack([with_layer(layer, r) for r in range(3)])


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.Tanh(), nn.Dropout(0.5), nn.Identity()], ids=repr)
def test_layers_of_torch_that_work_on_the_last_axes_are_stacked(layer, symbols):
    models = [with_layer(layer, r).eval() for r in range(3)]
    x = symbols(3, 5, 3)
    y = stack(models)(x)
    for r, model in enumerate(models):
        torch.testing.assert_close(y[r], model(x[r]))


@pytest.mark.parametrize(
    "register",
    [
        lambda layer: layer.register_forward_hook,
        lambda layer: layer.register_forward_pre_hook,
        lambda layer: layer.register_full_backward_hook,
        lambda layer: layer.register_full_backward_pre_hook,
        lambda layer: layer.weight.register_hook,
    ],
)
def test_a_hook_is_refused(register):
    models = [small(0), small(1)]
    register(models[0].linear1)(lambda *_: None)
    with pytest.raises(ValueError, match=r"models\[0\]: linear1 has a hook; remove it"):
        stack(models)


def test_a_sequence_with_a_forward_of_its_own_is_refused():
    with pytest.raises(TypeError, match=r"models\[0\]: Chained has a forward of its own, which would be lost"):
        stack([Chained(*small(r)) for r in range(2)])
    assert stack([Named(*small(r)) for r in range(2)]).replicas == 2


def test_a_probe_may_be_given_and_is_asked_for():
    class Pictures(nn.Module):
        def forward(self, x):
            if x.shape[-3:] != (2, 5, 7):
                raise ValueError("pictures")
            return x.flatten(-3)

    models = [nn.Sequential(Pictures(), Linear(70, 3, generator=generator(r, "w"))) for r in range(2)]
    with pytest.raises(ValueError, match=r"no input that models\[0\] takes was found .* stack\(models, probe="):
        stack(models)
    assert stack(models, probe=randn(4, 2, 5, 7))(randn(2, 4, 2, 5, 7)).shape == (2, 4, 3)


class Single(nn.Module):
    """A layer that works in float32 alone."""

    def forward(self, x):
        return x @ torch.eye(x.shape[-1])


class Cut(nn.Module):
    """A layer for batches of a multiple of 16."""

    def forward(self, x):
        return x - x.unflatten(-2, (-1, 16)).mean(-2).repeat_interleave(16, -2)


def test_layers_that_cut_up_the_batch_are_stacked_too():
    assert stack([with_layer(Cut(), r) for r in range(3)]).replicas == 3


def test_layers_that_know_one_dtype_are_stacked_too():
    assert stack([with_layer(Single(), r) for r in range(2)]).replicas == 2


def test_stacking_leaves_the_models_as_they_are():
    models = [with_layer(nn.Dropout(0.5), r) for r in range(3)]
    before, modes = [numbers(m) for m in models], [[m.training for m in x.modules()] for x in models]
    stack(models)
    assert all(equal(a, numbers(b)) for a, b in zip(before, models, strict=True))
    assert modes == [[m.training for m in x.modules()] for x in models]


def test_the_number_of_replicas_is_read_off(symbols):
    many = stack([small(r) for r in range(3)])
    assert many[:3].replicas == many[2:].replicas == copy.deepcopy(many).replicas == 3
    assert pickle.loads(pickle.dumps(many)).replicas == 3 and isinstance(many[:3], Ensemble)
    with pytest.raises(ValueError, match="ensemble: no layer has a parameter or buffer"):
        _ = many[1:2].replicas
    for add in (
        many.append,
        many.__iadd__,
        lambda layer: many.insert(0, layer),
        lambda layer: many.extend([layer]),
        lambda layer: many.__setitem__(0, layer),
    ):
        with pytest.raises(TypeError, match="ensemble: a stack takes no further layer"):
            add(Flatten())
    assert len(many) == 7


def test_a_nonlinearity_is_a_layer_of_the_stack():
    assert isinstance(stack([small(0), small(1)]).act1, Nonlinearity)


def test_copies_that_are_compared_differ_in_every_number_by_up_to_a_tenth_and_in_no_sign():
    model = small(norm=BatchNorm1d)
    a, b = (ensemble._disturbed(model, torch.float64, generator=generator(0, "probe")).state_dict() for _ in range(2))
    assert equal(a, b)  # by the generator alone
    g = generator(1, "probe")
    copies = [ensemble._disturbed(model, torch.float64, generator=g).state_dict() for _ in range(2)]
    for name, x in model.state_dict().items():
        if not x.is_floating_point():
            assert all(torch.equal(c[name], x) for c in copies)
            continue
        x, ys = x.double(), torch.stack([c[name] for c in copies])
        change = (ys - x) / torch.where(x == 0, 1.0, x.abs())
        assert ys.dtype == torch.float64 and (change > 0).all() and (change < 0.1).all() and change.max() > 0.05
        assert (ys[0] != ys[1]).all()
    assert ensemble._disturbed(model, None, generator=g).output.weight.dtype == torch.float32


def test_inputs_that_are_tried_are_features_and_blocks_of_symbols_of_the_size_of_its_layers():
    features, trailing, blocks = (10, 30, 8, 27), ((), (1,)), (1, 3, 2, 4, 5, 6, 7, 8)
    tried = list(ensemble._inputs(small().double(), 50, generator=generator(0, "probe")))
    expected = [(50, f, *more) for f in features for more in trailing] + [(50, block) for block in blocks]
    assert [tuple(x.shape) for x in tried] == expected
    assert all(x.dtype == torch.float64 for x in tried[:8]) and all(x.dtype == torch.int64 for x in tried[8:])
    assert {int(x.min()) for x in tried[9:]} == {0} and {int(x.max()) for x in tried[9:]} == {26}
    g = generator(0, "probe")
    few = nn.Sequential(Embedding(5, 3, generator=g), Flatten(), Linear(9, 4, generator=g))
    assert {int(x.max()) for x in ensemble._inputs(few, 50, generator=g) if not x.is_floating_point()} == {4}
    assert next(ensemble._inputs(nn.Sequential(BatchNorm1d(4)), 5, generator=g)).shape == (5, 4)
    of_one_axis = [x.shape for x in ensemble._inputs(nn.Sequential(BatchNorm1d(4)), 5, generator=g)][2:]
    assert of_one_axis == [(5, block) for block in range(1, 9)]
    assert list(ensemble._inputs(nn.Sequential(Flatten()), 5, generator=generator(0, "probe"))) == []


@pytest.mark.parametrize("count", [1, 3, 63, 64, 70])
def test_the_batch_that_is_tried_is_longer_than_the_stack_in_float64_first(count):
    tried = []

    class Never(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = object()  # so that each has to be proved

        def forward(self, x):
            tried.append((x.dtype, len(x)))
            raise ValueError("never")

    models = [nn.Sequential(Never(), Linear(2, 2, generator=generator(r, "w"))) for r in range(count)]
    with pytest.raises(ValueError, match="no input that models"):
        stack(models)
    rows = dict.fromkeys((count + 1, 64 if count < 64 else 128))
    floating = [t for t in dict.fromkeys(tried) if t[0].is_floating_point]
    assert floating == [(dtype, n) for dtype in (torch.float64, torch.float32) for n in rows]


def test_results_are_compared_as_far_as_their_rounding():
    def close(x, y):
        (agree,) = ensemble._close(x[None], y[None])
        return agree

    x = torch.tensor([3.0, 4.0])
    assert close(x, x * (1 + 1e-4)) and not close(x, x * (1 + 1e-3))
    assert close(1e6 * x, 1e6 * x + 100) and not close(x, x + 0.01)
    assert not close(1e-6 * x, 0 * x)
    odd = torch.tensor([math.nan, math.inf, 1.0])
    assert close(odd, odd) and not close(odd, torch.tensor([0.0, math.inf, 1.0]))
    assert close(odd[:2], odd[:2]) and not close(odd[:1], torch.tensor([math.inf]))
    assert not close(1e-6 * odd[::2], 2e-6 * odd[::2])
    whole = torch.arange(3)
    assert close(whole, whole.clone()) and not close(whole, whole + 1)
    assert close(torch.tensor(2.0), torch.tensor(2.0)) and close(x[:0], x[:0])
    large_and_small = torch.stack([1e6 * x, x])
    assert ensemble._close(large_and_small, large_and_small + 1) == [True, False]


def test_a_model_that_comes_again_is_proved_once_and_named_by_its_first_place():
    class Doubles(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            tried.append(tuple(x.shape[:-1]))
            return self.factor * x

    tried = []
    once, twice = (nn.Sequential(Linear(2, 2, generator=generator(0, "w")), Doubles(k)) for k in (1, 2))
    assert stack([once] * 5).replicas == 5
    assert (2, 3) in tried and (5, 6) not in tried  # two of them in the stack of the proof, a batch of three
    with pytest.raises(ValueError, match=r"models\[3\] another result"):
        stack([once, once, once, twice, twice])


class Says(nn.Module):
    """A layer that computes with an attribute of any kind."""

    def __init__(self, held, **others):
        super().__init__()
        self.held = held
        vars(self).update(others)

    def forward(self, x):
        held = self.held() if callable(self.held) else self.held
        if isinstance(held, (dict, set)):
            held = sum(held)
        elif isinstance(held, (list, tuple, str)):
            held = float(held[0])
        return x * held + (isinstance(held, bool) or hasattr(self, "more"))


class Twice(Says):
    def forward(self, x):
        return 2 * super().forward(x)

    def _get_name(self):
        return "Says"


def test_a_layer_that_differs_from_all_before_it_is_proved():
    def refused(*layers):
        with pytest.raises(ValueError, match=r"2: Says gives models\[4\] another result"):
            stack([nn.Sequential(*small(r)[:2], layer) for r, layer in enumerate(layers)])

    def ten():
        return 10

    for one, other in (
        (2, 3),
        (2.0, 2.5),
        ("2", "3"),
        (1, True),
        ((2,), (3,)),
        ([2], [3]),
        ({2}, {3}),
        ({2: 1}, {3: 1}),
        ({2}, set()),
        (set(), {2}),
        (torch.tensor(2.0), torch.tensor(3.0)),
        (ten, lambda: 11),
        (2, 2.5),
        (3, 2),
    ):
        refused(*[Says(one)] * 4, Says(other), Says(one))
    refused(*[Says(2)] * 4, Twice(2))
    refused(*[Says(2)] * 4, Says(2, more=1))
    refused(*[Says(2, more=1)] * 4, Says(2))


def test_a_layer_like_one_before_it_is_not_proved_again(monkeypatch):
    def proved(*layers):
        seen.clear()
        stack([nn.Sequential(Linear(2, 2, generator=generator(r, "w")), layer) for r, layer in enumerate(layers)])
        return seen

    def noted(models, x, places):
        seen.extend(places)
        compare(models, x, places)

    def half():
        return 0.5

    seen, compare = [], ensemble._compare
    monkeypatch.setattr(ensemble, "_compare", noted)
    assert proved(*(Says(2) for _ in range(5))) == [0, 1]
    assert proved(*(Says(float("2.5"), more="x") for _ in range(5))) == [0, 1]
    assert proved(*(Says(half, more={}) for _ in range(3))) == [0, 1]  # one function, and hooks that are not there
    # Equal, for all that is known, or not: then it is proved.
    assert proved(*(Says(2, more=[]) for _ in range(4))) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"models\[1\] another"):
        proved(Says(2), *(Says(k) for k in (3, 3, 2, 4, 4, 4)))
    assert seen == [0, 1, 4]


@pytest.mark.parametrize("times", [2, 4])
def test_one_model_many_times_is_proved_with_a_leading_axis(times):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.g * x  # in a stack of one, too

    with pytest.raises(TypeError, match="does not take a leading axis, one for each model: "):
        stack([nn.Sequential(Linear(2, 2, generator=generator(0, "w")), Scale())] * times)


def test_a_probe_that_is_refused_is_told_with_the_reason():
    with pytest.raises(ValueError, match=r"probe: models\[0\] does not take it: .*symbol 99") as error:
        stack([small(0), small(1)], probe=torch.full((4, 3), 99))
    assert isinstance(error.value.__cause__, ValueError)


def test_a_probe_is_left_as_it_is():
    class Doubled(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    probe = torch.ones(4, 3)
    stack([nn.Sequential(Doubled()) for _ in range(2)], probe=probe)
    assert torch.equal(probe, torch.ones(4, 3))


def test_a_slice_that_does_not_know_its_length_can_be_looked_at():
    stacked = stack([small(r) for r in range(2)])
    assert "Flatten" in repr(stacked[1:2]) and "replicas" not in repr(stacked[1:2])
    with pytest.raises(ValueError, match="no layer has a parameter or buffer"):
        stacked[1:2].replicas  # noqa: B018


def test_probe_and_generators_are_given_by_name():
    calls = (
        lambda: stack([small()], None),
        lambda: ensemble._inputs(small(), 1, None),
        lambda: ensemble._disturbed(small(), None, None),
    )
    for call in calls:
        with pytest.raises(TypeError, match="positional argument"):
            call()


def test_a_hook_of_the_model_itself_is_refused():
    model = small()
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"models\[0\]: it has a hook"):
        stack([model])


class InTraining(Scaled):
    """A layer that does not know of a leading axis, in training mode alone."""

    def forward(self, x):
        return super().forward(x) if self.training else x


def test_a_layer_is_compared_in_the_mode_it_is_in():
    with pytest.raises((TypeError, ValueError), match="4: InTraining"):
        stack([with_layer(InTraining(), r) for r in range(3)])
    assert stack([with_layer(InTraining(), r).eval() for r in range(3)]).replicas == 3


class Squash(nn.Module):
    def forward(self, x):
        return x.sum(-1) if x.dim() == 3 else x


def test_a_layer_that_loses_an_axis_is_refused():
    with pytest.raises(ValueError, match=r"4: Squash gives models\[0\] another result"):
        stack([with_layer(Squash(), r) for r in range(3)])
