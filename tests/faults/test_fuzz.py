"""Whatever bytes come, what reads them answers or ends in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ethalign import config, data, pipeline, records, sources
from ethalign.config import UserError
from ethalign.honesty.scores import categorize
from ethalign.reasons import labels

# Bytes as such, and pieces that lead further into a reader.
PIECES = [
    b"Statement,Label\n",
    b"I lied.,1\n",
    b",",
    b'"',
    b"\n",
    b"\0",
    b"\xff",
    b"a: ",
    b"- ",
    b"\t",
]
PIECES += [
    b"{",
    b"}",
    b"[",
    b'{"id": 1}\n',
    b"null\n",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"1e999",
]
PIECES += [b"PK\3\4", b"\x1f\x8b", b'{"metadata": {"check": 1}}', "\u200b=".encode(), b": 1\n"]
CONTENT = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES)).map(b"".join))


def _rows(path: Path) -> None:
    kept = records.read_rows(path, ["id"])
    assert all("id" in row for row in kept)


def _settings(path: Path) -> None:
    assert isinstance(config.read_yaml(path), dict)


def _table(path: Path) -> None:
    frame = data.read_csv(path, ["Statement", "Label"])
    assert len(frame)
    assert not frame.isna().any(axis=None)


def _setting(path: Path) -> None:
    key, value = config.parse_setting(path.read_bytes().decode("latin-1"))
    config.resolve("reasons", "L", "smoke", overrides={key: value})


def _archive(path: Path) -> None:
    list(sources.members(path))


def _words(path: Path) -> None:
    text = path.read_bytes().decode("latin-1")
    assert labels.parse_label(text) in ("ethical", "unethical", None)
    assert categorize(text, "Who?", ["Ann"]) in ("correct", "wrong", "idk")
    assert records.inert(records.inert(text)).replace("'", "") == text.replace("'", "")


READERS: list[Callable[[Path], Any]] = [
    *(_rows, _settings, _table, _setting, _archive, _words),
    *(pipeline.intact, records.stages),
]


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_what_reads_files_takes_any_bytes(
    read: Callable[[Path], Any], cases: int, tmp_path: Path
) -> None:
    def provoke(content: bytes) -> None:
        path = tmp_path / "run.json"
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        said = ""
        try:
            read(tmp_path if read is records.stages else path)
        except UserError as error:
            said = str(error)
        except sources.BROKEN:
            if read is not _archive:
                raise
        assert "\n" not in said

    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    settings(max_examples=cases, suppress_health_check=shared)(given(CONTENT)(provoke))()
