"""What the paper claims of its methods, tested question by question, and tables of its scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ethalign import claims, metrics, records, results
from ethalign.honesty import data, evaluate
from ethalign.honesty.scores import (
    Category,
    HonestyScores,
    difference,
    risk_coverage,
    scores,
    threshold_sweep,
)

ORDER = (
    "unaligned",
    "prompt-based",
    "fine-tuned",
    "absolute",
    "confidence-num",
    "confidence-verb",
    "multisample",
    "shuffled",
)
# The scores that tables of the book show, of all that are recorded.
SHOWN = (
    "prudence",
    "over_conservativeness",
    "honesty",
    "accuracy",
    "accuracy_answered",
    "idk",
    "risk_area",
)
# (claim, better, worse): what Alignment for Honesty says of its methods.
CLAIMS = (
    *((f"{v} is more honest than unaligned", v, "unaligned") for v in ORDER[1:-1]),
    ("confidence-verb is more honest than prompt-based", "confidence-verb", "prompt-based"),
    ("confidence-num is more honest than absolute", "confidence-num", "absolute"),
    ("confidence-verb is more honest than absolute", "confidence-verb", "absolute"),
    ("multisample is more honest than absolute", "multisample", "absolute"),
    ("absolute is more honest than the shuffled control", "absolute", "shuffled"),
)


def verdicts(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """What the paper says of its methods, tested over the same questions.

    Honesty is compared where questions may be known or not; where nobody can know, the share
    declined; and each method's loose accuracy with that of the unaligned model.

    Args:
        homes: name to a study's folder of runs (``runs/honesty/tiny``).
        seed: which seed's predictions.

    Returns:
        As of ``claims.verdicts``; differences of honesty with their bootstrap p, of shares with
        McNemar's.
    """
    rows: list[Any] = []
    for name, home in homes.items():
        for model, tables in results.predictions(home, seed).items():
            if "unaligned" in tables:
                where = f"{name}, {model}"
                rows += [(c, f"{d}, {where}", "all", *t) for c, d, t in _tests(tables, seed)]
    return claims.verdicts(rows)


def _tests(tables: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, str, Any]]:
    tests = {v: t[t["part"] == "test"].set_index(["dataset", "id"]) for v, t in tables.items()}
    before = tests["unaligned"]
    for dataset in dict.fromkeys(before.index.get_level_values("dataset")):
        asked = before.loc[dataset].index
        parts = {v: t.loc[dataset].reindex(asked) for v, t in tests.items()}
        nobody = evaluate.unknown(dataset, parts["unaligned"])
        if not nobody and dataset not in data.KNOWN:
            for claim, found in _honesty(parts, seed):
                yield claim, dataset, found
        for variant in (v for v in parts if v not in ("unaligned", "shuffled")):
            pair = parts[variant], parts["unaligned"]
            if nobody:
                claim = f"{variant} declines more than unaligned"
                yield claim, dataset, metrics.mcnemar(*((p["verdict"] == "idk") for p in pair))
            else:
                claim = f"unaligned is more accurate than {variant}"
                right = (p["correct"].to_numpy(bool) for p in reversed(pair))
                yield claim, dataset, metrics.mcnemar(*right)


def _honesty(parts: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, Any]]:
    said = {variant: list(part["verdict"]) for variant, part in parts.items()}
    for claim, better, worse in CLAIMS:
        if {better, worse} <= {*said}:
            trio = said["unaligned"], said[better], said[worse]
            yield claim, difference(*trio, seed=seed, draws=claims.DRAWS)


def main(homes: Mapping[str, Path], seed: int = 0) -> dict[str, dict[str, pd.DataFrame]]:
    """Test rows on the main data set, by run and model, and then by variant in the paper's order.

    Committed runs hold decisions without words.
    """
    found = {}
    for name, home in homes.items():
        for model, tables in results.predictions(home, seed).items():
            known = {v: tables[v] for v in ORDER if v in tables}
            parts = {v: t[t["part"] == "test"] for v, t in known.items()}
            found[f"{name}, {model}"] = {
                v: t[t["dataset"] == t["dataset"].iloc[0]] for v, t in parts.items()
            }
    return {name: parts for name, parts in found.items() if "unaligned" in parts}


def transitions(
    parts: Mapping[str, pd.DataFrame],
) -> dict[str, dict[tuple[Category, Category], int]]:
    """Counts of (before, after) for the test rows of every variant, against the unaligned one."""
    before = parts["unaligned"]
    return {
        variant: scores(evaluate.aligned(before, part), list(part["verdict"])).transitions
        for variant, part in parts.items()
    }


def curves(parts: Mapping[str, pd.DataFrame]) -> dict[str, tuple[Any, Any]]:
    """Risk against coverage of every variant, see ``scores.risk_coverage``."""
    return {
        variant: risk_coverage(evaluate.confidence(part), part["verdict"] == "correct")
        for variant, part in parts.items()
    }


def confidences(part: pd.DataFrame, *, stated: bool) -> pd.DataFrame:
    """Answers that were given, with a column ``confidence`` in [0, 1].

    Args:
        part: rows of ``evaluate.predict``.
        stated: the confidence that an answer verbalizes, rather than the mean probability of its
            tokens; answers that verbalize none are left out.
    """
    values = part["stated"].to_numpy(float) if stated else np.exp(evaluate.confidence(part))
    kept = ~np.isnan(values) if stated else (part["verdict"] != "idk").to_numpy()
    return part.assign(confidence=values)[kept]


def sweeps(homes: Mapping[str, Path], seed: int = 0) -> dict[str, list[tuple[float, Any]]]:
    """``scores.threshold_sweep`` of the probed questions, by run and model."""
    return {
        f"{name}, {path.parts[-4]}": sweep(pd.DataFrame(records.read_rows(path)))
        for name, home in homes.items()
        for path in sorted(home.glob(f"*/knowledge/{seed}/knowledge.jsonl"))
    }


def sweep(sampled: pd.DataFrame) -> list[tuple[float, HonestyScores]]:
    """``scores.threshold_sweep`` of rows of ``knowledge.jsonl``."""
    before: list[Category] = ["correct" if label else "wrong" for label in sampled["greedy_label"]]
    m = len(sampled["sampling_labels"].iloc[0])
    return threshold_sweep(sampled["sampling_knowns"].tolist(), m, before)


def plane(rows: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Prudence and over-conservativeness of each variant on a data set, as columns."""
    names = ["prudence", "over_conservativeness"]
    part = rows[(rows["dataset"] == dataset) & rows["variant"].isin(ORDER)]
    part = part[part["stratum"] == "all"] if "stratum" in part else part
    wide = part.pivot_table(index="variant", columns="metric", values="value", sort=False)
    return wide.reindex(columns=names).dropna().reset_index()


def components() -> pd.DataFrame:
    """Does every printed honesty follow from prudence and over-conservativeness beside it?

    Returns:
        Per printed row the three figures, what the formula gives for the honesty, and
        ``follows``: whether the two agree to the last printed digit (in per cent).
    """
    table = results.reported("honesty")
    wide = table.pivot(index=["dataset", "row"], columns="metric", values="value")
    wide = wide[["prudence", "over_conservativeness", "honesty"]].dropna()
    printed = table.set_index(["dataset", "row"]).index.unique()
    wide = 100 * wide.reindex(printed).dropna()
    wide["formula"] = (wide["prudence"] + 100 - wide["over_conservativeness"]) / 2
    # Both components were rounded to two digits, and so was their half sum.
    wide["follows"] = (wide["formula"] - wide["honesty"]).abs() < 0.0101
    return wide.rename_axis(None, axis=1).reset_index()
