"""The ledger of cells against the obvious model: a set of cells for every sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.cells import Ledger
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
    ledger, model, n_cells, next_cell = Ledger(50, N_SEQ), [[] for _ in range(N_SEQ)], 50, 0
    for action, one, other, share in steps:
        if action == "append":
            n_tokens = int(share * 20)
            if n_tokens > ledger.n_free:
                with pytest.raises(ContextFullError, match=f"{n_tokens} tokens"):
                    ledger.check_room(n_tokens)
                continue
            ledger.check_room(n_tokens)
            ledger.append(one, n_tokens)
            model[one] += range(next_cell, next_cell + n_tokens)
            next_cell += n_tokens
        elif action == "cut":
            n_keep = int(share * len(model[one]))
            ledger.cut(one, n_keep)
            del model[one][n_keep:]
        elif one != other:
            n_tokens = int(share * len(model[one]))
            ledger.cut(other, 0)
            ledger.share(one, other, n_tokens)
            model[other] = model[one][:n_tokens]
        assert [ledger.length(seq_id) for seq_id in range(N_SEQ)] == [len(cells) for cells in model]
        assert ledger.n_free == n_cells - len(set().union(*model))


@pytest.mark.parametrize("seq_id", [-1, N_SEQ])
def test_a_sequence_that_is_not_there_is_refused(seq_id: int) -> None:
    with pytest.raises(UsageError, match="no sequence"):
        Ledger(10, N_SEQ).length(seq_id)


def test_an_append_that_ctrl_c_ended_half_done_is_taken_back() -> None:
    ledger = Ledger(10, 1)
    ledger.append(0, 3)
    ledger._sequences[0].extend((3, 4))  # the cells, and not yet who uses them
    ledger.cut(0, 3)
    assert (ledger.length(0), ledger.n_free) == (3, 7)
    ledger.cut(0, 0)
    assert ledger.n_free == 10
