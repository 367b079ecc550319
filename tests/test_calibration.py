import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import spatial, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from ethalign import calibration, data
from ethalign.ambiguity import data as votes
from ethalign.metrics import accuracy, f1

Tables = dict[str, pd.DataFrame]
Counts = NDArray[np.int64]
COUNTS = hnp.arrays(int, st.tuples(st.integers(1, 8), st.just(3)), elements=st.integers(0, 6))
ALPHA = st.lists(st.floats(0.05, 20), min_size=3, max_size=3)


@pytest.fixture(scope="module")
def dilemmas(mirror: Path) -> Tables:
    return {split: data.load("dilemmas", split) for split in ("dev", "test")}


@pytest.fixture(scope="module")
def anecdotes(mirror: Path) -> pd.DataFrame:
    return data.load("anecdotes-votes", "dev")


@given(alpha=ALPHA, n=st.integers(0, 5))
def test_probabilities_of_all_vote_sequences_sum_to_one(alpha: list[float], n: int) -> None:
    """Every ordered sequence of n votes on three answers, one by one."""
    sequences = itertools.product(range(3), repeat=n)
    counts = np.array([np.bincount(s, minlength=3) if s else [0, 0, 0] for s in sequences])
    total = np.exp(-calibration.dirichlet_multinomial_nll(alpha, counts)).sum()
    assert total == pytest.approx(1, abs=1e-9)


@given(counts=COUNTS, alpha=ALPHA)
def test_scores_are_scipys(counts: Counts, alpha: list[float]) -> None:
    p, voted = np.array(alpha) / sum(alpha), counts[counts.sum(1) > 0]
    n = counts.sum(1)
    # SciPy counts every order of the votes, the score only one.
    orders = stats.multinomial.logpmf(counts, n, p) - (counts * np.log(p)).sum(1)
    nll = orders - [stats.dirichlet_multinomial.logpmf(c, alpha, c.sum()) for c in counts]
    found = calibration.dirichlet_multinomial_nll(alpha, counts)
    np.testing.assert_allclose(found, nll, rtol=1e-7, atol=1e-9)
    with np.errstate(invalid="ignore"):  # it is NaN where rounding leaves less than nothing
        distance = [spatial.distance.jensenshannon(p, c, base=2) for c in voted]
    found = calibration.jensen_shannon(p, voted)
    np.testing.assert_allclose(found, np.nan_to_num(distance), atol=1e-7)
    entropy = stats.entropy(voted, axis=1) if len(voted) else []
    np.testing.assert_allclose(calibration.entropy(voted), entropy, atol=1e-9)
    each = [
        sum(v * ((p - d) ** 2).sum() for v, d in zip(c, np.eye(3), strict=True)) for c in voted
    ]
    np.testing.assert_allclose(calibration.brier(p, voted), each / voted.sum(1), atol=1e-9)


@given(counts=COUNTS, alpha=ALPHA, order=st.permutations(range(3)))
def test_scores_do_not_depend_on_the_names_of_the_answers(
    counts: Counts, alpha: list[float], order: list[int]
) -> None:
    p = np.array(alpha) / sum(alpha)
    order = list(order)
    for score in (
        calibration.cross_entropy,
        calibration.brier,
        calibration.jensen_shannon,
        lambda q, n: calibration.dirichlet_multinomial_nll(3 * q, n),
    ):
        before, after = score(p, counts), score(p[order], counts[:, order])
        np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-9)


@given(counts=COUNTS, alpha=ALPHA)
def test_no_distribution_scores_better_than_the_votes_themselves(
    counts: Counts, alpha: list[float]
) -> None:
    counts = counts[counts.sum(1) > 0]
    p, own = np.array(alpha) / sum(alpha), calibration.shares(counts)
    for score in (calibration.cross_entropy, calibration.brier, calibration.jensen_shannon):
        assert (score(own, counts) <= score(p, counts) + 1e-9).all()


def test_the_printed_figures_of_the_scruples_ceiling(anecdotes: pd.DataFrame) -> None:
    best = calibration.best(anecdotes[list(votes.FIVE)].to_numpy(), draws=1500, seed=0)
    assert best.cross_entropy == pytest.approx(0.735, abs=0.002)
    assert best.macro_f1 == pytest.approx(0.681, abs=0.002)
    assert best.accuracy == pytest.approx(0.881, abs=0.002)


