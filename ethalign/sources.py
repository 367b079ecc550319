"""Official files: their addresses and checksums, and how they come to this machine.

Files are downloaded by pooch from their own address and verified by SHA-256. The environment
variable ``ETHALIGN_MIRROR`` names a folder that stands in for the internet.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from ethalign.config import UserError

_DFAR = "https://raw.githubusercontent.com/apurba-nsu-rnd-lab/DFAR/main/DFAR%20dataset"
_ETHOS = (
    "https://raw.githubusercontent.com/intelligence-csd-auth-gr/"
    "Ethos-Hate-Speech-Dataset/master/ethos/ethos_data/Ethos_Dataset_Binary.csv"
)
_ETHICS = "https://people.eecs.berkeley.edu/~hendrycks/ethics.tar"
_SCRUPLES = "https://storage.googleapis.com/ai2-mosaic-public/projects/scruples/v1.0/data"
_DEMO = (
    "https://raw.githubusercontent.com/allenai/scruples/master/src/scruples/demos/scoracle/"
    "templates/dev.scruples-anecdotes_label-counts.json"
)
_EXCERPT = (
    "https://raw.githubusercontent.com/niksharma99/EECS6895FinalProject/2eaeab64943a/data/"
    "interim/scruples_60.jsonl"
)
_HONESTY = (
    "https://raw.githubusercontent.com/GAIR-NLP/alignment-for-honesty/main/data/evaluation_data"
)
_TRIVIA = (
    "https://raw.githubusercontent.com/castorini/anserini/81a39cce71ee/src/main/resources/"
    "topics-and-qrels"
)
_MMLU = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
_DISAGREEMENT = (
    "https://github.com/minnesotanlp/Quantifying-Annotation-Disagreement/raw/main/dataset/"
    "Dilemmas_Disagreement.zip"
)


class Source(NamedTuple):
    """One official file: its address, checksum, licence and place in a mirror folder.

    A ``mirror`` or ``member`` that is a folder stands for all its files; see ``folder_sha256``.
    ``sha256`` is hexadecimal; ``git:`` before a prefix means git's own hash of the file (SHA-1
    over its length and bytes), where no longer one has been published.
    """

    url: str
    sha256: str
    mirror: str
    licence: str
    member: str | None = None


# Hashes are of the files as published; a changed file upstream is an error, not a surprise.
SOURCES: dict[str, Source] = {
    "dfar-train": Source(
        f"{_DFAR}/DFAR_trainset.csv",
        "28fb58aeaa1f85ddbba2b53313761f9d51b26ddd71f8013342c2e0a17ddda849",
        "dfar/DFAR_trainset.csv",
        "MIT",
    ),
    "dfar-test": Source(
        f"{_DFAR}/DFAR_testset.csv",
        "f1c74c1a40c056368ba3872d32b05fda875f645b1a42648913a2f4ffabf48b00",
        "dfar/DFAR_testset.csv",
        "MIT",
    ),
    "ethos-test": Source(
        _ETHOS,
        "0cd0050c2592afcb5eca5876df485ca15cda9d7d16fe32c269857260fd10d96c",
        "ethos/Ethos_Dataset_Binary.csv",
        "GPL-3.0",
    ),
    "justice-train": Source(
        _ETHICS,
        "175c8255f5ee3d99ad381cd716473367274dc24b3832d5e3357f37f1779a7d3f",
        "ethics/justice_train.csv",
        "MIT",
        "ethics/justice/justice_train.csv",
    ),
    "justice-test": Source(
        _ETHICS,
        "d7cc506a1055915d455a9244b26de573c75a760d416a8508a9420d41cbf40250",
        "ethics/justice_test.csv",
        "MIT",
        "ethics/justice/justice_test.csv",
    ),
    **{
        f"dilemmas-{split}": Source(
            f"{_SCRUPLES}/dilemmas.tar.gz",
            digest,
            f"scruples/dilemmas/{split}.scruples-dilemmas.jsonl",
            "Apache-2.0",
            f"{split}.scruples-dilemmas.jsonl",
        )
        for split, digest in (
            ("train", "git:a5bd01be"),
            ("dev", "780b28b57bfb7628ef60e574b8cb646625d1dc3932ceb32d5706ba350c73239a"),
            ("test", "5299075dfd6877f2ed202881189565adcaf1c40920ff8ddbed05024731624eb5"),
        )
    },
    **{
        f"anecdotes-{split}": Source(
            f"{_SCRUPLES}/anecdotes.tar.gz",
            digest,
            f"scruples/anecdotes/{split}.scruples-anecdotes.jsonl",
            "research",
            f"{split}.scruples-anecdotes.jsonl",
        )
        for split, digest in (
            ("train", "git:64356e45"),
            ("dev", "git:fef3c3de"),
            ("test", "git:d628909d"),
        )
    },
    "anecdotes-excerpt": Source(
        _EXCERPT,
        "4b2be9ac885adfb89e7c27129b0d1a384c8d5ad6f2a85321b9b108692523fd81",
        "scruples/anecdotes_sample/scruples_60.jsonl",
        "research",
    ),
    "anecdotes-votes": Source(
        _DEMO,
        "2aee4a2dc5a09b0096aadb469ee6a2d702c5e2434960ddf4fd053a02bc1ca8ac",
        "scruples/label-counts/dev.scruples-anecdotes_label-counts.json",
        "Apache-2.0",
    ),
    **{
        f"triviaqa-{split}": Source(
            f"{_TRIVIA}/{name}", digest, f"triviaqa/{name}", "CC-BY-NC-4.0"
        )
        for split, name, digest in (
            (
                "train",
                "topics.dpr.trivia.dev.txt",
                "79e7ea851bb5ca6ebbfd6c760d032064d324166d46b8ffaf70e0fb733186ed2a",
            ),
            (
                "test",
                "topics.dpr.trivia.test.txt",
                "041ed9ddd2977c7fe452d290cf60e1f7e0a803977b0f912e234d218261c10e57",
            ),
        )
    },
    **{
        f"{name}-test": Source(f"{_HONESTY}/{file}", digest, f"honesty/{file}", "unstated")
        for name, file, digest in (
            (
                "nonambigqa",
                "nonambigqa.jsonl",
                "95c62e97a4c31a4757e0e6303a164534ac1948ba43ef6e82bc38fdae807e7149",
            ),
            (
                "puqa",
                "puqa.jsonl",
                "211aa28ef38fca893ab034b1c1e1bf7943d39a6854d361bf5196d28bede49042",
            ),
            (
                "pkqa",
                "pkqa_13b.jsonl",
                "8c7b3a8bb98518e285f7c4e5d897253b1ed5b44b4ef1bc409e7a032d806df0e2",
            ),
        )
    },
    "mmlu-test": Source(
        _MMLU,
        "1f0cec94ac3236778d79014c784c2b2e1e7d5a14bc3a332891c982e24f70d533",
        "mmlu/test",
        "MIT",
        "data/test/",
    ),
    "dilemmas-disagreement": Source(
        _DISAGREEMENT,
        "1d1ae9519f50b8679843d5bc1eac7a93edf84624252f78c8eb81903fd97b1855",
        "scruples/dilemmas_disagreement/train.csv",
        "unstated",
        "train.csv",
    ),
}
# Not needed for any scale: large archives that a run names by a parameter (votes.split).
OPTIONAL = (*(f"anecdotes-{split}" for split in ("train", "dev", "test")), "dilemmas-train")


def cache() -> Path:
    """Folder for downloads and converted models: ``ETHALIGN_CACHE`` or the user's cache."""
    import pooch

    return Path(os.environ.get("ETHALIGN_CACHE") or pooch.os_cache("ethalign"))


