"""Switch on what depends on where the book is published.

GITHUB_REPOSITORY ("owner/name", set by GitHub Actions) turns on the repository, edit and issue buttons, the Binder
link, the sitemap, the page for a missing address and the link previews. Without it none of these is in the
site, which then points nowhere.
"""

import os
import re

EXTENSIONS = ["notfound.extension", "sphinx_sitemap", "sphinxext.opengraph"]


def site_url(owner: str, name: str) -> str:
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


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
        "repository_url": f"https://github.com/{owner}/{name}",
        "repository_branch": "main",
        "path_to_docs": "",
        "use_repository_button": True,
        "use_issues_button": True,
        "use_edit_page_button": True,
        "launch_buttons": {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
        },
    }


def setup(app):
    repository = os.environ.get("GITHUB_REPOSITORY", "")
    if repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise ValueError(f"GITHUB_REPOSITORY is {repository!r}; it has the form owner/name")
        for extension in EXTENSIONS:
            app.setup_extension(extension)
        # Before the theme and the extensions above read what is set here.
        app.connect("config-inited", settings, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
