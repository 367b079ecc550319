"""Tables of the results pages: what was reported, what came out, and what that decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ethalign import metrics, plots, records
from ethalign.config import ROOT

VERDICTS = "claim data stratum difference low high p holm n verdict".split()  # noqa: SIM905
# The data set that a study's prose speaks of.
MAIN = {"ambiguity": "dilemmas", "reasons": "dfar"}
# Enough for p-values that can survive a correction for some forty comparisons.
DRAWS = 5000
# (claim, better, worse): what Beyond Labels says of classification.
CLAIMS = (
    ("L+R beats L", "LR", "L"),
    ("L beats pretrained", "L", "pretrained"),
    ("L+R beats pretrained", "LR", "pretrained"),
    ("label first beats reason first", "LR", "R-then-L"),
    ("L beats shuffled labels", "L", "shuffled"),
)


def leak(reference: pd.DataFrame) -> pd.DataFrame:
    """How many rows of the published test file occur in the training file.

    Args:
        reference: rows of ``records.published("reasons")``.
    """
    rows = reference[(reference["variant"] == "audit") & (reference["dataset"] == "dfar")]
    names = {
        "test_in_train": "test statements that are in the training file",
        "same_label": "… of these with the same label",
        "same_reason": "… with the same reason, encoding repaired",
        "same_reason_as_published": "… with the same reason, byte for byte",
    }
    counts = {
        names[row["metric"]]: [round(row["value"] * row["n"]), row["n"], f"{row['value']:.1%}"]
        for row in rows.to_dict("records")
        if row["metric"] in names
    }
    return pd.DataFrame(counts, index=["rows", "of", "share"]).T


def facts(study: str, scale: str = "small") -> dict[str, Any]:
    """Numbers of the committed results that the book's prose quotes, as text.

    Returns:
        ``leak``: counts of the overlap audit; ``classes``: stratum to counts of both labels;
        ``scores``: variant to metric to value over all items of the study's main data set, with
        ``_`` for ``-`` in names; empty where no reference run is committed.
    """
    reference = records.published(study, scale)
    rows = reference[(reference["variant"] == "audit") & (reference["dataset"] == "dfar")]
    leak = {}
    for row in rows.to_dict("records"):
        leak[row["metric"]] = f"{round(row['value'] * row['n']):,}"
        leak[row["metric"] + "_of"] = f"{row['n']:,}"
        leak[row["metric"] + "_percent"] = f"{100 * row['value']:.1f} %"
    path = ROOT / "results" / study / scale / "pretrained" / "0" / "predictions.jsonl"
    items = pd.DataFrame(records.read_rows(path))
    classes = {}
    if len(items):
        main = items[items["dataset"] == "dfar"]
        parts = {"all": main, **{str(k): part for k, part in main.groupby("stratum")}}
        for name, part in parts.items():
            counts = part["gold"].value_counts()
            classes[name] = {"n": len(part), **{str(k): int(v) for k, v in counts.items()}}
    scores: dict[str, dict[str, str]] = {}
    own = reference[(reference["dataset"] == MAIN[study]) & (reference["stratum"] == "all")]
    for row in own.to_dict("records"):
        value = plots.shown(row["value"], row["unit"])
        scores.setdefault(row["variant"].replace("-", "_"), {})[row["metric"]] = value
    return {"leak": leak, "classes": classes, "scores": scores}


def reported(study: str) -> str:
    """Every printed figure of a study as a Markdown table, a row per model of the paper."""
    table = records.reported(study)
    metric = table["metric"].str.replace("_", " ")
    table["column"] = table["dataset"].str.upper() + " " + metric
    table["shown"] = [
        plots.shown(v, unit) for v, unit in zip(table["value"], table["unit"], strict=True)
    ]
    wide = table.pivot(index="row", columns="column", values="shown")
    wide = wide.reindex(table["row"].unique())[table["column"].unique()]
    lines = ["| model | " + " | ".join(map(str, wide.columns)) + " |"]
    lines.append("|---|" + "--:|" * wide.shape[1])
    for name, values in wide.iterrows():
        cells = ("–" if v != v else str(v) for v in values)  # noqa: RUF001
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def comparison(study: str, reference: pd.DataFrame) -> pd.DataFrame:
    """Reported beside reproduced: a row per printed figure, our value in every stratum."""
    first = (
        reference[reference["seed"] == reference["seed"].min()] if len(reference) else reference
    )
    table = records.compare(study, first)
    page = pd.DataFrame(
        {
            "paper": table["row"],
            "data": table["dataset"],
            "metric": table["metric"],
            "reported": [
                plots.shown(v, unit)
                for v, unit in zip(table["value_reported"], table["unit"], strict=True)
            ],
            "ours": [_cell(row) for row in table.to_dict("records")],
        }
    )
    for stratum in ("clean", "contaminated"):
        part = records.compare(study, first, stratum)
        if part["value"].notna().any():
            page[f"ours, {stratum}"] = [_cell(row) for row in part.to_dict("records")]
    page["verdict"] = table["verdict"]
    return page.set_index("paper").rename_axis(None)


def _cell(row: dict[Any, Any]) -> str:
    value, low, high = (row[key] for key in ("value", "low", "high"))
    if value != value:
        return ""
    value, low, high = (plots.shown(x, row["unit"]) for x in (value, low, high))
    return f"{value} [{low}, {high}]"


def claims(homes: dict[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim of the paper tested item by item, on every data set and stratum.

    Args:
        homes: name to a study's folder of runs (``runs/tiny/reasons``,
            ``results/reasons/small``).
        seed: which seed's predictions.

    Returns:
        Difference of accuracies (first minus second) with its 95 % interval, exact McNemar p and
        the p corrected by Holm over the table; the verdict is ``holds``, ``reversed`` or
        ``not shown`` at a corrected 5 %.
    """
    rows = []
    for name, home in homes.items():
        for claim, better, worse in CLAIMS:
            pair = [_predictions(home / variant / str(seed)) for variant in (better, worse)]
            if not any(table.empty for table in pair):
                rows += [(claim, *row) for row in _paired(name, *pair)]
    return _verdicts(rows)


