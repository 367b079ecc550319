"""What the API page leaves out: noise that says nothing to a reader."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def skip(
    app: Sphinx, what: str, name: str, member: object, skipped: bool, options: Any
) -> bool | None:
    """Leave out fields of named tuples, documented as mere positions, and pydantic's settings."""
    if name == "model_config" or (getattr(member, "__doc__", None) or "").startswith(
        "Alias for field number"
    ):
        return True
    return None


def signature(
    app: Sphinx, what: str, name: str, member: Any, options: Any, args: str | None, returns: Any
) -> tuple[str, None] | None:
    """Leave out the signatures of configuration blocks: the page on parameters lists them."""
    if what == "class" and hasattr(member, "model_fields"):
        return "", None
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect both to autodoc."""
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
