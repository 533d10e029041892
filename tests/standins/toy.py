"""An engine that is added the way a contributor adds one: its backend, its row, its entry in the contract.

`pytest -p tests.standins.toy tests/contract` holds it to the contract, as tests/unit/plan/test_new_engine.py does.
"""

from __future__ import annotations

import pytest

from edge.backends.fake import FakeBackend
from edge.registry import ENGINES, EnginePackage, EngineRow
from tests.contract.entries import CHUNK, ENTRIES, N_CTX, N_SEQ, Bench, Entry


class ToyBackend(FakeBackend):
    """Door one: in the project it would be a package below edge/backends/."""

    name = "toy"


ROW = EngineRow(
    name="toy",
    title="Toy Engine",
    backend="tests.standins.toy:ToyBackend",
    formats=("gguf",),
    accelerators=("qnn", "cpu"),
    options=("threads", "n_ubatch"),
    n_seq=3,
    package=EnginePackage(
        module="toy_engine",
        distributions=("toy-engine",),
        libraries={"qnn": "toy_qnn"},
        install="Install it: pip install toy-engine",
        rebuild="Build it with QNN.",
    ),
)
"""Door two: in the project it would stand in edge/registry.py."""


def open_toy(request: pytest.FixtureRequest, kind: str) -> Bench:
    return Bench(ToyBackend(n_ctx=N_CTX, n_seq=N_SEQ, chunk_size=CHUNK), tolerance=0.0, can_chat=True)


def pytest_configure(config: pytest.Config) -> None:
    """Door three: in the project the entry would stand in tests/contract/entries.py."""
    ENGINES["toy"] = ROW
    ENTRIES.append(Entry("toy", "toy", open_toy))
