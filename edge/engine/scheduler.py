"""The thread that owns the backend: prefills prompts chunk by chunk and decodes all running replies in one pass.

All other threads talk to it through a queue. Each round prefills one chunk of one prompt, then decodes one token of every
reply (`edge.engine.decoding`). Several prompts may be partly prefilled; `edge.engine.rounds` chooses the next one and the size
of its chunk, so that a long prompt delays others for a bounded time only. Events go to the listener of a generation from this
thread; listeners must be quick.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edge.engine.adapter_turns import n_groups
from edge.engine.crowding import Crowding
from edge.engine.decoding import Decoder
from edge.engine.generation import Failed, Generation, Prefilled, reply_error
from edge.engine.governor import Limits
from edge.engine.packing import Packer
from edge.engine.rounds import MAX_GAP_MS, MOST_PASSES, ChunkTimer, Order
from edge.engine.sharing import Sharing
from edge.errors import BackendError, ContextFullError, EdgeError, ModelTooLargeError, UnsupportedError
from edge.kv.cache import KVCache

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.engine.draft_model import DraftModel
    from edge.engine.drafting import Planner
    from edge.types import FinishReason

__all__ = ["Scheduler"]

T = TypeVar("T")
_log = logging.getLogger("edge.scheduler")
_LONGEST_REST_S, _REST_SLICE_S = 2.0, 0.02


@dataclass(slots=True, eq=False)
class _Call:
    """A function to run on the engine thread."""

    function: Callable[[Backend], Any]
    future: Future[Any] = field(default_factory=Future)

    def run(self, backend: Backend) -> None:
        try:
            self.future.set_result(self.function(backend))
        except Exception as error:  # noqa: BLE001 (handed to the caller, who waits for it)
            self.future.set_exception(error)


class Scheduler:
    """Runs generations on a backend, in a thread of its own.

    Args:
        backend: an open backend; the scheduler closes it.
        cache: of that backend; None is one without a disk.
        max_gap_ms: longest gap between two tokens of a reply while a prompt is prefilled beside it, in milliseconds; see
            `edge.engine.rounds`.
        planner: chooses the length of drafts (`edge.engine.drafting`); None makes none.
        draft: a second model that drafts, too; the scheduler closes it.
        threads: of decode and of prefill, to use fewer while other programs use the cores (`edge.engine.crowding`); None leaves
            them as they are.

    Attributes:
        n_ctx: the context window of prompts that are made now, in tokens. A governor makes it smaller while memory is short.
        full_n_ctx: the context window while memory suffices.
        adapters: that the model was loaded with.
        limits: the limits that hold now; without numbers of threads before any were set.

    Raises:
        BackendError: every method but `close`, once it is closed, and in a forked process.
    """

    def __init__(
        self,
        backend: Backend,
        cache: KVCache | None = None,
        *,
        max_gap_ms: float = MAX_GAP_MS,
        planner: Planner | None = None,
        draft: DraftModel | None = None,
        threads: tuple[int, int] | None = None,
    ) -> None:
        self._backend = backend
        self._cache = cache or KVCache(backend)
        self._inbox: queue.SimpleQueue[Generation | _Call | None] = queue.SimpleQueue()
        self._waiting: list[Generation] = []  # in order of arrival
        self._running: list[Generation] = []
        self._admission, self._prefill_order = Order(), Order()
        self._sharing = Sharing(self._cache.n_resident, can_copy=backend.capabilities.rewind)
        self._timer = ChunkTimer(max_gap_ms, self._cache.chunk_grain)
        self._crowding = Crowding(self._set_threads, *threads) if threads is not None else None
        self._decoder = Decoder(
            backend,
            self._cache,
            self._running,
            finish=self._finish,
            fail=self._fail,
            preempt=self._preempt,
            planner=planner,
            model=draft,
            max_gap_ms=max_gap_ms,
            crowding=self._crowding,
        )
        self._packer = Packer(backend, self._cache, self._running, decoder=self._decoder, fail=self._fail)
        self._draft = draft
        self._n_arrived = 0
        self._n_submitted = self._n_received = 0  # those that a chunk is stopped for
        self._is_full = False  # a generation was preempted and waits until a running one ends
        self.full_n_ctx = self.n_ctx = backend.n_ctx
        self.adapters = backend.adapters
        self.limits = Limits(0, 0, 0.0, backend.n_ctx, single_reply=False)
        self._lock = threading.Lock()
        self._is_closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="edge-engine", daemon=True)
        self._thread.start()

    @property
    def wants_checkpoints(self) -> bool:
        """True if states are stored only at `Generation.boundaries`."""
        return self._cache.wants_checkpoints

    @property
    def can_rewind(self) -> bool:
        """True if a prompt that goes on in another way costs only what is different."""
        return self._backend.capabilities.rewind

    @property
    def n_seq(self) -> int:
        """How many replies run side by side at most."""
        return self._backend.capabilities.n_seq

    @property
    def n_running(self) -> int:
        """How many replies run now."""
        return len(self._running)

    @property
    def n_decoded(self) -> int:
        """How many tokens were generated so far."""
        return self._decoder.n_tokens

    @property
    def is_own_thread(self) -> bool:
        """True on the engine thread, which must not wait for a reply."""
        return threading.current_thread() is self._thread

    def check_open(self) -> None:
        """Raise what every other method would.

        Raises:
            BackendError: it is closed, or this is a forked process: the engine thread stayed in the other one.
        """
        if self._process != os.getpid():
            raise BackendError("This assistant was loaded in another process.", "Load the model again in this one.")
        if self._is_closed:
            raise BackendError("This assistant is closed.", "Load the model again.")

    def submit(self, generation: Generation) -> None:
        """Queue a generation. Its listener hears of everything else, errors included."""
        self._put(generation)

    def call(self, function: Callable[[Backend], T]) -> T:
        """Run a function on the engine thread between two steps, and return what it returns or raise what it raises."""
        call = _Call(function)
        self._put(call)
        result: T = call.future.result()
        return result

    def call_alone(self, function: Callable[[Backend, int], T]) -> T:
        """Run a function of (backend, chunk size) on the engine thread with all sequences empty and no adapters.

        Raises:
            BackendError: replies are running.
        """

        def run(backend: Backend) -> T:
            if self._running:
                raise BackendError("Replies are running.", "Wait until they are done.")
            self._cache.evict_idle(0)
            backend.set_adapters(())
            return function(backend, self._cache.chunk_size)

        return self.call(run)

    def throttle(self, limits: Limits) -> None:
        """Go on within these limits after the current round. Returns at once."""
        self._put(_Call(lambda _: self._apply(limits)))

    def close(self) -> None:
        """Cancel what runs, stop the thread and close the backend. May be called twice; does nothing in a forked process."""
        if self._process != os.getpid():
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
        if not self.is_own_thread:
            self._thread.join()

    def _put(self, item: Generation | _Call) -> None:
        self.check_open()  # also before the lock, which another thread may have held when this process was forked
        with self._lock:
            self.check_open()
            if isinstance(item, Generation):
                item.is_arrival = item.priority == "interactive" and not (item.shared and item.shared.n_submitted)
                self._n_submitted += item.is_arrival
                if item.shared is not None:
                    item.shared.n_submitted += 1
            self._inbox.put(item)

    # Everything below runs on the engine thread.

    def _run(self) -> None:
        broken: EdgeError | None = None
        try:
            while self._receive():
                began = time.perf_counter()
                self._finish_cancelled()
                self._resize_window()
                self._admit()
                if not self._packer.run():
                    self._prefill_one_chunk()
                    self._decode()
                self._rest(time.perf_counter() - began, self.limits.rest)
        except Exception as error:  # noqa: BLE001 (a bug of ours or of the engine's binding must leave nobody waiting)
            broken = BackendError(f"The engine thread broke down: {error!r}.", "Load the model again, and report this.")
            broken.__cause__ = error
        finally:
            with self._lock:
                self._is_closed = True
            try:
                self._abandon(broken)
            finally:
                self._backend.close()
                if self._draft is not None:
                    self._draft.close()

    def _abandon(self, broken: EdgeError | None) -> None:
        """End everything that runs or is queued: by this error, or cancelled because the scheduler was closed."""
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._inbox.get_nowait()
                if isinstance(item, Generation):
                    self._waiting.append(item)
                elif item is not None:
                    item.future.set_exception(broken or BackendError("The assistant was closed meanwhile."))
        for generation in [*self._running, *self._waiting]:
            if broken is None or generation.is_cancelled:
                self._finish(generation, "cancelled")
            else:
                self._fail(generation, broken)

    def _receive(self) -> bool:
        """Take everything out of the inbox; wait for something when there is nothing else to do. False means stop."""
        while True:
            is_idle = not self._running and not self._waiting
            if is_idle:
                self._resize_window()
            try:
                item = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, Generation):
                self._n_arrived += 1
                item.arrived = self._n_arrived
                self._n_received += item.is_arrival
                self._waiting.append(item)
            else:
                item.run(self._backend)

    def _apply(self, limits: Limits) -> None:
        before, threads = self.limits, (limits.n_threads, limits.n_threads_batch)
        if self._backend.capabilities.threads and threads != (before.n_threads, before.n_threads_batch):
            (self._crowding.limit if self._crowding is not None else self._set_threads)(*threads)
        for generation in self._running:
            generation.held_back = limits.note or generation.held_back
        self.n_ctx = min(self.full_n_ctx, limits.n_ctx) if self._backend.capabilities.resize else self.full_n_ctx
        self.limits = limits
        self._release_idle()

    def _set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self._backend.set_threads(n_threads, n_threads_batch)
        if self._draft is not None:
            self._draft.set_threads(n_threads, n_threads_batch)

    def _resize_window(self) -> None:
        """While idle, resize the KV cache to the current limit, or to the full window for a waiting prompt that needs it.

        Dropped contents are restored from disk or computed again.
        """
        if self._running:
            return
        longest = max((one.n_tokens for one in self._waiting), default=0)
        wanted = self.n_ctx if longest < self.n_ctx else self.full_n_ctx
        if wanted == self._backend.n_ctx:
            return
        self._cache.evict_idle(0)
        try:
            self._backend.resize(wanted)
        except (ModelTooLargeError, UnsupportedError) as error:
            _log.warning("The context window stays at %d tokens: %s", self._backend.n_ctx, error)
            wanted = self.n_ctx  # until the limits change again
            self.limits = self.limits.with_window(self._backend.n_ctx)
        if wanted == self.n_ctx:
            self.n_ctx = self._backend.n_ctx  # engines round up

    def _release_idle(self) -> None:
        """While memory is short, release all idle sequences but the newest."""
        if self.limits.single_reply:
            self._cache.evict_idle(1)
            if self._draft is not None:
                self._draft.release(busy=[one.slot.seq_id for one in self._running if one.slot is not None])

    def _rest(self, worked_s: float, share: float) -> None:
        """Do nothing for this share of the time, so that the device cools down. New work or a cancelled reply ends it."""
        until = time.perf_counter() + min(worked_s * share / (1 - share), _LONGEST_REST_S)
        while self._inbox.empty() and not any(one.is_cancelled for one in self._running):
            left = until - time.perf_counter()
            if left <= 0:
                return
            time.sleep(min(left, _REST_SLICE_S))

    def _finish_cancelled(self) -> None:
        for generation in [one for one in [*self._running, *self._waiting] if one.is_cancelled]:
            self._finish(generation, "cancelled")

    def _admit(self) -> None:
        """Give waiting generations a sequence, in the order of `Order`."""
        while self._waiting:
            is_busy = self._is_full or not self._cache.has_free_sequence or (bool(self._running) and self.limits.single_reply)
            if is_busy:
                if not self._make_way():
                    return
                continue
            candidates = self._admissible()
            if not candidates:
                return
            generation = self._admission.choose(candidates, self._n_missing)
            n_tokens, n_ctx = generation.n_tokens, self._backend.n_ctx
            if self._running and n_ctx <= n_tokens < self.full_n_ctx:  # until nothing runs and the window can be made larger
                if not self._make_way():
                    return
                continue
            if generation.generated and n_tokens >= n_ctx:
                self._finish(generation, "length")
                continue
            try:
                if not self._start(generation, n_tokens):
                    return  # every sequence is busy
            except Exception as error:  # noqa: BLE001 (see reply_error)
                self._fail(generation, reply_error(error))
                continue
            self._admission.note(candidates, generation)
            self._waiting.remove(generation)
            self._running.append(generation)

    def _admissible(self) -> list[Generation]:
        """Return those that wait for nothing but a sequence."""
        return self._sharing.admissible(self._waiting, self._running)

    def _n_missing(self, generation: Generation) -> int:
        """Return how many tokens of a prompt without a sequence are not in memory."""
        prompt = generation.to_prefill
        return len(prompt) - self._cache.n_resident(prompt, generation.namespace, generation.mix)

    def _make_way(self) -> bool:
        """Take the sequence of the youngest background generation if an interactive one needs it now; return whether it did."""
        background = [one for one in self._running if one.priority == "background"]
        if not background or all(one.priority == "background" for one in self._admissible()):
            return False
        youngest = max(background, key=lambda one: one.arrived)
        assert youngest.slot is not None
        slot, youngest.slot = youngest.slot, None
        self._requeue(youngest)
        self._is_full = False
        with contextlib.suppress(BackendError):
            self._cache.release(slot)  # its tokens stay in memory while there is room
            self._release_idle()
        return True

    def _start(self, generation: Generation, n_tokens: int) -> bool:
        """Give a generation a sequence and a sampler; False if every sequence is busy."""
        if not n_tokens:
            raise BackendError("The prompt is empty.", "Send at least one token.")
        if n_tokens >= self._backend.n_ctx:
            raise ContextFullError(
                f"The prompt has {n_tokens:,} tokens, the context window {self._backend.n_ctx:,}, and a reply needs room too.",
                "Shorten it, or load the model with a larger context.",
                n_prompt=n_tokens,
                n_ctx=self._backend.n_ctx,
            )
        started = time.perf_counter()
        taken = self._cache.acquire(
            generation.to_prefill,
            generation.owner,
            generation.boundaries,
            generation.hint,
            generation.namespace,
            generation.mix,
        )
        if taken is None:
            return False
        generation.slot, reuse = taken
        if generation.sampler is None:
            generation.sampler = self._backend.open_sampler(generation.sampling, generation.tokens)
        if not generation.started_at:
            generation.started_at = started
            generation.reuse = reuse
        generation.held_back = self.limits.note or generation.held_back
        generation.listener(Prefilled(generation.slot.n_tokens, n_tokens))
        return True

    def _prefill_one_chunk(self) -> None:
        candidates = sorted((one for one in self._running if one.is_prefilling), key=lambda one: one.arrived)
        if not candidates:
            return
        generation = self._prefill_order.choose(candidates, lambda one: one.n_left)
        if generation.priority == "background" and any(one.priority == "interactive" for one in self._running):
            return  # its chunk would come between two tokens of a reply
        slot, tokens = generation.slot, generation.to_prefill
        assert slot is not None
        checkpoints = self._cache.checkpoints(generation.boundaries)
        chunk = tokens[slot.n_tokens : slot.n_tokens + self._chunk_length(generation, checkpoints)]
        started = time.perf_counter()
        should_stop = self._interruption(generation, len(chunk))
        if self._crowding is not None:
            self._crowding.before_chunk(len(chunk))
        try:
            self._backend.set_adapters(generation.mix)
            n_done = self._cache.evict_and_retry(lambda: self._backend.prefill(slot.seq_id, chunk, should_stop=should_stop))
        except Exception as error:  # noqa: BLE001 (see reply_error)
            if isinstance(error, ContextFullError) and len(self._running) > 1:
                self._preempt()
            else:
                self._fail(generation, reply_error(error))
            return
        ms = (time.perf_counter() - started) * 1000
        if generation.is_forwarding:
            self._note_forwarded(generation, chunk[:n_done])
            return
        if n_done:
            self._cache.note_prefill(slot, chunk[:n_done], ms)
        if slot.n_tokens in checkpoints:
            self._cache.checkpoint(slot)
        if n_done == len(chunk):
            self._timer.note_chunk(generation, n_done, ms)
            self._decoder.note_chunk(n_done, ms)
            self._prefill_order.note(candidates, generation)
            generation.n_interruptions = 0
        else:
            generation.n_interruptions += 1
        generation.listener(Prefilled(slot.n_tokens, len(tokens)))
        if slot.n_tokens == len(tokens) and not generation.prefilled_at:
            generation.prefilled_at = time.perf_counter()
            if generation.shared is not None:
                generation.shared.is_prefilled = True

    def _note_forwarded(self, generation: Generation, tokens: Sequence[int]) -> None:
        """Note that forced tokens of a reply were prefilled, see `edge.engine.decoding`."""
        assert generation.slot is not None
        for token in tokens:
            self._cache.note_decode(generation.slot, token)
        generation.is_forwarding = generation.is_prefilling

    def _chunk_length(self, generation: Generation, checkpoints: frozenset[int]) -> int:
        """Return the tokens of the next chunk: to the next multiple of the chunk size, or less while others wait."""
        assert generation.slot is not None
        start, chunk_size = generation.slot.n_tokens, self._cache.chunk_size
        ends = [(start // chunk_size + 1) * chunk_size, *checkpoints]  # chunk-aligned, or where a state is stored
        n_left = generation.n_left
        # The same prompt once more finds all but its last token in the cache, so that one is computed alone the first time:
        # with a seed, another rounding of its logits would be another reply.
        if generation.sampling.seed is not None and not self._cache.is_exact and not generation.is_forwarding:
            n_left = max(1, n_left - 1)
        n_whole = min(min(end for end in ends if end > start) - start, n_left)
        others = [one for one in self._running if one is not generation and one.priority == "interactive"]
        decoded = [one for one in others if not one.is_prefilling]
        decodes = bool(decoded)
        is_alone = not decodes and all(one.n_left >= generation.n_left for one in others)  # nobody waits for this chunk to end
        if is_alone and generation.priority == "interactive":
            return n_whole
        return self._timer.fit(generation, n_whole, n_passes=n_groups(decoded))

    def _interruption(self, generation: Generation, n_tokens: int) -> Callable[[], bool]:
        """Return what a chunk asks now and then: should it stop, for the reply was cancelled, or another prompt has arrived?

        A chunk is dropped for a prompt that would wait for longer than the gap, and for longer than the chunk has run: so an
        arrival costs a long prompt at most half a chunk's time, and no more than MOST_PASSES arrivals do so in a row.
        """
        began, expected_s = time.perf_counter(), self._timer.predict_ms(generation, n_tokens) / 1000
        is_open = self._cache.has_free_sequence and not self._is_full and not self.limits.single_reply
        can_interrupt = is_open and generation.n_interruptions < MOST_PASSES

        def should_stop() -> bool:
            if generation.is_cancelled:
                return True
            if not can_interrupt or self._n_submitted == self._n_received:
                return False
            elapsed_s = time.perf_counter() - began
            return expected_s - elapsed_s > max(elapsed_s, self._timer.max_gap_ms / 1000)

        return should_stop

    def _preempt(self) -> Generation:
        """Preempt a generation when the KV cache is full: a background one, else the youngest.

        It is prefilled again once another ends. The oldest interactive one is never preempted, so all of them end.
        """
        youngest = max(self._running, key=lambda one: (one.priority == "background", one.arrived))
        assert youngest.slot is not None
        self._cache.discard(youngest.slot)
        youngest.slot = None
        self._requeue(youngest)
        self._is_full = True
        return youngest

    def _requeue(self, generation: Generation) -> None:
        generation.pending, generation.is_forwarding = None, False  # all of it is prefilled with the rest
        self._running.remove(generation)
        self._waiting.append(generation)
        self._waiting.sort(key=lambda one: one.arrived)

    def _decode(self) -> None:
        started = time.perf_counter()
        if self._decoder.decode_one_token_each(self._timer.pass_ms):
            self._timer.note_pass((time.perf_counter() - started) * 1000)

    def _finish(self, generation: Generation, reason: FinishReason, *, is_stop_text: bool = False) -> None:
        if not is_stop_text:
            generation.show_rest()
        generation.listener(generation.finished(reason, is_stop_text=is_stop_text))
        self._release(generation)  # last, because storing the KV cache takes time

    def _fail(self, generation: Generation, error: EdgeError) -> None:
        generation.show_rest()
        if generation.slot is not None:
            with contextlib.suppress(BackendError):  # the engine is failing already; the first error counts
                self._cache.resync(generation.slot)
        self._release(generation)
        generation.listener(Failed(error))

    def _release(self, generation: Generation) -> None:
        if generation in self._waiting:
            self._waiting.remove(generation)
        if generation in self._running:
            self._running.remove(generation)
            self._is_full = False
        if generation.sampler is not None:
            with contextlib.suppress(BackendError):  # the engine is failing already; the first error counts
                generation.sampler.close()
            generation.sampler = None
        if generation.slot is not None:
            slot, generation.slot = generation.slot, None
            with contextlib.suppress(BackendError):  # likewise
                self._cache.release(slot)
                self._release_idle()
