"""Data sets by name, and what every loader of rows has in common.

The loaders themselves belong to the studies; ``load`` asks each study for its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import sources, study
from ethalign.config import ROOT, UserError, choose

SAMPLES = ROOT / "data" / "samples"


def load(name: str, split: str = "test", source: str = "official", **options: Any) -> pd.DataFrame:
    """A data set as a validated table.

    Args:
        name: a data set of some study (``ethalign datasets`` lists them); with
            ``source="path"`` the path of a CSV of statements.
        split: ``train`` or ``test``; some have others.
        source: ``sample`` (shipped with the project), ``official`` or ``path``.
        options: of the loader, for instance ``repair_encoding`` of ``dfar``.

    Returns:
        A row per item, with ``id``; the other columns are the data set's own (see its loader).
        ``attrs`` holds ``dataset`` (the name in metrics), ``path`` and ``sha256``.

    Raises:
        UserError: an unknown data set, or a file that is missing, altered or off its schema.
    """
    if source not in ("sample", "official", "path"):
        raise UserError(f"data source {source!r} is not one of sample, official, path.")
    loaders = {key: load for owner in study.everything() for key, load in owner.datasets.items()}
    own = source == "path"
    key = "path" if own else choose("data set", name, [key for key in loaders if key != "path"])
    return loaders[key](name, split, source, **options)


def paths(given: Any, official: dict[str, sources.Source], sample: str) -> dict[str, Path]:
    """Files that a run reads: its own, the official ones, or the shipped sample, by name.

    ``given`` is the ``data`` block of a run, ``sample`` a file in ``data/samples``.
    """
    own = {"train": given.train, "test": given.test}
    if any(own.values()):
        return {key: ROOT / path for key, path in own.items() if path}
    if given.source == "official":
        return {name: sources.fetch(source) for name, source in official.items()}
    return {sample: SAMPLES / sample}


def unique(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """``frame`` if no id stands in it twice.

    Raises:
        UserError: names the row (as an editor counts them) and the id.
    """
    twice = frame.index[frame["id"].duplicated()]
    if len(twice):
        name = frame["id"][twice[0]]
        raise UserError(f"{path}, row {twice[0] + 2}, column id: {name!r} is there twice.")
    return frame


def read_csv(
    path: Path,
    columns: list[str],
    *,
    separator: str = ",",
    blank_ok: list[str] | None = None,
    hint: str = "",
) -> pd.DataFrame:
    """A CSV as text cells, checked.

    Raises:
        UserError: not a CSV in UTF-8, a missing column, an empty file, or an empty cell in one
            of ``columns``; the message names row (as an editor counts them) and column.
    """
    try:
        frame = pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} is not a readable CSV in UTF-8: {error}") from None
    for column in columns:
        if column not in frame:
            have = ", ".join(map(str, frame.columns))
            raise UserError(f"{path} has no column {column!r} (it has: {have}){hint or '.'}")
        blank = frame.index[frame[column].str.strip() == ""]
        if len(blank) and column not in (blank_ok or []):
            raise UserError(f"{path}, row {blank[0] + 2}, column {column}: the cell is empty.")
    if frame.empty:
        raise UserError(f"{path} has a header but no rows.")
    return frame


def stamp(frame: pd.DataFrame, dataset: str, path: Path) -> pd.DataFrame:
    """``frame`` with the name of its data set, its file and the file's SHA-256 in ``attrs``."""
    frame = frame.reset_index(drop=True)
    frame.attrs = {"dataset": dataset, "path": str(path), "sha256": sources.sha256(path)}
    return frame


def limit(frame: pd.DataFrame, rows: int | None, seed: int) -> pd.DataFrame:
    """A seeded sample of at most ``rows`` rows, in their order; None for all."""
    if rows is None or rows >= len(frame):
        return frame
    return frame.sample(rows, random_state=seed).sort_index().reset_index(drop=True)
