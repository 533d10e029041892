"""The facade: a loaded model to talk to, directly or through stored conversations.

    with edge.load("smollm2-135m") as ai:
        for piece in ai.conversation(system="Be brief").send("hi"):
            print(piece, end="")

Everything here may be used from any thread. A turn goes: messages -> window -> template -> tokens -> scheduler -> text.
"""

from __future__ import annotations

import difflib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.conversation.reply_saver import ReplySaver
from edge.conversation.store import ConversationStore
from edge.conversation.tree import Attachment, ConversationInfo, Node
from edge.device.sensors import Sensors
from edge.engine.drafting import Planner
from edge.engine.governor import Watch
from edge.engine.rounds import MAX_GAP_MS
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, UsageError
from edge.kv.answers import AnswerCache
from edge.kv.cache import KVCache
from edge.kv.records import WARM_OWNER
from edge.names import CACHE_HINTS, CacheHint, is_client_namespace
from edge.prompt.prompting import Prompting
from edge.prompt.summary import newest_summary
from edge.turn import Turn
from edge.types import Message, Sampling, SamplingOptions, kind_of

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Unpack

    from edge.backends.base import Backend, ModelInfo
    from edge.backends.llamacpp.slot_import import SlotReport
    from edge.engine.governor import Governor, Limits
    from edge.kv.store import BlockStore
    from edge.kv.verify import CacheCheck
    from edge.plan.receipt import Plan
    from edge.prompt.summary import Summary
    from edge.reply import Reply, ReplyState

__all__ = ["Assistant", "Conversation", "DiskCache"]

_STOPPING_S = 60.0
"""Longest time that a new message or `close` waits for a stopped reply to end: far more than the engine needs for one chunk."""


@dataclass(frozen=True, slots=True)
class DiskCache:
    """The KV cache on the disk.

    Attributes:
        blocks: the block store.
        model: fingerprint of weights and engine, 32 bytes; see `edge.kv.open`.
        answers: give the same answer to an exact repeat of a request at temperature 0.
    """

    blocks: BlockStore
    model: bytes
    answers: bool = False


