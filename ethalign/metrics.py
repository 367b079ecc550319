"""Shares, scores and differences, each with a 95 % interval and n.

Pure functions: arrays in, NamedTuple out. Nothing measured (n = 0) is NaN with the widest
interval, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


class Estimate(NamedTuple):
    """A value, its interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


class Paired(NamedTuple):
    """A difference between two variants on the same items (first minus second)."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def share(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927).

    Args:
        successes: how many of n.
        n: items; 0 gives NaN in [0, 1].
        level: coverage of the interval.

    Raises:
        ValueError: successes outside 0..n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    p, z = successes / n, float(stats.norm.ppf((1 + level) / 2))
    centre, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not push an interval past its own value at 0 and 1.
    low, high = max(0.0, (centre - width) / scale), min(1.0, (centre + width) / scale)
    return Estimate(p, min(low, p), max(high, p), n)


def accuracy(
    predicted: Sequence[Any] | NDArray[Any], gold: Sequence[Any] | NDArray[Any]
) -> Estimate:
    """Share of items whose prediction equals the gold label; no prediction (None) is wrong."""
    return share(sum(right(predicted, gold)), len(gold))


def right(
    predicted: Sequence[Any] | NDArray[Any], gold: Sequence[Any] | NDArray[Any]
) -> list[bool]:
    """Which items were predicted rightly.

    Raises:
        ValueError: sequences of different lengths.
    """
    return [p is not None and bool(p == g) for p, g in zip(predicted, gold, strict=True)]


def macro_f1(
    predicted: Sequence[Any] | NDArray[Any],
    gold: Sequence[Any] | NDArray[Any],
    *,
    seed: int,
    draws: int = 1000,
) -> Estimate:
    """Unweighted mean of the labels' F1 over all gold labels, with a bootstrap interval.

    A label that is never predicted has F1 0. Labels that occur in the predictions only count
    as errors, not as labels of their own.
    """
    labels = sorted(set(gold))
    first = np.array([labels.index(p) if p in labels else -1 for p in predicted], dtype=int)
    second = np.array([labels.index(g) for g in gold], dtype=int)
    return bootstrap(
        lambda p, g: _macro_f1(p, g, len(labels)), first, second, seed=seed, draws=draws
    )


def _macro_f1(predicted: NDArray[Any], gold: NDArray[Any], k: int) -> float:
    hits = np.bincount(gold[predicted == gold], minlength=k)
    total = np.bincount(gold, minlength=k) + np.bincount(predicted[predicted >= 0], minlength=k)
    present = np.bincount(gold, minlength=k) > 0
    f1 = 2 * hits / np.maximum(total, 1)
    return float(f1[present].mean())


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: NDArray[Any],
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """A statistic with its percentile bootstrap interval over items.

    Args:
        statistic: function of the arrays, to one number.
        arrays: of equal first axis (items), resampled together.
        seed: of the resampling.
        draws: bootstrap samples.
        level: coverage.
    """
    n = len(arrays[0])
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        pick = random.integers(0, n, n)
        found.append(float(statistic(*(a[pick] for a in arrays))))
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(*arrays)), float(low), float(high), n)


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> Paired:
    """Difference of two accuracies on the same items, with McNemar's exact test.

    The p-value is the two-sided binomial test on the items that only one of the two got right
    (McNemar 1947); the interval is Agresti and Min's (2005) adjusted Wald interval, which adds
    half an item to each cell of the two-by-two table.

    Raises:
        ValueError: arrays of different lengths.
    """
    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    if first.shape != second.shape:
        raise ValueError("both variants must have answered the same items")
    n, only_first, only_second = (
        len(first),
        int((first & ~second).sum()),
        int((second & ~first).sum()),
    )
    if n == 0:
        return Paired(math.nan, -1.0, 1.0, math.nan, 0)
    changed = only_first + only_second
    p = float(stats.binomtest(only_first, changed).pvalue) if changed else 1.0
    b, c, total = only_first + 0.5, only_second + 0.5, n + 2
    centre = (b - c) / total
    width = float(stats.norm.ppf(0.975)) * math.sqrt(b + c - (b - c) ** 2 / total) / total
    low, high = max(-1.0, centre - width), min(1.0, centre + width)
    return Paired((only_first - only_second) / n, low, high, p, n)


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, seed: int, draws: int = 1000
) -> Paired:
    """Difference of two means over the same items, with bootstrap interval and p-value.

    Raises:
        ValueError: arrays of different lengths.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError("both variants must have answered the same items")
    return bootstrap_test(np.mean, a - b, seed=seed, draws=draws)


def bootstrap_test(
    statistic: Callable[..., Any], *arrays: NDArray[Any], seed: int, draws: int = 1000
) -> Paired:
    """A statistic of items that is zero if there is no difference, with interval and p-value.

    The p-value is twice the smaller share of resampled statistics on either side of zero.

    Args:
        statistic: function of the arrays, to one number.
        arrays: of equal first axis (items), resampled together.
        seed, draws: of the resampling.
    """
    n = len(arrays[0])
    if not n:
        return Paired(math.nan, math.nan, math.nan, math.nan, 0)
    random = np.random.default_rng(seed)
    picks = (random.integers(0, n, n) for _ in range(draws))
    found = np.array([float(statistic(*(a[pick] for a in arrays))) for pick in picks])
    low, high = np.quantile(found, [0.025, 0.975])
    tail = min((found <= 0).mean(), (found >= 0).mean())
    p = min(1.0, 2 * max(float(tail), 1 / draws))
    return Paired(float(statistic(*arrays)), float(low), float(high), p, n)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values corrected for their number by Holm's step-down method; NaN stays NaN."""
    p = np.asarray(p_values, dtype=float)
    out = np.full(p.shape, math.nan)
    order = [i for i in np.argsort(p) if not math.isnan(p[i])]
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p[i]))
        out[i] = worst
    return out
