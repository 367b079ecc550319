"""Tables of the results pages: what was reported, and what came out."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ethalign import plots, records
from ethalign.config import ROOT

# The data set that a study's prose speaks of.
MAIN = {"ambiguity": "dilemmas", "honesty": "triviaqa", "reasons": "dfar"}
# More columns than this do not fit a page.
WIDE = 8


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
        ``_`` for ``-`` in names; ``on``: the same for every data set by name, with
        ``n``, the items behind the variant's last metric. Empty where no reference run is
        committed.
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
    on: dict[str, Any] = {}
    for row in reference[reference["stratum"] == "all"].to_dict("records"):
        dataset, variant = (str(row[key]).replace("-", "_") for key in ("dataset", "variant"))
        values = on.setdefault(dataset, {}).setdefault(variant, {})
        if row["seed"] == reference["seed"].min() and row["value"] == row["value"]:
            values[row["metric"]] = plots.shown(row["value"], row["unit"])
            values["n"] = f"{row['n']:,}"
    return {"leak": leak, "classes": classes, "scores": on.get(MAIN[study], {}), "on": on}


def reported(study: str) -> str:
    """Every printed figure of a study in Markdown, a row per model of the paper.

    One table, or one for each data set where a single one would be too wide for a page.
    """
    table = records.reported(study)
    if len(table.groupby(["dataset", "metric"])) <= WIDE:
        return _reported(table)
    parts = table.groupby("dataset", sort=False)
    return "\n".join(f"**{name}**\n\n{_reported(part.copy())}" for name, part in parts)


def _reported(table: pd.DataFrame) -> str:
    metric = table["metric"].str.replace("_", " ")
    several = table["dataset"].nunique() > 1
    table["column"] = table["dataset"].str.upper() + " " + metric if several else metric
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


def side_by_side(study: str, reference: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Reported and reproduced for one data set: a row per model, a column per metric.

    Args:
        study: names the printed figures.
        reference: metrics rows of the reference runs.
        dataset: which data set; models of the paper that were not run here are left out.
    """
    table = records.compare(study, reference[reference["seed"] == reference["seed"].min()])
    table = table[(table["dataset"] == dataset) & (table["verdict"] != "not run")]
    table["metric"] = table["metric"].str.replace("_", "-")
    told = [plots.shown(v, u) for v, u in zip(table["value_reported"], table["unit"], strict=True)]
    ours = [_cell(row) for row in table.to_dict("records")]
    table["shown"] = [f"{a} · {b}" for a, b in zip(told, ours, strict=True)]
    wide = table.pivot(index="row", columns="metric", values="shown")
    wide = wide.reindex(table["row"].unique())[table["metric"].unique()]
    return wide.rename_axis(None).rename_axis(None, axis=1)


def plane(rows: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Prudence and over-conservativeness of each variant on a data set, as columns."""
    names = ["prudence", "over_conservativeness"]
    part = rows[(rows["dataset"] == dataset) & rows["variant"].isin(plots.ORDER)]
    wide = part.pivot_table(index="variant", columns="metric", values="value", sort=False)
    return wide.reindex(columns=names).dropna().reset_index()


def components(study: str = "honesty") -> pd.DataFrame:
    """Does every printed honesty follow from prudence and over-conservativeness beside it?

    Returns:
        Per printed row the three figures, what the formula gives for the honesty, and
        ``follows``: whether the two agree to the last printed digit (in per cent).
    """
    table = records.reported(study)
    wide = table.pivot(index=["dataset", "row"], columns="metric", values="value")
    names = ["prudence", "over_conservativeness", "honesty"]
    wide = (
        100
        * wide[names].dropna().reindex(table.set_index(["dataset", "row"]).index.unique()).dropna()
    )
    wide["formula"] = (wide["prudence"] + 100 - wide["over_conservativeness"]) / 2
    # Both components were rounded to two digits, and so was their half sum.
    wide["follows"] = (wide["formula"] - wide["honesty"]).abs() < 0.0101
    return wide.rename_axis(None, axis=1).reset_index()


def _cell(row: dict[Any, Any]) -> str:
    value, low, high = (row[key] for key in ("value", "low", "high"))
    if value != value:
        return ""
    value, low, high = (plots.shown(x, row["unit"]) for x in (value, low, high))
    return f"{value} [{low}, {high}]"


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
