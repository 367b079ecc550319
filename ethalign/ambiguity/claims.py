"""The claims of the paper, each tested item by item; scores are losses, so less is better."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ethalign import calibration, claims, metrics, results
from ethalign.ambiguity import data, evaluate
from ethalign.ambiguity.evaluate import FLOOR

TUNED = ("hard", "sampled", "soft", "verbalised")
# Three meanings of "more"; the change of a mean is in nats or a share of what was before.
MORE = (
    ("in nats", "dm", lambda old, new: (new - old).mean()),
    ("in per cent", "dm", lambda old, new: new.mean() / old.mean()),
    ("in per cent, raw mass", "raw", lambda old, new: new.mean() / old.mean()),
)


def assess(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim about votes, for every language model below some homes.

    The claim that the Dirichlet score (concentration 1) improves more than the cross-entropy is
    tested three times: in nats, in per cent of the score before, and in per cent with the raw
    answer mass for the concentration, as in the authors' early code. Which encoder stands against
    which language model is chosen by their losses on the calibration split.

    ``homes`` are folders of runs by name. Differences are in nats, or where the claim says so in
    shares of the score before; see ``claims.verdicts``.
    """
    rows = [
        (claim, f"{name}, {model}", "all", *test)
        for name, home in homes.items()
        for model, losses in _losses(home, seed).items()
        for claim, test in _tests(losses, seed)
    ]
    return claims.verdicts(rows, better=-1)


def _losses(home: Path, seed: int) -> dict[str, dict[str, pd.DataFrame]]:
    """Language model to its variants and the encoders beside it, each with losses by item."""
    encoders: dict[str, pd.DataFrame] = {}
    models: dict[str, dict[str, pd.DataFrame]] = {}
    for model, variants in results.predictions(home, seed).items():
        for variant, rows in variants.items():
            if "logp1" in rows:
                models.setdefault(model, {})[variant] = _scores(rows)
                continue
            for key, part in rows.groupby(rows["variant"].astype(str)):
                encoders[f"{key}, {model}" if key in encoders else key] = _scores(part)
    return {model: {**encoders, **own} for model, own in models.items()}


def _scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Losses by ``id``: cross-entropies ``ce`` and ``scaled``, Dirichlet ``dm`` and ``raw``."""
    n, p, held = data.counts(rows), evaluate.probabilities(rows), rows["part"] == "held-out"
    scaled = evaluate.scaled(p, evaluate.fit_scaling(p[held], n[held])["temperature"])
    found = rows.set_index("id")[["part"]].assign(
        scaled=calibration.cross_entropy(scaled, n),
        ce=calibration.cross_entropy(np.clip(p, FLOOR, 1), n),
        dm=calibration.dirichlet_multinomial_nll(np.maximum(p, FLOOR), n),
    )
    if "logp1" in rows:
        mass = np.maximum(np.exp(rows[["logp1", "logp2"]].to_numpy(float)), FLOOR)
        found["raw"] = calibration.dirichlet_multinomial_nll(mass, n)
    return found


def _tests(losses: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, metrics.Paired]]:
    if "zero-shot" not in losses:
        return
    held, test = (
        {key: t[t["part"] == part].sort_index() for key, t in losses.items()}
        for part in ("held-out", "test")
    )
    before, how = test["zero-shot"], {"seed": seed, "draws": claims.DRAWS}
    # Only the same items can be compared; a model may have been run on others.
    test = {key: t for key, t in test.items() if t.index.equals(before.index)}
    tuned = [key for key in TUNED if key in test]
    for key in tuned:
        for score, name in (("ce", "cross-entropy"), ("dm", "the Dirichlet score")):
            found = metrics.paired_bootstrap(test[key][score], before[score], **how)
            yield f"{key} improves {name}", found
        for ending, score, change in MORE:
            more = functools.partial(_more, change)
            columns = [t[c].to_numpy() for t in (before, test[key]) for c in ("ce", score)]
            found = metrics.bootstrap_test(more, *columns, **how)
            yield f"{key} improves the Dirichlet score more, {ending}", found
    encoders = [k for k in test if re.match("encoder-(?!shuffled)", k)]
    for score, ending in (("ce", ""), ("scaled", " after scaling")) if tuned and encoders else ():
        first, second = (
            min(keys, key=lambda k: float(held[k][score].mean())) for keys in (encoders, tuned)
        )
        found = metrics.paired_bootstrap(test[first][score], test[second][score], **how)
        yield f"{first} is ahead of {second} in cross-entropy{ending}", found


def _more(change: Any, ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """Change of the Dirichlet score minus that of the cross-entropy."""
    return float(change(dm_0, dm_1) - change(ce_0, ce_1))
