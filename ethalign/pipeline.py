"""Notebooks executed by papermill, in the order that Snakemake gives them.

Snakemake owns order, parallelism and what to run again; papermill owns execution. What is here
checks parameters first, keeps the notebook of a failed run, and shows progress a person can
follow. Settings travel in a file, so that any job can be repeated by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ethalign import code, config, plots, records, sources, study, warm
from ethalign.config import ROOT, UserError, digest
from ethalign.study import Job

#: Parameters, by its name, from which on a model is tuned and asked with no other beside it: with
#: 1.5 billion a tuning took 13 GB and an evaluation 11.
LARGE = 1e9


def execute(notebook: Path, target: Path, parameters: Mapping[str, Any], shows: str = "") -> None:
    """Execute one notebook with papermill.

    The copy grows beside ``target`` and moves there when it has succeeded; that of a failed run
    stays as ``<target>.failed.ipynb``.

    Args:
        notebook: the source, with one annotated cell tagged ``parameters``.
        target: where the executed copy goes.
        parameters: values for that cell.
        shows: what the copy is made of (see ``page_hash``), to be noted in it.

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
    with warm.kernels() as (options, errors):
        try:
            papermill.execute_notebook(
                str(notebook),
                str(kept),
                parameters=dict(parameters),
                kernel_name="python3",
                progress_bar=False,
                cwd=str(ROOT),
                request_save_on_cell_execute=False,
                # A remark on how kernels talk helps nobody.
                extra_arguments=["--log-level=CRITICAL"],
                **options,
            )
        except PapermillExecutionError as error:
            if error.ename == "UserError":
                kept.unlink(missing_ok=True)
                raise UserError(str(error.evalue)) from None
            records.write(kept, config.mask(kept.read_text(encoding="utf-8")))
            raise RuntimeError(
                f"{notebook.name} failed with {error.ename}: {error.evalue}; the notebook with the"
                f" traceback is kept at {kept}"
            ) from None
        except RuntimeError as error:  # of the kernel itself
            said = errors.read_text(errors="replace").strip() if errors.exists() else ""
            why = config.mask(said) or "it may have been ended for want of memory"
            raise RuntimeError(f"{notebook.name}: {error}; {why}") from None
    seal(kept, shows)
    kept.replace(target)


def seal(page: Path, shows: str = "") -> None:
    """Leave out of an executed notebook where it lay; note in it what it shows, and a hash.

    Its figures are made lighter, since they lie in the notebook and once more beside its page.
    """
    content = json.loads(page.read_text(encoding="utf-8"))
    for key in ("input_path", "output_path"):
        content["metadata"]["papermill"].pop(key)
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = plots.lighter(data["image/png"])
    content["metadata"]["shows"] = shows
    content["metadata"]["check"] = digest(content)
    records.write(page, json.dumps(content, indent=1) + "\n")


def intact(page: Path, shows: str = "") -> bool:
    """Is an executed notebook there as it was sealed, and does it show what it should?"""
    try:
        content = json.loads(page.read_text(encoding="utf-8"))
        check = content["metadata"].pop("check")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return bool(check == digest(content)) and content["metadata"].get("shows") == shows


def page_hash(job: Job) -> str:
    """Hash of everything that a page shows: its stage, its notebook's code, plots and tables.

    Prose is left out, since ``refresh_prose`` brings it into the book without a run.
    """
    shown = {
        "stage": job.fingerprint(),
        "code": code.reach_of_text("\n".join(code_cells(notebook_of(job)))),
        "measure": code.reach(job.study.measure) if job.study.measure else {},
    }
    if job.stage.compute is None:  # such a page shows the committed results beside a run
        paths = sorted((ROOT / "results" / job.study.name).rglob("*.json*"))
        shown["reference"] = {str(p.relative_to(ROOT)): sources.sha256(p) for p in paths}
    return digest(shown)


def notebook_of(job: Job) -> Path:
    """The source of a page."""
    return ROOT / "notebooks" / job.study.name / f"{job.stage.name}.ipynb"


