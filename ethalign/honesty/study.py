"""The honesty study: can a model learn to decline what it does not know, and only that?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ethalign import endpoint, models
from ethalign.config import PACE, ROOT, SERVER, UserError, digest
from ethalign.honesty import claims, data, evaluate, finetune, judges, knowledge
from ethalign.honesty.settings import Run
from ethalign.honesty.targets import METHODS
from ethalign.study import Rows, Shown, Stage, Study

BASE = "knowledge"
JUDGE = (
    *("honesty.match", "honesty.judge", "honesty.judge_model", "honesty.consistent"),
    *SERVER,
)


def preflight(run: Run) -> None:
    """Refuse what can be refused before anything is loaded.

    Raises:
        UserError: one of ``data.train`` and ``data.test`` without the other, rows that cannot be
            used, or ``data.shuffle_labels`` with a method that it does not fit.
    """
    if (run.data.train is None) != (run.data.test is None):
        raise UserError("give both data.train and data.test, or neither.")
    control = run.data.shuffle_labels and run.tuning.enabled
    if control and run.honesty.method != "absolute":
        raise UserError("data.shuffle_labels is the control of honesty.method=absolute alone.")
    if run.honesty.checkpoint and run.tuning.enabled and run.honesty.method in METHODS:
        raise UserError("honesty.checkpoint needs tuning.enabled=false: it is tuned already.")
    if run.honesty.probes:
        data.probes(run)
    _sizes(run)
    endpoint.check(run.endpoint, tuned=run.tuning.enabled)
    if run.honesty.checkpoint and not run.served:
        models.known(run.honesty.checkpoint)
    if run.honesty.judge == "endpoint":
        endpoint.Client(run.endpoint, run.honesty.judge_model)
    else:
        models.known(run.honesty.judge_model)


_SIZES: dict[str, tuple[int, int]] = {}


def _sizes(run: Run) -> tuple[int, int]:
    """How many questions the pool and the test sets have.

    The files hold some forty thousand questions. Every job of a run or a sweep asks, and nearly
    always about the same rows: these are read once.
    """
    files = (data.pool_files(run) | data.test_files(run)).values()
    rows = run.values(("data", "seed", "honesty.pool", "honesty.split", "honesty.limits"))
    key = digest([rows, [path.stat().st_mtime_ns for path in files if path.exists()]])
    if key not in _SIZES:
        _SIZES[key] = len(data.pool(run)), sum(map(len, data.tests(run).values()))
    return _SIZES[key]


def _judge(run: Run) -> dict[str, Path]:
    """The weights of a judge in a local folder; another one is known by its name."""
    folder = Path(run.honesty.judge_model)
    return {"judge": folder} if run.honesty.judge != "endpoint" and folder.is_dir() else {}


def work(run: Run, stage: str) -> int:
    """Rows to tune on, or answers to write."""
    (pool, tests), own = _sizes(run), run.honesty
    rows = min(run.tuning.rows or pool, pool)
    each = own.samples if own.method == "multisample" and not own.merge else 1
    if stage == BASE:
        return pool + own.samples * rows
    if stage == "finetune":
        return run.tuning.epochs * rows * each
    return tests


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json`` from the records in a folder."""
    rows = knowledge.measure if run.variant == BASE else evaluate.measure
    return rows(run, folder, before)


def worded(run: Run) -> pd.DataFrame:
    """Everything that a run asks, in words."""
    asked = pd.DataFrame(evaluate.inquiries(run, data.tests(run)))
    more = data.requests(run.honesty.requests).assign(part="requests", dataset="requests")
    return pd.concat([asked, more])


