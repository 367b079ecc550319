import datetime
import errno
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign import config, metrics, records
from ethalign.config import UserError

RUN = config.load("reasons", "L", "smoke")


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    records.write(path, [1])

    def full(self, *args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="free some space"):
        records.write(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        records.write(tmp_path / "x.json", [math.nan])
    row = records.row(RUN, "dfar", "all", "accuracy", metrics.share(0, 0), "share")
    assert row["value"] is None
    assert row["n"] == 0


@given(cut=st.integers(1, 60))
def test_a_half_written_row_is_cut_off_and_the_rest_kept(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("rows") / "predictions.jsonl"
    records.append_rows(path, [{"id": i, "text": "é\n"} for i in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = records.read_rows(path)
    assert [r["id"] for r in kept] == list(range(whole[:-cut].count(b"\n")))
    records.append_rows(path, [{"id": 9}])
    assert [r["id"] for r in records.read_rows(path)] == [*(r["id"] for r in kept), 9]


def test_a_damaged_row_in_the_middle_names_its_line(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": 1}\n{"id": \n{"id": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        records.read_rows(path)


def test_a_stage_is_recorded_with_what_it_followed_from(tmp_path):
    with records.stage(RUN, tmp_path, "evaluate", {"data": {"dfar": "abc"}}) as facts:
        assert facts["fresh"]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seed"] == 0
    assert record["stages"]["evaluate"]["status"] == "complete"
    assert record["stages"]["evaluate"]["seconds"] >= 0
    assert "fresh" not in record["stages"]["evaluate"]
    with records.stage(RUN, tmp_path, "evaluate", {"data": {"dfar": "abc"}}) as facts:
        assert not facts["fresh"]
    with records.stage(RUN, tmp_path, "evaluate", {"data": {"dfar": "other"}}) as facts:
        assert facts["fresh"], "other data, no resume"


def test_a_stage_that_fails_says_so(tmp_path):
    with pytest.raises(ZeroDivisionError), records.stage(RUN, tmp_path, "evaluate", {}):
        1 / 0  # noqa: B018
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["stages"]["evaluate"]["status"] == "failed"


def test_a_resumed_stage_counts_the_seconds_before(tmp_path):
    with pytest.raises(KeyboardInterrupt), records.stage(RUN, tmp_path, "x", {"a": 1}):  # noqa: PT012
        time.sleep(0.4)
        raise KeyboardInterrupt
    for inputs, low, high in (({"a": 1}, 0.4, 2.0), ({"a": 1}, 0.0, 0.3), ({"a": 2}, 0.0, 0.3)):
        with records.stage(RUN, tmp_path, "x", inputs):
            pass
        seconds = json.loads((tmp_path / "run.json").read_text())["stages"]["x"]["seconds"]
        assert low <= seconds <= high, "a finished or another stage is not added to"


def test_the_code_hash_follows_code_and_not_prose(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "metrics.py").write_text('"""Doc."""\nX = 1\n')
    (package / "plots.py").write_text("Y = 1\n")
    program = "from ethalign import metrics\nmetrics.X"
    first = records.code_hash(program, package)
    (package / "metrics.py").write_text('"""Other words."""\n\n# a comment\nX = 1\n')
    assert records.code_hash(program, package) == first
    (package / "plots.py").write_text("Y = 2\n")
    assert records.code_hash(program, package) == first, "not reached"
    (package / "metrics.py").write_text("X = 2\n")
    assert records.code_hash(program, package) != first


def test_the_code_hash_reaches_modules_behind_modules(tmp_path):
    (tmp_path / "a.py").write_text("from ethalign import b\n")
    (tmp_path / "b.py").write_text("from ethalign.c import thing\n")
    (tmp_path / "c.py").write_text("thing = 1\n")
    first = records.code_hash("from ethalign import a", tmp_path)
    (tmp_path / "c.py").write_text("thing = 2\n")
    assert records.code_hash("from ethalign import a", tmp_path) != first


def test_every_figure_of_the_papers_main_table_is_there():
    """papers.md 1.5: twelve rows, 36 printed figures, each with its source."""
    table = records.reported("reasons")
    assert len(table) == 36
    assert table["row"].nunique() == 12
    assert table["source"].notna().all()
    assert table["value"].between(0, 1).all()
    best = table[(table["row"] == "Llama-2 7B, L+R") & (table["dataset"] == "dfar")]
    assert dict(zip(best["metric"], best["value"], strict=True)) == {
        "misalignment": 0.094,
        "accuracy": 0.894,
    }
    # All DFAR figures are multiples of one in 500.
    dfar = table[table["dataset"] == "dfar"]["value"] * 500
    assert np.allclose(dfar, dfar.round(), atol=1e-6)


def _ours(value, low, high, stratum="all"):
    names = {"study": "reasons", "variant": "svm", "dataset": "dfar", "stratum": stratum}
    numbers = {"metric": "accuracy", "value": value, "low": low, "high": high, "n": 500}
    return pd.DataFrame([{**names, **numbers, "unit": "share"}], columns=records.COLUMNS)


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(0.69, 0.65, 0.73, "agrees"), (0.60, 0.56, 0.64, "differs")],
)
def test_the_verdict_follows_the_interval(value, low, high, verdict):
    table = records.compare("reasons", _ours(value, low, high))
    row = table[(table["variant"] == "svm") & (table["dataset"] == "dfar")].iloc[0]
    assert row["verdict"] == verdict
    assert (table[table["variant"] == "LR"]["verdict"] == "not run").all()


def test_a_sample_is_never_compared_with_the_paper():
    sample = _ours(0.69, 0.65, 0.73).assign(dataset="statements")
    assert (records.compare("reasons", sample)["verdict"] == "not run").all()


def test_the_time_of_a_killed_attempt_counts_until_its_last_file(tmp_path):
    inputs = {"settings": "same"}
    path = tmp_path / "run.json"
    with records.stage(RUN, tmp_path, "x", inputs):
        pass
    record = json.loads(path.read_text())
    stage = record["stages"]["x"]
    stage |= {"status": "running", "start": "2026-01-01T00:00:00+00:00", "seconds": 5.0}
    path.write_text(json.dumps(record))
    begun = datetime.datetime.fromisoformat(stage["start"]).timestamp()
    for file in tmp_path.iterdir():
        os.utime(file, (begun, begun))
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    os.utime(tmp_path / "predictions.jsonl", (begun + 100, begun + 100))
    with records.stage(RUN, tmp_path, "x", inputs) as facts:
        assert not facts["fresh"]
    seconds = json.loads(path.read_text())["stages"]["x"]["seconds"]
    assert 105 <= seconds < 110


def test_rows_are_filled_in_and_resumed_without_asking_twice(tmp_path):
    asked = []

    def work(chunk):
        asked.extend(row["id"] for row in chunk)
        return [{**row, "twice": 2 * row["id"]} for row in chunk]

    items = [{"id": i} for i in range(7)]
    settings = {"keys": ["id"], "size": 3, "what": "counting"}
    path = tmp_path / "rows.jsonl"
    whole = records.fill(path, items, work, fresh=False, **settings)
    assert [row["twice"] for row in whole] == [0, 2, 4, 6, 8, 10, 12]
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2])
    asked.clear()
    assert records.fill(path, items, work, fresh=False, **settings) == whole
    assert 0 not in asked
    assert set(asked) == {3, 4, 5, 6}, "the chunk that was cut, and the last one"
    asked.clear()
    assert records.fill(path, items, work, fresh=True, **settings) == whole
    assert asked == list(range(7))


def test_an_empty_table_is_an_empty_file(tmp_path):
    records.write(tmp_path / "rows.jsonl", pd.DataFrame())
    assert records.read_rows(tmp_path / "rows.jsonl") == []
