"""The book as a reader gets it: built with warnings as errors, offline, legible."""

import ast
import importlib
import io
import json
import re
import shutil
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pages
import pandas as pd
import pytest
from conftest import needs_chromium
from sphinx.application import Sphinx

from ethalign import book, config, models, records, reference, study
from ethalign.config import ROOT


def test_a_page_that_would_load_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<script src="https://cdn.example/x.js"></script>')
    (tmp_path / "b.html").write_text("<style>@import 'https://fonts.example/y';</style>")
    assert len(list(pages.static(tmp_path))) == 2


def test_every_module_is_in_the_reference() -> None:
    page = reference.api_pages()
    for path in (ROOT / "ethalign").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__":
            assert f"automodule:: {name}\n" in page


def test_what_docstrings_name_is_in_the_reference_too() -> None:
    """Constants are, where a comment begins with ``#:``."""
    for path in (ROOT / "ethalign").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        told = " ".join(
            ast.get_docstring(node) or ""
            for node in ast.walk(ast.parse(text))
            if isinstance(node, kinds) and not getattr(node, "name", "").startswith("_")
        )
        for name in re.findall(r"``([A-Z_]{2,})``", told):
            own, shown = rf"(?m)^{name}\b.*=", rf"(?m)^#: .*\n{name}\b"
            assert not re.search(own, text) or re.search(shown, text), (path.name, name)


def test_in_class_outputs_wait_for_the_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ROOT / "notebooks" / "reasons" / "explore.ipynb"
    ran = json.loads(source.read_text(encoding="utf-8"))
    code = [cell for cell in ran["cells"] if cell["cell_type"] == "code"]
    code[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "the answer"}]
    records.write(tmp_path / "explore.ipynb", json.dumps(ran))
    monkeypatch.setattr(book, "BOOK", tmp_path / "book")
    monkeypatch.setattr(book, "GENERATED", tmp_path / "book" / "_generated")
    (job,) = study.plan("reasons", (), "tiny", (0,), {}, str(tmp_path), "explore")[:1]
    monkeypatch.setattr(type(job), "page", tmp_path / "explore.ipynb")
    for covered in (True, False):
        book.collect([job], covered=covered)
        page = json.loads((tmp_path / "book" / "_runs" / "reasons" / "explore.ipynb").read_text())
        tags = {cell["id"]: cell["metadata"].get("tags", []) for cell in page["cells"]}
        assert {key for key, told in tags.items() if "hide-output" in told} == (
            {code[-1]["id"]} if covered else set()
        )
        told = {c["id"]: c["metadata"].get("mystnb", {}) for c in page["cells"]}[code[-1]["id"]]
        assert (told.get("code_prompt_show") == "Show the output") == covered, "not: the code"


def test_every_benchmark_is_told_with_its_conditions() -> None:
    rows = json.loads(reference.SPEED.read_text(encoding="utf-8"))
    table = reference.speed_table().splitlines()
    assert len(table) == len(rows) + 2
    for row, line in zip(rows, table[2:], strict=True):
        assert row["benchmark"] in line
        assert row["conditions"] in line
        assert f"{row['ratio']:.2g}" in line


def test_the_growth_of_scoring_is_told_to_its_ends() -> None:
    page, rows = reference.growth(), json.loads(reference.GROWTH.read_text(encoding="utf-8"))
    for along in {row["along"] for row in rows}:
        sizes = [row["size"] for row in rows if row["along"] == along]
        assert sizes == sorted(sizes)
        for row in rows:
            if row["along"] == along and row["size"] in (sizes[0], sizes[-1]):
                told = f"{row['size']:,} in {row['seconds']:.0f} s and {row['memory']:.1f} GB"
                assert told in page
    assert "<img " in page


def test_where_the_time_goes_is_told() -> None:
    rows = json.loads(reference.TIMES.read_text(encoding="utf-8"))
    table = reference.times().splitlines()[2:]
    assert len(table) == len(rows)
    for row, line in zip(rows, table, strict=True):
        assert row["part"] in line
        assert f"{row['seconds']:,}" in line
    spent = {row["part"]: row["seconds"] for row in rows}
    whole = spent.pop("time passed")
    assert 0.9 * whole <= sum(spent.values()) <= 2 * whole, "two notebooks at a time"


