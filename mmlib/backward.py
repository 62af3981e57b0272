"""The same gradients by hand: what each step of the forward pass does to a gradient on its way back.

`grad` is dL / d output, of the output's shape; a result is dL / d input, of the input's shape. All work on
(..., batch, features); an input without the leading axes, which several models share, gathers the gradients of all.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mmlib.activations import Activation
from mmlib.losses import integers, outside


class LinearGrad(NamedTuple):
    """dL/dx, dL/dW and dL/db of y = x W^T + b."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> LinearGrad:
    """Back through y = x W^T + b: dL/dx = g W, dL/dW = g^T x, dL/db = sum of g over the batch.

    y_ij = sum_k x_ik W_jk + b_j. So x_ik enters y_ij with the factor W_jk: sum g_ij W_jk over the units j. And W_jk
    enters it with the factor x_ik: sum g_ij x_ik over the examples i; for b_j the factor is 1.

    Shapes: grad (..., batch, fan_out), x (..., batch, fan_in), weight (..., fan_out, fan_in). Raises ValueError where
    they do not fit.

    >>> import torch
    >>> grad, x, weight = torch.ones(2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]])
    >>> [g.tolist() for g in linear_backward(grad, x, weight)]
    [[[5.0, 6.0], [5.0, 6.0]], [[4.0, 6.0]], [2.0]]
    """
    leading, batch, fan_out, fan_in = grad.shape[:-2], grad.shape[-2:-1], grad.shape[-1:], x.shape[-1:]
    for input_, shape in ((x, batch + fan_in), (weight, fan_out + fan_in)):
        if grad.dim() < 2 or input_.shape not in (shape, leading + shape):
            raise ValueError(
                f"linear_backward: grad {tuple(grad.shape)} does not fit x {tuple(x.shape)} and weight "
                f"{tuple(weight.shape)}"
            )
    return LinearGrad(
        (grad @ weight).sum_to_size(x.shape),
        (grad.mT @ x).sum_to_size(weight.shape),
        grad.sum(-2).sum_to_size(weight.shape[:-1]),
    )


def _check_shape(place: str, grad: Tensor, name: str, x: Tensor) -> None:
    if grad.shape != x.shape:
        raise ValueError(f"{place}: grad {tuple(grad.shape)} does not fit {name} {tuple(x.shape)}")


def activation_backward(grad: Tensor, x: Tensor, activation: Activation) -> Tensor:
    """Back through h = phi(x): dL/dx = g phi'(x), elementwise, since h_ij depends on x_ij alone.

    Raises ValueError unless grad and x have one shape.

    >>> import torch
    >>> from mmlib.activations import RELU
    >>> activation_backward(torch.ones(2), torch.tensor([-1.0, 2.0]), RELU).tolist()
    [0.0, 1.0]
    """
    _check_shape("activation_backward", grad, "x", x)
    return grad * activation.derivative(x)


def standardize_backward(grad: Tensor, y: Tensor, var: Tensor, eps: float, dim: int) -> Tensor:
    """Back through y = (x - m) / s, s = sqrt(var + eps), where m and the biased var are x's own along the axis `dim`:

        dL/dx = (g - mean g - y mean(g y)) / s

    dm/dx_i = 1/n and ds/dx_i = (x_i - m) / (n s) = y_i / n, so that dy_j/dx_i = (delta_ij - 1/n - y_j y_i / n) / s;
    sum g_j times that over j. It is exact for any eps, although y then has a variance a little below 1.

    `dim` is -2, the batch, for batch normalisation and -1, the features, for layer normalisation; `var` broadcasts
    against y and has length 1 along `dim`, or lacks that axis. With statistics that do not depend on x, as in
    evaluation, g / s is all. Raises ValueError for shapes that do not fit. Ioffe and Szegedy (2015), section 3.

    >>> import torch
    >>> y = torch.tensor([[-1.0], [1.0]])
    >>> standardize_backward(torch.tensor([[1.0], [0.0]]), y, torch.ones(1, 1), 0.0, -2).tolist()
    [[0.0], [0.0]]
    """
    _check_shape("standardize_backward", grad, "y", y)
    mean_grad, mean_product = grad.mean(dim, keepdim=True), (grad * y).mean(dim, keepdim=True)
    if not _broadcasts(var, mean_grad.shape):
        raise ValueError(
            f"standardize_backward: var {tuple(var.shape)} does not fit y {tuple(y.shape)}: with dim={dim}, "
            f"its shape is {tuple(mean_grad.shape)}"
        )
    return (grad - mean_grad - y * mean_product) / (var + eps).sqrt()


def _broadcasts(x: Tensor, shape: tuple[int, ...]) -> bool:
    try:
        return x.expand(shape).shape == shape
    except RuntimeError:
        return False


def cross_entropy_backward(logits: Tensor, targets: Tensor) -> Tensor:
    """Back through the mean of -log softmax(z)[target] over n examples: dL/dz = (softmax(z) - onehot(target)) / n.

    Each example's loss is log sum_k exp z_k - z_target: the first term's derivative is softmax(z), the second's -1 at
    the target. Logits (..., batch, classes), integer targets (..., batch); where there are leading axes, each model has
    the gradient of its own loss. Raises ValueError for a target outside the classes, other kinds of numbers, or shapes
    that do not fit.

    >>> import torch
    >>> cross_entropy_backward(torch.zeros(1, 2), torch.tensor([1])).tolist()
    [[0.5, -0.5]]
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"cross_entropy_backward: logits {tuple(logits.shape)} do not fit targets {tuple(targets.shape)}"
        )
    targets, classes = integers("cross_entropy_backward", "targets", targets), logits.shape[-1]
    if ((targets < 0) | (targets >= classes)).any():
        raise ValueError(f"cross_entropy_backward: target {outside(targets, classes)}")
    return (logits.softmax(-1) - F.one_hot(targets, classes)) / targets.shape[-1]
