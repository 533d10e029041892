"""One turn: from messages to the end of the reply, saving on the way. Runs in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from edge.device.cost import TurnMeter
from edge.engine.generation import Decoded, Event, Failed, Finished, Generation, Prefilled
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, CancelledError, ContextFullError, EdgeError
from edge.kv.answers import Answer, AnswerCache
from edge.prompt.summary import Summariser, Summary
from edge.prompt.window import Window, fit
from edge.reply import Reply
from edge.types import FinishReason, Message, Sampling, Timing, Usage

if TYPE_CHECKING:
    from edge.conversation.reply_saver import ReplySaver
    from edge.conversation.tree import Status
    from edge.plan.receipt import Plan
    from edge.prompt.prompting import Prompting

__all__ = ["Turn", "start"]

_USUAL_TOKEN_BYTES = 4
_SHORT_OF_MEMORY = " The window is smaller than usual for now, because the device is short of memory."


class Turn:
    """One turn. Made, then given to `start`.

    Args:
        scheduler: who has the engine.
        prompting: makes the prompt.
        prompt: messages, or a text to go on writing after.
        sampling: how tokens are chosen.
        n_ctx: context window in tokens.
        full_n_ctx: what it is when the device has memory enough; for what does not fit otherwise.
        window: what happens to old messages when it is full.
        saver: saves the reply; None for replies outside a conversation.
        plan: the placement receipt, saved with the reply.
        summary: what an earlier turn put in place of messages that no longer fit.
        answers: what was answered before; None computes every reply.

    Attributes:
        reply: what the caller gets.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prompting: Prompting,
        prompt: str | Sequence[Message],
        sampling: Sampling,
        *,
        n_ctx: int,
        full_n_ctx: int,
        window: str,
        saver: ReplySaver | None = None,
        plan: Plan | None = None,
        summary: Summary | None = None,
        answers: AnswerCache | None = None,
    ) -> None:
        self.reply = Reply()
        self._answers = answers
        self._scheduler = scheduler
        self._prompting = prompting
        self._prompt = prompt
        self._sampling = sampling
        self._n_ctx = n_ctx
        self._full_n_ctx = full_n_ctx
        self._window = window
        self._saver = saver
        self._plan = plan
        self._summary = summary
        self._asked_at = time.perf_counter()
        self._meter = TurnMeter()
        self._tokenize_ms = 0.0
        self._messages: Sequence[Message] = ()  # of the prompt, once it is known what fits

    def run(self) -> tuple[FinishReason, EdgeError | None]:
        """Do all of it. Returns how the reply ended, which the caller tells it last."""
        reply = self.reply
        try:
            finished = self._generate()
        except CancelledError:
            self._save_end("stopped")
            return "cancelled", None
        except Exception as failure:  # noqa: BLE001 (what is no EdgeError is a bug; whoever waits must hear of it)
            self._save_end("failed")
            if isinstance(failure, EdgeError):
                return "error", failure
            error = BackendError(f"The turn broke down: {failure!r}.", "Please report this.")
            error.__cause__ = failure
            return "error", error
        reply.usage, reply.tokens, reply.held_back = finished.usage, finished.tokens, finished.held_back
        timing = finished.timing
        waited_ms = max(0.0, timing.queue_ms - self._tokenize_ms)
        reply.timing = replace(timing, tokenize_ms=self._tokenize_ms, queue_ms=waited_ms)
        reply.cost = self._meter.read()
        if finished.tokens:
            self._prompting.remember_reply(reply.text, finished.tokens)
        self._save_end("stopped" if finished.reason == "cancelled" else "complete")
        return finished.reason, None

    def _save_end(self, status: Status) -> None:
        reply, saver = self.reply, self._saver
        if saver is None:
            return
        record = {
            "usage": asdict(reply.usage),
            "tokens": list(reply.tokens),  # so that the prompt after a restart holds what is in the KV cache
            "timing": asdict(reply.timing),
            "cost": asdict(reply.cost),
            "held_back": reply.held_back,
            "plan": self._plan.to_dict() if self._plan is not None else None,
            "summary": asdict(self._summary) if self._summary is not None else None,
        }
        saver.save_end(reply.text, status, record)
        reply.node = saver.node
        if saver.problem:
            reply.notices.append(f"This reply could not be saved. {saver.problem}")

    def _generate(self) -> Finished:
        tokens = self._read_prompt()
        self._tokenize_ms = (time.perf_counter() - self._asked_at) * 1000
        known = self._answers.find(tokens, self._sampling) if self._answers else None
        if known is not None:
            return self._repeat(known, len(tokens))
        finished = self._run(tokens, self._sampling, self._show, self._boundaries(tokens))
        is_cut_short = finished.reason == "length" and finished.held_back  # a larger window would have held more of it
        if self._answers and not is_cut_short:
            answer = Answer(self.reply.text, finished.tokens, finished.reason, finished.timing.total_ms)
            self._answers.add(tokens, self._sampling, answer, self._owner)
        return finished

    @property
    def _owner(self) -> str:
        return self._saver.conversation_id if self._saver is not None else ""

    def _boundaries(self, tokens: list[int]) -> list[int]:
        """What later prompts are likely to share: the system prompt, known by the first turn; and where a state can only be
        kept as a whole, the question but for its last token, which has to be computed for its logits.
        """
        is_whole = self._scheduler.wants_checkpoints
        is_first = not any(message.role == "assistant" for message in self._messages)
        shared = self._prompting.shared_end(self._messages, tokens) if is_first or is_whole else 0
        return sorted({end for end in (shared, len(tokens) - 1 if is_whole else 0) if 0 < end < len(tokens)})

    def _repeat(self, known: Answer, n_prompt: int) -> Finished:
        """Give an answer that was given before."""
        if known.text:
            self._show(Decoded(known.text))
        ms = (time.perf_counter() - self._asked_at) * 1000
        usage = Usage(n_prompt, n_prompt, len(known.tokens), saved_ms=known.total_ms, is_answer_cached=True)
        return Finished(known.reason, usage, Timing(first_token_ms=ms, total_ms=ms), known.tokens)

    def _show(self, event: Prefilled | Decoded) -> None:
        if isinstance(event, Prefilled):
            self.reply.progress = (event.done, event.total)
            return
        self.reply._write(event.text)
        if self._saver is not None:
            self._saver.save_part(self.reply.text)
            self.reply.node = self._saver.node

    def _run(
        self,
        tokens: list[int],
        sampling: Sampling,
        show: Callable[[Prefilled | Decoded], None],
        boundaries: Sequence[int] = (),
    ) -> Finished:
        """Have the engine write, until it has finished; cancelling the reply cancels it."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        generation = Generation(tokens, sampling, events.put, self._owner, boundaries, asked_at=self._asked_at)
        self.reply._bind(generation.cancel)
        self._scheduler.submit(generation)
        while True:
            event = events.get()
            if isinstance(event, Finished):
                return event
            if isinstance(event, Failed):
                raise event.error
            show(event)

    def _read_prompt(self) -> list[int]:
        """The tokens to read: of what fits into the window, which is said where it is not everything."""
        prompting = self._prompting
        self._refuse_far_too_long(self._prompt if isinstance(self._prompt, str) else self._prompt[-1].content)
        if isinstance(self._prompt, str):
            return prompting.tokenize(self._prompt, add_special=True, parse_special=True)
        tokens: list[int] = []

        def count(messages: Sequence[Message]) -> int:
            tokens[:] = prompting.encode(messages, self._tell)
            return len(tokens)

        try:
            window = self._fit(count)
        except ContextFullError:
            if self._n_ctx == self._full_n_ctx:
                raise
            self._n_ctx = self._full_n_ctx  # short of memory, but this cannot be answered with less
            window = self._fit(count)
        self._summary = window.summary
        if window.notice and (self._saver is None or prompting.is_news(self._owner, window.dropped.stop)):
            self.reply.notices.append(window.notice + (_SHORT_OF_MEMORY if self._n_ctx < self._full_n_ctx else ""))
        self._messages = window.messages
        return tokens  # of the last count, which is of window.messages

    def _fit(self, count: Callable[[Sequence[Message]], int]) -> Window:
        """What of the messages fits into the window."""
        return fit(
            self._prompt,  # type: ignore[arg-type]  # a text does not come here
            n_ctx=self._n_ctx,
            reserve=self._reserve(),
            count=count,
            policy=self._window,
            count_one=self._prompting.count_one,
            summarise=Summariser(self._prompting, self._n_ctx, self._generate_aside, self.reply.notices.append),
            summary=self._summary,
        )

    def _generate_aside(self, tokens: list[int], sampling: Sampling) -> str:
        """Answer a prompt of our own, such as the request for a summary."""
        text: list[str] = []
        self._run(tokens, sampling, lambda event: text.append(event.text) if isinstance(event, Decoded) else None)
        if self.reply.is_cancelled:
            raise CancelledError("The reply was stopped while older messages were being summarised.")
        return "".join(text)

    def _refuse_far_too_long(self, text: str) -> None:
        """Before megabytes are tokenised in vain: no token stands for more bytes than the longest of the vocabulary.

        Raises:
            ContextFullError: the text cannot fit, however it is tokenised.
        """
        n_bytes = len(text.encode("utf-8", "surrogatepass"))
        if n_bytes <= self._full_n_ctx * _USUAL_TOKEN_BYTES:
            return
        n_least = n_bytes // self._prompting.tokenizer.longest_token
        if n_least > self._full_n_ctx:
            raise ContextFullError(
                f"This message has {n_bytes:,} bytes, which is {n_least:,} tokens at the very least. "
                f"The context window has {self._full_n_ctx:,}.",
                "Send a part of it.",
            )

    def _tell(self, notice: str) -> None:
        if self._prompting.is_news(notice, True):
            self.reply.notices.append(notice)

    def _reserve(self) -> int:
        """Tokens to keep free for the reply: what it may take, but never more than a quarter of the window."""
        quarter = self._n_ctx // 4
        return quarter if self._sampling.max_tokens is None else min(self._sampling.max_tokens, quarter)


def start(turn: Turn, at_end: Callable[[], None]) -> Reply:
    """Run a turn in a thread of its own.

    Args:
        turn: the turn.
        at_end: called when it is over, just before the reply says so. Whatever it holds on to stays alive until then.
    """

    def run() -> None:
        reason: FinishReason = "error"
        error: EdgeError | None = BackendError("The turn broke down.", "Please report this.")
        try:
            reason, error = turn.run()
        finally:
            at_end()
            turn.reply._end(reason, error)

    threading.Thread(target=run, name="edge-turn", daemon=True).start()
    return turn.reply
