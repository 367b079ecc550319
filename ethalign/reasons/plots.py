"""Figures of the reasons study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from ethalign import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_COLOURS = dict(zip(("ethical", "unethical"), plots.PALETTE, strict=False))


def _histogram(table: pd.DataFrame, x: str, label: str, **more: Any) -> Axes:
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(figsize=(7, 3))
    colours = {"hue_order": list(LABEL_COLOURS), "palette": LABEL_COLOURS}
    sns.histplot(table, x=x, hue=label, **colours, ax=axes, **more)
    return axes


def lengths(table: pd.DataFrame) -> Axes:
    """Words per statement, by label, for a table with ``statement`` and ``label``."""
    words = table.assign(words=[len(text.split()) for text in table["statement"]])
    axes = _histogram(words, "words", "label", multiple="stack", discrete=True)
    axes.set(xlabel="words in the statement", ylabel="statements")
    return axes


def log_odds(predictions: pd.DataFrame, threshold: float = 0.0) -> Axes:
    """log p(unethical) - log p(ethical) (nats) of each predicted item, by its gold label.

    Lines at zero and, dashed, at the threshold of the prior-corrected verdict.
    """
    odds = predictions["logp_unethical"] - predictions["logp_ethical"]
    axes = _histogram(predictions.assign(odds=odds), "odds", "gold", element="step", bins=30)
    axes.axvline(0, color="black", linewidth=1)
    axes.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="log-odds of 'unethical' against 'ethical' (nats)", ylabel="items")
    return axes


def memory(seen: float, majority: float) -> Axes:
    """Test rows of a model that has stored a share ``seen`` of them and guesses the others.

    ``majority`` is the share of the label it guesses among the rows that it has not seen.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2), layout="constrained")
    parts = {"remembered": seen, "guessed rightly": (1 - seen) * majority}
    looks = ((plots.PALETTE[0], ""), ("#56B4E9", "//"), ("#dddddd", ""))
    parts, left = {**parts, "wrong": 1 - sum(parts.values())}, 0.0
    for (name, width), (colour, hatch) in zip(parts.items(), looks, strict=True):
        axes.barh(0, 100 * width, left=100 * left, color=colour, hatch=hatch, label=name)
        left += width
    axes.axvline(100 * (1 - parts["wrong"]), color="black", linewidth=2)
    axes.set(xlim=(0, 100), xlabel="test rows (%)", yticks=[])
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return axes
