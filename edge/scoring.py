"""From how likely several answers are to the likeliest one, and to all of them in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edge.arguments import check_choices
from edge.engine.generation import SharedPrompt
from edge.errors import EdgeError, UsageError
from edge.types import Chosen, Message, TokenLogprob

if TYPE_CHECKING:
    from edge.reply import Reply
    from edge.request import Request

__all__ = [
    "ORDERS",
    "ChoiceScore",
    "Order",
    "Scored",
    "ScoringWork",
    "classification_prompt",
    "in_order",
    "likeliest",
    "ranking_prompt",
    "scored",
]

Order: TypeAlias = Literal["sum", "mean"]
ORDERS: tuple[Order, ...] = ("sum", "mean")


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """How likely the model finds one continuation of a prompt.

    Attributes:
        text: the continuation.
        tokens: its tokens, each with its logprob behind the prompt and the tokens before it.
        end_logprob: how likely the answer ends there; None for a text that goes on (`chat=False`), or for a model without an
            end token.
    """

    text: str
    tokens: tuple[TokenLogprob, ...]
    end_logprob: float | None = None

    @property
    def n_tokens(self) -> int:
        """Number of its tokens, without the end."""
        return len(self.tokens)

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability of all its tokens, without the end: their sum."""
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def mean(self) -> float:
        """Logprob of a token on average, to compare continuations of different lengths."""
        return self.logprob / len(self.tokens) if self.tokens else 0.0

    @property
    def total(self) -> float:
        """Logprob of the whole answer: its tokens and its end."""
        return self.logprob + (self.end_logprob or 0.0)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of several continuations of one prompt, as `Assistant.score` returns them.

    Attributes:
        choices: the scores, in the order in which the continuations were given.
        by: what makes one better than another: "sum" is `ChoiceScore.total`, "mean" is `ChoiceScore.mean`.
        n_prompt: tokens of the prompt.
        n_computed: tokens of the prompt that had to be computed; the others were in the KV cache.
    """

    choices: tuple[ChoiceScore, ...]
    by: Order = "sum"
    n_prompt: int = 0
    n_computed: int = 0

    @property
    def best(self) -> ChoiceScore:
        """The best one; of equal ones the first."""
        return max(self.choices, key=self._value)

    @property
    def ranked(self) -> list[ChoiceScore]:
        """All of them, the best first."""
        return sorted(self.choices, key=self._value, reverse=True)

    @property
    def probabilities(self) -> dict[str, float]:
        """Share of each, from the values that order them; with "sum" its probability, given that it is one of them."""
        values = [self._value(one) for one in self.choices]
        weights = [math.exp(value - max(values)) for value in values]
        total = math.fsum(weights)
        return {one.text: weight / total for one, weight in zip(self.choices, weights, strict=True)}

    def __str__(self) -> str:
        return self.best.text

    def _value(self, choice: ChoiceScore) -> float:
        return choice.total if self.by == "sum" else choice.mean


class ScoringWork:
    """Many prompts with their continuations, as pairs for a `Batch`, and their scores from the replies to those.

    Args:
        items: a prompt and its continuations each; read as it goes.
        by: see `Scored`.
        request: what every continuation is scored with.
        read: returns the prompt of an item as it is scored; raises UsageError for one that cannot be.
    """

    def __init__(
        self,
        items: Iterable[tuple[Any, Sequence[str]]],
        by: Order,
        request: Request,
        read: Callable[[Any], str | list[Message]],
    ) -> None:
        self._items, self._by, self._request, self._read = items, by, request, read
        self._refused: list[tuple[int, EdgeError]] = []
        self._places: dict[int, tuple[int, int]] = {}  # of what runs: number of the item, and of its continuation
        self._waiting: dict[int, tuple[Sequence[str], dict[int, Reply]]] = {}

    def pairs(self) -> Iterator[tuple[int, tuple[str | list[Message], Request]]]:
        """Yield a key for each continuation, with its prompt and request."""
        key = 0
        for number, (prompt, choices) in enumerate(self._items):
            try:
                check_choices(choices)
                found = self._read(prompt)
            except UsageError as error:
                self._refused.append((number, error))
                continue
            self._waiting[number] = choices, {}
            shared = SharedPrompt()
            for index, choice in enumerate(choices):
                self._places[key] = number, index
                yield key, (found, replace(self._request, answer=choice, shared=shared))
                key += 1

    def add(self, key: int, reply: Reply) -> Iterator[tuple[int, Scored | EdgeError]]:
        """Take the reply of a continuation, which is over; yield items that are ready now: number, and scores or error."""
        number, index = self._places.pop(key)
        choices, replies = self._waiting[number]
        replies[index] = reply
        if len(replies) == len(choices):
            del self._waiting[number]
            try:
                yield number, scored(choices, in_order(replies), self._by)
            except EdgeError as error:
                yield number, error
        yield from self.rest()

    def rest(self) -> Iterator[tuple[int, EdgeError]]:
        """Yield the items that were refused since, with their errors."""
        while self._refused:
            yield self._refused.pop(0)


def in_order(replies: Mapping[int, Reply]) -> list[Reply]:
    """Return the replies by the numbers of their choices; they come as they are ready."""
    return [replies[number] for number in sorted(replies)]


def scored(choices: Sequence[str], replies: Sequence[Reply], by: Order) -> Scored:
    """Return the scores of several continuations.

    Args:
        choices: the texts, at least one.
        replies: of `Request.answer`, one each, which are over.
        by: see `Scored`.

    Raises:
        TimeoutError: one was stopped before it was over.
        EdgeError: one ended with this error.
    """
    for reply in replies:
        reply.wait()
    if any(reply.is_cancelled for reply in replies):
        raise TimeoutError("Scoring took longer than it was given.")
    scores = tuple(
        ChoiceScore(choice, tuple(reply.logprobs), reply.end_logprob.logprob if reply.end_logprob is not None else None)
        for choice, reply in zip(choices, replies, strict=True)
    )
    usages = [reply.usage for reply in replies]
    n_prompt = max(usage.n_prompt for usage in usages)
    return Scored(scores, by, n_prompt, sum(usage.n_computed for usage in usages))


def likeliest(choices: Sequence[str], replies: Sequence[Reply]) -> Chosen:
    """Return the likeliest of several answers.

    Args:
        choices: the answers, at least one.
        replies: of `Request.answer`, one each, which are over.

    Raises:
        TimeoutError: one was stopped before it was over.
    """
    if any(reply.is_cancelled for reply in replies):
        raise TimeoutError("The model took too long to choose.")
    logprobs = [_logprob(reply) for reply in replies]
    largest = max(logprobs)
    weights = [math.exp(one - largest) for one in logprobs]
    total = math.fsum(weights)
    shares = {choice: weight / total for choice, weight in zip(choices, weights, strict=True)}
    return Chosen(choices[logprobs.index(largest)], shares, min(1.0, math.exp(largest) * total))


def _logprob(reply: Reply) -> float:
    """Return the logarithm of the probability of a whole reply, its end included."""
    end = reply.end_logprob
    return math.fsum(one.logprob for one in reply.logprobs) + (end.logprob if end is not None else 0.0)


def classification_prompt(text: str, labels: Sequence[str], task: str = "", examples: Sequence[tuple[str, str]] = ()) -> str:
    """Return a prompt whose answer is a label. All but the text comes first, so that many texts share it.

    Args:
        text: what is classified.
        labels: the possible answers.
        task: what the labels say of a text, as a sentence; "" leaves that to the labels.
        examples: texts with their labels.
    """
    rows = [f"Text: {shown}\nAnswer: {label}\n" for shown, label in examples]
    head = f"{task.strip()} " if task.strip() else "Classify the text. "
    return "\n".join([f"{head}Answer with one of: {', '.join(labels)}.\n", *rows, f"Text: {text}"])


def ranking_prompt(history: Sequence[str], task: str = "") -> str:
    """Return a prompt whose answer is what somebody chooses next.

    Args:
        history: what the user chose so far, the oldest first.
        task: what the items are and what is asked, as a sentence.
    """
    rows = "\n".join(f"- {item}" for item in history)
    return f"{task.strip() or 'Say what this user chooses next.'} Answer with its name only.\n\nSo far:\n{rows}"
