"""The book as a reader gets it: built with warnings as errors, offline, legible."""

import html
import importlib
import io
import json
import os
import re
import shutil
import xml.dom.minidom
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import pages
import pandas as pd
import pytest
import yaml
from sphinx.application import Sphinx

from ethalign import book, claims, config, models, records, reference, study, tables
from ethalign.config import ROOT

needs_chromium = pytest.mark.skipif(
    pages.chromium() is None, reason=f"no Chromium here: none of {', '.join(pages.CHROMIUM)}"
)


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``ETHALIGN_BOOK`` names, or a book built from the runs at scale smoke."""
    if os.environ.get("ETHALIGN_BOOK"):
        return Path(os.environ["ETHALIGN_BOOK"]).resolve()
    runs = request.getfixturevalue("runs")
    home = tmp_path_factory.mktemp("book")
    hidden = shutil.ignore_patterns("_runs", "_generated", "__pycache__")
    for name in ("book", "notebooks"):
        shutil.copytree(ROOT / name, home / name, ignore=hidden)
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, home)
    for name in ("ethalign", "configs", "results", "tests"):
        (home / name).symlink_to(ROOT / name)
    jobs = [j for n in config.studies() for j in study.plan(n, (), "smoke", runs=runs)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "ROOT", home)
        patch.setattr(book, "BOOK", home / "book")
        patch.setattr(book, "GENERATED", home / "book" / "_generated")
        page = book.build(jobs)
        before = page.stat().st_mtime_ns
        assert book.build(jobs).stat().st_mtime_ns == before, "built again"
    return page.parent


@pytest.fixture(scope="session")
def texts(built: Path) -> dict[str, str]:
    """Page name to the visible text of its article."""
    found = {}
    for path in pages.pages(built):
        body = re.sub(
            r"<(script|style)\b.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.S
        )
        found[str(path.relative_to(built))] = html.unescape(re.sub(r"<[^>]+>", " ", body))
    return found


def test_every_page_of_the_contents_is_there(built: Path) -> None:
    paths = [ROOT / "book" / "_toc.yml", *(ROOT / "book").glob("*/_toc.yml")]
    toc = [yaml.safe_load(path.read_text()) for path in paths]
    files = re.findall(r"'file': '([^']+)'", str(toc))
    assert len(files) > 15
    for name in files:
        assert (built / f"{name}.html").is_file(), name


def test_nothing_is_loaded_from_another_host(built: Path) -> None:
    assert list(pages.static(built)) == []


def test_a_page_that_would_load_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<script src="https://cdn.example/x.js"></script>')
    (tmp_path / "b.html").write_text("<style>@import 'https://fonts.example/y';</style>")
    assert len(list(pages.static(tmp_path))) == 2


def test_every_image_has_a_text_for_those_who_do_not_see_it(built: Path) -> None:
    for path in pages.pages(built):
        for tag in re.findall(r"<img\b[^>]*>", path.read_text(encoding="utf-8")):
            alt = re.search(r'\balt="([^"]*)"', tag)
            told = alt[1] if alt else ""
            assert len(told) > 5, (path, tag)
            assert not told.endswith((".png", ".svg")), ("no text but its own address", path, tag)


def test_prose_quotes_recorded_numbers(texts: dict[str, str]) -> None:
    """No placeholder is left, and the leak stands on the study's first page as it was recorded."""
    for name, text in texts.items():
        assert "{{ " not in text, name
    leak = tables.facts("reasons")["leak"]
    page = re.sub(r"\s+", "", texts["reasons/index.html"])
    assert f"Ofthe{leak['test_in_train_of']}statementsinDFAR" in page
    share = leak["test_in_train_percent"].replace(" ", "")
    assert f"{leak['test_in_train']}({share})alsooccur" in page


def test_every_module_is_in_the_reference() -> None:
    page = reference.api_pages()
    for path in (ROOT / "ethalign").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem != "__init__":
            assert f"automodule:: {name}\n" in page


def test_pages_show_no_warning_and_no_folder_of_the_machine(built: Path) -> None:
    for path in pages.pages(built):
        text = path.read_text(encoding="utf-8")
        assert "site-packages" not in text, path
        assert not re.search(r"\w+Warning: ", text), path


