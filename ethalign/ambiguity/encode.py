"""Everything that is not a language model: ceilings, floors, people, and encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from scipy import special

from ethalign import calibration, encoders, models, records, sources
from ethalign.ambiguity import data, evaluate
from ethalign.ambiguity.settings import Baselines, Run
from ethalign.calibration import Floats
from ethalign.config import ROOT, Model, read_yaml
from ethalign.metrics import Estimate
from ethalign.sources import Source
from ethalign.study import Rows

Names = tuple[str, ...]
#: Encoders and their losses; the last is the negative control, and learns from permuted votes.
LOSSES: dict[str, encoders.Loss] = {k: k for k in get_args(encoders.Loss)}
LOSSES["shuffled"] = "soft"
# Tokens of an action and of a story, as in Scruples (Lourie et al. 2020).
LENGTHS = {"dilemmas": 92, "anecdotes": 512}
SEARCH = ROOT / "configs" / "ambiguity" / "search.yaml"
READ = ("train", "test", "dilemmas-dev", "anecdotes-votes")
#: Tables of votes that no predictor is scored on, beside the data of a run.
BESIDE = ("dilemmas-dev", "anecdotes-five", "anecdotes-two")
# How a setting is drawn between two ends.
DRAWS: dict[str, Callable[[np.random.Generator, Any, Any], float | int]] = {
    "log": lambda random, low, high: float(np.exp(random.uniform(np.log(low), np.log(high)))),
    "uniform": lambda random, low, high: float(random.uniform(low, high)),
    "whole": lambda random, low, high: int(random.integers(low, high + 1)),
    "power": lambda random, low, high: 2 ** int(random.integers(low, high + 1)),
}


def compute(run: Run, where: Path, before: dict[str, Path]) -> dict[str, Any]:
    """Fit an encoder with each of ``LOSSES``, and let it judge held-out and test rows.

    ``predictions.jsonl`` gets ``data.record``, ``variant``, ``verdict``, the logits ``z1, z2`` and
    the ``epoch`` that was kept; facts are how many rows each part has, and the encoder.
    """
    rows, dataset = data.splits(run), run.votes.dataset
    items = data.items(rows.held_out, "held-out", dataset) + data.items(rows.test, "test", dataset)
    asked = [
        {"variant": f"encoder-{name}"} | data.record(item) for name in LOSSES for item in items
    ]
    folder, record = models.locate(Model(id=run.baselines.encoder), run.seed)
    device, why = models.choose_device(run.model.device)
    record |= {"device": models.device_name(device), "dtype": "float32"}
    work = functools.partial(_judge, run, folder)
    path, keys, size = where / "predictions.jsonl", ("variant", "part", "id"), len(items)
    records.fill(path, asked, work, keys=keys, size=size, what="encoders")
    sizes = {name: len(frame) for name, frame in rows._asdict().items()}
    return {"rows": sizes, "model": record, "notes": [why]}


def files(run: Run) -> dict[str, Path]:
    """The data files, and the space of the search if there is one."""
    return data.files(run, *READ) | ({"search": SEARCH} if run.baselines.encoder_trials else {})


def _judge(run: Run, path: Path, asked: Rows) -> Rows:
    """The items of one encoder with its verdicts and logits."""
    name = str(asked[0]["variant"]).removeprefix("encoder-")
    if name == "shuffled":
        settings = run.data.model_copy(update={"shuffle_labels": True})
        run = run.model_copy(update={"data": settings})
    rows, loss = data.splits(run), LOSSES[name]
    if run.baselines.encoder_trials:
        run = search(run, path, rows, loss)
    answers = data.ANSWERS[run.votes.dataset]
    scores, epoch = encode(run, path, rows, loss)
    return [
        item
        | {"z1": float(z[0]), "z2": float(z[1]), "verdict": answers[int(z.argmax())]}
        | {"epoch": epoch}
        for item, z in zip(asked, scores, strict=True)
    ]


def encode(run: Run, path: Path, rows: data.Splits, loss: encoders.Loss) -> tuple[Floats, int]:
    """Fine-tune an encoder with one loss; logits of held-out, then test rows, (n, 2), and epoch.

    Dilemmas are ranked: one score per action, softmax over the two, so that order cannot matter.
    Anecdotes are classified from title and text. ``path`` is the folder of the encoder. The epoch
    (from 1) is that with the best ``worth`` on the held-out rows.
    """
    ranked = run.votes.dataset == "dilemmas"
    columns = ("first", "second") if ranked else ("title", "text")
    train, *judged = [[frame[column].tolist() for column in columns] for frame in rows]
    counts = data.counts(rows.train)
    goal = counts.argmax(1) if loss == "hard" else counts
    settings = run.baselines.model_dump(exclude={"encoder", "encoder_trials"})
    how = {name.removeprefix("encoder_"): value for name, value in settings.items()}
    how["max_length"] = how["max_length"] or LENGTHS[run.votes.dataset]
    how |= {"device": models.choose_device(run.model.device)[0], "seed": run.seed}
    read = {"ranked": ranked, "max_length": how["max_length"]}
    scores: list[float] = []

    def judge(encoder: encoders.Encoder) -> float:
        one, two = judged[0]
        z = encoders.logits(encoder, one, pairs=two, **read)
        scores.append(worth(z, data.counts(rows.held_out)))
        return scores[-1]

    fitted = encoders.fit(
        path, train[0], goal, pairs=train[1], loss=loss, ranked=ranked, judge=judge, **how
    )
    z = [encoders.logits(fitted, one, pairs=two, **read) for one, two in judged]
    return np.vstack(z), scores.index(min(scores)) + 1


def worth(z: Floats, counts: Floats) -> float:
    """Cross-entropy of logits (n, 2) to the votes after temperature scaling, as in Scruples.

    By it epochs and settings are chosen; an encoder that diverged has 5, as theirs did.
    """
    if not np.isfinite(z).all():
        return 5.0
    scaled = special.softmax(z / calibration.fit_temperature(z, counts), axis=1)
    return float(calibration.cross_entropy(scaled, counts).mean())


def search(run: Run, path: Path, rows: data.Splits, loss: encoders.Loss) -> Run:
    """The run with the encoder settings that did best of ``baselines.encoder_trials`` draws.

    Settings are drawn from ``configs/ambiguity/search.yaml`` (the space of Scruples) and judged
    by their ``worth`` on the held-out rows.
    """
    best, chosen, counts = np.inf, run, data.counts(rows.held_out)
    space = [(name, *how) for name, drawn in read_yaml(SEARCH).items() for how in drawn.items()]
    for trial in range(run.baselines.encoder_trials):
        random = np.random.default_rng([run.seed, trial])
        drawn = {name: DRAWS[kind](random, *ends) for name, kind, ends in space}
        settings = Baselines.model_validate(run.baselines.model_dump() | drawn)
        tried = run.model_copy(update={"baselines": settings})
        score = worth(encode(tried, path, rows, loss)[0][: len(counts)], counts)
        if score < best:
            best, chosen = score, tried
    return chosen


def bounds(run: Run) -> Rows:
    """Ceilings, facts about votes, people and floors: all that follows from votes alone.

    With official data also the votes of all development pairs and of 2,500 stories (``BESIDE``);
    nothing where the official files are not on this machine.
    """
    official = [at for _, at in data.places(run, *READ) if isinstance(at, Source)]
    if not all(map(sources.present, official)):
        return []
    rows = data.splits(run)
    name = str(rows.test.attrs["dataset"])
    found = vote_rows(run, name, rows.test, data.ANSWERS[run.votes.dataset]) + floors(run, rows)
    if official:
        dev, stories = data.table("dilemmas", "dev"), data.table("anecdotes-votes", "dev")
        found += vote_rows(run, BESIDE[0], dev, data.ANSWERS["dilemmas"])
        found += vote_rows(run, BESIDE[1], stories, data.FIVE, data.FIVE)
        found += vote_rows(run, BESIDE[2], stories, data.ANSWERS["anecdotes"])
    return found


def floors(run: Run, rows: data.Splits) -> Rows:
    """Predictors that read nothing: uniform, the mean of the test votes, the majority.

    ``mean-votes`` is the best constant in hindsight, with the concentrations that fit the test
    votes best, so that nothing that reads nothing can be better. ``human-posterior``, where the
    file has five further votes, is what is to be expected of the first five from these and the
    Dirichlet prior of the training votes.
    """
    train, votes = data.counts(rows.train), data.counts(rows.test)
    prior, name = calibration.fit_dirichlet_multinomial(train), str(rows.test.attrs["dataset"])
    own, mean = calibration.fit_dirichlet_multinomial(votes), calibration.shares(votes)
    test = pd.DataFrame(data.items(rows.test, "test", run.votes.dataset))
    uniform = test.assign(p1=0.5, p2=0.5)
    out = evaluate.score_rows(run, "uniform", uniform)
    known = dict(zip(("p1", "p2", "a1", "a2"), [*np.nanmean(mean, axis=0), *own], strict=True))
    out += evaluate.score_rows(run, "mean-votes", test.assign(**known))
    if {*data.FURTHER} <= {*test}:
        further = test[list(data.FURTHER)].to_numpy(float)
        known = dict(zip(("a1", "a2"), (prior + further).T, strict=True))
        known |= zip(("p1", "p2"), calibration.posterior_mean(prior, further).T, strict=True)
        out += evaluate.score_rows(run, "human-posterior", test.assign(**known))
    # A certain answer has no finite cross-entropy; only its labels are scored.
    top = np.full(len(test), int(train.argmax(1).mean() >= 0.5))
    labels = evaluate.label_scores(run, top, test)
    return out + evaluate.metric_rows(run, "majority", name, labels)


def vote_rows(
    run: Run, dataset: str, frame: pd.DataFrame, names: Names, columns: Names = data.PAIR
) -> Rows:
    """What follows from the votes in some columns alone, on answers of these ``names``.

    ``best`` are the best possible scores (BEST) with the interval of their posterior draws, of
    the cross-entropy also by how divided the votes were (there in closed form),
    ``votes`` the ``vote_facts``, and ``human`` is the majority of five further people, where the
    file has them, against the majority of the first five.
    """
    counts = frame[list(columns)].to_numpy(float)
    draws = calibration.best_draws(counts, run.votes.draws, run.seed)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    units = (("accuracy", "share"), ("macro_f1", "share"), ("cross_entropy", "nats"))
    best = [
        (*unit, Estimate(draws[:, k].mean(), low[k], high[k], len(counts)))
        for k, unit in enumerate(units)
    ]
    found: dict[str, evaluate.Found] = {
        "best": best,
        "votes": vote_facts(counts[counts.sum(1) > 0], names),
    }
    if {*data.FURTHER} <= {*frame}:
        answer = frame[list(data.FURTHER)].to_numpy(float).argmax(1)
        found["human"] = evaluate.label_scores(run, answer, frame)
    rows = [row for k, f in found.items() for row in evaluate.metric_rows(run, k, dataset, f)]
    strata = np.array(calibration.disagreement(counts))
    loss, spread = calibration.best_cross_entropy(counts)
    for stratum in [name for name in data.STRATA if name in strata]:
        part = strata == stratum
        mean, half = loss[part].mean(), 1.96 * np.sqrt(spread[part].sum()) / part.sum()
        known = [("cross_entropy", "nats", Estimate(mean, mean - half, mean + half, part.sum()))]
        rows += evaluate.metric_rows(run, "best", dataset, known, stratum)
    return rows


def vote_facts(counts: Floats, names: Names) -> evaluate.Found:
    """Facts about votes (n, k), so that a page can show them without data.

    How many items and votes, their median, the shares of items with one vote and of unanimous
    ones; for each answer how often it has most votes (``top_``) and its fitted concentration
    (``alpha_``); the cross-entropy of the mean votes and of equal shares; and for two answers
    how the share of the second is spread over tenths (``tenth_``, items with five votes or more).
    """
    n, total, h = len(counts), counts.sum(1), calibration.shares(counts)
    alpha, top = calibration.fit_dirichlet_multinomial(counts), counts.argmax(1)
    facts = [
        ("items", "number", n),
        ("votes", "number", total.sum()),
        ("median_votes", "number", np.median(total)),
        ("one_vote", "share", (total == 1).mean()),
        ("unanimous", "share", (counts.max(1) == total).mean()),
    ]
    for k, name in enumerate(names):
        facts.append((f"top_{name}", "share", (top == k).mean()))
        facts.append((f"alpha_{name}", "number", alpha[k]))
    for name, p in (("mean", h.mean(0)), ("uniform", np.full(len(names), 1 / len(names)))):
        loss = calibration.cross_entropy(p, counts).mean()
        facts.append((f"cross_entropy_{name}", "nats", loss))
    if len(names) == 2:
        # In whole numbers: 3 of 5 votes are six tenths, which 0.6 falls just short of.
        several = total >= 5
        places = np.minimum(9, 10 * counts[several, 1] // total[several]).astype(int)
        spread = np.bincount(places, minlength=10)
        tenths = enumerate(spread / max(1, spread.sum()))
        facts += [(f"tenth_{k}", "share", share) for k, share in tenths]
    return [(name, unit, Estimate(value, np.nan, np.nan, n)) for name, unit, value in facts]
