import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ethalign import calibration, scoring
from ethalign.ambiguity import data, evaluate
from ethalign.models import Loaded

from . import resolved


@pytest.mark.parametrize("answers", ["words", "letters", "yes-no"])
@pytest.mark.parametrize("dataset", ["dilemmas", "anecdotes"])
def test_every_form_of_answer_can_be_asked_and_scored(
    tiny: Loaded, tmp_path: Path, answers: str, dataset: str
) -> None:
    run = resolved("zero-shot", votes__answers=answers, votes__dataset=dataset)
    tables = data.tests(run)
    predictions = evaluate.ask(run, tiny, tables, tmp_path / "p.jsonl")
    assert len(predictions) == sum(map(len, tables.values()))
    np.testing.assert_allclose(evaluate.probabilities(predictions).sum(1), 1)
    assert ("swapped1" in predictions) == (dataset == "dilemmas")
    rows = evaluate.measure_rows(run, run.variant, predictions)
    values = {(r["metric"], r["stratum"]): r["value"] for r in rows}
    assert values["cross_entropy", "all"] > 0
    assert 0 <= values["answer_mass", "all"] < 1
    assert values["temperature", "all"] > 0


def test_mass_is_summed_over_spellings(tiny: Loaded) -> None:
    """Against a plain computation of every spelling's probability."""
    run = resolved("zero-shot")
    asked = ["Which one?\nAnswer:", "Another question, longer.\nAnswer:"]
    found = evaluate.answer_logprobs(run, tiny, asked)
    texts = [" first", " First", "first", "First"]
    each = np.exp(scoring.choice_logprobs(tiny.model, tiny.tokenizer, asked, texts))
    np.testing.assert_allclose(np.exp(found[:, 0]), each.sum(1), rtol=1e-5)


def test_swapping_a_pair_swaps_its_numbers(tiny: Loaded, tmp_path: Path) -> None:
    run = resolved("zero-shot")
    test = data.tests(run)["test"]
    turned = test.rename(columns={"first": "second", "second": "first"})
    turned.attrs = test.attrs
    one = evaluate.ask(run, tiny, {"test": test}, tmp_path / "1.jsonl")
    two = evaluate.ask(run, tiny, {"test": turned}, tmp_path / "2.jsonl")
    np.testing.assert_allclose(one["logp1"], two["swapped2"], atol=1e-4)
    np.testing.assert_allclose(
        evaluate.probabilities(one), evaluate.probabilities(two)[:, ::-1], atol=1e-4
    )


def test_interrupted_scoring_resumes_without_losing_or_repeating(
    tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resolved("zero-shot")
    whole = evaluate.ask(run, tiny, data.tests(run), tmp_path / "whole.jsonl")
    path = tmp_path / "cut.jsonl"
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:20])  # torn in the middle of a row
    asked: list[str] = []
    real = evaluate._answer

    def ask(run: Any, model: Any, chunk: Any) -> Any:
        asked.extend(row["id"] for row in chunk)
        return real(run, model, chunk)

    monkeypatch.setattr(evaluate, "_answer", ask)
    again = evaluate.ask(run, tiny, data.tests(run), path)
    assert 0 < len(asked) < len(whole)
    pd.testing.assert_frame_equal(again, whole)
    assert path.read_text() == "".join(lines)


def test_a_perfect_predictor_gets_perfect_scores() -> None:
    table = pd.DataFrame({"dataset": "x", "votes1": [5, 0, 5], "votes2": [0, 5, 0]})
    table["stratum"] = data.strata(table)
    table[["p1", "p2"]] = calibration.shares(data.counts(table))
    found = evaluate.score_rows(resolved("ceiling"), "oracle", table)
    rows = {r["metric"]: r["value"] for r in found}
    assert rows["accuracy"] == rows["macro_f1"] == 1
    assert rows["cross_entropy"] == rows["brier"] == rows["calibration_error"] == 0


def test_an_item_nobody_voted_on_is_left_out_of_the_scores() -> None:
    table = pd.DataFrame({"dataset": "x", "votes1": [5, 0], "votes2": [0, 0]})
    table["stratum"] = data.strata(table)
    rows = evaluate.score_rows(resolved("ceiling"), "uniform", table.assign(p1=0.5, p2=0.5))
    assert {r["n"] for r in rows} == {1}
    assert all(math.isfinite(r["value"]) for r in rows)
