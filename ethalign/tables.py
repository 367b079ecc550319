"""Tables of the results pages: what was reported, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from ethalign import claims as tests
from ethalign import metrics, results, study

# More columns than this do not fit a page.
WIDE = 8


def facts(name: str, scale: str = "small") -> dict[str, Any]:
    """Numbers of the committed results that the book's prose quotes, as text.

    Returns:
        ``scores``: variant to metric to value over all items of the study's main data set, with
        ``_`` for ``-`` in names; ``on``: the same for every data set by name, with
        ``n``, the items behind the variant's last metric; and what the study adds. Means over
        seeds, of the first model. Empty where no reference run is committed.
    """
    owner = study.find(name)
    reference = results.published(name, scale)
    on: dict[str, Any] = {}
    means = results.pooled(reference)
    for row in means[means["stratum"] == "all"].to_dict("records"):
        dataset, variant = (str(row[key]).replace("-", "_") for key in ("dataset", "variant"))
        values = on.setdefault(dataset, {}).setdefault(variant, {})
        if row["metric"] not in values and row["value"] == row["value"]:
            values[row["metric"]] = metrics.shown(row["value"], row["unit"])
            values["n"] = f"{row['n']:,}"
    more = owner.facts(reference, results.RESULTS / name / scale)
    return {"scores": on.get(owner.main.replace("-", "_"), {}), "on": on, **more}


def reported(name: str, path: str | None = None) -> str:
    """Every printed figure of a study in Markdown, a row per model of the paper.

    One table, or one for each data set where a single one would be too wide for a page.
    """
    table = results.reported(name, path)
    if len(table.groupby(["dataset", "metric"])) <= WIDE:
        return _reported(table)
    parts = table.groupby("dataset", sort=False)
    return "\n".join(f"**{key}**\n\n{_reported(part.copy())}" for key, part in parts)


def _reported(table: pd.DataFrame) -> str:
    metric = table["metric"].str.replace("_", " ")
    several = table["dataset"].nunique() > 1
    table["column"] = table["dataset"].str.upper() + " " + metric if several else metric
    table["shown"] = [
        metrics.shown(v, unit) for v, unit in zip(table["value"], table["unit"], strict=True)
    ]
    wide = table.pivot(index="row", columns="column", values="shown")
    wide = wide.reindex(table["row"].unique())[table["column"].unique()]
    body = wide.fillna("–").reset_index().to_numpy().tolist()  # noqa: RUF001
    return markdown(["model", *wide.columns], body, "--:")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]], rule: str = "---") -> str:
    """A table in Markdown; ``rule`` stands below every head but the first."""
    lines = [heads, ["---", *[rule] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def comparison(name: str, rows: pd.DataFrame, path: str | None = None) -> pd.DataFrame:
    """Reported beside reproduced: a row per printed figure and run, our value in every stratum.

    ``rows`` are as of ``results.together``; a run without any of the printed figures is left
    out. ``path`` names printed figures of one's own, see ``results.reported``.
    """
    pages = []
    for run, ours in rows.groupby("run", sort=False):
        table = results.compare(name, ours, path=path)
        told = zip(table["value_reported"], table["unit"], strict=True)
        page = table[["row", "dataset", "metric"]].set_axis(["paper", "data", "metric"], axis=1)
        page["reported"] = [metrics.shown(value, unit) for value, unit in told]
        page["run"], page["model"] = run, table["model"]
        page["ours"] = [_cell(row) for row in table.to_dict("records")]
        for stratum in ("clean", "contaminated"):
            part = results.compare(name, ours, stratum, path)
            if part["value"].notna().any():
                page[f"ours, {stratum}"] = [_cell(row) for row in part.to_dict("records")]
        page["verdict"] = table["verdict"]
        if (table["verdict"] != "not run").any() or run == "reference":
            pages.append(page)
    if not pages:
        return pd.DataFrame()
    return pd.concat(pages).fillna("").set_index("paper").rename_axis(None)


def side_by_side(
    name: str, rows: pd.DataFrame, dataset: str, path: str | None = None
) -> pd.DataFrame:
    """Reported and reproduced for one data set: a row per model, a column per metric.

    ``rows`` and ``path`` as for ``comparison``; models of the paper that were not run here are
    left out.
    """
    parts = []
    for run, ours in rows.groupby("run", sort=False):
        table = results.compare(name, ours, path=path)
        table = table[(table["dataset"] == dataset) & (table["verdict"] != "not run")]
        parts.append(table.assign(run=run))
    table = pd.concat(parts) if parts else pd.DataFrame()
    if table.empty:
        return table
    told = zip(table["value_reported"], table["unit"], strict=True)
    cells = [_cell(row) for row in table.to_dict("records")]
    pairs = zip(told, cells, strict=True)
    table["shown"] = [f"{metrics.shown(*figure)} · {mine}" for figure, mine in pairs]
    table["metric"] = table["metric"].str.replace("_", "-")
    wide = table.groupby(["run", "model", "row", "metric"], sort=False)["shown"].first()
    return wide.unstack(sort=False).rename_axis(None, axis=1)


def _cell(row: dict[Any, Any]) -> str:
    return metrics.with_interval(*(row[key] for key in ("value", "low", "high", "unit")))


def claims(table: pd.DataFrame, family: str | None = None) -> pd.DataFrame:
    """Claims of ``claims.assess`` as a page shows them, a row per claim, run and model."""
    rows = table if family is None else table[table["family"] == family]
    cells = ["difference", "low", "high", "unit"]
    plain = {
        "claim": rows["claim"],
        "compared": rows["first"] + " − " + rows["second"],  # noqa: RUF001
        "data": rows["dataset"] + rows["stratum"].map(lambda s: "" if s == "all" else f", {s}"),
        "measure": rows["estimand"].str.replace("_", " "),
        "model": rows["model"],
        "run": rows["run"],
        "difference": [metrics.with_interval(*v) for v in rows[cells].to_numpy().tolist()],
        "p, corrected": rows["holm"].map(lambda p: "" if p != p else f"{p:.3f}"),
        "items": rows["n"].map("{:,}".format).where(rows["n"] > 0, ""),
        "seeds": rows["seeds"].map(str).where(rows["n"] > 0, ""),
        "detectable": [
            "" if d != d else metrics.shown(d, unit)
            for d, unit in zip(rows["detectable"].astype(float), rows["unit"], strict=True)
        ],
        "verdict": rows["verdict"],
    }
    shown = pd.DataFrame(plain)
    # A column that says the same in every row says nothing.
    same = [key for key in ("model", "run") if shown[key].nunique() < 2]
    return shown.drop(columns=same).reset_index(drop=True)


def verdicts(name: str, scale: str = "small") -> str:
    """The verdicts on the committed reference runs in Markdown, a table for each family."""
    table = tests.assess(name, {"reference": results.RESULTS / name / scale})
    parts = []
    for family in table["family"].unique():
        told, ids = claims(table, family), table.loc[table["family"] == family, "id"]
        # Each claim has an address that lasts; of several models the first row has it.
        links = ids.map('<a id="claim-{0}" href="#claim-{0}" title="Link to {0}">#</a> '.format)
        told["claim"] = links.where(~ids.duplicated(), "").to_numpy() + told["claim"]
        parts.append(f"**{family}**\n\n{markdown([*told], told.to_numpy().tolist())}")
    return "\n".join(parts)
