"""Does a built book work offline? Two checks, one without and one with a browser.

``static``: no page, style sheet or first-party script names a resource on another host.
``browser``: every page is opened in headless Chromium at a phone's and a desktop's width; each
request must go to a file of the book, none may fail, no script may raise or log an error, no page
may scroll sideways, nothing may be cut off at its edge, and no sentence in a table may stand a
word to a line. Playwright drives the Chromium of the machine and downloads none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Request,
    ViewportSize,
    sync_playwright,
)

# axe-core 4.14.1 by Deque Systems, MPL-2.0, as published on npm (axe.min.js).
AXE = Path(__file__).parent / "axe" / "axe.min.js"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
REMOTE = re.compile(r"^\s*(?:https?:|wss?:|ftp:)?//", re.IGNORECASE)
# Attributes that load something by themselves; <a href> does not.
TAGS = re.compile(
    r"<(script|img|iframe|source|video|audio|embed|object|track|input|link)\b([^>]*)>", re.I
)
URLS = re.compile(r"""\b(?:src|srcset|href|data|poster)\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.I)
CSS = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""", re.IGNORECASE)
NOT_LOADED = re.compile(r"\brel=\"(?:canonical|next|prev|search|index|author)\"", re.IGNORECASE)
# What of an article lies beyond the window's edge, in no box that scrolls.
CUT = """() => [...document.querySelectorAll("article :is(code, td, th, dt, p, li, img, h1, h2)")]
  .filter(e => e.getBoundingClientRect().width && e.getBoundingClientRect().right > innerWidth + 1)
  .filter(e => {
    for (let box = e.parentElement; box && box.tagName != "ARTICLE"; box = box.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false;
    return true;
  })
  .map(e => (e.textContent || e.src).slice(0, 60))"""
# Cells of tables that hold a sentence and are a word wide.
SQUEEZED = """() => [...document.querySelectorAll("article :is(td, th)")]
  .filter(e => e.innerText.trim().length > 80 && e.offsetWidth && e.offsetWidth < 150)
  .map(e => e.innerText.slice(0, 60))"""
# Tables with columns beyond the edge of the box that they scroll in; those of an explorer have as
# many columns as there are predictors.
BEYOND = """() => [...document.querySelectorAll("article table:not(.explorer-rows)")]
  .filter(table => {
    if (!table.checkVisibility()) return false;
    for (let box = table; box && box.tagName != "ARTICLE"; box = box.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)
          && box.scrollWidth > box.clientWidth + 1) return true;
  })
  .map(table => table.innerText.slice(0, 60))"""
DESKTOP = 1280
# Names of services that a page of this kind is known to load late, from a script.
SERVICES = re.compile(
    r"cdn\.jsdelivr|cdnjs\.cloudflare|unpkg\.com|fonts\.g(?:oogleapis|static)|googletagmanager"
    r"|plausible\.io|mathjax@|require\.min\.js|use\.fontawesome",
    re.IGNORECASE,
)


def pages(html: Path) -> list[Path]:
    """The book's pages; HTML below ``_static`` is parts of the theme's templates.

    Pages that only lead on to others are left out.
    """
    found = sorted(path for path in html.rglob("*.html") if "_static" not in path.parts)
    return [path for path in found if not leads_to(path)]


def leads_to(path: Path) -> str:
    """The address that a page sends its reader to; empty if it is a page to read."""
    head = path.read_text(encoding="utf-8")[:600]
    found = re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', head, re.IGNORECASE)
    return found[1] if found else ""


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


def chromium() -> str | None:
    """A Chromium or Chrome on this machine."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def browser(html: Path, widths: tuple[int, ...] = (390, 1280)) -> list[str]:
    """What went wrong while a browser opened every page; empty if nothing did."""
    html = html.resolve()
    found: list[str] = []
    with _browser() as chrome:
        for width in widths:
            context = chrome.new_context(
                viewport={"width": width, "height": 900},
                device_scale_factor=1,
                is_mobile=width < 600,
                offline=True,
            )
            for path in pages(html):
                here = f"{path.relative_to(html)} at {width} px"
                found += (f"{here}: {what}" for what in _visit(context, path, html))
            context.close()
    return found


