import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign import calibration, metrics, scoring
from ethalign.ambiguity import data, evaluate
from ethalign.models import Loaded

from . import resolved


@pytest.mark.parametrize("answers", ["words", "letters", "yes-no", "authors"])
@pytest.mark.parametrize("dataset", ["dilemmas", "anecdotes"])
def test_every_form_of_answer_can_be_asked_and_scored(
    tiny: Loaded, tmp_path: Path, answers: str, dataset: str
) -> None:
    variant = "authors" if answers == "authors" else "zero-shot"
    run = resolved(variant, votes__answers=answers, votes__dataset=dataset)
    tables = data.tests(run)
    predictions = evaluate.ask(run, tiny, tables, tmp_path / "p.jsonl")
    assert len(predictions) == sum(map(len, tables.values()))
    np.testing.assert_allclose(evaluate.probabilities(predictions).sum(1), 1)
    assert ("swapped1" in predictions) == (dataset == "dilemmas" and answers != "authors")
    assert ("action1" in predictions) == (dataset == "dilemmas")
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


def test_pairs_of_like_length_share_a_batch(
    tiny: Loaded, tmp_path: Path, padding: list[int]
) -> None:
    """Short and long ones in turns, as they may stand in a file."""
    run = resolved("zero-shot", evaluation__batch_size=2)
    test = data.tests(run)["test"][:8]
    texts = ["lying", "telling an old friend what somebody else said in confidence"] * 4
    uneven = test.assign(first=texts, second=texts)
    evaluate.ask(run, tiny, {"test": uneven}, tmp_path / "p.jsonl")
    assert sum(padding) == 0


