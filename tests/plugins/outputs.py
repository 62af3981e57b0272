"""How a chapter's new output is compared with its stored one: a pytest plugin on top of nbval.

- Numbers as numbers. Two numbers written with a decimal point, an exponent or a per cent sign are equal if they differ
  by at most one unit of the last place printed, and -0.0 is 0.0. Whole numbers, words, and how many numbers there are
  must be the same to the letter; the spaces that align a number may make up for its length, and no more.
- Pictures by their pixels, with room for what another font rasteriser does at the edges.
- What is written to stderr is not compared; tests/test_book.py admits none in a stored notebook.
- An output of any other kind, or a picture that cannot be read, is an error that names notebook and cell.

With --noise SEED every chapter runs under rounding noise (mmlib.noise), which its kernel's start-up file switches on.
The file seeds torch's global random state too, which is another one in every process otherwise: what fails under a seed
fails under it again. A cell whose very subject is exact arithmetic carries the tag `exact`: it has to fail under noise,
or the tag is not needed, and is then run again without.
"""

import base64
import binascii
import io
import os
import re
import tempfile
from decimal import Decimal
from pathlib import Path

import nbval.plugin
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

PICTURE = "image/png"
TEXTS = {"text/plain", "text/html", "text/markdown", "text/latex"}
TOLERANCE = 2.0
"""Of 255, root mean square over all pixels and channels. A thin curve in another place is beyond it."""

_NUMBER = re.compile(
    r"( *)(?<![\w.])([-+\u2212]?)"
    r"((?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\d+(?= ?%))"
    r"(?!\w|\.\w)"  # no version, no name
)


def _equal(stored: re.Match, new: re.Match) -> bool:
    a, b = (Decimal(("-" if match[2] in ("-", "\u2212") else "") + match[3]) for match in (stored, new))
    unit = Decimal((0, (1,), min(a.as_tuple().exponent, b.as_tuple().exponent)))
    return abs(a - b) <= unit and (stored[1] == new[1] or len(stored[0]) == len(new[0]))


def same_text(stored: str, new: str) -> bool:
    """Whether two outputs say the same, numbers compared as numbers."""
    numbers, new_numbers = list(_NUMBER.finditer(stored)), list(_NUMBER.finditer(new))
    return (
        _NUMBER.sub("#", stored) == _NUMBER.sub("#", new)
        and len(numbers) == len(new_numbers)
        and all(map(_equal, numbers, new_numbers))
    )


class Text(str):
    """An output in words that equals another if it says the same."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return same_text(self, str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def pixels(picture: str) -> np.ndarray:
    """Red, green and blue of a base64 PNG. Raises ValueError if it is malformed or truncated."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            return np.asarray(image.convert("RGB"), float)
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"a picture cannot be read: {error}") from error


class Picture(str):
    """A base64 PNG that equals another if their pixels do, up to TOLERANCE."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        a, b = pixels(self), pixels(str(other))
        return a.shape == b.shape and float(np.sqrt(np.mean((a - b) ** 2))) <= TOLERANCE

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
            for kind, value in output.get("data", {}).items():
                if kind == PICTURE:
                    try:
                        pixels(value)
                    except ValueError as error:
                        self.raise_cell_error(f"{self.place}: {error}")
                elif kind not in TEXTS:
                    allowed = ", ".join(sorted({PICTURE, *TEXTS}))
                    self.raise_cell_error(f"{self.place}: an output of kind {kind} cannot be compared, only {allowed}")

    def runtest(self):
        self.check_stored()
        if self.config.option.noise is None or "exact" not in self.cell.metadata.get("tags", []):
            return super().runtest()
        try:
            super().runtest()
        except nbval.plugin.NbCellError:
            if self.parent.timed_out:
                raise
        else:
            self.raise_cell_error(f"{self.place}: the tag `exact` is not needed: the cell holds under noise")
        self.switch_noise("off")
        super().runtest()
        self.switch_noise("on")

    def switch_noise(self, state):
        """Noise on or off in the kernel from now on."""
        kernel = self.parent.kernel
        kernel.await_reply(kernel.kc.execute(f"%noise {state}", silent=True), timeout=60)


_STARTUP = """
import torch
from IPython import get_ipython
from mmlib.noise import noise

torch.manual_seed({seed} % 2**63)
switch = noise({seed})
switch.__enter__()


def line_magic(state):
    global switch
    if state == "off":
        switch.__exit__(None, None, None)
    else:
        switch = noise({seed} + 1)
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
    if isinstance(collector, nbval.plugin.IPyNbFile):
        collector.skip_compare = (*(key for key in collector.skip_compare if key != PICTURE), "stderr")


def pytest_itemcollected(item):
    # nbval constructs its own class by name and has no hook for another.
    if type(item) is nbval.plugin.IPyNbCell:
        item.__class__ = Cell
