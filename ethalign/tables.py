"""Tables of the pages: what was reported, what came out, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from ethalign import claims as tests
from ethalign import config, metrics, results, study
from ethalign.records import size_of

# More columns than this do not fit a page; nor do more than these, where cells hold intervals.
WIDE, INTERVALS = 8, 4
SPAN = ("difference", "low", "high", "unit")
# What means the same in every study.
WORDS = {
    "primary": "the claims of the abstract",
    "auc": "AUC",
    "auroc": "AUROC",
    "macro_f1": "macro-F1",
    "cross_entropy": "cross-entropy",
    "helpfulness_autoj": "helpfulness (AUTO-J)",
    "helpfulness_gpt4": "helpfulness (GPT-4)",
    "brier": "Brier score",
    "ece": "calibration error",
    "contaminated": "rows in the training file",
    "clean": "rows not in the training file",
    "all": "all rows",
    "seen": "rows tuned on",
    "unseen": "rows in the file but not tuned on",
    "smollm2-135m-instruct": "SmolLM2 135M",
    "qwen2.5-coder-0.5b-instruct": "Qwen2.5-Coder 0.5B",
    "qwen2.5-coder-1.5b-instruct": "Qwen2.5-Coder 1.5B",
    "minilm-l6": "MiniLM encoder",
}

#: In place of a paper's figure, of which it need not be said that there is none.
NO_FIGURE = "no comparable figure"


def facts(name: str, scale: str = "small") -> dict[str, Any]:
    """Numbers of the committed results that the book's prose quotes, as text.

    Returns:
        Under ``scores`` variant to metric to value over all items of the study's main data set,
        with ``_`` for ``-`` in names; ``on``: the same for every data set by name; ``question``,
        ``answer`` and ``tally`` of its claims; how many ``seeds`` a variant has at least and at
        most; the ``smallest`` and the ``largest`` model that was asked; ``largest_scores``, those
        of the latter, where all others are of the first model; and what the study adds. Means over
        seeds. Empty where no reference run is committed.
    """
    owner = study.find(name)
    reference = results.published(name, scale)
    means = results.pooled(reference)
    more = owner.facts(reference, results.RESULTS / name / scale)
    primary = _of_family(tests.recorded(name, scale), "primary")
    asked = sorted(filter(None, primary["model"].unique()), key=size_of)
    ends = {"smallest": asked[0], "largest": asked[-1]} if asked else {}
    seeds = reference.groupby(["model", "variant"])["seed"].nunique()
    main, on = owner.main.replace("-", "_"), _scores(means)
    return {
        "scores": on.get(main, {}),
        "largest_scores": _scores(means[means["model"] == ends.get("largest")]).get(main, {}),
        "on": on,
        "question": owner.question,
        "answer": answer(name),
        "tally": tally(name),
        "seeds": trained(*seeds),
        **{key: word(name, model) for key, model in ends.items()},
        **more,
    }


def _scores(means: pd.DataFrame) -> dict[str, Any]:
    """Data set to variant to metric to value over all items, as text, of the first model each."""
    on: dict[str, Any] = {}
    for row in means[means["stratum"] == "all"].to_dict("records"):
        dataset, variant = (str(row[key]).replace("-", "_") for key in ("dataset", "variant"))
        values = on.setdefault(dataset, {}).setdefault(variant, {})
        if row["metric"] not in values and row["value"] == row["value"]:
            values[row["metric"]] = metrics.shown(row["value"], row["unit"])
    return on


def reported(name: str, path: str | None = None) -> str:
    """Every printed figure of a study in Markdown, a row per model of the paper.

    One table, or one for each data set where a single one would be too wide for a page.
    """
    table = results.reported(name, path)
    if len(table.groupby(["dataset", "metric"])) <= WIDE:
        return _reported(name, table)
    parts = table.groupby("dataset", sort=False)
    tables = {word(name, str(key)): _reported(name, part.copy()) for key, part in parts}
    return "\n".join(f"**{key}**\n\n{told}" for key, told in tables.items())


def _reported(name: str, table: pd.DataFrame) -> str:
    # Not in words: a study may call its own proxy by what people judged in the paper.
    metric = table["metric"].map(lambda m: WORDS.get(m, m.replace("_", " ")))
    several = table["dataset"].nunique() > 1
    sets = table["dataset"].map(partial(word, name))
    table["column"] = sets + " " + metric if several else metric
    table["shown"] = [
        as_printed(v, unit) for v, unit in zip(table["value"], table["unit"], strict=True)
    ]
    wide = table.pivot(index="row", columns="column", values="shown")
    wide = wide.reindex(table["row"].unique())[table["column"].unique()]
    body = wide.fillna("–").reset_index().to_numpy().tolist()  # noqa: RUF001
    return markdown(["model", *wide.columns], body, "--:")


def as_printed(value: float, unit: str) -> str:
    """A figure of a paper with all its digits: shares in per cent, all else as it is."""
    scaled, least = (100 * value, 1) if unit == "share" else (value, 2)
    text = f"{scaled:.4f}".rstrip("0")
    whole, _, places = text.partition(".")
    return f"{whole}.{places.ljust(least, '0')}".replace("-", "\N{MINUS SIGN}")


def plain(table: pd.DataFrame) -> str:
    """A table with its index as columns in Markdown; a model that stands in every row is left out.

    Unlike the HTML of pandas it has one row of heads, and breaks its lines where a page is narrow.
    """
    flat = table.reset_index()
    flat = flat.drop(columns=[k for k in ("model",) if k in flat and flat[k].nunique() < 2])
    return markdown([*flat], flat.to_numpy().tolist())


def parts(table: pd.DataFrame, most: int = INTERVALS) -> list[pd.DataFrame]:
    """A wide table as several, of about equally many columns and not more than ``most``."""
    n = table.shape[1]
    size = math.ceil(n / max(1, math.ceil(n / most)))
    return [table.iloc[:, k : k + size] for k in range(0, n, size)] if n else []


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]], rule: str = "---") -> str:
    """A table in Markdown; ``rule`` stands below every head but the first."""
    lines = [heads, ["---", *[rule] * (len(heads) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def comparison(name: str, rows: pd.DataFrame, path: str | None = None) -> pd.DataFrame:
    """Reported beside reproduced: a row per printed figure and run, our value in every stratum.

    ``rows`` are as of ``results.together``; a run without any of the printed figures is left
    out. ``path`` names printed figures of one's own, see ``results.reported``.
    """
    pages = []
    for run, ours in rows.groupby("run", sort=False):
        table = results.compare(name, ours, path=path)
        told = zip(table["value_reported"], table["unit"], strict=True)
        page = pd.DataFrame({"paper": table["row"]})
        # By the paper's own name: what people judged there a judge may judge here.
        what = zip(table["dataset"], table["metric"], strict=True)
        page["measure"] = [
            f"{word(name, d)}, {WORDS.get(m, m.replace('_', ' '))}" for d, m in what
        ]
        page["reported"] = [as_printed(value, unit) for value, unit in told]
        page["ours"] = [_cell(row) for row in table.to_dict("records")]
        page["verdict"] = table["verdict"]  # early, where a narrow screen shows it
        page["model"] = [word(name, model) for model in table["model"]]
        if rows["run"].nunique() > 1:
            page["run"] = run
        for stratum in ("clean", "contaminated"):
            part = results.compare(name, ours, stratum, path)
            if part["value"].notna().any():
                page[f"ours, {stratum}"] = [_cell(row) for row in part.to_dict("records")]
        if (table["verdict"] != "not run").any() or run == "reference":
            pages.append(page)
    if not pages:
        return pd.DataFrame()
    return pd.concat(pages).fillna("").set_index("paper").rename_axis(None)


def side_by_side(
    name: str, rows: pd.DataFrame, dataset: str, path: str | None = None
) -> pd.DataFrame:
    """Reported and reproduced for one data set: a row per model, a column per metric.

    ``rows`` and ``path`` as for ``comparison``; models of the paper that were not run here are
    left out.
    """
    parts = []
    for run, ours in rows.groupby("run", sort=False):
        table = results.compare(name, ours, path=path)
        table = table[(table["dataset"] == dataset) & (table["verdict"] != "not run")]
        parts.append(table.assign(run=run))
    table = pd.concat(parts) if parts else pd.DataFrame()
    if table.empty:
        return table
    told = zip(table["value_reported"], table["unit"], strict=True)
    cells = [_cell(row) for row in table.to_dict("records")]
    pairs = zip(told, cells, strict=True)
    table["shown"] = [f"{metrics.shown(*figure)} · {mine}" for figure, mine in pairs]
    for key in ("metric", "model"):
        table[key] = table[key].map(partial(word, name))
    wide = table.groupby(["run", "model", "row", "metric"], sort=False)["shown"].first()
    return narrow(wide.unstack(sort=False).rename_axis(None, axis=1))


def narrow(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` without the levels of its index that tell no two rows apart; one is left."""
    n = table.index.nlevels
    same: list[Hashable] = [k for k in range(n) if table.index.get_level_values(k).nunique() == 1]
    return table.droplevel(same[: n - 1])


