"""What the book's own Sphinx extensions make of formulas, styles and titles."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tinycss2

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_ext"))

import formulas
import light

MACROS = {r"\E": r"\mathbb{E}"}


@pytest.fixture(scope="module")
def mathml():
    katex = formulas.Katex()
    yield lambda tex, display=False: ElementTree.fromstring(formulas.native(katex(tex, display, MACROS)))
    katex.stop()


def tags(formula):
    return [element.tag for element in formula.iter()]


@pytest.mark.parametrize(
    ("tex", "why"), [(r"\nonsense x", r"\\nonsense"), (r"\frac{1}{", "expected '}'"), ("x_", "group")]
)
def test_wrong_tex_is_an_error_that_says_why(mathml, tex, why):
    with pytest.raises(ValueError, match=why):
        mathml(tex)


def test_the_tex_of_a_formula_goes_with_it(mathml):
    tex = r"a < \sqrt{2}"
    assert mathml(tex).find(".//annotation").text == tex


def test_aligned_equations_are_columns(mathml):
    formula = mathml(r"\begin{aligned} a &= b \\ c &= d \end{aligned}", display=True)
    assert formula.get("display") == "block"
    assert formula.find(".//mtable").get("class") == "aligned"
    assert "&" not in "".join(formula.find("semantics")[0].itertext())


def test_letters_of_another_style_are_characters(mathml):
    assert mathml(r"\E").find(".//mi").text == "𝔼"
    assert mathml(r"\mathbb{R}").find(".//mi").text == "ℝ"


def test_functions_stand_apart_from_letters_and_not_from_parentheses(mathml):
    assert tags(mathml(r"a \log x"))[3:-1] == ["mi", "mspace", "mi", "mo", "mspace", "mi"]
    assert "mspace" not in tags(mathml(r"\log(x)"))
    parts = mathml(r"\frac{\sinh}{\cosh}").find(".//mfrac")
    assert len(parts) == 2 and all(part.tag == "mrow" for part in parts)


def test_a_sign_after_a_relation_is_a_sign(mathml):
    assert mathml("x = -y").findall(".//mo")[1].get("form") == "prefix"
    assert mathml("x - y").find(".//mo").get("form") is None


def test_a_script_leaves_a_large_parenthesis_large(mathml):
    formula = mathml(r"\Bigl(\frac12\Bigr)^2")
    assert [mo.text for mo in formula.findall(".//mo")] == ["(", ")"]
    assert formula.find(".//msup")[0].tag == "mspace"


def test_only_used_rules_are_kept():
    sheet = """
      .used, .unused { color: red } .used .unused { color: red } .used:hover:not(.other) { color: blue }
      @media print { .unused { color: red } #there { margin: 0 } } @font-face { font-family: x }
    """
    rules = tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True)
    kept = light.used(rules, {"used", "there"})
    assert kept == (
        ".used{color: red}.used:hover:not(.other){color: blue}@media print{#there{margin: 0}}"
        "@font-face { font-family: x }"
    )
