"""Figures of the book: seaborn, one palette, intervals wherever they exist."""

from __future__ import annotations

import base64
import html
import io
import itertools
import numbers
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ethalign import metrics

#: Columns whose values pages have words for.
NAMED = ("model", "variant", "dataset", "stratum", "metric")

#: Colours that stand out from white, and from the dark page on which their lightness is turned
#: over, by 3 : 1 (WCAG 2.2, 1.4.11), and from one another for those who see no red or no green.
PALETTE = (
    "#0173b2", "#d55e00", "#029e73", "#cc78bc", "#5a6969",
    "#b4874b", "#690f78", "#871e3c", "#2d4b00", "#7878f0",
)  # fmt: skip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler


def style() -> None:
    """Set the look of every figure: white grid, ``PALETTE``, readable on a phone.

    In tables no word is cut off, and nothing is a formula: a viewer with MathJax would draw what
    stands between dollars.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    sns.set_theme(style="whitegrid", palette=PALETTE, context="notebook")
    plt.rcParams.update(
        {"figure.dpi": 110, "figure.autolayout": True, "axes.titlelocation": "left"}
    )
    pd.set_option("display.html.use_mathjax", False, "styler.html.mathjax", False)
    pd.set_option("display.max_colwidth", None)


def mark(axes: Axes, note: str) -> Axes:
    """Write a remark into the upper right corner of a figure, such as what its data are not."""
    if note:
        axes.set_title(note, loc="right", fontsize="small", color="#555555", style="italic")
    return axes


def losses(log: pd.DataFrame, smooth: int = 5) -> Axes:
    """Training loss by update, single values and a running mean over ``smooth`` updates.

    ``log`` holds rows of ``train_log.jsonl`` (``step``, ``loss`` in nats per target token).
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(7, 3))
    axes.plot(log["step"], log["loss"], color="#8c8c8c", linewidth=0.8, label="one update")
    mean = log["loss"].rolling(smooth, min_periods=1).mean()
    axes.plot(log["step"], mean, color=PALETTE[0], linewidth=2, label=f"mean of {smooth}")
    axes.set(xlabel="update", ylabel="loss (nats per target token)", ylim=(0, None))
    axes.legend()
    return axes


def intervals(
    rows: pd.DataFrame,
    *,
    order: Sequence[str] = (),
    lines: Mapping[str, float] | None = None,
    xlabel: str = "",
    hue: str = "stratum",
) -> Axes:
    """Values with their 95 % intervals, a line per variant, colours by ``hue``.

    Both are called what pages of the rows' ``study`` call them.

    Args:
        rows: metrics rows of one metric and data set.
        order: variants in the order of their lines; others come after them.
        lines: name to place of vertical lines.
    """
    import matplotlib.pyplot as plt

    from ethalign.models import PACKAGED

    names = [v for v in order if v in set(rows["variant"])]
    names += [v for v in dict.fromkeys(rows["variant"]) if v not in names]
    groups, called = list(dict.fromkeys(rows[hue])), words(rows)
    look = looks(map(called, groups), map(called, PACKAGED) if hue == "model" else ())
    each = max(0.42, 0.17 * len(groups))
    _, axes = plt.subplots(figsize=(7, 0.8 + each * len(names)))
    for k, group in enumerate(groups):
        part = rows[rows[hue] == group].set_index("variant")
        part = part[part["value"].notna()]
        y = np.array([names.index(v) for v in part.index]) + offset(k, len(groups))
        error = np.array([part["value"] - part["low"], part["high"] - part["value"]]).clip(min=0)
        axes.errorbar(
            part["value"],
            y,
            xerr=error,
            linestyle="",
            capsize=2,
            label=called(group),
            **look[called(group)],
        )
    for style, (name, level) in zip(("--", ":", "-."), (lines or {}).items(), strict=False):
        axes.axvline(level, color="black", linestyle=style, linewidth=1, label=name)
    axes.set(yticks=range(len(names)), yticklabels=map(called, names), xlabel=xlabel, ylabel="")
    axes.invert_yaxis()
    if len(groups) > 1 or lines:  # below the label of the axis, where it takes no width
        place = (0.5, -0.6 / (0.2 + each * len(names)))
        axes.legend(loc="upper center", bbox_to_anchor=place, ncols=3, frameon=False)
    return axes


