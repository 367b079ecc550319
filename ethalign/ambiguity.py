"""Answer probabilities against votes: from a model to predictions, and to rows of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from ethalign import (
    calibration,
    encoders,
    endpoint,
    metrics,
    records,
    scoring,
    tuning,
    votes,
)
from ethalign.calibration import Floats
from ethalign.config import ROOT, Baselines, Run, read_yaml
from ethalign.models import Loaded

Rows = list[dict[str, Any]]
LOSSES: tuple[encoders.Loss, ...] = ("hard", "soft", "counts", "dirichlet")
# The scores that tables of the book show, of all that are recorded.
SHOWN = (
    "accuracy",
    "cross_entropy",
    "cross_entropy_scaled",
    "dirichlet_nll",
    "dirichlet_nll_fitted",
    "calibration_error",
)
# Smaller than any probability a float32 model tells apart from zero.
FLOOR = 1e-12


class Scaling(NamedTuple):
    """What is fitted on held-out rows: a temperature and a concentration."""

    temperature: float
    concentration: float


def source(run: Run, where: Path) -> Loaded | endpoint.Client:
    """Who is asked: the server that ``endpoint.url`` names, or the (tuned) local model.

    Args:
        run: the resolved configuration.
        where: run folder, with ``adapter/`` if the run was tuned.
    """
    if run.endpoint.url:
        return endpoint.Client(run.endpoint, run.model.id)
    adapter = where / "adapter" if run.tuning.enabled else None
    return tuning.with_adapter(run.model, adapter, seed=run.seed)


def predict(
    run: Run,
    model: Loaded | endpoint.Client,
    tables: dict[str, pd.DataFrame],
    path: Path,
    *,
    fresh: bool,
) -> pd.DataFrame:
    """Log-probabilities of both answers for every row, batch by batch, into a JSONL file.

    Args:
        run: the questions and their answers.
        model: the local model or the server to ask.
        tables: part (``test``, ``held-out``) to table of votes.
        path: ``predictions.jsonl``; complete rows in it are kept unless ``fresh``.
        fresh: start anew.

    Returns:
        A row per item: ``part, id, dataset, stratum, votes1, votes2, gold, verdict`` and the log
        of the raw mass on each answer, summed over its spellings: ``logp1, logp2`` as the file
        has the pair, and for dilemmas ``swapped1, swapped2`` with the actions swapped. The
        numbers always belong to answer 1 and 2 of the file. Behind a server also ``bounded``: the
        number of orders in which an answer was not listed and its mass is an upper bound.
    """
    if fresh:
        path.unlink(missing_ok=True)
    done = {(r["part"], r["id"]) for r in records.read_rows(path)}
    size = run.evaluation.batch_size
    work = []
    for part, table in tables.items():
        chunks = (table.iloc[s : s + size] for s in range(0, len(table), size))
        work += [(part, c) for c in chunks if not all((part, i) in done for i in c["id"])]
    if isinstance(model, endpoint.Client):
        model.permit(len(_orders(run)) * sum(len(chunk) for _, chunk in work))
    for part, chunk in records.progress(work, len(work), "scoring", "batch"):
        records.append_rows(path, _ask(run, model, part, chunk))
    rows = pd.DataFrame(records.read_rows(path))
    return rows.drop_duplicates(["part", "id"], keep="last").reset_index(drop=True)


def _orders(run: Run) -> tuple[str, ...]:
    return ("logp", "swapped") if run.votes.dataset == "dilemmas" else ("logp",)


def _ask(run: Run, model: Loaded | endpoint.Client, part: str, chunk: pd.DataFrame) -> Rows:
    names = votes.ANSWERS[run.votes.dataset]
    rows = [
        {
            "part": part,
            "id": row["id"],
            "dataset": str(chunk.attrs["dataset"]),
            "stratum": stratum,
            "votes1": int(row["votes1"]),
            "votes2": int(row["votes2"]),
            "gold": names[int(row["votes2"] > row["votes1"])],
        }
        for row, stratum in zip(chunk.to_dict("records"), votes.strata(chunk), strict=True)
    ]
    for order in _orders(run):
        swapped = order == "swapped"
        asked = [
            votes.question(run, row, swapped=swapped, tokenizer=model.tokenizer)
            for row in chunk.to_dict("records")
        ]
        if isinstance(model, endpoint.Client):
            one, two = (answer[0].strip() for answer in votes.spellings(run))
            mass, bounded = model.answers(asked, (one, two))
            for row, bound in zip(rows, bounded, strict=True):
                row["bounded"] = row.get("bounded", 0) + int(bound)
        else:
            mass = answer_logprobs(run, model, asked)
        for row, pair in zip(rows, mass[:, ::-1] if swapped else mass, strict=True):
            row |= {f"{order}{k}": round(float(v), 5) for k, v in enumerate(pair, 1)}
    for row, p in zip(rows, probabilities(pd.DataFrame(rows)), strict=True):
        row["verdict"] = names[int(p.argmax())]
    return rows


def answer_logprobs(run: Run, loaded: Loaded, asked: list[str]) -> Floats:
    """Log of the probability mass on both answers behind each prompt, (n, 2).

    Spellings that are the same tokens count once. Of written shares s each adds its mass times s
    to answer 1 and times 1 - s to answer 2: the answer is the expected share.
    """
    groups = votes.spellings(run)
    tokens = {
        text: tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in dict.fromkeys([*groups[0], *groups[1]])
    }
    texts = list({ids: text for text, ids in reversed(tokens.items())}.values())
    logp = scoring.choice_logprobs(
        loaded.model, loaded.tokenizer, asked, texts, batch_size=len(asked)
    )
    if run.votes.target == "verbalised":
        share = np.array([float(text.strip(" %")) / 100 for text in texts])
        weights = np.vstack([share, 1 - share])
    else:
        weights = np.array([[float(text in group) for text in texts] for group in groups])
    return np.column_stack([special.logsumexp(logp, axis=1, b=w) for w in weights])


def probabilities(predictions: pd.DataFrame, order: str = "both") -> Floats:
    """Normalised probabilities of both answers, (n, 2).

    Args:
        predictions: rows of ``predict``.
        order: ``logp`` (as in the file), ``swapped``, or ``both``: the mean of the two, which
            cancels a preference for a position.
    """
    found = [
        special.softmax(predictions[[f"{o}1", f"{o}2"]].to_numpy(float), axis=1)
        for o in ("logp", "swapped")
        if order in (o, "both") and f"{o}1" in predictions
    ]
    return np.asarray(np.mean(found, axis=0), dtype=float)


def fit_scaling(probs: Floats, counts: Floats) -> Scaling:
    """Temperature and concentration from held-out rows; (n, 2) each."""
    logits = np.log(np.maximum(probs, FLOOR))
    return Scaling(
        calibration.fit_temperature(logits, counts), calibration.fit_concentration(probs, counts)
    )


def masks(strata: pd.Series[str]) -> dict[str, Any]:
    """Boolean masks by stratum, ``all`` first."""
    names = [s for s in ("unanimous", "4-1", "3-2", "clear", "split") if (strata == s).any()]
    return {"all": np.ones(len(strata), bool)} | {s: (strata == s).to_numpy() for s in names}


def score_rows(
    run: Run,
    variant: str,
    table: pd.DataFrame,
    probs: Floats,
    *,
    scaling: Scaling | None = None,
    alpha: Floats | None = None,
) -> Rows:
    """Rows of ``metrics.json``: every score of one predictor in every stratum.

    Args:
        run: names study and seed, gives draws of the bootstrap.
        variant: name of the predictor.
        table: ``dataset, stratum, votes1, votes2`` of the items.
        probs: (n, 2) probabilities of both answers.
        scaling: fitted on other rows; adds the scores after it.
        alpha: (n, 2) concentrations of a predictor that has its own.
    """
    named = run.model_copy(update={"variant": variant})
    counts = votes.counts(table)
    kept = counts.sum(1) > 0
    rows: Rows = []
    for stratum, mask in masks(table["stratum"]).items():
        inside = mask & kept
        values = _scores(
            run, probs[inside], counts[inside], scaling, None if alpha is None else alpha[inside]
        )
        for metric, unit, estimate in values:
            dataset = str(table["dataset"].iloc[0])
            rows.append(records.row(named, dataset, stratum, metric, estimate, unit))
    return rows


def _scores(
    run: Run, p: Floats, n: Floats, scaling: Scaling | None, alpha: Floats | None
) -> Iterator[tuple[str, str, metrics.Estimate]]:
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}

    def mean(values: Floats) -> metrics.Estimate:
        return metrics.bootstrap(np.mean, values, **draws)

    answer, gold = p.argmax(1), n.argmax(1)
    yield "accuracy", "share", metrics.accuracy(answer, gold)
    yield "macro_f1", "share", metrics.macro_f1(answer, gold, **draws)
    variants = {"": p}
    if scaling:
        logits = np.log(np.maximum(p, FLOOR)) / scaling.temperature
        variants["_scaled"] = special.softmax(logits, axis=1)
    for ending, q in variants.items():
        yield f"cross_entropy{ending}", "nats", mean(calibration.cross_entropy(q, n))
        yield f"brier{ending}", "score", mean(calibration.brier(q, n))
        yield f"jensen_shannon{ending}", "score", mean(calibration.jensen_shannon(q, n))
        ece = metrics.bootstrap(
            lambda a, b: calibration.expected_calibration_error(a, b, run.votes.bins),
            q,
            n,
            **draws,
        )
        yield f"calibration_error{ending}", "share", ece
        yield f"entropy{ending}", "nats", mean(calibration.entropy(q))
    yield "entropy_votes", "nats", mean(calibration.entropy(n))
    plain = np.maximum(p, FLOOR)
    yield "dirichlet_nll", "nats", mean(calibration.dirichlet_multinomial_nll(plain, n))
    if scaling:
        fitted = scaling.concentration * plain
        nll = calibration.dirichlet_multinomial_nll(fitted, n)
        yield "dirichlet_nll_fitted", "nats", mean(nll)
    if alpha is not None:
        yield "dirichlet_nll_own", "nats", mean(calibration.dirichlet_multinomial_nll(alpha, n))


def summarise(run: Run, predictions: pd.DataFrame) -> tuple[Rows, Scaling]:
    """Rows of ``metrics.json`` of a language model, and what was fitted on the held-out rows.

    Adds the order bias (``first_position``: mean probability of whatever stands first;
    ``order_flips``: share of pairs whose verdict changes when they are swapped), the raw mass on
    the answers, and the scores of the authors' early code under ``early_``.
    """
    fit, test = (predictions[predictions["part"] == p] for p in ("held-out", "test"))
    test = test.reset_index(drop=True)
    scaling = fit_scaling(probabilities(fit), votes.counts(fit))
    probs = probabilities(test)
    rows = score_rows(run, run.variant, test, probs, scaling=scaling)
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}
    dataset = str(test["dataset"].iloc[0])

    def add(metric: str, unit: str, estimate: metrics.Estimate) -> None:
        rows.append(records.row(run, dataset, "all", metric, estimate, unit))

    mass = np.exp(test[["logp1", "logp2"]].to_numpy(float))
    add("answer_mass", "share", metrics.bootstrap(np.mean, mass.sum(1), **draws))
    if "swapped1" in test:
        one, two = probabilities(test, "logp"), probabilities(test, "swapped")
        first = (one[:, 0] + two[:, 1]) / 2
        add("first_position", "share", metrics.bootstrap(np.mean, first, **draws))
        flips = int((one.argmax(1) != two.argmax(1)).sum())
        add("order_flips", "share", metrics.share(flips, len(test)))
    if "bounded" in test:
        missing = int((test["bounded"] > 0).sum())
        add("answer_bounded", "share", metrics.share(missing, len(test)))
    for name, values in early_scores(mass, votes.counts(test)).items():
        add(f"early_{name}", "nats", metrics.bootstrap(np.mean, values, **draws))
    for name, value in scaling._asdict().items():
        add(name, "number", metrics.Estimate(value, value, value, len(fit)))
    return rows, scaling


def early_scores(mass: Floats, counts: Floats) -> dict[str, Floats]:
    """The defective scores of the authors' early public code, per item (papers.md 2.5).

    Args:
        mass: (n, 2) raw, not normalised probabilities of both answers.
        counts: (n, 2) votes.
    """
    h = calibration.shares(counts)
    return {
        "probabilities_as_logits": calibration.early_cross_entropy(mass, h),
        "counts_as_votes": calibration.cross_entropy(
            np.clip(mass / mass.sum(1, keepdims=True), FLOOR, 1),
            np.maximum(calibration.early_dilemma_shares(counts), FLOOR),
        ),
        "raw_mass_dirichlet": calibration.dirichlet_multinomial_nll(
            np.maximum(mass, FLOOR), counts
        ),
    }


def floors(run: Run, rows: votes.Splits) -> Rows:
    """Predictors that read nothing: uniform, the mean of the training votes, the majority.

    The Dirichlet prior fitted to the training votes has its own concentrations.
    """
    train, test = votes.counts(rows.train), table(rows.test, run)
    n = len(test)
    prior = calibration.fit_dirichlet_multinomial(train)
    mean = calibration.shares(train).mean(0)
    out: Rows = []
    for name, p in (("uniform", np.full(2, 0.5)), ("mean-votes", mean)):
        alpha = np.tile(prior, (n, 1)) if name == "mean-votes" else None
        out += score_rows(run, name, test, np.tile(p, (n, 1)), alpha=alpha)
    # A certain answer has no finite cross-entropy; only its labels are scored.
    top = np.full(n, int(train.argmax(1).mean() >= 0.5))
    return out + label_rows(run, "majority", str(test["dataset"].iloc[0]), top, votes.counts(test))


def label_rows(
    run: Run, variant: str, dataset: str, answer: NDArray[np.int64], counts: Floats
) -> Rows:
    """Accuracy and macro F1 of answers (n,) against the majority of the votes."""
    named = run.model_copy(update={"variant": variant})
    gold = counts.argmax(1)
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}
    found = {
        "accuracy": metrics.accuracy(answer, gold),
        "macro_f1": metrics.macro_f1(answer, gold, **draws),
    }
    return [records.row(named, dataset, "all", key, v, "share") for key, v in found.items()]


def best_rows(run: Run, dataset: str, counts: Floats) -> Rows:
    """The best possible scores (BEST) with the interval of their posterior draws."""
    named = run.model_copy(update={"variant": "best"})
    draws = calibration.best_draws(counts, run.votes.draws, run.seed)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    units = ("share", "share", "nats")
    return [
        records.row(
            named,
            dataset,
            "all",
            metric,
            metrics.Estimate(draws[:, k].mean(), low[k], high[k], len(counts)),
            units[k],
        )
        for k, metric in enumerate(calibration.Best._fields)
    ]


def human_rows(run: Run, dataset: str, frame: pd.DataFrame) -> Rows:
    """The majority of five further people against the majority of the first five."""
    answer = frame[["human1", "human2"]].to_numpy(float).argmax(1)
    return label_rows(run, "human", dataset, answer, votes.counts(frame))


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
    named = run.model_copy(update={"variant": "votes"})
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
    return [
        records.row(named, dataset, "all", key, metrics.Estimate(v, np.nan, np.nan, n), unit)
        for key, (unit, v) in facts.items()
    ]


def table(frame: pd.DataFrame, run: Run) -> pd.DataFrame:
    """``id, dataset, stratum, votes1, votes2, gold`` of a table of votes."""
    names = votes.ANSWERS[run.votes.dataset]
    shown = frame[["id", *votes.PAIR]].copy()
    shown["dataset"], shown["stratum"] = frame.attrs["dataset"], votes.strata(frame)
    shown["gold"] = [names[int(b > a)] for a, b in votes.counts(frame)]
    return shown.reset_index(drop=True)


def encode(run: Run, path: Path, rows: votes.Splits, loss: encoders.Loss) -> pd.DataFrame:
    """Fine-tune an encoder with one loss and let it judge held-out and test rows.

    Dilemmas are ranked: one score per action, softmax over the two, so that order cannot matter.
    Anecdotes are classified from title and text.

    Args:
        run: encoder settings (block ``baselines``) and seed.
        path: folder of the encoder.
        rows: the splits.
        loss: see ``encoders.fit``.

    Returns:
        Rows as of ``table`` with ``part``, logits ``z1, z2`` and ``verdict``.
    """
    ranked = run.votes.dataset == "dilemmas"
    columns = ("first", "second") if ranked else ("title", "text")

    def texts(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        return frame[columns[0]].tolist(), frame[columns[1]].tolist()

    counts = votes.counts(rows.train)
    one, two = texts(rows.train)
    fitted = encoders.fit(
        path,
        one,
        counts.argmax(1) if loss == "hard" else counts,
        pairs=two,
        loss=loss,
        ranked=ranked,
        epochs=run.baselines.encoder_epochs,
        lr=run.baselines.encoder_lr,
        batch_size=run.baselines.encoder_batch_size,
        weight_decay=run.baselines.encoder_weight_decay,
        warmup=run.baselines.encoder_warmup,
        seed=run.seed,
    )
    parts = []
    for part, frame in (("held-out", rows.held_out), ("test", rows.test)):
        one, two = texts(frame)
        z = encoders.logits(fitted, one, pairs=two, ranked=ranked)
        names = np.array(votes.ANSWERS[run.votes.dataset])
        found = {"part": part, "z1": z[:, 0], "z2": z[:, 1], "verdict": names[z.argmax(1)]}
        parts.append(table(frame, run).assign(**found))
    return pd.concat(parts, ignore_index=True)


def search(run: Run, path: Path, rows: votes.Splits, loss: encoders.Loss) -> Run:
    """The run with the encoder settings that did best of ``baselines.encoder_trials`` draws.

    Settings are drawn from ``configs/search.yaml`` (the space of Scruples). A trial's score is
    the cross-entropy on held-out rows after temperature scaling; one that diverged scores 5.
    """
    space = read_yaml(ROOT / "configs" / "search.yaml")
    best, chosen = np.inf, run
    for trial in range(run.baselines.encoder_trials):
        random = np.random.default_rng([run.seed, trial])
        drawn = {name: _draw(random, *next(iter(how.items()))) for name, how in space.items()}
        settings = Baselines.model_validate(run.baselines.model_dump() | drawn)
        tried = run.model_copy(update={"baselines": settings})
        found = encode(tried, path, rows, loss)
        fit = found[found["part"] == "held-out"]
        z, counts = fit[["z1", "z2"]].to_numpy(float), votes.counts(fit)
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


def encoder_rows(run: Run, variant: str, found: pd.DataFrame) -> Rows:
    """Rows of ``metrics.json`` for the predictions of ``encode``."""
    fit, test = (found[found["part"] == p].reset_index(drop=True) for p in ("held-out", "test"))
    logits = {key: t[["z1", "z2"]].to_numpy(float) for key, t in (("fit", fit), ("test", test))}
    probs = {key: special.softmax(z, axis=1) for key, z in logits.items()}
    own = np.exp(logits["test"]) if variant.endswith("dirichlet") else None
    scaling = fit_scaling(probs["fit"], votes.counts(fit))
    return score_rows(run, variant, test, probs["test"], scaling=scaling, alpha=own)
