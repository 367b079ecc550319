"""From a model and test items to predictions, and from predictions to rows of metrics.

``predictions.jsonl`` and ``judgements.jsonl`` hold what models did (slow, resumable),
``metrics.json`` what that amounts to (pure).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ethalign import encoders, generation, metrics, models, records, scoring, tuning
from ethalign.metrics import Estimate
from ethalign.models import Loaded
from ethalign.reasons import data, judges, labels, prompts
from ethalign.reasons.settings import Run

Rows = list[dict[str, Any]]
# Fields of an item that its row keeps, in order; `tied` only where there are votes.
KEPT = ("id", "dataset", "stratum", "seen", "tied", "gold")


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """The stage: predictions, and judgements of the reasons."""
    tuned, base = before.get("finetune"), before["baselines"]
    loaded = tuning.with_adapter(run.model, tuned and tuned / "adapter", seed=run.seed)
    tests = data.splits(run).tests
    predictions = predict(run, loaded, tests, where / "predictions.jsonl")
    judgements = pd.DataFrame()
    if (base / "judge").is_dir() and "reason" in predictions:
        judgements = judge(run, predictions, tests, base / "judge")
    records.write(where / "judgements.jsonl", judgements)
    return {"model": loaded.record, "notes": loaded.notes}


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json`` from the records in a folder, with or without their texts."""
    predictions = _table(records.read_rows(folder / "predictions.jsonl"))
    path = before["baselines"] / "judge.json"
    quality = json.loads(path.read_text()) if path.is_file() else {}
    judgements = pd.DataFrame(records.read_rows(folder / "judgements.jsonl") if quality else [])
    return summarise(run, predictions, judgements, quality)


def predict(run: Run, loaded: Loaded, tests: dict[str, pd.DataFrame], path: Path) -> pd.DataFrame:
    """Score and write an answer for every test item, batch by batch, into a JSONL file.

    Args:
        run: prompt and evaluation settings.
        loaded: the model to ask.
        tests: data set name to table, as ``data.splits`` gives them.
        path: ``predictions.jsonl``; complete rows in it are kept.

    Returns:
        A row per item: the fields of ``KEPT``, ``logp_ethical, logp_unethical, verdict`` (the
        more probable label), ``written``, and where an answer was written ``generated,
        text_verdict`` (parsed from it, or null) and ``reason``.
    """
    work = functools.partial(_answer, run, loaded)
    keys, size = ("dataset", "id"), run.evaluation.batch_size
    rows: Rows = []
    for dataset, test in tests.items():
        # Data sets do not share a batch, so that one of them is the same with or without others.
        items = _items(run, dataset, test)
        what = f"evaluating {dataset}"
        rows += records.fill(path, items, work, keys=keys, size=size, what=what)
    return _table(rows)


def _table(rows: Rows) -> pd.DataFrame:
    """Predictions, with ``written`` for items that got an answer, its words kept or not."""
    return pd.DataFrame([{**row, "written": "text_verdict" in row} for row in rows])


def _items(run: Run, dataset: str, test: pd.DataFrame) -> Rows:
    """Test items with what their rows keep; answers are written for a seeded sample."""
    settings = run.evaluation
    limit = len(test) if settings.limit_generate is None else settings.limit_generate
    count = min(limit, len(test)) if settings.generate else 0
    written = test["id"].sample(count, random_state=run.seed)
    table = test.rename(columns={"label": "gold"})
    table = table.assign(dataset=dataset, write=table["id"].isin(written))
    if "share" in table:
        table["tied"] = table["share"] == 0.5
    columns = [name for name in (*KEPT, "statement", "write") if name in table]
    return [
        {str(key): value for key, value in row.items()}
        for row in table[columns].to_dict("records")
    ]


