"""Data sets by name, and official files on their way to this machine."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from ethalign import data, sources, study
from ethalign.config import UserError
from ethalign.sources import Source

FILES = {name: source for owner in study.everything() for name, source in owner.sources.items()}


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [
        ("dfars", "test", "official"),
        ("dfar", "dev", "official"),
        ("ethos", "train", "official"),
        ("dfar", "test", "cloud"),
        ("justice", "test", "sample"),
    ],
)
def test_unknown_names_are_refused(name: str, split: str, source: str) -> None:
    with pytest.raises(UserError):
        data.load(name, split, source)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'dfar'"):
        data.load("dfars")


def test_every_official_file_has_an_address_a_checksum_and_a_licence() -> None:
    for name, source in FILES.items():
        assert source.url.startswith("https://"), name
        assert source.licence, name
        assert len(source.sha256) == 64 or source.sha256.startswith("git:"), name
        packed, kept = (x.endswith((".tar", ".gz", ".zip")) for x in (source.url, source.mirror))
        assert not kept or packed, name
        assert (source.member is None) == (kept or not packed), "taken apart, or kept as it is"


def test_the_mirror_holds_the_files_as_published(mirror: Path) -> None:
    there = [source for source in FILES.values() if sources.present(source)]
    assert len(there) > 10
    for source in there:
        assert sources.fetch(source) == mirror / source.mirror


def test_a_truncated_mirror_file_names_file_and_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dfar" / "DFAR_testset.csv"
    file.parent.mkdir()
    file.write_bytes(b"Statement,Label,Reason\n")
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        data.load("dfar", "test")
    message = str(caught.value)
    assert str(file) in message
    assert FILES["dfar-test"].sha256 in message
    assert sources.sha256(file) in message


def test_a_missing_mirror_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETHALIGN_MIRROR", str(tmp_path))
    with pytest.raises(UserError, match=r"DFAR_testset\.csv is missing"):
        data.load("dfar", "test")


def test_without_network_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path))
    gone = FILES["dfar-test"]._replace(url="http://127.0.0.1:9/none.csv")
    with pytest.raises(UserError, match="ETHALIGN_MIRROR"):
        sources.fetch(gone)
    assert not list(tmp_path.rglob("*.csv")), "nothing half-written is left"


CONTENT = b"label,scenario\n1,I deserve thanks because I helped.\n"
INSIDE = ("top/README.txt", "top/part/wanted.csv", "top/part/other.csv")


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in INSIDE:
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in INSIDE:
            archive.writestr(name, CONTENT)


@pytest.mark.parametrize(("name", "pack"), [("data.tar", _tar), ("data.zip", _zip)])
def test_a_member_is_taken_out_of_an_archive_and_verified(
    name: str, pack: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded by pooch itself, from a server of this machine: one archive, one file wanted."""
    from servers import folder_server

    assert callable(pack)
    pack(tmp_path / name)
    monkeypatch.delenv("ETHALIGN_MIRROR", raising=False)
    monkeypatch.setenv("ETHALIGN_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    with folder_server(tmp_path) as address:
        wanted = Source(f"{address}/{name}", digest, "x/wanted.csv", "MIT", "part/wanted.csv")
        path = sources.fetch(wanted)
        assert path.read_bytes() == CONTENT
        lines = sorted(f"{digest}  {n}\n" for n in ("wanted.csv", "other.csv"))
        lines.sort(key=lambda line: line.split()[1])
        whole = hashlib.sha256("".join(lines).encode()).hexdigest()
        folder = Source(f"{address}/{name}", whole, "x/part", "MIT", "part/")
        assert {p.name for p in sources.fetch(folder).iterdir()} == {"wanted.csv", "other.csv"}
        missing = Source(f"{address}/{name}", digest, "x/none.csv", "MIT", "part/none.csv")
        with pytest.raises(UserError, match=r"part/none\.csv"):
            sources.fetch(missing)
        path.write_bytes(b"cut")
        with pytest.raises(UserError, match="expected"):
            sources.fetch(wanted)
