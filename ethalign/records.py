"""What a run leaves behind: its files, its provenance, its metrics.

Files appear whole or not at all; rows of ``*.jsonl`` are appended in batches and are the unit of
resume. ``metrics.json`` is the one format that every table and figure reads.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml
from filelock import FileLock, Timeout

from ethalign.config import ROOT, Run, UserError, digest

T = TypeVar("T")
#: Columns of a row of metrics, in order.
COLUMNS = (
    "study variant dataset stratum metric value low high n unit".split()  # noqa: SIM905
)
# Bytes: what is read at once from the end of a file, and how long one of progress may grow.
BLOCK = 2**16
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "pandas", "scikit-learn")


def write(path: Path, content: Any) -> None:
    """Write a JSON, YAML or text file, or a table as JSONL or CSV; it appears whole or not at all.

    No cell of a CSV is a formula for a spreadsheet.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    if path.suffix == ".json":
        content = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    elif path.suffix == ".csv":
        content = content.map(inert).rename(columns=inert).to_csv(index=False)
    elif isinstance(content, pd.DataFrame):
        content = content.to_json(orient="records", lines=True) if len(content) else ""
    elif path.suffix in (".yaml", ".yml"):
        content = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(content, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        raise disk_error(error, path) from error


# What a spreadsheet computes begins with one of these signs, in half or full width.
FORMULA = re.compile(r"(^|[\t\r\n,;|])(?=\W{0,200}?[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n\0])")


def inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, wherever it divides it; numbers stay."""
    return FORMULA.sub(r"\1'", cell) if isinstance(cell, str) else cell


def disk_error(error: OSError, path: Path) -> UserError:
    """An operating-system error on ``path`` as a sentence with the way out."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    way = "free some space and run again; it resumes" if full else "check the folder's permissions"
    return UserError(f"{path} could not be written ({error.strerror}): {way}.")


@contextlib.contextmanager
def exclusive(lock: Path, folder: Path, wait: float = 0) -> Iterator[None]:
    """Work in a folder alone; the lock dies with its process.

    Raises:
        UserError: another process holds it, still after so many seconds.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire(timeout=wait)
    except Timeout:
        raise UserError(
            f"another run is at work in {folder}; wait for it, or give --runs another folder."
        ) from None
    except OSError as error:
        raise disk_error(error, folder) from None
    with held:
        yield


def read_rows(path: Path, keys: Iterable[str] = ()) -> list[dict[str, Any]]:
    """All of ``each_row``."""
    return list(each_row(path, keys))


def each_row(path: Path, keys: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """The complete rows of a JSONL file, one by one; a half-written last line is left out.

    Raises:
        UserError: a line that is no JSON object, or has not all of the ``keys``.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            try:
                row = json.loads(text)
                found = row.keys() >= {*keys}
            except (ValueError, AttributeError, RecursionError):
                found = False
            if not found:
                raise UserError(
                    f"{path}, line {number} is no row; delete the file to compute it anew."
                )
            yield row


def line(row: Mapping[str, Any]) -> str:
    """A row as a line of a JSONL file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows in one write, after cutting off what an interrupted write left.

    Raises:
        UserError: the disk is full; the file keeps its complete rows.
    """
    path.touch()
    with path.open("rb+") as file:
        end = last = file.seek(0, os.SEEK_END)
        while last and end == last:  # block by block from the end: a file may be long
            last = max(0, end - BLOCK)
            file.seek(last)
            end = last + file.read(end - last).rfind(b"\n") + 1
        file.truncate(end)
        try:
            file.seek(end)
            file.write("".join(map(line, rows)).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise disk_error(error, path) from error


def fill(
    path: Path,
    items: Sequence[dict[str, Any]],
    work: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    *,
    keys: Sequence[str],
    size: int,
    what: str,
) -> list[dict[str, Any]]:
    """Rows for all items, worked out chunk by chunk into a JSONL file that can be resumed.

    Args:
        path: the file; its complete rows are kept.
        work: makes the rows of some items, one each, with the items' keys.
        keys: fields that identify an item.
        size: items per chunk.
        what: the name on the progress bar.

    Returns:
        A row per item, in the order of the items.
    """

    def name(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in keys)

    done = {name(row) for row in each_row(path, keys)}
    chunks = [list(items[start : start + size]) for start in range(0, len(items), size)]
    chunks = [chunk for chunk in chunks if not all(name(item) in done for item in chunk)]
    for chunk in progress(chunks, len(chunks), what, "batch"):
        # Of a chunk that was cut off, what is there already stays as it is.
        append_rows(path, [row for row in work(chunk) if name(row) not in done])
    found = {name(row): row for row in each_row(path)}
    return [found[name(item)] for item in items]


def stages(where: Path) -> dict[str, Any]:
    """What ``run.json`` says of each stage of a run folder; empty if there is none.

    Raises:
        UserError: a file that is no record; names it and the way out.
    """
    path = where / "run.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())["stages"] if path.is_file() else {}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete its folder to compute it anew.") from None
    return found


@contextlib.contextmanager
def stage(
    run: Run, where: Path, name: str, note: dict[str, Any], changed: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Record one stage of a run in ``config.yaml`` and ``run.json`` while it is at work.

    Yields a dict for what becomes known on the way (tokens, notes). ``note`` (fingerprint, data,
    code) is recorded first, and so is what was ``changed`` against the configuration files. The
    seconds of an interrupted attempt with the same fingerprint count.
    """
    before = stages(where).get(name, {})
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"start": start, **note, "status": "running"}
    same = before.get("fingerprint") == note["fingerprint"]
    facts["seconds"] = earlier = _worked(before, where) if same else 0.0
    done = {**stages(where), name: facts}
    record = {**provenance(run), "set": dict(changed), "stages": done}
    where.mkdir(parents=True, exist_ok=True)
    write(where / "config.yaml", run.model_dump(mode="json"))
    write(where / "run.json", record)
    clock = time.perf_counter()
    try:
        yield facts
        facts["status"] = "complete"
    except BaseException as error:
        facts["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        raise
    finally:
        facts["seconds"] = round(earlier + time.perf_counter() - clock, 1)
        with contextlib.suppress(UserError):
            write(where / "run.json", record)


def _worked(before: dict[str, Any], where: Path) -> float:
    """Seconds of an unfinished attempt; of one that was killed, until the last file it wrote."""
    seconds = float(before.get("seconds", 0))
    if before.get("status") == "running":
        start = datetime.datetime.fromisoformat(before["start"]).timestamp()
        written = [path.stat().st_mtime for path in where.rglob("*") if path.is_file()]
        seconds += max([start, *written]) - start
    return round(seconds, 1)


def provenance(run: Run) -> dict[str, Any]:
    """Coordinates of the run, versions and the machine; nothing that names a person or a path."""
    from ethalign import __version__

    return {
        **{name: getattr(run, name) for name in ("study", "variant", "scale", "seed")},
        "config": digest(run.model_dump(mode="json")),
        "ethalign": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def commit() -> str:
    """The git commit of the checkout, with ``+`` behind it if package or notebooks differ."""

    def git(*command: str) -> str:
        call = ["git", "-C", str(ROOT), *command]
        return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "--verify", "HEAD")
    dirty = git("status", "--porcelain", "--", "ethalign", "notebooks", "configs")
    return head[:12] + ("+" if dirty else "") if head else "unknown"


def row(
    run: Run, dataset: str, stratum: str, metric: str, estimate: Any, unit: str
) -> dict[str, Any]:
    """One row of ``metrics.json`` from an estimate with value, low, high and n; NaN is null."""
    numbers = [None if x != x else round(float(x), 6) for x in estimate[:3]]
    values = [run.study, run.variant, dataset, stratum, metric, *numbers, int(estimate[3]), unit]
    return dict(zip(COLUMNS, values, strict=True))


def metrics(paths: Iterable[Path]) -> pd.DataFrame:
    """Rows of several ``metrics.json`` as one table with the columns of ``COLUMNS``."""
    rows = [r for path in paths for r in json.loads(path.read_text(encoding="utf-8"))]
    return pd.DataFrame(rows, columns=COLUMNS)


def plain(text: str) -> str:
    """Text from data, models or users for Markdown: nothing in it is markup, HTML or a macro."""
    return re.sub(r"([\\`*_{}\[\]<>$|#&~^@!%])", r"\\\1", " ".join(text.split()))


def caption(where: Path, stage: str) -> str:
    """One Markdown line that says what was run, on what, with what seed, in how many seconds."""
    record = json.loads((where / "run.json").read_text())
    facts = record["stages"][stage]
    data = ", ".join(f"{name} ({sha[:8]})" for name, sha in facts.get("data", {}).items())
    model = {key: plain(str(value)) for key, value in facts.get("model", {}).items()}
    if model:
        model["device"] = device_words(model["device"])
    place = "{study} / {variant}, stage {stage}, scale {scale}, seed {seed}"
    parts = [
        place.format(stage=stage, **record),
        f"data by SHA-256: {data}" if data else "",
        model and "model {id} ({sha256:.8}) on {device}, {dtype}".format(**model),
        f"{facts.get('seconds', 0):g} s" if facts["status"] == "complete" else facts["status"],
        "ethalign {ethalign}, commit {commit}".format(**record),
    ]
    return "*Run: " + "; ".join(part for part in parts if part) + ".*"


def device_words(device: str) -> str:
    """A recorded device as a page shows it."""
    return device.replace("(1 threads)", "(1 thread)")


def progress(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """``items`` with a progress bar (rate, time left).

    In a terminal the bar is drawn there. In a notebook that the pipeline runs it goes to the
    file that ``ETHALIGN_PROGRESS`` names, from where the command line shows it, so that no page
    of the book holds a bar.
    """
    from tqdm import tqdm

    path = os.environ.get("ETHALIGN_PROGRESS")
    look = {"total": total, "desc": what, "unit": unit, "mininterval": 1, "leave": False}
    with open(path, "a") if path else contextlib.nullcontext(sys.stderr) as out:
        # Without a file: as wide as the terminal, and no bar where there is none.
        how = {"file": out, "dynamic_ncols": not path, "disable": False if path else None}
        for item in tqdm(items, **look, **how):
            yield item
            if path and os.fstat(out.fileno()).st_size > BLOCK:  # however long the run
                out.truncate(0)


def size_of(model: str) -> float:
    """Parameters of a model by its name, such as ``…-135m-…`` or ``Llama-2 7B``; NaN if unsaid."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", model.lower())
    return float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]] if found else math.nan


def of_runs(home: Path, pattern: str) -> list[Path]:
    """Files below ``<study>/<scale>`` whose first folder is a model, those of small ones first.

    Where one model stands for all, it is the first.
    """

    def place(path: Path) -> tuple[float, Path]:
        size = size_of(path.relative_to(home).parts[0])
        return (0.0 if math.isnan(size) else size), path

    return sorted(home.glob(pattern), key=place)
