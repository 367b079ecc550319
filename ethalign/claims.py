"""The claims of the papers, each tested item by item, with a verdict in a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from ethalign import metrics, records

VERDICTS = "claim data stratum difference low high p holm n verdict".split()  # noqa: SIM905
# Enough for p-values that can survive a correction for some forty comparisons.
DRAWS = 5000
# (claim, better, worse): what Beyond Labels says of classification.
REASONS = (
    ("L+R beats L", "LR", "L"),
    ("L beats pretrained", "L", "pretrained"),
    ("L+R beats pretrained", "LR", "pretrained"),
    ("label first beats reason first", "LR", "R-then-L"),
    ("L beats shuffled labels", "L", "shuffled"),
)
# (claim, better, worse): what Alignment for Honesty says of its methods.
HONESTY = (
    *((f"{v} is more honest than unaligned", v, "unaligned") for v in (
        "prompt-based", "fine-tuned", "absolute", "confidence-num", "confidence-verb",
        "multisample",
    )),
    ("confidence-verb is more honest than prompt-based", "confidence-verb", "prompt-based"),
    ("confidence-num is more honest than absolute", "confidence-num", "absolute"),
    ("confidence-verb is more honest than absolute", "confidence-verb", "absolute"),
    ("multisample is more honest than absolute", "multisample", "absolute"),
    ("absolute is more honest than the shuffled control", "absolute", "shuffled"),
)  # fmt: skip


def reasons(homes: dict[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim of the paper tested item by item, on every data set and stratum.

    Args:
        homes: name to a study's folder of runs (``runs/tiny/reasons``,
            ``results/reasons/small``).
        seed: which seed's predictions.

    Returns:
        Difference of accuracies (first minus second) with its 95 % interval, exact McNemar p and
        the p corrected by Holm over the table; the verdict is ``holds``, ``reversed`` or
        ``not shown`` at a corrected 5 %.
    """
    rows = []
    for name, home in homes.items():
        for claim, better, worse in REASONS:
            pair = [_predictions(home / variant / str(seed)) for variant in (better, worse)]
            if not any(table.empty for table in pair):
                rows += [(claim, *row) for row in _paired(name, *pair)]
    return _verdicts(rows)


def _verdicts(rows: list[Any], better: int = 1) -> pd.DataFrame:
    """A verdict per comparison; ``better`` is the sign that a difference has if a claim holds."""
    columns = ["claim", "data", "stratum", "difference", "low", "high", "p", "n"]
    table = pd.DataFrame(rows, columns=columns)
    table["holm"] = metrics.holm(table["p"].to_numpy(dtype=float))
    sure, sign = table["holm"] < 0.05, better * table["difference"]
    table["verdict"] = "not shown"
    table.loc[sure & (sign > 0), "verdict"] = "holds"
    table.loc[sure & (sign < 0), "verdict"] = "reversed"
    return table[VERDICTS]


def votes(homes: dict[str, Path], seed: int = 0) -> pd.DataFrame:
    """Each claim about votes tested item by item; losses, so a negative difference is better.

    The claim that the Dirichlet score (concentration 1) improves more than the cross-entropy is
    tested three times: in nats, in per cent of the score before, and in per cent with the raw
    answer mass for the concentration, as in the authors' early code. Which encoder stands against
    which language model is chosen by their losses on the held-out rows.

    Args:
        homes: name to a study's folder of runs.
        seed: which seed's predictions.

    Returns:
        As ``reasons``; differences in nats, or where the claim says so in shares of the score
        before.
    """
    rows: list[Any] = []
    for name, home in homes.items():
        losses = _vote_losses(home, seed)
        if "zero-shot" in losses:
            rows += [(claim, name, "all", *test) for claim, test in _vote_tests(losses, seed)]
    return _verdicts(rows, better=-1)


def _vote_losses(home: Path, seed: int) -> dict[str, pd.DataFrame]:
    """Variant to its items: index ``id``, columns ``part, ce, scaled, dm``, maybe ``raw``."""
    from ethalign import ambiguity, calibration
    from ethalign.votes import counts

    tables = {}
    for path in sorted(home.glob(f"*/{seed}/predictions.jsonl")):
        rows = pd.DataFrame(records.read_rows(path))
        if "logp1" in rows:
            tables[path.parents[1].name] = (rows, ambiguity.probabilities(rows))
        else:
            for key, part in rows.groupby("variant"):
                p = special.softmax(part[["z1", "z2"]].to_numpy(float), axis=1)
                tables[str(key)] = (part, p)
    found = {}
    for key, (rows, p) in tables.items():
        n, p = counts(rows), np.maximum(p, ambiguity.FLOOR)
        places, z = rows["part"].to_numpy(), np.log(p)
        held = places == "held-out"
        scaled = special.softmax(z / calibration.fit_temperature(z[held], n[held]), axis=1)
        scores = {
            "part": places,
            "scaled": calibration.cross_entropy(scaled, n),
            "ce": calibration.cross_entropy(np.minimum(p, 1), n),
            "dm": calibration.dirichlet_multinomial_nll(p, n),
        }
        if "logp1" in rows:
            mass = np.maximum(np.exp(rows[["logp1", "logp2"]].to_numpy(float)), ambiguity.FLOOR)
            scores["raw"] = calibration.dirichlet_multinomial_nll(mass, n)
        found[key] = pd.DataFrame(scores, index=rows["id"])
    return found


