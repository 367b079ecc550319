"""What the stages of the study leave behind, what they depend on, what may be killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import cells, fooled

from ethalign import claims as shared
from ethalign import code, honesty, pipeline, records, results, study
from ethalign.config import Undeclared, UserError
from ethalign.honesty import data, evaluate, finetune, knowledge
from ethalign.study import Job

from . import resolved

VARIANTS = ("unaligned", "absolute", "multisample")
STAGES = ("knowledge", "finetune", "evaluate")


def job(stage: str, runs: Path, variant: str = "absolute", **overrides: Any) -> Job:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return study.job("honesty", stage, variant, "smoke", 0, dotted, runs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which some variants were computed, with what they need."""
    folder = tmp_path_factory.mktemp("runs")
    for variant in VARIANTS:
        assert job("evaluate", folder, variant).compute(make=True) == "anew"
    return folder


def rows_of(done: Job, name: str = "predictions") -> pd.DataFrame:
    return pd.DataFrame(records.read_rows(done.where / f"{name}.jsonl"))


def test_every_question_is_answered_once_by_every_variant(runs: Path) -> None:
    run = resolved()
    own = data.own_pkqa(job("knowledge", runs).where)
    asked = evaluate.inquiries(run, data.tests(run) | own)
    expected = {tuple(row[key] for key in evaluate.KEYS) for row in asked}
    assert {"test", "rephrased", "told"} == {part for part, *_ in expected}
    for variant in VARIANTS:
        rows = rows_of(job("evaluate", runs, variant))
        names = list(zip(*(rows[key] for key in evaluate.KEYS), strict=True))
        assert len(names) == len(set(names)), variant
        helped = {name for name in names if name[0] == "requests"}
        assert len(helped) == run.honesty.requests
        assert set(names) - helped == expected
        assert set(rows["verdict"]) <= set(honesty.CATEGORIES)


def test_scores_follow_from_the_predictions(runs: Path) -> None:
    before = rows_of(job("evaluate", runs, "unaligned"))
    known = before[before["part"] == "test"].set_index(["dataset", "id"])["verdict"]
    for variant in VARIANTS:
        done = job("evaluate", runs, variant)
        table = records.metrics([done.where / "metrics.json"])
        assert set(table["variant"]) == {variant}
        rows = rows_of(done)
        for dataset, part in rows[rows["part"] == "test"].groupby("dataset"):
            values = table[table["dataset"] == dataset].set_index("metric")["value"]
            assert values["accuracy"] == pytest.approx(part["correct"].mean())
            assert values["idk"] == pytest.approx((part["verdict"] == "idk").mean())
            if "honesty" in values:
                first: Any = [known[dataset, i] for i in part["id"]]
                found = honesty.scores(first, list(part["verdict"]))
                assert values["honesty"] == pytest.approx(found.honesty, abs=1e-6)
                assert values["prudence"] == pytest.approx(found.prudence, abs=1e-6)


def test_probing_leaves_the_fields_of_the_published_files(runs: Path) -> None:
    done = job("knowledge", runs)
    rows = records.read_rows(done.where / "knowledge.jsonl")
    assert rows
    fields = "question answers greedy_pred_text greedy_label sampling_pred_text sampling_labels"
    for row in rows:
        assert {*fields.split(), "sampling_knowns", "sampling_agrees"} <= set(row)
        samples = done.run.give("test", ["honesty"]).honesty.samples  # type: ignore[attr-defined]
        assert len(row["sampling_pred_text"]) == len(row["sampling_labels"]) == samples
        assert row["sampling_knowns"] == sum(row["sampling_labels"])
    funnel = json.loads((done.where / "funnel.json").read_text())
    left = [step["left"] for step in funnel]
    assert left == sorted(left, reverse=True)


def test_what_is_taught_is_written_down(runs: Path) -> None:
    taught = rows_of(job("finetune", runs, "multisample"), "taught")
    probed = rows_of(job("knowledge", runs), "knowledge")
    assert taught.groupby("prompt")["weight"].sum().tolist() == [3.0] * len(probed)
    assert (taught["declines"] == taught["completion"].str.contains(honesty.IDK["code"])).all()


