"""What Beyond Labels says of classification, tested; the leak and the negative control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import claims, plots, results

# (claim, better, worse)
CLAIMS = (
    ("L+R beats L", "LR", "L"),
    ("L beats pretrained", "L", "pretrained"),
    ("L+R beats pretrained", "LR", "pretrained"),
    ("label first beats reason first", "LR", "R-then-L"),
    ("L beats shuffled labels", "L", "shuffled"),
)


def verdicts(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim of the paper tested item by item, on every data set and stratum.

    Args:
        homes: name to a folder of runs (``runs/reasons/tiny``, ``results/reasons/small``).
        seed: which seed's predictions.

    Returns:
        Columns of ``claims.VERDICTS``: difference of accuracies (first minus second) with its
        95 % interval, exact McNemar p and the p corrected by Holm over the table.
    """
    rows: list[Any] = []
    for name, home in homes.items():
        for model, tables in results.predictions(home, seed).items():
            for claim, *pair in CLAIMS:
                if {*pair} <= {*tables}:
                    first, second = (tables[variant] for variant in pair)
                    found = claims.paired(f"{name}, {model}", first, second)
                    rows += [(claim, *row) for row in found]
    return claims.verdicts(rows)


def _audit(reference: pd.DataFrame) -> dict[str, tuple[int, int, float]]:
    """Measure of the overlap audit of the published files to rows, of how many, share."""
    rows = reference[(reference["variant"] == "audit") & (reference["dataset"] == "dfar")]
    return {
        row["metric"]: (round(row["value"] * row["n"]), row["n"], row["value"])
        for row in rows.to_dict("records")
    }


def leak(reference: pd.DataFrame) -> pd.DataFrame:
    """How many rows of the published test file occur in the training file.

    Args:
        reference: rows of ``results.published("reasons")``.
    """
    names = {
        "test_in_train": "test statements that are in the training file",
        "same_label": "… of these with the same label",
        "same_reason": "… with the same reason, encoding repaired",
        "same_reason_as_published": "… with the same reason, byte for byte",
    }
    counts = {
        names[key]: [rows, n, f"{share:.1%}"]
        for key, (rows, n, share) in _audit(reference).items()
        if key in names
    }
    return pd.DataFrame(counts, index=["rows", "of", "share"]).T


def facts(reference: pd.DataFrame, home: Path) -> dict[str, Any]:
    """Further numbers that prose quotes.

    Returns:
        ``leak``: counts of the overlap audit; ``classes``: stratum of the published test file to
        counts of both labels.
    """
    leak: dict[str, str] = {}
    for key, (rows, n, share) in _audit(reference).items():
        leak |= {key: f"{rows:,}", f"{key}_of": f"{n:,}", f"{key}_percent": f"{100 * share:.1f} %"}
    classes = {}
    tables = [t["pretrained"] for t in results.predictions(home, 0).values() if "pretrained" in t]
    for items in tables[:1]:
        main = items[items["dataset"] == "dfar"]
        for name, part in [("all", main), *main.groupby("stratum")]:
            counts = part["gold"].value_counts().to_dict()
            classes[str(name)] = {"n": len(part)} | {str(k): int(v) for k, v in counts.items()}
    return {"leak": leak, "classes": classes}


def control(rows: pd.DataFrame) -> pd.DataFrame:
    """The negative control beside the majority rate, for every run, model and data set.

    Args:
        rows: metrics rows as of ``results.together``.
    """
    part = rows[
        (rows["variant"] == "shuffled")
        & (rows["stratum"] == "all")
        & rows["metric"].isin(["accuracy", "majority"])
    ]
    return plots.show(part, ["run", "model", "dataset"], "metric")
