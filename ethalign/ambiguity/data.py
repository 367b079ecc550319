"""Votes on actions and anecdotes: tables, and the parts of a run.

Scruples (Lourie et al. 2020) has two parts. DILEMMAS are pairs of actions with votes for the
*less ethical* one. ANECDOTES are stories with votes on who is wrong: AUTHOR and EVERYBODY count as
WRONG, OTHER and NOBODY as RIGHT, and INFO (not enough known) is dropped, as in the authors' files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from ethalign import calibration, metrics, sources
from ethalign.ambiguity.settings import Run
from ethalign.config import ROOT, UserError
from ethalign.data import SAMPLES, limit, read_csv, stamp, unique
from ethalign.sources import Source
from ethalign.study import Rows

#: Official files, by name (``configs/ambiguity/sources.yaml``).
SOURCES = sources.declared("ambiguity")
PAIR = ("votes1", "votes2")
#: The five judgements of an anecdote, in the order of the official table.
FIVE = ("author", "other", "everybody", "nobody", "info")
STORY = ("id", "title", "text")
# More votes on one item than any crowd has cast; beyond 2 ** 53 sums would be wrong.
MOST = 10**6
ANSWERS = {"dilemmas": ("first", "second"), "anecdotes": ("right", "wrong")}
#: What a record says of an item; never its words.
FIELDS = ("part", "id", "dataset", "stratum", *PAIR, "gold")
#: Five further votes on the same pair, in tables and records of the official dilemmas.
FURTHER = ("human1", "human2")
#: The actions of a pair, in records as the beginning of a hash: enough to tell who is a neighbour.
ACTIONS = ("action1", "action2")
# How divided voters can be; see ``calibration.disagreement``.
STRATA = ("unanimous", "4-1", "3-2", "clear", "split")
# Data set to source to splits.
SPLITS = {
    "dilemmas": {"sample": "train test", "official": "train dev test"},
    "anecdotes": {"sample": "train test", "official": "train dev test excerpt"},
    "anecdotes-votes": {"official": "dev"},
}


class Splits(NamedTuple):
    """Rows to tune on, the calibration split (held out of training), and rows to report."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    test: pd.DataFrame


def table(name: str, split: str = "test", source: str = "official") -> pd.DataFrame:
    """A table of votes, checked.

    Args:
        name: ``dilemmas`` or ``anecdotes``; ``anecdotes-votes`` are the five counts of all 2,500
            development anecdotes, without text.
        split: ``train``, ``dev`` or ``test``; ``excerpt`` is 60 anecdotes.
        source: ``official``, or ``sample`` for the shipped samples.

    Returns:
        Columns ``id, votes1, votes2`` (votes that action 1, action 2 is less ethical; that the
        author is RIGHT, WRONG) and, for dilemmas, ``first, second, action1, action2`` (texts and
        ids) and ``human1, human2`` (five further votes, where the file has them); for anecdotes
        ``title, text`` and the five counts of ``FIVE``. Ties count for the first.

    Raises:
        UserError: an unknown split or source, a missing file, or a row that is no vote.
    """
    known = SPLITS[name]
    if split not in known.get(source, "").split():
        have = "; ".join(f"{key}: {value}" for key, value in known.items())
        raise UserError(f"data set {name} has no split {split!r} from {source} ({have}).")
    if source == "sample":
        path = SAMPLES / f"{name}.csv"
        frame = _own(path, name)
        return check(stamp(frame[frame["split"] == split], f"sample-{name}", path))
    path = sources.fetch(SOURCES[name if name in SOURCES else f"{name}-{split}"])
    dataset = "anecdotes-excerpt" if split == "excerpt" else name.partition("-")[0]
    return check(stamp(OFFICIAL[name](path), dataset, path))


def _own(path: Path, name: str) -> pd.DataFrame:
    """Rows of ``dilemmas`` or ``anecdotes`` from a CSV of ours or of a user's.

    Pairs have the columns ``action1, action2, votes1, votes2``, stories ``title, text`` and the
    five counts of ``FIVE``; either may have ids in a column ``id``.
    """
    pairs = name == "dilemmas"
    frame = read_csv(path, ["action1", "action2", *PAIR] if pairs else [*STORY[1:], *FIVE])
    if "id" not in frame:
        stem = path.stem
        frame.insert(0, "id", [f"{stem}-{i}" for i in range(len(frame))])
    unique(frame, path)
    return frame.assign(first=frame["action1"], second=frame["action2"]) if pairs else frame


def _dilemmas(path: Path) -> pd.DataFrame:
    rows = []
    for number, item in enumerate(_lines(path), 1):
        (one, two), gold = item["actions"], item["gold_annotations"]
        if item["gold_label"] != int(gold[1] > gold[0]):
            raise UserError(f"{path}, line {number}: the label does not match its votes.")
        texts = [one["description"], two["description"], one["id"], two["id"]]
        human = item.get("human_perf_annotations") or [np.nan, np.nan]
        rows.append([item["id"], *texts, *gold, *human])
    columns = ["id", "first", "second", "action1", "action2", *PAIR, "human1", "human2"]
    return pd.DataFrame(rows, columns=columns)


