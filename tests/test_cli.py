from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ethalign import claims, cli, study
from ethalign.config import ROOT

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
