"""Words of the glossary become links where an executed notebook first uses them.

The notebooks themselves have no links to it: in JupyterLab they would stand there as code.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

GLOSSARY = Path(__file__).parents[1] / "glossary.md"
# Entries whose names are words of everyday English as well, which most often they are meant as.
EVERYDAY = {
    *("absolute", "aligned", "alignment", "authors", "clean", "contradicted", "equivalent"),
    *("family", "fine-tuned", "hard", "honesty", "judge", "known", "L", "label", "LR", "margin"),
    *("not run", "reason", "risk", "run", "sampled", "scale", "seen", "shuffled", "soft"),
    *("supported", "variant", "verbalised", "verdict"),
}


@functools.cache
def entries() -> tuple[str, ...]:
    """The names of the entries that are linked, the longest first; none without a glossary."""
    if not GLOSSARY.is_file():
        return ()
    block = GLOSSARY.read_text(encoding="utf-8").split("```{glossary}\n")[1]
    found = {line for line in block.split("```")[0].splitlines() if line and line[0] != " "}
    return tuple(sorted(found - EVERYDAY, key=lambda name: (-len(name), name)))


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Any of the names, small or with a capital, one or several; no part of a longer word."""
    names = "|".join(f"(?i:{re.escape(name[0])}){re.escape(name[1:])}" for name in entries())
    return re.compile(rf"(?<![\w-])({names})s?(?![\w-])")


def link(app: Sphinx, doctree: nodes.document) -> None:
    """Link the first use of each entry in the running text of a page of ``_runs``."""
    page = app.env.docname
    if not page.startswith("_runs/") or not entries():
        return
    named = {name.lower(): name for name in entries()}
    done = {str(node["reftarget"]).lower() for node in doctree.findall(addnodes.pending_xref)}
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, nodes.paragraph):
            rest, start = text.astext(), 0
            parts: list[nodes.Node] = []
            for found in _pattern().finditer(rest):
                if (key := found[1].lower()) not in done:
                    done.add(key)
                    shown = nodes.inline("", found[0], classes=["xref", "std", "std-term"])
                    word = addnodes.pending_xref(
                        "",
                        shown,
                        refdomain="std",
                        reftype="term",
                        refexplicit=True,
                        reftarget=named[key],
                        refdoc=page,
                    )
                    parts += [nodes.Text(rest[start : found.start()]), word]
                    start = found.end()
            if parts:
                text.parent.replace(text, [*parts, nodes.Text(rest[start:])])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of pages, after the cells of variants have been put into tabs."""
    app.connect("doctree-read", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
