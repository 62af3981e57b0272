"""Take roles out of the bibliography that contradict each other.

docutils 0.21 writes a list without list items and an entry role that ARIA has withdrawn; a screen reader then
announces an empty list.
"""


def fix(app, pagename, templatename, context, doctree):
    if "body" in context:
        context["body"] = (
            context["body"]
            .replace('<div role="list" class="citation-list">', '<div class="citation-list">')
            .replace(' role="doc-biblioentry"', "")
        )


def setup(app):
    app.connect("html-page-context", fix)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
