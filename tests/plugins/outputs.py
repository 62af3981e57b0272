"""How a chapter's new output is compared with its stored one: a pytest plugin on top of nbval.

- Numbers as numbers. Two numbers written with a decimal point, an exponent or a per cent sign are equal if they differ
  by at most one unit of the last place printed, and -0.0 is 0.0. Whole numbers, words, and how many numbers there are
  must be the same to the letter; the spaces that align a number may make up for its length, and no more.
- Pictures by their pixels as they look on white paper, with room for what another font rasteriser does at the edges.
- The kinds of a cell's outputs in their order; nbval compares each kind by itself, and puts together what is printed.
- What is written to stderr is not compared; tests/test_book.py admits none in a stored notebook.
- An output of any other kind, a picture that cannot be read, or a file that is no notebook is an error that names
  notebook and cell.

With --noise SEED every chapter runs under rounding noise (mmlib.noise): its kernel's start-up file brings the switch,
and a kernel that cannot be switched is an error. The file seeds torch's global random state too, which is another one
in every process otherwise: what fails under a seed fails under it again. A cell whose very subject is exact arithmetic
carries the tag `exact`: it has to fail under noise, or the tag is not needed, and is then run again without. So it has
to say the same when it is run twice.
"""

import base64
import binascii
import io
import itertools
import os
import re
import tempfile
from decimal import Decimal
from pathlib import Path

import nbformat
import nbval.plugin
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import uniform_filter

PICTURE = "image/png"
TEXTS = {"text/plain", "text/html", "text/markdown", "text/latex"}
TOLERANCE = 2.0
"""Of 255, root mean square over all pixels and channels. A thin curve in another place is beyond it."""
MARK, LOCAL_TOLERANCE = 8, 40.0
"""A square of so many pixels, and by how much it may differ in the mean. A marker that snaps to the next pixel makes
30, another digit 60 and more."""

_NUMBER = re.compile(
    r"( *)(?<![\w.])([-+\u2212]?)"
    r"((?:\d{1,3}(?:,\d{3})+\.\d+|\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\d+(?= ?%))"
    r"(?!\w|\.\w)"  # no version, no name
)


def _close(stored: re.Match, new: re.Match) -> bool:
    try:
        a, b = (Decimal(number[2].replace("\u2212", "-") + number[3].replace(",", "")) for number in (stored, new))
        return abs(a - b) <= Decimal((0, (1,), min(a.as_tuple().exponent, b.as_tuple().exponent)))
    except ArithmeticError:  # beyond what the decimal module computes with
        return stored[3] == new[3]


def _equal(stored: re.Match, new: re.Match) -> bool:
    """Whether two numbers are within a unit, as well aligned, and with signs of one style: "+0.1" is not "0.1"."""
    aligned = stored[1] == new[1] or len(stored[0]) == len(new[0])
    return _close(stored, new) and aligned and {stored[2], new[2]} not in ({"+", ""}, {"-", "\u2212"})


def _words(text: str, numbers: list[re.Match]) -> list[str]:
    """What stands before, between and after the numbers."""
    ends, starts = [0, *(n.end() for n in numbers)], [*(n.start() for n in numbers), len(text)]
    return [text[end:start] for end, start in zip(ends, starts, strict=True)]


def same_text(stored: str, new: str) -> bool:
    """Whether two outputs say the same, numbers compared as numbers."""
    numbers, new_numbers = list(_NUMBER.finditer(stored)), list(_NUMBER.finditer(new))
    return _words(stored, numbers) == _words(new, new_numbers) and all(map(_equal, numbers, new_numbers))


class Text(str):
    """An output in words that equals another if it says the same."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return same_text(self, str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def pixels(picture: str) -> np.ndarray:
    """Red, green and blue of a base64 PNG on white. Raises ValueError if it is malformed, truncated or moves."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise OSError("it has several frames")
            white = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), float)
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, TypeError) as error:
        raise ValueError(f"a picture cannot be read: {error}") from error


