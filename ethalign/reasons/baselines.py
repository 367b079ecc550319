"""What needs no language model: text classifiers, an encoder, and the judge of reasons.

Classifiers work on TF-IDF, with scikit-learn's defaults, as in the notebooks of Beyond Labels
(see "The papers, read closely", What was reported).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ethalign import audit, encoders, metrics, models, records
from ethalign.data import limit
from ethalign.reasons import data, judges, prompts, scores
from ethalign.reasons.settings import Run
from ethalign.study import Rows

#: Classifiers that read words and no model, from the simplest on.
NAMES = ("majority", "logistic-regression", "svm", "random-forest", "gradient-boosting")
# How well the judges of reasons do on held-out human ones: counts of `judge.json`.
JUDGED = {
    "judge_sensitivity": ("caught", "misaligned"),
    **{f"judge_sensitivity_{kind}": (f"caught_{kind}", kind) for kind in judges.KINDS},
    "judge_specificity": ("passed", "aligned"),
    "overlap_sensitivity": ("overlap_caught", "misaligned"),
    "stance_accuracy": ("stance_right", "stance"),
}
Fit = Callable[..., encoders.Encoder]
COLUMNS = "variant dataset id stratum seen near family gold verdict".split()  # noqa: SIM905


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """The stage: predictions of all baselines, the learned judge and its error.

    Facts are the device of the encoders, and why that one.
    """
    train, tests = data.training(run.data, run.seed), data.tests(run)
    encoder = models.encoder(run.baselines.encoder, run.seed)
    device, why = models.choose_device(run.model.device)
    how: dict[str, Any] = {"accumulation": run.baselines.encoder_accumulation, "device": device}
    how |= {"lr": run.baselines.encoder_lr, "seed": run.seed}
    fit = functools.partial(encoders.fit, encoder, **how)
    path = where / "predictions.jsonl"
    if not path.is_file():
        found = pd.concat(_classified(run, train, [*tests.values()], fit))
        records.write(path, found.rename(columns={"label": "gold"})[COLUMNS])
    records.write(where / "judge.json", _judge(run, where, fit))
    return {"device": models.device_name(device), "notes": [f"encoders: {why}"]}


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json``; those of the overlap audit only where its files are present."""
    table = pd.DataFrame(records.read_rows(folder / "predictions.jsonl"), columns=COLUMNS)
    rows = scores.by_stratum(run, table, functools.partial(scores.of_verdicts, run))
    quality = json.loads((folder / "judge.json").read_text())
    known = {k: (quality[hits], quality[n]) for k, (hits, n) in JUDGED.items() if hits in quality}
    audited = _audit(run) if data.present(run.data) else {}
    counts: dict[str, dict[str, Any]] = {"audit": audited, "judge": known}
    for variant, pairs in counts.items():
        found = {
            name: pair if isinstance(pair, metrics.Estimate) else metrics.share(*pair)
            for name, pair in pairs.items()
            if pair[-1]  # of nothing
        }
        rows += scores.as_rows(run, variant, data.main(run.data), "all", found)
    return rows


def _classified(
    run: Run, train: pd.DataFrame, tests: list[pd.DataFrame], fit: Fit
) -> Iterator[pd.DataFrame]:
    """Test tables with each ``variant`` and its ``verdict``.

    Data without a training part are cross-validated, but for the encoder.
    """
    settings, seed, (main, *others) = run.baselines, run.seed, tests
    for name in NAMES:
        yield main.assign(variant=name, verdict=classify(name, train, main, seed=seed))
    # The negative control.
    mixed = train.assign(label=train["label"].sample(frac=1, random_state=seed).to_numpy())
    found = classify("logistic-regression", mixed, main, seed=seed)
    yield main.assign(variant="shuffled-words", verdict=found)
    for other in others:
        texts, gold = list(other["statement"]), list(other["label"])
        for name in NAMES:
            model = classifier(name, seed)
            found = cross_validate(model, texts, gold, folds=settings.folds, seed=seed)
            yield other.assign(variant=name, verdict=found)
    unethical = (train["label"] == "unethical").astype(int)
    fitted = fit(list(train["statement"]), unethical, epochs=settings.encoder_epochs)
    for test in tests:
        best = encoders.logits(fitted, list(test["statement"])).argmax(1)
        yield test.assign(variant="encoder", verdict=np.take(prompts.LABELS, best))


