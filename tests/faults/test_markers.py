"""What data and models say stays a text, from the table of a data set to the page in a browser."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pages
import pandas as pd
import pytest
from conftest import command, needs_chromium

from ethalign import records
from ethalign.config import ROOT

# Each holds a sign to look for, a letter and a digit, that nothing else has.
MARKS = (  # short, since tables cut what is longer than fifty characters
    "<img src=x onerror=alert(1)> zq1",
    "<script>alert(2)</script> zq2",
    "[zq3](javascript:alert(3)) ![](//x.org/a.png)",
    "{{ 7 * 7 }} {% raw %} {term}`zq4` %matplotlib",
    "**zq5** `c` $x^2$ \\(y\\) ```{raw} html",
    "<b>zq6</b> ~~d~~ &lt;i&gt;",
    '"><svg onload=alert(7)> zq7',
    "::: {note} zq8 <!-- --> <http://x.org/b.png>",
)
# Columns of the samples that hold words; the others are numbers and names of parts.
WORDS = {
    "statements.csv": ("id", "Statement", "Reason"),
    "comments.csv": ("comment",),
    "dilemmas.csv": ("id", "action1", "action2"),
    "questions.csv": ("id", "question", "answers", "topic"),
    "papers.csv": ("id", "question", "subject"),
    "options.csv": ("id", "question", "a", "b", "c", "d", "topic"),
}
# What every model writes in that copy of the project.
ANSWERS = '''

_write, MARKS = write, {marks!r}


def write(model, tokenizer, prompts, **settings):
    """Texts that hold markup; where questions are asked for, a question and its answer."""
    found = _write(model, tokenizer, prompts, **settings)
    if settings["max_new_tokens"] == 1:  # the lesson on single tokens, which works them out anew
        return found
    for k in range(len(found.texts)):
        mark = MARKS[k % len(MARKS)]
        invent = "Questions about" in prompts[k // settings.get("samples", 1)]
        found.texts[k] = f" Who wrote {{mark}}?\\nA: <b>x</b>" if invent else f"<b>x</b> {{mark}}"
    return found
'''
# Of which tables are made.
ELEMENTS = {"style", "div", "table", "thead", "tbody", "tr", "th", "td", "p"}
SIGN = re.compile(r"zq\d")
# Pages that show words, by study: stage and variant.
SHOWN = {
    "reasons": [("explore", None), ("evaluate", "LR"), ("finetune", "LR")],
    "ambiguity": [("explore", None), ("evaluate", "soft"), ("finetune", "soft")],
    "honesty": [
        *[("explore", None), ("evaluate", "absolute"), ("finetune", "absolute")],
        ("knowledge", None),
    ],
}
PROGRAM = """
import concurrent.futures, json, sys
from ethalign import book, explorer, pipeline, study
from ethalign.config import ROOT

def execute(name, shown):
    for stage, variant in shown:
        target = book.BOOK / "_runs" / name / f"{stage}-{variant}.ipynb"
        source = ROOT / "notebooks" / name / f"{stage}.ipynb"
        wanted = {"scale": "smoke", "runs": str(ROOT / "runs")}
        wanted |= {"variant": variant} if variant else {}
        wanted |= {"with_inputs": True} if study.stage_of(study.find(name), stage).compute else {}
        pipeline.execute(source, target, wanted)
        pipeline.refresh_prose(target, source, target)

shown = json.loads(sys.argv[1])
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for done in [pool.submit(execute, *pair) for pair in shown.items()]:
        done.result()
homes = {name: {"this run": ROOT / "runs" / name / "smoke"} for name in shown}
explorer.build(book.GENERATED, homes)
for name in shown:
    explorer.edition(study.find(name), homes[name], ROOT / "edition", words=True)
