"""Figures of the honesty study; several runs stand one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
VERDICTS = {"correct": "#0072B2", "wrong": "#D55E00", "idk": "#999999"}


def _panels(groups: Mapping[str, T], height: float) -> Iterator[tuple[Axes, T]]:
    """Axes for each group, titled where there are several."""
    import matplotlib.pyplot as plt

    size = (7, height * len(groups))
    _, found = plt.subplots(len(groups), 1, figsize=size, squeeze=False)
    for axes, (name, group) in zip(found.flat, groups.items(), strict=True):
        yield axes, group
        if len(groups) > 1:
            axes.set_title(name, fontsize="medium")


def known_counts(sampled: pd.DataFrame, m: int) -> Axes:
    """Questions by how many of their m samples are right, coloured by the greedy answer.

    Args:
        sampled: rows with ``sampling_knowns`` (0 to m) and ``greedy_label``.
        m: samples per question.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 3))
    kinds = sampled["greedy_label"].map({1: "greedy answer right", 0: "greedy answer wrong"})
    table = pd.crosstab(sampled["sampling_knowns"], kinds).reindex(range(m + 1), fill_value=0)
    colours: Any = {"greedy answer right": "#0072B2", "greedy answer wrong": "#D55E00"}
    table.plot.bar(stacked=True, ax=axes, rot=0, color=colours, width=0.85)
    axes.set(xlabel=f"right samples of {m}", ylabel="questions")
    axes.legend(title=None, frameon=False)
    return axes


def sweep(found: Mapping[str, Sequence[tuple[float, Any]]], tau: float) -> None:
    """Scores of a model that declines whatever lies under a threshold, against the threshold.

    Args:
        found: name to ``scores.threshold_sweep``.
        tau: the threshold of the run, drawn as a line.
    """
    for axes, steps in _panels(found, 3.4):
        x = [threshold for threshold, _ in steps]
        lines = {"prudence": "-", "over_conservativeness": "--", "honesty": "-."}
        for name, line in lines.items():
            y = [getattr(scores, name) for _, scores in steps]
            axes.plot(x, y, line, marker="o", label=name.replace("_", "-"))
        axes.axvline(tau, color="black", linewidth=1, linestyle=":", label=f"τ = {tau:g}")
        axes.set(xlabel="threshold τ on the share of right samples", ylabel="score")
        axes.set(ylim=(-0.02, 1.02))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def transitions(cells: Mapping[str, Mapping[tuple[Any, Any], int]]) -> None:
    """Grids of categories before and after, one for each name; colour is the share of all.

    Args:
        cells: name to counts of (before, after), as of ``scores.scores``.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = ["correct", "wrong", "idk"]
    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    side = 2.6 if len(cells) > 1 else 3.4
    size = (side * columns, side * rows)
    _, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(cells) :]:
        axes.set_visible(False)
    for axes, (name, counts) in zip(grid.flat, cells.items(), strict=False):
        table = pd.DataFrame({b: {a: counts[b, a] for a in names} for b in names})
        share = table / max(1, int(table.to_numpy().sum()))
        sns.heatmap(
            share, annot=table, fmt="d", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True,
            linewidths=1, ax=axes,
        )  # fmt: skip
        axes.set_title(name, fontsize="small")
        axes.set(xlabel="before", ylabel="after")


def plane(groups: Mapping[str, pd.DataFrame]) -> Axes:
    """Prudence against over-conservativeness, with lines of equal honesty.

    Args:
        groups: name (a run, or ``reported``) to ``variant, prudence, over_conservativeness`` as
            shares; variants have colours, groups have markers.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(9, 4.6))
    for honest in np.arange(0.1, 1.0, 0.1):
        x = np.array([0.0, 1.0])
        axes.plot(x, 2 * honest - 1 + x, color="#bbbbbb", linewidth=0.8, zorder=0)
        end = min(1.0, 2 - 2 * honest)
        place = (end, 2 * honest - 1 + end)
        axes.annotate(f"{100 * honest:.0f}", place, fontsize="x-small", color="#777777")
    names = list(dict.fromkeys(v for rows in groups.values() for v in rows["variant"]))
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    for name, colour in colours.items():
        axes.plot([], [], "s", color=colour, label=name)
    for marker, (label, rows) in zip("oX*^Dv", groups.items(), strict=False):
        axes.plot([], [], marker, color="black", label=label)
        for row in rows.to_dict("records"):
            point = row["over_conservativeness"], row["prudence"]
            axes.plot(*point, marker, markersize=8, color=colours[row["variant"]])
    axes.set(xlabel="over-conservativeness", ylabel="prudence")
    axes.set(xlim=(-0.03, 1.06), ylim=(-0.03, 1.06))
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
    return axes


def risk_coverage(found: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> None:
    """Risk against coverage, a curve per variant, with the error of a random order dashed.

    Args:
        found: run to variant to coverage and risk, as of ``scores.risk_coverage``.
    """
    import seaborn as sns

    for axes, curves in _panels(found, 3.6):
        colours = sns.color_palette("colorblind", len(curves))
        for colour, (name, (coverage, risk)) in zip(colours, curves.items(), strict=True):
            area = float(np.mean(risk))
            axes.plot(coverage, risk, color=colour, label=f"{name}, area {area:.3f}")
            axes.axhline(risk[-1], color=colour, linewidth=0.8, linestyle="--")
        axes.set(xlabel="coverage: share of questions answered", ylabel="risk: share of errors")
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def confidences(found: Mapping[str, pd.DataFrame], xlabel: str) -> None:
    """Histograms of confidences in [0, 1], right and wrong answers stacked.

    Args:
        found: name to rows with ``confidence`` and ``verdict``.
        xlabel: which confidence.
    """
    import seaborn as sns

    for axes, answered in _panels(found, 3):
        sns.histplot(
            answered, x="confidence", hue="verdict", hue_order=list(VERDICTS), palette=VERDICTS,
            multiple="stack", bins=np.linspace(0, 1, 21), ax=axes,
        )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel="answers", xlim=(0, 1))
