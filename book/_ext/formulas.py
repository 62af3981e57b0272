"""Set every formula when the book is built, as MathML.

KaTeX runs in the V8 engine that the package mini-racer carries, on the script that the package sphinxcontrib-katex
carries, so a page brings no script, no style sheet and no font of a formula renderer, and a screen reader meets the
formula itself. The TeX stands in each formula as an annotation; copying a formula gives it.

The math font is STIX Two Math from the package ziamath, cut down to the characters and the variants that the book uses.
"""

import html
import json
import logging as standard_logging
import re
import unicodedata
from contextlib import suppress
from importlib.resources import files
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import sphinxcontrib
from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from py_mini_racer import JSEvalException, MiniRacer
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
standard_logging.getLogger("fontTools").setLevel(standard_logging.WARNING)

SCRIPT = "katex.min.js"
FONT = "math.woff2"
ROOTS = (880, 1220, 1850, 2890)  # heights of root signs, in thousandths of the font's size
LARGEST_FONT = 100_000
# Inline, what is set from more TeX than this may be wider than a phone, and scrolls within itself there.
LONG = 30
FORMULA = re.compile(r"<semantics>(.*?)<annotation", re.DOTALL)
TAG = re.compile(r"<[^>]*>")
# What surrounds the formula itself is not needed: HTML knows the namespace.
WRAPPER = re.compile(r'<span class="katex">(.*)</span>', re.DOTALL)
APPLIED = "\u2061"
NAMESPACE = ' xmlns="http://www.w3.org/1998/Math/MathML"'
THIN = {"width": "0.1667em"}
TIGHT = {"lspace": "0em", "rspace": "0em"}
# Elements whose children are places, the last of them scripts or, of a fraction, its parts.
PLACES = {"mfrac", "msub", "msup", "msubsup", "munder", "mover", "munderover"}
SIGNS, CLOSING, PRIMES = "−+±-", ")]}|∣∥⟩!", "′″‴"
# What a browser draws where no character stands.
DRAWN = "√"