def git_blob(path: Path) -> str:
    """Git's hash of a file, as ``git hash-object`` prints it."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
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
    digest_of = folder_sha256 if path.is_dir() else git_blob if kind else sha256
    found = digest_of(path)
    if not found.startswith(digest):
        raise UserError(f"{path} has {kind or 'SHA-256'} {found}, expected {digest}; {remedy}.")
    return path


def folder_sha256(folder: Path) -> str:
    """SHA-256 over a folder: of its lines ``<sha256>  <name>``, sorted by name."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch(name: str) -> Path:
    """The verified local path of one official file or folder.

    Raises:
        UserError: unknown name, no network, or bytes that do not match the checksum.
    """
    source = SOURCES[name]
    mirror = os.environ.get("ETHALIGN_MIRROR")
    if mirror:
        remedy = "copy it again into the folder that ETHALIGN_MIRROR names"
        return verify(Path(mirror) / source.mirror, source.sha256, remedy)
    target = cache() / "data" / source.mirror
    if not target.exists():
        _download(source, target)
    return verify(target, source.sha256, "delete it and run `ethalign fetch`")


def present(name: str) -> bool:
    """Is an official file here already, in the mirror or the cache?"""
    mirror = os.environ.get("ETHALIGN_MIRROR")
    folder = Path(mirror) if mirror else cache() / "data"
    return (folder / SOURCES[name].mirror).exists()


def _download(source: Source, target: Path) -> None:
    import pooch

    target.parent.mkdir(parents=True, exist_ok=True)
    # The member is what is checked; archives are packed anew now and then.
    known = None if source.member else f"sha256:{source.sha256}"
    try:
        got = pooch.retrieve(source.url, known, path=cache() / "downloads", progressbar=False)
    except Exception as error:
        raise UserError(
            f"{source.url} could not be downloaded ({type(error).__name__}); connect to the"
            " internet, or set ETHALIGN_MIRROR to a folder that holds "
            f"{source.mirror}, or stay with the shipped samples (--set data.source=sample)."
        ) from None
    half = target.with_name(target.name + ".part")
    if source.member and source.member.endswith("/"):
        _members(Path(got), source.member, half)
    else:
        content = _member(Path(got), source.member) if source.member else Path(got).read_bytes()
        half.write_bytes(content)
    half.replace(target)


def _members(archive: Path, folder: str, target: Path) -> None:
    """The files of one folder of a tar archive, by their bare names."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                parent, _, name = entry.name.rpartition("/")
                file = tar.extractfile(entry) if f"{parent}/" == folder and name else None
                if file is not None:
                    (target / name).write_bytes(file.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} holds no readable {folder} ({error}); delete it.") from None


def _member(archive: Path, member: str) -> bytes:
    """One file out of an archive, found by the end of its name; no path in it is trusted."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                return bundle.read(_named(bundle.namelist(), member))
        with tarfile.open(archive) as tar:
            file = tar.extractfile(_named(tar.getnames(), member))
            if file is None:
                raise KeyError(member)
            return file.read()
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise UserError(f"{archive} holds no readable {member} ({error}); delete it.") from None


def _named(names: list[str], member: str) -> str:
    """The one name that is ``member`` or ends with it after a slash."""
    found = [name for name in names if f"/{name}".endswith(f"/{member}")]
    if len(found) != 1:
        raise KeyError(f"{len(found)} entries of that name")
    return found[0]
