"""Lighthouse's phone profile on built pages, served compressed: python tests/site/lighthouse.py [PAGE...]

Each page is measured three times and the run with the median performance is told. The table is written beside this
file. Processor figures are noisy: measure on a machine that does nothing else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from built import FLAGS, ROOT, SITE, executable, served

TABLE = Path(__file__).parent / "lighthouse.md"
PROGRAM = ROOT / ".cache" / "lighthouse" / "node_modules" / ".bin" / "lighthouse"
RUNS = 3
PAGES = ["intro", "02-the-loss-you-should-expect", "07-the-truth-about-five-thirds", "13-the-dashboard", "api"]
CATEGORIES = ["performance", "accessibility", "best-practices", "seo"]
AUDITS = ["first-contentful-paint", "largest-contentful-paint", "total-blocking-time", "cumulative-layout-shift"]
HEAD = """# Lighthouse, phone profile, site served compressed

Written by `make lighthouse`: for each page the run with the median performance of three. Points are of 100, FCP and LCP
(first and largest paint) in seconds, TBT (blocking time) in ms, CLS is the layout shift.

| page | performance | accessibility | best practices | SEO | FCP | LCP | TBT | CLS | KB |
|---|---|---|---|---|---|---|---|---|---|
"""


def measured(url: str) -> dict:
    command = [str(PROGRAM), url, "--quiet", "--output=json", f"--only-categories={','.join(CATEGORIES)}"]
    command.append(f"--chrome-flags=--headless=new {' '.join(FLAGS)}")
    environment = {**os.environ, "CHROME_PATH": executable() or sys.exit("no browser found: apt install chromium")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        sys.exit(f"Lighthouse failed on {url}:\n{done.stderr}")
    return json.loads(done.stdout)


def points(report: dict) -> list[int]:
    return [round(100 * report["categories"][name]["score"]) for name in CATEGORIES]


def row(name: str, report: dict) -> str:
    first, largest, blocking, shift = (report["audits"][audit]["numericValue"] for audit in AUDITS)
    kilobytes = report["audits"]["total-byte-weight"]["numericValue"] / 1000
    cells = [name, *points(report), f"{first / 1000:.1f}", f"{largest / 1000:.1f}", f"{blocking:.0f}"]
    return "| " + " | ".join(map(str, [*cells, f"{shift:.2f}", f"{kilobytes:.0f}"])) + " |"


def main(names: list[str]) -> None:
    rows = []
    with served() as address:
        for name in names:
            if not (SITE / "book" / f"{name}.html").exists():
                sys.exit(f"there is no page {name} in {(SITE / 'book').relative_to(ROOT)}")
            reports = [measured(f"{address}/book/{name}.html") for _ in range(RUNS)]
            median = sorted(reports, key=lambda report: points(report)[0])[RUNS // 2]
            rows.append(row(name, median))
            print(rows[-1], flush=True)
            failed = {
                audit["id"]
                for name in CATEGORIES[1:]
                for ref in median["categories"][name]["auditRefs"]
                if (audit := median["audits"][ref["id"]])["score"] not in (None, 1)
            }
            if failed:
                print("  not passed:", ", ".join(sorted(failed)), flush=True)
    if names == PAGES:
        TABLE.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or PAGES)
