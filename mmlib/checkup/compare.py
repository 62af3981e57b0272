"""Two reports side by side."""

from dataclasses import dataclass
from html import escape
from typing import Any

from mmlib.checkup.report import COLUMNS, Finding, Report, cells, html_table, text_table


@dataclass(frozen=True)
class Comparison:
    """Two reports side by side: the findings that went, came and stayed, and what changed layer by layer."""

    before: Report
    after: Report

    def _split(self) -> dict[str, list[Finding]]:
        old, new = ({(f.rule, f.layer): f for f in report} for report in (self.before, self.after))
        return {
            "gone": [f for key, f in old.items() if key not in new],
            "new": [f for key, f in new.items() if key not in old],
            "still": [f for key, f in new.items() if key in old],
        }

    @property
    def gone(self) -> list[Finding]:
        """Findings of the first report that the second has no more."""
        return self._split()["gone"]

    @property
    def new(self) -> list[Finding]:
        """Findings that only the second report has."""
        return self._split()["new"]

    def _rows(self) -> list[list[str]]:
        old, new = ({(x.name, x.kind): x for x in report.layers} for report in (self.before, self.after))
        rows = []
        for key in dict.fromkeys([*old, *new]):
            pair = [cells(x[key])[3:] if key in x else [""] * len(COLUMNS[3:]) for x in (old, new)]
            row = [a if a == b else f"{a or '-'} > {b or '-'}" for a, b in zip(*pair, strict=True)]
            rows.append([*key, "", *row])
        return rows

    def _lines(self) -> list[str]:
        lines = [f"Loss {self.before.loss:.4g} > {self.after.loss:.4g}"]
        lines += [f"{k}: {f.rule}, in {f.layer}: {f.measured}" for k, found in self._split().items() for f in found]
        return lines

    def __str__(self) -> str:
        return "\n".join(self._lines()) + "\n\n" + text_table(self._rows())

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self._lines())
        return lines + html_table("Layers, before > after", COLUMNS, self._rows())

    def to_dict(self) -> dict[str, Any]:
        """Both reports, for JSON."""
        return {"before": self.before.to_dict(), "after": self.after.to_dict()}


def compare(before: Report, after: Report) -> Comparison:
    """Two reports side by side, say of a model before and after a change or some training.

    Raises TypeError unless both are reports.

    >>> from torch import nn, ones
    >>> from mmlib.checkup import checkup
    >>> report = checkup(nn.Linear(2, 1), ones(8, 2), ones(8, 1), nn.MSELoss())
    >>> compare(report, report).after is report
    True
    """
    for name, report in (("before", before), ("after", after)):
        if not isinstance(report, Report):
            raise TypeError(f"{name}: a Report is needed, got {type(report).__name__}")
    return Comparison(before, after)