def _answer(run: Run, loaded: Loaded, items: Rows) -> Rows:
    rows = [{key: item[key] for key in KEPT if key in item} for item in items]
    settings, tokenizer = run.prompt, loaded.tokenizer
    asked = [prompts.question(settings, i["statement"], tokenizer=tokenizer) for i in items]
    chosen = [k for k, item in enumerate(items) if item["write"]]
    longest = run.evaluation.max_new_tokens
    length = min(12, longest) if settings.target == "label" else longest
    answers = _generate(run, loaded, [asked[k] for k in chosen], length)
    for k, text in zip(chosen, answers, strict=True):
        rows[k] |= {"generated": text, "text_verdict": labels.parse_label(text)}
    if settings.target == "reason-label":
        # The label comes after a reason, so it is scored behind the model's own reason.
        for k, row in enumerate(rows):
            own = _before_verdict(run, row.get("generated", ""))
            asked[k] += own.rstrip() + prompts.closing(settings)
    logp = scoring.choice_logprobs(
        loaded.model, tokenizer, asked, prompts.CHOICES, batch_size=len(asked)
    )
    for row, pair in zip(rows, logp, strict=True):
        values = zip(prompts.LABELS, pair, strict=True)
        row |= {f"logp_{name}": round(float(value), 5) for name, value in values}
        row["verdict"] = prompts.LABELS[int(pair.argmax())]
    _add_reasons(run, loaded, items, rows, chosen)
    return rows


def _generate(run: Run, loaded: Loaded, asked: list[str], length: int) -> list[str]:
    return generation.generate(
        loaded.model,
        loaded.tokenizer,
        asked,
        max_new_tokens=length,
        temperature=run.evaluation.temperature,
        seed=run.seed,
        batch_size=max(1, len(asked)),
    )


def _before_verdict(run: Run, text: str) -> str:
    return text.split(prompts.closing(run.prompt))[0]


def _add_reasons(run: Run, loaded: Loaded, items: Rows, rows: Rows, chosen: list[int]) -> None:
    """The reason of each written answer; a model that gives none is asked for one.

    Variants that answer with a label alone are given the question that asks for a reason,
    followed by their own verdict, and go on from there. The paper does not say how it had
    reasons from such models.
    """
    settings, tokenizer = run.prompt, loaded.tokenizer
    if settings.target == "label-reason":
        found = [labels.reason_of(rows[k]["generated"]) for k in chosen]
    elif settings.target == "reason-label":
        found = [_before_verdict(run, rows[k]["generated"]) for k in chosen]
    else:
        asked = [
            prompts.question(settings, items[k]["statement"], reason=True, tokenizer=tokenizer)
            + prompts.opening(settings, rows[k]["verdict"])
            for k in chosen
        ]
        found = _generate(run, loaded, asked, run.evaluation.max_new_tokens)
    for k, text in zip(chosen, found, strict=True):
        rows[k]["reason"] = text.strip()


def judge(
    run: Run, predictions: pd.DataFrame, tests: dict[str, pd.DataFrame], folder: Path
) -> pd.DataFrame:
    """Judge every written reason, by proxies that are not people.

    Args:
        run, predictions, tests: as of ``predict``.
        folder: the learned judge, trained on pairs of statement and reason.

    Returns:
        A row per reason: ``id, dataset, argues_for`` (label, or null for an empty reason),
        ``stance_misaligned`` (does not argue for the gold label), ``judge_misaligned``, and how
        near it is to the human reason: ``chrf`` (0 to 1) and ``cosine`` of sentence embeddings
        (-1 to 1), null where there is none to compare with.
    """
    asked = predictions[predictions["reason"].notna()]
    texts = pd.concat([test.assign(dataset=name) for name, test in tests.items()])
    table = asked[["id", "dataset"]].merge(texts, on=["id", "dataset"], how="left")
    given, human = list(asked["reason"]), list(table["reason"])
    empty = np.array([not text.strip() for text in given], dtype=bool)
    # Labels are permuted for the model that is judged, not for its judge.
    plain = run.data.model_copy(update={"shuffle_labels": False})
    train = data.training(plain, run.seed)
    stance = judges.fit_stance(list(train["reason"]), list(train["label"]), seed=run.seed)
    argues = judges.stance(stance, given).astype(object)
    argues[empty] = None
    logits = encoders.logits(encoders.load(folder), list(table["statement"]), pairs=given)
    embedder = models.encoder(run.baselines.encoder, run.seed)
    near = (encoders.embed(embedder, given) * encoders.embed(embedder, human)).sum(1)
    comparable = [bool(text) for text in human]
    return table[["id", "dataset"]].assign(
        argues_for=argues,
        stance_misaligned=argues != asked["gold"].to_numpy(),
        judge_misaligned=(logits.argmax(1) == 0) | empty,
        chrf=np.where(comparable, judges.similarity(given, human), np.nan),
        cosine=np.where(comparable, near.round(6), np.nan),
    )


