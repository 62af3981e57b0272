"""Faults of the structure: activations and masks left out, dropout, batch statistics, modes.

Kinds from A. Karpathy's lists (training and evaluation mode), the taxonomy of N. Humbatova et al. (ICSE 2020), A.
Nikanjam et al., NeuraLint (TOSEM 2021), and the threads named below.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    blobs,
    causal,
    convnet,
    curve,
    fault,
    flat_cross_entropy,
    images,
    kind,
    language_model,
    mlp,
    text,
    tokens,
    trained,
)

AFFINE = kind("no activation between layers", "no activation")
LEAK = kind("a model that sees its target", "sees its target")
MASK = kind(
    "a mask in the wrong sense or place", "", "not finite, same for all examples, constant predictions, first loss"
)
DROPOUT = kind("too much dropout", "dropout", "zero gradient, constant predictions")
ALWAYS_DROPS = kind("dropout in evaluation mode", "dropout")
SMALL_BATCH = kind("batch statistics of one or two examples", "batch norm", "same for all examples")
MODES = kind("the wrong mode", "mixed modes, evaluation mode, statistics not run")


@fault(AFFINE)
def linear_layers_only(broken):
    """somepago/saint#23; YujiaBao/ls#1."""
    model = nn.Sequential(*[m for m in mlp(20, 64, 64, 10) if not broken or isinstance(m, nn.Linear)])
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(AFFINE)
def convolutions_without_activations(broken):
    """The activation is forgotten in the block that is repeated."""
    model = nn.Sequential(*[m for m in convnet() if not broken or not isinstance(m, (nn.ReLU, nn.MaxPool2d))])
    if broken:
        model[-1] = nn.Linear(32 * 256, 10)
    return Trial(model, *images(), CROSS_ENTROPY)


@fault(AFFINE)
def activation_whose_result_is_dropped(broken):
    """F.relu(h) without an assignment."""

    def run(net, x):
        h = net.a(x)
        r = F.relu(h)
        h = net.b(h if broken else r)
        r = F.relu(h)
        return net.c(h if broken else r)

    model = Net(run, a=nn.Linear(20, 64), b=nn.Linear(64, 64), c=nn.Linear(64, 1))
    return Trial(model, *curve(), MSE, torch.optim.SGD(model.parameters(), lr=0.05))


@fault(AFFINE)
def head_of_two_layers_without_an_activation(broken):
    """nutonomy/nuscenes-devkit#728: only the head is affine, the body is not."""
    head = nn.Sequential(nn.Linear(32 * 16, 64), nn.Identity() if broken else nn.ReLU(), nn.Linear(64, 10))
    return Trial(nn.Sequential(*convnet()[:-1], *head), *images(), CROSS_ENTROPY)


@fault(AFFINE)
def regression_of_three_linear_layers(broken):
    """nn.Linear after nn.Linear, as in a tutorial's first model."""
    act = nn.Identity if broken else nn.ReLU
    model = mlp(20, 128, 64, 1, act=act)
    return Trial(model, *curve(128), MSE, torch.optim.Adam(model.parameters()))


@fault(AFFINE)
def autoencoder_with_batch_norm_but_no_activation(broken):
    """Linear, batch norm, linear, batch norm."""
    layers = [
        m
        for a, b in ((40, 32), (32, 8), (8, 32))
        for m in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.Identity() if broken else nn.ReLU())
    ]
    x = torch.tanh(torch.randn(64, 8) @ torch.randn(8, 40) / 3)
    return Trial(nn.Sequential(*layers, nn.Linear(32, 40)), x, x, MSE)


@fault(LEAK)
def decoder_without_its_causal_mask(broken):
    """huggingface/transformers#48745; keras-team/keras#23038."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    mask = None if broken else causal(12)
    model = language_model(Net(lambda net, h: net.layer(h + net.position, src_mask=mask), layer=layer))
    model.body.position = nn.Parameter(0.1 * torch.randn(12, 32))
    return Trial(model, *text(), flat_cross_entropy)


@fault(LEAK)
def causal_mask_upside_down(broken):
    """tril for triu: every position sees itself and what comes after it."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    mask = causal(12).T if broken else causal(12)
    model = language_model(Net(lambda net, h: net.layer(h, src_mask=mask), layer=layer))
    return Trial(model, *text(), flat_cross_entropy, torch.optim.Adam(model.parameters()))


