from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score

from ethalign import metrics, tables
from ethalign.ambiguity.evaluate import correlation
from ethalign.honesty.scores import augrc, equal_honesty, honesty_of

FLAGS = st.lists(st.booleans(), min_size=1, max_size=60)


@given(st.integers(1, 2000), st.data())
def test_wilson_is_scipys_wilson(n: int, drawn: st.DataObject) -> None:
    k = drawn.draw(st.integers(0, n))
    found = metrics.share(k, n)
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert found.value == k / n
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_nothing_measured_is_undefined_and_wide() -> None:
    found = metrics.share(0, 0)
    assert math.isnan(found.value)
    assert found[1:] == (0.0, 1.0, 0)


@pytest.mark.parametrize("pair", [(3, 2), (-1, 2), (1, 0), (-1, 0)])
def test_an_impossible_share_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"greater|less|at least"):
        metrics.share(*pair)


def test_numbers_as_pages_show_them() -> None:
    assert metrics.shown(0.12345, "share") == "12.3"
    assert metrics.shown(0.12345, "nats") == "0.123"
    assert metrics.shown(-0.0004, "share") == metrics.shown(-0.0, "share") == "0.0"
    assert metrics.shown(-0.25, "nats") == "\N{MINUS SIGN}0.250"
    signed = [tables.signed(x, "share") for x in (-0.0004, 0.0, 0.1, -0.1)]
    assert signed == ["+0.0", "+0.0", "+10.0", "\N{MINUS SIGN}10.0"]
    # Of a narrow interval two digits can be seen.
    minus = "\N{MINUS SIGN}"
    narrow = tables.span(-2.2e-5, -1.05e-4, 6.7e-5, "nats")
    assert narrow == f"{minus}0.00002 [{minus}0.00011, +0.00007] nats"
    assert tables.span(0.1, 0.0996, 0.1004, "share") == "+10.000 [+9.960, +10.040] points"
    assert tables.span(0.25, 0.1, 0.4, "nats") == "+0.250 [+0.100, +0.400] nats"
    assert tables.span(0.1, math.nan, math.nan, "share") == "+10.0 points"
    assert tables.span(0.0, 0.0, 0.0, "nats") == "+0.000 [+0.000, +0.000] nats"
    assert metrics.with_interval(*metrics.share(1, 2)[:3], "share") == "50.0 [9.5, 90.5]"
    assert metrics.with_interval(1.5, 1, 2, "nats") == "1.500 [1.000, 2.000]"
    for nothing in (None, math.nan):
        assert metrics.with_interval(nothing, 0, 1, "share") == ""
        assert metrics.with_interval(nothing, 0, 1, "share", "undefined") == "undefined"


def test_no_prediction_is_wrong() -> None:
    found = metrics.accuracy(["ethical", None, "unethical"], ["ethical", "ethical", "ethical"])
    assert found.value == pytest.approx(1 / 3)
    assert found.n == 3


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match=r"longer|shorter"):
        metrics.accuracy(["a"], ["a", "b"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_macro_f1_is_sklearns_with_and_without_classes_that_are_never_gold(
    pairs: list[tuple[int, int]],
) -> None:
    predicted, gold = np.array(pairs).T
    both = f1_score(gold, predicted, average="macro", zero_division=0)
    assert metrics.f1(predicted, gold, 4, unseen=True) == pytest.approx(both)
    only = f1_score(gold, predicted, labels=np.unique(gold), average="macro", zero_division=0)
    assert metrics.f1(predicted, gold, 4) == pytest.approx(only)


def test_macro_f1_by_hand() -> None:
    predicted, gold = np.array([0, 1, -1]), np.array([0, 0, 0])
    assert metrics.f1(predicted, gold, 3) == 2 / 4
    assert metrics.f1(predicted, gold, 3, unseen=True) == pytest.approx((2 / 4 + 0) / 2)


def test_kappa_by_hand() -> None:
    # Of 50: 20 both yes, 5 and 10 only one, 15 both no; observed 0.7, by chance 0.5.
    first, second = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert metrics.kappa(first, second) == pytest.approx(0.4)
    assert metrics.kappa(np.array(first, bool), np.array(second, bool)) == pytest.approx(0.4)
    assert metrics.kappa(["a", "b"], ["b", "a"]) == pytest.approx(-1)
    assert metrics.kappa(["a", "a"], ["b", "b"]) == 0
    with pytest.raises(ValueError, match="inconsistent"):
        metrics.kappa([True], [True, True])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=40))
