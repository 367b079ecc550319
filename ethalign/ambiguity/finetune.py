"""Fine-tuning on votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ethalign import calibration, records, tuning
from ethalign.ambiguity import data, prompts
from ethalign.ambiguity.settings import Run


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Tune adapters on the training rows; the first example goes to ``examples.jsonl``.

    Returns:
        Facts of the training, data set and number of rows, and the mean entropy of their votes.
    """
    train = data.training(run)

    def make(tokenizer: Any) -> Any:
        first = prompts.examples(run, train, 0, tokenizer)[:1]
        records.write(where / "examples.jsonl", pd.DataFrame(first))
        return lambda epoch: prompts.examples(run, train, epoch, tokenizer)

    entropy = round(float(calibration.entropy(data.counts(train)).mean()), 6)
    known = {"dataset": train.attrs["dataset"], "rows": len(train), "entropy": entropy}
    return {**tuning.stage(run, where, make), **known}
