"""Bookkeeping of the cells of a KV cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from edge.errors import ContextFullError, UsageError

__all__ = ["CellAllocator"]


class CellAllocator:
    """The cells that each sequence uses, so that what does not fit is refused before anything is computed.

    Args:
        n_cells: of the cache, or of each sequence where they are not shared.
        n_seq: number of sequences, numbered from 0.
        shared: sequences take cells from one pool; otherwise each has a buffer of its own.
    """

    def __init__(self, n_cells: int, n_seq: int, *, shared: bool) -> None:
        self._n_cells = n_cells
        self._is_shared = shared
        self._sequences: list[list[int]] = [[] for _ in range(n_seq)]
        self._users: Counter[int] = Counter()
        self._next_cell = 0

    def length(self, seq_id: int) -> int:
        """Return the number of tokens of a sequence.

        Raises:
            UsageError: there is no such sequence.
        """
        if not 0 <= seq_id < len(self._sequences):
            raise UsageError(f"There is no sequence {seq_id}.", f"There are {len(self._sequences)}, counted from 0.")
        return len(self._sequences[seq_id])

    def check_room(self, n_new: Mapping[int, int]) -> None:
        """Refuse what does not fit.

        Args:
            n_new: sequence -> tokens that it is to have more.

        Raises:
            ContextFullError: too few cells are free.
        """
        if self._is_shared:
            pools = [(sum(n_new.values()), len(self._users))]
        else:
            pools = [(n_tokens, self.length(seq_id)) for seq_id, n_tokens in n_new.items()]
        for n_tokens, n_used in pools:
            if n_used + n_tokens > self._n_cells:
                raise ContextFullError(
                    f"{n_tokens:,} tokens do not fit: {n_used:,} of the {self._n_cells:,} cells of the context window are in "
                    "use.",
                    "Shorten the conversation, or load the model with a larger context.",
                )

    def append(self, seq_id: int, n_tokens: int) -> None:
        """Put tokens at the end of a sequence; `check_room` came before."""
        cells = range(self._next_cell, self._next_cell + n_tokens)
        self._next_cell += n_tokens
        self._sequences[seq_id].extend(cells)
        dict.update(self._users, dict.fromkeys(cells, 1))  # at once: Ctrl-C does not come in between

    def truncate(self, seq_id: int, n_keep: int) -> None:
        """Drop everything behind the first `n_keep` tokens of a sequence."""
        sequence = self._sequences[seq_id]
        for cell in sequence[n_keep:]:
            self._users[cell] -= 1
            if self._users[cell] <= 0:  # below it where Ctrl-C came before `append` had ended
                del self._users[cell]
        del sequence[n_keep:]

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Make the first `n_tokens` of `source` the whole of the empty sequence `target`."""
        shared = self._sequences[source][:n_tokens]
        self._sequences[target] = shared
        self._users.update(shared)
