"""The record of `mmlib.checkup`: what it says of the faulty programs, of their repaired versions and of healthy ones.

    python -m benchmarks.checkup.run            the table (a quarter of an hour on an idle machine; --jobs shares it)
    python -m benchmarks.checkup.run --cost     also what a checkup costs, which asks for an idle machine
    python -m benchmarks.checkup.run --write    also record.md and record.json beside this file

The rules' thresholds were chosen on even seeds; the table is made on odd ones (`--even` shows the others). In one run
of a faulty program the checkup

- finds the fault exactly, if a finding is of a rule that names the fault (`Kind.exact`);
- says something related, if none is, but one is of a rule that names a consequence or a neighbour and leads there
  (`Kind.related`);
- misleads, if it does neither, and an error or warning is of no rule whose claim is true of such programs
  (`Kind.beside`): then the claim is false, and what it advises would not help;
- is silent otherwise.

Which rules these are was decided for each kind from what the rule claims, not from where it fired. A checkup that
raises counts as a finding of the rule "raises" and the exception's name. A false alarm is an error or a warning on a
healthy or repaired program. Its interval is Clopper and Pearson's at 95 %, as if runs were independent; runs of one
program are alike, so that the number of programs with any alarm stands beside it.
"""

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Iterable
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import binomtest

from benchmarks.checkup.cost import COLUMNS, costs
from benchmarks.checkup.faults import FAULTS
from benchmarks.checkup.healthy import HEALTHY
from benchmarks.checkup.programs import Kind, Program, seeded
from mmlib.checkup import checkup

OUTCOMES = ("exact", "related", "silent", "misleading")


class Run(NamedTuple):
    """What was said of one program under one seed: the rules of all findings, and of those that are no mere notes."""

    program: str
    seed: int
    broken: bool
    said: tuple[str, ...]
    alarms: tuple[str, ...]


def outcome(kind: Kind, run: Run) -> str:
    """What one run of a faulty program of this kind counts as."""
    said, alarms = set(run.said), set(run.alarms)
    if said & kind.exact:
        return "exact"
    if said & kind.related:
        return "related"
    return "misleading" if alarms - kind.beside else "silent"


def examined(program: Program, seed: int, broken: bool) -> Run:
    trial = program.build(seed, broken)
    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of shapes that broadcast and the like
        try:
            report = checkup(*trial[:4], optimizer=trial.optimizer)
        except Exception as error:
            said = (f"raises {type(error).__name__}",)
            return Run(program.name, seed, broken, said, said)
    loud = tuple(f.rule for f in report if f.severity != "note")
    return Run(program.name, seed, broken, tuple(f.rule for f in report), loud)


def runs(programs: Iterable[Program], seeds: Iterable[int], broken: bool, jobs: int = 1) -> list[Run]:
    asked = [(program, seed, broken) for program in programs for seed in seeds]
    if jobs == 1:
        return [examined(*one) for one in asked]
    with Pool(jobs, torch.set_num_threads, (1,)) as pool:
        return pool.starmap(examined, asked, chunksize=10)


def by_kind(made: list[Run]) -> dict[str, Counter]:
    """How many runs of each kind had which outcome."""
    counts: dict[str, Counter] = {}
    for run in made:
        kind = FAULTS[run.program].kind
        counts.setdefault(kind.name, Counter())[outcome(kind, run)] += 1
    return counts


def percent(counts: Counter) -> list[str]:
    return [f"{100 * counts[name] / counts.total():.0f}" if counts[name] else "" for name in OUTCOMES]


def table(made: list[Run]) -> list[list[str]]:
    """Rows of kind, number of programs, and the shares of the outcomes in percent; the last row is all of them."""
    counts, programs = by_kind(made), Counter(FAULTS[name].kind.name for name in {run.program for run in made})
    rows = [[kind, str(programs[kind]), *percent(counts[kind])] for kind in counts]
    return [*rows, ["all", str(programs.total()), *percent(sum(counts.values(), Counter()))]]


def first(made: list[Run]) -> str:
    """How often the finding that stands first is exact or related, which is what published tools call top 1."""
    kinds = [(run.said[:1], FAULTS[run.program].kind) for run in made]
    hits = sum(bool({*said} & (kind.exact | kind.related)) for said, kind in kinds)
    return f"The first finding is exact or related in {hits / len(made):.0%} of the runs."


