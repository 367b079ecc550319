"""The committed reference results: published, read, compared with the papers, verified."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ethalign import code, config, metrics, records, sources, study
from ethalign.config import ROOT, UserError
from ethalign.study import Job

RESULTS = ROOT / "results"
COLUMNS = [*records.COLUMNS, "model", "seed"]
# Records are compared with what is computed anew to the last digit that is written.
TOLERANCE = 1.01e-6
# Of a run folder only these are published, without the study's fields of text.
FILES = ("config.yaml", "run.json", "train_log.jsonl")
# What a printed figure need not say.
OPTIONAL = {"unit": "share", "n": None, "source": "", "model": "", "protocol": ""}


def publish(job: Job, home: Path | None = None) -> Path:
    """Copy a finished run's small records to ``results/``, or a folder there, without any text.

    Raises:
        UserError: the run is not there, not complete or not up to date.
    """
    if job.state() != "keep":
        raise UserError(f"{job.where} holds no complete run; finish it with `{job.command}`.")
    target = job._replace(runs=home or RESULTS).where
    names = {*FILES, *(n for s in job.study.stages for n in s.outputs)} - {"run.json"}
    for path in sorted(job.where / name for name in names):
        if path.suffix == ".jsonl":
            lines = [
                json.dumps({k: v for k, v in row.items() if k not in job.study.texts}) + "\n"
                for row in records.read_rows(path)
            ]
            if lines:
                records.write(target / path.name, "".join(lines))
        elif path.suffix in (".json", ".yaml") and path.is_file():
            # YAML's reader would take a JSON number such as 1e-06 for a text.
            read = json.loads if path.suffix == ".json" else yaml.safe_load
            records.write(target / path.name, read(path.read_text(encoding="utf-8")))
    record = json.loads((job.where / "run.json").read_text())
    found = {p.name: sources.sha256(p) for p in sorted(target.iterdir()) if p.name != "run.json"}
    records.write(target / "run.json", {**record, "published": found})
    return target


def rows(home: Path) -> pd.DataFrame:
    """Metrics of every run below ``<study>/<scale>``, with ``model`` and ``seed`` added."""
    paths = records.of_runs(home, "*/*/*/metrics.json")
    tables = [
        records.metrics([p]).assign(model=p.parents[2].name, seed=int(p.parent.name))
        for p in paths
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def seeds(home: Path) -> list[int]:
    """The training seeds below ``<study>/<scale>`` of which there are predictions."""
    return sorted({int(path.parent.name) for path in home.glob("*/*/*/predictions.jsonl")})


def published(name: str, scale: str = "small") -> pd.DataFrame:
    """``rows`` of a study's committed reference runs."""
    return rows(RESULTS / name / scale)


