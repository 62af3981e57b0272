"""Healthy programs: every finding of more than a note here is a false alarm.

What people build that trains as it is, with torch's own initialisation unless a paper says otherwise; the designs whose
numbers look odd on purpose (zeros to start from, constant targets, tiny layers, mixed examples) are here for that.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import SGD, Adam, AdamW, RMSprop

from benchmarks.checkup.programs import (
    BCE_LOGITS,
    CROSS_ENTROPY,
    HEALTHY,
    MSE,
    Net,
    Trial,
    binary,
    blobs,
    convnet,
    curve,
    draw,
    flat_cross_entropy,
    healthy,
    images,
    kaiming,
    mlp,
    series,
    text,
    tokens,
    trained,
    xavier,
)

__all__ = ["HEALTHY", "Decoder", "last_step", "resnet"]


def transformer(width=32, heads=4, **options):
    return nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True, **options)


def last_step(body, width, outputs=4):
    return Net(lambda net, x: net.head(net.body(x)[0][:, -1]), body=body, head=nn.Linear(width, outputs))


class Decoder(nn.Module):
    """A small causal language model with tied embeddings, its residual layers drawn as in GPT-2."""

    def __init__(self, layers=3, width=64, heads=4, vocabulary=50, length=12):
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            transformer(width, heads, norm_first=True, activation="gelu") for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        for name, p in self.named_parameters():
            if p.dim() > 1:
                last = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(p, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)

    def forward(self, x):
        h = self.embedding(x) + self.position(torch.arange(x.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        for block in self.blocks:
            h = block(h, src_mask=mask, is_causal=True)
        return self.head(self.norm(h))


class Residual(nn.Module):
    """Two convolutions with batch norm around a shortcut; the last norm may start at 0 (P. Goyal et al., 2017)."""

    def __init__(self, channels, zero=False):
        super().__init__()
        make = lambda: [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        self.body = nn.Sequential(*make(), nn.ReLU(), *make())
        if zero:
            nn.init.zeros_(self.body[-1].weight)

    def forward(self, x):
        return F.relu(x + self.body(x))


def resnet(blocks=4, channels=16, zero=False):
    stem = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    body = [Residual(channels, zero) for _ in range(blocks)]
    model = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


# Plain networks.


@healthy
def linear_regression():
    x, y = curve()
    model = nn.Linear(20, 1)
    return Trial(model, x, y, MSE, SGD(model.parameters(), lr=0.1))


@healthy
def logistic_regression():
    return Trial(nn.Linear(20, 10), *blobs(), CROSS_ENTROPY)


@healthy
def mlp_with_adam():
    model = mlp(20, 128, 128, 10)
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def mlp_with_momentum():
    model = kaiming(mlp(20, 128, 128, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4))


@healthy
def deep_mlp_of_tanh():
    model = xavier(mlp(20, *[100] * 6, 10, act=nn.Tanh))
    return Trial(model, *blobs(), CROSS_ENTROPY)


@healthy
def mlp_with_batch_norm_and_dropout():
    layers = [m for a, b in ((20, 64), (64, 64)) for m in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, AdamW(model.parameters()))


@healthy
def mlp_with_layer_norm_and_gelu():
    layers = [m for a, b in ((20, 64), (64, 64)) for m in (nn.Linear(a, b), nn.LayerNorm(b), nn.GELU())]
    return Trial(nn.Sequential(*layers, nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@healthy
def self_normalising_mlp():
    """G. Klambauer et al., 2017."""
    model = mlp(20, *[64] * 6, 10, act=nn.SELU)
    return Trial(draw(model, lambda w: nn.init.normal_(w, std=w.shape[1] ** -0.5)), *blobs(), CROSS_ENTROPY)


@healthy
def narrow_mlp_on_a_small_batch():
    return Trial(mlp(20, 8, 8, 3), *blobs(8, classes=3), CROSS_ENTROPY)


@healthy
def maxout_mlp():
    run = lambda net, x: net.head(net.body(x).unflatten(1, (64, 4)).amax(-1))
    return Trial(Net(run, body=nn.Linear(20, 256), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@healthy
def bottleneck_of_four_units():
    return Trial(mlp(20, 64, 4, 64, 10), *blobs(), CROSS_ENTROPY)


@healthy
def coordinates_through_sines():
    """V. Sitzmann et al., 2020: weights drawn for sin(30 x)."""

    def run(net, x):
        for layer in net.layers[:-1]:
            x = torch.sin(30 * layer(x))
        return net.layers[-1](x)

    layers = nn.ModuleList([nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)])
    for k, layer in enumerate(layers):
        bound = 0.5 if k == 0 else (6 / 64) ** 0.5 / 30
        nn.init.uniform_(layer.weight, -bound, bound)
    x = 2 * torch.rand(256, 2) - 1
    model = Net(run, layers=layers)
    return Trial(model, x, torch.sin(4 * x[:, :1]) * torch.cos(3 * x[:, 1:]), MSE, Adam(model.parameters(), lr=1e-4))


# Images.


@healthy
def plain_convnet():
    model = convnet(norm=False)
    return Trial(model, *images(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def convnet_with_group_norm():
    layers = [
        m for a in (3, 16) for m in (nn.Conv2d(a, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return Trial(nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10)), *images(), CROSS_ENTROPY)


@healthy
def small_resnet():
    model = resnet()
    return Trial(model, *images(), CROSS_ENTROPY, SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True))


@healthy
def resnet_whose_blocks_start_at_zero():
    return Trial(resnet(zero=True), *images(), CROSS_ENTROPY)


@healthy
def residual_scale_that_starts_at_zero():
    """ReZero (T. Bachlechner et al., 2020)."""

    def run(net, x):
        h = net.first(x)
        for block, scale in zip(net.blocks, net.scales, strict=True):
            h = h + scale * block(h)
        return net.head(h)

    scales = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(6))
    blocks = nn.ModuleList(mlp(64, 64, 64) for _ in range(6))
    model = Net(run, first=nn.Linear(20, 64), blocks=blocks, scales=scales, head=nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def squeeze_and_excitation():
    """A squeeze of four units (J. Hu et al., 2018)."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *mlp(16, 4, 16), nn.Sigmoid())
    run = lambda net, x: net.head(net.body(x) * net.gate(net.body(x))[..., None, None])
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    return Trial(Net(run, body=body, gate=gate, head=head), *images(), CROSS_ENTROPY)


