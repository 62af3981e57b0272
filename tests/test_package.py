"""The library as somebody gets it who installs it: built from a clean copy, imported from what was built."""

import functools
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

# In an environment with the four dependencies, and what these import themselves, nothing else can be imported.
IMPORT = """
import importlib, pkgutil, sys
import matplotlib.axes, numpy, scipy.integrate, scipy.special, torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tqdm", "IPython", "pooch", "pytest", "nbformat"):
            raise ModuleNotFoundError(name)

for name in [m for m in sys.modules if m.split(".")[0] in ("tqdm", "IPython")]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
import mmlib
names = [m.name for m in pkgutil.walk_packages(mmlib.__path__, "mmlib.")]
for name in names:
    importlib.import_module(name)
from mmlib import data, models, rng, train
corpus = data.corpus()
model = models.MLP(width=4, depth=1).build(rng.generator(0, "weights"))
history = train.train(model, data.minibatches(corpus.dev, 4, 3, generator=rng.generator(0, "b")), lr=0.1, progress=True)
print(mmlib.__file__, mmlib.__version__, len(names), len(history.loss.steps))
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
                archive.extractall(place / "unpacked", filter="data")
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


def test_it_trains_with_nothing_else_installed(unpacked, tmp_path):
    installed = unpacked("wheel")
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{IMPORT}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=ALONE)
    assert done.returncode == 0, done.stderr
    file, version, modules, steps = done.stdout.split()
    assert Path(file) == installed / "mmlib" / "__init__.py" and version == mmlib.__version__
    assert int(modules) > 20 and int(steps) == 3
