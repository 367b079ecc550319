"""The whole study at scale smoke, run once, and what a person would look at afterwards."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from conftest import command

from ethalign import claims, config, data, evaluation, pipeline, publishing, records
from ethalign.config import ROOT, UserError

DRAWING = ["lengths", "losses", "log_odds", "intervals", "vote_patterns", "reliability"]
DRAWING += ["by_disagreement", "order_bias", "known_counts", "sweep", "transitions"]
DRAWING += ["honesty_plane", "risk_coverage", "confidences"]
VARIANTS = ["pretrained", "L", "LR", "R-then-L", "shuffled"]


@pytest.fixture(scope="session")
def home(runs):
    return runs / "smoke" / "reasons"


@pytest.mark.parametrize("study", config.studies())
def test_a_second_run_executes_nothing(runs, study):
    start = time.monotonic()
    done = command("run", study, "--scale", "smoke", "--runs", runs)
    assert "everything is up to date" in done.stdout
    assert time.monotonic() - start < 15


def test_every_run_directory_holds_what_the_contract_promises(home):
    for variant in VARIANTS:
        folder = home / variant / "0"
        record = json.loads((folder / "run.json").read_text())
        assert record["variant"] == variant
        assert all(s["status"] == "complete" for s in record["stages"].values())
        assert len(record["stages"]["evaluate"]["model"]["sha256"]) == 64
        assert record["stages"]["evaluate"]["data"]
        config.Run.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
        table = records.metrics([folder / "metrics.json"])
        assert list(table.columns) == list(records.COLUMNS)
        assert set(table["variant"]) == {variant}
        assert set(table["dataset"]) == {"statements", "comments"}
        shares = table[table["unit"] == "share"].dropna(subset="value")
        assert shares[["value", "low", "high"]].stack().between(0, 1).all()
        assert (shares["low"] <= shares["value"]).all()
        assert (shares["value"] <= shares["high"]).all()
        tuned = (folder / "adapter" / "adapter_model.safetensors").is_file()
        assert tuned == (variant != "pretrained")


def test_every_item_is_predicted_once(home):
    run = config.load("reasons", "L", "smoke")
    expected = {(n, i) for n, t in data.splits(run).tests.items() for i in t["id"]}
    for variant in VARIANTS:
        rows = records.read_rows(home / variant / "0" / "predictions.jsonl")
        assert {(r["dataset"], r["id"]) for r in rows} == expected
        assert len(rows) == len(expected)
        for r in rows:
            best = max(("ethical", "unethical"), key=lambda name: r[f"logp_{name}"])
            assert r["verdict"] == best


def test_accuracy_follows_from_the_predictions(home):
    table = records.metrics([home / "L" / "0" / "metrics.json"])
    rows = pd.DataFrame(records.read_rows(home / "L" / "0" / "predictions.jsonl"))
    for name, part in rows.groupby("dataset"):
        row = table[
            (table["dataset"] == name)
            & (table["metric"] == "accuracy")
            & (table["stratum"] == "all")
        ]
        assert row["value"].item() == pytest.approx(
            (part["verdict"] == part["gold"]).mean(), abs=1e-6
        )


@pytest.mark.parametrize("study", config.studies())
def test_executed_notebooks_hold_figures_and_no_error(runs, study):
    home = runs / "smoke" / study
    for path in [*home.glob("*.ipynb"), *home.glob("*/0/*.ipynb")]:
        cells = json.loads(path.read_text())["cells"]
        outputs = [o for c in cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o["output_type"] == "error"], path
        shown = [c for c in cells if "remove-stderr" not in c["metadata"].get("tags", [])]
        assert "Warning" not in json.dumps([c.get("outputs") for c in shown]), path
        if path.stem != "results":
            assert any("image/png" in o.get("data", {}) for o in outputs), path
    assert len(list(home.glob("*.ipynb"))) == 2


def test_every_figure_has_a_text_for_those_who_do_not_see_it():
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if "plots." in "".join(cell["source"]) and "plots.style" not in "".join(
                cell["source"]
            ):
                draws = any(f"plots.{f}(" in "".join(cell["source"]) for f in DRAWING)
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                assert not draws or len(alt) > 20, (path, cell["id"])


@pytest.mark.parametrize(
    ("study", "variant"), [("reasons", "LR"), ("ambiguity", "sampled")], ids=lambda v: v
)
def test_the_same_seed_gives_the_same_bytes(runs, tmp_path, study, variant):
    done = command("run", study, "--scale", "smoke", "--runs", tmp_path, "--variant", variant)
    assert done.returncode == 0, done.stderr
    for name in (f"{variant}/0/metrics.json", f"{variant}/0/predictions.jsonl"):
        first, again = (folder / "smoke" / study / name for folder in (runs, tmp_path))
        assert again.read_bytes() == first.read_bytes()
    base = f"smoke/{study}/{config.BASE[study]}/0/metrics.json"
    assert (tmp_path / base).read_bytes() == (runs / base).read_bytes()


def test_scores_against_votes_follow_from_the_predictions(runs):
    """Recomputed with plain numpy from what the model said of each pair."""
    folder = runs / "smoke" / "ambiguity" / "soft" / "0"
    rows = pd.DataFrame(records.read_rows(folder / "predictions.jsonl"))
    test = rows[rows["part"] == "test"]
    p = 1 / (1 + np.exp(test["logp2"] - test["logp1"]))
    turned = 1 / (1 + np.exp(test["swapped2"] - test["swapped1"]))
    p, h = (p + turned) / 2, test["votes1"] / (test["votes1"] + test["votes2"])
    expected = -(h * np.log(p) + (1 - h) * np.log(1 - p)).mean()
    table = records.metrics([folder / "metrics.json"])
    whole = table[table["stratum"] == "all"].set_index("metric")["value"]
    assert whole["cross_entropy"] == pytest.approx(expected, abs=1e-5)
    assert whole["accuracy"] == pytest.approx(((p >= 0.5) == (h >= 0.5)).mean())
    parts = table[table["metric"] == "accuracy"].set_index("stratum")["n"]
    assert parts["all"] == parts.drop("all").sum() == len(test)


def test_only_what_depends_on_a_parameter_runs_again(runs, home):
    """Evaluation settings leave every adapter as it is, and the baselines too."""
    adapters = {p: p.stat().st_mtime_ns for p in home.glob("*/0/adapter/*.safetensors")}
    judge = (home / "baselines" / "0" / "judge.json").stat().st_mtime_ns
    done = command(
        "run", "reasons", "--scale", "smoke", "--runs", runs, "--variant", "L",
        "--set", "evaluation.max_new_tokens=4",
    )  # fmt: skip
    assert "1 notebooks executed" in done.stdout, done.stdout + done.stderr
    assert adapters == {p: p.stat().st_mtime_ns for p in adapters}
    assert (home / "baselines" / "0" / "judge.json").stat().st_mtime_ns == judge
    rows = records.read_rows(home / "L" / "0" / "predictions.jsonl")
    assert max(len(r["generated"].encode()) for r in rows if r.get("generated")) <= 4 * 4


def test_claims_are_tested_item_by_item(home):
    table = claims.reasons({"this run": home})
    assert set(table["claim"]) >= {"L+R beats L", "L beats pretrained"}
    assert table["holm"].between(0, 1).all()
    assert (table["holm"] >= table["p"] - 1e-12).all()
    assert set(table["verdict"]) <= {"holds", "reversed", "not shown"}


def test_publishing_keeps_decisions_and_drops_words(runs, home, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "RESULTS", tmp_path)
    target = publishing.publish("reasons", "LR", "smoke", 0, runs)
    rows = records.read_rows(target / "predictions.jsonl")
    assert rows
    assert not {"generated", "reason", "statement"} & set().union(*rows)
    assert not list(target.rglob("*.safetensors"))
    with pytest.raises(UserError, match="ethalign run"):
        publishing.publish("reasons", "LR", "smoke", 7, runs)


def test_a_users_own_table_goes_through_by_parameters_alone(tmp_path):
    lines = [
        f"Case {i}: I {'broke' if i % 2 else 'kept'} my word.,{'bad' if i % 2 else 'good'}"
        for i in range(30)
    ]
    for name, part in (("train", lines[:20]), ("test", lines[20:])):
        (tmp_path / f"{name}.csv").write_text("text,verdict\n" + "\n".join(part) + "\n")
    done = command(
        "run", "reasons", "--scale", "smoke", "--runs", tmp_path / "runs", "--variant", "L",
        "--set", f"data.train={tmp_path}/train.csv", f"data.test={tmp_path}/test.csv",
        "data.columns.statement=text", "data.columns.label=verdict",
        "data.labels.good=ethical", "data.labels.bad=unethical", "data.cross=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = records.metrics([tmp_path / "runs/smoke/reasons/L/0/metrics.json"])
    assert set(table["dataset"]) == {"own"}


MISTAKES = [
    (["--set", "tuning.lr=fast"], "tuning.lr"),
    (["--set", "tuning.lrr=1"], "did you mean 'tuning.lr'"),
    (["--set", "model.id=smollm2-135m"], "did you mean 'smollm2-135m-instruct'"),
    (["--set", "data.train=none.csv"], "none.csv is missing"),
    (["--scale", "tinny"], "did you mean 'tiny'"),
    (["--variant", "LRR"], "did you mean 'LR'"),
    (["--set", "tuning.lr"], "key=value"),
    (["--profile", "slurmm"], "did you mean 'slurm'"),
    (["--set", "model.quantization=nf4"], "needs an NVIDIA GPU and bitsandbytes"),
    (["--runs", "/dev/null/runs"], "could not be written"),
]


@pytest.mark.parametrize(("arguments", "hint"), MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_sentence(arguments, hint, tmp_path):
    done = command("run", "reasons", "--runs", tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.json*")), "nothing half-written is left"


def test_a_request_to_end_leaves_no_process_behind(tmp_path):
    call = [sys.executable, "-m", "ethalign.cli", "run", "reasons", "--scale", "smoke"]
    call += ["--runs", str(tmp_path)]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stderr.readline().split()[2] == ">", "a notebook has started"
        tree = psutil.Process(child.pid).children(recursive=True)
        assert tree
        child.terminate()
        assert "goes on from here" in child.stderr.read()
    assert child.returncode == 130
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive


def test_an_unknown_study_names_the_nearest(tmp_path):
    done = command("run", "reason", "--runs", tmp_path)
    assert done.returncode == 2
    assert "did you mean 'reasons'" in done.stderr


def test_a_truncated_mirror_stops_the_run_before_it_starts(tmp_path):
    (tmp_path / "dfar").mkdir()
    (tmp_path / "dfar" / "DFAR_trainset.csv").write_text("Statement,Label,Reason\n")
    done = command(
        "run",
        "reasons",
        "--scale",
        "small",
        "--runs",
        tmp_path / "runs",
        ETHALIGN_MIRROR=str(tmp_path),
    )
    assert done.returncode == 2
    assert "expected 28fb58aeaa1f" in done.stderr


def test_two_runs_in_one_folder_do_not_mix(tmp_path):
    with pipeline.exclusive(tmp_path):
        done = command("run", "reasons", "--scale", "smoke", "--runs", tmp_path)
    assert done.returncode == 2
    assert "another run" in done.stderr


@pytest.fixture
def notebook(tmp_path):
    """Write a small notebook with a parameters cell and the given code."""

    def write(code):
        cells = [
            {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]},
             "source": "x: int = 1",
             "outputs": [], "execution_count": None},
            {"cell_type": "markdown", "id": "b", "metadata": {}, "source": "Old words."},
            {"cell_type": "code", "id": "c", "metadata": {}, "source": code, "outputs": [],
             "execution_count": None},
        ]  # fmt: skip
        kernel = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        path = tmp_path / "source.ipynb"
        path.write_text(
            json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
        )
        return path

    return write


def test_an_unknown_notebook_parameter_is_refused_before_execution(notebook, tmp_path):
    with pytest.raises(UserError, match="unknown notebook parameter 'y'"):
        pipeline.execute(notebook("print(x)"), tmp_path / "out.ipynb", {"y": 2})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failed_notebook_is_kept_and_named(notebook, tmp_path):
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError.*out\.failed\.ipynb"):
        pipeline.execute(notebook("x / 0"), tmp_path / "out.ipynb", {"x": 2})
    assert "ZeroDivisionError" in (tmp_path / "out.failed.ipynb").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_a_mistake_inside_a_notebook_stays_one_sentence(notebook, tmp_path):
    code = "from ethalign.config import UserError\nraise UserError('say it again')"
    with pytest.raises(UserError, match=r"^say it again$"):
        pipeline.execute(notebook(code), tmp_path / "out.ipynb", {})


def test_mended_prose_reaches_the_book_without_execution(notebook, tmp_path):
    source = notebook("print(x)")
    before = pipeline.source_hash(source)
    pipeline.execute(source, tmp_path / "done.ipynb", {"x": 3})
    source.write_text(source.read_text().replace("Old words.", "New words."))
    assert pipeline.source_hash(source) == before
    pipeline.refresh_prose(tmp_path / "done.ipynb", source, tmp_path / "page.ipynb")
    page = (tmp_path / "page.ipynb").read_text()
    assert "New words." in page
    assert '"3\\n"' in page, "the output is kept"


PREDICT = """
import sys, time
from pathlib import Path
from ethalign import config, data, evaluation, models, records
run = config.load("reasons", "LR", "smoke", overrides={"data.limit_test": 40})
loaded = models.load(run.model)
keep = records.append_rows
def slow(path, rows):
    keep(path, rows)
    time.sleep(float(sys.argv[2]))
