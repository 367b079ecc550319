"""A server on this machine that speaks the OpenAI protocol and misbehaves on demand."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GOOD = [("first", math.log(0.6)), (" Second", math.log(0.3)), ("The", math.log(0.05))]

# Answers in the place of one, by their name.
STRANGE = {
    "list": "[1]",
    "null": "null",
    "deep": "[" * 100_000,
    "page": "<!doctype html><h1>Sign in</h1>",
    "huge": " " * (9 * 2**20),
}


class Server(ThreadingHTTPServer):
    """Fails as ``script`` says, request by request, then answers well; keeps what it was asked.

    A fault is a status, ``slow``, ``drip``, ``cut``, one of ``STRANGE``, ``no-logprobs``,
    ``no-text`` or None. Texts
    are those of ``replies`` in turn, then ``echo``, a function of the prompt. Without messages
    the choices are what ``complete`` makes of the body.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.script: list[int | str | None] = []
        self.replies: list[str] = []
        self.top: list[tuple[str, Any]] = GOOD
        self.headers, self.error = {"Retry-After": "0.01"}, "no"
        self.fingerprint = "fp_1"
        self.delay: float | Callable[[str], float] = 0.0
        self.echo: Callable[[str], str] = str.upper
        self.complete: Callable[[dict[str, Any]], list[Any]] = lambda body: []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.active = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.paths.append(self.path)
            server.times.append(time.monotonic())
            server.active += 1
            server.most = max(server.most, server.active)
            fault = server.script.pop(0) if server.script else None
            queued = server.replies.pop(0) if server.replies and not fault else None
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else ""
        delay = server.delay(prompt) if callable(server.delay) else server.delay
        time.sleep(2.0 if fault == "slow" else delay)
        with server.lock:
            server.active -= 1
        if isinstance(fault, int):
            self.reply(fault, server.error, server.headers)
            return
        top = [{"token": t, "logprob": p} for t, p in server.top]
        message = {"content": server.echo(prompt) if queued is None else queued}
        choice: dict[str, Any] = {"logprobs": {"content": [{"top_logprobs": top}]}}
        choice["message"] = message
        if fault == "no-logprobs":
            choice["logprobs"] = None
        if fault == "no-text":
            choice["message"] = {}
        told = {"model": f"{body['model']}-2024", "system_fingerprint": server.fingerprint}
        choices = [choice] if chat or fault == "no-logprobs" else server.complete(body)
        reply = json.dumps({"choices": choices, "usage": {"total_tokens": 7}, **told})
        if fault in ("cut", "drip"):
            reply = reply[: len(reply) // 2]
        reply = STRANGE.get(str(fault), reply)
        kind = "text/html" if fault == "page" else "application/json"
        self.reply(200, reply, {"Content-Type": kind})
        if fault == "drip":
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.05)

    def reply(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(OSError):  # who timed out is gone
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A running server; it is gone afterwards."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@contextlib.contextmanager
def folder_server(folder: Path) -> Iterator[str]:
    """Serves the files of a folder; its address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
