"""Faults between the model's output and the number that is minimised.

Kinds from A. Karpathy's lists (2018; A recipe for training neural networks, 2019), N. Humbatova et al., Taxonomy of
real faults in deep learning systems (ICSE 2020), J. Cao et al., DeepFD (ICSE 2022), and the threads named below.
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
    convnet,
    curve,
    fault,
    flat_cross_entropy,
    images,
    kind,
    last_step,
    mlp,
    series,
    text,
)

SQUASHED = kind("logits squashed before the loss", "logits already squashed", "output range")
LOG_PROBABILITIES = kind("no log-probabilities where the loss needs them", "logits where log-probabilities belong")
RANGE = kind(
    "output range does not hold the targets", "output range", "logits already squashed, target scale, first loss"
)
ONE_OUTPUT = kind("a softmax or cross-entropy over one output", "one class", "constant predictions, zero gradient")
BROADCAST = kind("shapes broadcast in the loss", "shapes broadcast")
WRONG_LOSS = kind("a loss of another task", "targets out of range", "loss below its floor", "target scale, first loss")
SIGN = kind("the loss has the wrong sign or no lower end", "loss below its floor")
ITSELF = kind(
    "the loss does not look at the targets", "targets not used", "no gradient, zero gradient, targets all the same"
)


@fault(SQUASHED)
def softmax_layer_before_cross_entropy(broken):
    """Karpathy's list; jindongwang/Deep-learning-activity-recognition#10."""
    model = mlp(20, 64, 10).append(nn.Softmax(dim=1) if broken else nn.Identity())
    return Trial(model, *blobs(), CROSS_ENTROPY)


@fault(SQUASHED)
def softmax_in_forward_before_log_softmax(broken):
    """Lightning-Universe/lightning-bolts#654."""
    model = Net(lambda net, x: F.softmax(net.body(x), dim=1) if broken else net.body(x), body=convnet())
    return Trial(model, *images(), lambda z, y: F.nll_loss(F.log_softmax(z, dim=1), y))


@fault(SQUASHED)
def sigmoid_before_binary_cross_entropy_with_logits(broken):
    """Asked again and again on the PyTorch forum."""
    model = mlp(20, 64, 1).append(nn.Sigmoid() if broken else nn.Identity())
    return Trial(model, *binary(), BCE_LOGITS)


@fault(SQUASHED)
def sigmoid_before_cross_entropy(broken):
    """A head of a multi-label network kept for a task with one label; DeepFD's list."""
    model = mlp(20, 64, 32, 10).append(nn.Sigmoid() if broken else nn.Identity())
    return Trial(model, *blobs(), CROSS_ENTROPY, torch.optim.Adam(model.parameters()))


@fault(SQUASHED)
def relu_after_the_last_layer_of_a_classifier(broken):
    """A loop that puts a ReLU after every layer, the last included."""
    layers = [m for a, b in ((20, 64), (64, 32), (32, 10)) for m in (nn.Linear(a, b), nn.ReLU())]
    return Trial(nn.Sequential(*layers[: None if broken else -1]), *blobs(), CROSS_ENTROPY)


@fault(SQUASHED)
def relu_in_forward_before_binary_cross_entropy(broken):
    """The same, written in forward."""
    last = F.relu if broken else (lambda z: z)
    model = Net(lambda net, x: last(net.b(F.relu(net.a(x)))), a=nn.Linear(20, 64), b=nn.Linear(64, 1))
    return Trial(model, *binary(), BCE_LOGITS)


@fault(SQUASHED)
def softmax_over_pixels_classes_before_cross_entropy(broken):
    """Segmentation: F.softmax(z, dim=1) at the end of forward (n, classes, h, w)."""
    x, _ = images(8)
    y = (x.mean(1) > 0).long() + (x[:, 0] > 1).long()
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
    return Trial(Net(lambda net, x: net.body(x).softmax(1) if broken else net.body(x), body=body), x, y, CROSS_ENTROPY)


@fault(SQUASHED)
def tanh_before_binary_cross_entropy_with_logits(broken):
    """A discriminator that ends in tanh."""
    model = nn.Sequential(
        nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1), nn.Tanh() if broken else nn.Identity()
    )
    x = torch.randn(64, 64)
    return Trial(
        model, x, (x[:, :1] > 0).float(), BCE_LOGITS, torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999))
    )