records.append_rows = slow
evaluation.predict(run, loaded, data.splits(run).tests, Path(sys.argv[1]), fresh=False)
"""


def test_kill_9_in_the_middle_of_evaluation_loses_and_repeats_nothing(tmp_path):
    calm, killed = tmp_path / "calm.jsonl", tmp_path / "killed.jsonl"

    def start(path, pause):
        return subprocess.Popen([sys.executable, "-c", PREDICT, str(path), str(pause)])

    assert start(calm, 0).wait() == 0
    child = start(killed, 1)
    deadline = time.time() + 120
    while len(records.read_rows(killed)) < 16:
        assert time.time() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(records.read_rows(killed))
    assert 0 < done < 80
    with killed.open("ab") as file:
        file.write(b'{"id": "half a r')
    assert start(killed, 0).wait() == 0
    assert killed.read_bytes() == calm.read_bytes()


def test_committed_results_match_code_data_and_parameters():
    findings = publishing.verify()
    assert findings, "reference results are committed"
    assert [f for f in findings if f[1]] == []


def test_parameter_table_lists_every_parameter():
    table = publishing.parameter_table()
    for name, *_ in config.parameters():
        assert f"`{name}`" in table


def test_strata_say_what_was_seen():
    table = pd.DataFrame(
        {"stratum": ["clean", "contaminated", "contaminated"], "seen": [False, True, False]}
    )
    masks = evaluation.strata(table)
    assert {k: m.sum() for k, m in masks.items()} == {
        "all": 3,
        "clean": 1,
        "contaminated": 2,
        "seen": 1,
    }
    assert list(evaluation.strata(table[:1])) == ["all"]


def test_requirements_are_in_step():
    """pyproject.toml, constraints.txt and environment.yml name the same packages and versions."""
    import re
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins = dict(re.findall(r"(?m)^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    listed = dict(line.split("==") for line in conda if "==" in line)
    for text in wanted:
        need = Requirement(text)
        name = canonicalize_name(need.name)
        assert need.specifier.contains(pins[name]), f"{name}: constraints.txt is out of range"
        assert listed.pop(name) == pins[name], f"{name}: environment.yml differs"
    assert not listed, "environment.yml lists what pyproject.toml does not"
    assert Path(ROOT / "environment.yml").read_text().rstrip().endswith("-e .")
