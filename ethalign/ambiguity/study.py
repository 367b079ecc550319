"""The ambiguity study: what it is made of, and what its stages depend on."""

from __future__ import annotations

from pathlib import Path

from ethalign.ambiguity import claims, data, encode, evaluate, finetune
from ethalign.ambiguity.settings import Run
from ethalign.config import PACE, UserError
from ethalign.study import Rows, Stage, Study

BASE = "ceiling"
_TRAIN = tuple(f"data.{key}" for key in ("source", "train", "limit_train", "shuffle_labels"))
_PARTS = tuple(f"votes.{key}" for key in ("dataset", "split", "held_out"))
_ROWS = ("data", "tuning.rows", *_PARTS)
_ASKED = ("model", "prompt", "votes.answers", "votes.target", "votes.max_words")


def preflight(run: Run) -> None:
    """Refuse rows that cannot be used, and what no server can do."""
    data.splits(run)
    tuned = run.tuning.enabled or run.votes.target == "verbalised"
    if run.endpoint.url and (tuned or run.prompt.template != "plain"):
        wanted = "prompt.template=plain and --variant zero-shot"
        raise UserError(f"a model behind an endpoint is asked as it is; choose {wanted}.")


def work(run: Run, stage: str) -> int:
    """Rows to tune on, or to score."""
    rows = data.splits(run)
    tuning = stage == "finetune"
    return run.tuning.epochs * len(rows.train) if tuning else len(rows.held_out) + len(rows.test)


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json`` from the records in a folder, and of the ceiling from votes."""
    bounds = encode.bounds(run) if run.variant == BASE else []
    return bounds + evaluate.measure(run, folder, before)


STUDY = Study(
    name="ambiguity",
    title="Fine-Tuning LMs for Ethical Ambiguity",
    run=Run,
    stages=(
        Stage(
            "explore",
            reads=_ROWS,
            files=lambda run: data.files(run, "train", "test", "anecdotes-votes"),
            variant=BASE,
        ),
        Stage(
            BASE,
            reads=(*_ROWS, "baselines", "evaluation.bootstrap", "votes.draws", "votes.bins"),
            compute=encode.compute,
            files=encode.files,
            models=("baselines.encoder",),
            variant=BASE,
            outputs=("predictions.jsonl", "metrics.json"),
        ),
        Stage(
            "finetune",
            reads=(*_TRAIN, *_PARTS, *_ASKED, "tuning"),
            compute=finetune.compute,
            files=lambda run: data.files(run, "train"),
            models=("model.id",),
            needs="tuning.enabled",
            outputs=("adapter", "train_log.jsonl", "examples.jsonl"),
            scratch=("checkpoint",),
        ),
        Stage(
            "evaluate",
            reads=(
                *("data.source", "data.train", "data.test", "data.limit_test", "votes.bins"),
                *(*_PARTS, *_ASKED, "evaluation", "endpoint.url", "endpoint.top"),
            ),
            compute=evaluate.compute,
            handles=PACE,
            files=lambda run: data.files(run, "train", "test"),
            models=("model.id",),
            follows=("finetune",),
            outputs=("predictions.jsonl", "metrics.json"),
        ),
        Stage("results", reads=("reported",), variant=BASE, follows=(BASE, "evaluate")),
    ),
    sources=data.SOURCES,
    datasets=dict.fromkeys(data.SPLITS, data.table),
    preflight=preflight,
    work=work,
    order=(
        *("zero-shot", *claims.TUNED, *(f"encoder-{loss}" for loss in encode.LOSSES)),
        *(*claims.FLOORS, *claims.CHOSEN),
    ),
    main="dilemmas",
    texts=("prompt", "completion"),
    claims=claims.contrast,
    measure=measure,
)
