"""Votes on actions and anecdotes: tables, and the parts of a run.

Scruples (Lourie et al. 2020) has two parts. DILEMMAS are pairs of actions with votes for the
*less ethical* one. ANECDOTES are stories with votes on who is wrong: AUTHOR and EVERYBODY count as
WRONG, OTHER and NOBODY as RIGHT, and INFO (not enough known) is dropped, as in the authors' files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ethalign import calibration, data, sources
from ethalign.ambiguity.settings import Run
from ethalign.config import ROOT, UserError
from ethalign.sources import Source

PAIR = ("votes1", "votes2")
FIVE = ("author", "other", "everybody", "nobody", "info")
ANSWERS = {"dilemmas": ("first", "second"), "anecdotes": ("right", "wrong")}
# What a record says of an item; never its words.
FIELDS = ("part", "id", "dataset", "stratum", *PAIR, "gold")
# Data set to source to splits.
SPLITS = {
    "dilemmas": {"sample": "train test", "official": "train dev test"},
    "anecdotes": {"sample": "train test", "official": "train dev test excerpt"},
    "anecdotes-votes": {"official": "dev"},
    "dilemmas-disagreement": {"official": "train"},
}
_SCRUPLES = "https://storage.googleapis.com/ai2-mosaic-public/projects/scruples/v1.0/data"
_DEMO = (
    "https://raw.githubusercontent.com/allenai/scruples/master/src/scruples/demos/scoracle/"
    "templates/dev.scruples-anecdotes_label-counts.json"
)
_EXCERPT = (
    "https://raw.githubusercontent.com/niksharma99/EECS6895FinalProject/2eaeab64943a/data/"
    "interim/scruples_60.jsonl"
)
_DISAGREEMENT = (
    "https://github.com/minnesotanlp/Quantifying-Annotation-Disagreement/raw/main/dataset/"
    "Dilemmas_Disagreement.zip"
)
_DIGESTS = {
    "dilemmas-train": "git:a5bd01be",
    "dilemmas-dev": "780b28b57bfb7628ef60e574b8cb646625d1dc3932ceb32d5706ba350c73239a",
    "dilemmas-test": "5299075dfd6877f2ed202881189565adcaf1c40920ff8ddbed05024731624eb5",
    "anecdotes-train": "git:64356e45",
    "anecdotes-dev": "git:fef3c3de",
    "anecdotes-test": "git:d628909d",
}


def _archived(key: str, digest: str) -> Source:
    """A file of the authors' archives; those that no scale needs are optional."""
    name, split = key.split("-")
    file = f"{split}.scruples-{name}.jsonl"
    licence = "Apache-2.0" if name == "dilemmas" else "research"
    place = f"scruples/{name}/{file}"
    optional = digest.startswith("git:")
    return Source(f"{_SCRUPLES}/{name}.tar.gz", digest, place, licence, file, optional)


SOURCES = {
    **{key: _archived(key, digest) for key, digest in _DIGESTS.items()},
    "anecdotes-excerpt": Source(
        _EXCERPT,
        "4b2be9ac885adfb89e7c27129b0d1a384c8d5ad6f2a85321b9b108692523fd81",
        "scruples/anecdotes_sample/scruples_60.jsonl",
        "research",
    ),
    "anecdotes-votes": Source(
        _DEMO,
        "2aee4a2dc5a09b0096aadb469ee6a2d702c5e2434960ddf4fd053a02bc1ca8ac",
        "scruples/label-counts/dev.scruples-anecdotes_label-counts.json",
        "Apache-2.0",
    ),
    "dilemmas-disagreement": Source(
        _DISAGREEMENT,
        "1d1ae9519f50b8679843d5bc1eac7a93edf84624252f78c8eb81903fd97b1855",
        "scruples/dilemmas_disagreement/train.csv",
        "unstated",
        "train.csv",
    ),
}


class Splits(NamedTuple):
    """Rows to tune on, rows to fit temperatures on, and rows to report."""

    train: pd.DataFrame
    held_out: pd.DataFrame
    test: pd.DataFrame


def load(name: str, split: str = "test", source: str = "official") -> pd.DataFrame:
    """A table of votes, checked.

    Args:
        name: ``dilemmas``, ``anecdotes``, ``anecdotes-votes`` (the five counts of all 2,500
            development anecdotes, without text) or ``dilemmas-disagreement`` (training pairs
            with how divided the voters were, but not in which direction).
        split: ``train``, ``dev``, ``test``; anecdotes also ``excerpt``, which is 60 of them.
        source: ``sample`` or ``official``.

    Returns:
        ``id, votes1, votes2`` (votes that action 1, action 2 is less ethical; that the author
        is RIGHT, WRONG) and, for dilemmas, ``first, second, action1, action2`` (texts and ids)
        and ``human1, human2`` (five further votes, where the file has them); for anecdotes
        ``title, text`` and the five counts of ``FIVE``. Ties count for the first.

    Raises:
        UserError: an unknown split or source, a missing file, or a row that is no vote.
    """
    readers: dict[str, Callable[[str, str], pd.DataFrame]] = {
        "dilemmas": _dilemmas,
        "anecdotes": _anecdotes,
        "anecdotes-votes": _anecdote_votes,
        "dilemmas-disagreement": _disagreement,
    }
    known = SPLITS[name]
    if source not in known or split not in known[source].split():
        have = "; ".join(f"{key}: {value}" for key, value in known.items())
        raise UserError(f"data set {name} has no split {split!r} from {source} ({have}).")
    return check(readers[name](split, source))


