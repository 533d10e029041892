"""Earlier answers over documents, given again to questions that mean the same: marked, and gone when a document changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.documents import Collection
from edge.grounding.answers import Similar, SimilarAnswers
from edge.grounding.relevance import asks_alike
from edge.grounding.sources import Sources
from tests.unit.documents.conftest import concept_embedder

QUESTION = "Which gasket does a leaking kettle need?"
AGAIN = "Which gasket would a leaking kettle need?"
TEXT = "A kettle that leaks needs a new gasket of rubber.\n"


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    (tmp_path / "guide.txt").write_text(TEXT)
    with Collection.open("guide", store=tmp_path / "documents", embedder=concept_embedder()) as made:
        made.add(tmp_path / "guide.txt")
        yield made


@pytest.fixture
def model() -> Iterator[Any]:
    """A fake model that numbers its answers, with answers given again."""
    fake = edge.testing.FakeModel(lambda _: f"Answer {len(fake.prompts)} [1].")
    with fake.load() as ai:
        ai._turns.sources = Sources(answer_similarity=0.9)
        yield fake, ai


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        ("Who is Sir Rowland?", "who was sir Rowland", True),
        ("How do I reset the pump?", "Please, how can I reset the pumps?", True),
        ("Whom did she marry?", "Who did she marry?", True),
        ("Who is first on the list?", "Who is second on the list?", False),
        ("Who is Jamie's father?", "Who is Jamie?", False),
        ("Why did he leave?", "When did he leave?", False),
        ("What happened in 1983?", "What happened in 1984?", False),
        ("What is done before lunch?", "What is done after lunch?", False),
        ("Is it safe to clean?", "Is it not safe to clean?", False),
        ("", "", True),
    ],
)
def test_questions_that_ask_alike(one: str, other: str, is_alike: bool) -> None:
    assert asks_alike(one, other) is asks_alike(other, one) is is_alike


def ask(ai: Any, question: str, docs: Any, **options: Any) -> Any:
    reply = ai.generate(question, docs=docs, **options)
    reply.wait()
    return reply


def test_an_answer_is_given_again_and_says_so(model: Any, collection: Collection) -> None:
    fake, ai = model
    first = ask(ai, QUESTION, collection)
    again = ask(ai, AGAIN, collection)
    assert (first.text, again.text) == ("Answer 1 [1].", "Answer 1 [1].")
    assert len(fake.prompts) == 1
    assert not first.usage.is_answer_cached
    assert again.usage.is_answer_cached
    assert again.citations == first.citations
    assert again.cited
    assert any(QUESTION in notice and "similarity" in notice for notice in again.notices)
    assert [event.kind for event in again.events()].count("passages") == 1
    assert collection.answers_file.stat().st_mode & 0o077 == 0


def test_a_conversation_begins_with_one_and_goes_on_from_it(model: Any, collection: Collection) -> None:
    _, ai = model
    ask(ai, QUESTION, collection)
    conversation = ai.conversation(docs=collection)
    reply = conversation.send(AGAIN)
    reply.wait()
    assert reply.usage.is_answer_cached
    question, answer = conversation.messages
    assert answer.content == "Answer 1 [1]."
    assert TEXT.strip() in question.message().content
    later = conversation.send("Which gasket does a leaking kettle need?")
    later.wait()
    assert not later.usage.is_answer_cached, "what it means depends on what was said before"


@pytest.mark.parametrize("options", [{"system": "Be brief."}, {"max_tokens": 7}, {"logprobs": 0}, {"cache": "off"}])
def test_what_else_an_answer_depends_on(model: Any, collection: Collection, options: dict[str, Any]) -> None:
    _, ai = model
    ask(ai, QUESTION, collection)
    if "system" in options:
        messages = [{"role": "system", "content": options["system"]}, {"role": "user", "content": AGAIN}]
        reply = ai.generate(messages, docs=collection)
    else:
        reply = ai.generate(AGAIN, docs=collection, **options)
    reply.wait()
    assert reply.usage.is_answer_cached is ("cache" in options), "what is not stored may still be found"


@pytest.mark.parametrize("change", ["edited", "removed", "added"])
def test_a_change_of_the_documents_forgets_the_answers(model: Any, collection: Collection, tmp_path: Path, change: str) -> None:
    _, ai = model
    ask(ai, QUESTION, collection)
    assert collection.answers_file.exists()
    version = collection.version
    if change == "edited":
        (tmp_path / "guide.txt").write_text("A kettle that leaks needs a gasket of cork.\n")
        collection.update()
    elif change == "added":
        (tmp_path / "more.txt").write_text("A kettle of iron needs no gasket.\n")
        collection.add(tmp_path / "more.txt")
    else:
        collection.remove(tmp_path / "guide.txt")
    assert not collection.answers_file.exists(), "it has the text of the documents"
    assert collection.version != version
    assert not ask(ai, QUESTION, collection).usage.is_answer_cached


def test_answers_of_an_earlier_state_are_not_found(collection: Collection, tmp_path: Path) -> None:
    answers = SimilarAnswers(collection, 0.9)
    answers.add("key", Similar(QUESTION, "text", (), "stop", 1.0))
    assert answers.find("key", AGAIN) is not None
    assert answers.find("other", AGAIN) is None
    stored = collection.answers_file.read_bytes()
    (tmp_path / "more.txt").write_text("More of it.\n")
    collection.add(tmp_path / "more.txt")
    collection.answers_file.write_bytes(stored)  # as another process may that had it open
    assert answers.find("key", AGAIN) is None


def test_it_is_off_by_default(collection: Collection) -> None:
    fake = edge.testing.FakeModel(lambda _: f"Answer {len(fake.prompts)} [1].")
    with fake.load() as ai:
        assert ask(ai, QUESTION, collection).text == "Answer 1 [1]."
        assert ask(ai, AGAIN, collection).text == "Answer 2 [1]."
    assert not collection.answers_file.exists()


def test_an_answer_that_rests_on_nothing_is_not_stored(model: Any, collection: Collection) -> None:
    _, ai = model
    ask(ai, "Who painted the chapel?", collection)
    assert not collection.answers_file.exists()


def test_a_damaged_file_is_done_without(model: Any, collection: Collection) -> None:
    _, ai = model
    collection.answers_file.write_bytes(b"not a database" * 100)
    assert ask(ai, QUESTION, collection).text == "Answer 1 [1]."
    assert ask(ai, QUESTION, collection).text in ("Answer 1 [1].", "Answer 2 [1].")


def test_a_collection_without_vectors_has_none(model: Any, tmp_path: Path) -> None:
    _, ai = model
    (tmp_path / "guide.txt").write_text(TEXT)
    with Collection.open("words", store=tmp_path / "documents", embedder="") as words:
        words.add(tmp_path / "guide.txt")
        for number in (1, 2):
            assert ask(ai, f"{QUESTION} {'again ' * number}", words).text == f"Answer {number} [1]."


def test_settings_turn_it_on() -> None:
    from edge.loading import make_sources

    assert make_sources(edge.load_settings({"docs.answers": True, "docs.answer_similarity": 0.97}))._answer_similarity == 0.97
    assert make_sources(edge.load_settings({}))._answer_similarity is None
