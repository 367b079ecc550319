"""The ambiguity study: what it is made of, and what its stages depend on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ethalign import endpoint
from ethalign.ambiguity import claims, data, encode, evaluate, finetune
from ethalign.ambiguity.settings import Run
from ethalign.config import PACE, SERVER, UserError
from ethalign.study import Rows, Shown, Stage, Study

BASE = "ceiling"
_TRAIN = tuple(f"data.{key}" for key in ("source", "train", "limit_train", "shuffle_labels"))
_PARTS = tuple(f"votes.{key}" for key in ("dataset", "split", "held_out"))
_ROWS = ("data", "tuning.rows", *_PARTS)
# The answers to stories in words, of all five and reduced to two.
_ANSWERS = {name: name.upper() for name in (*data.FIVE, "right", "wrong")}
_ASKED = ("model", "prompt", *(f"votes.{k}" for k in ("answers", "target", "swap", "max_words")))


def preflight(run: Run) -> None:
    """Refuse rows that cannot be used, and what no server can do."""
    data.splits(run)
    endpoint.check(run.endpoint, tuned=run.tuning.enabled)
    tuned = run.tuning.enabled or run.votes.target == "verbalised"
    chat = run.endpoint.url and not run.endpoint.server
    if chat and (tuned or run.prompt.template != "plain"):
        wanted = "prompt.template=plain and --variant zero-shot"
        raise UserError(f"a model behind an endpoint is asked as it is; choose {wanted}.")
    if run.votes.target == "soft" and run.tuning.packing:
        raise UserError("joined rows have no shares of votes; choose tuning.packing=false.")


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
            handles=("model.device",),
            files=encode.files,
            models=("baselines.encoder",),
            variant=BASE,
            outputs=("predictions.jsonl", "metrics.json"),
        ),
        Stage(
            "finetune",
            reads=(*_TRAIN, *_PARTS, *_ASKED, "tuning"),
            compute=finetune.compute,
            handles=("evaluation.batch_size",),
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
                *(*_PARTS, *_ASKED, "evaluation", *SERVER, "endpoint.top"),
            ),
            compute=evaluate.compute,
            handles=PACE,
            files=lambda run: data.files(run, "train", "test"),
            models=("model.id",),
            follows=("finetune",),
            outputs=("predictions.jsonl", "metrics.json"),
            scratch=("answers.jsonl",),
        ),
        Stage("results", reads=("reported",), variant=BASE, follows=(BASE, "evaluate")),
    ),
    sources=data.SOURCES,
    datasets=dict.fromkeys(data.SPLITS, data.table),
    preflight=preflight,
    work=work,
    order=(
        *("zero-shot", "authors", *claims.TUNED, *(f"encoder-{loss}" for loss in encode.LOSSES)),
        *(*claims.FLOORS, *claims.CHOSEN),
    ),
    place=2,
    main="dilemmas",
    question="Does tuning bring answer probabilities closer to the spread of human votes?",
    headline="tuning-improves-cross-entropy",
    words={
        "more": "what more can mean",
        "stories": "on stories",
        "trivial": "against what reads nothing",
        "targets": "which target is closest to the votes",
        "targets scaled": "the same after one temperature each",
        "what divides": "which pairs divide people",
        "zero-shot": "the model as it is",
        "authors": "asked as in the authors' early code",
        "zero-shot-scaled": "the model as it is, with a temperature",
        "hard": "tuned on majorities",
        "sampled": "tuned on sampled votes",
        "soft": "tuned on all votes",
        "verbalised": "tuned on written shares",
        "encoder-hard": "encoder, majorities",
        "encoder-soft": "encoder, all votes",
        "encoder-counts": "encoder, counts of votes",
        "encoder-dirichlet": "encoder, Dirichlet loss",
        "encoder-shuffled": "encoder, permuted votes (control)",
        "uniform": "a coin toss",
        "mean-votes": "the mean of the votes",
        "majority": "the more frequent answer",
        "human": "five further people",
        "human-posterior": "five further people, as a probability",
        "best": "the best possible",
        "best-tuned": "best target of tuning",
        "best-encoder": "best encoder",
        "best-language-model": "best language model",
        "gpt-4o": "GPT-4o",
        "dilemmas": "DILEMMAS",
        "anecdotes": "ANECDOTES",
        "dilemmas-dev": "DILEMMAS, dev",
        "anecdotes-five": "ANECDOTES, five answers",
        "anecdotes-two": "ANECDOTES, two answers",
        "median_votes": "median of the votes on one",
        "one_vote": "with one vote",
        "top_first": "first answer ahead",
        "top_second": "second answer ahead",
        **{f"top_{name}": f"{word} ahead" for name, word in _ANSWERS.items()},
        "alpha_first": "alpha of the first answer",
        "alpha_second": "alpha of the second answer",
        **{f"alpha_{name}": f"alpha of {word}" for name, word in _ANSWERS.items()},
        "cross_entropy_mean": "cross-entropy of their mean",
        "cross_entropy_uniform": "cross-entropy of a coin toss",
        "cross_entropy_scaled": "cross-entropy, scaled",
        "dirichlet_nll": "Dirichlet score",
        "dirichlet_nll_fitted": "Dirichlet score, fitted",
        "more_nats": "gain of one score over the other",
        "more_percent": "the same in per cent",
        "more_raw": "the same with raw mass",
        "entropy_correlation": "correlation of entropies",
        "entropy_votes": "entropy of the votes",
        "entropy_scaled": "entropy, scaled",
        "entropy_gap_scaled": "entropy gap, scaled",
        "total_variation_scaled": "total variation, scaled",
        "calibration_error_scaled": "calibration error, scaled",
        "jensen_shannon": "Jensen-Shannon distance",
        "jensen_shannon_scaled": "Jensen-Shannon distance, scaled",
        "brier_scaled": "Brier score, scaled",
        "first_position": "probability of what stands first",
        "order_flips": "pairs whose verdict changes with the order",
        "order_gap": "gap between the orders",
        "accuracy_one_order": "accuracy, one order",
        "cross_entropy_one_order": "cross-entropy, one order",
    },
    texts=("prompt", "completion"),
    claims=claims.contrast,
    measure=measure,
    facts=finetune.facts,
    shown=Shown(
        fields={
            **{"part": "part", "stratum": "stratum", "gold": "most say"},
            **{"votes1": "votes 1", "votes2": "votes 2"},
        },
        share=lambda rows: evaluate.probabilities(rows)[:, 0],
        of="the first answer",
        texts=lambda run: pd.concat(
            table.assign(part=part, dataset=table.attrs["dataset"])
            for part, table in data.tests(run).items()
        ),
        words={"first": "first action", "second": "second action", "title": "title"},
    ),
)
