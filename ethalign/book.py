"""From executed notebooks to the book; what a study adds to it is found in its folders."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ethalign import config, pipeline, records, results, sources, study, tables
from ethalign.config import ROOT
from ethalign.study import Job

BOOK = ROOT / "book"
GENERATED = BOOK / "_generated"
FAULTS = ROOT / "tests" / "faults" / "matrix.yaml"


def build(jobs: Sequence[Job]) -> Path:
    """Build the book from the pages of jobs that have run; its first page.

    Pages, executed notebooks, results and settings are hashed together; if they are those of the
    last build, nothing is done.

    Raises:
        RuntimeError: jupyter-book reported a warning or an error.
    """
    collect(jobs)
    records.write(GENERATED / "toc.yml", contents(jobs))
    stamp, state = ROOT / "_build" / "inputs.txt", _inputs()
    page = ROOT / "_build" / "html" / "index.html"
    if page.is_file() and stamp.is_file() and stamp.read_text() == state:
        return page
    records.write(GENERATED / "parameters.md", parameter_table())
    records.write(GENERATED / "api.md", api_pages())
    records.write(GENERATED / "faults.md", fault_table())
    for name in config.studies():
        records.write(GENERATED / f"{name}-reported.md", tables.reported(name))
        records.write(GENERATED / f"{name}-claims.md", tables.verdicts(name))
    command = ["jupyter-book", "build", "book", "--config", "_config.yml"]
    command += ["--toc", str(GENERATED / "toc.yml"), "--path-output", "."]
    command += ["-W", "-n", "--keep-going"]
    # The one installed beside this Python comes first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if done.returncode or not page.is_file():
        raise RuntimeError(
            f"the book was not built:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    records.write(stamp, state)
    return page


def name_of(job: Job) -> str:
    """``<study>/<stage>[-<variant>]``: a page's place in ``book/_runs/``."""
    many = job.stage.compute and job.stage.variant is None
    return f"{job.study.name}/{job.stage.name}{f'-{job.run.variant}' if many else ''}"


def collect(jobs: Sequence[Job]) -> None:
    """Copy executed notebooks to ``book/_runs/``, of several seeds and models the first."""
    target = BOOK / "_runs"
    pages = {name_of(job): job for job in reversed(jobs) if job.page.is_file()}
    for name, job in pages.items():
        pipeline.refresh_prose(job.page, pipeline.notebook_of(job), target / f"{name}.ipynb")
    wanted = {target / f"{name}.ipynb" for name in pages}
    for left in set(target.glob("*/*.ipynb")) - wanted:
        left.unlink()


def contents(jobs: Sequence[Job]) -> dict[str, Any]:
    """The table of contents: the book's own parts, and one for each study behind the first.

    A study's part is ``book/<study>/_toc.yml``; without that file it lists the study's pages.
    """
    toc = dict(config.read_yaml(BOOK / "_toc.yml"))
    parts = []
    for owner in study.everything():
        own = BOOK / owner.name / "_toc.yml"
        pages = dict.fromkeys(name_of(job) for job in jobs if job.study is owner)
        chapters = [{"file": f"_runs/{name}"} for name in pages]
        index = [{"file": f"{owner.name}/index"}] if (own.parent / "index.md").is_file() else []
        part = {"caption": f"The {owner.name} study", "chapters": index + chapters}
        parts.append(config.read_yaml(own) if own.is_file() else part)
    return {**toc, "parts": [*parts, *toc["parts"]]}


def _inputs() -> str:
    """Everything that the book is made of; what is generated follows from the rest."""
    files = [p for p in BOOK.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = [p for p in files if p.parent != GENERATED or p.name == "toc.yml"]
    files += [ROOT / "_config.yml", FAULTS, *(ROOT / "ethalign").rglob("*.py")]
    files += (ROOT / "configs").rglob("*.yaml")
    files += [p for p in results.RESULTS.rglob("*.json*") if p.is_file()]
    return "".join(f"{os.path.relpath(p, ROOT)} {sources.sha256(p)}\n" for p in sorted(files))


def parameter_table() -> str:
    """Every parameter with type, default, meaning and the stages that read it, in Markdown.

    Parameters that studies share stand first; those that no stage reads are left out.
    """
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for owner in study.everything():
        for name, kind, default, about in config.parameters(owner.run):
            keys = [s.name for s in owner.stages if config.within(name, (*s.reads, *s.handles))]
            if keys:
                shown = "" if default == "" else f"`{json.dumps(default, default=str)}`"
                row = (name, kind, shown, about)
                rows.setdefault(row, []).append(f"{owner.name}: {', '.join(keys)}")
    body = [
        (f"`{name}`", kind, shown, _plain(about), "; ".join(readers))
        for (name, kind, shown, about), readers in sorted(rows.items(), key=lambda r: r[0][0])
    ]
    return tables.markdown(["parameter", "type", "default", "meaning", "read by"], body)


def fault_table() -> str:
    """Every fault that the tests provoke, where it strikes, and what becomes of it."""
    heads = ["what goes wrong", "where", "what happens", "the same in the end"]
    same = {True: "yes", False: "no", None: ""}
    rows = [
        (records.plain(row["fault"]), row["stage"], row["outcome"], same[row["equal"]])
        for row in config.read_yaml(FAULTS).values()
    ]
    return tables.markdown(heads, rows)


def _plain(text: str) -> str:
    """Text with its angle brackets and bars as text, for a cell of a table."""
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def api_pages() -> str:
    """Every module with the first sentence of its docstring, then their members by autodoc."""
    table, pages = [], []
    for path in sorted((ROOT / "ethalign").rglob("*.py"), key=lambda p: (len(p.parts), p)):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__":
            first = re.match(r'"""(.*?)(?:\.\s|\.?\n\n|\.?""")', path.read_text(), re.S)
            about = " ".join(first[1].split()) + "." if first else ""
            table.append((f"{{py:mod}}`{name}`", _plain(about)))
            pages += ["", f"## {name.removeprefix('ethalign.')}", ""]
            pages += ["```{eval-rst}", f".. automodule:: {name}", "```"]
    return tables.markdown(["module", "in a word"], table) + "\n".join(pages) + "\n"
