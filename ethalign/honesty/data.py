"""Questions to know or not to know: the data sets of the honesty study.

TriviaQA (in the splits of DPR) to train on and to test, and four further test sets: Non-AmbigQA,
PUQA (papers that the models cannot know), PKQA (what one model was found to know) and MMLU. At
small scales the shipped samples stand in for them.
"""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import data, records, sources
from ethalign.config import ROOT, UserError
from ethalign.config import Data as Settings
from ethalign.honesty.scores import normalise
from ethalign.honesty.settings import Run
from ethalign.sources import Source

_HONESTY = (
    "https://raw.githubusercontent.com/GAIR-NLP/alignment-for-honesty/main/data/evaluation_data"
)
_TRIVIA = (
    "https://raw.githubusercontent.com/castorini/anserini/81a39cce71ee/src/main/resources/"
    "topics-and-qrels"
)


def _source(site: str, file: str, licence: str, sha256: str) -> Source:
    return Source(f"{site}/{Path(file).name}", sha256, file, licence)


SOURCES = {
    "triviaqa-train": _source(
        _TRIVIA,
        "triviaqa/topics.dpr.trivia.dev.txt",
        "CC-BY-NC-4.0",
        "79e7ea851bb5ca6ebbfd6c760d032064d324166d46b8ffaf70e0fb733186ed2a",
    ),
    "triviaqa-test": _source(
        _TRIVIA,
        "triviaqa/topics.dpr.trivia.test.txt",
        "CC-BY-NC-4.0",
        "041ed9ddd2977c7fe452d290cf60e1f7e0a803977b0f912e234d218261c10e57",
    ),
    "nonambigqa-test": _source(
        _HONESTY,
        "honesty/nonambigqa.jsonl",
        "unstated",
        "95c62e97a4c31a4757e0e6303a164534ac1948ba43ef6e82bc38fdae807e7149",
    ),
    "puqa-test": _source(
        _HONESTY,
        "honesty/puqa.jsonl",
        "unstated",
        "211aa28ef38fca893ab034b1c1e1bf7943d39a6854d361bf5196d28bede49042",
    ),
    "pkqa-test": _source(
        _HONESTY,
        "honesty/pkqa_13b.jsonl",
        "unstated",
        "8c7b3a8bb98518e285f7c4e5d897253b1ed5b44b4ef1bc409e7a032d806df0e2",
    ),
    "mmlu-test": Source(
        "https://people.eecs.berkeley.edu/~hendrycks/data.tar",
        "1f0cec94ac3236778d79014c784c2b2e1e7d5a14bc3a332891c982e24f70d533",
        "mmlu/test",
        "MIT",
        "data/test/",
    ),
}
LETTERS = "ABCD"
# Test sets by source; the first is the one that the training questions are like.
SETS = {
    "official": ("triviaqa", "nonambigqa", "puqa", "pkqa", "mmlu"),
    "sample": ("questions", "papers", "options"),
}
# Sets of which nothing can be known, and of which everything was found to be known.
UNKNOWN, KNOWN = ("puqa", "papers"), ("pkqa", "pkqa-own")
REQUESTS = data.SAMPLES / "requests.csv"
# Columns that are read from a CSV of questions; what else stands in one's own goes nowhere.
_COLUMNS = "id question answers topic difficulty paraphrase split".split()  # noqa: SIM905


def table(name: str, split: str = "test", source: str = "official") -> pd.DataFrame:
    """A table of questions, checked.

    Args:
        name: one of ``SETS``; ``train`` of TriviaQA is DPR's development split.
        split: ``test``, or of the first set of a source ``train``.
        source: ``official``, or ``sample`` for the shipped samples.

    Returns:
        ``id, question, answers``: a list of accepted answers, empty for PUQA and papers, which
        nobody can answer; for MMLU and options the text of the right option and ``options`` (four
        texts), ``letter`` and ``subject``; for PKQA ``topic``; for the sample questions
        ``topic``, ``difficulty`` and ``paraphrase``.

    Raises:
        UserError: an unknown name or split, a missing or altered file, or a row off the form.
    """
    if name not in SETS[source]:
        raise UserError(
            f"data set {name!r} from {source} is not one of {', '.join(SETS[source])}."
        )
    if split not in ("train", "test") or (split == "train" and name != SETS[source][0]):
        raise UserError(f"data set {name} has no split {split!r}.")
    path = _path(name, split, source)
    if source == "official":
        frame = {"triviaqa": _trivia, "mmlu": _mmlu}.get(name, _lines)(name, split, path)
    else:
        frame = quiz(path, split) if name == "questions" else _sample(name, path)
    return data.stamp(frame, name, path)


