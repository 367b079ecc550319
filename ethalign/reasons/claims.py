"""The claims on reasons in numbers; the leak and the classes, which prose quotes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import metrics, results
from ethalign.claims import Claim, Contrast
from ethalign.reasons import scores

# What the overlap audit counts, as a page names it.
LEAK = {
    "test_in_train": "test statements that are in the training file",
    "same_label": "… of these with the same label",
    "same_reason": "… with the same reason, encoding repaired",
    "same_reason_as_published": "… with the same reason, byte for byte",
    "near_copy": "clean test statements nearly identical to one in training (letters, cosine 0.8)",
    "family_in_train": "clean test statements that share their first four words with one there",
}


# Estimands that are shares of items, by the columns that they compare.
RIGHT = {"accuracy": "verdict", "accuracy_prior": "verdict_prior", "accuracy_text": "text_verdict"}
# What stands in the place of the papers' data in other runs.
SAME = {"dfar": ("dfar", "statements", "own"), "ethos": ("ethos", "comments")}
MISALIGNED = {"misalignment_stance": "stance_misaligned", "misalignment_judge": "judge_misaligned"}


def contrast(claim: Claim, parts: Mapping[str, pd.DataFrame]) -> Contrast | None:
    """A claim's two variants on the items that both answered (see ``claims.Claim``).

    The stratum is that of the first: on rows ``seen``, those that the first was tuned on.

    Estimands: ``accuracy`` of verdicts, ``accuracy_prior`` of those with a corrected threshold,
    ``accuracy_text`` of those read in texts, ``auc``, ``misalignment_stance`` and
    ``misalignment_judge`` of the reasons that both gave. The second may be ``chance``, an AUC of
    one half, or a variant of the baselines such as ``majority``.
    """
    first, second = (_answers(claim, parts, name) for name in (claim.first, claim.second))
    if first is not None:  # which items were tuned on differs between variants: the first decides
        first = _of_stratum(first, claim.stratum)
    if second is None and claim.second == "chance" and first is not None:
        second = first.assign(logp_ethical=0.0, logp_unethical=0.0)
    if first is None or second is None:
        return None
    both = first.merge(second, on=["dataset", "id"], suffixes=("_1", "_2"))
    gold = both["gold_1"].to_numpy()
    items = (both["dataset"] + " " + both["id"].astype(str)).to_numpy(str)
    groups = both["family_1"].to_numpy() if "family_1" in both else None
    if claim.estimand == "auc":
        if not all("logp_ethical" in side for side in (first, second)):
            return None
        ranks = (scores.margins(t.set_index("id").loc[both["id"]]) for t in (first, second))
        arrays = tuple(array for rank in ranks for array in (rank, gold == "unethical"))
        return Contrast(metrics.auroc_gap, arrays, items, groups)
    names = RIGHT | MISALIGNED
    columns = [f"{names[claim.estimand]}_{k}" for k in (1, 2)]
    if not {*columns} <= {*both}:
        return None
    if claim.estimand in MISALIGNED:
        # What argues for nothing is no reason (older records call it misaligned).
        known = both[["argues_for_1", "argues_for_2"]].notna().all(axis=1).to_numpy()
        both, items = both[known], items[known]
        groups = None if groups is None else groups[known]
        sides = (both[column].to_numpy(bool) for column in columns)
    else:
        sides = ((both[column] == gold).to_numpy(bool) for column in columns)
    return Contrast(metrics.gap, tuple(sides), items, groups)


def _answers(claim: Claim, parts: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame | None:
    """Rows of a variant on a claim's data, or None if it has none."""
    found = parts.get(name)
    if found is None and "baselines" in parts:
        found = parts["baselines"].query("variant == @name")
    if found is None or found.empty:
        return None
    if claim.estimand == "accuracy_text" or name.rpartition("/")[2] == "R-then-L":
        # Older records hold verdicts of R-then-L without a reason before them: not judged.
        reasons = found.get("judge_misaligned", pd.Series(True, found.index)).notna()
        found = found[found.get("written", reasons).astype(bool)]
    found = found[found["dataset"].isin(SAME[claim.dataset])].reset_index(drop=True)
    return found if len(found) else None