def _cell(row: dict[Any, Any]) -> str:
    return metrics.with_interval(*(row[key] for key in ("value", "low", "high", "unit")))


def word(name: str, key: str) -> str:
    """What pages call a variant, data set, stratum or measure of a study."""
    return study.find(name).words.get(key, WORDS.get(key, key.replace("_", " ")))


def heading(name: str, family: str, seeds: str = "") -> str:
    """What stands above the claims of a family, in Markdown; ``seeds``: the same for all."""
    told = word(name, family)
    return f"**{told[:1].upper()}{told[1:]}**{seeds and f' ({trained(int(seeds))})'}\n\n"


def trained(*seeds: int) -> str:
    """How many seeds were trained, in words; of unequal numbers, the least and the greatest."""
    words = {0: "no", 1: "one", 2: "two", 3: "three"}
    ends = sorted({min(seeds, default=0), max(seeds, default=0)})
    between = " or " if ends[-1] - ends[0] == 1 else " to "
    told = between.join(words.get(n, str(n)) for n in ends)
    return f"{told} training seed{'s' * (ends != [1])}"


def signed(value: float, unit: str, width: float = math.inf) -> str:
    """A difference with its sign; of shares in points.

    ``width``: of its interval, which takes as many decimals as show two of its digits.
    """
    scale, places = (100, 1) if unit in ("share", "part") else (1, 3)
    if 0 < width < math.inf:
        places = max(places, 1 - math.floor(math.log10(scale * width)))
    text = f"{round(scale * value, places) + 0.0:+.{places}f}"  # minus nothing is nothing
    return text.replace("-", "\N{MINUS SIGN}")


