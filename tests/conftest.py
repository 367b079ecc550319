"""Shared fixtures. Everything here runs on a CPU, without a network, on random tiny models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from ethalign import config, models, study
from ethalign.config import ROOT

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two layers of 32 are too small to share; threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder with the real files."""
    folder = os.environ.get("ETHALIGN_MIRROR")
    if not folder:
        pytest.skip("ETHALIGN_MIRROR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny() -> models.Loaded:
    """The random two-layer model and its byte tokenizer."""
    return models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))


@pytest.fixture
def fresh_tiny() -> models.Loaded:
    """The same, not shared: for tests that train it."""
    return models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))


def command(
    *arguments: str | Path, cwd: Path = ROOT, code: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command line (or a program) of the project in ``cwd``; its result as text."""
    call = ["-c", code] if code else ["-m", "ethalign.cli", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(cwd), **environment}
    return subprocess.run(
        [sys.executable, *call], capture_output=True, text=True, env=env, cwd=cwd, check=False
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every study has run; parallel workers share it, and none alters it."""
    # The temporary folder of a worker lies in that of all; without workers it is the one of all.
    home = tmp_path_factory.getbasetemp()
    home = home.parent if os.environ.get("PYTEST_XDIST_WORKER") else home
    folder, done = home / "shared-runs", home / "shared-runs.done"
    with FileLock(home / "shared-runs.lock"):
        for name in [] if done.exists() else config.studies():
            ran = command("run", name, "--scale", "smoke", "--runs", folder)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            assert f"{len(study.plan(name, (), 'smoke'))} notebooks executed" in ran.stdout
        done.touch()
    return folder
