"""Every engine of the registry is held to the contract."""

from __future__ import annotations

from edge.registry import ENGINES
from tests.contract.entries import ENTRIES


def test_every_engine_has_an_entry() -> None:
    assert {entry.engine for entry in ENTRIES} == set(ENGINES)
