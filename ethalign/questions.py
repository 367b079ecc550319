"""Questions to know or not to know: loaders of the honesty study's data sets.

TriviaQA (in the splits of DPR) to train on and to test, and four further test sets: Non-AmbigQA,
PUQA (papers that the models cannot know), PKQA (what one model was found to know) and MMLU.
"""

from __future__ import annotations

import ast
import csv
import json
from typing import Any

import pandas as pd

from ethalign import data, sources
from ethalign.config import UserError

LETTERS = "ABCD"


def load(name: str, split: str = "test") -> pd.DataFrame:
    """A table of questions, checked.

    Args:
        name: ``triviaqa`` (``train`` is DPR's development split, the pool that questions are
            drawn from), ``nonambigqa``, ``puqa``, ``pkqa`` or ``mmlu`` (``test`` only).
        split: ``train`` or ``test``.

    Returns:
        ``id, question, answers``: a list of accepted answers, empty for PUQA, which nobody can
        answer; for MMLU the text of the right option and ``options`` (four texts), ``letter`` and
        ``subject``; for PKQA ``topic``.

    Raises:
        UserError: an unknown name or split, a missing or altered file, or a row off the form.
    """
    readers = {
        "triviaqa": _trivia,
        "nonambigqa": _lines,
        "puqa": _lines,
        "pkqa": _lines,
        "mmlu": _mmlu,
    }
    if name not in readers:
        raise UserError(f"data set {name!r} is not one of {', '.join(readers)}.")
    if split not in ("train", "test") or (split == "train" and name != "triviaqa"):
        raise UserError(f"data set {name} has no split {split!r}.")
    return readers[name](name, split)


def _trivia(name: str, split: str) -> pd.DataFrame:
    path = sources.fetch(f"{name}-{split}")
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        # A quoted field may hold doubled quotes; splitting at tabs would break one row in five.
        for number, row in enumerate(csv.reader(file, delimiter="\t"), 1):
            try:
                question, listed = row
                answers = ast.literal_eval(listed)
            except (ValueError, SyntaxError):
                raise UserError(f"{path}, row {number}: not a question and its answers.") from None
            rows.append([f"{name}-{split}-{number - 1}", question.strip(), answers])
    return data.stamp(pd.DataFrame(rows, columns=["id", "question", "answers"]), name, path)


def _lines(name: str, split: str) -> pd.DataFrame:
    path = sources.fetch(f"{name}-{split}")
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = []
    for number, item in enumerate(items):
        answers = item.get("answers") or ([item["answer"]] if "answer" in item else [])
        row = {"id": f"{name}-{number}", "question": item["question"], "answers": answers}
        rows.append(row | ({"topic": item["topic"]} if name == "pkqa" else {}))
    return data.stamp(pd.DataFrame(rows), name, path)


def _mmlu(name: str, split: str) -> pd.DataFrame:
    folder = sources.fetch(f"{name}-{split}")
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.csv")):
        subject = path.stem.removesuffix(f"_{split}")
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file)):
                if len(row) != 6 or row[5] not in LETTERS:
                    raise UserError(f"{path}, row {number + 1}: not a question and four options.")
                options = row[1:5]
                rows.append(
                    {
                        "id": f"{name}-{subject}-{number}",
                        "question": row[0],
                        "answers": [options[LETTERS.index(row[5])]],
                        "options": options,
                        "letter": row[5],
                        "subject": subject,
                    }
                )
    return data.stamp(pd.DataFrame(rows), name, folder)
