"""Radix tree of the tokens in the KV cache: which sequence holds which of them, and which are stored on disk.

Sequences share the nodes of their common prefix, so one walk along a prompt finds the sequence that holds most of it. A node
ends where sequences part, where one of them ends, or where a stored block ends (its *mark*, the block's key). Blocks that are
not resident are not mirrored here: other processes change them, and the store's index finds them.

The engine thread owns the tree.

Source: radix attention of SGLang (Zheng et al., 2024), for a few sequences and with marks for a disk below it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

__all__ = ["Mark", "PrefixTree", "Resident", "common_prefix"]

_STRIDE = 256


def common_prefix(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """Return the length of the common prefix of `a` and `b[start:]`.

    Compares slices first: list comparison runs in C, a loop over thousands of tokens does not.
    """
    end = min(len(a), len(b) - start)
    at = 0
    while at < end and a[at : at + _STRIDE] == b[start + at : start + min(at + _STRIDE, len(a))]:
        at += _STRIDE
    stop = min(at + _STRIDE, end)
    for index in range(min(at, end), stop):
        if a[index] != b[start + index]:
            return index
    return stop


class Resident(NamedTuple):
    """The longest resident prefix of a query: its length, and the sequences that hold all of it."""

    n_tokens: int
    holders: frozenset[int]


class Mark(NamedTuple):
    """A stored block: the position of its end, and its key."""

    position: int
    key: bytes


class _Node:
    """A run of tokens. `end` is the position after its last one; `holders` are the sequences that contain it."""

    __slots__ = ("children", "end", "holders", "mark", "parent", "tokens")

    def __init__(self, parent: _Node | None, tokens: list[int], end: int, holders: set[int]) -> None:
        self.parent = parent
        self.tokens = tokens
        self.end = end
        self.holders = holders
        self.children: dict[int, _Node] = {}
        self.mark: bytes | None = None

    @property
    def start(self) -> int:
        return self.end - len(self.tokens)


class PrefixTree:
    """See the module. Every sequence starts empty, in the namespace "". Sequences of different namespaces share nothing.

    Args:
        n_seq: number of sequences.
    """

    def __init__(self, n_seq: int) -> None:
        self._roots = {"": _Node(None, [], 0, set())}
        self._spaces = [""] * n_seq
        self._ends = [self._roots[""]] * n_seq  # the last node of each sequence

    def move(self, seq_id: int, namespace: str) -> None:
        """Move an empty sequence to a namespace."""
        assert not self.length(seq_id)
        before, self._spaces[seq_id] = self._spaces[seq_id], namespace
        self._ends[seq_id] = self._roots.setdefault(namespace, _Node(None, [], 0, set()))
        if before and before not in self._spaces:
            del self._roots[before]

    def length(self, seq_id: int) -> int:
        """Return the number of tokens of a sequence."""
        return self._ends[seq_id].end

    def tokens(self, seq_id: int, start: int = 0) -> list[int]:
        """Return the tokens of a sequence from a position on."""
        runs: list[list[int]] = []
        node = self._ends[seq_id]
        while node.parent is not None and node.end > start:
            runs.append(node.tokens[max(0, start - node.start) :])
            node = node.parent
        return [token for run in reversed(runs) for token in run]

    def namespace(self, seq_id: int) -> str:
        """Return the namespace of a sequence."""
        return self._spaces[seq_id]

    def match(self, tokens: Sequence[int], namespace: str = "") -> Resident:
        """Find the longest prefix of `tokens` that a sequence of a namespace holds."""
        holders: set[int] = set()
        if namespace not in self._roots:
            return Resident(0, frozenset())
        node, position = self._roots[namespace], 0
        while position < len(tokens) and (child := node.children.get(tokens[position])) is not None:
            n_same = common_prefix(child.tokens, tokens, position)
            position += n_same
            holders = child.holders
            if n_same < len(child.tokens):
                break
            node = child
        return Resident(position, frozenset(holders))

    def extend(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Append tokens to a sequence."""
        end = self._ends[seq_id]
        rest = list(tokens)
        while rest:
            child = end.children.get(rest[0])
            if child is not None:
                n_same = common_prefix(child.tokens, rest)
                end = self._split(child, n_same)
                end.holders.add(seq_id)
                rest = rest[n_same:]
            elif end.holders == {seq_id} and end is self._ends[seq_id] and not end.children and end.mark is None:
                end.tokens += rest
                end.end += len(rest)
                rest = []
            else:
                node = _Node(end, rest, end.end + len(rest), {seq_id})
                end.children[rest[0]] = node
                end, rest = node, []
        self._ends[seq_id] = end

    def truncate(self, seq_id: int, n_keep: int) -> None:
        """Truncate a sequence to `n_keep` tokens; nodes that no sequence holds any more are dropped with their marks."""
        node = self._ends[seq_id]
        while node.parent is not None and node.start >= n_keep:
            parent = node.parent
            self._leave(node, seq_id)
            node = parent
        if node.end > n_keep:
            upper = self._split(node, n_keep - node.start)
            self._leave(node, seq_id)
            node = upper
        self._ends[seq_id] = node

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Make `target` hold the first `n_tokens` of `source` and nothing else."""
        self.truncate(target, 0)
        self.move(target, self._spaces[source])
        self.extend(target, self.tokens(source)[:n_tokens])

    def set_mark(self, seq_id: int, mark: Mark) -> None:
        """Note that a block is stored which ends at a position of a sequence."""
        node = self._ends[seq_id]
        while node.parent is not None and node.start >= mark.position:
            node = node.parent
        if node.parent is not None and node.start < mark.position <= node.end:
            self._split(node, mark.position - node.start).mark = mark.key

    def last_mark(self, seq_id: int) -> Mark | None:
        """Return the last stored block of a sequence, or None."""
        node = self._ends[seq_id]
        while node.parent is not None:
            if node.mark is not None:
                return Mark(node.end, node.mark)
            node = node.parent
        return None

    def marks(self, seq_id: int) -> list[bytes]:
        """Return the keys of all stored blocks of a sequence, first block first."""
        keys: list[bytes] = []
        node: _Node | None = self._ends[seq_id]
        while node is not None:
            if node.mark is not None:
                keys.append(node.mark)
            node = node.parent
        return keys[::-1]

    def forget_marks(self, keys: Collection[bytes]) -> None:
        """Drop the marks of blocks that are not on disk any more, and of their descendants."""
        for node in list(self.nodes()) if keys else ():
            if node.mark is not None and node.mark in keys:
                for lower in self.nodes(node):
                    lower.mark = None

    def nodes(self, top: _Node | None = None) -> Iterator[_Node]:
        """Yield a node and its descendants; None starts at all roots."""
        stack = list(self._roots.values()) if top is None else [top]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _split(self, node: _Node, n_tokens: int) -> _Node:
        """Split a run; return the node of its first `n_tokens`. The old object stays the lower one, with end and mark."""
        if n_tokens == len(node.tokens):
            return node
        parent = node.parent
        assert parent is not None and 0 < n_tokens < len(node.tokens)
        upper = _Node(parent, node.tokens[:n_tokens], node.start + n_tokens, set(node.holders))
        parent.children[upper.tokens[0]] = upper
        del node.tokens[:n_tokens]
        node.parent = upper
        upper.children[node.tokens[0]] = node
        return upper

    def _leave(self, node: _Node, seq_id: int) -> None:
        node.holders.discard(seq_id)
        if not node.holders and node.parent is not None:
            del node.parent.children[node.tokens[0]]
