"""From executed notebooks to the book; what a study adds to it is found in its folders."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ethalign import (
    code,
    config,
    explorer,
    pipeline,
    plots,
    records,
    results,
    sources,
    study,
    tables,
)
from ethalign.config import ROOT
from ethalign.data import SAMPLES
from ethalign.study import Job

BOOK = ROOT / "book"
GENERATED = BOOK / "_generated"
#: What the README says of the findings, and the figure that it shows.
README, FIGURE = ROOT / "README.md", BOOK / "_static" / "effects.svg"
MARKS = "<!-- findings: written by `ethalign claims` -->\n", "<!-- end of findings -->\n"
FAULTS = ROOT / "tests" / "faults" / "matrix.yaml"
SPEED = ROOT / "benchmarks" / "results.json"


def build(jobs: Sequence[Job]) -> Path:
    """Build the book from the pages of jobs that have run; its first page.

    Pages, executed notebooks, results and settings are hashed together; if they are those of the
    last build, nothing is done. Without jobs only what needs no run is built: the findings, which
    follow from the committed records, and the prose around them.

    Raises:
        RuntimeError: jupyter-book reported a warning or an error (without jobs: an error).
    """
    findings()
    collect(jobs)
    records.write(GENERATED / "toc.yml", contents(jobs))
    stamp, state = ROOT / "_build" / "inputs.txt", _inputs()
    page = ROOT / "_build" / "html" / "index.html"
    if page.is_file() and stamp.is_file() and stamp.read_text() == state:
        return page
    _generate(whole=bool(jobs))
    explorer.build(GENERATED, {job.study.name: results.homes(job) for job in jobs})
    command = ["jupyter-book", "build", "book", "--config", "_config.yml"]
    command += ["--toc", str(GENERATED / "toc.yml"), "--path-output", "."]
    # Links to pages that are still to be run cannot be followed yet.
    command += ["-W", "-n", "--keep-going"] if jobs else ["--quiet"]
    # The one installed beside this Python comes first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    if done.returncode or not page.is_file():
        raise RuntimeError(
            f"the book was not built:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    if jobs:
        records.write(stamp, state)
    else:  # what was read without its neighbours is read again
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
    return page


def findings() -> list[Path]:
    """Execute the notebooks that read committed records alone, where they are out of date.

    These are ``notebooks/*/findings.ipynb``; which were executed is returned.
    """
    stale = []
    for notebook in sorted((ROOT / "notebooks").glob("*/findings.ipynb")):
        target = BOOK / "_runs" / notebook.parent.name / notebook.name
        program = "\n".join(pipeline.code_cells(notebook))
        files = sorted([*results.RESULTS.rglob("*.json*"), *(ROOT / "configs").rglob("*.yaml")])
        basis = {"code": code.reach_of_text(program), "files": [*map(sources.sha256, files)]}
        state, stamp = config.digest(basis), target.with_suffix(".txt")
        if not target.is_file() or not stamp.is_file() or stamp.read_text() != state:
            stale.append((notebook, target, stamp, state))
        else:
            pipeline.refresh_prose(target, notebook, target)
    # In threads, since kernels of one process never choose each other's ports.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = [pool.submit(pipeline.execute, one, two, {}) for one, two, *_ in stale]
        for job, (_, _, stamp, state) in zip(running, stale, strict=True):
            job.result()
            records.write(stamp, state)
    return [target for _, target, *_ in stale]


def _generate(*, whole: bool) -> None:
    """Write what pages include; only in the ``whole`` book what takes all modules to write."""
    records.write(GENERATED / "parameters.md", parameter_table())
    records.write(GENERATED / "api.md", api_pages() if whole else "")
    for name in config.studies():
        records.write(GENERATED / f"{name}-reported.md", tables.reported(name))
        records.write(GENERATED / f"{name}-claims.md", tables.verdicts(name))
        glance = tables.glance(name, f"_runs/{name}/findings.html")
        records.write(GENERATED / f"{name}-glance.md", glance)
        records.write(GENERATED / f"{name}-variants.md", tables.variants(name))
    records.write(GENERATED / "effects.md", effects())
    records.write(GENERATED / "faults.md", fault_table())
    records.write(GENERATED / "speed.md", speed_table())


def effects() -> str:
    """The figure of the first page as an element, with its numbers in words."""
    table = tables.effects()
    if table.empty:
        return ""
    plots.style()
    said = [
        f"{row['label']} ({row['source']}): {tables.span(*(row[key] for key in tables.SPAN))}"
        for row in table.to_dict("records")
    ]
    return plots.svg(plots.effects(table), f"Effects for three claims. {'; '.join(said)}") + "\n"


