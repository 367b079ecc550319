"""The claims of the papers as they were written down, each with a test and a verdict.

``configs/<study>/claims.yaml`` says what is compared with what, in which family and in which
direction; a study's ``contrast`` turns one entry into numbers by item. Everything else is the
same for all studies: the interval over items and seeds, the correction within a family, the word.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pydantic
from numpy.typing import NDArray
from scipy import stats

from ethalign import code, config, metrics, records, results, sources, study

# So many that another seed of the resampling changes next to no verdict (see ``decide``).
DRAWS = 20_000
# Two numbers that are meant to be one.
CLOSE = 1e-9
# The verdicts on the committed runs, beside them.
RECORD = "claims.json"
TOLD = (
    *("id", "claim", "family", "source", "first", "second", "dataset", "stratum", "estimand"),
    "direction",
)
FOUND = ("difference", "low", "high", "p", "holm", "n", "seeds", "detectable", "verdict")
COLUMNS = [*TOLD, "unit", "run", "model", *FOUND]


Seeds = dict[int, dict[str, pd.DataFrame]]


class Claim(pydantic.BaseModel, extra="forbid", frozen=True):
    """One entry of a ``claims.yaml``; ``estimand`` is a word that the study's contrast knows."""

    id: str = pydantic.Field(pattern=r"^[a-z0-9-]+$")
    claim: str
    source: Literal["abstract", "paper", "companion"]
    family: str = "primary"
    estimand: str
    dataset: str
    stratum: str = "all"
    first: str
    second: str
    #: Whether ``first`` minus ``second`` is said to be greater or less than 0, less than
    #: ``margin`` away from it, or (noninferior) greater than -``margin``.
    direction: Literal["greater", "less", "equivalent", "noninferior"]
    margin: float = pydantic.Field(default=0.0, ge=0)
    unit: str = "share"

    @pydantic.model_validator(mode="after")
    def _margin(self) -> Claim:
        if (self.margin > 0) != (self.direction in ("equivalent", "noninferior")):
            raise ValueError("a margin belongs to equivalent and noninferior, and to these alone")
        return self


class Contrast(NamedTuple):
    """A claim in numbers, for one model and seed.

    ``statistic`` of the arrays is first minus second; the arrays share their first axis, the
    ``items`` (items,), by name; ``groups`` (items,) says which are near-copies of each other and
    resampled together.
    """

    statistic: Callable[..., Any]
    arrays: tuple[NDArray[Any], ...]
    items: NDArray[Any]
    groups: NDArray[Any] | None = None


def declared(name: str) -> list[Claim]:
    """The claims of a study, in the order of its file.

    Raises:
        UserError: an entry that is incomplete or unknown, or an id that stands there twice.
    """
    path = config.ROOT / "configs" / name / "claims.yaml"
    found = [
        config.checked(Claim, entry, f"{path}, {entry.get('id', 'an entry without id')}")
        for entry in (config.read_yaml(path)["claims"] if path.is_file() else [])
    ]
    ids = [claim.id for claim in found]
    if twice := [i for i in ids if ids.count(i) > 1]:
        raise config.UserError(f"{path}: {twice[0]} must be the id of one claim only.")
    return found


def recorded(name: str, scale: str = "small") -> pd.DataFrame:
    """``assess`` of the committed runs, as it was recorded beside them.

    Where the record is not of today's runs, claims and code, they are assessed anew.
    """
    return _recorded(name, scale, _basis(name, results.RESULTS / name / scale)).copy()


