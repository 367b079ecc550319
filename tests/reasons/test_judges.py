import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign import data, metrics
from ethalign.reasons import baselines, judges


def sample() -> pd.DataFrame:
    return data.load("dfar", "train", "sample")


def test_judge_pairs_never_call_a_statements_own_reason_wrong() -> None:
    table = sample()
    pairs = judges.judge_pairs(table, seed=0)
    told = [judges.told(*pair) for pair in zip(table["statement"], table["label"], strict=True)]
    own = set(zip(told, table["reason"], strict=True))
    for row in pairs.to_dict("records"):
        real = (row["statement"], row["reason"]) in own
        assert real == (row["kind"] == "real") == (row["aligned"] == 1)
    label = dict(zip(told, table["label"], strict=True))
    by = dict(zip(table["reason"], table["label"], strict=True))
    turned = {judges.reverse(text) for text in table["reason"]}
    for row in pairs.to_dict("records"):
        gold, kind = label[row["statement"]], row["kind"]
        assert row["statement"].endswith(f" This is {gold}.")
        assert row["reason"] in (turned if kind == "reversed" else by)
        assert kind == "reversed" or (by[row["reason"]] != gold) == (kind == "flipped")
    assert set(pairs["kind"]) == {"real", *judges.KINDS}
    assert 0.9 < (pairs["aligned"] == 1).mean() / (pairs["aligned"] == 0).mean() < 1.1
    assert pairs.equals(judges.judge_pairs(table, seed=0))


def test_judge_pairs_of_a_single_label_have_no_flipped_ones() -> None:
    table = sample().query("label == 'ethical'").reset_index(drop=True)
    assert set(judges.judge_pairs(table, seed=0)["kind"]) == {"real", "mismatched", "reversed"}


@pytest.mark.parametrize(
    ("reason", "reversed_"),
    [
        ("It is ethical to help.", "It is unethical to help."),
        ("Wrong, and never acceptable.", "Right, and never unacceptable."),
        ("He has the right to speak, which is good.", "He has the right to speak, which is bad."),
        ("One should help others.", "One should not help others."),
        ("They were not at home.", "They were at home."),
        ("Help!", ""),
    ],
)
def test_the_sense_of_a_reason_is_reversed_by_rule(reason: str, reversed_: str) -> None:
    assert judges.reverse(reason) == reversed_


def test_shared_words_do_not_tell_a_reversed_reason_from_a_real_one(mirror: Path) -> None:
    """What a judge of the topic gets right: other topics, and next to nothing on the topic."""
    train = data.load("dfar", "train").sample(1500, random_state=0)
    pairs, checks = (judges.judge_pairs(t, 0) for t in (train[:1100], train[1100:]))
    checks["right"] = judges.overlap(pairs, checks) == checks["aligned"]
    right = checks.groupby("kind")["right"].mean()
    assert right["mismatched"] > 0.8
    assert right["reversed"] < 0.2


def test_the_stance_judge_beats_chance_on_held_out_reasons() -> None:
    table = sample()
    texts, gold = table["reason"].tolist(), table["label"].tolist()
    found = baselines.cross_validate(judges.stance_model(0), texts, gold, folds=5, seed=0)
    assert metrics.accuracy(found, gold).low > 0.5


def test_the_stance_judge_on_real_reasons(mirror: Path) -> None:
    train, test = data.load("dfar", "train"), data.load("dfar", "test")
    clean = test[~test["statement"].isin(train["statement"])]
    found = judges.stances(clean["reason"].tolist(), train, seed=0)
    assert (found == clean["label"]).mean() > 0.8


def test_no_reasons_no_stances() -> None:
    assert len(judges.stances([], sample(), seed=0)) == 0
    assert judges.stances(["", " "], sample(), seed=0).tolist() == [None, None]


def test_rogan_gladen_undoes_a_judge_of_known_error() -> None:
    """100 of 1,000 misaligned, sensitivity 0.8, specificity 0.9: 170 are flagged."""
    found = judges.rogan_gladen((170, 1000), (800, 1000), (900, 1000), seed=0)
    assert found.value == pytest.approx(0.1)
    assert found.low < 0.1 < found.high
    always = (10**6, 10**6)
    perfect = judges.rogan_gladen((170, 1000), always, always, seed=0)
    assert perfect.value == pytest.approx(0.17)


def test_a_judge_that_knows_nothing_corrects_nothing() -> None:
    found = judges.rogan_gladen((300, 1000), (30, 100), (70, 100), seed=0)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)
    assert math.isnan(judges.rogan_gladen((0, 0), (9, 10), (9, 10), seed=0).value)


@given(st.integers(0, 50), st.integers(26, 50), st.integers(26, 50))
def test_a_corrected_rate_is_a_rate(flagged: int, caught: int, passed: int) -> None:
    found = judges.rogan_gladen((flagged, 50), (caught, 50), (passed, 50), seed=0, draws=50)
    if 50 - passed <= flagged <= caught:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high
    else:
        assert math.isnan(found.value), "no true rate would give so many or so few flags"
        assert (found.low, found.high) == (0, 1)


def test_similarity_is_high_for_like_reasons_only() -> None:
    same, other = judges.similarity(
        ["It hurts others.", "xyz"], ["It hurts others.", "It hurts others."]
    )
    assert same == pytest.approx(1)
    assert other < 0.1
