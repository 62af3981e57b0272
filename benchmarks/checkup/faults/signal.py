"""Faults of initialisation and of the signal on its way forward and back.

Kinds from X. Glorot and Y. Bengio (AISTATS 2010), X. Zhang et al., AutoTrainer (ICSE 2021: vanishing and exploding
gradients, dying ReLU, slow convergence), the taxonomy of N. Humbatova et al. (ICSE 2020), and the threads named below.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    MSE,
    Net,
    Placed,
    Trial,
    blobs,
    convnet,
    curve,
    draw,
    fault,
    flat_cross_entropy,
    images,
    kaiming,
    kind,
    last_step,
    mlp,
    series,
    text,
    tokens,
    trained,
    xavier,
)

LARGE = kind("weights drawn too large", "activation scale, first loss, saturation", "gradient slope, dead units")
SMALL = kind(
    "weights drawn too small", "activation scale, gradient slope", "same for all examples, constant predictions"
)
ALIKE = kind(
    "units that start alike",
    "units all alike, zero weights block the gradient",
    "zero gradient, constant predictions, same for all examples",
)
DEAD = kind("dead units", "dead units", "zero gradient, constant predictions, same for all examples, step size")
SATURATED = kind(
    "saturated units",
    "saturation",
    "activation scale, gradient slope, first loss, same for all examples, constant predictions",
)
VANISHING = kind(
    "vanishing gradient",
    "gradient slope, activation scale",
    "same for all examples, constant predictions, zero gradient, saturation",
)
EXPLODING = kind(
    "exploding signal or gradient", "activation scale, gradient slope, not finite", "first loss, saturation"
)
COLLAPSED = kind(
    "output that no longer depends on the input", "same for all examples, constant predictions", "zero gradient"
)
OVERSMOOTHED = kind("averages until all examples agree", "same for all examples", "gradient slope, activation scale")
NOT_FINITE = kind("nan or inf made by an operation", "not finite")


@fault(LARGE)
def normal_weights_of_deviation_one(broken):
    """torch.randn for every matrix; Karpathy's makemore lectures start there."""
    model = mlp(20, 100, 100, 10, act=nn.Tanh)
    return Trial(draw(model, nn.init.normal_ if broken else nn.init.xavier_normal_), *blobs(), CROSS_ENTROPY)


@fault(LARGE)
def weights_between_0_and_1(broken):
    """torch.rand instead of torch.randn: every unit sums its inputs."""
    model = mlp(20, 64, 64, 10)
    return Trial(draw(model, nn.init.uniform_) if broken else model, *blobs(), CROSS_ENTROPY)


@fault(LARGE)
def output_layer_of_deviation_one(broken):
    """Only the last layer is drawn by hand: a first loss far above log 10."""
    model = mlp(20, 128, 10)
    if broken:
        nn.init.normal_(model[-1].weight)
    return Trial(model, *blobs(), CROSS_ENTROPY, torch.optim.SGD(model.parameters(), lr=0.1))


@fault(LARGE)
def tied_embedding_of_deviation_one(broken):
    """A language model's output layer tied to an embedding as nn.Embedding draws it."""
    embedding, head = nn.Embedding(50, 128), nn.Linear(128, 50, bias=False)
    nn.init.normal_(embedding.weight, std=1 if broken else 128**-0.5)
    head.weight = embedding.weight
    run = lambda net, x: net.head(net.body(net.embedding(x))[0] + net.embedding(x))
    model = Net(run, embedding=embedding, body=nn.GRU(128, 128, batch_first=True), head=head)
    return Trial(model, *text(), flat_cross_entropy)


@fault(LARGE)
def kernels_drawn_without_their_fan_in(broken):
    """A custom weights_init for convolutions with a deviation of 0.5."""
    model = convnet(norm=False)
    return Trial(draw(model, lambda w: nn.init.normal_(w, std=0.5)) if broken else model, *images(), CROSS_ENTROPY)


