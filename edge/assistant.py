"""The facade: a loaded model to talk to, directly or through stored conversations.

    with edge.load("smollm2-135m") as ai:
        for piece in ai.conversation(system="Be brief").send("hi"):
            print(piece, end="")

Everything here may be used from any thread. A turn goes: messages -> window -> template -> tokens -> scheduler -> text.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.arguments import check_messages, check_namespace, check_sampling, check_text, check_timeout, given
from edge.conversation.store import ConversationStore
from edge.conversation.tree import Attachment, ConversationInfo
from edge.device.sensors import Sensors
from edge.dialogue import Conversation
from edge.engine.drafting import Planner
from edge.engine.governor import Watch
from edge.engine.rounds import MAX_GAP_MS
from edge.engine.scheduler import Scheduler
from edge.errors import UsageError
from edge.kv.cache import KVCache
from edge.kv.records import WARM_OWNER
from edge.prompt.prompting import Prompting
from edge.turns import DiskCache, Turns
from edge.types import Message, Sampling, SamplingOptions, kind_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.backends.base import Backend, ModelInfo
    from edge.backends.llamacpp.slot_import import SlotReport
    from edge.engine.governor import Governor, Limits
    from edge.kv.store import BlockStore
    from edge.kv.verify import CacheCheck
    from edge.names import CacheHint
    from edge.plan.receipt import Plan
    from edge.reply import Reply

__all__ = ["Assistant", "Conversation", "DiskCache"]


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
        self._loaded_sampling = check_sampling(sampling) or Sampling()
        check_namespace(cache_namespace)
        self.store = ConversationStore(None) if store is None else store
        self._prompting = Prompting(backend.info, backend.tokenizer, system)
        self._disk = disk
        blocks, model = (disk.blocks, disk.model) if disk is not None else (None, b"")
        cache = KVCache(backend, blocks, model=model, exact=exact)
        self._scheduler = Scheduler(backend, cache, max_gap_ms=max_gap_ms, planner=Planner() if speculates else None)
        watch = Watch(governor, sensors or Sensors(), self._scheduler.throttle) if governor is not None else None
        self._turns = Turns(
            self._scheduler,
            self._prompting,
            self.store,
            owns_store=store is None,
            disk=disk,
            plan=plan,
            sampling=self._loaded_sampling,
            window=window,
            namespace=cache_namespace,
        )
        # Also when nobody closes it: dropped, or still open when the program ends. The engine thread would go on otherwise.
        own_store = self.store if store is None else None
        self._finalizer = weakref.finalize(self, _close, watch, self._turns, self._scheduler, blocks, own_store)
        template = self._prompting.template
        self.notices = [*([template.notice] if template.notice else []), *(plan.notices if plan is not None else [])]

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
        self._turns.check_open()
        check_sampling(sampling)
        self._turns.check_hint(cache)
        check_text("system", system, is_optional=True)
        check_text("id", id, is_optional=True)
        check_namespace(cache_namespace)
        if id is None:
            now, space = time.time(), self._turns.namespace_of(cache_namespace)
            new = ConversationInfo(self.store.new_id(), "", system or "", self.model_name, None, "", now, now, 0, space)
            return Conversation(self, self._turns, new.id, sampling, cache=cache, unsaved=new)
        info = self.store.get(id)
        if system is not None and system != info.system:
            self.store.set_system(info.id, system)
        if cache_namespace is not None and cache_namespace != info.cache_namespace:
            self.store.set_cache_namespace(info.id, cache_namespace)
        return Conversation(self, self._turns, info.id, sampling, cache=cache)

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
        check_text("name", name)
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
        messages = check_messages(prompt)
        if messages[0].role != "system":
            messages = [*self._prompting.system_message(""), *messages]
        return self._answer(messages, timeout_s, cache, cache_namespace, sampling, options)

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
        if not check_text("text", text):
            raise UsageError("There is no text to continue.", "Give at least one character.")
        return self._answer(text, timeout_s, cache, cache_namespace, sampling, options)

    def _answer(
        self,
        prompt: str | Sequence[Message],
        timeout_s: float | None,
        cache: CacheHint | None,
        cache_namespace: str | None,
        sampling: Sampling | None,
        options: SamplingOptions,
    ) -> Reply:
        """Check what a call says besides its prompt, and start its turn."""
        check_timeout(timeout_s)
        turns = self._turns
        hint, space = turns.check_hint(cache) or "disk", turns.namespace_of(cache_namespace)
        turn = turns.make(prompt, given(sampling, options), timeout_s=timeout_s, hint=hint, namespace=space)
        return turns.start(turn, self)

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a text for this model, without special ones.

        Raises:
            UsageError: it is not a str.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._turns.check_open()
        check_text("text", text)
        return len(self._prompting.tokenize(text))

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, with special tokens written out.

        Raises:
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._turns.check_open()
        if isinstance(tokens, str | bytes) or not all(isinstance(token, int) for token in tokens):
            raise UsageError(f"tokens are token ids, not {kind_of(tokens)}.", "For example: [1, 2, 3]")
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
        return self._turns.sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self._turns.sampling = (check_sampling(sampling) or Sampling()).over(self._loaded_sampling)

    @property
    def window(self) -> str:
        """What happens to old messages when the context window is full: "drop", "summarise" or "refuse"."""
        return self._turns.window

    @window.setter
    def window(self, window: str) -> None:
        self._turns.window = window

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

        self._turns.check_open()
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

        self._turns.check_open()
        disk = self._check_disk()
        check_namespace(namespace)
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
        self._turns.check_open()
        self._scheduler.call(lambda _: None)  # a reply is reported as done before its last block is queued
        return self._disk is None or self._disk.blocks.flush(timeout_s)

    def close(self) -> None:
        """Stop running replies, which end as cancelled, and free the model. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Assistant:
        self._turns.check_open()
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


def _close(
    watch: Watch | None,
    turns: Turns,
    scheduler: Scheduler,
    blocks: BlockStore | None,
    store: ConversationStore | None,
) -> None:
    if watch is not None:
        watch.close()
    turns.close(wait=not scheduler.is_own_thread)
    for part in (scheduler, blocks, store):
        if part is not None:
            part.close()