def test_kappa_is_agreement_beyond_chance(pairs: list[tuple[str, str]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    n = len(pairs)
    chance = sum(first.count(k) * second.count(k) for k in "abc") / n**2 if n else 1
    found = metrics.kappa(first, second)
    if chance == 1:
        assert math.isnan(found)
    else:
        observed = sum(a == b for a, b in pairs) / n
        assert found == pytest.approx((observed - chance) / (1 - chance), abs=1e-12)


def test_macro_f1_shows_a_constant_answer_for_what_it_is() -> None:
    predicted, gold = np.zeros(500, int), np.repeat([0, 1], [298, 202])
    found = metrics.bootstrap(lambda p, g: metrics.f1(p, g, 2), predicted, gold, seed=0, draws=200)
    assert found.value == pytest.approx(0.5 * 2 * 298 / (298 + 500))
    assert found.low < found.value < found.high


def test_bootstrap_is_seeded_and_empty_is_undefined() -> None:
    x = np.arange(50.0)
    assert metrics.bootstrap(np.mean, x, seed=3) == metrics.bootstrap(np.mean, x, seed=3)
    assert metrics.bootstrap(np.mean, x, seed=3) != metrics.bootstrap(np.mean, x, seed=4)
    assert metrics.bootstrap(np.mean, x[:0], seed=3).n == 0


def resampled(
    statistic: metrics.Statistic, *arrays: NDArray[Any], seed: int, draws: int
) -> list[float]:
    """The same samples in plain words."""
    random, n = np.random.default_rng(seed), len(arrays[0])
    picks = [random.integers(0, n, n) for _ in range(draws)]
    return [statistic(*(a[pick] for a in arrays)) for pick in picks]


def of_table(table: NDArray[Any], weight: NDArray[Any]) -> Any:
    return (table[:, 0] * weight).mean() + table[:, 1].max()


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("n", [1, 2, 7, 300, 20_000])
@pytest.mark.parametrize(
    "statistic", [np.mean, np.median, lambda x: np.nan if x[0] > 0 else x.max(), of_table]
)
def test_a_seed_gives_the_same_samples_whatever_draws_them(
    statistic: metrics.Statistic, n: int
) -> None:
    random, draws = np.random.default_rng(n), 120
    arrays = [random.normal(size=n)]
    if statistic is of_table:
        arrays = [random.normal(size=(n, 2)), random.normal(size=n)]
    expected = resampled(statistic, *arrays, seed=5, draws=draws)
    found = metrics.bootstrap(statistic, *arrays, seed=5, draws=draws)
    assert found.n == n
    if not np.isnan(expected).all():
        assert found[1:3] == tuple(np.nanquantile(expected, [(1 - 0.95) / 2, (1 + 0.95) / 2]))


def test_the_interval_is_scipys_percentile_interval() -> None:
    x = np.random.default_rng(0).exponential(size=80)
    drawn = stats.bootstrap(
        (x,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(2)
    )
    expected = drawn.confidence_interval
    assert metrics.bootstrap(np.mean, x, seed=2)[1:3] == pytest.approx(expected)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=20))
def test_holm_is_its_definition(p: list[float]) -> None:
    kept = sorted(x for x in p if x == x)
    steps = [min(1, (len(kept) - i) * x) for i, x in enumerate(kept)]
    expected = [max(steps[: kept.index(x) + 1]) if x == x else math.nan for x in p]
    # Of equal ones the first has the largest factor, and the others are never below it.
    np.testing.assert_allclose(metrics.holm(p), expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_orders_and_never_lowers(p: list[float]) -> None:
    found = metrics.holm(p)
    assert (found >= np.array(p) - 1e-12).all()
    assert (found <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_holms_own_example() -> None:
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(metrics.holm([math.nan, 0.02])[0])


def share_of(x: Any) -> float:
    return float(x.mean())


def test_crossed_over_items_alone_is_the_bootstrap_of_a_mean() -> None:
    x = np.random.default_rng(0).normal(0.2, 1, 400)
    found = metrics.crossed(share_of, [(x,)], seed=1, draws=4000)
    error = x.std() / np.sqrt(400)
    assert found.value == pytest.approx(x.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert found.detectable == pytest.approx(2.80 * error, rel=0.06)


def test_crossed_adds_the_spread_of_seeds_without_bias() -> None:
    """Seeds that differ by a constant: their variance of the mean is s^2 / S, by hand."""
    x = np.random.default_rng(0).normal(0, 0.01, 400)
    shifts = (0.0, 0.1, 0.5)
    found = metrics.crossed(share_of, [(x + k,) for k in shifts], seed=1, draws=6000)
    expected = np.var(shifts, ddof=1) / 3
    assert found.draws.var() == pytest.approx(expected, rel=0.05)
    same = metrics.crossed(share_of, [(x,)] * 3, seed=1, draws=2000)
    assert same.draws.std() == pytest.approx(x.std() / 20, rel=0.1)


def test_items_of_one_group_are_no_further_evidence() -> None:
    once = np.random.default_rng(0).normal(0.1, 1, 60)
    ten, groups = np.repeat(once, 10), np.repeat(np.arange(60), 10)
    alone = metrics.crossed(share_of, [(once,)], seed=1, draws=4000)
    blind = metrics.crossed(share_of, [(ten,)], seed=1, draws=4000)
    aware = metrics.crossed(share_of, [(ten,)], groups, seed=1, draws=4000)
    assert aware.draws.std() == pytest.approx(alone.draws.std(), rel=0.05)
    assert blind.draws.std() < 0.4 * aware.draws.std()
    shuffled = np.random.default_rng(5).permutation(600)
    again = metrics.crossed(share_of, [(ten[shuffled],)], groups[shuffled], seed=1, draws=4000)
    assert again.draws.std() == pytest.approx(aware.draws.std(), rel=0.05)


def test_no_difference_anywhere_is_not_an_interval_of_no_width() -> None:
    same = np.ones(30, bool)
    found = metrics.crossed(metrics.gap, [(same, same)], seed=0, draws=50)
    # Of 30 items without an exception the true share of exceptions is below this (97.5 %).
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert found.low == -found.high
    flat = metrics.crossed(share_of, [(np.full(9, 0.5),)], seed=0, draws=50)
    assert flat.value == 0.5
    assert math.isnan(flat.low)
    # What is no mean of items has another scale, which such a share says nothing about.
    other = metrics.crossed(lambda x: 5.0, [(same,)], seed=0, draws=50)
    assert math.isnan(other.low)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_without_an_exception_the_tests_are_exact(n: int) -> None:
    yes, no = np.ones(n, bool), np.zeros(n, bool)
    never = metrics.crossed(metrics.gap, [(yes, no)], seed=0, draws=20_000)
    # The sign test; and an exception would move a difference of one by two.
    assert np.mean(never.draws <= 0) == pytest.approx(0.5**n, abs=1e-4)
    assert never.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / n)))
    alike = metrics.crossed(metrics.gap, [(yes, yes)], seed=0, draws=20_000)
    assert np.mean(alike.draws <= -0.05) == pytest.approx(min(0.5, 0.95**n), abs=1e-4)
    assert np.mean(alike.draws >= 0.05) == pytest.approx(min(0.5, 0.95**n), abs=1e-4)
    # Nothing kept of a fifth: the interval is that of the share, as a part of the fifth.
    fifth = np.arange(n * 5) % 5 == 0
    gone = metrics.crossed(metrics.ratio, [(fifth & False, fifth)], seed=0, draws=2000)
    assert (gone.value, gone.low) == (-1, -1)
    assert gone.high == pytest.approx(-1 + (1 - 0.025 ** (1 / (5 * n))) / 0.2)


RNG = np.random.default_rng(11)
HALF = [RNG.random(90) < 0.5 for _ in range(4)]
RANKS = [RNG.integers(6, size=90).astype(float) for _ in range(4)]
KINDS = [RNG.integers(3, size=90) for _ in range(4)]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("statistic", "arrays"),
    [
        (metrics.mean, RANKS[:1]),
        (metrics.gap, HALF[:2]),
        (metrics.ratio, HALF[:2]),
        (metrics.auroc, [RANKS[0], HALF[0]]),
        (metrics.auroc_gap, [RANKS[0], HALF[0], RANKS[1], HALF[1]]),
        (correlation, RANKS[:2]),
        (augrc, [RANKS[0], HALF[0]]),
        (equal_honesty, [RANKS[0], HALF[0]]),
        (honesty_of, KINDS[:2]),
        (metrics.versus(honesty_of), KINDS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_resampled_at_once_is_what_it_is_sample_by_sample(
    statistic: Any, arrays: list[Any], seeds: int
) -> None:
    groups = RNG.integers(30, size=90)
    shifted = [tuple(np.roll(array, k) for array in arrays) for k in range(seeds)]

    def slowly(*asked: Any) -> float:
        return float(statistic(*asked))

    for labels in (None, groups):
        one, two = (
            metrics.crossed(of, shifted, labels, seed=3, draws=300) for of in (statistic, slowly)
        )
        assert np.allclose(one.draws, two.draws, rtol=0, atol=1e-12)
        assert one[:4] == pytest.approx(two[:4])


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_few_seeds_make_an_interval_that_holds_the_truth(spread: float) -> None:
    """Where two seeds differ by more than items do, the normal one is far too narrow."""
    rng, inside = np.random.default_rng(7), {True: 0, False: 0}
    for trial in range(200):
        items = rng.normal(0, 1, 80)
        arrays = [(items + rng.normal(0, spread / 80**0.5),) for _ in range(2)]
        for student in inside:
            found = metrics.crossed(np.mean, arrays, seed=trial, draws=400, student=student)
            inside[student] += found.low <= 0 <= found.high
    assert inside[True] >= (0.86 if spread else 0.92) * 200
    if spread > 2:
        assert inside[False] < inside[True] - 0.03 * 200, "else this test sees nothing"


def test_crossed_of_nothing_and_of_nan() -> None:
    nothing = metrics.crossed(share_of, [(np.array([]),)], seed=0)
    assert math.isnan(nothing.value)
    assert not len(nothing.draws)
    never = metrics.crossed(lambda x: math.nan, [(np.arange(4.0),)], seed=0, draws=20)
    assert math.isnan(never.low)
    assert not len(never.draws)
    rare = metrics.crossed(
        lambda x: x.mean() if x.max() == 3 else math.nan, [(np.arange(4.0),)], seed=0, draws=200
    )
    assert 0 < len(rare.draws) < 200
    assert rare.low <= rare.value <= rare.high


def test_over_seeds_adds_the_error_of_seeds_to_that_of_items() -> None:
    assert metrics.over_seeds([0.5], [0.4], [0.7]) == (0.5, 0.4, 0.7)
    same = metrics.over_seeds([0.5] * 3, [0.4] * 3, [0.7] * 3)
    assert same == pytest.approx((0.5, 0.4, 0.7))  # the same items: no narrower
    # By hand: mean 0.6, s = 0.1, t(2) = 4.3027, so 0.2484 for seeds and 0.1 for items.
    value, low, high = metrics.over_seeds([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.6, 0.7, 0.8])
    assert value == pytest.approx(0.6)
    assert high - 0.6 == pytest.approx(math.hypot(0.24841, 0.1), abs=1e-4)
    assert high - 0.6 == pytest.approx(0.6 - low)
    assert all(math.isnan(x) for x in metrics.over_seeds([0.5, math.nan], [0, 0], [1, 1]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_over_seeds_covers_the_truth(seeds: int) -> None:
    """Simulated: true 0, error of items 0.5 common to all seeds, spread of seeds 1."""
    rng, inside = np.random.default_rng(seeds), 0
    for _ in range(2000):
        v = rng.normal(0, 0.5) + rng.normal(0, 1, seeds)
        _, low, high = metrics.over_seeds(v, v - 1.96 * 0.5, v + 1.96 * 0.5)
        inside += low <= 0 <= high
    assert 0.93 < inside / 2000 < 0.995


def test_a_value_without_an_interval_is_shown_without_one() -> None:
    assert metrics.with_interval(0.5, 0.25, 0.75, "share") == "50.0 [25.0, 75.0]"
    for nothing in (None, math.nan):
        assert metrics.with_interval(0.5, nothing, nothing, "share") == "50.0"
        assert metrics.with_interval(nothing, 0.1, 0.2, "share", "undefined") == "undefined"


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_mean_of_groups_is_that_of_their_items_and_no_draw_is_looked_at_alone(
    seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seeds)
    groups = rng.integers(90, size=400)
    arrays = [(rng.random(400) < 0.3,) for _ in range(seeds)]
    calls, mean = [], np.mean

    def counted(*asked: Any, **how: Any) -> Any:
        calls.append(asked)
        return mean(*asked, **how)

    monkeypatch.setattr(np, "mean", counted)
    found, took = [], []
    for statistic in (np.mean, lambda items: float(items.mean())):
        calls.clear()
        found.append(metrics.crossed(statistic, arrays, groups, seed=5, draws=2000))
        took.append(len(calls))
    assert np.allclose(found[0].draws, found[1].draws, rtol=0, atol=1e-12)
    assert np.allclose(found[0][:4], found[1][:4], rtol=0, atol=1e-12)
    assert took[0] < 10
    assert took[1] >= 2000, "else this test sees nothing"
