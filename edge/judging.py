"""What a loaded model finds likely: the part of `Assistant` that generates nothing, and the calls that all parts share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.arguments import asked, check_choices, check_messages, check_number
from edge.batch import Batch
from edge.engine.generation import SharedPrompt
from edge.errors import EdgeError, UsageError
from edge.request import Request, RequestOptions
from edge.scoring import ORDERS, ScoringWork, classification_prompt, in_order, likeliest, ranking_prompt, scored
from edge.types import Message

if TYPE_CHECKING:
    from edge.conversation.tree import Node
    from edge.names import CacheHint, Priority
    from edge.reply import Reply
    from edge.scoring import Order, Scored
    from edge.turns import Turns
    from edge.types import Chosen

    Prompt = Iterable[Message | Node | Mapping[str, object]]

__all__ = ["Judging"]

_FILLED = 4  # continuations for each sequence of the engine, so that its passes are full


class Judging:
    """See the module. `Assistant` sets the turns."""

    _turns: Turns

    def choose(
        self,
        prompt: str | Prompt,
        choices: Sequence[str],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Chosen:
        """Return which of several answers is the likeliest, and how likely each is: `ai.choose("Spam? ...", ["yes", "no"])`.

        Nothing is generated: the model says how likely each answer is as a whole, its end included. The prompt is prefilled
        once, and no model thinks first. The prompt should name the answers, since a model that would say something else has to
        choose, too; see `Chosen.total`.

        Args:
            prompt: as in `generate`.
            choices: the answers, at least one, as the model would write them.
            timeout_s, priority, cache_namespace: as in `generate`.
            cache: as in `generate`; None is "memory", since an answer that is only scored is not worth a file.

        Raises:
            UsageError: there is no prompt or answer, two answers are the same, or an argument has the wrong type.
            TimeoutError: it took longer than timeout_s.
            EdgeError: as `generate`, and what the replies raise.
        """
        replies: dict[int, Reply] = {}
        for number, reply in self._score(prompt, choices, timeout_s, priority, cache, cache_namespace):
            reply.wait()
            replies[number] = reply
        return likeliest(choices, in_order(replies))

    async def achoose(
        self,
        prompt: str | Prompt,
        choices: Sequence[str],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Chosen:
        """Choose as `choose` does, without blocking the event loop."""
        replies: dict[int, Reply] = {}
        async for number, reply in self._score(prompt, choices, timeout_s, priority, cache, cache_namespace):
            await reply
            replies[number] = reply
        return likeliest(choices, in_order(replies))

    def score(
        self,
        prompt: str | Prompt,
        choices: Sequence[str],
        *,
        by: Order = "sum",
        chat: bool = True,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Scored:
        """Return how likely each of several continuations is, token by token: `ai.score("The capital of France?", ["Paris"])`.

        Nothing is generated. The prompt is prefilled once, and the continuations are computed side by side.

        Args:
            prompt: as in `generate`; with `chat=False` a text, as in `complete`.
            choices: the continuations, at least one: answers as the model would write them, or with `chat=False` texts that
                follow the prompt as they are, with their blank in front.
            by: what makes one better than another: "sum" is the probability of the whole answer, its end included; "mean" that
                of a token on average, for continuations of different lengths.
            chat: put the prompt into the chat template. False scores a plain text, without its end.
            timeout_s, priority, cache, cache_namespace: as in `choose`.

        Raises:
            UsageError: there is no prompt or continuation, two are the same, or an argument has the wrong type.
            TimeoutError: it took longer than timeout_s.
            EdgeError: as `generate`, and what the replies raise.
        """
        _check_order(by)
        replies = dict(self._score(prompt, choices, timeout_s, priority, cache, cache_namespace, chat=chat))
        return scored(choices, in_order(replies), by)

    async def ascore(
        self,
        prompt: str | Prompt,
        choices: Sequence[str],
        *,
        by: Order = "sum",
        chat: bool = True,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Scored:
        """Score as `score` does, without blocking the event loop."""
        _check_order(by)
        running = self._score(prompt, choices, timeout_s, priority, cache, cache_namespace, chat=chat)
        replies = {number: reply async for number, reply in running}
        return scored(choices, in_order(replies), by)

    def classify(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        task: str = "",
        examples: Sequence[tuple[str, str]] = (),
        priority: Priority = "background",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> list[Scored]:
        """Return how well each label fits each text: `ai.classify(reviews, ["good", "bad"])[0].best.text`.

        Args:
            texts: what is classified, several at a time.
            labels: the possible answers, as the model would write them.
            task: what they say of a text: "Is the review good or bad?".
            examples: texts with their labels, which come before each text and are prefilled once.
            priority, cache, cache_namespace: as in `score_batch`.

        Raises:
            UsageError: there is no label, two are the same, an example has another one, or an argument has the wrong type.
            EdgeError: the first error of a text.
        """
        items = _to_classify(texts, labels, task, examples)
        found = dict(self.score_batch(items, priority=priority, cache=cache, cache_namespace=cache_namespace))
        return [_or_raise(found[number]) for number in range(len(items))]

    def rank(
        self,
        history: Sequence[str],
        items: Sequence[str],
        *,
        task: str = "",
        by: Order = "mean",
        timeout_s: float | None = None,
        priority: Priority = "interactive",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Scored:
        """Return how likely a user chooses each item next: `ai.rank(["Dune", "Solaris"], ["Ubik", "Emma"]).ranked`.

        Args:
            history: what the user chose so far, the oldest first.
            items: what is ranked.
            task: what they are and what is asked: "Say which book the reader takes next."
            by: as in `score`; names differ in length, so it is "mean" here.
            timeout_s, priority, cache, cache_namespace: as in `score`.

        Raises:
            UsageError, TimeoutError, EdgeError: as `score`.
        """
        prompt = ranking_prompt(history, task)
        return self.score(
            prompt, items, by=by, timeout_s=timeout_s, priority=priority, cache=cache, cache_namespace=cache_namespace
        )

    async def aclassify(
        self,
        texts: Sequence[str],
        labels: Sequence[str],
        *,
        task: str = "",
        examples: Sequence[tuple[str, str]] = (),
        priority: Priority = "background",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> list[Scored]:
        """Classify as `classify` does, without blocking the event loop. Cancelling it stops what runs."""
        items = _to_classify(texts, labels, task, examples)
        request = _scoring_request(None, priority, cache)
        work = ScoringWork(items, "sum", request, lambda prompt: self._scorable(prompt, chat=True))
        found: dict[int, Scored | EdgeError] = {}
        async for key, reply in self._score_batch(work, self._n_filled, cache_namespace):
            found.update(work.add(key, reply))
        found.update(work.rest())
        return [_or_raise(found[number]) for number in range(len(items))]

    async def arank(
        self,
        history: Sequence[str],
        items: Sequence[str],
        *,
        task: str = "",
        by: Order = "mean",
        timeout_s: float | None = None,
        priority: Priority = "interactive",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Scored:
        """Rank as `rank` does, without blocking the event loop."""
        prompt = ranking_prompt(history, task)
        return await self.ascore(
            prompt, items, by=by, timeout_s=timeout_s, priority=priority, cache=cache, cache_namespace=cache_namespace
        )

    def score_batch(
        self,
        items: Iterable[tuple[str | Prompt, Sequence[str]]],
        *,
        by: Order = "sum",
        chat: bool = True,
        n_at_once: int | None = None,
        priority: Priority = "background",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Iterator[tuple[int, Scored | EdgeError]]:
        """Score the continuations of many prompts, in the background. What prompts have in common is prefilled once.

        Args:
            items: a prompt and its continuations each, as of `score`; read as it goes.
            by, chat, cache, cache_namespace: as in `score`.
            n_at_once: continuations at work or waiting at the same time; None is four for each sequence of the engine.
            priority: as in `generate`.

        Yields:
            The number of an item and its scores, as they are ready; the error of one that failed.

        Raises:
            UsageError: an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        _check_order(by)
        n_running = self._n_filled if n_at_once is None else check_number("n_at_once", n_at_once)
        work = ScoringWork(items, by, _scoring_request(None, priority, cache), lambda prompt: self._scorable(prompt, chat=chat))
        return self._scored_items(work, n_running, cache_namespace)

    def _scored_items(
        self, work: ScoringWork, n_running: int, cache_namespace: str | None
    ) -> Iterator[tuple[int, Scored | EdgeError]]:
        for key, reply in self._score_batch(work, n_running, cache_namespace):
            yield from work.add(key, reply)
        yield from work.rest()

    def _score_batch(self, work: ScoringWork, n_running: int, cache_namespace: str | None) -> Batch:
        """Return the continuations of the work as a batch, for `for` and `async for`."""
        self._turns.check_open()
        return Batch(work.pairs(), lambda pair: self._answer(pair[0], pair[1], cache_namespace), n_running)

    def _score(
        self,
        prompt: str | Prompt,
        choices: Sequence[str],
        timeout_s: float | None,
        priority: Priority,
        cache: CacheHint | None,
        cache_namespace: str | None,
        *,
        chat: bool = True,
    ) -> Batch:
        """Have the engine score each answer, a few at a time."""
        check_choices(choices)
        found, request = self._scorable(prompt, chat=chat), _scoring_request(timeout_s, priority, cache)
        request = replace(request, shared=SharedPrompt())
        began, timeout_s = time.monotonic(), request.timeout_s

        def start(choice: str) -> Reply:
            left_s = None if timeout_s is None else max(1e-3, began + timeout_s - time.monotonic())
            return self._answer(found, replace(request, answer=choice, timeout_s=left_s), cache_namespace)

        self._turns.check_open()
        return Batch(enumerate(choices), start, self._n_filled)

    @property
    def _n_filled(self) -> int:
        """Continuations at work or waiting at the same time, unless told otherwise."""
        return _FILLED * self._turns.n_seq

    def _scorable(self, prompt: str | Prompt, *, chat: bool) -> str | list[Message]:
        """Return the prompt of continuations: messages, or a text as it is."""
        if chat:
            return self._with_system(prompt)
        if not isinstance(prompt, str) or not prompt:
            raise UsageError("Without the chat template, a prompt is a text.", "Give a text of at least one character.")
        return prompt

    def _answer(self, prompt: str | Sequence[Message], request: Request, cache_namespace: str | None) -> Reply:
        turns = self._turns
        turns.check_cache(request.cache)
        request = replace(self._grounded(prompt, request), prompt=prompt, namespace=turns.namespace_of(cache_namespace))
        return turns.start(turns.make(request), self)

    def _grounded(self, prompt: str | Sequence[Message], request: Request) -> Request:
        """Return a request with the search for passages of its last message, if it names collections."""
        if request.docs is None or request.grounding is not None:
            return request
        if isinstance(prompt, str):
            raise UsageError("A text that is only continued rests on no documents.", "Use generate, or leave docs out.")
        questions = [message.content for message in prompt if message.role == "user"]
        if prompt[-1].role != "user":
            return request
        before = questions[-2] if len(questions) > 1 else ""
        grounding = self._turns.ground(request.docs, questions[-1], before=before, is_first=len(questions) == 1)
        return replace(request, grounding=grounding)

    def _with_system(self, prompt: str | Prompt) -> list[Message]:
        """Return the messages of a prompt, with the assistant's system prompt if they have none."""
        messages = check_messages(prompt)
        return messages if messages[0].role == "system" else [*self._turns.prompting.system_message(""), *messages]


def _or_raise(found: Scored | EdgeError) -> Scored:
    if isinstance(found, EdgeError):
        raise found
    return found


def _to_classify(
    texts: Sequence[str], labels: Sequence[str], task: str, examples: Sequence[tuple[str, str]]
) -> list[tuple[str, Sequence[str]]]:
    """Return a prompt and its continuations for each text."""
    check_choices(labels)
    if isinstance(texts, str):
        raise UsageError("classify takes several texts, not one.", "Put it into a list: [text]")
    if not all(label in labels for _, label in examples):
        raise UsageError("An example has a label that is none of the labels.", "Give every example one of them.")
    return [(classification_prompt(text, labels, task, examples), labels) for text in texts]


def _scoring_request(timeout_s: float | None, priority: Priority, cache: CacheHint | None) -> Request:
    """Return what every continuation is scored with. What is only scored is not worth a file."""
    options: RequestOptions = {"timeout_s": timeout_s, "priority": priority, "cache": cache, "think": False}
    request = asked(None, options)
    return replace(request, cache=request.cache or "memory", n_logprobs=0)


def _check_order(by: object) -> None:
    if by not in ORDERS:
        raise UsageError(f"by cannot be {by!r}.", f"Use {' or '.join(map(repr, ORDERS))}.")
