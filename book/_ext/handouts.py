"""Sheets for class, drawn from the shipped samples when the book is built, and their keys.

    ```{handout} statements.csv
    :rows: 10
    :show: Statement = statement
    :blank: ethical or unethical?, why?
    ```

gives every row a number, the columns to ``show`` under their headings, and empty ones to write in.
The key has further columns and none that is empty: the same ``seed`` draws the same rows. With
``where`` (``split=test``) rows are drawn from a part of the file; ``start`` is the first number.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ethalign import records, tables
from ethalign.data import SAMPLES


def sheet(name: str, rows: int, show: str, blank: str = "", **how: Any) -> str:
    """A drawn sheet as a table in Markdown; nothing in its cells is markup."""
    frame = pd.read_csv(SAMPLES / name, dtype=str, keep_default_na=False)
    if "where" in how:
        column, _, value = how["where"].partition("=")
        frame = frame[frame[column] == value]
    pairs = [[part.strip() for part in one.split("=")] for one in show.split(",")]
    columns, heads = zip(*pairs, strict=True)
    drawn = frame.sample(rows, random_state=how.get("seed", 0))[[*columns]]
    empty = [part.strip() for part in blank.split(",") if part.strip()]
    cells = enumerate(drawn.itertuples(index=False), how.get("start", 1))
    body = [(str(k), *map(records.plain, row), *([""] * len(empty))) for k, row in cells]
    return tables.markdown(["no.", *heads, *empty], body)


class Handout(SphinxDirective):
    """The directive ``handout``."""

    required_arguments = 1
    option_spec = {  # noqa: RUF012
        **dict.fromkeys(("rows", "seed", "start"), directives.nonnegative_int),
        **dict.fromkeys(("show", "blank", "where"), directives.unchanged),
    }

    def run(self) -> list[nodes.Node]:
        """The sheet, in a box of which a print keeps the rows whole."""
        box = nodes.container(classes=["handout"])
        box += self.parse_text_to_nodes(sheet(self.arguments[0], **self.options))
        return [box]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("handout", Handout)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
