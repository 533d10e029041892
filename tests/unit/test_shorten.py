"""An answer that is cut to its first part: the conversation, the next prompt and the KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.assistant import Assistant
from edge.conversation import ConversationStore
from edge.errors import UsageError
from edge.testing import FakeModel

STORY = "Once upon a time there was a fox. It lived in the wood."


@pytest.fixture
def model() -> FakeModel:
    return FakeModel({"story": STORY, "thanks": "You are welcome."})


@pytest.fixture
def assistant(model: FakeModel) -> Iterator[Assistant]:
    with ConversationStore(None) as store, model.load(store=store) as assistant:
        yield assistant


def test_the_next_prompt_has_the_first_part_only_and_reuses_its_tokens(assistant: Assistant, model: FakeModel) -> None:
    conversation = assistant.conversation()
    node = conversation.send("story").detach()
    node.wait()
    assert node.node is not None
    kept = conversation.shorten(node.node.id, 21)
    assert (kept.content, kept.status) == (STORY[:21], "stopped")
    assert kept.record["interrupted"] == {"unheard": STORY[21:]}
    assert kept.record["tokens"] == node.node.record["tokens"][: len(kept.record["tokens"])] != []
    reply = conversation.send("thanks")
    reply.wait()
    assert ("assistant", STORY[:21]) in model.prompts[-1]
    # The prompt up to the cut, which the first turn has left in the KV cache.
    assert reply.usage.n_reused >= node.usage.n_prompt + len(kept.record["tokens"]) - 1


def test_nothing_left_is_no_answer_and_a_branch(assistant: Assistant) -> None:
    conversation = assistant.conversation()
    reply = conversation.send("story")
    reply.wait()
    assert reply.node is not None
    assert conversation.shorten(reply.node.id, 0).role == "user"
    assert [node.role for node in conversation.messages] == ["user"]
    conversation.switch(reply.node.id)
    assert conversation.messages[-1].content == STORY


def test_more_than_it_has_changes_nothing(assistant: Assistant) -> None:
    conversation = assistant.conversation()
    reply = conversation.send("story")
    reply.wait()
    assert reply.node is not None
    assert conversation.shorten(reply.node.id, 1000) == conversation.messages[-1]
    assert conversation.messages[-1].status == "complete"


def test_only_the_last_answer_can_be_shortened(assistant: Assistant) -> None:
    conversation = assistant.conversation()
    first = conversation.send("story")
    first.wait()
    conversation.send("thanks").wait()
    assert first.node is not None
    with pytest.raises(UsageError, match="Other messages follow"):
        conversation.shorten(first.node.id, 5)
    with pytest.raises(UsageError, match="Only an answer"):
        conversation.shorten(conversation.messages[0].id, 2)
    with pytest.raises(UsageError, match="0 or more"):
        conversation.shorten(first.node.id, -1)


def test_what_was_cut_off_is_not_found_any_more(assistant: Assistant) -> None:
    conversation = assistant.conversation()
    reply = conversation.send("story")
    reply.wait()
    assert reply.node is not None
    store = conversation._store
    assert store.search("lived")
    conversation.shorten(reply.node.id, 21)
    assert not store.search("lived") and store.search("upon")
    assert store.check() == []
