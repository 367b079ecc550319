"""The explorer of predictions: every item, and what each predictor said of it, in one page.

A page is static: a table of the first rows that needs no script, the rest packed by column in a
script file (a page that is opened from a folder may read no other kind), and ``explorer.js``,
which searches, filters and sorts. Words of a data set are in it where the samples were used, or
in the local edition, which a reader makes from files of their own.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ethalign import config, records, results, study
from ethalign.config import ROOT
from ethalign.study import Study

# What names an item; a study that has no parts leaves them out.
KEYS = ("part", "dataset", "id")
# Rows of a page of the table, and of the table without a script.
PAGE = 50
STATIC = ROOT / "book" / "_static"
HEADS = {"reference": "Reference runs", "this run": "This run"}
SKELETON = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: predictions</title>
<link rel="stylesheet" href="explorer.css">
<script src="explorer.js" defer></script>
</head>
<body class="explorer-page">
<main>
<h1>{title}: predictions</h1>
{parts}
</main>
</body>
</html>
"""


Tables = dict[tuple[str, int, str], pd.DataFrame]


def predictions(home: Path) -> Tables:
    """All predictions below ``<study>/<scale>`` by model, seed and variant."""
    found = {}
    for seed in sorted({int(p.parent.name) for p in home.glob("*/*/*/predictions.jsonl")}):
        for model, variants in results.predictions(home, seed).items():
            for variant, table in variants.items():
                # A file may hold several predictors, each with a name of its own.
                named = table.assign(variant=table.get("variant", variant))
                for name, part in named.groupby("variant", sort=False):
                    found[model, seed, str(name)] = part
    return found


def pack(owner: Study, home: Path, tables: Tables, *, local: bool = False) -> dict[str, Any]:
    """What every predictor said of every item below ``<study>/<scale>``, by column.

    Args:
        owner: the study, which says what is shown.
        home: the folder of its runs.
        tables: their ``predictions``.
        local: join in the words of data sets that are not ours to publish.

    Returns:
        ``names`` of the items, as links have them; ``fields`` and ``words`` with a ``title`` and
        ``values`` per item, those of fields coded (``codes`` into ``values``); ``flagged``, the
        numbers of items behind the content warning; ``verdicts``, the words that occur; and
        ``predictors``: ``model``, ``seed``, ``variant``, ``verdict`` (numbers into ``verdicts``),
        ``p`` (in thousandths), with ``wrote`` where texts are shown. Whatever is missing is null.
        Empty where there are no predictions.
    """
    view = owner.shown
    if view is None or not tables:
        return {}
    every = pd.concat(tables.values())
    keys = [key for key in KEYS if key in every]
    items = every.groupby(keys, sort=False).first()
    ids = items.index.get_level_values("id").astype(str)
    names = [
        ", ".join(map(str, reversed(key))) if again else str(key[-1])
        for key, again in zip(items.index, ids.duplicated(), strict=True)
    ]
    items = items.reset_index()
    verdicts = sorted(map(str, every["verdict"].dropna().unique()))
    words = _words(owner, home, local).reindex(columns=[*keys, *view.words])
    words = items[keys].merge(words.drop_duplicates(keys), how="left")
    shown = bool(words[list(view.words)].notna().to_numpy().any())
    flagged = items["dataset"].isin(view.flagged) & shown
    predictors: list[dict[str, Any]] = []
    for (model, seed, variant), table in tables.items():
        rows = items[keys].merge(table.assign(p=view.share(table)), how="left", on=keys)
        found: dict[str, list[Any]] = {
            "verdict": _nulls(rows["verdict"].map(verdicts.index, na_action="ignore"), int),
            "p": _nulls((1000 * rows["p"].astype(float)).round(), int),
        }
        if shown and view.wrote in rows:
            found["wrote"] = _nulls(rows[view.wrote], str)
        predictors.append({"model": model, "seed": seed, "variant": variant, **found})
    # Language models come first, the smallest before all; encoders do not say how large they are.
    order = {name: k for k, name in enumerate(owner.order)}
    size = {p["model"]: records.size_of(p["model"]) for p in predictors}
    size = {model: math.inf if math.isnan(n) else n for model, n in size.items()}
    predictors.sort(
        key=lambda p: (size[p["model"]], p["model"], p["seed"], order.get(p["variant"], 99))
    )
    return {
        "names": names,
        "fields": [
            _coded(key, title, items) for key, title in view.fields.items() if key in items
        ],
        "words": [
            {"title": title, "values": _nulls(words[key], _text)}
            for key, title in view.words.items()
            if words[key].notna().any()
        ],
        "flagged": np.flatnonzero(flagged).tolist(),
        "of": view.of,
        "verdicts": verdicts,
        "predictors": predictors,
    }