@fault(LARGE)
def truncated_normal_of_two_tenths_in_six_layers(broken):
    """TensorFlow tutorials' truncated_normal(stddev=...) with widths of 400."""
    model = mlp(20, *[400] * 5, 10)
    return Trial(
        draw(model, lambda w: nn.init.trunc_normal_(w, std=0.2)) if broken else kaiming(model), *blobs(), CROSS_ENTROPY
    )


@fault(SMALL)
def deviation_of_a_hundredth_in_ten_layers(broken):
    """The deviation 0.01 of 2012 in a deep network; Glorot and Bengio's subject."""
    model = mlp(20, *[64] * 9, 10)
    return Trial(
        draw(model, lambda w: nn.init.normal_(w, std=0.01)) if broken else kaiming(model), *blobs(), CROSS_ENTROPY
    )


@fault(SMALL)
def weights_times_a_thousandth(broken):
    """ "Small random numbers": 0.001 * randn."""
    model = mlp(20, 64, 64, 64, 1, act=nn.Tanh)
    return Trial(draw(model, lambda w: nn.init.normal_(w, std=1e-3)) if broken else xavier(model), *curve(), MSE)


@fault(SMALL)
def tanh_layers_of_a_thousandth_uniform(broken):
    """uniform(-0.001, 0.001) in a five-layer network of tanh."""
    model = mlp(20, 64, 64, 64, 64, 10, act=nn.Tanh)
    return Trial(
        draw(model, lambda w: nn.init.uniform_(w, -1e-3, 1e-3)) if broken else xavier(model), *blobs(), CROSS_ENTROPY
    )


@fault(ALIKE)
def every_weight_zero(broken):
    """Weights and biases 0 in a network with a hidden layer."""
    model = mlp(20, 64, 10)
    return Trial(draw(model, nn.init.zeros_) if broken else model, *blobs(), CROSS_ENTROPY)


@fault(ALIKE)
def every_weight_the_same_constant(broken):
    """nn.init.constant_ as a way to be reproducible."""
    model = mlp(20, 64, 64, 10, act=nn.Tanh)
    return Trial(draw(model, lambda w: nn.init.constant_(w, 0.05)) if broken else model, *blobs(), CROSS_ENTROPY)


@fault(ALIKE)
def every_kernel_of_ones(broken):
    """Kernels of 1 / fan_in in each convolution."""
    model = convnet()
    return Trial(
        draw(model, lambda w: nn.init.constant_(w, 1 / w[0].numel())) if broken else model, *images(), CROSS_ENTROPY
    )


@fault(ALIKE)
def both_factors_of_an_adapter_zero(broken):
    """A low-rank adapter whose two factors start at 0: neither ever gets a gradient."""
    base, down, up = mlp(20, 64, 10), nn.Linear(20, 4, bias=False), nn.Linear(4, 10, bias=False)
    base.requires_grad_(False)
    nn.init.zeros_(up.weight)
    if broken:
        nn.init.zeros_(down.weight)
    model = Net(lambda net, x: net.base(x) + net.up(net.down(x)), base=base, down=down, up=up)
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(ALIKE)
def ones_in_a_recurrence(broken):
    """Every parameter of a GRU set to a constant."""
    body = nn.GRU(8, 32, batch_first=True)
    if broken:
        for p in body.parameters():
            nn.init.constant_(p, 0.1)
    model = last_step(body, 32)
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(DEAD)
def biases_far_below_zero(broken):
    """Biases of -10 in front of a ReLU."""
    model = mlp(20, 64, 64, 10)
    return Trial(
        draw(model, nn.init.xavier_normal_, lambda b: nn.init.constant_(b, -10)) if broken else model,
        *blobs(),
        CROSS_ENTROPY,
    )


