"""What the papers print beside what came out here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ethalign import metrics, results, tables
from ethalign.config import UserError


def test_every_figure_of_the_papers_main_table_is_there() -> None:
    """Beyond Labels, main table: twelve rows, 36 printed figures, each with its source."""
    table = results.reported("reasons")
    assert len(table) == 36
    assert table["row"].nunique() == 12
    assert table["source"].notna().all()
    assert table["value"].between(0, 1).all()
    best = table[(table["row"] == "Llama-2 7B, L+R") & (table["dataset"] == "dfar")]
    assert dict(zip(best["metric"], best["value"], strict=True)) == {
        "misalignment": 0.094,
        "accuracy": 0.894,
    }
    # All DFAR figures are multiples of one in 500.
    dfar = table[table["dataset"] == "dfar"]["value"] * 500
    assert np.allclose(dfar, dfar.round(), atol=1e-6)


def _ours(value: float, low: float, high: float, model: str = "small") -> pd.DataFrame:
    names = {"study": "reasons", "variant": "svm", "dataset": "dfar", "stratum": "all"}
    numbers = {"metric": "accuracy", "value": value, "low": low, "high": high, "n": 500}
    place = {"unit": "share", "model": model, "seed": 0}
    return pd.DataFrame([{**names, **numbers, **place}], columns=results.COLUMNS)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(0.69, 0.65, 0.73, "agrees"), (0.60, 0.56, 0.64, "differs")],
)
def test_the_verdict_follows_the_interval(
    value: float, low: float, high: float, verdict: str
) -> None:
    table = results.compare("reasons", _ours(value, low, high))
    row = table[(table["variant"] == "svm") & (table["dataset"] == "dfar")].iloc[0]
    assert row["verdict"] == verdict
    assert (table[table["variant"] == "LR"]["verdict"] == "not run").all()


def test_a_sample_is_never_compared_with_the_paper() -> None:
    sample = _ours(0.69, 0.65, 0.73).assign(dataset="statements")
    assert (results.compare("reasons", sample)["verdict"] == "not run").all()


def test_models_stand_side_by_side() -> None:
    both = pd.concat([_ours(0.69, 0.65, 0.73), _ours(0.5, 0.4, 0.6, "large")])
    table = results.compare("reasons", both)
    rows = table[(table["variant"] == "svm") & (table["dataset"] == "dfar")]
    assert dict(zip(rows["model"], rows["verdict"], strict=True)) == {
        "small": "agrees",
        "large": "differs",
    }
    shown = tables.comparison("reasons", both.assign(run="reference"))
    assert {"small", "large"} <= {*shown["model"]}


def test_the_direction_is_that_of_the_same_model(tmp_path: Path) -> None:
    """The paper's L is above its pretrained model; so is ours, for one of two models."""
    path, parts = tmp_path / "mine.yaml", []
    figure = (
        "  - {{row: 'Llama-2, {0}', variant: {0}, dataset: dfar, metric: accuracy, value: {1}}}\n"
    )
    path.write_text("figures:\n" + figure.format("pretrained", 0.4) + figure.format("L", 0.6))
    for model, (before, after) in {"up": (0.2, 0.3), "down": (0.3, 0.2)}.items():
        for variant, value in (("pretrained", before), ("L", after)):
            row = _ours(value, value, value, model).assign(variant=variant)
            parts.append(row)
    table = results.compare("reasons", pd.concat(parts), path=str(path))
    verdicts = table[table["row"] == "Llama-2, L"].set_index("model")["verdict"]
    assert verdicts.to_dict() == {"up": "direction holds", "down": "differs"}


def test_like_is_compared_with_like() -> None:
    """Printed accuracies of language models are read in texts; ours are of other models."""
    parts = [
        _ours(0.64, 0.6, 0.7, "small").assign(variant="L", metric="accuracy_text"),
        _ours(0.628, 0.6, 0.7, "NousResearch-Llama-2-7b-chat-hf").assign(
            variant="L", metric="accuracy_text"
        ),
        _ours(0.9, 0.8, 1.0, "small").assign(variant="L"),
        _ours(0.79, 0.7, 0.8, "minilm-l6").assign(variant="encoder"),
        _ours(0.79, 0.7, 0.8, "minilm-l6").assign(variant="encoder", dataset="ethos"),
        _ours(0.66, 0.6, 0.7, "minilm-l6").assign(dataset="ethos"),
    ]
    table = results.compare("reasons", pd.concat(parts))
    told = table[table["verdict"] != "not run"]
    found = {
        (row["row"], row["dataset"], row["model"]): (row["value"], row["verdict"])
        for row in told.to_dict("records")
    }
    llama = "Llama-2 7B, L", "dfar"
    assert found[(*llama, "small")] == (0.64, "other model")
    assert found[(*llama, "NousResearch-Llama-2-7b-chat-hf")] == (0.628, "agrees")
    assert found["BERT", "dfar", "minilm-l6"][1] == "other model"
    assert found["BERT", "ethos", "minilm-l6"][1] == "other protocol"
    assert found["SVM", "ethos", "minilm-l6"][1] == "agrees"