@pytest.mark.parametrize(
    ("counts", "accuracy_", "f1"),
    [([[1, 3], [4, 0]], 0.8878, 0.8486), ([[3, 2], [0, 5]], 0.7626, 0.6836)],
)
def test_the_examples_of_the_authors_own_ceiling(
    counts: list[list[int]], accuracy_: float, f1: float
) -> None:
    """Printed by the demo of Scruples, from 625 draws."""
    best = calibration.best(counts, draws=20_000)
    assert best.accuracy == pytest.approx(accuracy_, abs=0.03)
    assert best.macro_f1 == pytest.approx(f1, abs=0.04)


def test_the_ceilings_f1_counts_classes_as_the_authors_do() -> None:
    """An answer that is never the plurality counts, as by default in scikit-learn."""
    draws = calibration.best_draws([[5, 4], [20, 0], [5, 4]], 50, seed=1)
    right = np.round(3 * draws[:, 0]).astype(int)
    expected = [f1_score([0] * 3, [0] * k + [1] * (3 - k), average="macro") for k in range(4)]
    np.testing.assert_allclose(draws[:, 1], np.array(expected)[right])
    assert set(right) == {1, 2, 3}


@pytest.mark.parametrize(
    ("split", "accuracy_", "loss", "alpha"),
    [("dev", 0.848, 0.494, (0.978, 0.949)), ("test", 0.845, 0.500, (1.037, 0.975))],
)
def test_the_ceiling_of_dilemmas(
    dilemmas: Tables, split: str, accuracy_: float, loss: float, alpha: tuple[float, float]
) -> None:
    counts = votes.counts(dilemmas[split])
    best = calibration.best(counts, draws=300, seed=0)
    assert best.accuracy == pytest.approx(accuracy_, abs=0.002)
    assert best.macro_f1 == pytest.approx(accuracy_, abs=0.002)
    assert best.cross_entropy == pytest.approx(loss, abs=0.002)
    fitted = calibration.fit_dirichlet_multinomial(counts)
    np.testing.assert_allclose(fitted, alpha, atol=0.002)


def test_further_people_agree_with_the_first_ones_as_recorded(dilemmas: Tables) -> None:
    for split, expected, expected_f1 in (("dev", 0.8068, 0.8067), ("test", 0.8038, 0.8036)):
        frame = dilemmas[split]
        gold = votes.counts(frame).argmax(1)
        human = frame[["human1", "human2"]].to_numpy().argmax(1)
        assert accuracy(human, gold).value == pytest.approx(expected, abs=5e-5)
        assert f1(human, gold, 2) == pytest.approx(expected_f1, abs=2e-4)


def test_the_constants_of_the_dirichlet_score(dilemmas: Tables, anecdotes: pd.DataFrame) -> None:
    counts = votes.counts(dilemmas["dev"])
    half = np.array([0.5, 0.5])
    for kappa, expected in ((0.1, 4.038), (1, 3.126), (2, 3.078), (4, 3.124), (10, 3.246)):
        found = calibration.dirichlet_multinomial_nll(kappa * half, counts).mean()
        assert found == pytest.approx(expected, abs=0.001)
    patterns = calibration.dirichlet_multinomial_nll(half, [[5, 0], [4, 1], [3, 2]])
    np.testing.assert_allclose(patterns, [1.402, 3.599, 4.447], atol=0.001)
    both = votes.counts(anecdotes)
    fitted = calibration.fit_dirichlet_multinomial(both)
    np.testing.assert_allclose(fitted, [1.141, 0.427], atol=0.002)
    nll = calibration.dirichlet_multinomial_nll(fitted, both).mean()
    assert nll == pytest.approx(7.79, abs=0.01)


def test_constant_predictors_of_anecdotes(anecdotes: pd.DataFrame) -> None:
    both, five = votes.counts(anecdotes), anecdotes[list(votes.FIVE)].to_numpy(float)
    prior = calibration.shares(both).mean(0)
    assert prior[0] == pytest.approx(0.747, abs=0.001)
    assert calibration.cross_entropy(prior, both).mean() == pytest.approx(0.565, abs=0.001)
    mean = calibration.shares(five).mean(0)
    assert calibration.cross_entropy(mean, five).mean() == pytest.approx(1.137, abs=0.001)
    assert calibration.cross_entropy(np.full(5, 0.2), five).mean() == pytest.approx(math.log(5))


