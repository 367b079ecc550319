"""Tests of the reasons study."""

from typing import Any

from ethalign import config
from ethalign.reasons.settings import Run


def resolved(
    variant: str = "L",
    scale: str = "smoke",
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
) -> Run:
    """A run of the study, with every setting."""
    run = config.resolve("reasons", variant, scale, seed, overrides)
    assert isinstance(run, Run)
    return run