def test_tables_of_pages_are_whole_and_have_room(built: Path) -> None:
    """Nothing is cut off in the middle, and every table of an output has the look of tables."""
    seen = 0
    for path in (built / "_runs").rglob("*.html"):
        page = path.read_text()
        cut = re.findall(r">([^<>]*\.\.\.)</td>", page)
        assert not [text for text in cut if len(html.unescape(text)) == 50], path  # as pandas cuts
        cell = (
            r'<div class="output text_html"[^>]*>\s*(?:<div>|<style.*?</style>|\s)*(<table[^>]*>)'
        )
        outputs = re.findall(cell, page, re.S)
        assert not [table for table in outputs if "dataframe" not in table], path
        seen += len(outputs)
    assert seen, "or the pattern has grown old"


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


def test_every_parameter_is_in_the_guide(texts: dict[str, str]) -> None:
    for study_name in config.studies():
        for name, *_ in config.parameters(study.find(study_name).run):
            # Study, variant, scale and seed are coordinates of a run and not in the table.
            assert name in texts["parameters.html"] or name in (
                "study",
                "variant",
                "scale",
                "seed",
            )


def test_every_printed_figure_of_the_paper_is_on_the_page(texts: dict[str, str]) -> None:
    for model in ("Llama-2 7B, L+R", "Mistral 7B, pre-trained"):
        assert model in texts["reasons/index.html"]
    assert "89.4" in texts["reasons/index.html"]
    for model in ("13B, Multisample", "70B, Confidence-Verb", "13B, Multisample + MMLU data"):
        assert model in texts["honesty/index.html"]
    assert "75.9" in texts["honesty/index.html"]


def test_the_row_that_does_not_follow_from_its_parts_is_named(texts: dict[str, str]) -> None:
    page = " ".join(texts["_runs/honesty/results.html"].split())
    assert "27 of 28 rows follow" in page
    assert "70B, Confidence-Verb" in page


def test_pages_made_from_invented_votes_say_so(texts: dict[str, str]) -> None:
    pages = [n for n in texts if re.match("_runs/ambiguity/(?!finetune|findings)", n)]
    assert len(pages) == 4
    for name in pages:
        assert "illustrative votes: nobody cast them" in " ".join(texts[name].split()), name


def test_pages_of_variants_can_be_told_apart(built: Path) -> None:
    titles = [
        re.findall(r"<title>(.*?)</title>", path.read_text(encoding="utf-8"), re.S)[0]
        for path in pages.pages(built)
    ]
    assert len(set(titles)) == len(titles)


def test_formulas_are_part_of_the_page(built: Path) -> None:
    page = (built / "reasons" / "index.html").read_text(encoding="utf-8")
    assert page.count("<math") > 20
    assert "MathJax" not in page


def test_executed_pages_say_what_was_run(texts: dict[str, str]) -> None:
    stages = ["reasons/evaluate", "reasons/baselines", "ambiguity/finetune"]
    for stage in [*stages, "honesty/knowledge", "honesty/evaluate"]:
        text = " ".join(texts[f"_runs/{stage}.html"].split())
        assert re.search(r"seed 0.* s; ethalign .*commit", text), stage


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