def _of_stratum(found: pd.DataFrame, stratum: str) -> pd.DataFrame | None:
    masks = scores.strata(found)
    # Where no statement is in the training file, all of them are clean.
    mask = masks.get(stratum, masks.get("all") if stratum == "clean" else None)
    return None if mask is None else found[mask]


def _audited(reference: pd.DataFrame) -> dict[str, tuple[int, int, float]]:
    """Measure of the overlap audit of the published files to rows, of how many, share."""
    rows = reference[(reference["variant"] == "audit") & (reference["dataset"] == "dfar")]
    columns = zip(rows["metric"], rows["value"], rows["n"], strict=True)
    return {metric: (round(share * n), n, share) for metric, share, n in columns}


def leak(reference: pd.DataFrame) -> pd.DataFrame:
    """How many rows of the published test file occur in the training file."""
    found = _audited(reference)
    counts = {LEAK[k]: [*found[k][:2], f"{found[k][2]:.1%}"] for k in LEAK if k in found}
    return pd.DataFrame(counts, index=["rows", "of", "share"]).T


def alarms(home: Path) -> pd.DataFrame:
    """How often judges call a reason behind a right verdict wrong; rows as of ``results.pooled``.

    ``stance_flags_right`` and ``judge_flags_right``, the counterparts of ``…_flags_wrong``, on the
    main data set; Wilson's interval. Most are false alarms, but a right verdict can have a
    misaligned reason.
    """
    rows = []
    for seed in results.seeds(home):
        known = results.predictions(home, seed).items()
        for model, variant, table in ((m, v, t) for m, parts in known for v, t in parts.items()):
            if "argues_for" not in table:
                continue
            judged = table[table["dataset"].isin(SAME["dfar"]) & table["argues_for"].notna()]
            right = judged[judged["verdict"] == judged["gold"]]
            of = {"study": "reasons", "model": model, "variant": variant, "seed": seed}
            for name in ("stance", "judge"):
                found = metrics.share(int(right[f"{name}_misaligned"].sum()), len(right))
                told = {"metric": f"{name}_flags_right", "unit": "share", **found._asdict()}
                rows.append({**of, "dataset": "dfar", "stratum": "all", **told})
    return results.pooled(pd.DataFrame(rows)) if rows else pd.DataFrame()


def facts(reference: pd.DataFrame, home: Path) -> dict[str, Any]:
    """Further numbers that prose quotes.

    ``leak``: counts of the overlap audit; ``classes``: stratum of the published test file to
    counts of both labels; ``clean``, ``contaminated``: variant to metric to value on such rows,
    means over seeds of the first model.
    """
    leak: dict[str, str] = {}
    for key, (rows, n, share) in _audited(reference).items():
        if scores.UNITS.get(key):
            leak[key] = metrics.shown(share, scores.UNITS[key])
            continue
        leak |= {key: f"{rows:,}", f"{key}_of": f"{n:,}", f"{key}_percent": f"{100 * share:.1f} %"}
    classes = {}
    tables = [t["pretrained"] for t in results.predictions(home, 0).values() if "pretrained" in t]
    for items in tables[:1]:
        main = items[items["dataset"] == "dfar"]
        for name, part in [("all", main), *main.groupby("stratum")]:
            counts = part["gold"].value_counts().to_dict()
            classes[str(name)] = {"n": len(part)} | {str(k): int(v) for k, v in counts.items()}
    strata: dict[str, dict[str, dict[str, str]]] = {"clean": {}, "contaminated": {}}
    told = reference[(reference["dataset"] == "dfar") & reference["stratum"].isin(strata)]
    for row in results.pooled(told).to_dict("records"):
        values = strata[row["stratum"]].setdefault(str(row["variant"]).replace("-", "_"), {})
        if pd.notna(row["value"]):
            values.setdefault(row["metric"], metrics.shown(row["value"], row["unit"]))
    return {"leak": leak, "classes": classes, **strata}