class Assistant:
    """A loaded model. Made by `edge.load`.

    Args:
        backend: an open backend; the assistant closes it.
        plan: how it was loaded, saved with every reply.
        store: where conversations are stored; None keeps them in memory only. The caller closes it.
        sampling: how tokens are chosen where neither a call nor its conversation says.
        system: system prompt where a conversation has none; "none" is none at all, None leaves it to the model's template.
        window: what happens to old messages when the context window is full: "drop", "summarise" or "refuse".
        disk: the KV cache on the disk; None stores nothing there. The assistant closes it.
        exact: reuse only what equals, bit for bit, a run that reuses nothing; see `edge.kv.cache`.
        governor: throttles the engine while the device is hot, low on battery or short of memory; None never does.
        max_gap_ms: longest gap between two tokens of a reply while a prompt is prefilled beside it, in milliseconds.
        speculates: guess tokens where a reply repeats its prompt; see `edge.engine.drafting`.
        cache_namespace: of requests and new conversations that name none, see `conversation`.
        sensors: read for the governor; None are those of this machine.

    Attributes:
        plan: the placement receipt, or None where the backend was opened without one.
        info: the model.
        model_name: name of the model, for people; saved with every reply.
        store: where conversations are stored.
        notices: what the user should know about how the model was loaded.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan | None = None,
        *,
        store: ConversationStore | None = None,
        sampling: Sampling | None = None,
        system: str | None = None,
        window: str = "drop",
        disk: DiskCache | None = None,
        exact: bool = False,
        governor: Governor | None = None,
        max_gap_ms: float = MAX_GAP_MS,
        speculates: bool = True,
        cache_namespace: str = "",
        sensors: Sensors | None = None,
    ) -> None:
        self.plan = plan
        self.info: ModelInfo = backend.info
        self.backend_name = backend.name
        # Files often call themselves by the name of a training run; the artifact has the name that people know.
        self.model_name = plan.artifact.name if plan is not None else backend.info.name
        self._sampling = self._loaded_sampling = _check_sampling(sampling) or Sampling()
        self.window = window
        _check_namespace(cache_namespace)
        self._cache_namespace = cache_namespace
        self.store = ConversationStore(None) if store is None else store
        self._owns_store = store is None
        self._disk = disk
        blocks, model = (disk.blocks, disk.model) if disk is not None else (None, b"")
        self._answers = AnswerCache(disk.blocks, model, backend.n_ctx) if disk is not None and disk.answers else None
        cache = KVCache(backend, blocks, model=model, exact=exact)
        self._scheduler = Scheduler(backend, cache, max_gap_ms=max_gap_ms, planner=Planner() if speculates else None)
        watch = Watch(governor, sensors or Sensors(), self._scheduler.throttle) if governor is not None else None
        # Also when nobody closes it: dropped, or still open when the program ends. The engine thread would go on otherwise.
        own_store, self._running = self.store if store is None else None, _Running()
        self._finalizer = weakref.finalize(self, _close, watch, self._running, self._scheduler, blocks, own_store)
        self._prompting = Prompting(backend.info, backend.tokenizer, system)
        template = self._prompting.template
        self.notices = [*([template.notice] if template.notice else []), *(plan.notices if plan is not None else [])]
        self._busy: dict[str, ReplyState | None] = {}  # by conversation; None until its turn is made
        self._warming: dict[str, ReplyState] = {}  # by conversation
        self._claims: dict[str, Callable[[], None]] = {}
        self._freed = threading.Condition()

    def conversation(
        self,
        id: str | None = None,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Conversation:
        """Start a conversation, which is stored with its first message, or continue a stored one.

        Args:
            id: of a stored conversation, or a prefix that no other id has; None starts a new one.
            system: the system prompt; "" is the assistant's, "none" is none at all, None leaves a stored one as it is.
            sampling: how tokens are chosen here; what it leaves out is the assistant's.
            cache: where the KV cache of its turns stays, see `Conversation.send`.
            cache_namespace: who shares its KV cache, in memory and on disk: only what was prefilled in that namespace is reused
                and counted as such. None is the assistant's, or leaves a stored conversation's as it is.

        Raises:
            UsageError: there is no such conversation, or an argument has the wrong type.
            StorageError: the store cannot be read or written.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._check_open()
        _check_sampling(sampling)
        self._check_hint(cache)
        _check_text("system", system, is_optional=True)
        _check_text("id", id, is_optional=True)
        _check_namespace(cache_namespace)
        if id is None:
            now, space = time.time(), self._space(cache_namespace)
            new = ConversationInfo(self.store.new_id(), "", system or "", self.model_name, None, "", now, now, 0, space)
            return Conversation(self, new.id, sampling, cache=cache, unsaved=new)
        info = self.store.get(id)
        if system is not None and system != info.system:
            self.store.set_system(info.id, system)
        if cache_namespace is not None and cache_namespace != info.cache_namespace:
            self.store.set_cache_namespace(info.id, cache_namespace)
        return Conversation(self, info.id, sampling, cache=cache)

    def prewarm(
        self,
        text: str = "",
        *,
        system: str | None = None,
        attachments: Sequence[Attachment] = (),
        name: str = "",
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
    ) -> Reply:
        """Prefill what conversations have in common, so that their first message is answered sooner.

        Args:
            text, attachments, cache: as in `Conversation.prewarm`.
            system, cache_namespace: as in `conversation`.
            name: under which `edge kv ls` shows the stored blocks.

        Returns:
            As `Conversation.prewarm`.

        Raises:
            UsageError: an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        _check_text("name", name)
        new = self.conversation(system=system, cache_namespace=cache_namespace)
        return new._prewarm(text, attachments, cache, f"{WARM_OWNER}{name}" if name else "")

    def generate(
        self,
        prompt: str | Sequence[Message],
        sampling: Sampling | None = None,
        *,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Answer once, without a conversation: a text as one user message, or messages.

        Args:
            prompt: the text, or messages of which the last is to be answered.
            sampling: how tokens are chosen; what it leaves out is the assistant's.
            timeout_s: stop the reply after this many seconds and keep its text; None sets no limit.
            cache: where its KV cache stays, see `Conversation.send`.
            cache_namespace: who shares its KV cache, see `conversation`.
            options: fields of `Sampling` as keywords, which win over `sampling`: `generate("hi", max_tokens=5, temperature=0)`.

        Raises:
            UsageError: there is no message, or an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        messages = _check_messages(prompt)
        _check_timeout(timeout_s)
        if messages[0].role != "system":
            messages = [*self._prompting.system_message(""), *messages]
        hint, space = self._check_hint(cache) or "disk", self._space(cache_namespace)
        return self._start(self._turn(messages, _given(sampling, options), timeout_s=timeout_s, hint=hint, namespace=space))

    def complete(
        self,
        text: str,
        sampling: Sampling | None = None,
        *,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Continue a text, without chat template: for base models and for measuring.

        Args:
            text: the beginning.
            sampling, timeout_s, cache, cache_namespace, options: as in `generate`.

        Raises:
            UsageError: there is no text, or an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        if not _check_text("text", text):
            raise UsageError("There is no text to continue.", "Give at least one character.")
        _check_timeout(timeout_s)
        hint, space = self._check_hint(cache) or "disk", self._space(cache_namespace)
        return self._start(self._turn(text, _given(sampling, options), timeout_s=timeout_s, hint=hint, namespace=space))

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text for this model, without special ones.

        Raises:
            UsageError: it is not a str.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._check_open()
        _check_text("text", text)
        return len(self._prompting.tokenize(text))

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, with special tokens written out.

        Raises:
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._check_open()
        tokenizer = self._prompting.tokenizer
        return b"".join(tokenizer.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")

    async def acount_tokens(self, text: str) -> int:
        """Count tokens as `count_tokens` does, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.count_tokens, text)

    @property
    def sampling(self) -> Sampling:
        """The sampling of calls that give none, in conversations that have none.

        Fields that are left out when it is set stay as the assistant was loaded, with the model's own advice.
        """
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self._sampling = (_check_sampling(sampling) or Sampling()).over(self._loaded_sampling)

    @property
    def n_ctx(self) -> int:
        """Context window in tokens. Smaller than usual while memory is short."""
        return self._scheduler.n_ctx

    @property
    def limits(self) -> Limits | None:
        """Limits of the engine now; None before the governor first set some."""
        limits = self._scheduler.limits
        return limits if limits.n_threads else None

    @property
    def held_back(self) -> str:
        """The engine's throttling now, for a status line: "hot: 2 of 4 threads"; "" if there is none."""
        return self._scheduler.limits.note

    @property
    def disk_problem(self) -> str | None:
        """Why the KV cache on the disk stores nothing now, to follow "because"; None while it works, or there is none."""
        return self._disk.blocks.problem if self._disk is not None else None

    @property
    def kv_fingerprint(self) -> bytes | None:
        """Fingerprint of its blocks on the disk, 32 bytes; None without a disk."""
        return self._disk.model if self._disk is not None else None

    def check_cache(self, n: int = 3, *, on_progress: Callable[[int, int], None] | None = None) -> list[CacheCheck]:
        """Restore the newest conversations from the disk and compare what the model says next with a cold run.

        Empties the KV cache in memory, and every reply waits until it is done.

        Args:
            n: number of conversations at most.
            on_progress: called with (conversations done, conversations in all).

        Raises:
            UsageError: this assistant has no disk, or the disk has nothing of its model.
            StorageError: the disk cannot be read.
            BackendError: the engine refuses a block, is closed, or replies are running.
        """
        from edge.kv.verify import check_cache

        self._check_open()
        disk = self._check_disk()
        return check_cache(disk.blocks, disk.model, self._scheduler.call_alone, n_ctx=self.n_ctx, n=n, on_progress=on_progress)

    def import_slot(self, path: str | os.PathLike[str], *, namespace: str = "") -> SlotReport:
        """Import a slot file of llama-server (--slot-save-path) or a prompt cache of llama-cli into the KV cache on the disk.

        The structure of the file is checked, and its first and last tokens are computed and compared. The values in between
        cannot be checked, so its blocks get a namespace of their own: only requests with that `cache_namespace` use them.

        Empties the KV cache in memory.

        Args:
            path: the file.
            namespace: of its blocks; "" makes one of the file's content.

        Raises:
            UsageError: this assistant has no disk, the namespace is not a name, or the file is larger than the context window.
            StorageError: the file is damaged or not of this model, or the disk cannot be used.
            UnsupportedError: this engine or kind of model cannot use slot files.
            BackendError: the assistant is closed, or replies are running.
        """
        from edge.backends.llamacpp.slot_import import import_slot

        self._check_open()
        disk = self._check_disk()
        _check_namespace(namespace)
        run = self._scheduler.call_alone
        return import_slot(Path(path), run, disk.blocks, disk.model, namespace=namespace, n_ctx=self.n_ctx)

    def _check_disk(self) -> DiskCache:
        if self._disk is None:
            hint = 'Turn it on: edge.load(..., cache="disk"), or edge config set kv.enabled true'
            raise UsageError("Nothing is stored on the disk for this model.", hint)
        return self._disk

    def flush_cache(self, timeout_s: float = 60.0) -> bool:
        """Wait until the KV cache of all finished replies is on the disk, as far as it stores them.

        Args:
            timeout_s: longest time to wait for the disk, in seconds.

        Returns:
            False if that took longer.

        Raises:
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._check_open()
        self._scheduler.call(lambda _: None)  # a reply is reported as done before its last block is queued
        return self._disk is None or self._disk.blocks.flush(timeout_s)

    def close(self) -> None:
        """Stop running replies, which end as cancelled, and free the model. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Assistant:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Assistant:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        import asyncio

        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        return f"<Assistant {self.model_name} on {self.backend_name}, {self.n_ctx:,} tokens>"

    def _turn(
        self,
        prompt: str | Sequence[Message],
        sampling: Sampling,
        saver: ReplySaver | None = None,
        summary: Summary | None = None,
        timeout_s: float | None = None,
        hint: CacheHint = "disk",
        namespace: str = "",
    ) -> Turn:
        self._check_open()
        chosen, stops = sampling.over(self.sampling), self._prompting.template.stops
        if stops and not isinstance(prompt, str):
            chosen = replace(chosen, stop=(*chosen.stop, *stops))
        scheduler, prompting, answers = self._scheduler, self._prompting, self._answers
        return Turn(
            scheduler, prompting, prompt, chosen, self.window, saver, self.plan, summary, answers, timeout_s, hint,
            namespace=namespace,
        )  # fmt: skip

    def _start(self, turn: Turn, at_end: Callable[[], None] = lambda: None) -> Reply:
        """Start a turn, which keeps the assistant open until its end."""

        def end() -> None:
            at_end()
            self._running.discard(turn.reply)

        self._running.add(turn.reply)
        try:
            return turn.start(end)
        except BaseException:  # no thread to be had
            self._running.discard(turn.reply)
            raise

    def _space(self, namespace: str | None) -> str:
        """Return the namespace of a request."""
        _check_namespace(namespace)
        return self._cache_namespace if namespace is None else namespace

    def _check_hint(self, cache: CacheHint | None) -> CacheHint | None:
        """Check where the KV cache of a request is to stay.

        Raises:
            UsageError: there is no such place, or this assistant has no disk.
        """
        if cache is not None and cache not in CACHE_HINTS:
            raise UsageError(f"cache cannot be {cache!r}.", f"Use {', '.join(map(repr, CACHE_HINTS))} or None.")
        if cache in ("disk", "keep") and self._disk is None:
            raise UsageError("This assistant stores nothing on the disk.", 'Load it with edge.load(..., cache="disk").')
        return cache

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise BackendError("This assistant is closed.", "Load the model again.")
        self._scheduler.check_open()

    def _claim(self, conversation_id: str) -> None:
        """Reserve a conversation for a turn. A stopped reply ends within one chunk or token, and is waited for."""
        with self._freed:
            until = time.monotonic() + _STOPPING_S
            while conversation_id in self._busy:
                reply = self._busy[conversation_id]
                if reply is None or not reply.is_cancelled or not self._freed.wait(until - time.monotonic()):
                    raise UsageError(
                        "This conversation is still being answered.", "Wait for the reply, or cancel it, before going on."
                    )
            self._claims[conversation_id] = self.store.claim(conversation_id)
            self._busy[conversation_id] = None

    def _release(self, conversation_id: str) -> None:
        with self._freed:
            self._claims.pop(conversation_id, lambda: None)()
            self._busy.pop(conversation_id, None)
            self._freed.notify_all()


