"""What the stages of the study leave behind, and what they depend on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import cells, fooled

from ethalign import code, endpoint, records, results, sources, study
from ethalign.ambiguity import data, encode, evaluate, finetune
from ethalign.ambiguity.study import measure
from ethalign.config import Undeclared
from ethalign.study import Job

STAGES = ("ceiling", "finetune", "evaluate")
# Settings that are read only where others have these values.
ONLY = {
    "votes.split": {"data.source": "official"},
    "votes.max_words": {"votes.dataset": "anecdotes"},
}


def job(
    stage: str, runs: Path, overrides: dict[str, Any] | None = None, variant: str = "soft"
) -> Job:
    return study.job("ambiguity", stage, variant, "smoke", 0, overrides, runs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a tuned variant and the ceiling were computed."""
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


def test_every_row_of_metrics_follows_from_the_records(runs: Path) -> None:
    for stage in ("ceiling", "evaluate"):
        done = job(stage, runs)
        kept = json.loads((done.where / "metrics.json").read_text())
        assert done.study.measure is not None
        assert done.study.measure(done.given, done.where, {}) == kept


@pytest.mark.parametrize(("stage", "field"), [("ceiling", "z1"), ("evaluate", "logp1")])
def test_a_doctored_record_is_found(runs: Path, tmp_path: Path, stage: str, field: str) -> None:
    done = job(stage, runs)
    folder = shutil.copytree(done.where, tmp_path / "copy")
    assert results._metric_problems(folder, done) == ([], [])
    rows = records.read_rows(folder / "predictions.jsonl")
    rows[-1][field] += 3
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results._metric_problems(folder, done)[0]


def test_without_the_data_only_rows_of_the_records_are_computed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = job("ceiling", runs)
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    official: Any = job("ceiling", runs, {"data.source": "official"}).run
    assert not sources.present(data.SOURCES["dilemmas-dev"])
    found = measure(official, done.where, {})
    assert {row["variant"] for row in found} == {f"encoder-{k}" for k in encode.LOSSES}


def test_an_interrupted_ceiling_keeps_the_encoders_it_has(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = job("ceiling", runs)
    whole = (done.where / "predictions.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(lines[:30]) + lines[30][:20])  # one encoder, and a part of the next
    fitted: list[str] = []
    real = encode.encode

    def fit(run: Any, path: Any, rows: Any, loss: str) -> Any:  # logits, and the epoch
        fitted.append(loss)
        return real(run, path, rows, loss)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "encode", fit)
    encode.compute(done.given, tmp_path, {})
    assert fitted == ["soft", "counts", "dirichlet", "soft"]
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        (stage.name, key)
        for stage in study.find("ambiguity").stages
        if stage.compute
        for key in stage.reads
        if key != "endpoint.top"
    ],
)
def test_a_setting_that_is_not_declared_is_named(
    runs: Path, tmp_path: Path, stage: str, key: str
) -> None:
    """Each declared key is read, and nothing is read but what is declared (see ``runs``)."""
    done = job(stage, runs, ONLY.get(key))
    if stage == "ceiling" and key not in ONLY:  # encoders are not what is tested here
        shutil.copy(done.where / "predictions.jsonl", tmp_path)
    reads = [name for name in (*done.stage.reads, *done.stage.handles) if name != key]
    given: Any = done.run.give(f"ambiguity/{stage}", reads)
    before = {name: other.where for name, other in done.before().items()}
    block, _, field = key.partition(".")

    def work() -> None:
        assert done.stage.compute is not None
        done.stage.compute(given, tmp_path, before)
        measure(given, tmp_path, before)

    with pytest.raises(Undeclared, match=rf"ambiguity/{stage} reads {block}(\.{field})?, which"):
        work()


def test_only_a_server_is_asked_for_a_number_of_log_probabilities(tmp_path: Path) -> None:
    done = job("evaluate", tmp_path, {"endpoint.url": "http://localhost:1/v1"}, "zero-shot")
    keys = [key for key in (*done.stage.reads, *done.stage.handles) if key != "endpoint.top"]
    given: Any = done.run.give("ambiguity/evaluate", keys)
    client = evaluate.respondent(given, None)
    assert isinstance(client, endpoint.Client)
    with pytest.raises(Undeclared, match=r"ambiguity/evaluate reads endpoint\.top, which"):
        client.answers(["Which?"], ("first", "second"))


def test_stages_depend_on_the_code_that_computes_them() -> None:
    reach = {
        c.__module__: {*code.reach(c)} for c in (f.compute for f in (encode, evaluate, finetune))
    }
    ceiling, scoring, tuning = reach.values()
    for modules in reach.values():
        assert not {m for m in modules if m.endswith((".plots", ".claims", ".study"))}
    assert "ethalign.ambiguity.prompts" in scoring & tuning
    assert "ethalign.ambiguity.prompts" not in ceiling
    assert "ethalign.tuning" in tuning
    assert "ethalign.encoders" in ceiling - scoring - tuning


def test_an_edit_elsewhere_leaves_a_stage_as_it_is(runs: Path) -> None:
    """Settings that a stage does not read do not make it anew."""
    assert job("evaluate", runs, {"baselines.encoder_epochs": 9}).state() == "keep"
    assert job("finetune", runs, {"data.limit_test": 3}).state() == "keep"
    assert job("ceiling", runs, {"tuning.lr": 0.1}).state() == "keep"
    assert job("ceiling", runs, {"tuning.rows": 3}).state() == "anew"
    assert job("evaluate", runs, {"tuning.lr": 0.1}).state() == "anew", "its adapter is another"
    rows, plain = (job("evaluate", runs, o, "zero-shot") for o in ({"tuning.rows": 3}, None))
    assert rows.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("dataset", ["dilemmas", "anecdotes"])
def test_the_urn_of_the_lesson_agrees_with_the_library(dataset: str, tmp_path: Path) -> None:
    page = ("ambiguity", "explore", "explore-box-2", tmp_path)
    given: dict[str, Any] = {"overrides": {"votes.dataset": dataset}}
    found = cells(*page, **given)
    balls = found["drawn"].filter(like="balls").sum(axis=1)
    assert list(balls - balls.iloc[0]) == pytest.approx([*range(len(balls))]), "one more a vote"
    alpha = found["alpha"]
    assert found["drawn"]["probability"].iloc[0] == alpha[0] / alpha.sum()
    name = "ethalign.calibration.dirichlet_multinomial_nll"
    fooled(name, lambda nll: nll + 1e-4, *page, **given)
