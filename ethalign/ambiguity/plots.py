"""Figures of the ambiguity study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ethalign import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def vote_patterns(shares: pd.DataFrame) -> Axes:
    """Shares of items by how their votes fell, a colour per source.

    Args:
        shares: index ``5-0``, ``4-1`` …; a column of shares per source.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 3))
    shares.plot.bar(ax=axes, width=0.8, rot=0)
    axes.set(xlabel="votes for the first action against the second", ylabel="share of pairs")
    axes.legend(frameon=False)
    return axes


def reliability(curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> Axes:
    """Reliability diagrams: confidence in the answer against the share of votes for it.

    Args:
        curves: name to bins (``calibration.reliability``); the area of a point is its items.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(5.5, 4.5))
    colours = sns.color_palette("colorblind", len(curves))
    for colour, (name, bins) in zip(colours, curves.items(), strict=True):
        x, y, n = np.array(bins).T
        axes.plot(x, y, "-", color=colour, linewidth=1)
        axes.scatter(x, y, s=10 + 200 * n / n.sum(), color=colour, label=name)
    axes.plot([0.5, 1], [0.5, 1], "--", color="black", linewidth=1, label="calibrated")
    axes.set(xlabel="confidence in the answer", ylabel="share of votes for it", xlim=(0.48, 1.02))
    axes.legend(frameon=False)
    return axes


def by_disagreement(
    rows: pd.DataFrame,
    *,
    panels: str = "study",
    lines: Mapping[str, float] | None = None,
    ylabel: str = "",
) -> Axes:
    """One metric by stratum of disagreement, a colour per variant.

    Args:
        rows: metrics rows of one metric.
        panels: column that divides the figure; by default it has one panel.
        lines: name to level of horizontal lines (floors and ceilings).
        ylabel: name of the metric.

    Returns:
        The last panel.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    names, groups = (list(dict.fromkeys(rows[column])) for column in ("variant", panels))
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    _, grid = plt.subplots(1, len(groups), figsize=(7, 3.6), sharey=True, squeeze=False)
    for axes, group in zip(grid[0], groups, strict=True):
        _panel(axes, rows[rows[panels] == group], colours)
        for style, (name, level) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
            axes.axhline(level, color="black", linestyle=style, linewidth=1, label=name)
        axes.set_title(group if len(groups) > 1 else "", fontsize="x-small")
    grid[0][0].set_ylabel(ylabel)
    last: Axes = grid[0][-1]
    last.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return last


def _panel(axes: Axes, rows: pd.DataFrame, colours: Mapping[str, Any]) -> None:
    strata = [s for s in dict.fromkeys(rows["stratum"]) if s != "all"]
    for k, (name, colour) in enumerate(colours.items()):
        part = rows[rows["variant"] == name].set_index("stratum").reindex(strata)
        x = np.arange(len(strata)) + plots.offset(k, len(colours)) / max(1, len(colours) / 3)
        error = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
        axes.errorbar(x, part["value"], yerr=error, fmt="o", color=colour, capsize=2, label=name)
    axes.set(xticks=range(len(strata)), xticklabels=strata, xlabel="votes")


def order_bias(one: Any, two: Any) -> Axes:
    """Probability of the same action when it stands first and when it stands second.

    Args:
        one: (n,) probability of the first action with the pair as in the file.
        two: (n,) the same action's probability with the pair swapped.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(4.5, 4.5))
    axes.scatter(one, two, s=8, alpha=0.5, color="#0072B2")
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
    axes.set(xlabel="p, the action standing first", xlim=(0, 1), ylim=(0, 1))
    axes.set_ylabel("p, the same action standing second")
    return axes