class Conversation:
    """Messages that belong together: a tree, of which one path is active. Made by `Assistant.conversation`.

    A message is saved before the model sees it; a reply is saved about once a second and when it is done.

    Attributes:
        id: its name in the store.
        sampling: how tokens are chosen here; what it leaves out is the assistant's.
        cache: where the KV cache of its turns stays, see `send`; None is the usual place.
    """

    def __init__(
        self,
        assistant: Assistant,
        id: str,
        sampling: Sampling | None = None,
        *,
        cache: CacheHint | None = None,
        unsaved: ConversationInfo | None = None,
    ) -> None:
        self.id = id
        self.sampling = sampling
        self.cache = cache
        self._assistant = assistant
        self._unsaved = unsaved
        self._saving = threading.Lock()

    @property
    def _store(self) -> ConversationStore:
        if self._assistant._owns_store:  # in memory, and gone once the assistant is closed
            self._assistant._check_open()
        return self._assistant.store

    @property
    def info(self) -> ConversationInfo:
        """The conversation as the store lists it."""
        store, unsaved = self._store, self._unsaved
        return store.get(self.id) if unsaved is None else unsaved

    def _save(self) -> ConversationStore:
        """Create the conversation in the store if that has not happened yet, and return the store."""
        store = self._store
        with self._saving:
            if self._unsaved is not None:
                new = self._unsaved
                store.create(id=self.id, system=new.system, model=new.model, cache_namespace=new.cache_namespace)
                self._unsaved = None
        return store

    @property
    def title(self) -> str:
        """Its title, at first made from the first message. Setting it renames the conversation."""
        return self.info.title

    @title.setter
    def title(self, title: str) -> None:
        _check_text("title", title)
        self._save().rename(self.id, title)

    async def arename(self, title: str) -> None:
        """Set the title without blocking the event loop."""
        import asyncio

        _check_text("title", title)
        await asyncio.to_thread(lambda: self._save().rename(self.id, title))

    async def ainfo(self) -> ConversationInfo:
        """Return `info`, with title and system prompt, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(lambda: self.info)

    async def amessages(self) -> list[Node]:
        """Return `messages` without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(lambda: self.messages)

    @property
    def system(self) -> str:
        """The system prompt. Setting it changes how later turns begin."""
        return self.info.system

    @system.setter
    def system(self, system: str) -> None:
        _check_text("system", system)
        self._save().set_system(self.id, system)

    @property
    def messages(self) -> list[Node]:
        """The active path, first message first."""
        store = self._store
        return store.path(self.id) if self._unsaved is None else []

    def send(
        self,
        text: str,
        *,
        attachments: Sequence[Attachment] = (),
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Send a message and return the reply.

        Args:
            text: the message.
            attachments: texts that go with it.
            sampling: for this reply only; what it leaves out is the conversation's.
            timeout_s: stop the reply after this many seconds and keep its text; None sets no limit.
            cache: where the KV cache of this turn stays: "off" keeps nothing after the reply, "memory" nothing on the disk,
                "disk" also stores it there, "keep" pins it there. None is `Conversation.cache`, else what earlier messages of
                the conversation inherit to it ("off" and "memory", since its prompt contains them), else "disk" where the
                assistant has one. What is cached already is reused in any case.
            options: fields of `Sampling` as keywords, which win over `sampling`: `send("hi", max_tokens=5, temperature=0)`.

        Returns:
            The running reply. It stops when nobody holds it any more; see `Reply`.

        Raises:
            UsageError: the message is empty, an argument has the wrong type, or a reply is still running here.
            ContextFullError: the message is far larger than the context window; nothing was saved.
            StorageError: it could not be saved; nothing was sent.
            BackendError: the assistant is closed, or was loaded in another process; nothing was saved. All other errors come
                from the reply.
        """
        _check_message(text, attachments)
        self._check_size(text, attachments)
        record = self._record_of(cache)
        return self._answer(
            lambda: self._save().append(
                self.id, Message("user", text), parent=self.info.head, attachments=tuple(attachments), record=record
            ),
            _given(sampling, options),
            timeout_s,
            cache,
        )

    async def asend(
        self,
        text: str,
        *,
        attachments: Sequence[Attachment] = (),
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Send as `send` does, without blocking the event loop while the message is saved.

        A task that is cancelled meanwhile leaves the message saved and its reply stopped.
        """
        import asyncio

        send = partial(self.send, text, attachments=attachments, sampling=sampling, timeout_s=timeout_s, cache=cache, **options)
        sending = asyncio.ensure_future(asyncio.to_thread(send))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            sending.add_done_callback(_stop_reply)
            raise

    def regenerate(
        self,
        node_id: int | None = None,
        *,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Answer a message again, as a new branch beside the old answer.

        Args:
            node_id: an answer, or a message of the user; None is the last one of the active path.
            sampling, timeout_s, cache, options: as in `send`.

        Raises:
            UsageError: there is nothing to answer, or a reply is still running here.
        """
        _check_node_id(node_id, is_optional=True)
        path = self.messages if node_id is None else self._store.path(self.id, node_id)
        question = next((node for node in reversed(path) if node.role == "user"), None)
        if question is None:
            raise UsageError("There is no message to answer yet.", "Send one first.")
        old_head = self.info.head

        def go_back() -> Node:
            self._store.set_head(self.id, question.id)
            return question

        return self._answer(go_back, _given(sampling, options), timeout_s, cache, fallback=old_head)

    def resume(
        self,
        node_id: int | None = None,
        *,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Continue an answer that was stopped or cut off, in the same message.

        The model goes on where the text ends, and the KV cache has nearly all of the prompt. The reply is what is added;
        `reply.node` is the whole message. If nothing is added, the message stays as it was.

        Args:
            node_id: an answer that no message follows; None is the last one of the active path.
            sampling, timeout_s, cache, options: as in `send`; `max_tokens` counts what is added.

        Raises:
            UsageError: it is not an answer, other messages follow it, or a reply is still running here.
        """
        _check_node_id(node_id, is_optional=True)
        path = self.messages if node_id is None else self._store.path(self.id, node_id)
        answer = path[-1] if path else None
        if answer is None or answer.role != "assistant" or answer.parent is None:
            raise UsageError("There is no answer to continue.", "Send a message, or regenerate the answer to the last one.")
        prepare = partial(self._store.reopen, answer.id)
        return self._answer(prepare, _given(sampling, options), timeout_s, cache, continued=answer)

    def edit(
        self,
        node_id: int,
        text: str,
        *,
        attachments: Sequence[Attachment] | None = None,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
        cache: CacheHint | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Send a message in place of an earlier one, as a new branch, and return the reply.

        Args:
            node_id: one of the user's messages.
            text: the new message.
            attachments: None keeps the earlier ones.
            sampling, timeout_s, cache, options: as in `send`.

        Raises:
            UsageError: it is not a message of the user, is empty, or a reply is still running here.
            ContextFullError: the message is far larger than the context window; nothing was saved.
        """
        _check_node_id(node_id)
        old = self._store.path(self.id, node_id)[-1]
        if old.role != "user":
            raise UsageError("Only your own messages can be edited.", "To get another answer, regenerate it.")
        kept = old.attachments if attachments is None else tuple(attachments)
        _check_message(text, kept)
        self._check_size(text, kept)
        record = self._record_of(cache)
        if cache is None and not record and "cache" in old.record:
            record = {"cache": old.record["cache"]}  # the new text is as private as the old one
        return self._answer(
            lambda: self._store.append(self.id, Message("user", text), parent=old.parent, attachments=kept, record=record),
            _given(sampling, options),
            timeout_s,
            cache,
        )

    def prewarm(self, text: str = "", *, attachments: Sequence[Attachment] = (), cache: CacheHint | None = None) -> Reply:
        """Prefill the conversation up to its next message, so that this is answered sooner.

        It makes way for replies, and the next message of this conversation ends it; what is prefilled by then is reused.

        Args:
            text: how the next message begins.
            attachments: those that the next message will have.
            cache: as in `send`.

        Returns:
            A reply without text, whose `progress`, `usage` and `timing` are those of the prefill. It goes on although nobody
            holds it; `cancel` stops it.

        Raises:
            UsageError: an argument has the wrong type.
            BackendError: the assistant is closed, or was loaded in another process. All other errors come from the reply.
        """
        return self._prewarm(text, attachments, cache, self.id)

    def fork(self, node_id: int | None = None) -> Conversation:
        """Copy the path up to a message (None: all of it) into a new conversation.

        Raises:
            UsageError: there is no such message, or no message at all.
        """
        _check_node_id(node_id, is_optional=True)
        head = self.info.head if node_id is None else node_id
        if head is None:
            raise UsageError("This conversation is empty.", "Send a message first.")
        return Conversation(self._assistant, self._store.fork(self.id, head).id, self.sampling, cache=self.cache)

    def branches(self, node_id: int) -> list[Node]:
        """Return a message and its alternatives, oldest first."""
        _check_node_id(node_id)
        return self._store.siblings(node_id)

    def switch(self, node_id: int) -> None:
        """Make the branch of a message the active one, down to its newest message.

        Raises:
            UsageError: a reply is still running here.
        """
        _check_node_id(node_id)
        self._assistant._claim(self.id)
        try:
            self._store.set_head(self.id, self._store.leaf(node_id).id)
        finally:
            self._assistant._release(self.id)

    def __repr__(self) -> str:
        return f"<Conversation {self.id}>"

    def _check_size(self, text: str, attachments: Sequence[Attachment]) -> None:
        """Refuse what cannot fit before it is saved and becomes part of the conversation."""
        assistant = self._assistant
        assistant._check_open()
        for part in (text, *(attachment.text for attachment in attachments)):
            assistant._prompting.check_size(part, assistant._scheduler.full_n_ctx)

    def _answer(
        self,
        prepare: Callable[[], Node],
        sampling: Sampling,
        timeout_s: float | None,
        cache: CacheHint | None,
        fallback: int | None = None,
        continued: Node | None = None,
    ) -> Reply:
        """Claim the conversation, make the message to answer, and start a turn that releases the conversation at its end.

        Args:
            prepare: makes the message, or reopens the answer that is continued.
            sampling, timeout_s, cache: as in `send`.
            fallback: becomes the head again if the reply is empty.
            continued: the answer that is continued, as it was.
        """
        assistant = self._assistant
        assistant._check_open()
        _check_timeout(timeout_s)
        cache = assistant._check_hint(cache if cache is not None else self.cache)
        sampling = sampling.over(_check_sampling(self.sampling) or Sampling())
        assistant._claim(self.id)
        saver: ReplySaver | None = None
        if (warming := assistant._warming.pop(self.id, None)) is not None:
            warming.cancel()  # this turn reuses what it has prefilled
        try:
            info = self.info
            head_before = info.head
            last = prepare()
            nodes = self._store.path(self.id, last.id)
            assistant._prompting.recall_replies((node.content, node.record.get("tokens")) for node in nodes)
            system = assistant._prompting.system_message(info.system)
            question = last
            if continued is not None:
                nodes.pop()
                question = nodes[-1]
            saver = ReplySaver(self._store, self.id, question.id, assistant.model_name, fallback, head_before, continued)
            summary = newest_summary([node.record for node in nodes])
            messages = [*system, *(node.message() for node in nodes)]
            hint = cache or _inherited_hint(nodes)
            turn = assistant._turn(messages, sampling, saver, summary, timeout_s, hint, info.cache_namespace)
            assistant._busy[self.id] = turn.reply
            return assistant._start(turn, lambda: assistant._release(self.id))
        except BaseException:
            if saver is not None:
                saver.save_end("", "failed", {})  # an answer that was reopened is as it was again
            assistant._release(self.id)
            raise

    def _prewarm(self, text: str, attachments: Sequence[Attachment], cache: CacheHint | None, owner: str) -> Reply:
        _check_text("text", text)
        _check_attachments(attachments)
        self._check_size(text, attachments)
        assistant = self._assistant
        hint = assistant._check_hint(cache if cache is not None else self.cache)
        nodes = self.messages
        assistant._prompting.recall_replies((node.content, node.record.get("tokens")) for node in nodes)
        next_one = Node(0, None, "user", text, tuple(attachments))
        messages = [*assistant._prompting.system_message(self.info.system), *(node.message() for node in (*nodes, next_one))]
        summary = newest_summary([node.record for node in nodes])
        hint, space = hint or _inherited_hint(nodes), self.info.cache_namespace
        turn = assistant._turn(messages, Sampling(), None, summary, None, hint, space)
        turn.is_prefill_only, turn.owner = True, owner
        assistant._warming[self.id] = turn.reply

        def end() -> None:
            if assistant._warming.get(self.id) is turn.reply:
                del assistant._warming[self.id]

        return assistant._start(turn, end).detach()

    def _record_of(self, cache: CacheHint | None) -> dict[str, object]:
        """Return the record of a message: that its KV cache is not to be stored, also in later turns."""
        hint = cache if cache is not None else self.cache
        return {"cache": hint} if hint in ("off", "memory") else {}


class _Running:
    """The replies that run, so that `close` can stop them and wait for what they still save."""

    def __init__(self) -> None:
        self._replies: set[ReplyState] = set()
        self._ended = threading.Condition()
        self._process = os.getpid()

    def add(self, reply: ReplyState) -> None:
        with self._ended:
            self._replies.add(reply)

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


def _check_text(name: str, text: object, *, is_optional: bool = False) -> bool:
    """Return whether there is text, which must be a str, or None if that is allowed."""
    if not isinstance(text, str) and not (is_optional and text is None):
        raise UsageError(f"{name} is text, not {kind_of(text)}.", "Pass a str.")
    return bool(text)


def _check_namespace(namespace: object) -> None:
    if namespace is None or namespace == "" or (isinstance(namespace, str) and is_client_namespace(namespace)):
        return
    raise UsageError(
        f"{str(namespace)[:80]!r} cannot be a namespace of the KV cache.",
        'Use up to 64 letters, digits and _ . @ + -, but not "answers".',
    )


def _check_node_id(node_id: object, *, is_optional: bool = False) -> None:
    if not isinstance(node_id, int) and not (is_optional and node_id is None):
        raise UsageError(f"The id of a message is a number, not {kind_of(node_id)}.", "Use node.id of conversation.messages.")


def _check_message(text: object, attachments: object) -> None:
    has_text = _check_text("A message", text) and bool(str(text).strip())
    _check_attachments(attachments)
    if not has_text and not attachments:
        raise UsageError("The message is empty.", "Type something, or attach a file.")


def _check_attachments(attachments: object) -> None:
    if not isinstance(attachments, Sequence) or not all(isinstance(one, Attachment) for one in attachments):
        raise UsageError(
            f"attachments is a list of edge.Attachment, not {kind_of(attachments)}.",
            'For example: [edge.Attachment("a.txt", Path("a.txt").read_text())]',
        )


def _check_messages(prompt: object) -> list[Message]:
    """Return the messages of a prompt, a text being one of the user."""
    if isinstance(prompt, str):
        _check_message(prompt, ())
        return [Message("user", prompt)]
    hint = 'For example: [edge.Message("user", "hi")]'
    if isinstance(prompt, Message | Mapping | bytes) or not isinstance(prompt, Iterable):
        raise UsageError(f"A prompt is a text or a list of edge.Message, not {kind_of(prompt)}.", hint)
    messages = list(prompt)
    for message in messages:
        if not isinstance(message, Message):
            raise UsageError(f"A prompt is made of edge.Message, not {kind_of(message)}.", hint)
    if not messages:
        raise UsageError("There is no message to answer.", "Give a text or at least one message.")
    return messages


def _check_timeout(timeout_s: object) -> None:
    if timeout_s is None or (isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool) and timeout_s > 0):
        return
    raise UsageError(f"timeout_s is a number of seconds above 0, not {kind_of(timeout_s)}.", "None sets no limit.")


def _inherited_hint(nodes: Sequence[Node]) -> CacheHint:
    """Return where the KV cache of a turn stays if nobody says: it contains that of all these messages."""
    found = {node.record.get("cache") for node in nodes if isinstance(node.record.get("cache"), str)}
    return next((hint for hint in ("off", "memory") if hint in found), "disk")


def _check_sampling(sampling: object) -> Sampling | None:
    if sampling is not None and not isinstance(sampling, Sampling):
        raise UsageError(f"sampling is an edge.Sampling, not {kind_of(sampling)}.", "For example: edge.Sampling(max_tokens=64)")
    return sampling


def _given(sampling: Sampling | None, options: SamplingOptions) -> Sampling:
    """Return everything that a call says about sampling.

    Raises:
        UsageError: a value is wrong, or there is no such option.
    """
    unknown = next((name for name in options if name not in SamplingOptions.__annotations__), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, SamplingOptions.__annotations__, n=1)
        raise UsageError(f"There is no option {unknown!r}.", f"Did you mean {near[0]}?" if near else "See edge.Sampling.")
    own = Sampling(**options)  # type: ignore[arg-type]
    return own.over(_check_sampling(sampling) or Sampling())


def _close(
    watch: Watch | None,
    running: _Running,
    scheduler: Scheduler,
    blocks: BlockStore | None,
    store: ConversationStore | None,
) -> None:
    if watch is not None:
        watch.close()
    running.stop(wait=not scheduler.is_own_thread)
    for part in (scheduler, blocks, store):
        if part is not None:
            part.close()


def _stop_reply(sending: asyncio.Future[Reply]) -> None:
    """Cancel a reply that nobody waits for any more."""
    if not sending.cancelled() and sending.exception() is None:
        sending.result().cancel()
