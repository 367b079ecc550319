"""Automatic judges of reasons, and their own error.

Every judge here is a proxy. The misalignment rate of Beyond Labels was measured by people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ethalign import metrics


def fit_stance(reasons: Sequence[str], labels: Sequence[str], *, seed: int) -> Any:
    """A classifier of which label a reason argues for, from human reasons (a proxy).

    TF-IDF of words and pairs of words, logistic regression; empty reasons are left out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    known = [(r, y) for r, y in zip(reasons, labels, strict=True) if r.strip()]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000, random_state=seed))
    return model.fit(*zip(*known, strict=True))


def stance(judge: Any, reasons: Sequence[str]) -> NDArray[Any]:
    """The label that each reason argues for, shape (n,)."""
    found: NDArray[Any] = (
        judge.predict(list(reasons)) if len(reasons) else np.array([], dtype=object)
    )
    return found


def stance_accuracy(
    reasons: Sequence[str], labels: Sequence[str], *, seed: int
) -> metrics.Estimate:
    """Held-out accuracy of the stance judge on human reasons (five-fold cross-validation)."""
    from sklearn.model_selection import StratifiedKFold

    texts, gold = np.asarray(reasons, dtype=object), np.asarray(labels, dtype=object)
    hits = 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(texts, gold):
        judge = fit_stance(texts[train].tolist(), gold[train].tolist(), seed=seed)
        hits += int((stance(judge, texts[test].tolist()) == gold[test]).sum())
    return metrics.share(hits, len(texts))


def enough(table: pd.DataFrame) -> bool:
    """Are there reasons to train and check judges on: five or more for each of two labels?"""
    counts = table.loc[table["reason"].str.strip() != "", "label"].value_counts()
    return len(counts) == 2 and int(counts.min()) >= 5


def judge_quality(checks: pd.DataFrame) -> dict[str, int]:
    """Counts of what a judge does on pairs of ``judge_pairs`` that it has not seen.

    Args:
        checks: pairs with a column ``says``, 1 where the judge calls the pair aligned.

    Returns:
        ``caught`` of all ``misaligned`` pairs, ``passed`` of all ``aligned`` ones.
    """
    right, real = checks["says"] == checks["aligned"], checks["aligned"] == 1
    return {
        "caught": int((right & ~real).sum()),
        "misaligned": int((~real).sum()),
        "passed": int((right & real).sum()),
        "aligned": int(real.sum()),
    }


def judge_pairs(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Pairs of statement and reason to train or check a judge on.

    Each statement comes with its own reason (``real``, aligned 1), with the reason of another
    statement of the same label (``mismatched``) and with that of the most similar statement of
    the other label (``flipped``); the last two are aligned 0. To keep the classes even, every
    statement gets one of the two wrong reasons, by turns.

    Args:
        table: rows with ``statement``, ``label`` and ``reason``, the last not empty.
        seed: draws which reason is mismatched, and the order of turns.

    Returns:
        Columns ``statement, reason, aligned, kind``.
    """
    random = np.random.default_rng(seed)
    label = table["label"].to_numpy()
    other = _most_similar_other(table)
    rows = []
    for turn, i in enumerate(random.permutation(len(table))):
        own = table.iloc[i]
        rows.append((own["statement"], own["reason"], 1, "real"))
        same = np.flatnonzero((label == label[i]) & (np.arange(len(table)) != i))
        if turn % 2 and other[i] >= 0:
            rows.append((own["statement"], table.iloc[other[i]]["reason"], 0, "flipped"))
        elif len(same):
            wrong = table.iloc[int(random.choice(same))]
            rows.append((own["statement"], wrong["reason"], 0, "mismatched"))
    return pd.DataFrame(rows, columns=["statement", "reason", "aligned", "kind"])


def _most_similar_other(table: pd.DataFrame) -> NDArray[np.int64]:
    """Position of the most similar statement with the other label; -1 where there is none."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    label = table["label"].to_numpy()
    vectors = TfidfVectorizer().fit_transform(table["statement"])
    found = np.full(len(table), -1)
    for start in range(0, len(table), 500):
        block = (vectors[start : start + 500] @ vectors.T).toarray()
        block[label[start : start + 500, None] == label[None, :]] = -1.0
        found[start : start + 500] = np.where(block.max(1) >= 0, block.argmax(1), -1)
    return found


def similarity(reasons: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
    """chrF of each reason with its human reason (Popović 2015), 0 to 1, shape (n,)."""
    from sacrebleu.metrics.chrf import CHRF

    score = CHRF()
    pairs = zip(reasons, references, strict=True)
    return np.array([score.sentence_score(r, [h]).score / 100 for r, h in pairs], dtype=float)


def rogan_gladen(
    positives: int,
    n: int,
    caught: int,
    misaligned: int,
    passed: int,
    aligned: int,
    *,
    seed: int,
    draws: int = 1000,
) -> metrics.Estimate:
    """A rate measured by an imperfect judge, corrected for the judge's error.

    (apparent + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1] (Rogan and
    Gladen 1978). The interval draws all three shares from their Jeffreys posteriors, so that
    the uncertainty about the judge is in it.

    Args:
        positives, n: flagged items and all items.
        caught, misaligned: held-out misaligned pairs that were flagged, and all of them.
        passed, aligned: held-out aligned pairs that were not flagged, and all of them.
        seed, draws: of the interval.

    Returns:
        NaN in [0, 1] where sensitivity + specificity <= 1: such a judge knows nothing.
    """
    if min(n, misaligned, aligned) == 0 or caught / misaligned + passed / aligned <= 1:
        return metrics.Estimate(math.nan, 0.0, 1.0, n)
    value = float(_corrected(positives / n, caught / misaligned, passed / aligned))
    random = np.random.default_rng(seed)

    def posterior(hits: int, total: int) -> NDArray[np.float64]:
        return random.beta(hits + 0.5, total - hits + 0.5, draws)

    apparent, sensitivity = posterior(positives, n), posterior(caught, misaligned)
    drawn = _corrected(apparent, sensitivity, posterior(passed, aligned))
    # Draws in which the judge is no better than chance leave the rate open altogether.
    low = np.quantile(np.where(np.isnan(drawn), 0.0, drawn), 0.025)
    high = np.quantile(np.where(np.isnan(drawn), 1.0, drawn), 0.975)
    return metrics.Estimate(value, float(min(low, value)), float(max(high, value)), n)


def _corrected(apparent: Any, sensitivity: Any, specificity: Any) -> Any:
    gain = np.asarray(sensitivity + specificity - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.clip((apparent + specificity - 1) / gain, 0, 1)
    return np.where(gain > 0, rate, math.nan)
