"""What needs no language model: text classifiers, an encoder, and the judge of reasons.

Classifiers work on TF-IDF, with scikit-learn's defaults, as in the notebooks of Beyond Labels
(see "The papers, read closely", What was reported).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ethalign import audit, encoders, metrics, models, records
from ethalign.reasons import data, evaluate, judges, prompts
from ethalign.reasons.evaluate import Rows
from ethalign.reasons.settings import Run

NAMES = ("majority", "logistic-regression", "svm", "random-forest", "gradient-boosting")
# How well the judges of reasons do on held-out human ones: counts of `judge.json`.
JUDGED = {
    "judge_sensitivity": ("caught", "misaligned"),
    "judge_specificity": ("passed", "aligned"),
    "stance_accuracy": ("stance_right", "stance"),
}
COLUMNS = ["variant", "dataset", "id", "stratum", "seen", "gold", "verdict"]


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """The stage: predictions of all baselines, the learned judge and its error."""
    train, tests = data.splits(run)
    encoder = models.encoder(run.baselines.encoder, run.seed)
    path = where / "predictions.jsonl"
    if not path.is_file():
        parts = [*_classified(run, train, tests), *_encoded(run, train, tests, encoder)]
        records.write(path, pd.concat(parts))
    records.write(where / "judge.json", _judge(run, train, encoder, where))
    return {}


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json``; those of the overlap audit only where its files are present."""
    rows: Rows = []
    table = pd.DataFrame(records.read_rows(folder / "predictions.jsonl"), columns=COLUMNS)
    for (variant, dataset), part in table.groupby(["variant", "dataset"], sort=False):
        named = run.model_copy(update={"variant": variant})
        for stratum, mask in evaluate.strata(part).items():
            found = evaluate.scores(run, part[mask])
            rows += evaluate.rows(named, str(dataset), stratum, found)
    if data.present(run.data):
        rows += _shares(run, "audit", _audit(run))
    quality = json.loads((folder / "judge.json").read_text())
    known = {key: (quality[hits], quality[n]) for key, (hits, n) in JUDGED.items() if n in quality}
    return rows + _shares(run, "judge", known)


