"""From executed notebooks to the book; what a study adds to it is found in its folders."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import operator
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ethalign import (
    code,
    config,
    explorer,
    pipeline,
    plots,
    records,
    reference,
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
#: What stands on the cover of an output in the edition for class.
COVER = {"code_prompt_show": "Show the output", "code_prompt_hide": "Hide the output"}
#: The README, and the figure of effects that it shows.
README, FIGURE = ROOT / "README.md", BOOK / "_static" / "effects.svg"
MARKS = "<!-- findings: written by `ethalign claims` -->\n", "<!-- end of findings -->\n"
PRINTS = ("ethalign.epub", "ethalign.pdf")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WORKSHOP = """
:::{{admonition}} Workshop: a run at scale `{scale}`
:class: important

This page was run on the machine on which the book was built, by default on samples: it shows how
things work. What was found on the published data stands in the [findings](findings.ipynb).
:::
"""


def build(jobs: Sequence[Job], *, printed: bool = False, covered: bool = False) -> Path:
    """Build the book from the pages of jobs that have run; its first page.

    Pages, executed notebooks, results and settings are hashed together; if they are those of the
    last build, nothing is done. Without jobs only what needs no run is built: the findings, which
    follow from the committed records, and the prose around them.

    Args:
        jobs: of several seeds and models of a variant the first is shown.
        printed: make an EPUB as well and, with the Chromium of the machine, a PDF.
        covered: the edition for class, where outputs of the workshop are behind a click.

    Raises:
        RuntimeError: jupyter-book reported a warning or an error (without jobs: an error).
    """
    findings()
    collect(jobs, covered=covered)
    records.write(GENERATED / "toc.yml", contents(jobs))
    stamp, state = ROOT / "_build" / "inputs.txt", _inputs()
    page = ROOT / "_build" / "html" / "index.html"
    prints = [GENERATED / "beside" / name for name in PRINTS]
    done = page.is_file() and stamp.is_file() and stamp.read_text() == state
    if done and (not printed or prints[0].is_file()):
        return page
    _generate(whole=bool(jobs))
    explorer.build(GENERATED, {job.study.name: results.homes(job) for job in jobs})
    # They would be of another state, also those that an earlier build has put beside the pages.
    for path in [*prints, *(page.with_name(name) for name in PRINTS)]:
        path.unlink(missing_ok=True)
    records.write(GENERATED / "print.md", "")
    if printed:
        records.write(GENERATED / "print.md", _print(*prints))
    # Links to pages that are still to be run cannot be followed yet.
    _sphinx("html", *(["-W", "-n", "--keep-going"] if jobs else ["--quiet"]))
    if jobs:
        records.write(stamp, state)
    else:  # what was read without its neighbours is read again
        shutil.rmtree(ROOT / "_build" / ".doctrees", ignore_errors=True)
    return page


def _sphinx(builder: str, *options: str) -> Path:
    """Have jupyter-book make something of the pages; its folder."""
    command = ["jupyter-book", "build", "book", "--config", "_config.yml", "--path-output", "."]
    command += ["--toc", str(GENERATED / "toc.yml"), *options]
    command += [] if builder == "html" else ["--builder", "custom", "--custom-builder", builder]
    # The one installed beside this Python comes first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    folder = ROOT / "_build" / builder
    if done.returncode or not folder.is_dir():
        raise RuntimeError(
            f"the book was not built:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return folder


def _print(epub: Path, pdf: Path) -> str:
    """Make both from the whole book; a sentence that links to them, or says what is missing."""
    folder = _sphinx("epub", "--quiet")
    shutil.copy(next(folder.glob("*.epub")), epub)
    told = f'To take along: <a href="{epub.name}" download>the whole book as EPUB</a>'
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        return f"{told}. There is no PDF, since no Chromium was there to make it.\n"
    call = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    call += [f"--print-to-pdf={pdf}", _whole(folder).as_uri()]
    subprocess.run(call, check=True, capture_output=True)
    return f'{told} or <a href="{pdf.name}" download>as PDF</a>.\n'


def _whole(folder: Path) -> Path:
    """One page of all pages of an unpacked EPUB, in their order, for a browser to print."""
    told = (folder / "content.opf").read_text(encoding="utf-8")
    files = dict(re.findall(r'<item id="([^"]+)" href="([^"]+)"', told))
    pages = [folder / files[key] for key in re.findall(r'<itemref idref="([^"]+)"', told)]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    parts = [texts[0].partition("<body")[0], "<body>"]
    for text in texts:
        # All that a page loads lies below the folder, and so it does from the folder itself.
        body = text.partition("<body")[2].partition(">")[2].partition("</body>")[0]
        body = re.sub(r'(src|href)="(?:\.\./)+', r'\1="', body)
        parts.append(f'<div style="break-after: page">{body}</div>')
    whole = folder / "whole.html"
    records.write(whole, "".join([*parts, "</body></html>"]))
    return whole


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
        for job, (notebook, target, stamp, state) in zip(running, stale, strict=True):
            job.result()
            # As it will be found the next time, when only the prose may be newer.
            pipeline.refresh_prose(target, notebook, target)
            records.write(stamp, state)
    return [target for _, target, *_ in stale]


def _generate(*, whole: bool) -> None:
    """Write what pages include; only in the ``whole`` book what takes all modules to write."""
    records.write(GENERATED / "parameters.md", reference.parameter_table())
    records.write(GENERATED / "api.md", reference.api_pages() if whole else "")
    for name in config.studies():
        records.write(GENERATED / f"{name}-reported.md", tables.reported(name))
        records.write(GENERATED / f"{name}-claims.md", tables.verdicts(name))
        glance = tables.glance(name, f"_runs/{name}/findings.html")
        records.write(GENERATED / f"{name}-glance.md", glance)
        records.write(GENERATED / f"{name}-variants.md", tables.variants(name))
        records.write(GENERATED / f"{name}-made.md", reference.made(name))
        records.write(GENERATED / f"{name}-effects.md", effects(name))
    records.write(GENERATED / "effects.md", effects())
    records.write(GENERATED / "faults.md", reference.fault_table())
    records.write(GENERATED / "models.md", reference.packaged_models())
    records.write(GENERATED / "speed.md", reference.speed_table())
    records.write(GENERATED / "growth.md", reference.growth())
    records.write(GENERATED / "times.md", reference.times())


def effects(name: str = "") -> str:
    """The figure of effects by model size as an element, with its numbers in words.

    It has a panel for each study, or for each claim of the named one (see ``tables.effects``).
    """
    table = tables.effects(name)
    if table.empty:
        return ""
    plots.style()
    said = []
    for claim, part in table.groupby("claim", sort=False):
        points = [
            f"{row['label']} ({row['source']}): {tables.span(*(row[key] for key in tables.SPAN))}"
            for row in part.to_dict("records")
        ]
        said.append(f"{claim} {'; '.join(points)}.")
    return plots.svg(plots.effects(table), f"Effects by model size. {' '.join(said)}") + "\n"


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
    records.write(README, front())
    if len(table := tables.effects()):
        plots.style()
        drawn = plots.drawing(plots.effects(table), facecolor="white")
        records.write(FIGURE, drawn.decode())


def name_of(job: Job) -> str:
    """``<study>/<stage>``: a page's place in ``book/_runs/``."""
    return f"{job.study.name}/{job.stage.name}"


