"""The allocator of cells against the obvious model: a set of cells for every sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.cells import CellAllocator
from edge.errors import ContextFullError, UsageError

N_SEQ = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["append", "truncate", "share"]), st.integers(0, N_SEQ - 1), st.integers(0, N_SEQ - 1), st.floats(0, 1)
    ),
    max_size=40,
)


def check_n_free(cells: CellAllocator, seq_id: int, n_free: int) -> None:
    cells.check_room({seq_id: n_free})
    with pytest.raises(ContextFullError, match=f"{n_free + 1} tokens"):
        cells.check_room({seq_id: n_free + 1})


@pytest.mark.parametrize("shared", [True, False])
@given(STEPS)
def test_free_cells_are_those_that_no_sequence_holds(shared: bool, steps: list[tuple[str, int, int, float]]) -> None:
    cells, model, n_cells, next_cell = CellAllocator(50, N_SEQ, shared=shared), [[] for _ in range(N_SEQ)], 50, 0
    for action, one, other, share in steps:
        if action == "append":
            n_tokens = int(share * 20)
            if len(set().union(*(model if shared else [model[one]]))) + n_tokens > n_cells:
                with pytest.raises(ContextFullError, match=f"{n_tokens} tokens"):
                    cells.check_room({one: n_tokens})
                continue
            cells.check_room({one: n_tokens})
            cells.append(one, n_tokens)
            model[one] += range(next_cell, next_cell + n_tokens)
            next_cell += n_tokens
        elif action == "truncate":
            n_keep = int(share * len(model[one]))
            cells.truncate(one, n_keep)
            del model[one][n_keep:]
        elif one != other:
            n_tokens = int(share * len(model[one]))
            cells.truncate(other, 0)
            cells.share(one, other, n_tokens)
            model[other] = model[one][:n_tokens]
        assert [cells.length(seq_id) for seq_id in range(N_SEQ)] == [len(sequence) for sequence in model]
        for seq_id in range(N_SEQ):
            check_n_free(cells, seq_id, n_cells - len(set().union(*(model if shared else [model[seq_id]]))))


def test_a_step_for_several_sequences_takes_from_one_pool_or_from_each() -> None:
    for shared in (True, False):
        cells = CellAllocator(10, 2, shared=shared)
        for seq_id, n_tokens in ((0, 4), (1, 5)):
            cells.append(seq_id, n_tokens)
        cells.check_room({0: 1})
        if shared:
            with pytest.raises(ContextFullError, match="2 tokens do not fit: 9 of the 10 cells"):
                cells.check_room({0: 1, 1: 1})
        else:
            cells.check_room({0: 6, 1: 5})
            with pytest.raises(ContextFullError, match="6 tokens do not fit: 5 of the 10 cells"):
                cells.check_room({0: 6, 1: 6})


@pytest.mark.parametrize("seq_id", [-1, N_SEQ])
def test_a_sequence_that_is_not_there_is_refused(seq_id: int) -> None:
    for shared in (True, False):
        with pytest.raises(UsageError, match="no sequence"):
            CellAllocator(10, N_SEQ, shared=shared).length(seq_id)


def test_an_append_that_ctrl_c_ended_half_done_is_rolled_back() -> None:
    cells = CellAllocator(10, 1, shared=True)
    cells.append(0, 3)
    cells._sequences[0].extend((3, 4))  # the cells, and not yet who uses them
    cells.truncate(0, 3)
    assert cells.length(0) == 3
    check_n_free(cells, 0, 7)
    cells.truncate(0, 0)
    check_n_free(cells, 0, 10)
