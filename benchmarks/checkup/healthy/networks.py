"""Networks that several healthy programs are built from."""

import torch
import torch.nn.functional as F
from torch import nn


def transformer(width=32, heads=4, **options):
    return nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True, **options)


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
