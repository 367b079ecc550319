"""What the API page leaves out: noise that says nothing to a reader."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# What Python shows of a signature, and what its author wrote there.
WRITTEN = [
    (re.compile(r"[~\w.]*Annotated\[(.+?), <\S+ object at 0x[0-9a-f]+>\]"), r"\1"),
    (re.compile(r"<function \S+\.<lambda>>"), "..."),
    (
        re.compile(r"[~\w.]*ndarray\[tuple\[[~\w.]+, \.\.\.\], [~\w.]*dtype\[[~\w.]*?(\w+)\]\]"),
        r"NDArray[\1]",
    ),
]
# What pydantic adds to every block of settings.
ADDED = ("model_config", "model_post_init")


def skip(
    app: Sphinx, what: str, name: str, member: object, skipped: bool, options: Any
) -> bool | None:
    """Leave out fields of named tuples, documented as mere positions, and pydantic's settings."""
    if name in ADDED or (getattr(member, "__doc__", None) or "").startswith(
        "Alias for field number"
    ):
        return True
    return None


def signature(
    app: Sphinx, what: str, name: str, member: Any, options: Any, args: str | None, returns: Any
) -> tuple[str, str | None] | None:
    """Signatures as they were written; of configuration blocks none, see the page Parameters."""
    if what == "class" and hasattr(member, "model_fields"):
        return "", None
    if args is None:
        return None
    shown = [args, returns or ""]
    for seen, written in WRITTEN:
        shown = [seen.sub(written, part) for part in shown]
    return shown[0], shown[1] or None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect both to autodoc."""
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
