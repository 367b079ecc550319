"""Data sets: loaders that check what they read, and the rows of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from ethalign.config import ROOT, Columns, Data, Run, UserError
from ethalign.sources import fetch, folder_sha256, sha256

SAMPLES = ROOT / "data" / "samples"
SCRUPLES = ("dilemmas", "anecdotes", "anecdotes-votes", "dilemmas-disagreement")
QUESTIONS = ("triviaqa", "nonambigqa", "puqa", "pkqa", "mmlu", "questions", "papers", "options")


def load(
    name: str,
    split: str = "test",
    source: str = "official",
    *,
    columns: Columns | None = None,
    labels: Mapping[str, str] | None = None,
    repair_encoding: bool = False,
) -> pd.DataFrame:
    """A data set as a validated table.

    Args:
        name: ``dfar``, ``ethos`` or ``justice``; ``dilemmas``, ``anecdotes``,
            ``anecdotes-votes`` or ``dilemmas-disagreement`` (see ``ethalign.votes``);
            ``triviaqa``, ``nonambigqa``, ``puqa``, ``pkqa`` or ``mmlu``, of the samples
            ``questions``, ``papers`` or ``options`` (see ``ethalign.questions``); with
            ``source="path"`` the path of a CSV.
        split: ``train`` or ``test`` (ETHOS has no split and is only ever tested on); Scruples
            has ``dev`` too, and its sample of 60 anecdotes is called ``excerpt``.
        source: ``sample`` (shipped with the project), ``official`` or ``path``.
        columns, labels: names of columns and meaning of label values of an own CSV.
        repair_encoding: undo the double encoding of DFAR's test reasons. Off here, so that
            the table is the file as published; a run's configuration switches it on.

    Returns:
        For votes see ``votes.load``, for questions ``questions.load``. Else columns
        ``id, statement, label, reason`` (str; label ``ethical`` or ``unethical``) and the file's
        further ones; ETHOS adds ``share``, the share of hate votes in [0, 1]. ``attrs`` holds
        ``dataset`` (the name in metrics), ``path`` and ``sha256``.

    Raises:
        UserError: a file that is missing, altered or off its schema.
    """
    if source == "path":
        return _own(Path(name), columns or Columns(), labels or Data().labels)
    if source not in ("sample", "official"):
        raise UserError(f"data source {source!r} is not one of sample, official, path.")
    if name in SCRUPLES:
        from ethalign import votes

        return votes.load(name, split, source)
    if name in QUESTIONS:
        from ethalign import questions

        return questions.load(name, split, source)
    loaders = {"dfar": _dfar, "ethos": _ethos, "justice": _justice}
    if name not in loaders:
        raise UserError(
            f"data set {name!r} is not one of {', '.join([*loaders, *SCRUPLES, *QUESTIONS])}."
        )
    if split not in ("train", "test") or (name, split) == ("ethos", "train"):
        raise UserError(f"data set {name} has no split {split!r}.")
    if source == "sample" and name == "justice":
        raise UserError("ETHICS justice has no sample; use source='official'.")
    return loaders[name](split, source, repair_encoding)


def _dfar(split: str, source: str, repair: bool) -> pd.DataFrame:
    if source == "sample":
        path = SAMPLES / "statements.csv"
        frame = read_csv(path, ["id", "Statement", "Label", "Reason", "split"])
        frame = frame[frame["split"] == split].drop(columns="split")
    else:
        path = fetch(f"dfar-{split}")
        frame = read_csv(path, ["Statement", "Label", "Reason"])
        frame.insert(0, "id", [f"dfar-{split}-{i}" for i in range(len(frame))])
    frame = frame.rename(columns=str.lower)
    frame["label"] = _labels(frame["label"], Data().labels, path)
    if repair and source == "official":
        frame["reason"] = frame["reason"].map(mend_encoding)
    return stamp(frame, "dfar" if source == "official" else "statements", path)


def _ethos(split: str, source: str, repair: bool) -> pd.DataFrame:
    path = SAMPLES / "comments.csv" if source == "sample" else fetch("ethos-test")
    frame = read_csv(path, ["comment", "isHate"], separator=";")
    share = pd.to_numeric(frame["isHate"], errors="coerce")
    bad = frame.index[~share.between(0, 1)]
    if len(bad):
        raise UserError(f"{path}, row {bad[0] + 2}, column isHate: not a share in [0, 1].")
    name = "ethos" if source == "official" else "comments"
    return stamp(
        pd.DataFrame(
            {
                "id": [f"{name}-{i}" for i in range(len(frame))],
                "statement": frame["comment"],
                # >= as the data set's authors do; 74 comments sit exactly at one half.
                "label": np.where(share >= 0.5, "unethical", "ethical"),
                "reason": "",
                "share": share,
            }
        ),
        name,
        path,
    )


def _justice(split: str, source: str, repair: bool) -> pd.DataFrame:
    path = fetch(f"justice-{split}")
    frame = read_csv(path, ["label", "scenario"])
    # ETHICS codes 1 = reasonable, the opposite sense of DFAR's 1 = unethical.
    label = _labels(frame["label"], {"0": "unethical", "1": "ethical"}, path)
    ids = [f"justice-{split}-{i}" for i in range(len(frame))]
    table = {"id": ids, "statement": frame["scenario"], "label": label, "reason": ""}
    return stamp(pd.DataFrame(table), "justice", path)


def justice() -> pd.DataFrame:
    """All of ETHICS justice (train and test), the source of many statements of DFAR."""
    return pd.concat([load("justice", split) for split in ("train", "test")], ignore_index=True)


def _own(path: Path, columns: Columns, labels: Mapping[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is missing; data.train and data.test take the path of a CSV.")
    names = {"statement": columns.statement, "label": columns.label}
    hint = (
        "; name yours with"
        " --set data.columns.statement=… data.columns.label=… data.columns.reason=…"
    )
    frame = read_csv(path, list(names.values()), blank_ok=[columns.reason], hint=hint)
    table = {
        "id": [f"{path.stem}-{i}" for i in range(len(frame))],
        "statement": frame[names["statement"]],
        "label": _labels(frame[names["label"]], labels, path),
        "reason": frame.get(columns.reason, ""),
    }
    return stamp(pd.DataFrame(table), "own", path)


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


def _labels(values: pd.Series[str], meaning: Mapping[str, str], path: Path) -> pd.Series[str]:
    mapped = values.str.strip().map(dict(meaning))
    bad = mapped.index[mapped.isna()]
    if len(bad):
        value = values[bad[0]]
        raise UserError(
            f"{path}, row {bad[0] + 2}, label {value!r} has no meaning; say which with"
            f" --set data.labels.{value}=ethical (or unethical)."
        )
    return mapped


def stamp(frame: pd.DataFrame, dataset: str, path: Path) -> pd.DataFrame:
    """``frame`` with the name of its data set, its file and the file's SHA-256 in ``attrs``."""
    frame = frame.reset_index(drop=True)
    digest = folder_sha256(path) if path.is_dir() else sha256(path)
    frame.attrs = {"dataset": dataset, "path": str(path), "sha256": digest}
    return frame


