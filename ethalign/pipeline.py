"""Notebooks executed by papermill, in the order that Snakemake gives them.

Snakemake owns order, parallelism and what to run again; papermill owns execution. What is here
checks parameters first, keeps the notebook of a failed run, and shows progress a person can
follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ethalign import config, records
from ethalign.config import ROOT, UserError

MISTAKE = "ethalign: "


def execute(notebook: Path, target: Path, parameters: Mapping[str, Any]) -> None:
    """Execute one notebook with papermill.

    The copy grows beside ``target`` and moves there when it has succeeded; that of a failed run
    stays as ``<target>.failed.ipynb``.

    Args:
        notebook: the source, with one annotated cell tagged ``parameters``.
        target: where the executed copy goes.
        parameters: values for that cell.

    Raises:
        UserError: an unknown parameter, or a mistake that a cell reported.
        RuntimeError: any other failure of a cell; names the kept notebook.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    known = list(papermill.inspect_notebook(str(notebook)))
    for name in parameters:
        # papermill itself only warns and goes on with the default.
        config.choose("notebook parameter", name, known)
    kept = target.with_suffix(".failed.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(kept),
            parameters=dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            cwd=str(ROOT),
            request_save_on_cell_execute=False,
        )
    except PapermillExecutionError as error:
        if error.ename == "UserError":
            kept.unlink(missing_ok=True)
            raise UserError(str(error.evalue)) from None
        raise RuntimeError(
            f"{notebook.name} failed with {error.ename}: {error.evalue}; the notebook with the"
            f" traceback is kept at {kept}"
        ) from None
    kept.replace(target)


def source_hash(notebook: Path) -> str:
    """Hash of a notebook's code cells and of the package code they reach; prose is left out."""
    return records.code_hash("\n".join(code_cells(notebook)))


def file_hash(path: Path) -> str:
    """SHA-256 of a user's own file, so that editing it runs the stages that read it again."""
    from ethalign.sources import sha256

    return sha256(path)


def results_hash(study: str) -> str:
    """Hash of the committed reference metrics, which the page of results shows beside a run."""
    paths = sorted((ROOT / "results" / study).rglob("*.json*"))
    return records.fingerprint({str(p.relative_to(ROOT)): file_hash(p) for p in paths})


