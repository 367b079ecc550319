import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from ethalign import metrics

FLAGS = st.lists(st.booleans(), min_size=1, max_size=60)
LABELS = st.lists(st.sampled_from(["ethical", "unethical"]), min_size=2, max_size=60)


@given(st.integers(1, 2000), st.data())
def test_wilson_is_scipys_wilson(n, drawn):
    k = drawn.draw(st.integers(0, n))
    found = metrics.share(k, n)
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found.value == k / n
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_measured_is_undefined_and_wide():
    found = metrics.share(0, 0)
    assert math.isnan(found.value)
    assert found[1:] == (0.0, 1.0, 0)


def test_an_impossible_share_is_refused():
    with pytest.raises(ValueError, match="not a share"):
        metrics.share(3, 2)


def test_no_prediction_is_wrong():
    found = metrics.accuracy(["ethical", None, "unethical"], ["ethical", "ethical", "ethical"])
    assert found.value == pytest.approx(1 / 3)
    assert found.n == 3


def test_lengths_must_match():
    with pytest.raises(ValueError, match=r"longer|shorter"):
        metrics.accuracy(["a"], ["a", "b"])


@given(LABELS, st.data())
def test_macro_f1_is_sklearns(gold, drawn):
    predicted = drawn.draw(
        st.lists(st.sampled_from(["ethical", "unethical"]), min_size=len(gold), max_size=len(gold))
    )
    expected = f1_score(
        gold, predicted, labels=sorted(set(gold)), average="macro", zero_division=0
    )
    assert metrics.macro_f1(predicted, gold, seed=0, draws=10).value == pytest.approx(expected)


def test_macro_f1_shows_a_constant_answer_for_what_it_is():
    gold = ["ethical"] * 298 + ["unethical"] * 202
    found = metrics.macro_f1(["ethical"] * 500, gold, seed=0, draws=200)
    assert found.value == pytest.approx(0.5 * 2 * 298 / (298 + 500))
    assert found.low < found.value < found.high


@given(FLAGS, st.data())
def test_mcnemar_is_the_binomial_test_on_the_items_that_changed(first, drawn):
    second = drawn.draw(st.lists(st.booleans(), min_size=len(first), max_size=len(first)))
    a, b = np.array(first), np.array(second)
    found = metrics.mcnemar(a, b)
    gained, lost = int((a & ~b).sum()), int((~a & b).sum())
    assert found.difference == pytest.approx(a.mean() - b.mean())
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected)
    turned = metrics.mcnemar(b, a)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p_value == pytest.approx(found.p_value)


def test_mcnemars_interval_covers_the_true_difference():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        a, b = random.random(300) < 0.7, random.random(300) < 0.6
        found = metrics.mcnemar(a, b)
        hits += found.low <= 0.1 <= found.high
    assert 0.92 < hits / 400 < 0.98


def test_two_variants_must_answer_the_same_items():
    for test in (metrics.mcnemar, lambda a, b: metrics.paired_bootstrap(a, b, seed=0)):
        with pytest.raises(ValueError, match="same items"):
            test([True], [True, False])


def test_paired_bootstrap_finds_a_difference_and_no_difference():
    random = np.random.default_rng(1)
    a = random.normal(0, 1, 400)
    sure = metrics.paired_bootstrap(a + 0.5, a, seed=0)
    assert (sure.difference, sure.low, sure.high) == pytest.approx((0.5, 0.5, 0.5))
    same = metrics.paired_bootstrap(a, random.normal(0, 1, 400), seed=0)
    assert same.low < 0 < same.high
    assert same.p_value > 0.05


def test_bootstrap_is_seeded_and_empty_is_undefined():
    x = np.arange(50.0)
    assert metrics.bootstrap(np.mean, x, seed=3) == metrics.bootstrap(np.mean, x, seed=3)
    assert metrics.bootstrap(np.mean, x, seed=3) != metrics.bootstrap(np.mean, x, seed=4)
    assert metrics.bootstrap(np.mean, x[:0], seed=3).n == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_orders_and_never_lowers(p):
    found = metrics.holm(p)
    assert (found >= np.array(p) - 1e-12).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_holms_own_example():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(metrics.holm([math.nan, 0.02])[0])
