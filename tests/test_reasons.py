import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from ethalign import data, rating, reasons
from ethalign.config import UserError

E, U = "ethical", "unethical"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("ethical", E),
        (" Unethical.", U),
        ("The statement is unethical.", U),
        ("**Unethical**", U),
        ("'ETHICAL'", E),
        ("not ethical", U),
        ("It isn't ethical.", U),
        ("It isn’t ethical.", U),  # noqa: RUF001
        ("It is not at all ethical", U),
        ("This cannot be considered ethical.", U),
        ("non-ethical", U),
        ("not unethical", E),
        ("There is nothing here that is not unethical? No.", E),
        ("Is it ethical or unethical? Unethical.", U),
        ("ethical. It would be unethical to refuse.", E),
        ("It is not ethical, it is unethical.", U),
        ("neither ethical nor unethical", None),
        ("I cannot judge whether this is ethical.", None),
        ("I'm not able to say if that is ethical", None),
        ("ethical and unethical", None),
        ("ethical. unethical.", None),
        ("The statement is ethical. The statement is unethical.", None),
        ("", None),
        ("banana", None),
        ("Ethics is a branch of philosophy.", None),
        ("ethically wrong", None),
    ],
)
def test_the_verdict_is_read_as_a_person_would(text, label):
    assert reasons.parse_label(text) == label


@given(st.text(max_size=200))
def test_any_text_has_a_verdict_or_none(text):
    assert reasons.parse_label(text) in (E, U, None)


@given(st.sampled_from([E, U]), st.sampled_from(["", "  ", "\n", "Answer: ", "The statement is "]))
def test_every_trained_target_is_read_back(label, before):
    assert reasons.parse_label(before + label) == label
    assert reasons.parse_label(f"{before}{label}. Because others are hurt by it.") == label


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ethical. Because it helps.", "Because it helps."),
        (" The statement is unethical.Lying hurts.", "Lying hurts."),
        ("not ethical, since it hurts", "since it hurts"),
        ("It helps people.", "It helps people."),
        ("ethical", ""),
    ],
)
def test_the_reason_is_what_follows_the_verdict(text, reason):
    assert reasons.reason_of(text) == reason


def sample():
    return data.load("dfar", "train", "sample")


def test_judge_pairs_never_call_a_statements_own_reason_wrong():
    table = sample()
    pairs = reasons.judge_pairs(table, seed=0)
    own = set(zip(table["statement"], table["reason"], strict=True))
    for row in pairs.itertuples():
        assert ((row.statement, row.reason) in own) == (row.kind == "real") == (row.aligned == 1)
    label = dict(zip(table["statement"], table["label"], strict=True))
    by = dict(zip(table["reason"], table["label"], strict=True))
    kinds = pairs.groupby("kind")
    assert all(by[r.reason] != label[r.statement] for r in kinds.get_group("flipped").itertuples())
    assert all(
        by[r.reason] == label[r.statement] for r in kinds.get_group("mismatched").itertuples()
    )
    assert 0.9 < (pairs["aligned"] == 1).mean() / (pairs["aligned"] == 0).mean() < 1.1
    assert pairs.equals(reasons.judge_pairs(table, seed=0))


def test_judge_pairs_of_a_single_label_have_no_flipped_ones():
    table = sample().query("label == 'ethical'").reset_index(drop=True)
    assert set(reasons.judge_pairs(table, seed=0)["kind"]) == {"real", "mismatched"}


def test_the_stance_judge_beats_chance_on_held_out_reasons():
    table = sample()
    found = reasons.stance_accuracy(table["reason"], table["label"], seed=0)
    assert found.low > 0.5


def test_the_stance_judge_on_real_reasons(mirror):
    train, test = data.load("dfar", "train"), data.load("dfar", "test")
    judge = reasons.fit_stance(train["reason"].tolist(), train["label"].tolist(), seed=0)
    clean = test[~test["statement"].isin(train["statement"])]
    right = (reasons.stance(judge, clean["reason"].tolist()) == clean["label"]).mean()
    assert right > 0.8