@needs_chromium
def test_each_handout_is_one_sheet_of_paper_with_room_to_write(built: Path) -> None:
    with pages.opened() as context:
        page = context.new_page()
        page.goto((built / "handouts.html").as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        narrowest = page.evaluate(
            "Math.min(...Array.from(document.querySelectorAll('div.handout td:has(> p:empty)'),"
            " (cell) => cell.offsetWidth))"
        )
    # An opening page, the sheets, and what stands below every page of the book.
    sheets = (ROOT / "book" / "handouts.md").read_text(encoding="utf-8").count("\n## ")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == sheets + 2
    assert narrowest > 100


@needs_chromium
def test_one_switch_shows_all_code(built: Path) -> None:
    with pages.opened() as context:
        page = context.new_page()
        page.goto((built / "_runs" / "reasons" / "results.html").as_uri())
        code = page.locator("details.hide.above-input div.cell_input")
        assert code.count() > 10
        assert not code.nth(5).is_visible()
        switch = page.get_by_role("button", name="Show all code")
        switch.press("Enter")
        assert code.nth(5).is_visible()
        assert switch.get_attribute("aria-pressed") == "true"
        switch.press("Enter")
        assert not code.nth(5).is_visible()


def test_results_show_the_reference_first_and_this_run_folded_at_the_end(built: Path) -> None:
    for name in config.studies():
        page = text_of(built, f"_runs/{name}/results.html")
        article = page.partition("<article")[2].partition("</article>")[0]
        before, _, after = article.partition("This run, on this machine")
        shown, own = (re.sub(r"<[^>]+>", "", part) for part in (before, after))
        # The book of the tests is of scale smoke, that of readers of tiny.
        assert not re.search(r"smoke|random-tiny|Scale tiny", shown), name
        assert re.search(r"Scale (?:smoke|tiny), seed 0", own), name
        assert before.rfind("<details") > before.rfind("</details>"), "folded"
        assert "injected-parameters" not in article


@needs_chromium
def test_figures_leave_no_pale_slab_in_the_dark(built: Path) -> None:
    """The corner of a figure is as dark as the page beside it."""
    for name, width in (("_runs/reasons/findings", 1280), ("_runs/reasons/evaluate", 390)):
        with pages.opened(width, color_scheme="dark") as context:
            page = context.new_page()
            page.goto((built / f"{name}.html").as_uri())
            figure = page.locator("article img:visible").first
            figure.scroll_into_view_if_needed()
            box = figure.bounding_box()
            assert box
            assert box["width"] > 500, "not shrunk until its labels cannot be read"
            shot = page.screenshot(clip={"x": box["x"], "y": box["y"], "width": 4, "height": 4})
            corner = plt.imread(io.BytesIO(shot))[..., :3]
            assert corner.max() < 0.2, name


def test_variants_stand_in_tabs_that_switch_together(built: Path) -> None:
    page = text_of(built, "_runs/reasons/evaluate.html")
    synced = re.findall(r'data-sync-id="([^"]+)"', page)
    variants = list(dict.fromkeys(synced))
    assert variants == [*study.variants(study.find("reasons"))]
    assert len(synced) > len(variants), "several sets of tabs"
    assert {*map(synced.count, variants)} == {synced.count("LR")}
    assert page.count("reasons-evaluate-majority") > 0, "the exercise is there"
    for name in variants:
        copy = built / "runs" / "reasons" / f"evaluate-{name}.ipynb"
        assert f'href="../../runs/reasons/{copy.name}"' in page
        assert name in copy.read_text(encoding="utf-8")


@needs_chromium
def test_an_old_address_leads_to_the_variant(built: Path) -> None:
    old = built / "_runs" / "honesty" / "evaluate-multisample.html"
    with pages.opened() as context:
        page = context.new_page()
        page.goto(old.as_uri())
        page.wait_for_url("**/evaluate.html?variant=multisample")
        shown = page.locator(".sd-tab-label[data-sync-id=multisample]").first
        shown.wait_for()
        assert page.locator(f"#{shown.get_attribute('for')}").is_checked()


def test_every_page_that_leads_on_leads_somewhere(built: Path) -> None:
    found = {path: pages.leads_to(path) for path in built.rglob("*.html")}
    moved = {path: place for path, place in found.items() if place}
    assert len(moved) > 40
    for path, place in moved.items():
        assert (path.parent / place.partition("?")[0]).is_file(), (path, place)
    for name in config.studies():
        for stage in ("finetune", "evaluate"):
            assert built / name / f"{stage}.html" in moved


def test_next_and_previous_follow_the_contents(built: Path) -> None:
    """From the first page on, and not into the appendix of executed notebooks."""
    follow = {
        way: {
            path: (path.parent / found[1]).resolve()
            for path in pages.pages(built)
            if (
                found := re.search(
                    rf'<a class="{way}"\s+href="([^"]+)"', path.read_text(encoding="utf-8")
                )
            )
        }
        for way in ("right-next", "left-prev")
    }
    page: Path | None = built / "welcome.html"
    chain = []
    while page is not None and page not in chain:
        chain.append(page)
        page = follow["right-next"].get(page)
    front = text_of(built, "welcome.html").partition('<nav class="bd-links')[2]
    listed = [built / p for p in re.findall(r'href="([^"#]+)"', front.partition("</nav>")[0])]
    appendix = built / "workshop.html"
    assert listed.index(appendix) > 20
    assert chain[1:] == listed[: listed.index(appendix)]
    assert appendix not in follow["left-prev"]
    assert follow["left-prev"][chain[5]] == chain[4]


@needs_chromium
def test_a_browser_opens_every_page_without_the_internet(built: Path) -> None:
    assert pages.browser(built) == []


@needs_chromium
def test_the_search_works_without_a_server(built: Path) -> None:
    assert any("honesty" in title.lower() for title in pages.search(built, "honesty"))
    assert pages.search(built, "zyxwvutsrq") == []


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
        "scrolls sideways by 1": "<div style='width: 100vw'>as wide as the window</div>",
    }
    page = """<!doctype html><meta name="viewport" content="width=device-width">
        <body style="margin: 0"><div style="height: 3000px">tall</div>"""
    (tmp_path / "good.html").write_text(page)
    for number, fault in enumerate(faults.values()):
        (tmp_path / f"{number}.html").write_text(page + fault)
    found = pages.browser(tmp_path)
    # 1000 px are too wide for a phone only; only a desktop's scrollbar takes room.
    once = {"scrolls sideways by 6": 390, "scrolls sideways by 1": 1280}
    for number, name in enumerate(faults):
        for width in (390, 1280):
            wanted = once.get(name, width) == width
            line = f"{number}.html at {width} px: {name}"
            assert any(x.startswith(line) for x in found) == wanted, (line, found)
    assert not [x for x in found if x.startswith("good.html")]


