"""Healthy generative models and representations."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam

from benchmarks.checkup.programs import BCE_LOGITS, CROSS_ENTROPY, MSE, Net, Trial, blobs, healthy, images, mlp


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


@healthy
def target_network_moved_in_forward():
    """A momentum encoder updated in forward."""

    def run(net, a, b):
        with torch.no_grad():
            if net.training:
                for p, q in zip(net.online.parameters(), net.target.parameters(), strict=True):
                    q.lerp_(p, 0.01)
            t = F.normalize(net.target(b), dim=1)
        return F.normalize(net.predictor(net.online(a)), dim=1), t

    online = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    model = Net(run, online=online, target=copy.deepcopy(online).requires_grad_(False), predictor=mlp(16, 32, 16))
    x = torch.randn(64, 20)
    return Trial(model, (x, x + 0.2 * torch.randn(64, 20)), None, lambda o, _: (2 - 2 * (o[0] * o[1]).sum(1)).mean())


@healthy
def redundancy_reduction_of_two_views():
    x = torch.randn(64, 20)

    def loss(out, _):
        a, b = ((z - z.mean(0)) / z.std(0) for z in out)
        c = a.T @ b / len(a)
        return ((c - torch.eye(len(c))) ** 2 * (torch.eye(len(c)) + 0.005 * (1 - torch.eye(len(c))))).sum()

    model = Net(lambda net, a, b: (net.body(a), net.body(b)), body=mlp(20, 64, 16))
    return Trial(model, (x + 0.2 * torch.randn(64, 20), x), None, loss, Adam(model.parameters()))


@healthy
def supervised_contrast():
    x, y = blobs(classes=4)

    def loss(z, y):
        s = z @ z.T / 0.2 - 1e9 * torch.eye(len(z))
        same = ((y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool)).float()
        return -(same * s.log_softmax(1)).sum(1).div(same.sum(1).clamp(min=1)).mean()

    return Trial(Net(lambda net, x: F.normalize(net.body(x), dim=1), body=mlp(20, 64, 16)), x, y, loss)


@healthy
def critic_with_a_gradient_penalty():
    real, fake = torch.randn(32, 16) + 1, torch.randn(32, 16)
    critic = mlp(16, 64, 64, 1, act=nn.LeakyReLU)
    model = Net(lambda net, a, b: (net.critic(a), net.critic(b), net.penalty(a, b)), critic=critic)

    def penalty(a, b):
        mid = (0.5 * (a + b)).requires_grad_()
        (g,) = torch.autograd.grad(model.critic(mid).sum(), mid, create_graph=True)
        return ((g.norm(dim=1) - 1) ** 2).mean()

    model.penalty = penalty

    def loss(out, _):
        r, f, p = out
        return f.mean() - r.mean() + 10 * p

    return Trial(model, (real, fake), None, loss)


@healthy
def masked_convolutions_of_pixels():
    class Masked(nn.Conv2d):
        def __init__(self, kind, *args, **options):
            super().__init__(*args, **options)
            mask = torch.ones_like(self.weight)
            k = self.kernel_size[0] // 2
            mask[:, :, k, k + (kind == "B") :] = 0
            mask[:, :, k + 1 :] = 0
            self.register_buffer("mask", mask)

        def forward(self, x):
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)

    x = (images(16, 1)[0] > 0).float()
    model = nn.Sequential(
        Masked("A", 1, 16, 5, padding=2), nn.ReLU(), Masked("B", 16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)
    )
    return Trial(model, x, x, BCE_LOGITS, Adam(model.parameters()))


@healthy
def vector_quantisation_with_a_straight_through():
    def run(net, x):
        z = net.encoder(x)
        code = net.codes(torch.cdist(z, net.codes.weight).argmin(1))
        return net.decoder(z + (code - z).detach()), z, code

    loss = lambda o, x: F.mse_loss(o[0], x) + F.mse_loss(o[2], o[1].detach()) + 0.25 * F.mse_loss(o[1], o[2].detach())
    x = images(channels=1)[0].flatten(1)
    model = Net(run, encoder=mlp(256, 64, 8), codes=nn.Embedding(32, 8), decoder=mlp(8, 64, 256))
    nn.init.uniform_(model.codes.weight, -0.5, 0.5)
    return Trial(model, x, x, loss, Adam(model.parameters()))


@healthy
def generator_of_pictures_between_minus_one_and_one():
    x = images(16, 1)[0].tanh()
    z = torch.randn(16, 32)
    model = nn.Sequential(
        nn.Linear(32, 64 * 16),
        nn.Unflatten(1, (64, 4, 4)),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1),
        nn.Tanh(),
    )
    return Trial(model, z, x, nn.L1Loss(), Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999)))
