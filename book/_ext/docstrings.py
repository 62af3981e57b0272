"""Let a docstring write |x| for an absolute value; reStructuredText would look for a substitution of that name.

And leave out what Python writes of the fields of a named tuple, "Alias for field number 0".
"""

import re

LITERAL = re.compile(r"(``.*?``|:\w+:`.*?`)")


def escape(app, what, name, obj, options, lines):
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    block = None
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if block is not None and line.strip() and indent <= block:
            block = None
        if block is None:
            parts = LITERAL.split(line)
            lines[i] = "".join(part if k % 2 else part.replace("|", r"\|") for k, part in enumerate(parts))
            if line.rstrip().endswith("::"):
                block = indent


def setup(app):
    app.connect("autodoc-process-docstring", escape, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
