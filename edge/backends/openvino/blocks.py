"""Keys and values of all sequences, in blocks of 32 positions that sequences may share.

A block belongs to every sequence whose list names it. The last, incomplete block of a sequence is copied before the sequence
grows, if others have it, too; so a branch costs at most one block. Rewinding shortens lists and moves nothing.

Source: PagedAttention (Kwon et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BLOCK", "Blocks"]

BLOCK = 32
"""Positions of a block: fixed by the plug-in for the CPU."""


class Blocks:
    """See the module. The caller counts the cells, so that what it appends fits.

    Args:
        ov: the module openvino.
        ports: name of an input for keys or values -> (type, shape of one block).
        n_ctx: cells, counted once where sequences share them.
        n_seq: sequences.

    Attributes:
        tensors: name -> tensor of all blocks.
    """

    def __init__(self, ov: Any, ports: dict[str, tuple[Any, tuple[int, ...]]], n_ctx: int, n_seq: int) -> None:
        # Beside the cells: the incomplete last block of each sequence, and one that is in part a copy.
        n_blocks = -(-n_ctx // BLOCK) + 2 * n_seq
        self.tensors = {name: ov.Tensor(kind, ov.Shape([n_blocks, *shape])) for name, (kind, shape) in ports.items()}
        self._arrays = [tensor.data for tensor in self.tensors.values()]
        self._free = list(range(n_blocks - 1, -1, -1))
        self._n_users = [0] * n_blocks
        self._lists: list[list[int]] = [[] for _ in range(n_seq)]

    def numbers(self, seq_id: int) -> list[int]:
        """Return the blocks of a sequence, in order."""
        return self._lists[seq_id]

    def extend(self, seq_id: int, n_now: int, n_new: int) -> None:
        """Make room behind the first `n_now` positions of a sequence, in blocks of its own."""
        blocks = self._lists[seq_id]
        if n_now % BLOCK and self._n_users[blocks[-1]] > 1:
            shared, own = blocks[-1], self._take()
            for array in self._arrays:
                array[own, :, : n_now % BLOCK] = array[shared, :, : n_now % BLOCK]
            self._n_users[shared] -= 1
            blocks[-1] = own
        while len(blocks) * BLOCK < n_now + n_new:
            blocks.append(self._take())

    def truncate(self, seq_id: int, n_keep: int) -> None:
        """Release the blocks behind the first `n_keep` positions of a sequence."""
        blocks = self._lists[seq_id]
        n_blocks = -(-n_keep // BLOCK)
        for number in blocks[n_blocks:]:
            self._n_users[number] -= 1
            if not self._n_users[number]:
                self._free.append(number)
        del blocks[n_blocks:]

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Give an empty sequence the first positions of another one."""
        self._lists[target] = self._lists[source][: -(-n_tokens // BLOCK)]
        for number in self._lists[target]:
            self._n_users[number] += 1

    def row_bytes(self) -> int:
        """Return the bytes of the keys and values of one position."""
        return sum(array[0, :, 0].nbytes for array in self._arrays)

    def rows(self, data: npt.NDArray[np.uint8], n: int) -> dict[str, npt.NDArray[np.generic]]:
        """Return bytes as the rows of n positions, without a copy: for each tensor an array for `read` and `write`."""
        found, offset = {}, 0
        for name, array in zip(self.tensors, self._arrays, strict=True):
            heads, width = array.shape[1], array.shape[3]
            n_bytes = heads * n * width * array.itemsize
            found[name] = data[offset : offset + n_bytes].view(array.dtype).reshape(heads, n, 1, width)
            offset += n_bytes
        return found

    def read(self, seq_id: int, start: int, end: int, out: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Copy positions [start, end) into arrays, one for each tensor.

        Args:
            seq_id: the sequence.
            start, end: positions that it has.
            out: name of a tensor -> shape (heads, end - start, parts, width / parts).
        """
        self._move(seq_id, start, end, out, is_write=False)

    def write(self, seq_id: int, start: int, end: int, rows: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Put what `read` copied behind the first `start` positions; there must be room."""
        self._move(seq_id, start, end, rows, is_write=True)

    def _move(self, seq_id: int, start: int, end: int, rows: Mapping[str, npt.NDArray[np.generic]], *, is_write: bool) -> None:
        blocks = self._lists[seq_id]
        for name, array in zip(self.tensors, self._arrays, strict=True):
            position = start
            while position < end:
                first = position % BLOCK
                n_rows = min(BLOCK - first, end - position)
                outside = rows[name][:, position - start : position - start + n_rows]
                inside = array[blocks[position // BLOCK], :, first : first + n_rows].reshape(outside.shape)
                target, source = (inside, outside) if is_write else (outside, inside)
                for part in range(outside.shape[2]):  # one by one: numpy's innermost loop is then along the numbers
                    target[:, :, part] = source[:, :, part]
                position += n_rows

    def _take(self) -> int:
        number = self._free.pop()
        self._n_users[number] = 1
        return number