def test_an_empty_vote_is_undefined_for_one_score_and_certain_for_the_other() -> None:
    assert math.isnan(calibration.cross_entropy([[0.5, 0.5]], [[0, 0]])[0])
    assert calibration.dirichlet_multinomial_nll([1.0, 1.0], [[0, 0]])[0] == 0
    assert calibration.disagreement([[0, 0], [5, 0]]) == ["no-votes", "unanimous"]


def test_probability_zero_costs_nothing_or_everything() -> None:
    loss = calibration.cross_entropy([[0.0, 1.0], [0.0, 1.0]], [[0, 5], [1, 4]])
    assert loss.tolist() == [0, math.inf]
    nll = calibration.dirichlet_multinomial_nll([[0.0, 1.0], [0.0, 1.0]], [[0, 5], [1, 4]])
    assert nll.tolist() == [0, math.inf]


@pytest.mark.parametrize("bad", [[[-1, 5]], [[math.nan, 1]], [1, 2]])
def test_what_is_no_count_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="votes"):
        calibration.cross_entropy([[0.5, 0.5]], bad)


def test_no_votes_at_all_cannot_be_fitted() -> None:
    for fit in (
        calibration.fit_dirichlet_multinomial,
        lambda n: calibration.fit_temperature(np.zeros((2, 2)), n),
        lambda n: calibration.fit_concentration(np.full((2, 2), 0.5), n),
    ):
        with pytest.raises(ValueError, match="vote"):
            fit([[0, 0], [0, 0]])


def test_one_class_only_has_a_ceiling_all_the_same() -> None:
    best = calibration.best([[5, 0], [3, 0]], draws=20)
    assert best.accuracy == best.macro_f1 == 1
    assert best.cross_entropy == pytest.approx(0, abs=1e-3)


@given(t=st.floats(0.3, 3))
@settings(max_examples=20)
def test_temperature_undoes_a_known_scaling(t: float) -> None:
    z = np.random.default_rng(0).normal(size=(300, 2))
    h = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert calibration.fit_temperature(t * z, h) == pytest.approx(t, rel=0.01)


def test_the_concentration_of_drawn_votes_is_found_again() -> None:
    random = np.random.default_rng(0)
    p = random.dirichlet([2, 2], 4000)
    drawn = np.array([random.multinomial(5, random.dirichlet(3 * q + 1e-9)) for q in p])
    assert calibration.fit_concentration(p, drawn) == pytest.approx(3, rel=0.1)


def test_calibration_error_by_hand() -> None:
    p = [[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]]
    # Bin (0.7, 0.8] is right half the time, bin (0.5, 0.6] always: |0.8-0.5|/2 + |0.6-1|/2.
    assert calibration.expected_calibration_error(p, [0, 1, 1, 1], 10) == pytest.approx(0.35)
    assert math.isnan(calibration.expected_calibration_error(np.zeros((0, 2)), [], 10))
    shares = calibration.expected_calibration_error([[0.8, 0.2]], [[4, 1]], 10)
    assert shares == pytest.approx(0, abs=1e-9), "80 % of the votes, said with 80 %"


@pytest.mark.parametrize("stated", [False, True])
@given(seed=st.integers(0, 999), n=st.integers(1, 60), bins=st.integers(1, 15))
def test_calibration_error_is_that_of_sklearns_curve(
    stated: bool, seed: int, n: int, bins: int
) -> None:
    random = np.random.default_rng(seed)
    p, y = random.random(n), random.integers(0, 2, n)
    confidence, right = (p, y) if stated else (np.maximum(p, 1 - p), (p > 0.5) == y)
    edges = np.linspace(0, 1, bins + 1)
    often, said = calibration_curve(right, confidence, n_bins=bins)
    items = np.histogram(confidence, edges)[0]
    expected = (items[items > 0] * abs(often - said)).sum() / n
    found = calibration.expected_calibration_error(p, y, bins, stated=stated)
    assert found == pytest.approx(expected, abs=1e-12)
    curve = calibration.reliability(p, y, bins, stated=stated)
    np.testing.assert_allclose([b[:2] for b in curve], np.column_stack([said, often]))
    assert [b.n for b in curve] == items[items > 0].tolist()


