"""Answer probabilities against votes: from a model to predictions, and to rows of metrics."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from ethalign import calibration, endpoint, metrics, records, scoring, tuning
from ethalign.ambiguity import data, prompts
from ethalign.ambiguity.settings import Run
from ethalign.calibration import Floats
from ethalign.metrics import Estimate
from ethalign.models import Loaded
from ethalign.study import Rows

# Metric, unit, and an estimate or a value per item, of which the mean is meant.
Found = Iterable[tuple[str, str, Estimate | Floats]]
# The scores that tables of the book show, of all that are recorded.
SHOWN = (
    *("accuracy", "cross_entropy", "cross_entropy_scaled", "dirichlet_nll"),
    *("dirichlet_nll_fitted", "calibration_error"),
)
# Smaller than any probability a float32 model tells apart from zero.
FLOOR = 1e-12


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Ask the model; facts are its record and notes, and of stories the share of cut test rows."""
    kept = where / "answers.jsonl"
    model = respondent(run, before.get("finetune"), kept)
    tables = data.tests(run)
    ask(run, model, tables, where / "predictions.jsonl")
    kept.unlink(missing_ok=True)
    facts: dict[str, Any] = {"model": model.record, "notes": model.notes}
    if "text" in tables["test"]:
        words = tables["test"]["text"].str.count(" ") + 1
        facts["cut"] = round(float((words > run.votes.max_words).mean()), 6)
    return facts


def measure(run: Run, folder: Path, before: dict[str, Path]) -> Rows:
    """Rows of ``metrics.json`` of a language model, or of all encoders, from predictions."""
    rows = records.read_rows(folder / "predictions.jsonl")
    table = pd.DataFrame([{"variant": run.variant, **row} for row in rows])
    parts = table.groupby("variant", sort=False)
    return [row for name, part in parts for row in measure_rows(run, str(name), part)]


def respondent(run: Run, tuned: Path | None, kept: Path | None = None) -> Loaded | endpoint.Client:
    """Who is asked: the server that ``endpoint.url`` names, or the model tuned in a folder.

    The answers of a server are ``kept`` one by one.
    """
    if not run.endpoint.server and run.endpoint.url:
        return endpoint.Client(run.endpoint, run.model.id, kept)
    adapter = tuned and tuned / "adapter"
    return tuning.with_adapter(run.model, adapter, seed=run.seed, server=run.endpoint.server)


def ask(
    run: Run, model: Loaded | endpoint.Client, tables: dict[str, pd.DataFrame], path: Path
) -> pd.DataFrame:
    """Log-probabilities of both answers for every row, batch by batch, into a JSONL file.

    ``tables`` are those of ``data.tests``; complete rows in ``path`` are kept.

    Returns:
        A row per item, with the fields of ``data.record``, ``verdict`` and the log of the raw mass
        on each answer, summed over its verbalizers: ``logp1, logp2`` as the file has the pair, and
        for dilemmas ``swapped1, swapped2`` with the actions swapped; they always belong to answer
        1 and 2 of the file. Behind a server also ``bounded``: those of these fields that are upper
        bounds, since the answer was not listed. There is no verdict if neither was; see
        ``answered``.
    """
    parts = [data.items(table, part, run.votes.dataset) for part, table in tables.items()]
    work, size = functools.partial(_answer, run, model), run.evaluation.batch_size
    if isinstance(model, endpoint.Client):
        left = sum(map(len, parts)) - len(records.read_rows(path))
        model.permit(len(orders(run)) * left)
    else:
        size *= scoring.BATCHES
    rows: Rows = []
    for part in parts:  # one after the other: a batch holds rows of one part
        rows += records.fill(path, part, work, keys=("part", "id"), size=size, what="scoring")
    return pd.DataFrame(rows)


def orders(run: Run) -> tuple[str, ...]:
    """Fields of the log mass on both answers, by the order in which the pair was shown."""
    return ("logp", "swapped") if prompts.swaps(run.votes) else ("logp",)


