"""Looking at a model without leaving a trace on it."""


import pytest
import torch
from torch import nn

from mmlib.data import Examples
from mmlib.layers import Linear, cross_entropy
from mmlib.norm import BatchNorm1d
from mmlib.rng import generator
from mmlib.trace import trace, undisturbed
from tests.small import mlp

pytestmark = pytest.mark.usefixtures("no_global_randomness")


#


class Lazy(nn.Module):
    """Makes a mask as long as its first batch, and has a slot for one more."""

    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", None)

    def forward(self, x):
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.ones(len(x), 1))
            self.nothing = torch.zeros(1)
        return x * self.mask


def test_buffers_that_are_made_within_are_gone_after(symbols):
    model = nn.Sequential(*mlp()[:2], Lazy(), Linear(30, 27, generator=generator(0, "w")))
    trace(model, Examples(symbols(64, 3), symbols(64)))
    assert model[2].nothing is None and list(model[2]._buffers) == ["nothing"]
    assert trace(model, Examples(symbols(3, 3), symbols(3))).loss.isfinite()


@pytest.mark.parametrize("kind", ["expanded", "inference", "resized", "replaced", "deleted", "None"])
def test_buffers_of_any_kind_are_put_back_and_the_body_s_error_is_the_one_raised(kind):
    layer = nn.Module()
    with torch.inference_mode(kind == "inference"):
        buffer = torch.arange(3.0).clone().expand(3) if kind == "inference" else torch.arange(3.0)
    buffer = buffer[:1].expand(3) if kind == "expanded" else buffer
    layer.register_buffer("b", buffer)
    values = buffer.tolist()
    with pytest.raises(KeyError, match="the body's"), undisturbed(layer):
        if kind == "resized":
            layer.b.resize_(7)
        elif kind == "deleted":
            del layer.b
        elif kind == "None":
            layer.b = None
        elif kind == "replaced":
            layer.b = torch.zeros(2)
        else:
            layer.b = layer.b + 1
        raise KeyError("the body's")
    assert layer.b is buffer and layer.b.tolist() == values


def test_a_pending_backward_pass_still_runs(symbols):
    model, batch = mlp(norm=BatchNorm1d).eval(), Examples(symbols(8, 3), symbols(8))
    loss = cross_entropy(model(batch.contexts), batch.targets)
    versions = [b._version for b in model.buffers()]
    trace(model.train(), batch)
    assert [b._version for b in model.buffers()] == versions
    loss.backward()


def test_a_buffer_that_two_layers_share_stays_one_within():
    a, b = nn.Module(), nn.Module()
    a.register_buffer("b", torch.zeros(2))
    b.register_buffer("b", a.b)
    with undisturbed(nn.ModuleList([a, b])):
        assert a.b is b.b
    assert a.b is b.b
