"""Every notebook works where people open it: in its own folder, or from anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command

from ethalign import config, study
from ethalign.config import ROOT, UserError

STAGES = [(name, stage.name) for name in config.studies() for stage in study.find(name).stages]


def _at_smoke(source: Path, target: Path, runs: Path) -> None:
    """The notebook with the smallest scale in its parameters, as somebody would type it."""
    content = json.loads(source.read_text())
    cell = next(c for c in content["cells"] if "parameters" in c["metadata"].get("tags", []))
    text = "".join(cell["source"])
    changed = text.replace('"tiny"', '"smoke"').replace(
        'runs: str = "runs"', f"runs: str = {str(runs)!r}"
    )
    assert changed.count("smoke") == 1
    cell["source"] = changed
    target.write_text(json.dumps(content))


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_notebook_runs_in_its_own_folder(
    name: str, stage: str, runs: Path, tmp_path: Path
) -> None:
    """By nbconvert, which starts in the notebook's folder as JupyterLab does."""
    folder = tmp_path / "notebooks" / name
    folder.mkdir(parents=True)
    mine = shutil.copytree(runs, tmp_path / "runs")
    _at_smoke(ROOT / "notebooks" / name / f"{stage}.ipynb", folder / f"{stage}.ipynb", mine)
    call = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace"]
    done = subprocess.run(
        [*call, f"{stage}.ipynb"], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in folder.iterdir()] == [f"{stage}.ipynb"], "nothing is left beside it"
    cells = json.loads((folder / f"{stage}.ipynb").read_text())["cells"]
    assert any(c.get("outputs") for c in cells)


def test_what_is_missing_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    notebook = ROOT / "notebooks" / "reasons" / "evaluate.ipynb"
    program = (
        "import papermill, sys\n"
        f"values = dict(variant='L', scale='smoke', runs={str(tmp_path / 'runs')!r})\n"
        f"papermill.execute_notebook({str(notebook)!r}, {str(tmp_path / 'out.ipynb')!r},"
        " parameters=values, kernel_name='python3', progress_bar=False)\n"
    )
    done = command(code=program)
    assert done.returncode
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    errors = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert len(errors) == 1
    assert "is missing; make it with `ethalign run reasons --stage" in errors[0]["evalue"]
    assert errors[0]["traceback"] == [f"ethalign: {errors[0]['evalue']}"], (
        "a sentence, no traceback"
    )


def test_with_inputs_what_is_missing_is_made_on_the_spot(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    values = ["-p", "variant", "L", "-p", "scale", "smoke", "-p", "runs", str(tmp_path / "runs")]
    call = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar"]
    notebook = str(ROOT / "notebooks" / "reasons" / "evaluate.ipynb")
    done = subprocess.run(
        [*call, notebook, str(out), *values, "-p", "with_inputs", "True"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    home = tmp_path / "runs/reasons/smoke"
    assert (home / "random-tiny/L/0/adapter/adapter_model.safetensors").is_file()
    assert (home / "random-tiny/L/0/metrics.json").is_file()
    assert list(home.glob("*/baselines/0/metrics.json"))


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_notebook_is_a_story_with_typed_parameters(name: str, stage: str) -> None:
    content = json.loads((ROOT / "notebooks" / name / f"{stage}.ipynb").read_text())
    codes = [c for c in content["cells"] if c["cell_type"] == "code"]
    assert not any(c["outputs"] or c["execution_count"] for c in codes)
    marked = [c for c in codes if "parameters" in c["metadata"].get("tags", [])]
    assert len(marked) == 1
    for line in "".join(marked[0]["source"]).splitlines():
        parameter, _, about = line.partition("#")
        assert ":" in parameter, f"{line}: no type"
        assert about.strip(), f"{line}: no meaning"


def test_no_page_takes_the_model_that_the_alphabet_puts_first() -> None:
    """Where one model stands for all it is the smallest, as ``records.of_runs`` has it."""
    paths = sorted((ROOT / "notebooks").glob("*/*.ipynb"))
    assert {path.stem for path in paths} > {"findings", "results", "explore"}
    for path in paths:
        for cell in json.loads(path.read_text())["cells"]:
            assert cell["cell_type"] != "code" or ".glob(" not in "".join(cell["source"]), path


NOTHING = {
    "reasons": (("L", "LR"), ("evaluation.generate=false", "data.cross=false")),
    "ambiguity": (("zero-shot", "soft"), ("votes.swap=false",)),
    "honesty": (
        ("unaligned", "absolute"),
        tuple(f"honesty.{key}=0" for key in ("form", "requests", "judged", "own_questions")),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTHING)
def test_every_page_stands_what_a_run_may_leave_out(name: str, tmp_path: Path) -> None:
    variants, settings = NOTHING[name]
    call = ["run", name, "--scale", "smoke", "--runs", str(tmp_path)]
    for variant in variants:
        call += ["--variant", variant]
    done = command(*call, "--set", *settings)
    assert done.returncode == 0, done.stderr
    pages = [p for p in tmp_path.rglob("*.ipynb") if not p.name.endswith(".failed.ipynb")]
    assert {p.stem for p in pages} >= {"evaluate"}


def test_a_label_behind_a_reason_needs_the_reason() -> None:
    off = {"evaluation.generate": False}
    owner = study.find("reasons")
    with pytest.raises(UserError, match="scored behind the model's own"):
        owner.preflight(config.resolve("reasons", "R-then-L", "smoke", overrides=off))
    owner.preflight(config.resolve("reasons", "LR", "smoke", overrides=off))