def _answer(run: Run, model: Loaded | endpoint.Client, chunk: Rows) -> Rows:
    rows = [data.record(item) for item in chunk]
    question = functools.partial(prompts.question, run.votes, run.prompt.template)
    for order in orders(run):
        swapped = order == "swapped"
        asked = [question(i, swapped=swapped, tokenizer=model.tokenizer) for i in chunk]
        if isinstance(model, endpoint.Client):
            one, two = (texts[0].strip() for texts in prompts.verbalizers(run.votes))
            mass, bounded = model.answers(asked, (one, two))
            for row, bounds in zip(rows, bounded[:, ::-1] if swapped else bounded, strict=True):
                names = [f"{order}{k}" for k, bound in enumerate(bounds, 1) if bound]
                row["bounded"] = row.get("bounded", []) + names
        else:
            mass = answer_logprobs(run, model, asked)
        for row, pair in zip(rows, mass[:, ::-1] if swapped else mass, strict=True):
            row |= {f"{order}{k}": round(float(v), 5) for k, v in enumerate(pair, 1)}
    verdicts, table = data.ANSWERS[run.votes.dataset], pd.DataFrame(rows)
    for row, p, known in zip(rows, probabilities(table), answered(table), strict=True):
        row["verdict"] = verdicts[int(p.argmax())] if known else None
    return rows


def answered(predictions: pd.DataFrame) -> NDArray[np.bool_]:
    """Which items have an answer: in no order are both answers missing from a server's list."""
    bounded = predictions.get("bounded", pd.Series([[]] * len(predictions)))
    both = [{f"{order}1", f"{order}2"} for order in ("logp", "swapped")]
    return np.array([not any(pair <= {*names} for pair in both) for names in bounded], dtype=bool)


def answer_logprobs(run: Run, loaded: Loaded, asked: list[str]) -> Floats:
    """Log of the probability mass on both answers behind each prompt, (n, 2).

    Verbalizers that are the same tokens count once. Of written shares s each adds its mass times
    s to answer 1 and times 1 - s to answer 2: the answer is the expected share.
    """
    groups, model, tokenizer = prompts.verbalizers(run.votes), loaded.model, loaded.tokenizer
    texts = list(reversed(dict.fromkeys([*groups[0], *groups[1]])))
    _, ids = scoring.split(tokenizer, asked[0], texts)
    texts = list({tuple(i): text for i, text in zip(ids, texts, strict=True)}.values())
    size = run.evaluation.batch_size
    logp = scoring.choice_logprobs(model, tokenizer, asked, texts, batch_size=size)
    if run.votes.target == "verbalised":
        share = np.array([float(text.strip(" %")) / 100 for text in texts])
        weights = np.vstack([share, 1 - share])
    else:
        weights = np.array([[float(text in group) for text in texts] for group in groups])
    return np.column_stack([special.logsumexp(logp, axis=1, b=w) for w in weights])


def judge(run: Run, held_out: pd.DataFrame, loaded: Loaded) -> float:
    """Mean cross-entropy of a model to the votes of the calibration split."""
    rows = _answer(run, loaded, data.items(held_out, "held-out", run.votes.dataset))
    loss = calibration.cross_entropy(probabilities(pd.DataFrame(rows)), data.counts(held_out))
    return float(loss.mean())


def probabilities(predictions: pd.DataFrame, order: str = "all") -> Floats:
    """Normalised probabilities of both answers, (n, 2), of a language model or an encoder.

    ``order`` is ``logp`` (as in the file), ``swapped``, or ``all``: the mean of what is there,
    which cancels a preference for a position.
    """
    found = [
        special.softmax(predictions[[f"{o}1", f"{o}2"]].to_numpy(float), axis=1)
        for o in ("logp", "swapped", "z")
        if order in (o, "all") and f"{o}1" in predictions
    ]
    return np.asarray(np.mean(found, axis=0), dtype=float)


def fit_scaling(probs: Floats, counts: Floats) -> dict[str, float]:
    """``temperature``, and the ``concentration`` behind it; (n, 2) of the calibration split.

    In this order: a concentration alone would have to pay for probabilities that are too sure.
    """
    heat = calibration.fit_temperature(np.log(np.maximum(probs, FLOOR)), counts)
    kappa = calibration.fit_concentration(scaled(probs, heat), counts)
    return {"temperature": heat, "concentration": kappa}