def _classified(
    run: Run, train: pd.DataFrame, tests: dict[str, pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """Verdicts on the main test set, and by cross-validation on data without a training part."""
    test, *others = tests.values()
    for name in NAMES:
        yield _verdicts(name, test, predict(name, train, test, seed=run.seed))
    # The negative control.
    mixed = train["label"].sample(frac=1, random_state=run.seed).to_numpy()
    found = predict("logistic-regression", train.assign(label=mixed), test, seed=run.seed)
    yield _verdicts("shuffled-words", test, found)
    for other in others:
        for name in NAMES:
            found = cross_validate(name, other, folds=run.baselines.folds, seed=run.seed)
            yield _verdicts(name, other, found)


def _encoded(
    run: Run, train: pd.DataFrame, tests: dict[str, pd.DataFrame], encoder: Path
) -> Iterator[pd.DataFrame]:
    fitted = encoders.fit(
        encoder,
        train["statement"].tolist(),
        (train["label"] == "unethical").astype(int).to_numpy(),
        epochs=run.baselines.encoder_epochs,
        lr=run.baselines.encoder_lr,
        seed=run.seed,
    )
    for test in tests.values():
        best = encoders.logits(fitted, test["statement"].tolist()).argmax(1)
        yield _verdicts("encoder", test, [prompts.LABELS[k] for k in best])


def _verdicts(
    variant: str, test: pd.DataFrame, found: Sequence[str] | NDArray[Any]
) -> pd.DataFrame:
    named = {"variant": variant, "dataset": test.attrs["dataset"], "gold": test["label"]}
    return test.assign(**named, verdict=found)[COLUMNS]


def _judge(run: Run, train: pd.DataFrame, encoder: Path, where: Path) -> dict[str, int]:
    """Train the judge of reasons; how it and the stance judge do on human reasons, as counts.

    Empty if too few rows have a reason. What it says of each held-out pair goes to
    ``checks.jsonl``.
    """
    settings, seed = run.baselines, run.seed
    written = train[train["reason"].str.strip() != ""]
    if settings.judge_rows:
        written = written.sample(min(settings.judge_rows, len(written)), random_state=seed)
    held = written.sample(frac=0.25, random_state=seed)
    learned = written.drop(held.index).reset_index(drop=True)
    if not judges.enough(learned):
        return {}
    pairs = judges.judge_pairs(learned, seed)
    judge = encoders.fit(
        encoder,
        pairs["statement"].tolist(),
        pairs["aligned"].to_numpy(),
        pairs=pairs["reason"].tolist(),
        epochs=settings.judge_epochs,
        lr=settings.encoder_lr,
        seed=seed,
    )
    encoders.save(judge, where / "judge")
    checks = judges.judge_pairs(held.reset_index(drop=True), seed)
    asked, given = checks["statement"].tolist(), checks["reason"].tolist()
    checks["says"] = encoders.logits(judge, asked, pairs=given).argmax(1)
    records.write(where / "checks.jsonl", checks[["kind", "aligned", "says"]])
    stance = judges.stance_accuracy(*(list(written[k]) for k in ("reason", "label")), seed=seed)
    right = round(stance.value * stance.n)
    return {**judges.judge_quality(checks), "stance_right": right, "stance": stance.n}


def _shares(run: Run, variant: str, counts: dict[str, tuple[int, int]]) -> Rows:
    """Counts of how many as rows about the main data set; nothing of none is no row."""
    named = run.model_copy(update={"variant": variant})
    found = {name: metrics.share(*pair) for name, pair in counts.items() if pair[1]}
    return evaluate.rows(named, data.main(run.data), "all", found)


def _audit(run: Run) -> dict[str, tuple[int, int]]:
    """The overlap of training and test file, whole: how many of how many.

    Reasons are compared twice: as the run reads them and, where their encoding was repaired, as
    the file has them. DFAR's statements are also looked up in ETHICS justice, where many of them
    come from: ``label_flips`` is the share of those found whose label is the opposite there.
    """
    dfar = data.main(run.data) == "dfar"
    train, test = data.whole(run.data, "train"), data.whole(run.data, "test")
    overlap = audit.overlap(train, test)
    counts = {
        "test_in_train": (overlap.shared, len(test)),
        "same_label": (overlap.same_label, overlap.shared),
        "same_reason": (overlap.same_reason, overlap.shared),
    }
    if dfar:
        flips = audit.label_flips(pd.concat([train, test]), data.whole_justice())
        counts["label_flips"] = (int(flips["flipped"].sum()), len(flips))
    if dfar and run.data.repair_encoding:
        raw = audit.overlap(*(data.dfar("dfar", part, "official") for part in ("train", "test")))
        counts["same_reason_as_published"] = (raw.same_reason, raw.shared)
    return counts


def classifier(name: str, seed: int) -> Any:
    """A fresh scikit-learn pipeline from texts to labels; its name is one of ``NAMES``."""
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
    return make_pipeline(TfidfVectorizer(), models[name])


def predict(name: str, train: pd.DataFrame, test: pd.DataFrame, *, seed: int) -> NDArray[Any]:
    """Labels of the test statements, shape (n,), from a classifier fitted to the training rows.

    With one training label only, that label is the answer.
    """
    name = name if train["label"].nunique() > 1 else "majority"
    fitted = classifier(name, seed).fit(list(train["statement"]), list(train["label"]))
    labels: NDArray[Any] = fitted.predict(list(test["statement"]))
    return labels


def cross_validate(name: str, table: pd.DataFrame, *, folds: int = 10, seed: int) -> NDArray[Any]:
    """Each row's label from a classifier that has not seen it (stratified folds, shuffled).

    The protocol of the ETHOS authors for data without a split, less their grid search.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    texts, labels = (np.asarray(table[key], object) for key in ("statement", "label"))
    found: NDArray[Any] = cross_val_predict(classifier(name, seed), texts, labels, cv=parts)
    return found
