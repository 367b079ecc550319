"""Figures of the ambiguity study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd
from scipy import special

from ethalign import metrics, plots
from ethalign.ambiguity.data import STRATA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ethalign.calibration import Group

STYLES: tuple[Literal["--", ":", "-."], ...] = ("--", ":", "-.")


def vote_patterns(shares: pd.DataFrame) -> Axes:
    """Shares of items by how their votes fell (index ``5-0``, ``4-1`` …), a colour per source."""
    axes = shares.plot.bar(figsize=(7, 3), width=0.8, rot=0)
    axes.set(xlabel="votes for the first answer against the second", ylabel="share of items")
    axes.legend(frameon=False)
    return axes


def reliability(curves: Mapping[str, Sequence[Group]]) -> Axes:
    """Reliability diagrams: probability of the first answer against the share of votes for it.

    ``curves`` are ``calibration.quantile_groups`` by name. Bands are where the shares would lie in
    95 % of samples if the probabilities were right.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(5.5, 4.5))
    look = plots.looks(curves, plots.variants("ambiguity"))
    for name, groups in curves.items():
        p, share, low, high, *_ = np.array(groups).T
        axes.fill_between(p, low, high, color=look[name]["color"], alpha=0.15, linewidth=0)
        axes.plot(p, share, linewidth=1, label=name, **look[name])
    axes.axline(
        (0.5, 0.5), slope=1, linestyle="--", color="black", linewidth=1, label="calibrated"
    )
    axes.set(xlabel="probability of the first answer", ylabel="share of votes for it")
    axes.legend(frameon=False)
    return axes


def against(votes: Any, model: Any, xlabel: str, ylabel: str) -> Axes:
    """What a model gives each item (n,) against what its votes give, and means with intervals.

    Items whose votes agree to a tenth share a mean.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(4.5, 4.5))
    axes.scatter(votes, model, s=8, alpha=0.5, color=plots.PALETTE[0])
    groups = pd.DataFrame({"x": votes, "y": model}).groupby(np.round(votes, 1))
    x, y, error = groups["x"].mean(), groups["y"].mean(), groups["y"].sem()
    error *= special.stdtrit(groups.size().to_numpy() - 1, metrics.TAILS[1])  # NaN of one item
    axes.errorbar(x, y, yerr=error, fmt="o-", color=plots.PALETTE[1], capsize=3, label="mean")
    ends = (0, max(1e-9, np.max(votes)))
    axes.plot(ends, ends, "--", color="black", linewidth=1, label="as the votes")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False)
    return axes


def by_disagreement(
    rows: pd.DataFrame, lines: pd.DataFrame, *, panels: str = "study", ylabel: str = ""
) -> Axes:
    """One metric by stratum of disagreement, a colour per variant; returns the last panel.

    Args:
        rows: metrics rows of one metric, which ``ylabel`` names.
        lines: the same of what is drawn as lines (floors and ceilings).
        panels: column of both that divides the figure; by default it has one panel.
    """
    import matplotlib.pyplot as plt

    called = plots.words(rows)
    rows, lines = (t.assign(variant=t["variant"].map(called)) for t in (rows, lines))
    names, n = list(rows["variant"].unique()), rows[panels].nunique()
    found = plots.looks(names, plots.variants("ambiguity"))
    look = {name: found[name] for name in names}
    _, grid = plt.subplots(1, n, figsize=(7, 3.6), sharey=True, squeeze=False)
    for axes, (group, part) in zip(grid[0], rows.groupby(panels, sort=False), strict=True):
        _panel(axes, part, look, lines[lines[panels] == group])
        axes.set_title(group if n > 1 else "", fontsize="x-small")
    grid[0][0].set_ylabel(ylabel)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return cast("Axes", axes)


def _panel(
    axes: Axes, rows: pd.DataFrame, look: Mapping[str, dict[str, Any]], lines: pd.DataFrame
) -> None:
    strata = [s for s in dict.fromkeys(rows["stratum"]) if s in STRATA]
    for style, (name, line) in zip(STYLES, lines.groupby("variant"), strict=False):
        level = line.drop_duplicates("stratum").set_index("stratum")["value"].reindex(strata)
        ends = np.arange(len(strata))
        axes.hlines(level, ends - 0.4, ends + 0.4, "black", style, label=str(name))
    for k, (name, how) in enumerate(look.items()):
        part = rows[rows["variant"] == name].set_index("stratum").reindex(strata)
        x = np.arange(len(strata)) + plots.offset(k, len(look)) / max(1, len(look) / 3)
        error = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
        axes.errorbar(x, part["value"], yerr=error, linestyle="", capsize=2, label=name, **how)
    axes.set(xticks=range(len(strata)), xticklabels=strata, xlabel="votes")


def order_bias(one: Any, two: Any) -> Axes:
    """Probability (n,) of the same action when it stands first and when it stands second."""
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(4.5, 4.5))
    axes.scatter(one, two, s=8, alpha=0.5, color=plots.PALETTE[0])
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
    labels = ("p, the action standing first", "p, the same action standing second")
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1), ylim=(0, 1))
    return axes
