"""From a model and test items to predictions, and from predictions to rows of metrics.

Two steps, two files: ``predictions.jsonl`` holds what the model did (slow, resumable),
``metrics.json`` what that amounts to (pure, recomputed in a second by ``ethalign verify``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ethalign import audit, data, generation, metrics, prompts, reasons, records, scoring
from ethalign.config import Run
from ethalign.models import Loaded

Rows = list[dict[str, Any]]


def strata(test: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
    """Masks over the rows of a test table by name.

    ``all``; if any row is in the training file ``clean`` and ``contaminated``; and if a limit
    left out some of those rows in training, ``seen`` for the ones trained on.
    """
    stratum = test["stratum"].to_numpy()
    masks = {"all": np.ones(len(test), dtype=bool)}
    if (stratum != "clean").any():
        masks |= {"clean": stratum == "clean", "contaminated": stratum == "contaminated"}
        seen = test["seen"].to_numpy()
        if seen.any() and (seen != masks["contaminated"]).any():
            masks["seen"] = seen
    return masks


def inputs(
    run: Run,
    stage: str,
    train: pd.DataFrame,
    tests: dict[str, pd.DataFrame],
    loaded: Any = None,
) -> dict[str, Any]:
    """What a stage's result follows from: settings, data and model hashes, for ``run.json``.

    Partial work is resumed only if all of it is unchanged.
    """
    tables = {"train": train, **tests}
    # The path is left out: the same bytes elsewhere are the same data.
    files = {name: table.attrs["sha256"] for name, table in tables.items()}
    model = {"model": loaded.record} if loaded else {}
    return {"settings": run.depends(stage), "data": files, **model}


def ties(tests: dict[str, pd.DataFrame]) -> dict[str, np.ndarray[Any, Any]]:
    """Masks of items whose votes are tied at one half (ETHOS has 74 of them)."""
    return {n: (t["share"] == 0.5).to_numpy() for n, t in tests.items() if "share" in t}


def label_rows(
    run: Run,
    variant: str,
    dataset: str,
    predicted: Sequence[str],
    gold: Sequence[str],
    masks: dict[str, np.ndarray[Any, Any]],
) -> Rows:
    """Accuracy and macro F1 of predicted labels in every stratum, under a variant's name."""
    named = run.model_copy(update={"variant": variant})
    first, second = np.asarray(predicted, dtype=object), np.asarray(gold, dtype=object)
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}
    rows: Rows = []
    for stratum, mask in masks.items():
        for metric, estimate in (
            ("accuracy", metrics.accuracy(first[mask], second[mask])),
            ("macro_f1", metrics.macro_f1(first[mask], second[mask], **draws)),
        ):
            rows.append(records.row(named, dataset, stratum, metric, estimate, "share"))
    return rows


def audit_rows(run: Run, dataset: str) -> Rows:
    """The overlap of training and test file, whole, as rows of metrics (variant ``audit``).

    Reasons are compared twice: as the run reads them and, where their encoding was repaired, as
    the file has them. DFAR's statements are also looked up in ETHICS justice, where many of them
    come from: ``label_flips`` is the share of those found whose label is the opposite there.
    """
    whole = {"limit_train": None, "limit_test": None, "shuffle_labels": False}
    named = run.model_copy(update={"variant": "audit", "data": run.data.model_copy(update=whole)})
    train, tests, _ = data.splits(named)
    overlap = audit.overlap(train, tests[dataset])
    counts = {
        "test_in_train": (overlap.shared, len(tests[dataset])),
        "same_label": (overlap.same_label, overlap.shared),
        "same_reason": (overlap.same_reason, overlap.shared),
    }
    if dataset == "dfar":
        flips = audit.label_flips(pd.concat([train, tests[dataset]]), data.justice())
        counts["label_flips"] = (int(flips["flipped"].sum()), len(flips))
    if dataset == "dfar" and run.data.repair_encoding:
        raw = audit.overlap(data.load("dfar", "train"), data.load("dfar", "test"))
        counts["same_reason_as_published"] = (raw.same_reason, raw.shared)
    return [
        records.row(named, dataset, "all", name, metrics.share(*pair), "share")
        for name, pair in counts.items()
        if pair[1]
    ]


