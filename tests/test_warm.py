"""Processes that begin with everything imported behave as those that begin with nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ethalign import warm

PROGRAM = """
import os, sys, time
print(os.getppid(), os.getcwd(), os.environ.get("WORD"), "colorsys" in sys.modules, sys.argv[1:])
print("a remark", file=sys.stderr, flush=True)
if sys.argv[1] == "wait":
    print(os.getpid(), flush=True)
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a server that has imported one module, and knows the program."""
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(tmp_path), str(Path(warm.__file__).parents[1])])
    plain = {**os.environ, "PYTHONPATH": paths}
    with (tmp_path / "log").open("w") as log:
        with warm.serving(plain, tmp_path, log, ["colorsys"]) as environment:
            yield environment
        path = Path(environment[warm.SOCKET])
        assert not path.parent.exists(), "nothing is left of it"


def alone(environment: dict[str, str]) -> dict[str, str]:
    """The same without the server, for the plain command."""
    return {key: value for key, value in environment.items() if key != warm.SOCKET}


def start(
    environment: dict[str, str], word: str, folder: Path, interrupts: Any = signal.SIG_DFL
) -> subprocess.Popen[str]:
    """The module; ``interrupts`` as whoever started the tests may have set them otherwise."""
    call = [sys.executable, "-m", "ethalign.warm", "program", word]
    return subprocess.Popen(
        call,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )


def test_a_fork_is_the_module_with_all_that_its_caller_gives_it(
    served: dict[str, str], tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    if "linux" not in sys.platform:
        pytest.skip("there are no forks here")
    for code in (0, 3):
        out, error = start({**served, "WORD": "hoc"}, str(code), place).communicate()
        parent, *rest = out.split(" ", 1)
        assert rest == [f"{place} hoc True ['{code}']\n"]
        assert error == "a remark\n"
        assert psutil.Process(int(parent)).cmdline()[2:4] == ["ethalign.warm", "--serve"]
    child = start(served, "3", place)
    child.communicate()
    assert child.returncode == 3


def test_without_a_server_it_is_the_plain_command(served: dict[str, str], tmp_path: Path) -> None:
    for gone in ({}, {warm.SOCKET: str(tmp_path / "none")}):
        child = start(alone(served) | gone, "4", tmp_path)
        out, _ = child.communicate()
        assert out.split()[0] == str(os.getpid())
        assert "False ['4']" in out
        assert child.returncode == 4


def test_a_kernel_is_a_fork_only_where_there_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is the plain command, which has no process of its own between."""
    for socket, forked in (("", False), ("somewhere", True)):
        monkeypatch.delenv(warm.SOCKET, raising=False)
        if socket:
            monkeypatch.setenv(warm.SOCKET, socket)
        with warm.kernels() as (options, _):
            kernel = options["kernel_manager_class"](kernel_name="python3")
            assert ("ethalign.warm" in kernel.format_kernel_cmd()) == forked


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_caller_ends_the_fork_and_both_as_the_plain_command(
    served: dict[str, str], tmp_path: Path, kind: signal.Signals
) -> None:
    for environment in (alone(served), served):
        child = start(environment, "wait", tmp_path)
        assert child.stdout is not None
        child.stdout.readline()
        number = int(child.stdout.readline())
        assert (number == child.pid) == (warm.SOCKET not in environment)
        fork = psutil.Process(number)
        child.send_signal(kind)
        _, error = child.communicate(timeout=20)
        assert child.returncode == -kind
        assert ("KeyboardInterrupt" in error) == (kind == signal.SIGINT)
        psutil.wait_procs([fork], timeout=20)
        assert not fork.is_running()


def test_what_hears_no_interrupt_hears_none_in_a_fork(
    served: dict[str, str], tmp_path: Path
) -> None:
    """A shell without job control starts what stands before an ampersand so."""
    for environment in (alone(served), served):
        child = start(environment, "wait", tmp_path, signal.SIG_IGN)
        assert child.stdout is not None
        for _ in range(2):
            child.stdout.readline()
        child.send_signal(signal.SIGINT)
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        _, error = child.communicate(timeout=20)
        assert child.returncode == -signal.SIGTERM
        assert "KeyboardInterrupt" not in error


def test_the_fork_of_a_process_that_died_does_not_outlive_it(
    served: dict[str, str], tmp_path: Path
) -> None:
    """As a kernel whose notebook was killed."""
    code = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    call = [sys.executable, "-c", code, "-m", "ethalign.warm", "program", "wait"]
    child = subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=served)
    assert child.stdout is not None
    child.stdout.readline()
    fork = psutil.Process(int(child.stdout.readline()))
    child.kill()
    child.wait()
    until = time.monotonic() + 20
    while fork.is_running() and time.monotonic() < until:
        time.sleep(0.1)
    assert not fork.is_running()