def _dilemmas(split: str, source: str) -> pd.DataFrame:
    if source == "sample":
        return _pairs(data.SAMPLES / "dilemmas.csv", split)
    path = sources.fetch(SOURCES[f"dilemmas-{split}"])
    rows = []
    for number, item in enumerate(_lines(path), 1):
        one, two = item["actions"]
        gold = item["gold_annotations"]
        human = item.get("human_perf_annotations") or [np.nan, np.nan]
        if item["gold_label"] != int(gold[1] > gold[0]):
            raise UserError(f"{path}, line {number}: the label is not what its votes say.")
        texts = [one["description"], two["description"], one["id"], two["id"]]
        rows.append([item["id"], *texts, *gold, *human])
    columns = ["id", "first", "second", "action1", "action2", *PAIR, "human1", "human2"]
    return data.stamp(pd.DataFrame(rows, columns=columns), "dilemmas", path)


def _pairs(path: Path, split: str | None) -> pd.DataFrame:
    """Pairs from a CSV of ours or of a user's: ``id, action1, action2, votes1, votes2``."""
    frame = data.read_csv(path, ["action1", "action2", *PAIR])
    if "id" not in frame:
        frame.insert(0, "id", [f"{path.stem}-{i}" for i in range(len(frame))])
    frame = data.unique(frame, path)
    if split:
        frame = frame[frame["split"] == split]
    frame["first"], frame["second"] = frame["action1"], frame["action2"]
    return data.stamp(frame, "own" if split is None else "sample-dilemmas", path)


def _anecdotes(split: str, source: str) -> pd.DataFrame:
    if source == "sample":
        path = data.SAMPLES / "anecdotes.csv"
        frame = data.read_csv(path, ["id", "title", "text", *FIVE])
        return data.stamp(frame[frame["split"] == split], "sample-anecdotes", path)
    path = sources.fetch(SOURCES[f"anecdotes-{split}"])
    table = [
        [item["id"], item["title"], item["text"]]
        + [item["label_scores"][key.upper()] for key in FIVE]
        for item in _lines(path)
    ]
    frame = pd.DataFrame(table, columns=["id", "title", "text", *FIVE])
    return data.stamp(frame, f"anecdotes{'-excerpt' if split == 'excerpt' else ''}", path)


def _anecdote_votes(split: str, source: str) -> pd.DataFrame:
    path = sources.fetch(SOURCES["anecdotes-votes"])
    frame = pd.DataFrame(json.loads(path.read_text()), columns=list(FIVE))
    frame.insert(0, "id", [f"anecdotes-{split}-{i}" for i in range(len(frame))])
    return data.stamp(frame, "anecdotes", path)