def unit_of(unit: str) -> str:
    """The unit of a difference in words; a score has none."""
    return {"share": "points", "part": "% of what it was", "score": ""}.get(unit, unit)


def towards(table: pd.DataFrame) -> pd.DataFrame:
    """Claims with ``difference``, ``low`` and ``high`` turned so that plus speaks for them."""
    less, numbers = table["direction"] == "less", ["difference", "low", "high"]
    turned = table.copy()
    turned.loc[less, numbers] = -table.loc[less, ["difference", "high", "low"]].to_numpy()
    return turned


def _of_family(table: pd.DataFrame, family: str | None) -> pd.DataFrame:
    """Claims of a family, or of all; without models that took part in none, unless none did."""
    table = table if family is None else table[table["family"] == family]
    took_part = (table["verdict"] != "not run").groupby([table["run"], table["model"]])
    kept = took_part.transform("any")
    return table[kept] if kept.any() else table


def claims(table: pd.DataFrame, name: str, family: str | None = None) -> pd.DataFrame:
    """Claims of ``claims.assess`` as a page shows them, a row per claim, run and model.

    Plus speaks for the claim.
    """
    rows = towards(_of_family(table, family))
    found = rows["n"] > 0
    spans = rows[["difference", "low", "high", "unit"]].to_numpy().tolist()
    pairs = zip(rows["first"], rows["second"], strict=True)
    places = zip(rows["dataset"], rows["stratum"], strict=True)
    plain = {
        "claim": rows["claim"],
        "verdict": rows["verdict"],
        "for the claim": [span(*some) for some in spans],
        "model": rows["model"].map(lambda key: word(name, key)),
        "run": rows["run"],
        "data": [", ".join(word(name, k) for k in place if k != "all") for place in places],
        "measure": rows["estimand"].map(lambda key: word(name, key)),
        "detectable": [
            "" if d != d else signed(d, unit, high - low).lstrip("+")
            for d, low, high, unit in rows[["detectable", "low", "high", "unit"]]
            .to_numpy()
            .tolist()
        ],
        "compared": [f"{word(name, one)} against {word(name, two)}" for one, two in pairs],
        "items": rows["n"].map("{:,}".format).where(found, ""),
        "seeds": rows["seeds"].map(str).where(found, ""),
        "p, corrected": rows["holm"].map(as_p),
    }
    shown = pd.DataFrame(plain)
    # A column that says the same in every row says nothing.
    same = [key for key in ("model", "run") if shown[key].nunique() < 2]
    return shown.drop(columns=same).reset_index(drop=True)


