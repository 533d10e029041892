"""Short questions: which answers are right, which are the same, and what shares come of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge
from edge.errors import ModelFileError
from edge.testing import FakeModel
from edge_convert.evaluate.tasks.facts import (
    SYSTEM,
    Question,
    compare,
    is_right,
    is_same,
    measure_facts,
    read_questions,
)
from edge_convert.evaluate.tasks.intervals import mean_of, share_of

FRANCE = Question("What is the capital of France?", ("Paris",))
OPPOSITE = Question("What is the opposite of open?", ("closed", "shut"))


@pytest.mark.parametrize(
    ("reply", "question", "right"),
    [
        ("Paris.", FRANCE, True),
        ("The capital of France is **Paris**.", FRANCE, True),
        ("\n  PARIS\nWhat is the capital of Spain?\nMadrid", FRANCE, True),
        ("Lyon.\nParis.", FRANCE, False),  # a base model goes on: only its first line counts
        ("Parisian", FRANCE, False),
        ("Rome, Berlin, Madrid, Lisbon, Vienna, Athens, Oslo, Warsaw, London, Paris", FRANCE, False),  # names all
        ("Shut", OPPOSITE, True),
        ("", OPPOSITE, False),
        ("12", Question("What is 3 times 4?", ("12", "twelve")), True),
        ("112", Question("What is 3 times 4?", ("12", "twelve")), False),
    ],
)
def test_right_answers_are_whole_words_of_the_first_line(reply: str, question: Question, right: bool) -> None:
    assert is_right(reply, question) is right


def test_replies_are_the_same_if_both_are_right_or_say_the_same_words() -> None:
    assert is_same(FRANCE, "It is Paris.", "paris")
    assert is_same(FRANCE, "The Lyon!", "lyon")
    assert not is_same(FRANCE, "Lyon", "Nice")
    assert not is_same(FRANCE, "Lyon", "Paris")
    assert not is_same(FRANCE, "Paris", "Lyon")


def test_comparison_counts_what_the_teacher_knows() -> None:
    questions = [FRANCE, OPPOSITE, FRANCE, OPPOSITE]
    result = compare(questions, ["Paris", "ajar", "Nice", "shut"], ["Paris", "closed", "nice.", "ajar"])
    assert (result.right.n_yes, result.right.n) == (2, 4)
    assert result.teacher and result.same and result.kept
    assert (result.teacher.n_yes, result.same.n_yes) == (2, 2)
    assert (result.kept.n_yes, result.kept.n) == (1, 2)
    assert result.by_kind["fact"] == result.right


def test_every_question_is_answered_by_its_own_answers_and_asks_something_else() -> None:
    questions = read_questions()
    assert len(questions) == 120
    assert len({question.question for question in questions}) == 120
    for question in questions:
        assert all(is_right(f"{answer}.", question) for answer in question.answers), question
        assert not is_right(question.question, question), question  # nobody scores by repeating what was asked


def test_a_limit_keeps_all_kinds() -> None:
    assert {question.kind for question in read_questions(10)} == {question.kind for question in read_questions()}
    assert len(read_questions(10)) == 10


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "2 + 2?"}\n')
    with pytest.raises(ModelFileError, match="has no questions"):
        read_questions(file=tmp_path / "mine.jsonl")


def test_a_model_is_asked_behind_examples_and_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    questions = read_questions(6)
    known = {question.question: question.answers[0] for question in questions}
    student = FakeModel({text: "Paris" if at % 2 else answer for at, (text, answer) in enumerate(known.items())})
    monkeypatch.setattr(edge, "load", student.load)
    path = tmp_path / "student.gguf"
    path.write_bytes(b"GGUF")
    done: list[float] = []
    result, answers = measure_facts(path, list(known.values()), limit=6, on_progress=lambda _, share: done.append(share))
    assert answers[0] == known[questions[0].question]
    assert result.teacher and result.teacher.n_yes == 6
    assert result.kept == result.right
    assert result.right.n_yes == 3
    assert student.prompts[0][0] == ("system", SYSTEM)
    assert done[-1] == 1.0


def test_wilson_interval() -> None:
    share = share_of([True] * 8 + [False] * 2)
    assert (round(share.low, 3), round(share.high, 3)) == (0.490, 0.943)  # R: binom.wilson(8, 10)
    assert share_of([]).high == 1.0
    assert str(share) == "80% (49 to 94)"


def test_bootstrap_is_repeatable_and_holds_the_mean() -> None:
    values = [0.0, 0.1, 0.4, 0.2, 0.9]
    mean = mean_of(values)
    assert mean == mean_of(values)
    assert mean.value == pytest.approx(0.32)
    assert mean.low < 0.32 < mean.high
    assert mean_of([0.5] * 4).low == mean_of([0.5] * 4).high == 0.5