def looks(names: Iterable[str], known: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Colour and marker of each name: those of its place in ``known``, where all figures agree.

    Names that are not known come after them; where none is, they come first.
    """
    names, known = list(names), list(known)
    every = dict.fromkeys([*known, *names] if {*names} & {*known} else names)
    cycle = zip(itertools.cycle(PALETTE), itertools.cycle("osD^vPX"), strict=False)
    return {name: {"color": c, "marker": m} for name, (c, m) in zip(every, cycle, strict=False)}


def variants(name: str) -> list[str]:
    """What pages call the variants of a study, in its order."""
    from ethalign import study, tables

    return [tables.word(name, key) for key in study.find(name).order]


def words(rows: pd.DataFrame) -> Callable[[str], str]:
    """What pages of the rows' study call its variants, models, strata and measures."""
    from ethalign import tables

    studies = rows.get("study", pd.Series(dtype=str)).unique()
    return partial(tables.word, str(studies[0])) if len(studies) else str


def offset(k: int, groups: int) -> float:
    """How far the points of group k lie off their line, so that groups do not hide each other."""
    return (k - (groups - 1) / 2) * min(0.22, 0.8 / groups)


def show(rows: pd.DataFrame, index: Sequence[str], columns: str) -> pd.DataFrame:
    """Metrics rows as a table of ``value [low, high]``, for a page; shares are in per cent.

    ``index`` are the columns that name a row, the values of ``columns`` become columns; both are
    called what pages of the rows' ``study`` call them. A level of the index that is the same in
    all rows is left out.
    """
    from ethalign import tables

    if rows.empty:
        return pd.DataFrame()
    for key in {*index, columns} & {*NAMED}:
        rows = rows.assign(**{key: rows[key].map(words(rows))})
    cells = zip(*(rows[key] for key in ("value", "low", "high", "unit")), strict=True)
    shown = [metrics.with_interval(v, a, b, unit, "undefined") for v, a, b, unit in cells]
    wide = rows.assign(shown=shown).pivot_table(
        index=list(index), columns=columns, values="shown", aggfunc="first", sort=False
    )
    return tables.narrow(wide.rename_axis(None, axis=1).fillna(""))


def texts(rows: pd.DataFrame) -> Styler:
    """A table of words of data or of models, whole, for a page; nothing in it is HTML."""
    shown = rows.map(lambda cell: cell if isinstance(cell, numbers.Number) else str(cell))
    styled = shown.style.hide().format(escape="html")
    reals = list(rows.select_dtypes("float"))
    table = styled.format("{:g}", subset=reals).format_index(escape="html", axis=1)
    return table.set_table_attributes('class="dataframe"')  # pages give other tables no room


def effects(table: pd.DataFrame) -> Figure:
    """Effects against model size, a panel per claim; ``table`` is as of ``tables.effects``.

    Up speaks for the claim; of a claim that allows a loss, whatever is above a dashed line. What
    the paper prints is drawn hollow, what was run here filled, and named by its size alone.
    """
    import matplotlib.pyplot as plt

    panels = list(table.groupby("claim", sort=False))
    figure, grid = plt.subplots(len(panels), 1, figsize=(4.6, 2.4 * len(panels)), squeeze=False)
    looks: dict[Any, dict[str, Any]] = {
        "paper": {
            "fmt": "s",
            "color": PALETTE[1],
            "mfc": "white",
            "label": "printed in the paper",
        },
        "here": {"fmt": "o", "color": PALETTE[0], "label": "run here"},
    }
    for axes, (_, part) in zip(grid.flat, panels, strict=True):
        scale = 100 if part["unit"].isin(["share", "part"]).all() else 1
        for source, rows in part.groupby("source"):
            y, low, high = (scale * rows[key] for key in ("difference", "low", "high"))
            error = np.array([y - low, high - y]).clip(min=0)
            axes.errorbar(rows["size"], y, yerr=error, capsize=3, **looks[source])
            # Names stand above the bars, below them next to a model that is hardly smaller, and
            # beside them where models are of one size.
            ends = zip(rows["size"], y, low.fillna(y), high.fillna(y), rows["label"], strict=True)
            for x, at, bottom, top, name in ends:
                alone, better = (rows["size"] == x).sum() == 1, at == y[rows["size"] == x].max()
                below = rows["size"].between(x / 2.5, x, inclusive="neither").any()
                beside = (x, at), (7, 2 if better else -9), "left"
                under, over = ((x, bottom), (0, -14), "center"), ((x, top), (0, 5), "center")
                point, offset, side = (under if below else over) if alone else beside
                size = name.split()[-1] if source == "here" else name
                how: dict[str, Any] = {"textcoords": "offset points", "ha": side}
                axes.annotate(size, point, offset, fontsize="small", **how)
        axes.axhline(0, color="black", linewidth=1)
        if margin := float(part["margin"].iloc[0]):
            look = {"color": "black", "linewidth": 1, "linestyle": "--", "label": "loss allowed"}
            axes.axhline(-scale * margin, **look)
        unit = str(part["unit"].iloc[0])
        told = {"share": "points for the claim", "part": "% of what it was"}
        label = told.get(unit, f"{unit} for the claim")
        axes.set(xscale="log", xlim=(7e7, 6e11), ylabel=label)
        axes.set_xticks([1e8, 1e9, 1e10, 1e11], ["100M", "1B", "10B", "100B"])
        axes.set_title("\n".join(textwrap.wrap(str(part["claim"].iloc[0]), 42)), fontsize="medium")
        axes.margins(y=0.3)
    axes.set_xlabel("parameters of the model")
    shown: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2}
    figure.legend(shown.values(), shown.keys(), frameon=False, **place)
    return figure


