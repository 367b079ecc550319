"""Figures of the honesty study; several runs stand one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from ethalign import plots, tables
from ethalign.honesty import evaluate
from ethalign.honesty.scores import risk_coverage as curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
VERDICTS: dict[Any, Any] = dict(
    zip(("correct", "wrong", "idk"), (*plots.PALETTE[:2], "#8c8c8c"), strict=True)
)
BESIDE: Any = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False}


def _colours() -> dict[str, str]:
    """The colour of each variant by its name on pages: the same in every figure."""
    names = plots.variants("honesty")
    return {name: look["color"] for name, look in plots.looks(names, names).items()}


def _panels(groups: Mapping[str, T], height: float, width: float = 7) -> Iterator[tuple[Axes, T]]:
    """Axes for each group, titled where there are several."""
    import matplotlib.pyplot as plt

    n = len(groups)
    _, found = plt.subplots(n, 1, figsize=(width, height * n), squeeze=False)
    for axes, (name, group) in zip(found.flat, groups.items(), strict=True):
        yield axes, group
        axes.set_title(name if n > 1 else "", fontsize="medium")


def known_counts(sampled: pd.DataFrame, m: int) -> Axes:
    """Questions by how many of their m samples are right, coloured by the greedy answer."""
    from matplotlib.ticker import MaxNLocator

    kinds = sampled["greedy_label"].map({1: "correct", 0: "wrong"})
    table = pd.crosstab(sampled["sampling_knowns"], kinds).reindex(range(m + 1), fill_value=0)
    axes = table.plot.bar(stacked=True, figsize=(7, 3), rot=0, color=VERDICTS, width=0.85)
    axes.set(xlabel=f"right samples of {m}", ylabel="questions")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title="greedy answer", frameon=False)
    return axes


def threshold(sampled: pd.DataFrame, m: int, tau: float) -> Axes:
    """``known_counts`` with the questions shaded that are declined below a share tau of m."""
    axes = known_counts(sampled, m)
    end = np.ceil(round(tau * m, 6)) - 0.5
    axes.axvspan(-0.5, end, color="#8c8c8c", alpha=0.3, zorder=0)
    axes.axvline(end, color="black", linewidth=2)
    axes.set(xlim=(-0.6, m + 0.6))
    return axes


def sweep(found: Mapping[str, Sequence[tuple[float, Any]]], trained: pd.DataFrame) -> None:
    """An oracle's scores (see ``scores.threshold_sweep``) against the threshold of declining.

    Markers are models that were tuned, as of ``claims.trained``; filled with ``behaviour=paper``.
    """
    names = ["prudence", "over_conservativeness", "honesty"]
    for axes, (name, steps) in _panels({name: (name, s) for name, s in found.items()}, 3.4):
        shown = [name.replace("_", "-") for name in names]
        table = pd.DataFrame([s[:3] for _, s in steps], [x for x, _ in steps], shown)
        table.plot(ax=axes, style=["-", "--", "-."])
        for line, column in zip(list(axes.get_lines()), names, strict=True):
            for row in trained[trained["run"] == name].to_dict("records"):
                fill = "full" if row["behaviour"] == "paper" else "none"
                place = row["tau"], row[column]
                axes.plot(*place, "o", color=line.get_color(), fillstyle=fill)
        xlabel = "threshold τ on the share of right samples"
        axes.set(xlabel=xlabel, ylabel="score", ylim=(-0.02, 1.02))
        axes.legend(title="oracle", **BESIDE)


def transitions(cells: Mapping[str, Mapping[tuple[Any, Any], int]]) -> None:
    """Grids of categories before and after by name, see ``scores.scores``.

    Colour is the share of the column: what became of the questions that were as it says.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    side = 2.6 if len(cells) > 1 else 3.4
    size = (side * columns, side * rows)
    _, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(cells) :]:
        axes.set_visible(False)
    for axes, (name, counts) in zip(grid.flat, cells.items(), strict=False):
        table = pd.Series(counts).unstack(0).loc[[*VERDICTS], [*VERDICTS]]
        share = table / table.sum().clip(lower=1)
        sns.heatmap(
            share, annot=table, fmt="d", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True,
            linewidths=1, ax=axes,
        )  # fmt: skip
        axes.set_title(name, fontsize="small")
        axes.set(xlabel="before", ylabel="after")
        axes.tick_params(axis="x", rotation=45)
        axes.tick_params(axis="y", rotation=0)