def strata(table: pd.DataFrame) -> dict[str, NDArray[np.bool_]]:
    """Masks over test items by name, none of them empty.

    ``all``; if any item is in the training file ``clean`` and ``contaminated``; and if a limit
    left out some of those in training, ``seen`` for the ones trained on.

    Args:
        table: columns ``stratum`` and, but for old records, ``seen``.
    """
    shared = (table["stratum"] != "clean").to_numpy()
    masks = {"all": np.ones(len(table), dtype=bool)}
    if shared.any():
        masks |= {"clean": ~shared, "contaminated": shared}
        seen = table.get("seen", pd.Series(shared)).to_numpy(bool)
        if (seen != shared).any():
            masks["seen"] = seen
    return {name: mask for name, mask in masks.items() if mask.any()}


def summarise(
    run: Run, predictions: pd.DataFrame, judgements: pd.DataFrame, quality: dict[str, int]
) -> Rows:
    """Rows of ``metrics.json`` for one variant.

    Args:
        run: names the rows and gives seed and draws of the bootstrap.
        predictions: rows of ``predict``.
        judgements: rows of ``judge``, or none.
        quality: ``caught, misaligned, passed, aligned``: held-out counts of the learned judge.
    """
    found: Rows = []
    parts = {str(name): part for name, part in predictions.groupby("dataset", sort=False)}
    for dataset, part in parts.items():
        masks = strata(part)
        if "tied" in part and part["tied"].notna().all():
            masks["untied"] = ~part["tied"].to_numpy(bool)
        for stratum, mask in masks.items():
            estimates = scores(run, part[mask]) | _answers(part[mask])
            found += rows(run, dataset, stratum, estimates)
    for dataset, part in parts.items() if len(judgements) else ():
        for stratum, mask in strata(part).items():
            inside = judgements["id"].isin(part["id"][mask])
            group = judgements[inside & (judgements["dataset"] == dataset)]
            if len(group):
                found += rows(run, dataset, stratum, _reasons(run, group, quality))
    return found


def rows(run: Run, dataset: str, stratum: str, found: dict[str, Estimate]) -> Rows:
    """Shares by the name of their metric, as rows of ``metrics.json``."""
    return [records.row(run, dataset, stratum, name, e, "share") for name, e in found.items()]


def scores(run: Run, part: pd.DataFrame) -> dict[str, Estimate]:
    """Accuracy and macro F1 of verdicts."""
    gold, verdict = part["gold"].to_numpy(), part["verdict"].to_numpy()
    f1 = metrics.macro_f1(verdict, gold, seed=run.seed, draws=run.evaluation.bootstrap)
    return {"accuracy": metrics.accuracy(verdict, gold), "macro_f1": f1}


def _answers(part: pd.DataFrame) -> dict[str, Estimate]:
    """How often a label is given, and what can be read in written answers."""
    n, written = len(part), part[part["written"]]
    counts = {
        "says_unethical": ((part["verdict"] == "unethical").sum(), n),
        "majority": (part["gold"].value_counts().iloc[0], n),
    }
    if len(written):
        read = written["text_verdict"]
        counts["accuracy_text"] = ((read == written["gold"]).sum(), len(read))
        counts["unparsed"] = (read.isna().sum(), len(read))
    return {name: metrics.share(int(count), total) for name, (count, total) in counts.items()}


def _reasons(run: Run, group: pd.DataFrame, quality: dict[str, int]) -> dict[str, Estimate]:
    """``misalignment_judge`` is the share that the learned judge calls misaligned.

    ``misalignment_corrected`` removes the judge's own error (Rogan and Gladen 1978), measured on
    held-out human reasons, so it carries over only as far as model reasons resemble those.
    """
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}
    n, flagged = len(group), int(group["judge_misaligned"].sum())
    known = [quality[key] for key in ("caught", "misaligned", "passed", "aligned")]
    found = {
        "misalignment_stance": metrics.share(int(group["stance_misaligned"].sum()), n),
        "misalignment_judge": metrics.share(flagged, n),
        "misalignment_corrected": judges.rogan_gladen(flagged, n, *known, **draws),
    }
    near = {name: group[name].dropna().to_numpy(dtype=float) for name in ("chrf", "cosine")}
    means = {k: metrics.bootstrap(np.mean, v, **draws) for k, v in near.items() if len(v)}
    return found | means
