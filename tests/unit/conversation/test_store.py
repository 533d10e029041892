"""The conversation store: its tree against a slow obvious one, and what it promises about each method."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge.conversation import Attachment, ConversationStore, Node
from edge.errors import StorageError, UsageError
from edge.types import Message, ToolCall


@pytest.fixture
def store(tmp_path: Path):
    with ConversationStore(tmp_path / "data" / "conversations.db") as opened:
        yield opened


def ask(store: ConversationStore, id: str, *texts: str, parent: int | None = None) -> list[Node]:
    """Append texts one under the other, user and assistant in turn."""
    nodes = []
    for place, text in enumerate(texts):
        role = "user" if place % 2 == 0 else "assistant"
        nodes.append(store.append(id, Message(role, text), parent=parent))
        parent = nodes[-1].id
    return nodes


class TreeMachine(RuleBasedStateMachine):
    """Random changes to one conversation and its forks, compared with lists of (parent, text) after each."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ConversationStore(None)
        self.nodes: dict[str, dict[int, tuple[int | None, str]]] = {}
        self.heads: dict[str, int | None] = {}
        self.order: list[str] = []  # newest activity first
        self.start()

    def teardown(self) -> None:
        assert self.store.check() == []
        self.store.close()

    def start(self) -> None:
        id = self.store.create().id
        self.nodes[id], self.heads[id] = {}, None
        self.order.insert(0, id)

    def choose(self, draw: st.DataObject, *, any_parent: bool = False) -> tuple[str, int | None]:
        id = draw.draw(st.sampled_from(sorted(i for i in self.nodes if any_parent or self.nodes[i])))
        ids: list[int | None] = sorted(self.nodes[id])
        return id, draw.draw(st.sampled_from([*ids, None] if any_parent else ids))

    def below(self, id: str, node_id: int) -> set[int]:
        found = {node_id}
        for other in sorted(self.nodes[id]):
            if self.nodes[id][other][0] in found:
                found.add(other)
        return found

    def chain(self, id: str, node_id: int | None) -> list[int]:
        found: list[int] = []
        while node_id is not None:
            found.insert(0, node_id)
            node_id = self.nodes[id][node_id][0]
        return found

    @rule(draw=st.data(), text=st.text(max_size=8), role=st.sampled_from(["user", "assistant"]))
    def append(self, draw: st.DataObject, text: str, role: str) -> None:
        id, parent = self.choose(draw, any_parent=True)
        node = self.store.append(id, Message(role, text), parent=parent)  # type: ignore[arg-type]
        assert node.id > max(self.nodes[id], default=0)
        self.nodes[id][node.id] = (parent, text)
        self.heads[id] = node.id
        self.order.remove(id)
        self.order.insert(0, id)

    @precondition(lambda self: any(self.nodes.values()))
    @rule(draw=st.data())
    def move_head(self, draw: st.DataObject) -> None:
        id, node_id = self.choose(draw)
        self.store.set_head(id, node_id)
        self.heads[id] = node_id

    @precondition(lambda self: any(self.nodes.values()) and len(self.nodes) < 4)
    @rule(draw=st.data())
    def fork(self, draw: st.DataObject) -> None:
        id, node_id = self.choose(draw)
        assert node_id is not None
        forked = self.store.fork(id, node_id)
        old = [self.nodes[id][key][1] for key in self.chain(id, node_id)]
        copied = self.store.path(forked.id)
        assert [node.content for node in copied] == old
        self.nodes[forked.id] = {node.id: (node.parent, node.content) for node in copied}
        self.heads[forked.id] = forked.head
        self.order.insert(0, forked.id)

    @precondition(lambda self: len(self.nodes) > 1)
    @rule(draw=st.data())
    def delete(self, draw: st.DataObject) -> None:
        id = draw.draw(st.sampled_from(sorted(self.nodes)))
        self.store.delete(id)
        del self.nodes[id], self.heads[id]
        self.order.remove(id)

    @invariant()
    def is_the_same(self) -> None:
        assert [info.id for info in self.store.list()] == self.order
        for id, nodes in self.nodes.items():
            info = self.store.get(id)
            assert (info.head, info.n_messages) == (self.heads[id], len(nodes))
            assert [node.id for node in self.store.path(id)] == self.chain(id, self.heads[id])
            groups: dict[int | None, list[int]] = {None: []}
            for node_id, (parent, _) in sorted(nodes.items()):
                groups.setdefault(parent, []).append(node_id)
                assert [node.id for node in self.store.path(id, node_id)] == self.chain(id, node_id)
                assert self.store.leaf(node_id).id == max(self.below(id, node_id))
            for group in groups.values():
                assert all([node.id for node in self.store.siblings(key)] == group for key in group)
            assert self.store.branches(id) == {k: tuple(g) for g in groups.values() if len(g) > 1 for k in g}


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def test_what_is_appended_comes_back(store: ConversationStore) -> None:
    info = store.create(system="Be brief.", model="tiny")
    files = [Attachment("a\nb.txt", "one\ntwo\n"), Attachment("", ""), Attachment("x", "\x00 NUL \U0001f600 \r\n")]
    user = store.append(info.id, Message("user", "hi \x00 \r\n ", name="Ann"), parent=None, attachments=files)
    reply = store.append(
        info.id,
        Message("assistant", "yo"),
        parent=user.id,
        model="tiny",
        record={"usage": {"n_prompt": 3}, "list": [1.5, None]},
    )
    assert (user.content, user.name, user.attachments) == ("hi \x00 \r\n ", "Ann", tuple(files))
    assert (reply.model, reply.record) == ("tiny", {"usage": {"n_prompt": 3}, "list": [1.5, None]})
    assert (reply.parent, reply.conversation_id, reply.status) == (user.id, info.id, "complete")
    path = store.file
    assert path is not None
    store.close()
    with ConversationStore(path) as again:
        assert again.path(info.id) == [user, reply]
        assert again.node(reply.id) == reply


