"""The table of faults is up to date: each can be planted in the library as it stands, and what should notice is there.

Whether they do notice is seen by `make faults`, which takes minutes.
"""

import re

import pytest

from tools.faults import ROOT, Fault, planted, read

FAULTS = read()
SOUND = """
[wrong-sign]
what = "the wrong sign"
module = "m"
old = "-x"
new = "+x"
test = "test_sign"
chapter = "01-signs"
"""


@pytest.fixture
def project(tmp_path):
    """A project of one module, one test and one chapter, and a table with the text that is given."""
    files = {"mmlib/m.py": "y = -x\nz = 2\nw = 2\n", "tests/test_m.py": "def test_sign():\n    pass\n"}
    for name, text in (files | {"book/01-signs.ipynb": "{}"}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def table(text):
        (tmp_path / "faults.toml").write_text(text)
        (fault,) = read(tmp_path / "faults.toml")
        fault.check(tmp_path)
        return fault

    return table


def test_there_are_at_least_25_of_many_modules():
    assert len(FAULTS) >= 25
    assert len({fault.module for fault in FAULTS}) >= 8
    assert len({fault.chapter for fault in FAULTS}) >= 8


def test_no_fault_is_there_twice():
    assert len({(fault.module, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
    assert len({fault.what for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_and_leaves_python(fault):
    fault.check(ROOT)
    text = (ROOT / fault.source).read_text(encoding="utf-8")
    compile(text.replace(fault.old, fault.new), str(fault.source), "exec")


def test_the_stored_table_has_these_faults_and_all_were_seen_twice():
    table = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[:2] for line in table.splitlines()[2:] if line.startswith("|")]
    assert rows == [[f"| {fault.name}", fault.what] for fault in FAULTS]
    assert table.endswith(f"\n{len(FAULTS)} of {len(FAULTS)} seen twice\n")


def test_a_fault_is_planted_and_taken_out_again(tmp_path, project):
    fault = project(SOUND)
    with pytest.raises(KeyError), planted(fault, tmp_path):
        assert (tmp_path / "mmlib/m.py").read_text() == "y = +x\nz = 2\nw = 2\n"
        raise KeyError
    assert (tmp_path / "mmlib/m.py").read_text() == "y = -x\nz = 2\nw = 2\n"
    assert fault == Fault("wrong-sign", "the wrong sign", "m", "-x", "+x", "test_sign", "01-signs")


@pytest.mark.parametrize(
    ("sound", "malformed", "said"),
    [
        ('"-x"', '"-y"', "'-y' occurs 0 times in mmlib/m.py, once is needed"),
        ('"-x"', '"2"', "'2' occurs 2 times in mmlib/m.py, once is needed"),
        ('"-x"', '""', "'' occurs 0 times in mmlib/m.py, once is needed"),
        ('"+x"', '"-x"', "new: '-x' is what is there already"),
        ('"+x"', "3", "a text for each of what, module, old, new, test, chapter is needed"),
        ("new =", "knew =", "a text for each of what, module, old, new, test, chapter is needed"),
        ('"m"', '"n"', "mmlib/n.py: no such file"),
        ('"test_sign"', '"test_sig"', "there is no tests/test_m.py::test_sig"),
        ('"01-signs"', '"02-signs"', "book/02-signs.ipynb: no such file"),
    ],
)
def test_a_malformed_entry_is_named(sound, malformed, said, project):
    with pytest.raises(ValueError, match=f"fault 'wrong-sign': .*{re.escape(said)}"):
        project(SOUND.replace(sound, malformed))


def test_a_name_given_twice_is_refused(project):
    with pytest.raises(ValueError, match=r"faults\.toml: .*line 10"):
        project(SOUND + SOUND)