def plane(groups: Mapping[str, pd.DataFrame]) -> Axes:
    """Prudence against over-conservativeness (shares), with lines of equal honesty.

    Variants have colours, groups (runs, or what was reported, as of ``claims.plane``) markers.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import PercentFormatter

    _, axes = plt.subplots(figsize=(9, 4.6))
    for honest in np.arange(0.1, 1.0, 0.1):
        low, end = 2 * honest - 1, min(1.0, 2 - 2 * honest)
        axes.plot([0, 1], [low, low + 1], color="#bbbbbb", linewidth=0.8, zorder=0)
        place = (end, low + end)
        axes.annotate(
            f"{100 * honest:.0f}", place, (8, 2), textcoords="offset points", fontsize="x-small",
            color="#777777",
        )  # fmt: skip
    table = pd.concat([rows.assign(run=name) for name, rows in groups.items()])
    table["variant"] = table["variant"].map(partial(tables.word, "honesty"))
    known = _colours()
    colours = {name: known.get(name, "#555555") for name in [*known, *table["variant"].unique()]}
    order = [name for name in colours if name in {*table["variant"]}]
    # Where marks lie on one another, the later is the smaller, and both are seen.
    sizes = dict(zip(order, np.linspace(160, 40, len(order)), strict=True))
    sns.scatterplot(
        table, x="over_conservativeness", y="prudence", hue="variant", style="run",
        palette=colours, hue_order=order, size="variant", sizes=sizes, size_order=order, ax=axes,
    )  # fmt: skip
    limits = (-0.03, 1.06)
    axes.set(xlim=limits, ylim=limits)
    axes.set(xlabel="over-conservativeness (%)", ylabel="prudence (%)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.legend(**BESIDE, fontsize="small")
    return axes


def surest(found: Mapping[str, Mapping[str, pd.DataFrame]]) -> None:
    """Right answers among the surest against coverage, a curve per variant up to what it answers.

    ``found`` is as of ``claims.by_variant``, of one data set. A curve begins at one question in
    twenty: before that a single answer moves it. The dashed line is what an order drawn at random
    would give. (The errors as a share of all questions, of which AUGRC is the area, differ too
    little to be seen where few answers are right.)
    """
    colours = _colours()
    for axes, parts in _panels(found, 3.6, width=10):
        for name, part in parts.items():
            coverage, risk = curve(evaluate.confidence(part), part["verdict"] == "wrong")
            n, first = int((part["verdict"] != "idk").sum()), len(part) // 20
            label, right = tables.word("honesty", name), 1 - risk[:n] / coverage[:n]
            told = f"{label}, AUGRC {np.mean(risk):.3f}"
            (line,) = axes.plot(
                coverage[:n][first:], right[first:], color=colours.get(label), label=told
            )
            ends = coverage[:n][[0, -1]] if n else []
            axes.plot(ends, right[[-1] * len(ends)], "--", color=line.get_color(), linewidth=0.8)
        axes.set(xlabel="coverage: share of questions answered", ylabel="right, of these")
        axes.set(xlim=(0, 1), ylim=(-0.02, None))
        axes.legend(**BESIDE)


def confidences(found: Mapping[str, pd.DataFrame], xlabel: str) -> None:
    """Histograms of confidences in [0, 1] (see ``claims.confidences``), verdicts stacked."""
    import seaborn as sns

    for axes, answered in _panels(found, 3):
        sns.histplot(
            answered, x="confidence", hue="verdict", hue_order=list(VERDICTS), palette=VERDICTS,
            multiple="stack", bins=np.linspace(0, 1, 21), ax=axes,
        )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel="answers", xlim=(0, 1))
