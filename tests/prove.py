"""Size of long proofs: short in `make test`, whole in `make prove`.

Every test that asks for its size here is marked `prove`, so that `make prove` runs it. One that only `make prove` runs is
marked `prove(whole_only=True)`: another test proves the same on something smaller.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")
IS_WHOLE = os.environ.get("EDGE_TEST_PROVE") == "1"


def proof_size(short: T, whole: T) -> T:
    """Return `whole` under `make prove`, else `short`: how many kills, mutations, examples or seconds a proof takes."""
    return whole if IS_WHOLE else short
