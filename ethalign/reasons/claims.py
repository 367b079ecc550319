"""What Beyond Labels says of classification, tested; the leak and the negative control."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import claims, results

# (claim, better, worse)
CLAIMS = (
    ("L+R beats L", "LR", "L"),
    ("L beats pretrained", "L", "pretrained"),
    ("L+R beats pretrained", "LR", "pretrained"),
    ("label first beats reason first", "LR", "R-then-L"),
    ("L beats shuffled labels", "L", "shuffled"),
)


# What the overlap audit counts, as a page names it.
LEAK = {
    "test_in_train": "test statements that are in the training file",
    "same_label": "… of these with the same label",
    "same_reason": "… with the same reason, encoding repaired",
    "same_reason_as_published": "… with the same reason, byte for byte",
}


def assess(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim of the paper tested item by item, on every data set and stratum.

    ``homes`` are folders of runs by name. The columns are those of ``claims.VERDICTS``:
    difference of accuracies (first minus second) with its 95 % interval, exact McNemar p and the
    p corrected by Holm over the table.
    """
    rows: list[Any] = []
    for name, home in homes.items():
        for model, tables in results.predictions(home, seed).items():
            for claim, better, worse in CLAIMS:
                if better in tables and worse in tables:
                    found = claims.paired(f"{name}, {model}", tables[better], tables[worse])
                    rows += [(claim, *row) for row in found]
    return claims.verdicts(rows)


def _audited(reference: pd.DataFrame) -> dict[str, tuple[int, int, float]]:
    """Measure of the overlap audit of the published files to rows, of how many, share."""
    rows = reference[(reference["variant"] == "audit") & (reference["dataset"] == "dfar")]
    columns = zip(rows["metric"], rows["value"], rows["n"], strict=True)
    return {metric: (round(share * n), n, share) for metric, share, n in columns}


def leak(reference: pd.DataFrame) -> pd.DataFrame:
    """How many rows of the published test file occur in the training file."""
    found = _audited(reference)
    counts = {LEAK[k]: [*found[k][:2], f"{found[k][2]:.1%}"] for k in found if k in LEAK}
    return pd.DataFrame(counts, index=["rows", "of", "share"]).T


def facts(reference: pd.DataFrame, home: Path) -> dict[str, Any]:
    """Further numbers that prose quotes.

    ``leak``: counts of the overlap audit; ``classes``: stratum of the published test file to
    counts of both labels.
    """
    leak: dict[str, str] = {}
    for key, (rows, n, share) in _audited(reference).items():
        leak |= {key: f"{rows:,}", f"{key}_of": f"{n:,}", f"{key}_percent": f"{100 * share:.1f} %"}
    classes = {}
    tables = [t["pretrained"] for t in results.predictions(home, 0).values() if "pretrained" in t]
    for items in tables[:1]:
        main = items[items["dataset"] == "dfar"]
        for name, part in [("all", main), *main.groupby("stratum")]:
            counts = part["gold"].value_counts().to_dict()
            classes[str(name)] = {"n": len(part)} | {str(k): int(v) for k, v in counts.items()}
    return {"leak": leak, "classes": classes}