def code_cells(notebook: Path) -> list[str]:
    """Source of every code cell, without magics."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = ("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return [re.sub(r"(?m)^\s*[%!].*$", "", text) for text in source]


def refresh_prose(executed: Path, source: Path, target: Path) -> None:
    """Copy an executed notebook into the book, with the prose of its source as it is now.

    Editing a paragraph must not train a model again, and must not leave the old text in the book
    either: cells are matched by id, and outputs stay with their code.
    """
    done = json.loads(executed.read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = []
    made = {c["id"]: c for c in done["cells"]}
    for fresh in json.loads(source.read_text(encoding="utf-8"))["cells"]:
        tags = fresh["metadata"].get("tags", [])
        if fresh["cell_type"] == "markdown":
            cells.append(fresh)
        elif own := made.get(fresh["id"]):
            own["metadata"]["tags"] = tags  # what of a cell a page shows
            cells.append(own)
        if "parameters" in tags:
            told = [(c, c["metadata"].get("tags", [])) for c in made.values()]
            cells += [c for c, known in told if "injected-parameters" in known]
    for cell in cells:
        cell["metadata"].pop("papermill", None)
        cell["metadata"].pop("execution", None)
    done["cells"] = cells
    for key in ("papermill", "check", "shows"):
        done["metadata"].pop(key, None)
    records.write(target, json.dumps(done, indent=1) + "\n")


def run(
    studies: Sequence[str],
    *,
    variants: Sequence[str] = (),
    scale: str = "tiny",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    points: Mapping[str, Mapping[str, Any]] | None = None,
    runs: str = "runs",
    stage: str | None = None,
    cores: int | None = None,
    profile: str | None = None,
) -> int:
    """Bring studies up to date in one go; the number of notebooks that were executed.

    Every configuration is resolved and the data are read before the first notebook starts.
    ``points`` are the folders below ``runs`` of a sweep and what is set there besides; what
    does not depend on it is worked out once.

    Raises:
        UserError: a mistake in what was asked for, here or in a notebook.
        RuntimeError: a notebook failed.
    """
    settings = {
        "studies": share(studies, overrides or {}),
        "points": {name: share(studies, more) for name, more in (points or {".": {}}).items()},
        "variants": list(variants),
        "scale": scale,
        "seeds": list(seeds),
        "runs": str(ROOT / runs),
        "stage": stage,
        "here": profile is None,
    }
    if cores is not None and cores < 1:
        raise UserError(
            f"--cores {cores} is not a number of processor cores; leave it out for all."
        )
    if not runs or {*"{}"} & {*str(ROOT / runs)}:  # Snakemake would take them for wildcards
        raise UserError(f"--runs {runs!r} is no folder for runs; give a name without braces.")
    with records.exclusive(ROOT / runs / ".lock", ROOT / runs):
        jobs = plan(settings)
        check(jobs, here=profile is None)
        known: dict[tuple[Path, str], bool] = {}
        left = [job for job in jobs if stale(job, known)]
        if not left:
            return 0
        for job in left:
            job.page.unlink(missing_ok=True)
        path = ROOT / runs / ".settings" / f"{digest(settings)}.yaml"
        records.write(path, settings)
        return _snakemake(jobs, path, cores or os.cpu_count() or 1, profile)


def stale(job: Job, known: dict[tuple[Path, str], bool]) -> bool:
    """Has a page to be made anew?

    If it is not there as it should be, lacks its records, or shows others that will be made anew,
    which on another machine need not be the same to the last digit. ``known`` keeps, for the next
    call, which records are up to date.
    """
    for one in (job, *job.before().values()):
        place = one.where, one.stage.name
        if place not in known:
            known[place] = not one.stage.compute or one.state() == "keep"
        if not known[place]:
            return True
    return not intact(job.page, page_hash(job))


def share(studies: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Study to those overrides that it knows.

    Raises:
        UserError: a parameter that none of them has; names the nearest.
    """
    known = {n: [key for key, *_ in config.parameters(study.find(n).run)] for n in studies}
    found: dict[str, dict[str, Any]] = {name: {} for name in studies}
    for key, value in overrides.items():
        # A key below one that is known is an entry of a mapping.
        owners = [name for name, keys in known.items() if config.within(key, keys)]
        if not owners:
            every = sorted({k for keys in known.values() for k in keys})
            raise UserError(f"unknown parameter {key!r}{config.nearest(key, every)}")
        for name in owners:
            found[name][key] = value
    return found


def plan(settings: Mapping[str, Any]) -> list[Job]:
    """The jobs of a settings file, in order."""
    only, scale, seeds, runs, stage = (
        settings[key] for key in ("variants", "scale", "seeds", "runs", "stage")
    )
    return [
        job
        for point, more in settings["points"].items()
        for name, overrides in settings["studies"].items()
        for job in study.plan(
            name, only, scale, seeds, {**overrides, **more[name]}, Path(runs, point), stage
        )
    ]


