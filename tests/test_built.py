"""The built book, page by page: what stands on them, and how they behave in a browser."""

import html
import io
import os
import re
import shutil
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import pages
import pytest
import yaml
from conftest import needs_chromium

from ethalign import book, claims, config, study, tables
from ethalign.config import ROOT


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``ETHALIGN_BOOK`` names, or a book built from the runs at scale smoke."""
    if folder := os.environ.get("ETHALIGN_BOOK"):
        if not Path(folder).is_dir():
            pytest.skip(f"no book at ETHALIGN_BOOK={folder} yet; make book builds it")
        return Path(folder).resolve()
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


def test_pages_show_no_warning_and_no_folder_of_the_machine(built: Path) -> None:
    for path in pages.pages(built):
        text = path.read_text(encoding="utf-8")
        assert "site-packages" not in text, path
        assert not re.search(r"\w+Warning: ", text), path
        assert str(ROOT) not in text, path
        assert not re.search(r"object at 0x[0-9a-f]|PosixPath|&lt;function ", text), path


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


@needs_chromium
def test_each_handout_is_one_sheet_of_paper_with_room_to_write(built: Path) -> None:
    with pages.opened() as context:
        page = context.new_page()
        page.goto((built / "handouts.html").as_uri())
        printed = page.pdf(prefer_css_page_size=True)
        # The paper between its margins, of 14 and 16 mm.
        page.set_viewport_size({"width": 688, "height": 1001})
        page.emulate_media(media="print")
        heights = page.evaluate(
            "Array.from(document.querySelectorAll('section:has(> div.handout)'),"
            " (sheet) => sheet.offsetHeight)"
        )
        narrowest = page.evaluate(
            "Math.min(...Array.from(document.querySelectorAll('div.handout td:has(> p:empty)'),"
            " (cell) => cell.offsetWidth))"
        )
    # An opening page, the sheets, and what stands below every page of the book.
    sheets = (ROOT / "book" / "handouts.md").read_text(encoding="utf-8").count("\n## ")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) == sheets + 2
    assert narrowest > 100
    # With the room that a page keeps above its first heading.
    assert len(heights) == sheets
    assert max(heights) < 920


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
@pytest.mark.skipif("ETHALIGN_BOOK" not in os.environ, reason="minutes: for the book itself")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_a_reader_out(built: Path, scheme: Literal["light", "dark"]) -> None:
    """No serious or critical violation of WCAG, with everything folded opened."""
    assert pages.accessible(built, pages.pages(built), scheme) == []


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
    """What is to be taken along, if it was made, is beside the pages and not of them."""
    pages = [path for path in built.rglob("*") if path.is_file() and path.name not in book.PRINTS]
    assert sum(path.stat().st_size for path in pages) < 25e6