def missed(made: list[Run]) -> list[str]:
    """The programs in which at least half the runs say nothing exact or related, and what is said of them instead."""
    lines = []
    for name in dict.fromkeys(run.program for run in made):
        own = [run for run in made if run.program == name]
        found = [outcome(FAULTS[name].kind, run) in OUTCOMES[:2] for run in own]
        if sum(found) * 2 <= len(found):
            said = Counter(rule for run in own for rule in run.said)
            lines.append(name + (f" (says {', '.join(rule for rule, _ in said.most_common(3))})" if said else ""))
    return lines


def false_alarms(made: list[Run], of: str) -> str:
    loud = [run for run in made if run.alarms]
    low, high = binomtest(len(loud), len(made)).proportion_ci(method="exact")
    programs = {run.program for run in made}
    return (
        f"{len(loud)} false alarms in {len(made)} runs of {len(programs)} {of} programs: "
        f"{len(loud) / len(made):.2%}, 95 % interval {low:.2%} to {high:.2%}; "
        f"programs with any: {len({run.program for run in loud})}"
    )


def alarms(made: list[Run]) -> list[str]:
    """The programs with false alarms, and how often which rule."""
    counts = Counter((run.program, rule) for run in made for rule in run.alarms)
    return [f"{name}: {rule}, {count} x" for (name, rule), count in counts.most_common()]


def counted(made: list[Run]) -> dict[str, dict[str, int]]:
    """How many runs of each program had a finding of each rule, and how many there were."""
    counts: dict[str, Counter] = {}
    for run in made:
        counts.setdefault(run.program, Counter()).update(["runs", *set(run.said)])
    return {name: dict(rules) for name, rules in counts.items()}


def aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (head, *rows)
    )


def markdown(head: list[str], rows: list[list[str]]) -> str:
    line = lambda row: f"| {' | '.join(row)} |"
    return "\n".join([line(head), line(["---", *["---:"] * (len(head) - 1)]), *map(line, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds each program gets (default 20)")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes share the work (default 1)")
    parser.add_argument("--even", action="store_true", help="the seeds on which thresholds are chosen")
    parser.add_argument("--cost", action="store_true", help="also measure what a checkup costs")
    parser.add_argument("--write", action="store_true", help="write record.md and record.json")
    parser.add_argument("--only", default="", help="only programs and kinds whose names contain this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(0 if options.even else 1, 2 * options.seeds, 2)
    chosen = [p for p in FAULTS.values() if options.only in p.name or options.only in p.kind.name]
    broken, repaired = (runs(chosen, seeds, version, options.jobs) for version in (True, False))
    sound = runs([p for p in HEALTHY.values() if options.only in p.name], seeds, False, options.jobs)

    head = ["kind of fault", "programs", *(f"{name} %" for name in OUTCOMES)]
    parts: list[tuple[str, list[str], list[list[str]]]] = [("Faulty programs", head, table(broken))]
    lists = [("First findings", [first(broken)]), ("Missed in at least half the runs", missed(broken))]
    numbers = [false_alarms(made, of) for made, of in ((sound, "healthy"), (repaired, "repaired")) if made]
    lists += [("False alarms", [*numbers, *alarms([*sound, *repaired])])]
    if options.cost:
        parts.append(("Cost, as a multiple of one forward and backward pass", COLUMNS, costs()))
    for title, columns, rows in parts:
        print(f"\n{title}\n\n{aligned(columns, rows)}")
    for title, lines in lists:
        print(f"\n{title}\n\n" + "\n".join(lines))
    if options.write:
        here = Path(__file__).parent
        tables = [f"## {title}\n\n{markdown(columns, rows)}" for title, columns, rows in parts]
        bullets = [f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) for title, lines in lists]
        which = f"{'even' if options.even else 'odd'} seeds, {options.seeds} for each program"
        page = [f"# The record of the checkup\n\nMade by `python -m benchmarks.checkup.run --write`: {which}."]
        (here / "record.md").write_text("\n\n".join([*page, *tables, *bullets]) + "\n")
        kept = {"faulty": counted(broken), "repaired": counted(repaired), "healthy": counted(sound)}
        (here / "record.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
