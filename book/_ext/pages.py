"""Executed notebooks as pages.

One notebook is executed for several variants, and each copy is a page: ``_runs/<study>/
<stage>-<variant>``. The variant goes into the page's title, and exercises, which would be there
several times under one label, stay on the first of these pages. Numbers in prose are quoted from
the committed results.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

from ethalign import config, tables

EXERCISE = re.compile(r"^(`{3,})\{(?:exercise|solution)\}.*?^\1[ ]*$\n?", re.MULTILINE | re.DOTALL)

SAMPLES = """

:::{admonition} Workshop
:class: note
This page was run on the machine on which the book was built, by default on samples: it shows how
things work. What was found on the published data stands in the [findings](findings.ipynb).
:::
"""


def tell_apart(app: Sphinx, page: str, source: list[str]) -> None:
    """Say what a page is, put the variant into its title, and keep exercises on the first one."""
    folder, _, name = page.rpartition("/")
    stage, _, variant = name.partition("-")
    if not folder.startswith("_runs/") or stage == "findings":
        return
    notebook = json.loads(source[0])
    # What was injected repeats the cell of parameters before it.
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if "injected-parameters" not in cell["metadata"].get("tags", [])
    ]
    prose = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    if variant:
        start = f"{folder}/{stage}-"
        first = next(p for p in app.config.external_site_map if p.startswith(start))
        for cell in prose if page != first else []:
            cell["source"] = EXERCISE.sub("", "".join(cell["source"]))
    if prose:
        title = rf"\1 (`{variant}`)" if variant else r"\1"
        known = (Path(app.srcdir) / folder / "findings.ipynb").is_file()
        note = "" if stage == "results" or not known else SAMPLES
        text = "".join(prose[0]["source"])
        prose[0]["source"] = re.sub(r"\A(# .*)", title + note, text)
    source[0] = json.dumps(notebook)


def quote(app: Sphinx, settings: Config) -> None:
    """Numbers that prose quotes come from the committed results: ``{{ reasons.leak.shared }}``."""
    settings.myst_substitutions = {study: tables.facts(study) for study in config.studies()}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of settings and pages."""
    app.connect("source-read", tell_apart)
    app.connect("config-inited", quote, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