@metrics.weighted
def correlation(weights: metrics.Weights, first: Floats, second: Floats) -> Floats:
    """Pearson's correlation of two arrays (n,); 0 if one is constant, and so says nothing."""
    x, y, n = first - first.mean(), second - second.mean(), weights.total
    mean_x, mean_y = weights.sum(x) / n, weights.sum(y) / n
    # What is left of a constant is its rounding.
    spreads = [
        np.where(found > 1e-12 * (values**2).mean(), found, 0)
        for values, found in (
            (x, weights.sum(x**2) / n - mean_x**2),
            (y, weights.sum(y**2) / n - mean_y**2),
        )
    ]
    spread = np.sqrt(spreads[0] * spreads[1])
    shared = weights.sum(x * y) / n - mean_x * mean_y
    return np.where(spread * n > FLOOR, metrics.over(shared, spread), 0)


def scaled(probs: Floats, temperature: float) -> Floats:
    """Probabilities after temperature scaling, (n, 2)."""
    logits = np.log(np.maximum(probs, FLOOR)) / temperature
    return np.asarray(special.softmax(logits, axis=1), dtype=float)


def metric_rows(
    run: Run,
    variant: str,
    dataset: str,
    found: Found,
    stratum: str = "all",
    actions: NDArray[Any] | None = None,
) -> Rows:
    """Rows of ``metrics.json`` of a predictor, whatever the run's own variant.

    Intervals of means are those of pairs that share ``actions`` (n, 2), if these are known.
    """
    named, rows = run.model_copy(update={"variant": variant}), []
    draws = {"seed": run.seed, "draws": run.evaluation.bootstrap}
    for name, unit, value in found:
        if not isinstance(value, Estimate):
            if actions is None:
                value = metrics.bootstrap(np.mean, value, **draws)
            else:
                value = calibration.dyadic(value, actions)
        rows.append(records.row(named, dataset, stratum, name, value, unit))
    return rows


def share(hits: NDArray[np.bool_], actions: NDArray[Any] | None) -> Estimate:
    """The share of items that hit; Wilson's interval, stretched as that of ``dyadic`` is wider."""
    value, low, high, n = metrics.share(int(hits.sum()), len(hits))
    if actions is not None and 0 < value < 1:
        half = 1.96 * np.sqrt(value * (1 - value) / (n - 1))
        wider = (calibration.dyadic(hits, actions).high - value) / half
        low, high = value - wider * (value - low), value + wider * (high - value)
    return Estimate(value, max(0.0, low), min(1.0, high), n)


def together(
    run: Run, statistic: metrics.Statistic, table: pd.DataFrame, *arrays: Any
) -> Estimate:
    """A statistic of arrays (n, …), one row per item, with neighbours resampled together."""
    draws, groups = {"seed": run.seed, "draws": run.evaluation.bootstrap}, data.neighbours(table)
    if groups is None:
        return metrics.bootstrap(statistic, *arrays, **draws)
    return metrics.interval(statistic, *arrays, groups=groups, **draws)


def actions(table: pd.DataFrame) -> NDArray[Any] | None:
    """Both actions of each pair, (n, 2); None of stories, and of records that do not have them."""
    return table[list(data.ACTIONS)].to_numpy() if {*data.ACTIONS} <= {*table} else None


def score_rows(run: Run, variant: str, table: pd.DataFrame, **scaling: float) -> Rows:
    """Every score of one predictor in every stratum, over the items that have votes.

    Args:
        table: ``dataset, stratum, votes1, votes2`` of the items, ``p1, p2`` (probabilities of
            both answers) and, of a predictor that has its own, ``a1, a2`` (concentrations).
        scaling: as of ``fit_scaling``, from other rows; adds the scores after it.
    """
    voted, rows = table[data.counts(table).sum(1) > 0], []
    parts = {name: voted[voted["stratum"] == name] for name in data.STRATA}
    if {*data.FURTHER} <= {*voted} and voted[list(data.FURTHER)].notna().all(axis=None):
        # The scored votes do not choose these, so that a perfect predictor stays perfect.
        further = np.array(calibration.disagreement(voted[list(data.FURTHER)].to_numpy(float)))
        parts |= {f"further-{name}": voted[further == name] for name in data.STRATA}
    for stratum, part in {"all": voted, **parts}.items():
        if len(part) or stratum == "all":
            found = _scores(run, part, **scaling)
            if stratum == "all" or stratum.startswith("further-"):
                found = itertools.chain(found, _spreads(run, part, **scaling))
            name = str(table["dataset"].iloc[0])
            rows += metric_rows(run, variant, name, found, stratum, actions(part))
    return rows


