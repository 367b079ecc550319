"""Fine-tuning on votes."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ethalign import calibration, metrics, records, tuning
from ethalign.ambiguity import data, evaluate, prompts
from ethalign.ambiguity.settings import Run


class Learnt(NamedTuple):
    """The kept epoch, its mean training loss in the end, and that of a guess; see ``learnt``."""

    epoch: int
    loss: metrics.Estimate
    blind: float
    verdict: str


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Tune adapters on the training rows; the first example goes to ``examples.jsonl``.

    Of several epochs the one is kept after which the model is closest to the votes of the
    calibration split. Facts are those of the training, the data set, its rows, the mean entropy
    of their votes, and the loss of a guess (``blind``).
    """
    train = data.training(run)
    known: dict[str, Any] = {"dataset": train.attrs["dataset"]}
    known["entropy"] = round(float(calibration.entropy(data.counts(train)).mean()), 6)

    def make(tokenizer: Any) -> Any:
        taught = functools.partial(prompts.examples, run, train, tokenizer=tokenizer)
        records.write(where / "examples.jsonl", pd.DataFrame(taught(0)[:1]))
        known["blind"] = blind(run, taught(0), tokenizer)
        return taught

    judge = functools.partial(evaluate.judge, run, data.held_out(run))
    judged = judge if run.tuning.epochs > 1 else None
    return {**tuning.stage(run, where, make, judged, len(train)), **known}


def blind(run: Run, rows: list[tuning.Example], tokenizer: Any) -> float | None:
    """The loss per target token of who knows how often each answer is right, and no item.

    For two answers in both orders this is a coin toss: ln 2 for the answer and nothing for its
    end, divided by its tokens. None if the loss holds more than answers.
    """
    if run.tuning.loss == "sequence" or run.tuning.packing:
        return None
    taught: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        taught[row.completion] += row.share
        taught[row.other] += 1 - row.share
    tokens = [len(tokenizer(r.completion, add_special_tokens=False)["input_ids"]) for r in rows]
    entropy = calibration.entropy([[*taught.values()]])[0]
    return round(float(entropy / (np.mean(tokens) + run.tuning.append_eos)), 6)


def learnt(folder: Path) -> Learnt | None:
    """Did tuning learn anything of its training rows? From the records in a run folder.

    ``learnt`` if the mean loss over the second half of the kept epoch's updates lies below that of
    a guess with its whole interval, ``not learnt`` if it does not, ``not known`` without that
    number. (The first half of a first epoch is spent on the form of the answer.) Records from
    before it was noted stand for answers of one token and their end. None without a log.
    """
    log = pd.DataFrame(records.read_rows(folder / "train_log.jsonl"))
    if log.empty:
        return None
    kept = log.sort_values("held_out").iloc[0] if "held_out" in log else log.iloc[-1]
    epoch, facts = int(kept["epoch"]), records.stages(folder).get("finetune", {})
    known = math.nan if folder.parent.name == "verbalised" else math.log(2) / 2
    level = float(facts.get("blind", known) or math.nan)
    losses = log.loc[log["epoch"] == epoch, "loss"].to_numpy(float)
    loss = metrics.bootstrap(np.mean, losses[len(losses) // 2 :], seed=0)
    verdict = "learnt" if loss.high < level else "not learnt"
    return Learnt(epoch, loss, level, verdict if level == level else "not known")


def facts(reference: pd.DataFrame, home: Path) -> dict[str, Any]:
    """``learnt``: variant to training loss, that of a guess and verdict, of the first model.

    ``largest_learnt``: the same of the last.
    """
    told: dict[str, dict[str, Any]] = {}
    for path in records.of_runs(home, "*/*/0/train_log.jsonl"):
        if found := learnt(path.parent):
            numbers = {"loss": found.loss.value, "blind": found.blind}
            shown = {key: metrics.shown(value, "nats") for key, value in numbers.items()}
            variant, model = path.parts[-3], path.parts[-4]
            told.setdefault(model, {})[variant] = {**shown, "verdict": found.verdict}
    models = [*told.values()] or [{}]
    return {"learnt": models[0], "largest_learnt": models[-1]}
