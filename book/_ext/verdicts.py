"""Verdicts that sentences repeat, checked against the committed results when the book is built.

    L+R does not beat L on the clean rows ({verdict}`reasons/lr-beats-l: inconclusive`).

The word is that of the smallest model of the reference; ``@model`` behind the claim names another.
A word that is not the verdict of today's records is a warning, and so the end of the build.
"""

from __future__ import annotations

import functools
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from ethalign import claims, config

TEXT = re.compile(r"([\w-]+)/([\w-]+)(?:@([\w.-]+))?: *([a-z ]+)")


@functools.cache
def verdicts(study: str) -> dict[tuple[str, str], str]:
    """Verdict of the reference by claim and model; by claim and "" that of its first model."""
    tested = claims.recorded(study).to_dict("records")
    found = {(row["id"], row["model"]): row["verdict"] for row in tested}
    first: dict[tuple[str, str], str] = {}
    for (claim, _), word in found.items():
        first.setdefault((claim, ""), word)
    return {**first, **found}


class Verdict(SphinxRole):
    """The role ``verdict``."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The word, emphasised."""
        found = TEXT.fullmatch(self.text)
        if found is None or found[1] not in config.studies():
            return [], [self._warning(f"{self.text!r} is not of the form study/claim: verdict")]
        study, claim, model, word = found.groups()
        today = verdicts(study).get((claim, model or ""), "unknown")
        if word != today:
            return [], [self._warning(f"the verdict on {claim} is {today}, not {word}")]
        return [nodes.emphasis("", word)], []

    def _warning(self, message: str) -> nodes.system_message:
        return self.inliner.reporter.warning(message, line=self.lineno)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the role."""
    app.add_role("verdict", Verdict())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
