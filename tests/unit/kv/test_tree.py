"""The radix tree against an obvious model of it: one list of tokens and one dictionary of marks for each sequence."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from edge.kv.tree import Mark, PrefixTree, common_prefix

N_SEQ = 4
SEQUENCES = st.integers(0, N_SEQ - 1)
RUNS = st.lists(st.integers(0, 2), max_size=12)
SHARES = st.floats(0, 1)


class TreeAgainstLists(RuleBasedStateMachine):
    """The slow model: marks belong to tokens, so every sequence with the same prefix sees the same marks."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree(N_SEQ)
        self.lists: list[list[int]] = [[] for _ in range(N_SEQ)]
        self.marks: dict[tuple[int, ...], bytes] = {}
        self.n_keys = 0

    def drop_unheld(self) -> None:
        held = {tuple(tokens[:end]) for tokens in self.lists for end in range(1, len(tokens) + 1)}
        self.marks = {prefix: key for prefix, key in self.marks.items() if prefix in held}

    @rule(seq=SEQUENCES, tokens=RUNS)
    def extend(self, seq: int, tokens: list[int]) -> None:
        self.tree.extend(seq, tokens)
        self.lists[seq] += tokens

    @rule(seq=SEQUENCES, source=SEQUENCES, share=SHARES, tokens=RUNS)
    def repeat_another(self, seq: int, source: int, share: float, tokens: list[int]) -> None:
        n_tokens = int(len(self.lists[source]) * share)
        repeated = [*self.lists[source][:n_tokens], *tokens]
        self.tree.truncate(seq, 0)
        self.tree.extend(seq, repeated)
        self.lists[seq] = repeated
        self.drop_unheld_while_cut(seq, repeated)

    def drop_unheld_while_cut(self, seq: int, now: list[int]) -> None:
        self.lists[seq] = []
        self.drop_unheld()
        self.lists[seq] = now

    @rule(seq=SEQUENCES, share=SHARES)
    def truncate(self, seq: int, share: float) -> None:
        n_keep = round(len(self.lists[seq]) * share)
        self.tree.truncate(seq, n_keep)
        del self.lists[seq][n_keep:]
        self.drop_unheld()

    @rule(source=SEQUENCES, other=SEQUENCES, share=SHARES)
    def share(self, source: int, other: int, share: float) -> None:
        if source == other:
            return
        n_tokens = round(len(self.lists[source]) * share)
        self.tree.share(source, other, n_tokens)
        self.drop_unheld_while_cut(other, self.lists[source][:n_tokens])

    @rule(seq=SEQUENCES, share=SHARES)
    def mark(self, seq: int, share: float) -> None:
        position = round(len(self.lists[seq]) * share)
        if position:
            self.n_keys += 1
            key = b"%d" % self.n_keys
            self.tree.set_mark(seq, Mark(position, key))
            self.marks[tuple(self.lists[seq][:position])] = key

    @rule(seq=SEQUENCES)
    def forget(self, seq: int) -> None:
        mark = self.tree.last_mark(seq)
        if mark is not None:
            lost = tuple(self.lists[seq][: mark.position])
            self.tree.forget_marks({mark.key})
            self.marks = {prefix: key for prefix, key in self.marks.items() if prefix[: len(lost)] != lost}

    @rule(source=SEQUENCES, share=SHARES, tokens=RUNS)
    def match(self, source: int, share: float, tokens: list[int]) -> None:
        query = [*self.lists[source][: round(len(self.lists[source]) * share)], *tokens]
        shared = [common_length(query, one) for one in self.lists]
        best = max(shared)
        found = self.tree.match(query)
        assert found.n_tokens == best
        assert found.holders == ({seq for seq, n in enumerate(shared) if n == best} if best else set())

    @invariant()
    def holds_the_same(self) -> None:
        for seq, tokens in enumerate(self.lists):
            assert self.tree.length(seq) == len(tokens)
            assert self.tree.tokens(seq) == tokens
            assert self.tree.tokens(seq, len(tokens) // 2) == tokens[len(tokens) // 2 :]
            ends = [end for end in range(len(tokens), 0, -1) if tuple(tokens[:end]) in self.marks]
            expected = Mark(ends[0], self.marks[tuple(tokens[: ends[0]])]) if ends else None
            assert self.tree.last_mark(seq) == expected
            assert self.tree.marks(seq) == [self.marks[tuple(tokens[:end])] for end in reversed(ends)]

    @invariant()
    def is_well_formed(self) -> None:
        nodes = list(self.tree.nodes())
        for node in nodes[1:]:
            assert node.tokens and node.holders and node.parent is not None
            assert node.parent.children[node.tokens[0]] is node
            assert node.parent.end == node.start
            assert node.parent.parent is None or node.holders <= node.parent.holders
        assert sum(len(node.tokens) for node in nodes) == len(
            {tuple(tokens[:end]) for tokens in self.lists for end in range(1, len(tokens) + 1)}
        )


def common_length(a: list[int], b: list[int]) -> int:
    n_same = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        n_same += 1
    return n_same


TestTree = TreeAgainstLists.TestCase
TestTree.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_common_prefix_over_strides() -> None:
    base = list(range(2000))
    for n_same in (0, 1, 255, 256, 257, 511, 512, 1999, 2000):
        other = [*base[:n_same], -1, *base[n_same + 1 :]]
        assert common_prefix(base, other) == min(n_same, 2000)
        assert common_prefix(base, [7, 7, 7, *other], 3) == min(n_same, 2000)
        assert common_prefix(base[:n_same], base) == n_same
        assert common_prefix(base, base[:n_same]) == n_same


def test_decoding_appends_in_place() -> None:
    tree = PrefixTree(2)
    for token in range(1000):
        tree.extend(0, [token])
    assert len(list(tree.nodes())) == 2
    tree.share(0, 1, 400)
    tree.extend(0, [1000])
    tree.extend(1, [7])
    assert tree.match([*range(400), 7]) == (401, {1})
    assert tree.match(list(range(1001))) == (1001, {0})
    assert tree.match([5]) == (0, frozenset())
