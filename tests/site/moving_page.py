"""A plain page with every moving figure, for tests in a browser: python tests/site/moving_page.py FOLDER"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book"))

from figures import dashboard, loss, norm, signal, statistics  # noqa: E402

FIGURES = {
    "first-loss": loss.first_loss,
    "saturated-unit": signal.saturated_unit,
    "deep-signal": signal.deep_signal,
    "variance-staircase": signal.variance_staircase,
    "batch-feature": norm.batch_feature,
    "weight-row": norm.weight_row,
    "dashboard": dashboard.dashboard,
    "power": statistics.power,
    "twins": statistics.twins,
    "blind-diagnosis": dashboard.blind_diagnosis,
}
STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 46rem; margin: 0 auto; padding: 0 12px; background: #fff; color: #222; }
[data-theme="dark"] body { background: #14181e; color: #dcdcdc; color-scheme: dark; }
a { color: inherit; }
"""


def written(folder: Path, figures: dict) -> Path:
    """The page, light; its script and style beside it."""
    for name in ("moving.js", "moving.css"):
        (folder / name).write_text((ROOT / "book" / "_vendor" / name).read_text(encoding="utf-8"), encoding="utf-8")
    body = "".join(figure._repr_html_() for figure in figures.values())
    page = (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Moving figures</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="moving.css">'
        f'<style>{STYLE}</style><script defer src="moving.js"></script></head>'
        f"<body><main><h1>Moving figures</h1>{body}</main></body></html>"
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


if __name__ == "__main__":
    print(written(Path(sys.argv[1]), {name: make() for name, make in FIGURES.items()}))