def mend_encoding(text: str) -> str:
    """Undo text that was read as Windows-1252 and written as UTF-8 once too often."""
    return re.sub(r"[^\x00-\x7f]+", _mend_run, text)


def _mend_run(match: re.Match[str]) -> str:
    run = match.group()
    try:
        # Windows-1252 leaves five bytes undefined; they pass through as they are.
        raw = b"".join(
            c.encode("latin-1") if "\x7f" < c < "\xa0" else c.encode("cp1252") for c in run
        )
        return raw.decode("utf-8")
    except UnicodeError:
        return run


class Splits(NamedTuple):
    """Training rows, test tables by data set name, and the rows a language model is tuned on."""

    train: pd.DataFrame
    tests: dict[str, pd.DataFrame]
    tuning: pd.DataFrame


def splits(run: Run) -> Splits:
    """The rows of a run, with its limits applied (a seeded sample, in file order).

    Test tables get two columns: ``stratum``, ``contaminated`` if the statement occurs in the
    training file, else ``clean``; and ``seen``, whether it is among the rows a language model is
    tuned on.
    ``shuffle_labels`` permutes training labels; the reasons move with them.
    """
    settings = run.data
    whole = _split(settings, "train")
    train = limit(whole, settings.limit_train, run.seed)
    if settings.shuffle_labels:
        order = np.random.default_rng(run.seed).permutation(len(train))
        train[["label", "reason"]] = train[["label", "reason"]].to_numpy()[order]
    tuned = limit(train, run.tuning.rows, run.seed)
    tables = [_split(settings, "test")]
    if settings.cross:
        tables.append(load("ethos", "test", settings.source))
    tests = {}
    for table in tables:
        shared = table["statement"].isin(whole["statement"])
        table["stratum"] = np.where(shared, "contaminated", "clean")
        table["seen"] = table["statement"].isin(tuned["statement"])
        tests[str(table.attrs["dataset"])] = limit(table, settings.limit_test, run.seed)
    return Splits(train, tests, tuned)


def _split(settings: Data, split: Literal["train", "test"]) -> pd.DataFrame:
    path = settings.train if split == "train" else settings.test
    if path is None:
        return load("dfar", split, settings.source, repair_encoding=settings.repair_encoding)
    return load(path, split, "path", columns=settings.columns, labels=settings.labels)


def limit(frame: pd.DataFrame, rows: int | None, seed: int) -> pd.DataFrame:
    """A seeded sample of at most ``rows`` rows, in their order; None for all."""
    if rows is None or rows >= len(frame):
        return frame
    attrs = frame.attrs
    frame = frame.sample(rows, random_state=seed).sort_index().reset_index(drop=True)
    frame.attrs = attrs
    return frame
