"""What a study is, and what a stage of it depends on.

A study is a folder of the package with a module ``study`` that declares ``STUDY``. Everything
shared (pipeline, results, book, command line) asks that declaration and knows no study by name.
One truth about dependence: a stage is given only the settings that it declares, and its
fingerprint covers those settings, its data, its models, the code that computes it and the
fingerprints of the stages before it. From that alone follows whether it is kept, resumed or
started anew; Snakemake asks the same function.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from ethalign import code, config, models, records, sources
from ethalign.config import ROOT, Run, UserError, digest

Rows = list[dict[str, Any]]
State = Literal["keep", "measure", "resume", "anew"]
METRICS = "metrics.json"


class Absent(UserError):
    """A variant does not have a stage."""


class Stage(NamedTuple):
    """One step of a study, told in the notebook of the same name.

    ``reads`` are the settings that it is given, as dotted keys or whole blocks; reading another
    raises. ``compute(run, where, before)`` does the work: it writes ``outputs`` into the folder
    ``where``, goes on from what it finds there, reads earlier stages in the folders ``before``
    (by their names in ``follows``), and returns facts for ``run.json``. Metrics are made from
    these files afterwards, by the study's ``measure``. Without ``compute`` the stage is a page,
    made once for all variants.
    """

    name: str
    reads: tuple[str, ...] = ()
    compute: Callable[[Any, Path, dict[str, Path]], dict[str, Any]] | None = None
    #: Settings of its pace and guards, which it is given but its result does not follow from.
    handles: tuple[str, ...] = ()
    #: Data files by name, found from the settings that the stage is given.
    files: Callable[[Any], Mapping[str, Path]] = lambda run: {}
    #: Keys of the settings that name models; the first is the run folder's coordinate.
    models: tuple[str, ...] = ()
    #: The only variant that has this stage; None for every variant that is not one of these.
    variant: str | None = None
    #: A setting that must be true for a variant to have this stage.
    needs: str = ""
    #: Earlier stages: ``finetune`` of the same variant, ``evaluate:unaligned`` of a fixed one.
    follows: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    #: Files that exist only while the stage is at work.
    scratch: tuple[str, ...] = ()
    #: Use every processor core, since all else waits for this stage.
    alone: bool = False


class Shown(NamedTuple):
    """What the explorer shows of a study's predictions; fields are columns of its records."""

    #: What is known of an item, whoever answers it: field to heading.
    fields: Mapping[str, str]
    #: A predictor's probability in [0, 1] from its records, (n,); None or NaN where it gave none.
    share: Callable[[pd.DataFrame], Any]
    #: What that is the probability of.
    of: str
    #: Words of a run's items, with the columns that name an item (``explorer.KEYS``).
    texts: Callable[[Any], pd.DataFrame]
    #: The columns of these words: field to heading.
    words: Mapping[str, str]
    #: Field of records with what a model wrote.
    wrote: str = ""
    #: Data sets whose words stand behind a content warning.
    flagged: tuple[str, ...] = ()


class Study(NamedTuple):
    """The contract of a study."""

    name: str
    title: str
    run: type[Run]
    stages: tuple[Stage, ...]
    #: Official files by name, and the loaders of data sets by name (see ``data.load``).
    sources: Mapping[str, sources.Source] = {}
    datasets: Mapping[str, Callable[..., pd.DataFrame]] = {}
    #: Refuses what can be refused before anything is loaded; here: on this machine.
    preflight: Callable[[Any], None] = lambda run: None
    #: Rows that a stage works through, of a fine-tuning in all epochs; for estimates of its time.
    work: Callable[[Any, str], int] = lambda run, stage: 0
    #: Variants and other predictors in the order of tables and figures.
    order: tuple[str, ...] = ()
    #: Variant to the one that a paper's step starts from.
    before: Mapping[str, str] = {}
    #: Its place among the studies of the book; those without one come last, by name.
    place: int = 99
    #: The data set that prose speaks of.
    main: str = ""
    #: Fields of records that hold words of a data set or a model; never published.
    texts: tuple[str, ...] = ()
    #: What pages call variants, data sets, strata and measures; other names as they are.
    words: Mapping[str, str] = {}
    #: What the paper asks, in one sentence, and the claim (its id) that answers it.
    question: str = ""
    headline: str = ""
    #: A claim of ``claims.yaml`` in numbers, from one model's predictions by variant, as a
    #: ``claims.Contrast``; None where a variant is missing.
    claims: Callable[..., Any] | None = None
    #: Rows of metrics.json from the records in a run folder and those before it, with or without
    #: their texts; the same function makes and verifies them.
    measure: Callable[[Any, Path, dict[str, Path]], Rows] | None = None
    #: Further numbers that prose quotes, from the reference rows and the folder of results.
    facts: Callable[[pd.DataFrame, Path], dict[str, Any]] = lambda reference, home: {}
    #: What the explorer of predictions shows; None for nothing.
    shown: Shown | None = None


