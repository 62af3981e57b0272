"""The optimiser's next step, what is left out on purpose, the second look, and two reports side by side."""

import json
import math

import pytest
import torch
from test_checkup_kinds import Model, classify, mlp
from torch import nn

from mmlib.checkup import RULES, checkup, compare, overfit

CROSS_ENTROPY = nn.CrossEntropyLoss()
Adam, SGD = torch.optim.Adam, torch.optim.SGD


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def learnable(n=64):
    x = torch.randn(n, 20)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def trained(steps=200):
    model, (x, y) = mlp(20, 64, 64, 4), learnable()
    optimizer = Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        CROSS_ENTROPY(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, x, y, optimizer


@pytest.mark.parametrize("rate", [1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize("seed", range(4))
def test_usual_rates_of_adam_are_not_judged_as_if_they_were_gradient_descent_s(rate, seed):
    torch.manual_seed(seed)
    model, x, y, loss_fn = classify(mlp(20, 64, 64, 10))
    assert not checkup(model, x, y, loss_fn, optimizer=Adam(model.parameters(), lr=rate))


@pytest.mark.parametrize(
    "make, size",
    [
        (lambda p: Adam(p, lr=0.3), "too large"),
        (lambda p: torch.optim.RMSprop(p, lr=0.3), "too large"),
        (lambda p: SGD(p, lr=30.0), "too large"),
        (lambda p: Adam(p, lr=1e-8), "too small"),
        (lambda p: SGD(p, lr=1e-6), "too small"),
        (lambda p: SGD(p, lr=0.0), "too small"),
    ],
)
def test_a_rate_is_too_large_or_too_small(make, size):
    model, x, y, loss_fn = classify(mlp(20, 64, 64, 10))
    (finding,) = checkup(model, x, y, loss_fn, optimizer=make(model.parameters()))
    assert finding.rule == "step size" and finding.measured.startswith(size)


def test_the_update_is_the_one_that_the_optimiser_makes():
    model, x, y, loss_fn = classify(mlp(20, 64, 10))
    report = checkup(model, x, y, loss_fn, optimizer=Adam(model.parameters(), lr=1e-3))
    expected = math.log10(1e-3 / model[0].weight.std().item())  # the first step of Adam is the rate, for each weight
    assert report.layers[0].update_data == pytest.approx(expected, abs=0.01)


def test_a_trained_network_is_not_told_to_multiply_its_rate():
    model, x, y, optimizer = trained()
    assert not checkup(model, x, y, CROSS_ENTROPY, lr=1e-3)
    assert not checkup(model, x, y, CROSS_ENTROPY, optimizer=optimizer)
    assert not checkup(model, x, y, CROSS_ENTROPY, optimizer=SGD(model.parameters(), lr=1e-4))


def test_parameters_that_the_optimiser_does_not_hold_are_named():
    model, x, y, loss_fn = classify(mlp(20, 64, 64, 10))
    (finding,) = checkup(model, x, y, loss_fn, optimizer=Adam(model[4].parameters()))
    assert (finding.rule, finding.layer, finding.also) == ("not in the optimiser", "0", ("2",))
    for part in (model[0], model[2]):
        part.requires_grad_(False)
    assert not checkup(model, x, y, loss_fn, optimizer=Adam(model[4].parameters()))


@pytest.mark.parametrize(
    "make, rule",
    [
        (lambda p: SGD(p, lr=0.1, maximize=True), "step goes uphill"),
        (lambda p: SGD(p, lr=0.1, weight_decay=30.0), "weight decay"),
        (lambda p: Adam(p, weight_decay=30.0), "weight decay"),
        (lambda p: SGD(p, lr=0.01, momentum=1.0), "optimiser settings"),
        (lambda p: Adam(p, eps=1.0), "optimiser settings"),
    ],
)
def test_settings_of_an_optimiser(make, rule):
    model, x, y, loss_fn = classify(mlp(20, 64, 64, 10))
    (finding,) = checkup(model, x, y, loss_fn, optimizer=make(model.parameters()))
    assert finding.rule == rule


def test_a_schedule_that_starts_at_zero_counts_with_its_first_rate():
    model, x, y, loss_fn = classify(mlp(20, 64, 10))
    optimizer = Adam(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
    assert not checkup(model, x, y, loss_fn, optimizer=optimizer)


def test_a_step_that_cannot_be_taken_is_said_to_be_unseen():
    model, x, y, loss_fn = classify(mlp(20, 64, 10))
    report = checkup(model, x, y, loss_fn, optimizer=torch.optim.LBFGS(model.parameters()))
    assert not report and "Not looked into: a step of LBFGS, which needs a closure" in str(report)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"optimizer": 0.1}, TypeError, "optimizer: a torch.optim.Optimizer is needed, got float"),
        ({"optimizer": Adam(mlp(2, 2).parameters())}, ValueError, "optimizer: none of its 2 parameters is one of"),
        ({"ignore": ("frist loss",)}, ValueError, "no rule is called 'frist loss'; there are .*first loss"),
    ],
)
def test_bad_input_is_an_error_in_words(change, error, message):
    with pytest.raises(error, match=message):
        checkup(*classify(mlp(20, 10)), **change)


