"""The fine-tuning stage: adapters, and what the tuned model says to the first training rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ethalign import generation, records, tuning
from ethalign.reasons import data, prompts
from ethalign.reasons.settings import Run

# How many rows `answers.jsonl` shows, and tokens of each answer.
SHOWN, LENGTH = 3, 40


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """The stage: ``adapter/``, ``train_log.jsonl`` and, as a sanity check, ``answers.jsonl``."""
    rows = data.tuned(run)
    make = functools.partial(prompts.examples, run.prompt, rows)
    facts = tuning.stage(run, where, make, pool=len(rows))
    loaded, first = tuning.with_adapter(run.model, where / "adapter", seed=run.seed), rows[:SHOWN]
    shown = prompts.examples(run.prompt, first, loaded.tokenizer)
    asked = [example.prompt for example in shown]
    answers = generation.generate(
        loaded.model, loaded.tokenizer, asked, max_new_tokens=LENGTH, seed=run.seed
    )
    told = first[["id", "statement", "label"]]
    told = told.assign(
        prompt=asked, completion=[example.completion for example in shown], answer=answers
    )
    records.write(where / "answers.jsonl", told)
    return facts