def test_the_origin_of_every_packaged_model_is_told() -> None:
    """Of each model the packages, the hash and whose model it is."""
    wanted = models.PACKAGED
    told = {part.split("`")[1]: part for part in reference.packaged_models().split("\n\n")}
    assert {*told} == {name for name, spec in wanted.items() if spec.wheel}
    for name, line in told.items():
        assert re.fullmatch("[0-9a-f]{64}", wanted[name].sha256)
        assert wanted[name].sha256 in line
        assert re.search(r"`[\w-]+/[\w.-]+`", line), "the model on the Hub"
        assert re.search(r"==[\d.]+`", line), "the version of the package"
        assert f"\n: SHA-256 of the {'joined file' if wanted[name].parts > 1 else 'wheel'}" in line
    assert "part1…6==0.9.0" in told["qwen2.5-coder-0.5b-instruct"]
    assert "_generated/models.md" in (ROOT / "book" / "models.md").read_text()


def notebook(**outputs: str) -> dict[str, Any]:
    """An executed notebook: what it says of itself, what all say alike, and prose."""
    says = {"output_type": "stream", "name": "stdout", "text": "the same"}
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": "# Title", "metadata": {"tags": []}},
        {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "outputs": []},
        {"cell_type": "code", "metadata": {}, "source": "print()", "outputs": [says]},
    ]
    for name, text in outputs.items():
        shown = {"output_type": "stream", "name": "stdout", "text": text}
        noise = {"output_type": "stream", "name": "stderr", "text": f"{text} in 3 s"}
        tags = ["remove-stderr"] + ["remove-input"] * name.startswith("bare")
        code = {"cell_type": "code", "source": name, "metadata": {"tags": tags}}
        cells.append({**code, "outputs": [shown, noise], "execution_count": 7})
    return {"cells": [{**cell, "id": str(k)} for k, cell in enumerate(cells)], "nbformat": 4}


def test_variants_of_a_stage_are_one_page() -> None:
    copies = {
        "L": notebook(own="first", bare="1", same="as all"),
        "LR": notebook(own="second", bare="2", same="as all"),
    }
    page = book.side_by_side(copies, {"L": "labels", "LR": "labels and reasons"})
    told = [
        (cell["metadata"].get("variant"), cell.get("source"), len(cell.get("outputs", ())))
        for cell in page["cells"]
    ]
    assert told == [
        (None, "# Title", 0),
        (None, "print()", 1),
        (None, "own", 0),
        (["L", "labels"], "own", 1),
        (["L", "labels"], "bare", 1),
        (["LR", "labels and reasons"], "own", 1),
        (["LR", "labels and reasons"], "bare", 1),
        (None, "same", 2),
    ]
    apart = [cell for cell in page["cells"] if cell["metadata"].get("variant")]
    assert [cell["outputs"][0]["text"] for cell in apart] == ["first", "1", "second", "2"]
    ids = [cell["id"] for cell in page["cells"]]
    assert len({*ids}) == len(ids)
    alone = book.side_by_side({"L": copies["L"]}, {"L": "labels"})
    assert not [cell for cell in alone["cells"] if "variant" in cell["metadata"]]
    assert len(alone["cells"]) == 5, "all but what was injected"


