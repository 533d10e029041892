"""The turns of a loaded model: made and started here, at most one at a time in a conversation, and stopped at its end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from edge.adapters import default_mix, read_mix
from edge.arguments import check_namespace
from edge.errors import BackendError, BusyError, UsageError
from edge.grounding.choose import Grounding
from edge.grounding.sources import Sources
from edge.kv.answers import AnswerCache
from edge.kv.blocks import with_adapters
from edge.structured.compiler import Compiled, Compiler
from edge.structured.prompt import with_schema
from edge.tiered_turn import TieredTurn
from edge.turn import Turn
from edge.types import PromptSize

if TYPE_CHECKING:
    from edge.adapters import Adapter, Lora, Mix
    from edge.citations import Citation
    from edge.constraint import Constraint
    from edge.conversation.reply_saver import ReplySaver
    from edge.conversation.store import ConversationStore
    from edge.engine.scheduler import Scheduler
    from edge.grounding.choose import Docs
    from edge.kv.store import BlockStore
    from edge.names import CacheHint
    from edge.plan.receipt import Plan
    from edge.prompt.prompting import Prompting
    from edge.prompt.summary import Summary
    from edge.reply import Reply
    from edge.reply_state import ReplyState
    from edge.request import Request
    from edge.tiers.base import Outgoing
    from edge.tiers.escalation import Escalation, Relay
    from edge.types import Message, Sampling

__all__ = ["DiskCache", "Turns"]

_STOPPING_S = 60.0
"""Longest time that a new message or `close` waits for a stopped reply to end: far more than the engine needs for one chunk."""

_MOST_NAMED = 256  # mixes of adapters: the scales are what any client of a server says


@dataclass(frozen=True, slots=True)
class DiskCache:
    """The KV cache on the disk.

    Attributes:
        blocks: the block store.
        model: fingerprint of weights and engine, 32 bytes; see `edge.kv.open`.
        answers: give the same answer to an exact repeat of a request at temperature 0.
        engine: fingerprint that no other engine has, where `model` is that of several; b"" is the same as `model`.
    """

    blocks: BlockStore
    model: bytes
    answers: bool = False
    engine: bytes = b""


class Turns:
    """Starts the turns of an assistant and of its conversations.

    Args:
        scheduler: runs the model.
        prompting: makes the prompts.
        store: where conversations are stored.
        owns_store: the store is gone once this is closed.
        disk: the KV cache on the disk; None stores nothing there.
        plan: the placement receipt, saved with every reply.
        sampling: how tokens are chosen where neither a call nor its conversation says.
        window: what happens to old messages when the context window is full.
        namespace: of the KV cache, for requests that name none.
        max_waiting: replies that may wait for a sequence; one more is refused. None sets no limit.
        adapters: that the model was loaded with.
        model: its name.
        escalation: its next tier.
        sources: collections of documents by name; None opens the user's.

    Attributes:
        prompting, sampling, window, adapters, escalation, sources: see above; `sampling`, `window` and `escalation` may be set.
        mix: the adapters of requests that name none.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prompting: Prompting,
        store: ConversationStore,
        *,
        owns_store: bool,
        disk: DiskCache | None,
        plan: Plan | None,
        sampling: Sampling,
        window: str,
        namespace: str,
        max_waiting: int | None = None,
        adapters: Sequence[Adapter] = (),
        model: str = "",
        escalation: Escalation | None = None,
        sources: Sources | None = None,
    ) -> None:
        self.escalation, self._model = escalation, model
        self.sources = sources or Sources()
        self.adapters, self.mix = tuple(adapters), default_mix(adapters)
        self._named: set[Mix] = {()}
        self._max_waiting = max_waiting
        self.prompting, self.sampling, self.window = prompting, sampling, window
        self._scheduler, self._plan, self._namespace = scheduler, plan, namespace
        self._store, self._owns_store = store, owns_store
        self._disk = disk
        self._answers: AnswerCache | None = None
        if disk is not None and disk.answers:
            self._answers = AnswerCache(disk.blocks, disk.engine or disk.model, scheduler.full_n_ctx, adapters)
        self._compiler = Compiler(prompting.tokenizer)
        self._running = _Running()
        self._is_closed = False
        self._busy: dict[str, ReplyState | None] = {}  # by conversation; None until its turn is made
        self._warming: dict[str, ReplyState] = {}  # by conversation
        self._claims: dict[str, Callable[[], None]] = {}
        self._freed = threading.Condition()

    def check_open(self) -> None:
        """Raise a BackendError if the model is closed, or was loaded in another process."""
        if self._is_closed:
            raise BackendError("This assistant is closed.", "Load the model again.")
        self._scheduler.check_open()

    def open_store(self) -> ConversationStore:
        """Return the store of conversations; one in memory is gone once the assistant is closed."""
        if self._owns_store:
            self.check_open()
        return self._store

    def check_size(self, texts: Sequence[str]) -> None:
        """Refuse texts that are far larger than the context window.

        Raises:
            ContextFullError: one is.
            BackendError: as `check_open`.
        """
        self.check_open()
        for text in texts:
            self.prompting.check_size(text, self._scheduler.full_n_ctx)

    def check_cache(self, cache: CacheHint | None) -> None:
        """Check that the KV cache of a request can stay there.

        Raises:
            UsageError: this assistant has no disk.
        """
        if cache in ("disk", "keep") and self._disk is None:
            raise UsageError("This assistant stores nothing on the disk.", 'Load it with edge.load(..., cache="disk").')

    @property
    def n_seq(self) -> int:
        """How many replies run side by side at most."""
        return self._scheduler.n_seq

    def count(self, request: Request) -> PromptSize:
        """Return the size of the whole prompt of a request, whether it fits the window or not.

        Raises:
            TemplateError: the template refuses these messages.
            UnsupportedError: the template has no place for tools.
            BackendError: as `check_open`.
        """
        self.check_open()
        prompt = _whole_prompt(request)
        if isinstance(prompt, str):
            n_tokens = len(self.prompting.tokenize(prompt, add_special=True, parse_special=True))
        else:
            n_tokens = len(self.prompting.encode(prompt, options=request.options)) if prompt else 0
        return PromptSize(n_tokens, self._scheduler.n_ctx)

    def namespace_of(self, namespace: str | None) -> str:
        """Return the namespace of a request."""
        check_namespace(namespace)
        return self._namespace if namespace is None else namespace

    def make(self, request: Request, saver: ReplySaver | None = None, summary: Summary | None = None) -> Turn:
        """Make a turn, which `start` runs.

        Args:
            request: what is asked; what it leaves out is the assistant's.
            saver, summary: as in `Turn`.

        Raises:
            UsageError: it is to be sent on by hand, and cannot be.
        """
        self.check_open()
        asked = request
        chosen, stops = request.sampling.over(self.sampling), self.prompting.template.stops
        if stops and not isinstance(request.prompt, str):
            chosen = replace(chosen, stop=(*chosen.stop, *stops))
        mix = self.mix_of(request.lora)
        request = replace(
            request, prompt=_whole_prompt(request), sampling=chosen, window=request.window or self.window, mix=mix
        )
        parts = (self._scheduler, self.prompting, request, saver, self._plan, summary, self._answers, self._compiler)
        relay = self._relay(asked, saver)
        if relay is None:
            return Turn(*parts, self._model)
        return TieredTurn(*parts, self._model, relay=relay)

    def outgoing(self, request: Request) -> Outgoing | None:
        """Return what would leave this device if a request were sent on; None if the next tier is on this device.

        Raises:
            UsageError: there is no next tier, or it cannot take this request.
            BackendError: as `check_open`.
        """
        self.check_open()
        relay = self._relay(replace(request, escalate=True), None)
        assert relay is not None
        if reason := relay.tier.why_not(relay.request):
            raise UsageError(f"This cannot be sent on to {relay.tier.name}, because {reason}.", "It is answered here.")
        return relay.tier.outgoing(relay.request, relay.why)

    def _relay(self, asked: Request, saver: ReplySaver | None) -> Relay | None:
        """Return a request's way to the next tier, as it was asked."""
        is_continued = saver is not None and bool(saver.before)
        relay = self.escalation.relay(asked) if self.escalation is not None and not is_continued else None
        if relay is None and asked.escalate:
            if self.escalation is None:
                hint = 'Name one: edge.load(..., escalate_to="..."), or --escalate-to'
                raise UsageError("There is no larger model to send this on to.", hint)
            what = "An answer that is continued" if is_continued else "A reply with logprobs, or one of several,"
            raise UsageError(f"{what} cannot be sent on.", "Leave escalate out, or ask anew.")
        return relay

    def mix_of(self, lora: Lora | None) -> Mix:
        """Return the adapters of a request.

        Raises:
            UsageError: the model has no such adapter, or a scale is out of range.
        """
        mix = self.mix if lora is None else read_mix(lora, self.adapters)
        if mix not in self._named and len(self._named) < _MOST_NAMED:
            self._named.add(mix)
            if self._disk is not None and self._plan is not None:  # so that its blocks count as the model's
                fingerprint = with_adapters(self._disk.model, mix, self.adapters)
                self._disk.blocks.name_model(fingerprint, self._plan.artifact.name)
        return mix

    def ground(
        self, docs: Docs | None, question: str, *, earlier: Sequence[Citation] = (), before: str = "", is_first: bool = True
    ) -> Grounding | None:
        """Return the search for the passages of a question; None if nothing is to be searched.

        Args:
            docs: collections.
            question, earlier, before: as of `Grounding`.
            is_first: the prompt begins with the passages, so that others can begin with them, too.

        Raises:
            UsageError, StorageError: a collection cannot be opened.
        """
        found = self.sources.find(docs)
        if not found:
            return None
        orders = self.sources.orders(found) if is_first else {}
        answers = self.sources.answers(found) if is_first else None
        return Grounding(found, question, earlier, before=before, answers=answers, orders=orders)

    def compile(self, constraint: Constraint) -> Compiled:
        """Compile a constraint, which turns then find; see `Compiler.compile`."""
        self.check_open()
        return self._compiler.compile(constraint)

    def start(self, turn: Turn, owner: object, at_end: Callable[[], None] = lambda: None) -> Reply:
        """Start a turn.

        Args:
            turn: from `make`.
            owner: the assistant, which stays open until the end of the turn.
            at_end: called then.

        Raises:
            BusyError: too many wait already.
        """
        limit = None if self._max_waiting is None or turn.request.is_prefill_only else self._scheduler.n_seq + self._max_waiting
        self._running.add(turn.reply, limit)
        try:
            return turn.start(partial(self._end, turn, at_end, owner))
        except BaseException:  # no thread to be had
            self._running.discard(turn.reply)
            raise

    def _end(self, turn: Turn, at_end: Callable[[], None], owner: object) -> None:
        at_end()
        self._running.discard(turn.reply)

    def start_claimed(self, conversation_id: str, turn: Turn, owner: object) -> Reply:
        """Start the turn of a claimed conversation, which is released at its end; the rest is as in `start`."""
        self._busy[conversation_id] = turn.reply
        return self.start(turn, owner, lambda: self.release(conversation_id))

    def start_warming(self, conversation_id: str, turn: Turn, owner: object) -> Reply:
        """Start a prefill, which the next turn of the conversation stops; the rest is as in `start`."""
        self._warming[conversation_id] = turn.reply

        def end() -> None:
            if self._warming.get(conversation_id) is turn.reply:
                del self._warming[conversation_id]

        return self.start(turn, owner, end)

    def stop_warming(self, conversation_id: str) -> None:
        """Stop the prefill of a conversation; a turn reuses what it has prefilled."""
        if (warming := self._warming.pop(conversation_id, None)) is not None:
            warming.cancel()

    def claim(self, conversation_id: str) -> None:
        """Reserve a conversation for a turn. A stopped reply ends within one chunk or token, and is waited for."""
        with self._freed:
            until = time.monotonic() + _STOPPING_S
            while conversation_id in self._busy:
                reply = self._busy[conversation_id]
                if reply is None or not reply.is_cancelled or not self._freed.wait(until - time.monotonic()):
                    raise UsageError(
                        "This conversation is still being answered.", "Wait for the reply, or cancel it, before going on."
                    )
            self._claims[conversation_id] = self._store.claim(conversation_id)
            self._busy[conversation_id] = None

    def release(self, conversation_id: str) -> None:
        """Let the next turn of a conversation begin."""
        with self._freed:
            self._claims.pop(conversation_id, lambda: None)()
            self._busy.pop(conversation_id, None)
            self._freed.notify_all()

    @property
    def n_open(self) -> int:
        """How many turns run or wait."""
        return len(self._running)

    @property
    def n_running(self) -> int:
        """How many replies the engine works on."""
        return self._scheduler.n_running

    def close(self, *, wait: bool) -> None:
        """Stop all replies, and wait for their end if told to."""
        self._is_closed = True
        self._running.stop(wait=wait)
        if self.escalation is not None:
            self.escalation.tier.close()
        self.sources.close()


