"""One turn: from messages to the end of the reply, saved on the way, in a thread of its own."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from edge.constraint import Constraint
from edge.device.cost import TurnMeter
from edge.engine.generation import Decoded, Event, Failed, Finished, Generation, Prefilled
from edge.engine.scripted import ScriptedSampler
from edge.errors import (
    BackendError,
    BackendUnavailableError,
    CancelledError,
    ConstraintError,
    ContextFullError,
    EdgeError,
    UnsupportedError,
)
from edge.events import Progress
from edge.files import shipped
from edge.grounded import Grounded
from edge.kv.answers import Answer
from edge.prompt.summary import Summariser
from edge.prompt.window import Window, fit
from edge.reply import Reply
from edge.reply_reader import ReplyReader
from edge.reply_state import ReplyState
from edge.structured.check import notice_of_end
from edge.structured.compiler import Compiler
from edge.structured.shapes import shape_of_constraint
from edge.structured.triggered import TriggeredMatcher, Watch
from edge.thinking import think_and_answer
from edge.tool_runner import ToolRunner
from edge.types import FinishReason, Message, Sampling, Timing, Usage

if TYPE_CHECKING:
    from edge.backends.base import Sampler
    from edge.conversation.reply_saver import ReplySaver
    from edge.conversation.tree import Status
    from edge.engine.constraint import Matcher
    from edge.engine.scheduler import Scheduler
    from edge.kv.answers import AnswerCache
    from edge.plan.receipt import Plan
    from edge.prompt.prompting import Prompting
    from edge.prompt.reply_parser import ReplyParser
    from edge.prompt.summary import Summary
    from edge.request import Request
    from edge.structured.compiler import Compiled

__all__ = ["Turn"]

T = TypeVar("T")
_SHORT_OF_MEMORY = " The window is smaller than usual for now, because the device is short of memory."


@dataclass(eq=False)
class Turn:
    """One turn.

    Args:
        scheduler: runs the model.
        prompting: makes the prompt.
        request: what is asked.
        saver: saves the reply; None for replies outside a conversation.
        plan: the placement receipt, saved with the reply.
        summary: of messages that no longer fit, from an earlier turn.
        answers: earlier answers; None computes every reply.
        compiler: compiles constraints for all turns of the model; None makes one.
        model: name of the model.

    Attributes:
        reply: the state of what the caller gets.
    """

    scheduler: Scheduler
    prompting: Prompting
    request: Request
    saver: ReplySaver | None = None
    plan: Plan | None = None
    summary: Summary | None = None
    answers: AnswerCache | None = None
    compiler: Compiler | None = None
    model: str = ""
    reply: ReplyState = field(init=False, default_factory=ReplyState)

    def __post_init__(self) -> None:
        self._n_ctx, self._full_n_ctx = self.scheduler.n_ctx, self.scheduler.full_n_ctx
        self._asked_at = time.perf_counter()
        self._meter = TurnMeter()
        self._tokenize_ms = 0.0
        self._messages: Sequence[Message] = ()  # of the prompt, once it is known what fits
        self._tokens: list[int] = []  # of the newest round's prompt
        self._begun: list[int] = []  # tokens of the answer so far, if it is continued
        self._compiled: Compiled | None = None
        self._constraint: Constraint | None = None  # of the newest round
        self._n_rounds = 0  # of tool calls
        if self.request.constraint is not None:
            self.reply.shape = self.request.shape or shape_of_constraint(self.request.constraint)
        self._prompt = self.request.prompt  # of the newest round
        self._shared = self.request.shared  # until the first generation of the reply
        self._round = ReplyReader(self.reply)
        self._generation: Generation | None = None  # the newest one
        self.reply.answered_by = self.model
        weights = self.plan.artifact.path if self.plan is not None else ""
        self._grounded = Grounded(self.request, self.reply, self.saver, f"{self.model} {weights}")

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
            self._round.end()
            self._save_end("stopped")
            return "cancelled", None
        except Exception as failure:  # noqa: BLE001 (anything but an EdgeError is a bug; whoever waits must hear of it)
            if isinstance(failure, ContextFullError):
                failure = _with_models(failure, self.prompting.n_ctx_train)
            is_refused = isinstance(failure, ContextFullError | ConstraintError) and not reply.pieces and not reply.tool_calls
            if is_refused and self.saver is not None:
                self.saver.take_back_question()
            self._round.end()
            self._save_end("failed")
            if isinstance(failure, EdgeError):
                return "error", failure
            error = BackendError(f"The turn broke down: {failure!r}.", "Please report this.")
            error.__cause__ = failure
            return "error", error
        self._note_end(finished)
        if finished.reason == "repetition":
            reply.note("The reply was stopped, because it only repeats itself.")
        is_empty = reply.stopped_by is not None and not self._round.text
        if is_empty:
            reply.note(f"There is no reply: the stop text {reply.stopped_by!r} came first.")
        self._grounded.end(finished, self._round)
        self._check_end(finished)
        self._save_end("stopped" if is_empty or finished.reason in ("cancelled", "repetition") else "complete", finished.reason)
        return finished.reason, None

    def _note_end(self, finished: Finished) -> None:
        """Take over what a round took, and remember its tokens."""
        reply = self.reply
        reply.usage, reply.tokens, reply.held_back = finished.usage, finished.tokens, finished.held_back
        reply.is_partial = finished.is_partial
        reply.end_logprob = finished.end
        if finished.stopped_by not in self.prompting.template.stops:  # those are the model's own ways to end
            reply.stopped_by = finished.stopped_by
        queue_ms = max(0.0, finished.timing.queue_ms - self._tokenize_ms)
        reply.timing = replace(finished.timing, tokenize_ms=self._tokenize_ms, queue_ms=queue_ms)
        reply.cost = self._meter.read()
        if finished.tokens and self._round.is_plain:
            before = self.saver.before if self.saver is not None else ""
            with contextlib.suppress(BackendError):  # the assistant was closed meanwhile
                self.prompting.remember_reply(before + self._round.text, [*self._begun, *finished.tokens])

    def _save_end(self, status: Status, reason: FinishReason | None = None) -> None:
        reply, saver, current = self.reply, self.saver, self._round
        if saver is None:
            return
        is_unknown = reply.stopped_by is not None or not current.is_plain or (current.text and not reply.tokens)
        tokens = [] if is_unknown else [*self._begun, *reply.tokens]
        record: dict[str, Any] = {
            "usage": asdict(reply.usage),
            "tokens": tokens,  # so that the prompt after a restart matches the KV cache
            "finish_reason": reason,
            "timing": asdict(reply.timing),
            "cost": asdict(reply.cost),
            "held_back": reply.held_back,
            "plan": self.plan.to_dict() if self.plan is not None else None,
            "summary": asdict(self.summary) if self.summary is not None else None,
            "answered_by": reply.answered_by,
        }
        if reply.escalated:
            record["escalated"] = reply.escalated
        record |= self._grounded.record()
        if self.request.mix:
            record["lora"] = {self.scheduler.adapters[number].name: scale for number, scale in self.request.mix}
        if self.request.cache in ("off", "memory"):
            record["cache"] = self.request.cache  # so that later turns, whose prompts contain this one, do not store it either
        saver.save_end(current.text, status, record, reasoning=current.reasoning, tool_calls=current.calls)
        reply.node = saver.node or reply.node
        if saver.problem:
            reply.note(f"This reply could not be saved. {saver.problem}")

    def _answer(self) -> Finished:
        """Answer, and run the tools that the model calls until it calls none."""
        request, reply = self.request, self.reply
        self._ground()
        known = self._grounded.known
        if known is not None:
            return self._repeat(Answer(known.text, (), known.reason, known.total_ms), 0)
        finished = self._answer_round()
        runner = ToolRunner(
            request.options.tools,
            request.approve,
            limits=request.limits,
            is_cancelled=lambda: reply.is_cancelled or self._left_s() == 0,
        )
        while finished.reason == "stop" and runner.can_run(self._round.calls):
            if self._n_rounds == request.limits.max_rounds:
                reply.note(f"The model called tools {self._n_rounds + 1} times in a row; the reply was stopped there.")
                break
            self._n_rounds += 1
            self._note_end(finished)
            self._save_end("complete", finished.reason)
            self._go_on(runner.run(self._round.calls, reply.emit))
            if reply.is_cancelled:
                raise CancelledError("The reply was stopped.")
            finished = self._answer_round()
        return finished

    def _answer_round(self) -> Finished:
        """Answer the newest round's prompt, whoever does."""
        return self._answer_once()

    def _ground(self) -> None:
        """Make passages of documents part of the last message."""
        self._prompt = self._grounded.ground(
            self._prompt, self._n_ctx, lambda text: len(self.prompting.tokenize(text)), self._count_one
        )

    def _go_on(self, results: Sequence[Message]) -> None:
        """Save the results of tool calls, and make them and the calls part of the prompt."""
        assert not isinstance(self._prompt, str)
        said = self._round.message()
        if self.saver is not None and self.saver.before:
            said = replace(said, content=self.saver.before + said.content)
        self._prompt = [*self._prompt, said, *results]
        if self.saver is not None:
            self.saver = self.saver.follow(results)
            if self.saver is None:
                self.reply.note("The rest of this reply cannot be saved.")
        self._round = ReplyReader(self.reply)

    def _answer_once(self) -> Finished:
        """Answer the newest round's prompt."""
        matcher = self._match()
        request, tokens = self.request, self._encode_prompt()
        if request.is_prefill_only:
            if request.may_end and self.scheduler.can_rewind:
                return self._prefill(tokens)
            return self._prefill(self.prompting.open_prefix(self._messages, tokens, request.options))
        self._tokens, self._tokenize_ms = tokens, (time.perf_counter() - self._asked_at) * 1000
        if request.answer is not None:
            return self._score(tokens, request.answer)
        if not isinstance(self._prompt, str):
            self._round = self._new_reader(self.prompting.reply_parser(tokens, request.options))
        answers = self.answers if request.n_logprobs is None else None  # which are not stored
        constraint = self._constraint if matcher is not None else None
        known = answers.find(tokens, request.sampling, request.namespace, constraint, request.mix) if answers else None
        if known is not None:
            return self._repeat(known, len(tokens))
        finished = self._think(tokens, matcher)
        self._round.end()
        is_cut_short = finished.reason == "length" and finished.held_back  # the full window would have held more of it
        if answers and request.cache not in ("off", "memory") and not is_cut_short and not finished.is_partial:
            answer = Answer(self._round.raw, finished.tokens, finished.reason, finished.timing.total_ms, finished.stopped_by)
            answers.add(tokens, request.sampling, answer, self._owner, request.namespace, constraint, request.mix)
        return finished

    def _think(self, tokens: list[int], matcher: Matcher | None) -> Finished:
        """Have the engine answer a prompt, perhaps behind a thought."""
        if matcher is not None:
            for token in self._begun:
                matcher.accept(token)
        shown = self.prompting.markers(self.request.options) if self._round.parser is not None else frozenset[int]()

        def generate(tokens: list[int], sampling: Sampling, boundaries: Sequence[int], matcher: Matcher | None) -> Finished:
            return self._generate(tokens, sampling, self._show, boundaries, matcher or self._watch_calls(), shown=shown)

        return think_and_answer(generate, tokens, self.request, self.prompting, self._round, self._boundaries(tokens), matcher)

    def _match(self) -> Matcher | None:
        """Compile what the reply has to be, here and not on the engine thread, which others need."""
        wanted, request = self.request.constraint, self.request
        if wanted is None and self._n_rounds == 0 and not request.is_prefill_only and not isinstance(self._prompt, str):
            wanted = self.prompting.forced_call(request.options)
        if wanted is None:
            return None
        compiled = self._compile(wanted)
        if compiled.ignored and self._n_rounds == 0:
            self.reply.note(f"Not enforced while this reply is generated: {', '.join(compiled.ignored)}.")
        self._compiled = compiled if request.constraint is not None else None
        self._constraint = wanted
        return compiled.matcher()

    def _watch_calls(self) -> Matcher | None:
        """Return what holds the tool calls of a reply to their schemas, wherever they begin; None where nothing does."""
        if self.request.constraint is not None or isinstance(self._prompt, str):
            return None
        held = self.prompting.held_call(self.request.options)
        if held is None:
            return None
        try:
            compiled = (self.compiler or Compiler(self.prompting.tokenizer)).compile(Constraint.lark(held.grammar))
        except (ConstraintError, BackendUnavailableError, UnsupportedError):
            return None  # it can be called all the same, and what is wrong is for the tool to say
        thinking = self.prompting.template.thinking
        words = (thinking.opening.encode(), thinking.closing.encode()) if thinking is not None else None
        watch = Watch(re.compile(held.opening.encode()), held.longest, held.is_first, words, self._round.is_thinking)
        matcher = TriggeredMatcher(watch, compiled.matcher_behind, self.prompting.tokenizer)
        matcher.resume(self._begun)
        return matcher

    def _compile(self, wanted: Constraint) -> Compiled:
        """Compile a constraint. The error of a call that has to be made names the tool."""
        compiler, options = self.compiler or Compiler(self.prompting.tokenizer), self.request.options
        try:
            return compiler.compile(wanted)
        except ConstraintError:
            for tool in options.tools if self.request.constraint is None else ():
                alone = self.prompting.forced_call(replace(options, tools=(tool,), tool_choice=tool.name))
                try:
                    compiler.compile(alone) if alone is not None else None
                except ConstraintError as error:
                    message = f"No call of the tool {tool.name} can be enforced: {error.message}"
                    raise ConstraintError(message, "Correct or simplify its parameters.") from None
            raise

    def _check_end(self, finished: Finished) -> None:
        """Add a notice if the text is not what its constraint asks for."""
        if self._compiled is None:
            return
        text = (self.saver.before if self.saver is not None else "") + self._round.text
        notice = notice_of_end(
            self._compiled.constraint, text, finished.reason, is_partial=finished.is_partial,
            stopped_by=finished.stopped_by, ignored=self._compiled.ignored,
        )  # fmt: skip
        if notice:
            self.reply.note(notice)

    def _score(self, tokens: list[int], answer: str) -> Finished:
        """Have the engine say how likely an answer is, with the token that ends it, behind a thought that is empty."""
        if not isinstance(self._prompt, str) and self.prompting.reply_parser(tokens).is_thinking:
            tokens = [*tokens, *self.prompting.closing_of_thought()[1]]
        script = self.prompting.encode_reply(answer)
        end = None if isinstance(self._prompt, str) else self.prompting.end_token  # a text without a template may go on
        n_most = len(script) if end is None else None
        sampler = ScriptedSampler(script if end is None else [*script, end])
        sampling = Sampling(max_tokens=n_most, max_repeats=0)
        finished = self._generate(tokens, sampling, self._show, self._boundaries(tokens), sampler=sampler)
        if len(finished.tokens) < len(script) and finished.reason == "length":
            n = len(tokens) + len(script)
            raise ContextFullError(
                f"The prompt and this answer have {n:,} tokens, and the context window holds {self.scheduler.n_ctx:,}.",
                "Shorten the prompt, or load the model with a larger context.",
                needed=n + 1, n_prompt=n, n_ctx=self.scheduler.n_ctx,
            )  # fmt: skip
        return finished

    def _prefill(self, tokens: list[int]) -> Finished:
        """Prefill the prefix that later prompts will share. What is stored as a whole is stored at its end."""
        self._tokenize_ms = (time.perf_counter() - self._asked_at) * 1000
        if not tokens:
            return Finished("stop", Usage(), Timing(), ())
        shared = self.prompting.shared_end(self._messages, tokens, self.request.options)
        return self._generate(tokens, self.request.sampling, self._show, [shared] if 0 < shared < len(tokens) else ())

    @property
    def _owner(self) -> str:
        owner = self.request.owner
        if owner is not None:
            return owner
        return self.saver.conversation_id if self.saver is not None else ""

    def _boundaries(self, tokens: list[int]) -> list[int]:
        """Return positions that later prompts are likely to share: the end of the system prompt, asked for by the first turn,
        and, for states that can only be stored as a whole and for prompts of several replies, the last token but one (the last
        is computed for its logits).
        """
        is_whole = self.scheduler.wants_checkpoints
        ends_a_block = is_whole or self.request.shared is not None
        is_first = not any(message.role == "assistant" for message in self._messages)
        shared = self.prompting.shared_end(self._messages, tokens, self.request.options) if is_first or is_whole else 0
        return sorted({end for end in (shared, len(tokens) - 1 if ends_a_block else 0) if 0 < end < len(tokens)})

    def _repeat(self, known: Answer, n_prompt: int) -> Finished:
        """Give an earlier answer again."""
        self.reply.emit(Progress(n_prompt, n_prompt))
        if known.text:
            self._show(Decoded(known.text))
        self._round.end()
        ms = (time.perf_counter() - self._asked_at) * 1000
        usage = Usage(n_prompt, n_prompt, len(known.tokens), saved_ms=known.total_ms, is_answer_cached=True)
        return Finished(known.reason, usage, Timing(first_token_ms=ms, total_ms=ms), known.tokens, stopped_by=known.stopped_by)

    def _show(self, event: Prefilled | Decoded) -> None:
        if isinstance(event, Prefilled):
            self.reply.emit(Progress(event.done, event.total))
            return
        self.reply.is_repeating = event.is_suspect
        self._round.feed(event.text, event.logprobs)
        self._save_part()

    def _save_part(self) -> None:
        """Save the text so far, about once a second."""
        if self.saver is not None and self.saver.is_due:
            self.saver.save_part(self._round.text, reasoning=self._round.reasoning)
            self.reply.node = self.saver.node

    def _new_reader(self, parser: ReplyParser | None) -> ReplyReader:
        """Return what reads the text of a round."""
        return ReplyReader(self.reply, parser)

    @property
    def _n_logprobs(self) -> int | None:
        """Likeliest tokens to report in the place of each token; None reports no logprobs."""
        return self.request.n_logprobs

    @property
    def _text_begun(self) -> str:
        """The text that the model has to continue."""
        return self.saver.before if self.saver is not None else ""

    def _generate(
        self,
        tokens: list[int],
        sampling: Sampling,
        show: Callable[[Prefilled | Decoded], None],
        boundaries: Sequence[int] = (),
        constraint: Matcher | None = None,
        *,
        sampler: Sampler | None = None,
        is_summary: bool = False,
        shown: frozenset[int] = frozenset(),
    ) -> Finished:
        """Have the engine answer a prompt; cancelling the reply cancels that."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        request = self.request
        generation = Generation(
            tokens, sampling, events.put, self._owner, boundaries, asked_at=self._asked_at, hint=request.cache or "disk",
            namespace=request.namespace, mix=request.mix, priority=request.priority, is_prefill_only=request.is_prefill_only,
            n_logprobs=None if is_summary else self._n_logprobs, shared=None if is_summary else self._shared,
            constraint=constraint, shown=shown, sampler=sampler,
        )  # fmt: skip
        self._shared = self._shared if is_summary else None
        self._generation = generation
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

    def _next_event(self, events: queue.SimpleQueue[T]) -> T:
        """Wait for the engine, or another tier, and stop the reply once its time is over."""
        reply, timeout_s = self.reply, self.request.timeout_s
        left = None if reply.is_cancelled else self._left_s()
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=left)
        reply.note(f"The reply was stopped because it took longer than {timeout_s:g} seconds.")
        reply.cancel()
        return events.get()

    def _left_s(self) -> float | None:
        """Return how much time the reply has left, in seconds; None without a limit."""
        timeout_s = self.request.timeout_s
        return None if timeout_s is None else max(0.0, self._asked_at + timeout_s - time.perf_counter())

    def _encode_prompt(self) -> list[int]:
        """Tokenise the messages that fit, and add a notice if some were dropped."""
        prompt, prompting, note = self._prompt, self.prompting, self.reply.note
        if isinstance(prompt, str):
            prompting.check_size(prompt, self._full_n_ctx)
            return prompting.tokenize(prompt, add_special=True, parse_special=True)
        for message in prompt:
            if message is prompt[-1] or message.role == "system":  # the others are dropped if they are too large
                prompting.check_size(message.content, self._full_n_ctx)
        tokens: list[int] = []

        self._begun = prompting.encode_reply(self._text_begun) if self._text_begun else []

        def note_news(text: str) -> None:
            if prompting.is_news(text, True):
                note(text)

        def count(messages: Sequence[Message]) -> int:
            tokens[:] = prompting.encode(
                messages, None if self.request.is_prefill_only else note_news, options=self.request.options
            )
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
            note(window.notice + (_SHORT_OF_MEMORY if self._n_ctx < self._full_n_ctx else ""))
        self._messages = window.messages
        return tokens  # of the last count, which is of window.messages

    def _no_room(self, error: ContextFullError) -> ContextFullError:
        if not self._begun:
            return error
        message = (
            f"This answer has {len(self._begun):,} tokens; the context window of {self._n_ctx:,} has no room to continue it."
        )
        return error.reworded(message, "Ask for the rest in a new message.")

    def _fit(self, prompt: Sequence[Message], count: Callable[[Sequence[Message]], int]) -> Window:
        quarter, max_tokens = self._n_ctx // 4, self.request.sampling.max_tokens  # a reply reserves at most that
        reserve = quarter if max_tokens is None else min(max_tokens, quarter)
        if self.request.window == "refuse" and self.saver is None:
            reserve = 1  # nothing follows that needs room: refuse only what cannot be answered at all
        return fit(
            prompt,
            n_ctx=self._n_ctx,
            reserve=reserve,
            count=count,
            count_one=self._count_one,
            policy=self.request.window or "drop",
            summarise=Summariser(self.prompting, self._n_ctx, self._generate_summary, self.reply.note),
            summary=self.summary,
            n_ctx_train=self.prompting.n_ctx_train,
        )

    def _count_one(self, message: Message) -> int:
        """Count the tokens that a message adds to a prompt; of one that is far too large only so many that it is dropped."""
        return self.prompting.at_least(message.content, 4 * self._full_n_ctx) or self.prompting.count_one(message)

    def _generate_summary(self, tokens: list[int], sampling: Sampling) -> str:
        if self.request.is_prefill_only:
            raise CancelledError("Older messages are summarised when the next one is sent.")
        text: list[str] = []

        def show(event: Prefilled | Decoded) -> None:
            if isinstance(event, Decoded):
                text.append(event.text)

        self._generate(tokens, sampling, show, is_summary=True)
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
    able = sorted(
        (e.parameters or 0, e.name) for e in entries if (e.context or 0) >= error.needed and not (e.base or e.embeddings)
    )
    why = f"This model was trained for {n_ctx_train:,} tokens"
    other = f"{why}; {able[0][1]} was for more (--context {error.needed})." if able else f"{why}."
    return error.reworded(error.message, f"{error.hint} {other}")
