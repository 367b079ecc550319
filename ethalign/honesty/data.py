"""Questions to know or not to know: the data sets of the honesty study.

TriviaQA (in the splits of DPR, or its whole training file), Non-AmbigQA, PUQA (papers that the
models cannot know), PKQA (what one model was found to know) and MMLU. At small scales the shipped
samples stand in for them.
"""

from __future__ import annotations

import ast
import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import data, records, sources
from ethalign.config import ROOT, UserError, choose
from ethalign.config import Data as Settings
from ethalign.honesty.scores import normalise
from ethalign.honesty.settings import Run

Rows = Iterator[dict[str, Any]]
SOURCES = sources.declared("honesty")
LETTERS = "ABCD"
#: Test sets by source; the first is the one that the training questions are like.
SETS = {
    "official": ("triviaqa", "nonambigqa", "puqa", "pkqa", "mmlu"),
    "sample": ("questions", "papers", "options"),
}
# Sets of which nothing can be known, and of which everything was found to be known.
UNKNOWN, KNOWN = ("puqa", "papers"), ("pkqa", "pkqa-own", "said-twice")
# Which questions test a model does not depend on the seed that it is trained with.
FIXED = 0
# What reading an archive of questions raises if it is another one.
DAMAGED: tuple[type[Exception], ...] = (*sources.BROKEN, KeyError, TypeError)
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
        Columns ``id, question, answers`` (a list of accepted answers, empty where nobody can
        know); MMLU and options have the text of the right one, ``options`` (four texts),
        ``letter`` and ``subject``; PKQA ``topic``; sample questions ``topic, difficulty,
        paraphrase``.

    Raises:
        UserError: an unknown name or split, a missing or altered file, or a row off the form.
    """
    known = [*SETS[source]]
    choose(f"data set from {source}", name, known)
    choose(f"split of {name}", split, ["test", "train"] if name == known[0] else ["test"])
    return _read(name, split, _path(name, split, source))


def _read(name: str, split: str, path: Path) -> pd.DataFrame:
    if name in ("own", "questions"):
        return data.stamp(quiz(path, split if name == "questions" else None), name, path)
    readers = {"triviaqa": _trivia, "mmlu": _mmlu, "papers": _sample, "options": _sample}
    return data.stamp(pd.DataFrame(readers.get(name, _lines)(name, split, path)), name, path)


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
    listed = (text.split("|") for text in frame["answers"])
    frame["answers"] = [[part.strip() for part in parts if part.strip()] for parts in listed]
    return frame[frame["split"] == split] if split else frame


def requests(rows: int) -> pd.DataFrame:
    """Requests for help that ask for no knowledge, with a ``reference``, a plain good response.

    ``question`` is the request; a helpful response holds any one of ``answers``.
    """
    frame = data.read_csv(REQUESTS, ["id", "request", "accept", "reference"]).head(rows)
    frame = frame.rename(columns={"request": "question", "accept": "answers"})
    return data.stamp(frame.assign(answers=frame["answers"].str.split("|")), "requests", REQUESTS)


def own_pkqa(folder: Path, judge: str = "string") -> dict[str, pd.DataFrame]:
    """What the run's own model asked itself as a test set; empty if nothing was kept for it.

    Only where a ``judge`` checked the facts is it a PKQA; else the model *said* them *twice*.
    """
    path, name = folder / "pkqa.jsonl", "said-twice" if judge == "string" else "pkqa-own"
    rows = records.read_rows(path)
    return {name: data.stamp(pd.DataFrame(rows), name, path)} if rows else {}


def pool_name(settings: Settings) -> str:
    """The name of the data set that the training questions are from."""
    return "own" if settings.train else SETS[settings.source][0]


def pool(run: Run) -> pd.DataFrame:
    """The training questions, of which ``honesty.pool`` are asked (a seeded sample)."""
    (path,) = pool_files(run).values()
    frame = _read(pool_name(run.data), "train", path)
    frame = data.limit(frame, run.data.limit_train, run.seed)
    return data.limit(frame, run.honesty.pool, run.seed)


def mixed(run: Run) -> pd.DataFrame:
    """MMLU's development questions, each once, which the paper mixes into its training rows."""
    table = _read("mmlu", "dev", sources.fetch(SOURCES["mmlu-train"]))
    return table.drop_duplicates("question", ignore_index=True)


def probes(run: Run) -> pd.DataFrame:
    """Rows of ``knowledge.jsonl`` from a file of probed questions in the authors' form.

    Their labels are ``known`` and ``unknown``, their answer is ``gold_answer`` or ``answers``.

    Raises:
        UserError: a missing or an empty file, or a row without one of the fields.
    """
    path, rows = ROOT / str(run.honesty.probes), []
    if not path.is_file():
        raise UserError(f"{path} is missing; honesty.probes takes the path of a JSONL file.")
    for number, row in enumerate(records.read_rows(path)):
        try:
            labels = [int(label in ("known", 1)) for label in row["sampling_labels"]]
            rows.append(
                {
                    "id": f"probe-{number}",
                    "question": row["question"],
                    "answers": row.get("answers") or [row["gold_answer"]],
                    "greedy_pred_text": row["greedy_pred_text"],
                    "greedy_label": int(row["greedy_label"] in ("known", 1)),
                    "sampling_pred_text": row["sampling_pred_text"],
                    "sampling_labels": labels,
                    "sampling_knowns": sum(labels),
                }
            )
        except KeyError as error:
            raise UserError(f"{path}, row {number + 1} has no field {error}.") from None
    if not rows:
        raise UserError(f"{path} holds no probed question.")
    return data.limit(pd.DataFrame(rows), run.tuning.rows, run.seed)


