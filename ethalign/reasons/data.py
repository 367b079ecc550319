"""Statements with labels and reasons: DFAR, ETHOS, ETHICS justice and a user's own tables."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ethalign import sources
from ethalign.config import ROOT, UserError, choose, digest, warn
from ethalign.data import SAMPLES, limit, read_csv, stamp, unique
from ethalign.reasons.settings import Columns, Data, Run
from ethalign.sources import Source

SOURCES = sources.declared("reasons")
_WORD = re.compile(r"[\w']+")
#: Sources that are parts of ETHICS, justice.
JUSTICE = ("justice-train", "justice-test")


def dfar(name: str, split: str, source: str, *, repair_encoding: bool = False) -> pd.DataFrame:
    """DFAR, or the sample statements: columns ``id, statement, label, reason`` and more.

    ``repair_encoding`` undoes the double encoding of the test reasons. It is off here, so that
    the table is the file as published; a run's configuration switches it on.
    """
    choose("DFAR split", split, ["train", "test"])
    if source == "sample":
        path = SAMPLES / "statements.csv"
        frame = read_csv(path, ["id", "Statement", "Label", "Reason", "split"])
        frame = frame[frame["split"] == split].drop(columns="split")
    else:
        path = sources.fetch(SOURCES[f"dfar-{split}"])
        frame = _numbered(f"dfar-{split}", **read_csv(path, ["Statement", "Label", "Reason"]))
    frame = frame.rename(columns=str.lower)
    frame["label"] = _labels(frame["label"], Data().labels, path)
    if repair_encoding and source == "official":
        frame["reason"] = frame["reason"].map(mend_encoding)
    return stamp(frame, "dfar" if source == "official" else "statements", path)


def ethos(name: str, split: str, source: str) -> pd.DataFrame:
    """ETHOS, or the sample comments, only ever tested on.

    Adds a column ``share``, the share of hate votes in [0, 1]. A comment is ``unethical`` from
    one half on, as the data set's authors have it; 74 comments of ETHOS sit exactly there.
    """
    choose("ETHOS split", split, ["test"])
    path = SAMPLES / "comments.csv" if source == "sample" else sources.fetch(SOURCES["ethos-test"])
    frame = read_csv(path, ["comment", "isHate"], separator=";")
    share = pd.to_numeric(frame["isHate"], errors="coerce")
    bad = frame.index[~share.between(0, 1)]
    if len(bad):
        raise UserError(f"{path}, row {bad[0] + 2}, column isHate: not a share in [0, 1].")
    dataset = "ethos" if source == "official" else "comments"
    labels = np.where(share >= 0.5, "unethical", "ethical")
    table = _numbered(dataset, statement=frame["comment"], label=labels, reason="", share=share)
    return stamp(table, dataset, path)


def justice(name: str, split: str, source: str) -> pd.DataFrame:
    """ETHICS justice, from which many statements of DFAR come; it has no sample."""
    choose("ETHICS justice split", split, ["train", "test"])
    if source == "sample":
        raise UserError("ETHICS justice has no sample; use source='official'.")
    path = sources.fetch(SOURCES[f"justice-{split}"])
    frame = read_csv(path, ["label", "scenario"])
    # ETHICS codes 1 = reasonable, the opposite sense of DFAR's 1 = unethical.
    labels = _labels(frame["label"], {"0": "unethical", "1": "ethical"}, path)
    table = _numbered(f"justice-{split}", statement=frame["scenario"], label=labels, reason="")
    return stamp(table, "justice", path)


def own(
    name: str,
    split: str = "test",
    source: str = "path",
    *,
    columns: Columns | None = None,
    labels: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """A CSV of one's own with a statement and a label per row; split and source do not matter.

    ``name`` is its path; a relative one belongs to the project. Reasons may be missing, and ids
    stand in a column ``id`` if at all; ``labels`` says what its label values mean.
    """
    path, columns = ROOT / name, columns or Columns()
    if not path.is_file():
        raise UserError(f"{path} is missing; data.train and data.test take the path of a CSV.")
    hint = "; name yours with --set data.columns.statement=… (likewise .label and .reason)"
    frame = read_csv(path, [columns.statement, columns.label], hint=hint)
    table = _numbered(
        path.stem,
        statement=frame[columns.statement],
        label=_labels(frame[columns.label], labels or Data().labels, path),
        reason=frame.get(columns.reason, ""),
    )
    table["id"] = frame.get("id", table["id"])
    if table["label"].nunique() == 1:
        warn(f"{path}: every row is {table['label'].iloc[0]}, so there is nothing to tell apart.")
    return stamp(unique(table, path), "own", path)


DATASETS = {"dfar": dfar, "ethos": ethos, "justice": justice, "path": own}


def _numbered(prefix: str, **columns: Any) -> pd.DataFrame:
    """A table with ids made of the rows' numbers in front."""
    table = pd.DataFrame(columns)
    table.insert(0, "id", [f"{prefix}-{i}" for i in range(len(table))])
    return table


def _labels(values: pd.Series[str], meaning: Mapping[str, str], path: Path) -> pd.Series[str]:
    mapped = values.str.strip().map(dict(meaning))
    bad = mapped.index[mapped.isna()]
    if len(bad):
        value = values[bad[0]]
        raise UserError(
            f"{path}, row {bad[0] + 2}, label {value!r} is unknown; say what it means with"
            f" --set data.labels.{value}=ethical (or unethical)."
        )
    return mapped


def mend_encoding(text: str) -> str:
    """Undo text that was read as Windows-1252 and written as UTF-8 once too often."""
    return re.sub(r"[^\x00-\x7f]+", _mended, text)