@fault(SQUASHED)
def softmax_over_tokens_of_a_language_model(broken):
    """torch.softmax(logits, -1) in a language model's forward."""
    x, y = text()
    run = lambda net, x: (lambda z: z.softmax(-1) if broken else z)(net.head(net.body(net.embedding(x))[0]))
    model = Net(run, embedding=nn.Embedding(50, 32), body=nn.LSTM(32, 64, batch_first=True), head=nn.Linear(64, 50))
    return Trial(model, x, y, flat_cross_entropy, torch.optim.AdamW(model.parameters()))


@fault(LOG_PROBABILITIES)
def raw_logits_to_nll_loss(broken):
    """NLLLoss does not take the logarithm that its name says."""
    model = mlp(20, 64, 10).append(nn.Identity() if broken else nn.LogSoftmax(dim=1))
    return Trial(model, *blobs(), nn.NLLLoss())


@fault(LOG_PROBABILITIES)
def softmax_to_nll_loss(broken):
    """Softmax where LogSoftmax belongs."""
    model = convnet().append(nn.Softmax(dim=1) if broken else nn.LogSoftmax(dim=1))
    return Trial(model, *images(), F.nll_loss, torch.optim.Adam(model.parameters()))


@fault(LOG_PROBABILITIES)
def probabilities_to_kl_div(broken):
    """sebastian-hofstaetter/matchmaker#18."""
    x, _ = blobs()
    model, teacher = mlp(20, 64, 10), F.softmax(2 * torch.randn(64, 10), dim=1)
    squash = F.softmax if broken else F.log_softmax
    return Trial(model, x, teacher, lambda z, t: F.kl_div(squash(z, dim=1), t, reduction="batchmean"))


@fault(LOG_PROBABILITIES)
def raw_logits_to_kl_div(broken):
    """microsoft/ProDA#20."""
    (x, _), teacher = images(), F.softmax(2 * torch.randn(32, 10), dim=1)
    loss = nn.KLDivLoss(reduction="batchmean")
    return Trial(convnet(), x, teacher, loss if broken else lambda z, t: loss(F.log_softmax(z, dim=1), t))


@fault(LOG_PROBABILITIES)
def sigmoid_probabilities_to_nll_loss(broken):
    """Two sigmoid outputs and NLLLoss."""
    model = mlp(20, 64, 2).append(nn.Sigmoid() if broken else nn.LogSoftmax(dim=-1))
    return Trial(model, *blobs(classes=2), nn.NLLLoss(), torch.optim.SGD(model.parameters(), lr=0.1))


@fault(RANGE)
def relu_output_for_targets_of_both_signs(broken):
    """ProteomicsML/ProteomicsML#203."""
    model = mlp(20, 64, 64, 1).append(nn.ReLU() if broken else nn.Identity())
    return Trial(model, *curve(), MSE)


@fault(RANGE)
def sigmoid_output_for_targets_up_to_ten(broken):
    """A regression on a scale of 0 to 10; DeepFD's list."""
    x, y = curve()
    model = mlp(20, 64, 1).append(nn.Sigmoid() if broken else nn.Identity())
    return Trial(model, x, 5 + 2 * y if broken else y, MSE)


@fault(RANGE)
def sigmoid_decoder_for_standardised_images(broken):
    """An autoencoder's output between 0 and 1, for images with both signs."""
    x, _ = images(channels=1)
    body = [nn.Flatten(), *mlp(256, 64, 16, 64, 256), nn.Sigmoid() if broken else nn.Identity()]
    model = nn.Sequential(*body, nn.Unflatten(1, (1, 16, 16)))
    return Trial(model, x, x, MSE, torch.optim.Adam(model.parameters()))


@fault(RANGE)
def tanh_generator_for_images_of_0_to_255(broken):
    """The targets keep the bytes' scale, the output layer is a tanh."""
    x, _ = images(channels=1)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1), nn.Tanh())
    y = x.tanh()
    return Trial(model, x, 127.5 * (y + 1) if broken else y, nn.L1Loss())


