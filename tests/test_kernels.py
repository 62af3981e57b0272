"""Kernels forked from a process with everything imported are like any other."""

import json
import os
import signal
import sys
import time

import pytest
from nbval.kernel import RunningKernel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere kernels are started, not forked")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THE_KERNEL", "set")
    (tmp_path / "beside.py").touch()
    running = RunningKernel("python3", cwd=str(tmp_path))
    yield running
    running.stop()


def said(kernel, code):
    """What the code printed, as JSON, or the name of its exception."""
    words = []

    def hear(message):
        content = message["content"]
        words.append(content.get("text") or content.get("ename") or "")

    kernel.kc.allow_stdin = False
    kernel.kc.execute_interactive(f"import json, os, sys\n{code}", output_hook=hear, timeout=60)
    return json.loads("".join(words)) if "".join(words)[:1] in "[{" else "".join(words)


def test_it_starts_with_these_modules_and_with_nothing_else(kernel, tmp_path):
    names = ["torch", "matplotlib.pyplot", "mmlib", "pytest", "conftest"]
    assert said(kernel, f"print(json.dumps([name in sys.modules for name in {names}]))") == [True, True, *[False] * 3]
    assert said(kernel, "import beside, matplotlib; print(json.dumps([os.getcwd(), os.environ['OF_THE_KERNEL']]))") == [
        str(tmp_path),
        "set",
    ]
    assert said(kernel, "print(json.dumps([matplotlib.get_backend()]))") == [
        "module://matplotlib_inline.backend_inline"
    ]


def test_a_signal_reaches_it_alone(kernel):
    assert said(kernel, "print(json.dumps([os.getpgrp(), os.getpid()]))") != [os.getpgrp(), os.getpid()]
    kernel.kc.execute("import time; print('asleep', flush=True); time.sleep(60)")
    while kernel.get_message("iopub", timeout=30)["content"].get("text") != "asleep\n":
        pass
    kernel.interrupt()
    assert kernel.get_message("shell", timeout=30)["content"]["ename"] == "KeyboardInterrupt"


def test_its_death_is_noticed(kernel):
    assert kernel.is_alive()
    os.kill(kernel.km.provisioner.pid, signal.SIGKILL)
    for _ in range(100):
        if not kernel.is_alive():
            return
        time.sleep(0.1)
    pytest.fail("a kernel that was killed counts as alive")
