"""What is folded on a page, and what a cell is called.

Imports and the code that draws a figure are folded behind a line that says so, so that what is open on the page is the
mathematics. Solutions, too, are native `details`: they open without a script, by keyboard, from a link into them and
on paper. Each code cell has an address, #cell- and the number of its execution.
"""

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node, solution_node

IMPORTS, FIGURE = "Imports and settings", "Code of this figure"


class Folded(SphinxPostTransform):
    formats = ("html",)
    default_priority = 150  # before myst-nb folds what is marked

    def run(self, **kwargs):
        cells = [c for c in self.document.findall(nodes.container) if c.get("nb_element") == "cell_code"]
        for k, cell in enumerate(cells):
            if cell.get("exec_count"):
                cell["ids"].append(f"cell-{cell['exec_count']}")
            if cell.get("hide_mode"):
                cell["prompt_show"] = cell["prompt_show"].replace("code cell {type}", "the code")
            elif k == 0 and cell.astext().lstrip().startswith(("import ", "from ")):
                cell.attributes.update({"hide_mode": "input", "prompt_show": IMPORTS, "prompt_hide": IMPORTS})
            elif any(True for _ in cell.findall(nodes.image)):
                cell.attributes.update({"hide_mode": "input", "prompt_show": FIGURE, "prompt_hide": FIGURE})


class Exercises(SphinxPostTransform):
    """Titles "Exercise 9.1 Four numbers (warm-up)" instead of "Exercise 9.1 (Four numbers (warm-up))"."""

    formats = ("html",)
    default_priority = 25  # after sphinx-exercise has put the titles together

    def run(self, **kwargs):
        for node in self.document.findall(lambda n: isinstance(n, exercise_node | exercise_enumerable_node)):
            title = node.next_node(nodes.title)
            first, last = title.children[0], title.children[-1]
            if first.astext() == " (" and last.astext() == ")":
                title.children = title.children[1:-1]


def unwrap(app, doctree):
    """Takes out the sections without a title inside of exercises and solutions, whose names are the same in all."""
    boxes = (exercise_node, exercise_enumerable_node, solution_node)
    for section in list(doctree.findall(nodes.section)):
        if isinstance(section.parent, boxes):
            section.replace_self(section.children)


def open_code(translator, node):
    translator.body.append(f'<details class="code"><summary>{translator.encode(node["prompt_show"])}</summary>\n')


def open_solution(translator, node):
    title = node.next_node(nodes.title)
    node.remove(title)
    translator.body.append(translator.starttag(node, "details", CLASS="admonition"))
    translator.body.append(f'<summary class="admonition-title">{translator.encode(title.astext())}</summary>\n')


def close(translator, node):
    translator.body.append("</details>\n")


def setup(app):
    app.setup_extension("myst_nb")
    app.setup_extension("sphinx_exercise")
    app.add_node(HideCodeCellNode, override=True, html=(open_code, close))
    app.add_node(solution_node, override=True, html=(open_solution, close))
    app.connect("doctree-read", unwrap, priority=100)
    app.add_post_transform(Folded)
    app.add_post_transform(Exercises)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
