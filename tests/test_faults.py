"""The table of faults is up to date: each can be planted in the library as it stands, and what should notice is there.

Whether they do notice is seen by `make faults`, which takes minutes; here a library of one line shows that it would say
so if one did not.
"""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import faults
from tools.faults import ROOT, Fault, copy, planted, read, run

FAULTS = read(faults.TABLE)
ENTRY = """
[wrong-sign]
what = "the wrong sign"
module = "m"
old = "-x"
new = "+x"
test = "test_sign"
chapter = "01-signs"
"""
UNNOTICED = """
[wrong-name]
what = "another name"
module = "m"
old = "# a name"
new = "# no name"
test = "test_sign"
chapter = "01-signs"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder of a project of one module, one test and one chapter."""
    printed = new_code_cell("print(y)", execution_count=2, outputs=[new_output("stream", text="-1\n")])
    cells = [new_code_cell("from mmlib.m import y", execution_count=1), new_markdown_cell("y"), printed]
    for name, text in {
        "mmlib/m.py": "x = 1  # a name\ny = -x\nz = 2\nw = 2\n",
        "mmlib/__init__.py": "",
        "tests/test_m.py": "from mmlib.m import y\n\n\ndef test_sign():\n    assert y == -1\n",
        "book/01-signs.ipynb": nbformat.writes(new_notebook(cells=cells)),
        "conftest.py": "",
        "pyproject.toml": "[tool.pytest.ini_options]\n",  # the root, wherever the folder lies
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    # Its runs need no other plugin, and those of this environment take as long to import as all the rest.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "nbval.plugin")
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    monkeypatch.setattr(faults, "TABLE", tmp_path / "faults.toml")
    return tmp_path


def test_there_are_at_least_25_of_many_kinds():
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
    rows = [line.strip("| ").rsplit(" | ", 2) for line in table.splitlines()[2:] if line.startswith("|")]
    assert [row[0] for row in rows] == [f"{fault.name} | {fault.what}" for fault in FAULTS]
    for (_, unit_test, cell), fault in zip(rows, FAULTS, strict=True):
        assert unit_test.startswith(fault.test) and cell.startswith(f"{fault.chapter}, cell "), (unit_test, cell)
    assert table.endswith(f"\n{len(FAULTS)} of {len(FAULTS)} seen twice\n") and "**" not in table


def test_a_listing_of_the_source_does_not_count_as_noticing(tmp_path):
    for path in (copy(tmp_path / "copy") / "book").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            shown = cell.cell_type == "code" and re.search(r"\bshow\(\w", cell.source) is not None
            assert ("nbval-ignore-output" in cell.metadata.get("tags", ())) == shown, f"{path.name}: {cell.source}"


def test_a_fault_is_planted_and_taken_out_again(project):
    (project / "faults.toml").write_text(ENTRY)
    (fault,) = read(project / "faults.toml")
    assert fault == Fault("wrong-sign", "the wrong sign", "m", "-x", "+x", "test_sign", "01-signs")
    sound = (project / "mmlib/m.py").read_text()
    with pytest.raises(KeyError), planted(fault, project):
        assert (project / "mmlib/m.py").read_text() == sound.replace("-x", "+x")
        raise KeyError
    assert (project / "mmlib/m.py").read_text() == sound


def test_what_is_seen_once_or_never_is_said(project, capsys):
    (project / "faults.toml").write_text(ENTRY + UNNOTICED)
    assert faults.main([]) == 1
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| wrong-sign | the wrong sign | test_sign | 01-signs, cell 2 |",
        "| wrong-name | another name | **green** | **green** |",
        "",
        "1 of 2 seen twice",
    ]
    assert "y = -x" in (project / "mmlib/m.py").read_text()


def test_a_test_that_cannot_run_is_no_test_that_fails(project):
    (project / "mmlib/m.py").write_text("y = \n")
    red, problem = run(["tests/test_m.py"], project)
    assert red is None and "SyntaxError" in problem


def test_red_without_a_fault_ends_it(project):
    (project / "faults.toml").write_text(ENTRY)
    (project / "mmlib/m.py").write_text("x = 2\ny = -x\n")
    with pytest.raises(SystemExit, match="without any fault these are red:\ntest_sign\n01-signs, cell 2"):
        faults.main([])


def test_an_unknown_name_is_refused(project):
    (project / "faults.toml").write_text(ENTRY)
    with pytest.raises(SystemExit, match="no such fault: wrong-sigh; there are wrong-sign"):
        faults.main(["wrong-sigh"])


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
    (project / "faults.toml").write_text(ENTRY.replace(sound, malformed))
    with pytest.raises(SystemExit, match=f"fault 'wrong-sign': .*{re.escape(said)}"):
        faults.main([])


def test_a_name_given_twice_is_refused(project):
    (project / "faults.toml").write_text(ENTRY + ENTRY)
    with pytest.raises(SystemExit, match=r"faults\.toml: .*line 10"):
        faults.main([])