@pytest.mark.parametrize("builder", ["html", "epub"])
def test_tabs_are_for_a_screen_and_not_for_paper(
    builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    monkeypatch.setattr(config, "studies", list)
    page = book.side_by_side(
        {"L": notebook(own="first"), "LR": notebook(own="second")},
        {"L": "labels", "LR": "reasons"},
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    more = {"metadata": {"kernelspec": kernel}, "nbformat_minor": 5}
    table = {"text/html": "<table border=1><tr><th scope=col>a<br>b&nbsp;c</table>"}
    page["cells"][1]["outputs"].append(
        {"output_type": "display_data", "data": table, "metadata": {}}
    )
    cells = [{"execution_count": None, **c} if "outputs" in c else c for c in page["cells"]]
    (tmp_path / "index.ipynb").write_text(json.dumps({**page, **more, "cells": cells}))
    (tmp_path / "conf.py").write_text("extensions = ['myst_nb', 'sphinx_design', 'workshop']\n")
    settings = {"nb_execution_mode": "off", "epub_description": "x", "version": "1"}
    out = tmp_path / builder
    app = Sphinx(tmp_path, tmp_path, out, tmp_path / "trees", builder, settings, status=None)
    app.build()
    text = (out / f"index.{'xhtml' if builder == 'epub' else 'html'}").read_text()
    assert text.index("labels<") < text.index("first")
    assert text.index("first") < text.index("reasons<") < text.index("second")
    assert ('data-sync-id="LR"' in text) == (builder == "html")
    assert ("<input" in text) == (builder == "html")
    assert text.count("the same") == 1
    assert "scope=" in text
    if builder == "epub":
        xml.dom.minidom.parseString(text)


@pytest.mark.parametrize("browser", ["/usr/bin/chromium", None])
def test_a_printed_book_is_linked_and_a_missing_one_explained(
    browser: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sphinx(builder: str, *_: str) -> Path:
        folder = tmp_path / builder
        folder.mkdir()
        (folder / "a.epub").write_text(builder)
        (folder / "b").mkdir()
        (folder / "a.xhtml").write_text(
            "<html><head/><body class='x'><h1>First</h1></body></html>"
        )
        (folder / "b" / "c.xhtml").write_text('<html><body><img src="../i/x.png"/></body></html>')
        items = '<item id="2" href="b/c.xhtml" /><item id="1" href="a.xhtml" />'
        order = '<itemref idref="1" /><itemref idref="2" />'
        (folder / "content.opf").write_text(items + order)
        return folder

    def run(call: list[str], **_: Any) -> None:
        assert call[0] == browser
        whole = (tmp_path / "epub" / "whole.html").read_text()
        assert call[-1].endswith("/epub/whole.html")
        assert whole.index("First") < whole.index('src="i/x.png"'), "in the order of the book"
        Path(call[-2].partition("=")[2]).write_text("pdf")

    monkeypatch.setattr(book, "_sphinx", sphinx)
    monkeypatch.setattr(shutil, "which", lambda name: browser)
    monkeypatch.setattr("subprocess.run", run)
    epub, pdf = (tmp_path / name for name in book.PRINTS)
    told = book._print(epub, pdf)
    assert epub.read_text() == "epub"
    assert f'href="{epub.name}"' in told
    assert (f'href="{pdf.name}"' in told) == pdf.is_file() == (browser is not None)
    assert ("no Chromium" in told) == (browser is None)


def test_a_book_that_is_not_printed_keeps_no_older_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in (("ROOT", tmp_path), ("GENERATED", tmp_path / "generated")):
        monkeypatch.setattr(book, name, found)
    for name in ("findings", "collect", "contents", "_generate", "_sphinx"):
        monkeypatch.setattr(book, name, lambda *_, **__: "")
    monkeypatch.setattr("ethalign.explorer.build", lambda *_: None)
    monkeypatch.setattr(book, "_inputs", lambda: "newer")
    monkeypatch.setattr(book, "_print", lambda *paths: [p.touch() for p in paths] and "told")
    folders = (tmp_path / "_build" / "html", tmp_path / "generated" / "beside")
    old = [folder / name for folder in folders for name in book.PRINTS]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    book.build([], printed=False)
    assert not any(path.exists() for path in old)
    book.build([], printed=True)
    assert all(path.exists() for path in old[2:]), "from where Sphinx copies them"


@needs_chromium
def test_a_browser_finds_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    faults = {
        "requests https://cdn.example/x.png": "<img src='https://cdn.example/x.png'>",
        "requests https://late": "<script>onscroll = () => fetch('https://late.example')</script>",
        "opens a socket to wss://a.example": "<script>new WebSocket('wss://a.example')</script>",
        "a stylesheet fails with net::ERR_FILE": "<link rel='stylesheet' href='absent.css'>",
        "script error broken": "<script>throw new Error('broken')</script>",
        "script error late": "<script>Promise.reject(new Error('late'))</script>",
        "says boo": "<img src='data:,' onerror=alert('boo')>",
        "console error alas": "<script>console.error('alas')</script>",
        "scrolls sideways by 6": "<div style='width: 1000px'>wide</div>",
        "cuts off aaaa": "<article style='overflow-x: clip'><code style='font: 60px monospace'>"
        + "a" * 20
        + "</code></article>",
        "squeezes a word to a line": "<article><table width=90><td>"
        + "a word to a line and so on " * 4
        + "</table></article>",
        "hides columns of last": "<article><div style='overflow-x: auto; width: 100px'><table>"
        + f"<td>last<td>{'a' * 70}</table></div></article>",
        "scrolls sideways by 1": "<div style='width: 100vw'>as wide as the window</div>",
    }
    page = """<!doctype html><meta name="viewport" content="width=device-width">
        <body style="margin: 0"><div style="height: 3000px">tall</div>"""
    (tmp_path / "good.html").write_text(page)
    for number, fault in enumerate(faults.values()):
        (tmp_path / f"{number}.html").write_text(page + fault)
    found = pages.browser(tmp_path)
    # 1000 px are too wide for a phone only; only a desktop's scrollbar takes room.
    once = {"scrolls sideways by 6": 390, "cuts off aaaa": 390}
    once |= {"scrolls sideways by 1": 1280, "hides columns of last": 1280}
    for number, name in enumerate(faults):
        for width in (390, 1280):
            wanted = once.get(name, width) == width
            line = f"{number}.html at {width} px: {name}"
            assert any(x.startswith(line) for x in found) == wanted, (line, found)
    assert not [x for x in found if x.startswith("good.html")]


@needs_chromium
def test_what_keeps_a_reader_out_is_found(tmp_path: Path) -> None:
    page = "<!doctype html><html lang='en'><title>A page</title><main><h1>A page</h1>{}</main>"
    faults = {
        "image-alt": "<img src='data:,'>",
        "color-contrast": "<details>A<p style='color: #aaa; background: #fff'>faint</p></details>",
        "button-name": "<button></button>",
    }
    for name, fault in faults.items():
        (tmp_path / f"{name}.html").write_text(page.format(fault))
    (tmp_path / "good.html").write_text(page.format("<p>Good.</p>"))
    found = pages.accessible(tmp_path, sorted(tmp_path.glob("*.html")), "light")
    assert [line.split(": ")[:2] for line in found] == [
        [f"{name}.html in light", name] for name in sorted(faults)
    ]


def test_the_theme_is_mended_for_screen_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    about = importlib.import_module("about")
    table = "<table><thead><tr><th></th><th class='h'>a</th></tr></thead><tbody><tr><th>1</th>"
    page = (
        '<summary><span class="toctree-toggle" role="presentation"></span></summary>'
        '<i class="theme-switch fa-sun" title="Light"></i>'
        '<button class="btn search-button-field" title="Search" aria-label="Search">'
        f'<div class="output text_html">{table}<td>2</td></tr></tbody></table></div>'
    )
    once = about.mend(page)
    assert once.count('scope="col"') == 2
    assert once.count('scope="row"') == 1
    assert '<div class="output text_html" tabindex="0"' in once
    assert '<summary aria-label="' in once
    assert "Light" not in once
    assert '"Search" aria-label' not in once
    assert about.mend(once) == once
    signature = '<dt>f(<dl>\n<dd><em class="sig-param">x</em>,</dd>\n</dl>)</dt>'
    assert "<d" not in about.mend(signature).removeprefix("<dt>").replace("<div", "")


@pytest.mark.parametrize("index", [["model"], ["model", "variant"]])
def test_a_table_has_one_row_of_heads(monkeypatch: pytest.MonkeyPatch, index: list[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    about = importlib.import_module("about")
    rows = pd.DataFrame({"model": ["a"], "variant": ["L"], "AUC": ["0.5"], "ECE": ["0.1"]})
    mended = about.mend(rows.set_index(index).to_html())
    heads = re.findall("<th[^>]*>([^<]*)</th>", mended.partition("</thead>")[0])
    assert mended.partition("</thead>")[0].count("<tr") == 1
    assert heads == ["model", *rows.columns.drop("model")]
    # Where columns have a name of their own, two rows stay.
    named = rows.set_index(index).rename_axis("metric", axis=1).to_html()
    assert about.mend(named).partition("</thead>")[0].count("<tr") == 2


def test_cells_with_a_sentence_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    about = importlib.import_module("about")
    said = "Tuning on labels and reasons is more accurate than tuning on labels alone."
    table = pd.DataFrame({"claim": [said, "short"], "n": [1, 2]}).set_index("claim").to_html()
    linked = f'<td><p><a id="one" href="#one" title="{said}">#</a> {said}</p></td><td>{"x" * 59}'
    styled = pd.DataFrame({"claim": [said, "short"]}).style.hide().to_html()
    once = about.mend(f"{table}{linked}</td>{styled}")
    assert re.findall(r'<(t[dh])[^>]* ?class="sentence[ "]', once) == ["th", "td", "td"]
    assert "row0 col0" in once, "what a cell was called it is called still"
    assert about.mend(once) == once


def test_an_interval_is_kept_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    about = importlib.import_module("about")
    minus = "\N{MINUS SIGN}"
    for told in ("[10.1, 14.5]", f"[{minus}0.0005, +1,200.0]"):
        once = about.mend(f"<td>12.3 {told} points</td>")
        assert once == f'<td>12.3 <span class="interval">{told}</span> points</td>'
        assert about.mend(once) == once
    for other in ("<td>[a, b]</td>", "<pre>x = [1.0, 2.0]</pre>", "<td>[1, 2, 3]</td>"):
        assert about.mend(other) == other, "a list, or code to be copied"


def test_the_first_use_of_a_term_on_an_executed_page_leads_to_the_glossary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    monkeypatch.setattr(config, "studies", list)
    terms = importlib.import_module("terms")
    (tmp_path / "conf.py").write_text("extensions = ['myst_nb', 'terms']\n")
    (tmp_path / "glossary.md").write_text(terms.GLOSSARY.read_text())
    said = (
        "# An epoch\n\nEpochs, an epoch, `entropy`, [entropy](https://example.org) and "
        "*entropy*; a cross-entropy, hard as it is; calibration-errors. {term}`AUC` and AUC.\n\n"
        "Every entropy in {term}`nats <nat>`, and a nat."
    )
    (tmp_path / "_runs").mkdir()
    for page in ("index", "_runs/page"):
        (tmp_path / f"{page}.md").write_text(said)
    settings = {"myst_enable_extensions": ["dollarmath"], "nb_execution_mode": "off"}
    where = (tmp_path, tmp_path, tmp_path / "html", tmp_path / "trees", "html", settings)
    with io.StringIO() as warned:
        Sphinx(*where, status=None, warning=warned).build()
        assert "not in glossary" not in warned.getvalue()
    linked = r'<a class="reference internal" href="[^"]*#term-([\w-]+)"[^>]*><span[^>]*>([^<]*)<'
    found = {
        page: re.findall(linked, (tmp_path / "html" / f"{page}.html").read_text())
        for page in ("index", "_runs/page")
    }
    asked = [("AUC", "AUC"), ("nat", "nats")]
    assert found["index"] == asked, "prose of its own says what it links"
    first = [("epoch", "Epochs"), ("cross-entropy", "cross-entropy"), asked[0], ("entropy",) * 2]
    assert found["_runs/page"] == [*first, asked[1]]


def test_everyday_words_are_entries_and_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    terms = importlib.import_module("terms")
    text = terms.GLOSSARY.read_text()
    assert all(f"\n{name}\n  " in text for name in (*terms.EVERYDAY, *terms.entries()))
    assert not terms.EVERYDAY & {*terms.entries()}


def test_notebooks_open_elsewhere_once_the_repository_has_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    about, notebook = importlib.import_module("about"), "notebooks/reasons/evaluate.ipynb"
    told = dict(about.citation())
    told.pop("repository-code", None)
    monkeypatch.setattr(about, "citation", lambda: told)
    assert about.launch(notebook) == "", "without an address there is nothing to open"
    told["repository-code"] = "https://github.com/someone/ethalign.git"
    assert f"/github/someone/ethalign/blob/HEAD/{notebook}" in about.launch(notebook)
    assert f"/gh/someone/ethalign/HEAD?labpath={notebook}" in about.launch(notebook)
    told["repository-code"] = 'https://github.com/a"><script>/b'
    assert about.launch(notebook) == "", "not an address"