@healthy
def depthwise_separable_convolutions():
    block = lambda a, b: [
        nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False),
        nn.BatchNorm2d(a),
        nn.ReLU6(),
        nn.Conv2d(a, b, 1, bias=False),
        nn.BatchNorm2d(b),
        nn.ReLU6(),
    ]
    body = [nn.Conv2d(3, 16, 3, padding=1), *block(16, 32), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Trial(nn.Sequential(*body, nn.Linear(32, 10)), *images(), CROSS_ENTROPY)


@healthy
def vision_transformer():
    def run(net, x):
        h = net.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([net.token.expand(len(h), -1, -1), h], 1) + net.position
        return net.head(net.norm(net.body(h))[:, 0])

    parts = {"token": nn.Parameter(torch.zeros(1, 1, 32)), "position": nn.Parameter(0.02 * torch.randn(1, 17, 32))}
    body = nn.Sequential(*[transformer(norm_first=True, activation="gelu") for _ in range(3)])
    model = Net(run, patch=nn.Conv2d(3, 32, 4, 4), body=body, norm=nn.LayerNorm(32), head=nn.Linear(32, 10), **parts)
    return Trial(model, *images(), CROSS_ENTROPY, AdamW(model.parameters(), lr=3e-4, weight_decay=0.05))


@healthy
def unet_for_segmentation():
    def run(net, x):
        a = net.down(x)
        b = net.middle(F.max_pool2d(a, 2))
        return net.out(torch.cat([a, F.interpolate(b, scale_factor=2)], 1))

    block = lambda a, b: nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    out = nn.Sequential(block(48, 16), nn.Conv2d(16, 3, 1))
    x, _ = images(8)
    y = (x.mean(1) > 0).long() + (x[:, 0] > 1).long()
    return Trial(Net(run, down=block(3, 16), middle=block(16, 32), out=out), x, y, CROSS_ENTROPY)


@healthy
def segmentation_with_an_ignored_border():
    x, _ = images(8)
    y = (x.mean(1) > 0).long()
    y[:, 0] = 255
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    return Trial(model, x, y, nn.CrossEntropyLoss(ignore_index=255))


@healthy
def boxes_and_classes():
    """Two heads and two losses on a dictionary."""
    run = lambda net, x: {"boxes": net.box(net.body(x)).sigmoid(), "logits": net.classes(net.body(x))}
    body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
    model = Net(run, body=body, box=nn.Linear(512, 4), classes=nn.Linear(512, 10))
    x, y = images()
    targets = {"boxes": torch.rand(32, 4), "labels": y}
    loss = lambda out, t: F.l1_loss(out["boxes"], t["boxes"]) + F.cross_entropy(out["logits"], t["labels"])
    return Trial(model, x, targets, loss)


# Sequences.


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


# Generative models and representations.


@healthy
def autoencoder():
    x = images(channels=1)[0].flatten(1)
    model = mlp(256, 64, 16, 64, 256)
    return Trial(model, x, x, MSE, Adam(model.parameters()))


@healthy
def convolutional_autoencoder_of_pixels():
    x = images(channels=1)[0].sigmoid()
    layers = [
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 16, 2, 2),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.ConvTranspose2d(16, 1, 2, 2), nn.Sigmoid())
    return Trial(model, x, x, nn.BCELoss())


