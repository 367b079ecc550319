import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ethalign import records
from ethalign.config import UserError
from ethalign.reasons import data, rating

from . import resolved

PREDICTIONS = pd.DataFrame(
    {
        "id": [f"s{i}" for i in range(6)],
        "variant": ["L", "LR"] * 3,
        "statement": ["I lied."] * 6,
        "generated": ["=cmd()", "Ethical. Fine.", "+1", "@x", "-2", "Unethical."],
    }
)


def fill(folder: Path, answers: Sequence[Callable[[str], str]]) -> list[Path]:
    """Sheets as raters would return them: answers[rater](variant)."""
    key = pd.read_csv(folder / "key.csv").set_index("code")["variant"]
    paths = []
    for number, answer in enumerate(answers, 1):
        path = folder / f"sheet-{number}.csv"
        sheet = pd.read_csv(path, dtype=str, keep_default_na=False)
        sheet["aligned"] = [answer(key[code]) for code in sheet["code"]]
        sheet.to_csv(path, index=False)
        paths.append(path)
    return paths


def test_sheets_are_blind_and_harmless(tmp_path: Path) -> None:
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=2, seed=0)
    sheets = [pd.read_csv(tmp_path / f"sheet-{n}.csv", dtype=str) for n in (1, 2)]
    for sheet in sheets:
        assert list(sheet.columns) == ["code", "statement", "answer", "aligned"]
        assert not sheet["answer"].str.match(r"[=+\-@]").any()
    assert sheets[0]["code"].tolist() != sheets[1]["code"].tolist()


def test_a_few_answers_are_drawn_evenly_and_the_same_for_all_raters(tmp_path: Path) -> None:
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", rows=4)
    key = pd.read_csv(tmp_path / "key.csv", dtype=str)
    assert key["variant"].value_counts().tolist() == [2, 2]
    for number in (1, 2):
        sheet = pd.read_csv(tmp_path / f"sheet-{number}.csv", dtype=str)
        assert sorted(sheet["code"]) == sorted(key["code"])
    found = rating.rate_import(fill(tmp_path, [lambda v: "yes"] * 2), tmp_path / "key.csv")
    assert found.items == 4


def test_ratings_come_back_as_rates_by_variant(tmp_path: Path) -> None:
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=3, seed=0)
    files = fill(tmp_path, [lambda v: "yes" if v == "LR" else "no"] * 2 + [lambda v: "no"])
    found = rating.rate_import(files, tmp_path / "key.csv")
    assert found.rates["LR"].value == 0
    assert found.rates["L"].value == 1
    assert found.kind == "Fleiss' kappa"
    assert "LR" in str(found)


def test_two_raters_agree_by_cohens_kappa(tmp_path: Path) -> None:
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=2, seed=0)
    files = fill(tmp_path, [lambda v: "yes" if v == "LR" else "no"] * 2)
    found = rating.rate_import(files, tmp_path / "key.csv")
    assert (found.kind, found.kappa, found.items) == ("Cohen's kappa", 1.0, 6)
    assert "Cohen's kappa: 1.000 (2 raters, 6 items)" in str(found)


def test_a_cell_that_is_no_rating_is_named(tmp_path: Path) -> None:
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=2, seed=0)
    files = fill(tmp_path, [lambda v: "perhaps", lambda v: "yes"])
    with pytest.raises(UserError, match=r"row 2, column aligned: 'perhaps'"):
        rating.rate_import(files, tmp_path / "key.csv")
    cut = pd.read_csv(files[1], dtype=str)[:-1]
    cut.to_csv(files[1], index=False)
    with pytest.raises(UserError, match="exactly once"):
        rating.rate_import([files[1]], tmp_path / "key.csv")


def test_fleiss_own_example() -> None:
    """Fleiss 1971, fourteen raters, ten subjects, five categories: kappa 0.210."""
    counts = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
         [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    )  # fmt: skip
    assert rating.fleiss_kappa(counts) == pytest.approx(0.210, abs=0.0005)
    assert math.isnan(rating.fleiss_kappa(np.array([[1, 0], [0, 1]])))


def test_every_written_reason_is_gathered_under_its_variant(tmp_path: Path) -> None:
    for variant in ("L", "LR"):
        run = resolved(variant)
        folder = tmp_path / "random-tiny" / variant / "0"
        test = data.tests(run)["statements"]
        row = {"dataset": "statements", "verdict": "ethical"}
        rows = [{**row, "id": name, "reason": "It helps."} for name in test["id"][:3]]
        rows += [{**row, "id": test["id"][3]}]
        records.write(folder / "config.yaml", run.model_dump(mode="json"))
        records.write(folder / "predictions.jsonl", pd.DataFrame(rows[:3]))
        empty = [{**row, "id": test["id"][k], "reason": " " * k} for k in (4, 5)]
        records.append_rows(folder / "predictions.jsonl", rows[3:] + empty)
    found = rating.gather(tmp_path)
    assert found["variant"].tolist() == ["L"] * 3 + ["LR"] * 3
    assert found["statement"].tolist() == 2 * test["statement"][:3].tolist()
    assert set(found["generated"]) == {"Ethical. It helps."}
    with pytest.raises(UserError, match="holds no reasons"):
        rating.gather(tmp_path / "none")
