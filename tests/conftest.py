"""Shared fixtures. Everything here runs on a CPU, without a network, on random tiny models."""

import os
from pathlib import Path

import pytest

from ethalign import config, models

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder with the real files."""
    folder = os.environ.get("ETHALIGN_MIRROR")
    if not folder:
        pytest.skip("ETHALIGN_MIRROR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny() -> models.Loaded:
    """The random two-layer model and its byte tokenizer."""
    return models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))


@pytest.fixture
def fresh_tiny() -> models.Loaded:
    """The same, not shared: for tests that train it."""
    return models.load(config.Model(id="random-tiny", device="cpu", dtype="float32"))