def test_stated_confidences_by_hand() -> None:
    def error(said: Any, right: Any) -> float:
        return calibration.expected_calibration_error(said, right, stated=True)

    # A gap of 0.35 over two answers and one of 0.05 over two.
    assert error([0.15, 0.15, 0.95, 0.95], [0, 1, 1, 1]) == pytest.approx(0.2)
    assert error([1.0, 0.0], [1, 0]) == 0, "no confidence is a sure answer here, not its opposite"
    # 0.95 and 1 share a bin, 0.85 and 0.9 do not; of probabilities it is 0.85 and 0.9.
    assert error([0.95, 1.0], [1, 1]) == pytest.approx(0.025)
    assert error([0.85, 0.9], [1, 0]) == pytest.approx((0.15 + 0.9) / 2)
    assert calibration.expected_calibration_error([0.85, 0.9], [1, 0]) == pytest.approx(0.375)
    tenths = np.arange(11) / 10
    assert error(tenths, np.ones(11)) == pytest.approx(np.mean(1 - tenths))
    # The nearest number to 0.29 times 100 is below 29.
    found = calibration.reliability([0.29, 0.285], [1, 0], 100, stated=True)
    assert [b.n for b in found] == [1, 1]
    assert math.isnan(error([], []))
    with pytest.raises(ValueError, match="1 rows of probabilities, 2 labels"):
        error([0.5], [1, 0])


@given(counts=COUNTS)
def test_calibration_error_stays_in_its_range(counts: Counts) -> None:
    p = calibration.shares(counts + 1)
    found = calibration.expected_calibration_error(p, counts.argmax(1), 7)
    assert 0 <= found <= 1


def test_the_early_scores_are_as_wrong_as_they_were() -> None:
    h = np.array([[1.0, 0.0]])
    low = calibration.early_cross_entropy([[1.0, 0.0]], h)[0]
    high = calibration.early_cross_entropy([[0.0, 1.0]], h)[0]
    assert [round(low, 4), round(high, 4)] == [0.3133, 1.3133]
    early = calibration.early_dilemma_shares([[4, 1], [1, 4], [5, 0], [0, 5], [3, 2]])
    assert early.tolist() == [[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5], [0, 0]]


def test_votes_only_file_and_full_file_are_the_same_votes(mirror: Path, dilemmas: Tables) -> None:
    path = mirror / "scruples" / "label-counts" / "dev.scruples-dilemmas_label-counts.json"
    assert json.loads(path.read_text()) == votes.counts(dilemmas["dev"]).astype(int).tolist()


def crowd(n: int, seed: int = 0) -> tuple[NDArray[np.float64], Counts]:
    """A predictor that gives the true shares, and five votes on each item."""
    random = np.random.default_rng(seed)
    p = random.uniform(0.35, 0.65, n)
    votes = random.binomial(5, p)
    return np.column_stack([p, 1 - p]), np.column_stack([votes, 5 - votes])


def test_quantile_groups_tell_apart_what_lies_in_one_bin_of_equal_width() -> None:
    p, votes = crowd(2000)
    p = 0.5 + (p - 0.5) / 10  # nowhere sure: (.48, .52)
    assert len(calibration.reliability(p, votes)) == 1
    groups = calibration.quantile_groups(p, votes, 8)
    assert [g.n for g in groups] == [250] * 8
    assert groups[0].share < 0.4 < 0.6 < groups[-1].share
    assert not groups[0].low <= groups[0].share <= groups[0].high, "ten times too timid"


def test_the_bands_of_small_groups_hold_what_they_promise_and_one_item_has_none() -> None:
    """With the normal distribution's 1.96 they are far too narrow."""
    inside, narrow = [], []
    for seed in range(300):
        for g in calibration.quantile_groups(*crowd(40, seed), 10):
            inside.append(g.low <= g.share <= g.high)
            narrow.append(abs(g.share - g.probability) <= 1.96 * g.error)
    assert np.mean(inside) > 0.93
    assert np.mean(narrow) < 0.89, "else this test sees nothing"
    assert all(math.isnan(g.low) for g in calibration.quantile_groups(*crowd(1)))
    assert math.isnan(calibration.dyadic([0.3], [["a", "b"]]).low)


