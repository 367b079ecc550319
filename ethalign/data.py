"""Data sets: where they come from, their checksums, and loaders that check what they read.

Official files are downloaded by pooch from their own address and verified by SHA-256. The
environment variable ``ETHALIGN_MIRROR`` names a folder that stands in for the internet.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from ethalign.config import ROOT, Columns, Data, Run, UserError

SAMPLES = ROOT / "data" / "samples"
_DFAR = "https://raw.githubusercontent.com/apurba-nsu-rnd-lab/DFAR/main/DFAR%20dataset"
_ETHOS = (
    "https://raw.githubusercontent.com/intelligence-csd-auth-gr/"
    "Ethos-Hate-Speech-Dataset/master/ethos/ethos_data/Ethos_Dataset_Binary.csv"
)
_ETHICS = "https://people.eecs.berkeley.edu/~hendrycks/ethics.tar"


class Source(NamedTuple):
    """One official file: its address, checksum, licence and place in a mirror folder."""

    url: str
    sha256: str
    mirror: str
    licence: str
    member: str | None = None


# Hashes are of the files as published; a changed file upstream is an error, not a surprise.
SOURCES: dict[str, Source] = {
    "dfar-train": Source(
        f"{_DFAR}/DFAR_trainset.csv",
        "28fb58aeaa1f85ddbba2b53313761f9d51b26ddd71f8013342c2e0a17ddda849",
        "dfar/DFAR_trainset.csv",
        "MIT",
    ),
    "dfar-test": Source(
        f"{_DFAR}/DFAR_testset.csv",
        "f1c74c1a40c056368ba3872d32b05fda875f645b1a42648913a2f4ffabf48b00",
        "dfar/DFAR_testset.csv",
        "MIT",
    ),
    "ethos-test": Source(
        _ETHOS,
        "0cd0050c2592afcb5eca5876df485ca15cda9d7d16fe32c269857260fd10d96c",
        "ethos/Ethos_Dataset_Binary.csv",
        "GPL-3.0",
    ),
    "justice-train": Source(
        _ETHICS,
        "175c8255f5ee3d99ad381cd716473367274dc24b3832d5e3357f37f1779a7d3f",
        "ethics/justice_train.csv",
        "MIT",
        "ethics/justice/justice_train.csv",
    ),
    "justice-test": Source(
        _ETHICS,
        "d7cc506a1055915d455a9244b26de573c75a760d416a8508a9420d41cbf40250",
        "ethics/justice_test.csv",
        "MIT",
        "ethics/justice/justice_test.csv",
    ),
}


def cache() -> Path:
    """Folder for downloads and converted models: ``ETHALIGN_CACHE`` or the user's cache."""
    import pooch

    return Path(os.environ.get("ETHALIGN_CACHE") or pooch.os_cache("ethalign"))


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str, remedy: str) -> Path:
    """``path`` if it has the expected SHA-256.

    Raises:
        UserError: the file is missing or differs; names the file, both hashes and ``remedy``.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {remedy}.")
    found = sha256(path)
    if found != expected:
        raise UserError(f"{path} has SHA-256 {found}, expected {expected}; {remedy}.")
    return path


def fetch(name: str) -> Path:
    """The verified local path of one official file.

    Raises:
        UserError: unknown name, no network, or bytes that do not match the checksum.
    """
    source = SOURCES[name]
    mirror = os.environ.get("ETHALIGN_MIRROR")
    if mirror:
        remedy = "copy it again into the folder that ETHALIGN_MIRROR names"
        return verify(Path(mirror) / source.mirror, source.sha256, remedy)
    target = cache() / "data" / source.mirror
    if not target.is_file():
        _download(source, target)
    return verify(target, source.sha256, "delete it and run `ethalign fetch`")


def present(name: str) -> bool:
    """Is an official file here already, in the mirror or the cache?"""
    mirror = os.environ.get("ETHALIGN_MIRROR")
    folder = Path(mirror) if mirror else cache() / "data"
    return (folder / SOURCES[name].mirror).is_file()


def _download(source: Source, target: Path) -> None:
    import pooch

    target.parent.mkdir(parents=True, exist_ok=True)
    known = None if source.member else f"sha256:{source.sha256}"
    try:
        got = pooch.retrieve(source.url, known, path=cache() / "downloads", progressbar=False)
    except Exception as error:
        raise UserError(
            f"{source.url} could not be downloaded ({type(error).__name__}); connect to the"
            " internet, or set ETHALIGN_MIRROR to a folder that holds "
            f"{source.mirror}, or stay with the shipped samples (--set data.source=sample)."
        ) from None
    content = _member(Path(got), source.member) if source.member else Path(got).read_bytes()
    half = target.with_name(target.name + ".part")
    half.write_bytes(content)
    half.replace(target)


def _member(archive: Path, member: str) -> bytes:
    """One file out of a tar archive, read by name, so that no path in it is trusted."""
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    except (KeyError, tarfile.TarError) as error:
        raise UserError(f"{archive} holds no readable {member} ({error}); delete it.") from None


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
        name: ``dfar``, ``ethos`` or ``justice``; with ``source="path"`` the path of a CSV.
        split: ``train`` or ``test`` (ETHOS has no split and is only ever tested on).
        source: ``sample`` (shipped with the project), ``official`` or ``path``.
        columns, labels: names of columns and meaning of label values of an own CSV.
        repair_encoding: undo the double encoding of DFAR's test reasons. Off here, so that
            the table is the file as published; a run's configuration switches it on.

    Returns:
        Columns ``id, statement, label, reason`` (str; label ``ethical`` or ``unethical``) and
        the file's further ones; ETHOS adds ``share``, the share of hate votes in [0, 1].
        ``attrs`` holds ``dataset`` (the name in metrics), ``path`` and ``sha256``.

    Raises:
        UserError: a file that is missing, altered or off its schema.
    """
    if source == "path":
        return _own(Path(name), columns or Columns(), labels or Data().labels)
    if source not in ("sample", "official"):
        raise UserError(f"data source {source!r} is not one of sample, official, path.")
    loaders = {"dfar": _dfar, "ethos": _ethos, "justice": _justice}
    if name not in loaders:
        raise UserError(f"data set {name!r} is not one of {', '.join(loaders)}.")
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
    return _stamp(frame, "dfar" if source == "official" else "statements", path)