def test_surrogates_are_replaced_and_pairs_joined(store: ConversationStore) -> None:
    info = store.create(title="t \ud800", system="\udc80")
    node = store.append(
        info.id, Message("user", "\ud83d\ude00 \udcff"), parent=None, attachments=[Attachment("\udcff", "\udcff")]
    )
    assert (info.title, info.system) == ("t \ufffd", "\ufffd")
    assert (node.content, node.attachments) == ("\U0001f600 \ufffd", (Attachment("\ufffd", "\ufffd"),))
    with pytest.raises(UsageError):
        store.get("\udcff")


def test_attachments_reach_the_model_in_fences_they_cannot_close() -> None:
    node = Node(1, None, "user", "What is this?", (Attachment("a\n.md", "text\n````\nmore"), Attachment("b", "plain")))
    assert node.message().content == (
        "File a .md:\n`````\ntext\n````\nmore\n`````\n\nFile b:\n```\nplain\n```\n\nWhat is this?"
    )
    assert Node(1, None, "user", "", (Attachment("b", "x"),)).message().content == "File b:\n```\nx\n```"
    assert Node(1, None, "tool", "", name="calc").message() == Message("tool", "", "calc")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("\n  Hello \t there \nsecond line", "Hello there"),
        ("word " * 30, "word word word word word word word word word word word word…"),
        ("x" * 100, "x" * 59 + "…"),
        ("bad \x1b[31m escape", "bad [31m escape"),
        ("y" * 60, "y" * 60),
    ],
)
def test_title_comes_from_the_first_question(store: ConversationStore, text: str, title: str) -> None:
    info = store.create()
    ask(store, info.id, text, "reply", "another question")
    assert store.get(info.id).title == title
    assert len(title) <= 60


def test_titles_given_stay_and_can_be_taken_back(store: ConversationStore) -> None:
    info = store.create(title="Mine\n two")
    assert info.title == "Mine two"
    ask(store, info.id, "question")
    assert store.get(info.id).title == "Mine two"
    store.rename(info.id, "Other")
    assert store.get(info.id).title == "Other"
    store.rename(info.id, "  ")
    assert store.get(info.id).title == "question"
    nameless = store.create()
    store.append(nameless.id, Message("user", " "), parent=None, attachments=[Attachment("report.pdf", "x")])
    assert store.get(nameless.id).title == "report.pdf"


def test_forks_are_numbered_and_keep_what_was_said(store: ConversationStore) -> None:
    info = store.create(system="S", model="m")
    first, reply, _ = ask(store, info.id, "q", "a", "later")
    fork = store.fork(info.id, reply.id)
    assert (fork.title, fork.system, fork.model, fork.n_messages) == ("q (fork)", "S", "m", 2)
    assert store.fork(fork.id, fork.head or 0).title == "q (fork 2)"
    assert [node.created for node in store.path(fork.id)] == [first.created, reply.created]
    store.delete(info.id)
    assert [node.content for node in store.path(fork.id)] == ["q", "a"]


