"""Export and import: both round trips for any text, a look at the page by another author's parser, and bad files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from edge.conversation import ConversationStore
from edge.conversation.files import AttachmentFile, CallFile, ConversationFile, NodeFile, from_json, to_json
from edge.conversation.markdown import from_markdown, to_markdown
from edge.conversation.tree import to_line
from edge.errors import StorageError
from edge.types import Message

# Texts that look like parts of the formats, or open something in Markdown without closing it.
TRAPS = [
    "<!-- edge:message {} -->",
    "<!-- edge:end {} -->",
    "<!-- edge-1:end {} -->",
    '<!-- edge conversation {"version":1} -->',
    "<!--",
    "-->",
    "--",
    "## User",
    "# Title",
    "## Assistant",
    "```",
    "````python",
    "~~~",
    "``",
    "`",
    "</details>",
    "<details><summary>",
    "<div>",
    "<script>",
    "<?php",
    "<![CDATA[",
    "\\u000d",
    "\\",
    "\r\n",
    "\r",
    "\n",
    "\n\n",
    "   ",
    "\t",
    "- item",
    "> quote",
    "    code",
    "1. ```",
    "- ```",
    "===",
    "---",
    "[a]: <b",
    "| a | b |",
    "\x00\x1b[31m",
    "\u2028",
    "\x85",
    "\ufeff",
    "text",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.sampled_from([*TRAPS, "\n", "\n"]), max_size=8).map("".join),
)
seconds = st.floats(0, 253402300799)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(CallFile, texts.filter(str.strip), st.dictionaries(texts, values, max_size=2), texts)
lines = texts.map(to_line)  # titles are one line


@st.composite
def conversations(draw: st.DrawFn, *, is_path: bool) -> ConversationFile:
    nodes = []
    for place in range(draw(st.integers(0, 5))):
        parents = [place - 1 if place else None] if is_path else [None, *range(place)]
        role = draw(st.sampled_from(["user", "assistant", "system", "tool"]))
        nodes.append(
            NodeFile(
                parent=draw(st.sampled_from(parents)),
                role=role,
                content=draw(texts),
                name=draw(st.none() | texts),
                attachments=[AttachmentFile(*pair) for pair in draw(st.lists(st.tuples(texts, texts), max_size=2))],
                status=draw(st.sampled_from(["complete", "stopped", "failed"])),
                created=draw(seconds),
                model=draw(texts),
                record={} if is_path else draw(st.dictionaries(texts, values, max_size=2)),
                tool_calls=draw(st.lists(calls, max_size=2)) if role == "assistant" else [],
                reasoning=draw(texts) if role == "assistant" else "",
                tool_call_id=draw(st.none() | texts) if role == "tool" else None,
            )
        )
    heads = [len(nodes) - 1 if nodes else None] if is_path else [None, *range(len(nodes))]
    return ConversationFile(
        title=draw(lines),
        system=draw(texts),
        model=draw(texts),
        created=draw(seconds),
        updated=draw(seconds),
        head=draw(st.sampled_from(heads)),
        nodes=nodes,
    )


def one(content: str, *attachments: AttachmentFile) -> ConversationFile:
    node = NodeFile(parent=None, role="user", content=content, attachments=list(attachments))
    return ConversationFile(title="T", system="", model="", created=0.0, updated=0.0, head=0, nodes=[node])


some = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@some
@given(conversations(is_path=False))
def test_json_gives_back_the_whole_tree(file: ConversationFile) -> None:
    assert from_json(to_json(file)) == from_json(to_json(file).encode()) == file
    with ConversationStore(None) as store:
        other = store.create()  # so that ids in the store differ from places in the file
        store.append(other.id, Message("user", "x"), parent=None)
        info = store.import_json(to_json(file))
        assert from_json(store.export_json(info.id)) == file
        assert store.list()[0] == info
        assert store.check() == []


@some
@given(conversations(is_path=True))
@example(one(""))
@example(one("\n\n"))
@example(one("\r\n a \r\n"))
@example(one("```\nnot closed", AttachmentFile("\n-->", "````\n</details>")))
def test_markdown_gives_back_the_path(file: ConversationFile) -> None:
    with ConversationStore(None) as store:
        info = store.import_markdown(to_markdown(file))
        assert from_json(store.export_json(info.id)) == file
        assert store.export_markdown(info.id) == to_markdown(file)


@some
@given(file=conversations(is_path=True))
def test_markdown_survives_text_files_of_any_system(tmp_path_factory: pytest.TempPathFactory, file: ConversationFile) -> None:
    path = tmp_path_factory.getbasetemp() / "c.md"
    for newline in ("\n", "\r\n"):
        path.write_text(to_markdown(file), encoding="utf-8", newline=newline)
        assert from_markdown(path.read_text(encoding="utf-8")) == file  # universal newlines
        assert from_markdown(path.read_bytes()) == file
        assert from_markdown(b"\xef\xbb\xbf" + path.read_bytes()) == file


@some
@given(conversations(is_path=True))
@example(one("- ```\n  unclosed in a list"))
@example(one("a <b\n\nc> `d"))
@example(one("`<b>` and ``<c> ` <d>``"))
def test_no_text_spoils_the_page_around_it(file: ConversationFile) -> None:
    """Every part begins as a comment at the top level of the page, as markdown-it reads it, and its heading is one."""
    page = to_markdown(file)
    tokens = MarkdownIt("commonmark").parse(page)
    marker = json.loads(page.split("\n")[0][len("<!-- edge conversation ") : -len(" -->")])["marker"]
    starts = [place for place, token in enumerate(tokens) if token.content.startswith(f"<!-- {marker}:")]
    kinds = ["system"] if file.system else []
    for node in file.nodes:
        kinds += ["message"] + ["attachment"] * len(node.attachments)
        kinds += ["reasoning"] * bool(node.reasoning) + ["call"] * len(node.tool_calls)
    seen = []
    for place in starts:
        assert (tokens[place].type, tokens[place].level) == ("html_block", 0)
        seen.append(tokens[place].content.split(":")[1].split()[0])
        if seen[-1] in ("system", "message"):
            assert (tokens[place + 1].type, tokens[place + 1].tag) == ("heading_open", "h2")
    assert seen == [*kinds, "end"]


def test_markdown_reads_well() -> None:
    """The page itself, as a golden text: what people keep in their repositories must stay readable by later versions."""
    file = ConversationFile(
        title="Two *questions*",
        system="Be brief.",
        model="smollm2-135m",
        created=1750000000.5,
        updated=1750000001.0,
        head=2,
        nodes=[
            NodeFile(
                parent=None,
                role="user",
                content="What does `a < b` mean?\n\n## Not a part",
                created=1750000000.5,
                attachments=[AttachmentFile("a & b.py", "print('''```''')\n")],
            ),
            NodeFile(
                parent=0, role="assistant", content="```python\nif a <", status="stopped", created=1750000001.0, model="m"
            ),
            NodeFile(parent=1, role="user", content="Tabs\tand\r\n", created=1750000001.0),
        ],
    )
    folder = Path(__file__).parent / "data"
    assert from_markdown((folder / "conversation.md").read_text(encoding="utf-8")) == file  # of version 1
    calls = [CallFile("weather", {"city": "Paris", "days": 2}, "a1b2c3d4e")]
    called = NodeFile(
        parent=2, role="assistant", content="", reasoning="It asks about <b>.", tool_calls=calls, created=1750000002.0
    )
    result = NodeFile(parent=3, role="tool", content="Rain", name="weather", tool_call_id="a1b2c3d4e", created=1750000003.0)
    file = msgspec.structs.replace(file, nodes=[*file.nodes, called, result], head=4)
    golden = (folder / "conversation-2.md").read_text(encoding="utf-8")
    assert to_markdown(file) == golden
    assert from_markdown(golden) == file


def test_markdown_may_be_edited_by_hand() -> None:
    page = to_markdown(one("old text"))
    assert "\nold text\n" in page
    assert from_markdown(page.replace("old text", "new\n\ntext")).nodes[0].content == "new\n\ntext"
    assert from_markdown(page.replace("## User\n\nold", "old")).nodes[0].content == "old text"


def test_a_reply_that_is_still_written_is_imported_as_stopped() -> None:
    with ConversationStore(None) as store:
        info = store.create()
        node = store.append(info.id, Message("assistant", "half"), parent=None, status="partial")
        assert node.status == "partial"
        for copy in (store.import_json(store.export_json(info.id)), store.import_markdown(store.export_markdown(info.id))):
            assert [found.status for found in store.path(copy.id)] == ["stopped"]
        assert [found.status for found in store.path(store.fork(info.id, node.id).id)] == ["stopped"]


def test_the_draft_is_not_exported() -> None:
    with ConversationStore(None) as store:
        info = store.create()
        store.set_draft(info.id, "never sent")
        assert "never sent" not in store.export_json(info.id) + store.export_markdown(info.id)


GOOD = json.loads(to_json(one("x")))
BAD_JSON = {
    "empty": "",
    "not JSON": "{",
    "a list": "[]",
    "another format": json.dumps({**GOOD, "format": "other"}),
    "no version": json.dumps({**GOOD, "version": 0}),
    "an unknown field": json.dumps({**GOOD, "extra": 1}),
    "a head outside": json.dumps({**GOOD, "head": 1}),
    "a negative head": json.dumps({**GOOD, "head": -1}),
    "its own parent": json.dumps({**GOOD, "nodes": [{**GOOD["nodes"][0], "parent": 0}]}),
    "a parent outside": json.dumps({**GOOD, "nodes": [{**GOOD["nodes"][0], "parent": 7}]}),
    "an unknown role": json.dumps({**GOOD, "nodes": [{**GOOD["nodes"][0], "role": "root"}]}),
    "an id": json.dumps({**GOOD, "nodes": [{**GOOD["nodes"][0], "id": 1}]}),
    "a text that is none": json.dumps({**GOOD, "title": 3}),
    "half a character": '{"format":"edge-conversation","version":1,"title":"\\ud800"}',
    "a time that is none": json.dumps({**GOOD, "created": 1e300}),
    "a deep record": json.dumps({**GOOD, "nodes": [{**GOOD["nodes"][0], "record": {"a": 1}}]}).replace(
        '{"a": 1}', '{"a":' * 100_000 + "1" + "}" * 100_000
    ),
    "bytes that are not text": b"\xff\xfe{}",
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_json_that_is_wrong_is_refused(data: str | bytes) -> None:
    with ConversationStore(None) as store:
        with pytest.raises(StorageError, match="JSON") as caught:
            store.import_json(data)
        assert "Nothing was imported" in caught.value.hint
        assert store.list() == []


PAGE = to_markdown(one("x", AttachmentFile("a", "b")))
BAD_MARKDOWN = {
    "empty": "",
    "other Markdown": "# Hello\n\nworld\n",
    "cut off": PAGE[: PAGE.index("<!-- edge:end")],
    "a damaged comment": PAGE.replace('"role":"user"', '"role":"user'),
    "an unknown field": PAGE.replace('"role":"user"', '"role":"user","id":4'),
    "an unknown part": PAGE.replace("<!-- edge:message", "<!-- edge:tool"),
    "a lost fence": PAGE.replace("\n```\n", "\n", 1),
    "a damaged header": PAGE.replace('"version":2', '"version":'),
    "an odd marker": PAGE.replace('"marker":"edge"', '"marker":".*"'),
    "a broken comment": PAGE.replace("<!-- edge:message {", "<!-- edge:message "),
    "an attachment of nothing": PAGE.replace("<!-- edge:message", "<!-- other:message"),
    "bytes that are not text": PAGE.encode("utf-16"),
}


@pytest.mark.parametrize("data", BAD_MARKDOWN.values(), ids=BAD_MARKDOWN.keys())
def test_markdown_that_is_wrong_is_refused(data: str | bytes) -> None:
    assert data != PAGE
    with ConversationStore(None) as store:
        with pytest.raises(StorageError, match="Markdown"):
            store.import_markdown(data)
        assert store.list() == []


def test_files_of_a_newer_version_say_what_to_do() -> None:
    for read, data in (
        (from_json, json.dumps({"format": "edge-conversation", "version": 3, "branches": []})),
        (from_markdown, PAGE.replace('"version":2', '"version":3,"new":true')),
    ):
        with pytest.raises(StorageError, match="newer version of edge") as caught:
            read(data)
        assert "pip install --upgrade" in caught.value.hint


@pytest.mark.parametrize("now", [-86400.0, 3e11, 253402300800.0])
def test_a_clock_that_is_wrong_costs_no_conversation(now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    with ConversationStore(None) as store:
        info = store.create(title="Kept")
        store.append(info.id, Message("user", "hi"), parent=None)
        again = store.import_json(store.export_json(info.id))
        assert [node.content for node in store.path(again.id)] == ["hi"]
        assert "hi" in store.export_markdown(info.id)
