"""What a page says of the edition it belongs to, and what depends on where the book is published.

GITHUB_REPOSITORY ("owner/name", set by GitHub Actions) turns on the view and edit buttons, the Binder link, the
sitemap, the page for a missing address and the link previews. Without it none of these is in the site, which then
points nowhere.
"""

import os
import re
import subprocess

import mmlib

EXTENSIONS = ["notfound.extension", "sphinx_sitemap", "sphinxext.opengraph"]


def site_url(owner: str, name: str) -> str:
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def committed(folder) -> str:
    """The day of the last commit; nothing where the sources are no checkout."""
    command = ["git", "-C", str(folder), "log", "-1", "--format=%cs"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def edition(app):
    app.config.html_context |= {"edition": mmlib.__version__, "edition_date": committed(app.srcdir)}


def settings(app, config):
    owner, name = os.environ["GITHUB_REPOSITORY"].split("/")
    url = site_url(owner, name)
    prefix = re.sub(r"^https://[^/]+", "", url)
    config.html_baseurl = config.ogp_site_url = url
    config.notfound_urls_prefix = prefix
    config.sitemap_url_scheme = "{link}"
    config.sitemap_excludes = ["genindex.html", "search.html", "py-modindex.html", "404.html"]
    config.html_theme_options = {
        **config.html_theme_options,
        "source_repository": f"https://github.com/{owner}/{name}/",
        "source_branch": "main",
        "source_directory": "",
        "top_of_page_buttons": ["view", "edit"],
    }
    config.html_context |= {"binder_url": f"https://mybinder.org/v2/gh/{owner}/{name}/main"}


def setup(app):
    app.connect("builder-inited", edition)
    repository = os.environ.get("GITHUB_REPOSITORY", "")
    if repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise ValueError(f"GITHUB_REPOSITORY is {repository!r}; it has the form owner/name")
        for extension in EXTENSIONS:
            app.setup_extension(extension)
        # Before the theme and the extensions above read what is set here.
        app.connect("config-inited", settings, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