def front() -> str:
    """The README with the answers of today's records between its marks, if it has these."""
    before, mark, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
    said = f"![Effects for three claims]({FIGURE.relative_to(ROOT).as_posix()})\n\n"
    for owner in study.everything():
        if owner.headline:
            plain = re.sub(r"{term}`([^`]*)`", r"\1", tables.answer(owner.name))
            said += f"- **{owner.question}** {plain}\n"
    return before + mark + (said + MARKS[1] + rest.split(MARKS[1])[-1] if mark else "")


def write_front() -> None:
    """Bring the README and its figure up to the records."""
    import matplotlib.pyplot as plt

    records.write(README, front())
    if len(table := tables.effects()):
        plots.style()
        with plt.rc_context({"svg.hashsalt": "ethalign"}):
            plots.effects(table).savefig(
                FIGURE, metadata={"Date": None}, bbox_inches="tight", facecolor="white"
            )
        plt.close()


def name_of(job: Job) -> str:
    """``<study>/<stage>[-<variant>]``: a page's place in ``book/_runs/``."""
    many = job.stage.compute and job.stage.variant is None
    return f"{job.study.name}/{job.stage.name}{f'-{job.run.variant}' if many else ''}"


def collect(jobs: Sequence[Job]) -> None:
    """Copy executed notebooks to ``book/_runs/``, of several seeds and models the first."""
    target = BOOK / "_runs"
    own = set(target.glob("*/findings.ipynb"))
    pages = {name_of(job): job for job in reversed(jobs) if job.page.is_file()}
    for name, job in pages.items():
        pipeline.refresh_prose(job.page, pipeline.notebook_of(job), target / f"{name}.ipynb")
    wanted = {target / f"{name}.ipynb" for name in pages}
    for left in set(target.glob("*/*.ipynb")) - wanted - own:
        left.unlink()


def contents(jobs: Sequence[Job]) -> dict[str, Any]:
    """The table of contents: a part for each study, the book's own, and the executed notebooks.

    A study's part is ``book/<study>/_toc.yml``, whose ``workshop`` goes to the end of the book;
    without that file the part lists the study's pages. Without jobs what they make is left out.
    """
    toc = dict(config.read_yaml(BOOK / "_toc.yml"))
    parts, workshop = [], list(toc.pop("workshop", []))
    for owner in study.everything():
        own = BOOK / owner.name / "_toc.yml"
        pages = dict.fromkeys(name_of(job) for job in jobs if job.study is owner)
        chapters = [{"file": f"_runs/{name}"} for name in pages]
        index = [{"file": f"{owner.name}/index"}] if (own.parent / "index.md").is_file() else []
        part: dict[str, Any] = {"caption": f"The {owner.name} study", "chapters": index + chapters}
        part = dict(config.read_yaml(own)) if own.is_file() else part
        workshop += part.pop("workshop", [])
        parts.append(part)
    parts += [*toc["parts"], {"caption": "Workshop", "chapters": workshop}]
    for part in parts if not jobs else []:
        part["chapters"] = [c for c in map(_made, part["chapters"]) if c]
    return {**toc, "parts": [part for part in parts if part["chapters"]]}


def _made(chapter: dict[str, Any]) -> dict[str, Any] | None:
    """A chapter without the executed notebooks that are not there."""
    file = BOOK / f"{chapter['file']}.ipynb"
    if chapter["file"].startswith("_runs/") and not file.is_file():
        return None
    sections = [c for c in map(_made, chapter.get("sections", [])) if c]
    return {k: v for k, v in {**chapter, "sections": sections}.items() if v}


def _inputs() -> str:
    """Everything that the book is made of; what is generated follows from the rest."""
    files = [p for p in BOOK.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    files = [p for p in files if p.parent != GENERATED or p.name == "toc.yml"]
    files += [ROOT / "_config.yml", FAULTS, SPEED, *(ROOT / "ethalign").rglob("*.py")]
    files += SAMPLES.glob("*.csv")  # handouts
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


def speed_table() -> str:
    """Every recorded benchmark in Markdown: ours, the peer, their ratio with its spread, how."""
    rows = []
    for row in json.loads(SPEED.read_text(encoding="utf-8")):
        spread = "" if row["low"] is None else f" [{row['low']:.2g}, {row['high']:.2g}]"
        sides = (f"{row[side]:.3g} {row['unit']}" for side in ("ours", "peer"))
        rows.append((row["benchmark"], *sides, f"{row['ratio']:.2g}{spread}", row["conditions"]))
    return tables.markdown(["benchmark", "here", "peer", "times better", "conditions"], rows)


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
