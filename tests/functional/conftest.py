"""Functional tests run real models while the other worker has the other core."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.prove import IS_WHOLE


@pytest.fixture(autouse=True)
def one_thread(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run engines on one thread: of two, each would wait for the other hundreds of times a token. Not under `make prove`."""
    if not IS_WHOLE:
        monkeypatch.setenv("EDGE_THREADS", "1")
