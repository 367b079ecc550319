"""Every study at scale smoke, run once, and what a person would look at afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import command, offline
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ethalign import config, pipeline, records, reference, results, study
from ethalign.config import ROOT, UserError

VARIANTS = ["pretrained", "L", "L-leak-free", "LR", "R-then-L", "shuffled"]
MODEL = "random-tiny"


@pytest.fixture(scope="session")
def home(runs: Path) -> Path:
    return runs / "reasons" / "smoke"


@pytest.mark.parametrize("name", config.studies())
def test_a_second_run_executes_nothing(runs: Path, name: str) -> None:
    done = command("run", name, "--scale", "smoke", "--runs", runs)
    assert "everything is up to date" in done.stdout


def test_every_run_directory_holds_what_the_contract_promises(home: Path) -> None:
    for variant in VARIANTS:
        folder = home / MODEL / variant / "0"
        record = json.loads((folder / "run.json").read_text())
        assert record["variant"] == variant
        assert all(s["status"] == "complete" for s in record["stages"].values())
        assert len(record["stages"]["evaluate"]["model"]["sha256"]) == 64
        assert record["stages"]["evaluate"]["data"]
        study.find("reasons").run.model_validate(
            yaml.safe_load((folder / "config.yaml").read_text())
        )
        table = records.metrics([folder / "metrics.json"])
        assert list(table.columns) == list(records.COLUMNS)
        assert set(table["variant"]) == {variant}
        assert set(table["dataset"]) == {"statements", "comments"}
        shares = table[table["unit"] == "share"].dropna(subset="value")
        assert (
            (shares[["value", "low", "high"]] >= 0) & (shares[["value", "low", "high"]] <= 1)
        ).all(axis=None)
        assert (shares["low"] <= shares["value"]).all()
        assert (shares["value"] <= shares["high"]).all()
        tuned = (folder / "adapter" / "adapter_model.safetensors").is_file()
        assert tuned == (variant != "pretrained")


def test_every_study_runs_without_a_network(runs: Path) -> None:
    """The shared runs were made so; here, that there was none indeed."""
    if not offline():
        pytest.skip("this system gives no network of one's own")
    reach = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    done = command(code=reach, within=offline())
    assert "Network is unreachable" in done.stderr
    assert {path.name for path in runs.iterdir()} >= {*config.studies()}


@pytest.mark.parametrize("name", config.studies())
def test_executed_notebooks_hold_figures_and_no_error(runs: Path, name: str) -> None:
    home = runs / name / "smoke"
    for path in home.rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        outputs = [o for c in cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o["output_type"] == "error"], path
        shown = [c for c in cells if "remove-stderr" not in c["metadata"].get("tags", [])]
        assert "Warning" not in json.dumps([c.get("outputs") for c in shown]), path
        if path.stem != "results":
            assert any("image/png" in o.get("data", {}) for o in outputs), path
    assert len(list(home.glob("*.ipynb"))) == 2


def test_every_figure_has_a_text_for_those_who_do_not_see_it() -> None:
    drawn = r"plots\.(?!style|show|mark|texts)\w+\("
    for path in (ROOT / "notebooks").glob("*/*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            # ``plots.svg`` and ``slider`` are given their texts, with the numbers that they show.
            told = re.search(r"\.(?:svg|slider)\(", source)
            if cell["cell_type"] == "code" and re.search(drawn, source) and not told:
                alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
                assert len(alt) > 20, (path, cell["id"])


@pytest.mark.parametrize(
    ("name", "variant"), [("reasons", "LR"), ("ambiguity", "sampled")], ids=lambda v: str(v)
)
def test_the_same_seed_gives_the_same_bytes(
    runs: Path, tmp_path: Path, name: str, variant: str
) -> None:
    done = command("run", name, "--scale", "smoke", "--runs", tmp_path, "--variant", variant)
    assert done.returncode == 0, done.stderr
    found = sorted(tmp_path.rglob("*.jsonl")) + sorted(tmp_path.rglob("metrics.json"))
    assert len(found) > 3
    for path in found:
        first = (runs / path.relative_to(tmp_path)).read_bytes()
        if path.name != "train_log.jsonl":  # it holds seconds
            assert path.read_bytes() == first, path


def test_only_what_depends_on_a_parameter_runs_again(runs: Path, tmp_path: Path) -> None:
    """Evaluation settings leave every adapter as it is, and the baselines too."""
    runs = shutil.copytree(runs, tmp_path / "runs")  # the other tests look at the runs as they are
    home = runs / "reasons" / "smoke"
    adapters = {p: p.stat().st_mtime_ns for p in home.rglob("adapter/*.safetensors")}
    base = next(home.glob("*/baselines/0/judge.json"))
    judge = base.stat().st_mtime_ns
    done = command(
        "run", "reasons", "--scale", "smoke", "--runs", runs, "--variant", "L",
        "--set", "evaluation.max_new_tokens=4",
    )  # fmt: skip
    assert "1 notebooks executed" in done.stdout, done.stdout + done.stderr
    assert adapters == {p: p.stat().st_mtime_ns for p in adapters}
    assert base.stat().st_mtime_ns == judge
    rows = records.read_rows(home / MODEL / "L" / "0" / "predictions.jsonl")
    assert max(len(r["generated"].encode()) for r in rows if r.get("generated")) <= 4 * 4


def test_publishing_keeps_decisions_and_drops_words(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for name in config.studies():
        texts = {*study.find(name).texts}
        for job in study.plan(name, (), "smoke", runs=runs):
            if job.stage.name != "evaluate":
                continue
            target = results.publish(job)
            for path in target.glob("*.json"):  # numbers stay numbers, however small
                kept = json.loads((job.where / path.name).read_text())
                assert path.name == "run.json" or json.loads(path.read_text()) == kept
            assert target == tmp_path / job.where.relative_to(runs)
            rows = records.read_rows(target / "predictions.jsonl")
            assert rows
            assert not texts & set().union(*rows)
            assert not list(target.rglob("*.safetensors"))
            again = results._metric_problems(target, job)
            assert again == ([], []), "every row follows from what is published"
    gone = study.job("reasons", "evaluate", "LR", "smoke", 7, runs=runs)
    with pytest.raises(UserError, match="ethalign run"):
        results.publish(gone)


def test_a_users_own_table_goes_through_by_parameters_alone(tmp_path: Path) -> None:
    lines = [
        f"Case {i}: I {'broke' if i % 2 else 'kept'} my word.,{'bad' if i % 2 else 'good'}"
        for i in range(30)
    ]
    for name, part in (("train", lines[:20]), ("test", lines[20:])):
        (tmp_path / f"{name}.csv").write_text("text,verdict\n" + "\n".join(part) + "\n")
    figure = "{row: Mine, variant: L, dataset: own, metric: accuracy, value: 0.5}"
    (tmp_path / "mine.yaml").write_text(f"figures:\n  - {figure}\n")
    done = command(
        "run", "reasons", "--scale", "smoke", "--runs", tmp_path / "runs",
        "--set", f"data.train={tmp_path}/train.csv", f"data.test={tmp_path}/test.csv",
        "data.columns.statement=text", "data.columns.label=verdict",
        "data.labels.good=ethical", "data.labels.bad=unethical", "data.cross=false",
        f"reported={tmp_path}/mine.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    home = tmp_path / "runs/reasons/smoke"
    table = records.metrics([home / MODEL / "L/0/metrics.json"])
    assert set(table["dataset"]) == {"own"}
    page = (home / "results.ipynb").read_text()
    assert "Mine" in page, "a figure of one's own stands in the comparison"
    assert "this run" in page
    assert "reference" in page


MISTAKES = [
    (["--set", "tuning.lr=fast"], "tuning.lr"),
    (["--set", "tuning.lrr=1"], "did you mean 'tuning.lr'"),
    (["--set", "model.id=smollm2-135m"], "did you mean 'smollm2-135m-instruct'"),
    (["--set", "data.train=none.csv"], "none.csv is missing"),
    (["--scale", "tinny"], "did you mean 'tiny'"),
    (["--variant", "LRR"], "did you mean 'LR'"),
    (["--set", "tuning.lr"], "key=value"),
    (["--profile", "slurmm"], "did you mean 'slurm'"),
    (["--scale", "paper-mistral", "--set", "seed=3"], "seed is not set by --set"),
    (["--runs", ""], "is no folder for runs"),
    (["--runs", "a{b}"], "is no folder for runs"),
    (["--cores", "-1"], "is not a number of processor cores"),
    (["--stage", "tune"], "did you mean"),
    (["--runs", "/dev/null/runs"], "could not be written"),
]


@pytest.mark.parametrize(("arguments", "hint"), MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_sentence(
    arguments: list[str], hint: str, tmp_path: Path
) -> None:
    done = command("run", "reasons", "--runs", tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.json*")), "nothing half-written is left"


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_request_to_end_leaves_no_process_behind(tmp_path: Path, kind: signal.Signals) -> None:
    call = [sys.executable, "-m", "ethalign.cli", "run", "reasons", "--scale", "smoke"]
    call += ["--runs", str(tmp_path)]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stderr is not None
        assert child.stderr.readline().split()[2] == ">", "a notebook has started"
        tree = psutil.Process(child.pid).children(recursive=True)
        assert tree
        child.send_signal(kind)
        said = child.stderr.read()
    assert kind == signal.SIGKILL or (child.returncode == 130 and "goes on from here" in said)
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive


def test_an_unknown_study_names_the_nearest(tmp_path: Path) -> None:
    done = command("run", "reason", "--runs", tmp_path)
    assert done.returncode == 2
    assert "did you mean 'reasons'" in done.stderr


def test_a_truncated_mirror_stops_the_run_before_it_starts(tmp_path: Path) -> None:
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


def test_two_runs_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    with records.exclusive(tmp_path / ".lock", tmp_path):
        done = command("run", "reasons", "--scale", "smoke", "--runs", tmp_path)
    assert done.returncode == 2
    assert "another run" in done.stderr


Write = Callable[[str], Path]


@pytest.fixture
def notebook(tmp_path: Path) -> Write:
    """Write a small notebook with a parameters cell and the given code."""

    def write(code: str) -> Path:
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


def test_an_unknown_notebook_parameter_is_refused_before_execution(
    notebook: Write, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="unknown notebook parameter 'y'"):
        pipeline.execute(notebook("print(x)"), tmp_path / "out.ipynb", {"y": 2})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failed_notebook_is_kept_and_named(notebook: Write, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ZeroDivisionError.*out\.failed\.ipynb"):
        pipeline.execute(notebook("x / 0"), tmp_path / "out.ipynb", {"x": 2})
    assert "ZeroDivisionError" in (tmp_path / "out.failed.ipynb").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_a_mistake_inside_a_notebook_stays_one_sentence(notebook: Write, tmp_path: Path) -> None:
    code = "from ethalign.config import UserError\nraise UserError('say it again')"
    with pytest.raises(UserError, match=r"^say it again$"):
        pipeline.execute(notebook(code), tmp_path / "out.ipynb", {})


def test_a_notebook_needs_no_port_that_another_one_could_take(
    notebook: Write, tmp_path: Path
) -> None:
    """Where several run at once: ports are chosen before a kernel opens them."""
    alone = ("unshare", "-rn")  # without even the network inside the machine
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("this system does not let everybody be without a network")
    out = tmp_path / "out.ipynb"
    code = "import sys\nfrom pathlib import Path\nfrom ethalign import pipeline\n"
    code += "pipeline.execute(*map(Path, sys.argv[1:]), {})"
    call = [*alone, sys.executable, "-c", code, str(notebook("print(6 * x)")), str(out)]
    ran = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "6\\n" in out.read_text()


def test_a_kernel_that_does_not_start_says_why(
    notebook: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = "import sys\nif 'ipykernel_launcher' in sys.orig_argv:\n    sys.exit('no room here')\n"
    (tmp_path / "sitecustomize.py").write_text(say)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match=r"(?s)source\.ipynb.*no room here"):
        pipeline.execute(notebook("print(x)"), tmp_path / "out.ipynb", {})


def test_a_kernel_that_is_killed_is_said_to_be(notebook: Write, tmp_path: Path) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(RuntimeError, match=r"source\.ipynb.*memory"):
        pipeline.execute(notebook(code), tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_mended_prose_reaches_the_book_without_execution(notebook: Write, tmp_path: Path) -> None:
    source = notebook("print(x)")
    before = pipeline.code_cells(source)
    pipeline.execute(source, tmp_path / "done.ipynb", {"x": 3})
    source.write_text(source.read_text().replace("Old words.", "New words."))
    more = json.loads(source.read_text())
    cell = {"cell_type": "markdown", "id": "more", "metadata": {}, "source": "More words."}
    source.write_text(json.dumps({**more, "cells": [*more["cells"], cell]}))
    assert pipeline.code_cells(source) == before
    pipeline.refresh_prose(tmp_path / "done.ipynb", source, tmp_path / "page.ipynb")
    page = (tmp_path / "page.ipynb").read_text()
    assert "New words." in page
    assert "More words." in page, "a paragraph that was written since"
    assert "injected-parameters" in page
    assert '"3\\n"' in page, "the output is kept"


PREDICT = """
import sys, time
from pathlib import Path
from ethalign import config, models, records
from ethalign.reasons import data, evaluate
limits = {"data.limit_test": 40, "evaluation.batch_size": 2}
run = config.resolve("reasons", "LR", "smoke", overrides=limits)
loaded = models.load(run.model)
keep = records.append_rows
def slow(path, rows):
    keep(path, rows)
    time.sleep(float(sys.argv[2]))
