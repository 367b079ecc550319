"""The command line. A user's mistake ends with exit code 2 and one sentence, no traceback."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ethalign import __version__, config
from ethalign.config import UserError

app = typer.Typer(
    help="Reproducible companion to three papers on language-model alignment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
rate = typer.Typer(help="Have people rate the reasons that models gave.", no_args_is_help=True)
app.add_typer(rate, name="rate")

Study = Annotated[str, typer.Argument(help="reasons, ambiguity or honesty")]
Scale = Annotated[str, typer.Option(help="smoke, tiny, small, paper or paper-mistral")]
Seeds = Annotated[list[int], typer.Option("--seed", help="repeat for several")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--set", help="key=value, repeated or several in a row"),
]
Runs = Annotated[str, typer.Option(help="folder for runs")]


@app.command(context_settings={"allow_extra_args": True})
def run(
    context: typer.Context,
    study: Study,
    variant: Annotated[Optional[list[str]], typer.Option(help="only these")] = None,  # noqa: UP045
    scale: Scale = "tiny",
    seed: Seeds = [0],  # noqa: B006 - typer copies it
    settings: Settings = None,
    cores: Annotated[Optional[int], typer.Option(help="default: all")] = None,  # noqa: UP045
    profile: Annotated[Optional[str], typer.Option(help="folder of workflow/profiles")] = None,  # noqa: UP045
    runs: Runs = "runs",
) -> None:
    """Run a study: whatever is missing or out of date, and nothing else.

    Example: ethalign run reasons --scale tiny --set tuning.epochs=1
    """
    from ethalign import pipeline

    pairs = [config.parse_setting(s) for s in [*(settings or []), *context.args]]
    for name in variant or []:
        config.choose("variant", name, config.variants(study))
    count = pipeline.run(
        study,
        variants=variant or [],
        scale=scale,
        seeds=seed,
        overrides=dict(pairs),
        cores=cores,
        profile=profile,
        runs=runs,
    )
    done = f"{count} notebooks executed" if count else "everything is up to date"
    typer.echo(f"{done}; results are in {runs}/{scale}/{study}/")


@app.command()
def fetch() -> None:
    """Download and verify the packaged models and the official data sets.

    Example: ethalign fetch
    """
    from ethalign import models, sources

    for name in ("smollm2-135m-instruct", "minilm-l6"):
        typer.echo(f"{name}: {models.packaged(name)}")
    for name in sources.SOURCES:
        if name not in sources.OPTIONAL:
            typer.echo(f"{name}: {sources.fetch(name)}")


@app.command()
def datasets() -> None:
    """List the data sets: file, licence, address, and whether it is here.

    Example: ethalign datasets
    """
    from ethalign import data, sources

    samples = ", ".join(f"data/samples/{p.name}" for p in sorted(data.SAMPLES.glob("*.csv")))
    typer.echo(f"shipped samples: {samples}")
    for name, source in sources.SOURCES.items():
        state = "here" if sources.present(name) else "not here (ethalign fetch)"
        typer.echo(f"{name:22} {source.licence:10} {state:25} {source.url}")


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
    cores: Annotated[Optional[int], typer.Option(help="default: all")] = None,  # noqa: UP045
) -> None:
    """Run every study and build the book.

    Example: ethalign book
    """
    from ethalign import pipeline, publishing

    overrides = dict(config.parse_setting(s) for s in settings or [])
    count = 0
    for study in config.studies():
        count += pipeline.run(study, scale=scale, overrides=overrides, runs=runs, cores=cores)
    page = publishing.build(scale, runs)
    typer.echo(f"{count} notebooks executed; open {page}")


@app.command()
def compare(
    study: Study = "reasons",
    scale: Scale = "small",
    stratum: Annotated[str, typer.Option(help="all, clean or contaminated")] = "all",
) -> None:
    """Set the paper's printed figures beside the committed reference results.

    Example: ethalign compare reasons --stratum clean
    """
    from ethalign import records

    table = records.compare(study, records.published(study, scale), stratum)
    typer.echo(_table(table))


def _table(table: Any) -> str:
    from ethalign.plots import shown

    heads = ("paper", "data", "metric", "paper", "ours", "95 % interval", "verdict")
    rows: list[tuple[str, ...]] = [heads]
    for row in table.to_dict("records"):
        numbers = [row[key] for key in ("value_reported", "value", "low", "high")]
        told, ours, low, high = ("-" if x != x else shown(x, row["unit"]) for x in numbers)
        span = "" if low == "-" else f"{low} to {high}"
        names = (str(row[key]) for key in ("row", "dataset", "metric"))
        rows.append((*names, told, ours, span, str(row["verdict"])))
    wide = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
        for row in rows
    )


@app.command()
def verify() -> None:
    """Do the committed results still match code, data and parameters?

    Example: ethalign verify
    """
    from ethalign import publishing

    findings = publishing.verify()
    for where, problem in findings:
        typer.echo(f"{where}: {problem or 'matches'}")
    if any(problem for _, problem in findings):
        raise typer.Exit(1)


@app.command()
def publish(
    study: Study,
    scale: Scale = "small",
    seed: Seeds = [0],  # noqa: B006
    runs: Runs = "runs",
) -> None:
    """Copy finished runs' small records to results/, without any text of a data set.

    Example: ethalign publish reasons --scale small
    """
    from ethalign import publishing

    for variant in config.variants(study):
        for number in seed:
            typer.echo(str(publishing.publish(study, variant, scale, number, runs)))


@app.command()
def doctor() -> None:
    """Say what this machine can run.

    Example: ethalign doctor
    """
    from ethalign import publishing

    for line in publishing.examine():
        typer.echo(line)


@rate.command("export")
def rate_export(
    folder: Annotated[Path, typer.Argument(help="a study's folder, e.g. runs/tiny/reasons")],
    out: Annotated[Path, typer.Argument(help="CSV for the raters")],
    key: Annotated[
        Path, typer.Option(help="CSV that says which row is whose; keep it apart")
    ] = Path("rating-key.csv"),
    raters: int = 2,
    seed: int = 0,
) -> None:
    """Write a blinded CSV of reasons for human raters.

    Example: ethalign rate export runs/tiny/reasons ratings.csv --raters 3
    """
    from ethalign import publishing

    typer.echo(publishing.export_ratings(folder, out, key, raters=raters, seed=seed))


@rate.command("import")
def rate_import(
    files: Annotated[list[Path], typer.Argument(help="the raters' CSV files")],
    key: Annotated[Path, typer.Option(help="the key file of the export")] = Path("rating-key.csv"),
) -> None:
    """Misalignment rate and agreement from filled-in rating files.

    Example: ethalign rate import rater-1.csv rater-2.csv --key rating-key.csv
    """
    from ethalign import rating

    typer.echo(rating.rate_import(files, key))


@app.command(hidden=True)
def notebook(
    study: str,
    stage: str,
    target: str,
    variant: Optional[str] = None,  # noqa: UP045
    seed: Optional[int] = None,  # noqa: UP045
) -> None:
    """Execute one notebook; Snakemake's jobs call this with the settings in the environment."""
    from ethalign import pipeline

    raise typer.Exit(pipeline.job(study, stage, Path(target), variant, seed))


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
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    raise KeyboardInterrupt


def main() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except UserError as error:
        print(f"ethalign: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"ethalign: {error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:  # typer turns Ctrl-C into exit code 130
        if end.code == 130:
            print("\nethalign: stopped; the same command goes on from here.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
