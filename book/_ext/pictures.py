"""Pictures: described, as lossless WebP where that is smaller, with their size, loaded when they come near the view."""

import re
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

IMAGE = re.compile(r'<img\b([^>]*?) src="((?:[^"]*/)?_images/([^"]+))"([^>]*?) */?>')


def figure(node):
    """What surrounds the picture as a figure, or the picture alone."""
    around = node
    while around is not None and not isinstance(around, nodes.figure):
        around = around.parent
    return around or node


def stands_in(node):
    """Whether the picture is one form of an output of which the page takes another, as of a moving figure."""
    while node is not None and node.get("nb_element") != "mime_bundle":
        node = node.parent
    return node is not None and any(child.get("mime_type") == "text/html" for child in node.children)


class Smaller(SphinxTransform):
    """Before Sphinx collects the pictures of a page, so that it copies the smaller file alone."""

    default_priority = 450

    def apply(self, **kwargs):
        for node in self.document.findall(nodes.image):
            if stands_in(node):
                continue
            # A warning fails the build after all pages have had their turn.
            if not node.get("alt", "").strip():
                logger.warning("a picture without alternative text (mystnb.image.alt in the cell's metadata)",
                               location=node, type="picture")  # fmt: skip
            if not any(True for caption in figure(node).findall(nodes.caption)):
                logger.warning("a picture without a caption (mystnb.figure.caption in the cell's metadata)",
                               location=node, type="picture")  # fmt: skip
            path = Path(self.env.relfn2path(node["uri"])[1])
            if path.suffix == ".png" and path.exists():
                smaller = path.with_suffix(".webp")
                if not smaller.exists():
                    with Image.open(path) as picture:
                        picture.save(smaller, lossless=True, method=6)
                if smaller.stat().st_size < path.stat().st_size:
                    node["uri"] = str(Path(node["uri"]).with_suffix(".webp"))


def sized(app, pagename, templatename, context, doctree):
    """The text below a picture does not jump when it arrives."""
    sources = {name: Path(app.srcdir, uri) for uri, name in app.builder.images.items()}

    def with_size(match):
        before, source, name, after = match.groups()
        with Image.open(sources[name]) as picture:
            width, height = picture.size
        return f'<img{before} src="{source}" width="{width}" height="{height}" loading="lazy"{after}>'

    if context.get("body"):
        context["body"] = IMAGE.sub(with_size, context["body"])


def setup(app):
    app.add_transform(Smaller)
    app.connect("html-page-context", sized)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
