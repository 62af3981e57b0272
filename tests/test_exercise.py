import contextlib
import functools
import importlib.util
import math
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel

import mmlib.exercise
from mmlib.exercise import EXERCISES, check, start, verdict
from mmlib.exercise.kinds import Choice, Function, Number, Numbers, Raised, difference
from mmlib.table import LINE

pytestmark = pytest.mark.usefixtures("no_global_randomness")

BOOK = Path(__file__).parent.parent / "book"


@pytest.fixture(scope="module", autouse=True)
def losses_are_expected_once():
    """A solution that halves intervals asks for the same losses with every answer that it is compared to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "expected_first_loss", functools.cache(start.expected_first_loss))
        yield


every_exercise = pytest.mark.parametrize("name", EXERCISES)


# The registry


@every_exercise
def test_the_solution_is_right(name):
    assert verdict(name, EXERCISES[name].solution) == f"{name}: right."


@every_exercise
def test_each_planted_mistake_is_told_in_its_own_words(name):
    planted = list(EXERCISES[name].planted())
    assert planted, "an exercise whose check knows no mistake"
    for words, answer in planted:
        said = verdict(name, answer)
        assert said.startswith(f"{name}: not yet. ") and words in said, said


@every_exercise
@pytest.mark.parametrize("answer", [None, ..., "x", object(), lambda: 1 / 0, {"a": 1}, [], torch.ones(3, 4), 1e99])
def test_anything_else_is_one_sentence_and_no_exception(name, answer):
    said = verdict(name, answer)
    assert said.startswith(f"{name}: ") and not said.endswith(": right.") and "\n" not in said
    assert " at 0x" not in said, "an address is another on every machine"


@pytest.mark.parametrize(
    "name, answer, right",
    [
        ("ex-08-collapse", lambda model: model, False),
        ("ex-08-parity", lambda s: s % 2, False),
        ("ex-10-decay", lambda eta, decay: math.sqrt(1 - (1 - eta * decay) ** 2), True),
        ("ex-10-decay", lambda eta, decay: math.sqrt((1 - eta * decay) ** -2 - 1), True),
        ("ex-12-registered", {"a", "d.x", "e.weight", "e.bias", "f.weight", "f.bias"}, False),
    ],
)
def test_answers_that_a_reader_gave(name, answer, right):
    said = verdict(name, answer)
    assert said.endswith(": right.") == right and "cannot be read" not in said


def labels(prose):
    return set(re.findall(r"^:label: (ex-\S+)", prose, re.MULTILINE))


def test_each_exercise_stands_in_a_chapter_and_each_chapter_has_three():
    chapters = {}
    for path in sorted(BOOK.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        chapters[path.name] = labels("\n".join(c.source for c in cells if c.cell_type == "markdown"))
    assert EXERCISES.keys() <= set().union(*chapters.values())
    counted = {name: len(found & EXERCISES.keys()) for name, found in chapters.items()}
    assert {name for name, n in counted.items() if n < 3} <= {"intro.ipynb"}


def test_the_lines_asked_for_are_those_of_the_script_in_the_chapter():
    cells = nbformat.read(BOOK / "17-spot-the-bug.ipynb", as_version=4).cells
    (script,) = (cell.source.splitlines() for cell in cells if "def update_data(before, after)" in cell.source)
    lines = [script[int(number) - 1] for number in EXERCISES["ex-17-script"].solution]
    for line, bug in zip(lines, ("random.shuffle(names)", "isinstance(type(layer)", ".log()"), strict=True):
        assert bug in line


# Answers


def made(monkeypatch, exercise):
    monkeypatch.setitem(EXERCISES, "ex-made", exercise)
    return lambda answer, **options: verdict("ex-made", answer, **options)


def test_a_number_is_right_within_its_tolerance(monkeypatch):
    ask = made(monkeypatch, Number("a share", 0.5, {2.0: "Upside down."}, "One half."))
    for answer in (0.5, 0.504, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.496])):
        assert ask(answer) == "ex-made: right."
    assert ask(2) == "ex-made: not yet. Upside down."
    assert ask(0.7) == "ex-made: not yet. 0.7 is too large. One half."
    assert ask(-1) == "ex-made: not yet. -1 is too small. One half."
    assert ask(math.nan) == "ex-made: not yet. nan is no number. One half."
    for answer in (True, "0.5", 1j, [0.5], abs):
        assert "a share, a number, is needed" in ask(answer)


def test_several_numbers_are_told_apart_by_name(monkeypatch):
    parts = {"one": Number("one", 1.0, {3.0: "Three."}, "1."), "two": Number("two", 0.0, {5.0: "Five."}, "0.")}
    ask = made(monkeypatch, Numbers(parts))
    for answer in ([1, 0.005], (1.0, 0), torch.tensor([1.0, 0.0]), {"a": 1, "b": 0}):
        assert ask(answer) == "ex-made: right."
    assert ask([1, 5]) == "ex-made: not yet. two: Five."
    assert ask([7, 5]) == "ex-made: not yet. one: 7 is too large. 1."
    assert "a list of 2 numbers (one, two) is needed, and this is list of 3" in ask([1, 2, 3])
    assert "two: two, a number, is needed, and this is str" in ask([1, "x"])


def test_a_choice_says_what_is_left_out_or_taken_in(monkeypatch):
    ask = made(monkeypatch, Choice("the even ones", {2: "2 = 1 + 1.", 4: "4 = 2 + 2."}, {3: "3 is odd."}))
    assert ask({2, 4}) == ask([4, 2]) == "ex-made: right."
    assert ask({2}) == ask(2) == "ex-made: not yet. 4 is left out. 4 = 2 + 2."
    assert ask({2, 3, 4}) == "ex-made: not yet. 3 does not belong. 3 is odd."
    assert "the even ones are needed, out of ['2', '3', '4']; 9 is not there" in ask({9})


def doubled(x):
    return 2 * x


def test_a_function_is_compared_with_the_solution_and_with_each_mistake(monkeypatch):
    cases = {"for 1": lambda: (1.0,), "for 3": lambda: (3.0,)}
    exercise = Function("f(x)", doubled, cases, {"That is the square.": lambda x: x**2}, "Add x to itself.")
    ask = made(monkeypatch, exercise)
    assert ask(lambda x: x + x) == ask(lambda x: torch.tensor(2 * x)) == "ex-made: right."
    assert ask(lambda x: x * x) == "ex-made: not yet. That is the square."
    assert ask(lambda x: 2.0) == "ex-made: not yet. for 3: it gives 2, not 6. Add x to itself."
    assert (
        ask(lambda x: None) == "ex-made: not yet. for 1: it gives NoneType where numbers are needed. Add x to itself."
    )
    raised = "ex-made: not yet. for 1: it raises ZeroDivisionError: division by zero. Add x to itself."
    assert ask(lambda x: 1 / 0) == raised
    assert "it raises TypeError" in ask(lambda: 1)
    assert "it raises SystemExit" in ask(lambda x: sys.exit(3))
    assert "f(x), a function, is needed, and this is float" in ask(2.0)


def test_each_case_is_made_anew_for_an_answer_that_changes_its_arguments(monkeypatch):
    cases = {"twice": lambda: (torch.ones(2),), "again": lambda: (torch.ones(2),)}
    ask = made(monkeypatch, Function("f(x)", doubled, cases, {"no": lambda x: x}, ""))
    assert ask(lambda x: x.mul_(2)) == "ex-made: right."


@pytest.mark.parametrize(
    "got, expected, words",
    [
        (1.0, 1.00001, None),
        (1.0, 1.1, "it gives 1, not 1.1"),
        (torch.ones(2), torch.ones(3), r"it gives the shape \(2,\) where \(3,\) is needed"),
        (torch.ones(3, 1), torch.ones(3), r"it gives the shape \(3, 1\)"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), "it is off by up to 50% of the largest value"),
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, 4.0]), "it gives values that are not finite"),
        (torch.tensor([math.nan]), torch.tensor([math.nan]), None),
        ([1, 2], (1, 2), None),
        ([1, 2], [1, 2, 3], "it gives list where 3 values are needed"),
        ({"a": 1}, {"a": 1, "b": 2}, r"it gives \['a'\] where \['a', 'b'\] are needed"),
        ({"a": 1}, {"a": 2}, "it gives 1, not 2"),
        (True, False, "it gives True, not False"),
        ("far", "near", "it gives 'far', not 'near'"),
        (Raised("KeyError", ""), 1.0, "it raises KeyError"),
        (1.0, Raised("KeyError", ""), "it gives float"),
        (Raised("KeyError", "x"), Raised("KeyError", "y"), None),
        (5, torch.tensor([5.0]), None),
    ],
)
def test_differences_in_words(got, expected, words):
    found = difference(got, expected, 1e-4)
    assert found is None if words is None else re.match(words, found.words)


def test_a_difference_has_its_place():
    got, expected = {"a": 1, "b": [1, {"c": 2.0}]}, {"a": 1, "b": [1, {"c": 3.0}]}
    assert difference(got, expected, 1e-4) == (("b", 1, "c"), "it gives 2, not 3")


def pair(x):
    return torch.tensor([x, 2 * x])


def test_of_two_mistakes_in_one_answer_the_first_is_told(monkeypatch):
    def both(x):
        return {"sum": pair(2 * x + 1), "product": 7.0}

    cases = {"for 1": lambda: (1.0,), "for 3": lambda: (3.0,)}
    right = lambda x: {"sum": pair(2 * x), "product": x**2}  # noqa: E731
    mistakes = {
        "The sum is one too large.": lambda x: {"sum": pair(2 * x + 1), "product": x**2},
        "The product is a sum.": lambda x: {"sum": pair(2 * x), "product": 2 * x},
    }
    ask = made(monkeypatch, Function("f(x)", right, cases, mistakes, "Look again."))
    assert ask(both) == "ex-made: not yet. The sum is one too large."
    assert ask(lambda x: {"sum": pair(2 * x), "product": 2.0}) == (
        "ex-made: not yet. for 1, product: it gives 2, not 1. Look again."
    )
    assert "it raises ZeroDivisionError" in ask(lambda x: {"sum": pair(2 * x), "product": 1 / 0})


# Where nothing may escape


def test_an_unknown_name_is_a_sentence():
    assert verdict("ex-01-hal", 1) == "There is no exercise 'ex-01-hal' to check; did you mean 'ex-01-half'?"
    assert verdict("zzz", 1) == "There is no exercise 'zzz' to check."
    assert verdict() == "There is no exercise '' to check."
    assert verdict(abs) == "There is no exercise a function to check." and verdict([1]).startswith(
        "There is no exercise"
    )
    assert verdict(7, 1) == "There is no exercise 7 to check."


def test_no_answer_is_told_what_is_asked():
    assert verdict("ex-06-truncated") == (
        "ex-06-truncated: no answer yet. It asks for "
        "the std of a normal weight that is cut off at two standard deviations."
    )


def test_check_prints_the_verdict_and_gives_nothing(capsys):
    assert check("ex-08-edge", lambda s, L: 2 / (L * s ** (2 - 2 / L))) is None
    assert capsys.readouterr().out == "ex-08-edge: right.\n"


def test_check_folds_a_verdict_that_is_longer_than_a_line(capsys):
    long = [name for name in EXERCISES if len(verdict(name)) > LINE]
    assert long
    for name in long:
        check(name)
        said = capsys.readouterr().out
        assert said.split() == verdict(name).split() and max(map(len, said.splitlines())) <= LINE


def forever(*_):
    while True:
        pass


def stubborn(*_):
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(1e-4)


def asleep(*_):
    time.sleep(60)


@pytest.mark.parametrize(
    "answer, after", [(forever, [0.05]), (stubborn, [0.05, 0.5]), (asleep, [0.5]), (lambda *x: forever(), [0.05])]
)
def test_an_answer_that_does_not_return_is_stopped(answer, after):  # computing, or waiting ten times as long
    handler, started = signal.getsignal(signal.SIGALRM), time.monotonic()
    said = verdict("ex-08-edge", answer, seconds=0.05)
    stopped = "ex-08-edge: not yet. Your answer was stopped after {} seconds; is there a loop that never ends?"
    assert said in map(stopped.format, after)
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGALRM) is handler and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    time.sleep(0.02)  # no strike comes late: there is one every thousandth of a second


def test_an_answer_that_waits_has_time_to_compute():
    def late(s, L):
        time.sleep(0.1)
        return 2 / (L * s ** (2 - 2 / L))

    cases = len(EXERCISES["ex-08-edge"].cases)
    assert verdict("ex-08-edge", late, seconds=0.05 * cases) == "ex-08-edge: right."


def test_a_timer_of_somebody_else_goes_on():
    struck = []
    handler = signal.signal(signal.SIGALRM, lambda *_: struck.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        verdict("ex-08-edge", 1.0)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        time.sleep(0.25)
        assert struck == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_in_another_thread_the_check_works_without_a_limit():
    said = []
    thread = threading.Thread(target=lambda: said.append(verdict("ex-08-edge", lambda s, L: 1.0, seconds=0.01)))
    thread.start()
    thread.join()
    assert said[0].startswith("ex-08-edge: not yet. for s = 2, L = 1: it gives 1, not 2")


def test_an_interrupt_is_the_readers_own():
    def interrupted(s, L):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verdict("ex-08-edge", interrupted)


def test_an_endless_loop_in_a_notebook_is_a_sentence_and_the_next_cell_runs():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        said = []
        run = (
            "from mmlib.exercise import check\ncheck('ex-08-edge', lambda s, L: [1 for _ in iter(int, 1)], seconds=0.2)"
        )
        for code in (run, "print('next')"):
            client.execute_interactive(
                code, timeout=60, output_hook=lambda m: said.append(m["content"].get("text", m["msg_type"]))
            )
        text = "".join(said)
        assert "Your answer was stopped after 0.2 seconds" in text and "next" in text and "error" not in text
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_where_there_is_no_interval_timer_the_check_works(monkeypatch, capsys):
    monkeypatch.delattr(signal, "setitimer")
    anew = importlib.util.module_from_spec(mmlib.exercise.__spec__)
    anew.__spec__.loader.exec_module(anew)
    anew.check("ex-08-edge", lambda s, L: 2 / (L * s ** (2 - 2 / L)))
    assert capsys.readouterr() == ("ex-08-edge: right.\n", "")