def rules(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the Snakefile makes of a settings file: a rule per job that is left, see ``rule``.

    Pages that are up to date take no part: Snakemake would make them anew behind one that is not,
    and of several that follow each other only the first. Of work that is the same at several
    points of a sweep the first does it, and the others wait for it and take over what it left.
    """
    found, first, left = [], dict[tuple[str, str], Job](), set[str]()
    known: dict[tuple[Path, str], bool] = {}
    for job in plan(settings):
        same = job
        if job.stage.compute:
            same = first.setdefault((job.stage.name, job.fingerprint()), job)
        if stale(job, known):
            left.add(str(job.page))
            point = os.path.relpath(job.runs, settings["runs"])
            before = None if same is job else same
            found.append(rule(job, point, before, here=settings.get("here", True)))
    for made in found:
        made["input"] = [page for page in made["input"] if page in left]
    return found


def rule(
    job: Job, point: str = ".", same: Job | None = None, *, here: bool = True
) -> dict[str, Any]:
    """Name, input, output, parameters and command of a job; ``same`` did its work before.

    ``here``: it runs on this machine, rather than on a node of a cluster.
    """
    parts = [job.study.name, job.stage.name]
    call = list(parts)
    if job.stage.compute:
        parts += [job.run.variant, str(job.run.seed)]
        call += ["--variant", job.run.variant, "--seed", str(job.run.seed)]
    if point != ".":
        parts.append(point)
        call += ["--point", point]
    if same:
        call += ["--same", str(same.where)]
    return {
        "name": re.sub(r"\W", "_", "_".join(parts)),
        "input": [str(j.page) for j in (*job.before().values(), *([same] if same else []))],
        "output": str(job.page),
        # To take over what another job left wants no processor for itself.
        "alone": (job.stage.alone or (here and large(job))) and not same,
        "gpu": int(on_gpu(job)),
        "call": shlex.join(call),
    }


def large(job: Job) -> bool:
    """Does a job on this machine want its memory, rather than that of a card, for itself?"""
    held = _holds(job) and records.size_of(job.run.model.id) >= LARGE
    return held and not (on_gpu(job) and cards())  # last, since it asks the driver


def on_gpu(job: Job) -> bool:
    """Does a job want a GPU, if there is one?"""
    return _holds(job) and job.run.model.device != "cpu"


def _holds(job: Job) -> bool:
    return "model.id" in job.stage.models and not job.run.served


def cards() -> list[str]:
    """The NVIDIA GPUs that may be used here, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        call = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except OSError:
        return []
    return re.findall(r"(?m)^GPU (\d+):", call.stdout)


@contextlib.contextmanager
def card() -> Iterator[None]:
    """A GPU that no other job on this machine has; waits for one, if the machine has any."""
    # A scheduler has given its job a card; jobs beside it may see theirs under the same number.
    free = [] if "SLURM_JOB_ID" in os.environ else cards()
    places = {n: f"{tempfile.gettempdir()}/ethalign-{os.getuid()}-gpu-{n}" for n in free}
    for name, place in itertools.cycle(places.items()):
        try:
            held = FileLock(place).acquire(timeout=0.2)
        except Timeout:
            continue
        with held:
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            yield
        return
    yield


def check(jobs: Sequence[Job], *, here: bool = True) -> None:
    """``preflight`` of every job, and once for the same settings that of its study."""
    for job in {digest(j.run.model_dump(mode="json")): j for j in jobs}.values():
        job.study.preflight(job.run)
    for job in jobs:
        preflight(job, here=here)


def preflight(job: Job, *, here: bool = True) -> None:
    """Refuse what can be refused before anything is loaded: files, models, hardware.

    ``here``: notebooks run on this machine, rather than on nodes of a cluster.
    """
    from ethalign import models

    job.stage.files(job.given)
    for key, name in job.run.values(job.stage.models).items():
        if name and not (job.run.served and key == "model.id"):
            models.known(str(name))
        if here and key == "model.id" and job.run.model.quantization == "nf4":
            models.need_four_bits(models.choose_device(job.run.model.device)[0])


def end_with_parent() -> None:
    """End this process and all below it once the command line that ordered them is gone.

    Against SIGKILL, which nobody can pass on. ``ETHALIGN_PARENT`` names the process; it is not
    set for the jobs of a cluster, which run elsewhere.
    """
    import psutil

    def watch(number: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(number)
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.2)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        os._exit(1)

    if number := os.environ.get("ETHALIGN_PARENT"):
        threading.Thread(target=watch, args=[int(number)], daemon=True).start()


def profile_of(name: str | None) -> Path:
    """The folder of a profile, or of the one for a single machine."""
    folder = ROOT / "workflow" / "profiles"
    config.choose("profile", name or "default", sorted(p.name for p in folder.iterdir()))
    return folder / (name or "default")


def _snakemake(jobs: Sequence[Job], path: Path, cores: int, profile: str | None) -> int:
    folder = profile_of(profile)
    progress, log = path.with_suffix(".progress"), path.with_suffix(".log")
    progress.write_text("")
    for job in jobs:
        _complaint(job.page).unlink(missing_ok=True)
    command = [sys.executable, "-m", "snakemake", "--nolock", "--directory", str(ROOT)]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--configfile", str(path)]
    command += ["--profile", str(folder), "--cores", str(cores), "--logger", "ethalign"]
    if not profile and (found := cards()):
        command += ["--resources", f"gpu={len(found)}"]
    plugins = [str(ROOT / "workflow"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "ETHALIGN_PROGRESS": str(progress)}
    environment["ETHALIGN_PARENT"] = "" if profile else str(os.getpid())
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, plugins))
    watcher = _Watcher(progress)
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w"))
        if not profile:  # the jobs of a cluster run elsewhere
            environment = stack.enter_context(warm.serving(environment, ROOT, errors))
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            for line in child.stdout or ():
                watcher.take(line)
        finally:
            child.wait()
            watcher.stop()
    complaints = [path for job in jobs if (path := _complaint(job.page)).is_file()]
    if complaints:
        first = json.loads(complaints[0].read_text())
        raise (UserError if first["mistake"] else RuntimeError)(first["says"])
    if child.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        raise RuntimeError(f"the pipeline failed; its log is {log}:\n{tail}")
    return watcher.executed