def _scores(run: Run, table: pd.DataFrame, **scaling: float) -> Found:
    p, n = table[["p1", "p2"]].to_numpy(float), data.counts(table)
    yield from label_scores(run, p.argmax(1), table)
    after = {"_scaled": scaled(p, scaling["temperature"])} if scaling else {}
    for ending, q in {"": p, **after}.items():
        yield f"cross_entropy{ending}", "nats", calibration.cross_entropy(q, n)
        yield f"brier{ending}", "score", calibration.brier(q, n)
        yield f"jensen_shannon{ending}", "score", calibration.jensen_shannon(q, n)
        yield f"total_variation{ending}", "share", calibration.total_variation(q, n)
        yield f"entropy{ending}", "nats", calibration.entropy(q)
        yield f"entropy_gap{ending}", "nats", calibration.entropy(q) - calibration.entropy(n)
    yield "entropy_votes", "nats", calibration.entropy(n)
    alphas = {"": np.maximum(p, FLOOR)}
    if scaling:
        alphas["_fitted"] = scaling["concentration"] * np.maximum(after["_scaled"], FLOOR)
    if "a1" in table:
        alphas["_own"] = table[["a1", "a2"]].to_numpy(float)
    for ending, a in alphas.items():
        yield f"dirichlet_nll{ending}", "nats", calibration.dirichlet_multinomial_nll(a, n)