@fault(DEAD)
def dead_after_a_step_too_large(broken):
    """AutoTrainer's dying ReLU: three clipped steps at a rate of 100 before the checkup."""
    trial = Trial(mlp(20, 64, 64, 10), *blobs(), CROSS_ENTROPY)
    if not broken:
        return trained(trial, 20)
    optimizer = torch.optim.SGD(trial.model.parameters(), lr=100.0)
    for _ in range(3):
        optimizer.zero_grad()
        trial.loss_fn(trial.model(trial.inputs), trial.targets).backward()
        nn.utils.clip_grad_norm_(trial.model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad()
    return trial._replace(optimizer=optimizer)


@fault(DEAD)
def relu_of_inputs_that_are_all_negative(broken):
    """Log-probabilities as inputs of a layer with positive weights: nothing is left after the ReLU."""
    x, y = blobs()
    model = mlp(20, 64, 10)
    if broken:
        with torch.no_grad():
            model[0].weight.abs_()
        x = F.log_softmax(x, dim=1)
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(DEAD)
def convnet_dead_by_its_biases(broken):
    """Biases of -5 in the first convolution."""
    model = convnet(norm=False)
    if broken:
        nn.init.constant_(model[0].bias, -8.0)
    return Trial(model, *images(), CROSS_ENTROPY)


@fault(DEAD)
def hardtanh_of_large_biases(broken):
    """Hardtanh on pre-activations of some tens."""
    act = nn.Hardtanh() if broken else nn.Tanh()
    model = nn.Sequential(nn.Linear(20, 64), act, nn.Linear(64, 10))
    if broken:
        with torch.no_grad():
            model[0].bias.copy_(20 * torch.randn(64).sign())
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(SATURATED)
def tanh_after_weights_five_times_too_large(broken):
    """Xavier with a gain of 5 by mistake."""
    model = mlp(20, 100, 100, 100, 10, act=nn.Tanh)
    return Trial(draw(model, lambda w: nn.init.xavier_normal_(w, gain=5 if broken else 5 / 3)), *blobs(), CROSS_ENTROPY)


@fault(SATURATED)
def attention_without_its_scale(broken):
    """Scores q k without the 1 / sqrt(d): with normalised inputs and d of 256 the softmax picks one key."""

    def run(net, x):
        h = net.embedding(x)
        q, k, v = (4 * net.qkv(h)).chunk(3, dim=-1)
        scores = q @ k.mT / (1 if broken else 256**0.5)
        return net.head((scores.softmax(-1) @ v).mean(1))

    model = Net(run, embedding=Placed(50, 256), qkv=nn.Linear(256, 768), head=nn.Linear(256, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY)


@fault(SATURATED)
def sigmoid_gates_with_a_bias_of_ten(broken):
    """A gate that is meant to start open and cannot close any more."""
    gate = nn.Linear(20, 64)
    nn.init.constant_(gate.bias, 10 if broken else 1)
    model = Net(
        lambda net, x: net.head(net.gate(x).sigmoid() * net.body(x)),
        gate=gate,
        body=nn.Linear(20, 64),
        head=nn.Linear(64, 10),
    )
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(SATURATED)
def large_constant_added_to_every_feature(broken):
    """An additive mask of -1e9 with the wrong sign, applied to features and not to scores."""
    run = lambda net, x: net.head(torch.tanh(net.body(x) + (1e4 if broken else 0)))
    return Trial(Net(run, body=nn.Linear(20, 64), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(SATURATED)
def lstm_with_weights_of_deviation_three(broken):
    """normal_(std=3) for every parameter of an LSTM."""
    body = nn.LSTM(8, 32, batch_first=True)
    if broken:
        for p in body.parameters():
            nn.init.normal_(p, std=3.0)
    model = last_step(body, 32)
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(VANISHING)
def eight_layers_of_sigmoids(broken):
    """Glorot and Bengio's example, still asked about."""
    model = mlp(20, *[64] * 8, 10, act=nn.Sigmoid if broken else nn.ReLU)
    return Trial(xavier(model) if broken else kaiming(model), *blobs(), CROSS_ENTROPY)


@fault(VANISHING)
def sixteen_layers_as_torch_draws_them(broken):
    """The default of nn.Linear loses a factor of sqrt(6) at each ReLU."""
    model = mlp(20, *[64] * 16, 10)
    return Trial(model if broken else kaiming(model), *blobs(), CROSS_ENTROPY)


@fault(VANISHING)
def twenty_plain_convolutions(broken):
    """A deep stack of convolutions without a norm and with torch's initialisation."""
    layers = [m for k in range(20) for m in (nn.Conv2d(3 if k == 0 else 16, 16, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return Trial(model if broken else kaiming(model), *images(), CROSS_ENTROPY)


@fault(VANISHING)
def plain_recurrence_over_a_hundred_steps(broken):
    """The class stands in the first step of a hundred, and a plain RNN is read at the last one."""
    x, y = series(length=100)
    x[:, 3:] = torch.randn(32, 97, 8)
    x = x if broken else x.flip(1)
    model = last_step(nn.RNN(8, 64, batch_first=True), 64)
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(VANISHING)
def deep_tanh_network_with_small_gain(broken):
    """Fifteen layers of tanh with a gain of 0.5."""
    model = mlp(20, *[64] * 15, 1, act=nn.Tanh)
    return Trial(draw(model, lambda w: nn.init.xavier_normal_(w, gain=0.5 if broken else 5 / 3)), *curve(), MSE)


@fault(EXPLODING)
def recurrent_weights_of_twice_the_radius(broken):
    """A ReLU recurrence whose matrix has a spectral radius of 2."""
    x, y = series(length=30)
    body = nn.RNN(8, 64, nonlinearity="relu" if broken else "tanh", batch_first=True)
    if broken:
        nn.init.orthogonal_(body.weight_hh_l0, gain=2.5)
    model = last_step(body, 64)
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(EXPLODING)
def forty_residual_blocks_without_a_norm(broken):
    """Each block doubles the variance."""

    def run(net, x):
        h = net.first(x)
        for block in net.blocks:
            h = h + (1 if broken else 40**-0.5) * block(h)
        return net.head(h)

    blocks = nn.ModuleList(kaiming(mlp(64, 64, 64)) for _ in range(40))
    model = Net(run, first=nn.Linear(20, 64), blocks=blocks, head=nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(EXPLODING)
def gain_of_three_in_ten_layers(broken):
    """A gain chosen by hand."""
    model = mlp(20, *[64] * 10, 10)
    return Trial(
        draw(model, lambda w: nn.init.xavier_normal_(w, gain=3)) if broken else kaiming(model), *blobs(), CROSS_ENTROPY
    )


@fault(EXPLODING)
def products_of_features_in_a_deep_network(broken):
    """Squares as activations, layer after layer."""

    def run(net, x):
        for layer in net.layers:
            h = layer(x)
            x = h**2 if broken else h.relu()
        return net.head(x)

    layers = nn.ModuleList(nn.Linear(20 if k == 0 else 64, 64) for k in range(7))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    return Trial(Net(run, layers=layers, head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(COLLAPSED)
def norm_over_one_feature(broken):
    """LayerNorm of the last axis, which has length 1: its output is its bias."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1), nn.LayerNorm(1) if broken else nn.Identity())
    return Trial(model, *curve(), MSE)


@fault(COLLAPSED)
def instance_norm_before_global_pooling(broken):
    """The mean over space of what was normalised over space is 0."""
    norm = nn.InstanceNorm2d(32) if broken else nn.BatchNorm2d(32)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        norm,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return Trial(model, *images(), CROSS_ENTROPY)


@fault(COLLAPSED)
def mean_of_normalised_features(broken):
    """The mean over the features of a layer norm is its bias: 0."""
    pool = (lambda h: h.mean(-1, keepdim=True).expand(-1, 64)) if broken else (lambda h: h)
    run = lambda net, x: net.head(pool(F.layer_norm(net.body(x), (64,))))
    return Trial(Net(run, body=mlp(20, 64, 64), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(OVERSMOOTHED)
def averages_over_a_graph_until_all_nodes_agree(broken):
    """Forty graph convolutions: oversmoothing (Q. Li et al., AAAI 2018)."""
    edges = (torch.rand(48, 48) < 0.2).float()
    edges = ((edges + edges.T + torch.eye(48)) > 0).float()
    average = edges / edges.sum(1, keepdim=True)

    def run(net, x, average):
        for layer in net.layers:
            x = layer(average @ x).tanh()
        return net.head(x)

    x, y = blobs(48)
    depth = 40 if broken else 2
    layers = nn.ModuleList(nn.Linear(20 if k == 0 else 32, 32) for k in range(depth))
    return Trial(Net(run, layers=layers, head=nn.Linear(32, 10)), (x, average), y, CROSS_ENTROPY)


@fault(NOT_FINITE)
def logarithm_of_a_softmax_that_underflows(broken):
    """log(softmax(z)) in two steps, with logits of some hundred."""
    logs = (lambda z: F.softmax(z, dim=1).log()) if broken else (lambda z: F.log_softmax(z, dim=1))
    model = Net(lambda net, x: logs((200 if broken else 1) * net.body(x)), body=mlp(20, 64, 10))
    return Trial(model, *blobs(), F.nll_loss)


@fault(NOT_FINITE)
def square_root_at_zero(broken):
    """A Euclidean distance of a point to itself has no slope."""
    x, y = blobs(classes=2)

    def loss(z, y):
        distance = ((z[:, None] - z[None]) ** 2).sum(-1)
        distance = distance.sqrt() if broken else (distance + 1e-6).sqrt()
        same = (y[:, None] == y[None]).float()
        return (same * distance + (1 - same) * F.relu(1 - distance)).mean()

    return Trial(mlp(20, 64, 8), x, y, loss)


@fault(NOT_FINITE)
def every_key_masked(broken):
    """A row of attention scores that are all -inf: an empty sequence in the batch."""
    x, y = tokens()
    mask = torch.zeros(32, 12, dtype=torch.bool)
    mask[:, 8:] = True
    if broken:
        mask[3] = True

    def run(net, x):
        h = net.embedding(x)
        return net.head(net.attention(h, h, h, key_padding_mask=mask)[0].mean(1))

    model = Net(
        run,
        embedding=nn.Embedding(50, 32),
        attention=nn.MultiheadAttention(32, 4, batch_first=True),
        head=nn.Linear(32, 4),
    )
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(NOT_FINITE)
def where_with_a_branch_that_has_no_slope(broken):
    """torch.where(x > 0, x.sqrt(), 0): the other branch's infinite slope becomes nan."""
    root = (lambda h: torch.where(h > 0, h.sqrt(), 0.0)) if broken else (lambda h: (h.relu() + 1e-3).sqrt())
    model = Net(lambda net, x: net.b(root(net.a(x))), a=nn.Linear(20, 64), b=nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(NOT_FINITE)
def deviation_of_one_element(broken):
    """Standardising over an axis of length 1: the unbiased deviation is 0 / 0."""

    def run(net, x):
        h = net.body(x)[:, :1] if broken else net.body(x)
        return net.head(((h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-5)).expand(-1, 32))

    return Trial(Net(run, body=mlp(20, 64, 32), head=nn.Linear(32, 10)), *blobs(), CROSS_ENTROPY)


@fault(NOT_FINITE)
def half_precision_overflow(broken):
    """A sum of squares beyond 65504 in float16."""
    x, y = curve()
    dtype = torch.float16 if broken else torch.float32
    model = mlp(20, 64, 1).to(dtype)
    scale = 300 if broken else 1
    return Trial(model, x.to(dtype), (scale * y).to(dtype), lambda o, t: ((o - t) ** 2).mean())


@fault(NOT_FINITE)
def logarithm_of_a_negative_output(broken):
    """Log of predictions in a squared logarithmic error."""
    x, y = curve()
    loss = (
        (lambda o, t: ((o.log() - t.log()) ** 2).mean())
        if broken
        else (lambda o, t: ((F.softplus(o).log1p() - t.log1p()) ** 2).mean())
    )
    return Trial(mlp(20, 64, 1), x, y.exp(), loss)


@fault(NOT_FINITE)
def norm_of_a_zero_vector(broken):
    """x / x.norm() of a row of zeros."""
    x, y = blobs()
    x[7] = 0
    run = lambda net, x: (
        net.body(x / x.norm(dim=1, keepdim=True)) if broken else net.body(F.normalize(x, dim=1) * 20**0.5)
    )
    return Trial(Net(run, body=mlp(20, 64, 10)), x, y, CROSS_ENTROPY)