def find(name: str) -> Study:
    """A study by its name; a UserError that names the nearest if there is none."""
    config.choose("study", name, config.studies())
    found: Study = importlib.import_module(f"ethalign.{name}.study").STUDY
    return found


def everything() -> list[Study]:
    """All studies, in the order of the book."""
    return sorted(map(find, config.studies()), key=lambda owner: (owner.place, owner.name))


class Job(NamedTuple):
    """One stage of one run: what is done, with which settings, and where its files lie."""

    study: Study
    stage: Stage
    run: Run
    runs: Path
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]

    @property
    def given(self) -> Any:
        """The run as the stage may read it."""
        keys = (*self.stage.reads, *self.stage.handles)
        return self.run.give(f"{self.study.name}/{self.stage.name}", keys)

    @property
    def home(self) -> Path:
        """``<runs>/<study>/<scale>``."""
        return self.runs / self.study.name / self.run.scale

    @property
    def where(self) -> Path:
        """The run folder, ``<study>/<scale>/<model>/<variant>/<seed>``; of a page the home."""
        if not self.stage.compute:
            return self.home
        model = model_folder(self.run, self.stage)
        return self.home / model / self.run.variant / str(self.run.seed)

    @property
    def page(self) -> Path:
        """Where the executed notebook goes."""
        return self.where / f"{self.stage.name}.ipynb"

    @property
    def command(self) -> str:
        """The command that runs this stage, and what it needs, by itself."""
        parts = ["ethalign", "run", self.study.name, "--stage", self.stage.name]
        parts += ["--scale", self.run.scale]
        if self.stage.compute:
            parts += ["--variant", self.run.variant, "--seed", str(self.run.seed)]
        if self.runs != ROOT / "runs":
            parts += ["--runs", os.path.relpath(self.runs, ROOT)]
        if self.overrides:
            parts += ["--set", *(f"{k}={json.dumps(v)}" for k, v in self.overrides.items())]
        return shlex.join(parts)

    def before(self) -> dict[str, Job]:
        """The jobs whose files this one reads, by name (see ``Stage.follows``)."""
        found, page = {}, self.stage.compute is None
        for name in self.stage.follows:
            stage, _, fixed = name.partition(":")
            only = stage_of(self.study, stage).variant or ("" if page else fixed)
            names = [only] if only else variants(self.study) if page else [self.run.variant]
            for variant, seed in itertools.product(names, self.seeds if page else [self.run.seed]):
                key = f"{stage}:{variant}:{seed}" if page else name
                place = (variant, self.run.scale, seed, self.overrides, self.runs)
                with contextlib.suppress(Absent):
                    found[key] = job(self.study.name, stage, *place)
        own = (self.stage.name, self.run.variant)
        return {k: j for k, j in found.items() if (j.stage.name, j.run.variant) != own}

    def depends(self) -> dict[str, Any]:
        """Everything that the stage's result follows from, as JSON."""
        run = self.run
        used = {key: name for key, name in run.values(self.stage.models).items() if name}
        return {
            "run": [run.study, run.variant, run.seed],
            "settings": digest(run.values(self.stage.reads)),
            "data": {k: sources.sha256(p) for k, p in self.stage.files(self.given).items()},
            "models": {key: models.identity(name, run.seed) for key, name in used.items()},
            "code": code.reach(self.stage.compute) if self.stage.compute else {},
            "before": {name: job.fingerprint() for name, job in self.before().items()},
        }

    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 over ``depends``."""
        return digest(self.depends())

    def state(self) -> State:
        """Keep what is there, only measure it again, resume it, or start anew."""
        facts = records.stages(self.where).get(self.stage.name, {})
        if facts.get("fingerprint") != self.fingerprint():
            return "anew"
        if facts.get("status") != "complete":
            return "resume"
        if facts.get("outputs") != self._hashes():
            return "anew"
        return "keep" if facts.get("measured") == self._measured() else "measure"

    def _hashes(self) -> dict[str, str]:
        """Hash of every output that is there, but for metrics, which follow from the others."""
        paths = [self.where / name for name in self.stage.outputs if name != METRICS]
        return {p.name: sources.sha256(p) for p in paths if p.exists()}

    def _measured(self) -> dict[str, str]:
        """Hash of the metrics that are there, and of the code that makes them today."""
        path = self.where / METRICS
        if METRICS not in self.stage.outputs or self.study.measure is None:
            return {}
        found = sources.sha256(path) if path.is_file() else ""
        return {METRICS: found, "code": digest(code.reach(self.study.measure))}

    def adopt(self, done: Path) -> None:
        """Take over what the same work has left in another run folder, if it is not here."""
        facts = records.stages(done).get(self.stage.name, {})
        if self.state() == "keep" or facts.get("fingerprint") != self.fingerprint():
            return
        for name in self.stage.outputs:
            if (done / name).is_dir():
                shutil.rmtree(self.where / name, ignore_errors=True)
                shutil.copytree(done / name, self.where / name)
            elif (done / name).is_file():
                self.where.mkdir(parents=True, exist_ok=True)
                shutil.copy2(done / name, self.where / name)
        stages = {**records.stages(self.where), self.stage.name: facts}
        record = {**records.provenance(self.run), "set": dict(self.overrides), "stages": stages}
        records.write(self.where / "config.yaml", self.run.model_dump(mode="json"))
        records.write(self.where / "run.json", record)

    def require(self, *, make: bool = False) -> None:
        """Refuse to go on without complete files of earlier stages, or make them.

        Raises:
            UserError: they are missing or out of date; names the command that makes them.
        """
        for job in self.before().values():
            if job.stage.compute and job.state() != "keep":
                if not make:
                    kind = "is out of date" if records.stages(job.where) else "is missing"
                    raise UserError(
                        f"{os.path.relpath(job.where, ROOT)} {kind}; make it with"
                        f" `{job.command}`, or have this notebook make it (with_inputs=True)."
                    )
                job.compute(make=True)

    def compute(self, *, make: bool = False) -> State:
        """Bring the stage's files up to date; returns the state that was found.

        A complete and unchanged stage returns at once. With ``make`` earlier stages that are
        missing or out of date are computed as well.
        """
        assert self.stage.compute is not None
        if self.state() == "keep":
            return "keep"
        self.study.preflight(self.run)
        self.require(make=make)
        lock = self.runs / ".locks" / digest([str(self.where), self.stage.name])
        # Long enough for the processes of a run that was killed to notice it.
        with records.exclusive(lock, self.where, wait=10):
            return self._compute(self.stage.compute, self.state())

    def _compute(self, work: Callable[[Any, Path, dict[str, Path]], Any], state: State) -> State:
        if state == "keep":
            return state
        if state == "anew":
            for path in (self.where / name for name in (*self.stage.outputs, *self.stage.scratch)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        before = {name: job.where for name, job in self.before().items()}
        if state == "measure":
            note = records.stages(self.where)[self.stage.name]
        else:
            depends = self.depends()
            kept = ("settings", "data", "code", "before")
            note = {"fingerprint": digest(depends)} | {key: depends[key] for key in kept}
        with records.stage(self.run, self.where, self.stage.name, note, self.overrides) as facts:
            if state != "measure":
                facts |= work(self.given, self.where, before)
                facts["outputs"] = self._hashes()
            if METRICS in self.stage.outputs and self.study.measure is not None:
                rows = self.study.measure(self.given, self.where, before)
                records.write(self.where / METRICS, rows)
            facts["measured"] = self._measured()
        return state


def job(
    study: str,
    stage: str,
    variant: str | None = None,
    scale: str = "tiny",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    seeds: Sequence[int] = (),
) -> Job:
    """A stage of a run, resolved; what a notebook begins with.

    Args:
        variant: for stages that every variant has; others have one of their own.
        scale, seed, overrides: as for ``config.resolve``.
        runs: folder for runs; a relative one belongs to the project, not to the working folder.
        seeds: of a page that shows several; the first is that of its run.

    Raises:
        UserError: an unknown name, or (``Absent``) a variant without that stage.
    """
    owner = find(study)
    step = stage_of(owner, stage)
    # A page reads what its first variant is set to, since it shows all of them.
    name = step.variant or variant or (None if step.compute else variants(owner)[0])
    if name is None:
        raise Absent(f"stage {stage} needs a variant: {', '.join(variants(owner))}.")
    run = config.resolve(owner.name, name, scale, seed, overrides or {})
    if step.needs and not all(run.values([step.needs]).values()):
        raise Absent(f"variant {name} has no stage {stage} ({step.needs} is false).")
    return Job(
        owner,
        step,
        run,
        Path(os.path.normpath(ROOT / runs)),
        tuple(seeds) or (seed,),
        overrides or {},
    )


def stage_of(study: Study, name: str) -> Stage:
    """A stage of a study by its name."""
    config.choose("stage", name, [stage.name for stage in study.stages])
    return next(stage for stage in study.stages if stage.name == name)


def variants(study: Study) -> list[str]:
    """Variants in the study's order, without those that are stages of their own."""
    own = {stage.variant for stage in study.stages}
    names = [name for name in config.variants(study.name) if name not in own]
    return sorted(names, key=lambda n: (study.order.index(n) if n in study.order else 99, n))


