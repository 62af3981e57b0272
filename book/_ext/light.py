"""Light pages: of the styles, what a page uses, inside it; one script; a description.

A rule of a style sheet stays if each class, id and element that its selector names occurs in the page or, as a word, in
a script. This is the rule of PurgeCSS, by the parser tinycss2.
"""

import hashlib
import html
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from textwrap import shorten

import tinycss2
from docutils import nodes

# What Sphinx writes into a page for a file in _static, with what stands before _static in its address.
STYLE = re.compile(r'\s*<link\b(?=[^>]* rel="stylesheet")[^>]* href="([^"]*?)_static/([^"?]+)[^"]*"[^>]*>')
SCRIPT = re.compile(r'\s*<script src="([^"]*?)_static/([^"?]+)[^"]*"></script>')
ELEMENT = re.compile(r'<([a-z][\w-]*)|\b(?:class|id)="([^"]*)"')
WORD = re.compile(r"[\w-]+")
ADDRESS = re.compile(r"""url\((['"]?)(?!data:|#)([^)'"]+)\1\)""")
DESCRIPTION = 155
# What the theme leaves unsaid to a screen reader.
SAID = {
    '<p class="caption" role="heading">': '<p class="caption">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Contents of the book">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '<div class="content-icon-container">': '<div class="content-icon-container" role="region" aria-label="Tools">',
}


def settings(app):
    # The theme registers this option too late for _config.yml.
    app.config.pygments_dark_style = "a11y-high-contrast-dark"


def remember(app, config):
    """A page holds what was made of the styles and by these extensions: when they change, each is written anew."""
    book = Path(__file__).parent.parent
    paths = sorted(path for folder in ("_ext", "_vendor") for path in (book / folder).iterdir() if path.is_file())
    config.light_inputs = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def opening(doctree):
    """The first paragraph of a page, and the list that it introduces."""
    paragraph = next((p for p in doctree.findall(nodes.paragraph) if isinstance(p.parent, nodes.section)), None)
    if paragraph is None:
        return ""
    after = paragraph.next_node(descend=False, siblings=True)
    items = [item.astext() for item in after.children] if isinstance(after, nodes.bullet_list) else []
    return re.sub(r"[\\{}$]", "", " ".join([paragraph.astext(), *items]))


def described(app, pagename, templatename, context, doctree):
    # The whole title is long above a list of chapters and in a tab.
    context["docstitle"] = app.config.project
    # Sphinx and the theme both write this one.
    tags = context.get("metatags", "").replace(
        '<meta name="viewport" content="width=device-width, initial-scale=1" />', ""
    )
    if 'name="description"' not in tags:
        title = re.sub("<[^>]*>", "", context.get("title", ""))
        text = (doctree is not None and opening(doctree)) or f"{title}: {app.config.html_title}"
        text = shorten(html.unescape(text), DESCRIPTION, placeholder=" …")
        tags += f'<meta name="description" content="{html.escape(text)}">'
    context["metatags"] = tags


@cache
def rules(path):
    return tinycss2.parse_stylesheet(path.read_text(encoding="utf-8"), skip_comments=True, skip_whitespace=True)


@cache
def words(path):
    return frozenset(WORD.findall(path.read_text(encoding="utf-8")))


def selectors(tokens):
    """The parts between the commas."""
    part = []
    for token in tokens:
        if token == ",":
            yield part
            part = []
        else:
            part.append(token)
    yield part


def named(selector):
    """Classes, ids and elements. Pseudo-classes are no names, and what stands in :not(...) need not be there."""
    for before, token in pairwise([None, *selector]):
        if token.type == "hash" or (token.type == "ident" and before != ":"):
            yield token.value


def written(tokens):
    return " ".join(tinycss2.serialize([token for token in tokens if token.type != "comment"]).split())


def used(found, present):
    """The rules that can apply where the names in `present` occur, as text."""
    text = []
    for rule in found:
        if rule.type == "qualified-rule":
            kept = [written(part) for part in selectors(rule.prelude) if present.issuperset(named(part))]
            if kept:
                text.append(f"{','.join(kept)}{{{written(rule.content)}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
            inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
            if inside := used(inner, present):
                text.append(f"@{rule.at_keyword} {written(rule.prelude)}{{{inside}}}")
        elif rule.type == "at-rule":
            text.append(rule.serialize())
    return "".join(text)


def style(static, name, present, prefix):
    """The used part of one style sheet; what it points at is found from the page."""
    folder = Path(name).parent
    text = used(rules(static / name), present)
    return ADDRESS.sub(lambda match: f"url({prefix}_static/{(folder / match.group(2)).as_posix()})", text)


@cache
def bundle(static, names):
    """One file of several, named by what is in it."""
    text = ";\n".join((static / name).read_text(encoding="utf-8") for name in names)
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.js"
    (static / name).write_text(text, encoding="utf-8")
    return name


def finish(app, exception):
    """Works on the pages that this build has written; those of earlier builds name no style sheet any more."""
    if exception is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for path in sorted(Path(app.outdir).rglob("*.html")):
        page = path.read_text(encoding="utf-8")
        sheets, scripts = STYLE.findall(page), SCRIPT.findall(page)
        if not sheets:
            continue
        present = {word for element, value in ELEMENT.findall(page) for word in [element, *value.split()]}
        present = present.union(*(words(static / name) for _, name in scripts))
        styles = "\n".join(style(static, name, present, prefix) for prefix, name in sheets)
        page = STYLE.sub("", page).replace("</head>", f"<style>{styles}</style></head>", 1)
        for unsaid, said in SAID.items():
            page = page.replace(unsaid, said)
        # The index that the search page loads as well asks for a script of its own.
        if scripts and "searchindex.js" not in page:
            one = f'<script src="{scripts[0][0]}_static/{bundle(static, tuple(name for _, name in scripts))}" defer>'
            first = SCRIPT.search(page)
            rest = SCRIPT.sub("", page[first.end() :])
            page = f"{page[: first.start()]}\n    {one}</script>{rest}"
        path.write_text(page, encoding="utf-8")


def setup(app):
    # Jupyter Book sets it for an extension that is not used.
    app.add_config_value("comments_config", {}, "", [dict])
    app.add_config_value("light_inputs", "", "html", [str])
    app.connect("config-inited", remember)
    app.connect("builder-inited", settings, priority=100)
    app.connect("html-page-context", described)
    app.connect("build-finished", finish, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