@fault(RANGE)
def softmax_output_for_a_regression(broken):
    """Several numbers to predict, whose sum the softmax fixes at 1."""
    x = torch.randn(64, 20)
    model = mlp(20, 64, 3).append(nn.Softmax(dim=1) if broken else nn.Identity())
    return Trial(model, x, torch.tanh(x @ torch.randn(20, 3) / 4), MSE)


@fault(RANGE)
def softplus_output_for_log_returns(broken):
    """A layer for positive numbers where half the targets are negative."""
    x, y = curve()
    model = Net(lambda net, x: F.softplus(net.body(x)) if broken else net.body(x), body=mlp(20, 64, 1))
    return Trial(model, x, y, nn.SmoothL1Loss())


@fault(RANGE)
def relu_decoder_for_standardised_spectra(broken):
    """An autoencoder whose last layer has a ReLU like all the others."""
    x = torch.randn(64, 8) @ torch.randn(8, 40) / 8**0.5
    model = mlp(40, 32, 8, 32, 40).append(nn.ReLU() if broken else nn.Identity())
    return Trial(model, x, x, nn.MSELoss(), torch.optim.Adam(model.parameters()))


@fault(RANGE)
def sigmoid_for_angles_in_degrees(broken):
    """Angles of -180 to 180 from a sigmoid."""
    x, y = curve()
    angle = 60 * y
    return Trial(
        mlp(20, 64, 1).append(nn.Sigmoid() if broken else nn.Identity()), x, angle if broken else y, nn.SmoothL1Loss()
    )


@fault(RANGE)
def exponential_output_for_changes(broken):
    """exp() at the end, which is positive, for changes of both signs."""
    x, _ = series()
    target = x[:, -1, :1] - x[:, 0, :1]
    run = lambda net, x: (torch.exp if broken else (lambda z: z))(net.head(net.body(x)[0][:, -1]))
    return Trial(Net(run, body=nn.GRU(8, 32, batch_first=True), head=nn.Linear(32, 1)), x, target, MSE)


@fault(ONE_OUTPUT)
def softmax_over_one_unit(broken):
    """Binary classification with one output and a softmax, which is 1 whatever comes in; UMLAUT's list."""
    model = mlp(20, 64, 1).append(nn.Softmax(dim=1) if broken else nn.Sigmoid())
    return Trial(model, *binary(), nn.BCELoss())


@fault(ONE_OUTPUT)
def softmax_over_one_unit_with_squared_error(broken):
    """The same, trained with a squared error."""
    model = Net(lambda net, x: F.softmax(net.body(x), dim=-1) if broken else net.body(x), body=mlp(20, 32, 32, 1))
    return Trial(model, *binary(), MSE, torch.optim.Adam(model.parameters()))


@fault(ONE_OUTPUT)
def cross_entropy_over_one_output(broken):
    """One output for two classes: the loss is 0 or the labels are out of range."""
    x, y = blobs(classes=2)
    return Trial(mlp(20, 64, 1 if broken else 2), x, y * 0 if broken else y, CROSS_ENTROPY)


@fault(ONE_OUTPUT)
def log_softmax_over_one_unit_with_nll(broken):
    """One output, log-softmax, NLL: 0 from the start."""
    x, y = blobs(classes=2)
    model = mlp(20, 32, 1 if broken else 2).append(nn.LogSoftmax(dim=1))
    return Trial(model, x, torch.zeros_like(y) if broken else y, nn.NLLLoss())


@fault(BROADCAST)
def column_against_vector_in_mse(broken):
    """pytorch/pytorch#16045; jsboige/CoursIA#926."""
    x, y = curve()
    return Trial(mlp(20, 64, 1), x, y.flatten() if broken else y, MSE)


@fault(BROADCAST)
def column_against_vector_in_a_loss_by_hand(broken):
    """The same without a library loss, which would have warned."""
    x, y = curve()
    model = mlp(20, 64, 64, 1)
    return Trial(model, x, y[:, 0] if broken else y, lambda o, t: ((o - t) ** 2).mean().sqrt())