class Picture(str):
    """A base64 PNG that equals another if their pixels do, up to TOLERANCE, in each square up to LOCAL_TOLERANCE."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        a, b = pixels(self), pixels(str(other))
        if a.shape != b.shape:
            return False
        off = a - b
        local = uniform_filter(np.abs(off).mean(-1), MARK)
        return float(np.sqrt(np.mean(off**2))) <= TOLERANCE and float(local.max()) <= LOCAL_TOLERANCE

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class Cell(nbval.plugin.IPyNbCell):
    """nbval's test of one cell, with the comparison of this module."""

    @property
    def place(self) -> str:
        """Notebook and cell, counted from 0 over all cells of the file."""
        return f"{self.parent.path.name}, cell {[cell is self.cell for cell in self.parent.nb.cells].index(True)}"

    def sanitize(self, s):
        """The text or picture, wrapped so that nbval's == means what this module says."""
        s = super().sanitize(s)
        if not isinstance(s, str):
            return s
        return Picture(s) if s.startswith("iVBORw0KGgo") else Text(s)

    def check_stored(self):
        """Raises an error for a stored output that cannot be compared."""
        for output in self.cell.outputs:
            if output.output_type == "stream":
                if output.name not in ("stdout", "stderr"):
                    self.raise_cell_error(f"{self.place}: a stream {output.name!r} cannot be compared, only stdout")
                if re.search(r"[\r\b]", output.text):
                    self.raise_cell_error(f"{self.place}: a carriage return hides what stands before it")
            for kind, value in output.get("data", {}).items():
                if kind == PICTURE:
                    try:
                        pixels(value)
                    except ValueError as error:
                        self.raise_cell_error(f"{self.place}: {error}")
                elif kind not in TEXTS:
                    allowed = ", ".join(sorted({PICTURE, *TEXTS}))
                    self.raise_cell_error(f"{self.place}: an output of kind {kind} cannot be compared, only {allowed}")

    def compare_outputs(self, test, ref, skip_compare=None):
        """nbval's comparison of each kind of output, after that of which kinds there are."""
        new, stored = kinds(test), kinds(ref)
        if new != stored:
            self.comparison_traceback = [f"{self.place}: outputs are {new} and were {stored}"]
            return False
        try:
            return super().compare_outputs(test, ref, skip_compare)
        except ValueError as error:
            self.raise_cell_error(f"{self.place}: {error}")

    def runtest(self):
        self.check_stored()
        if self.config.option.noise is None:
            return super().runtest()
        if not getattr(self.parent, "noisy", False):
            self.switch_noise("on")
        if "exact" not in self.cell.metadata.get("tags", []):
            return super().runtest()
        try:
            super().runtest()
        except nbval.plugin.NbCellError:
            if self.parent.timed_out:
                raise
        else:
            self.raise_cell_error(f"{self.place}: the tag `exact` is not needed: the cell holds under noise")
        self.switch_noise("off")  # until the next cell
        super().runtest()

    def switch_noise(self, state):
        """Noise on or off in the kernel from now on. Raises an error if the kernel cannot."""
        reply = self.parent.kernel.kc.execute(f"%noise {state}", silent=True, reply=True, timeout=60)["content"]
        if reply["status"] != "ok":
            why = f"{reply.get('ename')}: {reply.get('evalue')}"
            self.raise_cell_error(f"{self.place}: noise cannot be switched {state}: {why}")
        self.parent.noisy = state == "on"


def kinds(outputs: list[dict]) -> list[tuple[str, ...]]:
    """What there is to see of each output, in their order: its type, a stream's name or the kinds of its data."""
    seen = [(o["output_type"], o.get("name", ""), *sorted(o.get("data", {}))) for o in outputs]
    return [kind for kind, _ in itertools.groupby(k for k in seen if k[1] != "stderr")]  # a stream comes in pieces


_STARTUP = """
import itertools

import torch
from IPython import get_ipython
from mmlib.noise import noise

torch.manual_seed({seed} % 2**63)
seeds, switch = itertools.count({seed}), None


def line_magic(state):
    global switch
    if state == "off":
        switch.__exit__(None, None, None)
    else:
        switch = noise(next(seeds))
        switch.__enter__()


get_ipython().register_magic_function(line_magic, magic_name="noise")
"""


def whole_number(text: str) -> int:
    """An option's value. Raises UsageError for anything else."""
    if not text.isdecimal():
        raise pytest.UsageError(f"--noise: a seed is a whole number, such as 1, got {text!r}")
    return int(text)


def pytest_addoption(parser):
    parser.getgroup("nbval").addoption(
        "--noise", metavar="SEED", type=whole_number, help="run chapters under rounding noise"
    )


def pytest_configure(config):
    if config.option.noise is not None:
        folder = tempfile.TemporaryDirectory(prefix="noise-")
        config.add_cleanup(folder.cleanup)
        startup = Path(folder.name, "profile_default", "startup", "noise.py")
        startup.parent.mkdir(parents=True)
        startup.write_text(_STARTUP.format(seed=config.option.noise), encoding="utf-8")
        os.environ["IPYTHONDIR"] = folder.name


def pytest_collectstart(collector):
    if not isinstance(collector, nbval.plugin.IPyNbFile):
        return
    collector.skip_compare = (*(key for key in collector.skip_compare if key != PICTURE), "stderr")
    try:
        nbformat.validate(nbformat.read(collector.path, as_version=4))
    except Exception as error:  # a file can be wrong in many ways, and nbformat has an exception for each
        first, *_ = str(error).splitlines() or [""]
        why = f"{collector.path.name} is no notebook: {type(error).__name__}: {first}"

        def refuse():
            raise collector.CollectError(why)

        collector.collect = refuse


def pytest_itemcollected(item):
    # nbval constructs its own class by name and has no hook for another.
    if type(item) is nbval.plugin.IPyNbCell:
        item.__class__ = Cell
