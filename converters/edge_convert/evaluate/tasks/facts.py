"""Short questions with known answers: how many a model answers, and how many of them as its teacher does.

Every model gets them behind the same examples, so that base models answer, too, and answers are short. An answer is right if
the first line of the reply holds an accepted one as whole words and is not much longer; two replies are the same if both are
right, or if their first lines are equal after normalisation (case, articles, punctuation).

Source: normalisation as in SQuAD's evaluation (Rajpurkar et al., 2016).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import msgspec

from edge.errors import ModelFileError
from edge.units import reason
from edge_convert.evaluate.tasks.answering import answer
from edge_convert.evaluate.tasks.asks import AnswerOptions, Ask, spread
from edge_convert.evaluate.tasks.intervals import Share, share_of

__all__ = ["FactsResult", "Question", "ask", "compare", "first_line", "is_right", "is_same", "measure_facts", "read_questions"]

SYSTEM = "Answer in a few words."
EXAMPLES = (
    ("Which animal says moo?", "Cow."),
    ("What is the capital of the Netherlands?", "Amsterdam."),
    ("What is 3 plus 1?", "4."),
)
MAX_TOKENS = 16

_MOST_WORDS = 8
"""Words of a right reply that are neither the question's nor the answer's: a list of everything is no answer."""
_ARTICLES = frozenset(("a", "an", "the"))


class Question(msgspec.Struct, frozen=True):
    """A question.

    Attributes:
        question: its text.
        answers: any of them is right.
        kind: "capital", "symbol", "opposite", "sum", "fact", or the set that it is from.
    """

    question: str
    answers: tuple[str, ...]
    kind: str = "fact"


class FactsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of a model to questions.

    Attributes:
        right: share of the questions that it answers.
        teacher: the teacher's share of the same questions; None without a teacher.
        same: share of the questions that both answer alike, whether right or wrong.
        kept: of the questions that the teacher answers, the share that the model does, too.
        by_kind: kind of question -> share that the model answers.
    """

    right: Share
    teacher: Share | None = None
    same: Share | None = None
    kept: Share | None = None
    by_kind: dict[str, Share] = {}


def read_questions(limit: int = 0, file: Path | None = None) -> list[Question]:
    """Read questions, a JSON object with the fields of `Question` in each line.

    Args:
        limit: how many at most, spread evenly over the file, so over its kinds; 0 is all.
        file: None is those that ship with this package, written for edge.

    Raises:
        ModelFileError: the file cannot be read, or a line is not a question.
    """
    place = file or files("edge_convert.evaluate") / "texts" / "questions.jsonl"
    try:
        lines = [line for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [msgspec.json.decode(line, type=Question) for line in lines]
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{place} has no questions: {reason(error)}.", 'A line looks like this: {"question": "2 + 2?", "answers": ["4"]}'
        ) from error
    return spread(found, limit)


def ask(question: Question) -> Ask:
    """Return the prompt of a question."""
    turns = [(role, text) for pair in EXAMPLES for role, text in zip(("user", "assistant"), pair, strict=True)]
    return Ask(messages=(("system", SYSTEM), *turns, ("user", question.question)), max_tokens=MAX_TOKENS)


def measure_facts(
    model: Path,
    teacher: Path | Sequence[str] | None = None,
    *,
    limit: int = 0,
    options: AnswerOptions | None = None,
    on_progress: Callable[[str, float], None] | None = None,
) -> tuple[FactsResult, list[str]]:
    """Ask a model the short questions, and compare its answers with its teacher's.

        result, answers = measure_facts(student, teacher_answers)      # result.kept.value: as the teacher does

    Args:
        model: a .gguf file, an ONNX or OpenVINO folder, an .mlpackage (on a Mac) or a checkpoint folder.
        teacher: the same, or the answers that this function returned of it for the same `limit`; None compares with nothing.
        limit: questions at most; 0 is all.
        options: see `AnswerOptions`.
        on_progress: called with what is done, and its share of the whole (0 to 1); may raise to stop.

    Returns:
        The result, and the model's answers, in the order of the questions.

    Raises:
        EdgeError: a model cannot be loaded, or an answer failed.
    """
    questions = read_questions(limit)
    asks = [ask(question) for question in questions]
    n_models = 2 if isinstance(teacher, Path) else 1

    def replies(path: Path, n_before: int) -> list[str]:
        found = [""] * len(asks)
        for n_done, (number, reply) in enumerate(answer(path, asks, options or AnswerOptions()), 1):
            found[number] = reply
            if on_progress:
                on_progress(f"questions: {path.name}", (n_before + n_done / len(asks)) / n_models)
        return found

    theirs = replies(teacher, 0) if isinstance(teacher, Path) else teacher
    own = replies(model, n_models - 1)
    return compare(questions, own, theirs), own


def compare(questions: Sequence[Question], replies: Sequence[str], teacher: Sequence[str] | None = None) -> FactsResult:
    """Judge replies by the right answers, and by the teacher's replies to the same questions.

    Raises:
        ValueError: there are not as many replies as questions.
    """
    own = [is_right(reply, question) for question, reply in zip(questions, replies, strict=True)]
    kinds = dict.fromkeys(question.kind for question in questions)
    by_kind = {
        kind: share_of(right for question, right in zip(questions, own, strict=True) if question.kind == kind) for kind in kinds
    }
    if teacher is None:
        return FactsResult(right=share_of(own), by_kind=by_kind)
    theirs = [is_right(reply, question) for question, reply in zip(questions, teacher, strict=True)]
    rows = list(zip(questions, replies, teacher, strict=True))
    return FactsResult(
        right=share_of(own),
        teacher=share_of(theirs),
        same=share_of(is_same(question, *pair) for question, *pair in rows),
        kept=share_of(mine for mine, right in zip(own, theirs, strict=True) if right),
        by_kind=by_kind,
    )


def is_right(reply: str, question: Question) -> bool:
    """Return whether the first line of a reply has an accepted answer, as whole words and among few others."""
    said = _words(first_line(reply))
    text = f" {' '.join(said)} "
    found = [_words(accepted) for accepted in question.answers]
    found = [words for words in found if words and f" {' '.join(words)} " in text]
    if not found:
        return False
    known = {*_words(question.question), *max(found, key=len), *_ARTICLES}
    return sum(word not in known for word in said) <= _MOST_WORDS


def is_same(question: Question, reply: str, other: str) -> bool:
    """Return whether two replies say the same: both are right, or their first lines are equal after normalisation."""
    if is_right(reply, question):
        return is_right(other, question)
    return normalise(first_line(reply)) == normalise(first_line(other))


def first_line(text: str) -> str:
    """Return the first line that is not empty: base models go on to ask themselves more."""
    return next((line for line in text.splitlines() if line.strip()), "")


def normalise(text: str) -> str:
    """Return a text without case, punctuation and articles."""
    return " ".join(word for word in _words(text) if word not in _ARTICLES)


@lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", text.casefold()))