@pytest.mark.parametrize("stage", STAGES)
def test_a_complete_stage_returns_without_loading_a_model(
    runs: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ethalign.models.load", None)
    assert job(stage, runs).compute() == "keep"


@pytest.mark.parametrize("stage", STAGES)
def test_every_row_of_metrics_follows_from_what_is_published(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Decisions are kept, words are not, and the rows can be computed from what is left."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    done = job(stage, runs)
    target = results.publish(done)
    results.publish(job("evaluate", runs, "unaligned"))
    secret = set(done.study.texts)
    files = list(target.glob("*.jsonl"))
    assert files
    for path in files:
        assert not secret & set().union(*records.read_rows(path)), path.name
    if "metrics.json" in done.stage.outputs:
        there = done._replace(runs=tmp_path)
        assert results._metric_problems(there.where, there) == ([], [])


@pytest.mark.parametrize(
    ("stage", "file", "field", "value"),
    [
        ("knowledge", "greedy", "greedy_label", 1),
        ("knowledge", "knowledge", "sampling_knowns", 3),
        ("knowledge", "judged", "judged", True),
        ("evaluate", "predictions", "verdict", "idk"),
        ("evaluate", "predictions", "correct", True),
        ("evaluate", "predictions", "logp", 0.0),
    ],
)
def test_a_doctored_record_is_found(
    runs: Path, tmp_path: Path, stage: str, file: str, field: str, value: Any
) -> None:
    done = job(stage, runs)
    folder = shutil.copytree(done.where, tmp_path / "copy")
    assert results._metric_problems(folder, done) == ([], [])
    rows = records.read_rows(folder / f"{file}.jsonl")
    # Of a random model that is right about nothing, confidence counts only beside a right answer.
    rows[0] |= {field: value, **({"verdict": "correct"} if field == "logp" else {})}
    (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert results._metric_problems(folder, done)[0]


def test_an_older_record_without_greedy_answers_gives_what_it_can(
    runs: Path, tmp_path: Path
) -> None:
    done = job("knowledge", runs)
    shutil.copy(done.where / "knowledge.jsonl", tmp_path)
    kept = json.loads((done.where / "metrics.json").read_text())
    found = knowledge.measure(done.given, tmp_path, {})
    greedy = ("known_greedy", "accident", "judge_agreement", "judge_kappa")
    assert found == [r for r in kept if r["metric"] not in greedy]


# Read only where a model behind a server judges.
SERVED = "endpoint.url"


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        (stage.name, key)
        for stage in study.find("honesty").stages
        if stage.compute
        for key in stage.reads
        if key != SERVED
    ],
)
def test_a_setting_that_is_not_declared_is_named(
    runs: Path, tmp_path: Path, stage: str, key: str
) -> None:
    """Each declared key is read, and nothing is read but what is declared (see ``runs``)."""
    judged = {} if stage == "finetune" else {"honesty__judge": "model"}
    done = job(stage, runs, **judged)
    assert done.stage.compute is not None
    if stage == "knowledge":  # what takes long is not what is tested here
        shutil.copy(job(stage, runs).where / "greedy.jsonl", tmp_path)
    given = done.run.give(f"honesty/{stage}", [name for name in done.stage.reads if name != key])
    before = {name: other.where for name, other in job(stage, runs).before().items()}
    block, _, rest = key.partition(".")  # a block of which nothing else is given is named whole
    with pytest.raises(Undeclared, match=rf"honesty/{stage} reads {block}(\.{rest})?,"):
        done.stage.compute(given, tmp_path, before)


def test_only_a_judge_behind_a_server_reads_its_address(runs: Path, tmp_path: Path) -> None:
    done = job("knowledge", runs, honesty__judge="endpoint")
    reads = [name for name in done.stage.reads if name != SERVED]
    with pytest.raises(Undeclared, match=r"reads endpoint(\.url)?,"):
        knowledge.compute(done.run.give("honesty/knowledge", reads), tmp_path, {})  # type: ignore[arg-type]


def test_stages_depend_on_the_code_that_computes_them() -> None:
    probing, tuning, asking = (
        {*code.reach(module.compute)} for module in (knowledge, finetune, evaluate)
    )
    for modules in (probing, tuning, asking):
        assert not {m for m in modules if m.endswith((".plots", ".claims", ".study"))}
        assert "ethalign.honesty.prompts" in modules
    assert "ethalign.honesty.finetune" in tuning - probing - asking
    assert "ethalign.generation" in (probing & asking) - tuning


def test_a_setting_makes_anew_what_it_concerns_and_nothing_else(runs: Path) -> None:
    """A threshold concerns what is taught: nothing is asked anew but the tuned model."""

    def states(**overrides: Any) -> list[str]:
        stages = [job(stage, runs, **overrides) for stage in STAGES]
        return [j.state() for j in (*stages, job("evaluate", runs, "unaligned", **overrides))]

    assert states() == ["keep"] * 4
    assert states(honesty__tau=0.5) == ["keep", "anew", "anew", "keep"]
    assert states(honesty__form=2) == ["keep", "keep", "anew", "anew"]
    assert states(honesty__samples=2) == ["anew"] * 4
    assert states(data__limit_test=3) == ["keep", "keep", "anew", "anew"]
    assert states(tuning__lr=0.1) == ["keep", "anew", "anew", "keep"]
    assert states(endpoint__timeout=9.0) == ["keep"] * 4, "the pace of a server"


def test_claims_are_tested_question_by_question(runs: Path) -> None:
    """The samples are too small for a claim, and what was not asked is not claimed."""
    table = shared.assess("honesty", {"this run": job("results", runs).home})
    assert len(table) == len(shared.declared("honesty"))
    assert set(table["model"]) == {"random-tiny"}
    asked = table["dataset"] == "requests"
    two = asked & table["first"].isin(VARIANTS) & table["second"].isin(VARIANTS)
    assert two.any()
    assert set(table["verdict"][~two]) == {"not run"}
    assert "not run" not in set(table["verdict"][two])


def test_a_users_own_quiz_goes_through_by_parameters_alone(tmp_path: Path) -> None:
    """Some of its questions nobody can answer, and one column is nobody's business."""
    for name, numbers in (("train", range(8)), ("test", range(8, 14))):
        lines = [
            f"What comes after the number {n}?,{f'{n + 1}|number {n + 1}' if n % 3 else ''},secret"
            for n in numbers
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(["question,answers,note", *lines]) + "\n")
    own: dict[str, Any] = {f"data__{n}": str(tmp_path / f"{n}.csv") for n in ("train", "test")}
    done = job("evaluate", tmp_path / "runs", data__limit_test=None, **own)
    pipeline.preflight(done)
    done.compute(make=True)
    table = records.metrics([done.where / "metrics.json"])
    assert {"own", "requests"} <= set(table["dataset"])
    strata = table[(table["dataset"] == "own") & (table["metric"] == "idk")].set_index("stratum")
    assert strata["n"].to_dict() == {"all": 6, "answerable": 4, "unanswerable": 2}
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_a_judge_behind_a_server_and_one_in_a_folder_are_let_through(tmp_path: Path) -> None:
    served = {"honesty__judge": "endpoint", "endpoint__url": "http://localhost:1/v1"}
    done = job("knowledge", tmp_path, honesty__judge_model="some-judge", **served)
    done.study.preflight(done.run)
    pipeline.preflight(done)
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"weights")
    local = job("evaluate", tmp_path, honesty__judge_model=str(tmp_path / "judge"))
    first = local.fingerprint()
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"others")
    assert local.fingerprint() != first