def _disagreement(split: str, source: str) -> pd.DataFrame:
    path = sources.fetch(SOURCES["dilemmas-disagreement"])
    frame = data.read_csv(path, ["text", "disagreement_rate"])
    rate = pd.to_numeric(frame["disagreement_rate"])
    table = {
        "id": [f"disagreement-{split}-{i}" for i in range(len(frame))],
        "text": frame["text"],
        # 0, 0.5 and 1 stand for 5-0, 4-1 and 3-2; which action lost is not in the file.
        "minority": 2 * rate,
    }
    return data.stamp(pd.DataFrame(table), "dilemmas", path)


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def check(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with its votes as whole numbers and, for anecdotes, the binarised pair.

    Raises:
        UserError: a vote that is no count, or a pair of identical actions; names file and row.
    """
    path = frame.attrs.get("path", "the table")
    for column in [c for c in (*PAIR, *FIVE) if c in frame]:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = frame.index[~((numbers >= 0) & (numbers % 1 == 0))]
        if len(bad):
            value = frame[column][bad[0]]
            raise UserError(f"{path}, item {bad[0] + 1}, {column}: {value!r} is no vote count.")
        frame[column] = numbers.astype(int)
    if "first" in frame:
        same = frame.index[frame["first"].str.strip() == frame["second"].str.strip()]
        if len(same):
            raise UserError(f"{path}, item {same[0] + 1}: both actions are the same.")
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
    return Splits(training(run), held_out(run), test(run))


def training(run: Run) -> pd.DataFrame:
    """The rows to tune on, with limits and permuted votes as the settings have them."""
    train = data.limit(_pool(run)[1], run.data.limit_train, run.seed)
    if run.data.shuffle_labels:
        order = np.random.default_rng(run.seed).permutation(len(train))
        train[list(PAIR)] = train[list(PAIR)].to_numpy()[order]
    return data.limit(train, run.tuning.rows, run.seed)


def held_out(run: Run) -> pd.DataFrame:
    """The rows to fit temperatures on."""
    return data.limit(_pool(run)[0], run.data.limit_test, run.seed)


def test(run: Run) -> pd.DataFrame:
    """The rows to report."""
    if (run.data.train is None) != (run.data.test is None):
        raise UserError("give both data.train and data.test, or neither.")
    frame = _rows(run, "test")
    if frame.attrs["dataset"] == "anecdotes-excerpt":
        frame, _ = part(frame, 1 / 3, run.seed)
    return data.limit(frame, run.data.limit_test, run.seed)


def _pool(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Held-out rows and the rest, both without rows that have no votes, before any limit."""
    pool = _rows(run, "train")
    if pool.attrs["dataset"] == "anecdotes-excerpt":
        _, pool = part(pool, 1 / 3, run.seed)
    return part(_keep(pool, counts(pool).sum(1) > 0), run.votes.held_out, run.seed)


def _rows(run: Run, name: str) -> pd.DataFrame:
    own = _own(run, name)
    if own is None:
        return load(run.votes.dataset, _split(run, name), run.data.source)
    if not own.is_file():
        raise UserError(f"{own} is missing; data.train and data.test take the path of a CSV.")
    if run.votes.dataset != "dilemmas":
        raise UserError("a CSV of your own holds pairs of actions; leave votes.dataset=dilemmas.")
    return check(_pairs(own, None))


def _own(run: Run, name: str) -> Path | None:
    path = run.data.train if name == "train" else run.data.test
    return ROOT / path if path else None


def _split(run: Run, name: str) -> str:
    """The split of a data set that ``train`` (with the held-out rows) or ``test`` are from."""
    if run.data.source == "sample":
        return name
    if run.votes.split == "excerpt" and run.votes.dataset != "anecdotes":
        raise UserError("votes.split=excerpt needs votes.dataset=anecdotes.")
    return run.votes.split if name == "train" or run.votes.split == "excerpt" else "test"


def origins(run: Run, *names: str) -> dict[str, Path | Source]:
    """Where rows come from: local files, or official ones that may have to be fetched.

    Args:
        run: the resolved configuration.
        names: ``train`` (with the held-out rows), ``test``, or keys of ``SOURCES``, which are
            read beside them where the run's data are official.
    """
    found: dict[str, Path | Source] = {}
    official = run.data.source == "official"
    for name in names:
        if name in SOURCES:
            found |= {name: SOURCES[name]} if official else {}
        elif local := _own(run, name):
            found[name] = local
        elif official:
            found[name] = SOURCES[f"{run.votes.dataset}-{_split(run, name)}"]
        else:
            found[name] = data.SAMPLES / f"{run.votes.dataset}.csv"
    return found


def files(run: Run, *names: str) -> dict[str, Path]:
    """Local paths of ``origins``; official files are fetched."""
    found = origins(run, *names).items()
    return {k: sources.fetch(v) if isinstance(v, Source) else v for k, v in found}


def part(frame: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two parts of a table that have no action in common; the first holds about ``share``.

    Pairs are walked from neighbour to neighbour (pairs that share an action), so that a part is
    a stretch of that walk; rows of the rest that touch the first part are dropped. In the real
    files every action stands in two pairs, so hardly any row is lost.
    """
    random = np.random.default_rng(seed)
    sides = [c for c in ("action1", "action2") if c in frame] or ["id"]
    at: dict[str, list[int]] = {}
    for side in sides:
        for row, action in enumerate(frame[side]):
            at.setdefault(action, []).append(row)
    wanted = min(max(1, round(share * len(frame))), len(frame))
    taken: set[int] = set()
    for start in random.permutation(len(frame)).tolist():
        stack = [start]
        while stack and len(taken) < wanted:
            row = stack.pop()
            if row not in taken:
                taken.add(row)
                stack += [r for side in sides for r in at[frame[side].iloc[row]]]
    first = np.isin(np.arange(len(frame)), list(taken))
    used = {frame[side].iloc[row] for side in sides for row in taken}
    touched = frame[sides].isin(used).any(axis=1).to_numpy()
    return _keep(frame, first), _keep(frame, ~touched)


def _keep(frame: pd.DataFrame, mask: Any) -> pd.DataFrame:
    attrs = frame.attrs
    frame = frame[mask].reset_index(drop=True)
    frame.attrs = attrs
    return frame


def items(frame: pd.DataFrame, part: str, dataset: str) -> list[dict[str, Any]]:
    """The rows of a table with the further ``FIELDS`` that records have of every item.

    Args:
        frame: votes, as of ``load``.
        part: ``held-out`` or ``test``.
        dataset: names the answers.
    """
    names = np.array(ANSWERS[dataset])
    known = {"part": part, "dataset": frame.attrs["dataset"], "stratum": strata(frame)}
    rows = frame.assign(**known, gold=names[counts(frame).argmax(1)]).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
