"""The built site, as files and, where a browser is on the machine, as a reader sees it."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-sandbox"]


def pages() -> list[Path]:
    """Every page but the one that only sends the reader on to the first."""
    found = (path for path in SITE.rglob("*.html") if "_static" not in path.relative_to(SITE).parts)
    return sorted(path for path in found if 'http-equiv="Refresh"' not in path.read_text(encoding="utf-8"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served():
    """The address of the site while it is served on localhost."""
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def chromium():
    """A headless browser, or a skip that says what is missing."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser found (looked for {', '.join(BROWSERS)}); on Debian: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make check installs it")
    with sync_api.sync_playwright() as playwright:
        # Its settings, too, stay in the checkout.
        home = {name: str(ROOT / ".cache" / "browser") for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS, env={**os.environ, **home})
        yield browser
        browser.close()