def as_p(p: float) -> str:
    """A p-value as a page shows it; never as nothing at all."""
    return "" if p != p else f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def span(value: float, low: float, high: float, unit: str) -> str:
    """A difference with its interval and unit; nothing for NaN."""
    if value != value:
        return ""
    told = [signed(x, unit, high - low) for x in (value, low, high) if x == x]
    ends = "" if low != low else f" [{told[1]}, {told[2]}]"
    return f"{told[0]}{ends} {unit_of(unit)}".strip()


def assessed(table: pd.DataFrame, name: str, family: str, *, links: bool = False) -> str:
    """Claims of a family in Markdown, as a page shows them, below their heading.

    What is compared, by which measure, on which data and with how many seeds, if they differ,
    stands below the claim, so that the table is no wider than a page. ``links``: verdicts lead to
    the glossary, and each claim has an address that lasts; of several models the first row has it.
    """
    told = claims(table, name, family)
    beneath = told["compared"] + ": " + told["measure"] + "; " + told["data"]
    known = {*told["seeds"]} - {""}
    if len(known) > 1:
        beneath += told["seeds"].map(lambda n: n and f"; {trained(int(n))}")
    # A phone shows little more of a row than its claim.
    for key in told.columns.intersection(["model", "run"]):
        beneath += ' <span class="apart">' + told[key] + "</span>"
    told["claim"] += ' <span class="beneath">' + beneath + "</span>"
    told = told.drop(columns=["compared", "measure", "data", "seeds"])
    if links:
        told["verdict"] = told["verdict"].map(term)
        ids = _of_family(table, family)["id"]
        link = '<a id="claim-{0}" href="#claim-{0}" title="Link to {0}">#</a> '.format
        told["claim"] = ids.map(link).where(~ids.duplicated(), "").to_numpy() + told["claim"]
    rows = told.to_numpy().tolist()
    above = heading(name, family, known.pop() if len(known) == 1 else "")
    return above + markdown([*told.columns], rows)


def picked(ids: Iterable[tuple[str, str]], scale: str = "small") -> str:
    """Some claims on the committed runs in Markdown, by study and id; every model that ran them.

    The measure stands below the claim. Studies that are not there are passed over.
    """
    found = []
    for name, key in ids:
        if name not in config.studies():
            continue
        table = tests.recorded(name, scale)
        table = table[table["id"] == key]
        was_run = table["verdict"] != "not run"
        table = (table[was_run] if was_run.any() else table).assign(run="")
        told = claims(table, name).assign(study=name)
        told["model"] = [word(name, model) for model in table["model"]]
        told["claim"] += ' <span class="beneath">' + told["measure"] + "</span>"
        told["verdict"] = told["verdict"].map(term)
        found.append(told)
    if not found:
        return ""
    heads = ["study", "claim", "verdict", "for the claim", "detectable", "model"]
    return markdown(heads, pd.concat(found)[heads].to_numpy().tolist())


