"""For mkdocs: formulas become MathML when the site is built, which browsers and screen readers know by themselves."""
import html
import logging
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# What latex2mathml leaves as it is, or makes of a sign that does not stretch.
_MENDED = {
    r"\langle": "⟨", r"\rangle": "⟩", r"\|": "‖",
    '<mo accent="true">&#x02015;</mo>': '<mo stretchy="true">&#x000AF;</mo>',
}
_LEFT = re.compile(r"\\[A-Za-z]+")


def on_page_content(content, page, **_):
    """The HTML of a page with its formulas as MathML; a command of TeX that is not known is a warning."""
    return _FORMULA.sub(lambda found: _mathml(html.unescape(found[3]), found[2] == "[", page), content)


def _mathml(formula, displayed, page):
    made = convert(formula, display="block" if displayed else "inline")
    for found, instead in _MENDED.items():
        made = made.replace(found, instead)
    left = _LEFT.findall(made)
    if left:
        logging.getLogger("mkdocs.hooks.mathml").warning("%s: formula with %s", page.file.src_path, ", ".join(left))
    return made
