"""Scoring in packs: what several given answers lack, the rest of their prompts included, is computed in one pass.

One token at a time, an answer costs a pass for each of its tokens, and each prompt one of its own. An engine with
`Capabilities.max_outputs` takes all of that together. Packs are made only while nothing but scoring runs, so that no reply
waits for them, and never where a cold run must be repeated bit for bit: the last bits depend on what is computed together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Part
from edge.engine.generation import Prefilled, reply_error
from edge.engine.scripted import ScriptedSampler
from edge.errors import ContextFullError, UnsupportedError

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.engine.decoding import Decoder
    from edge.engine.generation import Generation
    from edge.errors import EdgeError
    from edge.kv.cache import KVCache

__all__ = ["Packer"]


class Packer:
    """Computes scored answers in packs, on the engine thread.

    Args:
        backend: an open backend.
        cache: of that backend.
        running: replies that have a sequence; the scheduler changes the list.
        decoder: shows the tokens.
        fail: ends a reply by an error.
    """

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        running: Sequence[Generation],
        *,
        decoder: Decoder,
        fail: Callable[[Generation, EdgeError], None],
    ) -> None:
        self._backend, self._cache, self._running, self._decoder, self._fail = backend, cache, running, decoder, fail
        self._most = 0 if cache.is_exact else backend.capabilities.max_outputs

    def run(self) -> bool:
        """Score what fits into one pass; False if nothing can be, so that it goes the usual way."""
        pack = self._choose() if self._most else []
        while pack:
            began = time.perf_counter()
            parts = [self._part(generation) for generation in pack]
            try:
                self._backend.set_adapters(pack[0].mix)
                self._cache.evict_and_retry(lambda parts=parts: self._backend.extend(parts))  # type: ignore[misc]
            except ContextFullError:
                pack = pack[: len(pack) // 2]  # none is left where not even one fits: the scheduler makes room for it
                continue
            except UnsupportedError:
                self._most = 0
                return False
            except Exception as error:  # noqa: BLE001 (see reply_error)
                for generation in pack:
                    self._fail(generation, reply_error(error))
                return True
            ms = (time.perf_counter() - began) * 1000
            n_tokens = sum(len(part.tokens) for part in parts)
            for generation, part in zip(pack, parts, strict=True):
                self._finish(generation, part, ms * len(part.tokens) / n_tokens)
            return True
        return False

    def _choose(self) -> list[Generation]:
        """Return answers that fit into one pass, the oldest first; none while anything else runs."""
        if not all(isinstance(one.sampler, ScriptedSampler) for one in self._running):
            return []
        pack: list[Generation] = []
        n_tokens = n_logits = 0
        for one in sorted(self._running, key=lambda one: one.arrived):
            script = _script_of(one)
            if one.generated or not one.n_left or not script or (pack and one.mix != pack[0].mix):
                continue
            n_tokens += one.n_left + len(script) - 1
            n_logits += len(script)
            if n_tokens > self._backend.chunk_size or n_logits > self._most:
                break
            pack.append(one)
        return pack

    def _part(self, generation: Generation) -> Part:
        """Return what a generation lacks: of its prompt, and of its answer all but the last token."""
        assert generation.slot is not None
        script = _script_of(generation)
        tokens = [*generation.tokens[generation.slot.n_tokens :], *script[:-1]]
        return Part(generation.slot.seq_id, tokens, len(script))

    def _finish(self, generation: Generation, part: Part, ms: float) -> None:
        """Note what was computed, and show the answer token by token."""
        slot, n_prompt = generation.slot, len(generation.tokens)
        assert slot is not None
        self._cache.note_prefill(slot, generation.tokens[slot.n_tokens :], ms)
        generation.prefilled_at = time.perf_counter()
        if generation.shared is not None:
            generation.shared.is_prefilled = True
        generation.listener(Prefilled(n_prompt, n_prompt))
        for n_back in range(part.n_logits - 1, -1, -1):
            token = self._decoder.next_token(generation, n_back)
            if token is None:  # which ended it
                return
            if n_back:
                self._cache.note_decode(slot, token)
            else:
                generation.pending = token  # more may follow: the scheduler goes on from here


def _script_of(generation: Generation) -> Sequence[int]:
    assert isinstance(generation.sampler, ScriptedSampler)
    return generation.sampler.left
