"""Fine-tuning on votes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import calibration, records, tuning
from ethalign.ambiguity import data, prompts
from ethalign.ambiguity.settings import Run


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Tune adapters on the training rows; the first example goes to ``examples.jsonl``.

    Facts are those of the training, the data set, its rows, and the mean entropy of their votes.
    """
    train = data.training(run)

    def make(tokenizer: Any) -> Any:
        taught = functools.partial(prompts.examples, run, train, tokenizer=tokenizer)
        records.write(where / "examples.jsonl", pd.DataFrame(taught(0)[:1]))
        return taught

    entropy = round(float(calibration.entropy(data.counts(train)).mean()), 6)
    known = {"dataset": train.attrs["dataset"], "rows": len(train), "entropy": entropy}
    return {**tuning.stage(run, where, make), **known}
