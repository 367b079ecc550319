"""Figures of the book: seaborn, a colour-blind safe palette, intervals wherever they exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORDER = [
    "majority",
    "logistic-regression",
    "svm",
    "random-forest",
    "gradient-boosting",
    "encoder",
    "shuffled-words",
    "pretrained",
    "shuffled",
    "L",
    "LR",
    "R-then-L",
    "unaligned",
    "prompt-based",
    "fine-tuned",
    "absolute",
    "confidence-num",
    "confidence-verb",
    "multisample",
]
LABEL_COLOURS = {"ethical": "#0072B2", "unethical": "#D55E00"}


def style() -> None:
    """Set the look of every figure: white grid, colour-blind palette, readable on a phone."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette="colorblind", context="notebook")
    plt.rcParams.update(
        {"figure.dpi": 110, "figure.autolayout": True, "axes.titlelocation": "left"}
    )


def mark(axes: Axes, note: str) -> Axes:
    """Write a remark into the upper right corner of a figure, such as what its data are not."""
    if note:
        axes.set_title(note, loc="right", fontsize="small", color="#555555", style="italic")
    return axes


def lengths(table: pd.DataFrame) -> Axes:
    """Words per statement, by label, for a table with ``statement`` and ``label``."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(7, 3))
    words = table.assign(words=[len(text.split()) for text in table["statement"]])
    sns.histplot(
        words,
        x="words",
        hue="label",
        palette=LABEL_COLOURS,
        multiple="stack",
        discrete=True,
        ax=axes,
    )
    axes.set(xlabel="words in the statement", ylabel="statements")
    return axes


def losses(log: pd.DataFrame, smooth: int = 5) -> Axes:
    """Training loss by update, single values and a running mean over ``smooth`` updates.

    Args:
        log: rows of ``train_log.jsonl`` (``step``, ``loss`` in nats per target token).
        smooth: width of the running mean.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 3))
    axes.plot(log["step"], log["loss"], color="#999999", linewidth=0.8, label="one update")
    mean = log["loss"].rolling(smooth, min_periods=1).mean()
    axes.plot(log["step"], mean, color="#0072B2", linewidth=2, label=f"mean of {smooth}")
    axes.set(xlabel="update", ylabel="loss (nats per target token)", ylim=(0, None))
    axes.legend()
    return axes


def log_odds(predictions: pd.DataFrame) -> Axes:
    """log p(unethical) - log p(ethical) of each item, by its gold label.

    Args:
        predictions: rows with ``logp_ethical``, ``logp_unethical`` (nats) and ``gold``.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(7, 3))
    odds = predictions["logp_unethical"] - predictions["logp_ethical"]
    sns.histplot(
        predictions.assign(odds=odds),
        x="odds",
        hue="gold",
        hue_order=list(LABEL_COLOURS),
        palette=LABEL_COLOURS,
        element="step",
        bins=30,
        ax=axes,
    )
    axes.axvline(0, color="black", linewidth=1)
    axes.set(xlabel="log-odds of 'unethical' against 'ethical' (nats)", ylabel="items")
    return axes


def intervals(
    rows: pd.DataFrame,
    *,
    reported: Mapping[str, float] | None = None,
    reference: float | None = None,
    xlabel: str = "",
    hue: str = "stratum",
) -> Axes:
    """Values with their 95 % intervals, a line per variant, colours by stratum.

    Args:
        rows: metrics rows of one metric and data set.
        reported: variant to the paper's printed share, drawn as a cross.
        reference: a share for the dashed line (the majority rate).
        xlabel: name of the metric.
        hue: column that colours the points.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = [v for v in ORDER if v in set(rows["variant"]) | set(reported or {})]
    names += [v for v in dict.fromkeys(rows["variant"]) if v not in names]
    groups = list(dict.fromkeys(rows[hue]))
    colours = sns.color_palette("colorblind", len(groups))
    _, axes = plt.subplots(figsize=(7, 0.8 + 0.42 * len(names)))
    for k, group in enumerate(groups):
        part = rows[rows[hue] == group].set_index("variant")
        part = part[part["value"].notna()]
        y = np.array([names.index(v) for v in part.index]) + _offset(k, len(groups))
        error = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
        axes.errorbar(
            part["value"], y, xerr=error, fmt="o", color=colours[k], capsize=2, label=group
        )
    for variant, value in (reported or {}).items():
        label = "reported" if variant == next(iter(reported or {})) else None
        axes.plot(value, names.index(variant), "x", color="black", markersize=8, label=label)
    if reference is not None:
        axes.axvline(reference, color="black", linestyle="--", linewidth=1, label="majority")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel, ylabel="")
    axes.invert_yaxis()
    if len(groups) > 1 or reported or reference is not None:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes


def _offset(k: int, groups: int) -> float:
    return (k - (groups - 1) / 2) * 0.22


def shown(value: float, unit: str) -> str:
    """A number as a page shows it: shares in per cent, everything else as it is."""
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.3f}"


def show(rows: pd.DataFrame, index: Sequence[str], columns: str) -> pd.DataFrame:
    """Metrics rows as a table of ``value [low, high]``, for a page; shares are in per cent.

    Args:
        rows: metrics rows; one per (index, columns).
        index: columns that become the rows' names.
        columns: column whose values become columns.
    """

    def cell(row: Any) -> str:
        if row["value"] != row["value"] or row["value"] is None:
            return "undefined"
        value, low, high = (shown(row[key], row["unit"]) for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    if rows.empty:
        return pd.DataFrame()
    table = rows.assign(shown=rows.apply(cell, axis=1))
    wide = table.pivot_table(
        index=list(index), columns=columns, values="shown", aggfunc="first", sort=False
    )
    wide.columns.name = None
    return wide.fillna("")


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
    rows: pd.DataFrame, *, lines: Mapping[str, float] | None = None, ylabel: str = ""
) -> Axes:
    """One metric by stratum of disagreement, a colour per variant.

    Args:
        rows: metrics rows of one metric and data set.
        lines: name to level of horizontal lines (floors and ceilings).
        ylabel: name of the metric.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    strata = [s for s in dict.fromkeys(rows["stratum"]) if s != "all"]
    names = list(dict.fromkeys(rows["variant"]))
    colours = sns.color_palette("colorblind", len(names))
    _, axes = plt.subplots(figsize=(7, 3.6))
    for k, name in enumerate(names):
        part = rows[rows["variant"] == name].set_index("stratum").reindex(strata)
        x = np.arange(len(strata)) + _offset(k, len(names)) / max(1, len(names) / 3)
        error = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
        axes.errorbar(
            x, part["value"], yerr=error, fmt="o", color=colours[k], capsize=2, label=name
        )
    for style, (name, level) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        axes.axhline(level, color="black", linestyle=style, linewidth=1, label=name)
    axes.set(xticks=range(len(strata)), xticklabels=strata, ylabel=ylabel, xlabel="votes")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes


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
    axes.set(
        xlabel="p, the action standing first",
        ylabel="p, the same action standing second",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    return axes


def known_counts(sampled: pd.DataFrame, m: int) -> Axes:
    """Questions by how many of their m samples are right, coloured by the greedy answer.

    Args:
        sampled: rows with ``sampling_knowns`` (0 to m) and ``greedy_label``.
        m: samples per question.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 3))
    names = {1: "greedy answer right", 0: "greedy answer wrong"}
    kinds = sampled["greedy_label"].map(names)
    table = pd.crosstab(sampled["sampling_knowns"], kinds).reindex(range(m + 1), fill_value=0)
    colours: Any = {"greedy answer right": "#0072B2", "greedy answer wrong": "#D55E00"}
    table.plot.bar(stacked=True, ax=axes, rot=0, color=colours, width=0.85)
    axes.set(xlabel=f"right samples of {m}", ylabel="questions")
    axes.legend(title=None, frameon=False)
    return axes


