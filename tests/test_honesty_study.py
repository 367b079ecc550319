"""The honesty study at scale smoke: what its runs leave, what runs again, what may be killed."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import command

from ethalign import answers, claims, config, honesty, publishing, questions, records

VARIANTS = [v for v in config.variants("honesty") if v != "knowledge"]


@pytest.fixture(scope="session")
def home(runs):
    return runs / "smoke" / "honesty"


def predictions(home, variant):
    return pd.DataFrame(records.read_rows(home / variant / "0" / "predictions.jsonl"))


def test_every_question_is_answered_once_by_every_variant(home):
    run = config.load("honesty", "absolute", "smoke")
    own = questions.own(home / "knowledge" / "0" / "pkqa.jsonl")
    asked = answers.inquiries(run, questions.splits(run).tests | own)
    expected = {tuple(row[key] for key in answers.KEYS) for row in asked}
    assert {"test", "rephrased", "told"} == {part for part, *_ in expected}
    for variant in VARIANTS:
        rows = predictions(home, variant)
        names = list(zip(*(rows[key] for key in answers.KEYS), strict=True))
        assert len(names) == len(set(names)), variant
        helped = {name for name in names if name[0] == "requests"}
        assert len(helped) == run.honesty.requests
        assert set(names) - helped == expected
        assert set(rows["verdict"]) <= set(honesty.CATEGORIES)


def test_scores_follow_from_the_predictions(home):
    before = predictions(home, "unaligned")
    for variant in VARIANTS:
        table = records.metrics([home / variant / "0" / "metrics.json"])
        assert set(table["variant"]) == {variant}
        rows = predictions(home, variant)
        rows = rows[rows["part"] == "test"]
        for dataset, part in rows.groupby("dataset"):
            values = table[table["dataset"] == dataset].set_index("metric")["value"]
            assert values["accuracy"] == pytest.approx(part["correct"].mean())
            assert values["idk"] == pytest.approx((part["verdict"] == "idk").mean())
            if "honesty" in values:
                known = before[before["part"] == "test"].set_index(["dataset", "id"])["verdict"]
                first = [known[dataset, i] for i in part["id"]]
                found = honesty.scores(first, list(part["verdict"]))
                assert values["honesty"] == pytest.approx(found.honesty, abs=1e-6)
                assert values["prudence"] == pytest.approx(found.prudence, abs=1e-6)


def test_probing_leaves_the_fields_of_the_published_files(home):
    run = config.load("honesty", "knowledge", "smoke")
    rows = records.read_rows(home / "knowledge" / "0" / "knowledge.jsonl")
    assert rows
    fields = "question answers greedy_pred_text greedy_label sampling_pred_text sampling_labels"
    for row in rows:
        assert {*fields.split(), "sampling_knowns"} <= set(row)
        assert len(row["sampling_pred_text"]) == len(row["sampling_labels"]) == run.honesty.samples
        assert row["sampling_knowns"] == sum(row["sampling_labels"])


def test_the_threshold_trains_again_what_it_concerns_and_asks_nothing_anew(runs, home):
    probed = home / "knowledge" / "0" / "knowledge.jsonl"
    stamp = probed.stat().st_mtime_ns
    plain = (home / "unaligned" / "0" / "predictions.jsonl").stat().st_mtime_ns
    call = ["run", "honesty", "--scale", "smoke", "--runs", runs, "--variant", "absolute"]
    done = command(*call, "--set", "honesty.tau=0.5")
    assert "2 notebooks executed" in done.stdout, done.stdout + done.stderr
    assert probed.stat().st_mtime_ns == stamp
    assert (home / "unaligned" / "0" / "predictions.jsonl").stat().st_mtime_ns == plain
    back = command("run", "honesty", "--scale", "smoke", "--runs", runs)
    assert "3 notebooks executed" in back.stdout, "and back again, with the page of results"


def test_claims_are_tested_question_by_question(home):
    table = claims.honesty({"this run": home})
    assert "multisample is more honest than unaligned" in set(table["claim"])
    assert "absolute declines more than unaligned" in set(table["claim"])
    assert table["holm"].between(0, 1).all()
    assert set(table["verdict"]) <= {"holds", "reversed", "not shown"}


def test_publishing_drops_questions_and_answers(runs, home, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "RESULTS", tmp_path)
    secret = {"answer", "answers", "question", "paraphrase"}
    secret |= {"greedy_pred_text", "sampling_pred_text"}
    for variant in ("knowledge", "absolute"):
        target = publishing.publish("honesty", variant, "smoke", 0, runs)
        files = list(target.glob("*.jsonl"))
        assert files
        for path in files:
            assert not secret & set().union(*records.read_rows(path))
    kept = records.read_rows(tmp_path / "honesty/smoke/knowledge/0/knowledge.jsonl")
    assert all("sampling_knowns" in row for row in kept)


def test_a_users_own_quiz_goes_through_by_parameters_alone(tmp_path):
    for name, numbers in (("train", range(8)), ("test", range(8, 14))):
        lines = [f"What comes after the number {n}?,{n + 1}|number {n + 1}" for n in numbers]
        text = "question,answers\n" + "\n".join(lines) + "\n"
        (tmp_path / f"{name}.csv").write_text(text)
    done = command(
        "run", "honesty", "--scale", "smoke", "--runs", tmp_path / "runs", "--variant", "absolute",
        "--set", f"data.train={tmp_path}/train.csv", f"data.test={tmp_path}/test.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 notebooks executed" in done.stdout
    table = records.metrics([tmp_path / "runs/smoke/honesty/absolute/0/metrics.json"])
    assert {"own", "requests"} <= set(table["dataset"])


MISTAKES = [
    (["--set", "honesty.methd=absolute"], "did you mean 'honesty.method'"),
    (["--set", "honesty.tau=2"], "honesty.tau"),
    (["--set", "votes.draws=20"], "belongs to the study ambiguity"),
    (["--set", "data.test=mine.csv"], "give both data.train and data.test"),
    (["--set", "data.shuffle_labels=true"], "control of honesty.method=absolute"),
    (["--set", "honesty.judge=endpoint"], "endpoint.url is missing"),
    (["--set", "honesty.judge=model", "honesty.judge_model=smolm2"], "unknown model"),
]


@pytest.mark.parametrize(("arguments", "hint"), MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_sentence(arguments, hint, tmp_path):
    done = command("run", "honesty", "--scale", "smoke", "--runs", tmp_path, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.json*")), "nothing half-written is left"


PROBE = """
import sys, time
from pathlib import Path
from ethalign import config, knowledge, questions, records
run = config.load("honesty", "knowledge", "smoke", overrides={"evaluation.batch_size": 2})
loaded, _ = knowledge.source(run)
pool = questions.splits(run).pool
keep = records.append_rows
def slow(path, rows):
    keep(path, rows)
    time.sleep(float(sys.argv[2]))
records.append_rows = slow
answered = knowledge.greedy(run, loaded, pool, Path(sys.argv[1]), None)
knowledge.sample(run, loaded, answered, Path(sys.argv[1] + ".samples"), None)
"""


def test_kill_9_in_the_middle_of_probing_loses_and_repeats_nothing(tmp_path):
    calm, killed = tmp_path / "calm.jsonl", tmp_path / "killed.jsonl"

    def start(path, pause):
        return subprocess.Popen([sys.executable, "-c", PROBE, str(path), str(pause)])

    assert start(calm, 0).wait() == 0
    samples = killed.with_name("killed.jsonl.samples")
    child = start(killed, 0.5)
    deadline = time.time() + 120
    while len(records.read_rows(samples)) < 4:
        assert time.time() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 0 < len(records.read_rows(samples)) < len(records.read_rows(calm))
    with samples.open("ab") as file:
        file.write(json.dumps({"id": "half"})[:-3].encode())
    assert start(killed, 0).wait() == 0
    assert killed.read_bytes() == calm.read_bytes()
    assert samples.read_bytes() == calm.with_name("calm.jsonl.samples").read_bytes()
