"""What is done again after an edit: one function decides it, shown on copies of the project."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import command

from ethalign import code, config
from ethalign.config import ROOT

STATES = """
import json, sys
from ethalign import config, study
jobs = [j for n in config.studies() for j in study.plan(n, (), 'smoke', runs=sys.argv[1])]
print(json.dumps({f"{j.study.name}/{j.stage.name}/{j.run.variant}": j.state()
                  for j in jobs if j.stage.compute}))
"""
LEFT_OUT = {"runs", "results", "_build", ".git", ".venv", ".snakemake", "_runs", "__pycache__"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in another folder."""
    target = tmp_path_factory.mktemp("copy") / "project"
    return shutil.copytree(ROOT, target, ignore=lambda _, names: LEFT_OUT & {*names})


@pytest.fixture
def edit(copy: Path) -> Iterator[Callable[..., None]]:
    """Changes files of the copy, and puts them back afterwards."""
    kept: dict[Path, str] = {}

    def change(name: str, old: str, new: str = "") -> None:
        path = copy / name
        kept.setdefault(path, path.read_text())
        text = path.read_text()
        changed = text.replace(old, new) if new else _with_a_statement(text, old)
        assert changed != text, f"{old!r} is not in {name}"
        path.write_text(changed)

    yield change
    for path, text in kept.items():
        path.write_text(text)


def _with_a_statement(text: str, function: str) -> str:
    """The program with one more statement at the beginning of a function's body."""
    node = next(
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.FunctionDef) and n.name == function
    )
    first = node.body[1] if ast.get_docstring(node) else node.body[0]
    lines = text.splitlines(keepends=True)
    lines.insert(first.lineno - 1, " " * first.col_offset + "_edited = 1\n")
    return "".join(lines)


def told(project: Path, program: str) -> dict[str, str]:
    """What a program prints that runs in a copy of the project."""
    done = command(code=program, cwd=project)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def states(project: Path, runs: Path) -> dict[str, str]:
    return told(project, STATES.replace("sys.argv[1]", repr(str(runs))))


@pytest.fixture(scope="module")
def kept(copy: Path, runs: Path) -> set[str]:
    """The jobs of the shared runs, all complete before the first edit."""
    found = states(copy, runs)
    assert set(found.values()) == {"keep"}, found
    return {*found}


TUNED: tuple[str, ...] = (
    *("*/finetune/*", "reasons/evaluate/L*", "reasons/evaluate/R*", "*/evaluate/shuffled"),
    *("ambiguity/evaluate/[hsv]*", "honesty/evaluate/[acfm]*"),
)
SCORED = ("*/evaluate/*",)
# The votes choose the best epoch by scoring held-out rows.
JUDGED = ("ambiguity/finetune/*",)
EDITS: list[tuple[str, str, str, str, tuple[str, ...]]] = [
    ("a colour", "ethalign/plots.py", "#0173b2", "#0173b3", ()),
    ("a figure", "ethalign/reasons/plots.py", "log_odds", "", ()),
    ("a table", "ethalign/tables.py", "comparison", "", ()),
    ("a caption", "ethalign/records.py", "caption", "", ()),
    ("a claim", "ethalign/claims.py", "assess", "", ()),
    ("an error message", "ethalign/tuning.py", "no training rows", "not one row", ()),
    ("a meaning", "ethalign/config.py", "passes over the rows", "how often", ()),
    ("prose", "ethalign/scoring.py", "Log-probabilities of answer choices", "Choices", ()),
    ("another study", "ethalign/honesty/scores.py", "normalise", "", ("honesty/*",)),
    ("the training loop", "ethalign/tuning.py", "zero_grad()", "zero_grad(True)", TUNED),
    ("scoring", "ethalign/scoring.py", "choice_logprobs", "", (*SCORED, *JUDGED)),
    (
        "a template that is only asked with",
        "ethalign/honesty/prompts.py",
        "Here is something I would like to know.",
        "I would like to know something.",
        ("honesty/evaluate/*",),
    ),
    (
        "a template that is also trained with",
        "ethalign/reasons/prompts.py",
        "Is this ethical or unethical?",
        "Ethical or unethical?",
        ("reasons/finetune/*", "reasons/evaluate/*"),
    ),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "anew"), [e[1:] for e in EDITS], ids=[e[0] for e in EDITS]
)
def test_an_edit_makes_anew_what_follows_from_it_and_nothing_else(
    copy: Path,
    runs: Path,
    kept: set[str],
    edit: Callable[..., None],
    name: str,
    old: str,
    new: str,
    anew: tuple[str, ...],
) -> None:
    edit(name, old, new)
    after = states(copy, runs)
    assert {*after} == kept
    changed = {job for job, state in after.items() if state == "anew"}
    assert changed == {job for job in after if any(fnmatch(job, pattern) for pattern in anew)}


