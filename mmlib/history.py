"""What a training run leaves behind."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """One step of gradient descent, just taken: p <- p - lr * grad for every parameter.

    `loss` is that of the minibatch before the step, of shape () or, for R stacked models, (R,). `parameters` are the
    live parameters after the step, `grads` what was subtracted lr times, both by name.
    """

    index: int
    lr: float
    loss: Tensor
    parameters: dict[str, Tensor]
    grads: dict[str, Tensor]


class Series(NamedTuple):
    """Values (k, ...) that were recorded at steps (k,)."""

    steps: Tensor
    values: Tensor

    def block_means(self, length: int) -> "Series":
        """Means over consecutive blocks of `length` records, at each block's mean step; a rest shorter is left out.

        Raises ValueError unless 1 <= length <= number of records.
        """
        if not 1 <= length <= len(self.steps):
            raise ValueError(f"length: 1 to {len(self.steps)} records are there, got {length}")
        whole = len(self.steps) // length * length
        return Series(*(x[:whole].double().unflatten(0, (-1, length)).mean(1) for x in self))


class History(NamedTuple):
    """The minibatch loss and learning rate of every step, and one series for each number that the probe gave."""

    loss: Series
    lr: Series
    probes: dict[str, Series]