records.append_rows = slow
evaluate.ask(run, loaded, data.tests(run), Path(sys.argv[1]), 8, 0.0)
"""


def test_kill_9_in_the_middle_of_evaluation_loses_and_repeats_nothing(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm.jsonl", tmp_path / "killed.jsonl"

    def start(path: Path, pause: int) -> subprocess.Popen[bytes]:
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


def test_committed_results_match_code_data_and_parameters(mirror: Path) -> None:
    done = command("verify")
    assert done.stdout.count(": matches") > 10, "reference results are committed"
    assert done.returncode == 0, done.stdout + done.stderr


def test_parameter_table_lists_every_parameter_and_who_reads_it() -> None:
    table = reference.parameter_table()
    for name in config.studies():
        for key, *_ in config.parameters(study.find(name).run):
            assert f"`{key}`" in table or key in ("study", "variant", "scale", "seed")
    line = next(row for row in table.splitlines() if "`honesty.tau`" in row)
    assert "honesty: finetune" in line


def test_requirements_are_in_step() -> None:
    """pyproject.toml, constraints.txt and environment.yml name the same packages and versions."""
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


def test_the_lock_has_a_hash_of_every_package() -> None:
    """The same versions as constraints.txt, each with the files that may be installed."""
    pins = dict(re.findall(r"(?m)^([a-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "constraints.lock").read_text())
    locked = {}
    for entry in filter(None, text.replace("\\\n", "").splitlines()):
        name, version, *hashes = re.split(r"==| +", entry.strip())
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), name
        locked[canonicalize_name(name)] = version
    unpinned = {"latex2mathml", "setuptools", "wheel"}  # what others bring to build, and unused
    assert {n: v for n, v in locked.items() if n not in unpinned}.items() <= pins.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    missing = {canonicalize_name(Requirement(text).name) for text in wanted} - locked.keys()
    assert not missing, "make lock brings constraints.lock up to date"


def test_two_jobs_never_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at once as there are cards, each with one of its own; the next one waits."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Fake (UUID: a)'\necho 'GPU 1: Fake (UUID: b)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pipeline.cards() == [], "hidden from us"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert pipeline.cards() == ["0", "1"]
    program = (
        "import os, sys\nfrom ethalign import pipeline\nwith pipeline.card():\n"
        "    print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n    sys.stdin.read()\n"
    )

    def start(**given: str) -> subprocess.Popen[str]:
        call = [sys.executable, "-c", program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), **given}
        pipe = subprocess.PIPE
        return subprocess.Popen(call, env=environment, stdin=pipe, stdout=pipe, text=True)

    with contextlib.ExitStack() as jobs:
        first, second = (jobs.enter_context(start()) for _ in range(2))
        assert first.stdout
        assert second.stdout
        taken = [first.stdout.readline().strip(), second.stdout.readline().strip()]
        assert sorted(taken) == ["0", "1"]
        third = jobs.enter_context(start())
        assert third.stdout
        assert not select.select([third.stdout], [], [], 2)[0], "no card is free"
        fourth = jobs.enter_context(start(SLURM_JOB_ID="7", CUDA_VISIBLE_DEVICES="0"))
        assert fourth.communicate(timeout=60)[0].strip() == "0", "the scheduler has given it one"
        second.communicate()
        assert third.stdout.readline().strip() == taken[1]
        first.communicate()
        third.communicate()


@pytest.mark.parametrize(("found", "limit"), [([], None), (["0", "1", "2"], "gpu=3")])
def test_gpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: list[str], limit: str | None
) -> None:
    asked: list[list[str]] = []

    def started(call: list[str], **_: object) -> None:
        asked.append(call)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "cards", lambda: found)
    monkeypatch.setattr("ethalign.warm.serving", lambda *_: contextlib.nullcontext({}))
    monkeypatch.setattr("subprocess.Popen", started)
    with pytest.raises(KeyboardInterrupt):
        pipeline._snakemake([], tmp_path / "settings.yaml", 2, None)
    (call,) = asked
    assert (limit in call) if limit else ("--resources" not in call), call