def plan(
    study: str,
    only: Sequence[str] = (),
    scale: str = "tiny",
    seeds: Sequence[int] = (0,),
    overrides: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    stage: str | None = None,
) -> list[Job]:
    """The jobs of a study, of some variants, or of one stage, and those before them, in order.

    Raises:
        UserError: as ``job``.
    """
    owner = find(study)
    for name in only:
        config.choose("variant", name, config.variants(study))
    steps = [stage_of(owner, stage)] if stage else owner.stages
    found: dict[Path, Job] = {}
    for step in steps:
        page = step.compute is None
        if page and only and not stage:
            continue
        names = [step.variant] if step.variant else variants(owner)[: 1 if page else None]
        chosen = [n for n in names if page or n in only or not only]
        for name, seed in itertools.product(chosen, seeds[:1] if page else seeds):
            with contextlib.suppress(Absent):
                more = tuple(seeds) if page else (seed,)
                one = job(study, step.name, name, scale, seed, overrides, runs, more)
                found |= {b.page: b for b in _all_before(one)} | {one.page: one}
    if not found:
        none = ", ".join(only)
        raise UserError(f"{none} has no stage {stage}; leave --variant out to run it.")
    return list(found.values())


def _all_before(job: Job) -> Iterator[Job]:
    for other in job.before().values():
        yield from _all_before(other)
        yield other


def model_folder(run: Run, stage: Stage) -> str:
    """A model id as the name of a folder; local models by folder name and a hash of the path."""
    name = str(next(iter(run.values(stage.models[:1]).values()), "none"))
    folder = Path(name)
    if name not in models.PACKAGED and folder.is_dir():
        tail = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
        name = f"{folder.resolve().name}-{tail}"
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "none"
