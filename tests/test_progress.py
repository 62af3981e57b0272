"""How far a run is, for a person who watches."""

import os
import pty
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


@pytest.fixture
def written(monkeypatch, capfd):
    """written(reader, writer): what the runs write where `writer` is the standard error, and nowhere else."""
    monkeypatch.delitem(sys.modules, "IPython", raising=False)

    def run(reader, writer):
        os.set_blocking(writer, False)  # nobody reads yet: more than there is room for is an error
        with open(writer, "w") as stream, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            exec(RUN, {})
        parts = []
        try:
            while part := os.read(reader, 65536):
                parts.append(part)
        except OSError:  # the end of a pseudo-terminal on Linux
            pass
        os.close(reader)
        assert capfd.readouterr() == ("", "")
        return b"".join(parts).decode()

    return run


def test_the_bar_is_seen_in_a_terminal_and_gone_afterwards(written):
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, 80))
    quiet, _, rest = written(reader, writer).partition("between\r\n")
    shown, _, after = rest.rpartition("after\r\n")
    assert quiet == after == ""
    assert "/321" in shown and "step" in shown
    assert shown.endswith("\r") and not shown.rstrip("\r").rsplit("\r", 1)[-1].strip() and "\n" not in shown


def test_nothing_is_written_into_a_pipe(written):
    assert written(*os.pipe()) == "between\nafter\n"


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