@functools.cache
def _recorded(name: str, scale: str, basis: str) -> pd.DataFrame:
    home = results.RESULTS / name / scale
    if not (home / RECORD).is_file() or not current(name, scale):
        return assess(name, {"reference": home})
    kept = json.loads((home / RECORD).read_text(encoding="utf-8"))["claims"]
    numbers = [key for key in FOUND if key not in ("n", "seeds", "verdict")]
    return pd.DataFrame(kept, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def record(name: str, scale: str = "small") -> Path:
    """Write what ``recorded`` reads, if it is out of date; the file."""
    home = results.RESULTS / name / scale
    table = recorded(name, scale)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    if not current(name, scale):
        records.write(home / RECORD, {"of": _basis(name, home), "claims": rows})
    return home / RECORD


def current(name: str, scale: str = "small") -> bool:
    """Are the recorded verdicts those of today's runs, claims and code? Without claims, yes."""
    path = results.RESULTS / name / scale / RECORD
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return not declared(name) or bool(kept.get("of") == _basis(name, path.parent))


def fault(name: str, scale: str = "small") -> str:
    """What is wrong with the recorded verdicts; nothing if the records give them."""
    if not current(name, scale):
        return "out of date"
    kept = recorded(name, scale)
    found = assess(name, {"reference": results.RESULTS / name / scale}) if len(kept) else kept
    return "" if same(kept, found) else "not those that the records give"


def same(kept: pd.DataFrame, found: pd.DataFrame) -> bool:
    """Is a table that was kept the one that is found today? Numbers to six digits."""
    if {*kept} != {*found} or len(kept) != len(found):
        return False
    numbers = kept.select_dtypes("number").columns
    words = kept.columns.difference(numbers)
    close = np.allclose(kept[numbers], found[numbers].astype(float), rtol=1e-6, equal_nan=True)
    return close and bool((kept[words].astype(str) == found[words].astype(str)).to_numpy().all())


def _basis(name: str, home: Path) -> str:
    """Hash of everything that the verdicts follow from."""
    contrast = study.find(name).claims
    paths = sorted([*home.glob("*/*/*/predictions.jsonl"), *home.glob("*/*/*/judgements.jsonl")])
    return config.digest(
        {
            "records": {str(p.relative_to(home)): sources.sha256(p) for p in paths},
            "claims": [claim.model_dump() for claim in declared(name)],
            "code": code.reach(assess, *([contrast] if contrast else [])),
        }
    )


def assess(name: str, homes: Mapping[str, Path]) -> pd.DataFrame:
    """Every claim of a study, tested on every model of every run.

    A claim of what has a model of its own alone, such as one about two encoders, is tested once,
    on that model, and not beside every language model.

    Args:
        name: of the study.
        homes: folders ``<runs>/<study>/<scale>`` by the name of the run. One that holds no runs
            is left out, but for the last: its claims are told as not run.

    Returns:
        A row per claim, run and model. Its columns are the claim's own, difference with its 95 %
        interval over items and seeds (``metrics.crossed``), p and Holm's correction of it within
        family, run and model, ``detectable`` (the difference that 80 % of such tests would have
        found) and ``verdict``: ``supported``, ``contradicted``, ``inconclusive`` (neither at a
        corrected 5 %, or within the error of the resampling) or ``not run``.
    """
    owner, entries, rows = study.find(name), declared(name), []
    for place, (run, home) in enumerate(homes.items()):
        tables, own, beside = _parts(owner, home)
        if not tables and place == len(homes) - 1:
            tables = {"": {}}
        alone = {claim for claim in entries if _compared(owner, claim, beside)}
        rows += [
            {**{key: getattr(claim, key) for key in (*TOLD, "unit")}, "run": run, "model": model}
            | tested(owner, claim, _beside(claim, seeds, home / model))
            for model, seeds in (*tables.items(), (own, beside))
            for claim in entries
            if (claim in alone) == (seeds is beside)
        ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, "side", "most"])
    keys = [table[key] for key in ("family", "run", "model")]

    def corrected(column: str) -> pd.Series[float]:
        # What was run and shows nothing is one of the tests all the same.
        p = table[column].astype(float).where(~(table[column].isna() & (table["n"] > 0)), 1.0)
        return p.groupby(keys).transform(lambda part: metrics.holm(part.to_numpy()))

    table["holm"] = corrected("p").where(table["p"].notna())
    sure = (corrected("most") < 0.05).map({True: 1, False: 0}) * table["side"]
    words = {1: "supported", -1: "contradicted", 0: "inconclusive"}
    table["verdict"] = sure.map(words).where(table["n"] > 0, "not run")
    return table[COLUMNS]


def _parts(owner: study.Study, home: Path) -> tuple[dict[str, Seeds], str, Seeds]:
    """Predictions by model, seed and variant; what has a model of its own, and that model's name.

    What has one (baselines, encoders) stands beside every language model, or alone.
    """
    apart = {stage.variant for stage in owner.stages if stage.variant}
    found: dict[str, Seeds] = {}
    beside: Seeds = {}
    own = ""
    for seed in results.seeds(home):
        for model, variants in results.predictions(home, seed).items():
            for variant, table in variants.items():
                if variant in apart:
                    own, beside.setdefault(seed, {})[variant] = model, table
                else:
                    found.setdefault(model, {}).setdefault(seed, {})[variant] = table
    if beside and not found:
        return {"": beside}, "", {}
    merged = {
        model: {seed: {**beside.get(seed, {}), **tables} for seed, tables in seeds.items()}
        for model, seeds in found.items()
    }
    return merged, own, beside


def _beside(
    claim: Claim, seeds: Mapping[int, Mapping[str, pd.DataFrame]], home: Path
) -> dict[int, Mapping[str, pd.DataFrame]]:
    """What a claim is tested on; a model as it is has no training seed, and stands beside each."""
    pair = {claim.first, claim.second}
    own: dict[str, pd.DataFrame] = {}
    for seed, parts in seeds.items():
        for name in pair & {*parts}:
            made = home / name / str(seed) / "config.yaml"
            if made.is_file() and not config.read_yaml(made)["tuning"]["enabled"]:
                own.setdefault(name, parts[name])
    return {seed: {**own, **parts} if pair & {*parts} else parts for seed, parts in seeds.items()}