@fault(BROADCAST)
def extra_axis_in_huber_loss(broken):
    """OpenTabular/DeepTab#441: labels (n, 1, 1) against predictions (n, 1)."""
    x, y = curve()
    model = mlp(20, 64, 1)
    return Trial(model, x, y[:, None] if broken else y, nn.HuberLoss(), torch.optim.Adam(model.parameters()))


@fault(BROADCAST)
def pooled_translation_against_a_flat_label(broken):
    """dingmyu/CamNet#4: (n, 3, 1, 1) against (n, 3)."""
    n = 3
    x = images(n)[0]
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3), nn.AdaptiveAvgPool2d(1))
    model = body if broken else body.append(nn.Flatten())
    return Trial(model, x, torch.randn(n, 3), nn.L1Loss())


@fault(BROADCAST)
def sample_weights_against_a_column(broken):
    """Weights (n,) times squared errors (n, 1) weigh every pair."""
    x, y = curve()
    w = torch.rand(64) if broken else torch.rand(64, 1)
    return Trial(mlp(20, 64, 1), x, (y, w), lambda o, given: (given[1] * (o - given[0]) ** 2).mean())


@fault(BROADCAST)
def temporal_difference_of_a_vector_and_a_column(broken):
    """Deep Q-learning: gathered values (n, 1), targets (n,)."""
    x, actions, targets = torch.randn(64, 8), torch.randint(4, (64, 1)), torch.randn(64)
    model = mlp(8, 64, 64, 4)
    shape = (64,) if broken else (64, 1)
    return Trial(model, x, targets, lambda q, t: F.smooth_l1_loss(q.gather(1, actions), t.view(shape)))


@fault(BROADCAST)
def mask_without_its_channel_in_dice_loss(broken):
    """Segmentation: probabilities (n, 1, h, w) times a mask (n, h, w)."""

    def dice(z, mask):
        p = z.sigmoid()
        return 1 - 2 * (p * mask).sum() / (p.sum() + mask.sum())

    x, _ = images(8)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    mask = (x.mean(1) > 0).float()
    return Trial(model, x, mask if broken else mask[:, None], dice)


@fault(BROADCAST)
def rmse_of_a_sequence_model_against_a_flat_target(broken):
    """(n, 1) from a recurrence, targets (n,), and sqrt(mean(...)) by hand."""
    x, _ = series()
    target = x[:, -1, 0]
    model = last_step(nn.LSTM(8, 32, batch_first=True), 32, 1)
    return Trial(
        model,
        x,
        target if broken else target[:, None],
        lambda o, t: torch.sqrt(torch.mean(torch.square(torch.sub(o, t))) + 1e-8),
    )


@fault(BROADCAST)
def log_likelihood_with_a_column_of_variances(broken):
    """mean (n,), variance (n, 1)."""
    x, y = curve()
    run = lambda net, x: (net.m(net.body(x))[:, 0], F.softplus(net.v(net.body(x))) + 1e-3)
    model = Net(run, body=nn.Sequential(nn.Linear(20, 64), nn.ReLU()), m=nn.Linear(64, 1), v=nn.Linear(64, 1))
    shape = (lambda v: v) if broken else (lambda v: v[:, 0])
    return Trial(model, x, y[:, 0], lambda o, t: (shape(o[1]).log() + (t - o[0]) ** 2 / shape(o[1])).mean())


@fault(BROADCAST)
def binary_cross_entropy_by_hand_of_column_and_vector(broken):
    """-(y log p + (1 - y) log(1 - p)) with (n, 1) and (n,)."""
    x, y = binary()
    model = mlp(20, 64, 1).append(nn.Sigmoid())
    loss = lambda p, t: -(t * torch.log(p + 1e-7) + (1 - t) * torch.log(1 - p + 1e-7)).mean()
    return Trial(model, x, y.squeeze(1) if broken else y, loss)


@fault(WRONG_LOSS)
def squared_error_on_class_numbers(broken):
    """Class numbers 0 to 9 as something to regress on, which orders the classes."""
    x, y = blobs()
    if broken:
        return Trial(mlp(20, 64, 1), x, y[:, None].float(), MSE)
    return Trial(mlp(20, 64, 10), x, y, CROSS_ENTROPY)


