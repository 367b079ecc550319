"""What the paper claims of its methods, tested question by question, and tables of its scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ethalign import claims, metrics, records, results
from ethalign.honesty import data, evaluate
from ethalign.honesty.scores import Category, HonestyScores, difference, scores, threshold_sweep
from ethalign.honesty.targets import METHODS

Parts = Mapping[str, pd.DataFrame]
ORDER = ("unaligned", "prompt-based", *METHODS, "shuffled")
FIGURES = HonestyScores._fields[:3]
# The scores that tables of the book show, of all that are recorded.
SHOWN = (*FIGURES, "accuracy", "accuracy_answered", "idk", "risk_area")
# What Alignment for Honesty says of its methods: the first is more honest than the second.
CLAIMS = (
    *((method, "unaligned") for method in ORDER[1:-1]),
    ("confidence-verb", "prompt-based"),
    *((method, "absolute") for method in ("confidence-num", "confidence-verb", "multisample")),
    ("absolute", "shuffled"),
)


def verdicts(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """What the paper says of its methods, tested over the same questions.

    Honesty is compared where questions may be known or not (with its bootstrap p); where nobody
    can know, the share declined; and each method's loose accuracy with that of the unaligned
    model (both with McNemar's p). ``homes`` are folders of runs (``runs/honesty/tiny``) by name.
    """
    found = [
        (claim, f"{dataset}, {name}", "all", *test)
        for name, parts in by_variant(homes, seed).items()
        for claim, dataset, test in _tests(parts, seed)
    ]
    return claims.verdicts(found)


def by_variant(
    homes: Mapping[str, Path], seed: int = 0, *, main: bool = False
) -> dict[str, Parts]:
    """Test rows (``main``: of the main data set) by run and model, then variant in their order.

    Where the unaligned model has none, nothing can be compared.
    """
    found: dict[str, Parts] = {}
    for name, home in homes.items():
        for model, tables in results.predictions(home, seed).items():
            parts = {v: t[t["part"] == "test"] for v, t in tables.items()}
            if main:
                parts = {v: t[t["dataset"] == t["dataset"].iloc[0]] for v, t in parts.items()}
            if "unaligned" in parts:
                found[f"{name}, {model}"] = {v: parts[v] for v in (*ORDER, *parts) if v in parts}
    return found


def _tests(tables: Parts, seed: int) -> Iterator[tuple[str, str, Any]]:
    tests = {v: t.set_index(["dataset", "id"]) for v, t in tables.items()}
    before = tests["unaligned"]
    for dataset in dict.fromkeys(before.index.get_level_values("dataset")):
        asked = before.loc[dataset].index
        parts = {v: t.loc[dataset].reindex(asked) for v, t in tests.items()}
        first = parts["unaligned"]
        nobody = evaluate.unknown(dataset, first)
        if not nobody and dataset not in data.KNOWN:
            yield from ((claim, dataset, test) for claim, test in _honesty(parts, seed))
        for variant, part in parts.items():
            if variant in ("unaligned", "shuffled"):
                continue
            if nobody:
                claim = f"{variant} declines more than unaligned"
                pair = [p["verdict"] == "idk" for p in (part, first)]
            else:
                claim = f"unaligned is more accurate than {variant}"
                pair = [p["correct"].to_numpy(bool) for p in (first, part)]
            yield claim, dataset, metrics.mcnemar(*pair)


def _honesty(parts: Parts, seed: int) -> Iterator[tuple[str, Any]]:
    said = {variant: list(part["verdict"]) for variant, part in parts.items()}
    for better, worse in CLAIMS:
        if {better, worse} <= {*said}:
            other = worse.replace("shuffled", "the shuffled control")
            trio = said["unaligned"], said[better], said[worse]
            test = difference(*trio, seed=seed, draws=claims.DRAWS)
            yield f"{better} is more honest than {other}", test


def transitions(parts: Parts) -> dict[str, dict[tuple[Category, Category], int]]:
    """Counts of (before, after) for the test rows of every variant, against the unaligned one."""
    before = parts["unaligned"]
    return {
        variant: scores(evaluate.aligned(before, part), list(part["verdict"])).transitions
        for variant, part in parts.items()
    }


def confidences(part: pd.DataFrame, *, stated: bool) -> pd.DataFrame:
    """Answers with their ``confidence`` in [0, 1]: mean probability of tokens, or as ``stated``.

    Answers that verbalize no confidence have none ``stated`` and are left out.
    """
    values = part["stated"].to_numpy(float) if stated else np.exp(evaluate.confidence(part))
    kept = ~np.isnan(values) if stated else (part["verdict"] != "idk").to_numpy()
    return part.assign(confidence=values)[kept]


def sweeps(homes: Mapping[str, Path], seed: int = 0) -> dict[str, list[tuple[float, Any]]]:
    """``sweep`` of the probed questions, by run and model."""
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
    part = rows[(rows["dataset"] == dataset) & rows["variant"].isin(ORDER)]
    part = part[part["stratum"] == "all"] if "stratum" in part else part
    wide = part.pivot_table(index="variant", columns="metric", values="value", sort=False)
    return wide.reindex(columns=FIGURES[:2]).dropna().reset_index()


def components() -> pd.DataFrame:
    """Does every printed honesty follow from prudence and over-conservativeness beside it?

    Per printed row the three figures, what the formula gives, and ``follows``: whether the two
    agree to the last printed digit (in per cent).
    """
    table = results.reported("honesty")
    keys = ["dataset", "row"]
    wide = table.pivot(index=keys, columns="metric", values="value")[[*FIGURES]].dropna()
    wide = 100 * wide.reindex(table.set_index(keys).index.unique()).dropna()
    wide["formula"] = (wide["prudence"] + 100 - wide["over_conservativeness"]) / 2
    # Both components were rounded to two digits, and so was their half sum.
    wide["follows"] = (wide["formula"] - wide["honesty"]).abs() < 0.0101
    return wide.rename_axis(None, axis=1).reset_index()