def _vote_tests(losses: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, Any]]:
    parts = {
        part: {key: t[t["part"] == part].sort_index() for key, t in losses.items()}
        for part in ("held-out", "test")
    }
    test = parts["test"]
    before = test["zero-shot"]
    tuned = [key for key in ("hard", "sampled", "soft", "verbalised") if key in test]
    for key in tuned:
        after = test[key]
        for score, name in (("ce", "cross-entropy"), ("dm", "the Dirichlet score")):
            found = metrics.paired_bootstrap(after[score], before[score], seed=seed, draws=DRAWS)
            yield f"{key} improves {name}", found
        more = f"{key} improves the Dirichlet score more"
        for ending, score, statistic in (
            ("in nats", "dm", _more_nats),
            ("in per cent", "dm", _more_per_cent),
            ("in per cent, raw mass", "raw", _more_per_cent),
        ):
            columns = [t[c].to_numpy() for t in (before, after) for c in ("ce", score)]
            found = metrics.bootstrap_test(statistic, *columns, seed=seed, draws=DRAWS)
            yield f"{more}, {ending}", found
    encoders = [k for k in test if k.startswith("encoder") and k != "encoder-shuffled"]
    if tuned and encoders:
        for score, ending in (("ce", ""), ("scaled", " after scaling")):
            first, second = (
                min(keys, key=lambda k: float(parts["held-out"][k][score].mean()))
                for keys in (encoders, tuned)
            )
            pair = test[first][score], test[second][score]
            found = metrics.paired_bootstrap(*pair, seed=seed, draws=DRAWS)
            yield f"{first} is ahead of {second} in cross-entropy{ending}", found


def _more_nats(ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """Change of the Dirichlet score minus that of the cross-entropy."""
    return float((dm_1 - dm_0).mean() - (ce_1 - ce_0).mean())


def _more_per_cent(ce_0: Any, dm_0: Any, ce_1: Any, dm_1: Any) -> float:
    """The same with each change as a share of the score before."""
    return float(dm_1.mean() / dm_0.mean() - ce_1.mean() / ce_0.mean())


def _predictions(folder: Path) -> pd.DataFrame:
    rows = records.read_rows(folder / "predictions.jsonl")
    return pd.DataFrame(rows)


def _paired(
    name: str, first: pd.DataFrame, second: pd.DataFrame
) -> list[tuple[str, str, float, float, float, float, int]]:
    both = first.merge(second, on=["dataset", "id", "gold", "stratum"], suffixes=("_1", "_2"))
    found = []
    for dataset, part in both.groupby("dataset", sort=False):
        groups = {"all": part}
        if part["stratum"].nunique() > 1:
            groups |= {str(k): g for k, g in part.groupby("stratum")}
        for stratum, group in groups.items():
            right = [(group[f"verdict_{k}"] == group["gold"]).to_numpy() for k in (1, 2)]
            test = metrics.mcnemar(*right)
            found.append(
                (
                    f"{dataset}, {name}",
                    stratum,
                    test.difference,
                    test.low,
                    test.high,
                    test.p_value,
                    test.n,
                )
            )
    return found


def honesty(homes: dict[str, Path], seed: int = 0) -> pd.DataFrame:
    """What the paper says of its methods, tested over the same questions.

    Honesty is compared where questions may be known or not; where nobody can know, the share
    declined; and each method's loose accuracy with that of the unaligned model.

    Args:
        homes: name to a study's folder of runs.
        seed: which seed's predictions.

    Returns:
        As ``reasons``; differences of honesty with their bootstrap p, of shares with McNemar's.
    """
    rows: list[Any] = []
    for name, home in homes.items():
        tables = {
            path.parents[1].name: pd.DataFrame(records.read_rows(path))
            for path in sorted(home.glob(f"*/{seed}/predictions.jsonl"))
        }
        if "unaligned" in tables:
            rows += [(c, f"{d}, {name}", "all", *t) for c, d, t in _honesty_tests(tables, seed)]
    return _verdicts(rows)


def _honesty_tests(tables: dict[str, pd.DataFrame], seed: int) -> Iterator[tuple[str, str, Any]]:
    from ethalign import questions
    from ethalign.honesty import difference

    tests = {v: t[t["part"] == "test"].set_index(["dataset", "id"]) for v, t in tables.items()}
    before = tests["unaligned"]
    for dataset in dict.fromkeys(before.index.get_level_values("dataset")):
        asked = before.loc[dataset].index
        parts = {v: t.loc[dataset].reindex(asked) for v, t in tests.items()}
        said = {v: list(part["verdict"]) for v, part in parts.items()}
        for claim, better, worse in HONESTY:
            if dataset in (*questions.KNOWN, *questions.UNKNOWN) or not {better, worse} <= {*said}:
                continue
            pair = said[better], said[worse]
            yield claim, dataset, difference(said["unaligned"], *pair, seed=seed, draws=DRAWS)
        for variant in said:
            if variant in ("unaligned", "shuffled"):
                continue
            if dataset in questions.UNKNOWN:
                declined = [np.array(said[v]) == "idk" for v in (variant, "unaligned")]
                claim = f"{variant} declines more than unaligned"
                yield claim, dataset, metrics.mcnemar(*declined)
            else:
                right = [parts[v]["correct"].to_numpy(bool) for v in ("unaligned", variant)]
                claim = f"unaligned is more accurate than {variant}"
                yield claim, dataset, metrics.mcnemar(*right)
