import math

import pytest
import torch
from torch import nn

from mmlib import layers
from mmlib.losses import cross_entropy

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def test_cross_entropy_is_that_of_torch(normal, symbols):
    logits, targets = (4 * normal(50, 27)).requires_grad_(), symbols(50)
    ours, theirs = cross_entropy(logits, targets), nn.CrossEntropyLoss()(logits, targets)
    assert ours.shape == () and torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("leading", [(3,), (2, 3)])
def test_cross_entropy_with_leading_axes_is_one_loss_for_each(leading, normal, symbols):
    logits, targets, cotangent = normal(*leading, 50, 27).requires_grad_(), symbols(*leading, 50), normal(*leading)
    losses = cross_entropy(logits, targets)
    assert losses.shape == leading
    (grad,) = torch.autograd.grad(losses, logits, cotangent)
    for index in torch.cartesian_prod(*map(torch.arange, leading)).view(-1, len(leading)).tolist():
        one = logits[tuple(index)].detach().requires_grad_()
        loss = nn.CrossEntropyLoss()(one, targets[tuple(index)])
        torch.testing.assert_close(losses[tuple(index)], loss, rtol=1e-12, atol=0)
        (expected,) = torch.autograd.grad(loss, one, cotangent[tuple(index)])
        torch.testing.assert_close(grad[tuple(index)], expected, rtol=1e-12, atol=1e-15)


def test_equal_logits_cost_the_logarithm_of_the_classes():
    loss = cross_entropy(torch.zeros(5, 27, dtype=torch.float64), torch.arange(5))
    assert float(loss) == pytest.approx(math.log(27), rel=1e-14)


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("bad", [-1, -100, 27, 1000])
def test_a_target_outside_the_vocabulary_is_refused(leading, bad, normal, symbols):
    logits, targets = normal(*leading, 6, 27), symbols(*leading, 6)
    targets[..., 0], targets[..., 5] = 0, 0
    targets[(*[1] * len(leading), slice(4, None))] = torch.tensor([bad, 99])
    where = [*[1] * len(leading), 4]
    with pytest.raises(ValueError) as error:
        cross_entropy(logits, targets)
    assert (
        str(error.value) == f"cross_entropy: target symbol {bad} at position {where} is outside the vocabulary, 0 to 26"
    )


@pytest.mark.parametrize("logits, targets", [((6, 27), (5,)), ((2, 6, 27), (6,)), ((6, 27), (2, 6)), ((6, 27), (6, 1))])
def test_targets_of_another_shape_are_refused(logits, targets, normal, symbols):
    with pytest.raises(ValueError, match=r"cross_entropy: logits .* do not fit targets"):
        cross_entropy(normal(*logits), symbols(*targets))


def test_the_earlier_path_leads_to_it():
    assert layers.cross_entropy is cross_entropy