def test_a_model_that_others_tuned_stands_in_for_tuning_and_not_for_the_model_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(settings: Any, **_: Any) -> Any:
        asked.append(settings.id)
        raise UserError("enough")

    monkeypatch.setattr("ethalign.models.load", load)
    how: dict[str, Any] = {"honesty__checkpoint": "gair/tuned", "tuning__enabled": False}
    for variant in ("multisample", "unaligned", "prompt-based"):
        with pytest.raises(UserError, match="enough"):
            evaluate.compute(resolved(variant, **how), tmp_path, {"knowledge": tmp_path})
    assert asked == ["gair/tuned", "random-tiny", "random-tiny"]


MISTAKES = [
    ({"honesty.checkpoint": "gair/tuned"}, r"checkpoint needs tuning\.enabled=false"),
    ({"honesty.checkpoint": "gair", "tuning.enabled": False}, "unknown model"),
    ({"honesty.probes": "nowhere.jsonl"}, r"nowhere\.jsonl is missing"),
    ({"honesty.methd": "absolute"}, "did you mean 'honesty.method'"),
    ({"honesty.tau": 2.0}, r"honesty\.tau"),
    ({"prompt.template": "dfar-llama"}, r"prompt\.template .*it takes plain or chat"),
    ({"data.test": "mine.csv"}, r"give both data\.train and data\.test"),
    ({"data.shuffle_labels": True}, r"control of honesty\.method=absolute"),
    ({"honesty.judge": "endpoint"}, r"endpoint\.url is (missing|not set)"),
    ({"honesty.judge": "model", "honesty.judge_model": "smolm2"}, "unknown model"),
    ({"model.id": "smollm2"}, "unknown model"),
]


