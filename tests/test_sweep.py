import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from ethalign import config, pipeline, records, results, sweep
from ethalign.config import UserError

SPEC = {
    "study": "reasons",
    "scale": "smoke",
    "variants": ["L", "LR"],
    "seeds": [0, 1],
    "grid": {"tuning.lr": [1e-4, 5e-4], "model.id": ["random-tiny", "org/name"]},
    "fixed": {"tuning.epochs": 1},
    "choose": {"dataset": "held-out", "metric": "auc", "best": "highest", "per": ["model.id"]},
    "show": [{"dataset": "dfar", "stratum": "clean", "metric": "accuracy"}],
}


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a sweep whose runs leave metrics that follow from their settings; and what ran."""
    ran: list[dict[str, Any]] = []

    def run(studies: list[str], **how: Any) -> int:
        ran.append({"studies": studies, **how})
        for name, point in how["points"].items():
            lr, model = point["tuning.lr"], point["model.id"]
            home = Path(how["runs"], name, "reasons", how["scale"], model.replace("/", "-"))
            # Seed 7 is left from an earlier sweep.
            for variant, seed in itertools.product(how["variants"], [*how["seeds"], 7]):
                # The small model learns best at the high rate, the other one at the low rate; on
                # test rows it is the other way round.
                good = 0.6 + 0.1 * ((lr > 2e-4) == (model == "random-tiny")) + 0.02 * seed
                rows = [
                    {"variant": variant, "dataset": "held-out", "stratum": "all", "metric": "auc"},
                    {"variant": variant, "dataset": "dfar", "stratum": "clean"},
                ]
                sure = {"value": good, "low": good - 0.1, "high": good + 0.1, "unit": "score"}
                values = (sure, {"metric": "accuracy", "value": 1 - good, "unit": "share"})
                made = [{**row, **value} for row, value in zip(rows, values, strict=True)]
                records.write(home / variant / str(seed) / "metrics.json", made)
        return 0

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(SPEC, sort_keys=False))
    return sweep.run(path), ran, tmp_path / "runs" / "sweeps" / "rates"


def test_every_point_runs_in_a_folder_of_its_own(swept: Any) -> None:
    _, [call], home = swept
    assert Path(call["runs"]) == home
    assert list(call["points"]) == [
        "lr-0.0001_id-random-tiny",
        "lr-0.0001_id-org-name",
        "lr-0.0005_id-random-tiny",
        "lr-0.0005_id-org-name",
    ]
    assert call["overrides"] == {"tuning.epochs": 1}
    assert (call["seeds"], call["scale"], call["stage"]) == ([0, 1], "smoke", "evaluate")


def test_the_best_is_chosen_on_held_out_rows_for_every_variant_and_model(swept: Any) -> None:
    table, _, home = swept
    chosen = table[table["chosen"]]
    best = zip(chosen["variant"], chosen["model.id"], chosen["tuning.lr"], strict=True)
    assert sorted(best) == [
        (variant, model, lr)
        for variant in ("L", "LR")
        for model, lr in (("org/name", 1e-4), ("random-tiny", 5e-4))
    ]
    one = chosen[chosen["model.id"] == "random-tiny"].iloc[0]
    assert one["value"] == pytest.approx(0.71)
    assert one["±"] == pytest.approx(0.02 / 2**0.5)
    assert one["dfar clean accuracy"] == pytest.approx(0.29)
    assert one["seeds"] == 2
    assert "<svg" in (home / "figure.svg").read_text()
    assert (home / "table.csv").read_text().count("\n") == 9
    sweep.record(sweep.Sweep.model_validate(SPEC), home)
    rows = [line for line in sweep.told(home).splitlines() if "chosen" in line]
    assert len(rows) == 4
    assert all("| 0.710 ± 0.014 |" in row for row in rows), rows


def test_of_a_grid_the_interval_is_told_and_an_end_that_was_chosen(
    swept: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = swept[2]
    rates = {"tuning.lr": [1e-4, 5e-4], "model.id": ["random-tiny", "org/name"]}
    one = sweep.Sweep.model_validate({**SPEC, "seeds": [0], "grid": rates})
    sweep.record(one, home)
    rows = [
        line for line in sweep.told(home).splitlines() if line.startswith("| labels alone (L) |")
    ]
    assert len(rows) == 4
    low = next(row for row in rows if "| 0.0001 | org/name |" in row)
    assert "| 0.700 [0.600, 0.800] | chosen, the lowest `lr` tried | 30.0 |" in low
    high = next(row for row in rows if "| 0.0005 | random-tiny |" in row)
    assert "chosen, the highest `lr` tried" in high
    assert all("tried" not in row for row in rows if row not in (low, high))
    wider = {**rates, "tuning.lr": [5e-5, 1e-4, 5e-4, 1e-3]}
    sweep.record(sweep.Sweep.model_validate({**SPEC, "seeds": [0], "grid": wider}), home)
    assert "tried" not in sweep.told(home)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    shutil.copytree(home, tmp_path / "sweeps" / "rates")
    names = {kind: [p.name for p in sweep.published(kind)] for kind in (None, "grid", "ablate")}
    assert names == {None: ["rates"], "grid": ["rates"], "ablate": []}


@pytest.mark.parametrize("best", ["highest", "lowest"])
def test_what_has_not_run_is_never_chosen(best: str, tmp_path: Path) -> None:
    spec = sweep.Sweep.model_validate({**SPEC, "choose": {**SPEC["choose"], "best": best}})  # type: ignore[dict-item]
    table = sweep.table(spec, tmp_path)
    assert len(table) == 8
    assert not table["chosen"].any()


def test_a_sweep_without_the_row_to_choose_by_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_, runs, **__: Path(runs).mkdir(parents=True))
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    path = tmp_path / "rates.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    with pytest.raises(UserError, match="no run left the row held-out, all, auc"):
        sweep.run(path)
    table = (tmp_path / "runs" / "sweeps" / "rates" / "table.csv").read_text()
    assert table.count("\n") == 9


def test_a_mistake_in_the_file_names_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    for change, message in (
        ({"grid": {}}, "a sweep has either"),
        ({"ablate": {"one": {}}}, "a sweep has either"),
        ({"choose": {"dataset": "x", "metric": "y", "best": "largest"}}, "choose.best"),
        ({"epochs": 3}, "epochs"),
    ):
        path.write_text(yaml.safe_dump({**SPEC, **change}))
        with pytest.raises(UserError, match=f"odd.yaml.*{message}"):
            sweep.read(path)


def test_two_points_never_share_a_folder() -> None:
    spec = sweep.Sweep.model_validate({**SPEC, "grid": {"model.id": ["org/name", "org-name"]}})
    with pytest.raises(UserError, match="share the folder id-org-name"):
        sweep.points(spec)


@pytest.mark.parametrize("path", sorted((config.ROOT / "configs" / "sweeps").glob("*.yaml")))
def test_a_sweep_that_comes_ready_resolves(path: Path) -> None:
    spec = sweep.read(path)
    assert spec.ablate or spec.choose.dataset == "held-out", "never chosen on test rows"
    for point in sweep.points(spec).values():
        for variant in spec.variants:
            config.resolve(spec.study, variant, spec.scale, 0, {**spec.fixed, **point})


def test_points_that_share_a_long_stage_do_not_wait_for_each_other(tmp_path: Path) -> None:
    """Each took all processors to copy what the first had worked out: no two ran side by side."""
    spec = {**SPEC, "study": "honesty", "variants": ["absolute"], "seeds": [0]}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**spec, "grid": {"tuning.lr": [1.0e-4, 5.0e-4]}}))
    points = {name: {"honesty": more} for name, more in sweep.points(sweep.read(path)).items()}
    settings = {
        **{"studies": {"honesty": {}}, "points": points, "variants": ["absolute"]},
        **{"scale": "smoke", "seeds": [0], "runs": str(tmp_path / "runs"), "stage": "evaluate"},
    }
    shared = [r for r in pipeline.rules(settings) if r["name"].startswith("honesty_knowledge_")]
    assert [("--same" in r["call"], r["alone"]) for r in shared] == [(False, True), (True, False)]


def test_an_ablation_says_what_each_choice_was_worth_and_chooses_nothing(tmp_path: Path) -> None:
    points = {"reference": {}, "warm": {"evaluation.temperature": 1}, "not-run": {"tuning.lr": 1}}
    choice = {"dataset": "dfar", "stratum": "clean", "metric": "misaligned", "best": "lowest"}
    spec = sweep.Sweep.model_validate({**SPEC, "grid": {}, "ablate": points, "choose": choice})
    for name, value in (("reference", 0.2), ("warm", 0.5)):
        for variant, seed in itertools.product(("L", "LR"), (0, 1)):
            row = {"variant": variant, **choice, "value": value + 0.1 * seed * (variant == "LR")}
            folder = tmp_path / name / "reasons" / "smoke" / "random-tiny" / variant / str(seed)
            records.write(folder / "metrics.json", [row])
    table = sweep.table(spec, tmp_path).set_index(["variant", "point"])
    assert "chosen" not in table
    assert table.loc[("LR", "warm"), "value"] == pytest.approx(0.55)
    # Lower is better here, so warm is worth less than nothing.
    assert table["worth"].xs("L")[["reference", "warm"]].round(6).tolist() == [0, -0.3]
    assert table.xs("not-run", level="point")["worth"].isna().all()
    assert table["low"].isna().all(), "the study tests no claim by that measure"
    assert "plus is better" in sweep.figure(spec, table.reset_index()).axes[0].get_xlabel()


def _answered(folder: Path, right: NDArray[np.bool_], fingerprint: str) -> None:
    """A run that was right on these items, as it is recorded."""
    where = folder / "reasons" / "smoke" / "random-tiny" / "L" / "0"
    words = np.array(["ethical", "unethical"])
    gold = np.arange(len(right)) % 2
    rows = [
        {
            "id": k,
            "dataset": "dfar",
            "stratum": "clean",
            "gold": words[g],
            "verdict": words[g if hit else 1 - g],
            "logp_ethical": -1.0,
            "logp_unethical": -1.0 + (g if hit else 1 - g) - k / 1000,
        }
        for k, (g, hit) in enumerate(zip(gold, right, strict=True))
    ]
    records.write(where / "predictions.jsonl", "".join(map(records.line, rows)))
    row = {"variant": "L", "dataset": "dfar", "stratum": "all", "metric": "accuracy"}
    row["unit"] = "share"
    records.write(where / "metrics.json", [{**row, "value": right.mean()}])
    stages = {"evaluate": {"fingerprint": fingerprint, "status": "complete"}}
    records.write(where / "run.json", {"stages": stages})


def test_what_a_choice_is_worth_is_tested_item_by_item(tmp_path: Path) -> None:
    """Twins that go the same way but for 20 of 300 items differ surely; unlike ones need not."""
    first = np.arange(300) % 3 > 0
    near, far = first.copy(), np.roll(first, 1)
    near[np.flatnonzero(~first)[:20]] = True
    far[np.flatnonzero(~far)[:6]] = True
    points = {"reference": {}, "near": {"tuning.lr": 1}, "far": {"tuning.lr": 2}}
    points |= {"same": {"tuning.lora_r": 4}, "never": {"tuning.lr": 3}}
    points |= {"still": {"tuning.lr": 4}}
    choice = {"dataset": "dfar", "metric": "accuracy", "best": "highest"}
    more = {"grid": {}, "ablate": points, "choose": choice, "variants": ["L"], "seeds": [0]}
    spec = sweep.Sweep.model_validate({**SPEC, **more, "show": []})
    for name, right, mark in (
        ("reference", first, "a"),
        ("near", near, "b"),
        ("far", far, "c"),
        ("same", first, "a"),
        ("still", first, "d"),
    ):
        _answered(tmp_path / name, right, mark)
    table = sweep.table(spec, tmp_path).set_index("point")
    assert list(table.index) == ["reference", "near", "far", "never", "still"]
    assert table["worth"]["near"] == pytest.approx(20 / 300)
    assert table["worth"]["far"] == pytest.approx(6 / 300)
    # Twenty items turned one way and none the other: the spread of a count of 20.
    reach = 1.96 * math.sqrt(20 * (1 - 20 / 300)) / 300
    assert table["low"]["near"] == pytest.approx(20 / 300 - reach, abs=0.006)
    assert table["verdict"].to_dict() == {
        **{"reference": "", "near": "better", "far": "inconclusive", "never": ""},
        **{"still": "inconclusive"},
    }
    # Of right and wrong 300 without an exception say something; of ranks there is no interval.
    assert table["low"]["still"] < 0 < table["high"]["still"]
    ranks = spec.model_copy(update={"choose": spec.choose.model_copy(update={"metric": "auc"})})
    ranked = sweep.table(ranks, tmp_path).set_index("point")
    assert (ranked["verdict"]["still"], ranked["items"]["still"]) == ("the same", 300)
    assert ranked["verdict"]["near"] == "better"
    worse = spec.model_copy(update={"choose": spec.choose.model_copy(update={"best": "lowest"})})
    turned = sweep.table(worse, tmp_path).set_index("point")
    assert turned["verdict"]["near"] == "worse"
    assert turned["high"]["near"] == pytest.approx(-table["low"]["near"])
    assert (table["items"]["near"], table["items"]["never"]) == (300, 0)
    sweep.record(spec, tmp_path)
    told = sweep.told(tmp_path)
    [row] = [line for line in told.splitlines() if line.startswith("| near ")]
    assert re.search(r"`tuning.lr=1`.* \| 73\.3 \| \+6\.7 \[.* points \| better \| 300 \|", row)
    assert ", by accuracy" in told
    assert "never" not in told, "what has not run has no row"
    assert "`tuning.epochs=1`" in told
