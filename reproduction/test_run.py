"""The tool that runs the published reference run at full length, at a length that a test can wait for."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest
import reference_run

ROOT = Path(__file__).parent.parent


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    if reference_run.nearby() is None:
        pytest.skip(f"the lecture's names are not here: {reference_run.VARIABLE} is not set, and no copy was kept")
    # Reading and evaluating 32,033 names would take longer than the steps do.
    few = reference_run.read_names()[:2000]
    monkeypatch.setattr(reference_run, "read_names", lambda: few)
    monkeypatch.setattr(sys, "argv", ["reproduce"])
    specification = importlib.util.spec_from_file_location("reproduce_tool", ROOT / "reproduction" / "run.py")
    tool = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "reproduce_tool", tool)
    specification.loader.exec_module(tool)
    for name, value in {"STEPS": 1000, "KEPT": tmp_path, "WATCHED": [0, 10, 750, 999]}.items():
        monkeypatch.setattr(tool, name, value)
    return tool


@pytest.mark.parametrize("stages", [("softmax", "tanh"), ("BatchNorm",)], ids=str)
def test_an_interrupted_reproduction_goes_on_and_leaves_the_same_figures(stages, reproduce, monkeypatch, tmp_path):
    starts = [reproduce.Start(stage) for stage in stages]
    whole = reproduce.trained(starts)
    (figures,) = tmp_path.iterdir()
    figures.unlink()
    save, seen = reproduce.save, []

    def interrupted(path, model, history, **options):
        save(path, model, history, **options)
        seen.append(len(history.loss.steps))
        if len(seen) == 7:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(reproduce, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.trained(starts)
    assert seen == list(range(50, 351, 50)) and [p.suffix for p in tmp_path.iterdir()] == [".run"]
    assert reproduce.trained(starts) == whole
    assert seen[7] == 400 and [p.suffix for p in tmp_path.iterdir()] == [".json"]
