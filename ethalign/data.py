"""Data sets by name, and what every loader of rows has in common.

The loaders themselves belong to the studies; ``load`` asks each study for its own.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import sources, study
from ethalign.config import ROOT, UserError, choose

SAMPLES = ROOT / "data" / "samples"
#: Attention needs memory by the square of a text's length: 10,000 characters take some 0.2 GB.
LONGEST = 10_000


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
    """A CSV as text cells, checked; its index is two less than the row that an editor counts.

    Raises:
        UserError: not a CSV in UTF-8, a column that is missing or there twice, an empty file, a
            row with more or fewer cells than the header, or in one of ``columns`` an empty cell
            or one longer than ``LONGEST``; the message names row and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *rows = csv.reader(file, delimiter=separator, strict=True)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        why = "it is empty" if type(error) is ValueError else error
        raise UserError(f"{path} is not a readable CSV in UTF-8: {why}.") from None
    for column in columns:
        if head.count(column) != 1:
            fault = "more than one column" if column in head else "no column"
            have = " ".join(", ".join(head).split())
            raise UserError(f"{path} has {fault} {column!r} (it has: {have}){hint or '.'}")
    for number, row in enumerate(rows, 2):
        if row and len(row) != len(head):
            raise UserError(
                f"{path}, row {number}: {len(row)} cells, and the header has {len(head)}; put"
                f" texts that contain {separator!r} in quotation marks."
            )
    written = [number for number, row in enumerate(rows) if row]
    frame = pd.DataFrame([rows[k] for k in written], index=written, columns=head, dtype=str)
    for column in columns:
        blank = frame.index[frame[column].str.strip() == ""]
        if len(blank) and column not in (blank_ok or []):
            raise UserError(f"{path}, row {blank[0] + 2}, column {column}: the cell is empty.")
        for row in frame.index[frame[column].str.len() > LONGEST]:
            raise UserError(
                f"{path}, row {row + 2}, column {column}: the cell has more than {LONGEST:,}"
                " characters, which no model here can read at once; shorten it."
            )
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
