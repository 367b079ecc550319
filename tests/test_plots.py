"""Figures that move: what a slider shows, by keyboard and without scripts."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pages
import pandas as pd
import pytest
from conftest import needs_chromium
from matplotlib.colors import to_rgb
from PIL import Image
from playwright.sync_api import Page

from ethalign import config, pipeline, plots, results, tables
from ethalign.config import ROOT
from ethalign.honesty import plots as of_honesty
from ethalign.reasons import plots as of_reasons


@needs_chromium
def test_a_slider_moves_by_keyboard_and_shows_everything_without_scripts(tmp_path: Path) -> None:
    states = [(f"<{k}>", plt.figure(figsize=(1, 1)), f'text "{k}"') for k in range(3)]
    script = (ROOT / "book" / "_static" / "slider.js").as_uri()
    page = tmp_path / "page.html"
    page.write_text(
        f"<body>{plots.slider('heat', states, 1)}<script src={script}></script></body>"
    )

    def shown(browser: Page) -> list[str]:
        return [f.inner_text() for f in browser.locator("figure").all() if f.is_visible()]

    with pages.opened(java_script_enabled=False) as context:
        still = context.new_page()
        still.goto(page.as_uri())
        assert shown(still) == [f'heat <{k}>: text "{k}"' for k in range(3)]
        assert [i.get_attribute("alt") for i in still.locator("img").all()][2] == 'text "2"'
    with pages.opened() as context:
        moving = context.new_page()
        moving.goto(page.as_uri())
        assert shown(moving) == ['heat <1>: text "1"']
        slider = moving.get_by_role("slider", name="heat")
        slider.press("ArrowRight")
        assert shown(moving) == ['heat <2>: text "2"']
        assert slider.get_attribute("aria-valuetext") == 'heat <2>: text "2"'
        slider.press("Home")
        assert shown(moving) == ['heat <0>: text "0"']


def _contrast(colour: Any, ground: Any) -> float:
    """The contrast ratio of two colours (3,), as WCAG 2.2 defines it."""
    both = np.array([colour, ground], dtype=float)
    linear = np.where(both <= 0.04045, both / 12.92, ((both + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return float((high + 0.05) / (low + 0.05))


@needs_chromium
@pytest.mark.parametrize(("theme", "ground"), [("light", "#ffffff"), ("dark", "#14181e")])
def test_colours_of_figures_stand_out_from_the_page(
    tmp_path: Path, theme: str, ground: str
) -> None:
    assert _contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    plt.imsave(tmp_path / "swatches.png", np.array([[to_rgb(c) for c in plots.PALETTE]]))
    sheet = (ROOT / "book" / "_static" / "ethalign.css").as_uri()
    look = "display: block; width: 500px; height: 50px; image-rendering: pixelated"
    (tmp_path / "page.html").write_text(
        f'<html data-theme="{theme}"><link rel="stylesheet" href="{sheet}">'
        f'<body class="bd-content" style="margin: 0; background: {ground}">'
        f'<div class="cell_output"><img src="swatches.png" style="{look}"></div>'
    )
    with pages.opened() as context:
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.screenshot(path=str(tmp_path / "seen.png"))
    place = 25 + 50 * np.arange(len(plots.PALETTE))
    seen = plt.imread(tmp_path / "seen.png")[25, place, :3]
    assert (theme == "light") == np.allclose(seen[0], to_rgb(plots.PALETTE[0]), atol=0.01)
    ratios = [_contrast(colour, to_rgb(ground)) for colour in seen]
    assert min(ratios) >= 3, dict(zip(plots.PALETTE, ratios, strict=True))


def test_a_model_has_one_colour_in_every_figure() -> None:
    def drawn(*models: str) -> list[Any]:
        rows = pd.DataFrame({"study": "reasons", "variant": "L", "model": models})
        axes = plots.intervals(rows.assign(value=0.5, low=0.4, high=0.6), hue="model")
        return [bar[0].get_color() for bar in axes.containers]

    small, large = "smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"
    assert drawn(large, small) == [*drawn(large), *drawn(small)]
    assert drawn(large) != drawn(small)


def test_numbers_beside_words_have_no_idle_zeros() -> None:
    page = plots.texts(pd.DataFrame({"text": ["a<b", "c"], "p": [0.4, 0.1892], "n": [3, 4]}))
    assert re.findall(r"<td[^>]*>([^<]*)<", page.to_html()) == [
        "a&lt;b",
        "0.4",
        "3",
        "c",
        "0.1892",
        "4",
    ]


def test_tables_are_whole_and_alike() -> None:
    plots.style()
    frame = pd.DataFrame({"said": ["word " * 40], "n": [1]})
    for page in (frame.to_html(), plots.texts(frame).to_html()):
        assert "word " * 39 in page
        assert re.search(r'<table [^>]*class="[^"]*\bdataframe\b', page)


def test_a_model_that_only_remembers_is_right_where_it_has_seen_or_guesses_well() -> None:
    """Against the count of a model that has stored the first rows and gives all others label 0."""
    labels, seen = np.array([1, 0, 1, 0, 0, 1, 0, 0]), 3
    guessed = np.where(np.arange(8) < seen, labels, 0)
    axes: Any = of_reasons.memory(seen / 8, (labels[seen:] == 0).mean())
    assert list(axes.lines[-1].get_xdata()) == [100 * (guessed == labels).mean()] * 2
    assert sum(bar.get_width() for bar in axes.patches[:3]) == pytest.approx(100)


@pytest.mark.parametrize(("tau", "declined"), [(0, 0), (0.1, 1), (0.3, 3), (1.1, 11)])
def test_what_is_shaded_is_what_is_declined(tau: float, declined: int) -> None:
    sampled = pd.DataFrame({"sampling_knowns": range(11), "greedy_label": [0, 1] * 5 + [1]})
    line = of_honesty.threshold(sampled, 10, tau).lines[-1]
    (place,) = set(np.asarray(line.get_xdata()))
    assert sum(k < place for k in range(11)) == declined
    assert declined == sum(k / 10 < tau for k in range(11))


@pytest.mark.parametrize("name", config.studies())
def test_no_two_rows_of_a_table_have_one_name(name: str) -> None:
    """Words stand for keys on pages; two keys with one word would hide one of the rows."""
    rows = results.published(name)
    for key in ("model", "variant", "dataset", "stratum"):
        words = [tables.word(name, str(value)) for value in rows[key].unique()]
        assert len(words) == len({*words}), f"{key}: {sorted(words)}"
    for _, part in rows.groupby(["model", "variant", "dataset", "stratum"]):
        words = [tables.word(name, str(value)) for value in part["metric"].unique()]
        assert len(words) == len({*words}), sorted(words)
    shown = plots.show(rows[rows["metric"] == "accuracy"], ["variant"], "metric")
    assert {"says_unethical", "encoder_soft", "R-then-L"}.isdisjoint(shown.index)


def _picture(**how: Any) -> str:
    figure, axes = plt.subplots(figsize=(5, 4))
    axes.imshow(np.arange(400).reshape(20, 20), cmap="viridis")
    axes.set_title("every colour there is")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, **how)
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def _pixels(picture: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), dtype=int)


def test_a_sealed_page_holds_its_figures_in_fewer_bytes(tmp_path: Path) -> None:
    before = _picture()
    data = {"image/png": before, "text/plain": "<Figure>"}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "said"},
        {"output_type": "display_data", "metadata": {}, "data": data},
    ]
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "prose"},
        {"cell_type": "code", "metadata": {}, "source": "draw()", "outputs": outputs},
    ]
    paths = {"input_path": "a.ipynb", "output_path": "b.ipynb"}
    page = tmp_path / "page.ipynb"
    page.write_text(json.dumps({"cells": cells, "metadata": {"papermill": paths}}))
    pipeline.seal(page)
    assert pipeline.intact(page)
    after = json.loads(page.read_text())["cells"][1]["outputs"]
    assert after[0] == outputs[0]
    assert after[1]["data"]["text/plain"] == "<Figure>"
    picture = after[1]["data"]["image/png"]
    assert len(picture) < 0.5 * len(before)
    apart = np.abs(_pixels(picture) - _pixels(before))
    assert apart.mean() < 0.5
    assert apart.max() < 32


def test_a_picture_that_is_see_through_or_light_stays_as_it_is() -> None:
    clear = _picture(transparent=True)
    assert plots.lighter(clear) == clear
    once = plots.lighter(_picture())
    assert plots.lighter(once) == once
