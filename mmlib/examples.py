"""What a model learns from: contexts, and the symbol that follows each."""

from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """Contexts (..., n, block_size) and targets (..., n): symbols, and the symbol that follows them."""

    contexts: Tensor
    targets: Tensor

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers in the same shapes."""
        return isinstance(other, Examples) and all(map(torch.equal, self, other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        raise TypeError("Examples: tensors are compared by their numbers and have no hash")
