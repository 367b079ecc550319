"""Executed notebooks as pages.

One notebook is executed for several variants, and each copy is a page: ``_runs/<study>/
<stage>-<variant>``. The variant goes into the page's title, and exercises, which would be there
several times under one label, stay on the first of these pages. Numbers in prose are quoted from
the committed results.
"""

from __future__ import annotations

import json
import re

from sphinx.application import Sphinx
from sphinx.config import Config

from ethalign import config, tables

EXERCISE = re.compile(r"^(`{3,})\{(?:exercise|solution)\}.*?^\1[ ]*$\n?", re.MULTILINE | re.DOTALL)


def tell_apart(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the variant into the title, and drop exercises from all but the first variant's page."""
    folder, _, name = page.rpartition("/")
    stage, dash, variant = name.partition("-")
    if not folder.startswith("_runs/") or not dash:
        return
    first = next(p for p in app.config.external_site_map if p.startswith(f"{folder}/{stage}-"))
    notebook = json.loads(source[0])
    prose = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    for cell in prose:
        text = "".join(cell["source"])
        cell["source"] = text if page == first else EXERCISE.sub("", text)
    if prose:
        prose[0]["source"] = re.sub(r"\A(# .*)", rf"\1 (`{variant}`)", prose[0]["source"])
    source[0] = json.dumps(notebook)


def quote(app: Sphinx, settings: Config) -> None:
    """Numbers that prose quotes come from the committed results: ``{{ reasons.leak.shared }}``."""
    settings.myst_substitutions = {study: tables.facts(study) for study in config.studies()}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of settings and pages."""
    app.connect("source-read", tell_apart)
    app.connect("config-inited", quote, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
