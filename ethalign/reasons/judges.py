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

Count = tuple[int, int]  # how many of how many


def stance_model(seed: int) -> Any:
    """A classifier, not yet fitted, of which label a reason argues for (a proxy).

    TF-IDF of words and pairs of words, logistic regression.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000, random_state=seed))


def stances(reasons: Sequence[str], human: pd.DataFrame, *, seed: int) -> NDArray[np.object_]:
    """The label that each reason argues for, (n,); None for an empty one.

    Learnt from ``human``, rows with ``reason`` and ``label``; empty reasons are left out.
    """
    found = np.full(len(reasons), None, dtype=object)
    if some := [k for k, text in enumerate(reasons) if text.strip()]:
        known = human[human["reason"].str.strip() != ""]
        fitted = stance_model(seed).fit(list(known["reason"]), list(known["label"]))
        found[some] = fitted.predict([reasons[k] for k in some])
    return found


def judge_pairs(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Pairs of statement and reason to train or check a judge on.

    Each statement comes with its own reason (``real``, aligned 1), with the reason of another
    statement of the same label (``mismatched``) and with that of the most similar statement of
    the other label (``flipped``); the last two are aligned 0. To keep the classes even, every
    statement gets one of the two wrong reasons, by turns, in an order that is drawn.

    Args:
        table: rows with ``statement``, ``label`` and ``reason``, the last not empty.

    Returns:
        Columns ``statement, reason, aligned, kind``.
    """
    random = np.random.default_rng(seed)
    text, reason, label = (table[key].to_numpy() for key in ("statement", "reason", "label"))
    other = _most_similar_other(table)
    rows = []
    for turn, i in enumerate(random.permutation(len(table))):
        rows.append((text[i], reason[i], 1, "real"))
        same = np.flatnonzero((label == label[i]) & (np.arange(len(table)) != i))
        if turn % 2 and other[i] >= 0:
            rows.append((text[i], reason[other[i]], 0, "flipped"))
        elif len(same):
            rows.append((text[i], reason[random.choice(same)], 0, "mismatched"))
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
    flagged: Count, caught: Count, passed: Count, *, seed: int, draws: int = 1000
) -> metrics.Estimate:
    """A rate measured by an imperfect judge, corrected for the judge's error.

    (apparent + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1] (Rogan and
    Gladen 1978). The interval draws all three shares from their Jeffreys posteriors, so that
    the uncertainty about the judge is in it.

    Args:
        flagged: of all items.
        caught, passed: held-out pairs, misaligned and flagged of all misaligned, and aligned and
            not flagged of all aligned.

    Returns:
        NaN in [0, 1] where sensitivity + specificity <= 1: such a judge knows nothing.
    """
    counts, n = (flagged, caught, passed), flagged[1]
    if 0 in (n, caught[1], passed[1]) or caught[0] / caught[1] + passed[0] / passed[1] <= 1:
        return metrics.Estimate(math.nan, 0.0, 1.0, n)
    random = np.random.default_rng(seed)
    value = float(_corrected(*(hits / total for hits, total in counts)))
    drawn = _corrected(*(random.beta(k + 0.5, total - k + 0.5, draws) for k, total in counts))
    # Draws in which the judge is no better than chance leave the rate open altogether.
    low = float(np.quantile(np.nan_to_num(drawn, nan=0.0), 0.025))
    high = float(np.quantile(np.nan_to_num(drawn, nan=1.0), 0.975))
    return metrics.Estimate(value, min(low, value), max(high, value), n)


def _corrected(apparent: Any, sensitivity: Any, specificity: Any) -> Any:
    gain = np.asarray(sensitivity + specificity - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.clip((apparent + specificity - 1) / gain, 0, 1)
    return np.where(gain > 0, rate, math.nan)
