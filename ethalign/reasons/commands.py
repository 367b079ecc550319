"""Commands of the reasons study: sheets for people who rate the reasons that models gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "rate"
APP = typer.Typer(help="Have people rate the reasons that models gave.", no_args_is_help=True)


@APP.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="folder of runs, e.g. runs/reasons/tiny")],
    out: Annotated[Path, typer.Argument(help="CSV for the raters")],
    key: Annotated[
        Path, typer.Option(help="CSV that says which row is whose; keep it apart")
    ] = Path("rating-key.csv"),
    raters: int = 2,
    seed: int = 0,
) -> None:
    """Write a blinded CSV of reasons for human raters.

    Example: ethalign rate export runs/reasons/tiny ratings.csv --raters 3
    """
    from ethalign.reasons import rating

    rows = rating.gather(folder)
    typer.echo(rating.rate_export(rows, out, key, raters=raters, seed=seed))


@APP.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="the raters' CSV files")],
    key: Annotated[Path, typer.Option(help="the key file of the export")] = Path("rating-key.csv"),
) -> None:
    """Misalignment rate and agreement from filled-in rating files.

    Example: ethalign rate import rater-1.csv rater-2.csv --key rating-key.csv
    """
    from ethalign.reasons import rating

    typer.echo(rating.rate_import(files, key))