def code_cells(notebook: Path) -> list[str]:
    """Source of every code cell, without magics."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return [re.sub(r"(?m)^\s*[%!].*$", "", text) for text in code]


def refresh_prose(executed: Path, source: Path, target: Path) -> None:
    """Copy an executed notebook into the book, with the prose of its source as it is now.

    Editing a paragraph must not train a model again, and must not leave the old text in the book
    either: cells are matched by id, and outputs stay with their code.
    """
    done = json.loads(executed.read_text(encoding="utf-8"))
    new = {c["id"]: c for c in json.loads(source.read_text(encoding="utf-8"))["cells"]}
    for cell in done["cells"]:
        fresh = new.get(cell["id"])
        if fresh and cell["cell_type"] == "markdown":
            cell["source"] = fresh["source"]
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
    done["metadata"].pop("papermill", None)
    records.write(target, json.dumps(done, indent=1) + "\n")


def run(
    study: str,
    *,
    variants: Sequence[str] = (),
    scale: str = "tiny",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    runs: str = "runs",
    cores: int | None = None,
    profile: str | None = None,
    targets: Sequence[str] = (),
) -> int:
    """Bring a study's results up to date; the number of notebooks that were executed.

    Every configuration is resolved and the data are read before the first notebook starts.

    Raises:
        UserError: a mistake in what was asked for, here or in a notebook.
        RuntimeError: a notebook failed.
    """
    overrides = dict(overrides or {})
    for variant in variants or config.variants(study):
        for seed in seeds:
            preflight(config.load(study, variant, scale, seed, overrides), here=profile is None)
    settings = {
        "study": study,
        "variants": list(variants),
        "scale": scale,
        "seeds": list(seeds),
        "overrides": overrides,
        "runs": runs,
    }
    with exclusive(ROOT / runs):
        return _snakemake(settings, cores or os.cpu_count() or 1, profile, targets)


def preflight(run: config.Run, *, here: bool = True) -> None:
    """Refuse what can be refused before anything is loaded: files, columns, models, hardware.

    Args:
        run: the resolved configuration.
        here: whether notebooks run on this machine, rather than on nodes of a cluster.
    """
    from ethalign import data, endpoint, models, questions, votes

    readers: dict[str, Any] = {"ambiguity": votes.splits, "honesty": questions.splits}
    readers.get(run.study, data.splits)(run)
    models.known(run.baselines.encoder)
    if run.study == "honesty":
        if run.honesty.judge == "endpoint":
            endpoint.Client(run.endpoint, run.honesty.judge_model)
        elif run.honesty.judge == "model":
            models.known(run.honesty.judge_model)
    elif run.endpoint.url:
        if run.tuning.enabled or run.prompt.template != "plain":
            raise UserError(
                "a model behind an endpoint is asked as it is, with prompt.template=plain; run it"
                " with --variant zero-shot."
            )
        return
    models.known(run.model.id)
    if here and run.model.quantization == "nf4":
        models.need_four_bits(models.choose_device(run.model.device)[0])


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One pipeline at a time per folder. The lock dies with its process, unlike Snakemake's."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another run is at work in {folder}; wait for it, or give --runs another folder."
        ) from None
    except OSError as error:
        raise records.disk_error(error, folder) from None
    try:
        yield
    finally:
        lock.release()


def _snakemake(
    settings: Mapping[str, Any], cores: int, profile: str | None, targets: Sequence[str]
) -> int:
    folder = ROOT / "workflow" / "profiles" / (profile or "default")
    if not folder.is_dir():
        known = sorted(p.name for p in folder.parent.iterdir())
        raise UserError(f"unknown profile {profile!r}{config.nearest(str(profile), known)}")
    progress = ROOT / str(settings["runs"]) / ".progress"
    progress.write_text("")
    command = [sys.executable, "-m", "snakemake", *targets]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(ROOT)]
    command += ["--profile", str(folder), "--cores", str(cores), "--nolock"]
    environment = {**os.environ, "ETHALIGN_PROGRESS": str(progress)}
    environment["ETHALIGN_SETTINGS"] = json.dumps(settings)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    watcher = _Watcher(progress)
    mistakes: list[str] = []
    executed, tail = 0, list[str]()
    try:
        for line in child.stdout or ():
            line = line.rstrip()
            tail = [*tail[-40:], line]
            if line.startswith(MISTAKE):
                mistakes.append(line.removeprefix(MISTAKE))
            elif line.startswith(("> ", "< ")):
                executed += line.startswith("< ")
                watcher.say(line)
            elif count := re.search(r"(\d+) of (\d+) steps", line):
                # Without a target the last step is the rule that only asks for all the others.
                watcher.count = f"{count[1]}/{int(count[2]) - (not targets)}"
        child.wait()
    except KeyboardInterrupt:
        child.wait()
        raise
    finally:
        watcher.stop()
    if mistakes:
        raise UserError(mistakes[0]) if child.returncode else RuntimeError(mistakes[0])
    if child.returncode:
        raise RuntimeError("the pipeline failed:\n" + "\n".join(tail))
    return executed


class _Watcher:
    """Shows lines of the pipeline and, in a terminal, the newest state of the progress bars."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.start = path, "", time.monotonic()
        self._live, self._done = sys.stderr.isatty(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def say(self, line: str) -> None:
        """Print one line with the time since the start."""
        count = f"{self.count:>7} " if self.count else ""
        clear = "\r\033[K" if self._live else ""
        print(
            f"{clear}{time.monotonic() - self.start:6.0f} s {count}{line}",
            file=sys.stderr,
            flush=True,
        )

    def _watch(self) -> None:
        while self._live and not self._done.wait(1):
            bar = self.path.read_text(errors="replace")[-400:].split("\r")[-1].strip()
            print(f"\r\033[K{bar[:110]}", end="", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End the watch."""
        self._done.set()
        self._thread.join(timeout=2)


def job(study: str, stage: str, target: Path, variant: str | None, seed: int | None) -> int:
    """One Snakemake job: execute a notebook with the run's settings and say so; the exit code."""
    settings = json.loads(os.environ["ETHALIGN_SETTINGS"])
    values = {key: settings[key] for key in ("scale", "overrides", "runs")}
    if stage == "results":
        values["seeds"] = settings["seeds"]
    else:
        values["seed"] = settings["seeds"][0] if seed is None else seed
    if variant is not None:
        values["variant"] = variant
    name = " ".join(str(part) for part in (study, stage, variant, seed) if part is not None)
    print(f"> {name}", flush=True)
    clock = time.monotonic()
    try:
        execute(ROOT / "notebooks" / study / f"{stage}.ipynb", target, values)
    except (UserError, RuntimeError) as error:
        print(f"{MISTAKE}{error}", flush=True)
        return 2 if isinstance(error, UserError) else 1
    print(f"< {name}: {time.monotonic() - clock:.0f} s", flush=True)
    return 0


def tool(name: str) -> str:
    """Path of a program installed beside this Python."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name) or name