"""


def sign_of(mark: str) -> str:
    """The sign in it."""
    found = SIGN.search(mark)
    assert found
    return found[0]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, whose samples and models speak in markup, with its pages executed."""
    home = tmp_path_factory.mktemp("planted") / "project"
    hidden = shutil.ignore_patterns("_runs", "_generated", "__pycache__")
    for name in ("ethalign", "configs", "notebooks", "data", "book", "results"):
        shutil.copytree(ROOT / name, home / name, ignore=hidden)
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, home)
    for name, columns in WORDS.items():
        path, sign = home / "data" / "samples" / name, ",;"[name == "comments.csv"]
        table = pd.read_csv(path, sep=sign, dtype=str, keep_default_na=False)
        for column, first in zip(columns, itertools.count(), strict=False):
            marks = itertools.islice(itertools.cycle(MARKS), first, None)
            table[column] = [
                f"{mark} {cell}" for cell, mark in zip(table[column], marks, strict=False)
            ]
        table.to_csv(path, sep=sign, index=False)
    with (home / "ethalign" / "generation.py").open("a") as file:
        file.write(ANSWERS.format(marks=MARKS))
    program = f"import sys; sys.argv = ['', {json.dumps(json.dumps(SHOWN))}]\n{PROGRAM}"
    done = command(code=program, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def bound(planted: Path, builder: str) -> Path:
    """A book of these pages, and of the explorer's, by a builder of Sphinx; its folder."""
    book = planted / "book"
    (book / "start.md").write_text("# Start\n")
    made = sorted(book.glob("_runs/*/*.ipynb")) + [book / n / "explorer.md" for n in SHOWN]
    names = [{"file": str(path.relative_to(book).with_suffix(""))} for path in made]
    toc = {"format": "jb-book", "root": "start", "chapters": names}
    records.write(book / "toc.yml", toc)
    call = [str(Path(sys.executable).parent / "jupyter-book"), "build", "book", "--quiet"]
    call += ["--config", "_config.yml", "--toc", str(book / "toc.yml"), "--path-output", "."]
    call += [] if builder == "html" else ["--builder", "custom", "--custom-builder", builder]
    environment = {**os.environ, "PYTHONPATH": str(planted)}
    done = subprocess.run(call, cwd=planted, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return planted / "_build" / builder


@pytest.fixture(scope="module")
def built(planted: Path) -> Path:
    """The book as pages of a browser."""
    return bound(planted, "html")


def test_tables_of_pages_hold_words_and_no_elements_of_theirs(planted: Path) -> None:
    seen = set[tuple[str, str]]()
    for path in planted.glob("book/_runs/*/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        for output in [o for c in cells for o in c.get("outputs", [])]:
            shown = {key: "".join(text) for key, text in output.get("data", {}).items()}
            assert "zq" not in shown.get("text/markdown", ""), path
            page = shown.get("text/html", "")
            assert {*re.findall(r"</?\s*([a-z]+)", page)} <= ELEMENTS, path
            if SIGN.search(page):
                text = html.unescape(re.sub(r"<[^>]*>", " ", page))
                seen |= {(path.parent.name, mark) for mark in MARKS if mark in text}
                assert "tex2jax_ignore" in page, f"{path}: a formula would be drawn"
    assert {name for name, _ in seen} == {*SHOWN}
    assert {mark for _, mark in seen} == {*MARKS}


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_words_as_they_are_and_does_nothing_they_say(
    planted: Path, built: Path
) -> None:
    for home in (built, planted / "edition"):
        assert pages.browser(home, widths=(1280,)) == []
    with pages.opened() as context:
        page, seen = context.new_page(), set[str]()
        explorers = [*built.glob("*/explorer.html"), *(planted / "edition").glob("*.html")]
        for path in [*built.glob("_runs/*/*.html"), *explorers]:
            page.goto(path.as_uri())
            for item in page.locator(".explorer-rows tbody a").all()[:3]:
                item.click()
            text = " ".join(page.locator("body").inner_text().split())
            counts = {mark: (text.count(mark), text.count(sign_of(mark))) for mark in MARKS}
            assert all(whole == signs for whole, signs in counts.values()), (path, counts)
            if path in explorers:
                assert all(whole for whole, _ in counts.values()), (path, counts)
            else:
                seen |= {mark for mark, (whole, _) in counts.items() if whole}
    assert seen == {*MARKS}


@pytest.mark.slow
def test_an_epub_shows_words_as_they_are(planted: Path) -> None:
    """Read as XML, as devices read it: it is well formed, and no element comes from a text."""
    (book,) = bound(planted, "epub").glob("*.epub")
    seen = set[str]()
    with zipfile.ZipFile(book) as archive:
        for name in (n for n in archive.namelist() if n.endswith(".xhtml")):
            page = ElementTree.fromstring(archive.read(name))
            for element in page.iter():
                assert not [key for key in element.attrib if key.startswith("on")], name
                link = element.get("href", element.get("src", ""))
                assert not link.startswith("javascript:"), (name, link)
                assert "x.org" not in link, (name, link)
            body = page.find("{*}body")
            assert body is not None
            text = " ".join("".join(body.itertext()).split())
            for mark in MARKS:
                assert text.count(mark) == text.count(sign_of(mark)), (name, mark)
                seen |= {mark} if mark in text else set()
    assert seen == {*MARKS}
