"""The claims on votes in numbers; scores are losses, so less is better."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ethalign import calibration, metrics
from ethalign.ambiguity import data, evaluate
from ethalign.calibration import Floats
from ethalign.claims import Claim, Contrast

TUNED = ("hard", "sampled", "soft", "verbalised")
# What claims compare beside variants; see ``contrast``.
CHOSEN = ("best-tuned", "best-language-model", "best-encoder", "zero-shot-scaled", "gpt-4o")
FLOORS = ("mean-votes", "uniform")
# What stands in the place of the published data in other runs.
SAME = {
    "dilemmas": ("dilemmas", "sample-dilemmas", "own"),
    "anecdotes": ("anecdotes", "sample-anecdotes", "anecdotes-excerpt"),
}
#: Estimands that are means of a loss, by the loss.
LOSSES = {
    "cross_entropy": "ce",
    "cross_entropy_scaled": "ce_scaled",
    "dirichlet_nll": "dm",
    "dirichlet_nll_fitted": "dm_fitted",
}
#: Three meanings of "more": the change of a mean in nats, as a share of what was before, and that
#: share with the raw answer mass for the concentration, where both scores are of one order.
MORE = {
    "more_nats": ("ce", "dm", False),
    "more_percent": ("ce", "dm", True),
    "more_raw": ("ce_raw", "raw", True),
}


def contrast(claim: Claim, parts: Mapping[str, pd.DataFrame]) -> Contrast | None:
    """A claim's two predictors on the same items (see ``claims.Claim``), or None.

    An encoder is compared on the items that the other was asked.

    Estimands: those of ``LOSSES``; those of ``MORE``, the change of the Dirichlet score from the
    second to the first minus that of the cross-entropy; ``entropy_correlation`` between a
    predictor's entropy and that of the votes. Beside variants these predictors are known:
    ``best-tuned``, ``best-language-model`` and ``best-encoder``, of several the one with the least
    cross-entropy on the calibration split (scaled, if that is claimed); ``uniform``, which is 0 in
    a correlation; ``mean-votes`` of the test items; and ``zero-shot-scaled``, with the
    temperature of that split.
    """
    known = _predictions(claim, parts)
    names = [_named(claim, name, known) for name in (claim.first, claim.second)]
    tables = [_scores(name, known) for name in names]
    if any(t is None for t in tables):
        return None
    one, two = (t for t in tables if t is not None)
    both = one.merge(two, left_index=True, right_index=True, suffixes=("_1", "_2"))
    # Encoders answer every pair, once for all models; a language model may be asked only a part.
    asked = zip(names, (one, two), strict=True)
    wanted = [len(t) for name, t in asked if not name.startswith("encoder-")]
    if len(both) < max(wanted or (len(one), len(two))):
        return None

    def pick(*columns: str) -> tuple[Floats, ...]:
        return tuple(both[c].to_numpy(float) for c in columns)

    # Pairs that share an action are resampled together, if one of both has told them.
    groups = next((both[c].to_numpy() for c in ("group", "group_1") if c in both), None)
    items = both.index.to_numpy()
    if claim.estimand == "entropy_correlation":
        arrays = pick("entropy_1", "entropy_votes_1", "entropy_2", "entropy_votes_1")
        return Contrast(_CORRELATIONS, arrays, items, groups)
    if claim.estimand in MORE:
        *scores, relative = MORE[claim.estimand]
        columns = tuple(f"{score}_{side}" for side in (1, 2) for score in scores)
        if not {*columns} <= {*both}:
            return None
        return Contrast(_CHANGES[bool(relative)], pick(*columns), items, groups)
    loss = LOSSES[claim.estimand]
    return Contrast(metrics.gap, pick(f"{loss}_1", f"{loss}_2"), items, groups)


def _predictions(claim: Claim, parts: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Predictions on the claim's data by variant, encoders among them."""
    found = dict(parts)
    if (beside := found.pop("ceiling", None)) is not None:
        found |= {str(k): t for k, t in beside.groupby(beside["variant"].astype(str))}
    kept = {k: t[t["dataset"].isin(SAME[claim.dataset])] for k, t in found.items()}
    return {k: t for k, t in kept.items() if len(t)}


