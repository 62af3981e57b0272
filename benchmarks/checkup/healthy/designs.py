"""Healthy designs with something odd on purpose: adapters, routing, graphs, derivatives in forward."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import SGD, Adam, AdamW

from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    binary,
    blobs,
    convnet,
    healthy,
    images,
    mlp,
    series,
    trained,
    xavier,
)


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


@healthy
def forces_from_an_energy():
    x = torch.randn(64, 6)

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp(6, 64, 64, 1, act=nn.SiLU)

        def forward(self, x):
            x = x.detach().requires_grad_()
            e = self.body(x)
            (f,) = torch.autograd.grad(e.sum(), x, create_graph=True)
            return e, -f

    loss = lambda o, t: F.mse_loss(o[0], t[0]) + F.mse_loss(o[1], t[1])
    model = Energy()
    return Trial(model, x, (0.5 * (x**2).sum(1, keepdim=True) - 3, -x), loss, Adam(model.parameters()))


@healthy
def steps_of_one_vector_field():
    """A neural ODE by Euler's method: one network, many times, on purpose."""

    def run(net, x):
        h = net.first(x)
        for _ in range(8):
            h = h + net.field(h) / 8
        return net.head(h)

    model = Net(run, first=nn.Linear(20, 32), field=mlp(32, 64, 32, act=nn.Tanh), head=nn.Linear(32, 10))
    return Trial(model, *blobs(), CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def soft_choice_by_gumbel():
    run = lambda net, x: net.head(F.gumbel_softmax(net.chooser(x), tau=1.0, hard=net.training) @ net.codes.weight)
    return Trial(
        Net(run, chooser=mlp(20, 32, 16), codes=nn.Embedding(16, 32), head=nn.Linear(32, 10)), *blobs(), CROSS_ENTROPY
    )


@healthy
def weights_made_by_another_network():
    def run(net, x, c):
        w, b = net.make(c).split([20 * 8, 8], dim=1)
        h = torch.einsum("nf,nfk->nk", x, w.view(-1, 20, 8) / 20**0.5) + b
        return net.head(h.relu())

    (x, y), c = blobs(), torch.randn(64, 4)
    return Trial(Net(run, make=mlp(4, 32, 168), head=nn.Linear(8, 10)), (x, c), y, CROSS_ENTROPY)


@healthy
def conditioned_by_scale_and_shift():
    """FiLM whose conditioning starts at the identity."""

    def run(net, x, c):
        g, b = net.film(c).chunk(2, dim=1)
        h = net.conv(x)
        return net.head((h * (1 + g[..., None, None]) + b[..., None, None]).relu().mean((2, 3)))

    (x, y), c = images(), torch.randn(32, 6)
    model = Net(run, conv=nn.Conv2d(3, 16, 3, padding=1), film=nn.Linear(6, 32), head=nn.Linear(16, 10))
    nn.init.zeros_(model.film.weight)
    nn.init.zeros_(model.film.bias)
    return Trial(model, (x, c), y, CROSS_ENTROPY, Adam(model.parameters()))


@healthy
def graph_attention_over_an_edge_list():
    x, y = blobs(40)
    edges = torch.cat([torch.randint(40, (2, 160)), torch.arange(40).expand(2, -1)], 1)

    def run(net, x, edges):
        h = net.a(x)
        s, t = edges
        e = F.leaky_relu(net.score(torch.cat([h[s], h[t]], 1)), 0.2)
        w = (e - e.max()).exp()
        total = torch.zeros(len(x), 1).index_add(0, t, w)
        return net.b(torch.zeros_like(h).index_add(0, t, h[s] * w / total[t]).relu())

    return Trial(
        Net(run, a=nn.Linear(20, 32), score=nn.Linear(64, 1), b=nn.Linear(32, 10)), (x, edges), y, CROSS_ENTROPY
    )
