"""Which chapters a build executes, and when.

The published reference run learns from data that are no part of this project. Where these are not on the machine, the
chapters that import reference_run are not executed but shown with their stored outputs. All other chapters are executed
before Sphinx reads them, one on each processor; Sphinx alone would execute one after another.
"""

import gc
import logging
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from sphinx.util import logging as sphinx_logging

BOOK = Path(__file__).parent.parent


def leave_out(app, config):
    import reference_run

    if reference_run.nearby() is None:
        stored = [path.name for path in BOOK.glob("*.ipynb") if "reference_run" in path.read_text(encoding="utf-8")]
        config.nb_execution_excludepatterns = [*config.nb_execution_excludepatterns, *stored]
        sphinx_logging.getLogger(__name__).info(
            f"shown as stored, as {reference_run.VARIABLE} is not set and no copy was kept: {', '.join(sorted(stored))}"
        )


def execute(app, env, docnames):
    """Puts the results of the chapters that will be read into the cache. Sphinx executes one that fails again, and
    reports it."""
    settings = env.mystnb_config
    paths = [path for name in docnames if (path := Path(env.doc2path(name))).suffix == ".ipynb"]
    paths = [path for path in paths if not any(map(path.match, settings.execution_excludepatterns))]
    if settings.execution_mode == "cache" and paths:
        cache = get_cache(settings.execution_cache_path)
        uris = [cache.add_nb_to_project(str(path)).uri for path in paths]
        logger = logging.getLogger(__name__)
        logger.setLevel(logging.INFO)  # at this level the executor says which chapter it has begun
        load_executor("local-parallel", cache, logger).run_and_cache(
            filter_uris=uris, timeout=settings.execution_timeout
        )


def setup(app):
    # Pages are large trees without garbage; to look for it in them is half of a build in which nothing has changed.
    gc.set_threshold(200_000, 20, 100)
    # Before the notebooks' parser reads its configuration.
    app.connect("config-inited", leave_out, priority=1)
    app.connect("env-before-read-docs", execute)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
