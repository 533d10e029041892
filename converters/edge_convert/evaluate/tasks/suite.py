"""Asks models everything that the tasks are made of, within a time, and judges their replies.

Replies are stored as they come (store.py), so that a run that was stopped goes on, and a teacher answers once. Where the time
is bounded, each task's prompts are asked in a shuffled order of a fixed seed, a fifth of each task at a time: whatever time
there is, what was asked is a fair sample.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from edge.errors import UsageError
from edge_convert.evaluate.tasks import facts, instructions, repetition
from edge_convert.evaluate.tasks.answering import answer
from edge_convert.evaluate.tasks.asks import AnswerOptions, Ask, spread
from edge_convert.evaluate.tasks.question_sets import read_set
from edge_convert.evaluate.tasks.store import ReplyStore

__all__ = ["ABOUT", "TASKS", "Replies", "Suite", "TaskOptions", "Usefulness", "parse_tasks"]

ABOUT = {
    "facts": "short questions with known answers",
    "instructions": "prompts that say how to answer",
    "repetition": "long replies",
}
TASKS = tuple(ABOUT)
_N_ROUNDS = 5

Replies = dict[str, list[str | None]]
"""Task -> a reply for each of its prompts; None for those that there was no time for."""

_Place = tuple[str, int]
"""A task, and the number of one of its prompts."""


class TaskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask, and how.

    Attributes:
        tasks: of TASKS.
        questions: the set of short questions, see `read_set`.
        limit: prompts of each task at most; 0 is all.
        minutes: for all models together; 0 sets no limit.
        answer: how models answer.
        cache_dir: where replies are stored; None stores none.
        is_fresh: ask again what is stored.
    """

    tasks: tuple[str, ...] = TASKS
    questions: str = ""
    limit: int = 0
    minutes: float = 0.0
    answer: AnswerOptions = AnswerOptions()
    cache_dir: Path | None = None
    is_fresh: bool = False


class Usefulness(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is worth to its users, as far as code can judge its replies.

    Attributes:
        facts: short questions; None if they were not asked.
        instructions: prompts that say how to answer.
        repetition: of long replies.
        questions: the set that the questions are from; "" is edge's own.
    """

    facts: facts.FactsResult | None = None
    instructions: instructions.InstructionsResult | None = None
    repetition: repetition.RepetitionResult | None = None
    questions: str = ""


def parse_tasks(text: str) -> tuple[str, ...]:
    """Read a list of tasks such as "facts,repetition"; "all" is every task.

    Raises:
        UsageError: one is unknown.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in names if name not in (*TASKS, "all")]
    if unknown or not names:
        raise UsageError(
            f"{(unknown or [text])[0]!r} is not a task.",
            f"Tasks are {', '.join(TASKS)} or all, separated by commas. Name the models first: edge eval MODEL --tasks",
        )
    return TASKS if "all" in names else tuple(name for name in TASKS if name in names)


class Suite:
    """The prompts of the chosen tasks.

    Args:
        options: see `TaskOptions`.

    Raises:
        UsageError, ModelFileError: the set of questions cannot be read.
    """

    def __init__(self, options: TaskOptions) -> None:
        self._options = options
        self._questions = read_set(options.questions, options.limit) if "facts" in options.tasks else []
        self._instructions = spread(instructions.read_instructions(), options.limit)
        every: dict[str, list[Ask]] = {
            "facts": [facts.ask(one) for one in self._questions],
            "instructions": [instructions.ask(one) for one in self._instructions],
            "repetition": [repetition.ask(one) for one in spread(repetition.read_prompts(), options.limit)],
        }
        self._asks = {task: every[task] for task in options.tasks}

    def ask(self, models: Sequence[Path], on_progress: Callable[[str, float], None]) -> list[Replies]:
        """Ask models all prompts, one model after the other; each gets an equal part of the time that is left then.

        Args:
            models: paths that `answering.answer` takes.
            on_progress: called with what is done, and its share of the whole (0 to 1); may raise to stop. What was answered
                until then is stored.

        Returns:
            The replies of each model.

        Raises:
            EdgeError: a model cannot be loaded, or a reply failed.
        """
        until = time.monotonic() + 60 * self._options.minutes
        found = []
        for number, model in enumerate(models):
            now = time.monotonic()
            deadline = now + max(0.0, until - now) / (len(models) - number) if self._options.minutes else None

            def advance(share: float, model: Path = model, number: int = number) -> None:
                on_progress(f"tasks: {model.name}", (number + share) / len(models))

            found.append(self._ask_model(model, deadline, advance))
        return found

    def _ask_model(self, model: Path, deadline: float | None, advance: Callable[[float], None]) -> Replies:
        replies: Replies = {task: [None] * len(asks) for task, asks in self._asks.items()}
        options = self._options
        with ReplyStore(model, options.answer, options.cache_dir) as store:
            missing: list[tuple[_Place, Ask]] = []
            for task, number in self._order(deadline is not None):
                one = self._asks[task][number]
                reply = replies[task][number] = None if options.is_fresh else store.get(one)
                if reply is None:
                    missing.append(((task, number), one))
            n = sum(map(len, self._asks.values()))
            if not missing:
                advance(1.0)
                return replies
            with closing(answer(model, [one for _, one in missing], options.answer)) as stream:
                for n_done, (at, text) in enumerate(stream, 1):
                    (task, number), one = missing[at]
                    replies[task][number] = text
                    store.put(one, text)
                    advance((n - len(missing) + n_done) / n)
                    if deadline is not None and time.monotonic() >= deadline:
                        break
        return replies

    def _order(self, is_bounded: bool) -> list[_Place]:
        """Return the places of all prompts in the order in which to ask."""
        if not is_bounded:  # prompts that begin alike follow each other
            return [(task, number) for task, asks in self._asks.items() for number in range(len(asks))]
        draw = random.Random(0)  # noqa: S311 (not for secrets)
        shuffled = {task: draw.sample(range(len(asks)), len(asks)) for task, asks in self._asks.items()}
        return [
            (task, number)
            for turn in range(_N_ROUNDS)
            for task, numbers in shuffled.items()
            for number in numbers[len(numbers) * turn // _N_ROUNDS : len(numbers) * (turn + 1) // _N_ROUNDS]
        ]

    def judge(self, replies: Replies, teacher: Replies | None = None) -> Usefulness:
        """Judge the replies of a model. Only prompts that it and its teacher answered count.

        Args:
            replies: its, from `ask`.
            teacher: those of the model that it is compared with; None compares with nothing.
        """
        found = Usefulness(questions=self._options.questions)
        for task in self._asks:
            theirs = teacher[task] if teacher is not None else [""] * len(replies[task])
            rows = [
                (at, mine, other)
                for at, (mine, other) in enumerate(zip(replies[task], theirs, strict=True))
                if mine is not None and other is not None
            ]
            own, others = [mine for _, mine, _ in rows], None if teacher is None else [other for _, _, other in rows]
            if task == "facts":
                asked = [self._questions[at] for at, _, _ in rows]
                found = msgspec.structs.replace(found, facts=facts.compare(asked, own, others))
            elif task == "instructions":
                told = [self._instructions[at] for at, _, _ in rows]
                found = msgspec.structs.replace(found, instructions=instructions.compare(told, own, others))
            else:
                found = msgspec.structs.replace(found, repetition=repetition.compare(own, others))
        return found