def test_no_reasons_no_stances():
    table = sample()
    judge = reasons.fit_stance(table["reason"].tolist(), table["label"].tolist(), seed=0)
    assert len(reasons.stance(judge, [])) == 0


def test_rogan_gladen_undoes_a_judge_of_known_error():
    """100 of 1,000 misaligned, sensitivity 0.8, specificity 0.9: 170 are flagged."""
    found = reasons.rogan_gladen(170, 1000, 800, 1000, 900, 1000, seed=0)
    assert found.value == pytest.approx(0.1)
    assert found.low < 0.1 < found.high
    perfect = reasons.rogan_gladen(170, 1000, 10**6, 10**6, 10**6, 10**6, seed=0)
    assert perfect.value == pytest.approx(0.17)


def test_a_judge_that_knows_nothing_corrects_nothing():
    found = reasons.rogan_gladen(300, 1000, 30, 100, 70, 100, seed=0)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)
    assert math.isnan(reasons.rogan_gladen(0, 0, 9, 10, 9, 10, seed=0).value)


@given(st.integers(0, 50), st.integers(26, 50), st.integers(26, 50))
def test_a_corrected_rate_is_a_rate(flagged, caught, passed):
    found = reasons.rogan_gladen(flagged, 50, caught, 50, passed, 50, seed=0, draws=50)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_misalignment_and_similarity():
    assert reasons.misalignment_rate([True, True, False, True]).value == 0.25
    same, other = reasons.similarity(
        ["It hurts others.", "xyz"], ["It hurts others.", "It hurts others."]
    )
    assert same == pytest.approx(1)
    assert other < 0.1


PREDICTIONS = pd.DataFrame(
    {
        "id": [f"s{i}" for i in range(6)],
        "variant": ["L", "LR"] * 3,
        "statement": ["I lied."] * 6,
        "generated": ["=cmd()", "Ethical. Fine.", "+1", "@x", "-2", "Unethical."],
    }
)


def fill(folder, answers):
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


def test_sheets_are_blind_and_harmless(tmp_path):
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=2, seed=0)
    sheets = [pd.read_csv(tmp_path / f"sheet-{n}.csv", dtype=str) for n in (1, 2)]
    for sheet in sheets:
        assert list(sheet.columns) == ["code", "statement", "answer", "aligned"]
        assert not sheet["answer"].str.match(r"[=+\-@]").any()
    assert sheets[0]["code"].tolist() != sheets[1]["code"].tolist()


def test_ratings_come_back_as_rates_by_variant(tmp_path):
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=3, seed=0)
    files = fill(tmp_path, [lambda v: "yes" if v == "LR" else "no"] * 2 + [lambda v: "no"])
    found = rating.rate_import(files, tmp_path / "key.csv")
    assert found.rates["LR"].value == 0
    assert found.rates["L"].value == 1
    assert found.kind == "Fleiss' kappa"
    assert "LR" in str(found)


def test_a_cell_that_is_no_rating_is_named(tmp_path):
    rating.rate_export(PREDICTIONS, tmp_path / "sheet.csv", tmp_path / "key.csv", raters=2, seed=0)
    files = fill(tmp_path, [lambda v: "perhaps", lambda v: "yes"])
    with pytest.raises(UserError, match=r"row 2, column aligned: 'perhaps'"):
        rating.rate_import(files, tmp_path / "key.csv")
    cut = pd.read_csv(files[1], dtype=str)[:-1]
    cut.to_csv(files[1], index=False)
    with pytest.raises(UserError, match="exactly once"):
        rating.rate_import([files[1]], tmp_path / "key.csv")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50))
def test_cohens_kappa_is_sklearns(pairs):
    a, b = (np.array(column) for column in zip(*pairs, strict=True))
    found = rating.cohen_kappa(a, b)
    if len(set(a) | set(b)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(cohen_kappa_score(a, b))


def test_fleiss_own_example():
    """Fleiss 1971, fourteen raters, ten subjects, five categories: kappa 0.210."""
    counts = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
         [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    )  # fmt: skip
    assert rating.fleiss_kappa(counts) == pytest.approx(0.210, abs=0.0005)
    assert math.isnan(rating.fleiss_kappa(np.array([[1, 0], [0, 1]])))
