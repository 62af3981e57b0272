"""Healthy networks on sequences."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam, AdamW

from benchmarks.checkup.healthy.networks import Decoder, transformer
from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    Net,
    Trial,
    flat_cross_entropy,
    healthy,
    last_step,
    mlp,
    series,
    text,
    tokens,
)


@healthy
def lstm_classifier():
    model = last_step(nn.LSTM(8, 32, batch_first=True), 32)
    return Trial(model, *series(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def lstm_that_takes_time_first():
    """(length, n, features), on purpose."""
    x, y = series()
    model = Net(lambda net, x: net.head(net.body(x)[0][-1]), body=nn.LSTM(8, 32), head=nn.Linear(32, 4))
    return Trial(model, x.transpose(0, 1), y, CROSS_ENTROPY)


@healthy
def gru_in_two_directions():
    run = lambda net, x: net.head(torch.cat(list(net.body(net.embedding(x))[1][-2:]), 1))
    body = nn.GRU(16, 32, 2, batch_first=True, bidirectional=True, dropout=0.2)
    return Trial(Net(run, embedding=nn.Embedding(50, 16), body=body, head=nn.Linear(64, 4)), *tokens(), CROSS_ENTROPY)


@healthy
def packed_sequences_of_different_lengths():
    lengths = torch.randint(3, 13, (32,))

    def run(net, x):
        packed = nn.utils.rnn.pack_padded_sequence(net.embedding(x), lengths, batch_first=True, enforce_sorted=False)
        return net.head(net.body(packed)[1][-1])

    parts = {"embedding": nn.Embedding(50, 16, padding_idx=0), "body": nn.GRU(16, 32, batch_first=True)}
    x, y = tokens()
    x = torch.where(torch.arange(12) < lengths[:, None], x.clamp(min=1), 0)
    return Trial(Net(run, head=nn.Linear(32, 4), **parts), x, y, CROSS_ENTROPY)


@healthy
def causal_decoder():
    model = Decoder()
    return Trial(
        model, *text(), flat_cross_entropy, AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    )


@healthy
def lstm_language_model():
    run = lambda net, x: net.head(net.body(net.embedding(x))[0])
    parts = {"embedding": nn.Embedding(50, 32), "body": nn.LSTM(32, 64, batch_first=True), "head": nn.Linear(64, 50)}
    return Trial(Net(run, **parts), *text(), flat_cross_entropy)


@healthy
def masked_language_model():
    """Two directions are meant here: some tokens are hidden, and only they count."""
    y, _ = text()
    hidden = torch.rand(y.shape) < 0.3
    run = lambda net, x: net.head(net.body(net.embedding(x) + net.position)).transpose(1, 2)
    parts = {"embedding": nn.Embedding(51, 32), "position": nn.Parameter(0.02 * torch.randn(12, 32))}
    model = Net(run, body=transformer(), head=nn.Linear(32, 51), **parts)
    return Trial(model, y.masked_fill(hidden, 50), y.masked_fill(~hidden, -100), CROSS_ENTROPY)


@healthy
def encoder_with_a_padding_mask():
    x, y = tokens()
    x = torch.where(torch.arange(12) < torch.randint(3, 13, (32, 1)), x.clamp(min=1), 0)

    def run(net, x):
        padded = x == 0
        h = net.body(net.embedding(x), src_key_padding_mask=padded).masked_fill(padded[..., None], 0)
        return net.head(h.sum(1) / (~padded).sum(1, keepdim=True))

    parts = {"embedding": nn.Embedding(50, 32, padding_idx=0), "body": transformer(), "head": nn.Linear(32, 4)}
    return Trial(Net(run, **parts), x, y, CROSS_ENTROPY)


@healthy
def sequence_to_sequence():
    """The decoder is given the target shifted by one, as a second input."""
    given, target = text()
    source = target.flip(1)

    def run(net, source, given):
        memory = net.embedding(source)
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        return net.head(net.body(memory, net.embedding(given), tgt_mask=mask, tgt_is_causal=True))

    body = nn.Transformer(32, 4, 1, 1, 64, dropout=0.1, batch_first=True)
    model = Net(run, embedding=nn.Embedding(50, 32), body=body, head=nn.Linear(32, 50))
    return Trial(model, (source, given), target, flat_cross_entropy)


@healthy
def connectionist_temporal_classification():
    """CTC asks for log-probabilities (length, n, classes)."""
    run = lambda net, x: net.head(net.body(x)[0]).log_softmax(-1).transpose(0, 1)
    model = Net(run, body=nn.GRU(8, 32, batch_first=True, bidirectional=True), head=nn.Linear(64, 6))
    lengths = torch.full((16,), 24), torch.full((16,), 5)
    loss = lambda p, y: F.ctc_loss(p, y, *lengths)
    return Trial(model, torch.randn(16, 24, 8), torch.randint(1, 6, (16, 5)), loss, Adam(model.parameters()))


@healthy
def temporal_convolutions():
    class Chomp(nn.Module):
        def __init__(self, a, b, dilation):
            super().__init__()
            self.pad, self.conv = 2 * dilation, nn.Conv1d(a, b, 3, dilation=dilation)

        def forward(self, x):
            return F.relu(self.conv(F.pad(x, (self.pad, 0))))

    run = lambda net, x: net.head(net.body(net.embedding(x).transpose(1, 2)).transpose(1, 2))
    body = nn.Sequential(Chomp(32, 32, 1), Chomp(32, 32, 2), Chomp(32, 32, 4))
    model = Net(run, embedding=nn.Embedding(50, 32), body=body, head=nn.Linear(32, 50))
    return Trial(model, *text(), flat_cross_entropy)


@healthy
def bag_of_embeddings():
    model = nn.Sequential(nn.EmbeddingBag(50, 32, mode="mean"), nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY, Adam(model.parameters(), lr=5e-3))


@healthy
def forecast_of_a_window():
    x = torch.randn(64, 24).cumsum(1)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    model = mlp(20, 64, 4)
    return Trial(model, x[:, :20], x[:, 20:], nn.L1Loss(), Adam(model.parameters()))


@healthy
def gated_convolutions_over_time():
    def run(net, x):
        h = net.embedding(x).transpose(1, 2)
        for k, (f, g) in enumerate(zip(net.filters, net.gates, strict=True)):
            p = F.pad(h, (2**k, 0))
            h = h + f(p).tanh() * g(p).sigmoid()
        return net.head(h.transpose(1, 2))

    make = lambda: nn.ModuleList(nn.Conv1d(32, 32, 2, dilation=2**k) for k in range(3))
    return Trial(
        Net(run, embedding=nn.Embedding(50, 32), filters=make(), gates=make(), head=nn.Linear(32, 50)),
        *text(),
        flat_cross_entropy,
    )


@healthy
def latent_queries_over_a_sequence():
    def run(net, x):
        h = net.embedding(x) + net.position
        q = net.queries.expand(len(x), -1, -1)
        return net.head(net.attention(q, h, h)[0].mean(1))

    return Trial(
        Net(
            run,
            embedding=nn.Embedding(50, 32),
            position=nn.Parameter(0.02 * torch.randn(12, 32)),
            queries=nn.Parameter(0.02 * torch.randn(1, 4, 32)),
            attention=nn.MultiheadAttention(32, 4, batch_first=True),
            head=nn.Linear(32, 4),
        ),
        *tokens(),
        CROSS_ENTROPY,
    )


@healthy
def one_layer_repeated_as_in_albert():
    def run(net, x):
        h = net.embedding(x)
        for _ in range(6):
            h = net.layer(h)
        return net.head(h.mean(1))

    return Trial(
        Net(run, embedding=nn.Embedding(50, 32), layer=transformer(), head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY
    )


@healthy
def elman_cell_by_hand():
    def run(net, x):
        h = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            h = torch.tanh(net.i(x[:, t]) + net.h(h))
        return net.head(h)

    return Trial(
        Net(run, i=nn.Linear(8, 32), h=nn.Linear(32, 32, bias=False), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY
    )


@healthy
def llama_like_decoder():
    class Block(nn.Module):
        def __init__(self, d=32, h=4):
            super().__init__()
            self.h, self.n1, self.n2 = h, nn.RMSNorm(d), nn.RMSNorm(d)
            self.qkv, self.o = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
            self.g, self.u, self.d = (
                nn.Linear(d, 2 * d, bias=False),
                nn.Linear(d, 2 * d, bias=False),
                nn.Linear(2 * d, d, bias=False),
            )

        def turn(self, x):
            t = torch.arange(x.shape[-2])[:, None] / 100 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
            a, b = x[..., ::2], x[..., 1::2]
            return torch.cat([a * t.cos() - b * t.sin(), a * t.sin() + b * t.cos()], -1)

        def forward(self, x):
            n, length, d = x.shape
            q, k, v = (z.view(n, length, self.h, -1).transpose(1, 2) for z in self.qkv(self.n1(x)).chunk(3, -1))
            x = x + self.o(
                F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=True)
                .transpose(1, 2)
                .reshape(n, length, d)
            )
            h = self.n2(x)
            return x + self.d(F.silu(self.g(h)) * self.u(h))

    model = nn.Sequential(nn.Embedding(50, 32), Block(), Block(), nn.RMSNorm(32), nn.Linear(32, 50, bias=False))
    return Trial(model, *text(), flat_cross_entropy, AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))


@healthy
def scan_over_a_state():
    def run(net, x):
        h = net.embedding(x)
        decay, gate, s, out = net.decay(h).sigmoid(), net.gate(h), 0.0, []
        for t in range(h.shape[1]):
            s = decay[:, t] * s + (1 - decay[:, t]) * h[:, t]
            out.append(s * F.silu(gate[:, t]))
        return net.head(torch.stack(out, 1))

    return Trial(
        Net(
            run, embedding=nn.Embedding(50, 32), decay=nn.Linear(32, 32), gate=nn.Linear(32, 32), head=nn.Linear(32, 50)
        ),
        *text(),
        flat_cross_entropy,
    )


@healthy
def one_long_sequence():
    x, y = text(1, 48)
    model = Net(
        lambda net, x: net.head(net.body(net.embedding(x))[0]),
        embedding=nn.Embedding(50, 32),
        body=nn.LSTM(32, 64, batch_first=True),
        head=nn.Linear(64, 50),
    )
    return Trial(model, x, y, flat_cross_entropy, Adam(model.parameters()))


@healthy
def four_sequences_through_a_transformer():
    model = Net(
        lambda net, x: net.head(net.body(net.embedding(x)).mean(1)),
        embedding=nn.Embedding(50, 32),
        body=nn.TransformerEncoder(transformer(), 2, enable_nested_tensor=False),
        head=nn.Linear(32, 4),
    )
    return Trial(model, *tokens(4), CROSS_ENTROPY, AdamW(model.parameters(), lr=5e-4))


@healthy
def sparse_embedding():
    model = Net(
        lambda net, x: net.head(net.embedding(x).mean(1)),
        embedding=nn.Embedding(50, 32, sparse=True),
        head=nn.Linear(32, 4),
    )
    return Trial(model, *tokens(), CROSS_ENTROPY)


@healthy
def one_hot_characters():
    x, y = text(64)
    run = lambda net, x: net.head(net.body(F.one_hot(x, 50).float())[0])
    return Trial(Net(run, body=nn.GRU(50, 64, batch_first=True), head=nn.Linear(64, 50)), x, y, flat_cross_entropy)
