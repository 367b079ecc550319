"""The contract of a study, shown by a fourth one that a test makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import toy
import yaml
from conftest import command

from ethalign import config, results, study
from ethalign.config import ROOT, Undeclared, UserError


@pytest.fixture(scope="module")
def coins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose only study is the coins, run and published."""
    project = toy.project(tmp_path_factory.mktemp("coins") / "project")
    before = _files(project)
    toy.add(project)
    assert not {p for p in before if not p.is_file()}
    touched = {p for p in _files(project) if p not in before}
    assert {p.relative_to(project).parts[:2] for p in touched} == {
        (folder, "toy") for folder in toy.FOLDERS
    }, "nothing outside the study's own folders was written"
    done = command("run", "toy", "--scale", "small", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "3 notebooks executed" in done.stdout
    assert command("publish", "toy", cwd=project).returncode == 0
    shown = command("run", "toy", "--scale", "small", cwd=project)
    assert "1 notebooks executed" in shown.stdout, "the results page shows the new reference"
    return project


def _files(project: Path) -> set[Path]:
    return {p for p in project.rglob("*") if p.is_file()}


def test_a_fourth_study_runs_and_runs_once(coins: Path) -> None:
    again = command("run", "toy", "--scale", "small", cwd=coins)
    assert "everything is up to date" in again.stdout
    record = json.loads((coins / "runs/toy/small/none/loaded/0/run.json").read_text())
    assert record["stages"]["toss"]["status"] == "complete"


def test_a_page_that_was_emptied_is_made_again(coins: Path) -> None:
    page = coins / "runs/toy/small/none/fair/0/toss.ipynb"
    assert str(coins) not in page.read_text(), "a page names no place on this machine"
    page.write_text("")
    again = command("run", "toy", "--scale", "small", cwd=coins)
    assert "1 notebooks executed" in again.stdout, "its records are as they were"
    assert "cells" in page.read_text()


def test_records_that_are_made_again_are_shown_again(coins: Path) -> None:
    results, record = coins / "runs/toy/small/results.ipynb", coins / "runs/toy/small/none/fair/0"
    first, before = results.read_bytes(), (record / "run.json").read_text()
    (record / "predictions.jsonl").write_text("")
    again = command("run", "toy", "--scale", "small", cwd=coins)
    assert "2 notebooks executed" in again.stdout, again.stdout + again.stderr
    assert (record / "run.json").read_text() != before
    assert results.read_bytes() != first


def test_it_is_compared_with_its_paper(coins: Path) -> None:
    shown = command("compare", "toy", "--runs", "runs", cwd=coins).stdout
    assert shown.count("Paper, loaded") == 2, "the reference and one's own run"
    assert "this run" in shown
    assert "agrees" in shown


def test_it_is_verified(coins: Path) -> None:
    done = command("verify", cwd=coins)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("matches") == 2


def test_it_appears_in_the_book(coins: Path) -> None:
    """Built with warnings as errors, from a table of contents that nobody edited."""
    build = "from ethalign import book, study; print(book.build(study.plan('toy', (), 'small')))"
    done = command(code=build, cwd=coins)
    assert done.returncode == 0, done.stderr[-3000:]
    page = Path(done.stdout.strip().splitlines()[-1])
    front = (page.parent / "welcome.html").read_text()
    assert "The toy study" in front
    assert "coin.tosses" in front
    assert "how often it is tossed" in front
    assert "heads" in (page.parent / "_runs/toy/results.html").read_text()


@pytest.mark.parametrize("name", ["metrics.json", "predictions.jsonl", "config.yaml"])
def test_a_doctored_file_is_found_by_verify(coins: Path, name: str) -> None:
    path = coins / "results/toy/small/none/fair/0" / name
    kept = path.read_text()
    changes = {"metrics.json": ('"n": 100', '"n": 99'), "predictions.jsonl": ("heads", "tails")}
    path.write_text(kept.replace(*changes.get(name, ("tosses: 100", "tosses: 101")), 1))
    try:
        assert path.read_text() != kept
        done = command("verify", cwd=coins)
        assert done.returncode == 1
        assert "is not as it was published" in done.stdout
        assert "Traceback" not in done.stderr
    finally:
        path.write_text(kept)


def test_a_doctored_number_is_found_even_where_its_hash_was_doctored_too(coins: Path) -> None:
    """The rows are computed anew, so a new hash does not help."""
    folder = coins / "results/toy/small/none/fair/0"
    kept = {p: p.read_text() for p in folder.iterdir()}
    rows = json.loads(kept[folder / "metrics.json"])
    rows[0]["value"] += 0.01
    (folder / "metrics.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    import hashlib

    digest = hashlib.sha256((folder / "metrics.json").read_bytes()).hexdigest()
    record = json.loads(kept[folder / "run.json"])
    record["published"]["metrics.json"] = digest
    (folder / "run.json").write_text(json.dumps(record))
    try:
        assert (
            "heads of fair on coins (all) does not follow" in command("verify", cwd=coins).stdout
        )
    finally:
        for path, text in kept.items():
            path.write_text(text)


def test_the_same_work_is_followed_once_and_every_copy_is_looked_at(tmp_path: Path) -> None:
    first = next(p for p in results.folders() if p.parts[-2] == "pretrained")
    again, other = (tmp_path / name / Path(*first.parts[-5:]) for name in ("again", "other"))
    for copy in (again, other):
        shutil.copytree(first, copy)
    rows = json.loads((other / "metrics.json").read_text())
    rows[0]["value"] += 0.01
    (other / "metrics.json").write_text(json.dumps(rows))
    assert results.twins([first, again, other]) == {again}
    facts = json.loads((other / "run.json").read_text())
    facts["stages"]["evaluate"]["fingerprint"] = "of other work"
    shutil.copy(first / "metrics.json", other)
    (other / "run.json").write_text(json.dumps(facts))
    assert results.twins([first, again, other]) == {again}
    (other / "run.json").write_text("{")
    assert results.twins([other, first, again]) == {again}, "verify says what is wrong with it"
    (again / "predictions.jsonl").write_text("")
    assert results.twins([first, again]) == set()
    assert any("not as it was published" in text for text in results.verify(again, False)[0])


def test_code_that_changed_since_is_a_remark(coins: Path) -> None:
    module = coins / "ethalign/toy/study.py"
    kept = module.read_text()
    module.write_text(
        kept.replace("coin.random() < run.coin.bias", "coin.random() <= run.coin.bias")
    )
    try:
        done = command("verify", cwd=coins)
        assert done.returncode == 0
        assert (
            "remark: toss was made by older code; changed since: ethalign.toy.study" in done.stdout
        )
    finally:
        module.write_text(kept)


def test_settings_that_changed_since_are_a_problem(coins: Path) -> None:
    path = coins / "configs/toy/fair.yaml"
    path.write_text("coin: {bias: 0.4}\n")
    try:
        done = command("verify", cwd=coins)
        assert done.returncode == 1
        assert "coin.bias was 0.5 and is now 0.4" in done.stdout
    finally:
        path.write_text("# A fair coin.\n")


def test_a_failed_job_says_how_to_repeat_it_alone(coins: Path) -> None:
    path = coins / "notebooks/toy/results.ipynb"
    kept = path.read_text()
    path.write_text(kept.replace("results.together(job)", "1 / 0"))
    try:
        done = command("run", "toy", "--scale", "small", cwd=coins)
        assert done.returncode == 1
        assert "ZeroDivisionError" in done.stderr
        assert "`ethalign run toy --stage results --scale small`" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        path.write_text(kept)
    repeated = command("run", "toy", "--stage", "results", "--scale", "small", cwd=coins)
    assert "1 notebooks executed" in repeated.stdout, repeated.stderr


def test_a_run_name_with_blanks_quotes_and_commands_is_only_a_name(coins: Path) -> None:
    odd = coins / "odd $(touch hit) 'name'"
    done = command("run", "toy", "--runs", odd, cwd=coins)
    assert done.returncode == 0, done.stderr
    assert (odd / "toy/tiny/results.ipynb").is_file()
    assert not list(coins.rglob("hit"))


@pytest.mark.parametrize("name", config.studies())
def test_every_declared_setting_exists(name: str) -> None:
    owner = study.find(name)
    known = [key for key, *_ in config.parameters(owner.run)]
    for stage in owner.stages:
        for key in (*stage.reads, *stage.handles, *stage.models, *filter(None, [stage.needs])):
            assert any(f"{k}.".startswith(f"{key}.") for k in known), (stage.name, key)
        assert (ROOT / "notebooks" / name / f"{stage.name}.ipynb").is_file()


@pytest.mark.parametrize("name", config.studies())
def test_every_parameter_is_read_by_some_stage_and_has_a_meaning(name: str) -> None:
    owner = study.find(name)
    read = [key for stage in owner.stages for key in (*stage.reads, *stage.handles)]
    coordinates = ("study", "variant", "scale", "seed")
    for key, _, _, about in config.parameters(owner.run):
        if key not in coordinates:
            assert about, f"{name}: {key} has no meaning"
            assert any(f"{key}.".startswith(f"{k}.") for k in read), f"{name}: nobody reads {key}"


@pytest.mark.parametrize("name", config.studies())
def test_a_stage_is_given_only_what_it_declares(name: str) -> None:
    for stage in study.find(name).stages:
        given = study.job(name, stage.name, _any_variant(name, stage), "smoke").given
        for key, *_ in config.parameters(type(given)):
            block, _, field = key.partition(".")
            if not field or "." in field:
                continue
            keys = (*stage.reads, *stage.handles)
            declared = any(f"{key}.".startswith(f"{k}.") for k in keys)
            inner = any(k.startswith(f"{key}.") for k in keys)
            if declared or inner:
                getattr(getattr(given, block), field)
            else:
                with pytest.raises(Undeclared, match=rf"{name}/{stage.name} reads {block}"):
                    getattr(getattr(given, block), field)


def _any_variant(name: str, stage: study.Stage) -> str:
    owner = study.find(name)
    names = [stage.variant] if stage.variant else study.variants(owner)
    for variant in names:
        run = config.resolve(name, variant, "smoke")
        if not stage.needs or all(run.values([stage.needs]).values()):
            return variant
    raise AssertionError(f"{stage.name} belongs to no variant")


def test_an_undeclared_setting_names_its_key_and_its_stage() -> None:
    run = config.resolve("reasons", "L", "smoke").give("reasons/explore", ["data.source"])
    assert run.data.source == "sample"
    with pytest.raises(Undeclared, match=r"reasons/explore reads tuning, which"):
        run.tuning.rows  # noqa: B018
    with pytest.raises(Undeclared, match=r"reasons/explore reads data\.train, which"):
        run.data.train  # noqa: B018


def test_a_scale_without_a_block_for_the_study_is_refused() -> None:
    with pytest.raises(UserError, match=r"the study ambiguity has no scale 'paper-mistral'"):
        config.resolve("ambiguity", "hard", "paper-mistral")


def test_shared_rooms_name_no_study() -> None:
    """As a string that the code could branch on."""
    import ast

    for path in [*(ROOT / "ethalign").glob("*.py"), ROOT / "workflow" / "Snakefile"]:
        if path.suffix == ".py":
            tree = ast.parse(path.read_text())
            strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
            assert not strings & {*config.studies()}, path.name
        else:
            assert not any(name in path.read_text() for name in config.studies())


def test_no_study_imports_another_and_no_import_goes_in_a_circle() -> None:
    import ast

    graph: dict[str, set[str]] = {}
    for path in (ROOT / "ethalign").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        uses: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ethalign"):
                uses |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
            elif isinstance(node, ast.Import):
                uses |= {a.name for a in node.names}
        graph[name] = uses
    graph = {
        k: {u for u in v if u in graph and u not in (k, "ethalign")} for k, v in graph.items()
    }
    inside = {
        k: k.split(".")[1]
        for k in graph
        if k.split(".")[1:2] and k.split(".")[1] in config.studies()
    }
    for module, uses in graph.items():
        for used in uses:
            if used in inside:
                assert inside.get(module) == inside[used], f"{module} imports {used}"
        seen, todo = set[str](), [*uses]
        while todo:
            at = todo.pop()
            if at not in seen:
                seen.add(at)
                todo += graph[at]
        assert module not in seen, f"{module} imports itself in a circle"


def test_points_of_a_sweep_are_one_graph_and_share_what_does_not_depend_on_them(
    coins: Path,
) -> None:
    file = coins / "tosses.yaml"
    grid = {"coin.tosses": [10, 30], "evaluation.bootstrap": [10, 20]}
    chosen = {"dataset": "coins", "metric": "heads", "best": "highest"}
    spec = {"study": "toy", "variants": ["loaded"], "stage": "toss", "seeds": [0, 1]}
    file.write_text(yaml.safe_dump({**spec, "grid": grid, "choose": chosen}, sort_keys=False))
    done = command("sweep", file, cwd=coins)
    assert done.returncode == 0, done.stderr
    home = coins / "runs" / "sweeps" / "tosses"
    assert len(list(home.glob(".settings/*.log"))) == 1, "Snakemake was started once"
    table = pd.read_csv(home / "table.csv")
    assert list(table["seeds"]) == [2] * 4
    assert sorted(table["coin.tosses"]) == [10, 10, 30, 30]
    for tosses in (10, 30):
        start = [
            json.loads(path.read_text())["stages"]["toss"]["start"]
            for path in home.glob(f"tosses-{tosses}_*/toy/tiny/none/loaded/0/run.json")
        ]
        assert len(start) == 2
        assert len(set(start)) == 1, "the bootstrap is not read, so the coin is tossed once"
        kept = [
            (path.parents[5].name, path.read_bytes())
            for path in home.glob(f"tosses-{tosses}_*/toy/tiny/none/loaded/0/predictions.jsonl")
        ]
        assert kept[0][1] == kept[1][1]
        assert kept[0][1].count(b"\n") == tosses
    again = command("sweep", file, cwd=coins)
    assert len(list(home.glob("**/*.ipynb"))) == 8
    assert "> toy" not in again.stderr, "nothing ran again"


def test_an_ablation_is_published_and_verified(coins: Path) -> None:
    file = coins / "configs" / "sweeps" / "chances.yaml"
    points = {"reference": {}, "same": {"evaluation.bootstrap": 10}, "fair": {"coin.bias": 0.5}}
    chosen = {"dataset": "coins", "metric": "heads", "best": "highest"}
    spec = {"study": "toy", "variants": ["loaded"], "stage": "toss", "scale": "small"}
    file.write_text(yaml.safe_dump({**spec, "ablate": points, "choose": chosen}, sort_keys=False))
    home = coins / "results" / "sweeps" / "chances"
    try:
        done = command("sweep", file, "--publish", cwd=coins)
        assert done.returncode == 0, done.stderr
        rows = {row["point"]: row for row in json.loads((home / "table.json").read_text())["rows"]}
        assert list(rows) == ["reference", "fair"], "what tosses the same coin says nothing"
        assert rows["fair"]["worth"] == rows["fair"]["value"] - rows["reference"]["value"] < -0.2
        done = command("verify", cwd=coins)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("matches") == 5, "two runs and three points"
        for path, old, new, message in (
            (home / "table.json", '"worth": -', '"worth": ', "is not what the records of its"),
            (file, "bias: 0.5", "bias: 0.6", "is not of configs/sweeps/chances.yaml as it is"),
            (next(home.glob("fair/**/predictions.jsonl")), "heads", "tails", "is not as it was"),
        ):
            kept = path.read_text()
            assert old in kept
            path.write_text(kept.replace(old, new, 1))
            done = command("verify", cwd=coins)
            assert (done.returncode, message in done.stdout) == (1, True), done.stdout
            path.write_text(kept)
    finally:
        shutil.rmtree(home.parent, ignore_errors=True)
        file.unlink()
