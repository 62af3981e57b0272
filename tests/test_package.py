"""The library as somebody gets it who installs it: built from a clean copy, imported from what was built."""

import functools
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import mmlib

ROOT = Path(mmlib.__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

# On a busy machine a second thread costs more than it brings.
ALONE = {"PATH": "", "OMP_NUM_THREADS": "1"}

# In an environment with the four dependencies nothing else can be imported.
RUN = """
import importlib, json, os, pkgutil, random, sys

tried = []

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tqdm", "IPython", "pooch", "pytest", "nbformat"):
            tried.append(name)
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import matplotlib, numpy, torch

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

def state():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "python": str(random.getstate()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "dtype": [str(torch.get_default_dtype()), torch.is_grad_enabled()],
        "style": {k: str(v) for k, v in dict.items(matplotlib.rcParams)},
        "printing": str(torch._tensor_str.PRINT_OPTS),
        "environment": dict(os.environ),
        "directory": sorted(os.listdir()),
    }

before = state()
tried.clear()
import mmlib
names = [m.name for m in pkgutil.walk_packages(mmlib.__path__, "mmlib.")]
for name in names:
    importlib.import_module(name)
after = state()
found = {
    "file": mmlib.__file__,
    "version": mmlib.__version__,
    "modules": names,
    "changed": [k for k in before if before[k] != after[k]],
    "opened": [f for f in opened if f.lower().endswith("names.txt")],
    "loaded": [m for m in (*tried, *sys.modules) if m == "matplotlib.pyplot" or m.split(".")[0] == "IPython"],
}

from mmlib import data, models, rng, train
corpus = data.corpus()
model = models.MLP(width=4, depth=1).build(rng.generator(0, "weights"))
history = train.train(model, data.minibatches(corpus.dev, 4, 3, generator=rng.generator(0, "b")), lr=0.1, progress=True)
print(json.dumps({**found, "steps": len(history.loss.steps)}))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """unpacked(kind): the directory of the package after a wheel was unpacked, or a wheel built from the sdist."""
    pytest.importorskip("setuptools")

    @functools.cache
    def made(which):
        place = tmp_path_factory.mktemp(which)
        source = place / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(ROOT / "mmlib", source / "mmlib", ignore=shutil.ignore_patterns("__pycache__"))

        def built(kind, directory):
            command = [sys.executable, "-c", BUILD, f"build_{kind}", str(place)]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return place / done.stdout.split()[-1]

        if which == "sdist":
            with tarfile.open(built("sdist", source)) as archive:
                archive.extractall(place / "unpacked")
            (source,) = (place / "unpacked").iterdir()
        with zipfile.ZipFile(built("wheel", source)) as archive:
            archive.extractall(place / "installed")
        return place / "installed"

    return made


@pytest.fixture(params=["wheel", "sdist"])
def installed(request, unpacked):
    return unpacked(request.param)


def test_every_file_of_the_library_is_in_it(installed):
    files = {p.relative_to(ROOT) for p in (ROOT / "mmlib").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p for p in files if not (installed / p).is_file()} == set()


def test_it_says_what_it_is_and_what_it_needs(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    told = Parser().parsestr(metadata.read_text(encoding="utf-8"))
    needed = [r for r in told.get_all("Requires-Dist") if "extra ==" not in r]
    assert (told["Name"], told["Version"]) == ("mmlib", mmlib.__version__)
    assert sorted(needed) == ["matplotlib", "numpy", "scipy", "torch"]
    assert f"## {mmlib.__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_a_wheel_from_the_sdist_is_the_wheel(unpacked):
    def contents(place):
        files = (p for p in place.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        return {p.relative_to(place): p.read_bytes() for p in files}

    assert contents(unpacked("sdist")) == contents(unpacked("wheel"))


@pytest.fixture(scope="module")
def alone(unpacked, tmp_path_factory):
    """What a fresh process says that imports all of the wheel, and trains. A second one would import torch again."""
    code = f"import sys; sys.path.insert(0, {str(unpacked('wheel'))!r})\n{RUN}"
    place = tmp_path_factory.mktemp("alone")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, timeout=120, env=ALONE
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_nothing_happens_at_import(alone):
    """No random state, thread count, style or environment changes; the corpus is not read."""
    assert {key: alone[key] for key in ("changed", "opened", "loaded")} == {"changed": [], "opened": [], "loaded": []}


def test_it_trains_with_nothing_else_installed(alone, unpacked):
    assert Path(alone["file"]) == unpacked("wheel") / "mmlib" / "__init__.py" and alone["version"] == mmlib.__version__
    assert len(alone["modules"]) > 20 and alone["steps"] == 3
