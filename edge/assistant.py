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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.adapters import read_mix
from edge.arguments import (
    TOOL_FORMATS,
    check_approve,
    check_choice,
    check_docs,
    check_history,
    check_namespace,
    check_sampling,
    check_text,
    check_tools,
)
from edge.conversation.store import ConversationStore
from edge.conversation.tree import Attachment, ConversationInfo, Node
from edge.device.sensors import Sensors
from edge.dialogue import Conversation
from edge.engine.draft_model import DraftModel
from edge.engine.drafting import Planner
from edge.engine.governor import Watch
from edge.engine.rounds import MAX_GAP_MS
from edge.engine.scheduler import Scheduler
from edge.errors import UsageError
from edge.kv.cache import KVCache
from edge.kv.records import WARM_OWNER
from edge.names import CACHE_HINTS
from edge.prompt.options import PromptOptions
from edge.prompt.prompting import Prompting
from edge.responding import Responding
from edge.turns import DiskCache, Turns
from edge.types import Message, Sampling

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edge.adapters import Adapter, Lora
    from edge.backends.base import Backend, ModelInfo
    from edge.backends.llamacpp.slot_import import SlotReport
    from edge.bench.trace import Trace
    from edge.engine.governor import Governor, Limits
    from edge.grounding.choose import Docs
    from edge.grounding.sources import Sources
    from edge.kv.store import BlockStore
    from edge.kv.verify import CacheCheck
    from edge.names import CacheHint
    from edge.plan.receipt import Plan
    from edge.prompt.options import ToolFormat
    from edge.prompt.template import ChatTemplate
    from edge.reply import Reply
    from edge.request import RequestOptions
    from edge.tiers.escalation import Escalation
    from edge.tool_runner import Approve
    from edge.types import Tool

__all__ = ["Assistant", "Conversation", "DiskCache"]


