"""The explorer of predictions, as a reader drives it in a browser."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pages
import pandas as pd
import pytest
from conftest import needs_chromium
from playwright.sync_api import BrowserContext, Page

from ethalign import config, explorer, records, results, study
from ethalign.config import ROOT

EVIL = '<img src=x onerror="document.title = 1">'
ROWS = 5000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two predictors on 5,000 items, as runs of one study; ids say what is in a row."""
    home = tmp_path_factory.mktemp("runs")
    for variant in ("L", "LR"):
        folder = home / "a-model" / variant / "0"
        rows = [
            {
                "id": f"item-{k}",
                "dataset": "ethos" if k == 7 else "dfar",
                "stratum": "contaminated" if k % 5 == 0 else "clean",
                "gold": "unethical" if k % 3 == 0 else "ethical",
                "verdict": "unethical" if k == 42 and variant == "LR" else "ethical",
                "logp_ethical": 0.0 if k else -5.0,
                "logp_unethical": -1.0 if k == 4321 else -3.0,
                "reason": "=1+1",
            }
            for k in range(ROWS)
        ]
        records.write(folder / "predictions.jsonl", "".join(map(records.line, rows)))
        # Its own settings do not matter: the words come from below.
        run = config.resolve("reasons", variant, "smoke")
        records.write(folder / "config.yaml", run.model_dump(mode="json"))
    return home


def worded(run: Any) -> pd.DataFrame:
    """The words of these items; one of them is out to run as a script."""
    words = [EVIL if k == 12 else f"statement {k}" for k in range(ROWS)]
    names = [f"item-{k}" for k in range(ROWS)]
    data = ["ethos" if k == 7 else "dfar" for k in range(ROWS)]
    return pd.DataFrame({"id": names, "dataset": data, "statement": words, "reason": "so"})


@pytest.fixture(scope="module")
def owner() -> study.Study:
    found = study.find("reasons")
    assert found.shown is not None
    return found._replace(shown=found.shown._replace(texts=worded))


