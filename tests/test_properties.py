"""Over shapes, dtypes, layouts and hostile values: the right answer or an error in words, never a nan without one.

Right is what plain float64 arithmetic, or torch's own layer, gives for the same numbers. A value that is nan or
infinite may come out as one; finite numbers in the range of their dtype may not.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from mmlib import backward, meanfield, stats
from mmlib.activations import ACTIVATIONS, TANH
from mmlib.data import Examples, counting_floor, counting_loss, minibatches
from mmlib.ensemble import repeated, stack, unstack
from mmlib.init import LECUN, PYTORCH, XAVIER, Orthogonal, VarianceScaling
from mmlib.layers import Embedding, Flatten, Linear, Maxout, Nonlinearity, cross_entropy
from mmlib.models import MLP
from mmlib.norm import BatchNorm1d, GroupNorm, LayerNorm, RMSNorm, moments, standardize
from mmlib.rng import generator
from mmlib.scalar import Value
from mmlib.trace import trace
from mmlib.train import evaluate, train

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = ("contiguous", "transposed", "expanded", "strided", "reversed")
HOSTILE = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e30, -1e30, 65504.0)

SCALES = st.sampled_from((1e-3, 1.0, 30.0))
dtypes = st.sampled_from(DTYPES)
sizes = st.integers(1, 6)
leads = st.sampled_from(((), (1,), (3,)))
seeds = st.integers(0, 2**16)


def laid_out(x, layout):
    """The same numbers in another layout; "expanded" repeats the first row."""
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "expanded":
        return x[..., :1, :].expand(x.shape)
    if layout == "strided":
        return torch.stack([x, x + 1], -1)[..., 0]
    if layout == "reversed":
        return x.flip(-1).contiguous().flip(-1)
    return x


@st.composite
def matrices(draw, dtype=dtypes, least=1, scale=SCALES):
    """(..., rows, columns) of any dtype and layout."""
    shape = (*draw(leads), draw(st.integers(least, 6)), draw(sizes))
    x = draw(scale) * torch.randn(shape, generator=generator(draw(seeds), "x"), dtype=torch.float64)
    return laid_out(x.to(draw(dtype)), draw(st.sampled_from(LAYOUTS)))


def close(ours, expected, dtype, scale=8.0):
    """Within some roundings of the dtype, in units of the largest number."""
    assert ours.shape == expected.shape
    bound = scale * torch.finfo(dtype).eps * max(1e-30, float(expected.abs().max()) if expected.numel() else 0)
    torch.testing.assert_close(ours.double(), expected.double(), rtol=0, atol=max(bound, 1e-7 * (dtype in DTYPES[:2])))


@given(x=matrices(), fan_out=sizes, bias=st.booleans(), seed=seeds)
def test_linear_is_a_product_and_a_sum(x, fan_out, bias, seed):
    fan_in, lead = x.shape[-1], x.shape[:-2]
    linear = Linear(fan_in, fan_out, bias=bias, generator=generator(seed, "w"))
    if lead:
        linear = stack([nn.Sequential(linear) for _ in range(lead[0])])[0]
    linear = linear.to(x.dtype)
    with torch.no_grad():
        expected = x.double() @ linear.weight.double().mT
        size = (x.double().abs() @ linear.weight.double().abs().mT).max()
        got = linear(x)
    assert got.dtype == x.dtype and got.shape == expected.shape
    assert float((got.double() - expected).abs().max()) <= float(8 * torch.finfo(x.dtype).eps * size + 1e-7)


@given(x=matrices(), fan_out=sizes, seed=seeds)
def test_linear_refuses_another_width_in_words(x, fan_out, seed):
    with pytest.raises(ValueError, match=r"Linear: input \(.*\) does not fit weight"):
        Linear(x.shape[-1] + 1, fan_out, generator=generator(seed, "w")).to(x.dtype)(x)


@given(x=matrices(), pieces=st.integers(1, 3), seed=seeds)
def test_maxout_is_the_largest_piece(x, pieces, seed):
    maxout = Maxout(x.shape[-1], 4, pieces, generator=generator(seed, "w")).to(x.dtype)
    with torch.no_grad():
        assert torch.equal(maxout(x), maxout.affine(x).unflatten(-1, (4, pieces)).amax(-1))


@given(
    lead=leads,
    batch=st.integers(0, 4),
    block=st.integers(0, 3),
    dtype=st.sampled_from((torch.uint8, torch.int16, torch.int32, torch.int64)),
    layout=st.sampled_from(LAYOUTS),
    seed=seeds,
)
def test_embedding_and_flatten_look_up_rows(lead, batch, block, dtype, layout, seed):
    g = generator(seed, "x")
    embedding = Embedding(7, 5, generator=g)
    if lead:
        embedding = stack([nn.Sequential(embedding)] * lead[0])[0]
    x = laid_out(torch.randint(7, (*lead, batch, block), generator=g).to(dtype), layout)
    y = embedding(x)
    table = embedding.weight.view(-1, 7, 5)[0]
    assert torch.equal(y, table[x.long()].view(*lead, batch, block, 5))
    assert torch.equal(Flatten()(y), y.reshape(*lead, batch, block * 5))


@given(x=matrices(), name=st.sampled_from(sorted(ACTIVATIONS)))
def test_activations_keep_dtype_and_shape_and_their_derivative_is_that_of_autograd(x, name):
    activation = ACTIVATIONS[name]
    y, slope = Nonlinearity(activation)(x), activation.derivative(x)
    assert y.dtype == slope.dtype == x.dtype and y.shape == slope.shape == x.shape
    assert y.isfinite().all() and slope.isfinite().all()
    if name != "step":
        wide = activation(x.double())
        close(y, wide, x.dtype, 16)


NORMS = {
    "BatchNorm1d": (BatchNorm1d, nn.BatchNorm1d),
    "LayerNorm": (LayerNorm, nn.LayerNorm),
    "GroupNorm": (lambda f: GroupNorm(1, f), lambda f: nn.GroupNorm(1, f)),
    "RMSNorm": (RMSNorm, lambda f: nn.RMSNorm(f, eps=1e-5)),
}


@given(x=matrices(least=2), kind=st.sampled_from(sorted(NORMS)), training=st.booleans(), seed=seeds)
def test_norms_are_those_of_torch_in_every_dtype_and_layout(x, kind, training, seed):
    x = x[0] if x.dim() > 2 else x
    ours, theirs = (make(x.shape[-1]).to(x.dtype).train(training) for make in NORMS[kind])
    g = generator(seed, "w")
    state = {
        k: v if not v.dim() else (0.5 + torch.rand(v.shape, generator=g)).to(v.dtype)
        for k, v in theirs.state_dict().items()
    }
    ours.load_state_dict(state), theirs.load_state_dict(state)
    a, b = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    y, expected = ours(a), theirs(b)
    assert y.dtype == x.dtype and y.isfinite().all()
    # Torch takes x w / s - mean w / s, two numbers that are larger than their difference, by up to 1 / sqrt(eps).
    room = 1 if x.dtype in DTYPES[:2] else 1 + 320 * float(x.abs().max())
    close(y.detach(), expected.detach(), x.dtype, 16 * room)
    for p, q in zip(ours.buffers(), theirs.buffers(), strict=True):
        close(p, q, x.dtype, 4) if p.is_floating_point() else None


@given(x=matrices(), dim=st.sampled_from((-1, -2)))
def test_moments_and_standardize_are_those_of_float64(x, dim):
    mean, var = moments(x, dim)
    wide = x.double()
    least = torch.float32 if x.dtype in DTYPES[:2] else x.dtype
    assert mean.dtype == var.dtype == least
    close(mean, wide.mean(dim, keepdim=True), least, 64 * float(1 + wide.abs().max()))
    y = standardize(x, mean, var, 1e-5)
    assert y.isfinite().all() and float(y.abs().max()) <= math.sqrt(x.shape[dim]) + 0.1


@given(x=matrices(least=1), seed=seeds)
def test_cross_entropy_and_its_gradient_are_those_of_torch(x, seed):
    targets = torch.randint(x.shape[-1], x.shape[:-1], generator=generator(seed, "t"))
    loss = cross_entropy(x, targets)
    flat = F.cross_entropy(x.double().flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape).mean(-1)
    assert loss.dtype == x.dtype and loss.shape == x.shape[:-2]
    bound = 16 * torch.finfo(x.dtype).eps * (1 + float(x.double().abs().max()))
    torch.testing.assert_close(loss.double(), flat, rtol=0, atol=bound)
    grad = backward.cross_entropy_backward(x, targets)
    leaf = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(leaf, targets).sum(), leaf)
    assert grad.shape == expected.shape  # softmax is rounded before 1 is taken from it
    torch.testing.assert_close(grad.double(), expected, rtol=0, atol=2 * torch.finfo(x.dtype).eps / x.shape[-2])


@given(x=matrices(dtype=st.just(torch.float64)), fan_out=sizes, name=st.sampled_from(sorted(ACTIVATIONS)), seed=seeds)
def test_gradients_by_hand_are_those_of_autograd(x, fan_out, name, seed):
    g = generator(seed, "g")
    weight = torch.randn(fan_out, x.shape[-1], generator=g, dtype=x.dtype).requires_grad_()
    bias = torch.zeros(fan_out, dtype=x.dtype, requires_grad=True)
    grad = torch.randn(*x.shape[:-1], fan_out, generator=g, dtype=x.dtype)
    leaf = x.detach().clone().requires_grad_()
    expected = torch.autograd.grad(leaf @ weight.mT + bias, [leaf, weight, bias], grad)
    for ours, theirs in zip(backward.linear_backward(grad, x, weight.detach()), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn(x.shape, generator=g, dtype=x.dtype)
    through = backward.activation_backward(cotangent, x, ACTIVATIONS[name])
    assert torch.equal(through, cotangent * ACTIVATIONS[name].derivative(x))


@given(
    fan_out=st.integers(0, 6),
    fan_in=st.integers(0, 6),
    scheme=st.sampled_from((LECUN, XAVIER, PYTORCH, Orthogonal(2.0), VarianceScaling(fan="out"))),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=seeds,
)
def test_every_scheme_gives_finite_weights_of_its_size(fan_out, fan_in, scheme, dtype, seed):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if not fan_out or not fan_in:
            with pytest.raises(ValueError, match="at least 1 is needed, got 0"):
                scheme(fan_out, fan_in, generator=generator(seed, "w"))
            return
        w = scheme(fan_out, fan_in, generator=generator(seed, "w"))
    finally:
        torch.set_default_dtype(before)
    assert w.shape == (fan_out, fan_in) and w.dtype == dtype and w.isfinite().all() and w.is_contiguous()
    if isinstance(scheme, Orthogonal):
        small = w @ w.T if fan_out <= fan_in else w.T @ w
        torch.testing.assert_close(small, 4 * torch.eye(len(small), dtype=dtype), atol=1e-5, rtol=0)


@given(x=matrices(), threshold=st.floats(0, 2))
def test_numbers_of_a_tensor_are_those_of_float64(x, threshold):
    wide = x.double()
    close(stats.rms(x), wide.square().mean((-2, -1)).sqrt(), x.dtype, 64)
    expected = (x.abs() > threshold).double().mean((-2, -1))
    assert torch.equal(stats.saturation(x, threshold), expected)
    assert torch.equal(stats.dead(x, 0.0), (x == 0).all(-2))


@given(x=matrices(), value=st.sampled_from(HOSTILE), measure=st.sampled_from((stats.rms, stats.saturation)))
def test_a_hostile_value_is_seen_in_the_number(x, value, measure):
    x = x.clone()
    x[..., 0, 0] = value
    got = measure(x)
    if math.isnan(value):
        assert got.isnan().all()
    elif measure is stats.saturation:
        assert ((got >= 0) & (got <= 1)).all()
    else:
        assert not got.isnan().any()


@given(
    n=st.integers(0, 6),
    shape=st.sampled_from(((), (2,), (0,))),
    confidence=st.sampled_from((0.5, 0.95, 0.0, 1.0, math.nan)),
    value=st.sampled_from((1.0, *HOSTILE)),
    dtype=dtypes,
    seed=seeds,
)
def test_an_interval_is_finite_or_refused(n, shape, confidence, value, dtype, seed):
    values = torch.randn(n, *shape, generator=generator(seed, "v"), dtype=torch.float64).to(dtype)
    if values.numel():
        values.view(-1)[0] = value
    if n < 2 or 0 in shape or not 0 < confidence < 1 or not values.isfinite().all():
        with pytest.raises(ValueError, match=r"values: |confidence: "):
            stats.interval(values, confidence)
    else:
        mean, low, high = stats.interval(values, confidence)
        assert mean.isfinite().all() and ((low <= mean) & (mean <= high)).all() and mean.shape == shape


@given(
    order=st.integers(-1, 4),
    n=st.integers(0, 30),
    tokens=st.integers(1, 5),
    dtype=st.sampled_from((torch.uint8, torch.int16, torch.int64)),
    seed=seeds,
)
def test_counting_is_the_definition_in_plain_python(order, n, tokens, dtype, seed):
    g = generator(seed, "c")
    data = Examples(
        torch.randint(tokens, (n, 3), generator=g).to(dtype), torch.randint(tokens, (n,), generator=g).to(dtype)
    )
    if not 0 <= order <= 3 or not n:
        with pytest.raises(ValueError, match=r"order: |data: "):
            counting_floor(data, order)
        return
    pairs = [(tuple(c[3 - order :]), t) for c, t in zip(data.contexts.tolist(), data.targets.tolist(), strict=True)]
    contexts = [c for c, _ in pairs]
    floor = sum(math.log(contexts.count(c) / pairs.count((c, t))) for c, t in pairs) / n
    assert counting_floor(data, order) == pytest.approx(floor, abs=1e-12)
    smooth = sum(math.log((contexts.count(c) + tokens) / (pairs.count((c, t)) + 1)) for c, t in pairs) / n
    assert counting_loss(data, data, order, tokens=tokens) == pytest.approx(smooth, abs=1e-12)


@given(
    size=st.integers(0, 5), steps=st.integers(-1, 5), replicas=st.sampled_from((None, 0, 1, 3)), seed=seeds
)
def test_minibatches_have_their_size_and_number_or_are_refused(size, steps, replicas, seed):
    data = Examples(torch.arange(12).view(6, 2), torch.arange(6))
    g = generator(seed, "b") if replicas is None else [generator(seed + r, "b") for r in range(replicas)]
    if size < 1 or steps < 0 or replicas == 0:
        with pytest.raises(ValueError, match=r"size: |steps: |generator: "):
            minibatches(data, size, steps, generator=g)
        return
    drawn = list(minibatches(data, size, steps, generator=g))
    assert len(drawn) == steps
    for contexts, targets in drawn:
        assert targets.shape == ((size,) if replicas is None else (replicas, size))
        assert torch.equal(contexts, data.contexts[targets])


@given(
    q=st.sampled_from((0.0, 1e-12, 0.5, 40.0, *HOSTILE)),
    gain=st.sampled_from((0.0, 0.3, 1.0, 2.0, math.nan, math.inf, -1.0)),
    name=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_theory_gives_finite_numbers_or_an_error_in_words(q, gain, name):
    activation = ACTIVATIONS[name]
    for f in (meanfield.variance_map, meanfield.chi):
        if not (math.isfinite(q) and q >= 0 and math.isfinite(gain) and gain >= 0):
            with pytest.raises(ValueError, match=r"(q|gain): a finite number, 0 or more, is needed"):
                f(q, activation, gain)
        else:
            assert math.isfinite(f(q, activation, gain)) and f(q, activation, gain) >= 0


@given(a=st.floats(), b=st.floats(), operation=st.sampled_from(("add", "sub", "mul", "truediv", "pow")))
def test_values_are_numbers_or_refused(a, b, operation):
    try:
        result = getattr(Value(a), f"__{operation}__")(b)
    except (ValueError, ArithmeticError) as error:
        assert "not a finite number" in str(error)
    else:
        result.backward()
        assert math.isfinite(result.data) and result.grad == 1


@pytest.mark.parametrize("norm", [None, BatchNorm1d, RMSNorm])
@settings(max_examples=25)  # an example trains up to four networks
@given(replicas=st.integers(1, 3), width=sizes, depth=st.integers(0, 2), block=st.integers(1, 3), seed=seeds)
def test_any_mlp_trains_stacked_as_alone(norm, replicas, width, depth, block, seed):
    recipe = MLP(tokens=5, block_size=block, embedding=3, width=width, depth=depth, norm=norm)
    models = [recipe.build(generator(seed + r, "weights")).double() for r in range(replicas)]
    g = generator(seed, "data")
    data = Examples(torch.randint(5, (20, block), generator=g), torch.randint(5, (20,), generator=g))
    stacked = stack(models)
    drawn = minibatches(data, 4, 3, generator=[generator(seed + r, "b") for r in range(replicas)])
    together = train(stacked, drawn, lr=0.1)
    assume(together.ended == "done")
    for r, (model, part) in enumerate(zip(models, unstack(stacked), strict=True)):
        alone = train(model, minibatches(data, 4, 3, generator=generator(seed + r, "b")), lr=0.1)
        torch.testing.assert_close(together.loss.values[:, r], alone.loss.values, rtol=1e-7, atol=1e-9)
        for p, q in zip(part.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    losses = evaluate(stacked, data)
    assert losses.isfinite().all() and trace(stacked, repeated(data, stacked)).loss.isfinite().all()


@given(value=st.sampled_from((math.nan, math.inf, -math.inf)), layer=st.sampled_from(("linear1", "output")), seed=seeds)
def test_a_weight_that_is_not_finite_ends_the_run_with_its_place(value, layer, seed):
    model = MLP(tokens=5, width=4, depth=1, activation=TANH).build(generator(seed, "weights"))
    with torch.no_grad():
        model.get_submodule(layer).bias[0] = value
    g = generator(seed, "data")
    batch = Examples(torch.randint(5, (6, 3), generator=g), torch.zeros(6, dtype=torch.long))
    history = train(model, [batch] * 3, lr=0.1)
    if layer == "linear1" and math.isinf(value):  # tanh of it is 1
        assert len(history.loss.steps) == 3 or history.ended == "diverged"
    else:
        assert history.ended == "diverged" or history.loss.values.isfinite().all()
        assert history.ended == "done" or layer in history.diverged[0] or "gradient" in history.diverged[0]
