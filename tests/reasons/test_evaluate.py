from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ethalign import models, records
from ethalign.reasons import data, evaluate

from . import resolved

NONE = pd.DataFrame()


def table(**columns: list[Any]) -> pd.DataFrame:
    whole = {
        "dataset": ["d"] * 4,
        "id": ["a", "b", "c", "e"],
        "stratum": ["clean", "clean", "contaminated", "contaminated"],
        "seen": [False, False, True, False],
        "gold": ["ethical", "unethical", "ethical", "unethical"],
        "verdict": ["ethical", "ethical", "ethical", "unethical"],
        "written": [False] * 4,
    }
    return pd.DataFrame({**whole, **columns})


def values(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    return {row["stratum"]: row["value"] for row in rows if row["metric"] == metric}


def test_strata_say_what_was_seen() -> None:
    masks = evaluate.strata(table())
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "all": [True] * 4,
        "clean": [True, True, False, False],
        "contaminated": [False, False, True, True],
        "seen": [False, False, True, False],
    }
    assert list(evaluate.strata(table(seen=[False] * 4))) == ["all", "clean", "contaminated"]
    every = table(seen=[False, False, True, True])
    assert list(evaluate.strata(every)) == ["all", "clean", "contaminated"]
    assert list(evaluate.strata(table(stratum=["clean"] * 4))) == ["all"]
    assert list(evaluate.strata(table(stratum=["contaminated"] * 4))) == [
        "all",
        "contaminated",
        "seen",
    ]
    assert list(evaluate.strata(table(stratum=["clean"] * 4, tied=[True] * 4))) == ["all"]
    old = table().drop(columns="seen")
    assert list(evaluate.strata(old)) == ["all", "clean", "contaminated"]


def test_verdicts_become_rows_by_stratum() -> None:
    rows = evaluate.measure_rows(resolved(), table(), NONE, {})
    assert values(rows, "accuracy") == {"all": 0.75, "clean": 0.5, "contaminated": 1, "seen": 1}
    assert values(rows, "says_unethical")["all"] == 0.25
    assert values(rows, "majority")["clean"] == 0.5
    assert not values(rows, "accuracy_text")
    tied = table(tied=[True, False, False, False])
    assert values(evaluate.measure_rows(resolved(), tied, NONE, {}), "accuracy")["untied"] == (
        pytest.approx(2 / 3, abs=1e-6)
    )


@pytest.mark.parametrize("missing", [None, np.nan])
def test_an_answer_without_a_verdict_is_counted_as_unparsed(missing: Any) -> None:
    """Also if no answer at all has one, or if the table marks them as missing numbers."""
    some = table(written=[True] * 4, text_verdict=["ethical", missing, missing, "ethical"])
    rows = evaluate.measure_rows(resolved(), some, NONE, {})
    assert values(rows, "unparsed")["all"] == 0.5
    assert values(rows, "accuracy_text")["all"] == 0.25
    none = table(written=[True, True, False, False], text_verdict=[missing] * 4)
    assert values(evaluate.measure_rows(resolved(), none, NONE, {}), "unparsed")["all"] == 1


def test_judgements_become_rows_by_stratum() -> None:
    judgements = pd.DataFrame(
        {
            "id": ["b", "c", "e"],
            "dataset": "d",
            "stance_misaligned": [True, False, True],
            "judge_misaligned": [True, False, False],
            "chrf": [0.5, np.nan, 0.25],
            "cosine": [np.nan] * 3,
        }
    )
    quality = {"caught": 10, "misaligned": 10, "passed": 10, "aligned": 10}
    rows = evaluate.measure_rows(resolved(), table(), judgements, quality)
    assert values(rows, "misalignment_stance") == {
        "all": pytest.approx(2 / 3, abs=1e-6),
        "clean": 1,
        "contaminated": 0.5,
        "seen": 0,
    }
    assert values(rows, "misalignment_corrected") == values(rows, "misalignment_judge")
    assert values(rows, "chrf") == {"all": 0.375, "clean": 0.5, "contaminated": 0.25}
    assert not values(rows, "cosine")


def test_items_of_equal_name_in_two_data_sets_are_kept_apart(
    tmp_path: Path, tiny: models.Loaded
) -> None:
    path = tmp_path / "comments.csv"  # ids as those of the sample comments
    path.write_text("Statement,Label\nI lied.,1\nI sang.,0\nI ran.,0\n")
    every = {"data.limit_test": None, "evaluation.generate": False}
    run = resolved(overrides={"data.test": str(path), **every})
    tests = data.tests(run)
    assert set(tests["own"]["id"]) & set(tests["comments"]["id"])
    found = evaluate.ask(run, tiny, tests, tmp_path / "predictions.jsonl")
    assert found["dataset"].value_counts().to_dict() == {"own": 3, "comments": 80}


def test_only_a_sample_of_items_gets_a_written_answer(tmp_path: Path, tiny: models.Loaded) -> None:
    for limit, expected in ((5, 10), (None, 24), (0, 0)):
        run = resolved(overrides={"evaluation.limit_generate": limit})
        path = tmp_path / f"{limit}.jsonl"
        found = evaluate.ask(run, tiny, data.tests(run), path)
        assert found["written"].sum() == expected
        assert [("reason" in row) for row in records.read_rows(path)] == found["written"].tolist()
    off = resolved(overrides={"evaluation.generate": False})
    found = evaluate.ask(off, tiny, data.tests(off), tmp_path / "off.jsonl")
    assert not found["written"].any()
