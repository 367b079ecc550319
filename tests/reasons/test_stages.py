"""What the stages of the study leave behind, and what they depend on."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import cells, fooled

from ethalign import code, encoders, models, records, results, study
from ethalign.config import Undeclared
from ethalign.reasons import baselines, data, evaluate, finetune, scores
from ethalign.study import Job

STAGES = ("baselines", "finetune", "evaluate")
# Rows enough to train a judge of reasons.
SETTINGS = {"data.limit_train": 60, "baselines.judge_rows": 48, "evaluation.limit_generate": 7}


def job(stage: str, runs: Path, variant: str = "LR", **overrides: Any) -> Job:
    dotted = SETTINGS | {key.replace("__", "."): value for key, value in overrides.items()}
    return study.job("reasons", stage, variant, "smoke", 0, dotted, runs)


def before(done: Job) -> dict[str, Path]:
    return {name: other.where for name, other in done.before().items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tuned variant and the baselines were computed."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in STAGES:
        assert job(stage, folder).compute() == "anew"
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_complete_stage_returns_without_loading_a_model(
    runs: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ethalign.models.load", None)
    monkeypatch.setattr("ethalign.models.encoder", None)
    assert job(stage, runs).compute() == "keep"


@pytest.mark.parametrize("stage", STAGES)
def test_every_output_is_there_and_recorded(runs: Path, stage: str) -> None:
    done = job(stage, runs)
    recorded = records.stages(done.where)[stage]["outputs"]
    assert {*recorded} == {*done.stage.outputs} - {"metrics.json"}
    assert all((done.where / name).exists() for name in done.stage.outputs)
    assert not any((done.where / name).exists() for name in done.stage.scratch)


@pytest.mark.parametrize("stage", ["baselines", "evaluate"])
def test_every_row_of_metrics_follows_from_records_without_texts(
    runs: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for name in ("baselines", stage):
        results.publish(job(name, runs))
    done = job(stage, tmp_path.parent)._replace(runs=tmp_path)
    texts = {key for row in records.read_rows(done.where / "predictions.jsonl") for key in row}
    assert not texts & {*done.study.texts}
    kept = json.loads((done.where / "metrics.json").read_text())
    assert done.study.measure is not None
    assert done.study.measure(done.given, done.where, before(done)) == kept
    assert {row["metric"] for row in kept} >= (
        {"stance_accuracy", "judge_sensitivity", "test_in_train"}
        if stage == "baselines"
        else {"unparsed", "misalignment_corrected"}
    )


@pytest.mark.parametrize("name", ["predictions.jsonl", "judgements.jsonl", "metrics.json"])
def test_a_doctored_record_is_found(runs: Path, tmp_path: Path, name: str) -> None:
    done = job("evaluate", runs)
    folder = shutil.copytree(done.where, tmp_path / "copy")
    assert results._metric_problems(folder, done) == ([], [])
    text = (folder / name).read_text()
    new = {
        "predictions.jsonl": text.replace('"verdict": "ethical"', '"verdict": "unethical"', 1),
        "judgements.jsonl": text.replace('misaligned":true', 'misaligned":false', 1),
        "metrics.json": text.replace('"value": 0.', '"value": 0.1', 1),
    }[name]
    assert new != text
    (folder / name).write_text(new)
    assert results._metric_problems(folder, done)[0]


def test_older_records_give_the_rows_that_they_can(runs: Path, tmp_path: Path) -> None:
    done, base = job("evaluate", runs), job("baselines", runs)
    for row in records.read_rows(done.where / "predictions.jsonl"):
        new = ("seen", "tied", "near", "family", "written", "cut", "verdict_prior")
        old = {key: value for key, value in row.items() if key not in new}
        records.append_rows(tmp_path / "predictions.jsonl", [old])
    found = scores.measure(done.given, tmp_path, before(done))
    kept = json.loads((done.where / "metrics.json").read_text())
    assert found
    values = [{k: v for k, v in row.items() if k not in ("low", "high")} for row in kept]
    assert all(
        {k: v for k, v in row.items() if k not in ("low", "high")} in values for row in found
    )
    assert "untied" not in {row["stratum"] for row in found}
    quality = json.loads((base.where / "judge.json").read_text())
    old = {k: quality[k] for k in ("caught", "misaligned", "passed", "aligned")}
    records.write(tmp_path / "old" / "judge.json", old)
    rows = baselines.measure(base.given, tmp_path / "old", {})
    assert {row["variant"] for row in rows} == {"audit", "judge"}
    assert "stance_accuracy" not in {row["metric"] for row in rows}


@pytest.mark.parametrize(
    ("stage", "key"),
    [(s.name, key) for s in study.find("reasons").stages if s.compute for key in s.reads],
)
def test_a_setting_that_is_not_declared_is_named(
    runs: Path, tmp_path: Path, stage: str, key: str
) -> None:
    """Each declared key is read, and nothing is read but what is declared (see ``runs``)."""
    own = tmp_path / "own.csv"
    own.write_text("Statement,Label\n" + "I lied.,1\nI sang.,0\n" * 20)
    only: dict[str, Any] = {"data__drop_shared": True} if key == "data.test" else {}
    only |= {"data__train": str(own)} if key in ("data.columns", "data.labels") else {}
    done = job(stage, runs, **only)
    reads = [name for name in done.stage.reads if name != key]
    given = done.run.give(f"reasons/{stage}", reads)
    block, _, field = key.partition(".")
    bare = key == "evaluation.bootstrap" and stage == "baselines"  # read by measures alone
    work = done.study.measure if bare else done.stage.compute
    assert work is not None
    with pytest.raises(Undeclared, match=rf"reasons/{stage} reads {block}(\.{field})?, which"):
        work(given, done.where if bare else tmp_path, before(done))


def test_an_interrupted_evaluation_goes_on_from_its_predictions(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = job("evaluate", runs)
    whole = (done.where / "predictions.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(lines[:14]) + lines[14][:20])
    asked: list[str] = []
    answer = evaluate._answer

    def count(run: Any, loaded: Any, most: Any, border: Any, items: Any) -> Any:
        asked.extend(item["id"] for item in items)
        return answer(run, loaded, most, border, items)

    monkeypatch.setattr(evaluate, "_answer", count)
    shutil.copy(done.where / "threshold.jsonl", tmp_path)
    evaluate.compute(done.given, tmp_path, before(done))
    assert len(asked) == 12, "the chunk that was cut off, and nothing of the first data set"
    assert path.read_text() == whole


def test_stages_depend_on_the_code_that_computes_them() -> None:
    reach = [{*code.reach(module.compute)} for module in (baselines, evaluate, finetune)]
    base, scoring, tuning = reach
    for modules in reach:
        assert not {m for m in modules if m.endswith((".plots", ".claims", ".study"))}
    assert "ethalign.reasons.data" in base & scoring & tuning
    assert "ethalign.reasons.labels" in scoring - base - tuning
    assert "ethalign.reasons.prompts" in scoring & tuning
    assert "ethalign.reasons.judges" in base & scoring
    assert "ethalign.reasons.evaluate" not in base | tuning


def test_an_edit_elsewhere_leaves_a_stage_as_it_is(runs: Path) -> None:
    """Settings that a stage does not read do not make it anew."""
    assert job("finetune", runs, evaluation__max_new_tokens=9).state() == "keep"
    assert job("finetune", runs, data__limit_test=3, data__cross=False).state() == "keep"
    assert job("baselines", runs, tuning__lr=0.1, data__columns__reason="why").state() == "anew"
    assert job("baselines", runs, tuning__lr=0.1).state() == "keep"
    assert job("baselines", runs, tuning__rows=3).state() == "anew"
    assert job("evaluate", runs, tuning__lr=0.1).state() == "anew", "its adapter is another"
    untuned = (job("evaluate", runs, "pretrained", tuning__lr=lr) for lr in (0.1, 0.2))
    assert len({one.fingerprint() for one in untuned}) == 1


def test_the_tuned_model_is_asked_about_its_first_rows(runs: Path) -> None:
    done = job("finetune", runs)
    rows = records.read_rows(done.where / "answers.jsonl")
    assert len(rows) == finetune.SHOWN
    assert all(row["statement"] in row["prompt"] for row in rows)
    assert all(row["completion"].startswith(f" {row['label']}. ") for row in rows)


def test_the_results_page_is_given_printed_figures_of_ones_own() -> None:
    page = study.job("reasons", "results", None, "smoke", 0, {"reported": "mine.yaml"})
    assert page.given.reported == "mine.yaml"


def test_encoders_learn_on_the_device_of_the_run_and_the_record_says_which(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = records.stages(job("baselines", runs).where)["baselines"]
    assert facts["notes"] == ["encoders: device cpu: as asked"]
    assert facts["device"].startswith("cpu")
    assert job("baselines", runs, model__device="auto").state() == "keep"
    asked: dict[str, Any] = {}

    def fit(*_: Any, **how: Any) -> None:
        asked.update(how)
        raise KeyboardInterrupt

    monkeypatch.setattr(encoders, "fit", fit)
    monkeypatch.setattr(models, "choose_device", lambda wanted: (f"{wanted}-chosen", "so"))
    run = job("baselines", tmp_path, model__device="auto", baselines__encoder_accumulation=2).given
    with pytest.raises(KeyboardInterrupt):
        baselines.compute(run, tmp_path, {})
    assert (asked["device"], asked["accumulation"]) == ("auto-chosen", 2)


def test_the_lessons_agree_with_the_library(runs: Path) -> None:
    """What a cell computes by hand is compared there; against a library that errs it fails."""
    given: dict[str, Any] = {"overrides": SETTINGS, "variant": "LR"}
    finetuning, evaluation = (("reasons", stage) for stage in ("finetune", "evaluate"))
    tuned = cells(*finetuning, "finetune-box-6", runs, **given)
    targets = tuned["tokens"].loc[tuned["tokens"]["label"] != -100]
    assert list(targets["id"]) == list(targets["label"])
    assert "".join(map(ast.literal_eval, targets["token"])).startswith(" ")
    assert float(tuned["added"].norm()) > 0
    asked = cells(*evaluation, "evaluate-box-5", runs, **given)
    done = job("evaluate", runs)
    rows = {row["id"]: row for row in records.read_rows(done.where / "predictions.jsonl")}
    run: Any = done.run
    kept = rows[next(iter(data.tests(run).values()))["id"].iloc[0]]
    assert asked["by_hand"] == pytest.approx(
        [kept["logp_ethical"], kept["logp_unethical"]], abs=1e-3
    ), "that of the first test item in the records"
    for name, doctored, page in (
        ("peft.tuners.lora.layer.Linear.forward", _more, (*finetuning, "finetune-box-6")),
        ("ethalign.tuning.batch_loss", _more, (*finetuning, "finetune-box-4")),
        ("ethalign.scoring.choice_logprobs", _more, (*evaluation, "evaluate-box-2")),
        ("ethalign.records.metrics", _shifted, (*evaluation, "evaluate-box-5")),
    ):
        fooled(name, doctored, *page, runs, **given)


def _more(found: Any) -> Any:
    return 1.01 * found


def _shifted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(low=rows["low"] - 0.01)