def pooled(table: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with one for all training seeds, in place of one for each.

    The value is the mean of the seeds that have one, and its interval holds items and seeds
    (``metrics.over_seeds``); a column ``seeds`` says how many there are. What is pooled stays.
    """
    numbers = ["value", "low", "high"]
    keys = [key for key in table.columns if key not in (*numbers, "n", "seed", "seeds")]
    if "seed" not in table:
        return table
    if table.empty or not table.duplicated(keys).any():
        return table.drop(columns="seed").assign(seeds=1)
    found = []
    for _, part in table.groupby(keys, sort=False, dropna=False):
        some = part.dropna(subset="value")
        # Without a value in any seed there is nothing to take a mean of.
        part = some if len(some) else part.iloc[:1]
        known = part[numbers].to_numpy(dtype=float)
        means = np.array(metrics.over_seeds(*known.T))
        one = {str(key): value for key, value in part.iloc[0].items()}
        if one["unit"] == "share" or re.search("^brier|auroc$|^auc$|^augrc$", one["metric"]):
            means = means.clip(0, 1)  # what a share, or an area, cannot pass
        more = dict(zip(numbers, means.tolist(), strict=True))
        found.append({**one, **more, "seeds": len(part)})
    return pd.DataFrame(found).drop(columns="seed")


def together(job: Job) -> pd.DataFrame:
    """The rows of a user's runs beside the reference, told apart by a column ``run``.

    Seeds are ``pooled``: of the reference all, of the user's runs those that the page is about.
    """
    tables = {name: rows(home) for name, home in homes(job).items()}
    tables["this run"] = tables["this run"][tables["this run"]["seed"].isin(job.seeds)]
    return pooled(pd.concat([t.assign(run=n) for n, t in tables.items()], ignore_index=True))


def homes(job: Job) -> dict[str, Path]:
    """The folders ``<study>/<scale>`` of the reference and of this run, by name."""
    return {"reference": RESULTS / job.study.name / "small", "this run": job.home}


def predictions(home: Path, seed: int) -> dict[str, dict[str, pd.DataFrame]]:
    """Rows of ``predictions.jsonl`` by model and variant, of all runs with a seed.

    Where ``judgements.jsonl`` stands beside it, its columns are those of the same items.
    """
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for path in records.of_runs(home, f"*/*/{seed}/predictions.jsonl"):
        model, variant = path.parts[-4:-2]
        table = pd.DataFrame(records.read_rows(path))
        if judged := records.read_rows(path.with_name("judgements.jsonl")):
            table = table.merge(pd.DataFrame(judged), how="left", on=["dataset", "id"])
        found.setdefault(model, {})[variant] = table
    return found


def reported(name: str, path: str | None = None) -> pd.DataFrame:
    """The papers' printed figures of a study, or a user's own in the same form.

    ``path``: YAML file of one's own in place of ``configs/<study>/reported.yaml``.

    Returns:
        Columns ``row, variant, dataset, metric, value, n, source, unit``; shares in [0, 1]. And
        ``ours``, the metric of ours to set against it if that has another name, ``model``, the
        folder of the one model it is of, and ``protocol`` where that is not ours; else empty.

    Raises:
        UserError: a row without one of the first five.
    """
    wanted = ["row", "variant", "dataset", "metric", "value"]
    own = ROOT / path if path else ROOT / "configs" / name / "reported.yaml"
    if not path and not own.is_file():
        return pd.DataFrame(columns=[*wanted, *OPTIONAL, "ours"])
    figures = config.read_yaml(own)["figures"]
    table = pd.DataFrame([{**OPTIONAL, "ours": r.get("metric"), **r} for r in figures])
    if missing := [key for key in wanted if key not in table or table[key].isna().any()]:
        raise UserError(f"{own}: every figure needs {', '.join(wanted)}; {missing[0]} is missing.")
    return table


def compare(
    name: str, ours: pd.DataFrame, stratum: str = "all", path: str | None = None
) -> pd.DataFrame:
    """Reported and reproduced, a row per printed figure and model of ours.

    Verdicts: ``agrees`` (the printed value lies in our interval), ``direction holds`` (it does
    not, but the step from the variant before it goes the same way as in the paper; whether it
    is more than chance is tested apart), ``differs``, ``not run``. Where the printed figure says
    that it is of another model or protocol than ours, only that: ``other model``, ``other
    protocol``. The interval covers sampling of test items only.

    Args:
        name: of the study.
        ours: as of ``rows``, or ``pooled`` already.
        stratum: which of our strata to set against the printed figure.
        path: printed figures of one's own, see ``reported``.
    """
    keys = ["variant", "dataset", "metric"]
    mine = pooled(ours)
    mine = mine[mine["stratum"] == stratum]
    mine = mine[[*keys, "model", "value", "low", "high", "n", "seeds"]]
    mine, keys[-1] = mine.rename(columns={"metric": "ours"}), "ours"
    both = reported(name, path).merge(mine, on=keys, how="left", suffixes=("_reported", ""))
    numbers = both[["value", "low", "high"]].astype(float)
    inside = both["value_reported"].between(numbers["low"] - 0.0005, numbers["high"] + 0.0005)
    both["verdict"] = inside.map({True: "agrees", False: "differs"})
    both.loc[~inside & _same_step(both, name), "verdict"] = "direction holds"
    named = both["model_reported"] != ""
    both.loc[named & (both["model_reported"] != both["model"]), "verdict"] = "other model"
    both.loc[both["protocol"] != "", "verdict"] = "other protocol"
    both.loc[numbers["value"].isna(), "verdict"] = "not run"
    both["model"] = both["model"].fillna("")
    return both


def _same_step(both: pd.DataFrame, name: str) -> pd.Series[bool]:
    """Do the printed and our value differ from those of the variant before in the same sense?"""
    before = both["variant"].map(dict(study.find(name).before))
    paper_model = both["row"].str.split(",").str[0]
    keys = [paper_model, both["dataset"], both["metric"], both["model"].fillna("")]
    steps = {}
    for column in ("value_reported", "value"):
        known = both[column].astype(float).groupby([*keys, both["variant"]]).first()
        wanted = pd.MultiIndex.from_arrays([*keys, before])
        steps[column] = both[column].astype(float) - known.reindex(wanted).to_numpy()
    return steps["value_reported"] * steps["value"] > 0


def folders() -> list[Path]:
    """Every committed result, and those of the points of sweeps."""
    places = ("*/*/*/*/*/run.json", "sweeps/*/*/*/*/*/*/*/run.json")
    return [path.parent for place in places for path in sorted(RESULTS.glob(place))]


def twins(folders: Sequence[Path]) -> set[Path]:
    """Folders that hold the same work with the same records and metrics as one before them.

    Points of a sweep share what does not depend on them, and each keeps a copy.
    """
    seen, found = set[str](), set[Path]()
    for folder in folders:
        # What cannot be read is told by ``verify``.
        with contextlib.suppress(UserError, LookupError, AttributeError, TypeError, OSError):
            made = {name: facts["fingerprint"] for name, facts in records.stages(folder).items()}
            kept = {*folder.iterdir()} - {folder / "run.json", folder / "config.yaml"}
            files = {path.name: sources.sha256(path) for path in kept}
            work = config.digest({"files": files, "made": made})
            found |= {folder} if work in seen else set()
            seen.add(work)
    return found


def verify(folder: Path, follow: bool = True) -> tuple[list[str], list[str]]:
    """Problems of a committed result, and remarks on it.

    A result matches when its files are those that were published, its settings are what
    ``configs/`` resolves to today, its data files have the checksums of today's sources, and
    every row of its metrics follows from its records by today's code. That code has changed since
    a stage was made is a remark.

    Args:
        folder: that was published.
        follow: whether to work out the metrics again; false for ``twins``.
    """
    try:
        job, record = _resolved(folder), json.loads((folder / "run.json").read_text())
        problems = [*_file_problems(folder, record), *_setting_problems(folder, job, record)]
        problems += _data_problems(job, record)
        wrong, remarks = _metric_problems(folder, job) if follow else ([], [])
        return [*problems, *wrong], [*remarks, *_code_remarks(job, record)]
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        return [f"it cannot be read ({error})"], []


def _resolved(folder: Path) -> Job:
    """The evaluating job of a published folder, from what its record says was set."""
    record = json.loads((folder / "run.json").read_text())
    name, variant, scale, seed = (record[key] for key in ("study", "variant", "scale", "seed"))
    last = list(record["stages"])[-1]
    runs = folder.parents[4]  # below it are study, scale, model, variant and seed
    return study.job(name, last, variant, scale, seed, record.get("set", {}), runs)


def _file_problems(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    noted = record["published"]
    there = {p.name for p in folder.iterdir()} - {"run.json"}
    for name in sorted(there | {*noted}):
        if name not in noted or name not in there:
            yield f"{name} is {'missing' if name in noted else 'not of this record'}"
        elif sources.sha256(folder / name) != noted[name]:
            yield f"{name} is not as it was published"


def _setting_problems(folder: Path, job: Job, record: dict[str, Any]) -> Iterator[str]:
    """Settings that the recorded stages read, then and today."""
    stages = [study.stage_of(job.study, name) for name in record["stages"]]
    read = [key for stage in stages for key in stage.reads]
    # A parameter that came later and has its default changes nothing.
    defaults = {key: default for key, _, default, _ in config.parameters(job.study.run)}
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    kept, today = config.overlay(config.nested(defaults), kept), job.run.model_dump(mode="json")
    if job.where != folder:
        yield f"it belongs into {job.where.relative_to(ROOT)}"
    for key in defaults:
        was, now = config.at(kept, key), config.at(today, key)
        if config.within(key, read) and was != now:
            yield f"{key} was {was!r} and is now {now!r}"


def _data_problems(job: Job, record: dict[str, Any]) -> Iterator[str]:
    known = {source.sha256 for source in job.study.sources.values()}
    # Files that came from elsewhere (own ones, those of the project) are hashed where they are.
    shipped = {sources.sha256(p) for p in (ROOT / "data" / "samples").iterdir() if p.is_file()}
    for name, stage in record["stages"].items():
        for data, found in stage.get("data", {}).items():
            if found not in known | shipped:
                yield f"{data}, which {name} read, is not today's file"


def _metric_problems(folder: Path, job: Job) -> tuple[list[str], list[str]]:
    """Rows that do not follow from the records, and rows that cannot be computed from them."""
    if job.study.measure is None:
        return [], ["its study does not say how metrics follow from records"]
    before = {name: other.where for name, other in job.before().items()}
    then = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kept, found = (
        {tuple(row[k] for k in ("variant", "dataset", "stratum", "metric")): row for row in rows}
        for rows in (then, job.study.measure(job.given, folder, before))
    )
    wrong = [
        f"{row['metric']} of {row['variant']} on {row['dataset']} ({row['stratum']}) does not"
        " follow from its records"
        for key, row in kept.items()
        if key in found and not _same(row, found[key])
    ]
    wrong += [f"{' '.join(map(str, key))} is missing" for key in found if key not in kept]
    rest = [key for key in kept if key not in found]
    names = ", ".join(dict.fromkeys(str(key[-1]) for key in rest))
    return wrong, [f"{len(rest)} rows cannot follow from what is kept: {names}"] if rest else []


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    numbers = ("value", "low", "high")
    return all(
        a == b
        or (
            k in numbers
            and None not in (a, b)
            and math.isclose(a, b, abs_tol=TOLERANCE, rel_tol=0)
        )
        for k, a, b in ((k, first[k], second[k]) for k in ("study", "n", "unit", *numbers))
    )


def _code_remarks(job: Job, record: dict[str, Any]) -> Iterator[str]:
    for name, stage in record["stages"].items():
        compute = study.stage_of(job.study, name).compute
        now = code.reach(compute) if compute else {}
        was = stage.get("code")
        if was is None:
            yield f"{name} was made before code was recorded"
        elif changed := sorted(m for m in {*now, *was} if now.get(m) != was.get(m)):
            yield f"{name} was made by older code; changed since: {', '.join(changed)}"


def table(shown: pd.DataFrame) -> str:
    """``compare`` as lines of text for a terminal."""
    heads = ("paper", "data", "metric", "paper", "model", "ours", "95 % interval", "verdict")
    lines: list[tuple[str, ...]] = [heads]
    for row in shown.to_dict("records"):
        numbers = [row[key] for key in ("value_reported", "value", "low", "high")]
        told, ours, low, high = ("-" if x != x else metrics.shown(x, row["unit"]) for x in numbers)
        span = "" if low == "-" else f"{low} to {high}"
        names = (str(row[key]) for key in ("row", "dataset", "metric"))
        lines.append((*names, told, str(row["model"]), ours, span, str(row["verdict"])))
    wide = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip()
        for line in lines
    )
