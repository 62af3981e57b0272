"""The running example: a multilayer perceptron that reads a few characters and predicts the next."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mmlib import rng
from mmlib.activations import TANH, Activation
from mmlib.data import Vocabulary
from mmlib.init import LECUN
from mmlib.layers import Embedding, Flatten, Init, Linear, Nonlinearity
from mmlib.undisturbed import undisturbed


@dataclass(frozen=True)
class MLP:
    """A recipe: embedding, then `depth` hidden layers of `width` units, then one logit for each token.

    Hidden layers are Linear, `norm(width)` if given, and the activation. With a norm the Linear has no bias: batch
    normalisation would take it away again, and the others but RMSNorm have a shift of their own. `confidence`
    multiplies the output layer's weights once, when the model is built: the scale of the first logits. Bengio et al.
    (2003), section 2, without its direct connections.

    Raises ValueError for a size below 1 (a depth below 0), or a confidence that is negative or not finite; TypeError if
    `norm` is a layer, not what makes one.

    >>> from mmlib.rng import generator
    >>> model = MLP(width=100, depth=1).build(generator(0, 'weights'))
    >>> [name for name, _ in model.named_children()]
    ['embedding', 'flatten', 'linear1', 'act1', 'output']
    >>> model(torch.zeros(32, 3, dtype=torch.long)).shape
    torch.Size([32, 27])
    """

    tokens: int = 27
    block_size: int = 3
    embedding: int = 10
    width: int = 100
    depth: int = 5
    activation: Activation = TANH
    init: Init = LECUN
    norm: Callable[[int], nn.Module] | None = None
    confidence: float = 0.1

    def __post_init__(self) -> None:
        for name in ("tokens", "block_size", "embedding", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1 is needed, got {getattr(self, name)}")
        for name in ("depth", "confidence"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: 0 or more is needed, got {getattr(self, name)}")
        if isinstance(self.norm, nn.Module):
            raise TypeError(f"norm: what makes a layer for a width is needed, such as BatchNorm1d, got {self.norm}")

    def build(self, generator: torch.Generator) -> nn.Sequential:
        """A new model with weights drawn from `generator`, layer by layer from the input on."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["embedding"] = Embedding(self.tokens, self.embedding, generator=rng.given(generator))
        layers["flatten"] = Flatten()
        fan_in = self.block_size * self.embedding
        for k in range(1, self.depth + 1):
            layers[f"linear{k}"] = Linear(
                fan_in, self.width, init=self.init, bias=self.norm is None, generator=generator
            )
            if self.norm is not None:
                layers[f"norm{k}"] = self.norm(self.width)
            layers[f"act{k}"] = Nonlinearity(self.activation)
            fan_in = self.width
        output = layers["output"] = Linear(fan_in, self.tokens, init=self.init, generator=generator)
        with torch.no_grad():
            output.weight.mul_(self.confidence)
        return nn.Sequential(layers)


@torch.no_grad()
def sample(
    model: nn.Module,
    vocabulary: Vocabulary,
    block_size: int,
    *,
    generator: torch.Generator,
    max_length: int = 30,
) -> str:
    """One name, drawn character by character from the model in evaluation mode, cut off after `max_length`.

    The model is left as found. Raises ValueError for a block_size below 1, or logits that give no probabilities.

    >>> from mmlib.data import corpus
    >>> from mmlib.rng import generator
    >>> model = MLP(width=100, depth=1).build(generator(0, 'weights'))
    >>> sample(model, corpus().vocabulary, 3, generator=generator(0, 'sample')).islower()
    True
    """
    if block_size < 1:
        raise ValueError(f"block_size: at least 1 is needed, got {block_size}")
    rng.given(generator)
    tokens = [0] * block_size
    with undisturbed(model):
        model.eval()
        while len(tokens) < block_size + max_length:
            logits = model(torch.tensor([tokens[-block_size:]]))
            probabilities = logits[0].softmax(-1)
            if not probabilities.isfinite().all():
                raise ValueError(f"sample: the logits after {tokens[block_size:]} are not finite: {logits[0].tolist()}")
            token = int(torch.multinomial(probabilities, 1, generator=generator))
            if token == 0:
                break
            tokens.append(token)
    return vocabulary.decode(tokens[block_size:])
