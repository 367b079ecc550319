"""How far answer probabilities are from the spread of votes.

Pure functions on arrays: probabilities ``(n, k)`` of n items over k answers, or ``(k,)`` for the
same ones everywhere, against votes ``(n, k)``: ``counts``, or ``human`` for counts or shares (rows
are divided by their sum). Scores are per item, ``(n,)``, so that intervals and paired tests can be
had from ``ethalign.metrics``. Logarithms are natural. ``ValueError``: votes that are negative or
no table of items by answers, probabilities outside [0, 1], shapes that do not fit; where
something is fitted, also no votes at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse, special

from ethalign.metrics import TAILS, Estimate, f1

Floats = NDArray[np.float64]
# Below this a fitted concentration is zero for every purpose (Lourie et al. use the same bound).
SMALLEST = 1e-10


class Best(NamedTuple):
    """Scores of an oracle that knows how a community votes; see ``best``."""

    accuracy: float
    macro_f1: float
    cross_entropy: float


class Bin(NamedTuple):
    """One bin of a reliability diagram."""

    confidence: float
    frequency: float
    n: float


def shares(counts: ArrayLike) -> Floats:
    """Votes as shares, (n, k); a row without votes is NaN."""
    table = _counts(counts)
    whole = table.sum(1, keepdims=True)
    share: Floats = np.divide(table, whole, out=np.full(table.shape, np.nan), where=whole > 0)
    return share


def cross_entropy(probs: ArrayLike, human: ArrayLike) -> Floats:
    """CE = -sum_k h_k log p_k per item, (n,) (Lourie et al. 2020; Senthilkumar et al. 2024).

    Nats: infinite where an answer with votes has probability 0, NaN where nobody voted.
    """
    p, h = _pair(probs, shares(human))
    with np.errstate(divide="ignore"):
        loss = -(special.xlogy(h, p)).sum(1)
    return np.where(loss == 0, 0.0, loss)  # no negative zero


def dirichlet_multinomial_nll(alpha: ArrayLike, counts: ArrayLike) -> Floats:
    """Negative log-likelihood of each item's sequence of votes, (n,).

    -[log G(A) - log G(A + N) + sum_k (log G(alpha_k + n_k) - log G(alpha_k))] with A = sum_k
    alpha_k and N = sum_k n_k (Scruples, section on losses; Senthilkumar et al. use it as a
    score). There is no multinomial coefficient: the votes are an ordered sequence.

    ``alpha`` is (n, k) or (k,), not negative, with a positive sum. Nats: infinite where an answer
    with votes has concentration 0; without votes the likelihood is that of nothing, 1, and its
    negative logarithm 0.
    """
    n = _counts(counts)
    a = np.broadcast_to(np.asarray(alpha, dtype=float), n.shape)
    if not np.isfinite(a).all() or (a < 0).any() or (len(a) and (a.sum(1) == 0).any()):
        raise ValueError("concentrations must be finite and not negative, with a positive sum")
    whole, votes = a.sum(1), n.sum(1)
    with np.errstate(invalid="ignore"):
        rising = special.gammaln(a + n) - special.gammaln(a)
    # Of an answer with concentration 0 no vote has probability 1, and any vote 0.
    rising = np.where(a == 0, np.where(n == 0, 0.0, -np.inf), rising)
    loss = special.gammaln(whole + votes) - special.gammaln(whole) - rising.sum(1)
    return np.asarray(np.maximum(loss, 0.0), dtype=float)


def fit_dirichlet_multinomial(counts: ArrayLike) -> Floats:
    """Concentrations alpha (k,) under which the votes are most likely.

    Maximum likelihood over all items by L-BFGS-B from 1, bounded below by 1e-10 as in the
    authors' code. An answer that nobody gave ends at the bound. Where every item is unanimous
    or has one vote, votes do not tell concentration from certainty and the fit stays finite
    only through the bounds (at most 1e6).
    """
    n = _counts(counts)
    n = n[n.sum(1) > 0]
    if not len(n):
        raise ValueError("there is not one vote to fit a distribution to")
    # Rows are summed up by pattern: the real files hold few different ones.
    patterns, weight = np.unique(n, axis=0, return_counts=True)
    total = patterns.sum(1)

    def loss(alpha: Floats) -> tuple[float, Floats]:
        whole = alpha.sum()
        value = float((weight * dirichlet_multinomial_nll(alpha, patterns)).sum())
        common = special.digamma(whole) - special.digamma(whole + total)
        each = special.digamma(alpha + patterns) - special.digamma(alpha)
        slope = -(weight[:, None] * (common[:, None] + each)).sum(0)
        return value / weight.sum(), slope / weight.sum()

    start, bounds = np.ones(n.shape[1]), [(SMALLEST, 1e6)] * n.shape[1]
    how: Any = {"ftol": 1e-13, "gtol": 1e-9, "maxiter": 2000}
    found = optimize.minimize(loss, start, (), "L-BFGS-B", jac=True, bounds=bounds, options=how)
    return np.asarray(found.x, dtype=float)


def best_draws(counts: ArrayLike, draws: int, seed: int) -> Floats:
    """Accuracy, macro F1 and cross-entropy of the oracle for each posterior draw, (draws, 3).

    BEST (Scruples): alpha is fitted to all items; an item's true distribution is drawn from
    Dir(alpha + n_i). The oracle answers that distribution's most probable class (for accuracy
    and macro F1 against the plurality of the votes, first one if tied) or the distribution
    itself (for cross-entropy against the shares of the votes).
    """
    n = _counts(counts)
    n = n[n.sum(1) > 0]
    alpha = fit_dirichlet_multinomial(n)
    random = np.random.default_rng(seed)
    gold, h, k = n.argmax(1), shares(n), n.shape[1]
    out = np.zeros((draws, 3))
    for draw in range(draws):
        gamma = np.maximum(random.standard_gamma(alpha + n), np.finfo(float).tiny)
        p = gamma / gamma.sum(1, keepdims=True)
        answer = p.argmax(1)
        loss = -special.xlogy(h, p).sum(1).mean()
        out[draw] = (answer == gold).mean(), f1(answer, gold, k, unseen=True), loss
    return out


def best(counts: ArrayLike, draws: int = 1000, seed: int = 0) -> Best:
    """Scores that no predictor can be expected to beat, given how people disagree.

    The mean over ``best_draws``; the spread of the draws gives an interval.
    """
    return Best(*map(float, best_draws(counts, draws, seed).mean(0)))


def best_cross_entropy(counts: ArrayLike) -> tuple[Floats, Floats]:
    """What ``best`` expects of each item's cross-entropy, and its posterior variance, (n,) each.

    With a = alpha + n and A its sum, log p_k has the mean digamma(a_k) - digamma(A) and, of two
    answers k and l, the covariance [k = l] trigamma(a_k) - trigamma(A). Without votes NaN.
    """
    h, a = shares(counts), fit_dirichlet_multinomial(counts) + _counts(counts)
    whole = a.sum(1)
    mean = special.digamma(whole) - (h * special.digamma(a)).sum(1)
    spread = (h**2 * special.polygamma(1, a)).sum(1) - special.polygamma(1, whole)
    return np.asarray(mean, dtype=float), np.asarray(np.where(np.isnan(h[:, 0]), np.nan, spread))


def fit_temperature(logits: ArrayLike, human: ArrayLike) -> float:
    """T that minimises the mean cross-entropy of softmax(z / T) to the votes.

    Fit on development items only and apply to the test items, as Scruples does. Logits are (n, k)
    and finite, logarithms of probabilities will do; rows without votes are left out. T lies in
    [0.01, 100].
    """
    h = shares(human)
    z = np.asarray(logits, dtype=float)
    kept = ~np.isnan(h).any(1)
    if z.shape != h.shape or not np.isfinite(z).all() or not kept.any():
        raise ValueError("a temperature needs finite logits, (n, k), and at least one vote")
    z, h = z[kept], h[kept]
    return _minimum(lambda t: -(h * special.log_softmax(z / t, axis=1)).sum(1).mean(), 0.01, 100)


def fit_concentration(probs: ArrayLike, counts: ArrayLike) -> float:
    """kappa that makes the votes most likely under alpha = kappa p, in [0.001, 10000].

    For models that give probabilities but no certainty. Answers with probability 0 are lifted to
    1e-10, so that one vote cannot decide the fit.
    """
    p, n = _pair(probs, _counts(counts))
    p = np.maximum(p, SMALLEST)
    if not n.sum():
        raise ValueError("there is not one vote to fit a concentration to")
    return _minimum(lambda kappa: dirichlet_multinomial_nll(kappa * p, n).mean(), 1e-3, 1e4)


def brier(probs: ArrayLike, human: ArrayLike) -> Floats:
    """Expected Brier score of one vote per item, (n,): sum_j (p_j - d_j)^2 over votes d.

    Equals ``sum_k (p_k - h_k)^2`` plus the votes' own spread ``1 - sum_k h_k^2``, which no
    model can lower.
    """
    p, h = _pair(probs, shares(human))
    return np.asarray(((p - h) ** 2).sum(1) + 1 - (h**2).sum(1), dtype=float)


def jensen_shannon(probs: ArrayLike, human: ArrayLike) -> Floats:
    """Jensen-Shannon distance (root of the divergence, base 2) per item, (n,), in [0, 1]."""
    p, h = _pair(probs, shares(human))
    middle = (p + h) / 2
    parts = special.rel_entr(p, middle).sum(1) + special.rel_entr(h, middle).sum(1)
    return np.asarray(np.sqrt(np.maximum(parts, 0) / 2 / np.log(2)), dtype=float)


def entropy(probs: ArrayLike) -> Floats:
    """Entropy of each row in nats, (n,); rows are divided by their sum, a zero row is NaN."""
    return np.asarray(special.entr(shares(probs)).sum(1), dtype=float)


def reliability(
    probs: ArrayLike, labels: ArrayLike, bins: int = 10, *, stated: bool = False
) -> list[Bin]:
    """Bins of equal width of the confidence in the most probable answer, or of stated ones.

    Args:
        probs: (n, k) probabilities; (n,) is the probability of class 1 of two.
        labels: (n,) class numbers; or (n, k) votes, of which each item's shares count.
        bins: how many; a confidence on an edge falls into the lower bin.
        stated: probs are (n,) stated confidences in answers, labels whether these were right;
            an edge falls into the upper bin, so that 90 % is in the nineties.

    Returns:
        Of each bin that holds items the mean confidence, how often (or by what share of the
        votes) the answer was right, and the number of items.
    """
    p, y = np.asarray(probs, dtype=float), np.asarray(labels)
    if bins < 1 or len(p) != len(y):
        raise ValueError(f"{len(p)} rows of probabilities, {len(y)} labels, {bins} bins")
    if stated:
        confidence, right, place = p, y.astype(float), np.floor(p * bins + 1e-9)
    else:
        p = np.column_stack([1 - p, p]) if p.ndim == 1 else p
        answer, rows = p.argmax(1), np.arange(len(p))
        confidence = p[rows, answer]
        right = shares(y)[rows, answer] if y.ndim == 2 else (answer == y).astype(float)
        place = np.ceil(confidence * bins - 1e-12) - 1
    place, kept = np.clip(place.astype(int), 0, bins - 1), ~np.isnan(right)
    sums = (np.bincount(place[kept], x[kept]).tolist() for x in (confidence, right))
    items = np.bincount(place[kept]).tolist()
    return [Bin(c / n, r / n, n) for n, c, r in zip(items, *sums, strict=True) if n]


def expected_calibration_error(
    probs: ArrayLike, labels: ArrayLike, bins: int = 10, *, stated: bool = False
) -> float:
    """Mean gap between confidence and frequency over bins, weighted by items (Guo et al. 2017).

    See ``reliability`` for the arguments; no items give NaN.
    """
    found = reliability(probs, labels, bins, stated=stated)
    n = sum(b.n for b in found)
    return float(sum(b.n * abs(b.confidence - b.frequency) for b in found) / n) if n else np.nan


class Group(NamedTuple):
    """Items with neighbouring probabilities: their mean, the mean share of votes, and how many.

    ``low`` and ``high`` are where the mean share of votes would lie in 95 % of samples if the
    probabilities were right (Student's t), and ``error`` is its standard error. One item alone
    tells none of the three: NaN.
    """

    probability: float
    share: float
    low: float
    high: float
    n: int
    error: float


def quantile_groups(probs: ArrayLike, human: ArrayLike, bins: int = 10) -> list[Group]:
    """A reliability diagram of the probability of the first of two answers, in equal parts.

    Bins of equal width of the more probable answer's probability hold every item in one bin if a
    model is nowhere sure; quantiles of p(first) always have something to compare.

    Args:
        probs, human: (n, 2) probabilities and votes; items without votes are left out.
        bins: how many parts of about equal size; equal probabilities stay together.
    """
    p, h = (x[:, 0] for x in _pair(probs, shares(human)))
    p, h = p[~np.isnan(h)], h[~np.isnan(h)]
    if bins < 1:
        raise ValueError(f"{bins} bins")
    edges: Floats = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1])) if len(p) else p
    place, found = np.searchsorted(edges, p, side="left"), []
    for k in np.unique(place):
        one, votes = p[place == k], h[place == k]
        mean, n = float(one.mean()), len(one)
        error = float((votes - one).std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        half = error * float(special.stdtrit(n - 1, TAILS[1])) if n > 1 else math.nan
        low, high = np.clip([mean - half, mean + half], 0, 1).tolist()
        found.append(Group(mean, float(votes.mean()), low, high, n, error))
    return found


def debiased_calibration_error(probs: ArrayLike, human: ArrayLike, bins: int = 10) -> Estimate:
    """Root mean square gap between p(first) and the share of votes over ``quantile_groups``.

    The squared gap of a bin of n items is too large by the variance of its mean, even for a
    perfect predictor; this is subtracted (Kumar, Liang and Ma 2019), and what is left below zero
    is zero. The interval takes gaps for normal: a squared one with mean g and variance v has the
    variance 4 v g^2 + 2 v^2. Bins of one item have no variance and are left out; NaN if none is
    left.
    """
    groups = [g for g in quantile_groups(probs, human, bins) if g.n > 1]
    n = sum(g.n for g in groups)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    weight = np.array([g.n / n for g in groups])
    noise = np.array([g.error**2 for g in groups])
    gap = np.array([(g.share - g.probability) ** 2 for g in groups]) - noise
    spread = math.sqrt((weight**2 * (4 * noise * np.maximum(gap, 0) + 2 * noise**2)).sum())
    square = float(weight @ gap)
    low, value, high = (math.sqrt(max(0.0, square + side * 1.96 * spread)) for side in (-1, 0, 1))
    return Estimate(value, low, high, n)


def total_variation(probs: ArrayLike, human: ArrayLike) -> Floats:
    """DistCE per item, (n,), in [0, 1]: half the sum of ``|p_k - h_k|`` (Baan et al. 2022)."""
    p, h = _pair(probs, shares(human))
    return np.asarray(np.abs(p - h).sum(1) / 2, dtype=float)


def dyadic(values: ArrayLike, pairs: ArrayLike) -> Estimate:
    """Mean of a value per pair with an interval for pairs that share members, such as actions.

    The variance sums the products of the deviations of all pairs that share a member (Aronow,
    Samii and Assenova 2015), and is never less than if pairs were independent. One pair alone has
    no interval: NaN.

    Args:
        values: (n,) of pairs.
        pairs: (n, 2) names of their members.
    """
    x, names = np.asarray(values, dtype=float), np.asarray(pairs)
    n = len(x)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    codes = np.unique(names, return_inverse=True)[1].reshape(n, 2)
    held = sparse.csr_array((np.ones(2 * n), (np.repeat(np.arange(n), 2), codes.ravel())))
    away = x - x.mean()
    shared = (held @ held.T > 0).astype(float)
    square = max(float(away @ (shared @ away)), float(away @ away)) / max(1, n - 1) / n
    half = 1.96 * math.sqrt(square) if n > 1 else math.nan
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half), n)


def posterior_mean(alpha: ArrayLike, counts: ArrayLike) -> Floats:
    """Expected shares of an item's votes, (n, k), given some of them and a prior alpha (k,)."""
    return shares(np.asarray(alpha, dtype=float) + _counts(counts))


def disagreement(counts: ArrayLike) -> list[str]:
    """How divided the voters of each item were.

    Five votes on two answers give ``unanimous``, ``4-1`` and ``3-2``; other numbers of votes
    ``unanimous``, ``clear`` (at least 4 of 5 for the first answer), ``split`` and ``no-votes``.
    """
    table = _counts(counts)
    total, top = table.sum(1), table.max(1, initial=0)
    names = np.where(top >= 0.8 * total, "clear", "split")
    if table.shape[1] == 2 and (total == 5).all():
        names = np.array([f"{m:.0f}-{5 - m:.0f}" for m in top], dtype=str)
    known = [total == 0, top == total]
    found: list[str] = np.select(known, ["no-votes", "unanimous"], names).tolist()
    return found


# The scores of the authors' early public code, kept to show what each defect does to a table.


def early_cross_entropy(probs: ArrayLike, human: ArrayLike) -> Floats:
    """DEFECTIVE: probabilities taken for logits, -sum_k h_k log softmax(p)_k, (n,).

    Lies in [0.3133, 1.3133] for two answers whatever the model says; see the page *The papers,
    read closely*.
    """
    h = np.asarray(human, dtype=float)
    p = np.broadcast_to(np.asarray(probs, dtype=float), h.shape)
    return np.asarray(-(h * special.log_softmax(p, axis=1)).sum(1), dtype=float)


def early_dilemma_shares(counts: ArrayLike) -> Floats:
    """DEFECTIVE: how often the *numbers* 1 and 0 occur in a pair of counts, over 2.

    The field holds two counts and was read as a list of votes: 4-1 becomes (0.5, 0), 5-0 becomes
    (0, 0.5) and 3-2 (0, 0), whichever action the votes are against (see there too).
    """
    n = _counts(counts)
    return np.column_stack([(n == 1).mean(1), (n == 0).mean(1)])


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a loss is least between two bounds, searched on the logarithm."""
    bounds = (math.log(low), math.log(high))
    found = optimize.minimize_scalar(lambda x: loss(np.exp(x)), bounds=bounds, method="bounded")
    return math.exp(found.x)


def _counts(counts: ArrayLike) -> Floats:
    table = np.asarray(counts, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"votes must be a table of items by answers, not of shape {table.shape}")
    bad = np.flatnonzero(~(np.isfinite(table) & (table >= 0)).all(1))
    if len(bad):
        raise ValueError(f"row {bad[0]}: votes {table[bad[0]].tolist()} are not counts")
    return table


def _pair(probs: ArrayLike, votes: Floats) -> tuple[Floats, Floats]:
    """Probabilities in the shape of the votes, (n, k), and these."""
    p = np.asarray(probs, dtype=float)
    if p.shape not in (votes.shape, votes.shape[1:]):
        raise ValueError(f"probabilities of shape {p.shape} against votes of shape {votes.shape}")
    if not ((p >= -1e-9) & (p <= 1 + 1e-9)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    return np.broadcast_to(p, votes.shape), votes