def _mended(match: re.Match[str]) -> str:
    found = match.group()
    # Windows-1252 leaves five bytes undefined; they pass through as they are.
    codecs = ("latin-1" if "\x7f" < c < "\xa0" else "cp1252" for c in found)
    try:
        return b"".join(map(str.encode, found, codecs)).decode("utf-8")
    except UnicodeError:
        return found


def tests(run: Run) -> dict[str, pd.DataFrame]:
    """Test tables by data set name, each within its limit (a sample, the same for every seed).

    They get five columns: ``dataset``; ``stratum``, ``contaminated`` if the statement occurs in
    the training file, else ``clean``; ``seen``, whether a language model is tuned on it;
    ``family``, see ``families``; and ``near``, whether a training statement is of its family.
    """
    # Sets: pandas would go through a million statements once for every table.
    known, taught = {*whole(run.data, "train")["statement"]}, {*tuned(run)["statement"]}
    relatives = {*map(opening, known)}
    tables = [whole(run.data, "test")]
    if run.data.cross:
        tables.append(ethos("ethos", "test", run.data.source))
    found = {}
    for every in tables:
        # Of a million rows few are wanted, and what follows looks at each that is left.
        table = limit(every, run.data.limit_test, 0)
        statements = table["statement"]
        table["stratum"] = np.where([s in known for s in statements], "contaminated", "clean")
        table["seen"] = [s in taught for s in statements]
        table["family"] = families(statements)
        table["near"] = [opening(s) in relatives for s in statements]
        table["dataset"] = name = str(every.attrs["dataset"])
        found[name] = table
    return found


def families(statements: pd.Series[str]) -> pd.Series[str]:
    """Names of families of statements: those that open with the same four words are one.

    Case and punctuation do not count. A name is a hash, so that records hold no words.
    """
    return statements.map(lambda text: digest(opening(text))[:8])


def opening(statement: str) -> str:
    """The words by which a statement belongs to its family."""
    return " ".join(m.group() for m in itertools.islice(_WORD.finditer(statement.lower()), 4))


def tuned(run: Run) -> pd.DataFrame:
    """The training rows that a language model is tuned on."""
    return limit(training(run.data, run.seed), run.tuning.rows, run.seed)


def training(settings: Data, seed: int) -> pd.DataFrame:
    """Training rows within their limit; where labels are permuted, reasons move with them.

    Raises:
        UserError: none is left without the statements of the test file.
    """
    train = whole(settings, "train")
    if settings.drop_shared:
        test = whole(settings, "test")
        path, train = train.attrs["path"], train[~train["statement"].isin(test["statement"])]
        if train.empty:
            raise UserError(
                f"every statement of {path} also stands in {test.attrs['path']}, so none is left"
                " to train judges and thresholds on; give data.train others."
            )
        train = train.reset_index(drop=True)
    train = limit(train, settings.limit_train, seed)
    if settings.shuffle_labels:
        order = np.random.default_rng(seed).permutation(len(train))
        train[["label", "reason"]] = train[["label", "reason"]].to_numpy()[order]
    return train


def untouched(settings: Data, seed: int) -> pd.DataFrame:
    """Training rows as people labelled them, without any statement of the test file.

    For judges and thresholds, whatever the model is tuned on.
    """
    plain = {"shuffle_labels": False, "drop_shared": True}
    return training(settings.model_copy(update=plain), seed)


def spare(run: Run) -> pd.DataFrame:
    """Rows of ``untouched`` to set a threshold by: if there are any, such as no model learnt.

    Their ``stratum`` says so: ``held-out``, or ``tuned``.
    """
    rows = untouched(run.data, run.seed)
    left = rows[~rows["statement"].isin(tuned(run)["statement"])].assign(stratum="held-out")
    found = left if len(left) else rows.assign(stratum="tuned")
    return limit(found, run.evaluation.threshold_rows, run.seed)


def whole(settings: Data, split: Literal["train", "test"]) -> pd.DataFrame:
    """All rows of a run's training or test table: its own, or that of its source."""
    path = settings.train if split == "train" else settings.test
    if path is None:
        return dfar("dfar", split, settings.source, repair_encoding=settings.repair_encoding)
    return own(path, columns=settings.columns, labels=settings.labels)


def main(settings: Data) -> str:
    """Name of the data set that a run is about."""
    return (
        "own" if settings.test else {"sample": "statements", "official": "dfar"}[settings.source]
    )


def files(run: Run, *names: str) -> dict[str, Path]:
    """Files that a run reads, fetched where they are official.

    By name: ``train``, ``test``, and where the run reads them ``cross`` and those of ``JUSTICE``;
    all by default. Only settings that the names need are read.
    """
    places = _places(run.data, names or ("train", "test", "cross", *JUSTICE))
    return {k: sources.fetch(at) if isinstance(at, Source) else at for k, at in places}


def present(settings: Data) -> bool:
    """Are all files of the overlap audit on this machine?"""
    places = (at for _, at in _places(settings, ("train", "test", *JUSTICE)))
    return all(sources.present(at) if isinstance(at, Source) else at.is_file() for at in places)


def _places(settings: Data, names: tuple[str, ...]) -> Iterator[tuple[str, Source | Path]]:
    samples = {"train": "statements.csv", "test": "statements.csv", "cross": "comments.csv"}
    official = {"train": "dfar-train", "test": "dfar-test", "cross": "ethos-test"}
    for name in names:
        wanted = getattr(settings, name, None)  # an own table, or whether there is a cross test
        if isinstance(wanted, str):
            yield name, ROOT / wanted
        elif settings.source == "official" and wanted is not False:
            yield name, SOURCES[official.get(name, name)]
        elif name in samples and wanted is not False:
            yield name, SAMPLES / samples[name]
