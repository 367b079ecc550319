"""Shares, scores and differences, each with a 95 % interval and n.

Pure functions: arrays in, NamedTuple out. Nothing measured (n = 0) is NaN with the widest
interval, never zero.
"""

from __future__ import annotations

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
) -> Crossed:
    """The mean over training seeds of a statistic of items, with a percentile interval over both.

    Items and seeds are resampled independently of each other, since every seed answers the same
    items; of S seeds S - 1 are drawn, which makes the variance of their mean unbiased (Rao and Wu
    1988). With one seed the interval holds items only.

    Args:
        statistic: function of the arrays of one seed, to one number; samples in which it is NaN
            do not count.
        seeds: per seed the arrays, all of the same first axis (n items).
        groups: (n,) labels of items that are resampled together, such as near-copies.
        seed, draws: of the resampling.

    Returns:
        NaN and no draws without items. Where no sample differs from another, the interval is, for
        arrays of booleans, what n groups without an exception allow (97.5 % one-sided), and the
        draws lie evenly in it; else NaN, and no draws.
    """
    n = len(seeds[0][0])
    if not n:
        return Crossed(math.nan, math.nan, math.nan, math.nan, np.array([]))
    codes = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(codes)
    members, starts = np.argsort(codes, kind="stable"), np.cumsum(sizes) - sizes
    rng, found = np.random.default_rng(seed), np.empty(draws)
    value = float(np.mean([statistic(*arrays) for arrays in seeds]))
    mean = statistic is np.mean and seeds[0][0].ndim == 1
    # For a mean, the sum and the size of a group are enough.
    sums = np.array([np.bincount(codes, arrays[0], len(sizes)) for arrays in seeds if mean])
    rows = max(1, 1_000_000 // len(sizes))
    for start in range(0, draws, rows):
        drawn = rng.integers(len(sizes), size=(min(rows, draws - start), len(sizes)))
        chosen = rng.integers(len(seeds), size=(len(drawn), max(1, len(seeds) - 1)))
        if mean:
            total = sum(sums[s[:, None], drawn].sum(1) for s in chosen.T) / chosen.shape[1]
            found[start : start + len(drawn)] = total / sizes[drawn].sum(1)
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
    low, high = np.quantile(found, TAILS)
    if max(high, value) - min(low, value) < 1e-12:
        whole = all(a.dtype == bool for arrays in seeds for a in arrays)
        reach = 1 - TAILS[0] ** (1 / len(sizes)) if whole else math.nan
        low, high = np.clip([value - reach, value + reach], -1, 1)
        spread = np.linspace(low, high, len(found)) if whole else np.array([])
        return Crossed(value, float(low), float(high), reach, spread)
    power = scipy.stats.norm.ppf(TAILS[1]) + scipy.stats.norm.ppf(0.8)
    return Crossed(value, float(low), float(high), float(power * found.std()), found)


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


def auroc(score: ArrayLike, hit: ArrayLike) -> float:
    """Probability that a hit has a higher score than what is none, ties one half.

    The area under the ROC curve of n items, by the Mann-Whitney statistic; NaN without both kinds.
    """
    hits, scores = np.asarray(hit, bool), np.asarray(score, float)
    ours, others = scores[hits], np.sort(scores[~hits])
    if not len(ours) or not len(others):
        return math.nan
    below = (np.searchsorted(others, ours, side).sum() for side in ("left", "right"))
    return float(sum(below) / (2 * len(ours) * len(others)))


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