def _named(claim: Claim, name: str, known: Mapping[str, pd.DataFrame]) -> str:
    """The variant that a name stands for; chosen on the calibration split, never on test rows."""
    groups = {
        "best-tuned": [k for k in TUNED if k in known],
        "best-language-model": [k for k in known if not k.startswith("encoder-")],
        "best-encoder": [k for k in known if k.startswith("encoder-") and k != "encoder-shuffled"],
    }
    if not groups.get(name):
        return name
    loss = "ce_scaled" if claim.estimand.endswith(("_scaled", "_fitted")) else "ce"
    return min(groups[name], key=lambda k: float(_losses(known[k], "held-out")[loss].mean()))


def _scores(name: str, known: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Losses of a predictor on the test rows, by id."""
    if name in known:
        return _losses(known[name])
    base = known.get("zero-shot", next(iter(known.values()), None))
    if name not in ("uniform", "mean-votes", "zero-shot-scaled") or base is None:
        return None
    if name == "zero-shot-scaled":
        if "zero-shot" not in known:
            return None
        found = _losses(base)
        return found.assign(ce=found["ce_scaled"], dm=found["dm_fitted"])
    # The best constant in hindsight: what reads nothing cannot be better.
    votes = calibration.shares(data.counts(base[base["part"] == "test"]))
    mean = np.nanmean(votes, axis=0) if name == "mean-votes" else np.array([0.5, 0.5])
    plain = base[[c for c in base if not str(c).startswith(("logp", "swapped", "z"))]]
    return _losses(plain.assign(logp1=np.log(mean[0]), logp2=np.log(mean[1])))


def _losses(rows: pd.DataFrame, part: str = "test") -> pd.DataFrame:
    """Per item with votes, by ``id``: cross-entropies, Dirichlet scores and entropies."""
    rows = rows[(data.counts(rows).sum(1) > 0) & evaluate.answered(rows)]
    n, p, held = data.counts(rows), evaluate.probabilities(rows), rows["part"] == "held-out"
    fitted = evaluate.fit_scaling(p[held], n[held])
    after = evaluate.scaled(p, fitted["temperature"])
    sure = np.maximum(p, evaluate.FLOOR)
    found = rows.set_index("id")[[]].assign(
        ce=calibration.cross_entropy(np.minimum(sure, 1), n),
        ce_scaled=calibration.cross_entropy(after, n),
        dm=calibration.dirichlet_multinomial_nll(sure, n),
        dm_fitted=calibration.dirichlet_multinomial_nll(fitted["concentration"] * after, n),
        entropy=calibration.entropy(p),
        entropy_votes=calibration.entropy(n),
    )
    if "logp1" in rows:
        mass = np.maximum(np.exp(rows[["logp1", "logp2"]].to_numpy(float)), evaluate.FLOOR)
        found["raw"] = calibration.dirichlet_multinomial_nll(mass, n)
        one = np.maximum(evaluate.probabilities(rows, "logp"), evaluate.FLOOR)
        found["ce_raw"] = calibration.cross_entropy(np.minimum(one, 1), n)
    kept = (rows["part"] == part).to_numpy()
    groups = data.neighbours(rows[kept])
    found = found[kept] if groups is None else found[kept].assign(group=groups)
    return found.sort_index()


def _more(relative: bool, weights: metrics.Weights, *losses: Floats) -> Floats:
    """Change of the Dirichlet score minus that of the cross-entropy."""
    ce_1, dm_1, ce_0, dm_0 = (metrics.over(weights.sum(x), weights.total) for x in losses)
    dm, ce = dm_1 - dm_0, ce_1 - ce_0
    return np.asarray(metrics.over(dm, dm_0) - metrics.over(ce, ce_0) if relative else dm - ce)


_CHANGES = {is_so: metrics.weighted(functools.partial(_more, is_so)) for is_so in (True, False)}
_CORRELATIONS = metrics.versus(evaluate.correlation)
