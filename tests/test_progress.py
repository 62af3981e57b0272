"""How far a run is, for a person who watches."""

import os
import pty
import subprocess
import sys
import termios
import types

import nbclient
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from mmlib.progress import watched

# Whether a person watches


class Stream:
    def __init__(self, terminal):
        self.isatty = lambda: terminal


def in_notebook(allow_stdin):
    content = {} if allow_stdin is None else {"allow_stdin": allow_stdin}
    kernel = types.SimpleNamespace(get_parent=lambda channel: {"content": content} if channel == "shell" else None)
    return types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=kernel))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_watched_and_a_pipe_is_not(terminal, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    assert watched() is terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_with_ipython_is_a_terminal(terminal, monkeypatch):
    for shell in (None, types.SimpleNamespace()):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        monkeypatch.setattr(sys, "stderr", Stream(terminal))
        assert watched() is terminal


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("allow_stdin, expected", [(True, True), (False, False), (None, False)])
def test_a_notebook_is_watched_if_somebody_could_answer(allow_stdin, expected, terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", in_notebook(allow_stdin))
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    assert watched() is expected


def test_without_a_standard_error_nobody_watches(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", None)
    assert watched() is False


# The bar

RUN = """
import sys
from mmlib import data, models, rng, train
names = ["anna", "bo", "carl"]
vocabulary = data.Vocabulary.of(names)
batches = data.minibatches(data.examples(names, vocabulary, 3), 4, 321, generator=rng.generator(0, "batches"))
model = models.MLP(tokens=len(vocabulary), width=4, depth=1).build(rng.generator(0, "weights"))
train.train(model, batches, lr=0.1)
print("between", file=sys.stderr, flush=True)
train.train(model, batches, lr=0.1, progress=True)
print("after", file=sys.stderr, flush=True)
"""


def test_the_bar_is_seen_in_a_terminal_and_gone_afterwards():
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    done = subprocess.run([sys.executable, "-c", RUN], stdout=subprocess.PIPE, stderr=writer, timeout=60)
    os.close(writer)
    written = b""
    try:
        while part := os.read(reader, 65536):
            written += part
    except OSError:  # the end of a pseudo-terminal on Linux
        pass
    os.close(reader)
    quiet, _, rest = written.decode().partition("between\r\n")
    shown, _, after = rest.rpartition("after\r\n")
    assert done.returncode == 0 and done.stdout == b"" and quiet == after == ""
    assert "/321" in shown and "step" in shown
    assert shown.endswith("\r") and not shown.rstrip("\r").rsplit("\r", 1)[-1].strip() and "\n" not in shown


def test_nothing_is_written_into_a_pipe():
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, timeout=60, check=True)
    assert done.stderr == b"between\nafter\n" and done.stdout == b""


def test_nothing_is_stored_when_a_notebook_is_executed():
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(RUN.replace("file=sys.stderr", "file=sys.stdout"))]
    )
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert {output.name for output in outputs} == {"stdout"}
    assert "".join(output.text for output in outputs) == "between\nafter\n"


def test_a_reader_with_an_open_notebook_sees_the_bar():
    manager, client = start_new_kernel(kernel_name="python3")
    written = []

    def keep(message):
        if message["header"]["msg_type"] == "stream":
            written.append(message["content"]["text"])

    try:
        reply = client.execute_interactive(RUN, allow_stdin=True, output_hook=keep, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok" and "/321" in "".join(written)
