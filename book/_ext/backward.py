"""What an entry of the library says of where it is used: one link for each chapter, to the first section that does.

sphinx-codeautolink finds the uses and lists each section with all titles above it, as text in which formulas are TeX.
"""

import posixpath
import re

from docutils import nodes
from sphinx_codeautolink.extension import SphinxCodeAutoLink
from sphinx_codeautolink.extension.backref import DetailsNode


def places(env):
    """Where each section stands: the number of its chapter and its own in the chapter, by document and anchor."""
    found = {}
    for chapter, document in enumerate(sorted(env.tocs)):
        for section, link in enumerate(env.tocs[document].findall(nodes.reference)):
            found[document, link["anchorname"].removeprefix("#")] = chapter, section
    return found


def shorten(app, doctree, docname):
    env, order, folder = app.env, None, posixpath.dirname(docname)
    for details in list(doctree.findall(DetailsNode)):
        order = order or places(env)
        first = {}
        for link in details.findall(lambda node: isinstance(node, nodes.reference) and "refuri" in node):
            page, _, anchor = link["refuri"].partition("#")
            document = posixpath.normpath(posixpath.join(folder, page)).removesuffix(".html")
            if not page or posixpath.dirname(document) == folder:  # an example in the library itself
                continue
            first.setdefault(document, []).append((order.get((document, anchor), (0, 0)), link["refuri"]))
        paragraph = nodes.paragraph("", "Used in ", classes=["uses"])
        for k, document in enumerate(sorted(first)):
            number = env.toc_secnumbers.get(document, {}).get("")
            title = env.titles[document].astext()
            text = f"{number[0]}. {title}" if number else title
            paragraph += [nodes.Text(", ")] if k else []
            paragraph += nodes.reference("", text, internal=True, refuri=min(first[document])[1])
        details.parent.replace_self(paragraph if first else [])


def linker(app):
    """The part of sphinx-codeautolink that keeps what it has found."""
    owners = (getattr(listener.handler, "__self__", None) for listener in app.events.listeners["build-finished"])
    return next(owner for owner in owners if isinstance(owner, SphinxCodeAutoLink))


def keep(app):
    app.codeautolink_before = getattr(app.env, "sphinx_codeautolink_transforms", {})


def restore(app):
    """What was found in pages that are not read again; its own cache forgets all that do not end in .rst."""
    linker(app).cache.transforms.update(app.codeautolink_before)


def outdate(app, pagename, templatename, context, doctree):
    """Links are put into each page that is written, also where only styles or templates have changed; of those
    sphinx-codeautolink does not know."""
    linker(app).outdated_docs.add(pagename)


def flat(app, pagename, templatename, context, doctree):
    """Sphinx lists a package's modules in a list within the list, outside of any item."""
    if pagename == "_modules/index":
        head, _, items = context["body"].partition("<ul>")
        context["body"] = f"{head}<ul>{re.sub('</?ul>', '', items)}</ul>"


def setup(app):
    app.connect("html-page-context", flat)
    app.connect("builder-inited", keep, priority=100)
    app.connect("builder-inited", restore, priority=900)
    app.connect("html-page-context", outdate)
    app.connect("doctree-resolved", shorten, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
