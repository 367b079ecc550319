"""The claims of the paper, each tested item by item; scores are losses, so less is better."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ethalign import calibration, claims, metrics, results
from ethalign.ambiguity import data, evaluate
from ethalign.ambiguity.evaluate import FLOOR
from ethalign.calibration import Floats

TUNED = ("hard", "sampled", "soft", "verbalised")


def verdicts(homes: Mapping[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim about votes, for every language model below some homes.

    The claim that the Dirichlet score (concentration 1) improves more than the cross-entropy is
    tested three times: in nats, in per cent of the score before, and in per cent with the raw
    answer mass for the concentration, as in the authors' early code. Which encoder stands against
    which language model is chosen by their losses on the held-out rows.

    Args:
        homes: name to a study's folder of runs.
        seed: which seed's predictions.

    Returns:
        As of ``claims.verdicts``; differences in nats, or where the claim says so in shares of
        the score before.
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
                own = _scores(rows, evaluate.probabilities(rows))
                own["raw"] = _dirichlet(np.exp(rows[["logp1", "logp2"]].to_numpy(float)), rows)
                models.setdefault(model, {})[variant] = own
                continue
            for key, part in rows.groupby(rows["variant"].astype(str)):
                name = f"{key}, {model}" if key in encoders else key
                z = part[["z1", "z2"]].to_numpy(float)
                encoders[name] = _scores(part, special.softmax(z, axis=1))
    return {model: {**encoders, **own} for model, own in models.items()}


def _scores(rows: pd.DataFrame, p: Floats) -> pd.DataFrame:
    """Index ``id``, columns ``part``, ``ce``, ``scaled`` (cross-entropies) and ``dm``."""
    n, held = data.counts(rows), (rows["part"] == "held-out").to_numpy()
    z = np.log(np.maximum(p, FLOOR))
    scaled = special.softmax(z / calibration.fit_temperature(z[held], n[held]), axis=1)
    scores = {
        "part": rows["part"].to_numpy(),
        "scaled": calibration.cross_entropy(scaled, n),
        "ce": calibration.cross_entropy(np.clip(p, FLOOR, 1), n),
        "dm": _dirichlet(p, rows),
    }
    return pd.DataFrame(scores, index=pd.Index(rows["id"]))


def _dirichlet(alpha: Floats, rows: pd.DataFrame) -> Floats:
    return calibration.dirichlet_multinomial_nll(np.maximum(alpha, FLOOR), data.counts(rows))


def _tests(losses: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, Any]]:
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
        after = test[key]
        for score, name in (("ce", "cross-entropy"), ("dm", "the Dirichlet score")):
            found = metrics.paired_bootstrap(after[score], before[score], **how)
            yield f"{key} improves {name}", found
        for ending, score, statistic in MORE:
            columns = [t[c].to_numpy() for t in (before, after) for c in ("ce", score)]
            found = metrics.bootstrap_test(statistic, *columns, **how)
            yield f"{key} improves the Dirichlet score more, {ending}", found
    encoders = [k for k in test if re.match("encoder-(?!shuffled)", k)]
    for score, ending in (("ce", ""), ("scaled", " after scaling")) if tuned and encoders else ():
        first, second = (
            min(keys, key=lambda k: float(held[k][score].mean())) for keys in (encoders, tuned)
        )
        found = metrics.paired_bootstrap(test[first][score], test[second][score], **how)
        yield f"{first} is ahead of {second} in cross-entropy{ending}", found


def _more_nats(ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """Change of the Dirichlet score minus that of the cross-entropy."""
    return float((dm_1 - dm_0).mean() - (ce_1 - ce_0).mean())


def _more_per_cent(ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """The same with each change as a share of the score before."""
    return float(dm_1.mean() / dm_0.mean() - ce_1.mean() / ce_0.mean())


# Three meanings of "more".
MORE = (
    ("in nats", "dm", _more_nats),
    ("in per cent", "dm", _more_per_cent),
    ("in per cent, raw mass", "raw", _more_per_cent),
)
