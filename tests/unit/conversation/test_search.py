"""Full-text search: what is found, where, and that no input is an error."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edge.conversation import Attachment, ConversationStore
from edge.types import Message


@pytest.fixture
def store():
    with ConversationStore(None) as opened:
        yield opened


def say(store: ConversationStore, *texts: str, title: str = "") -> list[int]:
    """A conversation with these messages; gives their ids."""
    info = store.create(title=title)
    ids: list[int] = []
    for text in texts:
        ids.append(store.append(info.id, Message("user", text), parent=ids[-1] if ids else None).id)
    return ids


def found(store: ConversationStore, text: str, limit: int = 50) -> list[int | None]:
    return [hit.node_id for hit in store.search(text, limit)]


def test_words_phrases_prefixes_accents(store: ConversationStore) -> None:
    cafe, river, both = say(store, "Un café à Paris", "the river bank in Paris", "Bank on the RIVER café", title="t")
    assert found(store, "paris") == [river, cafe]
    assert found(store, "CAFE") == [both, cafe]
    assert found(store, "bank river") == [both, river]
    assert found(store, '"river bank"') == [river]
    assert found(store, '"river bank') == [both, river]  # a quote that is still being typed
    assert found(store, "par") == [river, cafe]
    assert found(store, "riv bank") == []  # only the last word may be cut short
    assert found(store, "bank riv") == [both, river]
    assert found(store, "nothing") == []


def test_titles_come_first_and_have_no_node(store: ConversationStore) -> None:
    old = say(store, "apples here", title="Fruit")
    new = say(store, "pears", title="More apples")
    hits = store.search("apples")
    assert [hit.node_id for hit in hits] == [None, old[0]]
    assert [hit.conversation.title for hit in hits] == ["More apples", "Fruit"]
    store.rename(hits[0].conversation.id, "Renamed")
    assert found(store, "apples") == [old[0]]
    assert found(store, "renamed pears") == []  # words of title and message are not mixed
    assert found(store, "pears") == new


def test_attachments_and_their_names_are_found(store: ConversationStore) -> None:
    info = store.create(title="t")
    files = [Attachment("budget.csv", "rent;900"), Attachment("notes.md", "remember the milk")]
    node = store.append(info.id, Message("user", "look at this"), parent=None, attachments=files)
    for words in ("milk", "budget", "rent 900", "notes.md", "look"):
        assert found(store, words) == [node.id]


def test_what_was_streamed_is_found_and_its_parts_are_not(store: ConversationStore) -> None:
    info = store.create()
    node = store.append(info.id, Message("assistant", "beginni"), parent=None, status="partial")
    store.update(node.id, content="beginning and end", status="complete")
    assert found(store, "end") == [node.id]
    assert found(store, '"beginni" end') == []
    assert store.check() == []


def test_snippets_show_the_words_on_one_harmless_line(store: ConversationStore) -> None:
    say(store, "start " + "filler " * 50 + "the \x1b[31m needle\x1b[0m\n\tneedle here\u202e " + "more " * 50, title="t")
    (hit,) = store.search("needle")
    assert len(hit.snippet) < 200
    assert not any(ord(character) < 32 or character in "\u202e" for character in hit.snippet)
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["needle", "needle"]
    say(store, "\ue001x\ue000 odd \ue000\ue000", title="t")  # our own marks in a text
    assert len(store.search("odd")) == 1


def test_scripts_without_spaces_are_found_in_the_middle(store: ConversationStore) -> None:
    chinese, japanese, thai = say(store, "今天天气很好,100%_的", "東京タワーへ行きます", "ภาษาไทยง่าย", title="題名の天気")
    assert found(store, "天气") == [chinese]
    assert found(store, "タワー") == [japanese]
    assert found(store, "ไทย") == [thai]
    assert found(store, "天気") == [None]
    assert found(store, "很好 今天") == [chinese]
    assert found(store, "很好 東京") == []
    assert found(store, "100%_的") == [chinese]
    assert found(store, "1000_的") == []  # % and _ mean themselves
    say(store, "x" * 500 + "天气" + "y" * 500, title="t")
    hit = store.search("天气")[0]
    assert len(hit.snippet) < 250
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["天气"]
    assert hit.snippet.startswith("…") and hit.snippet.endswith("…")


def test_limits(store: ConversationStore) -> None:
    ids = say(store, *["same words"] * 9, title="t")
    assert found(store, "same", limit=3) == ids[:-4:-1]
    assert found(store, "same", limit=0) == found(store, "same", limit=-1) == []
    assert found(store, " ".join(["same"] * 10_000)) == ids[::-1]
    assert found(store, "x" * 100_000) == []


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.text(max_size=30),
        st.lists(st.sampled_from("\"*^(){}:-+,.;'\\%_\0\n\ud800 aANDORNOTNEAR天"), max_size=20).map("".join),
    )
)
@example("")
@example('"')
@example('""')
@example('"" *')
@example("a AND")
@example("NEAR(a b, 2)")
@example("content : a")
@example("{a b} : c")
@example("^a")
@example("\0")
@example('a\0"b')
@example("a' OR 1=1 --")
def test_no_input_is_an_error(query: str) -> None:
    with ConversationStore(None) as store:
        say(store, "a AND content NEAR OR NOT 天气", title="content")
        for hit in store.search(query):
            assert all(0 <= start < end <= len(hit.snippet) for start, end in hit.matches)


def test_the_index_agrees_with_reading_everything(store: ConversationStore) -> None:
    """The slow obvious reference: every word of every text, looked at one by one."""
    rng = random.Random(5)
    words = ["red", "green", "blue", "grey", "redder", "bluish"]
    texts: dict[int, list[str]] = {}
    for _ in range(40):
        chosen = [rng.choices(words, k=rng.randint(1, 5)) for _ in range(rng.randint(1, 4))]
        texts.update(zip(say(store, *map(" ".join, chosen), title="t"), chosen, strict=True))
    for node_id in rng.sample(sorted(texts), 15):
        if node_id in texts:
            id = store.node(node_id).conversation_id
            for gone in store.path(id):
                texts.pop(gone.id)
            store.delete(id)
    for _ in range(100):
        query = rng.choices(words, k=rng.randint(1, 3))
        query[-1] = query[-1][: rng.randint(1, 6)]
        expected = [
            node_id
            for node_id, text in sorted(texts.items(), reverse=True)
            if set(query[:-1]) <= set(text) and any(word.startswith(query[-1]) for word in text)
        ]
        assert found(store, " ".join(query), limit=1000) == expected
