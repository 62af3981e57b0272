"""Pixels in nbval, one thread, and no window: for the unit tests and for the chapters alike.

nbval compares everything but pictures. Here a stored PNG is compared with the new one by its pixels, with room for what
another font rasteriser does at the edges; tests/test_book.py proves that a wrong picture is still found.
"""

import base64
import io
import os

# For torch here and in the kernels; on a busy machine a second thread costs far more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# A backend named from outside would replace the one that puts figures into a notebook.
os.environ.pop("MPLBACKEND", None)

import matplotlib
import numpy as np
import pytest
from nbval.plugin import IPyNbCell, IPyNbFile
from PIL import Image

pytest_plugins = ["pytester"]

# Of 255, root mean square over all pixels and channels. A thin curve in another place is beyond it.
TOLERANCE = 2.0

matplotlib.use("Agg")


class Png(str):
    """A base64 PNG that equals another when their pixels do, up to TOLERANCE."""

    __slots__ = ()

    def pixels(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(self))).convert("RGB"), float)

    def __ne__(self, other: object) -> bool:
        a, b = self.pixels(), Png(other).pixels()
        return a.shape != b.shape or float(np.sqrt(np.mean((a - b) ** 2))) > TOLERANCE

    def __eq__(self, other: object) -> bool:
        return not self != other

    __hash__ = str.__hash__


_sanitize = IPyNbCell.sanitize


def sanitize(self, text):
    text = _sanitize(self, text)
    return Png(text) if isinstance(text, str) and text.startswith("iVBORw0KGgo") else text


IPyNbCell.sanitize = sanitize


def needs_absent_data(notebook) -> bool:
    """Whether a chapter reproduces the published reference run, and that run's data are not on this machine."""
    if "mmlib.lecture" not in notebook.read_text(encoding="utf-8"):
        return False
    from mmlib import lecture

    return lecture.nearby() is None


def absent():
    pytest.skip("the data of the reference run are not here; set MMLIB_LECTURE_NAMES to the path of names.txt")


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        if needs_absent_data(collector.path):
            collector.collect = absent
        # What a library says on stderr depends on the machine; tests/test_book.py admits none in a stored notebook.
        collector.skip_compare = (*(key for key in collector.skip_compare if key != "image/png"), "stderr")
