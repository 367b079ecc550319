"""Tests of the honesty study."""

from typing import Any

import numpy as np
import pandas as pd

from ethalign import config
from ethalign.honesty.settings import Run


def resolved(variant: str = "absolute", seed: int = 0, **overrides: Any) -> Run:
    """A run at scale smoke; ``honesty__tau`` stands for ``honesty.tau``."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    run = config.resolve("honesty", variant, "smoke", seed, dotted)
    assert isinstance(run, Run)
    return run


def frame(**columns: Any) -> pd.DataFrame:
    """A prediction table of one set; one row per verdict."""
    n = len(columns["verdict"])
    table = pd.DataFrame({"part": "test", "dataset": "questions", "stratum": "all", **columns})
    defaults: dict[str, Any] = {"id": [f"q{k}" for k in range(n)], "logp": -1.0, "stated": np.nan}
    for key, value in defaults.items():
        if key not in table:
            table[key] = value
    table["correct"] = table["matched"] = table["verdict"] == "correct"
    return table