def tested(
    owner: study.Study, claim: Claim, seeds: Mapping[int, Mapping[str, pd.DataFrame]]
) -> dict[str, Any]:
    """One claim on predictions by seed and variant: numbers as of ``assess``, none corrected.

    ``side`` is 1 where they lean for the claim, -1 against it, 0 where nothing could be compared;
    ``most`` is p with the error of the resampling.
    """
    made = _aligned(_compared(owner, claim, seeds))
    if not made:
        nothing = dict.fromkeys(("difference", "low", "high", "p", "most", "detectable"), math.nan)
        return {**nothing, "n": 0, "seeds": 0, "side": 0}
    first = made[0]
    arrays = [contrast.arrays for contrast in made]
    found = metrics.crossed(
        first.statistic, arrays, first.groups, seed=0, draws=DRAWS, student=True
    )
    p, most, side = decide(claim, found.draws)
    estimate = {"difference": found.value, "low": found.low, "high": found.high, "p": p}
    # For *the same* there is no such difference: the true one would have to be none.
    reach = math.nan if claim.direction == "equivalent" else found.detectable
    more = {"detectable": reach - claim.margin, "n": len(first.items), "seeds": len(made)}
    return {**estimate, **more, "most": most, "side": side}


def _compared(
    owner: study.Study, claim: Claim, seeds: Mapping[int, Mapping[str, pd.DataFrame]]
) -> list[Contrast]:
    """The contrasts of those seeds that have what the claim compares."""
    contrasts = [owner.claims(claim, parts) for parts in seeds.values()] if owner.claims else []
    return [c for c in contrasts if c is not None and len(c.items)]


def _aligned(seeds: list[Contrast]) -> list[Contrast]:
    """The contrasts of several seeds on the same items in one order, to be drawn together.

    Seeds tune on different rows, and give reasons and answers to different items. Those that a
    seed lacks take a place among its own, and its statistic passes over them.
    """
    if all(np.array_equal(c.items, seeds[0].items) for c in seeds):
        return seeds
    items = pd.Index(np.concatenate([c.items for c in seeds])).unique()
    grouped = [pd.Series(c.groups, c.items) for c in seeds if c.groups is not None]
    known = pd.concat(grouped).to_dict() if grouped else {}
    groups = np.array([str(known.get(item, item)) for item in items]) if known else None
    found = []
    for own in seeds:
        places = pd.Index(own.items).get_indexer(items)
        arrays = (places >= 0, *(array[places] for array in own.arrays))
        found.append(Contrast(_of_those(own.statistic), arrays, items.to_numpy(), groups))
    return found


def _of_those(statistic: metrics.Statistic) -> metrics.Statistic:
    """A statistic of the items that its first array keeps; NaN where a sample has none of them."""
    of = getattr(statistic, "weighted", None)
    if of is None:
        return lambda kept, *arrays: (
            statistic(*(array[kept] for array in arrays)) if kept.any() else math.nan
        )

    def those(weights: metrics.Weights, kept: Any, *arrays: Any) -> NDArray[np.float64]:
        own = weights.kept(kept)
        return np.where(own.total > 0, of(own, *(array[kept] for array in arrays)), math.nan)

    return metrics.weighted(those)


def decide(claim: Claim, draws: NDArray[np.float64]) -> tuple[float, float, int]:
    """Two-sided p of resampled differences, and whether they lean for (1) or against (-1) a claim.

    The p-value is twice the share of draws beyond the border of what the claim says: 0, or the
    margin; for ``equivalent`` of the worse of both sides (two one-sided tests, Schuirmann 1987).
    A draw on the border speaks for both. p is never less than two draws would give, and NaN
    without draws. Between lies the p-value that as many draws leave possible (97.5 %, Clopper and
    Pearson 1934).
    """
    if not len(draws):
        return math.nan, math.nan, 0
    border = -claim.margin if claim.direction == "noninferior" else 0.0
    share = functools.partial(np.mean, dtype=float)
    if claim.direction == "equivalent":
        far = claim.margin - CLOSE
        outside = share(draws <= -far), share(draws >= far)
        inside = share(draws >= -far), share(draws <= far)
        against_it, for_it = max(outside), min(inside)
    else:
        sign = -1.0 if claim.direction == "less" else 1.0
        turned = sign * draws - border
        against_it, for_it = share(turned <= CLOSE), share(turned >= -CLOSE)
    beyond = max(float(min(against_it, for_it)), 1 / len(draws))
    count = round(beyond * len(draws))
    most = stats.beta.ppf(metrics.TAILS[1], count + 1, max(len(draws) - count, 1))
    return min(1.0, 2 * beyond), min(1.0, 2 * float(most)), 1 if against_it < for_it else -1