class Assistant(Responding):
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
        adapts_threads: decode with fewer threads while other programs use the cores; see `edge.engine.crowding`.
        draft: a smaller model that guesses tokens where nothing repeats (`edge.engine.draft_model.check_draft` says which can);
            the assistant closes it. It has as many sequences and tokens as the first.
        cache_namespace: of requests and new conversations that name none, see `conversation`.
        sensors: read for the governor; None are those of this machine.
        trace: times the stages of turns; None times nothing.
        max_waiting: replies that may wait while others run; one more is a BusyError. None sets no limit.
        escalation: the next tier, which takes what its router sends on; None has none. The assistant closes its tier.
        sources: collections of documents by name, for `docs`; None are the user's. The assistant closes it.

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
        adapts_threads: bool = True,
        draft: Backend | None = None,
        cache_namespace: str = "",
        sensors: Sensors | None = None,
        trace: Trace | None = None,
        max_waiting: int | None = None,
        escalation: Escalation | None = None,
        sources: Sources | None = None,
    ) -> None:
        if trace is not None:
            backend = trace.watch(backend, "backend")
            draft = trace.watch(draft, "draft") if draft is not None else None
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
        blocks, model, own = (disk.blocks, disk.model, disk.engine) if disk is not None else (None, b"", b"")
        if trace is not None:
            self._prompting.template = trace.watch(self._prompting.template, "template")
            self.store = trace.watch(self.store, "store")
            blocks = trace.watch(blocks, "blocks") if blocks is not None else None
        cache = KVCache(backend, blocks, model=model, own=own, exact=exact)
        threads = None
        # Their number decides the last bits, which `exact` promises to keep.
        can_adapt = adapts_threads and backend.capabilities.free_threads and not exact
        if can_adapt and plan is not None and plan.accelerator == "cpu":
            threads = plan.n_threads, plan.n_threads_batch
        self._scheduler = Scheduler(
            backend,
            cache,
            max_gap_ms=max_gap_ms,
            planner=Planner(dict(plan.pass_costs) if plan is not None else None) if speculates else None,
            draft=DraftModel(draft, backend.info.n_vocab) if draft is not None else None,
            threads=threads,
        )
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
            max_waiting=max_waiting,
            adapters=backend.adapters,
            model=self.model_name,
            escalation=escalation,
            sources=sources,
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
        history: Iterable[Message | Node | Mapping[str, object]] = (),
        sampling: Sampling | None = None,
        cache: CacheHint | None = None,
        cache_namespace: str | None = None,
        tools: Sequence[Tool | Callable[..., object]] | None = None,
        approve: Approve | None = None,
        tool_format: ToolFormat = "template",
        think: bool | None = None,
        lora: Lora | None = None,
        docs: Docs | None = None,
    ) -> Conversation:
        """Start a conversation, which is stored with its first message, or continue a stored one.

        Args:
            id: of a stored conversation, or a prefix that no other id has; None starts a new one.
            system: the system prompt; "" is the assistant's, "none" is none at all, None leaves a stored one as it is.
            history: messages that a new conversation begins with, stored at once: `Message`, those of another conversation, or
                dicts with "role" and "content". A system message in front is the system prompt, unless `system` says another.
            sampling: how tokens are chosen here; what it leaves out is the assistant's.
            cache: where the KV cache of its turns stays, see `RequestOptions`.
            cache_namespace: who shares its KV cache, in memory and on disk: only what was prefilled in that namespace is reused
                and counted as such. None is the assistant's, or leaves a stored conversation's as it is.
            tools, approve, tool_format, think, lora, docs: as in `RequestOptions`, for messages that say nothing else. They are
                not stored.

        Raises:
            UsageError: there is no such conversation, or an argument has the wrong type.
            StorageError: the store cannot be read or written.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        self._turns.check_open()
        check_sampling(sampling)
        self._turns.check_cache(check_choice("cache", cache, CACHE_HINTS))
        check_text("system", system, is_optional=True)
        check_text("id", id, is_optional=True)
        check_namespace(cache_namespace)
        check_choice("tool_format", tool_format, TOOL_FORMATS)
        options = PromptOptions(check_tools(tools), tool_format, think=check_choice("think", think, (True, False)))
        check_approve(approve)
        self._turns.sources.find(check_docs(docs))
        if lora is not None:
            read_mix(lora, self.adapters)
        messages = check_history("history is", history)
        if messages and id is not None:
            raise UsageError("A stored conversation has its messages already.", "Leave out either its id or the history.")
        if messages and messages[0].role == "system":
            first = messages.pop(0)
            system = first.content if system is None else system
        if id is None:
            now, space = time.time(), self._turns.namespace_of(cache_namespace)
            new = ConversationInfo(self.store.new_id(), "", system or "", self.model_name, None, "", now, now, 0, space)
            started = Conversation(
                self, self._turns, new.id, sampling, cache=cache, unsaved=new, options=options, approve=approve, lora=lora,
                docs=docs,
            )  # fmt: skip
            if messages:
                started._save(messages)
            return started
        info = self.store.get(id)
        if system is not None and system != info.system:
            self.store.set_system(info.id, system)
        if cache_namespace is not None and cache_namespace != info.cache_namespace:
            self.store.set_cache_namespace(info.id, cache_namespace)
        return Conversation(
            self, self._turns, info.id, sampling, cache=cache, options=options, approve=approve, lora=lora, docs=docs
        )

    def prewarm(
        self,
        text: str = "",
        *,
        system: str | None = None,
        attachments: Sequence[Attachment] = (),
        name: str = "",
        cache_namespace: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> Reply:
        """Prefill what conversations have in common, so that their first message is answered sooner.

        Args:
            text, attachments, options: as in `Conversation.prewarm`.
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
        return new._prewarm(text, attachments, options, f"{WARM_OWNER}{name}" if name else "")

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
    def adapters(self) -> tuple[Adapter, ...]:
        """The LoRA adapters that the model was loaded with."""
        return self._turns.adapters

    @property
    def lora(self) -> dict[str, float]:
        """Scales of the adapters that replies are computed with, where neither a call nor its conversation says others.

        It is set as in `RequestOptions`.
        """
        return {self.adapters[number].name: scale for number, scale in self._turns.mix}

    @lora.setter
    def lora(self, lora: Lora) -> None:
        self._turns.mix = read_mix(lora, self.adapters)

    @property
    def window(self) -> str:
        """What happens to old messages when the context window is full: "drop", "summarise" or "refuse"."""
        return self._turns.window

    @window.setter
    def window(self, window: str) -> None:
        self._turns.window = window

    @property
    def escalation(self) -> Escalation | None:
        """The next tier, its router and what the user agreed to; its fields may be changed. None where there is none.

        Setting it closes the tier before, unless the new one has it, too.
        """
        return self._turns.escalation

    @escalation.setter
    def escalation(self, escalation: Escalation | None) -> None:
        before, self._turns.escalation = self._turns.escalation, escalation
        if before is not None and (escalation is None or escalation.tier is not before.tier):
            before.tier.close()

    @property
    def can_call_tools(self) -> bool:
        """True if the model's chat template has a place for tools, and edge knows how the model calls them."""
        return self._prompting.template.takes_tools

    @property
    def can_think(self) -> bool:
        """True if the model's chat template tells thoughts apart from answers."""
        return self._prompting.template.thinking is not None

    @property
    def n_ctx(self) -> int:
        """Context window in tokens. Smaller than usual while memory is short."""
        return self._scheduler.n_ctx

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template."""
        return self._prompting.template

    @property
    def n_running(self) -> int:
        """How many replies the engine works on now."""
        return self._turns.n_running

    @property
    def n_waiting(self) -> int:
        """How many replies wait for the engine, or are saved."""
        return max(0, self._turns.n_open - self._turns.n_running)

    @property
    def n_decoded(self) -> int:
        """How many tokens were generated since the model was loaded."""
        return self._scheduler.n_decoded

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

    @property
    def engine_fingerprint(self) -> bytes | None:
        """As `kv_fingerprint`, and another one for each engine that shares its blocks."""
        return (self._disk.engine or self._disk.model) if self._disk is not None else None

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
