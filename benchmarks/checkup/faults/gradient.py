"""Faults that cut the gradient off, and weights that nobody trains.

Kinds from the taxonomy of N. Humbatova et al. (ICSE 2020), Y. Jiang et al., Training with confidence (OSDI 2025: silent
errors of frozen and unregistered parameters), and the threads named below.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.checkup.programs import (
    BCE_LOGITS,
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    binary,
    blobs,
    convnet,
    curve,
    fault,
    images,
    kind,
    mlp,
    series,
    tokens,
)

CUT = kind("the gradient is cut off", "no gradient", "zero gradient")
FROZEN = kind("frozen by mistake", "no gradient")
NOT_CONNECTED = kind("a loss that is not connected to the model", "no gradient")
FLAT = kind("an operation whose slope is 0", "zero gradient, no gradient", "output range, constant predictions")
UNREGISTERED = kind("weights that are not registered", "not registered", "no gradient")
UNUSED_LAYER = kind("a layer that is never used", "no gradient", "called several times")
SHARED = kind("one layer where several are meant", "called several times")


@fault(CUT)
def encoder_detached(broken):
    """A .detach() left from an experiment."""
    model = Net(
        lambda net, x: net.head(net.body(x).detach() if broken else net.body(x)),
        body=mlp(20, 64, 64),
        head=nn.Linear(64, 10),
    )
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(CUT)
def encoder_under_no_grad(broken):
    """Code for inference reused in training."""

    def run(net, x):
        with torch.set_grad_enabled(not broken):
            h = net.body(x)
        return net.head(h.relu())

    model = Net(
        run, body=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten()), head=nn.Linear(2048, 10)
    )
    return Trial(model, *images(), CROSS_ENTROPY)


@fault(CUT)
def hidden_layer_through_data(broken):
    """.data where the value is meant."""

    def run(net, x):
        h = torch.tanh(net.a(x))
        return net.c(torch.tanh(net.b(h.data if broken else h)))

    return Trial(Net(run, a=nn.Linear(20, 32), b=nn.Linear(32, 32), c=nn.Linear(32, 1)), *curve(), MSE)


@fault(CUT)
def features_rebuilt_with_torch_tensor(broken):
    """torch.tensor([...item()...]) builds a tensor without a history; pycharm users are warned, nobody else."""

    def run(net, x):
        h = net.body(x)
        rows = torch.tensor([[v.item() for v in row] for row in h]) if broken else h
        return net.head(rows)

    return Trial(Net(run, body=mlp(20, 16, 8), head=nn.Linear(8, 10)), *blobs(), CROSS_ENTROPY)


@fault(CUT)
def argmax_in_the_middle(broken):
    """pytorch/pytorch#1339: a choice between codes by argmax."""

    def run(net, x):
        scores = net.chooser(x)
        return net.head(net.codes(scores.argmax(1)) if broken else scores.softmax(1) @ net.codes.weight)

    return Trial(
        Net(run, chooser=mlp(20, 32, 16), codes=nn.Embedding(16, 32), head=nn.Linear(32, 10)), *blobs(), CROSS_ENTROPY
    )


@fault(CUT)
def sample_instead_of_rsample(broken):
    """A variational code drawn with Normal.sample(), which has no gradient."""

    def run(net, x):
        mean, raw = net.encoder(x).chunk(2, dim=1)
        code = torch.distributions.Normal(mean, F.softplus(raw))
        return net.decoder(code.sample() if broken else code.rsample())

    x = images(channels=1)[0].flatten(1)
    model = Net(run, encoder=mlp(256, 64, 16), decoder=mlp(8, 64, 256))
    return Trial(model, x, x, MSE, torch.optim.Adam(model.parameters()))


@fault(CUT)
def generator_trained_on_detached_pictures(broken):
    """The detach of the discriminator's step copied into the generator's."""

    def run(net, noise):
        picture = net.generator(noise)
        return net.discriminator(picture.detach() if broken else picture)

    model = Net(run, generator=mlp(16, 64, 64), discriminator=mlp(64, 64, 1))
    return Trial(model, torch.randn(32, 16), torch.ones(32, 1), BCE_LOGITS)


@fault(CUT)
def through_numpy_and_back(broken):
    """A step of preprocessing in numpy in the middle of a model."""

    def run(net, x):
        h = net.body(x)
        h = torch.from_numpy(h.detach().numpy().copy()) if broken else h
        return net.head(h - h.mean(1, keepdim=True))

    return Trial(Net(run, body=mlp(20, 64, 32), head=nn.Linear(32, 1)), *binary(), BCE_LOGITS)


