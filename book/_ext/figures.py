"""The index of figures: {figure-index} lists each captioned figure of the book, by chapter, with its number."""

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective


class placeholder(nodes.Element):
    pass


class FigureIndex(SphinxDirective):
    def run(self):
        self.env.figure_index_page = self.env.docname
        return [placeholder()]


def remember(app, doctree):
    """The captions of a page, as nodes: they hold formulas."""
    captions = app.env.__dict__.setdefault("figure_captions", {})
    captions[app.env.docname] = found = []
    for figure in doctree.findall(nodes.figure):
        caption = next(iter(figure.findall(nodes.caption)), None)
        if figure["ids"] and caption is not None:
            text = caption.deepcopy()
            for link in list(text.findall(addnodes.pending_xref)):
                link.replace_self(link.children)
            found.append((figure["ids"][0], text.children))


def forget(app, env, docname):
    getattr(env, "figure_captions", {}).pop(docname, None)


def outdated(app, env):
    """The index depends on every page."""
    return [env.figure_index_page] if hasattr(env, "figure_index_page") else []


def fill(app, doctree, docname):
    for place in list(doctree.findall(placeholder)):
        lists = []
        for page in sorted(app.env.figure_captions):
            numbers = app.env.toc_fignumbers.get(page, {}).get("figure", {})
            items = nodes.bullet_list()
            for anchor, caption in app.env.figure_captions[page]:
                if anchor not in numbers:
                    continue
                address = app.builder.get_relative_uri(docname, page) + f"#{anchor}"
                number = ".".join(map(str, numbers[anchor]))
                link = nodes.reference("", f"Fig. {number}", internal=True, refuri=address)
                text = [child.deepcopy() for child in caption]
                items += nodes.list_item("", nodes.paragraph("", "", link, nodes.Text(" "), *text))
            if items.children:
                title = app.env.titles[page].deepcopy()
                lists += [nodes.rubric("", "", *title.children), items]
        place.replace_self(lists)


def setup(app):
    app.add_directive("figure-index", FigureIndex)
    app.add_node(placeholder)
    app.connect("doctree-read", remember)
    app.connect("env-purge-doc", forget)
    app.connect("env-updated", outdated)
    app.connect("doctree-resolved", fill, priority=400)
    return {"parallel_read_safe": False, "parallel_write_safe": True, "env_version": 1}