@fault(LEAK)
def bidirectional_language_model(broken):
    """An LSTM in both directions that predicts the next token."""
    rnn = nn.LSTM(32, 16 if broken else 32, batch_first=True, bidirectional=broken)
    model = language_model(Net(lambda net, h: net.rnn(h)[0], rnn=rnn))
    return Trial(model, *text(), flat_cross_entropy)


@fault(LEAK)
def convolution_over_time_padded_on_both_sides(broken):
    """padding="same" in a model that must be causal."""
    pad = (1, 1) if broken else (2, 0)
    run = lambda net, h: net.conv(F.pad(h.transpose(1, 2), pad)).relu().transpose(1, 2)
    return Trial(language_model(Net(run, conv=nn.Conv1d(32, 32, 3))), *text(), flat_cross_entropy)


@fault(LEAK)
def attention_by_hand_without_a_mask(broken):
    """Self-attention written out, the mask forgotten."""

    def attend(net, h):
        q, k, v = net.qkv(h).chunk(3, dim=-1)
        scores = q @ k.mT / 32**0.5
        if not broken:
            scores = scores.masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf)
        return h + scores.softmax(-1) @ v

    return Trial(language_model(Net(attend, qkv=nn.Linear(32, 96))), *text(), flat_cross_entropy)


@fault(LEAK)
def pooled_context_of_the_whole_sequence(broken):
    """A mean over all steps added to every step of a next-token model."""
    context = lambda h: h.mean(1, keepdim=True) if broken else h.cumsum(1) / torch.arange(1, 13)[:, None]
    model = language_model(Net(lambda net, h: torch.tanh(net.a(h) + context(h)), a=nn.Linear(32, 32)))
    return Trial(model, *text(), flat_cross_entropy)


@fault(LEAK)
def forecast_that_looks_ahead(broken):
    """A forecast of the next value whose network convolves over both sides."""
    x = torch.randn(32, 25).cumsum(1)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    pad = (1, 1) if broken else (2, 0)
    run = lambda net, x: net.b(net.a(F.pad(x[:, None], pad)).relu())[:, 0]
    return Trial(Net(run, a=nn.Conv1d(1, 32, 3), b=nn.Conv1d(32, 1, 1)), x[:, :-1], x[:, 1:], MSE)


@fault(MASK)
def padding_mask_turned_round(broken):
    """InseeFrLab/torchTextClassifiers#92: attention to the padding alone."""
    x, y = tokens(vocabulary=48)
    x = x + 1
    x[:, 8:] = 0
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    keep = (lambda x: x != 0) if broken else (lambda x: x == 0)
    run = lambda net, x: net.head(net.layer(net.embedding(x), src_key_padding_mask=keep(x))[:, :8].mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 4)), x, y, CROSS_ENTROPY)


@fault(MASK)
def mask_after_the_softmax(broken):
    """huggingface/pytorch-image-models#2236: -inf is added to probabilities, or they are zeroed and not sum to 1."""
    mask = torch.zeros(12, dtype=torch.bool)
    mask[6:] = True

    def run(net, x):
        q, k, v = net.qkv(net.embedding(x)).chunk(3, dim=-1)
        scores = q @ k.mT / 32**0.5
        weights = scores.softmax(-1).masked_fill(mask, -1e9) if broken else scores.masked_fill(mask, -1e9).softmax(-1)
        return net.head((weights @ v).mean(1))

    return Trial(
        Net(run, embedding=nn.Embedding(50, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY
    )


@fault(DROPOUT)
def share_to_keep_given_as_share_to_drop(broken):
    """0.9 as in TensorFlow 1, where it was what is kept."""
    p = 0.9 if broken else 0.1
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 10)
    )
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(DROPOUT)
def dropout_on_the_logits(broken):
    """The last layer in a list of blocks that all end in dropout."""
    layers = [nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10), nn.Dropout(0.5)]
    return Trial(nn.Sequential(*layers[: None if broken else -1]), *blobs(), CROSS_ENTROPY)


