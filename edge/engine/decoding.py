"""One round of decoding: a token of every running reply in one pass, with the drafts that are worth it behind them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from edge.backends.base import MAX_DRAFT, NO_DRAFTS
from edge.engine.drafting import Lookup
from edge.engine.generation import reply_error
from edge.errors import ContextFullError

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.engine.drafting import Planner
    from edge.engine.generation import Generation
    from edge.errors import EdgeError
    from edge.kv.cache import KVCache
    from edge.types import FinishReason

__all__ = ["Decoder"]


class _Finish(Protocol):
    def __call__(self, generation: Generation, reason: FinishReason, *, is_stop_text: bool = False) -> None: ...


class Decoder:
    """Decodes the running replies of a scheduler, on the engine thread.

    Args:
        backend: an open backend.
        cache: of that backend.
        running: replies that have a sequence; the scheduler changes the list.
        finish: ends a reply.
        fail: ends a reply by an error.
        preempt: takes the sequence of one reply, because the KV cache is full, and returns that reply.
        planner: chooses the length of drafts; None makes none. There are none either where the engine takes none, and where
            `KVCache.is_exact` is true, since they change the last bits.
    """

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        running: Sequence[Generation],
        *,
        finish: _Finish,
        fail: Callable[[Generation, EdgeError], None],
        preempt: Callable[[], Generation],
        planner: Planner | None,
    ) -> None:
        self._backend, self._tokenizer, self._cache, self._running = backend, backend.tokenizer, cache, running
        self._finish, self._fail, self._preempt = finish, fail, preempt
        self._planner = planner if backend.capabilities.drafts and not cache.is_exact else None

    def decode_one_token_each(self) -> bool:
        """Choose a token of every reply that is not prefilling, and compute the logits after it.

        Of a reply with a draft, all that comes true is chosen at once. Returns whether there were any replies.
        """
        steps = self._choose_tokens()
        drafts = self._draft(steps, self._planner) if self._planner is not None else NO_DRAFTS
        while steps:
            pairs = [(generation.slot.seq_id, token) for generation, token in steps if generation.slot]
            began = time.perf_counter()
            try:
                if drafts:
                    self._backend.decode(pairs, drafts)
                else:
                    self._cache.evict_and_retry(lambda pairs=pairs: self._backend.decode(pairs))  # type: ignore[misc]
                break
            except ContextFullError:
                if drafts:  # nothing makes room for a guess
                    drafts = NO_DRAFTS
                elif len(self._running) > 1:
                    youngest = self._preempt()
                    steps = [step for step in steps if step[0] is not youngest]
                else:
                    self._finish(steps.pop()[0], "length")
            except Exception as error:  # noqa: BLE001 (see reply_error)
                for generation, _ in steps:
                    self._fail(generation, reply_error(error))
                return False
        if not steps:
            return False
        ms = (time.perf_counter() - began) * 1000
        for generation, token in steps:
            if generation.slot:
                self._cache.note_decode(generation.slot, token)
        if self._planner is not None:
            self._planner.note_pass(len(steps) + sum(map(len, drafts.values())), ms)
            extra_ms = ms - self._planner.pass_ms(len(steps))
            for generation, _ in steps:
                if generation.slot and (draft := drafts.get(generation.slot.seq_id)):
                    self._verify(generation, draft, self._planner, extra_ms / len(drafts))
        return True

    def _choose_tokens(self) -> list[tuple[Generation, int]]:
        steps: list[tuple[Generation, int]] = []
        for generation in [one for one in self._running if not one.is_prefilling]:
            if generation.is_prefill_only:
                self._finish(generation, "stop")
                continue
            token, generation.pending = generation.pending, None
            if token is None:
                token = self._next_token(generation)
            if token is not None:
                steps.append((generation, token))
        return steps

    def _next_token(self, generation: Generation, n_back: int = 0) -> int | None:
        """Choose and show one token; None when that ended the reply."""
        assert generation.slot is not None and generation.sampler is not None
        try:
            token = generation.sampler.sample(generation.slot.seq_id, n_back)
            return token if self._show(generation, token) else None
        except Exception as error:  # noqa: BLE001 (see reply_error)
            self._fail(generation, reply_error(error))
            return None

    def _show(self, generation: Generation, token: int) -> bool:
        """Add a token to a reply; False when it ended it."""
        if self._tokenizer.is_end(token):
            self._finish(generation, "stop")
            return False
        generation.add(token)
        if generation.show(self._tokenizer.token_bytes(token)):
            self._finish(generation, "stop", is_stop_text=True)
            return False
        if self._n_possible(generation) <= 0:
            self._finish(generation, "length")
            return False
        if generation.is_repeating:
            self._finish(generation, "repetition")
            return False
        return True

    def _n_possible(self, generation: Generation) -> int:
        """Return how many more tokens a reply may have, given that the newest one is not in the cache."""
        assert generation.slot is not None
        n_room = self._backend.n_ctx - generation.slot.n_tokens - 1
        limit = generation.sampling.max_tokens
        return n_room if limit is None else min(n_room, limit - len(generation.generated))

    def _draft(self, steps: Sequence[tuple[Generation, int]], planner: Planner) -> Mapping[int, Sequence[int]]:
        """Return the drafts that are worth their time: sequence -> tokens."""
        drafts: dict[int, list[int]] = {}
        n_drafted = 0
        for generation, _ in steps:
            assert generation.slot is not None
            if generation.sampling.seed is not None:  # it asks for the same reply again, to the last bit
                continue
            if generation.lookup is None:
                generation.lookup = Lookup(generation.to_prefill)
            n_most = min(MAX_DRAFT - n_drafted, self._n_possible(generation) - 1)
            draft, n_match = generation.lookup.draft(n_most)
            n_draft = planner.length(n_match, len(steps) - 1 + n_drafted, len(draft)) if draft else 0
            if n_draft:
                drafts[generation.slot.seq_id] = draft[:n_draft]
                generation.n_match = n_match
                n_drafted += n_draft
        return drafts

    def _verify(self, generation: Generation, draft: Sequence[int], planner: Planner, extra_ms: float) -> None:
        """Choose the tokens behind the newest one, as long as they are those of the draft, and drop the rest of it."""
        slot, n_accepted = generation.slot, 0
        assert slot is not None
        for number, expected in enumerate(draft):
            token = self._next_token(generation, len(draft) - number)
            if token != expected:
                generation.pending = token
                break
            self._cache.note_decode(slot, token)
            n_accepted += 1
        if generation.slot is not None:
            self._cache.drop_draft(slot)
        planner.note_draft(generation.n_match, n_accepted, len(draft))
        generation.drafted = generation.drafted.plus(len(draft), n_accepted, n_accepted * planner.pass_ms(1) - extra_ms)
