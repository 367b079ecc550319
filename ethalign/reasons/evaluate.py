"""From a model and test items to what it said of them, and what judges make of that.

``predictions.jsonl`` and ``judgements.jsonl`` are slow to make and can be resumed; what they
amount to is measured apart (see ``scores``).
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from ethalign import encoders, generation, models, records, scoring, tuning
from ethalign.data import limit
from ethalign.reasons import data, judges, prompts, scores
from ethalign.reasons.settings import Run
from ethalign.study import Rows

Tables = dict[str, pd.DataFrame]
#: Fields of an item that its row keeps, in order; `tied` only where there are votes.
KEPT = tuple("id dataset stratum seen near family tied gold written".split())  # noqa: SIM905
# A reason that was asked for by itself has at least as many tokens.
LEAST = 8


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """The stage: predictions, and judgements of the reasons."""
    tuned, judge = before.get("finetune"), before["baselines"] / "judge"
    adapter = tuned and tuned / "adapter"
    loaded = tuning.with_adapter(run.model, adapter, seed=run.seed, server=run.endpoint.server)
    tests, most = data.tests(run), longest(run, loaded.tokenizer)
    border = threshold(run, loaded, where / "threshold.jsonl", most)
    predictions = ask(run, loaded, tests, where / "predictions.jsonl", most, border)
    judged = judge.is_dir() and "reason" in predictions
    judgements = judge_reasons(run, predictions, tests, judge) if judged else pd.DataFrame()
    records.write(where / "judgements.jsonl", judgements)
    facts = {"max_new_tokens": most, "threshold": round(border, 5)}
    return {"model": loaded.record, "notes": loaded.notes, **facts}


def longest(run: Run, tokenizer: Any) -> int:
    """How many tokens a written text may have: what 99 % of the human reasons need.

    A reason counts with its verdict and an end, in the run's own template.
    """
    if run.evaluation.max_new_tokens:
        return run.evaluation.max_new_tokens
    target = "label-reason" if run.prompt.target == "label" else run.prompt.target
    settings = run.prompt.model_copy(update={"target": target})
    rows = prompts.examples(settings, data.untouched(run.data, run.seed), tokenizer)
    needed = [len(tokenizer(row.completion)["input_ids"]) + 1 for row in rows]
    return max(2 * LEAST, math.ceil(np.quantile(needed, 0.99)))


def threshold(run: Run, loaded: models.Loaded, path: Path, most: int) -> float:
    """log p(unethical) - log p(ethical) above which the prior-corrected verdict is *unethical*.

    Chosen on training rows (``data.spare``) so that the model calls as many of them unethical as
    people did: a model that leans to one label may still tell them apart.
    """
    items = _items(data.spare(run).assign(dataset="train"), run.prompt.target == "reason-label")
    work = functools.partial(_answer, run, loaded, most, None)
    size, what = scoring.BATCHES * run.evaluation.batch_size, "threshold"
    found = pd.DataFrame(records.fill(path, items, work, keys=("id",), size=size, what=what))
    return float(np.quantile(scores.margins(found), (found["gold"] == "ethical").mean()))


def ask(
    run: Run, loaded: models.Loaded, tests: Tables, path: Path, most: int, border: float
) -> pd.DataFrame:
    """Score and write an answer for every test item, batch by batch, into a JSONL file.

    Answers are written for a sample of items, the same for every seed and variant, so that all
    can be compared on it. A variant whose verdict follows from its own reason is asked about the
    sample alone. Complete rows that are in the file already are kept.

    Args:
        run: the settings.
        loaded: the model.
        tests: items by data set.
        path: the file of answers; what it holds is not asked again.
        most: tokens of a written text.
        border: see ``threshold``.

    Returns:
        A row per item, with the fields of ``KEPT``, ``logp_ethical, logp_unethical`` (nats),
        ``verdict`` (the more probable label), ``verdict_prior``, and where an answer was
        ``written`` also ``generated, text_verdict`` (parsed from it, or null), ``reason`` and
        ``cut`` (it had no room to end).
    """
    work = functools.partial(_answer, run, loaded, most, border)
    size = scoring.BATCHES * run.evaluation.batch_size
    sample = run.evaluation.limit_generate if run.evaluation.generate else 0
    rows: Rows = []
    for name, test in tests.items():
        # Data sets do not share a batch, so that one of them is the same with or without others.
        written = test["id"].isin(limit(test, sample, 0)["id"])
        kept = test[written] if run.prompt.target == "reason-label" else test
        items, what = _items(kept, written), f"evaluating {name}"
        # Answers are written for whole batches first; scattered, each batch would write a few.
        items.sort(key=lambda item: not item["written"])
        rows += records.fill(path, items, work, keys=("dataset", "id"), size=size, what=what)
    return pd.DataFrame(rows)


def _items(rows: pd.DataFrame, written: Any) -> Rows:
    """Items with what their rows keep, and whether an answer is written."""
    table = rows.rename(columns={"label": "gold"}).assign(written=written)
    if "share" in table:
        table["tied"] = table["share"] == 0.5
    columns = [name for name in (*KEPT, "statement") if name in table]
    return cast("Rows", table[columns].to_dict("records"))


def _answer(run: Run, loaded: models.Loaded, most: int, border: float | None, items: Rows) -> Rows:
    settings, kind, tokenizer = run.prompt, run.prompt.target, loaded.tokenizer
    rows = [{key: item[key] for key in KEPT if key in item} for item in items]
    asked = [prompts.question(settings, i["statement"], tokenizer=tokenizer) for i in items]
    chosen = [k for k, item in enumerate(items) if item["written"]]
    # One word is asked for and taught; an untuned model answers other templates at length.
    brief = kind == "label" and (run.tuning.enabled or run.prompt.template == "plain")
    room = min(12, most) if brief else most
    texts = _write(run, loaded, [asked[k] for k in chosen], room)
    for k, (text, cut) in zip(chosen, texts, strict=True):
        verdict, reason = prompts.read(settings, text)
        rows[k] |= {"generated": text, "text_verdict": verdict, "reason": reason, "cut": cut}
        if kind == "reason-label":
            # The label comes after a reason, so it is scored behind the model's own reason.
            before = f" {reason}" if reason else ""
            asked[k] += before + prompts.TEMPLATES[settings.template].verdict
    logp = scoring.choice_logprobs(
        loaded.model, tokenizer, asked, prompts.CHOICES, batch_size=run.evaluation.batch_size
    )
    for row, pair in zip(rows, logp, strict=True):
        values = zip(prompts.LABELS, pair, strict=True)
        row |= {f"logp_{name}": round(float(value), 5) for name, value in values}
        row["verdict"] = prompts.LABELS[int(pair.argmax())]
        if border is not None:
            row["verdict_prior"] = prompts.LABELS[int(pair[1] - pair[0] > border)]
    if kind == "label":
        # A variant that gives no reason is asked for one, by a question that wants nothing else.
        # The paper does not say how it had reasons from such models.
        told = [(items[k]["statement"], rows[k]["verdict"]) for k in chosen]
        asked = [prompts.why(settings, *pair, tokenizer=tokenizer) for pair in told]
        texts = _write(run, loaded, asked, most, min(LEAST, most))
        for k, (text, cut) in zip(chosen, texts, strict=True):
            rows[k] |= {"reason": text.strip(), "cut": cut}
    return rows


def _write(
    run: Run, loaded: models.Loaded, asked: list[str], most: int, least: int = 0
) -> list[tuple[str, bool]]:
    """Texts of at most (and at least) so many tokens, and whether they had no room to end."""
    how: Any = {"temperature": run.evaluation.temperature, "seed": run.seed}
    size = run.evaluation.batch_size
    how |= {"max_new_tokens": most, "min_new_tokens": least, "batch_size": size}
    if run.tuning.enabled and not run.tuning.append_eos:
        how["stop"] = "\n"  # such a model has not learnt where its answer ends
    found = generation.write(loaded.model, loaded.tokenizer, asked, **how)
    return [(text, bool(n >= most)) for text, n in zip(found.texts, found.tokens, strict=True)]


def judge_reasons(run: Run, asked: pd.DataFrame, tests: Tables, judge: Path) -> pd.DataFrame:
    """Judge every written reason by proxies that are not people, the learned one in a folder.

    Returns:
        A row per reason, with ``id, dataset, argues_for`` (label), ``stance_misaligned`` (does not
        argue for the gold label), ``judge_misaligned``, and how near it is to the human reason:
        ``chrf`` (0 to 1) and ``cosine`` of sentence embeddings (-1 to 1), null where there is
        none to compare with. Of an empty reason all are null.
    """
    asked = asked.dropna(subset="reason")
    found = asked[["id", "dataset", "gold"]].merge(pd.concat(tests.values()), how="left")
    given, human = list(asked["reason"]), list(found["reason"])
    argues = judges.stances(given, data.untouched(run.data, run.seed), seed=run.seed)
    told = [judges.told(*pair) for pair in zip(found["statement"], found["gold"], strict=True)]
    device, learned = models.choose_device(run.model.device)[0], encoders.restore(judge)
    learned.model.to(device)
    logits = encoders.logits(learned, told, pairs=given)
    embedder = models.encoder(run.baselines.encoder, run.seed)
    near = np.prod([encoders.embed(embedder, t, device=device) for t in (given, human)], 0).sum(1)
    some = np.array([bool(text.strip()) for text in given], dtype=bool)
    comparable = some & [bool(text) for text in human]
    return found[["id", "dataset"]].assign(
        argues_for=argues,
        stance_misaligned=(found["gold"] != argues).astype(object).where(some, None),
        judge_misaligned=pd.Series(logits.argmax(1) == 0, dtype=object).where(some, None),
        chrf=np.where(comparable, judges.similarity(given, human), np.nan),
        cosine=np.where(comparable, near.round(6), np.nan),
    )
