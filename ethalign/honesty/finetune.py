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

    ``honesty.merge`` makes equal answers to one question one row of that weight: the same loss
    with fewer tokens and updates. ``data.shuffle_labels`` is the negative control of ABSOLUTE: as
    many questions are declined, but drawn at random; the others get a right answer, as there.
    """
    rows, given, method = list(probed), run.honesty, cast(targets.Method, run.honesty.method)
    how: Any = {"tau": given.tau, "behaviour": given.behaviour, "sentence": given.sentence}
    how["seed"] = run.seed
    taught = [targets.training_target(method, row, **how) for row in rows]
    if run.data.shuffle_labels:
        right = [targets.training_target("fine-tuned", row, **how) for row in rows]
        taught = list(_shuffled(run, rows, taught, right))
    found = []
    for row, target in zip(rows, taught, strict=True):
        asked = prompts.question(row, run.prompt.template, honest=True, tokenizer=tokenizer)
        texts = [target] if isinstance(target, str) else target
        weights = Counter(texts).items() if given.merge else [(text, 1) for text in texts]
        found += [Example(asked, f" {text}", float(times)) for text, times in weights]
    return found


def _shuffled(run: Run, rows: list[Any], taught: list[Any], right: list[Any]) -> list[str]:
    """The flag *known* of the questions that have an answer, drawn anew, and nothing else."""
    idk, open_ = targets.IDK[run.honesty.sentence], [k for k, r in enumerate(rows) if r["answers"]]
    flags = np.random.default_rng(run.seed).permutation([taught[k] == idk for k in open_])
    drawn = {k: idk if no else str(right[k]) for k, no in zip(open_, flags, strict=True)}
    return [drawn.get(k, idk) for k in range(len(rows))]