@healthy
def variational_autoencoder():
    def run(net, x):
        mean, logvar = net.encoder(x).chunk(2, dim=1)
        return net.decoder(mean + (0.5 * logvar).exp() * torch.randn_like(mean)), mean, logvar

    def loss(out, x):
        image, mean, logvar = out
        return (
            F.mse_loss(image, x, reduction="sum") / len(x) - 0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
        )

    x = images(channels=1)[0].flatten(1)
    model = Net(run, encoder=mlp(256, 64, 16), decoder=mlp(8, 64, 256))
    return Trial(model, x, x, loss, Adam(model.parameters()))


@healthy
def discriminator_on_real_pictures():
    """Every target is 1: the real half of a discriminator's step."""
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1024, 1))
    return Trial(
        model, images()[0], torch.ones(32, 1), BCE_LOGITS, Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    )


@healthy
def least_squares_generator():
    """X. Mao et al., 2017: the generator's pictures are to get a 1 from a discriminator that is frozen."""
    discriminator = mlp(64, 64, 1, act=nn.LeakyReLU).requires_grad_(False)
    model = Net(
        lambda net, z: net.discriminator(net.generator(z)), generator=mlp(16, 64, 64), discriminator=discriminator
    )
    return Trial(model, torch.randn(64, 16), torch.ones(64, 1), MSE, Adam(model.generator.parameters(), lr=2e-4))


@healthy
def denoising_with_a_time_step():
    """Diffusion: the noise is to be predicted, from a picture and a time; the last layer starts at 0."""
    clean, t, noise = torch.randn(64, 16), torch.rand(64, 1), torch.randn(64, 16)
    model = Net(
        lambda net, x, t: net.out(net.body(torch.cat([x, t], 1))),
        body=mlp(17, 64, 64).append(nn.SiLU()),
        out=nn.Linear(64, 16),
    )
    nn.init.zeros_(model.out.weight)
    nn.init.zeros_(model.out.bias)
    x = (1 - t).sqrt() * clean + t.sqrt() * noise
    return Trial(model, (x, t), noise, MSE, Adam(model.parameters()))


@healthy
def normalising_flow():
    """Affine coupling layers whose last weights start at 0 (L. Dinh et al., 2017)."""

    def run(net, x):
        logdet = 0.0
        for layer in net.layers:
            a, b = x.chunk(2, dim=1)
            s, t = layer(a).chunk(2, dim=1)
            x = torch.cat([b * s.tanh().exp() + t, a], 1)
            logdet = logdet + s.tanh().sum(1)
        return x, logdet

    layers = nn.ModuleList(mlp(4, 32, 8) for _ in range(4))
    for layer in layers:
        nn.init.zeros_(layer[-1].weight)
    loss = lambda out, _: (0.5 * (out[0] ** 2).sum(1) - out[1]).mean()
    return Trial(Net(run, layers=layers), torch.randn(128, 8) @ torch.randn(8, 8) / 2, None, loss)


