"""Shares, scores and differences, each with a 95 % interval and n.

Pure functions: arrays in, NamedTuple out. Nothing measured (n = 0) is NaN with the widest
interval, never zero.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are first used
from numpy.typing import ArrayLike, NDArray

Items = Sequence[Any] | NDArray[Any]
Ints = NDArray[np.int64]
Statistic = Callable[..., Any]
LEVEL = 0.95  # coverage of every interval
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


class Estimate(NamedTuple):
    """A value, its interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


def shown(value: float, unit: str) -> str:
    """A number as a page shows it: shares and parts in per cent, all else with three decimals."""
    scaled, places = (100 * value, 1) if unit in ("share", "part") else (value, 3)
    text = f"{round(scaled, places) + 0.0:.{places}f}"  # minus nothing is nothing
    return text.replace("-", "\N{MINUS SIGN}")


def with_interval(
    value: float | None, low: float | None, high: float | None, unit: str, missing: str = ""
) -> str:
    """``value [low, high]`` as a page shows it; ``missing`` where there is no value."""
    if value is None or math.isnan(value):
        return missing
    if low is None or high is None or math.isnan(low):
        return shown(value, unit)
    return f"{shown(value, unit)} [{shown(low, unit)}, {shown(high, unit)}]"


def share(successes: int, n: int) -> Estimate:
    """Successes of n items as a share, with Wilson's score interval (Wilson 1927).

    Nothing of nothing is NaN in [0, 1]; successes outside 0..n are a ValueError.
    """
    if successes == n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    low, high = scipy.stats.binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(successes / n, float(low), float(high), n)


def accuracy(predicted: Items, gold: Items) -> Estimate:
    """Share of items whose prediction equals the gold label; no prediction (None) is wrong."""
    return share(sum(right(predicted, gold)), len(gold))


def right(predicted: Items, gold: Items) -> list[bool]:
    """Which items were predicted rightly; a ValueError for different lengths."""
    return [p is not None and bool(p == g) for p, g in zip(predicted, gold, strict=True)]


def kappa(first: Items, second: Items) -> float:
    """Cohen's kappa of two raters; NaN without items or if both gave one and the same label."""
    from sklearn.metrics import cohen_kappa_score

    if len(first) == len(second) and len({*first, *second}) < 2:
        return math.nan
    return float(cohen_kappa_score(first, second))


def f1(predicted: Ints, gold: Ints, k: int, *, unseen: bool = False) -> float:
    """Macro F1: the unweighted mean of 2 hits / (predicted + gold) of each class.

    Args:
        predicted, gold: (n,) class numbers below k; -1 is no prediction.
        k: classes; one that is neither predicted nor gold does not count.
        unseen: whether one that is predicted but never gold counts, with F1 0 (scikit-learn's
            default, and so BEST in Scruples), or not.
    """
    hits, golds = (np.bincount(x, minlength=k) for x in (gold[predicted == gold], gold))
    total = golds + np.bincount(predicted[predicted >= 0], minlength=k)
    counted = (total if unseen else golds) > 0
    return float((2 * hits[counted] / total[counted]).mean())


def bootstrap(
    statistic: Statistic, *arrays: NDArray[Any], seed: int, draws: int = 1000
) -> Estimate:
    """A statistic with its percentile bootstrap interval over items.

    Args:
        statistic: function of the arrays, to one number; the interval is of the samples in
            which it is not NaN.
        arrays: of equal first axis (items), resampled together.
        seed, draws: of the resampling.
    """
    if not len(arrays[0]):
        return Estimate(math.nan, math.nan, math.nan, 0)
    found = _resampled(statistic, arrays, seed, draws)
    low, high = np.nanquantile(found, TAILS)
    return Estimate(float(statistic(*arrays)), float(low), float(high), len(arrays[0]))