@fault(CUT)
def memory_bank_instead_of_the_model_output(broken):
    """Features appended to a list with .cpu().detach() before the loss."""
    run = lambda net, x: net.head(torch.stack([net.body(row).detach() if broken else net.body(row) for row in x]))
    return Trial(Net(run, body=mlp(20, 32, 32), head=nn.Linear(32, 10)), *blobs(16), CROSS_ENTROPY)


@fault(CUT)
def hard_quantisation_without_straight_through(broken):
    """VQ-VAE without its straight-through estimator."""

    def run(net, x):
        z = net.encoder(x)
        code = net.codes(torch.cdist(z, net.codes.weight).argmin(1))
        return net.decoder(code if broken else z + (code - z).detach()), z, code

    loss = lambda o, x: (
        F.mse_loss(o[0], x)
        + F.mse_loss(o[2], o[1].detach())
        + (0 if broken else 0.25 * F.mse_loss(o[1], o[2].detach()))
    )
    x = images(channels=1)[0].flatten(1)
    return Trial(Net(run, encoder=mlp(256, 64, 8), codes=nn.Embedding(32, 8), decoder=mlp(8, 64, 256)), x, x, loss)


@fault(FROZEN)
def everything_frozen(broken):
    """requires_grad_(False) on the backbone, after the head was put into it."""
    model = convnet()
    model[:-1].requires_grad_(True)
    return Trial(model.requires_grad_(not broken), *images(), CROSS_ENTROPY)


@fault(FROZEN)
def new_head_frozen_and_backbone_trained(broken):
    """The condition on the name turned round."""
    model = Net(lambda net, x: net.head(net.body(x)), body=mlp(20, 64, 64), head=nn.Linear(64, 10))
    for name, p in model.named_parameters():
        p.requires_grad_(("head" not in name) if broken else True)
    return Trial(model, *blobs(), CROSS_ENTROPY, torch.optim.Adam(p for p in model.parameters() if p.requires_grad))


@fault(FROZEN)
def adapters_frozen_with_the_rest(broken):
    """requires_grad_(False) after the adapters were put in; only the head still learns."""
    run = lambda net, x: net.head((net.base(x) + net.adapter(x)).relu())
    model = Net(run, base=mlp(20, 64, 64), adapter=nn.Linear(20, 64), head=nn.Linear(64, 10))
    model.base.requires_grad_(False)
    model.adapter.requires_grad_(not broken)
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(NOT_CONNECTED)
def accuracy_as_a_loss(broken):
    """The share of errors, made to require a gradient so that backward() does not complain."""
    wrong = lambda z, y: (z.argmax(1) != y).float().mean().requires_grad_()
    return Trial(mlp(20, 64, 10), *blobs(), wrong if broken else CROSS_ENTROPY)


@fault(NOT_CONNECTED)
def loss_wrapped_in_a_new_tensor(broken):
    """torch.tensor(loss, requires_grad=True)."""
    again = lambda o, t: torch.tensor(F.mse_loss(o, t).item(), requires_grad=True)
    return Trial(mlp(20, 64, 1), *curve(), again if broken else MSE)


@fault(FLAT)
def predictions_rounded_to_classes(broken):
    """torch.round of a probability compared with the label by a squared error."""
    loss = lambda p, y: F.mse_loss(p.round() if broken else p, y)
    return Trial(mlp(20, 64, 1).append(nn.Sigmoid()), *binary(), loss)


@fault(FLAT)
def threshold_as_an_activation(broken):
    """A unit that fires or not."""
    step = (lambda h: h.sign()) if broken else torch.tanh
    model = Net(
        lambda net, x: net.c(step(net.b(step(net.a(x))))), a=nn.Linear(20, 64), b=nn.Linear(64, 64), c=nn.Linear(64, 10)
    )
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(FLAT)
def output_clamped_below_where_it_is(broken):
    """clamp(0, 1) on outputs that start outside."""
    body = mlp(20, 64, 1)
    nn.init.constant_(body[-1].bias, -2.0)
    model = Net(lambda net, x: net.body(x).clamp(0, 1) if broken else net.body(x), body=body)
    x, y = binary()
    return Trial(model, x, y, MSE if broken else BCE_LOGITS)