def _spreads(run: Run, table: pd.DataFrame, **scaling: float) -> Found:
    """Scores of all items together; among items chosen by their votes they mean nothing.

    ``rank_correlation`` (Spearman) between the probability of the first answer and its share of
    the votes, and ``entropy_correlation`` (Pearson): whether the predictor knows which items
    divide people. Neither of what is the same everywhere.
    """
    p, n = table[["p1", "p2"]].to_numpy(float), data.counts(table)
    if len(table) < 2:
        return
    bins = min(run.votes.bins, len(table) // 2)
    error = functools.partial(calibration.debiased_calibration_error, bins=bins)
    yield "calibration_error", "share", error(p, n)
    if scaling:
        yield "calibration_error_scaled", "share", error(scaled(p, scaling["temperature"]), n)
    if np.ptp(p[:, 0]) > FLOOR:
        pairs = {
            "rank_correlation": [stats.rankdata(x[:, 0]) for x in (p, calibration.shares(n))],
            "entropy_correlation": [calibration.entropy(x) for x in (p, n)],
        }
        for name, arrays in pairs.items():
            yield name, "score", together(run, correlation, table, *arrays)


def label_scores(run: Run, answer: metrics.Ints, table: pd.DataFrame) -> Found:
    """Accuracy and macro F1 of answers (n,) against the majority of the votes."""
    gold = data.counts(table).argmax(1)
    yield "accuracy", "share", share(answer == gold, actions(table))
    f1 = functools.partial(metrics.f1, k=2)
    yield "macro_f1", "share", together(run, f1, table, answer, gold)


def measure_rows(run: Run, variant: str, predictions: pd.DataFrame) -> Rows:
    """Rows of ``metrics.json`` of an encoder or a language model.

    Beside its scores of a language model the order bias (``first_position``: mean probability of
    whatever stands first; ``order_flips``: share of pairs whose verdict changes when they are
    swapped; ``order_gap``: mean difference between the probabilities of an action in both orders;
    the scores in the file's order alone, as the authors ask), the raw mass on the answers, the
    scores of the authors' early code under ``early_``, and what was fitted on the held-out rows
    (``temperature``, ``concentration``). The calibration split has rows of its own under
    ``held-out``, by which settings are chosen. Items without an answer are not scored; their
    share is ``no_answer``.
    """
    known = answered(predictions)
    missing, predictions = predictions[~known], predictions[known]
    fit, test = (predictions[predictions["part"] == p].copy() for p in ("held-out", "test"))
    none = int((missing["part"] == "test").sum())
    silent = [("no_answer", "share", metrics.share(none, none + len(test)))]
    if fit.empty or test.empty:
        return metric_rows(run, variant, str(missing["dataset"].iloc[0]), silent)
    p, n = probabilities(fit), data.counts(fit)
    scaling, held = fit_scaling(p, n), [*label_scores(run, p.argmax(1), fit)]
    held.append(("cross_entropy", "nats", calibration.cross_entropy(p, n)))
    test[["p1", "p2"]] = probabilities(test)
    if variant.endswith("dirichlet"):
        test[["a1", "a2"]] = np.exp(test[["z1", "z2"]].to_numpy(float))
    rows = score_rows(run, variant, test, **scaling)
    rows += metric_rows(run, variant, "held-out", held, actions=actions(fit))
    if "epoch" in test:
        kept = Estimate(float(test["epoch"].iloc[0]), np.nan, np.nan, len(test))
        rows += metric_rows(
            run, variant, str(test["dataset"].iloc[0]), [("epoch", "number", kept)]
        )
    if "logp1" not in test:
        return rows
    found = [*_manners(test), *(silent if "bounded" in test else [])]
    fitted: dict[int, dict[str, float]] = {}  # both are fitted to the same samples

    def scale(p: Floats, n: Floats, name: str) -> float:
        key = hash((p.tobytes(), n.tobytes()))
        fitted[key] = fitted[key] if key in fitted else fit_scaling(p, n)
        return fitted[key][name]

    for k in scaling:
        value = together(run, functools.partial(scale, name=k), fit, p, n)
        found.append((k, "number", value))
    name = str(test["dataset"].iloc[0])
    return rows + metric_rows(run, variant, name, found, actions=actions(test))


def _manners(test: pd.DataFrame) -> Found:
    """How a model answers, rather than how well; and its scores in one order alone."""
    mass, n = np.exp(test[["logp1", "logp2"]].to_numpy(float)), data.counts(test)
    yield "answer_mass", "share", mass.sum(1)
    if "swapped1" in test:
        one, two = probabilities(test, "logp"), probabilities(test, "swapped")
        yield "first_position", "share", (one[:, 0] + two[:, 1]) / 2
        yield "order_flips", "share", share(one.argmax(1) != two.argmax(1), actions(test))
        yield "order_gap", "share", np.abs(one[:, 0] - two[:, 0])
        right = one.argmax(1) == n.argmax(1)
        yield "accuracy_one_order", "share", share(right, actions(test))
        yield "cross_entropy_one_order", "nats", calibration.cross_entropy(one, n)
    if "bounded" in test:
        yield from _bounds(test, n)
    for name, values in early_scores(mass, n).items():
        yield f"early_{name}", "nats", values


def _bounds(test: pd.DataFrame, counts: Floats) -> Found:
    """What is left open where a server lists one answer of two and the other is only bounded.

    ``answer_bounded`` is the share of such items. Their other scores take the bound for the mass,
    which makes a model less sure than it is; the cross-entropy lies between ``_least`` and
    ``_most``, over all masses from ``FLOOR`` to the bound.
    """
    bounded = test["bounded"].map(len).to_numpy() > 0
    yield "answer_bounded", "share", metrics.share(int(bounded.sum()), len(test))
    if not bounded.any():
        return
    orders, nothing = [o for o in ("logp", "swapped") if f"{o}1" in test], test.copy()
    for field in (f"{order}{k}" for order in orders for k in (1, 2)):
        nothing.loc[[field in names for names in test["bounded"]], field] = np.log(FLOOR)
    ends = np.array([[probabilities(t, o)[:, 0] for o in orders] for t in (test, nothing)])
    low, high = ends.min(0).mean(0), ends.max(0).mean(0)
    closest = np.clip(calibration.shares(counts)[:, 0], low, high)
    least, *both = (
        calibration.cross_entropy(np.column_stack([p, 1 - p]), counts)
        for p in (closest, np.maximum(low, FLOOR), np.minimum(high, 1 - FLOOR))
    )
    yield "cross_entropy_least", "nats", least
    yield "cross_entropy_most", "nats", np.maximum(*both)


def early_scores(mass: Floats, counts: Floats) -> dict[str, Floats]:
    """The defective scores of the authors' early public code, per item.

    From raw, not normalised probabilities and votes, (n, 2) each. See *The papers, read
    closely*, Ethical ambiguity, defects and slips 1, 2 and 5.
    """
    h, normal = calibration.shares(counts), mass / mass.sum(1, keepdims=True)
    early = np.maximum(calibration.early_dilemma_shares(counts), FLOOR)
    alpha = np.maximum(mass, FLOOR)
    return {
        "probabilities_as_logits": calibration.early_cross_entropy(mass, h),
        "counts_as_votes": calibration.cross_entropy(np.clip(normal, FLOOR, 1), early),
        "raw_mass_dirichlet": calibration.dirichlet_multinomial_nll(alpha, counts),
    }
