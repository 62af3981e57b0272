"""Faults of the structure: axes, reshapes, masks, activations left out, modes.

Kinds from A. Karpathy's lists (view against permute, training and evaluation mode), the taxonomy of N. Humbatova et al.
(ICSE 2020), A. Nikanjam et al., NeuraLint (TOSEM 2021), and the threads named below.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.checkup.programs import (
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    blobs,
    convnet,
    curve,
    fault,
    flat_cross_entropy,
    images,
    kind,
    mlp,
    series,
    text,
    tokens,
    trained,
)

AXES = kind("batch axis and time axis swapped", "examples mixed")
OVER_BATCH = kind(
    "a softmax or mean over the batch",
    "examples mixed",
    "logits where log-probabilities belong, same for all examples, constant predictions",
)
RESHAPED = kind("a reshape that carries numbers to other examples", "examples mixed")
SCRAMBLED = kind("a reshape that scrambles within an example")
AFFINE = kind("no activation between layers", "no activation")
LEAK = kind("a model that sees its target", "sees its target")
POSITION = kind("positions lost")
MASK = kind(
    "a mask in the wrong sense or place", "", "not finite, same for all examples, constant predictions, first loss"
)
DROPOUT = kind("too much dropout", "dropout", "zero gradient, constant predictions")
ALWAYS_DROPS = kind("dropout in evaluation mode", "dropout")
SMALL_BATCH = kind("batch statistics of one or two examples", "batch norm", "same for all examples")
MODES = kind("the wrong mode", "mixed modes, evaluation mode, statistics not run")
NORM_AXIS = kind("a norm over the wrong axis", "batch norm, examples mixed", "same for all examples")


def causal(length):
    return nn.Transformer.generate_square_subsequent_mask(length)


def language_model(body, width=32, vocabulary=50):
    run = lambda net, x: net.head(net.body(net.embedding(x)))
    return Net(run, embedding=nn.Embedding(vocabulary, width), body=body, head=nn.Linear(width, vocabulary))


@fault(AXES)
def lstm_without_batch_first(broken):
    """pytorch/pytorch#19675 and many forum topics: (n, length, features) taken for (length, n, features)."""
    run = lambda net, x: net.head(net.body(x)[0][:, -1])
    model = Net(run, body=nn.LSTM(8, 32, batch_first=not broken), head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(AXES)
def transformer_without_batch_first(broken):
    """IBM/TabFormer#14; Exorust/TorchLeet#5."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=not broken)
    run = lambda net, x: net.head(net.body(net.embedding(x)).mean(1))
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Net(run, embedding=nn.Embedding(50, 32), body=body, head=nn.Linear(32, 4))
    return Trial(model, *tokens(), CROSS_ENTROPY, torch.optim.Adam(model.parameters()))


@fault(AXES)
def attention_without_batch_first(broken):
    """om-ai-lab/OmDet#19."""

    def run(net, x):
        h = net.first(x)
        return net.head((h + net.attention(h, h, h)[0]).relu().mean(1))

    attention = nn.MultiheadAttention(32, 4, batch_first=not broken)
    model = Net(run, first=nn.Linear(8, 32), attention=attention, head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(AXES)
def recurrence_by_hand_over_the_first_axis(broken):
    """for x_t in x goes through the batch, and every example inherits the state of the one before."""

    def run(net, x):
        h, states = torch.zeros(x.shape[1] if broken else x.shape[0], 32), []
        for row in x if broken else x.transpose(0, 1):
            h = net.cell(row, h)
            states.append(h)
        return net.head(torch.stack(states).mean(1) if broken else h)

    return Trial(Net(run, cell=nn.GRUCell(8, 32), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY)


@fault(OVER_BATCH)
def attention_weights_normalised_over_the_batch(broken):
    """F.softmax(scores, dim=0)."""

    def run(net, x):
        weights = F.softmax(net.score(x), dim=0 if broken else 1)
        return net.head((weights * net.value(x)).sum(1))

    model = Net(run, score=nn.Linear(8, 1), value=nn.Linear(8, 32), head=mlp(32, 32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(OVER_BATCH)
def log_softmax_over_the_batch(broken):
    """ikostrikov/pytorch-meta-optimizer#10; MicrosoftDocs/pytorchfundamentals#21."""
    return Trial(mlp(20, 64, 10).append(nn.LogSoftmax(dim=0 if broken else 1)), *blobs(), nn.NLLLoss())


@fault(OVER_BATCH)
def mixture_weights_over_the_batch(broken):
    """ctallec/world-models#10."""

    def run(net, x):
        logits, means = net.body(x).chunk(2, dim=1)
        return F.log_softmax(logits, dim=0 if broken else 1), means

    loss = lambda out, y: -(out[0] - 0.5 * (out[1] - y) ** 2).logsumexp(1).mean()
    return Trial(Net(run, body=mlp(20, 64, 10)), *curve(), loss)


@fault(OVER_BATCH)
def policy_with_a_softmax_over_states(broken):
    """DeepReinforcementLearningInAction#32: made for one state, used for a batch."""
    states, actions, returns = torch.randn(64, 8), torch.randint(4, (64, 1)), torch.randn(64)
    model = nn.Sequential(*mlp(8, 64, 4, act=nn.LeakyReLU), nn.Softmax(dim=0 if broken else 1))
    return Trial(model, states, returns, lambda p, r: -(p.gather(1, actions)[:, 0].log() * r).mean())


@fault(OVER_BATCH)
def mean_over_the_batch_too(broken):
    """A mean over the first two axes where one over the second is meant."""
    pool = (lambda h: h.mean((0, 1)).expand(len(h), -1)) if broken else (lambda h: h.mean(1))
    model = Net(lambda net, x: net.head(pool(net.body(x))), body=mlp(8, 64, 64), head=nn.Linear(64, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(RESHAPED)
def view_for_a_transpose_before_a_recurrence(broken):
    """rish-16/tokenlearner-pytorch#1: view(length, n, features) of what is (n, length, features)."""

    def run(net, x):
        n, length, features = x.shape
        return net.head(net.body(x.reshape(length, n, features) if broken else x.transpose(0, 1))[0][-1])

    return Trial(Net(run, body=nn.GRU(8, 32), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY)


@fault(RESHAPED)
def last_states_of_two_directions_viewed_as_rows(broken):
    """hidden (2, n, h) viewed as (n, 2 h); OpenNMT/OpenNMT-py#61 asks how it must be."""

    def run(net, x):
        hidden = net.body(x)[1]
        return net.head(hidden.reshape(len(x), -1) if broken else torch.cat(list(hidden), dim=1))

    model = Net(run, body=nn.GRU(8, 16, batch_first=True, bidirectional=True), head=nn.Linear(32, 4))
    return Trial(model, *series(), CROSS_ENTROPY)


@fault(RESHAPED)
def heads_joined_without_their_transpose(broken):
    """gazelle93/Transformer-Various-Positional-Encoding#1: (heads, n, ...) taken for (n, heads, ...)."""

    def run(net, x):
        n, length, heads = *x.shape[:2], 4
        split = lambda h: h.view(n, length, heads, -1).permute(2, 0, 1, 3)
        q, k, v = map(split, net.qkv(net.first(x)).chunk(3, dim=-1))
        out = (q @ k.mT / 8**0.5).softmax(-1) @ v
        out = out.reshape(n, length, -1) if broken else out.permute(1, 2, 0, 3).reshape(n, length, -1)
        return net.head(out.mean(1))

    return Trial(
        Net(run, first=nn.Linear(8, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY
    )


@fault(RESHAPED)
def flattened_after_the_channels_went_first(broken):
    """A permute that puts the batch second, and a view that does not know."""
    flat = lambda h: h.transpose(0, 1).reshape(32, -1) if broken else h.flatten(1)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
    return Trial(
        Net(lambda net, x: net.head(flat(net.body(x))), body=body, head=nn.Linear(128, 10)), *images(), CROSS_ENTROPY
    )


@fault(SCRAMBLED)
def channels_last_images_viewed_as_channels_first(broken):
    """view(n, 3, h, w) of images that are (n, h, w, 3): Karpathy's sixth mistake."""
    x, y = images()
    last = x.permute(0, 2, 3, 1).contiguous()
    model = Net(lambda net, x: net.body(x.view(-1, 3, 16, 16) if broken else x.permute(0, 3, 1, 2)), body=convnet())
    return Trial(model, last, y, CROSS_ENTROPY)


@fault(SCRAMBLED)
def logits_viewed_with_their_classes_second(broken):
    """view(n, classes, length) where cross-entropy needs a transpose."""
    x, y = text()
    model = language_model(Net(lambda net, h: net.rnn(h)[0], rnn=nn.GRU(32, 32, batch_first=True)))
    turn = (lambda z: z.reshape(32, 50, 12)) if broken else (lambda z: z.transpose(1, 2))
    return Trial(model, x, y, lambda z, y: F.cross_entropy(turn(z), y))


@fault(SCRAMBLED)
def heads_split_by_a_view_alone(broken):
    """reczoo/FuxiCTR#30: (n, length, d) viewed as (n heads, length, d / heads) takes pieces of other positions."""

    def run(net, x):
        n, length = x.shape[:2]
        if broken:
            split = lambda h: h.reshape(n * 4, length, -1)
        else:
            split = lambda h: h.view(n, length, 4, -1).transpose(1, 2)
        q, k, v = map(split, net.qkv(net.embedding(x)).chunk(3, dim=-1))
        out = (q @ k.mT / 8**0.5).softmax(-1) @ v
        return net.head((out if broken else out.transpose(1, 2)).reshape(n, length, -1).mean(1))

    return Trial(
        Net(run, embedding=nn.Embedding(50, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY
    )


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


@fault(POSITION)
def transformer_without_positions(broken):
    """No positional encoding: which of two tokens comes first cannot be learned."""
    x, _ = tokens()
    y = (x[:, 0] > x[:, -1]).long()
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    position = torch.zeros(12, 32) if broken else 0.5 * torch.randn(12, 32)
    run = lambda net, x: net.head(net.layer(net.embedding(x) + position).mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 2)), x, y, CROSS_ENTROPY)


@fault(POSITION)
def positions_along_the_batch(broken):
    """songyangco/GETNext#2: the encoding is added along the batch, so that it tells examples apart and not steps."""
    position = 0.5 * torch.randn(64, 32)
    add = lambda h: h + (position[: len(h), None] if broken else position[: h.shape[1]])
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    run = lambda net, x: net.head(net.layer(add(net.embedding(x))).mean(1))
    return Trial(Net(run, embedding=nn.Embedding(50, 32), layer=layer, head=nn.Linear(32, 4)), *tokens(), CROSS_ENTROPY)


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


@fault(NORM_AXIS)
def batch_norm_over_the_steps(broken):
    """BatchNorm1d(length) on (n, length, features), because that is what runs."""
    norm = nn.BatchNorm1d(12 if broken else 32)
    apply = (lambda net, h: net.norm(h)) if broken else (lambda net, h: net.norm(h.transpose(1, 2)).transpose(1, 2))
    run = lambda net, x: net.head(apply(net, net.body(x)).relu().mean(1))
    return Trial(
        Net(run, body=nn.Linear(8, 32, bias=False), norm=norm, head=nn.Linear(32, 4)), *series(), CROSS_ENTROPY
    )


@fault(NORM_AXIS)
def standardised_over_the_batch_by_hand(broken):
    """(h - h.mean(0)) / h.std(0) in forward, also in evaluation mode, where LayerNorm is meant."""
    norm = (lambda h: (h - h.mean(0)) / (h.std(0) + 1e-5)) if broken else (lambda h: F.layer_norm(h, (64,)))
    run = lambda net, x: net.head(norm(net.body(x)).relu())
    return Trial(Net(run, body=nn.Linear(20, 64), head=nn.Linear(64, 10)), *blobs(), CROSS_ENTROPY)


@fault(NORM_AXIS)
def embeddings_normalised_over_the_batch(broken):
    """F.normalize(h, dim=0) before a contrastive loss."""
    x, other = torch.randn(2, 64, 20)
    run = lambda net, a, b: [F.normalize(net.body(z), dim=0 if broken else 1) for z in (a, b)]
    loss = lambda out, y: F.cross_entropy(out[0] @ out[1].T / 0.2, y)
    return Trial(Net(run, body=mlp(20, 64, 16)), (x, x + 0.2 * other), torch.arange(64), loss)
