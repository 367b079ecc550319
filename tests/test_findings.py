"""What was found, as it is shown: from committed records alone, with no number typed by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import command
from scipy import stats
from typer.testing import CliRunner

from ethalign import (
    book,
    claims,
    cli,
    config,
    metrics,
    pipeline,
    records,
    reference,
    results,
    study,
    tables,
)
from ethalign.config import ROOT

PAGES = sorted((ROOT / "notebooks").glob("*/findings.ipynb"))
# Digits that are no result: levels, names of models and of methods, and minutes of a class.
NAMES = r"95 %|90 minutes|GPT-4o|LLaMA2|^\d\. "


def prose(page: Path) -> str:
    """What a person wrote on a page, without code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return text


def typed(text: str) -> list[str]:
    """Numbers in prose, but for those of names, links, roles, directives and placeholders."""
    text = re.sub(r"\{\{.*?\}\}|\{[\w:]+\}`[^`]*`|\]\([^)]*\)", "", text)
    text = re.sub(r"^(?:[`:]{3,}.*|:\w+:.*)$", "", text, flags=re.M)
    return re.findall(r"\d[\d.,]*", re.sub(NAMES, "", text, flags=re.M))


@pytest.mark.parametrize(
    "page", [ROOT / "book" / "welcome.md", *PAGES], ids=lambda p: p.parent.name
)
def test_no_number_is_typed_by_hand(page: Path) -> None:
    assert typed(prose(page)) == []


def test_a_number_that_is_typed_by_hand_is_found() -> None:
    assert typed("Of {{ reasons.leak.n }} rows 37.8 % are shared {cite:p}`kabir2024`.") == ["37.8"]
    assert typed("supported, at 95 % and by 12 points") == ["12"]


def test_a_sentence_that_judges_is_generated() -> None:
    """A page of findings may explain a verdict, and gives none by itself."""
    given = r"(?:is|are|was|were) (?:not )?\{term\}`(?:supported|contradicted|inconclusive)`"
    for page in [ROOT / "book" / "welcome.md", *PAGES]:
        assert not re.search(given, prose(page)), page


def test_findings_need_no_model_and_no_torch() -> None:
    """Every cell of every page runs, and neither torch nor transformers is loaded by one."""
    program = """
import sys
import matplotlib
matplotlib.use("agg")
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
from ethalign import pipeline
for page in sorted(Path("notebooks").glob("*/findings.ipynb")):
    shell = InteractiveShell()
    for cell in pipeline.code_cells(page):
        shell.run_cell(cell).raise_error()
    print("done", page.parent.name)
print("loaded", sorted({"torch", "transformers", "peft"} & {*sys.modules}))
"""
    done = command(code=program)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in (*config.studies(), "synthesis"):
        assert f"done {name}" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("name", config.studies())
def test_every_claim_of_the_abstract_is_on_its_page_and_linked_from_the_first(name: str) -> None:
    own, first = tables.glance(name), tables.glance(name, "page.html")
    found = claims.recorded(name).query("family == 'primary'")
    took_part = found.groupby("model")["verdict"].transform(lambda v: (v != "not run").any())
    found = found[took_part]  # a model that took part in no claim has no column
    glossary = (ROOT / "book" / "glossary.md").read_text().splitlines()
    for claim in (claim for claim in claims.declared(name) if claim.family == "primary"):
        row = next(line for line in own.splitlines() if f'id="{claim.id}"' in line)
        assert f'href="page.html#{claim.id}"' in first
        for verdict in found.loc[found["id"] == claim.id, "verdict"]:
            assert f"{{term}}`{verdict}`" in row
            assert verdict in glossary, "the word has an entry"
    heads = own.splitlines()[0].count("|")
    assert {line.count("|") for line in own.splitlines()} == {heads}
    assert study.find(name).headline in {claim.id for claim in claims.declared(name)}


def test_what_stands_in_the_figures_stands_in_the_key_of_variants() -> None:
    key = tables.variants("ambiguity")
    for name in ("hard", "human", "best", "human-posterior"):
        assert f"| `{name}` | {tables.word('ambiguity', name)} |" in key
    assert "| `audit` |" not in tables.variants("reasons")


def test_a_wide_table_becomes_several_that_fit() -> None:
    table = pd.DataFrame([range(9)], columns=[*"abcdefghi"], index=["one"])
    assert ["".join([*map(str, part)]) for part in tables.parts(table)] == ["abc", "def", "ghi"]
    assert [[*part.index] for part in tables.parts(table)] == [["one"]] * 3
    assert len(tables.parts(table.iloc[:, :4])) == 1
    assert tables.parts(pd.DataFrame()) == []


def test_no_raw_key_stands_in_a_table_of_findings() -> None:
    for name in config.studies():
        told = tables.claims(claims.recorded(name), name)
        for column in ("compared", "measure", "data"):
            assert not told[column].str.contains(r"_|zero-shot|pretrained|puqa|dfar").any(), column