def verdicts(name: str, scale: str = "small", *, brief: bool = False) -> str:
    """The verdicts on the committed reference runs in Markdown, a table for each family.

    ``brief``: without the primary family, for a page that has it.
    """
    table = tests.recorded(name, scale)
    families = [f for f in table["family"].unique() if not (brief and f == "primary")]
    return "\n".join(assessed(table, name, family, links=True) for family in families)


def term(text: str) -> str:
    """A word that links to the glossary, in MyST."""
    return f"{{term}}`{text}`"


def printed(name: str) -> pd.DataFrame:
    """What a paper prints for claims: a row per claim and model of the paper that has both sides.

    Returns:
        Columns ``id, paper`` (the model), ``first`` and ``second`` (the two figures), ``unit``,
        and ``difference`` with ``low`` and ``high``, turned towards the claim. The interval is
        Newcombe's (1998, method 10) for two accuracies on n items each, as if these were not the
        same items, which makes it too wide rather than too narrow; NaN for scores whose n are not
        printed.
    """
    table = results.reported(name)
    table["paper"] = table["row"].str.split(",").str[0]
    found = []
    for claim in (claim for claim in tests.declared(name) if claim.source != "companion"):
        names = table["metric"].map(lambda m, c=claim: f"{c.estimand}_".startswith(f"{m}_"))
        known = table[names & (table["dataset"] == claim.dataset)]
        for paper, part in known.groupby("paper", sort=False):
            sides = part.drop_duplicates("variant").set_index("variant")
            if not {claim.first, claim.second} <= {*sides.index}:
                continue
            one, two = (sides.loc[key].to_dict() for key in (claim.first, claim.second))
            sign = -1 if claim.direction == "less" else 1
            ends = sorted(sign * x for x in _newcombe(one, two))
            row = {"id": claim.id, "paper": str(paper), "first": one["value"]}
            row |= {"second": two["value"], "unit": one["unit"]}
            difference = sign * (one["value"] - two["value"])
            found.append({**row, "difference": difference, "low": ends[0], "high": ends[1]})
    columns = ["id", "paper", "first", "second", "unit", "difference", "low", "high"]
    return pd.DataFrame(found, columns=columns).sort_values("paper", key=_sizes, kind="stable")


def _sizes(models: pd.Series[str]) -> pd.Series[float]:
    return models.map(size_of).astype(float)


def _newcombe(one: dict[Any, Any], two: dict[Any, Any]) -> tuple[float, float]:
    if {one["metric"], two["metric"]} != {"accuracy"} or one["n"] != one["n"]:
        return math.nan, math.nan
    a, b = (metrics.share(round(side["value"] * side["n"]), int(side["n"])) for side in (one, two))
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return a.value - b.value - low, a.value - b.value + high


def glance(name: str, page: str = "", family: str = "primary") -> str:
    """Claims of the committed runs in Markdown: the claim, the paper's figures, ours, the verdict.

    A row per claim and a column per model of ours, from small to large. Claims are anchors, or,
    with the address of the ``page`` that has them, links to these.
    """
    table, told = _of_family(towards(tests.recorded(name)), family), printed(name)
    models = sorted(table["model"].unique(), key=size_of)
    body = []
    for key, rows in table.groupby("id", sort=False):
        text = str(rows["claim"].iloc[0])
        place = f'<a href="{page}#{key}">{text}</a>' if page else f'<span id="{key}"></span>{text}'
        paper = [
            f"{as_printed(r['first'], r['unit'])} against"
            f" {as_printed(r['second'], r['unit'])} ({r['paper']})"
            for r in told[told["id"] == key].to_dict("records")
        ]
        known = rows.set_index("model")
        ours = [
            f"{term(str(known.loc[m, 'verdict']))}<br>"
            + span(*known.loc[m, ["difference", "low", "high", "unit"]].tolist())
            for m in models
        ]
        asked = rows[["estimand", "dataset", "stratum"]].iloc[0]
        where = "; ".join(word(name, key) for key in asked if key != "all")
        body.append((f"{place} *({where})*", *ours, "<br>".join(paper) or NO_FIGURE))
    heads = [word(name, model) or "not run" for model in models]
    return markdown(["claim", *heads, "the paper"], body)