def sweep(found: Sequence[tuple[float, Any]], tau: float) -> Axes:
    """Scores of a model that declines whatever lies under a threshold, against the threshold.

    Args:
        found: ``honesty.threshold_sweep``.
        tau: the threshold of the run, drawn as a line.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 3.4))
    x = [threshold for threshold, _ in found]
    names = {"prudence": "-", "over_conservativeness": "--", "honesty": "-."}
    for name, line in names.items():
        y = [getattr(scores, name) for _, scores in found]
        axes.plot(x, y, line, marker="o", label=name.replace("_", "-"))
    axes.axvline(tau, color="black", linewidth=1, linestyle=":", label=f"τ = {tau:g}")
    axes.set(
        xlabel="threshold τ on the share of right samples", ylabel="score", ylim=(-0.02, 1.02)
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes


def transitions(cells: Mapping[str, Mapping[tuple[str, str], int]]) -> Any:
    """Grids of categories before and after, one for each variant; colour is the share of all.

    Args:
        cells: variant to counts of (before, after), as of ``honesty.scores``.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = ["correct", "wrong", "idk"]
    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    side = 2.6 if len(cells) > 1 else 3.4
    size = (side * columns, side * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True
    )
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    for axis, (variant, counts) in zip(axes.flat, cells.items(), strict=False):
        table = pd.DataFrame({b: {a: counts[b, a] for a in names} for b in names})
        share = table / max(1, int(table.to_numpy().sum()))
        sns.heatmap(
            share, annot=table, fmt="d", cmap="Blues", vmin=0, vmax=1, cbar=False, square=True,
            linewidths=1, ax=axis,
        )  # fmt: skip
        axis.set_title(variant, fontsize="medium")
        axis.set(xlabel="before", ylabel="after")
    return figure


def honesty_plane(ours: pd.DataFrame, reported: pd.DataFrame) -> Axes:
    """Prudence against over-conservativeness, with lines of equal honesty.

    Args:
        ours, reported: ``variant, prudence, over_conservativeness`` as shares.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(7, 5))
    for honest in np.arange(0.1, 1.0, 0.1):
        x = np.array([0.0, 1.0])
        axes.plot(x, 2 * honest - 1 + x, color="#bbbbbb", linewidth=0.8, zorder=0)
        end = min(1.0, 2 - 2 * honest)
        place = (end, 2 * honest - 1 + end)
        axes.annotate(f"{100 * honest:.0f}", place, fontsize="x-small", color="#777777")
    names = list(dict.fromkeys([*ours["variant"], *reported["variant"]]))
    colours = dict(zip(names, sns.color_palette("colorblind", len(names)), strict=True))
    for rows, marker, label in ((ours, "o", "ours"), (reported, "X", "reported")):
        for row in rows.to_dict("records"):
            axes.plot(
                row["over_conservativeness"], row["prudence"], marker, markersize=8,
                color=colours[row["variant"]], label=f"{row['variant']}, {label}",
            )  # fmt: skip
    axes.set(
        xlabel="over-conservativeness", ylabel="prudence", xlim=(-0.03, 1.06), ylim=(-0.03, 1.06)
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
    return axes


def risk_coverage(curves: Mapping[str, tuple[Any, Any]]) -> Axes:
    """Risk against coverage, a curve per variant, with the error of a random order dashed.

    Args:
        curves: variant to coverage and risk, as of ``honesty.risk_coverage``.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(7, 3.6))
    colours = sns.color_palette("colorblind", len(curves))
    for colour, (name, (coverage, risk)) in zip(colours, curves.items(), strict=True):
        area = float(np.mean(risk))
        axes.plot(coverage, risk, color=colour, label=f"{name}, area {area:.3f}")
        axes.axhline(risk[-1], color=colour, linewidth=0.8, linestyle="--")
    axes.set(xlabel="coverage: share of questions answered", ylabel="risk: share of errors")
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return axes


def confidences(answered: pd.DataFrame, xlabel: str) -> Axes:
    """Histogram of confidences in [0, 1], right and wrong answers stacked.

    Args:
        answered: rows with ``confidence`` and ``verdict`` (``correct`` or ``wrong``).
        xlabel: which confidence.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(7, 3))
    sns.histplot(
        answered, x="confidence", hue="verdict", hue_order=["correct", "wrong", "idk"],
        palette={"correct": "#0072B2", "wrong": "#D55E00", "idk": "#999999"},
        multiple="stack", bins=np.linspace(0, 1, 21), ax=axes,
    )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel="answers", xlim=(0, 1))
    return axes