@fault(DROPOUT)
def dropout_of_one(broken):
    """A percentage, or a True, where a share belongs."""
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(1.0 if broken else 0.1), nn.Linear(64, 1))
    return Trial(model, *curve(), MSE)


@fault(DROPOUT)
def dropout_of_ninety_five_percent_in_attention(broken):
    """dropout=0.95 given to a transformer layer."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.95 if broken else 0.1, batch_first=True)
    run = lambda net, x: net.head(net.layer(net.embedding(x)).mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY)


@fault(ALWAYS_DROPS)
def functional_dropout_without_its_flag(broken):
    """karpathy/nanoGPT#240: F.dropout(h, 0.5) drops in evaluation mode too."""

    def run(net, x):
        h = F.dropout(net.a(x).relu(), 0.5, **({} if broken else {"training": net.training}))
        return net.b(h)

    return Trial(Net(run, a=nn.Linear(20, 64), b=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(ALWAYS_DROPS)
def attention_dropout_without_its_flag(broken):
    """The same in scaled_dot_product_attention, whose argument knows no mode."""

    def run(net, x):
        q, k, v = net.qkv(net.embedding(x)).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.2 if broken or net.training else 0.0)
        return net.head(out.mean(1))

    model = Net(run, embedding=nn.Embedding(50, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY)


@fault(ALWAYS_DROPS)
def bernoulli_mask_by_hand(broken):
    """A mask drawn in forward without asking for the mode."""

    def run(net, x):
        h = net.a(x).relu()
        return net.b(h * torch.bernoulli(torch.full_like(h, 0.5)) * 2 if broken or net.training else h)

    return Trial(Net(run, a=nn.Linear(20, 64), b=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(SMALL_BATCH)
def batch_norm_with_two_examples(broken):
    """A batch of two: every normalised number is 1 or -1."""
    model = nn.Sequential(nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    x, y = blobs(64)
    return Trial(model, x[:2] if broken else x, y[:2] if broken else y, CROSS_ENTROPY)


@fault(SMALL_BATCH)
def batch_norm_with_one_image(broken):
    """Detection and segmentation with a batch of one: each image is normalised by itself."""
    x, y = images(32)
    n = 1 if broken else 32
    return Trial(convnet(), x[:n], y[:n], CROSS_ENTROPY)


@fault(SMALL_BATCH)
def batch_norm_after_global_pooling_with_two_images(broken):
    """A batch of two through BatchNorm1d."""
    n = 2 if broken else 32
    x, y = images(32)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    return Trial(model, x[:n], y[:n], CROSS_ENTROPY)


@fault(MODES)
def trained_in_evaluation_mode(broken):
    """model.eval() before the validation, and no model.train() after it."""
    trial = trained(Trial(convnet().append(nn.Dropout(0.0)), *images(), CROSS_ENTROPY), 50)
    trial.model.train(not broken)
    return trial


@fault(MODES)
def new_batch_norms_in_evaluation_mode(broken):
    """A network trained from scratch in evaluation mode, with statistics 0 and 1."""
    return Trial(convnet().train(not broken), *images(), CROSS_ENTROPY)


@fault(MODES)
def dropout_left_in_evaluation_mode(broken):
    """One part was set to evaluation mode and forgotten."""
    model = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
    )
    model[2].train(not broken)
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(MODES)
def transformer_trained_after_eval(broken):
    """A transformer with dropout, in evaluation mode, with its optimiser."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.2, batch_first=True)
    run = lambda net, x: net.head(net.layer(net.embedding(x)).mean(1))
    model = Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 4)).train(not broken)
    return Trial(model, *tokens(), CROSS_ENTROPY, torch.optim.AdamW(model.parameters()))
