"""Fine-tuning to decline: what the probed questions teach, and the training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ethalign import records, tuning
from ethalign.honesty import prompts, targets
from ethalign.honesty.scores import is_idk
from ethalign.honesty.settings import Run
from ethalign.tuning import Example


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Tune on what was probed; writes ``taught.jsonl``, ``train_log.jsonl`` and ``adapter/``."""

    def make(tokenizer: Any) -> list[Example]:
        probed = records.read_rows(before["knowledge"] / "knowledge.jsonl")
        taught = examples(run, probed, tokenizer)
        rows = [{**e._asdict(), "declines": is_idk(e.completion, "")} for e in taught]
        records.write(where / "taught.jsonl", pd.DataFrame(rows))
        return taught

    return tuning.stage(run, where, make)


def examples(run: Run, probed: Iterable[Mapping[str, Any]], tokenizer: Any) -> list[Example]:
    """What the variant's method teaches about the rows of ``knowledge.jsonl``, one epoch.

    Equal answers to one question become one row of that weight: the same loss, fewer tokens.
    ``data.shuffle_labels`` is the negative control of ABSOLUTE: as many questions are declined,
    but drawn at random; the others are answered as the model did, right or wrong.
    """
    rows, given, method = list(probed), run.honesty, cast(targets.Method, run.honesty.method)
    how: Any = {"tau": given.tau, "behaviour": given.behaviour, "sentence": given.sentence}
    taught = [targets.training_target(method, row, seed=run.seed, **how) for row in rows]
    if run.data.shuffle_labels:
        taught = list(_shuffled(run, rows, taught))
    found = []
    for row, target in zip(rows, taught, strict=True):
        asked = prompts.question(row, run.prompt.template, honest=True, tokenizer=tokenizer)
        for text, times in Counter([target] if isinstance(target, str) else target).items():
            found.append(Example(asked, f" {text}", float(times)))
    return found


def _shuffled(run: Run, rows: list[Any], taught: list[Any]) -> list[str]:
    idk = targets.IDK[run.honesty.sentence]
    declined = np.random.default_rng(run.seed).permutation([t == idk for t in taught])
    return [
        idk if no else str(row["greedy_pred_text"]).strip() or targets.gold(row) or idk
        for no, row in zip(declined, rows, strict=True)
    ]
