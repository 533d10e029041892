"""Longest stored prefix of a token sequence, exact to the token.

Blocks form a tree. A walk from the root follows blocks that lie wholly on the query and ends with one more that agrees in part.
The index sorts the children of a block by their tokens, so a few queries of O(log n) find, among any number of children:

- the child that shares the most tokens with the query: it is the query's neighbour in that order, before or after it;
- all children that are whole prefixes of the query, longest first. The last child p at or before the query is one, or it agrees
  with the query for only l tokens; then every such child has at most l tokens (a longer one would sort between p and the
  query), so the next step looks for the last child at or before the query's first l tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from edge.kv.keys import TOKEN_BYTES
from edge.kv.rows import Row, View

__all__ = ["Step", "longest_prefix"]

MAX_VISITS = 4096
"""Bounds the walk where the same tokens were stored in very many different splits. It then finds a long prefix, perhaps not the
longest."""
_WINDOW_TOKENS = 160  # a little more than the usual block


class Step(NamedTuple):
    """One block of a walk, and the number of its tokens that agree with the query."""

    row: Row
    n_used: int


def longest_prefix(
    view: View,
    root: bytes,
    tokens: bytes,
    *,
    path_of: Callable[[bytes, bytes], bytes],
    entry_bytes: int,
    is_usable: Callable[[bytes], bool],
    partial: bool = True,
) -> list[Step]:
    """Find the blocks that hold the longest stored prefix of `tokens`.

    Args:
        view: the index, at one moment.
        root: of fingerprint and namespace.
        tokens: packed.
        path_of: (parent's key, packed tokens) -> sort key of the index.
        entry_bytes: bytes of a path per token.
        is_usable: returns whether the block with a key may be used.
        partial: part of a block counts.

    Returns:
        Blocks from the root on; only the last may be used in part.
    """
    search = _Search(view, tokens, path_of, entry_bytes, is_usable, partial)
    best: list[Step] = []
    best_depth = 0
    n_tokens = len(tokens) // TOKEN_BYTES
    walk = [(0, search.children(root, 0))]  # depth of a node, and its children still to be visited
    trail: list[Step] = []
    n_visits = 1
    while walk:
        depth, children = walk[-1]
        step = next(children, None)
        if step is None:
            walk.pop()
            if trail:
                trail.pop()
            continue
        end = depth + step.n_used
        if end > best_depth:
            best, best_depth = [*trail, step], end
            if end == n_tokens:
                break
        if step.n_used == step.row.n_tokens and n_visits < MAX_VISITS:
            n_visits += 1
            trail.append(step)
            walk.append((end, search.children(step.row.key, end)))
    return best


@dataclass(frozen=True, slots=True)
class _Search:
    view: View
    tokens: bytes
    path_of: Callable[[bytes, bytes], bytes]
    entry_bytes: int
    is_usable: Callable[[bytes], bool]
    partial: bool

    def children(self, parent: bytes, depth: int) -> Iterator[Step]:
        """Yield the children that agree with the query from token `depth` on: whole ones, longest first, then the one that
        agrees furthest, unless it is one of them."""
        rest = len(self.tokens) // TOKEN_BYTES - depth
        window = _WINDOW_TOKENS
        if rest <= 0:
            return
        while True:
            # Children are mostly shorter than the rest of a long query, so try its first tokens first.
            query = self.path_of(parent, self.tokens[depth * TOKEN_BYTES : (depth + window) * TOKEN_BYTES])
            before, after = self.view.at_or_before(parent, query), self.view.after(parent, query)
            shared = [(_common(row.path, query, self.entry_bytes), row) for row in (before, after) if row is not None]
            if window >= rest or all(length < len(query) for length, _ in shared):
                break
            window *= 4
        whole_bytes = 0
        bound = query
        while before is not None:
            length = _common(before.path, bound, self.entry_bytes)
            if length == len(before.path):
                if self.is_usable(before.key):
                    whole_bytes = max(whole_bytes, length)
                    yield Step(before, before.n_tokens)
                length -= self.entry_bytes
            bound = bound[:length]
            before = self.view.at_or_before(parent, bound) if bound else None
        if self.partial:
            for length, row in sorted(shared, key=lambda pair: -pair[0]):
                if whole_bytes < length < len(row.path) and self.is_usable(row.key):
                    yield Step(row, length // self.entry_bytes)
                    return


def _common(a: bytes, b: bytes, entry_bytes: int) -> int:
    """Return the number of bytes that two paths share from the start, in whole entries."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size - size % entry_bytes
    difference = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    same = size - (difference.bit_length() + 7) // 8
    return same - same % entry_bytes