@pytest.fixture(scope="module")
def built(home: Path, owner: study.Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page")
    return explorer.edition(owner, {"reference": home}, target, words=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    with pages.opened() as context:
        yield context


@pytest.fixture
def page(built: Path, browser: BrowserContext) -> Iterator[Page]:
    page = browser.new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(built.as_uri())
    page.wait_for_selector("section[data-ready]")
    yield page
    page.close()


def items(page: Page) -> list[str]:
    return page.locator(".explorer-rows tbody th").all_inner_texts()


def test_committed_predictions_are_packed_as_they_are() -> None:
    """Every verdict and probability, against the file itself; no word of a data set."""
    home = results.RESULTS / "reasons" / "small"
    found = explorer.pack(study.find("reasons"), home, explorer.predictions(home))
    assert found["words"] == []
    # What is no language model has one file for all of its predictors.
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in home.glob("*/*/*/predictions.jsonl"):
        for row in records.read_rows(path):
            variant = row.get("variant", path.parent.parent.name)
            run = path.parents[2].name, int(path.parent.name), variant
            kept.setdefault(run, {})[row["id"]] = row
    for predictor in found["predictors"]:
        own = kept.pop((predictor["model"], predictor["seed"], predictor["variant"]))
        for k, name in enumerate(found["names"]):
            if name not in own:
                assert predictor["verdict"][k] is None
                continue
            assert found["verdicts"][predictor["verdict"][k]] == own[name]["verdict"]
            if "logp_ethical" in own[name]:
                odds = own[name]["logp_unethical"] - own[name]["logp_ethical"]
                # The verdict is the more probable label, so the two columns must tell the same.
                assert (predictor["p"][k] > 500) == (odds > 0) or abs(odds) < 0.003
    assert not kept, "every file is shown"
    assert {p["variant"] for p in found["predictors"]} >= {"pretrained", "L", "LR", "R-then-L"}


@pytest.mark.parametrize("name", config.studies())
def test_committed_predictions_of_every_study_are_small(name: str) -> None:
    owner = study.find(name)
    home = results.RESULTS / name / "small"
    found = explorer.pack(owner, home, explorer.predictions(home))
    runs = len(found["predictors"])
    assert len(found["names"]) > 1000
    assert len(set(found["names"])) == len(found["names"]), "a link leads to two items"
    assert len(explorer.script(name, found)) < len(found["names"]) * (60 + 9 * runs)
    assert explorer.start(found)[0]["variant"] in owner.order[:9]


def test_first_rows_are_there_without_a_script(built: Path) -> None:
    text = re.sub(r"<script.*?</script>", "", built.read_text())
    assert text.count("<tr>") == 1 + explorer.PAGE
    assert f"The first 50 of {ROWS:,} items" in text
    assert "statement 3" in text
    assert EVIL not in text
    assert "&lt;img src=x" in text
    assert "statement 7<" not in text, "a flagged text stands there without a warning"


def test_words_of_official_data_are_left_out_of_the_book(
    home: Path, owner: study.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = explorer.predictions(home)
    assert explorer.pack(owner, home, tables)["words"] != []  # samples are ours
    official = config.resolve("reasons", "L", "smoke", 0, {"data.source": "official"})
    settings = official.model_dump(mode="json")
    monkeypatch.setattr(config, "read_yaml", lambda path: settings)
    found = explorer.pack(owner, home, tables)
    assert (found["words"], found["flagged"]) == ([], [])
    assert "wrote" not in found["predictors"][0]
    assert explorer.pack(owner, home, tables, local=True)["words"] != []


@needs_chromium
def test_five_thousand_rows_are_ready_within_two_seconds(page: Page) -> None:
    """In seconds of the page's own thread, whatever else the machine is doing."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.reload()
    page.wait_for_selector("section[data-ready]")
    page.get_by_label("Search items").fill("item-4999")
    assert items(page) == ["item-4999"]
    found = devtools.send("Performance.getMetrics")["metrics"]
    seconds = next(metric["value"] for metric in found if metric["name"] == "TaskDuration")
    assert 0.01 < seconds < 2


@needs_chromium
def test_rows_are_searched_and_filtered(page: Page) -> None:
    status = page.get_by_role("status")
    assert status.inner_text() == "5,000 of 5,000 items, rows 1 to 50 shown"
    page.get_by_label("Search items").fill("STATEMENT 123")
    assert items(page) == ["item-123", *(f"item-{k}" for k in range(1230, 1240))]
    page.get_by_label("Search items").fill("")
    page.get_by_label("disagreement").select_option("predictors differ")
    assert items(page) == ["item-42"]
    # With one variant nothing can differ.
    page.get_by_label("LR", exact=True).uncheck()
    assert items(page) == []
    page.get_by_label("disagreement").select_option("some differ from: people say")
    assert status.inner_text().startswith(f"{len(range(0, ROWS, 3)):,} of")
    page.get_by_label("stratum").select_option("contaminated")
    assert status.inner_text().startswith(f"{len(range(0, ROWS, 15)):,} of")
    page.get_by_role("button", name="Next rows").click()
    assert items(page)[0] == f"item-{15 * 50}"


@needs_chromium
def test_seeds_of_a_variant_stand_side_by_side(
    home: Path, owner: study.Study, browser: BrowserContext, tmp_path: Path
) -> None:
    tables = explorer.predictions(home)
    again = tables["a-model", 0, "LR"].replace({"verdict": {"unethical": "ethical"}})
    found = explorer.pack(owner, home, tables | {("a-model", 1, "LR"): again})
    source, script = tmp_path / "data.js", (ROOT / "book/_static/explorer.js").read_text()
    source.write_text(explorer.script("reasons", found))
    block = explorer.block("reasons", "Two seeds", found, source.as_uri())
    (tmp_path / "page.html").write_text(f"<body>{block}<script>{script}</script></body>")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_selector("section[data-ready]")

    def columns() -> list[str]:
        heads = page.locator(".explorer-rows thead th").all_inner_texts()
        return [head for head in heads if head.startswith("L")]

    assert columns() == ["L", "LR"], "the first seed of each to begin with"
    seeds = page.get_by_role("group", name="Training seeds")
    seeds.get_by_label("1").check()
    assert columns() == ["L, seed 0", "LR, seed 0", "LR, seed 1"]
    page.get_by_label("L", exact=True).uncheck()
    page.get_by_label("disagreement").select_option("predictors differ")
    assert items(page) == ["item-42"]
    seeds.get_by_label("0").uncheck()
    assert columns() == ["LR"]
    page.close()


@needs_chromium
def test_rows_are_sorted_by_keyboard(page: Page) -> None:
    head = page.get_by_role("columnheader", name="LR", exact=True)
    assert head.get_attribute("aria-sort") == "none"
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert items(page)[0] == "item-1"
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert items(page)[:2] == ["item-0", "item-4321"]
    assert page.evaluate("document.activeElement.textContent") == "LR"


@needs_chromium
def test_a_link_opens_an_item_whose_text_stays_a_text(page: Page, built: Path) -> None:
    page.goto(f"{built.as_uri()}#reasons-reference=item-12")
    page.reload()
    panel = page.get_by_role("region", name="item-12", exact=True)
    assert EVIL in panel.inner_text()
    assert "=1+1" in panel.inner_text(), "what the model wrote"
    assert page.locator("img").count() == 0
    assert page.title() != "1"
    assert page.evaluate("document.activeElement.textContent") == "item-12"
    panel.get_by_role("button", name="Close").click()
    assert not panel.is_visible()
    page.get_by_role("link", name="item-3", exact=True).click()
    assert page.get_by_role("region", name="item-3", exact=True).is_visible()


@needs_chromium
def test_flagged_texts_are_shown_and_found_only_when_asked_for(page: Page) -> None:
    search = page.get_by_label("Search items")
    search.fill("statement 7")
    assert "item-7" not in items(page)
    page.get_by_label("Show them").check()
    assert items(page)[0] == "item-7"
    assert "statement 7" in page.locator(".explorer-rows tbody tr").first.inner_text()


@needs_chromium
def test_rows_are_saved_without_formulas(page: Page, tmp_path: Path) -> None:
    page.evaluate("window.explorerData['reasons-reference'].words[0].values[5] = '=HYPERLINK(1)'")
    page.get_by_label("Search items").fill("item-5")
    with page.expect_download() as got:
        page.get_by_role("button", name="Save these rows").click()
    got.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["item"] == "item-5"
    assert rows[0]["statement"] == "'=HYPERLINK(1)"
    assert float(rows[0]["p(unethical)"]) == pytest.approx(1 / (1 + 2.718281828**3), abs=1e-3)
    assert len(rows) == 1 + 10 + 100


def test_a_cell_is_no_formula() -> None:
    for cell in ("=1", " +1", "-x", "@a", "\tb", "\rb"):
        assert records.inert(cell) == f"'{cell}"
    for other in ("", "a=1", "1-2", None, -0.5):
        assert records.inert(other) == other


def test_what_the_book_includes_has_no_words_and_no_broken_block(tmp_path: Path) -> None:
    explorer.build(tmp_path, {})
    for name in config.studies():
        text = (tmp_path / f"{name}-explorer.md").read_text()
        assert text.count("```") == 2
        source = re.search(r'data-source="\.\./(explorer/[^"]+)"', text)
        assert source
        script = (tmp_path / "files" / source[1]).read_text()
        found = json.loads(script.partition("] = ")[2].removesuffix(";\n"))
        assert found["words"] == []
        data, rows = tmp_path / "files" / "data", results.published(name)
        assert len(pd.read_csv(data / f"{name}-metrics.csv")) == len(rows)
        given = pd.read_csv(data / f"{name}-predictions.csv.gz", low_memory=False)
        assert given.groupby(["model", "seed", "variant"]).ngroups == len(found["predictors"])
        assert not {*given} & {*study.find(name).texts}
        assert (tmp_path / "files" / "notebooks" / name / "results.ipynb").is_file()


def test_sheets_hold_no_formulas_and_are_the_same_each_time(
    home: Path, owner: study.Study, tmp_path: Path
) -> None:
    tables = explorer.predictions(home)
    for place in ("one", "two"):
        explorer.sheets(owner, home, tables, tmp_path / place)
    one, two = (tmp_path / p / "reasons-predictions.csv.gz" for p in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    given = pd.read_csv(one)
    assert set(given["reason"]) == {"'=1+1"}
    assert given["logp_unethical"].min() == -3  # a number, not a text
    assert len(given) == 2 * ROWS


def test_pages_of_the_explorer_are_in_the_contents() -> None:
    for name in config.studies():
        assert f"{name}/explorer" in (ROOT / "book" / name / "_toc.yml").read_text()
