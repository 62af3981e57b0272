"""Faults of the batch: targets and inputs.

Kinds from the taxonomy of N. Humbatova et al. (ICSE 2020: training data quality, preprocessing, wrong tensor shape),
E. Schoop et al., UMLAUT (CHI 2021), J. Cao et al., DeepFD (ICSE 2022), and the threads named below.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.checkup.programs import (
    BCE_LOGITS,
    CROSS_ENTROPY,
    MSE,
    Net,
    Trial,
    binary,
    blobs,
    causal,
    convnet,
    curve,
    fault,
    flat_cross_entropy,
    images,
    kind,
    language_model,
    last_step,
    mlp,
    series,
    text,
    tokens,
)

OUT_OF_RANGE = kind("targets out of range", "targets out of range", "loss below its floor")
CONSTANT_TARGETS = kind("targets all the same", "targets all the same")
NOT_FINITE_DATA = kind("nan or inf in the batch", "not finite")
TARGET_SCALE = kind("targets far from the scale of the outputs", "target scale", "first loss, output range")
UNUSED = kind("more outputs than classes", "unused outputs", "first loss")
UNRELATED = kind("targets that belong to other inputs")
UNSCALED = kind("inputs unscaled", "input scale", "saturation, first loss, activation scale")
EMPTY = kind(
    "inputs that say nothing",
    "inputs all the same, examples repeat",
    "same for all examples, constant predictions",
    "zero gradient",
)
SHIFT = kind("a next-token task that is not one", "sees its target")


@fault(OUT_OF_RANGE)
def labels_from_one_to_ten(broken):
    """MATLAB's numbering, ten outputs: on a GPU an assertion far from its cause."""
    x, y = blobs()
    return Trial(mlp(20, 64, 10), x, y + 1 if broken else y, CROSS_ENTROPY)


@fault(OUT_OF_RANGE)
def border_pixels_labelled_255(broken):
    """Segmentation masks whose border has the label 255, which the loss is not told to ignore."""
    x, _ = images(8)
    y = (x.mean(1) > 0).long()
    y[:, 0] = 255
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    return Trial(model, x, y, nn.CrossEntropyLoss(ignore_index=-100 if broken else 255))


@fault(OUT_OF_RANGE)
def binary_targets_of_minus_one_and_one(broken):
    """Labels made for a hinge loss, in a binary cross-entropy."""
    x, y = binary()
    return Trial(mlp(20, 64, 1), x, 2 * y - 1 if broken else y, BCE_LOGITS)


@fault(OUT_OF_RANGE)
def masks_of_0_and_255_as_probabilities(broken):
    """A mask read from a picture and not divided by 255."""
    x, _ = images(8)
    y = (x.mean(1, keepdim=True) > 0).float()
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    return Trial(model, x, 255 * y if broken else y, BCE_LOGITS, torch.optim.Adam(model.parameters()))


@fault(OUT_OF_RANGE)
def padding_index_minus_one_not_ignored(broken):
    """Labels padded with -1 in a tagging task, ignore_index left at -100."""
    x, y = text()
    y = y.clone()
    y[:, 9:] = -1
    run = lambda net, x: net.head(net.body(net.embedding(x))[0])
    model = Net(run, embedding=nn.Embedding(50, 32), body=nn.GRU(32, 64, batch_first=True), head=nn.Linear(64, 50))
    ignore = -100 if broken else -1
    return Trial(model, x, y, lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=ignore))


@fault(OUT_OF_RANGE)
def probabilities_in_percent(broken):
    """BCELoss-like targets of 0 to 100."""
    x, y = curve()
    p = torch.sigmoid(y)
    model = mlp(20, 64, 1)
    return Trial(
        model,
        x,
        100 * p if broken else p,
        F.binary_cross_entropy_with_logits,
        torch.optim.RMSprop(model.parameters(), lr=1e-3),
    )