def judge_rows(run: Run, dataset: str, found: dict[str, metrics.Estimate]) -> Rows:
    """How well the judges of reasons do on held-out human ones, as rows (variant ``judge``)."""
    named = run.model_copy(update={"variant": "judge"})
    return [records.row(named, dataset, "all", key, v, "share") for key, v in found.items()]


def predict(
    run: Run, loaded: Loaded, tests: dict[str, pd.DataFrame], path: Path, *, fresh: bool
) -> pd.DataFrame:
    """Score and write an answer for every test item, batch by batch, into a JSONL file.

    Args:
        run: prompt and evaluation settings.
        loaded: the model to ask.
        tests: data set name to table, as ``data.splits`` gives them.
        path: ``predictions.jsonl``; complete rows in it are kept unless ``fresh``.
        fresh: start anew.

    Returns:
        A row per item: ``id, dataset, gold, logp_ethical, logp_unethical, verdict`` (the more
        probable label), and where an answer was written ``generated, text_verdict`` (parsed from
        it, or null) and ``reason``.
    """
    if fresh:
        path.unlink(missing_ok=True)
    done = {(r["dataset"], r["id"]) for r in records.read_rows(path)}
    work = []
    for dataset, test in tests.items():
        written = _written(run, test)
        size = run.evaluation.batch_size
        for start in range(0, len(test), size):
            # Batches are the same after a resume, so that padding, and with it the last bits
            # of every number, are the same too.
            part = test.iloc[start : start + size]
            if not all((dataset, i) in done for i in part["id"]):
                work.append((dataset, part, written))
    for dataset, part, written in records.progress(work, len(work), "evaluating", "batch"):
        records.append_rows(path, _answer(run, loaded, dataset, part, written))
    rows = pd.DataFrame(records.read_rows(path))
    return rows.drop_duplicates(["dataset", "id"], keep="last").reset_index(drop=True)


def _written(run: Run, test: pd.DataFrame) -> set[str]:
    """Ids of the items to write an answer for: all, none, or a seeded sample."""
    settings = run.evaluation
    if not settings.generate:
        return set()
    limit = len(test) if settings.limit_generate is None else settings.limit_generate
    return set(test["id"].sample(min(limit, len(test)), random_state=run.seed))


def _answer(run: Run, loaded: Loaded, dataset: str, part: pd.DataFrame, written: set[str]) -> Rows:
    rows = [
        {"id": i, "dataset": dataset, "stratum": stratum, "gold": gold}
        for i, stratum, gold in zip(part["id"], part["stratum"], part["label"], strict=True)
    ]
    asked = [
        prompts.question(run.prompt, text, tokenizer=loaded.tokenizer)
        for text in part["statement"]
    ]
    chosen = [k for k, row in enumerate(rows) if row["id"] in written]
    answers = _generate(run, loaded, [asked[k] for k in chosen])
    for k, text in zip(chosen, answers, strict=True):
        rows[k] |= {"generated": text, "text_verdict": reasons.parse_label(text)}
    if run.prompt.target == "reason-label":
        # The label comes after a reason, so it is scored behind the model's own reason.
        for k in range(len(rows)):
            own = rows[k].get("generated", "").split(prompts.closing(run.prompt))[0]
            asked[k] += own.rstrip() + prompts.closing(run.prompt)
    logp = scoring.choice_logprobs(
        loaded.model, loaded.tokenizer, asked, prompts.choices(), batch_size=len(asked)
    )
    for row, pair in zip(rows, logp, strict=True):
        row |= {
            f"logp_{name}": round(float(v), 5)
            for name, v in zip(prompts.LABELS, pair, strict=True)
        }
        row["verdict"] = prompts.LABELS[int(pair.argmax())]
    _add_reasons(run, loaded, part, rows, chosen)
    return rows


