"""What a training run leaves behind."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Ended = Literal["done", "interrupted", "diverged"]


class Step(NamedTuple):
    """One step of gradient descent, just taken: p <- p - lr * grad for every parameter.

    `loss` is that of the minibatch before the step, of shape () or, for R stacked models, (R,). `parameters` are the
    live parameters after the step, `grads` what was subtracted lr times, both by name.
    """

    index: int  # type: ignore[assignment]  # a tuple's index is a method
    lr: float | Tensor
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


class Recorder:
    """A series as it grows, copied into blocks: thousands of small tensors would take many times the memory of theirs.

    It goes on from `series`, if one is given. `name` is what errors speak of.

    >>> loss = Recorder('loss')
    >>> loss.add(0, 3.3), loss.add(1, 3.25)
    (None, None)
    >>> loss.series().steps.tolist()
    [0, 1]
    """

    def __init__(self, name: str, series: Series | None = None) -> None:
        self.name = name
        self._whole = [series] if series is not None and len(series.steps) else []
        self._shape = self._whole[0].values.shape[1:] if self._whole else torch.Size()
        self._dtype: torch.dtype | None = None
        self._room = 0
        self._steps: list[int] = []
        self._values: list[float] | Tensor = []

    def add(self, step: int, value: Tensor | float) -> None:
        """Records a copy. A number among tensors stands for all their elements.

        Raises ValueError for a value whose shape is not that of the values before.
        """
        if isinstance(value, (int, float)):
            dtype = torch.int64 if isinstance(value, int) else torch.get_default_dtype()
        else:
            value = value if isinstance(value, Tensor) else torch.as_tensor(value)
            dtype = value.dtype
            if not value.dim():
                value = value.item()
            elif value.shape != self._shape:
                self._widen(step, value.shape)
        if dtype != self._dtype or len(self._steps) == self._room:
            self._open(dtype)
        if isinstance(self._values, list):
            self._values.append(value)  # type: ignore[arg-type]  # a tensor with axes has opened a block
        else:
            self._values[len(self._steps)] = value.detach() if isinstance(value, Tensor) else value
        self._steps.append(step)

    def _widen(self, step: int, shape: torch.Size) -> None:
        if self._shape:
            raise ValueError(
                f"{self.name}: one shape at every step is needed, got {tuple(shape)} at step {step} after "
                f"{tuple(self._shape)}"
            )
        self._close()
        self._shape = shape
        self._whole = [Series(s, v.view(-1, *[1] * len(shape)).expand(-1, *shape)) for s, v in self._whole]

    def _open(self, dtype: torch.dtype) -> None:
        self._close()
        self._dtype, self._room = dtype, max(1, min(1024, 2**22 // max(1, self._shape.numel())))
        self._values = torch.empty(self._room, *self._shape, dtype=dtype) if self._shape else []

    def _close(self) -> None:
        if self._steps:
            if isinstance(self._values, list):
                values = torch.tensor(self._values, dtype=self._dtype)
            else:
                values = self._values[: len(self._steps)].clone()
            self._whole.append(Series(torch.tensor(self._steps), values))
        self._dtype, self._steps = None, []

    def series(self) -> Series:
        """What was recorded until now."""
        self._close()
        if not self._whole:
            return Series(torch.empty(0, dtype=torch.long), torch.empty(0))
        self._whole = [Series(*map(torch.cat, zip(*self._whole, strict=True)))]
        return self._whole[0]


class History(NamedTuple):
    """The minibatch loss and learning rate of every step, and one series for each number that the probe gave.

    `ended` says why there are no more steps: "done" when all batches were used, "interrupted" from the keyboard, or
    "diverged". `diverged` tells of each model that stood still from some step on, and why: by its place among stacked
    models, 0 for a single one. Its loss is nan after that step.
    """

    loss: Series
    lr: Series
    probes: dict[str, Series]
    ended: Ended
    diverged: dict[int, str]
