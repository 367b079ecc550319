"""Is the test set unseen? Exact and near copies, agreement of labels, flips against a source."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ethalign import metrics


class Overlap(NamedTuple):
    """Test rows whose statement occurs in the training file.

    ``shared``, ``same_label`` and ``same_reason`` are counts of test rows (a row counts if any
    of its training copies has the same label or reason); ``clean`` is a boolean mask over test.
    """

    shared: int
    same_label: int
    same_reason: int
    clean: NDArray[np.bool_]


def overlap(train: pd.DataFrame, test: pd.DataFrame) -> Overlap:
    """Exact overlap of two tables with columns ``statement``, ``label`` and ``reason``."""
    shared = test["statement"].isin(train["statement"]).to_numpy()

    def same(column: str) -> int:
        known = set(zip(train["statement"], train[column], strict=True))
        return sum(pair in known for pair in zip(test["statement"], test[column], strict=True))

    return Overlap(int(shared.sum()), same("label"), same("reason"), ~shared)


def near_duplicates(
    train: pd.DataFrame, test: pd.DataFrame, threshold: float = 0.8
) -> pd.DataFrame:
    """The most similar training row of every test row, where it is similar enough.

    Similarity is the cosine of character 3- to 5-grams (TF-IDF), 0 to 1, of column ``statement``.

    Returns:
        Columns ``test_index``, ``train_index`` (positions) and ``similarity``, by position.
    """
    best, similarity = _nearest(train, test)
    places = {"test_index": np.arange(len(test)), "train_index": best}
    table = pd.DataFrame({**places, "similarity": similarity})
    return table[table["similarity"] >= threshold].reset_index(drop=True)


def nearest_label_agreement(train: pd.DataFrame, test: pd.DataFrame) -> metrics.Estimate:
    """Share of test rows whose most similar training row has the same label."""
    best, _ = _nearest(train, test)
    same = train["label"].to_numpy()[best] == test["label"].to_numpy()
    return metrics.share(int(same.sum()), len(test))


def label_flips(table: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    """Rows whose statement also stands in another table, under another label.

    For instance of DFAR in ETHICS justice, from which DFAR took statements.

    Returns:
        Columns ``statement, label, source_label, flipped`` for every shared statement; a
        statement that stands in the source under both labels is left out.
    """
    labels = source.groupby("statement")["label"].agg(["first", "nunique"])
    sure = labels.loc[labels["nunique"] == 1, "first"]
    shared = table[table["statement"].isin(sure.index)][["statement", "label"]].copy()
    shared["source_label"] = sure.reindex(shared["statement"]).to_numpy()
    shared["flipped"] = shared["label"] != shared["source_label"]
    return shared.reset_index(drop=True)


def label_kappa(flips: pd.DataFrame, *, seed: int = 0, draws: int = 1000) -> metrics.Estimate:
    """Cohen's kappa of the two labels of each row of ``label_flips``, with bootstrap interval.

    Of labels that were given for two different questions it is no agreement of annotators.
    """
    pairs = [(flips[name] == "ethical").to_numpy() for name in ("label", "source_label")]
    return metrics.bootstrap(metrics.kappa, *pairs, seed=seed, draws=draws)


def _nearest(train: pd.DataFrame, test: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Position and cosine similarity of the most similar training row of each test row."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5))
    known = vectorizer.fit_transform(train["statement"])
    asked = vectorizer.transform(test["statement"])
    # In blocks, so that memory does not grow with the product of both tables.
    starts = range(0, asked.shape[0], 500)
    blocks = ((asked[start : start + 500] @ known.T).toarray() for start in starts)
    found = [(block.argmax(1), block.max(1)) for block in blocks]
    best, similarity = zip(*found, strict=True)
    return np.concatenate(best), np.concatenate(similarity)
