"""Official files: how they come to this machine, and that they are what was published.

Files are downloaded by pooch from their own address and verified by SHA-256; each study names its
own. The environment variable ``ETHALIGN_MIRROR`` names a folder that stands in for the internet.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ethalign.config import ROOT, UserError, read_yaml

# What an archive may hold; the largest of ours has a quarter of it.
MEMBERS, LARGEST = 100_000, 4 * 2**30
# What readers of archives raise, for an encrypted member or an odd method too.
BROKEN: tuple[type[Exception], ...] = (OSError, EOFError, RuntimeError, ValueError, zlib.error)
BROKEN += (lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, UserError)


class Source(NamedTuple):
    """One official file: its address, checksum, licence and place in a mirror folder.

    A ``mirror`` or ``member`` (of an archive) that is a folder stands for all its files; see
    ``sha256``. The checksum is hexadecimal; ``git:`` before a prefix means git's own hash of the
    file (SHA-1 over its length and bytes), where no longer one has been published. An
    ``optional`` file is needed by few settings, some of them those of the papers' own scales.
    """

    url: str
    sha256: str
    mirror: str
    licence: str
    member: str | None = None
    optional: bool = False


def declared(study: str) -> dict[str, Source]:
    """The official files of a study by name, from ``configs/<study>/sources.yaml``."""
    table = read_yaml(ROOT / "configs" / study / "sources.yaml")
    return {name: Source(**facts) for name, facts in table.items()}


def cache() -> Path:
    """Folder for downloads and converted models: ``ETHALIGN_CACHE`` or the user's cache.

    Raises:
        UserError: it cannot be made or written.
    """
    import pooch

    folder = Path(os.environ.get("ETHALIGN_CACHE") or pooch.os_cache("ethalign"))
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise UserError(
            f"{folder} cannot be written; set ETHALIGN_CACHE to a folder for downloads and models."
        )
    return folder


def git_blob(path: Path) -> str:
    """Git's hash of a file, as ``git hash-object`` prints it."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; of a folder, that of its lines ``<sha256>  <name>``.

    Raises:
        UserError: there is nothing at that path.
    """
    if path.is_dir():
        lines = [f"{sha256(p)}  {p.name}\n" for p in sorted(path.iterdir())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    if not path.is_file():
        raise UserError(f"{path} is missing.")
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str, remedy: str) -> Path:
    """``path`` if it has the expected checksum (see ``Source``).

    Raises:
        UserError: the file is missing or differs; names the file, both hashes and ``remedy``.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; {remedy}.")
    kind, _, digest = expected.rpartition(":")
    found = git_blob(path) if kind else sha256(path)
    if not found.startswith(digest):
        raise UserError(f"{path} has {kind or 'SHA-256'} {found}, expected {digest}; {remedy}.")
    return path


def fetch(source: Source) -> Path:
    """The verified local path of one official file or folder.

    Raises:
        UserError: no network, or bytes that do not match the checksum.
    """
    target, remedy = _place(source), "delete it and run `ethalign fetch`"
    if os.environ.get("ETHALIGN_MIRROR"):
        remedy = "copy it again into the folder that ETHALIGN_MIRROR names"
    elif not target.exists():
        _download(source, target)
    return verify(target, source.sha256, remedy)


def present(source: Source) -> bool:
    """Is an official file here already, in the mirror or the cache?"""
    return _place(source).exists()


def _place(source: Source) -> Path:
    return Path(os.environ.get("ETHALIGN_MIRROR") or cache() / "data") / source.mirror


def _download(source: Source, target: Path) -> None:
    import pooch

    target.parent.mkdir(parents=True, exist_ok=True)
    # The member is what is checked; archives are packed anew now and then.
    known = None if source.member else f"sha256:{source.sha256}"
    try:
        got = Path(pooch.retrieve(source.url, known, path=cache() / "downloads"))
    except Exception as error:
        raise UserError(
            f"{source.url} could not be downloaded ({type(error).__name__}); connect to the"
            " internet, or set ETHALIGN_MIRROR to a folder that holds "
            f"{source.mirror}, or stay with the shipped samples (--set data.source=sample)."
        ) from None
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        half = Path(scratch) / target.name
        try:
            _extract(got, source.member, half) if source.member else shutil.copyfile(got, half)
        except BROKEN as error:
            got.unlink(missing_ok=True)
            why = " ".join(str(error).split())
            raise UserError(f"{source.url} could not be unpacked ({why}); run again.") from None
        half.replace(target)


def _extract(archive: Path, wanted: str, target: Path) -> None:
    """A member of an archive, or all files of a folder in it; what else is there stays in it.

    Raises:
        UserError: no single such member, or more than ``LARGEST`` or ``MEMBERS``.
        Exception: one of ``BROKEN``.
    """
    total = found = 0
    for number, (name, size, opened) in enumerate(members(archive), 1):
        total += size
        if number > MEMBERS or total > LARGEST:
            raise UserError(f"it has more than {MEMBERS:,} files or {LARGEST:,} bytes")
        folder, _, last = f"/{name}".rpartition("/")
        if wanted.endswith("/") and f"{folder}/".endswith(f"/{wanted}"):
            target.mkdir(exist_ok=True)
            to = target / last
        elif f"/{name}".endswith(f"/{wanted}"):
            to = target
        else:
            continue
        found += 1
        with opened() as data, to.open("wb") as file:
            shutil.copyfileobj(data, file)
    if not found or (found > 1 and not wanted.endswith("/")):
        raise UserError(f"it holds no single {wanted}")


def members(archive: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """Name, size and opener of the regular files in a zip or tar archive; links are none."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for member in packed.infolist():
                if not member.is_dir():
                    yield member.filename, member.file_size, functools.partial(packed.open, member)
    else:
        with tarfile.open(archive) as tar:
            for entry in filter(tarfile.TarInfo.isreg, tar):
                yield entry.name, entry.size, functools.partial(tar.extractfile, entry)
