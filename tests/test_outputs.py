"""That the comparison of stored with new outputs lets pass what another processor prints, and nothing else."""

import base64
import io
import json
import multiprocessing.forkserver  # noqa: F401  # what a run within this one imports is imported anew by the next
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from mmlib.noise import noise
from tests.plugins import outputs
from tests.plugins.outputs import Picture, Text

ROOT = outputs.Path(outputs.__file__).parents[2]

SAME = {
    "the same": ("loss 3.2958", "loss 3.2958"),
    "a unit of the last place": ("loss 3.2958", "loss 3.2959"),
    "a unit across a carry": ("0.0999 1.0", "0.1000 0.9"),
    "a unit of an exponent's mantissa": ("1.5e-03", "1.6e-03"),
    "a unit across a power of ten": ("9.9e-05", "1.0e-04"),
    "a unit of a per cent": ("62.4 % and 5%", "62.3 % and 6%"),
    "two signs of zero": ("tensor([-0.00, 0.0])", "tensor([0.00, -0.0])"),
    "signs of a unit": ("+0.01", "-0.00"),
    "a longer number in a column": ("tanh   9.99 |\nReLU 123.45", "tanh  10.00 |\nReLU 123.45"),
    "a sign in a column": ("x -0.0 |", "x  0.0 |"),
    "a decimal place that is a zero": ("0.1", "0.0999"),
    "a minus sign of its own": ("\u22121.5", "\u22121.6"),
    "a unit of a number with thousands": ("1,999.9", "2,000.0"),
    "a unit of a number with millions": ("1,999,999.9", "2,000,000.0"),
    "beyond all exponents": ("1e9999999999999999999", "1e9999999999999999999"),
}
DIFFERENT = {
    "two units of the last place": ("loss 3.2958", "loss 3.2960"),
    "two units of a per cent": ("5%", "7%"),
    "two units of an exponent's mantissa": ("1.5e-03", "1.7e-03"),
    "another exponent": ("1.5e-03", "1.5e-04"),
    "a sign": ("0.013", "-0.013"),
    "a sign that was printed": ("+0.013", "-0.013"),
    "a dropped number": ("0.1 0.2 0.3", "0.1 0.2"),
    "a dropped row": ("tanh 0.1\nReLU 0.2\n", "tanh 0.1\n"),
    "two rows exchanged": ("tanh 0.1\nReLU 0.1\n", "ReLU 0.1\ntanh 0.1\n"),
    "a changed word": ("noise 0.1", "real 0.1"),
    "a changed letter": ("True", "true"),
    "a whole number by one": ("8 seeds", "9 seeds"),
    "a whole number for another kind": ("1.0", "1"),
    "a shape by one": ("torch.Size([32, 27])", "torch.Size([32, 28])"),
    "a version": ("2.13.0", "2.13.1"),
    "a name that ends in a number": ("W1.5 float32", "W1.6 float32"),
    "nan for a number": ("loss 3.2958", "loss nan"),
    "an infinity for a number": ("loss 3.2958", "loss inf"),
    "a space in a sentence": ("a unit", "a  unit"),
    "a column moved": ("tanh 0.1", "tanh  0.1"),
    "a line added": ("0.1", "0.1\n"),
    "a number of more decimals": ("0.1", "0.1999"),
    "a number in another place": ("0.1 a", "a 0.1"),
    "a sign of the place of a number": ("0.1\0", "\x000.1"),
    "a plus sign": ("+0.5", "0.5"),
    "another minus sign": ("-0.5", "\u22120.5"),
    "two units of a number with thousands": ("1,000.0", "1,000.2"),
    "another exponent beyond all": ("1e9999999999999999999", "1e9999999999999999998"),
}


@pytest.mark.parametrize("stored, new", SAME.values(), ids=SAME)
def test_what_says_the_same(stored, new):
    assert Text(stored) == new and Text(new) == stored
    assert (Text(stored) != new) is False


@pytest.mark.parametrize("stored, new", DIFFERENT.values(), ids=DIFFERENT)
def test_what_says_something_else(stored, new):
    assert Text(stored) != new and Text(new) != stored
    assert (Text(stored) == new) is False


def png(shift=0, noise=0, height=100, colour=(0, 0, 0), mark=0, alpha=255, frames=1):
    """A white picture with a curve; `shift` moves it, `noise` darkens pixels by one of 255, `mark` draws a square."""
    pixels = np.full((height, 200, 4), 255, np.uint8)
    across = np.arange(20, 180)
    for thickness in range(3):
        pixels[40 + shift + thickness + (10 * np.sin(across / 20)).astype(int), across, :3] = colour
    pixels[5, 20 : 20 + noise, :3] = 254
    pixels[80 : 80 + mark, 10 : 10 + mark, :3] = 0
    pixels[..., 3] = alpha
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    others = [Image.fromarray(255 - pixels)] * (frames - 1)
    image.save(buffer, "png", save_all=frames > 1, append_images=others)
    return base64.b64encode(buffer.getvalue()).decode()