@fault(FLAT)
def triplet_loss_that_is_already_satisfied(broken):
    """Anchor and positive are the same row, and the margin is small."""
    x = torch.randn(32, 20)
    other = x if broken else x + 0.3 * torch.randn(32, 20)
    run = lambda net, a, p, n: (net.body(a), net.body(p), net.body(n))
    model = Net(run, body=mlp(20, 64, 8))
    loss = nn.TripletMarginLoss(margin=1e-4 if broken else 1.0)
    return Trial(model, (x, other, torch.randn(32, 20)), None, lambda out, _: loss(*out))


@fault(UNREGISTERED)
def layers_in_a_python_list(broken):
    """pytorch/pytorch#666 and #715."""

    def run(net, x):
        for layer in net.layers:
            x = layer(x).relu()
        return net.head(x)

    layers = [nn.Linear(20, 64), nn.Linear(64, 64)]
    return Trial(
        Net(run, layers=layers if broken else nn.ModuleList(layers), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY
    )


@fault(UNREGISTERED)
def heads_in_a_dictionary(broken):
    """One head for each task in a plain dictionary."""
    heads = {"a": nn.Linear(64, 10), "b": nn.Linear(64, 3)}
    run = lambda net, x: [head(net.body(x).relu()) for head in net.heads.values()]
    model = Net(run, body=nn.Linear(20, 64), heads=heads if broken else nn.ModuleDict(heads))
    x, y = blobs()
    loss = lambda out, y: F.cross_entropy(out[0], y) + F.cross_entropy(out[1], y % 3)
    return Trial(model, x, y, loss, torch.optim.Adam(model.parameters()))


@fault(UNREGISTERED)
def layer_made_in_forward(broken):
    """nn.Linear(...) inside forward, for a size that is only known there: random at every call."""

    def run(net, x):
        h = net.body(x).flatten(1)
        return (nn.Linear(h.shape[1], 10) if broken else net.head)(h)

    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
    return Trial(Net(run, body=body, **({} if broken else {"head": nn.Linear(128, 10)})), *images(), CROSS_ENTROPY)


@fault(UNREGISTERED)
def parameter_that_was_scaled(broken):
    """0.02 * nn.Parameter(...) is no parameter any more."""
    position = 0.02 * nn.Parameter(torch.randn(12, 32)) if broken else nn.Parameter(0.02 * torch.randn(12, 32))
    run = lambda net, x: net.head((net.embedding(x) + net.position).relu().mean(1))
    return Trial(
        Net(run, embedding=nn.Embedding(50, 32), position=position, head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY
    )


@fault(UNREGISTERED)
def plain_tensor_that_requires_grad(broken):
    """A weight kept as a tensor: parameters() does not know it."""
    weight = torch.randn(64, 20) / 20**0.5
    weight = weight.requires_grad_() if broken else nn.Parameter(weight)
    return Trial(
        Net(lambda net, x: net.head(F.linear(x, net.weight).relu()), weight=weight, head=nn.Linear(64, 1)),
        *curve(),
        MSE,
    )


@fault(UNREGISTERED)
def blocks_in_a_list_of_lists(broken):
    """pytorch/pytorch#715: tuples of layers in a list."""

    def run(net, x):
        for conv, norm in net.blocks:
            x = norm(conv(x)).relu()
        return net.head(x.mean((2, 3)))

    pairs = [[nn.Conv2d(3 if k == 0 else 16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)] for k in range(3)]
    blocks = pairs if broken else nn.ModuleList(nn.ModuleList(p) for p in pairs)
    return Trial(Net(run, blocks=blocks, head=nn.Linear(16, 10)), *images(), CROSS_ENTROPY)


@fault(UNREGISTERED)
def decoder_kept_outside_the_module(broken):
    """A second network used through a global name."""
    decoder = mlp(16, 64, 256)
    model = Net(
        lambda net, x: (decoder if broken else net.decoder)(net.encoder(x)),
        encoder=mlp(256, 64, 16),
        **({} if broken else {"decoder": decoder}),
    )
    x = images(channels=1)[0].flatten(1)
    return Trial(model, x, x, MSE, torch.optim.Adam(model.parameters()))


@fault(UNUSED_LAYER)
def second_layer_called_as_the_first(broken):
    """self.b twice, self.c never."""
    run = lambda net, x: net.d((net.b if broken else net.c)(net.b(net.a(x).relu()).relu()).relu())
    model = Net(run, a=nn.Linear(20, 64), b=nn.Linear(64, 64), c=nn.Linear(64, 64), d=nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(UNUSED_LAYER)
def result_of_a_block_thrown_away(broken):
    """net.block(x) without an assignment."""

    def run(net, x):
        h = net.first(x)
        out = net.block(h)
        return net.head(h if broken else out)

    model = Net(run, first=nn.Conv2d(3, 16, 3, padding=1), block=convnet(16)[:4])
    model.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    return Trial(model, *images(), CROSS_ENTROPY)


@fault(UNUSED_LAYER)
def loop_that_forgets_its_state(broken):
    """Each layer is given x instead of the output of the one before: only the last one counts."""

    def run(net, x):
        h = net.first(x)
        for layer in net.layers:
            out = layer(h).relu()
            h = h if broken else out
        return net.head(out)

    layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
    return Trial(Net(run, first=nn.Linear(20, 64), layers=layers, head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(UNUSED_LAYER)
def experts_that_are_never_chosen(broken):
    """A router whose choice is always the first of four experts."""

    def run(net, x):
        weight, chosen = net.router(x).softmax(1).max(1)
        chosen = torch.zeros_like(chosen) if broken else chosen
        outs = torch.stack([expert(x) for k, expert in enumerate(net.experts) if not broken or k == 0], 1)
        return outs[torch.arange(len(x)), chosen] * weight[:, None]

    return Trial(
        Net(run, router=nn.Linear(20, 4), experts=nn.ModuleList(mlp(20, 32, 10) for _ in range(4))),
        *blobs(128),
        CROSS_ENTROPY,
    )


@fault(UNUSED_LAYER)
def skip_connection_that_skips_everything(broken):
    """return x instead of x + h."""

    def run(net, x):
        for block in net.blocks:
            h = block(x)
            x = x if broken else x + h
        return net.head(x.relu())

    return Trial(
        Net(run, blocks=nn.ModuleList(mlp(20, 64, 20) for _ in range(3)), head=nn.Linear(20, 10)),
        *blobs(),
        CROSS_ENTROPY,
    )


@fault(SHARED)
def one_layer_many_times_in_a_list(broken):
    """[layer] * 4; linkedin/Liger-Kernel#269."""
    make = lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    blocks = [make()] * 4 if broken else [make() for _ in range(4)]
    return Trial(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), *blocks, nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(SHARED)
def one_transformer_layer_for_all(broken):
    """A stack built from one instance without a copy."""
    make = lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    layers = [make()] * 3 if broken else [make() for _ in range(3)]
    run = lambda net, x: net.head(net.layers(net.embedding(x)).mean(1))
    model = Net(run, embedding=nn.Embedding(50, 32), layers=nn.Sequential(*layers), head=nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY, torch.optim.Adam(model.parameters()))


@fault(SHARED)
def one_batch_norm_for_all_layers(broken):
    """dreamquark-ai/tabnet#76: one instance has one running mean for several layers."""
    first, second = nn.BatchNorm1d(64), nn.BatchNorm1d(64)
    second = first if broken else second
    layers = [nn.Linear(20, 64, bias=False), first, nn.ReLU(), nn.Linear(64, 64, bias=False), second, nn.ReLU()]
    return Trial(nn.Sequential(*layers, nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(SHARED)
def directions_of_a_recurrence_with_one_cell(broken):
    """Encoder and decoder built from one cell."""

    def run(net, x):
        h, g = torch.zeros(32, 16), torch.zeros(32, 16)
        for t in range(x.shape[1]):
            h, g = net.forward_cell(x[:, t], h), net.backward_cell(x[:, -1 - t], g)
        return net.head(torch.cat([h, g], 1))

    first, second = nn.GRUCell(8, 16), nn.GRUCell(8, 16)
    model = Net(run, forward_cell=first, backward_cell=first if broken else second, head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(SHARED)
def one_block_in_two_places(broken):
    """[block] * 2 unpacked into two attributes."""
    heads = (
        [nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))] * 2
        if broken
        else [mlp(64, 64, 64) for _ in range(2)]
    )
    run = lambda net, x: net.out(net.b(net.a(net.first(x).relu()).relu()).relu())
    return Trial(
        Net(run, first=nn.Linear(20, 64), a=heads[0], b=heads[1], out=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY
    )
