"""What a checkup hands back: findings, a table of layers, and the page that shows both."""

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from mmlib.table import LINE


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where, what was measured, what is healthy and why, what to do, where the book tells.

    `layer` is the qualified name of the first module concerned; of those in `also` the same is true. `severity` is
    "error" (this does not train, or trains something else than is meant), "warning" or "note".
    """

    rule: str
    severity: str
    layer: str
    measured: str
    healthy: str
    why: str
    action: str
    chapter: str
    also: tuple[str, ...] = ()


class Layer(NamedTuple):
    """What one layer, or one activation function, did in the pass; None where there is nothing to measure.

    `rms` of the output; `flat`, the share of its elements where |phi'| is below 2 % of its largest value, for tanh
    where |h| > 0.99; `dead`, the share of units that are flat for every example; `gradient`, the Euclidean norm of
    d loss / d output; `grad_data`, the largest std(grad) / std(data) among the layer's matrices; `update_data`,
    log10(rms(update) / std(data)) of the optimiser's step, or log10(lr * grad_data).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    rms: float
    flat: float | None
    dead: float | None
    gradient: float | None
    grad_data: float | None
    update_data: float | None


@dataclass(frozen=True)
class Report(Sequence[Finding]):
    """A sequence of findings: errors before warnings, causes before consequences; printed, a page; in a notebook, two
    tables. Of layers that are alike, a page shows the first; `table()` has them all.

    `loss` is the loss at this point, `uniform` that of an uninformed guess, None for a loss function that is not known.
    `gradient_growth` is the factor by which the gradient's norm changes per layer on its way back, None below four
    layers before the output. `unseen` says what could not be looked into.
    """

    model: str
    mode: str
    parameters: int
    trainable: int
    loss: float
    uniform: float | None
    guess: str
    gradient_growth: float | None
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    unseen: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: Any) -> Any:
        return self.findings[index]

    def __str__(self) -> str:
        findings = [_paragraph(i, finding) for i, finding in enumerate(self, start=1)]
        return "\n\n".join(
            ["\n".join(_head(self)), _verdict(self), *findings, *filter(None, [text_table(_folded(self))])]
        )

    def table(self) -> str:
        """Every layer, in the order of their first call."""
        return text_table([cells(layer) for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON; numbers that are not finite as strings."""
        whole = dataclasses.asdict(self) | {"layers": [layer._asdict() for layer in self.layers]}
        return _plain(whole)

    def _repr_html_(self) -> str:
        return _html(self)


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(item) for item in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


COLUMNS = ("layer", "kind", "output", "rms", "flat", "dead", "|gradient|", "grad:data", "update:data")
_FORMATS = (".2g", ".1%", ".1%", ".2g", ".2g", ".1f")  # of the numbers, from rms on
_SHOWN = 20  # rows, up to which nothing is folded
_ALIKE = 2  # layers whose numbers are within this factor of those of one that is shown are alike


def cells(layer: Layer) -> list[str]:
    """One row of the table."""
    name, kind, shape, *values = layer
    shown = ["" if x is None else format(x, form) for x, form in zip(values, _FORMATS, strict=True)]
    return [name, kind, " x ".join(map(str, shape)), *shown]


def _alike(a: Layer, b: Layer) -> bool:
    ratios = zip((a.rms, a.gradient, a.grad_data), (b.rms, b.gradient, b.grad_data), strict=True)
    near = all(x is y or (x and y and 1 / _ALIKE <= x / y <= _ALIKE) for x, y in ratios)
    shares = zip((a.flat, a.dead), (b.flat, b.dead), strict=True)
    return near and all(x is y or abs((x or 0) - (y or 0)) < 0.1 for x, y in shares)


def _folded(report: Report) -> list[list[str]]:
    """The table without layers that are like one of the same kind, shape and place in a block that is shown."""
    if len(report.layers) <= _SHOWN:
        return [cells(layer) for layer in report.layers]
    named = {name for finding in report for name in (finding.layer, *finding.also[:3])}
    shown: dict[tuple[Any, ...], list[Layer]] = {}
    rows, left = [], 0
    for layer in report.layers:
        before = shown.setdefault((re.sub(r"\d+", "#", layer.name), layer.kind, layer.shape[1:]), [])
        if layer.name not in named and any(_alike(layer, other) for other in before):
            left += 1
        else:
            before.append(layer)
            rows.append(cells(layer))
    return [*rows, [f"and {left} more like these: print(report.table())", *[""] * 8]] if left else rows


def text_table(rows: list[list[str]]) -> str:
    """Columns side by side; those that are empty are left out."""
    table = [list(COLUMNS), *rows]
    keep = [k for k in range(len(COLUMNS)) if any(row[k] for row in table[1:])]
    widths = {k: max(len(row[k]) for row in table if any(row[1:])) for k in keep}
    lines = ["  ".join(r[k].ljust(widths[k]) if k < 3 else r[k].rjust(widths[k]) for k in keep).rstrip() for r in table]
    return "\n".join(lines) if rows else ""


def _head(report: Report) -> list[str]:
    frozen = report.parameters - report.trainable
    of_them = f", {frozen:,} of them frozen" if frozen else ""
    lines = [f"Checkup of {report.model}: {report.parameters:,} parameters{of_them}, in {report.mode} mode"]
    if report.uniform is None:
        lines.append(f"Loss {report.loss:.4g}; what to expect of this loss function is not known")
    else:
        lines.append(f"Loss {report.loss:.4g}; {report.guess} gives {report.uniform:.4g}")
    if report.gradient_growth is not None:
        lines.append(f"Gradient x {report.gradient_growth:.2f} per layer on its way back")
    return [*lines, *(f"Not looked into: {what}" for what in report.unseen)]


def _verdict(report: Report) -> str:
    return {0: "No finding.", 1: "1 finding:"}.get(len(report), f"{len(report)} findings, causes first:")


def _paragraph(number: int, finding: Finding) -> str:
    also = ", ".join(finding.also[:5]) + (f" and {len(finding.also) - 5} more" if len(finding.also) > 5 else "")
    parts = {"measured": finding.measured, "healthy": finding.healthy, "because": finding.why, "do": finding.action}
    parts |= {"also in": also, "read": finding.chapter}
    lines = [f"{number}. {finding.severity}, {finding.layer}: {finding.rule}"]
    for key, text in parts.items():
        if text:
            lines.append(textwrap.fill(text, LINE, initial_indent=f"   {key:<9} ", subsequent_indent=" " * 13))
    return "\n".join(lines)


def html_table(caption: str, columns: Sequence[str], rows: list[list[str]]) -> str:
    """A table whose first column names the rows; nothing in it is read as HTML."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(x)}</td>" for x in rest)}</tr>'
        for first, *rest in rows
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html(report: Report) -> str:
    names = ["finding", "severity", "layer", "measured", "healthy", "because", "do", "read"]
    rows = [
        [f.rule, f.severity, ", ".join((f.layer, *f.also)), f.measured, f.healthy, f.why, f.action, f.chapter]
        for f in report
    ]
    parts = [f"<p>{escape(line)}</p>" for line in _head(report)]
    parts.append(html_table(_verdict(report), names, rows) if rows else f"<p>{_verdict(report)}</p>")
    parts.append(html_table("Layers, in the order of their first call", COLUMNS, _folded(report)))
    return "".join(parts)
