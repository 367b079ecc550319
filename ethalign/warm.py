"""Processes that begin with everything imported, as forks of one that has imported it once.

A notebook takes two processes, its own and its kernel's, and most of a short one is imports.
Where ``serving`` is at work, ``python -m ethalign.warm MODULE ...`` is ``python -m MODULE ...``
in such a fork; elsewhere it is the plain command. So it is where there is CUDA, which no fork
can use that was opened before it, and where the system is not Linux.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SOCKET = "ETHALIGN_WARM"
#: What the notebooks import, and what executes them.
MODULES = (
    *("papermill", "ipykernel.kernelapp", "seaborn", "threadpoolctl", "peft"),
    *("sklearn.ensemble", "sklearn.feature_extraction.text", "sklearn.linear_model"),
    "transformers.optimization",
    *("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"),
    *("ethalign.generation", "ethalign.tables", "ethalign.tuning"),
)


@contextlib.contextmanager
def serving(
    environment: Mapping[str, str], folder: Path, log: IO[str], modules: Sequence[str] = MODULES
) -> Iterator[dict[str, str]]:
    """The environment in which commands fork.

    The server, in ``folder``, imports ``modules`` when it is first asked, with remarks to ``log``.
    """
    if sys.platform != "linux":
        yield dict(environment)
        return
    with tempfile.TemporaryDirectory() as home:  # which only its owner may enter
        path = os.path.join(home, "socket")
        # Bound here, so that whoever asks before the server has started waits for it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
            bound.bind(path)
            bound.listen(64)
            number = bound.fileno()
            call = [sys.executable, "-m", "ethalign.warm", "--serve", str(number), *modules]
            server = subprocess.Popen(
                call,
                stdin=subprocess.PIPE,
                stderr=log,
                env={**environment},
                cwd=folder,
                pass_fds=[number],
            )
        try:
            yield {**environment, SOCKET: path}
        finally:
            server.communicate()  # it ends with its input, and so with this process


@contextlib.contextmanager
def kernels() -> Iterator[tuple[dict[str, Any], Path]]:
    """What papermill is told of its kernel, and the file that holds the kernel's errors.

    Where there is a server, it starts as ``main`` starts modules. It is reached by sockets in a
    folder, where there are such: a port is chosen before the kernel opens it, and another process
    may be faster.
    """
    from jupyter_client.manager import AsyncKernelManager

    with tempfile.TemporaryDirectory() as home:
        errors = Path(home) / "errors"

        class Kernel(AsyncKernelManager):
            def __init__(self, **settings: Any) -> None:
                if os.name == "posix":
                    settings |= {"transport": "ipc", "connection_file": f"{home}/kernel.json"}
                super().__init__(**settings)

            def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
                """The command of the kernel, which is ``python -m ipykernel_launcher ...``."""
                command = super().format_kernel_cmd(extra_arguments)
                if SOCKET not in os.environ:
                    return command
                at = command.index("-m") + 1
                return [*command[:at], "ethalign.warm", *command[at:]]

            # Typed upstream as if it were not awaited.
            async def start_kernel(self, **settings: Any) -> None:  # type: ignore[override]
                """Start it, with the file for its errors."""
                with errors.open("wb") as file:
                    await super().start_kernel(stderr=file, **settings)

        yield {"kernel_manager_class": Kernel}, errors


def main(arguments: list[str]) -> None:
    """Be the server (``--serve SOCKET MODULE ...``), or a module, forked if there is a server."""
    if arguments[0] != "--serve":
        code = _ask(os.environ.get(SOCKET, ""), arguments)
        if code is None:
            os.execv(sys.executable, [sys.executable, "-m", *arguments])
        sys.exit(code)
    caller = _serve(int(arguments[1]), arguments[2:])
    if not caller:
        return
    sys.argv = _become(caller)
    word = "1"
    atexit.register(lambda: caller.send(word.encode()))
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        word = "0"
    except KeyboardInterrupt:
        word = ""  # none: it is a signal that ends this
        raise
    except SystemExit as end:
        word = str(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _serve(number: int, modules: Sequence[str]) -> socket.socket | None:
    """Fork for everybody who asks at a socket; in a fork its caller, None in the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is interrupted ends this as well
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=number) as server:
        imported = False
        while sys.stdin not in select.select([sys.stdin, server], [], [])[0]:
            if not imported:
                for name in modules:
                    importlib.import_module(name)
                if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
                    return None
                gc.freeze()  # what is never collected stays shared
                imported = True
            caller, _ = server.accept()
            if not os.fork():
                return caller
            caller.close()
    return None


def _become(caller: socket.socket) -> list[str]:
    """Take over files, folder, environment and threads of a caller; its module and arguments."""
    message, files, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    arguments, folder, environment = json.loads(message)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if "matplotlib" in sys.modules and arguments[0] == "ipykernel_launcher":
        # A kernel names its backend in the environment, which matplotlib reads when imported.
        backend = os.environ.get("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        sys.modules["matplotlib"].rcParams["backend"] = backend
    threads = int(os.environ.get("OMP_NUM_THREADS", 0))
    if threads and "torch" in sys.modules:  # which read it when it was imported
        sys.modules["threadpoolctl"].threadpool_limits(threads)
        sys.modules["torch"].set_num_threads(threads)

    def listen() -> None:
        while signals := caller.recv(1):
            os.kill(os.getpid(), signals[0])
        os.kill(os.getpid(), signal.SIGKILL)  # the caller has gone

    threading.Thread(target=listen, daemon=True).start()
    caller.send(b"forked")
    return list(arguments)


def _ask(path: str, arguments: list[str]) -> int | None:
    """Exit code of a module that ran in a fork of the server; None if there is no server.

    A signal that ended the fork ends this process as well.
    """
    parent, heard = os.getppid(), (signal.SIGINT, signal.SIGTERM)
    # A command in the background of a script hears no Ctrl-C.
    kinds = {kind for kind in heard if signal.getsignal(kind) is not signal.SIG_IGN}
    passed: list[int] = []

    def pass_on(number: int, _: object) -> None:
        passed.append(number)
        fork.send(bytes([number]))

    signal.pthread_sigmask(signal.SIG_BLOCK, kinds)  # until they can be passed on
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as fork:
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        try:
            fork.connect(path)
            socket.send_fds(fork, [request], [0, 1, 2])
            for kind in kinds:
                signal.signal(kind, pass_on)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, kinds)
            if not fork.recv(9):
                return None
        except OSError:
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, kinds)
        fork.settimeout(1)
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                code = fork.recv(9)
                if not code and passed:
                    signal.signal(passed[-1], signal.SIG_DFL)
                    os.kill(os.getpid(), passed[-1])
                return int(code or 1)
        return 1


if __name__ == "__main__":
    main(sys.argv[1:])
