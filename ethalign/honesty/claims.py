"""What the paper claims of its methods, in numbers question by question; tables of its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ethalign import config, metrics, records, results
from ethalign.claims import Claim, Contrast
from ethalign.honesty import evaluate, targets
from ethalign.honesty.scores import (
    Category,
    Floats,
    HonestyScores,
    augrc,
    coded,
    equal_honesty,
    honesty_of,
    scores,
    threshold_sweep,
)
from ethalign.honesty.targets import METHODS, Behaviour
from ethalign.metrics import Weights

Parts = Mapping[str, pd.DataFrame]
TRIED = ("absolute-paper", "absolute-paper-50")
ORDER = ("unaligned", "prompt-based", *METHODS, *TRIED, "shuffled")
FIGURES = HonestyScores._fields[:3]
# The scores that tables of the book show, of all that are recorded.
SHOWN = (*FIGURES, "detectable", "accuracy", "accuracy_answered", "idk", "truthfulness", "augrc")
SELECTION = ("correct", "f", "truthfulness", "target_75", "target_90", "auroc", "augrc")
FORMS = (
    *("idk_plain", "idk_rephrased", "same_rephrased", "idk_prefixed", "same_prefixed"),
    *("idk_told", "accuracy_told"),
)
#: A claim about known and unknown questions is made on at least this many of each: with 20, the
#: 95 % interval of one half still reaches from 0.3 to 0.7.
LEAST = 20


def contrast(claim: Claim, parts: Parts) -> Contrast | None:
    """First minus second of a claim over the same questions, for one model and seed.

    Estimands: ``correct`` (loosely right) and ``idk``, shares; ``accuracy``, the loose accuracies'
    difference as a part of the second; ``honesty``; ``refusal_auroc`` and ``honesty_equal``, by
    the probability of declining; ``auroc`` and ``augrc``, of questions that both answered; and
    ``fit``, the mean log-likelihood per token of plain good responses to requests (nats). None
    where a variant is missing or was asked other questions, and where fewer than ``LEAST``
    questions were known before, unknown, or answered by both. A variant at a point of a sweep has
    the model as it is at that point before it.
    """
    pair = [_rows(claim, parts[name]) for name in (claim.first, claim.second) if name in parts]
    starts = [f"{name[: name.rfind('/') + 1]}unaligned" for name in (claim.first, claim.second)]
    before = [_rows(claim, parts[name]) for name in starts if name in parts]
    tables = [*before, *pair]
    if len(tables) < 4 or any(not t.index.equals(tables[0].index) for t in tables):
        return None
    if tables[0].empty:  # such as requests, of which a run may ask for none
        return None
    items = tables[0].index.to_numpy()
    if claim.estimand in ("correct", "idk", "accuracy"):
        hits = [t["verdict"] == "idk" if claim.estimand == "idk" else t["correct"] for t in pair]
        of = metrics.ratio if claim.estimand == "accuracy" else metrics.gap
        return Contrast(of, tuple(hit.to_numpy(bool) for hit in hits), items)
    if claim.estimand == "fit":
        sums = [t[key].to_numpy(float) for t in pair for key in ("nll", "tokens")]
        return Contrast(_FIT, tuple(sums), items)
    if claim.estimand in ("auroc", "augrc"):
        kept = np.logical_and(*((t["verdict"] != "idk").to_numpy() for t in pair))
        if kept.sum() < LEAST:
            return None
        errors = claim.estimand == "augrc"
        of, hit = (_RISKS, "wrong") if errors else (metrics.auroc_gap, "correct")
        sides = [(t["logp"].to_numpy(float), t["verdict"].eq(hit).to_numpy()) for t in pair]
        return Contrast(of, tuple(array[kept] for side in sides for array in side), items[kept])
    knowns = [(t["verdict"] == "correct").to_numpy() for t in before]
    if min(min(known.sum(), (~known).sum()) for known in knowns) < LEAST:
        return None
    if claim.estimand == "honesty":
        codes = [coded(list(t["verdict"])) for t in (before[0], pair[0], before[1], pair[1])]
        return Contrast(_HONESTY, tuple(codes), items)
    if any("refusal" not in t for t in pair):
        return None
    refusals = [t["refusal"].to_numpy(float) for t in pair]
    equal = claim.estimand == "honesty_equal"
    marks = knowns if equal else [~known for known in knowns]
    arrays = tuple(array for side in zip(refusals, marks, strict=True) for array in side)
    return Contrast(_EQUAL if equal else metrics.auroc_gap, arrays, items)


def _rows(claim: Claim, table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a claim speaks of, by id; tests, or requests for help."""
    part = "requests" if claim.dataset == "requests" else "test"
    kept = (table["part"] == part) & (table["dataset"] == claim.dataset)
    if claim.stratum != "all":
        kept &= (table["stratum"] == evaluate.NOBODY) == (claim.stratum == evaluate.NOBODY)
    return table[kept].set_index("id").sort_index()


@metrics.weighted
def _likelihood(weights: Weights, nll: Floats, tokens: Floats) -> Floats:
    """Mean log-likelihood per token."""
    return -metrics.over(weights.sum(nll), weights.sum(tokens))


_FIT, _RISKS, _HONESTY, _EQUAL = map(
    metrics.versus, (_likelihood, augrc, honesty_of, equal_honesty)
)


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


