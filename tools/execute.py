"""Run notebooks and store their outputs: python tools/execute.py book/01-a-chapter.ipynb ...

A notebook is replaced only after all its cells have run; if one raises, the file stays as it was.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbstripout import strip_output

TIMEOUT = 120
# What differs from one machine or editor to the next.
VOLATILE = ["metadata.language_info.version", "metadata.signature", "metadata.widgets", "cell.metadata.execution"]


def executed(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return strip_output(notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=VOLATILE)


def main(names: list[str]) -> None:
    for path in map(Path, names):
        print(f"executing {path} ", end="", flush=True)
        start = time.perf_counter()
        try:
            notebook = executed(path)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            sys.exit(f"\n{error}\n{path} is as it was.")
        text = nbformat.writes(notebook).rstrip("\n") + "\n"
        beside = path.with_suffix(".ipynb.new")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
        print(f"{time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
