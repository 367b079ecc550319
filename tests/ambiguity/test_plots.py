import numpy as np
import pandas as pd
import pytest

from ethalign import study
from ethalign.ambiguity import plots


def test_a_figure_against_the_votes_shows_the_mean_of_items_with_the_same_votes() -> None:
    votes = np.array([0.0, 0.0, 0.4, 0.4, 1.0])
    axes = plots.against(votes, np.array([0.1, 0.3, 0.5, 0.5, 0.9]), "votes", "model")
    (mean, _, _), line = axes.containers[0], axes.lines[-1]
    np.testing.assert_allclose(np.asarray(mean.get_xydata()), [[0, 0.2], [0.4, 0.5], [1, 0.9]])
    np.testing.assert_allclose(np.asarray(line.get_xydata()), [[0, 0], [1, 1]])


def test_what_is_possible_is_a_line_at_every_degree_of_disagreement() -> None:
    def rows(variant: str, panel: str, *values: float) -> pd.DataFrame:
        known = {"variant": variant, "panel": panel, "stratum": ["all", "unanimous", "3-2"]}
        return pd.DataFrame({**known, "value": values, "low": values, "high": values})

    models = pd.concat([rows("hard", "one", 0.7, 0.6, 0.8), rows("hard", "two", 0.7, 0.6, 0.8)])
    lines = pd.concat([rows("best", "one", 0.5, 0.2, 0.68), rows("best", "two", 0.5, 0.3, 0.69)])
    axes = plots.by_disagreement(models, lines, panels="panel")
    for panel, levels in zip(axes.figure.axes, ([0.2, 0.68], [0.3, 0.69]), strict=True):
        (drawn,) = [c for c in panel.collections if c.get_label() == "best"]
        found = [segment[:, 1].mean() for segment in drawn.get_segments()]  # type: ignore[attr-defined]
        assert found == pytest.approx(levels)
        assert [t.get_text() for t in panel.get_xticklabels()] == ["unanimous", "3-2"]


def test_a_variant_looks_the_same_whatever_stands_beside_it() -> None:
    def drawn(*variants: str) -> list[tuple[str, str]]:
        rows = pd.DataFrame({"study": "ambiguity", "variant": variants, "stratum": "unanimous"})
        rows = rows.assign(value=0.7, low=0.6, high=0.8)
        axes = plots.by_disagreement(rows, rows.iloc[:0])
        lines = [bar[0] for bar in axes.containers]
        return [(str(line.get_color()), str(line.get_marker())) for line in lines]

    alone, (other, same) = drawn("soft"), drawn("encoder-shuffled", "soft")
    assert alone == [same]
    assert other != same
    assert len(set(drawn(*study.find("ambiguity").order))) == len(study.find("ambiguity").order)
