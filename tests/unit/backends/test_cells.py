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
        st.sampled_from(["append", "cut", "share"]), st.integers(0, N_SEQ - 1), st.integers(0, N_SEQ - 1), st.floats(0, 1)
    ),
    max_size=40,
)


@given(STEPS)
def test_free_cells_are_those_that_no_sequence_holds(steps: list[tuple[str, int, int, float]]) -> None:
    cells, model, n_cells, next_cell = CellAllocator(50, N_SEQ), [[] for _ in range(N_SEQ)], 50, 0
    for action, one, other, share in steps:
        if action == "append":
            n_tokens = int(share * 20)
            if n_tokens > cells.n_free:
                with pytest.raises(ContextFullError, match=f"{n_tokens} tokens"):
                    cells.check_room(n_tokens)
                continue
            cells.check_room(n_tokens)
            cells.append(one, n_tokens)
            model[one] += range(next_cell, next_cell + n_tokens)
            next_cell += n_tokens
        elif action == "cut":
            n_keep = int(share * len(model[one]))
            cells.cut(one, n_keep)
            del model[one][n_keep:]
        elif one != other:
            n_tokens = int(share * len(model[one]))
            cells.cut(other, 0)
            cells.share(one, other, n_tokens)
            model[other] = model[one][:n_tokens]
        assert [cells.length(seq_id) for seq_id in range(N_SEQ)] == [len(sequence) for sequence in model]
        assert cells.n_free == n_cells - len(set().union(*model))


@pytest.mark.parametrize("seq_id", [-1, N_SEQ])
def test_a_sequence_that_is_not_there_is_refused(seq_id: int) -> None:
    with pytest.raises(UsageError, match="no sequence"):
        CellAllocator(10, N_SEQ).length(seq_id)


def test_an_append_that_ctrl_c_ended_half_done_is_taken_back() -> None:
    cells = CellAllocator(10, 1)
    cells.append(0, 3)
    cells._sequences[0].extend((3, 4))  # the cells, and not yet who uses them
    cells.cut(0, 3)
    assert (cells.length(0), cells.n_free) == (3, 7)
    cells.cut(0, 0)
    assert cells.n_free == 10
