from pathlib import Path

import pandas as pd
import pytest

from ethalign import audit, data, metrics
from ethalign.reasons import baselines

TRAIN = pd.DataFrame(
    {"statement": ["I lied.", "I helped.", "I lied.", "I sang loudly at night."],
     "label": ["unethical", "ethical", "ethical", "unethical"], "reason": ["a", "b", "c", "d"]}
)  # fmt: skip
TEST = pd.DataFrame(
    {"statement": ["I lied.", "I helped.", "I slept.", "I sang loudly at nights."],
     "label": ["ethical", "unethical", "ethical", "unethical"], "reason": ["c", "b", "x", "y"]}
)  # fmt: skip


def test_overlap_counts_test_rows() -> None:
    found = audit.overlap(TRAIN, TEST)
    assert found[:3] == (2, 1, 2)
    assert found.clean.tolist() == [False, False, True, True]


def test_nothing_shared() -> None:
    found = audit.overlap(TRAIN, TEST[2:])
    assert found[:3] == (0, 0, 0)
    assert found.clean.all()


def test_near_copies_are_found() -> None:
    found = audit.near_duplicates(TRAIN, TEST, threshold=0.7)
    assert [(r.test_index, r.train_index) for r in found.itertuples()][-1] == (3, 3)
    assert 2 not in set(found["test_index"])


def test_real_overlap(mirror: Path) -> None:
    """papers.md 1.2: 189 shared, all with the same label, 174 with the same reason, 311 clean."""
    found = audit.overlap(data.load("dfar", "train"), data.load("dfar", "test"))
    assert found[:3] == (189, 189, 174)
    assert found.clean.sum() == 311


def test_real_neighbours_often_carry_the_other_label(mirror: Path) -> None:
    """papers.md 1.2: nearest-neighbour agreement of clean rows is about 63 %."""
    train, test = data.load("dfar", "train"), data.load("dfar", "test")
    clean = test[audit.overlap(train, test).clean].reset_index(drop=True)
    assert audit.nearest_label_agreement(train, clean).value == pytest.approx(0.63, abs=0.05)


def test_flips_against_the_source(mirror: Path) -> None:
    justice = pd.concat([data.load("justice", s) for s in ("train", "test")])
    found = audit.label_flips(data.load("dfar", "test"), justice)
    assert len(found) > 200, "most Justice-style statements come from ETHICS"
    assert found["flipped"].mean() < 0.5, "and most keep their sense, so the coding is right"


def test_kappa_of_flips_is_agreement_beyond_chance() -> None:
    """Cohen's textbook table, 20, 5, 10 and 15 of 50: kappa 0.4."""
    cells = [("ethical", "ethical", 20), ("ethical", "unethical", 5)]
    cells += [("unethical", "ethical", 10), ("unethical", "unethical", 15)]
    rows = [(a, b) for a, b, n in cells for _ in range(n)]
    flips = pd.DataFrame(rows, columns=["label", "source_label"])
    found = audit.label_kappa(flips, draws=200)
    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high


@pytest.mark.parametrize(
    ("name", "everything", "contaminated", "clean"),
    [("majority", 59.6, 51.3, 64.6), ("svm", 69.2, 72.0, 67.5), 
     ("logistic-regression", 67.8, 74.6, 63.7),
     ("random-forest", 76.0, 99.5, 61.7), ("gradient-boosting", 61.6, 58.2, 63.7)],
)  # fmt: skip
def test_baselines_on_real_dfar(
    mirror: Path, name: str, everything: float, contaminated: float, clean: float
) -> None:
    """papers.md 1.5; logistic regression is the paper's printed 67.8 to the digit.

    Trees may split ties differently in another scikit-learn, hence the tolerance of two points.
    """
    train, test = data.load("dfar", "train"), data.load("dfar", "test")
    mask = audit.overlap(train, test).clean
    found = baselines.classify(name, train, test, seed=0)
    gold = test["label"].to_numpy()
    exact = name in ("majority", "svm", "logistic-regression")
    for part, expected in ((mask | True, everything), (~mask, contaminated), (mask, clean)):
        value = 100 * metrics.accuracy(found[part], gold[part]).value
        assert value == pytest.approx(expected, abs=0.05 if exact else 2)


@pytest.mark.parametrize(("name", "reported"), [("logistic-regression", 66.9), ("svm", 66.4)])
def test_baselines_on_real_ethos(mirror: Path, name: str, reported: float) -> None:
    """The ETHOS authors' ten folds; without their grid search two to four points change."""
    ethos = data.load("ethos")
    statements, labels = list(ethos["statement"]), list(ethos["label"])
    model = baselines.classifier(name, 0)
    found = baselines.cross_validate(model, statements, labels, seed=0)
    value = 100 * metrics.accuracy(found, ethos["label"].to_numpy()).value
    assert value == pytest.approx(reported, abs=5)


def test_a_single_training_label_is_the_answer() -> None:
    found = baselines.classify("svm", TRAIN[TRAIN["label"] == "ethical"], TEST, seed=0)
    assert found.tolist() == ["ethical"] * 4