ALIKE = {
    "the same": {},
    "a few pixels by one": {"noise": 9},
    "all by little": {"colour": (7, 7, 7)},
    "a dot": {"mark": 1},
}
UNLIKE = {
    "a moved curve": {"shift": 2},
    "another size": {"height": 101},
    "a colour as bright": {"colour": (0, 0, 60)},
    "more than little": {"colour": (30, 30, 30)},
    "a mark": {"mark": 4},
    "a picture that cannot be seen": {"alpha": 0},
}


@pytest.mark.parametrize("other", ALIKE.values(), ids=ALIKE)
def test_pictures_that_look_alike(other):
    assert Picture(png()) == png(**other) and Picture(png(**other)) == png()
    assert (Picture(png()) != png(**other)) is False


@pytest.mark.parametrize("other", UNLIKE.values(), ids=UNLIKE)
def test_pictures_that_do_not(other):
    assert Picture(png()) != png(**other) and Picture(png(**other)) != png()
    assert (Picture(png()) == png(**other)) is False


@pytest.mark.parametrize("mark, is_seen", [(2, False), (4, True)])
def test_a_small_mark_in_a_large_picture(mark, is_seen):
    assert (Picture(png(height=2000)) != png(height=2000, mark=mark)) is is_seen


BROKEN = [png()[:200], "iVBORw0KGgo", "none", base64.b64encode(b"text").decode(), png(frames=2), 3]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_picture_that_cannot_be_read_is_said(broken):
    with pytest.raises(ValueError, match="a picture cannot be read"):
        outputs.pixels(broken)


def shows(picture, stored, kind="image/png"):
    source = f"import base64\nfrom IPython.display import Image\nImage(base64.b64decode({picture!r}))"
    data = {kind: stored, "text/plain": "<IPython.core.display.Image object>"}
    return source, [nbformat.v4.new_output("execute_result", data, execution_count=1)], []


def shown_and_said(new, stored):
    """A cell that gives outputs in one order, stored in another."""
    given = "from IPython.display import Image, display\nimport base64\n"
    lines = {"text": "print(1, flush=True)", "picture": f"display(Image(base64.b64decode({png()!r})))"}
    data = {"image/png": png(), "text/plain": "<IPython.core.display.Image object>"}
    outputs = {
        "text": nbformat.v4.new_output("stream", name="stdout", text="1\n"),
        "picture": nbformat.v4.new_output("display_data", data),
    }
    return given + "\n".join(lines[each] for each in new), [outputs[each] for each in stored], []


def says(source, stored, *tags, name="stdout"):
    return source, [nbformat.v4.new_output("stream", name=name, text=stored + "\n")], list(tags)