@needs_chromium
@pytest.mark.skipif("ETHALIGN_BOOK" not in os.environ, reason="minutes: for the book itself")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_a_reader_out(built: Path, scheme: Literal["light", "dark"]) -> None:
    """No serious or critical violation of WCAG, with everything folded opened."""
    assert pages.accessible(built, pages.pages(built), scheme) == []


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


def test_every_page_says_what_was_run_and_how_to_cite_it(built: Path) -> None:
    cited = config.read_yaml(ROOT / "CITATION.cff")
    for path in pages.pages(built):
        text = html.unescape(path.read_text(encoding="utf-8"))
        if path.name in ("genindex.html", "search.html"):
            continue
        assert "What was run." in text, path
        assert "@software{ethalign" in text, path
        assert f"version = {{{cited['version']}}}" in text, path
        tags = dict(re.findall(r'<meta (?:name|property)="([\w:]+)" content="([^"]*)"', text))
        assert tags["citation_author"] == "The ethalign authors"
        assert tags["og:title"] in text.partition("<title>")[2]
        for link in re.findall(r'<a href="([^"]+)" download>', text):
            assert (path.parent / link).is_file(), (path, link)
    rows = re.findall(r"<td>smollm2-135m-instruct</td>", text_of(built, "reasons/index.html"))
    assert len(rows) == len([*ROOT.glob("results/reasons/small/smollm2-135m-instruct/*/*")])
    assert "data/reasons-metrics.csv" in text_of(built, "_runs/reasons/evaluate.html")
    assert "notebooks/reasons/evaluate.ipynb" in text_of(built, "_runs/reasons/evaluate.html")


def text_of(built: Path, name: str) -> str:
    return (built / name).read_text(encoding="utf-8")


def test_every_claim_has_an_address(built: Path) -> None:
    for name in config.studies():
        page = text_of(built, f"{name}/index.html")
        for claim in claims.declared(name):
            assert page.count(f'id="claim-{claim.id}"') == 1, claim.id


@needs_chromium
@pytest.mark.parametrize("name", config.studies())
def test_predictions_are_explored_in_the_book(built: Path, name: str) -> None:
    with pages.opened() as context:
        page = context.new_page()
        page.goto((built / name / "explorer.html").as_uri())
        page.wait_for_selector(f"#{name}-reference[data-ready]")
        link = page.locator(f"#{name}-reference .explorer-rows tbody a").nth(20)
        link.click()
        panel = page.locator(f"#{name}-reference .explorer-item")
        assert panel.locator("h3").inner_text() == link.inner_text()
        assert panel.locator("tbody tr").count() > 1


def test_the_book_is_small(built: Path) -> None:
    assert sum(path.stat().st_size for path in built.rglob("*") if path.is_file()) < 25e6
