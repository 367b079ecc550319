"""What a class is given: sessions that fit their time, and sheets that fit their keys."""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest

from ethalign.config import ROOT
from ethalign.data import SAMPLES

TEACH = (ROOT / "book" / "teach.md").read_text()
SESSIONS = re.findall(r"^## (Session \d.*?)(?=^## )", TEACH, re.M | re.S)
SLOT = re.compile(r"^\| (\d+)–(\d+) \| (.*) \|$", re.M)  # noqa: RUF001
NEEDED = {
    label: int(minutes)
    for label, minutes in re.findall(r":label: ([\w-]+)\n\n\*●+ · (\d+) minutes\.\*", TEACH)
}


@pytest.mark.parametrize("session", SESSIONS, ids=lambda text: text.split(":")[0])
def test_a_session_lasts_ninety_minutes_and_its_exercises_fit(session: str) -> None:
    slots = [(int(a), int(b), what) for a, b, what in SLOT.findall(session)]
    assert (slots[0][0], slots[-1][1]) == (0, 90)
    assert all(one[1] == two[0] for one, two in pairwise(slots))
    for start, end, what in slots:
        needed = sum(NEEDED[label] for label in re.findall(r"\{ref\}`(teach-[\w-]+)`", what))
        assert needed <= end - start, what


def test_every_exercise_has_its_place() -> None:
    assert len(SESSIONS) == 4
    assert {*re.findall(r"\{ref\}`(teach-[\w-]+)`", "".join(SESSIONS))} == {*NEEDED}


def test_every_exercise_of_the_book_is_in_the_list_by_topic() -> None:
    notebooks = (p.read_text() for p in sorted((ROOT / "notebooks").rglob("*.ipynb")))
    label = re.compile(r"\{exercise\} ([^\n]*?)(?:\\n\",\s*\"|\n):label: ([\w-]+)")
    there = [(name, title) for text in notebooks for title, name in label.findall(text)]
    topics = TEACH.partition("| topic | exercises |")[2].partition("\n\n")[0]
    assert {*re.findall(r"\{ref\}`([\w-]+)`", topics)} == {*NEEDED}
    # Those of notebooks are named, so that they can be read before these were executed.
    named = re.findall(r"\{ref\}`([^`<]+) <([\w-]+)>`", topics)
    assert sorted((name, title) for title, name in named) == sorted(there)


def sheets(page: str) -> list[dict[str, Any]]:
    """The handouts of a page: name of the file, and options."""
    text = (ROOT / "book" / page).read_text()
    return [
        {"name": name, **dict(re.findall(r"^:(\w+): (.*)$", body, re.M))}
        for name, body in re.findall(r"^```\{handout\} (\S+)\n(.*?)^```", text, re.M | re.S)
    ]


def drawn(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    numbers = {k: int(v) for k, v in options.items() if k in ("rows", "seed", "start")}
    text = importlib.import_module("handouts").sheet(**{**options, **numbers})
    return [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines()]


def test_a_key_is_that_of_its_sheet_and_a_sheet_gives_nothing_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, told = sheets("handouts.md"), sheets("keys.md")
    assert [int(sheet["rows"]) for sheet in asked] == [10, 5, 10, 2]
    for sheet, key in zip(asked, told, strict=True):
        blank, full = drawn(sheet, monkeypatch), drawn(key, monkeypatch)
        shown = sheet["show"].count(",") + 2
        assert [row[:shown] for row in blank] == [row[:shown] for row in full]
        assert not any(cell for row in blank[2:] for cell in row[shown:]), "room to write in"
        assert "blank" not in key
        secret = {"Label", "Reason", "votes1", "votes2", "answers"}
        assert not secret & set(re.findall(r"\w+(?= =)", sheet["show"]))
    numbers = [int(row[0]) for sheet in asked[2:] for row in drawn(sheet, monkeypatch)[2:]]
    assert numbers == [*range(1, 13)], "twelve questions"
    labels = pd.read_csv(SAMPLES / "statements.csv", dtype=str).set_index("Statement")["Label"]
    for _, statement, label, *_ in drawn(told[0], monkeypatch)[2:]:
        assert labels[re.sub(r"\\(.)", r"\1", statement)] == label


def test_the_key_of_session_1_counts_the_file() -> None:
    known, asked = (pd.read_csv(SAMPLES / name) for name in ("statements.csv", "statements-b.csv"))
    learnt = {*known.loc[known["split"] == "train", "Statement"]}
    copies = asked["Statement"].isin(learnt)
    nearly = ~copies & (asked["Statement"] + ".").isin(learnt)
    key = " ".join((ROOT / "book" / "keys.md").read_text(encoding="utf-8").split())
    assert (
        f"Of the {len(asked)} rows of `data/samples/statements-b.csv`, {copies.sum()} are" in key
    )
    numbers = {4: "Four"}
    assert f"{numbers[nearly.sum()]} more are training statements without" in key
    assert f"The other {(~copies & ~nearly).sum()} are the test statements" in key