def variants(name: str) -> str:
    """The key of a study's variants in Markdown: the name in commands, and what pages call it.

    After those that can be run stands what they are compared with in the committed results.
    """
    owner = study.find(name)
    beside = [v for v in results.published(name)["variant"].unique() if v in owner.words]
    names = dict.fromkeys([*owner.order, *beside])
    return markdown(["name", "on pages"], [(f"`{v}`", word(name, v)) for v in names])


def effects(name: str = "") -> pd.DataFrame:
    """Claims against model size, the papers' figures and ours: the headline claim of each study.

    Of a study that is named also every other claim of its abstract that several models here carry.

    Returns:
        Columns ``study, claim, unit, source`` (``paper`` or ``here``), ``label, size`` (number of
        parameters), ``difference, low, high``, where plus speaks for the claim, and ``margin``,
        the loss that the claim allows, or 0.
    """
    parts = []
    for owner in [study.find(name)] if name else study.everything():
        mine = towards(tests.recorded(owner.name)).query("n > 0")
        several = mine[mine["family"] == "primary"].groupby("id")["model"].nunique() > 1
        more = {*several.index[several]} if name else set()
        paper, declared = printed(owner.name), tests.declared(owner.name)
        for claim in sorted(declared, key=lambda claim: claim.id != owner.headline):
            if claim.id != owner.headline and claim.id not in more:
                continue
            ours, theirs = (table[table["id"] == claim.id] for table in (mine, paper))
            labels = ours["model"].map(partial(word, owner.name))
            if claim.unit == "part":  # printed are the two figures
                numbers = ["difference", "low", "high"]
                theirs = theirs.assign(**theirs[numbers].div(theirs["second"], axis=0))
            both = [
                ours.assign(source="here", label=labels, size=_sizes(ours["model"])),
                theirs.assign(source="paper", label=theirs["paper"], size=_sizes(theirs["paper"])),
            ]
            told: dict[str, Any] = {"study": owner.name, "claim": claim.claim, "unit": claim.unit}
            told["margin"] = claim.margin
            parts += [part.assign(**told) for part in both if len(part)]
    columns = ["study", "claim", "unit", "margin", "source", "label", "size"]
    columns += ["difference", "low", "high"]
    return pd.concat(parts)[columns].reset_index(drop=True) if parts else pd.DataFrame()


def answer(name: str) -> str:
    """The headline claim of a study in MyST: the paper's figures for it, and ours."""
    owner, table = study.find(name), _of_family(tests.recorded(name), "primary")
    told = printed(name).query("id == @owner.headline").to_dict("records")
    theirs = [f"{span(*(row[key] for key in SPAN))} ({row['paper']})" for row in told]
    mine = towards(table[table["id"] == owner.headline]).to_dict("records")
    ours = [
        f"{term(row['verdict'])} {span(*(row[key] for key in SPAN))}".strip()
        + (f" ({word(name, row['model'])})" if row["model"] else "")
        for row in sorted(mine, key=lambda row: size_of(row["model"]))
    ]
    claim = mine[0]["claim"] if mine else "none is written down."
    paper = ", ".join(theirs) or NO_FIGURE
    return f"*Claim:* {claim} *Paper:* {paper}. *Here:* {', '.join(ours) or 'nothing run'}."


def tally(name: str) -> str:
    """How many of the primary claims have which verdict, by model, in MyST."""
    table = _of_family(tests.recorded(name), "primary")
    words = ("supported", "contradicted", "inconclusive", "not run")
    parts = []
    for model in sorted(table["model"].unique(), key=size_of):
        counts = table[table["model"] == model]["verdict"].value_counts()
        told = ", ".join(f"{counts[w]} {term(w)}" for w in words if counts.get(w))
        parts.append(f"{told} ({word(name, model)})")
    return f"Of {table['id'].nunique()} tests of what the abstract claims: {'; '.join(parts)}."
