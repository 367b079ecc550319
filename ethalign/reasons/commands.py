"""Commands of the reasons study: sheets for people who rate the reasons that models gave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "rate"
APP = typer.Typer(help="Have people rate the reasons that models gave.", no_args_is_help=True)
Key = Annotated[Path, typer.Option(help="CSV that says which row is whose; keep it apart")]
KEY = Path("rating-key.csv")


@APP.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="folder of runs, e.g. runs/reasons/tiny")],
    out: Annotated[Path, typer.Argument(help="CSV for the raters")],
    key: Key = KEY,
    raters: int = 2,
    rows: Annotated[int | None, typer.Option(help="draw so many; default: all")] = None,
    seed: int = 0,
) -> None:
    """Write a blinded CSV of reasons for human raters.

    Example: ethalign rate export runs/reasons/tiny ratings.csv --raters 3
    """
    from ethalign.reasons import rating

    found = rating.gather(folder)
    typer.echo(rating.rate_export(found, out, key, raters=raters, rows=rows, seed=seed))


@APP.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="the raters' CSV files")], key: Key = KEY
) -> None:
    """Misalignment rate and agreement from filled-in rating files.

    Example: ethalign rate import ratings-1.csv ratings-2.csv --key rating-key.csv
    """
    from ethalign.reasons import rating

    typer.echo(rating.rate_import(files, key))