def growth(table: pd.DataFrame) -> Figure:
    """Seconds and gigabytes of work that grows in one way at a time; time on logarithmic axes.

    ``table`` has ``along`` (what grows), ``size`` (how much of it), ``seconds`` and ``memory``.
    """
    import seaborn as sns

    names = {"seconds": "seconds", "memory": "memory (GB)"}
    rows = table.rename(columns=names).melt(["along", "size"], list(names.values()))
    place = {"x": "size", "y": "value", "col": "along", "row": "variable"}
    apart = {"sharex": "col", "sharey": "row"}
    look = {"kind": "line", "marker": "o", "height": 2.2, "aspect": 1.4, "facet_kws": apart}
    grid = sns.relplot(rows, **place, **look)
    grid.set(xscale="log")
    for (measure, along), axes in grid.axes_dict.items():
        axes.set(title="", xlabel=along, ylabel=measure)
        if measure == "seconds":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    figure: Figure = grid.figure
    return figure


def told(what: str, rows: pd.DataFrame) -> str:
    """The text of a figure for those who do not see it: what it shows, and its numbers."""
    names = rows["variant"]
    if "model" in rows and rows["model"].nunique() > 1:
        names = names + " (" + rows["model"] + ")"
    cells = zip(names, rows["value"], rows["unit"], strict=True)
    return f"{what}: " + "; ".join(f"{v} {metrics.shown(x, u)}" for v, x, u in cells if x == x)


def lighter(picture: str) -> str:
    """A PNG (base64) of a figure in its 256 most useful colours, a third of the bytes.

    One that is see-through, or has few colours already, stays as it is.
    """
    from PIL import Image

    before, after = io.BytesIO(base64.b64decode(picture)), io.BytesIO()
    with Image.open(before) as image:
        solid = image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
        if image.mode == "P" or not solid:
            return picture
        few = image.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
        few.save(after, "PNG", optimize=True)
    return base64.b64encode(after.getvalue()).decode()


def drawing(figure: Figure, **how: Any) -> bytes:
    """A figure as SVG, the same bytes each time; ``how`` is for matplotlib's ``savefig``."""
    import matplotlib.pyplot as plt

    with io.BytesIO() as file, plt.rc_context({"svg.hashsalt": "ethalign"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight", **how)
        plt.close(figure)
        return file.getvalue()


def svg(figure: Figure, alt: str) -> str:
    """A figure as an element of a page: sharp at any size.

    Where a screen is narrow a wide figure scrolls, and one of less than five inches shrinks.
    """
    data = base64.b64encode(drawing(figure)).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'
    size = "figure slim" if figure.get_figwidth() < 5 else "figure"
    return f'<div class="{size}" tabindex="0">{image}</div>'


def slider(label: str, states: Sequence[tuple[str, Figure, str]], start: int = 0) -> str:
    """Figures as the places of a slider, each with its name and what it shows in words.

    ``slider.js`` shows one of them at a time, at first the one of place ``start``. Without it
    all stand side by side, and say the same.
    """
    figures = "".join(
        f"<figure><figcaption>{html.escape(f'{label} {name}: {told}')}</figcaption>"
        f"{svg(figure, told)}</figure>"
        for name, figure, told in states
    )
    named = f'data-label="{html.escape(label)}" data-start="{start}"'
    return f'<div class="slider" {named}>{figures}</div>'