def accessible(html: Path, paths: Iterable[Path], scheme: Literal["light", "dark"]) -> list[str]:
    """What axe-core finds serious or critical on pages in one colour scheme.

    Each as ``page in scheme: rule: element``. Everything folded is opened before.
    """
    found: list[str] = []
    with opened(color_scheme=scheme) as context:
        page = context.new_page()
        for path in paths:
            page.goto(path.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
            # What is opened fades in; half transparent it would have too little contrast.
            page.evaluate("Promise.all(document.getAnimations().map((a) => a.finished))")
            page.add_script_tag(path=AXE)
            result = page.evaluate("axe.run({resultTypes: ['violations']})")
            here = f"{path.relative_to(html)} in {scheme}"
            found += [
                f"{here}: {violation['id']}: {node['target'][-1]}"
                for violation in result["violations"]
                if violation["impact"] in ("serious", "critical")
                for node in violation["nodes"]
            ]
    return found


def search(html: Path, words: str) -> list[str]:
    """The titles that the book's own search lists for ``words``."""
    with _browser() as chrome:
        page = chrome.new_page(offline=True)
        page.goto(f"{(html.resolve() / 'search.html').as_uri()}?{urlencode({'q': words})}")
        page.get_by_text("Search finished").or_(page.get_by_text("did not match")).wait_for()
        return page.locator("#search-results li > a").all_inner_texts()


@contextmanager
def opened(width: int = 1280, **options: Any) -> Iterator[BrowserContext]:
    """A browser without the internet; ``options`` are those of Playwright's context."""
    with _browser() as chrome:
        size: ViewportSize = {"width": width, "height": 900}
        context = chrome.new_context(viewport=size, offline=True, **options)
        context.set_default_timeout(60_000)
        yield context


@contextmanager
def _browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(
            executable_path=chromium() or CHROMIUM[0],
            headless=True,
            args=FLAGS,
            # A reader's desktop has a scrollbar, and what is as wide as the window is too wide.
            ignore_default_args=["--hide-scrollbars"],
        )


def _visit(context: BrowserContext, path: Path, root: Path) -> list[str]:
    """What goes wrong on one page."""
    found: list[str] = []
    inside = ("data:", "blob:", "about:", f"{root.as_uri()}/")

    def requested(request: Request) -> None:
        if not request.url.startswith(inside):
            found.append(f"requests {request.url[:200]}")

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself no longer wanted it
            found.append(f"a {request.resource_type} fails with {request.failure}")

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            found.append(f"console error {message.text[:200]}")

    def asked(dialog: Dialog) -> None:
        found.append(f"says {dialog.message}")
        dialog.dismiss()

    page = context.new_page()
    page.on("request", requested)
    page.on("requestfailed", failed)
    page.on("dialog", asked)
    page.on("websocket", lambda socket: found.append(f"opens a socket to {socket.url}"))
    page.on("pageerror", lambda error: found.append(f"script error {str(error)[:200]}"))
    page.on("console", said)
    page.goto(path.as_uri())
    # Scrolled to the end, so that what is loaded late is loaded too; then left alone for a while.
    page.evaluate("window.scrollTo(0, 1e7)")
    page.wait_for_timeout(400)
    root_element = "document.documentElement"
    wider = page.evaluate(f"{root_element}.scrollWidth - {root_element}.clientWidth")
    if wider > 1:
        found.append(f"scrolls sideways by {wider} px")
    found += [f"cuts off {text}" for text in page.evaluate(CUT)]
    found += [f"squeezes {text}" for text in page.evaluate(SQUEEZED)]
    if page.evaluate("innerWidth") >= DESKTOP:
        found += [f"hides columns of {text}" for text in page.evaluate(BEYOND)]
    page.close()
    return found