def test_interrupted_scoring_resumes_without_losing_or_repeating(
    tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resolved("zero-shot", evaluation__batch_size=1)
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


def voted(p: calibration.Floats, seed: int = 0) -> pd.DataFrame:
    """Items with five votes and five further ones of people who follow p."""
    random = np.random.default_rng(seed)
    votes, further = random.binomial(5, p), random.binomial(5, p)
    table = pd.DataFrame({"dataset": "x", "votes1": votes, "votes2": 5 - votes})
    table = table.assign(human1=further, human2=5 - further, p1=p, p2=1 - p)
    table["stratum"] = data.strata(table)
    return table


def test_calibration_is_judged_where_the_scored_votes_do_not_choose_the_items() -> None:
    """A perfect predictor looks wrong among unanimous items, and not where others are."""
    table = voted(np.random.default_rng(1).uniform(0.05, 0.95, 4000))
    rows = evaluate.score_rows(resolved("ceiling", "small", evaluation__bootstrap=20), "x", table)
    found = {r["stratum"]: r for r in rows if r["metric"] == "calibration_error"}
    assert set(found) == {"all", "further-unanimous", "further-4-1", "further-3-2"}
    assert all(r["low"] <= 0.03 for r in found.values())
    chosen = table[table["stratum"] == "unanimous"]
    p, n = chosen[["p1", "p2"]].to_numpy(), data.counts(chosen)
    assert calibration.debiased_calibration_error(p, n).value > 0.1


def test_concentration_is_fitted_after_the_temperature() -> None:
    """A predictor ten times too sure scores as well as the one it was made from."""
    p = np.random.default_rng(1).uniform(0.1, 0.9, 500)
    table, losses = voted(p), []
    for heat in (1, 0.1):
        sure = evaluate.scaled(table[["p1", "p2"]].to_numpy(), heat)
        scaling = evaluate.fit_scaling(sure, data.counts(table))
        own = table.assign(p1=sure[:, 0], p2=sure[:, 1])
        rows = evaluate.score_rows(resolved("ceiling"), "x", own, **scaling)
        losses += [r["value"] for r in rows if r["metric"] == "dirichlet_nll_fitted"][:1]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_who_knows_which_items_divide_people_is_told_from_who_does_not() -> None:
    p = np.random.default_rng(1).uniform(0.05, 0.95, 1000)
    knows, run = voted(p), resolved("ceiling")
    blind = knows.assign(p1=np.roll(p, 1), p2=1 - np.roll(p, 1))
    constant = knows.assign(p1=0.5, p2=0.5)
    values = []
    for table in (knows, blind, constant):
        rows = evaluate.score_rows(run, "x", table)
        values.append({r["metric"]: r["value"] for r in rows if r["stratum"] == "all"})
    for metric in ("entropy_correlation", "rank_correlation"):
        assert values[0][metric] > 0.5 > 0.15 > abs(values[1][metric])
        assert metric not in values[2]
    gap = values[2]["entropy_gap"]
    assert gap == pytest.approx(math.log(2) - values[2]["entropy_votes"], abs=1e-5)


def test_order_is_told_for_every_model() -> None:
    """One that always says what stands first: right half of the time, and never the same."""
    lines = [
        {
            "part": part,
            "id": str(i),
            "dataset": "x",
            "votes1": i % 6,
            "votes2": 5 - i % 6,
        }
        | {"logp1": -0.1, "logp2": -2.4, "swapped1": -2.4, "swapped2": -0.1}
        for part in ("held-out", "test")
        for i in range(24)
    ]
    table = pd.DataFrame(lines)
    table["stratum"] = data.strata(table)
    rows = evaluate.measure_rows(resolved("zero-shot"), "zero-shot", table)
    found = {r["metric"]: r for r in rows if r["stratum"] == "all"}
    assert found["order_flips"]["value"] == 1
    assert found["order_gap"]["value"] == pytest.approx(0.8176, abs=1e-3)
    assert found["accuracy_one_order"]["value"] == 0.5
    assert found["cross_entropy_one_order"]["value"] > found["cross_entropy"]["value"]
    assert found["concentration"]["low"] < found["concentration"]["high"]


def test_pairs_that_share_actions_have_wider_intervals() -> None:
    """Every action stands in two pairs, and is harder or easier in both."""
    n, run = 400, resolved("ceiling", evaluation__bootstrap=300)
    member = np.random.default_rng(0).choice([0.02, 0.5], n)
    table = voted((member + np.roll(member, -1)) / 2)
    pairs = {"action1": np.arange(n), "action2": (np.arange(n) + 1) % n}
    widths = []
    for one in (table.assign(p1=0.3, p2=0.7), table.assign(p1=0.3, p2=0.7, **pairs)):
        rows = evaluate.score_rows(run, "x", one)
        widths.append({r["metric"]: r["high"] - r["low"] for r in rows if r["stratum"] == "all"})
    assert widths[1]["entropy_votes"] > 1.1 * widths[0]["entropy_votes"]
    assert widths[1]["cross_entropy"] > 1.05 * widths[0]["cross_entropy"]


def test_shares_of_independent_pairs_have_wilsons_interval_and_others_a_wider_one() -> None:
    apart = np.arange(40).reshape(20, 2).astype(str)
    for hits in (np.ones(20, dtype=bool), np.zeros(20, dtype=bool), np.arange(20) < 7):
        np.testing.assert_allclose(evaluate.share(hits, apart), evaluate.share(hits, None))
    ring = np.column_stack([np.arange(20), (np.arange(20) + 1) % 20])
    plain, wide = (evaluate.share(np.arange(20) < 7, pairs) for pairs in (apart, ring))
    # Of the 20 neighbours on the ring 18 agree.
    away = (np.arange(20) < 7) - 0.35
    total = (away**2).sum() + 2 * (away * np.roll(away, 1)).sum()
    wider = np.sqrt(total / (away**2).sum())
    assert wide.high - wide.value == pytest.approx(wider * (plain.high - plain.value))
    assert 0 <= wide.low < plain.low


def test_records_keep_further_votes_and_no_words() -> None:
    item = dict.fromkeys(data.FIELDS, 1) | {"human1": 4, "human2": 1, "first": "words"}
    assert data.record(item) == {**dict.fromkeys(data.FIELDS, 1), "human1": 4, "human2": 1}
    assert "human1" not in data.record(item | {"human1": math.nan})


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=3, max_size=20))
def test_the_correlation_is_numpys_and_nothing_of_a_constant(rows: list[Any]) -> None:
    one, two = (np.array(side, float) for side in zip(*rows, strict=True))
    if min(np.ptp(one), np.ptp(two)) > 1e-3:
        assert evaluate.correlation(one, two) == pytest.approx(np.corrcoef(one, two)[0, 1])
    assert evaluate.correlation(np.full(len(two), 0.1), two) == 0
    # A sample that draws one item alone is constant, whatever the rounding of its sums.
    alone = metrics.Weights(np.eye(len(one)) * len(one), np.arange(len(one)))
    of = vars(evaluate.correlation)["weighted"]
    assert of(alone, one / 7, two).tolist() == [0] * len(one)