def _whole_prompt(request: Request) -> str | Sequence[Message]:
    """Return the prompt of a request, with the schema in its system prompt if it is shown."""
    prompt = request.prompt
    if request.constraint is None or not request.shows_schema or isinstance(prompt, str):
        return prompt
    return with_schema(prompt, request.constraint)


class _Running:
    """The replies that run, so that `close` can stop them and wait for what they still save."""

    def __init__(self) -> None:
        self._replies: set[ReplyState] = set()
        self._ended = threading.Condition()
        self._process = os.getpid()

    def add(self, reply: ReplyState, limit: int | None = None) -> None:
        """Add one.

        Raises:
            BusyError: there are `limit` or more already.
        """
        with self._ended:
            if limit is not None and len(self._replies) >= limit:
                raise BusyError(f"The model is answering {len(self._replies)} requests already.", "Try again later.")
            self._replies.add(reply)

    def __len__(self) -> int:
        return len(self._replies)

    def discard(self, reply: ReplyState) -> None:
        with self._ended:
            self._replies.discard(reply)
            self._ended.notify_all()

    def stop(self, *, wait: bool) -> None:
        """Cancel all, and wait for their end."""
        if self._process != os.getpid():
            return  # their threads stayed in the other process
        with self._ended:
            for reply in self._replies:
                reply.cancel()
            if wait:
                self._ended.wait_for(lambda: not self._replies, _STOPPING_S)