def _judge(run: Run, where: Path, fit: Fit) -> dict[str, int]:
    """Train the judge of reasons; how it and the stance judge do on human reasons, as counts.

    Both learn from training rows without any statement of the test file, and are checked on
    others: the judge on pairs from other families of statements (``checks.jsonl``). Empty if it
    would learn from fewer than five reasons of either label.
    """
    from sklearn.model_selection import GroupShuffleSplit

    settings, seed = run.baselines, run.seed
    rows = data.untouched(run.data, seed)
    written = limit(rows[rows["reason"].str.strip() != ""], settings.judge_rows, seed)
    if len(written) < 10:
        return {}
    cut = GroupShuffleSplit(1, test_size=0.25, random_state=seed)
    parts = next(cut.split(written, groups=data.families(written["statement"])))
    learned, held = (written.iloc[part] for part in parts)
    labels = learned["label"].value_counts()
    if len(labels) < 2 or labels.min() < 5:
        return {}
    pairs, checks = judges.judge_pairs(learned, seed), judges.judge_pairs(held, seed)
    told = [(list(table["statement"]), list(table["reason"])) for table in (pairs, checks)]
    judge = fit(told[0][0], pairs["aligned"], pairs=told[0][1], epochs=settings.judge_epochs)
    encoders.save(judge, where / "judge")
    checks["says"] = encoders.logits(judge, *told[1]).argmax(1)
    checks["overlap_says"] = judges.overlap(pairs, checks)
    records.write(where / "checks.jsonl", checks[["kind", "aligned", "says", "overlap_says"]])
    reasons, gold = list(written["reason"]), list(written["label"])
    stance = cross_validate(judges.stance_model(seed), reasons, gold, folds=5, seed=seed)
    right = sum(metrics.right(stance, gold))
    return {**_counts(checks), "stance_right": right, "stance": len(gold)}


def _counts(checks: pd.DataFrame) -> dict[str, int]:
    """Of checked pairs: how many of each kind of wrong reason there are and were ``caught_…``.

    ``misaligned`` are those on the topic of their statement, as the reasons of a model are;
    ``caught`` and ``overlap_caught`` (see ``judges.overlap``) of these. ``passed`` are of the
    ``aligned`` ones.
    """
    kind, flagged = checks["kind"], checks["says"] == 0
    topic, real = kind.isin(["flipped", "reversed"]), kind == "real"
    masks = {"caught": flagged & topic, "misaligned": topic, "passed": ~flagged & real}
    masks |= {"aligned": real, "overlap_caught": topic & (checks["overlap_says"] == 0)}
    for name in judges.KINDS:
        masks |= {name: kind == name, f"caught_{name}": flagged & (kind == name)}
    return {name: int(mask.sum()) for name, mask in masks.items()}


def _audit(run: Run) -> dict[str, tuple[int, int] | metrics.Estimate]:
    """The overlap of training and test file, whole: how many of how many.

    Reasons are compared twice: as the run reads them and, where their encoding was repaired, as
    the file has them. Of the test statements that are not in training, ``near_copy`` resemble a
    training statement in their letters, and ``family_in_train`` open with the same four words.
    DFAR's statements are also looked up in ETHICS justice, where many of them come from:
    ``label_flips`` is the share of those found whose label is the opposite there, and
    ``label_kappa`` how far the labels agree beyond chance.
    """
    train, test = data.whole(run.data, "train"), data.whole(run.data, "test")
    overlap = audit.overlap(train, test)
    clean = test[overlap.clean]
    relatives = data.families(clean["statement"]).isin(data.families(train["statement"]))
    counts: dict[str, tuple[int, int] | metrics.Estimate] = {
        "test_in_train": (overlap.shared, len(test)),
        "same_label": (overlap.same_label, overlap.shared),
        "same_reason": (overlap.same_reason, overlap.shared),
        "family_in_train": (int(relatives.sum()), len(clean)),
    }
    if len(clean):
        counts["near_copy"] = (len(audit.near_duplicates(train, clean)), len(clean))
    if data.main(run.data) == "dfar":
        justice = [data.justice("justice", k, "official") for k in ("train", "test")]
        flips = audit.label_flips(pd.concat([train, test]), pd.concat(justice))
        counts["label_flips"] = (int(flips["flipped"].sum()), len(flips))
        counts["label_kappa"] = audit.label_kappa(flips, draws=run.evaluation.bootstrap)
        if run.data.repair_encoding:
            raw = audit.overlap(*(data.dfar("dfar", k, "official") for k in ("train", "test")))
            counts["same_reason_as_published"] = (raw.same_reason, raw.shared)
    return counts


def classifier(name: str, seed: int) -> Any:
    """A fresh scikit-learn pipeline from texts to labels; its name is one of ``NAMES``."""
    from sklearn import dummy, ensemble, linear_model, svm
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    kinds = {
        "majority": dummy.DummyClassifier(),
        "logistic-regression": linear_model.LogisticRegression(max_iter=1000),
        "svm": svm.SVC(kernel="linear"),
        "random-forest": ensemble.RandomForestClassifier(random_state=seed, n_jobs=1),
        "gradient-boosting": ensemble.GradientBoostingClassifier(random_state=seed),
    }
    return make_pipeline(TfidfVectorizer(), kinds[name])


def classify(name: str, train: pd.DataFrame, test: pd.DataFrame, *, seed: int) -> NDArray[Any]:
    """Labels (n,) of the test statements, after a fit to training rows (or their only label)."""
    name = name if train["label"].nunique() > 1 else "majority"
    fitted = classifier(name, seed).fit(list(train["statement"]), list(train["label"]))
    labels: NDArray[Any] = fitted.predict(list(test["statement"]))
    return labels


def cross_validate(
    model: Any, texts: Sequence[str], labels: Sequence[str], *, folds: int = 10, seed: int
) -> NDArray[Any]:
    """Each text's label from a classifier that has not seen it (stratified folds, shuffled).

    The protocol of the ETHOS authors for data without a split, less their grid search.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    found: NDArray[Any] = cross_val_predict(model, texts, labels, cv=parts)
    return found