def _resampled(
    statistic: Statistic, arrays: Sequence[NDArray[Any]], seed: int, draws: int
) -> NDArray[np.float64]:
    """The statistic in each bootstrap sample, (draws,)."""
    first, n = arrays[0], len(arrays[0])

    def values(picks: Ints, axis: int) -> NDArray[np.float64]:
        if statistic is np.mean and first.shape == (n,) and first.dtype == float:
            return np.asarray(first[picks].mean(axis))
        return np.array([float(statistic(*(a[pick] for a in arrays))) for pick in picks])

    if n == 1:  # which SciPy refuses
        return np.full(draws, float(statistic(*arrays)))
    rng, batch = np.random.default_rng(seed), max(1, 1_000_000 // n)
    # It warns of NaN in its own interval, which is not used here.
    with warnings.catch_warnings(action="ignore", category=scipy.stats.DegenerateDataWarning):
        found = scipy.stats.bootstrap(
            (np.arange(n),), values, n_resamples=draws, batch=batch, method="percentile", rng=rng
        )
    return np.asarray(found.bootstrap_distribution)


class Weights(NamedTuple):
    """How often each of n items is in each of many samples.

    ``counts`` (k, draws) of groups, ``codes`` (n,) the groups of items.
    """

    counts: NDArray[np.float64]
    codes: Ints

    def sum(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums of values (n,) over each sample, (draws,)."""
        return np.bincount(self.codes, values, minlength=len(self.counts)) @ self.counts

    @property
    def total(self) -> NDArray[np.float64]:
        """How many items each sample has, (draws,)."""
        return self.sum(np.ones(len(self.codes)))

    def kept(self, mask: NDArray[np.bool_]) -> Weights:
        """The weights of some items alone."""
        return self._replace(codes=self.codes[mask])

    def levels(self, rank: NDArray[Any], *counted: NDArray[Any]) -> list[NDArray[np.float64]]:
        """Sums of values over items of the same rank, in rising order: (ranks, draws)."""
        order = np.argsort(rank, kind="stable")
        risen, often = rank[order], self.counts[self.codes[order]]
        starts = np.flatnonzero(np.append(True, risen[1:] != risen[:-1]))
        return [np.add.reduceat(often * each[order, None], starts) for each in counted]


def weighted(of: Callable[..., NDArray[np.float64]]) -> Statistic:
    """Make a function of weighted items a statistic, of which ``crossed`` draws many at once.

    ``of`` takes ``Weights`` and arrays of n items to values (draws,), NaN where there is none. The
    statistic takes the arrays alone, and every item counts once.
    """

    @functools.wraps(of)
    def statistic(*arrays: ArrayLike) -> float:
        items = [np.asarray(array) for array in arrays]
        n = len(items[0])
        return float(of(Weights(np.ones((n, 1)), np.arange(n)), *items)[0])

    given = inspect.signature(of)
    said = given.replace(parameters=[*given.parameters.values()][1:], return_annotation=float)
    vars(statistic).update(weighted=of, __signature__=said)
    return statistic


def versus(statistic: Statistic) -> Statistic:
    """First minus second of a ``weighted`` statistic: its arrays for the one, then the other."""
    of = vars(statistic)["weighted"]

    def both(weights: Weights, *arrays: NDArray[Any]) -> NDArray[np.float64]:
        half = len(arrays) // 2
        return np.asarray(of(weights, *arrays[:half]) - of(weights, *arrays[half:]))

    return weighted(both)


def over(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """Quotients; NaN where nothing is below."""
    found = np.full(above.shape, math.nan)
    np.divide(above, below, out=found, where=below != 0)
    return found


@weighted
def mean(weights: Weights, values: NDArray[Any]) -> NDArray[np.float64]:
    """The mean."""
    return over(weights.sum(values), weights.total)


@weighted
def ratio(weights: Weights, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """How much a mean is above another, as a part of that; NaN if that is 0."""
    return over(weights.sum(np.subtract(first, second, dtype=float)), weights.sum(second))


@weighted
def auroc(weights: Weights, score: NDArray[Any], hit: NDArray[Any]) -> NDArray[np.float64]:
    """Probability that a hit has a higher score than what is none, ties one half.

    The area under the ROC curve of n items, by the Mann-Whitney statistic; NaN without both kinds.
    """
    hits = np.asarray(hit, bool)
    ours, others = weights.levels(score, hits, ~hits)
    below = others.cumsum(0) - others / 2
    return over((ours * below).sum(0), ours.sum(0) * others.sum(0))


#: Difference of two means, of arrays of the same items.
gap = versus(mean)
#: Difference of two ``auroc``: score and hit of the first, then of the second.
auroc_gap = versus(auroc)


class Crossed(NamedTuple):
    """A statistic over several seeds; ``draws`` are its resampled values.

    ``detectable`` is the true value that a test at 5 % would have found in 80 % of such samples.
    """

    value: float
    low: float
    high: float
    detectable: float
    draws: NDArray[np.float64]


def crossed(
    statistic: Statistic,
    seeds: Sequence[Sequence[NDArray[Any]]],
    groups: NDArray[Any] | None = None,
    *,
    seed: int,
    draws: int = 1000,
    student: bool = False,
) -> Crossed:
    """The mean over training seeds of a statistic of items, with a percentile interval over both.

    Items and seeds are resampled independently of each other, since every seed answers the same
    items; of S seeds S - 1 are drawn, which makes the variance of their mean unbiased (Rao and Wu
    1988). With one seed the interval holds items only.

    Args:
        statistic: function of the arrays of one seed, to one number; samples in which it is NaN
            do not count. All samples of one that is ``weighted`` are worked out together.
        seeds: per seed the arrays, all of the same first axis (n items).
        groups: (n,) labels of items that are resampled together, such as near-copies.
        seed, draws: of the resampling.
        student: allow for few seeds and few groups. Draws are stretched about the value as
            Student's t is wider than the normal distribution, with the degrees of freedom of the
            sum of both variances (Satterthwaite 1946).

    Returns:
        NaN and no draws without items. Where no sample differs from another, the interval is, for
        means of booleans, their differences, and a ratio of nothing, what n groups without an
        exception allow (97.5 % one-sided), and the draws have the tails of an exact test; else
        NaN, and no draws.
    """
    n = len(seeds[0][0])
    if not n:
        return Crossed(math.nan, math.nan, math.nan, math.nan, np.array([]))
    codes = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    members, starts = np.argsort(codes, kind="stable"), np.cumsum(sizes) - sizes
    rng, found = np.random.default_rng(seed), np.empty(draws)
    values = [float(statistic(*arrays)) for arrays in seeds]
    value = float(np.mean(values))
    plain = statistic is np.mean and seeds[0][0].ndim == 1
    of = getattr(mean if plain else statistic, "weighted", None)
    rows = max(1, 1_000_000 // len(sizes))
    for start in range(0, draws, rows):
        drawn = rng.integers(len(sizes), size=(min(rows, draws - start), len(sizes)))
        chosen = rng.integers(len(seeds), size=(len(drawn), max(1, len(seeds) - 1)))
        if of:
            weights = Weights(_counted(drawn, len(sizes)), codes)
            parts = np.stack([_at_once(of, weights, arrays) for arrays in seeds], 1)
            found[start : start + len(drawn)] = np.take_along_axis(parts, chosen, 1).mean(1)
            continue
        for place, (items, those) in enumerate(zip(drawn, chosen, strict=True), start):
            picks = items
            if groups is not None:  # the members of each group that was drawn, one after another
                many = sizes[items]
                shift = np.repeat(starts[items] - (np.cumsum(many) - many), many)
                picks = members[np.arange(len(shift)) + shift]
            found[place] = np.mean([statistic(*(a[picks] for a in seeds[s])) for s in those])
    found = found[~np.isnan(found)]
    if math.isnan(value) or not len(found):
        return Crossed(value, math.nan, math.nan, math.nan, np.array([]))
    if max(*found, value) - min(*found, value) < 1e-12:
        return _without_exception(statistic, seeds, value, len(sizes), draws)
    if student:
        found = value + _student(values, found, len(sizes)) * (found - value)
    low, high = np.quantile(found, TAILS)
    power = scipy.stats.norm.ppf(TAILS[1]) + scipy.stats.norm.ppf(0.8)
    return Crossed(value, float(low), float(high), float(power * found.std()), found)


def _counted(drawn: Ints, k: int) -> NDArray[np.float64]:
    """How often each of k groups is in a sample, (k, draws)."""
    places = drawn * len(drawn) + np.arange(len(drawn))[:, None]
    counts = np.bincount(places.ravel(), minlength=k * len(drawn))
    return counts.reshape(k, -1).astype(float)


def _at_once(
    of: Callable[..., NDArray[np.float64]], weights: Weights, arrays: Sequence[NDArray[Any]]
) -> NDArray[np.float64]:
    """Values (draws,) of one seed; see ``weighted``."""
    # Groups may hold many items each: a part of the draws at a time, as many numbers as in counts.
    k, draws = weights.counts.shape
    parts = np.array_split(weights.counts, min(draws, -(-len(weights.codes) // k)), axis=1)
    return np.concatenate([of(weights._replace(counts=part), *arrays) for part in parts])


def _without_exception(
    statistic: Statistic,
    seeds: Sequence[Sequence[NDArray[Any]]],
    value: float,
    groups: int,
    draws: int,
) -> Crossed:
    """Of a statistic of booleans that comes out the same in every sample.

    An exception of which n groups show none has a share of x or more with the chance (1 - x)^n at
    most. At the end of the scale it goes one way, elsewhere either way. NaN for what is no mean,
    no difference of two, and no ratio of nothing to something.
    """
    whole = all(a.dtype == bool for arrays in seeds for a in arrays)
    if not whole or statistic not in (np.mean, gap, ratio) or (statistic is ratio and value > -1):
        return Crossed(value, math.nan, math.nan, math.nan, np.array([]))
    # What a share of one would change: two, of two that differ in all items, or a part of another.
    worth = 2.0 if statistic is gap and abs(value) == 1 else 1.0
    worth /= float(np.mean([a[1].mean() for a in seeds])) if statistic is ratio else 1.0
    one_way = abs(value) == 1 or (statistic is np.mean and value == 0)
    tail, reach = (np.arange(draws) + 0.5) / draws, 1 - TAILS[0] ** (1 / groups)
    if one_way:
        inwards = -worth if value == 1 else worth
        spread = value + inwards * (1 - tail ** (1 / groups))
        ends = sorted([value, value + inwards * reach])
    else:
        apart = 1 - (tail / 2) ** (1 / groups)
        spread = value + apart * np.where(np.arange(draws) % 2, 1, -1)
        ends = [max(-1.0, value - reach), min(1.0, value + reach)]
    # Four exceptions on one side are found by a resampling at 5 %; this many occur in four of
    # five samples where the expected number is a quantile of the gamma distribution.
    found = worth * min(1.0, float(scipy.stats.gamma.ppf(0.8, 4)) / groups)
    return Crossed(value, float(ends[0]), float(ends[1]), found, spread)


def _student(values: Sequence[float], found: NDArray[np.float64], groups: int) -> float:
    """How much wider Student's t is for a variance of seeds and groups; see ``crossed``."""
    seeds, total = len(values), float(found.var())
    between = min(total, float(np.var(values, ddof=1)) / seeds) if seeds > 1 else 0.0
    parts = between**2 / max(seeds - 1, 1) + (total - between) ** 2 / max(groups - 1, 1)
    freedom = total**2 / parts
    return float(scipy.stats.t.ppf(TAILS[1], freedom) / scipy.stats.norm.ppf(TAILS[1]))


def interval(
    statistic: Statistic,
    *arrays: NDArray[Any],
    groups: NDArray[Any] | None = None,
    seed: int,
    draws: int = 1000,
) -> Estimate:
    """``crossed`` of one seed, whose interval never has the width zero; see there."""
    found = crossed(statistic, [arrays], groups, seed=seed, draws=draws)
    return Estimate(found.value, found.low, found.high, len(arrays[0]))


def over_seeds(values: ArrayLike, lows: ArrayLike, highs: ArrayLike) -> tuple[float, float, float]:
    """Mean over training seeds of a value whose interval holds items only; with its interval.

    All seeds answer the same items, so their mean keeps the items' error (the root mean square
    of the half-widths), to which the error of the mean over seeds is added in squares: Student's
    t with S - 1 degrees of freedom times s / sqrt(S). One seed stays as it is.

    Args:
        values, lows, highs: (S,), one entry a seed; NaN in one makes the result NaN.
    """
    v, low, high = (np.asarray(x, dtype=float) for x in (values, lows, highs))
    if len(v) == 1:
        return float(v[0]), float(low[0]), float(high[0])
    seeds = scipy.stats.t.ppf(TAILS[1], len(v) - 1) * v.std(ddof=1) / math.sqrt(len(v))
    down, up = (math.hypot(seeds, math.sqrt(np.mean(x**2))) for x in (v - low, high - v))
    return float(v.mean()), float(v.mean() - down), float(v.mean() + up)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values corrected for their number by Holm's step-down method; NaN stays NaN."""
    p = np.asarray(p_values, dtype=float)
    out = np.full(p.shape, math.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN stands last
    steps = np.arange(len(order), 0, -1) * p[order]
    out[order] = np.minimum(1, np.maximum.accumulate(steps))
    return out
