import math
import warnings

import pytest
import torch

from benchmarks.checkup import run
from benchmarks.checkup.faults import FAULTS, data
from benchmarks.checkup.healthy import HEALTHY
from benchmarks.checkup.programs import Kind, Program, Trial, fault, kind
from mmlib.checkup import RULES


def measured(trial: Trial) -> tuple:
    """What a program does: its loss in both modes, its gradients, and its optimiser's settings and parameters."""
    given = trial.inputs if isinstance(trial.inputs, tuple) else (trial.inputs,)
    named, optimizer = dict(trial.model.named_parameters()), trial.optimizer

    def once() -> tuple:
        torch.manual_seed(0)
        loss = trial.loss_fn(trial.model(*given), trial.targets)
        wanted = {name: p for name, p in named.items() if p.requires_grad} if loss.requires_grad else {}
        grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if wanted else ()
        return loss.item(), {n: g is not None and g.norm().item() for n, g in zip(wanted, grads, strict=True)}

    held = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer else set()
    settings = optimizer.defaults if optimizer else {}
    mode, trained = trial.model.training, once()
    evaluated = once() if trial.model.eval() else ()
    return mode, trained, evaluated, settings, [name for name, p in named.items() if id(p) in held]


def quietly(program: Program, broken: bool) -> tuple | type:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return measured(program.build(1, broken))
        except (IndexError, RuntimeError) as error:  # plain torch's own, of a fault that it notices
            if not broken:
                raise
            return type(error)


def test_the_record_is_as_large_as_it_is_said_to_be():
    kinds = {program.kind.name for program in FAULTS.values()}
    assert len(FAULTS) >= 80 and len(kinds) >= 30 and len(HEALTHY) >= 40
    assert not FAULTS.keys() & HEALTHY.keys()
    assert all(program.make.__doc__ for program in FAULTS.values())


def test_a_second_program_of_a_name_is_an_error():
    with pytest.raises(ValueError, match="two programs are called 'images all black'"):
        fault(data.EMPTY)(data.images_all_black)


@pytest.mark.parametrize("name", FAULTS)
def test_the_repaired_version_differs_and_has_a_finite_loss(name):
    before, after = quietly(FAULTS[name], True), quietly(FAULTS[name], False)
    assert before != after and math.isfinite(after[1][0])
    assert any(after[1][1].values())


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_program_has_a_finite_loss_and_a_gradient(name):
    _, (loss, grads), *_ = quietly(HEALTHY[name], False)
    assert math.isfinite(loss) and any(grads.values())


@pytest.mark.parametrize("name", ["images all black", "dropout on the logits"])
def test_a_seed_gives_the_same_program_again_and_leaves_the_random_state(name):
    trials = []
    with torch.random.fork_rng():
        for _ in range(2):
            before = torch.get_rng_state()
            trials.append(FAULTS[name].build(1, True))
            assert torch.equal(torch.get_rng_state(), before)
            _ = torch.rand(1)  # the second is built from another state
        same, again = map(measured, trials)
    assert same == again


def test_every_rule_that_a_kind_names_exists_and_counts_once():
    for program in FAULTS.values():
        sets = program.kind.exact, program.kind.related, program.kind.beside
        named = [rule for rules in sets for rule in rules]
        assert all(rule in RULES or rule.startswith("raises ") for rule in named), (program.kind.name, named)
        assert len(named) == len(set(named)), program.kind.name


@pytest.mark.parametrize(
    "said, alarms, expected",
    [
        (("a", "z"), ("a", "z"), "exact"),
        (("b", "z"), ("z",), "related"),
        (("c",), ("c",), "silent"),
        (("z",), (), "silent"),
        ((), (), "silent"),
        (("c", "z"), ("c", "z"), "misleading"),
    ],
)
def test_outcomes(said, alarms, expected):
    some = kind("some", "a", "b", "c")
    assert some == Kind("some", frozenset("a"), frozenset("b"), frozenset("c"))
    assert run.outcome(some, run.Run("x", 1, True, said, alarms)) == expected


def test_the_table_counts_runs_and_lists_what_is_missed():
    known = {name: FAULTS[name] for name in ("images all black", "inputs shuffled without their targets")}
    made = run.runs(known.values(), (1, 3), broken=True)
    rows = run.table(made)
    assert rows[0][:3] == [known["images all black"].kind.name, "1", "100"]
    assert rows[-1] == ["all", "2", "50", "", "50", ""]
    assert run.missed(made) == ["inputs shuffled without their targets"]
    assert run.counted(made)["images all black"]["runs"] == 2
    assert "exact or related in 50% of the runs" in run.first(made)


def test_a_checkup_that_raises_is_an_alarm(monkeypatch):
    def raises(*args, **options):
        raise TypeError("on purpose")

    monkeypatch.setattr(run, "checkup", raises)
    made = run.runs([HEALTHY["linear regression"]], (1, 3), broken=False)
    assert run.alarms(made) == ["linear regression: raises TypeError, 2 x"]
    assert run.false_alarms(made, "healthy").startswith("2 false alarms in 2 runs of 1 healthy programs: 100.00%")
