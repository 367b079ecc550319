"""A fourth study, as small as one can be: how often a seeded coin falls heads."""

import json
import shutil
from pathlib import Path
from typing import Any

from ethalign.config import ROOT

MODULE = '''"""Coins: how often a seeded coin falls heads."""

import random
from pathlib import Path

from pydantic import Field

from ethalign import config, metrics, records
from ethalign.study import Stage, Study

FACES = ("tails", "heads")


class Coin(config.Section):
    """The coin."""

    tosses: int = Field(20, ge=1, description="how often it is tossed")
    bias: float = Field(0.5, ge=0, le=1, description="share of heads")


class Run(config.Run):
    """One run of this study."""

    coin: Coin = Coin()


def toss(run: Run, where: Path, before: dict[str, Path]) -> dict[str, int]:
    """Toss the coin and write down what was seen."""
    coin = random.Random(run.seed)
    seen = [FACES[coin.random() < run.coin.bias] for _ in range(run.coin.tosses)]
    rows = [{"id": k, "dataset": "coins", "face": face} for k, face in enumerate(seen)]
    records.write(where / "predictions.jsonl", "".join(records.line(row) for row in rows))
    return {"tosses": len(rows)}


def rows_of(run: Run, where: Path, before: dict[str, Path]) -> list[dict[str, object]]:
    """Rows of metrics, from the record."""
    faces = [row["face"] for row in records.read_rows(where / "predictions.jsonl")]
    share = metrics.share(faces.count("heads"), len(faces))
    return [records.row(run, "coins", "all", "heads", share, "share")]


STUDY = Study(
    name="toy",
    title="On Coins",
    run=Run,
    stages=(
        Stage(
            "toss",
            reads=("coin",),
            compute=toss,
            outputs=("predictions.jsonl", "metrics.json"),
        ),
        Stage("results", follows=("toss",)),
    ),
    main="coins",
    order=("fair", "loaded"),
    before={"loaded": "fair"},
    measure=rows_of,
)
'''
HEAD = """from IPython.display import Markdown

from ethalign import records, results, study

"""
NOTEBOOKS = {
    "toss": [
        'variant: str = "fair"  # a coin\nscale: str = "tiny"  # a scale\n'
        "seed: int = 0  # of the coin\n"
        'overrides: dict = {}  # dotted parameters\nruns: str = "runs"  # folder for runs\n'
        "with_inputs: bool = False  # make what is missing",
        HEAD + 'job = study.job("toy", "toss", variant, scale, seed, overrides, runs)\n'
        "job.compute(make=with_inputs)",
        "records.metrics([job.where / 'metrics.json'])",
        'Markdown(records.caption(job.where, "toss"))',
    ],
    "results": [
        'scale: str = "tiny"  # a scale\nseeds: list = [0]  # of the runs\n'
        'overrides: dict = {}  # dotted parameters\nruns: str = "runs"  # folder for runs\n'
        "with_inputs: bool = False  # make what is missing",
        HEAD + 'job = study.job("toy", "results", None, scale, seeds[0], overrides, runs, seeds)\n'
        "job.require(make=with_inputs)",
        "results.together(job)",
    ],
}
REPORTED = """figures:
  - {row: "Paper, fair", variant: fair, dataset: coins, metric: heads, value: 0.5, n: 100}
  - {row: "Paper, loaded", variant: loaded, dataset: coins, metric: heads, value: 0.9, n: 100}
"""
# The folders of a study; nothing outside of them is written.
FOLDERS = ("ethalign", "configs", "notebooks")


def project(target: Path) -> Path:
    """A copy of the project in which the coins are the only study."""
    from ethalign import config

    left_out = {"runs", "results", "_build", ".git", ".venv", ".snakemake", "_runs", "_generated"}
    left_out |= {"__pycache__", *config.studies()}
    shutil.copytree(ROOT, target, ignore=lambda _, names: left_out & {*names})
    (target / "book" / "_toc.yml").write_text("format: jb-book\nroot: welcome\nparts: []\n")
    for page in (target / "book").glob("*.md"):
        page.unlink()
    (target / "book" / "welcome.md").write_text(
        "# Coins\n\n```{include} _generated/parameters.md\n```\n"
    )
    return target


def add(target: Path) -> None:
    """Write the study into a project."""
    for folder in FOLDERS:
        (target / folder / "toy").mkdir(parents=True)
    (target / "ethalign" / "toy" / "__init__.py").write_text('"""Coins."""\n')
    (target / "ethalign" / "toy" / "study.py").write_text(MODULE)
    configs = target / "configs" / "toy"
    (configs / "fair.yaml").write_text("# A fair coin.\n")
    (configs / "loaded.yaml").write_text("# A loaded one.\ncoin: {bias: 0.9}\n")
    (configs / "scales.yaml").write_text("tiny:\nsmall:\n  coin: {tosses: 100}\n")
    (configs / "reported.yaml").write_text(REPORTED)
    for name, cells in NOTEBOOKS.items():
        write_notebook(target / "notebooks" / "toy" / f"{name}.ipynb", name, cells)


def write_notebook(path: Path, title: str, cells: list[str]) -> None:
    """A notebook with a title and some code cells, the first of them its parameters."""
    parts: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"c{k}",
            "metadata": {"tags": ["parameters"]} if not k else {},
            "execution_count": None,
            "outputs": [],
            "source": text,
        }
        for k, text in enumerate(cells)
    ]
    heading = {"cell_type": "markdown", "id": "h", "metadata": {}, "source": f"# {title.title()}"}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": [heading, *parts],
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(content))
