"""Tiny checkpoints, made once for a run of the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Give the folder of a tiny checkpoint of a kind (see tests/checkpoints.py). Tests read it and never write into it."""
    pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")
    from tests.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")

    def make(kind: str) -> Path:
        made = folder / kind
        return made if (made / "config.json").is_file() else make_checkpoint(made, kind)

    return make
