"""A hub and a package index of the test's own, and settings that lead to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from edge.config import Settings, load_settings
from edge.sources import transfer
from tests.servers.hub import Hub, Repo, run_hub
from tests.servers.index import Index, run_index
from tests.servers.models import FILE, make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_model(tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture
def hub(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model. huggingface_hub read its own folders when it was imported, so they are moved by hand."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with run_hub(acme__tiny_GGUF=Repo({})) as hub:
        hub.repos = {"acme/tiny-GGUF": Repo({FILE: model, "README.md": b"hello"})}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        # huggingface_hub 1.0 makes one client a thread if several threads are first at once, and closes one of them.
        huggingface_hub.get_session()
        yield hub
        hub.release.set()
        # Its client is shared and would keep connections to servers that are gone.
        huggingface_hub.close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting between attempts, noted instead of done."""
    noted: list[float] = []
    monkeypatch.setattr(transfer, "sleep", noted.append)
    return noted


@pytest.fixture
def settings(hub: Hub, waits: list[float]) -> Settings:
    return load_settings()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """A package index, and pip without the settings of this machine."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    with run_index() as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        yield index