def probed_files(run: Run) -> dict[str, Path]:
    """The files that ``mixed`` and ``probes`` read, by name, where they are asked for."""
    given = run.honesty.probes
    found = {"mmlu-train": sources.fetch(SOURCES["mmlu-train"])} if run.honesty.mix else {}
    return found | ({"probes": ROOT / given} if given else {})


def tests(run: Run) -> dict[str, pd.DataFrame]:
    """Test sets by name within the run's limits, the main one first; see also ``own_pkqa``."""
    limits, otherwise = run.honesty.limits, run.data.limit_test
    return {
        name: data.limit(_read(name, "test", path), limits.get(name, otherwise), FIXED)
        for name, path in test_files(run).items()
    }


def pool_files(run: Run) -> dict[str, Path]:
    """The file that ``pool`` reads, by name."""
    own, name = run.data.train, pool_name(run.data)
    if run.honesty.split == "train" and run.data.source == "official" and not own:
        return {"triviaqa-full": sources.fetch(SOURCES["triviaqa-full"])}
    return {f"{name}-train": ROOT / own if own else _path(name, "train", run.data.source)}


def test_files(run: Run) -> dict[str, Path]:
    """The files that ``tests`` reads, by the names of their sets."""
    own, source = run.data.test, run.data.source
    return {"own": ROOT / own} if own else {n: _path(n, "test", source) for n in SETS[source]}


def _path(name: str, split: str, source: str) -> Path:
    if source == "sample":
        return data.SAMPLES / f"{name}.csv"
    return sources.fetch(SOURCES[f"{name}-{split}"])


def _sample(name: str, split: str, path: Path) -> Rows:
    for row in data.read_csv(path, ["id", "question"]).to_dict("records"):
        if name == "papers":
            yield {"id": row["id"], "question": row["question"], "answers": []}
        else:
            cells = [row[key] for key in ("question", *"abcd", "answer")]
            yield _choice(row["id"], cells, row["topic"])


def _trivia(name: str, split: str, path: Path) -> Rows:
    if path.suffix == ".gz":
        yield from map(dict, _original(path))
        return
    with path.open(encoding="utf-8", newline="") as file:
        # A quoted field may hold doubled quotes; splitting at tabs would break one row in five.
        for number, row in enumerate(csv.reader(file, delimiter="\t")):
            try:
                asked, listed = row
                answers = central(ast.literal_eval(listed))
            except (ValueError, SyntaxError):
                place = f"{path}, row {number + 1}"
                raise UserError(f"{place}: not a question and its answers.") from None
            key = f"{name}-{split}-{number}"
            yield {"id": key, "question": asked.strip(), "answers": answers}


@functools.lru_cache(maxsize=1)
def _original(path: Path) -> tuple[dict[str, Any], ...]:
    """The training questions as TriviaQA's authors publish them, the answer's own name first."""
    try:
        for name, _, opened in sources.members(path):
            if name.endswith("/unfiltered-web-train.json"):
                with opened() as content:
                    items = json.load(content, object_hook=_without_evidence)["Data"]
                return tuple(map(_asked, items))
    except DAMAGED:
        raise UserError(f"{path} is not TriviaQA's archive.") from None
    raise UserError(f"{path} holds no unfiltered-web-train.json.")


def _asked(item: dict[str, Any]) -> dict[str, Any]:
    answers = dict.fromkeys([item["Answer"]["Value"], *item["Answer"]["Aliases"]])
    question = item["Question"].strip()
    return {"id": f"triviaqa-{item['QuestionId']}", "question": question, "answers": [*answers]}


def _without_evidence(item: dict[str, Any]) -> dict[str, Any]:
    """What was searched for each question is most of the file, and is let go while it is read."""
    return {k: v for k, v in item.items() if k not in ("SearchResults", "EntityPages")}


def central(answers: list[str]) -> list[str]:
    """Accepted answers with the one first that most others contain; the shortest of such.

    The files of DPR list aliases in no order, redirects of an encyclopaedia among them; what is
    taught as *the* answer should not be one of those.
    """
    plain = [normalise(answer) for answer in answers]
    held = [sum(one in other for other in plain) if one else 0 for one in plain]
    best = max(range(len(answers)), key=lambda k: (held[k], -len(answers[k])), default=0)
    return [*answers[best : best + 1], *answers[:best], *answers[best + 1 :]]


def _lines(name: str, split: str, path: Path) -> Rows:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        item = json.loads(line)
        answers = item.get("answers") or ([item["answer"]] if "answer" in item else [])
        topic = {"topic": item["topic"]} if name == "pkqa" else {}
        yield {"id": f"{name}-{number}", "question": item["question"], "answers": answers, **topic}


def _mmlu(name: str, split: str, folder: Path) -> Rows:
    for path in sorted(folder.glob("*.csv")):
        subject = path.stem.removesuffix(f"_{split}")
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file)):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise UserError(f"{path}, row {number + 1}: not a question and four options.")
                yield _choice(f"{name}-{subject}-{number}", row, subject)


def _choice(key: str, cells: list[str], subject: str) -> dict[str, Any]:
    question, *options, letter = cells
    answers = [options[LETTERS.index(letter)]]
    more = {"options": options, "letter": letter, "subject": subject}
    return {"id": key, "question": question, "answers": answers, **more}
