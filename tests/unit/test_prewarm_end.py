"""A message that may be complete is prefilled to the end of its prompt, and costs nothing if it goes on after all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.conversation import Attachment
from edge.dialogue import Conversation
from edge.prompt.sentences import ends_sentence
from edge.types import Usage
from tests.unit.test_cache_hints import Recurrent

QUESTION = "How do I clean the filter?"


def test_sent_as_it_is_only_the_last_token_is_computed() -> None:
    with Assistant(FakeBackend(), system="Be brief") as ai:
        conversation = ai.conversation()
        ahead = conversation.prewarm(QUESTION, cache="memory")
        ahead.wait()
        usage = _sent(conversation, QUESTION)
        assert usage.n_computed == 1
        assert ahead.usage.n_prompt == usage.n_prompt
        conversation.prewarm("Again?", attachments=[Attachment("a.txt", "some text")], cache="memory").wait()
        assert _sent(conversation, "Again?", [Attachment("a.txt", "some text")]).n_computed == 1


def test_what_goes_on_after_all_reuses_the_text() -> None:
    with Assistant(FakeBackend(), system="Be brief") as ai:
        conversation = ai.conversation()
        conversation.prewarm(QUESTION, cache="memory").wait()
        longer = _sent(conversation, QUESTION + " And when?")
        end = len(b"<|im_end|>\n<|im_start|>assistant\n")
        assert longer.n_computed <= len(" And when?") + end


@pytest.mark.parametrize(("text", "cache"), [("How do I clean", "memory"), (QUESTION, "off")])
def test_an_unfinished_text_is_prefilled_as_far_as_it_cannot_change(text: str, cache: str) -> None:
    with Assistant(FakeBackend(), system="Be brief") as ai:
        ahead = ai.conversation().prewarm(text, cache=cache)  # type: ignore[arg-type]
        ahead.wait()
        whole = ai.conversation().count(text).n_tokens
        assert 0 < ahead.usage.n_prompt < whole


def test_an_engine_that_cannot_take_it_back_is_given_the_prefix() -> None:
    with Assistant(Recurrent(), system="Be brief") as ai:
        ahead = ai.conversation().prewarm(QUESTION, cache="memory")
        ahead.wait()
        assert ahead.usage.n_prompt < ai.conversation().count(QUESTION).n_tokens


def test_a_prefix_of_many_conversations_is_no_whole_message() -> None:
    with Assistant(FakeBackend(), system="Be brief") as ai:
        ahead = ai.prewarm(QUESTION, cache="memory")
        ahead.wait()
        assert ahead.usage.n_prompt < ai.conversation().count(QUESTION).n_tokens


@pytest.mark.parametrize(
    ("text", "is_end"),
    [("Why?", True), ("So.", True), ("\u4f60\u597d\u3002", True), ("Why", False), ("", False), ("Why? ", False)],
)
def test_ends_of_sentences(text: str, is_end: bool) -> None:
    assert ends_sentence(text) == is_end


def _sent(conversation: Conversation, text: str, attachments: Sequence[Attachment] = ()) -> Usage:
    reply = conversation.send(text, attachments=attachments)
    reply.wait()
    return reply.usage