@pytest.mark.parametrize(("overrides", "hint"), MISTAKES)
def test_a_mistake_is_refused_before_anything_is_loaded(
    overrides: dict[str, Any], hint: str, tmp_path: Path
) -> None:

    def ask() -> None:
        for planned in study.plan("honesty", scale="smoke", overrides=overrides, runs=tmp_path):
            planned.study.preflight(planned.run)
            pipeline.preflight(planned)

    with pytest.raises(UserError, match=hint) as caught:
        ask()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*"))


PROBE = """
import sys, time
from pathlib import Path
from ethalign import config, records
from ethalign.honesty import data, knowledge
run = config.resolve("honesty", "knowledge", "smoke", overrides={"evaluation.batch_size": 2})
keep = records.append_rows
def slow(path, rows):
    keep(path, rows)
    time.sleep(float(sys.argv[2]))
records.append_rows = slow
knowledge.compute(run, Path(sys.argv[1]), {})
"""


def test_kill_9_in_the_middle_of_probing_loses_and_repeats_nothing(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"

    def start(folder: Path, pause: float) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", PROBE, str(folder), str(pause)])

    assert start(calm, 0).wait() == 0
    samples = killed / "knowledge.jsonl"
    child = start(killed, 0.5)
    deadline = time.time() + 120
    while len(records.read_rows(samples)) < 2:
        assert time.time() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 0 < len(records.read_rows(samples)) < len(records.read_rows(calm / samples.name))
    with samples.open("ab") as file:
        file.write(json.dumps({"id": "half"})[:-3].encode())
    assert start(killed, 0).wait() == 0
    for path in calm.iterdir():
        assert (killed / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_lessons_agree_with_the_library(runs: Path) -> None:
    """What a cell computes by hand is compared there; against a library that errs it fails."""
    decoding, counting = ("knowledge", "knowledge-box-2"), ("evaluate", "evaluate-box-2")
    decoded = cells("honesty", *decoding, runs)
    assert decoded["by_hand"] == decoded["library"]
    assert decoded["greedy"] == int(decoded["p"].argmax())
    for variant in ("absolute", "unaligned"):
        counted = cells("honesty", *counting, runs, variant=variant)
        kept = records.metrics([job("evaluate", runs, variant).where / "metrics.json"])
        main = kept[(kept["dataset"] == counted["main"]) & (kept["metric"] == "honesty")]
        assert counted["honest"] == pytest.approx(main["value"].iloc[0], abs=1e-6)
    fooled("ethalign.generation.generate", lambda texts: ["?"], "honesty", *decoding, runs)
    fooled(
        "ethalign.honesty.scores", lambda s: s._replace(prudence=0.1), "honesty", *counting, runs
    )
