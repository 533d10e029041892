"""The thread that owns the backend: it reads prompts chunk by chunk and decodes all running replies in one pass.

Everybody else talks to it through a queue. Each round does one chunk of the oldest prompt that is still being read, then one
decode step for every reply that is being written, so a long prompt never stops a reply that is under way for longer than one
chunk. Events go to the listener of a generation from this thread; listeners must be quick.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from edge.engine.generation import Failed, Finished, Generation, Prefilled
from edge.errors import BackendError, ContextFullError, EdgeError, ModelTooLargeError, UnsupportedError
from edge.kv.cache import KVCache
from edge.types import FinishReason, Timing, Usage

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.engine.governor import Limits

__all__ = ["Scheduler"]

T = TypeVar("T")
_log = logging.getLogger("edge.scheduler")
_LONGEST_REST_S, _REST_SLICE_S = 2.0, 0.02


@dataclass(slots=True, eq=False)
class _Call:
    """A function that wants the backend for itself for a moment."""

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

    Attributes:
        n_ctx: the context window of prompts that are made now, in tokens. A governor makes it smaller while memory is short.
    """

    def __init__(self, backend: Backend, cache: KVCache | None = None) -> None:
        self._backend = backend
        self._cache = cache or KVCache(backend)
        self._inbox: queue.SimpleQueue[Generation | _Call | None] = queue.SimpleQueue()
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []
        self._is_full = False  # a prompt gave up its place and waits until a running reply ends
        self._limits: Limits | None = None
        self._full_n_ctx = self.n_ctx = backend.n_ctx
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="edge-engine", daemon=True)
        self._thread.start()

    @property
    def wants_checkpoints(self) -> bool:
        """Whether states are only kept at `Generation.boundaries`."""
        return self._cache.wants_checkpoints

    def submit(self, generation: Generation) -> None:
        """Queue a generation. Its listener hears of everything else, errors included.

        Raises:
            BackendError: the scheduler is closed.
        """
        self._put(generation)

    def call(self, function: Callable[[Backend], T]) -> T:
        """Run a function on the engine thread, between two steps, and give back what it returns or raises.

        Raises:
            BackendError: the scheduler is closed.
        """
        call = _Call(function)
        self._put(call)
        result: T = call.future.result()
        return result

    def alone(self, function: Callable[[Backend, int], T]) -> T:
        """`call`, with every idle sequence emptied first; the function also gets the size of the chunks prompts are read in.

        Raises:
            BackendError: the scheduler is closed, or replies are being written.
        """

        def run(backend: Backend) -> T:
            if self._running:
                raise BackendError("Replies are being written.", "Wait until they are done.")
            while self._cache.evict_one():
                pass
            return function(backend, self._cache.chunk_size)

        return self.call(run)

    def throttle(self, limits: Limits) -> None:
        """Go on within these limits, after the current round. Returns at once.

        Raises:
            BackendError: the scheduler is closed.
        """
        self._put(_Call(lambda _: self._apply(limits)))

    @property
    def limits(self) -> Limits | None:
        """The limits that hold now; None before any were set."""
        return self._limits

    def close(self) -> None:
        """Cancel what runs, stop the thread and close the backend. May be called twice."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _put(self, item: Generation | _Call) -> None:
        with self._lock:
            if self._is_closed:
                raise BackendError("This assistant is closed.", "Load the model again.")
            self._inbox.put(item)

    # Everything below runs on the engine thread.

    def _run(self) -> None:
        reason = BackendError("The assistant was closed while it was answering.")
        try:
            while self._take_in():
                began = time.perf_counter()
                self._fit_window()
                self._admit()
                self._read_one_chunk()
                self._write_one_token_each()
                if self._limits is not None and self._limits.rest:
                    self._rest(time.perf_counter() - began, self._limits.rest)
        except Exception as error:  # noqa: BLE001 (a bug of ours or of the engine's binding: nobody may wait for ever because of it)
            reason = BackendError(f"The engine thread broke down: {error!r}.", "Load the model again, and report this.")
            reason.__cause__ = error
        finally:
            with self._lock:
                self._is_closed = True
            try:
                self._abandon(reason)
            finally:
                self._backend.close()

    def _abandon(self, reason: EdgeError) -> None:
        for generation in [*self._running, *self._waiting]:
            if generation.is_cancelled:
                self._finish(generation, "cancelled")
            else:
                self._fail(generation, reason)
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, Generation):
                self._fail(item, reason)
            elif item is not None:
                item.future.set_exception(reason)

    def _take_in(self) -> bool:
        """Move what arrived to where it belongs; wait when there is nothing else to do. False means stop."""
        while True:
            is_idle = not self._running and not self._waiting
            if is_idle:
                self._fit_window()
            try:
                item = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, Generation):
                self._waiting.append(item)
            else:
                item.run(self._backend)

    def _apply(self, limits: Limits) -> None:
        before, self._limits = self._limits, limits
        threads = (limits.n_threads, limits.n_threads_batch)
        if self._backend.capabilities.threads and (before is None or threads != (before.n_threads, before.n_threads_batch)):
            self._backend.set_threads(*threads)
        for generation in self._running:
            generation.held_back = limits.note or generation.held_back
        self.n_ctx = min(self._full_n_ctx, limits.n_ctx) if self._backend.capabilities.resize else self._full_n_ctx
        self._tidy()

    def _fit_window(self) -> None:
        """Make the KV cache as large as it should be, once nothing runs. What it held comes back from the disk, or is read
        again. A prompt that was made for a larger window still gets it."""
        if self._running:
            return
        longest = max((len(one.tokens) + len(one.written) for one in self._waiting), default=0)
        wanted = self.n_ctx if longest < self.n_ctx else self._full_n_ctx
        if wanted == self._backend.n_ctx:
            return
        while self._cache.evict_one():
            pass
        try:
            self._backend.resize(wanted)
        except (ModelTooLargeError, UnsupportedError) as error:
            _log.warning("The context window stays at %d tokens: %s", self._backend.n_ctx, error)
            wanted = self.n_ctx  # until the limits change again
            if self._limits is not None:
                self._limits = self._limits.with_window(self._backend.n_ctx)
        if wanted == self.n_ctx:
            self.n_ctx = self._backend.n_ctx  # engines round up

    def _tidy(self) -> None:
        """While memory is short, let go of what idle sequences hold, but for the newest."""
        if self._limits is not None and self._limits.single_reply:
            self._cache.evict_idle(1)

    def _rest(self, worked_s: float, share: float) -> None:
        """Do nothing for this share of the time, so that the device cools down. What arrives or is cancelled ends it."""
        until = time.perf_counter() + min(worked_s * share / (1 - share), _LONGEST_REST_S)
        while self._inbox.empty() and not any(one.is_cancelled for one in self._running):
            left = until - time.perf_counter()
            if left <= 0:
                return
            time.sleep(min(left, _REST_SLICE_S))

    def _admit(self) -> None:
        """Give waiting generations a sequence, oldest first."""
        for generation in [one for one in self._waiting if one.is_cancelled]:
            self._waiting.remove(generation)
            self._finish(generation, "cancelled")
        while self._waiting and not self._is_full:
            if self._running and self._limits is not None and self._limits.single_reply:
                return  # one at a time
            generation = self._waiting[0]
            to_read = [*generation.tokens, *generation.written]  # written before only when it gave way to another
            n_prompt, n_ctx = len(to_read), self._backend.n_ctx
            if self._running and n_ctx <= n_prompt < self._full_n_ctx:
                return  # until nothing runs and the window can be made larger
            if n_prompt == 0 or n_prompt >= n_ctx:
                self._waiting.pop(0)
                if generation.written:
                    self._finish(generation, "length")
                elif n_prompt == 0:
                    self._fail(generation, BackendError("The prompt is empty.", "Send at least one token."))
                else:
                    self._fail(
                        generation,
                        ContextFullError(
                            f"The prompt has {n_prompt:,} tokens, the context window {n_ctx:,}, and a reply needs room too.",
                            "Shorten it, or load the model with a larger context.",
                        ),
                    )
                continue
            started = time.perf_counter()
            try:
                taken = self._cache.acquire(to_read, generation.owner, generation.boundaries)
                if taken is None:
                    return  # every sequence is busy
                slot, reuse = taken
                generation.slot = slot
                if generation.sampler is None:
                    generation.sampler = self._backend.open_sampler(generation.sampling, generation.tokens)
            except EdgeError as error:
                self._waiting.pop(0)
                self._fail(generation, error)
                continue
            self._waiting.pop(0)
            self._running.append(generation)
            if not generation.started_at:
                generation.started_at = started
                generation.reuse = reuse
            if self._limits is not None:
                generation.held_back = self._limits.note or generation.held_back
            generation.listener(Prefilled(slot.n_tokens, n_prompt))

    def _read_one_chunk(self) -> None:
        generation = next((one for one in self._running if one.is_reading), None)
        if generation is None:
            return
        slot = generation.slot
        assert slot is not None
        if generation.is_cancelled:
            self._finish(generation, "cancelled")
            return
        to_read = [*generation.tokens, *generation.written]
        tokens = to_read[slot.n_tokens : self._end_of_chunk(generation, slot.n_tokens)]
        started = time.perf_counter()
        try:
            n_read = self._cache.evict_and_retry(
                lambda: self._backend.prefill(slot.seq_id, tokens, should_stop=lambda: generation.is_cancelled)
            )
        except ContextFullError as error:
            if len(self._running) == 1:
                self._fail(generation, error)
            else:
                self._give_way()
            return
        except EdgeError as error:
            self._fail(generation, error)
            return
        if n_read:
            self._cache.note_prefill(slot, tokens[:n_read], (time.perf_counter() - started) * 1000)
        if slot.n_tokens in self._cache.checkpoints(generation.boundaries):
            self._cache.checkpoint(slot)
        generation.listener(Prefilled(slot.n_tokens, len(to_read)))
        if slot.n_tokens == len(to_read) and not generation.prefilled_at:
            generation.prefilled_at = time.perf_counter()

    def _end_of_chunk(self, generation: Generation, start: int) -> int:
        """Where the chunk that begins at a position ends: on the grid, or before, where a state is to be kept."""
        chunk = self._cache.chunk_size
        ends = [(start // chunk + 1) * chunk, *self._cache.checkpoints(generation.boundaries)]
        return min(end for end in ends if end > start)

    def _give_way(self) -> Generation:
        """The cells do not suffice for all that runs: the youngest waits until another has ended, and is read again then."""
        youngest = self._running.pop()
        slot = youngest.slot
        assert slot is not None
        youngest.slot = None
        self._cache.discard(slot)
        self._waiting.insert(0, youngest)
        self._is_full = True
        return youngest

    def _write_one_token_each(self) -> None:
        steps: list[tuple[Generation, int]] = []
        for generation in [one for one in self._running if not one.is_reading]:
            try:
                token = self._next_token(generation)
            except EdgeError as error:
                self._fail(generation, error)
                continue
            if token is not None:
                steps.append((generation, token))
        while steps:
            pairs = [(generation.slot.seq_id, token) for generation, token in steps if generation.slot]
            try:
                self._cache.evict_and_retry(lambda pairs=pairs: self._backend.decode(pairs))  # type: ignore[misc]
                break
            except ContextFullError:
                if len(self._running) > 1:
                    youngest = self._give_way()
                    steps = [step for step in steps if step[0] is not youngest]
                else:
                    self._finish(steps.pop()[0], "length")
            except EdgeError as error:
                for generation, _ in steps:
                    self._fail(generation, error)
                return
        for generation, token in steps:
            if generation.slot:
                self._cache.note_decode(generation.slot, token)

    def _next_token(self, generation: Generation) -> int | None:
        """Choose and show one token; None when that ended the reply."""
        slot, sampler = generation.slot, generation.sampler
        assert slot is not None and sampler is not None
        if generation.is_cancelled:
            self._finish(generation, "cancelled")
            return None
        token = sampler.sample(slot.seq_id)
        if self._backend.tokenizer.is_end(token):
            self._finish(generation, "stop")
            return None
        generation.first_token_at = generation.first_token_at or time.perf_counter()
        generation.written.append(token)
        if generation.show(self._backend.tokenizer.token_bytes(token)):
            self._finish(generation, "stop", is_matched=True)
            return None
        limit = generation.sampling.max_tokens
        is_full = slot.n_tokens + 1 >= self._backend.n_ctx
        if is_full or (limit is not None and len(generation.written) >= limit):
            self._finish(generation, "length")
            return None
        return token

    def _finish(self, generation: Generation, reason: FinishReason, *, is_matched: bool = False) -> None:
        if not is_matched and generation.written:
            generation.show(b"", is_last=True)
        now = time.perf_counter()
        started = generation.started_at or now
        prefilled = generation.prefilled_at or now
        first_token, first_text = generation.first_token_at, generation.first_text_at
        reuse = generation.reuse
        usage = Usage(
            n_prompt=len(generation.tokens),
            n_reused=reuse.n_memory + reuse.n_disk,
            n_generated=len(generation.written),
            n_restored=reuse.n_disk,
            saved_ms=round(reuse.saved_ms, 1),
        )
        timing = Timing(
            queue_ms=(started - generation.asked_at) * 1000,
            prefill_ms=(prefilled - started) * 1000,
            first_token_ms=(first_text - generation.asked_at) * 1000 if first_text else 0.0,
            decode_ms=(now - first_token) * 1000 if first_token else 0.0,
            total_ms=(now - generation.asked_at) * 1000,
        )
        tokens = () if is_matched else tuple(generation.written)
        generation.listener(Finished(reason, usage, timing, tokens, generation.held_back))
        self._let_go(generation)  # what it computed is kept after the reply, not before its end is told

    def _fail(self, generation: Generation, error: EdgeError) -> None:
        if generation.written:
            generation.show(b"", is_last=True)  # what was held back in case a stop text followed
        if generation.slot is not None:
            with contextlib.suppress(BackendError):  # the engine is failing already; the first error is the one to tell
                self._cache.resync(generation.slot)
        self._let_go(generation)
        generation.listener(Failed(error))

    def _let_go(self, generation: Generation) -> None:
        if generation in self._running:
            self._running.remove(generation)
            self._is_full = False
        if generation.sampler is not None:
            with contextlib.suppress(BackendError):  # the engine is failing already; the first error is the one to tell
                generation.sampler.close()
            generation.sampler = None
        if generation.slot is not None:
            slot, generation.slot = generation.slot, None
            with contextlib.suppress(BackendError):  # likewise
                self._cache.release(slot)
                self._tidy()