def test_the_papers_figures_stand_beside_the_claims() -> None:
    """Differences and Newcombe's interval by hand, and the sign of a claim that says less."""
    told = {(row["id"], row["paper"]): row for row in tables.printed("reasons").to_dict("records")}
    row = told["lr-beats-l", "Llama-2 7B"]
    assert (row["first"], row["second"]) == (0.894, 0.628)
    assert row["difference"] == pytest.approx(0.266)

    def wilson(p: float, n: int) -> tuple[float, float]:
        z = stats.norm.ppf(0.975)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return ((p + z * z / (2 * n) - half) / (1 + z * z / n)), (
            (p + z * z / (2 * n) + half) / (1 + z * z / n)
        )

    (l1, u1), (l2, u2) = wilson(0.894, 500), wilson(0.628, 500)
    assert row["low"] == pytest.approx(0.266 - math.hypot(0.894 - l1, u2 - 0.628))
    assert row["high"] == pytest.approx(0.266 + math.hypot(u1 - 0.894, 0.628 - l2))
    less = told["lr-misaligned-less-than-l", "Llama-2 7B"]
    assert less["difference"] == pytest.approx(0.384 - 0.094), "fewer misaligned is for the claim"
    companion = {claim.id for claim in claims.declared("reasons") if claim.source == "companion"}
    assert not companion & {key for key, _ in told}, "these are not the paper's claims"
    sizes = tables.printed("honesty").query("id == 'confidence-verb-beats-unaligned'")
    assert sizes["paper"].tolist() == ["7B", "13B", "70B"]
    assert sizes["low"].isna().all(), "of honesty the n that an interval needs are not printed"
    assert tables.printed("ambiguity").empty


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("smollm2-135m-instruct", 135e6),
        ("qwen2.5-coder-0.5b-instruct", 0.5e9),
        ("Llama-2 7B", 7e9),
        ("mistralai-Mistral-7B-Instruct-v0.1", 7e9),
        ("minilm-l6", math.nan),
    ],
)
def test_the_size_of_a_model_is_read_from_its_name(model: str, size: float) -> None:
    assert records.size_of(model) == pytest.approx(size, nan_ok=True)


def test_the_first_figure_has_every_study_and_says_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = book.effects()
    assert 'src="data:image/svg+xml;base64,' in drawn
    said = re.findall(r'alt="([^"]*)"', drawn)[0]
    for row in tables.effects().to_dict("records"):
        told = tables.span(*(row[key] for key in tables.SPAN))
        assert f"{row['label']} ({row['source']}): {told}" in said
    assert {*tables.effects()["study"]} == {*config.studies()}
    # A further model of ours is one more point.
    known = claims.recorded("reasons")
    known = known[known["model"] == known["model"].iloc[0]]
    two = known.assign(model="qwen2.5-coder-1.5b-instruct", difference=0.1, low=0.05, high=0.2)
    both = {"reasons": [known, two]}
    ours = lambda name, scale="small": pd.concat(both.get(name, [known.iloc[:0]]))  # noqa: E731
    monkeypatch.setattr(claims, "recorded", lambda name, scale="small": known)
    assert tables.effects("reasons")["claim"].nunique() == 1, "one model carries no other claim"
    monkeypatch.setattr(claims, "recorded", ours)
    mine = tables.effects().query("source == 'here'")
    assert mine["size"].tolist() == [135e6, 1.5e9]
    claims_of_two = {*known.query("family == 'primary' and n > 0")["claim"]}
    assert {*tables.effects("reasons")["claim"]} == claims_of_two
    assert len(claims_of_two) > 1
    assert all(claim in book.effects("reasons") for claim in claims_of_two)
    assert tables.answer("reasons").count("{term}") == 2
    assert "Qwen2.5-Coder 1.5B" in tables.glance("reasons").splitlines()[0]


def test_without_runs_the_book_has_findings_and_no_page_that_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ROOT.glob("book/**/_toc.yml"):
        target = tmp_path / path.relative_to(ROOT / "book")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    for name in (*config.studies(), "synthesis"):
        page = tmp_path / "_runs" / name / "findings.ipynb"
        page.parent.mkdir(parents=True)
        page.write_text("{}")
    monkeypatch.setattr(book, "BOOK", tmp_path)

    def files(toc: Any) -> list[str]:
        return re.findall(r"'file': '([^']+)'", str(toc))

    early = [name for name in files(book.contents([])) if name.startswith("_runs/")]
    names = [*(owner.name for owner in study.everything()), "synthesis"]
    assert early == [f"_runs/{name}/findings" for name in names]
    jobs = [job for name in config.studies() for job in study.plan(name)]
    whole = book.contents(jobs)
    made = {f"_runs/{book.name_of(job)}" for job in jobs}
    assert made <= {*files(whole)}
    assert whole["parts"][-1]["caption"] == "Workshop"
    kept = {f"_runs/{name}/results" for name in config.studies()}
    assert made - {*files(whole["parts"][-1])} == kept, "results stand with their study"