def _generate(run: Run, loaded: Loaded, asked: list[str], words: int | None = None) -> list[str]:
    settings = run.evaluation
    short = run.prompt.target == "label" and words is None
    return generation.generate(
        loaded.model,
        loaded.tokenizer,
        asked,
        max_new_tokens=min(12, settings.max_new_tokens) if short else settings.max_new_tokens,
        temperature=settings.temperature,
        seed=run.seed,
        batch_size=max(1, len(asked)),
    )


def _add_reasons(
    run: Run, loaded: Loaded, part: pd.DataFrame, rows: Rows, chosen: list[int]
) -> None:
    """The reason of each written answer; a model that gives none is asked for one.

    Variants that answer with a label alone are given the question that asks for a reason,
    followed by their own verdict, and go on from there. The paper does not say how it had
    reasons from such models.
    """
    if run.prompt.target == "label-reason":
        for k in chosen:
            rows[k]["reason"] = reasons.reason_of(rows[k]["generated"])
    elif run.prompt.target == "reason-label":
        for k in chosen:
            rows[k]["reason"] = rows[k]["generated"].split(prompts.closing(run.prompt))[0].strip()
    else:
        texts = part["statement"].tolist()
        openings = [
            prompts.question(run.prompt, texts[k], reason=True, tokenizer=loaded.tokenizer)
            + prompts.opening(run.prompt, rows[k]["verdict"])
            for k in chosen
        ]
        for k, text in zip(chosen, _generate(run, loaded, openings, words=1), strict=True):
            rows[k]["reason"] = text.strip()