STUDY = Study(
    name="honesty",
    title="Alignment for Honesty",
    run=Run,
    stages=(
        Stage(
            "explore",
            reads=("data", "honesty.pool", "honesty.split", "honesty.limits"),
            files=lambda run: data.pool_files(run) | data.test_files(run),
            variant=BASE,
        ),
        Stage(
            BASE,
            reads=(
                *("data.source", "data.train", "data.limit_train", "model", "prompt.template"),
                *("evaluation", "tuning.rows", "honesty.pool", "honesty.samples"),
                *("honesty.split", "honesty.mix", "honesty.probes"),
                *("honesty.temperature", "honesty.judged", "honesty.own_questions"),
                *("honesty.own_tries", *JUDGE),
            ),
            compute=knowledge.compute,
            handles=(*PACE, "endpoint.top"),
            files=lambda run: data.pool_files(run) | data.probed_files(run) | _judge(run),
            models=("model.id",),
            variant=BASE,
            outputs=(
                *("greedy.jsonl", "mixed.jsonl", "knowledge.jsonl", "judged.jsonl", "pkqa.jsonl"),
                *("funnel.json", "metrics.json"),
            ),
            scratch=(judges.SPENT,),
            alone=True,
        ),
        Stage(
            "finetune",
            reads=(
                *("data.shuffle_labels", "model", "prompt.template", "tuning"),
                *("honesty.method", "honesty.tau", "honesty.behaviour", "honesty.sentence"),
                "honesty.merge",
            ),
            compute=finetune.compute,
            models=("model.id",),
            needs="tuning.enabled",
            follows=(BASE,),
            outputs=("taught.jsonl", "train_log.jsonl", "adapter"),
            scratch=("checkpoint",),
        ),
        Stage(
            "evaluate",
            reads=(
                *("data.source", "data.test", "data.limit_test", "model", "prompt.template"),
                *("evaluation", "honesty.method", "honesty.limits", "honesty.form"),
                *("honesty.requests", "honesty.checkpoint", *JUDGE),
            ),
            compute=evaluate.compute,
            handles=(*PACE, "endpoint.top"),
            files=lambda run: data.test_files(run) | {"requests": data.REQUESTS} | _judge(run),
            models=("model.id", "honesty.checkpoint"),
            follows=("finetune", BASE, "evaluate:unaligned"),
            outputs=("predictions.jsonl", "metrics.json"),
            scratch=(judges.SPENT,),
        ),
        Stage(
            "results",
            reads=("honesty.tau", "reported"),
            files=lambda run: {"reported": ROOT / run.reported} if run.reported else {},
            variant=BASE,
            follows=(BASE, "evaluate"),
        ),
    ),
    sources=data.SOURCES,
    datasets={name: data.table for names in data.SETS.values() for name in names},
    preflight=preflight,
    work=work,
    order=claims.ORDER,
    before=dict.fromkeys(claims.ORDER[1:-1], "unaligned"),
    place=3,
    main="triviaqa",
    question="Can a model learn to decline what it does not know, without declining what it does?",
    # Of the paper's methods the one that it prints for three model sizes.
    headline="confidence-verb-beats-unaligned",
    words={
        "grades": "grades against a line",
        "transfer": "on other questions",
        "asking": "asking alone",
        "equal": "at an equal number of refusals",
        "selection": "right where it is sure",
        "form": "the form of an answer",
        "unaligned": "the model as it is",
        "prompt-based": "asked to be honest",
        "fine-tuned": "right answers alone",
        "absolute": "ABSOLUTE",
        "absolute-paper": "ABSOLUTE, the paper's reading",
        "absolute-paper-50": "ABSOLUTE, the paper's reading at one half",
        "confidence-num": "CONFIDENCE-NUM",
        "confidence-verb": "CONFIDENCE-VERB",
        "multisample": "MULTISAMPLE",
        "shuffled": "taught random refusals (control)",
        "triviaqa": "TriviaQA",
        "nonambigqa": "Non-AmbigQA",
        "puqa": "PUQA",
        "pkqa": "PKQA",
        "mmlu": "MMLU",
        "eval-p": "Eval-P⁻",
        "papers": "papers that do not exist",
        "requests": "requests for help",
        "idk": "declined",
        "correct": "right answers",
        "over_conservativeness": "over-conservativeness",
        "honesty_equal": "honesty at equal refusals",
        "refusal_auroc": "AUROC of declining",
        "fit": "log-likelihood of good responses",
        "augrc": "risk where it answers",
        "accuracy_answered": "accuracy of what is answered",
        "idk_plain": "declined, as they are",
        "idk_rephrased": "declined, in other words",
        "same_rephrased": "the same decision in other words",
        "idk_prefixed": "declined, behind a sentence",
        "same_prefixed": "the same decision behind a sentence",
        "idk_told": "declined, with the answer in the prompt",
        "accuracy_told": "right, with the answer in the prompt",
        "pkqa-own": "questions of its own",
        "said-twice": "what it said twice",
    },
    texts=(
        *("question", "paraphrase", "answer", "answers", "prompt", "completion"),
        *("greedy_pred_text", "sampling_pred_text"),
    ),
    claims=claims.contrast,
    measure=measure,
    facts=claims.facts,
    shown=Shown(
        fields={"dataset": "data", "part": "part"},
        share=lambda rows: np.exp(rows["logp"].to_numpy(float)),
        of="its own answer, per token",
        texts=worded,
        words={"question": "question", "answers": "accepted answers"},
        wrote="answer",
    ),
)
