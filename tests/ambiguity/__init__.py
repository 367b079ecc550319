"""Tests of the ambiguity study."""

from typing import Any

from ethalign import config
from ethalign.ambiguity.settings import Run


def resolved(variant: str = "hard", scale: str = "smoke", **overrides: Any) -> Run:
    """A run; ``votes__target`` stands for ``votes.target``."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    run = config.resolve("ambiguity", variant, scale, 0, dotted)
    assert isinstance(run, Run)
    return run