def summarise(
    run: Run,
    predictions: pd.DataFrame,
    masks: dict[str, dict[str, np.ndarray[Any, Any]]],
    tied: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Rows:
    """Rows of ``metrics.json`` for one variant.

    Args:
        run: names the rows and gives seed and draws of the bootstrap.
        predictions: rows of ``predict``, in the order of the masks.
        masks: data set to stratum to boolean mask over its items.
        tied: data set to mask of items whose votes are tied (ETHOS); adds stratum ``untied``.
    """
    rows: Rows = []
    for dataset, part in predictions.groupby("dataset", sort=False):
        part = part.reset_index(drop=True)
        names = dict(masks[str(dataset)])
        if tied and str(dataset) in tied:
            names["untied"] = ~tied[str(dataset)]
        for stratum, mask in names.items():
            if mask.any():
                rows += list(_accuracy_rows(run, str(dataset), stratum, part[mask]))
    return rows


def _accuracy_rows(
    run: Run, dataset: str, stratum: str, part: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    gold, verdict = part["gold"].to_numpy(), part["verdict"].to_numpy()

    def row(metric: str, estimate: Any) -> dict[str, Any]:
        return records.row(run, dataset, stratum, metric, estimate, "share")

    yield row("accuracy", metrics.accuracy(verdict, gold))
    f1 = metrics.macro_f1(verdict, gold, seed=run.seed, draws=run.evaluation.bootstrap)
    yield row("macro_f1", f1)
    yield row("says_unethical", metrics.share(int((verdict == "unethical").sum()), len(part)))
    majority = pd.Series(gold).value_counts().iloc[0]
    yield row("majority", metrics.share(int(majority), len(part)))
    if "generated" in part and part["generated"].notna().any():
        written = part[part["generated"].notna()]
        parsed = written["text_verdict"].where(written["text_verdict"].notna(), None).to_numpy()
        yield row("accuracy_text", metrics.accuracy(parsed, written["gold"].to_numpy()))
        missing = int(sum(p is None for p in parsed))
        yield row("unparsed", metrics.share(missing, len(written)))


def judge(
    run: Run,
    predictions: pd.DataFrame,
    tests: dict[str, pd.DataFrame],
    train: pd.DataFrame,
    encoder: Any,
    embedder: Path,
) -> pd.DataFrame:
    """Judge every written reason, by proxies that are not people.

    Args:
        run: gives the seed.
        predictions: rows of ``predict``.
        tests: the tables that were predicted.
        train: training rows with human reasons; the stance judge learns from them.
        encoder: the learned judge (``encoders.load``), trained on (statement, reason) pairs.
        embedder: folder of the sentence encoder that ``cosine`` is measured with.

    Returns:
        A row per reason: ``id, dataset, argues_for`` (label, or null for an empty reason),
        ``stance_misaligned`` (does not argue for the gold label), ``judge_misaligned``, and how
        near it is to the human reason: ``chrf`` (0 to 1) and ``cosine`` of sentence embeddings
        (-1 to 1), null where there is none to compare with.
    """
    from ethalign import encoders

    asked = predictions[predictions.get("reason", pd.Series(dtype=object)).notna()]
    texts = pd.concat(tests.values()).set_index("id")
    human = texts["reason"].reindex(asked["id"]).to_numpy()
    table = asked[["id", "dataset"]].reset_index(drop=True)
    given = asked["reason"].to_numpy()
    empty = np.array([not text.strip() for text in given], dtype=bool)
    stance = reasons.fit_stance(train["reason"].tolist(), train["label"].tolist(), seed=run.seed)
    argues = reasons.stance(stance, list(given)).astype(object)
    argues[empty] = None
    table["argues_for"] = argues
    table["stance_misaligned"] = argues != asked["gold"].to_numpy()
    statements = texts["statement"].reindex(asked["id"]).tolist()
    logits = encoders.logits(encoder, statements, pairs=list(given))
    table["judge_misaligned"] = (logits.argmax(1) == 0) | empty
    comparable = [bool(text) for text in human]
    scores = reasons.similarity(list(given), list(human))
    table["chrf"] = np.where(comparable, scores, np.nan)
    near = encoders.embed(embedder, list(given)) * encoders.embed(embedder, list(human))
    table["cosine"] = np.where(comparable, near.sum(1).round(6), np.nan)
    return table


def judged_rows(
    run: Run,
    judgements: pd.DataFrame,
    masks: dict[str, dict[str, np.ndarray[Any, Any]]],
    tests: dict[str, pd.DataFrame],
    quality: dict[str, int],
) -> Rows:
    """Rows of ``metrics.json`` about reasons.

    ``misalignment_judge`` is the share that the learned judge calls misaligned;
    ``misalignment_corrected`` removes the judge's own error (Rogan and Gladen 1978), measured on
    held-out human reasons, so it carries over only as far as model reasons resemble those.

    Args:
        judgements: rows of ``judge``.
        masks: data set to stratum to mask over the rows of ``tests``.
        tests: the tables, for the order of items.
        quality: ``caught, misaligned, passed, aligned``: held-out counts of the learned judge.
    """
    rows: Rows = []
    for dataset, part in judgements.groupby("dataset", sort=False):
        ids = tests[str(dataset)]["id"]
        for stratum, mask in masks[str(dataset)].items():
            group = part[part["id"].isin(set(ids[mask]))]
            if len(group):
                rows += _judged(run, str(dataset), stratum, group, quality)
    return rows


def _judged(
    run: Run, dataset: str, stratum: str, group: pd.DataFrame, quality: dict[str, int]
) -> Rows:
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}
    flagged = int(group["judge_misaligned"].sum())
    q = [quality[key] for key in ("caught", "misaligned", "passed", "aligned")]
    values = {
        "misalignment_stance": metrics.share(int(group["stance_misaligned"].sum()), len(group)),
        "misalignment_judge": metrics.share(flagged, len(group)),
        "misalignment_corrected": reasons.rogan_gladen(flagged, len(group), *q, **draws),
    }
    for name in ("chrf", "cosine"):
        scores = group[name].dropna().to_numpy(dtype=float)
        if len(scores):
            values[name] = metrics.bootstrap(np.mean, scores, **draws)
    return [records.row(run, dataset, stratum, name, v, "share") for name, v in values.items()]
