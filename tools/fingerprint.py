"""Drop stored results when what they were computed with has changed: python tools/fingerprint.py _build

jupyter-cache keys a result by the notebook's code cells. The library, the corpus, the plot style, stored figures and
the installed versions are not in that key, so their contents are remembered here beside the results.
"""

import hashlib
import shutil
import sys
from pathlib import Path

FOLDERS = ["mmlib", "reproduction", "book/figures"]
CONSTANT = ["book/book.mplstyle", "benchmarks/checkup/record.md", "constraints.txt"]


def fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    files = (path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file())
    library = (path for path in files if path.suffix in {".py", ".txt", ".json"})
    for path in sorted([*library, *map(Path, CONSTANT)]):
        digest.update(f"{path}\0".encode())
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def main(build: Path) -> None:
    stamp = build / ".fingerprint"
    now = fingerprint()
    if build.exists() and (not stamp.exists() or stamp.read_text() != now):
        print(f"the library, the style or the installed versions changed: {build} is made anew")
        shutil.rmtree(build)
    build.mkdir(exist_ok=True)
    stamp.write_text(now)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
