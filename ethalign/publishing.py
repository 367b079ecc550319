"""From runs to the committed reference results, and from executed notebooks to the book."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ethalign import config, pipeline, records, tables
from ethalign.config import ROOT, UserError

RESULTS = ROOT / "results"
# A record holds what a model decided, never the words of a data set or of a model.
TEXTS = (
    *("generated", "reason", "statement", "question", "answer", "answers", "paraphrase"),
    *("greedy_pred_text", "sampling_pred_text"),
)


def publish(study: str, variant: str, scale: str, seed: int, runs: str | Path = "runs") -> Path:
    """Copy a finished run's small records to ``results/``, without any text.

    Raises:
        UserError: the run is not there or not complete.
    """
    where = Path(runs) / scale / study / variant / str(seed)
    path = where / "run.json"
    stages = json.loads(path.read_text())["stages"] if path.is_file() else {}
    if not stages or any(s["status"] != "complete" for s in stages.values()):
        raise UserError(f"{where} holds no complete run; finish it with `ethalign run` first.")
    target = RESULTS / study / scale / variant / str(seed)
    for name in ("config.yaml", "run.json", "metrics.json", "judge.json", "train_log.jsonl"):
        if (where / name).is_file():
            records.write(target / name, _content(where / name))
    for name in ("predictions.jsonl", "judgements.jsonl", "knowledge.jsonl"):
        rows = [
            {k: v for k, v in r.items() if k not in TEXTS} for r in records.read_rows(where / name)
        ]
        if rows:
            records.write(target / name, "".join(json.dumps(r) + "\n" for r in rows))
    return target


def _content(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    return yaml.safe_load(text) if path.suffix == ".yaml" else text


def verify() -> list[tuple[str, str]]:
    """Check every committed result; (folder, what does not match, or the empty string).

    A result matches when its configuration still resolves to what it was run with, its data
    files have the checksums of today's sources, and its accuracies follow from its predictions.
    """
    from ethalign import sources

    known = {source.sha256 for source in sources.SOURCES.values()}
    findings = []
    for path in sorted(RESULTS.glob("*/*/*/*/run.json")):
        record = json.loads(path.read_text())
        problems = [*_config_problem(path.parent, record), *_metric_problems(path.parent)]
        for stage in record["stages"].values():
            if not set(stage.get("data", {}).values()) <= known:
                problems.append("its data are not today's official files")
        findings.append((str(path.parent.relative_to(ROOT)), "; ".join(dict.fromkeys(problems))))
    return findings


def _config_problem(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    try:
        config.Run.model_validate(kept)
        # Its own bytes count: a parameter that came later has a default and changes nothing.
        if config.digest(kept) != record["config"]:
            yield "config.yaml is not what the run recorded"
    except ValueError:
        yield "config.yaml no longer fits the parameters of this version"


def _metric_problems(folder: Path) -> Iterator[str]:
    predictions = pd.DataFrame(records.read_rows(folder / "predictions.jsonl"))
    if predictions.empty:
        return
    if "part" in predictions:  # rows that a temperature was fitted on are not reported
        predictions = predictions[predictions["part"] == "test"]
    table = records.metrics([folder / "metrics.json"])
    kept = table[(table["metric"] == "accuracy") & (table["stratum"] == "all")]
    if "variant" in predictions:  # several predictors; floors and ceilings have no predictions
        kept = kept[kept["variant"].isin(predictions["variant"])]
    for row in kept.to_dict("records"):
        part = predictions[predictions["dataset"] == row["dataset"]]
        if "variant" in part:
            part = part[part["variant"] == row["variant"]]
        # Where a declined question may be answered rightly all the same, its row says so.
        right = part["correct"] if "correct" in part else part["verdict"] == part["gold"]
        found = right.mean()
        if abs(found - row["value"]) > 1e-6 or len(part) != row["n"]:
            yield f"accuracy on {row['dataset']} does not follow from its predictions"
    for row in table[table["metric"] == "honesty"].to_dict("records"):
        from ethalign import answers, honesty

        parts = answers.recorded(folder.parents[1], int(folder.name), row["dataset"])
        after = parts[folder.parent.name]
        before = answers.aligned(parts["unaligned"], after)
        found = honesty.scores(before, list(after["verdict"])).honesty
        if abs(found - row["value"]) > 1e-6:
            yield f"honesty on {row['dataset']} does not follow from its predictions"


def build(scale: str = "tiny", runs: str | Path = "runs") -> Path:
    """Build the book from executed notebooks; its first page.

    Pages, executed notebooks, results and settings are hashed together; if they are those of the
    last build, nothing is done.

    Raises:
        RuntimeError: jupyter-book reported a warning or an error.
    """
    collect(scale, Path(runs))
    generated = ROOT / "book" / "_generated"
    records.write(generated / "parameters.md", parameter_table())
    for study in config.studies():
        records.write(generated / f"{study}-reported.md", tables.reported(study))
    html = ROOT / "_build" / "html"
    stamp, state = ROOT / "_build" / "inputs.txt", _inputs()
    page = html / "index.html"
    if page.is_file() and stamp.is_file() and stamp.read_text() == state:
        return page
    command = [pipeline.tool("jupyter-book"), "build", "book", "--config", "_config.yml"]
    command += ["--path-output", ".", "-W", "-n", "--keep-going"]
    environment = {
        **os.environ,
        "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode or not page.is_file():
        raise RuntimeError(
            f"the book was not built:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    records.write(stamp, state)
    return page


def collect(scale: str, runs: Path) -> None:
    """Copy executed notebooks to ``book/_runs/<study>/<stage>[-<variant>].ipynb``."""
    target = ROOT / "book" / "_runs"
    wanted = set()
    home = ROOT / runs / scale
    # <study>/<stage>.ipynb, or <study>/<variant>/<seed>/<stage>.ipynb; the book shows one seed.
    for path in sorted([*home.glob("*/*.ipynb"), *home.glob("*/*/0/*.ipynb")]):
        study, *rest = path.relative_to(home).parts
        source = ROOT / "notebooks" / study / path.name
        if source.is_file():
            ending = "" if len(rest) == 1 or rest[0] == path.stem else f"-{rest[0]}"
            page = target / study / f"{path.stem}{ending}.ipynb"
            pipeline.refresh_prose(path, source, page)
            wanted.add(page)
    for left in set(target.glob("*/*.ipynb")) - wanted:
        left.unlink()


def _inputs() -> str:
    from ethalign.sources import sha256

    files = [p for p in (ROOT / "book").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files += [ROOT / "_config.yml", *(ROOT / "ethalign").glob("*.py")]
    files += [p for p in RESULTS.rglob("*.json*") if p.is_file()]
    return "\n".join(f"{os.path.relpath(p, ROOT)} {sha256(p)}" for p in sorted(files)) + "\n"


def parameter_table() -> str:
    """Every parameter with type, default and meaning, as a Markdown table."""
    lines = ["| parameter | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default, about in config.parameters():
        shown = "" if default == "" else f"`{json.dumps(default, default=str)}`"
        lines.append(f"| `{name}` | {kind} | {shown} | {about} |")
    return "\n".join(lines) + "\n"


def examine() -> Iterator[str]:
    """What this machine can run, a line each."""
    import torch

    from ethalign import models, sources

    device, why = models.choose_device("auto")
    _, because = models.choose_dtype("auto", device)
    yield f"processor: {os.cpu_count()} cores; {why}; {because}"
    yield f"device: {models.device_name(device)}"
    free = shutil.disk_usage(ROOT).free / 1e9
    yield f"disk: {free:.0f} GB free (tiny needs 2, small 3, paper 60)"
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else 0
    four = models.has_four_bits(device)
    yield "scale smoke, tiny: yes"
    have = all(sources.present(n) for n in sources.SOURCES if n not in sources.OPTIONAL)
    yield f"scale small: {'yes' if have else 'after `ethalign fetch` (needs the internet once)'}"
    fits = cuda and four and memory >= 20
    needs = "no; it needs an NVIDIA GPU with 24 GB and bitsandbytes"
    yield f"scale paper: {'yes' if fits else needs}"


def export_ratings(folder: Path, out: Path, key: Path, *, raters: int, seed: int) -> str:
    """Blinded rating sheets from all evaluated variants below a study's folder."""
    from ethalign import rating

    tables = []
    for path in sorted(folder.glob("*/*/predictions.jsonl")):
        run = config.Run.model_validate(yaml.safe_load((path.parent / "config.yaml").read_text()))
        tables.append(_ratable(run, path))
    if not tables:
        raise UserError(f"{folder} holds no predictions; run the study first, then export.")
    return str(rating.rate_export(pd.concat(tables), out, key, raters=raters, seed=seed))


def _ratable(run: config.Run, path: Path) -> pd.DataFrame:
    from ethalign import data

    rows = pd.DataFrame(records.read_rows(path))
    texts = pd.concat(data.splits(run).tests.values()).set_index("id")["statement"]
    rows = rows[rows["reason"].notna()].assign(variant=run.variant)
    rows["statement"] = texts.reindex(rows["id"]).to_numpy()
    rows["generated"] = rows["verdict"].str.capitalize() + ". " + rows["reason"]
    return rows[["id", "variant", "statement", "generated"]]


def links(page: str) -> list[str]:
    """Addresses of other hosts that a built page would load (not those a reader may click)."""
    loads = re.findall(
        r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=\"([^\"]+)\"", page
    )
    return [url for url in loads if re.match(r"(?:https?:)?//", url)]