def test_printed_figures_of_ones_own_take_the_place_of_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "figures:\n  - {row: Mine, variant: svm, dataset: dfar, metric: accuracy, value: 0.7}\n"
    )
    table = results.compare("reasons", _ours(0.69, 0.65, 0.73), path=str(path))
    assert table["row"].tolist() == ["Mine"]
    assert table["verdict"].tolist() == ["agrees"]
    path.write_text("figures:\n  - {row: Mine, variant: svm, dataset: dfar, metric: accuracy}\n")
    with pytest.raises(UserError, match="value is missing"):
        results.reported("reasons", str(path))


def test_seeds_are_pooled_and_counted() -> None:
    key = {
        "study": "reasons",
        "variant": "L",
        "dataset": "dfar",
        "stratum": "all",
        "unit": "share",
    }
    rows = [
        {**key, "metric": metric, "model": "m", "seed": seed, "n": 50}
        | {"value": value, "low": value - 0.1, "high": value + 0.1}
        for metric, values in (("accuracy", (0.5, 0.6, 0.7)), ("rare", (0.4, math.nan, 0.6)))
        for seed, value in enumerate(values)
    ]
    found = results.pooled(pd.DataFrame(rows)).set_index("metric")
    assert found["value"].to_dict() == pytest.approx({"accuracy": 0.6, "rare": 0.5})
    assert found["seeds"].to_dict() == {"accuracy": 3, "rare": 2}
    expected = metrics.over_seeds([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.6, 0.7, 0.8])
    assert tuple(found.loc["accuracy", ["value", "low", "high"]]) == pytest.approx(expected)
    assert [*found.loc["rare", ["low", "high"]]] == [0, 1], "a share stays within 0 and 1"
    assert "seed" not in found
    # No interval of a share passes one; that of a loss may, and that of a cosine may pass zero.
    loose = [
        {**rows[0], "metric": metric, "unit": unit, "seed": seed, "value": v, "low": v, "high": v}
        for metric, unit in (("accuracy", "share"), ("cross_entropy", "nats"), ("cosine", "score"))
        for seed, v in enumerate((0.1, 0.9))
    ]
    wide = results.pooled(pd.DataFrame(loose)).set_index("metric")
    assert [*wide.loc["accuracy", ["low", "high"]]] == [0, 1]
    for metric in ("cross_entropy", "cosine"):
        assert float(wide["low"][metric]) < -1
        assert float(wide["high"][metric]) > 1
    alone = results.pooled(pd.DataFrame(rows[:1]))
    assert [*alone.loc[0, ["value", "low", "high", "seeds"]]] == [0.5, 0.4, 0.6, 1]
    assert results.pooled(pd.DataFrame(rows[:0], columns=results.COLUMNS)).empty


def test_small_models_come_first(tmp_path: Path) -> None:
    """Where one model stands for all it is the smallest, and encoders stand before them."""
    models = ["qwen-0.5b", "minilm", "smol-135m", "llama-7b"]
    row = {"study": "reasons", "variant": "L", "dataset": "dfar", "stratum": "all", "n": 1}
    for model in models:
        folder = tmp_path / model / "L" / "0"
        folder.mkdir(parents=True)
        numbers = {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "unit": "share"}
        (folder / "metrics.json").write_text(json.dumps([row | numbers]))
    expected = ["minilm", "smol-135m", "qwen-0.5b", "llama-7b"]
    assert results.rows(tmp_path)["model"].tolist() == expected


def test_a_papers_figure_keeps_its_digits() -> None:
    given = [
        (0.8455, "share"),
        (0.45, "share"),
        (5.54, "score"),
        (2.7, "score"),
        (-0.031, "share"),
    ]
    found = [tables.as_printed(*pair) for pair in given]
    assert found == ["84.55", "45.0", "5.54", "2.70", "\N{MINUS SIGN}3.1"]
