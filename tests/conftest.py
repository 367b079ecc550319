"""Shared fixtures. Everything here runs on a CPU, without a network, on random tiny models."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pydoc
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pages
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from ethalign import config, models, scoring, study
from ethalign.config import ROOT

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two layers of 32 are too small to share; threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Files that take minutes. They are begun first, so that no worker has one alone at the end.
LONG = ("built", "pipeline", "notebooks", "study", "dependence", "markers", "endpoint")

needs_chromium = pytest.mark.skipif(
    pages.chromium() is None, reason=f"no Chromium here: none of {', '.join(pages.CHROMIUM)}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, all others in their order."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


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
def padding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every batch that a model reads from now on, how many places are padding."""
    found: list[int] = []
    pad = scoring.left_pad

    def listen(rows: Sequence[Sequence[int]], *more: Any) -> Any:
        found.append(sum(max(map(len, rows)) - len(row) for row in rows))
        return pad(rows, *more)

    monkeypatch.setattr(scoring, "left_pad", listen)
    return found


@pytest.fixture
def fresh_tiny() -> models.Loaded:
    """The same, not shared: for tests that train it."""
    return models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))


def command(
    *arguments: str | Path,
    cwd: Path = ROOT,
    code: str = "",
    within: Sequence[str] = (),
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """The command line (or a program) of the project in ``cwd``; its result as text.

    ``within`` is a command that starts it, such as ``offline``.
    """
    call = ["-c", code] if code else ["-m", "ethalign.cli", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(cwd), **environment}
    call = [*within, sys.executable, *call]
    return subprocess.run(call, capture_output=True, text=True, env=env, cwd=cwd, check=False)


@functools.cache
def offline() -> tuple[str, ...]:
    """A command that starts another one where there is no network but the machine itself.

    Empty where the system does not let everybody have that.
    """
    call = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')
    with contextlib.suppress(OSError):
        if not subprocess.run([*call, "true"], capture_output=True, check=False).returncode:
            return call
    return ()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every study has run; parallel workers share it, and none alters it.

    What is packaged is fetched first; the runs themselves have no network where that can be. All
    studies are one graph of jobs, as for the book, so that no core waits for the end of a study.
    """
    # The temporary folder of a worker lies in that of all; without workers it is the one of all.
    home = tmp_path_factory.getbasetemp()
    home = home.parent if os.environ.get("PYTEST_XDIST_WORKER") else home
    folder, done = home / "shared-runs", home / "shared-runs.done"
    with FileLock(home / "shared-runs.lock"):
        if not done.exists():
            models.packaged("minilm-l6")
            how = f"config.studies(), scale='smoke', runs={str(folder)!r}"
            call = f"from ethalign import config, pipeline; print(pipeline.run({how}))"
            ran = command(code=call, within=offline())
            assert ran.returncode == 0, ran.stdout + ran.stderr
            planned = [study.plan(name, (), "smoke") for name in config.studies()]
            assert int(ran.stdout.split()[-1]) == sum(map(len, planned))
            done.touch()
    return folder


def cells(study: str, page: str, upto: str, runs: Path, **parameters: Any) -> dict[str, Any]:
    """What the code cells of a notebook leave behind, up to the one of that id, at scale smoke."""
    import matplotlib as mpl

    mpl.use("Agg")
    known: dict[str, Any] = {"display": lambda *shown: None}
    content = json.loads((ROOT / "notebooks" / study / f"{page}.ipynb").read_text())
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), known)
        if "parameters" in cell["metadata"].get("tags", []):
            known |= {"scale": "smoke", "runs": str(runs), **parameters}
        if cell["id"] == upto:
            return known
    raise LookupError(upto)


def fooled(name: str, doctored: Callable[[Any], Any], *page: Any, **given: Any) -> None:
    """The lesson on a page fails where a function of the library gives something else."""
    right: Any = pydoc.locate(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name, lambda *those, **how: doctored(right(*those, **how)))
        with pytest.raises(AssertionError):
            cells(*page, **given)
