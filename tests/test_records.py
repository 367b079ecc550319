from __future__ import annotations

import datetime
import errno
import json
import math
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ethalign import config, metrics, records
from ethalign.config import UserError

RUN = config.resolve("reasons", "L", "smoke")


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.json"
    records.write(path, [1])

    def full(self: Path, *args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="free some space"):
        records.write(path, [2])
    assert json.loads(path.read_text()) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_nan_never_reaches_a_json_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        records.write(tmp_path / "x.json", [math.nan])
    row = records.row(RUN, "dfar", "all", "accuracy", metrics.share(0, 0), "share")
    assert row["value"] is None
    assert row["n"] == 0


@given(cut=st.integers(1, 60))
def test_a_half_written_row_is_cut_off_and_the_rest_kept(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "predictions.jsonl"
    records.append_rows(path, [{"id": i, "text": "é\n"} for i in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = records.read_rows(path)
    assert [r["id"] for r in kept] == list(range(whole[:-cut].count(b"\n")))
    records.append_rows(path, [{"id": 9}])
    assert [r["id"] for r in records.read_rows(path)] == [*(r["id"] for r in kept), 9]


def test_a_damaged_row_in_the_middle_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": 1}\n{"id": \n{"id": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        records.read_rows(path)


NOTE = {"fingerprint": "abc", "data": {"dfar": "123"}}


def stage(where: Path, note: dict[str, Any]) -> Any:
    return records.stage(RUN, where, "evaluate", note, {"tuning.lr": 1.0})


def of(where: Path) -> dict[str, Any]:
    found: dict[str, Any] = records.stages(where)["evaluate"]
    return found


def test_a_stage_is_recorded_with_what_it_followed_from(tmp_path: Path) -> None:
    assert records.stages(tmp_path) == {}
    with stage(tmp_path, NOTE) as facts:
        facts["tokens"] = 7
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seed"] == 0
    assert record["set"] == {"tuning.lr": 1.0}
    assert of(tmp_path) | {"status": "complete", "tokens": 7, **NOTE} == of(tmp_path)
    assert of(tmp_path)["seconds"] >= 0


def test_a_stage_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), stage(tmp_path, NOTE):
        1 / 0  # noqa: B018
    assert of(tmp_path)["status"] == "failed"


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    for text in ("", "{}", "[]", "{"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json is damaged; delete its folder"):
            records.stages(tmp_path)


def test_a_resumed_stage_counts_the_seconds_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stage(tmp_path, NOTE):  # noqa: PT012
        time.sleep(0.4)
        raise KeyboardInterrupt
    assert of(tmp_path)["status"] == "interrupted"
    for fingerprint, low, high in (("abc", 0.4, 2.0), ("abc", 0.4, 2.0), ("other", 0.0, 0.3)):
        with stage(tmp_path, {"fingerprint": fingerprint}):
            pass
        assert low <= of(tmp_path)["seconds"] <= high, "another stage is not added to"


def test_the_time_of_a_killed_attempt_counts_until_its_last_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with stage(tmp_path, NOTE):
        pass
    record = json.loads(path.read_text())
    facts = record["stages"]["evaluate"]
    facts |= {"status": "running", "start": "2026-01-01T00:00:00+00:00", "seconds": 5.0}
    path.write_text(json.dumps(record))
    begun = datetime.datetime.fromisoformat(facts["start"]).timestamp()
    for file in tmp_path.iterdir():
        os.utime(file, (begun, begun))
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    os.utime(tmp_path / "predictions.jsonl", (begun + 100, begun + 100))
    with stage(tmp_path, NOTE):
        pass
    assert 105 <= of(tmp_path)["seconds"] < 110


def test_rows_are_filled_in_and_resumed_without_asking_twice(tmp_path: Path) -> None:
    asked: list[int] = []

    def work(chunk: list[dict[str, Any]]) -> list[dict[str, Any]]:
        asked.extend(row["id"] for row in chunk)
        return [{**row, "twice": 2 * row["id"]} for row in chunk]

    items = [{"id": i} for i in range(7)]
    settings: dict[str, Any] = {"keys": ["id"], "size": 3, "what": "counting"}
    path = tmp_path / "rows.jsonl"
    whole = records.fill(path, items, work, **settings)
    assert [row["twice"] for row in whole] == [0, 2, 4, 6, 8, 10, 12]
    text = path.read_bytes()
    path.write_bytes(text[: len(text) // 2])
    asked.clear()
    assert records.fill(path, items, work, **settings) == whole
    assert 0 not in asked
    assert set(asked) == {3, 4, 5, 6}, "the chunk that was cut, and the last one"
    asked.clear()
    assert records.fill(path, items, work, **settings) == whole
    assert not asked


def test_an_empty_table_is_an_empty_file(tmp_path: Path) -> None:
    records.write(tmp_path / "rows.jsonl", pd.DataFrame())
    assert records.read_rows(tmp_path / "rows.jsonl") == []


def test_a_long_file_is_gone_through_without_being_held(tmp_path: Path) -> None:
    """Rows are appended, and counted, in little memory, whatever was written before."""
    path = tmp_path / "predictions.jsonl"
    line = records.line({"id": 1, "text": "x" * 4000})
    path.write_text(line * 5000 + line[:-9])
    tracemalloc.start()
    try:
        records.append_rows(path, [{"id": 2}])
        assert sum(row["id"] for row in records.each_row(path)) == 5002
        assert tracemalloc.get_traced_memory()[1] < 4 * records.BLOCK < path.stat().st_size / 50
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("blocks", [0, 1, 2.5])
def test_half_a_line_longer_than_a_block_is_cut_off(tmp_path: Path, blocks: float) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": 1}\n' * int(blocks > 1) + "x" * int(blocks * records.BLOCK))
    records.append_rows(path, [{"id": 2}])
    assert path.read_text() == '{"id": 1}\n' * int(blocks > 1) + '{"id": 2}\n'


def test_the_progress_of_a_long_run_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress"
    monkeypatch.setenv("ETHALIGN_PROGRESS", str(path))
    monkeypatch.setattr(records, "BLOCK", 1000)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    sizes = []
    for k in records.progress(range(60), 60, "counting", "item"):
        if k % 3 == 0:  # as if a second had passed
            path.write_text(path.read_text() + "\r" + "x" * 99)
        sizes.append(path.stat().st_size)
    assert max(sizes) < 1300
    assert len(sizes) == 60