def _words(owner: Study, home: Path, local: bool) -> pd.DataFrame:
    """The words of items: those of samples, and in a local edition all."""
    assert owner.shown is not None
    found = [pd.DataFrame()]
    folders = {path.parent.name: path.parent for path in home.glob("*/*/*/predictions.jsonl")}
    for folder in folders.values():  # a seed draws the same items for every variant
        path = folder / "config.yaml"
        run = config.checked(owner.run, config.read_yaml(path), str(path))
        ours = run.data.source == "sample" and run.data.test is None
        if local or ours:
            found.append(owner.shown.texts(run))
    return pd.concat(found)


def _coded(key: str, title: str, items: pd.DataFrame) -> dict[str, Any]:
    codes, values = pd.factorize(items[key], sort=True)
    # A whole number that some item does not have was read as 4.0.
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return {"key": key, "title": title, "values": texts, "codes": codes.tolist()}


def _nulls(column: pd.Series[Any], kind: Any) -> list[Any]:
    return [kind(v) if known else None for v, known in zip(column, column.notna(), strict=True)]


def _text(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, list) else str(value)


def start(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The predictors to begin with: those of the first model and seed."""
    every = found["predictors"]
    return [p for p in every if all(p[key] == every[0][key] for key in ("model", "seed"))]


def block(name: str, label: str, found: Mapping[str, Any], source: str) -> str:
    """The HTML of one explorer, in one line: its first rows, for ``explorer.js`` to take over.

    ``name`` is its id, which links to items begin with; ``source`` the address of its script.
    """
    shown, flagged = start(found), set(found["flagged"])
    heads = ["item", *(field["title"] for field in found["fields"])]
    heads += [p["variant"] for p in shown] + [text["title"] for text in found["words"]]
    lines = []
    for k, item in enumerate(found["names"][:PAGE]):
        cells = [f["values"][f["codes"][k]] if f["codes"][k] >= 0 else "" for f in found["fields"]]
        cells += [_said(found, p, k) for p in shown]
        cells += ["hidden" if k in flagged else t["values"][k] or "" for t in found["words"]]
        plain = "".join(f"<td>{_inline(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{_inline(item)}</th>{plain}</tr>')
    total = len(found["names"])
    told = f"The first {min(PAGE, total):,} of {total:,} items"
    return (
        f'<section class="explorer" id="{name}" aria-label="{_inline(label)}"'
        f' data-study="{name}" data-source="{source}">'
        "<noscript><p>Searching, filtering and the other rows need JavaScript.</p></noscript>"
        f'<div class="explorer-scroll" tabindex="0" role="region" aria-label="{_inline(label)}">'
        f'<table class="explorer-rows"><caption>{told}; p({_inline(found["of"])})</caption>'
        f"<thead><tr>{''.join(f'<th scope=col>{_inline(head)}</th>' for head in heads)}</tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _said(found: Mapping[str, Any], predictor: Mapping[str, Any], k: int) -> str:
    verdict, p = predictor["verdict"][k], predictor["p"][k]
    said = "" if verdict is None else found["verdicts"][verdict]
    return said if p is None else f"{said} {p / 1000:.2f}"


def _inline(text: str) -> str:
    """Text as HTML without a line break, so that it can stand in a block of Markdown."""
    return escape(text).replace("\n", "&#10;").replace("\r", "&#13;")


def script(name: str, found: Mapping[str, Any]) -> str:
    """A script file that hands packed predictions to ``explorer.js``."""
    packed = json.dumps(found, separators=(",", ":"))
    return f'(window.explorerData ??= {{}})["{name}"] = {packed};\n'


def build(target: Path, homes: Mapping[str, Mapping[str, Path]]) -> None:
    """Write what the book's pages of predictions include, and the files beside them.

    Args:
        target: gets ``<study>-explorer.md``, and below ``files/`` what goes beside the pages:
            scripts for the explorer, ``sheets`` of the reference, notebooks to run.
        homes: by study, folders ``<study>/<scale>`` by the name of the run; the reference is
            shown in any case.
    """
    files = target / "files"
    shutil.rmtree(files, ignore_errors=True)
    for owner in study.everything():
        text, reference = "", results.RESULTS / owner.name / "small"
        own = {**homes.get(owner.name, {}), "reference": reference}
        for run, home in sorted(own.items()):
            tables = predictions(home)
            if run == "reference":
                sheets(owner, home, tables, files / "data")
            if found := pack(owner, home, tables):
                name = f"{owner.name}-{run.replace(' ', '-')}"
                records.write(files / "explorer" / f"{name}.js", script(name, found))
                label = f"Predictions: {HEADS[run].lower()}"
                shown = block(name, label, found, f"../explorer/{name}.js")
                text += f"## {HEADS[run]}\n\n```{{raw}} html\n{shown}\n```\n\n"
        records.write(target / f"{owner.name}-explorer.md", text or "Nothing has been run yet.\n")
        for path in (ROOT / "notebooks" / owner.name).glob("*.ipynb"):
            place = files / "notebooks" / owner.name / path.name
            records.write(place, path.read_text(encoding="utf-8"))


def sheets(owner: Study, home: Path, tables: Tables, target: Path) -> None:
    """Metrics as ``<study>-metrics.csv``, predictions as ``<study>-predictions.csv.gz``, if any.

    No cell is one that a spreadsheet takes for a formula, and the same records give the same
    bytes.
    """
    parts = [
        table.drop(columns="variant").assign(model=model, seed=seed, variant=variant)
        for (model, seed, variant), table in tables.items()
    ]
    found = {
        "metrics.csv": results.rows(home),
        "predictions.csv.gz": pd.concat(parts or [pd.DataFrame()]),
    }
    for name, table in found.items():
        if len(table):
            target.mkdir(parents=True, exist_ok=True)
            for column in table.select_dtypes(exclude=["number", "bool"]):
                table[column] = table[column].map(records.inert)
            how: Any = {"method": "gzip", "mtime": 0} if name.endswith("gz") else None
            table.to_csv(target / f"{owner.name}-{name}", index=False, compression=how)


def edition(owner: Study, homes: Mapping[str, Path], target: Path, *, words: bool) -> Path:
    """Write a page of its own with the predictions of some runs, for this machine alone.

    Args:
        owner: the study.
        homes: folders ``<study>/<scale>`` by the name of the run.
        target: folder of the page.
        words: join in the words of the data sets.

    Raises:
        UserError: none of the runs has predictions.
    """
    parts = []
    for run, home in homes.items():
        if found := pack(owner, home, predictions(home), local=words):
            name = f"{owner.name}-{run.replace(' ', '-')}"
            records.write(target / f"{name}.js", script(name, found))
            parts.append(f"<h2>{HEADS[run]}</h2>\n{block(name, run, found, f'{name}.js')}")
    if not parts:
        raise config.UserError(f"{owner.name} has no predictions yet; run it first.")
    for path in (STATIC / "explorer.js", STATIC / "explorer.css"):
        records.write(target / path.name, path.read_text(encoding="utf-8"))
    page = target / f"{owner.name}.html"
    records.write(page, SKELETON.format(title=escape(owner.title), parts="\n".join(parts)))
    return page
