"""Artefacts that take seconds to make, made once for all workers of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.files import lock_file


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the path of what `make` writes for the first test that asks. Tests read it and never write into it.

    Args:
        factory: of the session.
        name: what it is, such as "checkpoints/llama"; the same in every worker.
        make: called with the path, whose folder is there; its last part is that of `name`.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # that of the run
    made = root / "shared" / name
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(made.with_name(f"{made.name}.lock")):
            if not made.exists():
                unfinished = made.with_name(f"{made.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a test that failed
                unfinished.mkdir()
                make(unfinished / made.name)
                (unfinished / made.name).rename(made)
                unfinished.rmdir()
    return made