def test_a_new_measure_is_measured_and_asks_no_model_again(
    copy: Path, runs: Path, edit: Callable[..., None]
) -> None:
    edit("ethalign/metrics.py", "crossed")
    found = states(copy, runs)
    assert "anew" not in found.values()
    measured = {job for job, state in found.items() if state == "measure"}
    assert {job for job in found if fnmatch(job, "reasons/evaluate/*")} <= measured


@pytest.mark.slow
def test_what_really_runs_after_an_edit(
    copy: Path, tmp_path: Path, edit: Callable[..., None]
) -> None:
    """Notebooks executed, and files that a stage wrote, counted after each edit."""
    call = ("run", "reasons", "--scale", "smoke", "--variant", "L", "--runs", tmp_path)

    def run() -> tuple[int, set[str]]:
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        done = command(*call, cwd=copy)
        assert done.returncode == 0, done.stderr
        count = done.stdout.split()[0]
        written = {
            "/".join(p.relative_to(tmp_path).parts[-3:])
            for p in tmp_path.rglob("*")
            if p.is_file() and p.suffix in (".json", ".jsonl", ".safetensors")
            if before.get(p) != p.read_bytes()
        }
        return (int(count) if count.isdigit() else 0), written

    assert run()[0] == 3
    assert run() == (0, set())
    edit("ethalign/reasons/plots.py", "log_odds")
    assert run() == (1, set()), "the page is drawn again, and nothing is computed"
    edit("ethalign/plots.py", "losses")
    assert run() == (1, set())
    edit("ethalign/plots.py", "style")
    assert run() == (3, set()), "pages that follow each other are drawn again in one go"
    assert run() == (0, set())
    edit("ethalign/tuning.py", "zero_grad()", "zero_grad(True)")
    count, written = run()
    assert count == 2, "tuning and evaluation"
    assert "L/0/train_log.jsonl" in written
    assert not [name for name in written if name.startswith("baselines")]
    log = (tmp_path / "reasons/smoke/random-tiny/L/0/train_log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == list(range(1, len(steps) + 1)), "the log belongs to one attempt"


def test_reach_follows_names_through_modules_and_leaves_prose_out() -> None:
    from ethalign.reasons import evaluate

    found = code.reach(evaluate.compute)
    assert {"ethalign.reasons.evaluate", "ethalign.reasons.prompts", "ethalign.scoring"} <= {
        *found
    }
    assert not {"ethalign.plots", "ethalign.reasons.plots", "ethalign.tables"} & {*found}
    assert not [name for name in found if name.split(".")[1] in ("ambiguity", "honesty")]


def test_reach_of_a_program_counts_its_own_code_and_what_it_names() -> None:
    program = "from ethalign import metrics\nmetrics.share(1, 2)\n"
    first = code.reach_of_text(program)
    assert {*first} == {"", "ethalign.metrics"}
    assert code.reach_of_text(f"# a remark\n{program}") == first
    other = code.reach_of_text(program.replace("share", "holm"))
    assert other["ethalign.metrics"] != first["ethalign.metrics"]


@pytest.mark.parametrize("name", config.studies())
def test_compute_reaches_no_figure(name: str) -> None:
    from ethalign import study

    for stage in study.find(name).stages:
        if stage.compute:
            reached = code.reach(stage.compute)
            assert not [m for m in reached if m.endswith(("plots", "tables", "claims"))]


BASES = """
import json
from ethalign import claims, config, results
homes = {n: results.RESULTS / n / "small" for n in config.studies()}
print(json.dumps({n: claims._basis(n, home) for n, home in homes.items()}))
"""


@pytest.fixture(scope="module")
def bases(copy: Path) -> dict[str, str]:
    return told(copy, BASES)


@pytest.mark.parametrize(
    ("name", "old", "studies"),
    [
        ("ethalign/claims.py", "decide", {"reasons", "ambiguity", "honesty"}),
        ("ethalign/claims.py", "tested", {"reasons", "ambiguity", "honesty"}),
        ("ethalign/metrics.py", "crossed", {"reasons", "ambiguity", "honesty"}),
        ("ethalign/metrics.py", "holm", {"reasons", "ambiguity", "honesty"}),
        ("ethalign/honesty/claims.py", "contrast", {"honesty"}),
        ("ethalign/tables.py", "claims", set[str]()),
    ],
)
def test_verdicts_follow_from_the_code_that_decides_them(
    copy: Path,
    bases: dict[str, str],
    edit: Callable[..., None],
    name: str,
    old: str,
    studies: set[str],
) -> None:
    """Of a module that both the test and the study's contrast reach, either part counts."""
    edit(name, old)
    after = told(copy, BASES)
    assert {key for key in after if after[key] != bases[key]} == studies