@fault(CONSTANT_TARGETS)
def data_sorted_by_class(broken):
    """shuffle=False on a data set that is stored class by class: the batch holds one class."""
    x, y = blobs(640)
    order = y.argsort() if broken else torch.arange(640)
    return Trial(mlp(20, 64, 10), x[order][:40], y[order][:40], CROSS_ENTROPY)


@fault(CONSTANT_TARGETS)
def integer_division_of_targets(broken):
    """Ages in years divided by 100 as integers are all 0."""
    x, y = curve()
    age = (50 + 20 * y).clamp(1, 99).long()
    return Trial(mlp(20, 64, 1), x, (age // 100).float() if broken else (age - 50) / 25, MSE)


@fault(CONSTANT_TARGETS)
def label_compared_with_a_string_that_never_matches(broken):
    """The label is made by a comparison that is never true, so that every target is 0."""
    x, y = blobs(classes=2)
    return Trial(mlp(20, 64, 2), x, torch.zeros_like(y) if broken else y, CROSS_ENTROPY)


@fault(CONSTANT_TARGETS)
def segmentation_masks_all_background(broken):
    """Masks read as RGB and thresholded at the wrong value: all 0."""
    x, _ = images(8)
    y = (x.mean(1) > (100 if broken else 0)).long()
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    return Trial(model, x, y, CROSS_ENTROPY, torch.optim.Adam(model.parameters()))


@fault(NOT_FINITE_DATA)
def missing_values_in_the_targets(broken):
    """A table with empty cells."""
    x, y = curve()
    if broken:
        y[5] = float("nan")
    return Trial(mlp(20, 64, 1), x, y, MSE)


@fault(NOT_FINITE_DATA)
def logarithm_of_a_count_of_zero(broken):
    """Targets log(count) where log(1 + count) is meant."""
    x = torch.randn(64, 20)
    counts = torch.poisson((x[:, :1] - 1).exp())
    return Trial(mlp(20, 64, 1), x, counts.log() if broken else counts.log1p(), nn.L1Loss())


@fault(NOT_FINITE_DATA)
def a_constant_column_divided_by_its_deviation(broken):
    """Standardising a column that never changes: 0 / 0."""
    x, y = blobs()
    x[:, 3] = 7
    x = (x - x.mean(0)) / (x.std(0) + (0 if broken else 1e-6))
    return Trial(mlp(20, 64, 10), x, y, CROSS_ENTROPY)


@fault(NOT_FINITE_DATA)
def inputs_with_a_missing_sensor(broken):
    """nan where a sensor was silent."""
    x, y = series()
    if broken:
        x[4, 5:, 2] = float("nan")
    model = last_step(nn.GRU(8, 32, batch_first=True), 32)
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(TARGET_SCALE)
def house_prices_in_dollars(broken):
    """Targets of some hundred thousand; DeepFD's list has several of these."""
    x, y = curve()
    model = mlp(20, 64, 64, 1)
    price = 2e5 + 8e4 * y
    return Trial(model, x, price if broken else y, MSE, torch.optim.Adam(model.parameters()))


@fault(TARGET_SCALE)
def years_as_targets(broken):
    """Targets near 2000, whose mean has to be learned first."""
    x, y = curve()
    model = mlp(20, 64, 1)
    return Trial(model, x, 1990 + 10 * y if broken else y, nn.L1Loss(), torch.optim.Adam(model.parameters()))


@fault(TARGET_SCALE)
def daily_returns_of_a_thousandth(broken):
    """Targets so small that predicting 0 is nearly perfect."""
    x, _ = series()
    model = last_step(nn.GRU(8, 32, batch_first=True), 32, 1)
    target = x[:, -1, :1] + 0.1 * torch.randn(32, 1)
    return Trial(model, x, 1e-3 * target if broken else target, MSE, torch.optim.Adam(model.parameters()))


@fault(TARGET_SCALE)
def pixel_coordinates_as_targets(broken):
    """Key points in pixels of a picture of 1024."""
    x, _ = images()
    y = torch.tanh(x.mean((2, 3)))[:, :2]
    model = convnet(classes=2)
    return Trial(model, x, 512 + 300 * y if broken else y, MSE, torch.optim.Adam(model.parameters()))


@fault(UNUSED)
def a_thousand_outputs_for_ten_classes(broken):
    """The head of a network for ImageNet kept for another data set."""
    model = convnet(classes=1000 if broken else 10)
    return Trial(model, *images(128), CROSS_ENTROPY, torch.optim.SGD(model.parameters(), lr=0.01))


@fault(UNUSED)
def width_of_the_layer_before_as_classes(broken):
    """The hidden width given as the number of classes."""
    return Trial(mlp(20, 64, 64 if broken else 4), *blobs(classes=4), CROSS_ENTROPY)


@fault(UNRELATED)
def inputs_shuffled_without_their_targets(broken):
    """The two arrays shuffled one by one."""
    x, y = blobs()
    return Trial(mlp(20, 64, 10), x[torch.randperm(64)] if broken else x, y, CROSS_ENTROPY)


@fault(UNSCALED)
def images_of_0_to_255(broken):
    """Bytes turned to floats and no more; Karpathy's and UMLAUT's lists."""
    x, y = images()
    x = x if not broken else (128 + 50 * x).clamp(0, 255).round()
    return Trial(convnet(norm=False), x, y, CROSS_ENTROPY)


@fault(UNSCALED)
def one_column_in_dollars(broken):
    """A table in which one column is a salary."""
    x, y = binary()
    if broken:
        x[:, 4] = 5e4 + 2e4 * x[:, 4]
    model = mlp(20, 64, 1)
    return Trial(model, x, y, BCE_LOGITS, torch.optim.Adam(model.parameters()))


@fault(UNSCALED)
def second_input_in_metres(broken):
    """Two inputs; the one that comes second has another unit."""
    (x, y), place = blobs(), torch.randn(64, 3)
    model = Net(lambda net, x, p: net.head(torch.cat([net.a(x), net.b(p)], 1).relu()))
    model.a, model.b, model.head = nn.Linear(20, 32), nn.Linear(3, 32), nn.Linear(64, 10)
    return Trial(model, (x, 4e3 + 500 * place if broken else place), y, CROSS_ENTROPY)


@fault(UNSCALED)
def timestamps_in_seconds(broken):
    """Seconds since 1970 as a feature of a sequence."""
    x, y = series()
    if broken:
        x[..., 0] = 1.6e9 + 3600 * torch.arange(12)
    model = last_step(nn.LSTM(8, 32, batch_first=True), 32)
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(UNSCALED)
def images_divided_by_255_twice(broken):
    """pkmital/pycadl#5."""
    x, y = images()
    x = (0.5 + 0.2 * x).clamp(0, 1)
    return Trial(convnet(norm=False), x / 255 if broken else (x - 0.5) / 0.2, y, CROSS_ENTROPY)


@fault(UNSCALED)
def temperatures_in_kelvin(broken):
    """A mean sixty times the deviation."""
    x, y = curve()
    return Trial(mlp(20, 64, 1, act=nn.Tanh), 290 + 5 * x if broken else x, y, MSE)


@fault(UNSCALED)
def token_numbers_into_a_linear_layer(broken):
    """Token numbers as if they were quantities, for want of an embedding."""
    x, y = tokens(vocabulary=5000)
    if broken:
        return Trial(mlp(12, 64, 4), x.float(), y, CROSS_ENTROPY)
    return Trial(nn.Sequential(nn.Embedding(5000, 16), nn.Flatten(), *mlp(192, 64, 4)), x, y, CROSS_ENTROPY)


@fault(UNSCALED)
def audio_in_sixteen_bits(broken):
    """Samples of -32768 to 32767."""
    y = torch.randint(4, (32,))
    x = torch.sin(torch.arange(128) * (0.1 + 0.1 * y[:, None])) + 0.1 * torch.randn(32, 128)
    body = nn.Sequential(
        nn.Conv1d(1, 16, 9, 4),
        nn.ReLU(),
        nn.Conv1d(16, 32, 9, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    return Trial(body, (x * (12000 if broken else 1))[:, None], y, CROSS_ENTROPY)


@fault(UNSCALED)
def concentrations_in_moles(broken):
    """Features of 1e-6."""
    x, y = curve()
    return Trial(mlp(20, 64, 1), 1e-6 * (3 + x) if broken else x, y, MSE)


@fault(UNSCALED)
def bytes_beside_a_scaled_number(broken):
    """A picture and an age, of which only the age was standardised."""
    x, y = images()
    age = torch.randn(32, 1)
    body = convnet(norm=False)[:-1]
    run = lambda net, picture, age: net.head(torch.cat([net.body(picture), age], 1))
    picture = (128 + 50 * x).clamp(0, 255) if broken else x
    return Trial(Net(run, body=body, head=nn.Linear(513, 10)), (picture, age), y, CROSS_ENTROPY)


@fault(EMPTY)
def images_all_black(broken):
    """A loader that returns zeros where a file cannot be read."""
    x, y = images()
    return Trial(convnet(norm=False), 0 * x if broken else x, y, CROSS_ENTROPY)


@fault(EMPTY)
def a_data_set_that_returns_its_first_item(broken):
    """__getitem__ without its index."""
    x, y = blobs()
    return Trial(mlp(20, 64, 10), x[:1].repeat(64, 1) if broken else x, y, CROSS_ENTROPY)


@fault(EMPTY)
def every_token_is_unknown(broken):
    """A vocabulary in lower case, a text in upper case."""
    x, y = tokens()
    model = Net(
        lambda net, x: net.head(net.embedding(x).mean(1)), embedding=nn.Embedding(50, 32), head=nn.Linear(32, 4)
    )
    return Trial(model, torch.ones_like(x) if broken else x, y, CROSS_ENTROPY)


@fault(EMPTY)
def padding_up_to_the_end(broken):
    """Sequences padded on the right, of which only the last step is read."""
    x, y = series(length=40)
    x = F.pad(x[:, :4], (0, 0, 0, 36)) if broken else x
    model = last_step(nn.RNN(8, 32, batch_first=True), 32)
    return Trial(model, x, y, CROSS_ENTROPY)


@fault(EMPTY)
def features_overwritten_by_their_mean(broken):
    """x[:] = x.mean(0): every row the same."""
    x, y = curve()
    return Trial(mlp(20, 64, 1), x.mean(0).expand(64, -1).clone() if broken else x, y, MSE)


@fault(SHIFT)
def labels_that_are_the_inputs(broken):
    """huggingface/transformers#27517: neither the data nor the model shifts the labels."""
    x, y = text()
    model = Net(
        lambda net, x: net.head(net.body(net.embedding(x))[0]),
        embedding=nn.Embedding(50, 32),
        body=nn.GRU(32, 64, batch_first=True),
        head=nn.Linear(64, 50),
    )
    return Trial(model, x, x if broken else y, flat_cross_entropy)


@fault(SHIFT)
def labels_shifted_twice(broken):
    """huggingface/transformers#47394: both the data and the loss shift, so that the token after the next is learned."""
    x, y = text()
    model = Net(
        lambda net, x: net.head(net.body(net.embedding(x))[0]),
        embedding=nn.Embedding(50, 32),
        body=nn.LSTM(32, 64, batch_first=True),
        head=nn.Linear(64, 50),
    )
    again = lambda z, y: flat_cross_entropy(z[:, :-1], y[:, 1:])
    return Trial(model, x, y, again if broken else flat_cross_entropy)


@fault(SHIFT)
def causal_transformer_asked_for_its_input(broken):
    """x and y from the same slice."""
    x, y = text()
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = language_model(Net(lambda net, h: net.layer(h, src_mask=causal(12)), layer=layer))
    return Trial(model, x, x.clone() if broken else y, flat_cross_entropy, torch.optim.Adam(model.parameters()))