def _verdicts(rows: list[Any], better: int = 1) -> pd.DataFrame:
    """A verdict per comparison; ``better`` is the sign that a difference has if a claim holds."""
    columns = ["claim", "data", "stratum", "difference", "low", "high", "p", "n"]
    table = pd.DataFrame(rows, columns=columns)
    table["holm"] = metrics.holm(table["p"].to_numpy(dtype=float))
    sure, sign = table["holm"] < 0.05, better * table["difference"]
    table["verdict"] = "not shown"
    table.loc[sure & (sign > 0), "verdict"] = "holds"
    table.loc[sure & (sign < 0), "verdict"] = "reversed"
    return table[VERDICTS]


def vote_claims(homes: dict[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim about votes tested item by item; losses, so a negative difference is better.

    The claim that the Dirichlet score (concentration 1) improves more than the cross-entropy is
    tested three times: in nats, in per cent of the score before, and in per cent with the raw
    answer mass for the concentration, as in the authors' early code. Which encoder stands against
    which language model is chosen by their losses on the held-out rows.

    Args:
        homes: name to a study's folder of runs.
        seed: which seed's predictions.

    Returns:
        As ``claims``; differences in nats, or where the claim says so in shares of the score
        before.
    """
    rows: list[Any] = []
    for name, home in homes.items():
        losses = _vote_losses(home, seed)
        if "zero-shot" in losses:
            rows += [(claim, name, "all", *test) for claim, test in _vote_tests(losses, seed)]
    return _verdicts(rows, better=-1)


def _vote_losses(home: Path, seed: int) -> dict[str, pd.DataFrame]:
    """Variant to its items: index ``id``, columns ``part, ce, scaled, dm``, maybe ``raw``."""
    from ethalign import ambiguity, calibration, votes

    tables = {}
    for path in sorted(home.glob(f"*/{seed}/predictions.jsonl")):
        rows = pd.DataFrame(records.read_rows(path))
        if "logp1" in rows:
            tables[path.parents[1].name] = (rows, ambiguity.probabilities(rows))
        else:
            for key, part in rows.groupby("variant"):
                p = special.softmax(part[["z1", "z2"]].to_numpy(float), axis=1)
                tables[str(key)] = (part, p)
    found = {}
    for key, (rows, p) in tables.items():
        n, p = votes.counts(rows), np.maximum(p, ambiguity.FLOOR)
        places, z = rows["part"].to_numpy(), np.log(p)
        held = places == "held-out"
        scaled = special.softmax(z / calibration.fit_temperature(z[held], n[held]), axis=1)
        scores = {
            "part": places,
            "scaled": calibration.cross_entropy(scaled, n),
            "ce": calibration.cross_entropy(np.minimum(p, 1), n),
            "dm": calibration.dirichlet_multinomial_nll(p, n),
        }
        if "logp1" in rows:
            mass = np.maximum(np.exp(rows[["logp1", "logp2"]].to_numpy(float)), ambiguity.FLOOR)
            scores["raw"] = calibration.dirichlet_multinomial_nll(mass, n)
        found[key] = pd.DataFrame(scores, index=rows["id"])
    return found


def _vote_tests(losses: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, Any]]:
    parts = {
        part: {key: t[t["part"] == part].sort_index() for key, t in losses.items()}
        for part in ("held-out", "test")
    }
    test = parts["test"]
    before = test["zero-shot"]
    tuned = [key for key in ("hard", "sampled", "soft", "verbalised") if key in test]
    for key in tuned:
        after = test[key]
        for score, name in (("ce", "cross-entropy"), ("dm", "the Dirichlet score")):
            found = metrics.paired_bootstrap(after[score], before[score], seed=seed, draws=DRAWS)
            yield f"{key} improves {name}", found
        more = f"{key} improves the Dirichlet score more"
        for ending, score, statistic in (
            ("in nats", "dm", _more_nats),
            ("in per cent", "dm", _more_per_cent),
            ("in per cent, raw mass", "raw", _more_per_cent),
        ):
            columns = [t[c].to_numpy() for t in (before, after) for c in ("ce", score)]
            found = metrics.bootstrap_test(statistic, *columns, seed=seed, draws=DRAWS)
            yield f"{more}, {ending}", found
    encoders = [k for k in test if k.startswith("encoder") and k != "encoder-shuffled"]
    if tuned and encoders:
        for score, ending in (("ce", ""), ("scaled", " after scaling")):
            first, second = (
                min(keys, key=lambda k: float(parts["held-out"][k][score].mean()))
                for keys in (encoders, tuned)
            )
            pair = test[first][score], test[second][score]
            found = metrics.paired_bootstrap(*pair, seed=seed, draws=DRAWS)
            yield f"{first} is ahead of {second} in cross-entropy{ending}", found


def _more_nats(ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """Change of the Dirichlet score minus that of the cross-entropy."""
    return float((dm_1 - dm_0).mean() - (ce_1 - ce_0).mean())


def _more_per_cent(ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """The same with each change as a share of the score before."""
    return float(dm_1.mean() / dm_0.mean() - ce_1.mean() / ce_0.mean())


def _predictions(folder: Path) -> pd.DataFrame:
    rows = records.read_rows(folder / "predictions.jsonl")
    return pd.DataFrame(rows)


def _paired(
    name: str, first: pd.DataFrame, second: pd.DataFrame
) -> list[tuple[str, str, float, float, float, float, int]]:
    both = first.merge(second, on=["dataset", "id", "gold", "stratum"], suffixes=("_1", "_2"))
    found = []
    for dataset, part in both.groupby("dataset", sort=False):
        groups = {"all": part}
        if part["stratum"].nunique() > 1:
            groups |= {str(k): g for k, g in part.groupby("stratum")}
        for stratum, group in groups.items():
            right = [(group[f"verdict_{k}"] == group["gold"]).to_numpy() for k in (1, 2)]
            test = metrics.mcnemar(*right)
            found.append(
                (
                    f"{dataset}, {name}",
                    stratum,
                    test.difference,
                    test.low,
                    test.high,
                    test.p_value,
                    test.n,
                )
            )
    return found


def control(rows: pd.DataFrame) -> pd.DataFrame:
    """The negative control beside the majority rate, for every run and data set.

    Args:
        rows: metrics rows with a further column ``run``.
    """
    part = rows[
        (rows["variant"] == "shuffled")
        & (rows["stratum"] == "all")
        & rows["metric"].isin(["accuracy", "majority"])
    ]
    # Only a language model's rows have a majority rate to stand beside.
    tuned = part.groupby(["run", "dataset"])["metric"].transform("nunique") == 2
    part = part[tuned]
    return plots.show(part, ["run", "dataset"], "metric")