def collect(jobs: Sequence[Job], *, covered: bool = False) -> None:
    """Make the pages of executed notebooks, one a stage, in ``book/_runs/``.

    Where they are ``covered``, outputs of the workshop open by a click, after the guess.

    The notebooks themselves, of several seeds and models the first, go beside the pages, to be
    taken along: ``runs/<study>/<stage>[-<variant>].ipynb``.
    """
    target, beside = BOOK / "_runs", GENERATED / "beside"
    shutil.rmtree(beside / "runs", ignore_errors=True)
    beside.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Job]] = {}
    for job in jobs:
        many = job.stage.compute and job.stage.variant is None
        if job.page.is_file():
            found.setdefault(name_of(job), {}).setdefault(job.run.variant if many else "", job)
    for name, variants in found.items():
        copies = {}
        for variant, job in variants.items():
            path = beside / "runs" / f"{name}{variant and '-'}{variant}.ipynb"
            pipeline.refresh_prose(job.page, pipeline.notebook_of(job), path)
            copies[variant] = json.loads(path.read_text(encoding="utf-8"))
        page = side_by_side(copies, {v: tables.word(job.study.name, v) for v in copies})
        if job.stage.name != "results":
            _announce(page, job)
            for cell in page["cells"] if covered else ():
                if cell.get("outputs"):
                    known = cell["metadata"]
                    shown = {**known.get("mystnb", {}), **COVER}
                    tags = [*known.get("tags", []), "hide-output"]
                    cell["metadata"] = {**known, "tags": tags, "mystnb": shown}
        records.write(target / f"{name}.ipynb", json.dumps(page, indent=1) + "\n")
    wanted = {target / f"{name}.ipynb" for name in found}
    for left in set(target.glob("*/*.ipynb")) - wanted - set(target.glob("*/findings.ipynb")):
        left.unlink()


