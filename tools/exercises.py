"""The index of exercises, made anew from the chapters: python tools/exercises.py"""

import re
from pathlib import Path

import nbformat

BOOK = Path(__file__).parent.parent / "book"
INDEX = BOOK / "exercises.md"
EXERCISE = re.compile(r"^[`:]{3,}\{exercise(?:-start)?\} (.+) \((warm-up|work|open)\)\n:label: (\S+)", re.MULTILINE)
GRADES = "warm-up, work, open"

HEAD = f"""# Exercises

Every exercise of the book, by chapter and grade: {GRADES}. Each has a worked solution, folded away below it.
"""


def index() -> str:
    """The page: a section for each chapter, and in it a line for each exercise, in the chapter's order."""
    parts = [HEAD]
    for path in sorted(BOOK.glob("*.ipynb")):
        prose = "\n\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        title = re.match(r"# (.+)", prose).group(1)
        parts.append(f"## [{title}]({path.name})\n")
        parts += [f"- {{ref}}`{title} <{label}>` ({grade})" for title, grade, label in EXERCISE.findall(prose)]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    INDEX.write_text(index(), encoding="utf-8")
