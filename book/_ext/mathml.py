"""Formulas as MathML, made when the book is built.

A page then needs no script and no other host to show a formula, and a screen reader can read it.
TeX becomes MathML Core through math-core. The glyphs come from STIX Two Math, of which the
characters that the book uses are copied into its static files.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from logging import getLogger
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
FONT = "stix-two-math.woff"
# What a browser draws though it is in no text: mathematical italics for letters, and the root.
DRAWN = [0x210E, *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C), 0x221A]


def convert(tex: str, *, display: bool) -> str:
    r"""TeX as a MathML element.

    Lines separated by ``\\`` without an environment are aligned at ``&``, as Sphinx does it.

    Raises:
        LatexError: a command that math-core does not know, or unbalanced braces.
    """
    if "\\\\" in tex and "\\begin" not in tex:
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    return LatexToMathML().convert_with_local_state(tex, displaystyle=display)


def write(self: Any, node: nodes.Element, *, display: bool) -> None:
    """Append a formula to the page; one that cannot be converted is a warning."""
    try:
        self.body.append(convert(node.astext(), display=display))
    except LatexError as error:
        logger.warning("formula not understood: %s", error, location=node)
        self.body.append(f"<code>{html.escape(node.astext())}</code>")


def visit_inline(self: Any, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    write(self, node, display=False)
    self.body.append("</span>")
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """A formula on its own, with its number if it has a label."""
    self.body.append(self.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
    write(self, node, display=True)
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def used(pages: Iterable[Path]) -> set[int]:
    """Code points inside the formulas of built pages."""
    text = ""
    for page in pages:
        formulas = re.findall(r"<math.*?</math>", page.read_text(encoding="utf-8"), re.DOTALL)
        text += "".join(re.sub(r"<[^>]*>", "", formula) for formula in formulas)
    return {ord(char) for char in html.unescape(text)}


def copy_font(app: Sphinx, error: Exception | None) -> None:
    """Write the part of the font that the formulas need; without it the system's font serves."""
    if error or app.builder.format != "html":
        return
    from fontTools import subset
    from ziamath import zmath

    getLogger("fontTools").setLevel("ERROR")
    source = Path(zmath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    # Names stay in the file, and with them its copyright and licence (OFL 1.1).
    options = subset.Options(flavor="woff", layout_features=["*"], name_IDs=["*"])
    font = subset.load_font(str(source), options)
    subsetter = subset.Subsetter(options)
    characters = used(sorted(Path(app.outdir).rglob("*.html")))
    subsetter.populate(unicodes={*range(0x20, 0x7F), *DRAWN, *characters})
    subsetter.subset(font)
    subset.save_font(font, str(Path(app.outdir) / "_static" / FONT), options)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer; ``html_math_renderer: mathml`` selects it."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