def test_ids_sort_by_time_and_a_beginning_is_enough(store: ConversationStore) -> None:
    ids = [store.create().id for _ in range(200)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 200
    assert store.get(ids[7]).id == ids[7]
    assert store.get(ids[7].upper()).id == ids[7]
    named = store.create(id="0l-Work").id
    assert store.get("0l-W").id == named
    other = store.create(id="q01").id
    assert store.get(" QOI ").id == store.get("q0l").id == store.get("q-0").id == other


def test_ids_that_are_wrong_say_so(store: ConversationStore) -> None:
    for id in ("aa1", "aa2", "aa"):
        store.create(id=id)
    assert store.get("aa").id == "aa"  # whole, though others begin with it
    with pytest.raises(UsageError, match="Several conversations begin with 'a': aa2"):
        store.get("a")
    for unknown in ("zz", "", "  ", "%", "aa1x"):
        with pytest.raises(UsageError, match="There is no conversation"):
            store.get(unknown)
    with pytest.raises(UsageError, match="already"):
        store.create(id="aa")
    for bad in ("", "a b", "x" * 65, "ä", "a\n"):
        with pytest.raises(UsageError, match="cannot be the id"):
            store.create(id=bad)


def test_a_draft_is_kept_and_changes_neither_order_nor_head(store: ConversationStore) -> None:
    first, second = store.create(), store.create()
    store.set_draft(first.id, "half a thou")
    store.set_system(first.id, "S")
    store.set_model(first.id, "m")
    info = store.get(first.id)
    assert (info.draft, info.system, info.model, info.head) == ("half a thou", "S", "m", None)
    assert [item.id for item in store.list()] == [second.id, first.id]


def test_list_is_cut_and_ordered_by_activity_not_by_the_clock(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [store.create().id for _ in range(5)]
    monkeypatch.setattr("time.time", lambda: 10.0)  # a board without a clock battery after a reboot
    ask(store, ids[2], "hello")
    order = [ids[2], ids[4], ids[3], ids[1], ids[0]]
    assert [info.id for info in store.list()] == order
    assert [info.id for info in store.list(limit=2, offset=1)] == order[1:3]
    assert store.list(limit=0) == store.list(offset=9) == []


def test_a_streamed_reply_is_written_on_and_then_closed(store: ConversationStore) -> None:
    info = store.create()
    user = ask(store, info.id, "q")[0]
    node = store.append(info.id, Message("assistant", ""), parent=user.id, status="partial", model="m")
    assert node.status == "partial"
    assert store.update(node.id, content="Hel", status="partial").content == "Hel"
    other = store.create()
    done = store.update(node.id, content="Hello", status="complete", record={"n": 1})
    assert (done.content, done.status, done.record) == ("Hello", "complete", {"n": 1})
    assert store.list()[0].id == info.id != other.id
    with pytest.raises(UsageError, match="finished"):  # a late save of a part must not cut off the end
        store.update(node.id, content="Hel")
    with pytest.raises(UsageError, match="finished"):
        store.update(user.id, content="changed")
    assert store.update(node.id, record={"n": 2}).record == {"n": 2}
    found = store.update(node.id, record={"path": "/tmp/caf\udce9.gguf", "all": [("\udce9",)]}).record  # of a file system
    assert found == {"path": "/tmp/caf\ufffd.gguf", "all": [["\ufffd"]]}
    assert store.node(node.id).content == "Hello"


def test_what_is_not_there_is_refused_and_changes_nothing(store: ConversationStore) -> None:
    one, two = store.create(), store.create()
    mine, other = ask(store, one.id, "mine")[0], ask(store, two.id, "other")[0]
    before = store.export_json(one.id), store.export_json(two.id)
    message = Message("user", "x")
    for attempt in (
        lambda: store.append("nope", message, parent=None),
        lambda: store.append(one.id, message, parent=other.id),
        lambda: store.append(one.id, message, parent=999),
        lambda: store.append(one.id, message, parent=1 << 70),
        lambda: store.append(one.id, message, parent=None, status="odd"),  # type: ignore[arg-type]
        lambda: store.append(one.id, message, parent=None, record={"x": object()}),
        lambda: store.append(one.id[:12], message, parent=None),
        lambda: store.update(999, content="x"),
        lambda: store.set_head(one.id, other.id),
        lambda: store.path(one.id, other.id),
        lambda: store.path("nope"),
        lambda: store.branches("nope"),
        lambda: store.fork(one.id, other.id),
        lambda: store.leaf(999),
        lambda: store.siblings(999),
        lambda: store.node(999),
        lambda: store.delete(one.id, "nope"),
        lambda: store.rename("nope", "x"),
        lambda: store.set_draft("nope", "x"),
        lambda: store.export_json("nope"),
        lambda: store.export_markdown("nope"),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert caught.value.hint
    assert before == (store.export_json(one.id), store.export_json(two.id))
    assert store.path(one.id) == [mine]


def test_a_long_conversation_has_no_limit_of_depth(store: ConversationStore) -> None:
    info = store.create()
    exported = (
        '{"format":"edge-conversation","version":1,"title":"t","system":"","model":"","created":0,"updated":0,"head":2999,'
        '"nodes":['
        + ",".join(f'{{"parent":{place - 1 if place else "null"},"role":"user","content":"m{place}"}}' for place in range(3000))
        + "]}"
    )
    long = store.import_json(exported)
    path = store.path(long.id)
    assert [node.content for node in path] == [f"m{place}" for place in range(3000)]
    assert store.leaf(path[0].id).id == path[-1].id
    assert store.get(long.id).n_messages == 3000
    store.delete(long.id)
    assert [item.id for item in store.list()] == [info.id]
    assert store.check() == []


def test_deleted_text_is_gone_from_the_files(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with ConversationStore(path) as store:
        kept = store.create(title="kept")
        for place in range(50):
            ask(store, kept.id, f"ordinary words number {place}")
        gone = store.create(system="systemsecret", title="titlesecret")
        nodes = ask(store, gone.id, "contentsecret", "replysecret " * 500)
        store.append(gone.id, Message("user", "x"), parent=nodes[1].id, attachments=[Attachment("namesecret", "filesecret")])
        other = store.create()
        ask(store, other.id, "othersecret", "belowsecret")
        part = store.append(kept.id, Message("assistant", "oldsecret"), parent=None, status="partial")
        store.update(part.id, content="said otherwise", status="complete")
        store.set_draft(gone.id, "draftsecret")
        before = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert before.count(b"secret") > 500  # the test can fail

        store.delete(gone.id, other.id)

        for word in ("titlesecret", "contentsecret", "replysecret", "namesecret", "filesecret", "belowsecret"):
            assert store.search(word) == []
        assert len(store.search("ordinary", limit=99)) == 50
        assert store.check() == []
        after = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        # The index stores words without the beginning they share with the one before, so look for the end.
        assert b"secret" not in after
        with store._db.write() as db:
            db.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, node_fts, row)")
            words = [row[0] for row in db.execute("SELECT term FROM temp.words")]
        assert "ordinary" in words
        assert not [word for word in words if "secret" in word]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "c.db"
    old_mask = os.umask(0)
    try:
        with ConversationStore(path) as store:
            ask(store, store.create().id, "private")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {"c.db": 0o600, "c.db-wal": 0o600, "c.db-shm": 0o600}
            for file in path.parent.iterdir():
                file.chmod(0o644)
            with ConversationStore(path) as second:  # tightened when opened
                assert len(second.list()) == 1
                assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    for path in (None, tmp_path / "c.db"):
        store = ConversationStore(path)
        store.close()
        store.close()
        with pytest.raises(StorageError, match="closed"):
            store.list()
        with pytest.raises(StorageError, match="closed"):
            store.create()


def test_a_short_id_finds_its_conversation_and_no_newer_one() -> None:
    with ConversationStore(None) as store:
        ids = [store.create().id for _ in range(30)] + [store.create(id="abc").id, store.create(id="old-1").id]
        shorts = {id: store.short_id(id) for id in ids}
        time.sleep(0.02)  # ids begin with the time, in milliseconds
        later = [store.create().id for _ in range(30)]
        for id, short in shorts.items():
            assert store.get(short).id == id and not any(other.startswith(short) for other in later)
        assert shorts["old-1"] == "old-" and shorts["abc"] == "abc"


def test_calls_results_and_reasoning_are_kept(tmp_path: Path) -> None:
    call = ToolCall("weather", {"city": "Paris"}, "a1")
    with ConversationStore(tmp_path / "c.db") as store:
        id = store.create().id
        question = store.append(id, Message("user", "Rain?"), parent=None)
        reply = store.append(id, Message("assistant", ""), parent=question.id, status="partial")
        store.update(reply.id, reasoning="hm")
        store.update(reply.id, tool_calls=[call], status="complete")
        with pytest.raises(UsageError, match="finished"):
            store.update(reply.id, reasoning="more")
        store.append(id, Message("tool", "Yes", "weather", tool_call_id="a1"), parent=reply.id)
        copy = store.fork(id, store.get(id).head or 0)
    with ConversationStore(tmp_path / "c.db") as store:
        for one in (id, copy.id):
            messages = [node.message() for node in store.path(one)]
            assert messages[1] == Message("assistant", "", tool_calls=(call,), reasoning="hm")
            assert messages[2] == Message("tool", "Yes", "weather", tool_call_id="a1")
        assert store.check() == []
