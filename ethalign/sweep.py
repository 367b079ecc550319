"""Settings tried side by side: a grid in a YAML file, run by the same pipeline, one chosen.

Each point of the grid is a folder of runs of its own below ``runs/sweeps/<name>/``, so that what
has run is kept and an interrupted sweep goes on. The best point is chosen on rows that were held
out of training, never on test rows. An ablation chooses nothing: it says what each choice is worth
beside the first one, item by item on the same test rows. Its records can be committed, in
``results/sweeps/<name>/`` with the same folders below.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pydantic

from ethalign import claims, config, metrics, pipeline, records, results, study, tables
from ethalign.config import ROOT, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: What a committed sweep came to, beside its points.
RECORD = "table.json"


class Row(pydantic.BaseModel, extra="forbid"):
    """Which row of metrics.json is looked at."""

    dataset: str
    stratum: str = "all"
    metric: str

    @property
    def column(self) -> str:
        """Its name in the table of a sweep."""
        return f"{self.dataset} {self.stratum} {self.metric}"


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


def jobs(path: Path) -> dict[str, list[study.Job]]:
    """What every point would run, by its name."""
    sweep, runs = read(path), Path("runs", "sweeps", path.stem)
    what = sweep.study, sweep.variants, sweep.scale, sweep.seeds
    return {
        name: study.plan(*what, {**sweep.fixed, **point}, runs / name, sweep.stage)
        for name, point in points(sweep).items()
    }


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
    of ``show``. Of a grid ``low`` and ``high``, the interval of the value over items (null of
    several seeds), and ``chosen``, true for the best mean of each variant (and of each value of
    ``per``), of equals for the first. Of an ablation ``worth`` and what goes with it, see
    ``worth``; without the points that do the same work as the first one, which say nothing.
    """
    rows: list[dict[str, Any]] = []
    first, same = next(iter(points(sweep))), False
    for name, point in points(sweep).items():
        found = results.rows(home / name / sweep.study / sweep.scale)
        for variant in sweep.variants:
            if sweep.ablate and name != first:
                here, there = (_work(sweep, home / p, variant) for p in (name, first))
                same = bool(here) and here == there
            if same:
                continue
            mine = found[(found["variant"] == variant) & found["seed"].isin(sweep.seeds)]
            held = _values(mine, sweep.choose)
            means = {row.column: _values(mine, row).mean() for row in sweep.show}
            told = {"seeds": len(held), "value": held.mean(), "±": held.std()}
            for end in ("low", "high") if sweep.grid else ():
                ends = _values(mine, sweep.choose, end)
                told[end] = ends.iloc[0] if len(ends) == 1 else np.nan
            where = {"point": name} if sweep.ablate else point
            rows.append({"variant": variant, **where, **told, **means})
    table = pd.DataFrame(rows)
    if sweep.ablate:
        return worth(sweep, home, table)
    sign = 1 if sweep.choose.best == "highest" else -1
    ranked = (sign * table["value"]).sort_values(ascending=False, kind="stable").dropna()
    keys = table.loc[ranked.index, ["variant", *sweep.choose.per]]
    return table.assign(chosen=table.index.isin(keys.drop_duplicates().index))


def _work(sweep: Sweep, point: Path, variant: str) -> list[str]:
    """By which fingerprints the runs of a variant at a point are known."""
    paths = sorted((point / sweep.study / sweep.scale).glob(f"*/{variant}/*/run.json"))
    stages = [records.stages(path.parent) for path in paths]
    return [stage[sweep.stage]["fingerprint"] for stage in stages if sweep.stage in stage]


