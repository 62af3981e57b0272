"""The built site, as files and, where a browser is on the machine, as a reader sees it."""

import contextlib
import functools
import gzip
import http.server
import io
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
COMPRESSED = {".html", ".css", ".js", ".svg", ".json", ".txt", ".xml"}


def pages() -> list[Path]:
    """Every page but the one that only sends the reader on to the first."""
    found = (path for path in SITE.rglob("*.html") if "_static" not in path.relative_to(SITE).parts)
    return sorted(path for path in found if 'http-equiv="Refresh"' not in path.read_text(encoding="utf-8"))


class Compressing(http.server.SimpleHTTPRequestHandler):
    """As the site is served where it is published: text compressed, everything kept for ten minutes."""

    protocol_version = "HTTP/1.1"

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file() or "gzip" not in self.headers.get("Accept-Encoding", ""):
            return super().send_head()
        data = gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)) + "; charset=utf-8")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return io.BytesIO(data)

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=600")
        super().end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served():
    """The address of the site while it is served on localhost."""
    handler = functools.partial(Compressing, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def executable() -> str | None:
    """The browser that is on the machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def chromium():
    """A headless browser, or a skip that says what is missing."""
    if executable() is None:
        pytest.skip(f"no browser found (looked for {', '.join(BROWSERS)}); on Debian: apt install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make check installs it")
    with sync_api.sync_playwright() as playwright:
        # Its settings, too, stay in the checkout.
        home = {name: str(ROOT / ".cache" / "browser") for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        browser = playwright.chromium.launch(executable_path=executable(), args=FLAGS, env={**os.environ, **home})
        yield browser
        browser.close()