@pytest.fixture
def verdicts(pytester, monkeypatch):
    """verdicts(cells, *options): whether each cell of a notebook passes, and everything that pytest said."""

    def run(cells, *options):
        notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        notebook.cells = [nbformat.v4.new_markdown_cell("A cell that is not counted by nbval.")] + [
            nbformat.v4.new_code_cell(source, outputs=stored, execution_count=i + 1, metadata={"tags": tags})
            for i, (source, stored, tags) in enumerate(cells)
        ]
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("IPYTHONDIR", str(pytester.path))  # what --noise sets is put back
        (pytester.path / "conftest.py").write_text('pytest_plugins = ["tests.plugins.outputs"]\n')
        (pytester.path / "small.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        pytester.makeini("[pytest]\n")
        result = pytester.runpytest_inprocess("--nbval", "--nbval-current-env", "-v", "--color=no", *options)
        text = result.stdout.str() + result.stderr.str()
        return re.findall(r"::Cell \d+ (PASSED|FAILED)", text), text

    return run


def test_nbval_finds_what_differs(verdicts):
    cells = {
        "same picture": (shows(png(), png()), "PASSED"),
        "a few pixels differ by one": (shows(png(noise=9), png()), "PASSED"),
        "moved curve": (shows(png(shift=2), png()), "FAILED"),
        "truncated picture": (shows(png(), png()[:300]), "FAILED"),
        "an output of another kind": (shows(png(), "%PDF", kind="application/pdf"), "FAILED"),
        "same text": (says("print('0.123')", "0.123"), "PASSED"),
        "a unit of the last place": (says("print('0.124')", "0.123"), "PASSED"),
        "two units": (says("print('0.125')", "0.123"), "FAILED"),
        "a warning": (says("import sys; print('2', file=sys.stderr)", "1", name="stderr"), "PASSED"),
        "a warning that is new": (says("import sys; print(1); print(2, file=sys.stderr)", "1"), "PASSED"),
        "output was not stored": (("print(1)", [], []), "FAILED"),
        "output was not made": (says("pass", "1"), "FAILED"),
        "a stream of another name": (says("pass", "1", name="metadata"), "FAILED"),
        "text that is overwritten": (says("print('0.5')", "all is wrong\r0.5"), "FAILED"),
        "text before a picture": (shown_and_said(("text", "picture"), ("text", "picture")), "PASSED"),
        "another order": (shown_and_said(("text", "picture"), ("picture", "text")), "FAILED"),
        "a picture that is broken when it is new": (shows(png()[:300], png()), "FAILED"),
    }
    found, text = verdicts([cell for cell, _ in cells.values()])
    assert dict(zip(cells, found, strict=True)) == {name: verdict for name, (_, verdict) in cells.items()}
    assert "small.ipynb, cell 4: a picture cannot be read" in text
    assert "small.ipynb, cell 5: an output of kind application/pdf cannot be compared, only image/png" in text
    assert "small.ipynb, cell 13: a stream 'metadata' cannot be compared, only stdout" in text
    assert "small.ipynb, cell 14: a carriage return hides what stands before it" in text
    assert "small.ipynb, cell 17: a picture cannot be read" in text


def test_noise_finds_digits_of_the_processor(verdicts):
    start = "import torch\nx = torch.linspace(0, 1, 1001)"
    cells = {
        "imports": ((start, [], []), "PASSED"),
        "three digits": (says("print(f'{x.exp().sum().item():.3g}')", "1.72e+03"), "PASSED"),
        "all digits": (says("print(f'{(x.exp() - x.exp()).abs().max().item():.1e}')", "0.0e+00"), "FAILED"),
        "exact": (says("print(bool((x.exp() == x.exp()).all()))", "True", "exact"), "PASSED"),
        "exact, and not needed": (says("print(1)", "1", "exact"), "FAILED"),
        "exact, and wrong": (says("print(bool((x.exp() == x.exp()).all()))", "False!", "exact"), "FAILED"),
        "exact after that": (says("print(bool((x.exp() == x.exp()).all()))", "True", "exact"), "PASSED"),
        "noise is back": (says("print(bool((x.exp() == x.exp()).all()))", "False"), "PASSED"),
        "the global random state is the seed's": (says("print(torch.initial_seed())", "1"), "PASSED"),
    }
    found, text = verdicts([cell for cell, _ in cells.values()], "--noise=1")
    assert dict(zip(cells, found, strict=True)) == {name: verdict for name, (_, verdict) in cells.items()}
    assert "small.ipynb, cell 5: the tag `exact` is not needed: the cell holds under noise" in text


def test_a_seed_that_is_no_number(verdicts):
    _, text = verdicts([], "--noise=one")
    assert "--noise: a seed is a whole number, such as 1, got 'one'" in text


def test_each_noise_seed_is_another_noise(monkeypatch):
    x, magic = torch.linspace(0, 1, 1000), {}
    shell = SimpleNamespace(register_magic_function=lambda function, magic_name: magic.update({magic_name: function}))
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    for seed in (1, 2, 10**30):
        with torch.random.fork_rng():
            exec(outputs._STARTUP.format(seed=seed), {})
            assert torch.initial_seed() == seed % 2**63
        magic["noise"]("on")
        noisy = x.exp()
        magic["noise"]("off")
        with noise(seed):
            assert torch.equal(x.exp(), noisy)
        assert not torch.equal(x.exp(), noisy)


def test_noise_that_cannot_be_switched_on_is_said(verdicts, monkeypatch):
    monkeypatch.setattr(outputs, "_STARTUP", "raise RuntimeError('seed {seed}')")
    found, text = verdicts([says("print(1)", "1")], "--noise=1")
    assert found == ["FAILED"]
    assert (
        "small.ipynb, cell 1: noise cannot be switched on: UsageError: Line magic function `%noise` not found" in text
    )


@pytest.mark.parametrize("broken", ['{"cells": [', "", "[]", '{"cells": [{}], "metadata": {}, "nbformat": 4}', "\xff"])
def test_a_file_that_is_no_notebook_is_said(pytester, broken):
    (pytester.path / "conftest.py").write_text('pytest_plugins = ["tests.plugins.outputs"]\n')
    (pytester.path / "broken.ipynb").write_bytes(broken.encode("latin-1"))
    text = pytester.runpytest_inprocess("--nbval", "--nbval-current-env").stdout.str()
    assert "broken.ipynb is no notebook: " in text
    assert "Traceback" not in text and len(text.splitlines()) < 20