def side_by_side(copies: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """One notebook of the executed copies of a notebook, by variant.

    Prose, code, and output on which all agree stand there once. Where outputs differ, each is a
    cell of its own with its variant and the variant's label as ``metadata.variant``, behind the
    cells that made it; ``book/_ext/workshop.py`` puts such cells into tabs.
    """
    by_id = {name: {c["id"]: c for c in copy["cells"]} for name, copy in copies.items()}
    told: list[tuple[bool, dict[str, Any], dict[str, Any]]] = []
    cells: list[dict[str, Any]] = []
    first = next(iter(copies.values()))
    for cell in first["cells"]:
        # What was injected repeats the cell of parameters before it.
        if "injected-parameters" not in cell["metadata"].get("tags", []):
            key = cell["id"]
            said = {name: _outputs(ids[key]) for name, ids in by_id.items() if key in ids}
            told.append((any(output != _outputs(cell) for output in said.values()), cell, said))
    for apart, run in itertools.groupby(told, key=operator.itemgetter(0)):
        group = [(cell, cell["metadata"].get("tags", []), said) for _, cell, said in run]
        for cell, tags, _ in group:
            if not (apart and "remove-input" in tags):
                cells.append({**cell, "outputs": []} if apart else cell)
        for name, (cell, tags, said) in itertools.product(labels if apart else (), group):
            more = {"tags": [*tags, "remove-input"], "variant": [name, labels[name]]}
            more |= {k: v for k, v in cell["metadata"].items() if k == "mystnb"}
            own = {"id": f"{cell['id']}-{name}", "metadata": more}
            cells.append({**cell, **own, "outputs": said.get(name, [])})
    return {**first, "cells": cells}


def _outputs(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a page shows of a cell's outputs."""
    silent = "remove-stderr" in cell["metadata"].get("tags", [])
    shown = [o for o in cell.get("outputs", []) if not (silent and o.get("name") == "stderr")]
    return [{**o, "execution_count": None} if "execution_count" in o else o for o in shown]


def _announce(page: dict[str, Any], job: Job) -> None:
    """Say below the title of a page that it comes from a run, and from which."""
    if (BOOK / "_runs" / job.study.name / "findings.ipynb").is_file():
        cell = next(c for c in page["cells"] if c["cell_type"] == "markdown")
        note = WORKSHOP.format(scale=job.run.scale)
        cell["source"] = re.sub(r"\A(# .*)", rf"\1\n{note}", "".join(cell["source"]))


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
    files = [p for p in files if GENERATED not in p.parents or p.name == "toc.yml"]
    files += [ROOT / "_config.yml", *reference.FILES, *(ROOT / "ethalign").rglob("*.py")]
    files += SAMPLES.glob("*.csv")  # handouts
    files += (ROOT / "configs").rglob("*.yaml")
    files += [p for p in results.RESULTS.rglob("*.json*") if p.is_file()]
    return "".join(f"{os.path.relpath(p, ROOT)} {sources.sha256(p)}\n" for p in sorted(files))