def _anecdotes(path: Path) -> pd.DataFrame:
    frame = pd.json_normalize(list(_lines(path)))
    five = [f"label_scores.{key.upper()}" for key in FIVE]
    return frame[[*STORY, *five]].set_axis([*STORY, *FIVE], axis=1)


def _anecdote_votes(path: Path) -> pd.DataFrame:
    frame = pd.DataFrame(json.loads(path.read_text()), columns=list(FIVE))
    frame.insert(0, "id", [f"anecdotes-dev-{i}" for i in range(len(frame))])
    return frame


OFFICIAL: dict[str, Callable[[Path], pd.DataFrame]] = {
    "dilemmas": _dilemmas,
    "anecdotes": _anecdotes,
    "anecdotes-votes": _anecdote_votes,
}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def check(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with its votes as whole numbers and, for anecdotes, the binarised pair.

    Raises:
        UserError: a vote that is no count, or a pair of identical actions; names file and row.
    """
    path = frame.attrs["path"]
    for column in [c for c in (*PAIR, *FIVE) if c in frame]:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        for k in frame.index[~(numbers.between(0, MOST) & (numbers % 1 == 0))]:
            value = frame[column][k]
            raise UserError(f"{path}, item {k + 1}, {column}: {value!r} is not a vote count.")
        frame[column] = numbers.astype(int)
    if "first" in frame:
        for k in frame.index[frame["first"].str.strip() == frame["second"].str.strip()]:
            raise UserError(f"{path}, item {k + 1}: both actions are the same.")
    if "author" in frame:
        frame["votes1"] = frame["other"] + frame["nobody"]
        frame["votes2"] = frame["author"] + frame["everybody"]
    return frame


def remark(dataset: str) -> str:
    """What every figure made from a data set must say of its votes; empty if there is nothing."""
    if dataset == "anecdotes-excerpt":
        return "60 stories chosen for clear votes; more need the download"
    return "illustrative votes: nobody cast them" if dataset.startswith("sample") else ""


def counts(frame: pd.DataFrame) -> calibration.Floats:
    """Votes of a table, (n, 2)."""
    return frame[list(PAIR)].to_numpy(dtype=float)


def strata(frame: pd.DataFrame) -> list[str]:
    """How divided the voters of each row are; see ``calibration.disagreement``."""
    return calibration.disagreement(counts(frame))


def splits(run: Run) -> Splits:
    """The rows of a run: none shares an action with a row of another part."""
    return Splits(training(run), *tests(run).values())


def training(run: Run) -> pd.DataFrame:
    """The rows to tune on, with limits and permuted votes as the settings have them."""
    train = limit(_pool(run)[1], run.data.limit_train, run.seed)
    if run.data.shuffle_labels:
        order = np.random.default_rng(run.seed).permutation(len(train))
        train[list(PAIR)] = train[list(PAIR)].to_numpy()[order]
    return limit(train, run.tuning.rows, run.seed)


def tests(run: Run) -> dict[str, pd.DataFrame]:
    """The rows that are scored: the calibration split ``held-out``, and ``test``."""
    if (run.data.train is None) != (run.data.test is None):
        raise UserError("give both data.train and data.test, or neither.")
    tables = {"held-out": _pool(run)[0], "test": _rows(run, "test")}
    return {k: limit(table, run.data.limit_test, run.seed) for k, table in tables.items()}


def held_out(run: Run) -> pd.DataFrame:
    """The whole calibration split."""
    return _pool(run)[0]


def _pool(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Held-out rows and the rest, both without rows that have no votes, before any limit.

    Held-out rows of the official training file are the development file.

    Raises:
        UserError: nothing is left for one of them.
    """
    tables = [_rows(run, "train")]
    if _has_dev(run):
        tables.insert(0, table(run.votes.dataset, "dev"))
    voted = [t[counts(t).sum(1) > 0].reset_index(drop=True) for t in tables]
    first, second = voted if len(voted) > 1 else part(voted[0], run.votes.held_out, run.seed)
    if first.empty or second.empty:
        raise UserError(
            f"{tables[-1].attrs['path']} has too few rows with votes, or all share an action: none"
            " is left to train on, or to fit a temperature on."
        )
    return first, second


def _has_dev(run: Run) -> bool:
    official = run.data.source == "official" and run.data.train is None
    return official and run.votes.split == "train"


def _rows(run: Run, name: str) -> pd.DataFrame:
    own = getattr(run.data, name)
    if own is None:
        split = _split(run, name)
        found = table(run.votes.dataset, split, run.data.source)
        return part(found, 1 / 3, run.seed)[name == "train"] if split == "excerpt" else found
    path = ROOT / own
    if not path.is_file():
        raise UserError(f"{path} is missing; data.train and data.test take the path of a CSV.")
    return check(stamp(_own(path, run.votes.dataset), "own", path))


def _split(run: Run, name: str) -> str:
    """The split of a data set that ``train`` (with the held-out rows) or ``test`` are from."""
    if run.data.source == "sample":
        return name
    if run.votes.split == "excerpt" and run.votes.dataset != "anecdotes":
        raise UserError("votes.split=excerpt needs votes.dataset=anecdotes.")
    return run.votes.split if name == "train" or run.votes.split == "excerpt" else "test"


def files(run: Run, *names: str) -> dict[str, Path]:
    """Local paths of ``places``; official files are fetched."""
    found = places(run, *names)
    return {k: sources.fetch(at) if isinstance(at, Source) else at for k, at in found}


def places(run: Run, *names: str) -> Iterator[tuple[str, Path | Source]]:
    """Where rows come from: local files, or official ones that may have to be fetched.

    ``names`` are ``train`` (with the held-out rows), ``test``, or keys of ``SOURCES``, which are
    read beside them where the run's data are official.
    """
    dataset, official = run.votes.dataset, run.data.source == "official"
    for name in names:
        if name in SOURCES:
            yield from [(name, SOURCES[name])] if official else []
        elif own := getattr(run.data, name):
            yield name, ROOT / own
        else:
            at = SOURCES[f"{dataset}-{_split(run, name)}"] if official else None
            yield name, at or SAMPLES / f"{dataset}.csv"
            if name == "train" and _has_dev(run):
                yield "held-out", SOURCES[f"{dataset}-dev"]


def part(frame: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two parts of a table that have no action in common; the first holds about ``share``.

    Pairs are walked from neighbour to neighbour (pairs that share an action), so that a part is
    a stretch of that walk; rows of the rest that touch the first part are dropped. In the real
    files every action stands in two pairs, so hardly any row is lost.
    """
    wanted = min(max(1, round(share * len(frame))), len(frame))
    taken, sides = {*itertools.islice(walk(frame, seed), wanted)}, _sides(frame)
    used = {action for side in sides for action in frame[side].iloc[[*taken]]}
    rows = zip(*(frame[side].tolist() for side in sides), strict=True)
    free = [k for k, actions in enumerate(rows) if used.isdisjoint(actions)]
    first, rest = frame.iloc[sorted(taken)], frame.iloc[free]
    return first.reset_index(drop=True), rest.reset_index(drop=True)


def walk(frame: pd.DataFrame, seed: int) -> Iterator[int]:
    """All rows of a table, from neighbour to neighbour as long as there is one."""
    sides, at = [frame[side].tolist() for side in _sides(frame)], cast("dict[str, list[int]]", {})
    for side in sides:
        for row, action in enumerate(side):
            at.setdefault(action, []).append(row)
    seen: set[int] = set()
    for start in np.random.default_rng(seed).permutation(len(frame)).tolist():
        stack = [start]
        while stack:
            row = stack.pop()
            if row not in seen:
                seen.add(row)
                yield row
                stack += [r for side in sides for r in at[side[row]]]


def _sides(frame: pd.DataFrame) -> list[str]:
    return [c for c in ACTIONS if c in frame] or ["id"]


def neighbours(frame: pd.DataFrame) -> metrics.Ints | None:
    """Labels (n,) of stretches of ``walk``, to be resampled together; None without actions.

    Pairs depend on each other where they share an action, so that a stretch of ten holds nine
    tenths of it. Below 200 pairs there are twenty stretches, which hold less, since fewer could
    not be resampled.
    """
    if not {*ACTIONS} <= {*frame}:
        return None
    size = max(1, min(10, len(frame) // 20))
    labels = np.empty(len(frame), dtype=int)
    labels[list(walk(frame, 0))] = np.arange(len(frame)) // size
    return labels


def items(frame: pd.DataFrame, part: str, dataset: str) -> Rows:
    """The rows of a table with the further ``FIELDS`` that records have of every item.

    ``part`` is ``held-out`` or ``test``; ``dataset`` names the answers.
    """
    gold = np.array(ANSWERS[dataset])[counts(frame).argmax(1)]
    known = {"part": part, "dataset": frame.attrs["dataset"], "stratum": strata(frame)}
    for action, text in zip(ACTIONS, ("first", "second"), strict=True):
        if text in frame:
            known[action] = [sha256(t.strip().encode()).hexdigest()[:8] for t in frame[text]]
    return cast("Rows", frame.assign(**known, gold=gold).to_dict("records"))


def record(item: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an item: ``FIELDS``, and ``FURTHER`` and ``ACTIONS``, if any; no words."""
    further = {key: item[key] for key in (*FURTHER, *ACTIONS) if pd.notna(item.get(key))}
    return {key: item[key] for key in FIELDS} | further
