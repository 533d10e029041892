"""One turn: from messages to the end of the reply, saved on the way, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from edge.device.cost import TurnMeter
from edge.engine.generation import Decoded, Event, Failed, Finished, Generation, Prefilled
from edge.errors import BackendError, CancelledError, ContextFullError, EdgeError
from edge.files import shipped
from edge.kv.answers import Answer
from edge.prompt.summary import Summariser
from edge.prompt.window import Window, fit
from edge.reply import Reply, ReplyState
from edge.types import FinishReason, Message, Sampling, Timing, Usage

if TYPE_CHECKING:
    from edge.conversation.reply_saver import ReplySaver
    from edge.conversation.tree import Status
    from edge.engine.scheduler import Scheduler
    from edge.kv.answers import AnswerCache
    from edge.names import CacheHint
    from edge.plan.receipt import Plan
    from edge.prompt.prompting import Prompting
    from edge.prompt.summary import Summary

__all__ = ["Turn"]

_SHORT_OF_MEMORY = " The window is smaller than usual for now, because the device is short of memory."


@dataclass(eq=False)
class Turn:
    """One turn.

    Args:
        scheduler: runs the model.
        prompting: makes the prompt.
        prompt: messages, or a text to continue.
        sampling: how tokens are chosen.
        window: what happens to old messages when the context window is full; see `edge.prompt.window.fit`.
        saver: saves the reply; None for replies outside a conversation.
        plan: the placement receipt, saved with the reply.
        summary: of messages that no longer fit, from an earlier turn.
        answers: earlier answers; None computes every reply.
        timeout_s: the reply is stopped this long after it was asked for, in seconds; None never.
        hint: where the KV cache of the turn stays.
        is_prefill_only: prefill what all prompts share that begin with these messages, the last of them open-ended, and
            generate nothing. It makes way for others.
        owner: of its blocks on the disk; None is the conversation of `saver`.
        namespace: of the KV cache: only what was computed in it is reused.

    Attributes:
        reply: the state of what the caller gets.
    """

    scheduler: Scheduler
    prompting: Prompting
    prompt: str | Sequence[Message]
    sampling: Sampling
    window: str = "drop"
    saver: ReplySaver | None = None
    plan: Plan | None = None
    summary: Summary | None = None
    answers: AnswerCache | None = None
    timeout_s: float | None = None
    hint: CacheHint = "disk"
    is_prefill_only: bool = False
    owner: str | None = None
    namespace: str = ""
    reply: ReplyState = field(init=False, default_factory=ReplyState)

    def __post_init__(self) -> None:
        self._n_ctx, self._full_n_ctx = self.scheduler.n_ctx, self.scheduler.full_n_ctx
        self._asked_at = time.perf_counter()
        self._meter = TurnMeter()
        self._tokenize_ms = 0.0
        self._messages: Sequence[Message] = ()  # of the prompt, once it is known what fits
        self._begun: list[int] = []  # tokens of the answer so far, if it is continued

    def start(self, at_end: Callable[[], None] = lambda: None) -> Reply:
        """Run the turn in a thread of its own.

        Args:
            at_end: called when it is over, just before the reply says so. Everything it refers to stays alive until then.
        """

        def run() -> None:
            reason: FinishReason = "error"
            error: EdgeError | None = BackendError("The turn broke down.", "Please report this.")
            try:
                reason, error = self._run()
            finally:
                at_end()
                self.reply.end(reason, error)

        threading.Thread(target=run, name="edge-turn", daemon=True).start()
        return Reply(self.reply)

    def _run(self) -> tuple[FinishReason, EdgeError | None]:
        """Answer, save, and return how the reply ended."""
        reply = self.reply
        try:
            finished = self._answer()
        except CancelledError:
            self._save_end("stopped")
            return "cancelled", None
        except Exception as failure:  # noqa: BLE001 (anything but an EdgeError is a bug; whoever waits must hear of it)
            if isinstance(failure, ContextFullError):
                failure = _with_models(failure, self.prompting.n_ctx_train)
                if self.saver is not None and not reply.pieces:
                    self.saver.take_back_question()
            self._save_end("failed")
            if isinstance(failure, EdgeError):
                return "error", failure
            error = BackendError(f"The turn broke down: {failure!r}.", "Please report this.")
            error.__cause__ = failure
            return "error", error
        reply.usage, reply.tokens, reply.held_back = finished.usage, finished.tokens, finished.held_back
        if finished.stopped_by not in self.prompting.template.stops:  # those are the model's own ways to end
            reply.stopped_by = finished.stopped_by
        queue_ms = max(0.0, finished.timing.queue_ms - self._tokenize_ms)
        reply.timing = replace(finished.timing, tokenize_ms=self._tokenize_ms, queue_ms=queue_ms)
        reply.cost = self._meter.read()
        if finished.tokens:
            before = self.saver.before if self.saver is not None else ""
            with contextlib.suppress(BackendError):  # the assistant was closed meanwhile
                self.prompting.remember_reply(before + reply.text, [*self._begun, *finished.tokens])
        if finished.reason == "repetition":
            reply.notices.append("The reply was stopped, because it only repeats itself.")
        is_empty = reply.stopped_by is not None and not reply.text
        if is_empty:
            reply.notices.append(f"There is no reply: the stop text {reply.stopped_by!r} came first.")
        self._save_end("stopped" if is_empty or finished.reason in ("cancelled", "repetition") else "complete", finished.reason)
        return finished.reason, None

    def _save_end(self, status: Status, reason: FinishReason | None = None) -> None:
        reply, saver = self.reply, self.saver
        if saver is None:
            return
        tokens = [] if reply.stopped_by is not None or (reply.text and not reply.tokens) else [*self._begun, *reply.tokens]
        record = {
            "usage": asdict(reply.usage),
            "tokens": tokens,  # so that the prompt after a restart matches the KV cache
            "finish_reason": reason,
            "timing": asdict(reply.timing),
            "cost": asdict(reply.cost),
            "held_back": reply.held_back,
            "plan": self.plan.to_dict() if self.plan is not None else None,
            "summary": asdict(self.summary) if self.summary is not None else None,
        }
        if self.hint in ("off", "memory"):
            record["cache"] = self.hint  # so that later turns, whose prompts contain this one, do not store it either
        saver.save_end(reply.text, status, record)
        reply.node = saver.node
        if saver.problem:
            reply.notices.append(f"This reply could not be saved. {saver.problem}")

    def _answer(self) -> Finished:
        tokens = self._encode_prompt()
        if self.is_prefill_only:
            return self._prefill(self.prompting.open_prefix(self._messages, tokens))
        self._tokenize_ms = (time.perf_counter() - self._asked_at) * 1000
        known = self.answers.find(tokens, self.sampling, self.namespace) if self.answers else None
        if known is not None:
            return self._repeat(known, len(tokens))
        finished = self._generate(tokens, self.sampling, self._show, self._boundaries(tokens))
        is_cut_short = finished.reason == "length" and finished.held_back  # the full window would have held more of it
        if self.answers and self.hint in ("disk", "keep") and not is_cut_short:
            answer = Answer(self.reply.text, finished.tokens, finished.reason, finished.timing.total_ms, finished.stopped_by)
            self.answers.add(tokens, self.sampling, answer, self._owner, self.namespace)
        return finished

    def _prefill(self, tokens: list[int]) -> Finished:
        """Prefill the prefix that later prompts will share. What is stored as a whole is stored at its end."""
        self._tokenize_ms = (time.perf_counter() - self._asked_at) * 1000
        if not tokens:
            return Finished("stop", Usage(), Timing(), ())
        shared = self.prompting.shared_end(self._messages, tokens)
        return self._generate(tokens, self.sampling, self._show, [shared] if 0 < shared < len(tokens) else ())

    @property
    def _owner(self) -> str:
        if self.owner is not None:
            return self.owner
        return self.saver.conversation_id if self.saver is not None else ""

    def _boundaries(self, tokens: list[int]) -> list[int]:
        """Return positions that later prompts are likely to share: the end of the system prompt, asked for by the first turn,
        and, for states that can only be stored as a whole, the last token but one (the last is computed for its logits).
        """
        is_whole = self.scheduler.wants_checkpoints
        is_first = not any(message.role == "assistant" for message in self._messages)
        shared = self.prompting.shared_end(self._messages, tokens) if is_first or is_whole else 0
        return sorted({end for end in (shared, len(tokens) - 1 if is_whole else 0) if 0 < end < len(tokens)})

    def _repeat(self, known: Answer, n_prompt: int) -> Finished:
        """Give an earlier answer again."""
        if known.text:
            self._show(Decoded(known.text))
        ms = (time.perf_counter() - self._asked_at) * 1000
        usage = Usage(n_prompt, n_prompt, len(known.tokens), saved_ms=known.total_ms, is_answer_cached=True)
        return Finished(known.reason, usage, Timing(first_token_ms=ms, total_ms=ms), known.tokens, stopped_by=known.stopped_by)

    def _show(self, event: Prefilled | Decoded) -> None:
        if isinstance(event, Prefilled):
            self.reply.progress = (event.done, event.total)
            return
        self.reply.is_repeating = event.is_suspect
        self.reply.write(event.text)
        if self.saver is not None and self.saver.is_due:
            self.saver.save_part(self.reply.text)
            self.reply.node = self.saver.node

    def _generate(
        self,
        tokens: list[int],
        sampling: Sampling,
        show: Callable[[Prefilled | Decoded], None],
        boundaries: Sequence[int] = (),
    ) -> Finished:
        """Have the engine answer a prompt; cancelling the reply cancels that."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        generation = Generation(
            tokens, sampling, events.put, self._owner, boundaries, asked_at=self._asked_at, hint=self.hint,
            namespace=self.namespace, priority="background" if self.is_prefill_only else "interactive",
            is_prefill_only=self.is_prefill_only,
        )  # fmt: skip
        self.reply.bind(generation.cancel)
        try:
            self.scheduler.submit(generation)
        except BackendError:
            if self.reply.is_cancelled:  # and the assistant closed meanwhile
                raise CancelledError("The reply was stopped.") from None
            raise
        while True:
            event = self._next_event(events)
            if isinstance(event, Finished):
                return event
            if isinstance(event, Failed):
                raise event.error
            show(event)

    def _next_event(self, events: queue.SimpleQueue[Event]) -> Event:
        """Wait for the engine, and stop the reply once its time is over."""
        reply, left = self.reply, None
        if self.timeout_s is not None and not reply.is_cancelled:
            left = max(0.0, self._asked_at + self.timeout_s - time.perf_counter())
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=left)
        reply.notices.append(f"The reply was stopped because it took longer than {self.timeout_s:g} seconds.")
        reply.cancel()
        return events.get()

    def _encode_prompt(self) -> list[int]:
        """Tokenise the messages that fit, and add a notice if some were dropped."""
        prompt, prompting, notices = self.prompt, self.prompting, self.reply.notices
        if isinstance(prompt, str):
            prompting.check_size(prompt, self._full_n_ctx)
            return prompting.tokenize(prompt, add_special=True, parse_special=True)
        for message in prompt:
            if message is prompt[-1] or message.role == "system":  # the others are dropped if they are too large
                prompting.check_size(message.content, self._full_n_ctx)
        tokens: list[int] = []

        self._begun = prompting.encode_reply(self.saver.before) if self.saver is not None and self.saver.before else []

        def note(text: str) -> None:
            if prompting.is_news(text, True):
                notices.append(text)

        def count(messages: Sequence[Message]) -> int:
            tokens[:] = prompting.encode(messages, None if self.is_prefill_only else note)
            tokens.extend(self._begun)
            return len(tokens)

        try:
            window = self._fit(prompt, count)
        except ContextFullError as error:
            if self._n_ctx == self._full_n_ctx:
                raise self._no_room(error) from None
            self._n_ctx = self._full_n_ctx  # memory is short, but this cannot be answered with less
            window = self._fit(prompt, count)
        self.summary = window.summary
        if window.notice and (self.saver is None or prompting.is_news(self._owner, window.dropped.stop)):
            notices.append(window.notice + (_SHORT_OF_MEMORY if self._n_ctx < self._full_n_ctx else ""))
        self._messages = window.messages
        return tokens  # of the last count, which is of window.messages

    def _no_room(self, error: ContextFullError) -> ContextFullError:
        if not self._begun:
            return error
        message = (
            f"This answer has {len(self._begun):,} tokens; the context window of {self._n_ctx:,} has no room to continue it."
        )
        return ContextFullError(message, "Ask for the rest in a new message.", needed=error.needed)

    def _fit(self, prompt: Sequence[Message], count: Callable[[Sequence[Message]], int]) -> Window:
        quarter = self._n_ctx // 4  # a reply reserves at most that
        return fit(
            prompt,
            n_ctx=self._n_ctx,
            reserve=quarter if self.sampling.max_tokens is None else min(self.sampling.max_tokens, quarter),
            count=count,
            count_one=self._count_one,
            policy=self.window,
            summarise=Summariser(self.prompting, self._n_ctx, self._generate_summary, self.reply.notices.append),
            summary=self.summary,
            n_ctx_train=self.prompting.n_ctx_train,
        )

    def _count_one(self, message: Message) -> int:
        """Count the tokens that a message adds to a prompt; of one that is far too large only so many that it is dropped."""
        return self.prompting.at_least(message.content, 4 * self._full_n_ctx) or self.prompting.count_one(message)

    def _generate_summary(self, tokens: list[int], sampling: Sampling) -> str:
        if self.is_prefill_only:
            raise CancelledError("Older messages are summarised when the next one is sent.")
        text: list[str] = []
        self._generate(tokens, sampling, lambda event: text.append(event.text) if isinstance(event, Decoded) else None)
        if self.reply.is_cancelled:
            raise CancelledError("The reply was stopped while older messages were being summarised.")
        return "".join(text)


def _with_models(error: ContextFullError, n_ctx_train: int) -> ContextFullError:
    """Return the error with a model of the catalogue that was trained for the window it takes, if this one was not."""
    if not n_ctx_train or error.needed <= n_ctx_train:
        return error
    from edge.catalog.entries import read_catalog

    shipped_file = shipped("catalog.toml")
    entries = read_catalog(shipped_file).values() if shipped_file is not None else ()
    able = sorted((entry.parameters or 0, entry.name) for entry in entries if (entry.context or 0) >= error.needed)
    why = f"This model was trained for {n_ctx_train:,} tokens"
    other = f"{why}; {able[0][1]} was for more (--context {error.needed})." if able else f"{why}."
    return ContextFullError(error.message, f"{error.hint} {other}", needed=error.needed)