@healthy
def contrastive_pairs():
    """A. van den Oord et al., 2018: every example is its own class, and the loss mixes examples."""
    x = torch.randn(64, 20)
    run = lambda net, a, b: F.normalize(net.body(a), dim=1) @ F.normalize(net.body(b), dim=1).T / 0.1
    model = Net(run, body=mlp(20, 64, 32))
    return Trial(model, (x, x + 0.3 * torch.randn(64, 20)), torch.arange(64), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def contrast_against_a_queue():
    """K. He et al., 2020: the positive is always in column 0, so that every label is 0."""
    x, queue = torch.randn(64, 20), F.normalize(torch.randn(128, 32), dim=1)

    def run(net, a, b):
        q, k = F.normalize(net.query(a), dim=1), F.normalize(net.key(b), dim=1).detach()
        return torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.2

    model = Net(run, query=mlp(20, 64, 32), key=mlp(20, 64, 32).requires_grad_(False))
    targets = torch.zeros(64, dtype=torch.long)
    return Trial(model, (x, x + 0.3 * torch.randn(64, 20)), targets, CROSS_ENTROPY)


@healthy
def siamese_triplets():
    x = torch.randn(64, 20)
    model = Net(lambda net, *xs: [net.body(x) for x in xs], body=mlp(20, 64, 16))
    loss = nn.TripletMarginLoss()
    given = x, x + 0.3 * torch.randn(64, 20), torch.randn(64, 20)
    return Trial(model, given, None, lambda out, _: loss(*out), Adam(model.parameters()))


@healthy
def two_views_that_must_agree():
    """X. Chen and K. He, 2021: a detach on purpose."""
    x = torch.randn(64, 20)

    def run(net, a, b):
        za, zb = net.body(a), net.body(b)
        return net.predictor(za), net.predictor(zb), za.detach(), zb.detach()

    def loss(out, _):
        pa, pb, za, zb = out
        return -(F.cosine_similarity(pa, zb).mean() + F.cosine_similarity(pb, za).mean()) / 2

    body = nn.Sequential(nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
    given = x + 0.3 * torch.randn(64, 20), x + 0.3 * torch.randn(64, 20)
    return Trial(Net(run, body=body, predictor=mlp(32, 16, 32)), given, None, loss)


@healthy
def matrix_factorisation():
    users, items = torch.randint(40, (128,)), torch.randint(60, (128,))
    run = lambda net, u, i: (net.users(u) * net.items(i)).sum(1) + net.mean
    model = Net(run, users=nn.Embedding(40, 8), items=nn.Embedding(60, 8), mean=nn.Parameter(torch.zeros(())))
    for p in (model.users.weight, model.items.weight):
        nn.init.normal_(p, std=0.3)
    return Trial(model, (users, items), torch.randn(128), MSE)


# Adaptation, routing, graphs, constraints.


@healthy
def low_rank_adapter():
    """E. Hu et al., 2022: the second factor starts at 0, the rest is frozen."""
    base, down, up = mlp(20, 64, 64), nn.Linear(20, 4, bias=False), nn.Linear(4, 64, bias=False)
    nn.init.zeros_(up.weight)
    run = lambda net, x: net.head((net.base(x) + 2 * net.up(net.down(x))).relu())
    model = Net(run, base=base.requires_grad_(False), down=down, up=up, head=nn.Linear(64, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3))


@healthy
def frozen_backbone_with_a_new_head():
    model = trained(Trial(convnet(), *images(), CROSS_ENTROPY), 50).model
    model.requires_grad_(False)
    model[-1] = nn.Linear(32 * 16, 10)
    return Trial(model.eval(), *images(), CROSS_ENTROPY, SGD(model[-1].parameters(), lr=0.01))


@healthy
def mixture_of_experts():
    def run(net, x):
        weights = net.router(x).softmax(1)
        top, chosen = weights.topk(2, dim=1)
        outs = torch.stack([expert(x) for expert in net.experts], 1)
        return (outs[torch.arange(len(x))[:, None], chosen] * top[..., None]).sum(1)

    model = Net(run, router=nn.Linear(20, 4), experts=nn.ModuleList(mlp(20, 32, 10) for _ in range(4)))
    return Trial(model, *blobs(128), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def graph_convolutions():
    """The rows are nodes of one graph, and mixing them is the point (T. Kipf and M. Welling, 2017)."""
    edges = (torch.rand(64, 64) < 0.05).float()
    edges = ((edges + edges.T + torch.eye(64)) > 0).float()
    degree = edges.sum(1) ** -0.5
    spread = degree[:, None] * edges * degree
    model = Net(
        lambda net, x, spread: spread @ net.b((spread @ net.a(x)).relu()), a=nn.Linear(20, 32), b=nn.Linear(32, 10)
    )
    x, y = blobs(64)
    return Trial(xavier(model), (x, spread), y, CROSS_ENTROPY, Adam(model.parameters(), lr=0.01))


@healthy
def sets_of_points():
    """A maximum over points (C. Qi et al., 2017)."""
    x, y = series(length=32, features=3)
    model = Net(lambda net, x: net.head(net.body(x).amax(1)), body=mlp(3, 64, 64), head=mlp(64, 32, 4))
    return Trial(model, x, y, CROSS_ENTROPY)


@healthy
def weight_norm_mlp():
    model = nn.Sequential(weight_norm(nn.Linear(20, 64)), nn.ReLU(), weight_norm(nn.Linear(64, 10)))
    return Trial(model, *blobs(), CROSS_ENTROPY)


@healthy
def spectral_norm_critic():
    model = nn.Sequential(spectral_norm(nn.Linear(20, 64)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(64, 1)))
    x, y = binary()
    return Trial(model, x, y, lambda o, t: F.relu(1 - (2 * t - 1) * o).mean(), Adam(model.parameters(), lr=2e-4))


@healthy
def equation_of_motion():
    """A physics residual against 0 with its initial values in the loss (M. Raissi et al., 2019)."""
    times = torch.linspace(0, 2, 64)[:, None].requires_grad_()
    model = xavier(mlp(1, 32, 32, 1, act=nn.Tanh))

    def run(net, t):
        u = net.body(t)
        (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return torch.cat([du + u, u[:1] - 1])

    return Trial(Net(run, body=model), times, torch.zeros(65, 1), MSE, Adam(model.parameters()))


@healthy
def deep_q_learning():
    states, actions, rewards, following = (
        torch.randn(64, 8),
        torch.randint(4, (64, 1)),
        torch.randn(64),
        torch.randn(64, 8),
    )
    model, target = mlp(8, 64, 64, 4), mlp(8, 64, 64, 4).requires_grad_(False)

    def loss(q, r):
        return F.smooth_l1_loss(q.gather(1, actions)[:, 0], r + 0.99 * target(following).amax(1))

    return Trial(model, states, rewards, loss, Adam(model.parameters(), lr=1e-4))


@healthy
def actor_and_critic():
    states, actions, returns = torch.randn(64, 8), torch.randint(4, (64,)), torch.randn(64)
    run = lambda net, x: (net.actor(net.body(x)), net.critic(net.body(x))[:, 0])

    def loss(out, returns):
        logits, value = out
        chosen = torch.distributions.Categorical(logits=logits)
        advantage = (returns - value).detach()
        return (
            -(chosen.log_prob(actions) * advantage).mean() + F.mse_loss(value, returns) - 0.01 * chosen.entropy().mean()
        )

    body = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    for layer, gain in ((body[0], 2**0.5), (body[2], 2**0.5)):
        nn.init.orthogonal_(layer.weight, gain)
    actor = nn.Linear(64, 4)
    nn.init.orthogonal_(actor.weight, 0.01)
    model = Net(run, body=body, actor=actor, critic=nn.Linear(64, 1))
    return Trial(model, states, returns, loss, Adam(model.parameters(), lr=3e-4))


# Losses.


@healthy
def huber_regression():
    return Trial(mlp(20, 64, 64, 1), *curve(), nn.HuberLoss())


@healthy
def log_cosh_regression():
    return Trial(mlp(20, 64, 1), *curve(), lambda o, t: (F.softplus(2 * (o - t)) - (o - t) - math.log(2)).mean())


@healthy
def poisson_counts():
    x = torch.randn(64, 20)
    return Trial(mlp(20, 64, 1), x, torch.poisson((0.5 * x[:, :1]).exp()), nn.PoissonNLLLoss())


@healthy
def gaussian_with_its_variance():
    run = lambda net, x: (net.mean(net.body(x)), F.softplus(net.variance(net.body(x))) + 1e-4)
    body = nn.Sequential(nn.Linear(20, 64), nn.ReLU())
    model = Net(run, body=body, mean=nn.Linear(64, 1), variance=nn.Linear(64, 1))
    return Trial(model, *curve(), lambda out, y: F.gaussian_nll_loss(out[0], y, out[1]))


@healthy
def three_quantiles():
    levels = torch.tensor([0.1, 0.5, 0.9])
    loss = lambda q, y: torch.maximum(levels * (y - q), (levels - 1) * (y - q)).mean()
    return Trial(mlp(20, 64, 3), *curve(), loss)


@healthy
def positive_targets_through_softplus():
    x, y = curve()
    return Trial(mlp(20, 64, 1).append(nn.Softplus()), x, y.abs(), MSE)


@healthy
def several_labels_at_once():
    x = torch.randn(64, 20)
    y = (x @ torch.randn(20, 6) > 2).float()
    return Trial(mlp(20, 64, 6), x, y, nn.BCEWithLogitsLoss(pos_weight=torch.full((6,), 2.0)))


@healthy
def smoothed_labels_and_class_weights():
    loss = nn.CrossEntropyLoss(weight=torch.rand(10) + 0.5, label_smoothing=0.1)
    return Trial(mlp(20, 64, 10), *blobs(), loss)


@healthy
def focal_loss():
    loss = lambda z, y: (
        (1 - (-F.cross_entropy(z, y, reduction="none")).exp()) ** 2 * F.cross_entropy(z, y, reduction="none")
    ).mean()
    return Trial(convnet(), *images(), loss)


@healthy
def hinge_of_support_vectors():
    x, y = binary()
    return Trial(mlp(20, 64, 1), x, 2 * y - 1, lambda o, t: F.relu(1 - o * t).mean())


@healthy
def survival_of_a_risk_set():
    """Cox's partial likelihood compares the examples with each other in the loss."""
    x = torch.randn(64, 20)
    loss = lambda risk, t: (torch.where(t[:, None] <= t, risk[:, 0], -1e4).logsumexp(1) - risk[:, 0]).mean()
    return Trial(mlp(20, 64, 1), x, torch.rand(64), loss)


@healthy
def dice_and_cross_entropy():
    x, _ = images(8)
    mask = (x.mean(1, keepdim=True) > 0.5).float()

    def loss(z, t):
        p = z.sigmoid()
        return F.binary_cross_entropy_with_logits(z, t) + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

    return Trial(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)), x, mask, loss)


# Types, and networks that have been trained.


@healthy
def mlp_in_double_precision():
    x, y = blobs()
    model = mlp(20, 64, 10).double()
    return Trial(model, x.double(), y, CROSS_ENTROPY)


@healthy
def mlp_in_bfloat16():
    x, y = curve()
    return Trial(mlp(20, 64, 1).bfloat16(), x.bfloat16(), y.bfloat16(), nn.L1Loss())


@healthy
def autocast_in_forward():
    def run(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.body(x)

    return Trial(Net(run, body=mlp(20, 64, 64, 10)), *blobs(), lambda z, y: F.cross_entropy(z.float(), y))


@healthy
def mlp_after_training():
    return trained(Trial(mlp(20, 64, 64, 10), *blobs(256), CROSS_ENTROPY), 200)


@healthy
def convnet_after_training():
    return trained(Trial(convnet(), *images(64), CROSS_ENTROPY), 100)


@healthy
def regression_after_training():
    return trained(Trial(mlp(20, 64, 64, 1, act=nn.Tanh), *curve(256), MSE), 300)


@healthy
def lstm_after_training():
    return trained(Trial(last_step(nn.LSTM(8, 32, batch_first=True), 32), *series(64), CROSS_ENTROPY), 100, lr=3e-3)


@healthy
def decoder_after_training():
    return trained(Trial(Decoder(layers=2), *text(), flat_cross_entropy), 100)


@healthy
def resnet_after_training_in_evaluation_mode_to_be_looked_at():
    """A trained network in evaluation mode, without an optimiser: a look at a batch of validation."""
    trial = trained(Trial(resnet(2), *images(64), CROSS_ENTROPY), 60)
    return trial._replace(model=trial.model.eval(), optimizer=None)


@healthy
def gradient_descent_after_many_steps_of_rmsprop():
    trial = Trial(mlp(20, 64, 10), *blobs(128), CROSS_ENTROPY)
    optimizer = RMSprop(trial.model.parameters(), lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        trial.loss_fn(trial.model(trial.inputs), trial.targets).backward()
        optimizer.step()
    return trial._replace(optimizer=optimizer)