@pytest.mark.parametrize(("name", "variant"), [("reasons", "L"), ("ambiguity", "hard")])
def test_scores_of_the_largest_model_are_those_of_its_record(name: str, variant: str) -> None:
    owner, told = study.find(name), tables.facts(name)
    folders = (results.RESULTS / name / "small").glob(f"*/{variant}/0")
    largest = max(folders, key=lambda folder: records.size_of(folder.parts[-3]))
    assert tables.word(name, largest.parts[-3]) == told["largest"] != told["smallest"]
    rows = json.loads((largest / "metrics.json").read_text())
    (row,) = (
        row
        for row in rows
        if (row["dataset"], row["stratum"], row["metric"]) == (owner.main, "all", "accuracy")
    )
    value = metrics.shown(row["value"], row["unit"])
    assert told["largest_scores"][variant]["accuracy"] == value
    assert told["scores"][variant]["accuracy"] != value, "which are of the smallest"


def test_findings_are_executed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def execute(notebook: Path, target: Path, values: Mapping[str, Any]) -> None:
        done.append(notebook.parent.name)
        made = json.loads(notebook.read_text())
        for cell in made["cells"]:
            cell["metadata"]["papermill"] = {"duration": 1.0}
        records.write(target, json.dumps(made))

    monkeypatch.setattr(book, "BOOK", tmp_path)
    monkeypatch.setattr(pipeline, "execute", execute)
    assert len(book.findings()) == len(PAGES) == len(done)
    first = [page.read_text() for page in sorted(tmp_path.rglob("findings.ipynb"))]
    assert book.findings() == []
    again = [page.read_text() for page in sorted(tmp_path.rglob("findings.ipynb"))]
    assert first == again, "or the book would be built again"
    (tmp_path / "_runs" / "reasons" / "findings.ipynb").unlink()
    assert [page.parent.name for page in book.findings()] == ["reasons"]
    book.collect([])
    assert book.findings() == [], "findings stay when no notebook of a run is there"


def test_findings_are_announced_before_the_workshop_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "_build" / "html" / "index.html"
    order: list[str] = []

    def build(jobs: Any, **_: Any) -> Path:
        order.append("whole" if jobs else "findings")
        records.write(first, "here")
        return first

    def run(*_: Any, **__: Any) -> int:
        order.append("run")
        return 3

    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(book, "build", build)
    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(config, "studies", lambda: ["reasons"])
    monkeypatch.setattr(study, "plan", lambda *_: ["job"])
    monkeypatch.setattr(pipeline, "share", lambda names, _: {name: {} for name in names})
    told = CliRunner().invoke(cli.app, ["book"])
    assert order == ["findings", "run", "whole"], told.output
    assert told.output.splitlines()[0] == f"the findings are ready: {first}"
    CliRunner().invoke(cli.app, ["book"])
    assert order[3:] == ["run", "whole"], "a book that is there stays until the next is built"


def test_the_readme_tells_what_the_records_say() -> None:
    told = book.README.read_text(encoding="utf-8")
    assert told == book.front(), "ethalign claims STUDY brings it up to date"
    answers = told.split(book.MARKS[0])[1].split(book.MARKS[1])[0]
    for owner in study.everything():
        assert owner.question in answers
    assert "{term}" not in answers  # a page of the book this is not


def test_an_answer_typed_into_the_readme_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "README.md"
    text = book.README.read_text(encoding="utf-8")
    copy.write_text(text.replace(book.MARKS[1], f"- Reasons help.\n{book.MARKS[1]}"))
    monkeypatch.setattr(book, "README", copy)
    assert copy.read_text() != book.front() == text


def test_tables_leave_out_a_model_that_took_part_in_none_of_their_claims() -> None:
    table = claims.recorded("reasons").assign(run="reference")
    part = table[table["family"] == "primary"].copy()
    idle, *others = part["model"].unique()
    part.loc[part["model"] == idle, "verdict"] = "not run"
    part.loc[part["model"].isin(others), "verdict"] = "inconclusive"
    shown = tables.claims(pd.concat([part, part.assign(run="this run")]), "reasons")
    assert {*shown["model"]} == {tables.word("reasons", model) for model in others}
    nothing = tables.claims(part.assign(verdict="not run"), "reasons")
    assert len(nothing) == len(part), "where nothing was run, this is said"


@pytest.mark.parametrize("name", config.studies())
def test_the_table_of_reference_runs_has_each_with_what_was_set(name: str) -> None:
    told = reference.made(name)
    seeds = sum(int(n) for n in re.findall(r" \((\d+)\)(?=;| \|)", told))
    folders = [path.parent for path in (results.RESULTS / name / "small").glob("*/*/*/run.json")]
    assert seeds == len(folders) > 5
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        if "finetune" in record["stages"]:
            model = tables.word(name, folder.parts[-3])
            rates = [row for row in told.splitlines() if row.startswith(f"| {model} |")]
            rate = config.read_yaml(folder / "config.yaml")["tuning"]["lr"]
            assert any(f"| {rate:g} |" in row for row in rates), folder