class Katex:
    """A function from TeX to MathML, made when it is first needed."""

    def __init__(self):
        self.engine = None
        self.known = {}

    def start(self):
        folder = next((Path(p) for p in sphinxcontrib.__path__ if (Path(p) / SCRIPT).exists()), None)
        if folder is None:
            raise ExtensionError(f"the package sphinxcontrib-katex has no {SCRIPT}")
        self.engine = MiniRacer()
        self.engine.eval((folder / SCRIPT).read_text(encoding="utf-8"))
        self.engine.eval("""
            const set = (tex, displayMode, macros) => {
              try {
                return {html: katex.renderToString(tex, {
                  output: "mathml", displayMode, macros, throwOnError: true, strict: "error"})};
              } catch (error) { return {error: error.message}; }
            };
            const answer = (...arguments) => JSON.stringify(set(...arguments));""")

    def stop(self):
        """An engine that is still there when Python ends can keep it from ending."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def __call__(self, tex, display, macros):
        """MathML, or ValueError with what is wrong in the TeX."""
        if self.engine is None:
            self.start()
        key = tex, display
        if key not in self.known:
            try:
                self.known[key] = json.loads(self.engine.call("answer", tex, display, macros))
            except JSEvalException as error:
                raise ExtensionError(f"KaTeX failed on {tex!r}: {error}") from error
        answer = self.known[key]
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["html"]


katex = Katex()


def letter(character, variant):
    """A letter of a style of its own is a character of its own."""
    kind = "DIGIT" if character.isdigit() else "CAPITAL" if character.isupper() else "SMALL"
    name = f"{variant.upper()} {kind} {unicodedata.name(character).split()[-1]}"
    for full in (f"MATHEMATICAL {name}", name):  # a few were there before the others
        with suppress(KeyError):
            return unicodedata.lookup(full)
    raise ValueError(f"there is no character for {character} in {variant}")


def named(element):
    """Whether this ends the name of a function, such as log, with its limits and powers."""
    return element.text == APPLIED or (len(element) and any(e.text == APPLIED for e in element[0].iter()))


def spaced(children):
    """The thin spaces that TeX puts around the name of a function."""
    for k, child in enumerate(children):
        before = children[k - 1] if k else None
        after = children[k + 1] if k + 1 < len(children) else None
        begins = (after is not None and after.text == APPLIED) or (named(child) and child.text != APPLIED)
        if begins and before is not None and before.tag not in ("mo", "mspace"):
            yield Element("mspace", THIN)
        yield child
        if named(child) and after is not None and after.tag not in ("mo", "mspace"):
            yield Element("mspace", THIN)


def whole(children):
    """KaTeX writes the name of a function as two elements, also where one has to be."""
    joined = []
    for child in children:
        if child.text == APPLIED and joined:
            row = Element("mrow")
            row.extend([joined.pop(), child])
            joined.append(row)
        else:
            joined.append(child)
    return joined


def unscripted(children):
    """A large parenthesis, which browsers draw small under a script; the script gets an empty base of its height."""
    for child in children:
        if child.tag in ("msub", "msup", "msubsup") and child[0].get("minsize", "").endswith("em"):
            yield child[0]
            half = float(child[0].get("minsize").removesuffix("em")) / 2
            child[0] = Element("mspace", {"width": "0em", "height": f"{half + 0.25}em", "depth": f"{half - 0.25}em"})
        yield child


def native(formula):
    """What browsers leave out of MathML, or set otherwise than TeX, said in a way that they know."""
    root = ElementTree.fromstring(WRAPPER.fullmatch(formula).group(1).replace(NAMESPACE, "", 1))
    for element in list(root.iter()):
        if element.get("mathvariant", "normal") != "normal":
            element.text = "".join(letter(character, element.get("mathvariant")) for character in element.text)
            del element.attrib["mathvariant"]
        if element.tag == "mtable":
            kind = "aligned" if element.get("columnalign").startswith("right left") else "left"
            element.attrib = {"class": kind}
        if element.tag == "menclose":
            element.tag, element.attrib = "mrow", {"class": "box"}
        if element.tag in ("mrow", "mstyle", "mtd", "semantics"):
            element[:] = unscripted(list(spaced(list(element))))
            for before, sign in pairwise(element):
                if sign.tag == before.tag == "mo" and sign.text in SIGNS and before.text not in CLOSING:
                    sign.set("form", "prefix")
        elif element.tag in PLACES:
            element[:] = whole(list(element))
            for script in element[1:] if element.tag != "mfrac" else []:
                for operator in script.iter("mo"):
                    operator.attrib |= TIGHT
                    if operator.text in PRIMES:
                        operator.set("class", "prime")
        if element.tag == "mo" and element.text == "∥":
            element.attrib |= TIGHT
    return ElementTree.tostring(root, encoding="unicode")


def mathml(translator, node, tex, display):
    try:
        return native(katex(tex, display, translator.config.formula_macros))
    except ValueError as error:
        # A warning fails the build after all pages have had their turn.
        logger.warning("formula %r: %s", tex, error, location=node, type="formula")
        return translator.encode(tex)


def inline(translator, node):
    tex = node.astext()
    long = " wide" if len(tex) > LONG else ""
    translator.body.append(f'<span class="math{long}">{mathml(translator, node, tex, False)}</span>')
    raise nodes.SkipNode


def block(translator, node):
    tex = node.astext().strip()
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(f"{mathml(translator, node, tex, True)}</div>")
    raise nodes.SkipNode


def variants(characters):
    """Browsers set a letter that stands alone in italics, which are other characters of the font."""
    styled = {}
    for k in range(26):
        styled[chr(ord("A") + k)] = chr(0x1D434 + k)
        styled[chr(ord("a") + k)] = chr(0x1D44E + k)
    styled["h"] = "\u210e"
    for k in range(25):
        styled[chr(ord("Α") + k)] = chr(0x1D6E2 + k)
        styled[chr(ord("α") + k)] = chr(0x1D6FC + k)
    for k, letter in enumerate("∂ϵϑϰϕϱϖ"):
        styled[letter] = chr(0x1D715 + k)
    return {styled[c] for c in characters if c in styled}


def even_roots(font):
    """Gives all root signs the width of the smallest, and the heights of ROOTS.

    Chromium makes room for the widest of them after every root, and lets a sign that is taller than what it stands over
    reach below the line: half of the smallest, over one letter.
    """
    variants, root = font["MATH"].table.MathVariants, font.getBestCmap()[ord("√")]
    signs = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(root)]
    width = font["hmtx"][root][0]

    def scaled(name, height=None):
        glyph, (advance, bearing) = font["glyf"][name], font["hmtx"][name]
        by = width / advance
        glyph.coordinates.scale((by, height / (glyph.yMax - glyph.yMin) if height else 1))
        glyph.recalcBounds(font["glyf"])
        font["hmtx"][name] = (width, round(by * bearing))

    for sign, height in zip(signs.MathGlyphVariantRecord, ROOTS, strict=True):
        scaled(sign.VariantGlyph, height)
        sign.AdvanceMeasurement = height
    for part in signs.GlyphAssembly.PartRecords:
        scaled(part.glyph)


def cut(app, exception):
    """Writes the font with the characters of all formulas on the built pages."""
    katex.stop()
    if exception is not None or app.builder.format != "html":
        return
    used = set()
    for page in Path(app.outdir).rglob("*.html"):
        for formula in FORMULA.findall(page.read_text(encoding="utf-8")):
            used.update(html.unescape(TAG.sub("", formula)))
    used = {c for c in used | variants(used) | set(DRAWN) if not c.isspace()}
    path = Path(app.outdir) / "_static" / FONT
    data = (files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf").read_bytes()
    font = TTFont(BytesIO(data), recalcTimestamp=False)
    if lacking := used - set(map(chr, font.getBestCmap())):
        logger.warning("the math font has no %s", ", ".join(sorted(lacking)), type="formula")
    options = subset.Options(flavor="woff2", layout_features=["ssty", "dtls", "flac"], hinting=False)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(used))
    subsetter.subset(font)
    even_roots(font)
    subset.save_font(font, path, options)
    if (size := path.stat().st_size) > LARGEST_FONT:
        logger.warning("the math font has %s bytes, more than %s", size, LARGEST_FONT, type="formula")


def setup(app):
    app.add_config_value("formula_macros", {}, "env", [dict])
    app.add_html_math_renderer("katex", inline_renderers=(inline, None), block_renderers=(block, None))
    app.connect("build-finished", cut)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