def worth(sweep: Sweep, home: Path, table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with how much better each point of an ablation is than the first one.

    Added are ``worth`` (plus is better), its 95 % interval ``low`` and ``high`` over the items
    that both answered (``metrics.crossed``), ``items``, ``holm`` (p corrected over the points of
    a variant) and ``verdict``: ``better`` or ``worse`` at a corrected 5 %, else ``inconclusive``;
    ``the same`` where the choice does not touch the measure, as a temperature of texts does not
    touch probabilities, so that there is no interval.
    Where the study tests no claim by that measure there is the difference of the values alone.
    """
    owner, choice = study.find(sweep.study), sweep.choose
    sign, direction = (1, "greater") if choice.best == "highest" else (-1, "less")
    tested = {claim.estimand for claim in claims.declared(sweep.study)}
    start, parts = next(iter(points(sweep))), _parts(sweep, home)
    rows = []
    for one in table.to_dict("records"):
        value, name = float(one["value"]), str(one["point"])
        base = table[(table["variant"] == one["variant"]) & (table["point"] == start)]["value"]
        told = {"worth": sign * (value - float(base.iloc[0])) + 0.0, "low": np.nan, "high": np.nan}
        told |= {"p": np.nan, "items": 0, "side": 0}
        if name != start and choice.metric in tested:
            compared = claims.Claim.model_validate(
                {
                    **{"id": "worth", "claim": name, "source": "companion"},
                    **{"family": "ablations", "estimand": choice.metric, "direction": direction},
                    **{"dataset": choice.dataset, "stratum": choice.stratum},
                    **{"first": f"{name}/{one['variant']}", "second": f"{start}/{one['variant']}"},
                }
            )
            got = claims.tested(owner, compared, parts)
            if got["n"]:
                ends = sorted(sign * got[key] for key in ("low", "high"))
                told |= {"worth": sign * got["difference"], "low": ends[0], "high": ends[1]}
                told |= {"p": got["p"], "items": got["n"], "side": got["side"]}
        rows.append(told)
    found = table.reset_index(drop=True).join(pd.DataFrame(rows))
    found["holm"] = (
        found["p"].groupby(found["variant"]).transform(lambda p: metrics.holm(p.to_numpy()))
    )
    sure = (found["holm"] < 0.05) * found["side"]
    words = sure.map({1: "better", -1: "worse", 0: "inconclusive"})
    words = words.mask(found["low"].isna() & (found["worth"] == 0), "the same")
    found["verdict"] = words.where(found["items"] > 0, "")
    return found.drop(columns=["p", "side"])


def _parts(sweep: Sweep, home: Path) -> dict[int, dict[str, pd.DataFrame]]:
    """Predictions by seed, then by ``<point>/<variant>``."""
    return {
        seed: {
            f"{name}/{variant}": rows
            for name in points(sweep)
            for variants in results.predictions(
                home / name / sweep.study / sweep.scale, seed
            ).values()
            for variant, rows in variants.items()
        }
        for seed in sweep.seeds
    }


def publish(path: Path) -> Path:
    """Copy the records of a sweep's points to ``results/sweeps/<name>/``, and what they give.

    Raises:
        UserError: a point is not there, not complete or not up to date.
    """
    sweep, home = read(path), results.RESULTS / "sweeps" / path.stem
    for name, planned in jobs(path).items():
        for job in {job.where: job for job in planned if job.stage.compute}.values():
            results.publish(job, home / name)
    for old in home.iterdir():
        if old.is_dir() and old.name not in points(sweep):
            shutil.rmtree(old)
    return record(sweep, home)


def record(sweep: Sweep, home: Path) -> Path:
    """Write the ``table`` of committed points beside them; the file."""
    rows = table(sweep, home)
    kept = rows.astype(object).where(rows.notna(), None).to_dict("records")
    records.write(home / RECORD, {"of": sweep.model_dump(mode="json"), "rows": kept})
    return home / RECORD


def published(kind: Literal["grid", "ablate"] | None = None) -> list[Path]:
    """The folders of committed sweeps, of one kind or of both."""
    found = sorted(path.parent for path in results.RESULTS.glob(f"sweeps/*/{RECORD}"))
    return [home for home in found if kind is None or getattr(recorded(home)[0], kind)]


def recorded(home: Path) -> tuple[Sweep, pd.DataFrame]:
    """A committed sweep and its ``table``, as they were recorded beside its points."""
    kept = json.loads((home / RECORD).read_text(encoding="utf-8"))
    rows = pd.DataFrame(kept["rows"])
    sweep = Sweep.model_validate(kept["of"])
    shown = [row.column for row in sweep.show]
    numbers = [*("value", "±", "worth", "low", "high", "holm"), *shown]
    return sweep, rows.astype({key: float for key in numbers if key in rows})


def fault(home: Path) -> str:
    """What is wrong with the record of a committed sweep; nothing if its points give it."""
    (sweep, was), path = recorded(home), ROOT / "configs" / "sweeps" / f"{home.name}.yaml"
    if path.is_file() and read(path) != sweep:
        return f"is not of {path.relative_to(ROOT)} as it is"
    same = claims.same(was, table(sweep, home))
    return "" if same else "is not what the records of its points give"


def _values(rows: pd.DataFrame, row: Row, number: str = "value") -> pd.Series[float]:
    for key, value in row.model_dump(include={"dataset", "stratum", "metric"}).items():
        rows = rows[rows[key] == value]
    return rows[number].astype(float)


def figure(sweep: Sweep, found: pd.DataFrame) -> Figure:
    """The value against the first setting; a line per variant and other setting.

    Of an ablation what each point is worth, with its interval.
    """
    import matplotlib.pyplot as plt

    if sweep.ablate:
        return _worths(sweep, found)
    first, *others = sweep.grid
    whole, axes = plt.subplots(figsize=(7, 4))
    for key, part in found.groupby(["variant", *others]):
        label = ", ".join(map(str, key))
        axes.errorbar(
            part[first].map(str), part["value"], part["±"].fillna(0), marker="o", label=label
        )
        best = part[part["chosen"]]
        axes.plot(best[first].map(str), best["value"], "*", color="black", markersize=14)
    choice = sweep.choose
    axes.set(xlabel=first, ylabel=f"{choice.dataset}: {choice.metric.replace('_', ' ')}")
    axes.legend()
    return whole


def told(home: Path) -> str:
    """What a committed sweep came to, in Markdown: a row per point and variant.

    Of an ablation what each choice is worth, and in a second table the further rows of metrics
    that the sweep shows; of a grid which point was chosen, whether it lies at an end of what was
    tried, and the same further rows.
    """
    sweep, rows = recorded(home)
    name, choice = sweep.study, sweep.choose
    rows = rows[rows["seeds"] > 0].sort_values(
        "variant", key=lambda names: names.map(sweep.variants.index), kind="stable"
    )
    rows["variant"] = [tables.word(name, key) for key in rows["variant"]]
    made = pd.concat([results.rows(home / key / name / sweep.scale) for key in points(sweep)])
    units = dict(zip(made["metric"], made["unit"], strict=True))
    where = ", ".join(tables.word(name, k) for k in (choice.dataset, choice.stratum) if k != "all")
    run = config.resolve(name, sweep.variants[0], sweep.scale, 0, sweep.fixed)
    fixed = _settings(sweep.fixed)
    model = "" if "model.id" in sweep.grid else f"{tables.word(name, run.model.id)}, "
    above = (
        f"**{study.find(name).title}**: {model}by {tables.word(name, choice.metric)}; {where},"
        f" {tables.trained(int(rows['seeds'].max()))}. Shares are in per cent."
        f"{fixed and f' At every point {fixed}.'}\n\n"
    )
    return above + (_choices if sweep.ablate else _chosen)(sweep, rows, units)


def _chosen(sweep: Sweep, rows: pd.DataFrame, units: Mapping[str, str]) -> str:
    name, unit, body = sweep.study, units[sweep.choose.metric], []
    for row in rows.to_dict("records"):
        point = [tables.word(name, str(row[key])) for key in sweep.grid]
        value = metrics.with_interval(row["value"], row["low"], row["high"], unit)
        spread = "" if row["±"] != row["±"] else f" ± {metrics.shown(row['±'], unit)}"
        more = _further(sweep, row, units)
        body.append((row["variant"], *point, value + spread, _mark(sweep, row), *more))
    others = [_head(name, row) for row in sweep.show]
    heads = ["variant", *(f"`{key}`" for key in sweep.grid), "value", "", *others]
    return tables.markdown(heads, body)


def _further(sweep: Sweep, row: Mapping[Any, Any], units: Mapping[str, str]) -> list[str]:
    """The further measures of a point as a page shows them."""
    found = [(row[one.column], units.get(one.metric, "score")) for one in sweep.show]
    return ["" if value != value else metrics.shown(value, unit) for value, unit in found]


def _mark(sweep: Sweep, row: Mapping[Any, Any]) -> str:
    """Is a point chosen, and does it lie at an end of what was tried? Better may lie beyond."""
    ends = [
        f"the {end} `{key.rpartition('.')[2]}` tried"
        for key, tried in sweep.grid.items()
        if len(tried) > 1 and all(isinstance(x, int | float) for x in tried)
        for end, most in (("lowest", min(tried)), ("highest", max(tried)))
        if row[key] == most
    ]
    return ", ".join(["chosen", *ends]) if row["chosen"] else ""


def _head(name: str, row: Row) -> str:
    """The head of a column for a further row of metrics: what is measured, and on what."""
    where = [tables.word(name, key) for key in (row.dataset, row.stratum) if key != "all"]
    return f'{tables.word(name, row.metric)} <span class="beneath">{", ".join(where)}</span>'


def _choices(sweep: Sweep, rows: pd.DataFrame, units: Mapping[str, str]) -> str:
    name, start, unit = sweep.study, next(iter(points(sweep))), units[sweep.choose.metric]
    run = config.resolve(name, sweep.variants[0], sweep.scale, 0, sweep.fixed)
    first = run.values(dict.fromkeys(key for point in sweep.ablate.values() for key in point))
    body, besides = [], []
    for row in rows.to_dict("records"):
        point, who = str(row["point"]), row["variant"]
        plain = point.replace("-", " ")
        departs = _settings(first if point == start else sweep.ablate[point])
        worth = tables.span(row["worth"], row["low"], row["high"], unit) if point != start else ""
        told = metrics.shown(row["value"], unit), worth, row["verdict"], row["items"] or ""
        body.append((f'{plain} <span class="beneath">{departs}</span>', who, *told))
        besides.append((plain, who, *_further(sweep, row, units)))
    heads = ["choice", "variant", "value", "worth", "verdict", "items"]
    shown = [tables.word(name, row.metric) for row in sweep.show]
    second = f"\n{tables.markdown(['choice', 'variant', *shown], besides)}" if shown else ""
    return tables.markdown(heads, body) + second


def _settings(some: Mapping[str, Any]) -> str:
    """Settings as one would write them behind ``--set``, as code."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in some.items()}
    return ", ".join(f"`{key}={text}`" for key, text in texts.items())


def _worths(sweep: Sweep, found: pd.DataFrame) -> Figure:
    import matplotlib.pyplot as plt

    names = [name for name in points(sweep) if name in {*found["point"]}]
    whole, axes = plt.subplots(figsize=(7, 1 + 0.4 * len(names)))
    for k, (variant, part) in enumerate(found.groupby("variant", sort=False)):
        places = np.array([names.index(name) for name in part["point"]]) + 0.15 * k
        ends = np.abs(part[["low", "high"]].to_numpy(float).T - part["worth"].to_numpy(float))
        axes.errorbar(
            part["worth"], places, xerr=np.nan_to_num(ends), fmt="os^vD"[k % 5], label=variant
        )
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_yticks(range(len(names)), [name.replace("-", " ") for name in names])
    axes.invert_yaxis()
    choice = sweep.choose
    axes.set_xlabel(f"worth, {choice.dataset}: {choice.metric.replace('_', ' ')} (plus is better)")
    axes.legend()
    return whole