def test_rules_are_left_out_by_name():
    given = classify(nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 10), nn.ReLU()))
    assert [f.rule for f in checkup(*given)] == ["logits already squashed", "no activation"]
    assert [f.rule for f in checkup(*given, ignore="no activation")] == ["logits already squashed"]
    assert not checkup(*given, ignore=list(RULES))


def test_one_batch_is_learned_by_heart():
    model, (x, y) = mlp(20, 64, 4), learnable()
    before = [p.clone() for p in model.parameters()]
    seen = overfit(model, x, y, CROSS_ENTROPY, Adam(model.parameters(), lr=1e-2))
    assert seen.reached and seen.floor == pytest.approx(0, abs=1e-6) and seen.losses[-1] < 0.05 * seen.losses[0]
    assert "learned by heart" in str(seen) and not seen.still
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_floor_is_what_the_targets_allow():
    model, (x, y) = mlp(20, 64, 4), learnable()
    smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
    seen = overfit(model, x, y, smooth, Adam(model.parameters(), lr=1e-2), steps=400)
    share = torch.tensor([0.85, 0.05, 0.05, 0.05])
    assert seen.floor == pytest.approx(-(share * share.log()).sum().item(), rel=1e-4) and seen.reached


def test_what_does_not_move_is_named():
    model, (x, y) = Model(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(20, 64), b=nn.Linear(64, 4)), learnable()
    seen = overfit(model, x, y, CROSS_ENTROPY, SGD(model.b.parameters(), lr=1e-4), steps=30)
    assert not seen.reached and seen.still == ("a",) and "not learned by heart" in str(seen)


def test_two_examples_that_are_alike_and_wanted_apart_stop_the_loss_above_its_floor():
    model, x = mlp(20, 64, 2), torch.randn(8, 20).repeat(2, 1)
    y = torch.arange(16) // 8
    seen = overfit(model, x, y, CROSS_ENTROPY, Adam(model.parameters(), lr=1e-2))
    assert not seen.reached and seen.losses[-1] == pytest.approx(math.log(2), rel=0.02)
    assert seen.stopped is not None and "falls no further" in str(seen)


def test_a_method_that_needs_a_closure_can_be_looked_at():
    model, (x, y) = mlp(20, 64, 4), learnable()
    seen = overfit(model, x, y, CROSS_ENTROPY, torch.optim.LBFGS(model.parameters()), steps=20)
    assert seen.reached and len(seen.losses) == 21


@pytest.mark.parametrize("steps", [0, 9, 10.0])
def test_a_second_look_takes_some_steps(steps):
    model, (x, y) = mlp(20, 4), learnable()
    with pytest.raises(ValueError, match="steps: an integer of at least 10 is needed"):
        overfit(model, x, y, CROSS_ENTROPY, Adam(model.parameters()), steps=steps)


def test_two_reports_side_by_side():
    model, x, y, loss_fn = classify(mlp(20, 64, 64, 10))
    before = checkup(model, x, y, loss_fn)
    with torch.no_grad():
        model[2].bias.fill_(-20)
    after = checkup(model, x, y, loss_fn)
    both = compare(before, after)
    assert [f.rule for f in both.new] == ["dead units"] and not both.gone
    assert [f.rule for f in compare(after, before).gone] == ["dead units"]
    assert "new: dead units, in 3" in str(both) and "> 100.0%" in str(both)
    assert both._repr_html_().count("<table>") == 1
    with pytest.raises(TypeError, match="after: a Report is needed, got int"):
        compare(before, 3)


# The page.


def test_errors_come_before_warnings_and_the_table_last():
    model, x, y, loss_fn = classify(
        nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 10), nn.ReLU()), 40 * torch.randn(32, 20)
    )
    report = checkup(model, x, y, loss_fn)
    assert [f.severity for f in report] == sorted((f.severity for f in report), key=["error", "warning", "note"].index)
    page = str(report)
    assert page.index("findings") < page.index("1. error") < page.index("warning") < page.index("layer  kind")


def test_a_long_table_is_folded_to_the_layers_that_differ():
    layers = [layer for _ in range(30) for layer in (nn.Linear(20, 20), nn.LayerNorm(20), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(20, 10))
    with torch.no_grad():
        model[45].weight.mul_(9)
    report = checkup(*classify(model))
    page = str(report)
    assert len(report.layers) == 91 and len(page.splitlines()) < 60 and "more like these" in page
    assert "\n45 " in page and len(report.table().splitlines()) == 92


def test_a_report_is_json():
    report = checkup(*classify(mlp(20, 24, 10).append(nn.ReLU())))
    whole = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert whole["findings"][0]["rule"] == "logits already squashed" and whole["layers"][0]["name"] == "0"
    model, x, y, loss_fn = classify(mlp(20, 10))
    broken = checkup(model, x, y, lambda o, t: loss_fn(o, t) * math.inf).to_dict()
    assert json.loads(json.dumps(broken, allow_nan=False))["loss"] == "inf"
