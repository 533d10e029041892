"""A pass over several prompts: as one for each of them, all or nothing, within what the engine says it can."""

from __future__ import annotations

import numpy as np
import pytest

from edge.backends.base import Part
from edge.errors import ContextFullError, UnsupportedError, UsageError
from tests.contract.entries import Bench
from tests.contract.test_cache import assert_close


@pytest.fixture
def packing(bench: Bench) -> Bench:
    if not bench.backend.capabilities.max_outputs:
        pytest.skip("it computes one prompt at a time")
    return bench


def test_who_cannot_says_so(bench: Bench) -> None:
    if bench.backend.capabilities.max_outputs:
        pytest.skip("it can")
    with pytest.raises(UnsupportedError, match="one prompt at a time"):
        bench.backend.extend([Part(0, [60])])


def test_several_prompts_in_one_pass_are_those_computed_alone(packing: Bench) -> None:
    backend = packing.backend
    prefix = packing.tokens(20, seed=1)
    rests = {seq_id: packing.tokens(3 + 2 * seq_id, seed=2 + seq_id) for seq_id in range(3)}
    expected = {}
    for seq_id, rest in rests.items():
        backend.prefill(0, [*prefix, *rest[:-2]])
        rows = [backend.logits(0)]
        for token in rest[-2:]:
            backend.decode([(0, token)])
            rows.append(backend.logits(0))
        expected[seq_id] = rows
        backend.rewind(0, 0)
    backend.prefill(0, prefix)
    for seq_id in (1, 2):
        backend.copy(0, seq_id, len(prefix))
    backend.extend([Part(seq_id, rest, 3) for seq_id, rest in rests.items()])
    for seq_id, rows in expected.items():
        assert backend.length(seq_id) == len(prefix) + len(rests[seq_id])
        for n_back, row in enumerate(reversed(rows)):
            assert_close(backend.logits(seq_id, n_back), row, packing.tolerance)
    backend.decode([(1, 60)])  # another pass leaves the newest logits of the others
    assert_close(backend.logits(0), expected[0][-1], packing.tolerance)


def test_a_pack_that_does_not_fit_changes_nothing(packing: Bench) -> None:
    backend = packing.backend
    backend.prefill(0, packing.tokens(backend.n_ctx - 4, seed=3))
    before = backend.logits(0)
    with pytest.raises(ContextFullError):
        backend.extend([Part(0, packing.tokens(3, seed=4)), Part(1, packing.tokens(3, seed=5))])
    assert (backend.length(0), backend.length(1)) == (backend.n_ctx - 4, 0)
    np.testing.assert_array_equal(backend.logits(0), before)
    backend.extend([Part(0, packing.tokens(2, seed=4)), Part(1, packing.tokens(2, seed=5), 2)])
    assert backend.length(1) == 2


def test_wrong_packs_are_refused(packing: Bench) -> None:
    backend = packing.backend
    most = backend.capabilities.max_outputs
    for parts in (
        [],
        [Part(0, [])],
        [Part(0, [60], 0)],
        [Part(0, [60], 2)],
        [Part(0, [60]), Part(0, [61])],
        [Part(0, [10**9])],
        [Part(99, [60])],
        [Part(0, [60] * (most + 1), most + 1)],
        [Part(0, [60] * (backend.chunk_size + 1))],
    ):
        with pytest.raises(UsageError):
            backend.extend(parts)
    assert backend.length(0) == 0