def quiz(path: Path, split: str | None = None) -> pd.DataFrame:
    """Questions from a CSV of ours or of a user's, with ``|`` between accepted answers.

    A cell without an answer means that nobody can know.

    Raises:
        UserError: a missing file, column or question, or an id that is there twice.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; data.train and data.test take the path of a CSV.")
    frame = data.read_csv(path, ["question", "answers"], blank_ok=["answers"])
    if "id" not in frame:
        frame.insert(0, "id", [f"{path.stem}-{i}" for i in range(len(frame))])
    frame = data.unique(frame[[name for name in frame if name in _COLUMNS]], path)
    frame["answers"] = [_listed(text, "|") for text in frame["answers"]]
    return frame[frame["split"] == split] if split else frame


def _listed(text: str, between: str) -> list[str]:
    return [part.strip() for part in text.split(between) if part.strip()]


def _sample(name: str, path: Path) -> pd.DataFrame:
    frame = data.read_csv(path, ["id", "question"])
    if name == "papers":
        frame["answers"] = [[] for _ in range(len(frame))]
        return frame[["id", "question", "answers"]]
    columns = ["question", "a", "b", "c", "d", "answer"]
    rows = zip(frame["id"], frame["topic"], frame[columns].to_numpy().tolist(), strict=True)
    return pd.DataFrame([_choice(i, row) | {"subject": topic} for i, topic, row in rows])


def _choice(name: str, row: list[str]) -> dict[str, Any]:
    """A question with four options as a row."""
    options = row[1:5]
    return {
        "id": name,
        "question": row[0],
        "answers": [options[LETTERS.index(row[5])]],
        "options": options,
        "letter": row[5],
    }


def requests(rows: int) -> pd.DataFrame:
    """The first requests for help that ask for no knowledge, to see what honesty costs.

    Columns ``id, question`` (the request), ``answers`` (any one of which a helpful response
    holds) and ``reference``, a plain good response.
    """
    frame = data.read_csv(REQUESTS, ["id", "request", "accept", "reference"]).head(rows)
    frame["question"] = frame["request"]
    frame["answers"] = frame["accept"].str.split("|")
    return data.stamp(frame[["id", "question", "answers", "reference"]], "requests", REQUESTS)


def own_pkqa(folder: Path) -> dict[str, pd.DataFrame]:
    """The PKQA of the run's own model as a test set; empty if nothing was kept for it."""
    path = folder / "pkqa.jsonl"
    rows = records.read_rows(path)
    return {"pkqa-own": data.stamp(pd.DataFrame(rows), "pkqa-own", path)} if rows else {}


def pool_name(settings: Settings) -> str:
    """The name of the data set that the training questions are from."""
    return "own" if settings.train else SETS[settings.source][0]


def pool(run: Run) -> pd.DataFrame:
    """The training questions, of which ``honesty.pool`` are asked (a seeded sample)."""
    own, source = run.data.train, run.data.source
    frame = _own(own) if own else table(SETS[source][0], "train", source)
    frame = data.limit(frame, run.data.limit_train, run.seed)
    return data.limit(frame, run.honesty.pool, run.seed)


def tests(run: Run) -> dict[str, pd.DataFrame]:
    """The test sets by name, with the run's limits applied (a seeded sample), the main one first.

    The PKQA of the run's own model is not among them (see ``own_pkqa``).
    """
    if run.data.test:
        tables = {"own": _own(run.data.test)}
    else:
        tables = {name: table(name, "test", run.data.source) for name in SETS[run.data.source]}
    limits, otherwise = run.honesty.limits, run.data.limit_test
    return {
        name: data.limit(frame, limits.get(name, otherwise), run.seed)
        for name, frame in tables.items()
    }


def _own(name: str) -> pd.DataFrame:
    return data.stamp(quiz(ROOT / name), "own", ROOT / name)


def pool_files(run: Run) -> dict[str, Path]:
    """The file that ``pool`` reads, by name."""
    if run.data.train:
        return {"train": ROOT / run.data.train}
    name = SETS[run.data.source][0]
    return {name: _path(name, "train", run.data.source)}


def test_files(run: Run) -> dict[str, Path]:
    """The files that ``tests`` reads, by name."""
    if run.data.test:
        return {"test": ROOT / run.data.test}
    names = SETS[run.data.source]
    return {f"{name}-test": _path(name, "test", run.data.source) for name in names}


def _path(name: str, split: str, source: str) -> Path:
    """The file of a set in the samples, or where it was fetched to."""
    if source == "sample":
        return data.SAMPLES / f"{name}.csv"
    return sources.fetch(SOURCES[f"{name}-{split}"])


def _trivia(name: str, split: str, path: Path) -> pd.DataFrame:
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        # A quoted field may hold doubled quotes; splitting at tabs would break one row in five.
        for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
            try:
                question, listed = row
                answers = ast.literal_eval(listed)
            except (ValueError, SyntaxError):
                raise UserError(f"{path}, row {number}: not a question and its answers.") from None
            rows.append([f"{name}-{split}-{number - 1}", question.strip(), central(answers)])
    return pd.DataFrame(rows, columns=["id", "question", "answers"])


def central(answers: list[str]) -> list[str]:
    """Accepted answers with the one first that most others contain; the shortest of such.

    The files of DPR list aliases in no order, redirects of an encyclopaedia among them; what is
    taught as *the* answer should not be one of those.
    """
    plain = [normalise(answer) for answer in answers]
    held = [sum(one in other for other in plain) if one else 0 for one in plain]
    best = max(range(len(answers)), key=lambda k: (held[k], -len(answers[k])), default=0)
    return [*answers[best : best + 1], *answers[:best], *answers[best + 1 :]]


def _lines(name: str, split: str, path: Path) -> pd.DataFrame:
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = []
    for number, item in enumerate(items):
        answers = item.get("answers") or ([item["answer"]] if "answer" in item else [])
        row = {"id": f"{name}-{number}", "question": item["question"], "answers": answers}
        rows.append(row | ({"topic": item["topic"]} if name == "pkqa" else {}))
    return pd.DataFrame(rows)


def _mmlu(name: str, split: str, folder: Path) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.csv")):
        subject = path.stem.removesuffix(f"_{split}")
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file)):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise UserError(f"{path}, row {number + 1}: not a question and four options.")
                choice = _choice(f"{name}-{subject}-{number}", row)
                rows.append(choice | {"subject": subject})
    return pd.DataFrame(rows)
