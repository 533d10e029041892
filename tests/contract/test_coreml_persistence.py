"""Core ML and the disk: conversations that are restored against ones that never stopped, and one process after another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

from edge.assistant import Assistant, DiskCache
from edge.conversation import ConversationStore
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from tests.contract.coreml import coreml_plan, open_coreml, write_package
from tests.contract.test_persistence import World, compare
from tests.shared import made_once

CONTEXT = 512


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for a conversation."""
    folder = made_once(tmp_path_factory, "contract/long", lambda path: write_package(path, context=CONTEXT, chunk=32))
    return folder / "package" / "model.mlpackage"


@pytest.fixture
def opener(package: Path, plan_for: Any, tmp_path: Path) -> Callable[..., Callable[[ConversationStore], Assistant]]:
    """Makes assistants with the disk, or without."""

    def make(directory: Path | None, *, exact: bool, n_seq: int = 1) -> Callable[[ConversationStore], Assistant]:
        plan = coreml_plan(plan_for, package, n_ctx=CONTEXT, n_seq=n_seq)

        def open(store: ConversationStore) -> Assistant:
            backend = open_coreml(plan, tmp_path / "cache")
            disk = None
            if directory is not None:
                blocks = BlockStore(directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, encrypt=False, sync=False))
                disk = DiskCache(blocks, model_fingerprint(backend, plan.artifact, exact=exact))
            return Assistant(backend, plan, store=store, disk=disk, exact=exact)

        return open

    return make


def test_exact_replies_are_those_of_a_cold_run(opener: Any, tmp_path: Path) -> None:
    cold = World(opener(None, exact=True), restarts=True)
    restarted = World(opener(tmp_path / "kv", exact=True), restarts=True)
    compare(restarted, cold, range(400, 403))
    assert cold.n_restored == 0
    assert restarted.n_restored > 200


def test_a_restart_changes_no_word(opener: Any, tmp_path: Path) -> None:
    running = World(opener(tmp_path / "running", exact=False), restarts=False)
    restarted = World(opener(tmp_path / "restarted", exact=False), restarts=True)
    compare(restarted, running, range(410, 413))
    assert restarted.n_restored > 200


PROCESS = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
sys.modules["torch"] = None  # coremltools would spend seconds on importing it
from pathlib import Path
import numpy as np
from tests.contract.entries import make_plan
from tests.contract.coreml import coreml_plan, open_coreml
action, package, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
tokens = [int(token) for token in np.random.default_rng(8).integers(20, 256, 90)]
with open_coreml(coreml_plan(make_plan, package, n_ctx=512, n_seq=1), folder / "cache") as backend:
    if action == "first":
        backend.prefill(0, tokens[:70])
        for token in tokens[70:80]:
            backend.decode([(0, token)])
        (folder / "one").write_bytes(backend.export_kv(0, 0, 64))
        (folder / "two").write_bytes(backend.export_kv(0, 64, 80))
        (folder / "identity").write_text(repr(backend.kv_identity()))
    else:
        assert (folder / "identity").read_text() == repr(backend.kv_identity())
        backend.import_kv(0, (folder / "one").read_bytes())
        backend.import_kv(0, memoryview((folder / "two").read_bytes()))
    for token in tokens[80:]:
        backend.decode([(0, token)])
    np.save(folder / action, backend.logits(0))
"""


def test_another_process_goes_on_where_one_ended(package: Path, tmp_path: Path) -> None:
    for action in ("first", "second"):
        command = [sys.executable, "-c", PROCESS, json.dumps(sys.path), action, str(package), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_array_equal(np.load(tmp_path / "second.npy"), np.load(tmp_path / "first.npy"))
