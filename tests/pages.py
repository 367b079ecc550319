"""Does a built book work offline? Two checks, one without and one with a browser.

``static``: no page, style sheet or first-party script names a resource on another host.
``browser``: every page is opened in headless Chromium at a phone's and a desktop's width; each
request must go to a file of the book, none may fail, no script may raise, and no page may scroll
sideways. Needs tornado (it comes with Jupyter) and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REMOTE = re.compile(r"^\s*(?:https?:|wss?:|ftp:)?//", re.IGNORECASE)
# Attributes that load something by themselves; <a href> does not.
TAGS = re.compile(
    r"<(script|img|iframe|source|video|audio|embed|object|track|input|link)\b([^>]*)>", re.I
)
URLS = re.compile(r"""\b(?:src|srcset|href|data|poster)\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.I)
CSS = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""", re.IGNORECASE)
NOT_LOADED = re.compile(r"\brel=\"(?:canonical|next|prev|search|index|author)\"", re.IGNORECASE)
# Names of services that a page of this kind is known to load late, from a script.
SERVICES = re.compile(
    r"cdn\.jsdelivr|cdnjs\.cloudflare|unpkg\.com|fonts\.g(?:oogleapis|static)|googletagmanager"
    r"|plausible\.io|mathjax@|require\.min\.js|use\.fontawesome",
    re.IGNORECASE,
)


def pages(html: Path) -> list[Path]:
    """The book's pages; HTML below ``_static`` is parts of the theme's templates.

    ``index.html`` only leads on to the first page.
    """
    return sorted(
        path
        for path in html.rglob("*.html")
        if "_static" not in path.parts and path != html / "index.html"
    )


def static(html: Path) -> Iterator[str]:
    """Resources on other hosts, each as ``file: address``."""
    for path in pages(html):
        text = path.read_text(encoding="utf-8")
        for tag, attributes in TAGS.findall(text):
            if tag.lower() == "link" and NOT_LOADED.search(attributes):
                continue
            for pair in URLS.findall(attributes):
                for url in filter(REMOTE.match, pair):
                    yield f"{path.relative_to(html)}: {url}"
        scripts = re.findall(r"<script\b[^>]*>(.*?)</script>", text, re.DOTALL | re.IGNORECASE)
        styles = re.findall(r"<style\b[^>]*>(.*?)</style>", text, re.DOTALL | re.IGNORECASE)
        styles += re.findall(r"style=\"([^\"]*)\"", text)
        for script in scripts:
            yield from (f"{path.relative_to(html)}: {x}" for x in SERVICES.findall(script))
        for style in styles:
            yield from (f"{path.relative_to(html)}: {x}" for x in _styles(style))
    for path in sorted(html.rglob("*.css")):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield from (f"{path.relative_to(html)}: {x}" for x in _styles(text))


def _styles(text: str) -> Iterator[str]:
    for pair in CSS.findall(text):
        yield from filter(REMOTE.match, pair)


async def browser(html: Path, widths: tuple[int, ...] = (390, 1280)) -> list[str]:
    """What went wrong while a browser opened every page; empty if nothing did."""
    from tornado.websocket import websocket_connect

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium() or "chromium", "--headless", "--no-sandbox", "--disable-gpu"]
        command += ["--disable-background-networking", "--disable-dev-shm-usage"]
        command += [f"--remote-debugging-port={port}", f"--user-data-dir={profile}", "about:blank"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            page = await websocket_connect(await _address(port), max_message_size=1 << 28)
            return await _visit(page, pages(html), html.resolve(), widths)
        finally:
            child.terminate()
            child.wait(timeout=20)


def chromium() -> str | None:
    """A Chromium or Chrome on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


async def _address(port: int) -> str:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                targets = json.load(answer)
                return next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
        except (OSError, StopIteration):
            await asyncio.sleep(0.2)
    raise RuntimeError("Chromium did not start")


async def _visit(page: Any, paths: list[Path], root: Path, widths: tuple[int, ...]) -> list[str]:
    found: list[str] = []
    number = 0

    async def call(method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command; requests and errors that are reported meanwhile are noted."""
        nonlocal number
        number += 1
        await page.write_message(
            json.dumps({"id": number, "method": method, "params": parameters})
        )
        while True:
            message = json.loads(await asyncio.wait_for(page.read_message(), 60))
            if message.get("id") == number:
                return dict(message.get("result", {}))
            note(message)

    def note(message: dict[str, Any]) -> None:
        method, data = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            url = data["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:", root.as_uri())):
                found.append(f"{here}: requests {url[:200]}")
        elif method == "Network.webSocketCreated":
            found.append(f"{here}: opens a socket to {data['url']}")
        elif method == "Network.loadingFailed" and not data.get("canceled"):
            found.append(f"{here}: a {data['type'].lower()} fails with {data['errorText']}")
        elif method == "Runtime.exceptionThrown":
            details = data["exceptionDetails"]
            what = details.get("exception", {}).get("description", details["text"])
            found.append(f"{here}: script error {what[:200]}")

    here = ""
    for domain in ("Network", "Page", "Runtime"):
        await call(f"{domain}.enable")
    await call("Network.setCacheDisabled", cacheDisabled=True)
    # Scrolled to the end, so that what is loaded late is loaded too; then left alone for a while.
    probe = """new Promise(done => { const go = () => { window.scrollTo(0, 1e7);
        setTimeout(() => { const e = document.documentElement;
            done(JSON.stringify([e.scrollWidth - e.clientWidth,
                [...document.querySelectorAll('math')].length])) }, 400) };
        document.readyState == 'complete' ? go() : addEventListener('load', go) })"""
    for path in paths:
        for width in widths:
            here = f"{path.relative_to(root)} at {width} px"
            await call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            await call("Page.navigate", url=path.resolve().as_uri())
            await asyncio.sleep(0.1)
            answer = await call(
                "Runtime.evaluate", expression=probe, awaitPromise=True, returnByValue=True
            )
            wider, _ = json.loads(answer["result"]["value"])
            if wider > 1:
                found.append(f"{here}: scrolls sideways by {wider} px")
    return found