@fault(WRONG_LOSS)
def binary_cross_entropy_on_class_numbers(broken):
    """Class numbers where one-hot rows belong: PyTorch takes targets beyond 1."""
    x, y = blobs(classes=5)
    targets = y[:, None].float().expand(-1, 5) if broken else F.one_hot(y, 5).float()
    return Trial(mlp(20, 64, 5), x, targets, BCE_LOGITS)


@fault(WRONG_LOSS)
def cross_entropy_on_a_column_of_numbers(broken):
    """Float targets (n, k) are taken for class probabilities, whatever their sum; UMLAUT's list."""
    x = torch.randn(64, 20)
    y = 3 * torch.randn(64, 20) @ torch.randn(20, 4) / 4
    model = mlp(20, 64, 4)
    return Trial(model, x, y if broken else y / y.std(), CROSS_ENTROPY if broken else MSE)


@fault(WRONG_LOSS)
def squared_error_on_token_numbers(broken):
    """Squared error on token numbers in a sequence task."""
    x, y = text()
    k = 1 if broken else 50
    run = lambda net, x: net.head(net.body(net.embedding(x))[0])
    model = Net(run, embedding=nn.Embedding(50, 32), body=nn.GRU(32, 64, batch_first=True), head=nn.Linear(64, k))
    return Trial(model, x, y[..., None].float() if broken else y, MSE if broken else flat_cross_entropy)


@fault(SIGN)
def likelihood_without_its_minus(broken):
    """The mean log-likelihood is minimised, which makes the data less likely."""
    sign = 1 if broken else -1
    loss = lambda z, y: sign * F.log_softmax(z, dim=1).gather(1, y[:, None]).mean()
    return Trial(mlp(20, 64, 10), *blobs(), loss)


@fault(SIGN)
def gaussian_divergence_with_the_wrong_sign(broken):
    """FluxML/model-zoo#147: the divergence of an autoencoder's code is subtracted."""

    def loss(out, x):
        image, mean, logvar = out
        divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean() / 256
        return F.mse_loss(image, x) + (-divergence if broken else divergence)

    def run(net, x):
        mean, logvar = net.encoder(x).chunk(2, dim=1)
        return net.decoder(mean + (0.5 * logvar).exp() * torch.randn_like(mean)), mean, logvar

    x = images(channels=1)[0].flatten(1)
    model = Net(run, encoder=mlp(256, 64, 16), decoder=mlp(8, 64, 256))
    return Trial(model, x, x, loss, torch.optim.Adam(model.parameters()))


@fault(SIGN)
def cosine_similarity_minimised(broken):
    """Similarity instead of 1 - similarity as the loss of pairs that belong together."""
    x = torch.randn(64, 20)
    model = Net(lambda net, a, b: (net.body(a), net.body(b)), body=mlp(20, 64, 16))
    sign = 1 if broken else -1
    return Trial(model, (x, x + 0.3 * torch.randn(64, 20)), None, lambda o, _: sign * F.cosine_similarity(*o).mean())


@fault(ITSELF)
def prediction_compared_with_itself(broken):
    """A variable of the wrong name: the loss is 0 from the start."""
    x, y = curve()
    return Trial(mlp(20, 64, 1), x, y, lambda o, t: F.mse_loss(o, o if broken else t))


@fault(ITSELF)
def every_label_is_ignored(broken):
    """The padding index of the loss is the index of the only label in the batch: a sum over nothing."""
    x, y = blobs(classes=4)
    loss = nn.CrossEntropyLoss(ignore_index=0, reduction="sum")
    return Trial(mlp(20, 64, 5), x, y * 0 if broken else y + 1, lambda z, t: loss(z, t) / 64)


@fault(ITSELF)
def distillation_of_the_teacher_by_itself(broken):
    """labmlai/annotated_deep_learning_paper_implementations#66: only the labels teach the student."""
    model = Net(lambda net, x: (net.student(x), net.teacher(x)), student=mlp(20, 32, 10), teacher=mlp(20, 128, 10))
    model.teacher.requires_grad_(False)

    def loss(out, y):
        student, teacher = out
        soft = F.kl_div((teacher if broken else student).log_softmax(1), teacher.softmax(1), reduction="batchmean")
        return F.cross_entropy(student, y) + soft

    return Trial(model, *blobs(), loss)
