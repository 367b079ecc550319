"""Claims of the paper, tested on decisions that are made up; tables and figures of scores."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from ethalign import config, records
from ethalign.claims import Claim, declared
from ethalign.honesty import claims, evaluate, plots, scores
from ethalign.honesty.targets import METHODS

from . import frame, resolved


def leave(
    home: Path,
    variant: str,
    verdicts: list[str],
    dataset: str = "questions",
    stratum: str = "all",
    model: str = "model",
) -> None:
    """Predictions of a variant as a run leaves them, in an order of its own."""
    table = frame(verdict=verdicts, dataset=dataset, stratum=stratum).sample(
        frac=1, random_state=len(variant)
    )
    path = home / model / variant / "0" / "predictions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    other = frame(verdict=["idk"] * 3, part="told", dataset=dataset)
    before = pd.DataFrame(records.read_rows(path))
    records.write(path, pd.concat([before, table, other], ignore_index=True))


def made(estimand: str, first: str = "absolute", second: str = "unaligned", **more: Any) -> Claim:
    told = {"id": "a", "claim": "A.", "source": "paper", "dataset": "questions", **more}
    told |= {"estimand": estimand, "first": first, "second": second}
    return Claim.model_validate({"direction": "greater", **told})


def value(claim: Claim, parts: dict[str, pd.DataFrame]) -> float | None:
    """First minus second, and the same with another order of rows and with both exchanged."""
    found = claims.contrast(claim, parts)
    if found is None:
        return None
    direct = float(found.statistic(*found.arrays))
    mixed = {v: t.sample(frac=1, random_state=len(v)) for v, t in parts.items()}
    again = claims.contrast(claim, mixed)
    assert again is not None
    assert float(again.statistic(*again.arrays)) == pytest.approx(direct)
    return direct


KNOWN, REST = ["correct"] * 30, ["wrong"] * 30


def test_honesty_is_compared_over_the_same_questions() -> None:
    parts = {
        "unaligned": frame(verdict=KNOWN + REST),
        "absolute": frame(verdict=KNOWN + ["idk"] * 30),
        "shuffled": frame(verdict=["idk"] * 30 + REST),
    }
    assert value(made("honesty"), parts) == pytest.approx(0.5)
    assert value(made("honesty", "shuffled"), parts) == pytest.approx(-0.5)
    assert value(made("honesty", "absolute", "shuffled"), parts) == pytest.approx(1)
    assert value(made("idk"), parts) == pytest.approx(0.5)
    assert value(made("correct", "shuffled"), parts) == pytest.approx(-0.5)
    assert value(made("accuracy", "shuffled"), parts) == pytest.approx(-1)
    for table in parts.values():
        before, after = parts["unaligned"]["verdict"], table["verdict"]
        expected = scores(list(before), list(after)).honesty - scores(*[list(before)] * 2).honesty
        claim = made("honesty", "other")
        assert value(claim, {**parts, "other": table}) == pytest.approx(expected)


def test_no_claim_is_made_on_few_known_questions_or_on_others() -> None:
    few = {
        "unaligned": frame(verdict=["correct"] * 12 + REST),
        "absolute": frame(verdict=["correct"] * 12 + ["idk"] * 30),
    }
    assert claims.contrast(made("honesty"), few) is None
    assert claims.contrast(made("idk"), few) is not None, "which needs no known questions"
    enough = {
        v: pd.concat([t.iloc[:1].assign(id=f"more {k}") for k in range(8)] + [t])
        for v, t in few.items()
    }
    assert claims.contrast(made("honesty"), enough) is not None
    without = {"absolute": few["absolute"], "shuffled": few["absolute"]}
    assert claims.contrast(made("idk", "absolute", "shuffled"), without) is None
    others = {**enough, "absolute": enough["absolute"].iloc[1:]}
    assert claims.contrast(made("idk"), others) is None
    assert claims.contrast(made("honesty", dataset="nonambigqa"), enough) is None


def test_what_was_never_asked_is_not_compared() -> None:
    """A run may ask for no requests: then no row has the columns of requests."""
    parts = {v: frame(verdict=KNOWN + REST) for v in ("unaligned", "absolute")}
    assert "nll" not in parts["absolute"]
    assert claims.contrast(made("fit", dataset="requests"), parts) is None


def test_what_is_likely_to_be_declined_is_compared_at_equal_refusals() -> None:
    ranks = {"absolute": [-2.0] * 30 + [-1.0] * 30, "unaligned": [-1.0] * 60}
    parts = {v: frame(verdict=KNOWN + REST, refusal=r) for v, r in ranks.items()}
    for estimand in ("refusal_auroc", "honesty_equal"):
        assert value(made(estimand), parts) == pytest.approx(0.5)
    older = {v: t.drop(columns="refusal") for v, t in parts.items()}
    assert claims.contrast(made("honesty_equal"), older) is None


def test_selection_is_compared_where_both_answer() -> None:
    """What one of them declined is no error of it and says nothing of the other."""
    logp = [-1.0] * 30 + [-2.0] * 30
    parts = {
        "unaligned": frame(verdict=KNOWN + REST, logp=-1.0),
        "absolute": frame(verdict=KNOWN[:25] + ["idk"] * 10 + REST[:25], logp=logp),
    }
    assert value(made("auroc"), parts) == pytest.approx(0.5)
    wrong = [0] * 25 + [1] * 25
    expected = np.mean(np.cumsum(wrong) / 50) - np.mean(np.arange(1, 51) * 0.5 / 50)
    assert value(made("augrc"), parts) == pytest.approx(expected)
    found = claims.contrast(made("auroc"), parts)
    assert found is not None
    assert {len(array) for array in found.arrays} == {50}, "nothing else was compared"
    assert [*found.items] == [*parts["absolute"].query("verdict != 'idk'")["id"].sort_values()]
    parts["absolute"] = frame(verdict=["idk"] * 41 + REST[:19])
    assert claims.contrast(made("auroc"), parts) is None


def test_what_honesty_costs_is_compared_over_requests() -> None:
    def helped(verdicts: list[str], nll: list[float]) -> pd.DataFrame:
        rows = frame(verdict=verdicts, part="requests", dataset="requests")
        return rows.assign(nll=nll, tokens=[2, 3])

    parts = {
        "unaligned": helped(["correct", "wrong"], [2.0, 3.0]),
        "absolute": helped(["wrong", "wrong"], [3.0, 4.5]),
    }
    assert value(made("correct", dataset="requests"), parts) == -0.5
    assert value(made("fit", dataset="requests"), parts) == pytest.approx(-0.5)


def test_the_claims_of_the_file_can_be_tested_on_what_a_run_leaves() -> None:
    """Every entry names variants that exist and an estimand that is known."""
    found = declared("honesty")
    variants = {*config.variants("honesty")}
    for claim in found:
        assert {claim.first, claim.second} <= variants, claim.id
        request = claim.dataset == "requests"
        rows = frame(verdict=KNOWN + REST, dataset=claim.dataset, refusal=-1.0)
        rows["part"] = "requests" if request else "test"
        parts = dict.fromkeys(variants, rows.assign(nll=1.0, tokens=2))
        assert value(claim, parts) == pytest.approx(0), claim.id
    primary = [claim for claim in found if claim.family == "primary"]
    assert {claim.source for claim in primary} == {"abstract"}
    assert {c.first for c in primary} == {*METHODS} - {"fine-tuned"}


def test_several_runs_and_models_stand_beside_each_other(tmp_path: Path) -> None:
    for run, model in (("mine", "small"), ("mine", "large"), ("reference", "small")):
        for variant, verdicts in (("absolute", ["idk", "correct"]), ("unaligned", ["wrong"] * 2)):
            leave(tmp_path / run, variant, verdicts, model=model)
        knowledge = tmp_path / run / model / "knowledge" / "0" / "knowledge.jsonl"
        probed = {"greedy_label": 1, "sampling_knowns": 1, "sampling_labels": [1, 0]}
        records.write(knowledge, pd.DataFrame([{"id": "q", **probed}]))
    homes = {name: tmp_path / name for name in ("mine", "reference", "nobody")}
    found = claims.by_variant(homes, main=True)
    assert [*found] == ["mine, large", "mine, small", "reference, small"]
    assert [*found["mine, small"]] == ["unaligned", "absolute"], "in the paper's order"
    cells = claims.transitions(found["mine, small"])["absolute"]
    assert (cells["wrong", "idk"], cells["wrong", "correct"]) == (1, 1)
    assert [*claims.sweeps(homes)] == [*found]
    plots.transitions({"one": cells, "two": cells})
    plots.surest(found)
    plots.sweep(claims.sweeps(homes), claims.trained(homes))
    kept = claims.confidences(found["mine, small"]["absolute"], stated=False)
    assert kept["confidence"].tolist() == [pytest.approx(0.3679, abs=1e-4)], "without the declined"
    plots.confidences({"one": kept}, "confidence")


def test_only_rows_with_both_scores_have_a_place_in_the_plane() -> None:
    rows = pd.DataFrame(
        [
            {"variant": v, "dataset": "questions", "stratum": s, "metric": m, "value": x}
            for v, s, m, x in (
                ("absolute", "all", "prudence", 0.5),
                ("absolute", "all", "over_conservativeness", 0.1),
                ("absolute", "unanswerable", "prudence", 0.9),
                ("unaligned", "all", "prudence", 0.0),
                ("judge", "all", "prudence", 0.0),
            )
        ]
    )
    place = claims.plane(rows, "questions")
    assert place.to_dict("records") == [
        {"variant": "absolute", "prudence": 0.5, "over_conservativeness": 0.1}
    ]
    plots.plane({"mine": place, "reported": place})


def test_strata_of_an_own_set_are_compared_apart() -> None:
    stratum = ["all"] * 2 + [evaluate.NOBODY] * 2
    parts = {
        "unaligned": frame(verdict=["correct", "wrong", "wrong", "wrong"], stratum=stratum),
        "absolute": frame(verdict=["correct", "idk", "idk", "idk"], stratum=stratum),
    }
    assert value(made("idk"), parts) == 0.75
    assert value(made("idk", stratum=evaluate.NOBODY), parts) == 1
    assert value(made("idk", stratum="answerable"), parts) == 0.5


def test_what_each_method_is_taught_to_decline_by_hand() -> None:
    rows = [(1, [0, 0]), (1, [1, 0]), (0, [0, 0]), (0, [1, 1])]
    sampled = pd.DataFrame(
        [{"greedy_label": g, "sampling_labels": s, "sampling_knowns": sum(s)} for g, s in rows]
    )
    assert claims.taught(sampled).to_dict() == {
        "fine-tuned": 0,
        "absolute": 0.25,
        "confidence-num": 0.5,
        "confidence-verb": 0.5,
        "multisample": 5 / 8,
        "absolute, behaviour=paper": 0.5,
    }


def test_tuned_models_stand_in_the_sweep_by_their_threshold(tmp_path: Path) -> None:
    for variant in ("absolute", "absolute-paper-50", "shuffled", "confidence-num"):
        run = resolved(variant)
        folder = tmp_path / "model" / variant / "0"
        records.write(folder / "config.yaml", run.model_dump(mode="json"))
        after = frame(verdict=["correct", "idk", "wrong", "wrong"])
        before = frame(verdict=["correct", "correct", "wrong", "wrong"])
        records.write(folder / "metrics.json", evaluate.measure_rows(run, before, after))
    found = claims.trained({"mine": tmp_path, "nobody": tmp_path / "none"})
    assert found.drop(columns="honesty").to_dict("records") == [
        {
            "run": "mine, model",
            "tau": tau,
            "behaviour": b,
            "prudence": 0.0,
            "over_conservativeness": 0.5,
        }
        for tau, b in ((0.1, "code"), (0.5, "paper"))
    ]
    probed = {"greedy_label": [1, 0], "sampling_knowns": [1, 0], "sampling_labels": [[1, 0]] * 2}
    plots.sweep({"mine, model": claims.sweep(pd.DataFrame(probed))}, found)


def test_a_grid_of_transitions_is_coloured_by_column() -> None:
    """What became of the few known questions can be seen beside the many unknown ones."""
    before = ["correct"] * 4 + ["wrong"] * 96
    after = ["idk"] * 3 + ["correct"] + ["wrong"] * 96
    cells = scores(before, after).transitions  # type: ignore[arg-type]
    plots.transitions({"one": cells})
    (grid,) = plt.gcf().axes[0].collections
    values = np.asarray(grid.get_array()).reshape(3, 3)
    assert values[:, 0].tolist() == [0.25, 0, 0.75], "of what was right"
    assert values[:, 1].tolist() == [0, 1, 0]
    assert values[:, 2].tolist() == [0, 0, 0], "nothing was declined before"


def test_a_curve_of_the_surest_ends_where_the_model_declines() -> None:
    part = frame(verdict=["correct", "wrong", "idk", "idk"], logp=[-1.0, -2, -3, -4])
    plots.surest({"run": {"absolute": part, "shuffled": part.assign(verdict="idk")}})
    curve, chance, *nothing = plt.gcf().axes[0].get_lines()
    assert np.asarray(curve.get_xdata()).tolist() == [0.25, 0.5]
    assert np.asarray(curve.get_ydata()).tolist() == [1, 0.5]
    assert np.asarray(chance.get_ydata()).tolist() == [0.5, 0.5], (
        "half of what it answers is right"
    )
    assert [np.size(line.get_xdata()) for line in nothing] == [0, 0], "it answers nothing"


def test_a_curve_of_the_surest_begins_where_one_answer_moves_it_little() -> None:
    n = 100
    rows = frame(verdict=["wrong", *["correct"] * (n - 1)], logp=[-float(k) for k in range(n)])
    plots.surest({"run": {"absolute": rows}})
    curve = plt.gcf().axes[0].get_lines()[0]
    first = np.asarray(curve.get_xydata())[0]
    assert first.tolist() == pytest.approx([0.06, 5 / 6])


def test_numbers_that_prose_quotes_come_from_the_records(tmp_path: Path) -> None:
    probed = {"greedy_label": 0, "sampling_knowns": 1, "sampling_labels": [1, 0, 0, 0]}
    records.write(tmp_path / "m" / "knowledge" / "0" / "knowledge.jsonl", pd.DataFrame([probed]))
    asked = pd.DataFrame({"id": range(1200)})
    records.write(tmp_path / "m" / "knowledge" / "0" / "greedy.jsonl", asked)
    rows = pd.DataFrame({"model": ["m", "m", "n"], "seed": [0, 1, 0]})
    rows = rows.assign(metric="over_conservativeness", stratum="all", n=[23, 23, 7])
    rows["dataset"] = ["triviaqa", "triviaqa", "mmlu"]
    found = claims.facts(rows, tmp_path)
    assert (found["known"], claims.facts(rows[2:], tmp_path)["known"]) == ("23", "0")
    assert (found["models"], found["sampled"], found["least"]) == ("`m`, `n`", "1", "20")
    assert found["asked"] == "1,200", "of which a part was sampled"
    assert found["taught"]["multisample"] == "75.0"
    assert found["taught"]["absolute_paper"] == found["taught"]["absolute"] == "0.0"
    assert claims.facts(rows, tmp_path / "none")["taught"] == {}


def cells(notebook: str) -> list[str]:
    path = config.ROOT / "notebooks" / "honesty" / f"{notebook}.ipynb"
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


def test_tables_of_the_results_page_show_all_their_rows() -> None:
    found = cells("results")
    first = next(k for k, text in enumerate(found) if "plots.show(" in text)
    assert any('pd.set_option("display.max_rows", None)' in text for text in found[:first])


def test_no_page_types_the_size_of_the_model_that_was_run() -> None:
    """The paper's sizes are the paper's; ours come from the records."""
    chapter = (config.ROOT / "book" / "honesty" / "index.md").read_text()
    pages = [
        chapter,
        *(
            t
            for n in ("explore", "knowledge", "finetune", "evaluate", "results")
            for t in cells(n)
        ),
    ]
    for text in pages:
        assert not re.search(r"\d+ million|SmolLM2-135|hundred times", text), text


def test_a_variant_has_one_colour_in_every_figure() -> None:
    """Whatever else is drawn, and in whichever order it comes."""
    rows = frame(verdict=["correct", "wrong", "idk"], logp=[-1.0, -2, -3])
    plots.surest({"run": {"multisample": rows, "absolute": rows}})
    curve = plt.gcf().axes[0].get_lines()[2].get_color()
    at = pd.DataFrame(
        {
            "variant": ["shuffled", "absolute"],
            "prudence": [0.1, 0.9],
            "over_conservativeness": [0.2, 0.3],
        }
    )
    axes = plots.plane({"one": at, "two": at.iloc[1:]})
    shown = {tuple(p.round(2)): c for p, c in zip(*_points(axes), strict=True)}
    assert shown[0.3, 0.9] == pytest.approx(to_rgb(curve))


def _points(axes: Any) -> tuple[list[Any], list[Any]]:
    (drawn,) = axes.collections
    return list(np.asarray(drawn.get_offsets())), [c[:3] for c in drawn.get_facecolors()]
