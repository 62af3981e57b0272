"""One thread, and the comparison of outputs: for the unit tests and for the chapters alike."""

import gc
import os
import signal

# For torch here and in the kernels; on a busy machine a second thread costs far more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# A backend named from outside would replace the one that puts figures into a notebook.
os.environ.pop("MPLBACKEND", None)

import pytest
from nbval.plugin import IPyNbFile

pytest_plugins = ["pytester", "tests.plugins.outputs", "tests.plugins.kernels"]

# Tests interrupt themselves; what a script runs in its background has the interruption ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session):
    # The process that only hands tests out to others need not wait for torch. (Without pytest-xdist there is none.)
    if session.config.getoption("dist", "no") == "no" or hasattr(session.config, "workerinput"):
        session.config.pluginmanager.import_plugin("tests.plugins.fixtures")


def pytest_collection_finish():
    """The modules and thousands of tests that are there now stay, so that no collection goes through them again."""
    gc.collect()
    gc.freeze()


def needs_absent_data(notebook) -> bool:
    """Whether a chapter reproduces the published reference run, and that run's data are not on this machine."""
    if "reference_run" not in notebook.read_text(encoding="utf-8", errors="replace"):
        return False
    import reference_run

    return reference_run.nearby() is None


def absent():
    pytest.skip("the data of the reference run are not here; set MMLIB_LECTURE_NAMES to the path of names.txt")


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile) and needs_absent_data(collector.path):
        collector.collect = absent
