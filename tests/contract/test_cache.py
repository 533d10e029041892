"""The KV cache: `prefill`, `decode`, `rewind`, `copy`, `export_kv` and `import_kv`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.base import Backend
from edge.errors import BackendError, ContextFullError, UsageError

Logits = npt.NDArray[np.float32]


def fresh(backend: Backend, tokens: Sequence[int], seq_id: int = 0) -> Logits:
    """The logits after these tokens, computed from nothing."""
    backend.rewind(seq_id, 0)
    backend.prefill(seq_id, tokens)
    return backend.logits(seq_id)


def after_chunks(backend: Backend, n_chunks: int) -> Callable[[], bool]:
    """A `should_stop` that says True once so many more chunks of sequence 0 are computed."""
    end = (backend.length(0) // backend.chunk_size + n_chunks) * backend.chunk_size
    return lambda: backend.length(0) >= end


def assert_close(actual: Logits, expected: Logits, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_logits_are_float32_over_the_vocabulary_and_a_copy(bench) -> None:
    backend = bench.backend
    first = fresh(backend, bench.tokens(5, seed=1))
    assert first.shape == (backend.info.n_vocab,)
    assert first.dtype == np.float32
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(backend.logits(0), kept)


def test_logits_depend_on_every_token_and_on_the_order(bench) -> None:
    backend, tokens = bench.backend, bench.tokens(12, seed=2)
    expected = fresh(backend, tokens)
    for changed in ([99, *tokens[1:]], [*tokens[:6], 99, *tokens[7:]], [*tokens[1::-1], *tokens[2:]]):
        assert changed != tokens
        assert np.abs(fresh(backend, changed) - expected).max() > max(bench.tolerance, 0.01) / 4


def test_prefill_counts(bench) -> None:
    backend, tokens = bench.backend, bench.tokens(70, seed=3)
    assert backend.length(0) == 0
    assert backend.prefill(0, tokens) == 70
    assert backend.length(0) == 70
    assert backend.length(1) == 0


def test_pieces_cut_at_chunk_boundaries_give_the_same_bits(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens = bench.tokens(3 * chunk + 5, seed=4)
    expected = fresh(backend, tokens)
    backend.rewind(0, 0)
    for start in range(0, len(tokens), chunk):
        backend.prefill(0, tokens[start : start + chunk])
        backend.logits(0)  # which an engine may compute only now, and must not leave a trace
    np.testing.assert_array_equal(backend.logits(0), expected)


@pytest.mark.parametrize("cuts", [[1], [7, 8, 50], [31, 33], [64, 65]])
def test_pieces_cut_anywhere_give_nearly_the_same(bench, cuts: list[int]) -> None:
    backend, tokens = bench.backend, bench.tokens(75, seed=5)
    expected = fresh(backend, tokens)
    backend.rewind(0, 0)
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        backend.prefill(0, tokens[start:end])
    assert_close(backend.logits(0), expected, bench.tolerance)


def test_a_prompt_that_starts_off_a_boundary_is_cut_at_the_next_one(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    backend.prefill(0, bench.tokens(5, seed=6))
    seen: list[int] = []
    backend.prefill(0, bench.tokens(chunk + 10, seed=7), should_stop=lambda: bool(seen.append(backend.length(0))))
    assert sorted(set(seen)) == [5, chunk]
    assert backend.length(0) == chunk + 15


def test_decoding_token_by_token_equals_prefill(bench) -> None:
    backend, tokens = bench.backend, bench.tokens(20, seed=8)
    expected = fresh(backend, tokens)
    backend.rewind(0, 0)
    backend.prefill(0, tokens[:1])
    for token in tokens[1:]:
        backend.decode([(0, token)])
    assert backend.length(0) == len(tokens)
    assert_close(backend.logits(0), expected, bench.tolerance)


def test_rewind_then_continue_equals_fresh(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    common, old, new = bench.tokens(chunk, seed=9), bench.tokens(40, seed=10), bench.tokens(25, seed=11)
    expected = fresh(backend, common + new)
    fresh(backend, common + old)
    backend.rewind(0, chunk)
    assert backend.length(0) == chunk
    backend.prefill(0, new)
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_rewind_at_any_token_leaves_nothing_of_the_tail(bench) -> None:
    backend = bench.backend
    common, old, new = bench.tokens(17, seed=12), bench.tokens(30, seed=13), bench.tokens(3, seed=14)
    expected = fresh(backend, common + new)
    fresh(backend, common + old)
    backend.rewind(0, len(common))
    backend.prefill(0, new)
    assert_close(backend.logits(0), expected, bench.tolerance)


def test_rewind_to_the_present_length_changes_nothing(bench) -> None:
    backend, tokens = bench.backend, bench.tokens(10, seed=15)
    expected = fresh(backend, tokens)
    backend.rewind(0, 10)
    np.testing.assert_array_equal(backend.logits(0), expected)


@pytest.mark.parametrize("n_keep", [-1, 11])
def test_rewind_to_a_length_it_never_had_is_refused(bench, n_keep: int) -> None:
    bench.backend.prefill(0, bench.tokens(10, seed=16))
    with pytest.raises(UsageError):
        bench.backend.rewind(0, n_keep)
    assert bench.backend.length(0) == 10


def test_sequences_do_not_see_each_other(bench) -> None:
    backend = bench.backend
    prompts = [bench.tokens(12 + 9 * i, seed=20 + i) for i in range(3)]
    expected = [fresh(backend, prompt) for prompt in prompts]
    for seq_id in range(3):
        backend.rewind(seq_id, 0)
    for start in range(0, 30, 10):
        for seq_id, prompt in enumerate(prompts):
            piece = prompt[start : start + 10]
            if piece:
                backend.prefill(seq_id, piece)
    for seq_id in range(3):
        assert_close(backend.logits(seq_id), expected[seq_id], bench.tolerance)


def test_newest_logits_survive_the_passes_of_other_sequences(bench) -> None:
    backend = bench.backend
    expected = fresh(backend, bench.tokens(9, seed=30))
    backend.prefill(1, bench.tokens(50, seed=31))
    backend.decode([(1, 50)])
    backend.prefill(2, bench.tokens(3, seed=32))
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_one_pass_over_several_sequences_equals_several_passes(bench) -> None:
    backend = bench.backend
    steps = [(0, 40), (1, 50), (2, 60), (3, 70)]
    prompts = [bench.tokens(8 + seq_id, seed=33 + seq_id) for seq_id, _ in steps]
    expected = [fresh(backend, [*prompts[seq_id], token]) for seq_id, token in steps]
    for seq_id, _ in steps:
        fresh(backend, prompts[seq_id], seq_id)
    backend.decode(list(reversed(steps)))
    for seq_id, _ in steps:
        assert backend.length(seq_id) == len(prompts[seq_id]) + 1
        assert_close(backend.logits(seq_id), expected[seq_id], bench.tolerance)


def test_a_sequence_twice_in_one_step_is_refused(bench) -> None:
    bench.backend.prefill(0, bench.tokens(4, seed=37))
    with pytest.raises(UsageError, match="twice"):
        bench.backend.decode([(0, 40), (0, 41)])
    assert bench.backend.length(0) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda backend: backend.prefill(0, []),
        lambda backend: backend.decode([]),
        lambda backend: backend.prefill(0, [backend.info.n_vocab]),
        lambda backend: backend.decode([(0, -1)]),
        lambda backend: backend.prefill(99, [40]),
        lambda backend: backend.decode([(-1, 40)]),
        lambda backend: backend.rewind(99, 0),
        lambda backend: backend.length(backend.capabilities.n_seq),
        lambda backend: backend.copy(0, 99, 0),
        lambda backend: backend.logits(99),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(bench, call: Callable[[Backend], object]) -> None:
    expected = fresh(bench.backend, bench.tokens(4, seed=38))
    with pytest.raises(UsageError):
        call(bench.backend)
    assert [bench.backend.length(seq_id) for seq_id in range(4)] == [4, 0, 0, 0]
    np.testing.assert_array_equal(bench.backend.logits(0), expected)


# -- stopping


def test_stopping_between_chunks_keeps_what_is_done(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens = bench.tokens(4 * chunk, seed=40)
    expected = fresh(backend, tokens)
    backend.rewind(0, 0)
    done = backend.prefill(0, tokens, should_stop=after_chunks(backend, 2))
    assert done == backend.length(0) == 2 * chunk
    backend.prefill(0, tokens[done:])
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_stopping_before_the_first_chunk_computes_nothing(bench) -> None:
    assert bench.backend.prefill(0, bench.tokens(50, seed=41), should_stop=lambda: True) == 0
    assert bench.backend.length(0) == 0


def test_an_error_in_should_stop_reaches_the_caller_and_spares_the_cache(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens = bench.tokens(2 * chunk + 3, seed=42)
    expected = fresh(backend, tokens)
    backend.rewind(0, 0)
    is_over = after_chunks(backend, 1)
    with pytest.raises(ZeroDivisionError):
        backend.prefill(0, tokens, should_stop=lambda: is_over() and bool(1 / 0))
    assert backend.length(0) == chunk
    backend.prefill(0, tokens[chunk:])
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_there_are_no_logits_where_none_were_computed(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens = bench.tokens(2 * chunk, seed=43)
    states: list[Callable[[], object]] = [
        lambda: None,
        lambda: backend.prefill(0, tokens, should_stop=lambda: True),
        lambda: (backend.prefill(0, tokens), backend.rewind(0, chunk)),
        lambda: (backend.prefill(1, tokens), backend.copy(1, 0, chunk)),
    ]
    for reach in states:
        backend.rewind(0, 0)
        reach()
        with pytest.raises(BackendError, match="no newest logits"):
            backend.logits(0)


# -- a full window


def test_what_does_not_fit_is_refused_before_anything_is_computed(bench) -> None:
    backend = bench.backend
    expected = fresh(backend, bench.tokens(backend.n_ctx - 10, seed=50))
    asked: list[None] = []
    with pytest.raises(ContextFullError):
        backend.prefill(0, bench.tokens(11, seed=51), should_stop=lambda: bool(asked.append(None)))
    assert asked == [], "not one chunk was begun"
    assert backend.length(0) == backend.n_ctx - 10
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_every_cell_can_be_used_and_not_one_more(bench) -> None:
    backend = bench.backend
    if not backend.capabilities.shared_cells:
        pytest.skip("each sequence has cells of its own")
    backend.prefill(0, bench.tokens(backend.n_ctx - 2, seed=52))
    backend.prefill(1, [40])
    backend.decode([(0, 41)])
    before = backend.logits(0)
    for steps in ([(0, 42)], [(1, 42)], [(0, 42), (1, 43)]):
        with pytest.raises(ContextFullError):
            backend.decode(steps)
    assert (backend.length(0), backend.length(1)) == (backend.n_ctx - 1, 1)
    np.testing.assert_array_equal(backend.logits(0), before)
    backend.rewind(1, 0)
    backend.decode([(0, 42)])
    assert backend.length(0) == backend.n_ctx


def test_sequences_with_buffers_of_their_own_take_no_room_from_each_other(bench) -> None:
    backend = bench.backend
    if backend.capabilities.shared_cells:
        pytest.skip("all sequences take cells from one pool")
    expected = fresh(backend, bench.tokens(backend.n_ctx - 1, seed=53))
    for seq_id in range(1, backend.capabilities.n_seq):
        backend.prefill(seq_id, bench.tokens(backend.n_ctx - 1, seed=53))
    backend.decode([(seq_id, 40) for seq_id in range(1, backend.capabilities.n_seq)])
    np.testing.assert_array_equal(backend.logits(0), expected)
    with pytest.raises(ContextFullError):
        backend.decode([(0, 41), (1, 41)])
    assert [backend.length(seq_id) for seq_id in range(2)] == [backend.n_ctx - 1, backend.n_ctx]
    with pytest.raises(ContextFullError):
        backend.prefill(0, [41, 42])
    backend.decode([(0, 40)])
    assert_close(backend.logits(0), backend.logits(1), bench.tolerance)


# -- copying


def test_a_copy_goes_on_like_the_original_and_apart_from_it(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens, tail, other = bench.tokens(chunk + 20, seed=60), bench.tokens(6, seed=61), bench.tokens(6, seed=62)
    expected = [fresh(backend, tokens[:chunk] + end) for end in (tail, other)]
    fresh(backend, tokens)
    backend.prefill(1, other)  # what the target held is gone afterwards
    backend.copy(0, 1, chunk)
    assert (backend.length(0), backend.length(1)) == (chunk + 20, chunk)
    backend.rewind(0, chunk)
    backend.prefill(0, tail)
    backend.prefill(1, other)
    for seq_id in (0, 1):
        assert_close(backend.logits(seq_id), expected[seq_id], bench.tolerance)
    backend.rewind(0, 0)
    backend.decode([(1, 44)])  # the original is gone, the copy is not
    assert backend.length(1) == chunk + 7


def test_copies_share_their_cells_or_have_their_own(bench) -> None:
    backend = bench.backend
    n_shared = backend.n_ctx * 3 // 4
    backend.prefill(0, bench.tokens(n_shared, seed=63))
    for target in (1, 2, 3):
        backend.copy(0, target, n_shared)
    assert sum(backend.length(seq_id) for seq_id in range(4)) > backend.n_ctx
    for seq_id in range(4):
        backend.decode([(seq_id, 40 + seq_id)])
    n_free = backend.n_ctx - n_shared - (4 if backend.capabilities.shared_cells else 1)
    with pytest.raises(ContextFullError):
        backend.prefill(3, bench.tokens(n_free + 1, seed=64))
    backend.prefill(3, bench.tokens(n_free, seed=64))


def test_copying_nothing_empties_the_target(bench) -> None:
    backend = bench.backend
    backend.prefill(0, bench.tokens(5, seed=65))
    backend.prefill(1, bench.tokens(5, seed=66))
    backend.copy(0, 1, 0)
    assert (backend.length(0), backend.length(1)) == (5, 0)


def test_copying_a_sequence_to_itself_rewinds_it(bench) -> None:
    bench.backend.prefill(0, bench.tokens(9, seed=67))
    bench.backend.copy(0, 0, 4)
    assert bench.backend.length(0) == 4


def test_more_than_there_is_cannot_be_copied(bench) -> None:
    bench.backend.prefill(0, bench.tokens(5, seed=68))
    bench.backend.prefill(1, bench.tokens(3, seed=69))
    with pytest.raises(UsageError):
        bench.backend.copy(0, 1, 6)
    assert bench.backend.length(1) == 3


# -- export and import


def test_an_imported_prefix_gives_the_same_bits(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens = bench.tokens(4 * chunk + 3, seed=70)
    expected = fresh(backend, tokens)
    blocks = [backend.export_kv(0, start, start + chunk) for start in range(0, 4 * chunk, chunk)]
    np.testing.assert_array_equal(backend.logits(0), expected)  # exporting is not felt
    backend.rewind(0, 0)
    for seq_id in (0, 2):
        for block in blocks:
            backend.import_kv(seq_id, block)
        assert backend.length(seq_id) == 4 * chunk
        backend.prefill(seq_id, tokens[4 * chunk :])
        np.testing.assert_array_equal(backend.logits(seq_id), expected)
        backend.rewind(seq_id, 0)


def test_an_imported_prefix_can_be_cut(bench) -> None:
    backend, chunk = bench.backend, bench.backend.chunk_size
    tokens, tail = bench.tokens(2 * chunk, seed=71), bench.tokens(5, seed=72)
    expected = fresh(backend, tokens[:chunk] + tail)
    fresh(backend, tokens)
    block = backend.export_kv(0, 0, 2 * chunk)
    backend.rewind(0, 0)
    backend.import_kv(0, block)
    backend.rewind(0, chunk)
    backend.prefill(0, tail)
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_blocks_go_where_they_belong_and_nowhere_else(bench) -> None:
    backend = bench.backend
    backend.prefill(0, bench.tokens(40, seed=73))
    first, second = backend.export_kv(0, 0, 20), backend.export_kv(0, 20, 40)
    with pytest.raises(BackendError, match="position 20"):
        backend.import_kv(1, second)
    assert backend.length(1) == 0
    backend.import_kv(1, first)
    with pytest.raises(BackendError, match="position 0"):
        backend.import_kv(1, first)
    backend.import_kv(1, second)
    assert backend.length(1) == 40


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:10], lambda b: b"", lambda b: b"?" + b[1:]]
)
def test_a_block_that_is_not_whole_is_refused(bench, damage: Callable[[bytes], bytes]) -> None:
    backend = bench.backend
    expected = fresh(backend, bench.tokens(20, seed=74))
    block = backend.export_kv(0, 0, 20)
    with pytest.raises(BackendError):
        backend.import_kv(1, damage(block))
    assert backend.length(1) == 0
    np.testing.assert_array_equal(backend.logits(0), expected)


def test_an_import_needs_room(bench) -> None:
    backend = bench.backend
    if not backend.capabilities.shared_cells:
        pytest.skip("each sequence has cells of its own: see test_limits.py")
    n_tokens = backend.n_ctx * 5 // 8
    backend.prefill(0, bench.tokens(n_tokens, seed=75))
    block = backend.export_kv(0, 0, n_tokens)
    with pytest.raises(ContextFullError):
        backend.import_kv(1, block)
    assert (backend.length(0), backend.length(1)) == (n_tokens, 0)
    backend.rewind(0, 0)
    backend.import_kv(1, block)
    assert backend.length(1) == n_tokens


@pytest.mark.parametrize("span", [(0, 0), (5, 3), (-1, 4), (0, 11)])
def test_a_range_that_is_not_there_cannot_be_exported(bench, span: tuple[int, int]) -> None:
    bench.backend.prefill(0, bench.tokens(10, seed=76))
    with pytest.raises(UsageError):
        bench.backend.export_kv(0, *span)
