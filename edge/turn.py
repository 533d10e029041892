"""One turn: from messages to the end of the reply, saving on the way. Runs in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import msgspec

from edge.device.cost import TurnMeter
from edge.engine.generation import Decoded, Event, Failed, Finished, Generation, Prefilled
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, CancelledError, ContextFullError, EdgeError, StorageError, UsageError
from edge.kv.answers import Answer, AnswerCache
from edge.prompt.window import Summary, Window, fit
from edge.reply import Reply
from edge.types import FinishReason, Message, Sampling, Timing, Usage

if TYPE_CHECKING:
    from edge.conversation.store import ConversationStore
    from edge.conversation.tree import Node, Status
    from edge.prompt.prompting import Prompting

__all__ = ["ReplySaver", "Turn", "newest_summary", "start"]

_SAVE_EVERY_S = 1.0
_USUAL_TOKEN_BYTES = 4
_SUMMARY_TOKENS = 256
_SHORT_OF_MEMORY = " The window is smaller than usual for now, because the device is short of memory."
_SUMMARY_SO_FAR = "Summary of what was said before:"
_SUMMARY_TASK = "Summarise this conversation in a few sentences. Keep names, numbers, decisions and open questions."


class ReplySaver:
    """Saves a reply while it is written, and its end.

    Args:
        store: where to.
        conversation_id: which conversation.
        question_id: the message that is answered.
        model: who answers.
        plan: the placement receipt as JSON values, kept with the reply.
        summary: what an earlier turn put in place of messages that no longer fit the window.
        fallback: the message that becomes the head again when nothing is said; None leaves it at the question.

    Attributes:
        summary: what stands for them now; kept with the reply for the next turn.
    """

    def __init__(
        self,
        store: ConversationStore,
        conversation_id: str,
        question_id: int,
        model: str,
        plan: dict[str, Any] | None,
        summary: Summary | None,
        fallback: int | None = None,
    ) -> None:
        self.conversation_id = conversation_id
        self.summary = summary
        self._store = store
        self._question_id = question_id
        self._model = model
        self._plan = plan
        self._fallback = fallback
        self._saved_at = time.monotonic()
        self._has_failed = False

    def keep_part(self, reply: Reply) -> None:
        """Save what is written so far, about once a second."""
        if not self._has_failed and time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self._save(reply, "partial", None)
            self._saved_at = time.monotonic()

    def keep_end(self, reply: Reply, status: Status) -> None:
        """Save the reply as it ended. A failure is told in its notices: what was said is still there to be read."""
        if not reply.text and status != "complete":
            self._go_back()  # nothing was said; the question stays, to be answered again
            return
        record = {
            "usage": asdict(reply.usage),
            "tokens": list(reply.tokens),  # so that the prompt after a restart holds what is in the KV cache
            "timing": asdict(reply.timing),
            "cost": asdict(reply.cost),
            "held_back": reply.held_back,
            "plan": self._plan,
            "summary": asdict(self.summary) if self.summary is not None else None,
        }
        self._save(reply, status, record)

    def _go_back(self) -> None:
        if self._fallback is not None:
            try:
                self._store.set_head(self.conversation_id, self._fallback)
            except (StorageError, UsageError):
                pass  # the disk fails or the conversation is gone; the reply tells of what matters then

    def _save(self, reply: Reply, status: Status, record: dict[str, Any] | None) -> None:
        try:
            if reply.node is None:
                reply.node = self._store.append(
                    self.conversation_id,
                    Message("assistant", reply.text),
                    parent=self._question_id,
                    status=status,
                    model=self._model,
                    record=record,
                )
            else:
                reply.node = self._store.update(reply.node.id, content=reply.text, status=status, record=record)
        except (StorageError, UsageError) as error:  # UsageError: somebody deleted the conversation meanwhile
            if not self._has_failed:
                reply.notices.append(f"This reply could not be saved. {error}")
            self._has_failed = True


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
        keeper: saves the reply; None for replies outside a conversation.
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
        keeper: ReplySaver | None = None,
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
        self._keeper = keeper
        self._asked_at = time.perf_counter()
        self._meter = TurnMeter()
        self._tokenize_ms = 0.0
        self._messages: Sequence[Message] = ()  # of the prompt, once it is known what fits

    def run(self) -> tuple[FinishReason, EdgeError | None]:
        """Do all of it. Returns how the reply ended, which the caller tells it last."""
        reply, keeper = self.reply, self._keeper
        try:
            finished = self._generate()
        except CancelledError:
            if keeper is not None:
                keeper.keep_end(reply, "stopped")
            return "cancelled", None
        except Exception as failure:  # noqa: BLE001 (what is no EdgeError is a bug; whoever waits must hear of it)
            if keeper is not None:
                keeper.keep_end(reply, "failed")
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
        if keeper is not None:
            keeper.keep_end(reply, "stopped" if finished.reason == "cancelled" else "complete")
        return finished.reason, None

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
        return self._keeper.conversation_id if self._keeper is not None else ""

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
        if self._keeper is not None:
            self._keeper.keep_part(self.reply)

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
        prompting, keeper = self._prompting, self._keeper
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
        if keeper is not None:
            keeper.summary = window.summary
        if window.notice and (keeper is None or prompting.is_news(keeper.conversation_id, window.dropped.stop)):
            self.reply.notices.append(window.notice + (_SHORT_OF_MEMORY if self._n_ctx < self._full_n_ctx else ""))
        self._messages = window.messages
        return tokens  # of the last count, which is of window.messages

    def _fit(self, count: Callable[[Sequence[Message]], int]) -> Window:
        """What of the messages fits into the window."""
        keeper = self._keeper
        return fit(
            self._prompt,  # type: ignore[arg-type]  # a text does not come here
            n_ctx=self._n_ctx,
            reserve=self._reserve(),
            count=count,
            policy=self._window,
            count_one=self._prompting.count_one,
            summarise=self._summarise,
            summary=keeper.summary if keeper is not None else None,
        )

    def _refuse_far_too_long(self, text: str) -> None:
        """Before megabytes are tokenised in vain: no token stands for more bytes than the longest of the vocabulary.

        Raises:
            ContextFullError: the text cannot fit, however it is tokenised.
        """
        n_bytes = len(text.encode("utf-8", "surrogatepass"))
        if n_bytes <= self._full_n_ctx * _USUAL_TOKEN_BYTES:
            return
        longest = self._scheduler.call(
            lambda backend: max(len(backend.token_bytes(token)) for token in range(backend.info.n_vocab))
        )
        n_least = n_bytes // max(1, longest)
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

    def _summarise(self, messages: Sequence[Message]) -> str:
        """Have the model itself write down what matters of messages that no longer fit, as many at a time as it can read."""
        room = self._n_ctx // 2
        summary, part, size = "", list[str](), 0
        for message in messages:
            line = f"{message.role}: {message.content}"
            n_line = len(self._prompting.tokenize(line))
            if part and size + n_line > room:
                summary, part, size = self._summarise_part(summary, part), [], 0
            part.append(line if n_line <= room else self._cut(message, line, n_line, room))
            size += min(n_line, room)
        return self._summarise_part(summary, part)

    def _cut(self, message: Message, line: str, n_tokens: int, room: int) -> str:
        """The beginning of a message that cannot be read as a whole; both the user and the model are told."""
        n_letters = len(line) * room // n_tokens
        whose = "of yours" if message.role == "user" else "of the model" if message.role == "assistant" else f"({message.role})"
        self.reply.notices.append(
            f"A message {whose} has {n_tokens:,} tokens, too many to be summarised as a whole: of its "
            f"{len(message.content):,} letters only about the first {n_letters:,} are. It stays in the conversation."
        )
        return f"{line[:n_letters]} [the rest of this message is left out]"

    def _summarise_part(self, summary: str, lines: Sequence[str]) -> str:
        so_far = f"{_SUMMARY_SO_FAR}\n{summary}\n\n" if summary else ""
        question = Message("user", so_far + "\n\n".join(lines) + f"\n\n{_SUMMARY_TASK}")
        tokens = self._prompting.encode([*self._prompting.system_message(""), question])
        sampling = Sampling(temperature=0, max_tokens=_SUMMARY_TOKENS, repeat_penalty=1.1)
        text: list[str] = []
        self._run(tokens, sampling, lambda event: text.append(event.text) if isinstance(event, Decoded) else None)
        if self.reply.is_cancelled:
            raise CancelledError("The reply was stopped while older messages were being summarised.")
        return "".join(text)


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


def newest_summary(nodes: Sequence[Node]) -> Summary | None:
    """What an earlier turn kept in its record. The store's file is input from outside, so its shape is checked."""
    for node in reversed(nodes):
        kept = node.record.get("summary")
        if kept is not None:
            try:
                return msgspec.convert(kept, Summary)
            except msgspec.ValidationError:
                return None  # then the summary is written anew
    return None
