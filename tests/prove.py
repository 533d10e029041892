"""Size of long proofs: short in `make test`, whole in `make prove`.

Every test that asks for its size here is marked `prove`, so that `make prove` runs it. One that only `make prove` runs is
marked `prove(whole_only=True)`: another test proves the same on something smaller. Of a test with many cases alike, marked
`prove(one_of=4)`, `make test` runs a quarter, always the same one.
"""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest

T = TypeVar("T")
IS_WHOLE = os.environ.get("EDGE_TEST_PROVE") == "1"


def proof_size(short: T, whole: T) -> T:
    """Return `whole` under `make prove`, else `short`: how many kills, mutations, examples or seconds a proof takes."""
    return whole if IS_WHOLE else short


def left_to_prove(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the tests that `make test` leaves to `make prove`. Of each function with `one_of`, at least one case stays."""
    cases: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        said = {name: value for mark in item.iter_markers("prove") for name, value in mark.kwargs.items()}
        if said.get("whole_only"):
            yield item
        elif "one_of" in said:
            cases[item.nodeid.partition("[")[0], said["one_of"]].append(item)
    for (_, one_of), alike in cases.items():
        alike.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        yield from alike[-(-len(alike) // one_of) :]
