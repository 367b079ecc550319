"""The reasons study: what it consists of."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from scipy.special import expit

from ethalign import endpoint
from ethalign.config import PACE, SERVER, UserError
from ethalign.data import limit
from ethalign.reasons import baselines, claims, data, evaluate, finetune, scores
from ethalign.reasons.settings import Run
from ethalign.study import Rows, Shown, Stage, Study

_TRAIN = "source train test columns labels limit_train drop_shared repair_encoding shuffle_labels"
#: As many statements are scored in the time of one text, by the records of the smallest model.
WRITTEN = 12


def preflight(run: Run) -> None:
    """Refuse tables that are missing, off their schema, or the same for training and test."""
    data.tests(run)
    data.untouched(run.data, run.seed)
    written = run.evaluation.generate and run.evaluation.limit_generate != 0
    if run.prompt.target == "reason-label" and not written:
        raise UserError(
            "a label that comes after a reason is scored behind the model's own; let it write"
            " (evaluation.generate, evaluation.limit_generate), or choose other variants."
        )
    if run.endpoint.url and not run.endpoint.server:
        raise UserError("a server takes part here with endpoint.api=completions alone.")
    endpoint.check(run.endpoint, tuned=run.tuning.enabled)


def work(run: Run, stage: str) -> int:
    """Rows to tune on; or to score, where a text to write counts as ``WRITTEN`` of them."""
    if stage == "finetune":
        return run.tuning.epochs * len(data.tuned(run))
    tests = data.tests(run).values()
    most = run.evaluation.limit_generate if run.evaluation.generate else 0
    scored = run.evaluation.threshold_rows + sum(map(len, tests))
    return scored + WRITTEN * sum(len(limit(test, most, 0)) for test in tests)


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json`` from the records in a folder."""
    rows = baselines.measure if run.variant == "baselines" else scores.measure
    return rows(run, folder, before)


STUDY = Study(
    name="reasons",
    title="Beyond Labels",
    run=Run,
    stages=(
        Stage("explore", reads=("data", "tuning.rows"), files=data.files, variant="baselines"),
        Stage(
            "baselines",
            reads=("data", "tuning.rows", "baselines", "evaluation.bootstrap"),
            handles=("model.device",),
            compute=baselines.compute,
            files=data.files,
            models=("baselines.encoder",),
            variant="baselines",
            outputs=("predictions.jsonl", "checks.jsonl", "judge", "judge.json", "metrics.json"),
        ),
        Stage(
            "finetune",
            reads=(*(f"data.{key}" for key in _TRAIN.split()), "model", "prompt", "tuning"),
            compute=finetune.compute,
            files=lambda run: data.files(run, "train", *["test"] * run.data.drop_shared),
            models=("model.id",),
            needs="tuning.enabled",
            outputs=("adapter", "train_log.jsonl", "answers.jsonl"),
            scratch=("checkpoint",),
        ),
        Stage(
            "evaluate",
            reads=(
                *("data", "model", "prompt", "evaluation", "baselines.encoder"),
                *("tuning.rows", "tuning.enabled", "tuning.append_eos", *SERVER),
            ),
            compute=evaluate.compute,
            handles=(*PACE, "endpoint.top"),
            files=lambda run: data.files(run, "train", "test", "cross"),
            models=("model.id", "baselines.encoder"),
            follows=("finetune", "baselines"),
            outputs=(
                *("threshold.jsonl", "predictions.jsonl", "judgements.jsonl"),
                "metrics.json",
            ),
        ),
        Stage(
            "results",
            reads=("data.source", "data.test", "reported"),
            variant="baselines",
            follows=("baselines", "evaluate"),
        ),
    ),
    sources=data.SOURCES,
    datasets=data.DATASETS,
    preflight=preflight,
    work=work,
    order=(
        *("chance", *baselines.NAMES, "encoder", "shuffled-words"),
        *("pretrained", "L", "L-leak-free", "LR", "R-then-L", "shuffled"),
    ),
    before={"L": "pretrained", "LR": "L"},
    place=1,
    main="dfar",
    question="Does tuning on labels and human reasons beat tuning on labels alone?",
    headline="lr-beats-l",
    words={
        "strata": "on other rows",
        "readings": "by other readings of the same answers",
        "misalignment": "misaligned reasons, by the learned judge",
        "pretrained": "the model as it is",
        "L": "labels alone (L)",
        "LR": "labels and reasons (L+R)",
        "R-then-L": "reason first, then label",
        "L-leak-free": "labels alone, without the leak",
        "shuffled": "permuted labels (control)",
        "logistic-regression": "logistic regression",
        "svm": "SVM",
        "random-forest": "random forest",
        "gradient-boosting": "gradient boosting",
        "encoder": "sentence encoder",
        "shuffled-words": "permuted labels, classifier",
        "majority": "the more frequent label",
        "dfar": "DFAR",
        "ethos": "ETHOS",
        "distant": "rows unlike any in the training file",
        "untied": "rows without a tied vote",
        "accuracy_text": "accuracy, read in texts",
        "accuracy_prior": "accuracy, prior-corrected",
        "misalignment_stance": "misaligned reasons, by stance",
        "misalignment_judge": "misaligned reasons, by the learned judge",
        "says_unethical": "says unethical",
        "chrf": "chrF",
    },
    texts=("generated", "reason", "statement", "prompt", "completion", "answer"),
    claims=claims.contrast,
    measure=measure,
    facts=claims.facts,
    shown=Shown(
        fields={"dataset": "data", "stratum": "stratum", "gold": "people say"},
        share=lambda rows: expit(scores.margins(rows)) if "logp_ethical" in rows else None,
        of="unethical",
        texts=lambda run: pd.concat(data.tests(run).values()),
        words={"statement": "statement", "reason": "people's reason"},
        wrote="reason",
        flagged=("ethos",),
    ),
)