def _complaint(page: Path) -> Path:
    """Where a failed job says why, for whoever started it, perhaps on another machine."""
    return page.with_suffix(".error.json")


class _Watcher:
    """Shows lines of the pipeline and, in a terminal, the newest state of the progress bars."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.start = path, "", time.monotonic()
        self.executed = 0
        self._begun: dict[int, tuple[str, float]] = {}
        self._live, self._done = sys.stderr.isatty(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def take(self, line: str) -> None:
        """Show one event of Snakemake, a line of JSON (see the logger plugin in workflow/)."""
        try:
            event = json.loads(line)
            kind = event.pop("event")
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if kind == "job_info" and event["rule_name"] != "all":
            self._begun[event["jobid"]] = event["rule_name"], time.monotonic()
            self.say(f"> {event['rule_name']}")
        elif kind == "job_finished" and event["job_id"] in self._begun:
            name, start = self._begun[event["job_id"]]
            self.executed += 1
            self.say(f"< {name}: {time.monotonic() - start:.0f} s")
        elif kind == "progress":
            # The last step is the rule that only asks for all the others.
            self.count = f"{event['done']}/{event['total'] - 1}"

    def say(self, line: str) -> None:
        """Print one line with the time since the start."""
        count = f"{self.count:>7} " if self.count else ""
        clear = "\r\033[K" if self._live else ""
        passed = f"{time.monotonic() - self.start:6.0f} s"
        print(f"{clear}{passed} {count}{line}", file=sys.stderr, flush=True)

    def _watch(self) -> None:
        while self._live and not self._done.wait(1):
            bar = self.path.read_text(errors="replace")[-400:].split("\r")[-1].strip()
            print(f"\r\033[K{bar[:110]}", end="", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End the watch."""
        self._done.set()
        self._thread.join(timeout=2)


def notebook(
    path: Path,
    name: str,
    stage: str,
    variant: str | None,
    seed: int | None,
    point: str = ".",
    same: Path | None = None,
) -> int:
    """One Snakemake job: execute a notebook with the settings of a file; the exit code."""
    end_with_parent()
    settings = config.read_yaml(path)
    seeds = settings["seeds"] if seed is None else [seed]
    overrides = {**settings["studies"][name], **settings["points"][point][name]}
    runs = str(Path(settings["runs"], point))
    here = study.job(name, stage, variant, settings["scale"], seeds[0], overrides, runs, seeds)
    if same:
        here.adopt(same)
    values = {"scale": settings["scale"], "overrides": overrides}
    values["runs"] = os.path.relpath(runs, ROOT)  # a page names no place on this machine
    known = code_cells(notebook_of(here))[0]
    values |= {"seeds": seeds} if re.search(r"^seeds\b", known, re.M) else {"seed": seeds[0]}
    if variant is not None and here.stage.variant is None:
        values["variant"] = variant
    try:
        with card() if on_gpu(here) else contextlib.nullcontext():
            execute(notebook_of(here), here.page, values, page_hash(here))
        return 0
    except (UserError, RuntimeError) as error:
        mistake = isinstance(error, UserError)
        again = "" if mistake else f"; repeat this job alone with `{here.command}`"
        said = config.mask(f"{error}{again}")
        records.write(_complaint(here.page), {"mistake": mistake, "says": said})
        print(f"ethalign: {said}", file=sys.stderr, flush=True)
        return 2 if mistake else 1
