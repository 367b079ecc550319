"""Tables of the results pages: what was reported, what came out, and what that decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import metrics, plots, records
from ethalign.config import ROOT

VERDICTS = "claim data stratum difference low high p holm n verdict".split()  # noqa: SIM905
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
        empty where no reference run is committed.
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
    return {"leak": leak, "classes": classes}


def reported(study: str) -> str:
    """Every printed figure of a study as a Markdown table, a row per model of the paper."""
    table = records.reported(study)
    table["column"] = table["dataset"].str.upper() + " " + table["metric"]
    wide = (100 * table.pivot(index="row", columns="column", values="value")).round(1)
    wide = wide.reindex(table["row"].unique())[table["column"].unique()]
    lines = ["| model | " + " | ".join(map(str, wide.columns)) + " |"]
    lines.append("|---|" + "--:|" * wide.shape[1])
    for name, values in wide.iterrows():
        cells = ("–" if v != v else f"{v:.1f}" for v in values)  # noqa: RUF001
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def comparison(study: str, reference: pd.DataFrame) -> pd.DataFrame:
    """Reported beside reproduced: a row per printed figure, our value in every stratum."""
    first = (
        reference[reference["seed"] == reference["seed"].min()] if len(reference) else reference
    )
    table = records.compare(study, first)
    shown = pd.DataFrame(
        {
            "paper": table["row"],
            "data": table["dataset"],
            "metric": table["metric"],
            "reported": (100 * table["value_reported"]).map("{:.1f}".format),
            "ours": [_cell(row) for row in table.to_dict("records")],
        }
    )
    for stratum in ("clean", "contaminated"):
        part = records.compare(study, first, stratum)
        if part["value"].notna().any():
            shown[f"ours, {stratum}"] = [_cell(row) for row in part.to_dict("records")]
    shown["verdict"] = table["verdict"]
    return shown.set_index("paper").rename_axis(None)


def _cell(row: dict[Any, Any]) -> str:
    value, low, high = (row[key] for key in ("value", "low", "high"))
    if value != value:
        return ""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


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
    if not rows:
        return pd.DataFrame(columns=VERDICTS)
    table = pd.DataFrame(
        rows, columns=["claim", "data", "stratum", "difference", "low", "high", "p", "n"]
    )
    table["holm"] = metrics.holm(table["p"].to_numpy())
    sure = table["holm"] < 0.05
    table["verdict"] = "not shown"
    table.loc[sure & (table["difference"] > 0), "verdict"] = "holds"
    table.loc[sure & (table["difference"] < 0), "verdict"] = "reversed"
    return table[VERDICTS]


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
