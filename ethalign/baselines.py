"""Classical text classifiers on TF-IDF, with scikit-learn's defaults (papers.md 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ethalign.config import choose

NAMES = ("majority", "logistic-regression", "svm", "random-forest", "gradient-boosting")


def classifier(name: str, seed: int) -> Any:
    """A fresh scikit-learn pipeline from texts to labels.

    Raises:
        UserError: a name that is not in ``NAMES``.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    models = {
        "majority": DummyClassifier(),
        "logistic-regression": LogisticRegression(max_iter=1000),
        "svm": SVC(kernel="linear"),
        "random-forest": RandomForestClassifier(random_state=seed, n_jobs=1),
        "gradient-boosting": GradientBoostingClassifier(random_state=seed),
    }
    return make_pipeline(TfidfVectorizer(), models[choose("baseline", name, list(NAMES))])


def predict(
    name: str,
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    test_texts: Sequence[str],
    *,
    seed: int,
) -> NDArray[Any]:
    """Labels of the test texts, shape (n,), from a classifier trained on the training texts.

    With one training label only, that label is the answer.
    """
    name = name if len(set(train_labels)) > 1 else "majority"
    fitted = classifier(name, seed).fit(list(train_texts), list(train_labels))
    labels: NDArray[Any] = fitted.predict(list(test_texts))
    return labels


def cross_validate(
    name: str, texts: Sequence[str], labels: Sequence[str], *, folds: int = 10, seed: int
) -> NDArray[Any]:
    """Each text's label from a classifier that has not seen it (stratified folds, shuffled).

    The protocol of the ETHOS authors for data without a split, less their grid search.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    found: NDArray[Any] = cross_val_predict(
        classifier(name, seed), np.asarray(texts, object), np.asarray(labels, object), cv=parts
    )
    return found
