"""Everything that is not a language model: ceilings, floors, people, and encoders."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ethalign import calibration, encoders, metrics, models, records, sources
from ethalign.ambiguity import data
from ethalign.ambiguity.evaluate import Rows, fit_scaling, labels, metric_rows, score_rows
from ethalign.ambiguity.settings import Baselines, Run
from ethalign.calibration import Floats
from ethalign.config import ROOT, read_yaml
from ethalign.sources import Source

LOSSES: tuple[encoders.Loss, ...] = ("hard", "soft", "counts", "dirichlet")
SEARCH = ROOT / "configs" / "ambiguity" / "search.yaml"
READ = ("train", "test", "dilemmas-dev", "anecdotes-votes")
# Tables of votes that no predictor is scored on, beside the data of a run.
BESIDE = ("dilemmas-dev", "anecdotes-five", "anecdotes-two")


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Fit an encoder with each loss, let it judge held-out and test rows, and score it.

    The negative control, ``encoder-shuffled``, learns from votes permuted over the items.
    ``predictions.jsonl`` gets ``data.FIELDS``, ``variant``, ``verdict`` and the logits ``z1, z2``.

    Returns:
        How many rows each part has.
    """
    rows = data.splits(run)
    path = models.encoder(run.baselines.encoder, run.seed)
    items = [
        item
        for part, frame in (("held-out", rows.held_out), ("test", rows.test))
        for item in data.items(frame, part, run.votes.dataset)
    ]
    asked = [
        {"variant": f"encoder-{name}"} | {key: item[key] for key in data.FIELDS}
        for name in (*LOSSES, "shuffled")
        for item in items
    ]
    records.fill(
        where / "predictions.jsonl",
        asked,
        functools.partial(_judge, run, path),
        keys=("variant", "part", "id"),
        size=len(items),
        what="encoders",
    )
    return {"rows": {name: len(frame) for name, frame in rows._asdict().items()}}


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json``; those that read votes only where the data files are here."""
    found = encoder_rows(run, records.read_rows(folder / "predictions.jsonl"))
    read = data.origins(run, *READ).values()
    here = all(sources.present(o) for o in read if isinstance(o, Source))
    return [*bounds(run, data.splits(run)), *found] if here else found


def files(run: Run) -> dict[str, Path]:
    """The data files, and the space of the search if there is one."""
    found = data.files(run, *READ)
    return found | ({"search": SEARCH} if run.baselines.encoder_trials else {})


def _judge(run: Run, path: Path, asked: Rows) -> Rows:
    """The items of one encoder with its verdicts and logits."""
    name = str(asked[0]["variant"]).removeprefix("encoder-")
    shuffled = {"data": run.data.model_copy(update={"shuffle_labels": True})}
    run = run.model_copy(update=shuffled if name == "shuffled" else {})
    rows = data.splits(run)
    loss: encoders.Loss = next((loss for loss in LOSSES if loss == name), "soft")
    if run.baselines.encoder_trials:
        run = search(run, path, rows, loss)
    answers = data.ANSWERS[run.votes.dataset]
    return [
        item | {"z1": float(z[0]), "z2": float(z[1]), "verdict": answers[int(z.argmax())]}
        for item, z in zip(asked, encode(run, path, rows, loss), strict=True)
    ]


def encode(run: Run, path: Path, rows: data.Splits, loss: encoders.Loss) -> Floats:
    """Fine-tune an encoder with one loss; its logits for held-out, then test rows, (n, 2).

    Dilemmas are ranked: one score per action, softmax over the two, so that order cannot matter.
    Anecdotes are classified from title and text.

    Args:
        run: encoder settings (block ``baselines``) and seed.
        path: folder of the encoder.
        rows: the splits.
        loss: see ``encoders.fit``.
    """
    ranked = run.votes.dataset == "dilemmas"
    columns = ("first", "second") if ranked else ("title", "text")
    texts = [[frame[column].tolist() for column in columns] for frame in rows]
    counts, settings = data.counts(rows.train), run.baselines
    fitted = encoders.fit(
        path,
        texts[0][0],
        counts.argmax(1) if loss == "hard" else counts,
        pairs=texts[0][1],
        loss=loss,
        ranked=ranked,
        epochs=settings.encoder_epochs,
        lr=settings.encoder_lr,
        batch_size=settings.encoder_batch_size,
        weight_decay=settings.encoder_weight_decay,
        warmup=settings.encoder_warmup,
        seed=run.seed,
    )
    z = [encoders.logits(fitted, one, pairs=two, ranked=ranked) for one, two in texts[1:]]
    return np.vstack(z)


def search(run: Run, path: Path, rows: data.Splits, loss: encoders.Loss) -> Run:
    """The run with the encoder settings that did best of ``baselines.encoder_trials`` draws.

    Settings are drawn from ``configs/ambiguity/search.yaml`` (the space of Scruples). A trial's
    score is the cross-entropy on held-out rows after temperature scaling; one that diverged
    scores 5.
    """
    best, chosen, counts = np.inf, run, data.counts(rows.held_out)
    for trial in range(run.baselines.encoder_trials):
        random = np.random.default_rng([run.seed, trial])
        space = read_yaml(SEARCH).items()
        drawn = {name: _draw(random, *next(iter(how.items()))) for name, how in space}
        settings = Baselines.model_validate(run.baselines.model_dump() | drawn)
        tried = run.model_copy(update={"baselines": settings})
        z = encode(tried, path, rows, loss)[: len(counts)]
        score = 5.0
        if np.isfinite(z).all():
            scaled = special.softmax(z / calibration.fit_temperature(z, counts), axis=1)
            score = float(calibration.cross_entropy(scaled, counts).mean())
        if score < best:
            best, chosen = score, tried
    return chosen


def _draw(random: np.random.Generator, kind: str, ends: list[float]) -> float | int:
    low, high = ends
    if kind == "log":
        return float(np.exp(random.uniform(np.log(low), np.log(high))))
    if kind == "uniform":
        return float(random.uniform(low, high))
    whole = int(random.integers(int(low), int(high) + 1))
    return 2**whole if kind == "power" else whole


def encoder_rows(run: Run, predictions: Rows) -> Rows:
    """Rows of ``metrics.json`` for the predictions of all encoders."""
    found: Rows = []
    for variant, rows in pd.DataFrame(predictions).groupby("variant", sort=False):
        fit, test = (rows[rows["part"] == p].reset_index(drop=True) for p in ("held-out", "test"))
        z = test[["z1", "z2"]].to_numpy(float)
        probs = special.softmax(fit[["z1", "z2"]].to_numpy(float), axis=1)
        scaling = fit_scaling(probs, data.counts(fit))
        own = np.exp(z) if str(variant).endswith("dirichlet") else None
        p = special.softmax(z, axis=1)
        found += score_rows(run, str(variant), test, p, scaling=scaling, alpha=own)
    return found


def bounds(run: Run, rows: data.Splits) -> Rows:
    """Ceilings, facts about votes, people and floors: all that follows from votes alone.

    With official data also the votes of all development pairs and of 2,500 stories (``BESIDE``).
    """
    test, name = data.counts(rows.test), str(rows.test.attrs["dataset"])
    found = _table_rows(run, name, test, data.ANSWERS[run.votes.dataset])
    if "human1" in rows.test:
        found += human_rows(run, name, rows.test)
    found += floors(run, rows)
    if run.data.source == "official":
        dev, stories = data.load("dilemmas", "dev"), data.load("anecdotes-votes", "dev")
        found += human_rows(run, BESIDE[0], dev)
        five = stories[list(data.FIVE)].to_numpy(float)
        found += _table_rows(run, BESIDE[0], data.counts(dev), data.ANSWERS["dilemmas"])
        found += _table_rows(run, BESIDE[1], five, data.FIVE)
        found += _table_rows(run, BESIDE[2], data.counts(stories), data.ANSWERS["anecdotes"])
    return found


def _table_rows(run: Run, dataset: str, counts: Floats, names: tuple[str, ...]) -> Rows:
    return [*best_rows(run, dataset, counts), *vote_rows(run, dataset, counts, names)]


def floors(run: Run, rows: data.Splits) -> Rows:
    """Predictors that read nothing: uniform, the mean of the training votes, the majority.

    The Dirichlet prior fitted to the training votes has its own concentrations.
    """
    train = data.counts(rows.train)
    test = pd.DataFrame(data.items(rows.test, "test", run.votes.dataset))
    n = len(test)
    prior = calibration.fit_dirichlet_multinomial(train)
    mean = calibration.shares(train).mean(0)
    out = score_rows(run, "uniform", test, np.full((n, 2), 0.5))
    out += score_rows(run, "mean-votes", test, np.tile(mean, (n, 1)), alpha=np.tile(prior, (n, 1)))
    # A certain answer has no finite cross-entropy; only its labels are scored.
    top = np.full(n, int(train.argmax(1).mean() >= 0.5))
    found = labels(run, top, data.counts(test))
    return out + metric_rows(run, "majority", str(test["dataset"].iloc[0]), found)


def best_rows(run: Run, dataset: str, counts: Floats) -> Rows:
    """The best possible scores (BEST) with the interval of their posterior draws."""
    draws = calibration.best_draws(counts, run.votes.draws, run.seed)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    units = {"accuracy": "share", "macro_f1": "share", "cross_entropy": "nats"}
    found = [
        (name, unit, metrics.Estimate(draws[:, k].mean(), low[k], high[k], len(counts)))
        for k, (name, unit) in enumerate(units.items())
    ]
    return metric_rows(run, "best", dataset, found)


def human_rows(run: Run, dataset: str, frame: pd.DataFrame) -> Rows:
    """The majority of five further people against the majority of the first five."""
    answer = frame[["human1", "human2"]].to_numpy(float).argmax(1)
    return metric_rows(run, "human", dataset, labels(run, answer, data.counts(frame)))


def vote_rows(run: Run, dataset: str, counts: Floats, names: tuple[str, ...]) -> Rows:
    """Facts about votes, under the variant ``votes``, so that a page can show them without data.

    How many items and votes, their median, the shares of items with one vote and of unanimous
    ones; for each answer how often it has most votes (``top_``) and its fitted concentration
    (``alpha_``); the cross-entropy of the mean votes and of equal shares; and for two answers
    how the share of the second is spread over tenths (``tenth_``, items with five votes or more).

    Args:
        run: names study and seed.
        dataset: name in the rows.
        counts: (n, k) votes.
        names: of the k answers.
    """
    counts = counts[counts.sum(1) > 0]
    n, total, h = len(counts), counts.sum(1), calibration.shares(counts)
    facts: dict[str, tuple[str, float]] = {
        "items": ("number", n),
        "votes": ("number", total.sum()),
        "median_votes": ("number", np.median(total)),
        "one_vote": ("share", (total == 1).mean()),
        "unanimous": ("share", (counts.max(1) == total).mean()),
    }
    alpha, top = calibration.fit_dirichlet_multinomial(counts), counts.argmax(1)
    for k, name in enumerate(names):
        facts[f"top_{name}"] = ("share", (top == k).mean())
        facts[f"alpha_{name}"] = ("number", alpha[k])
    for name, p in (("mean", h.mean(0)), ("uniform", np.full(len(names), 1 / len(names)))):
        facts[f"cross_entropy_{name}"] = ("nats", calibration.cross_entropy(p, counts).mean())
    if len(names) == 2:
        spread, _ = np.histogram(h[total >= 5, 1], bins=10, range=(0, 1))
        for k, share in enumerate(spread / max(1, spread.sum())):
            facts[f"tenth_{k}"] = ("share", share)
    nan = np.nan
    found = [(k, unit, metrics.Estimate(v, nan, nan, n)) for k, (unit, v) in facts.items()]
    return metric_rows(run, "votes", dataset, found)