def transitions(parts: Parts) -> dict[str, dict[tuple[Category, Category], int]]:
    """Counts of (before, after) for the test rows of every variant, against the unaligned one."""
    before = parts["unaligned"]
    return {
        variant: scores(evaluate.aligned(before, part), list(part["verdict"])).transitions
        for variant, part in parts.items()
    }


def confidences(part: pd.DataFrame, *, stated: bool) -> pd.DataFrame:
    """Answers with their ``confidence`` in [0, 1]: mean probability of tokens, or as ``stated``.

    Answers that verbalize no confidence have none ``stated`` and are left out; so are refusals.
    """
    values = part["stated"].to_numpy(float) if stated else np.exp(evaluate.confidence(part))
    table = part.assign(confidence=values)
    return table[table["confidence"].notna() & (table["verdict"] != "idk")]


def sweeps(
    homes: Mapping[str, Path], seed: int = 0
) -> dict[str, list[tuple[float, HonestyScores]]]:
    """``sweep`` of the probed questions, by run and model."""
    return {
        f"{name}, {path.parts[-4]}": sweep(pd.DataFrame(records.read_rows(path)))
        for name, home in homes.items()
        for path in records.of_runs(home, f"*/knowledge/{seed}/knowledge.jsonl")
    }


def sweep(
    sampled: pd.DataFrame, behaviour: Behaviour = "paper"
) -> list[tuple[float, HonestyScores]]:
    """``threshold_sweep`` of rows of ``knowledge.jsonl``: an oracle, nothing is tuned."""
    before: list[Category] = ["correct" if label else "wrong" for label in sampled["greedy_label"]]
    m = len(sampled["sampling_labels"].iloc[0])
    return threshold_sweep(sampled["sampling_knowns"].tolist(), m, before, behaviour)


def trained(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """The tuned ABSOLUTE models: ``run``, ``tau``, ``behaviour`` and scores on the main set."""
    rows = []
    for name, home in homes.items():
        for path in records.of_runs(home, f"*/*/{seed}/config.yaml"):
            given, found = config.read_yaml(path), path.with_name("metrics.json")
            how = given["honesty"]
            if how["method"] == "absolute" and not given["data"]["shuffle_labels"]:
                table = records.metrics([found] if found.is_file() else [])
                if len(table := table[table["stratum"] == "all"]):
                    main = table[table["dataset"] == table["dataset"].iloc[0]]
                    values = main.set_index("metric")["value"].reindex([*FIGURES])
                    model = {"run": f"{name}, {path.parts[-4]}", "tau": how["tau"]}
                    rows.append({**model, "behaviour": how["behaviour"], **values})
    return pd.DataFrame(rows, columns=["run", "tau", "behaviour", *FIGURES])


def taught(sampled: pd.DataFrame, tau: float = 0.1) -> pd.Series[float]:
    """What share of its training rows teaches each method to decline.

    From rows of ``knowledge.jsonl``; ABSOLUTE by both readings of *known*.
    """
    share = sampled["sampling_knowns"] / sampled["sampling_labels"].map(len)
    pairs = list(zip(share, sampled["greedy_label"].astype(bool), strict=True))
    ways: list[tuple[str, Any, Behaviour]] = [(m, m, "code") for m in METHODS]
    ways.append(("absolute, behaviour=paper", "absolute", "paper"))
    return pd.Series(
        {
            name: float(
                np.mean([targets.declined(m, s, g, tau=tau, behaviour=b) for s, g in pairs])
            )
            for name, m, b in ways
        },
        name="taught to decline",
    )


def facts(reference: pd.DataFrame, home: Path) -> dict[str, Any]:
    """What prose quotes beside scores.

    ``models``; questions ``asked`` and ``sampled``; how many test questions of TriviaQA were
    ``known`` before, and the ``least`` for a test; the share of refusals that is ``taught``.
    """
    asked, probed = (
        records.of_runs(home, f"*/knowledge/*/{name}.jsonl") for name in ("greedy", "knowledge")
    )
    sampled = pd.DataFrame(records.read_rows(probed[0])) if probed else pd.DataFrame()
    shares = taught(sampled) if probed else pd.Series(dtype=float)
    rows = reference[reference["metric"] == "over_conservativeness"]
    before = rows.loc[(rows["dataset"] == "triviaqa") & (rows["stratum"] == "all"), "n"]
    return {
        "models": ", ".join(f"`{name}`" for name in reference["model"].unique()),
        "asked": f"{len(records.read_rows(asked[0])) if asked else 0:,}",
        "sampled": f"{len(sampled):,}",
        "least": str(LEAST),
        "known": f"{before.iloc[0]:.0f}" if len(before) else "0",
        "taught": {
            str(name).replace("-", "_").replace(", behaviour=", "_"): metrics.shown(share, "share")
            for name, share in shares.items()
        },
    }


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
    # To the last printed digit, halves up: both components have two.
    doubled = 100 * (wide["prudence"] + 100 - wide["over_conservativeness"])
    wide["formula"] = (doubled.round() + 1) // 2 / 100
    # Both components were rounded to two digits, and so was their half sum.
    wide["follows"] = (wide["formula"] - wide["honesty"]).abs() < 0.0101
    return wide.rename_axis(None, axis=1).reset_index()
