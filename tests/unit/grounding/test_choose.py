"""Passages for a question: enough of them, not too many, none where nothing is about it."""

from __future__ import annotations

from dataclasses import replace

from edge.citations import Citation
from edge.grounding.choose import Grounding
from edge.grounding.order import Orders
from edge.grounding.relevance import coverage
from tests.unit.grounding.shelf import CLEAN, RESET, Library, Passage, library


def n_words(text: str) -> int:
    return len(text.split())


def test_passages_about_the_question_are_numbered_in_document_order() -> None:
    chosen = Grounding([library()], "How do I reset the pump?").choose(1000, n_words)
    assert [(one.number, one.place) for one in chosen.new] == [(1, "manual.md:4"), (2, "manual.md:12-13")]
    assert chosen.new[1].text == RESET.text
    assert chosen.new[0].heading == "Care"
    assert chosen.new[0].collection == "manual"


def test_nothing_about_the_question_is_nothing_found() -> None:
    chosen = Grounding([library()], "Who painted the ceiling of the chapel with a pump?").choose(1000, n_words)
    assert chosen.citations == ()
    assert chosen.searched == ("manual",)


def test_vectors_count_beside_words() -> None:
    near = replace(RESET, similarity=0.9)
    far = replace(RESET, similarity=0.1)
    question = "Restart my water machine, please: red button?"
    assert coverage(question, RESET.text) < 0.5
    assert Grounding([Library(near)], question).choose(100, n_words).new
    assert not Grounding([Library(far)], question).choose(100, n_words).new


def test_the_nearest_that_fit_are_taken_and_the_first_in_any_case() -> None:
    room = n_words(CLEAN.text)
    for short in (room, 1):
        found = Grounding([library()], "reset the pump, every month").choose(short, n_words)
        assert [one.text for one in found.new] == [CLEAN.text]


def test_a_follow_up_is_searched_with_the_question_before() -> None:
    found = library()
    chosen = Grounding([found], "And after that?", before="How do I reset the pump?").choose(1000, n_words)
    assert RESET.text in [one.text for one in chosen.new]
    assert found.questions == ["And after that?", "How do I reset the pump? And after that?"]


def test_passages_of_earlier_messages_keep_their_numbers_unless_they_may_be_gone() -> None:
    first = Grounding([library()], "every month").choose(1000, n_words)
    assert [one.number for one in first.new] == [1]

    def again(*, repeats: bool) -> Grounding:
        return Grounding([library()], "reset the pump", first.new)

    chosen = again(repeats=False).choose(1000, n_words)
    assert [one.number for one in chosen.again] == [1]
    assert [(one.number, one.text) for one in chosen.new] == [(2, RESET.text)]
    assert [one.number for one in chosen.citations] == [1, 2]
    repeated = again(repeats=True).choose(1000, n_words, repeats=True)
    assert {one.text for one in repeated.new} == {RESET.text, CLEAN.text}
    assert 1 not in [one.number for one in repeated.new]


def test_several_collections_share_the_places_by_relevance() -> None:
    other = Library(Passage("/b.md", "To reset the pump of the boat, turn the key."), name="boat")
    chosen = Grounding([library(), other], "reset the pump of the boat").choose(1000, n_words)
    assert {one.collection for one in chosen.new} == {"manual", "boat"}
    assert chosen.searched == ("manual", "boat")


def test_the_order_is_that_of_the_prompt_before() -> None:
    orders = {"manual": Orders()}
    one = Library(*(Passage(f"/{n}.md", f"pump number {n}", n) for n in range(6)))
    Grounding([Library(*one.passages[3:])], "pump number", orders=orders).choose(1000, n_words)
    chosen = Grounding([Library(*reversed(one.passages[2:]))], "pump number", orders=orders).choose(1000, n_words)
    assert [citation.document for citation in chosen.new] == ["/3.md", "/4.md", "/5.md", "/2.md"]


def test_passages_far_behind_the_best_are_left_out() -> None:
    shelf = Library(RESET, Passage("/docs/other.md", "The pump is blue."))
    assert [one.text for one in Grounding([shelf], "reset the pump").choose(1000, n_words).new] == [RESET.text]


def test_a_blank_question_is_not_searched_for() -> None:
    found = library()
    assert Grounding([found], "  ").choose(1000, n_words).citations == ()
    assert found.questions == []


def test_it_is_searched_once() -> None:
    found = library()
    grounding = Grounding([found], "reset the pump")
    assert grounding.choose(1000, n_words) is grounding.choose(5, n_words)
    assert len(found.questions) == 1


def test_known_passages_are_not_searched_for() -> None:
    passage = Citation(1, "/a.md", "text")
    grounding = Grounding.known(replace(Grounding([], "").choose(1, n_words), new=(passage,)))
    assert grounding.is_in_prompt
    assert grounding.choose(1, n_words).citations == (passage,)
