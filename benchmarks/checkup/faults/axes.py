"""Faults of axes: batch and time swapped, sums over the batch, reshapes, norms and positions along the wrong axis.

Kinds from A. Karpathy's list (view against permute), the taxonomy of N. Humbatova et al. (ICSE 2020: wrong tensor
shape), and the threads named below.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    Net,
    Trial,
    blobs,
    convnet,
    curve,
    fault,
    images,
    kind,
    language_model,
    mlp,
    series,
    text,
    tokens,
)

AXES = kind("batch axis and time axis swapped", "examples mixed")
OVER_BATCH = kind(
    "a softmax or mean over the batch",
    "examples mixed",
    "logits where log-probabilities belong, same for all examples, constant predictions",
)
RESHAPED = kind("a reshape that carries numbers to other examples", "examples mixed")
SCRAMBLED = kind("a reshape that scrambles within an example")
POSITION = kind("positions lost", "positions lost")
NORM_AXIS = kind("a norm over the wrong axis", "batch norm, examples mixed", "same for all examples")


@fault(AXES)
def lstm_without_batch_first(broken):
    """pytorch/pytorch#19675 and many forum topics: (n, length, features) taken for (length, n, features)."""
    run = lambda net, x: net.head(net.body(x)[0][:, -1])
    model = Net(run, body=nn.LSTM(8, 32, batch_first=not broken), head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(AXES)
def transformer_without_batch_first(broken):
    """IBM/TabFormer#14; Exorust/TorchLeet#5."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=not broken)
    run = lambda net, x: net.head(net.body(net.embedding(x)).mean(1))
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Net(run, embedding=nn.Embedding(50, 32), body=body, head=nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY, torch.optim.Adam(model.parameters()))


@fault(AXES)
def attention_without_batch_first(broken):
    """om-ai-lab/OmDet#19."""

    def run(net, x):
        h = net.first(x)
        return net.head((h + net.attention(h, h, h)[0]).relu().mean(1))

    attention = nn.MultiheadAttention(32, 4, batch_first=not broken)
    model = Net(run, first=nn.Linear(8, 32), attention=attention, head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(AXES)
def recurrence_by_hand_over_the_first_axis(broken):
    """for x_t in x goes through the batch, and every example inherits the state of the one before."""

    def run(net, x):
        h, states = torch.zeros(x.shape[1] if broken else x.shape[0], 32), []
        for row in x if broken else x.transpose(0, 1):
            h = net.cell(row, h)
            states.append(h)
        return net.head(torch.stack(states).mean(1) if broken else h)

    return Trial(Net(run, cell=nn.GRUCell(8, 32), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY)


@fault(AXES)
def gru_without_batch_first(broken):
    """Embedding (n, length, d) into nn.GRU(d, h); the mean over what is taken for time."""
    run = lambda net, x: net.head(net.body(net.embedding(x))[0].mean(1))
    model = Net(run, embedding=nn.Embedding(50, 16), body=nn.GRU(16, 32, batch_first=not broken), head=nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY, torch.optim.Adam(model.parameters()))


@fault(AXES)
def cross_attention_without_batch_first(broken):
    """nn.MultiheadAttention on two inputs (n, length, d)."""
    (x, y), memory = series(), torch.randn(32, 12, 8)

    def run(net, x, m):
        q, k = net.a(x), net.b(m)
        return net.head((q + net.attention(q, k, k, need_weights=False)[0]).relu().mean(1))

    model = Net(
        run,
        a=nn.Linear(8, 32),
        b=nn.Linear(8, 32),
        attention=nn.MultiheadAttention(32, 4, batch_first=not broken),
        head=nn.Linear(32, 4),
    )
    return Trial(model, (x, memory), y, CROSS_ENTROPY)


@fault(OVER_BATCH)
def attention_weights_normalised_over_the_batch(broken):
    """F.softmax(scores, dim=0)."""

    def run(net, x):
        weights = F.softmax(net.score(x), dim=0 if broken else 1)
        return net.head((weights * net.value(x)).sum(1))

    model = Net(run, score=nn.Linear(8, 1), value=nn.Linear(8, 32), head=mlp(32, 32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(OVER_BATCH)
def log_softmax_over_the_batch(broken):
    """ikostrikov/pytorch-meta-optimizer#10; MicrosoftDocs/pytorchfundamentals#21."""
    return Trial(mlp(20, 64, 10).append(nn.LogSoftmax(dim=0 if broken else 1)), *blobs(), nn.NLLLoss())


@fault(OVER_BATCH)
def mixture_weights_over_the_batch(broken):
    """ctallec/world-models#10."""

    def run(net, x):
        logits, means = net.body(x).chunk(2, dim=1)
        return F.log_softmax(logits, dim=0 if broken else 1), means

    loss = lambda out, y: -(out[0] - 0.5 * (out[1] - y) ** 2).logsumexp(1).mean()
    return Trial(Net(run, body=mlp(20, 64, 10)), *curve(), loss)


@fault(OVER_BATCH)
def policy_with_a_softmax_over_states(broken):
    """DeepReinforcementLearningInAction#32: made for one state, used for a batch."""
    states, actions, returns = torch.randn(64, 8), torch.randint(4, (64, 1)), torch.randn(64)
    model = nn.Sequential(*mlp(8, 64, 4, act=nn.LeakyReLU), nn.Softmax(dim=0 if broken else 1))
    return Trial(model, states, returns, lambda p, r: -(p.gather(1, actions)[:, 0].log() * r).mean())


@fault(OVER_BATCH)
def mean_over_the_batch_too(broken):
    """A mean over the first two axes where one over the second is meant."""
    pool = (lambda h: h.mean((0, 1)).expand(len(h), -1)) if broken else (lambda h: h.mean(1))
    model = Net(lambda net, x: net.head(pool(net.body(x))), body=mlp(8, 64, 64), head=nn.Linear(64, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(OVER_BATCH)
def maximum_over_the_batch(broken):
    """Max pooling of a set of points over dim 0."""
    x, y = series(length=32, features=3)

    def run(net, x):
        h = net.body(x)
        g = h.amax((0, 1), keepdim=True).expand_as(h) if broken else h.amax(1, keepdim=True).expand_as(h)
        return net.head(torch.cat([h, g], -1)).mean(1)

    return Trial(Net(run, body=mlp(3, 64, 64), head=mlp(128, 32, 4)), x, y, CROSS_ENTROPY)


@fault(OVER_BATCH)
def routing_softmax_over_the_batch(broken):
    """A mixture whose router normalises over examples."""

    def run(net, x):
        weights = F.softmax(net.router(x), dim=0 if broken else 1)
        return torch.einsum("nk,nkc->nc", weights, torch.stack([e(x) for e in net.experts], 1))

    return Trial(
        Net(run, router=nn.Linear(20, 4), experts=nn.ModuleList(mlp(20, 32, 10) for _ in range(4))),
        *blobs(),
        CROSS_ENTROPY,
    )


@fault(RESHAPED)
def view_for_a_transpose_before_a_recurrence(broken):
    """rish-16/tokenlearner-pytorch#1: view(length, n, features) of what is (n, length, features)."""

    def run(net, x):
        n, length, features = x.shape
        return net.head(net.body(x.reshape(length, n, features) if broken else x.transpose(0, 1))[0][-1])

    return Trial(Net(run, body=nn.GRU(8, 32), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY)


@fault(RESHAPED)
def last_states_of_two_directions_viewed_as_rows(broken):
    """hidden (2, n, h) viewed as (n, 2 h); OpenNMT/OpenNMT-py#61 asks how it must be."""

    def run(net, x):
        hidden = net.body(x)[1]
        return net.head(hidden.reshape(len(x), -1) if broken else torch.cat(list(hidden), dim=1))

    model = Net(run, body=nn.GRU(8, 16, batch_first=True, bidirectional=True), head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(RESHAPED)
def heads_joined_without_their_transpose(broken):
    """gazelle93/Transformer-Various-Positional-Encoding#1: (heads, n, ...) taken for (n, heads, ...)."""

    def run(net, x):
        n, length, heads = *x.shape[:2], 4
        split = lambda h: h.view(n, length, heads, -1).permute(2, 0, 1, 3)
        q, k, v = map(split, net.qkv(net.first(x)).chunk(3, dim=-1))
        out = (q @ k.mT / 8**0.5).softmax(-1) @ v
        out = out.reshape(n, length, -1) if broken else out.permute(1, 2, 0, 3).reshape(n, length, -1)
        return net.head(out.mean(1))

    return Trial(
        Net(run, first=nn.Linear(8, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY
    )


@fault(RESHAPED)
def flattened_after_the_channels_went_first(broken):
    """A permute that puts the batch second, and a view that does not know."""
    flat = lambda h: h.transpose(0, 1).reshape(32, -1) if broken else h.flatten(1)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
    return Trial(
        Net(lambda net, x: net.head(flat(net.body(x))), body=body, head=nn.Linear(128, 10)), *images(), CROSS_ENTROPY
    )


@fault(RESHAPED)
def frames_folded_the_wrong_way(broken):
    """Video (n, t, c, h, w) to (t n, ...) and back by view."""
    y = torch.randint(4, (8,))
    x = (torch.randn(4, 3, 16, 16)[y][:, None] + torch.randn(8, 6, 3, 16, 16)) / 2**0.5

    def run(net, x):
        n, t = x.shape[:2]
        h = net.body(x.transpose(0, 1).flatten(0, 1))
        h = h.view(n, t, -1) if broken else h.view(t, n, -1).transpose(0, 1)
        return net.head(h.mean(1))

    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return Trial(Net(run, body=body, head=nn.Linear(128, 4)), x, y, CROSS_ENTROPY)


@fault(RESHAPED)
def two_views_split_after_interleaving(broken):
    """Two views concatenated along the batch, and taken apart as if they were interleaved."""
    x, y = blobs()

    def run(net, a, b):
        h = net.body(torch.cat([a, b]))
        pairs = h.view(-1, 2, 32) if broken else torch.stack(h.chunk(2), 1)
        return net.head(pairs.flatten(1))

    return Trial(
        Net(run, body=nn.Sequential(nn.Linear(20, 32), nn.ReLU()), head=nn.Linear(64, 10)),
        (x, x + 0.1 * torch.randn(64, 20)),
        y,
        CROSS_ENTROPY,
    )


@fault(SCRAMBLED)
def channels_last_images_viewed_as_channels_first(broken):
    """view(n, 3, h, w) of images that are (n, h, w, 3): Karpathy's sixth mistake."""
    x, y = images()
    last = x.permute(0, 2, 3, 1).contiguous()
    model = Net(lambda net, x: net.body(x.view(-1, 3, 16, 16) if broken else x.permute(0, 3, 1, 2)), body=convnet())
    return Trial(model, last, y, CROSS_ENTROPY)


@fault(SCRAMBLED)
def logits_viewed_with_their_classes_second(broken):
    """view(n, classes, length) where cross-entropy needs a transpose."""
    x, y = text()
    model = language_model(Net(lambda net, h: net.rnn(h)[0], rnn=nn.GRU(32, 32, batch_first=True)))
    turn = (lambda z: z.reshape(32, 50, 12)) if broken else (lambda z: z.transpose(1, 2))
    return Trial(model, x, y, lambda z, y: F.cross_entropy(turn(z), y))


@fault(SCRAMBLED)
def heads_split_by_a_view_alone(broken):
    """reczoo/FuxiCTR#30: (n, length, d) viewed as (n heads, length, d / heads) takes pieces of other positions."""

    def run(net, x):
        n, length = x.shape[:2]
        if broken:
            split = lambda h: h.reshape(n * 4, length, -1)
        else:
            split = lambda h: h.view(n, length, 4, -1).transpose(1, 2)
        q, k, v = map(split, net.qkv(net.embedding(x)).chunk(3, dim=-1))
        out = (q @ k.mT / 8**0.5).softmax(-1) @ v
        return net.head((out if broken else out.transpose(1, 2)).reshape(n, length, -1).mean(1))

    return Trial(
        Net(run, embedding=nn.Embedding(50, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY
    )


@fault(SCRAMBLED)
def patches_cut_by_a_reshape(broken):
    """reshape(n, patches, -1) of (n, c, h, w) cuts rows and not squares."""
    x, y = images()

    def cutup(x):
        if broken:
            return x.reshape(len(x), 16, -1)
        return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 16, -1)

    model = Net(
        lambda net, x: net.head(net.body(cutup(x) @ net.first.weight.T).mean(1)),
        first=nn.Linear(48, 32, bias=False),
        body=nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU()),
        head=nn.Linear(32, 10),
    )
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(POSITION)
def transformer_without_positions(broken):
    """No positional encoding: which of two tokens comes first cannot be learned."""
    x, _ = tokens()
    y = (x[:, 0] > x[:, -1]).long()
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    position = torch.zeros(12, 32) if broken else 0.5 * torch.randn(12, 32)
    run = lambda net, x: net.head(net.layer(net.embedding(x) + position).mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 2)), x, y, CROSS_ENTROPY)


@fault(POSITION)
def positions_along_the_batch(broken):
    """songyangco/GETNext#2: the encoding is added along the batch, so that it tells examples apart and not steps."""
    position = 0.5 * torch.randn(64, 32)
    add = lambda h: h + (position[: len(h), None] if broken else position[: h.shape[1]])
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    run = lambda net, x: net.head(net.layer(add(net.embedding(x))).mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY)


@fault(POSITION)
def one_position_for_all_steps(broken):
    """DiffPoseTalk/DiffPoseTalk#20: pe[:, length] where pe[:, :length] is meant."""
    x, _ = tokens()
    y = (x[:, 0] > x[:, -1]).long()
    pe = 0.5 * torch.randn(1, 20, 32)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    run = lambda net, x: net.head(net.layer(net.embedding(x) + (pe[:, 12:13] if broken else pe[:, :12])).mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 2)), x, y, CROSS_ENTROPY)


@fault(NORM_AXIS)
def batch_norm_over_the_steps(broken):
    """BatchNorm1d(length) on (n, length, features), because that is what runs."""
    norm = nn.BatchNorm1d(12 if broken else 32)
    apply = (lambda net, h: net.norm(h)) if broken else (lambda net, h: net.norm(h.transpose(1, 2)).transpose(1, 2))
    run = lambda net, x: net.head(apply(net, net.body(x)).relu().mean(1))
    return Trial(
        Net(run, body=nn.Linear(8, 32, bias=False), norm=norm, head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY
    )


@fault(NORM_AXIS)
def standardised_over_the_batch_by_hand(broken):
    """(h - h.mean(0)) / h.std(0) in forward, also in evaluation mode, where LayerNorm is meant."""
    norm = (lambda h: (h - h.mean(0)) / (h.std(0) + 1e-5)) if broken else (lambda h: F.layer_norm(h, (64,)))
    run = lambda net, x: net.head(norm(net.body(x)).relu())
    return Trial(Net(run, body=nn.Linear(20, 64), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(NORM_AXIS)
def embeddings_normalised_over_the_batch(broken):
    """F.normalize(h, dim=0) before a contrastive loss."""
    x, other = torch.randn(2, 64, 20)
    run = lambda net, a, b: [F.normalize(net.body(z), dim=0 if broken else 1) for z in (a, b)]
    loss = lambda out, y: F.cross_entropy(out[0] @ out[1].T / 0.2, y)
    return Trial(Net(run, body=mlp(20, 64, 16)), (x, x + 0.2 * other), torch.arange(64), loss)


@fault(NORM_AXIS)
def layer_norm_by_hand_over_axis_zero(broken):
    """(x - mean(0)) / std(0) of tokens before attention."""
    norm = lambda h: (h - h.mean(0 if broken else -1, keepdim=True)) / (h.std(0 if broken else -1, keepdim=True) + 1e-5)
    run = lambda net, x: net.head(net.body(norm(net.first(x))).relu().mean(1))
    return Trial(
        Net(run, first=nn.Linear(8, 32), body=nn.Linear(32, 32), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY
    )
