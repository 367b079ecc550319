"""Settings tried side by side: a grid in a YAML file, run by the same pipeline, one chosen.

Each point of the grid is a folder of runs of its own below ``runs/sweeps/<name>/``, so that what
has run is kept and an interrupted sweep goes on. The best point is chosen on rows that were held
out of training, never on test rows.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import pydantic

from ethalign import config, pipeline, records, results
from ethalign.config import ROOT, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Row(pydantic.BaseModel, extra="forbid"):
    """Which row of metrics.json is looked at."""

    dataset: str
    stratum: str = "all"
    metric: str


class Choice(Row):
    """By which row a setting is chosen; for each value of the settings ``per`` apart."""

    best: Literal["highest", "lowest"]
    per: tuple[str, ...] = ()


class Sweep(pydantic.BaseModel, extra="forbid"):
    """A sweep; ``fixed`` are dotted settings that hold at every point.

    Either ``grid``, dotted keys to the values to try in every combination, or ``ablate``, names
    to the settings in which a point departs from the first one.
    """

    study: str
    scale: str = "tiny"
    variants: list[str] = pydantic.Field(min_length=1)
    seeds: list[int] = [0]
    stage: str = "evaluate"
    grid: dict[str, list[Any]] = {}
    ablate: dict[str, dict[str, Any]] = {}
    fixed: dict[str, Any] = {}
    choose: Choice
    show: list[Row] = []

    @pydantic.model_validator(mode="after")
    def _either(self) -> Sweep:
        if bool(self.grid) == bool(self.ablate):
            raise ValueError("a sweep has either a grid or points to ablate")
        return self


def read(path: Path) -> Sweep:
    """A sweep from its file.

    Raises:
        UserError: an entry that is missing, unknown or of the wrong type.
    """
    return config.checked(Sweep, config.read_yaml(path), str(path))


def points(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Every point: the name of its folder to its settings.

    Raises:
        UserError: two points whose values read the same as the name of a folder.
    """
    found: dict[str, dict[str, Any]] = {}
    grid = (dict(zip(sweep.grid, v, strict=True)) for v in itertools.product(*sweep.grid.values()))
    named = [("_".join(f"{k.rpartition('.')[2]}-{v}" for k, v in p.items()), p) for p in grid]
    for name, point in sweep.ablate.items() or named:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        if name in found:
            raise UserError(f"two points of the sweep would share the folder {name}.")
        found[name] = point
    return found


def run(path: Path, cores: int | None = None, profile: str | None = None) -> pd.DataFrame:
    """Run every point that has not run yet; the ``table`` of all, also written beside them.

    All points are one graph of jobs: they share processors or cluster, and what does not depend
    on the grid, such as a model as it is, is worked out once.

    Raises:
        UserError: no run has the row by which to choose; the table is there all the same.
    """
    sweep, home = read(path), ROOT / "runs" / "sweeps" / path.stem
    pipeline.run(
        [sweep.study],
        variants=sweep.variants,
        scale=sweep.scale,
        seeds=sweep.seeds,
        overrides=sweep.fixed,
        points=points(sweep),
        runs=str(home),
        stage=sweep.stage,
        cores=cores,
        profile=profile,
    )
    found = table(sweep, home)
    records.write(home / "table.csv", found)
    figure(sweep, found).savefig(home / "figure.svg")
    if found["value"].isna().all():
        row = sweep.choose
        raise UserError(
            f"no run left the row {row.dataset}, {row.stratum}, {row.metric} of metrics.json to"
            f" choose by; what there is stands in {home / 'table.csv'}."
        )
    return found


def table(sweep: Sweep, home: Path) -> pd.DataFrame:
    """A row per variant and point: its settings, mean and spread over seeds, and what is chosen.

    Columns: ``variant``, the keys of the grid or ``point``, ``seeds``; ``value`` of the row that
    ``choose`` names and ``±`` (standard deviation over seeds, null of one); a mean for each row
    of ``show``. Of a grid ``chosen``, true for the best mean of each variant (and of each value
    of ``per``), of equals for the first; of an ablation, which chooses nothing, ``worth``: how
    much better a point is than the first one of the same variant.
    """
    rows: list[dict[str, Any]] = []
    for name, point in points(sweep).items():
        metrics = results.rows(home / name / sweep.study / sweep.scale)
        for variant in sweep.variants:
            mine = metrics[(metrics["variant"] == variant) & metrics["seed"].isin(sweep.seeds)]
            held = _values(mine, sweep.choose)
            shown = {f"{r.dataset} {r.stratum} {r.metric}": _values(mine, r) for r in sweep.show}
            means = {key: values.mean() for key, values in shown.items()}
            told = {"seeds": len(held), "value": held.mean(), "±": held.std()}
            where = {"point": name} if sweep.ablate else point
            rows.append({"variant": variant, **where, **told, **means})
    found = pd.DataFrame(rows)
    sign = 1 if sweep.choose.best == "highest" else -1
    if sweep.ablate:
        first = found.groupby("variant")["value"].transform(lambda value: value.iloc[0])
        return found.assign(worth=sign * (found["value"] - first))
    ranked = (sign * found["value"]).sort_values(ascending=False, kind="stable").dropna()
    keys = found.loc[ranked.index, ["variant", *sweep.choose.per]]
    return found.assign(chosen=found.index.isin(keys.drop_duplicates().index))


def _values(rows: pd.DataFrame, row: Row) -> pd.Series[float]:
    for key, value in row.model_dump(include={"dataset", "stratum", "metric"}).items():
        rows = rows[rows[key] == value]
    return rows["value"].astype(float)


def figure(sweep: Sweep, found: pd.DataFrame) -> Figure:
    """The value against the first setting; a line per variant and other setting."""
    import matplotlib.pyplot as plt

    first, *others = sweep.grid or ["point"]
    whole, axes = plt.subplots(figsize=(7, 4))
    for key, part in found.groupby(["variant", *others]):
        label = ", ".join(map(str, key))
        axes.errorbar(
            part[first].map(str), part["value"], part["±"].fillna(0), marker="o", label=label
        )
        best = part[part["chosen"]] if sweep.grid else part.iloc[:0]
        axes.plot(best[first].map(str), best["value"], "*", color="black", markersize=14)
    choice = sweep.choose
    axes.set(xlabel=first, ylabel=f"{choice.dataset}: {choice.metric.replace('_', ' ')}")
    axes.legend()
    return whole
