from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ethalign import claims, cli, models, sources, study
from ethalign.config import ROOT, UserError

COMMANDS = [
    "run",
    "sweep",
    "fetch",
    "datasets",
    "models",
    "book",
    "explore",
    "compare",
    "claims",
    "verify",
    "publish",
    "doctor",
    "notebook",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli.app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"Example: ethalign {name}" in " ".join(shown.output.split())


@pytest.mark.parametrize("name", ["export", "import"])
def test_the_rating_commands_have_examples_too(name: str) -> None:
    shown = CliRunner().invoke(cli.app, ["rate", name, "--help"])
    assert f"Example: ethalign rate {name}" in " ".join(shown.output.split())


def test_datasets_name_licence_and_address() -> None:
    shown = CliRunner().invoke(cli.app, ["datasets"]).output
    for owner in study.everything():
        for name, source in owner.sources.items():
            assert name in shown
            assert source.licence in shown
            assert source.url in shown


def test_models_list_the_packaged_ones() -> None:
    shown = CliRunner().invoke(cli.app, ["models"]).output
    assert "smollm2-135m-instruct" in shown
    assert "Apache-2.0" in shown


def test_claims_gives_every_verdict_and_leaves_a_record_that_is_current() -> None:
    path = ROOT / "results" / "reasons" / "small" / "claims.json"
    before = path.read_bytes()
    shown = CliRunner().invoke(cli.app, ["claims", "reasons"])
    assert shown.exit_code == 0
    for row in claims.recorded("reasons").to_dict("records"):
        name = [row["id"], row["model"]]
        line = next(x for x in shown.output.splitlines() if x.split()[:2] == name)
        assert line.endswith(f" {row['verdict']}")
    assert path.read_bytes() == before, "`ethalign claims` was run after the last change"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("claims honesty --scale tiny", "'tiny'; known: small"),
        ("compare reasons --scale nope", "unknown scale 'nope'"),
        ("compare reasons --stratum foo", "known: all, clean, contaminated"),
        ("compare reasons --runs nowhere", "`ethalign run reasons --scale small --runs nowhere`"),
        ("compare reasons --reported nope.yaml", "nope.yaml is missing."),
        ("explore reasons --scale nope", "unknown scale 'nope'"),
        ("run reasons --profile nope --dry-run", "known: default, slurm"),
        ("run reasons --stage ceiling", "known: explore, baselines"),
        ("run reasons --variant baselines --stage finetune", "baselines has no stage finetune"),
        ("run reasons --set model.id=nothing", "known: "),
        ("sweep nope.yaml", "nope.yaml is missing."),
        ("fetch --data nope", "unknown data set 'nope'"),
        ("rate import a.csv", "--key"),
        ("book --set tuning.epoch=1", "did you mean 'tuning.epochs'?"),
        ("book --scale nope", "nope"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(
    call: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where there is no book yet, and without a trace in the committed results."""
    monkeypatch.setattr("ethalign.book.build", None)
    before = sorted((ROOT / "results").rglob("*"))
    given = CliRunner().invoke(cli.app, [*call.split(), *_own(call, tmp_path)])
    assert isinstance(given.exception, UserError)
    assert says in str(given.exception)
    assert sorted((ROOT / "results").rglob("*")) == before


def _own(call: str, folder: Path) -> list[str]:
    """Runs of their own, for commands that would make some."""
    return ["--runs", str(folder)] if call.startswith("run ") else []


def test_data_sets_say_how_each_can_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path))
    got: list[str] = []

    def get(source: sources.Source) -> str:
        got.append(source.mirror)
        return source.mirror

    monkeypatch.setattr(models, "packaged", lambda name: name)
    monkeypatch.setattr(sources, "fetch", get)
    told = CliRunner().invoke(cli.app, ["datasets"]).output
    for owner in study.everything():
        for name, source in owner.sources.items():
            line = next(x for x in told.splitlines() if x.startswith(f"{name} "))
            way = re.search(r"\((ethalign fetch[^)]*)\)", line)
            assert way
            got.clear()
            done = CliRunner().invoke(cli.app, way[1].split()[1:])
            assert done.exit_code == 0
            assert source.mirror in got
    assert "triviaqa/triviaqa-unfiltered.tar.gz" not in _fetched(got, [])


def _fetched(got: list[str], options: list[str]) -> list[str]:
    got.clear()
    CliRunner().invoke(cli.app, ["fetch", *options])
    return got


def test_compare_shows_every_printed_figure() -> None:
    shown = CliRunner().invoke(cli.app, ["compare", "reasons"])
    assert shown.exit_code == 0
    assert shown.output.count("Llama-2 7B, L+R") == 4
    assert "89.4" in shown.output


def test_doctor_names_every_scale() -> None:
    shown = CliRunner().invoke(cli.app, ["doctor"]).output
    for scale in ("tiny:", "scale small:", "scale paper:"):
        assert scale in shown


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import ethalign", ["torch", "pandas", "yaml"]),
        ("import ethalign.cli", ["torch", "transformers", "pandas"]),
        (
            "from ethalign import cli; cli.app(['--help'], standalone_mode=False)",
            ["torch", "transformers", "pandas", "snakemake", "jupyter_client"],
        ),
    ],
)
def test_what_comes_at_once_imports_little(code: str, modules: list[str]) -> None:
    check = f"{code}; import sys; assert not set({modules}) & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
