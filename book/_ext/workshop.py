"""Executed notebooks as pages.

A stage that is executed for several variants is one page: what they share stands there once, and
cells with ``metadata.variant`` (``ethalign.book.side_by_side``) are put into tabs, which switch
together. The pages are an appendix: *next* and *previous* do not lead into it from the rest of the
book. Numbers in prose are quoted from the committed results.
"""

from __future__ import annotations

import itertools
from html import escape
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_design.shared import create_component

from ethalign import config, tables

MOVED = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={0}">
<link rel="canonical" href="{0}">
<title>Moved</title>
</head>
<body><p>This page is now <a href="{0}">here</a>.</p></body>
</html>
"""


def variant(node: nodes.Node) -> tuple[str, str] | None:
    """The variant whose output a node is, and its label; None for all other nodes."""
    told = isinstance(node, nodes.container) and node.get("cell_metadata", {}).get("variant")
    return (told[0], told[1]) if told else None


def put_into_tabs(app: Sphinx, doctree: nodes.document) -> None:
    """Put consecutive outputs of variants into a set of tabs."""
    for parent in {node.parent for node in doctree.findall(nodes.container) if variant(node)}:
        children: list[nodes.Node] = []
        for apart, run in itertools.groupby(parent.children, key=lambda node: bool(variant(node))):
            if not apart:
                children += run
                continue
            found: dict[tuple[str, str] | None, list[nodes.Node]] = {}
            for node in run:
                found.setdefault(variant(node), []).append(node)
            tabs = create_component("tab-set", ["sd-tab-set"])
            for told, cells in found.items():
                key, name = told or ("", "")
                label = nodes.rubric(name, name, classes=["sd-tab-label"])
                label["sync_group"], label["sync_id"] = "variant", key
                content = create_component("tab-content", ["sd-tab-content"], children=cells)
                tabs += create_component("tab-item", ["sd-tab-item"], children=[label, content])
            children.append(tabs)
        parent.children = []
        parent.extend(children)


class OnPaper(SphinxPostTransform):
    """In an EPUB, and for a PDF, nothing can be chosen: variants stand below each other."""

    default_priority = 190
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Make plain parts of the parts of tabs."""
        for node in (
            self.document.findall(nodes.container) if self.app.builder.name != "html" else ()
        ):
            if str(node.get("design_component")).startswith("tab-"):
                node["design_component"], node["classes"] = "", []


def plain(app: Sphinx) -> None:
    """What lies beside the pages is no part of an EPUB."""
    if app.builder.name != "html":
        app.config.html_extra_path = []


def well_formed(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Close and quote what tables and figures leave open: an EPUB holds XHTML."""
    if app.builder.name == "epub" and "body" in context:
        context["body"] = BeautifulSoup(context["body"], "html.parser").decode()


def beside(page: str) -> bool:
    """Whether a page is of the appendix: the workshop and what was executed for it."""
    kept = page.endswith(("/findings", "/results"))
    return page == "workshop" or (page.startswith("_runs/") and not kept)


def part(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Keep *next* and *previous* within the book or within its appendix."""
    relations = getattr(app.builder, "relations", {})
    _, before, after = relations.get(page, (None, None, None))
    for key, other in (("prev", before), ("next", after)):
        if other and beside(other) != beside(page):
            context[key] = None


def redirect(app: Sphinx, error: Exception | None) -> None:
    """Leave pages at old addresses that lead on: a page per variant, and one on them by study."""
    if error or app.builder.name != "html":
        return
    html = Path(app.outdir)
    for copy in (html / "runs").glob("*/*-*.ipynb"):
        study, (stage, _, name) = copy.parent.name, copy.stem.partition("-")
        target = f"_runs/{study}/{stage}.html"
        if (html / target).is_file():
            moved = {
                f"_runs/{study}/{copy.stem}.html": f"{stage}.html?variant={escape(name)}",
                f"{study}/{stage}.html": f"../{target}",
            }
            for old, new in moved.items():
                (html / old).parent.mkdir(exist_ok=True)
                (html / old).write_text(MOVED.format(new), encoding="utf-8")


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Leave out what the theme has for its developers and for old browsers: an eighth of the book.

    Source maps, and fonts that stand in its styles a second time, as WOFF2, before these.
    """
    if not error and app.builder.name == "html":
        static = Path(app.outdir, "_static")
        fonts = [p for p in static.rglob("*.ttf") if p.with_suffix(".woff2").is_file()]
        for path in (*static.rglob("*.map"), *fonts):
            path.unlink()


def quote(app: Sphinx, settings: Config) -> None:
    """Numbers that prose quotes come from the committed results: ``{{ reasons.leak.shared }}``."""
    settings.myst_substitutions = {study: tables.facts(study) for study in config.studies()}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the reading of settings and pages, and to the writing of pages."""
    app.add_post_transform(OnPaper)
    app.connect("builder-inited", plain)
    app.connect("doctree-read", put_into_tabs)
    app.connect("html-page-context", part)
    app.connect("html-page-context", well_formed)
    app.connect("build-finished", redirect)
    app.connect("build-finished", lighten)
    app.connect("config-inited", quote, priority=1)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
