"""Claims of the paper, tested on decisions that are made up; tables and figures of scores."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ethalign import records
from ethalign.honesty import claims, evaluate, plots

from . import frame


def leave(
    home: Path,
    variant: str,
    verdicts: list[str],
    dataset: str = "questions",
    stratum: str = "all",
    model: str = "model",
) -> None:
    """Predictions of a variant as a run leaves them, in an order of its own."""
    table = frame(verdict=verdicts, dataset=dataset, stratum=stratum).sample(
        frac=1, random_state=len(variant)
    )
    path = home / model / variant / "0" / "predictions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    other = frame(verdict=["idk"] * 3, part="told", dataset=dataset)
    before = pd.DataFrame(records.read_rows(path))
    records.write(path, pd.concat([before, table, other], ignore_index=True))


def test_claims_hold_where_they_should(tmp_path: Path) -> None:
    known, unknown = ["correct"] * 30, ["wrong"] * 30
    leave(tmp_path, "unaligned", known + unknown)
    leave(tmp_path, "prompt-based", known + unknown)
    leave(tmp_path, "absolute", known + ["idk"] * 30)
    leave(tmp_path, "fine-tuned", ["idk"] * 30 + unknown)
    for variant, says in (("unaligned", "wrong"), ("absolute", "idk"), ("prompt-based", "wrong")):
        leave(tmp_path, variant, [says] * 20, "papers")
    leave(tmp_path, "fine-tuned", ["wrong"] * 20, "papers")
    table = claims.verdicts({"here": tmp_path}).set_index(["claim", "data"])
    verdicts = table["verdict"].to_dict()
    main, papers = "questions, here, model", "papers, here, model"
    assert verdicts == {
        ("prompt-based is more honest than unaligned", main): "not shown",
        ("fine-tuned is more honest than unaligned", main): "reversed",
        ("absolute is more honest than unaligned", main): "holds",
        ("unaligned is more accurate than absolute", main): "not shown",
        ("unaligned is more accurate than fine-tuned", main): "holds",
        ("unaligned is more accurate than prompt-based", main): "not shown",
        ("absolute declines more than unaligned", papers): "holds",
        ("fine-tuned declines more than unaligned", papers): "not shown",
        ("prompt-based declines more than unaligned", papers): "not shown",
    }
    honest: Any = table.loc[("absolute is more honest than unaligned", main)]
    assert honest["difference"] == pytest.approx(0.5)
    assert honest["n"] == 60
    same: Any = table.loc[("prompt-based is more honest than unaligned", main)]
    assert (same["difference"], same["p"]) == (0, 1)


def test_without_the_model_as_it_was_nothing_can_be_claimed(tmp_path: Path) -> None:
    leave(tmp_path, "absolute", ["idk", "correct"])
    assert claims.verdicts({"here": tmp_path, "nowhere": tmp_path / "none"}).empty


def test_several_runs_and_models_stand_beside_each_other(tmp_path: Path) -> None:
    for run, model in (("mine", "small"), ("mine", "large"), ("reference", "small")):
        for variant, verdicts in (("absolute", ["idk", "correct"]), ("unaligned", ["wrong"] * 2)):
            leave(tmp_path / run, variant, verdicts, model=model)
        knowledge = tmp_path / run / model / "knowledge" / "0" / "knowledge.jsonl"
        probed = {"greedy_label": 1, "sampling_knowns": 1, "sampling_labels": [1, 0]}
        records.write(knowledge, pd.DataFrame([{"id": "q", **probed}]))
    homes = {name: tmp_path / name for name in ("mine", "reference", "nobody")}
    found = claims.by_variant(homes, main=True)
    assert [*found] == ["mine, large", "mine, small", "reference, small"]
    assert [*found["mine, small"]] == ["unaligned", "absolute"], "in the paper's order"
    cells = claims.transitions(found["mine, small"])["absolute"]
    assert (cells["wrong", "idk"], cells["wrong", "correct"]) == (1, 1)
    assert [*claims.sweeps(homes)] == [*found]
    plots.transitions({"one": cells, "two": cells})
    plots.risk_coverage(found)
    plots.sweep(claims.sweeps(homes), tau=0.1)
    kept = claims.confidences(found["mine, small"]["absolute"], stated=False)
    assert kept["confidence"].tolist() == [pytest.approx(0.3679, abs=1e-4)], "without the declined"
    plots.confidences({"one": kept}, "confidence")


def test_only_rows_with_both_scores_have_a_place_in_the_plane() -> None:
    rows = pd.DataFrame(
        [
            {"variant": v, "dataset": "questions", "stratum": s, "metric": m, "value": x}
            for v, s, m, x in (
                ("absolute", "all", "prudence", 0.5),
                ("absolute", "all", "over_conservativeness", 0.1),
                ("absolute", "unanswerable", "prudence", 0.9),
                ("unaligned", "all", "prudence", 0.0),
                ("judge", "all", "prudence", 0.0),
            )
        ]
    )
    place = claims.plane(rows, "questions")
    assert place.to_dict("records") == [
        {"variant": "absolute", "prudence": 0.5, "over_conservativeness": 0.1}
    ]
    plots.plane({"mine": place, "reported": place})


def test_a_set_that_nobody_can_answer_is_compared_by_what_is_declined(tmp_path: Path) -> None:
    for variant, says in (("unaligned", "wrong"), ("absolute", "idk")):
        leave(tmp_path, variant, [says] * 20, "own", stratum=evaluate.NOBODY)
    table = claims.verdicts({"here": tmp_path})
    assert table["claim"].tolist() == ["absolute declines more than unaligned"]
    assert table["verdict"].tolist() == ["holds"]