def test_debiased_calibration_error_is_about_zero_for_a_perfect_predictor() -> None:
    """The plain one is not; a predictor that is off by a tenth gets a tenth."""
    found, plain, covered = [], [], 0
    for seed in range(60):
        p, votes = crowd(1000, seed)
        estimate = calibration.debiased_calibration_error(p, votes)
        found.append(estimate.value**2)
        groups = calibration.quantile_groups(p, votes)
        plain.append(np.mean([(g.share - g.probability) ** 2 for g in groups]))
        covered += sum(g.low <= g.share <= g.high for g in groups)
        off = np.column_stack([p[:, 0] + 0.1, p[:, 1] - 0.1])
        wrong = calibration.debiased_calibration_error(off, votes)
        assert wrong.low < wrong.value < wrong.high
        assert wrong.value == pytest.approx(0.1, abs=0.03)
    assert np.mean(found) < np.mean(plain) / 2
    assert covered / 600 == pytest.approx(0.95, abs=0.03), "the bands hold what they promise"
    assert math.isnan(
        calibration.debiased_calibration_error(np.zeros((0, 2)), np.zeros((0, 2)))[0]
    )
    same = calibration.debiased_calibration_error(np.full((4, 2), 0.5), [[5, 0], [0, 5]] * 2)
    assert same.value == 0
    assert same.n == 4


def test_total_variation_is_half_the_city_block_distance() -> None:
    p, votes = crowd(20)
    each = [spatial.distance.cityblock(a, b / 5) / 2 for a, b in zip(p, votes, strict=True)]
    np.testing.assert_allclose(calibration.total_variation(p, votes), each)


def test_a_posterior_mean_adds_the_prior_to_the_votes() -> None:
    found = calibration.posterior_mean([1, 3], [[4, 0], [0, 0]])
    np.testing.assert_allclose(found, [[5 / 8, 3 / 8], [1 / 4, 3 / 4]])


def test_the_ceiling_in_closed_form_is_that_of_the_draws() -> None:
    _, votes = crowd(300, 1)
    mean, spread = calibration.best_cross_entropy(votes)
    draws = calibration.best_draws(votes, 4000, seed=0)[:, 2]
    assert mean.mean() == pytest.approx(draws.mean(), abs=4 * draws.std() / math.sqrt(4000))
    assert math.sqrt(spread.sum()) / 300 == pytest.approx(draws.std(), rel=0.05)
    five = [[3, 1, 0], [0, 0, 0], [2, 2, 2]]
    mean, spread = calibration.best_cross_entropy(five)
    assert np.isnan(mean).tolist() == np.isnan(spread).tolist() == [False, True, False]


def ring(n: int) -> NDArray[np.int64]:
    """Pairs of neighbours on a ring: every member stands in two of them."""
    return np.column_stack([np.arange(n), (np.arange(n) + 1) % n])


def test_the_variance_of_pairs_is_that_of_the_formula() -> None:
    """Sum over all pairs of pairs that share a member, one by one."""
    random = np.random.default_rng(0)
    pairs, values = random.integers(0, 40, (60, 2)), random.normal(size=60)
    away, total = values - values.mean(), 0.0
    for i, j in itertools.product(range(60), repeat=2):
        total += away[i] * away[j] * bool({*pairs[i]} & {*pairs[j]})
    assert total > (away**2).sum(), "else the guard against less than independent pairs is tested"
    found = calibration.dyadic(values, pairs.astype(str))
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(total / 59 / 60))
    assert math.isnan(calibration.dyadic([], np.zeros((0, 2))).value)


def test_intervals_of_pairs_hold_what_they_promise_where_plain_ones_do_not() -> None:
    covered, plain, n = 0, 0, 200
    for seed in range(300):
        member = np.random.default_rng(seed).normal(size=n)
        values = member[ring(n)].sum(1)
        found = calibration.dyadic(values, ring(n))
        covered += found.low <= 0 <= found.high
        half = 1.96 * values.std(ddof=1) / math.sqrt(n)
        plain += abs(values.mean()) <= half
    assert covered / 300 == pytest.approx(0.95, abs=0.03)
    assert plain / 300 < 0.88
    apart = calibration.dyadic(np.arange(9.0), np.arange(18).reshape(9, 2))
    assert (apart.high - apart.low) / 2 == pytest.approx(1.96 * np.arange(9).std(ddof=1) / 3)
