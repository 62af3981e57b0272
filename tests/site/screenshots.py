"""Pictures of built pages, to be looked at: python tests/site/screenshots.py PAGE... OUTDIR

PAGE is a page of the site, such as book/intro.html (_build/html/ before it or a missing .html are forgiven). Each is
taken light, dark and at phone width, with all folded parts open, and cut into slices that are shown at full size.
"""

import io
import sys
from pathlib import Path

from built import SITE, chromium, served
from PIL import Image

SLICE = 2400
MODES = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390)}
OPEN = "() => document.querySelectorAll('details').forEach(part => part.open = true)"
EAGER = "() => Promise.all([...document.images].map(image => { image.loading = 'eager'; return image.decode(); }))"


def take(view, folder: Path, stem: str) -> None:
    picture = Image.open(io.BytesIO(view.screenshot(full_page=True)))
    for k, top in enumerate(range(0, picture.height, SLICE)):
        part = picture.crop((0, top, picture.width, min(top + SLICE, picture.height)))
        path = folder / f"{stem}-{k:02d}.png"
        part.save(path)
        print(path)


def main(pages: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with served() as address, chromium() as browser:
        for page in pages:
            page = page.removeprefix(f"{SITE}/").removeprefix("_build/html/").removesuffix(".html") + ".html"
            if not (SITE / page).exists():
                sys.exit(f"{page} is not in {SITE}")
            for mode, (scheme, width) in MODES.items():
                view = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
                view.goto(f"{address}/{page}", wait_until="load")
                view.evaluate(EAGER)
                view.evaluate(OPEN)
                view.wait_for_timeout(500)
                take(view, folder, f"{Path(page).stem}-{mode}")
                view.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:-1], Path(sys.argv[-1]))