def _ethos(split: str, source: str, repair: bool) -> pd.DataFrame:
    path = SAMPLES / "comments.csv" if source == "sample" else fetch("ethos-test")
    frame = read_csv(path, ["comment", "isHate"], separator=";")
    share = pd.to_numeric(frame["isHate"], errors="coerce")
    bad = frame.index[~share.between(0, 1)]
    if len(bad):
        raise UserError(f"{path}, row {bad[0] + 2}, column isHate: not a share in [0, 1].")
    name = "ethos" if source == "official" else "comments"
    return _stamp(
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
    return _stamp(pd.DataFrame(table), "justice", path)


def justice() -> pd.DataFrame:
    """All of ETHICS justice (train and test), the source of many statements of DFAR."""
    return pd.concat([load("justice", split) for split in ("train", "test")], ignore_index=True)


def _own(path: Path, columns: Columns, labels: Mapping[str, str]) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path} is missing; data.train and data.test take the path of a CSV.")
    names = {"statement": columns.statement, "label": columns.label}
    frame = read_csv(path, list(names.values()), blank_ok=[columns.reason])
    table = {
        "id": [f"{path.stem}-{i}" for i in range(len(frame))],
        "statement": frame[names["statement"]],
        "label": _labels(frame[names["label"]], labels, path),
        "reason": frame.get(columns.reason, ""),
    }
    return _stamp(pd.DataFrame(table), "own", path)


def read_csv(
    path: Path, columns: list[str], *, separator: str = ",", blank_ok: list[str] | None = None
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
            raise UserError(
                f"{path} has no column {column!r} (it has: {have}); name yours with"
                " --set data.columns.statement=… data.columns.label=… data.columns.reason=…"
            )
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


def _stamp(frame: pd.DataFrame, dataset: str, path: Path) -> pd.DataFrame:
    frame = frame.reset_index(drop=True)
    frame.attrs = {"dataset": dataset, "path": str(path), "sha256": sha256(path)}
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
    train = _limit(whole, settings.limit_train, run.seed)
    if settings.shuffle_labels:
        order = np.random.default_rng(run.seed).permutation(len(train))
        train[["label", "reason"]] = train[["label", "reason"]].to_numpy()[order]
    tuned = _limit(train, run.tuning.rows, run.seed)
    tables = [_split(settings, "test")]
    if settings.cross:
        tables.append(load("ethos", "test", settings.source))
    tests = {}
    for table in tables:
        shared = table["statement"].isin(whole["statement"])
        table["stratum"] = np.where(shared, "contaminated", "clean")
        table["seen"] = table["statement"].isin(tuned["statement"])
        tests[str(table.attrs["dataset"])] = _limit(table, settings.limit_test, run.seed)
    return Splits(train, tests, tuned)


def _split(settings: Data, split: Literal["train", "test"]) -> pd.DataFrame:
    path = settings.train if split == "train" else settings.test
    if path is None:
        return load("dfar", split, settings.source, repair_encoding=settings.repair_encoding)
    return load(path, split, "path", columns=settings.columns, labels=settings.labels)


def _limit(frame: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    if limit is None or limit >= len(frame):
        return frame
    attrs = frame.attrs
    frame = frame.sample(limit, random_state=seed).sort_index().reset_index(drop=True)
    frame.attrs = attrs
    return frame
