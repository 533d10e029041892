"""One round of decoding: a token of every running reply in one pass, with the drafts that are worth it behind them.

Where the constraint of a reply leaves no choice, its next tokens are shown at once and prefilled together, in place of a pass
for each ("fast-forward", as llguidance calls it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from edge.backends.base import MAX_DRAFT, NO_DRAFTS
from edge.engine.adapter_turns import AdapterTurns
from edge.engine.drafting import Lookup
from edge.engine.generation import reply_error
from edge.engine.rounds import MAX_GAP_MS
from edge.errors import ContextFullError
from edge.types import TokenLogprob

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.engine.crowding import Crowding
    from edge.engine.draft_model import DraftModel, Guess
    from edge.engine.drafting import Planner
    from edge.engine.generation import Generation
    from edge.errors import EdgeError
    from edge.kv.cache import KVCache
    from edge.types import FinishReason

__all__ = ["Decoder"]

_LEAST_FORCED = 2  # one token takes a pass in any case


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
        model: drafts where a reply repeats nothing; None for none.
        max_gap_ms: longest gap between two tokens of a reply; see `edge.engine.adapter_turns`.
        crowding: chooses the threads; None leaves them as they are.

    Attributes:
        n_tokens: that were generated so far.
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
        model: DraftModel | None = None,
        max_gap_ms: float = MAX_GAP_MS,
        crowding: Crowding | None = None,
    ) -> None:
        self._backend, self._tokenizer, self._cache, self._running = backend, backend.tokenizer, cache, running
        self._finish, self._fail, self._preempt = finish, fail, preempt
        self._planner = planner if backend.capabilities.drafts and not cache.is_exact else None
        self._model, self._crowding = model, crowding
        self._turns = AdapterTurns(max_gap_ms)
        self._guesses: dict[int, Guess] = {}  # of this round, by sequence
        self.n_tokens = 0

    def note_chunk(self, n_tokens: int, ms: float) -> None:
        """Note the time of a whole chunk of a prompt, which says what a draft as long would cost."""
        if self._planner is not None:
            self._planner.note_chunk(n_tokens, ms)

    def decode_one_token_each(self, pass_ms: float = 0.0) -> bool:
        """Choose a token of every reply that is not prefilling, and compute the logits after it.

        Of a reply with a draft, all that comes true is chosen at once. Where replies are computed with different adapters,
        those of one group are decoded; see `edge.engine.adapter_turns`.

        Args:
            pass_ms: time that this usually takes, in milliseconds; 0 if unknown.

        Returns:
            Whether there were any replies.
        """
        steps = self._choose_tokens(pass_ms)
        drafts = self._draft(steps, self._planner) if self._planner is not None else NO_DRAFTS
        while steps:
            pairs = [(generation.slot.seq_id, token) for generation, token in steps if generation.slot]
            self._choose_threads(steps, drafts)
            began, own = time.perf_counter(), time.thread_time()
            try:
                self._backend.set_adapters(steps[0][0].mix)
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
        if self._crowding is not None and not drafts and not _has_seed(steps):
            self._crowding.note_pass(len(steps), ms, (time.thread_time() - own) * 1000)
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

    def _choose_threads(self, steps: Sequence[tuple[Generation, int]], drafts: Mapping[int, Sequence[int]]) -> None:
        if self._crowding is None:
            return
        if _has_seed(steps):
            self._crowding.use_all()
        elif drafts:
            self._crowding.before_chunk(len(steps) + sum(map(len, drafts.values())))

    def _choose_tokens(self, pass_ms: float) -> list[tuple[Generation, int]]:
        steps: list[tuple[Generation, int]] = []
        for generation in [one for one in self._running if one.is_prefill_only and not one.is_prefilling]:
            self._finish(generation, "stop")
        decoded = [one for one in self._running if not one.is_prefilling]
        is_prefilling = len(decoded) < len(self._running)
        for generation in self._turns.choose(decoded, pass_ms=pass_ms, is_prefilling=is_prefilling):
            token, generation.pending = generation.pending, None
            if token is None:
                token = self.next_token(generation)
            if token is not None and not self._fast_forward(generation):
                steps.append((generation, token))
        return steps

    def _fast_forward(self, generation: Generation) -> bool:
        """Add the tokens that the constraint of a reply forces behind its newest one; False if there are too few.

        True also if that ended the reply. Never where a cold run must be repeated bit for bit: the prefill has other bits. Nor
        with logprobs, which need the logits in front of each token.
        """
        constraint = generation.constraint
        if constraint is None or self._cache.is_exact or generation.n_logprobs is not None:
            return False
        assert generation.sampler is not None
        try:
            forced = constraint.forced()
            if len(forced) < _LEAST_FORCED:
                return False
            generation.is_forwarding = True
            for token in forced:
                generation.sampler.accept((token,))
                generation.n_forced += 1
                if not self._show(generation, token):
                    break
        except Exception as error:  # noqa: BLE001 (see reply_error)
            self._fail(generation, reply_error(error))
        return True

    def next_token(self, generation: Generation, n_back: int = 0) -> int | None:
        """Choose and show one token of a reply; None when that ended it.

        Args:
            generation: the reply.
            n_back: choose it by the logits before so many draft tokens.
        """
        assert generation.slot is not None and generation.sampler is not None
        try:
            allowed = generation.constraint.allowed() if generation.constraint is not None else None
            token = generation.sampler.sample(generation.slot.seq_id, n_back, allowed)
            logprob = self._logprob(generation, token, n_back) if generation.n_logprobs is not None else None
            return token if self._show(generation, token, logprob) else None
        except Exception as error:  # noqa: BLE001 (see reply_error)
            self._fail(generation, reply_error(error))
            return None

    def _logprob(self, generation: Generation, token: int, n_back: int) -> TokenLogprob:
        """Return how likely a token was, by the logits of the model: no sampling setting and no mask has changed them."""
        from edge.backends.logprobs import logprobs_of, top_tokens

        assert generation.slot is not None and generation.n_logprobs is not None
        logits = self._backend.logits(generation.slot.seq_id, n_back)
        ids = [token, *top_tokens(logits, generation.n_logprobs)]
        chosen, *top = (
            TokenLogprob(one, self._tokenizer.token_bytes(one, special=True), logprob)
            for one, logprob in zip(ids, logprobs_of(logits, ids), strict=True)
        )
        return replace(chosen, top=tuple(top))

    def _show(self, generation: Generation, token: int, logprob: TokenLogprob | None = None) -> bool:
        """Add a token to a reply; False when it ended it."""
        if self._tokenizer.is_end(token):
            generation.end = logprob
            self._finish(generation, "stop")
            return False
        generation.add(token, logprob)
        self.n_tokens += 1
        if generation.show(self._tokenizer.token_bytes(token, special=token in generation.shown)):
            self._finish(generation, "stop", is_stop_text=True)
            return False
        if generation.constraint is not None and generation.constraint.is_over:
            self._finish(generation, "stop")
            return False
        if self._n_possible(generation) <= 0:
            self._finish(generation, "length")
            return False
        if generation.is_repeating:
            self._finish(generation, "repetition")
            return False
        return True

    def _n_possible(self, generation: Generation) -> int:
        """Return how many more tokens a reply may have."""
        n_room = self._backend.n_ctx - generation.n_tokens
        limit = generation.sampling.max_tokens
        return n_room if limit is None else min(n_room, limit - len(generation.generated))

    def _draft(self, steps: Sequence[tuple[Generation, int]], planner: Planner) -> Mapping[int, Sequence[int]]:
        """Return the drafts that are worth their time: sequence -> tokens."""
        drafts: dict[int, Sequence[int]] = {}
        n_drafted = 0
        self._guesses.clear()
        for generation, _ in steps:
            assert generation.slot is not None
            if generation.sampling.seed is not None:  # it asks for the same reply again, to the last bit
                continue
            if generation.lookup is None:
                generation.lookup = Lookup(generation.to_prefill)
            n_most = min(MAX_DRAFT - n_drafted, self._n_possible(generation) - 1)
            draft, n_match = generation.lookup.draft(n_most)
            if generation.constraint is not None:
                draft = draft[: generation.constraint.n_valid(draft)]
            n_other = len(steps) - 1 + n_drafted
            n_draft = planner.length(n_match, n_other, len(draft)) if draft else 0
            if not n_draft and (guess := self._guess(generation, n_most, n_other, planner)) is not None:
                drafts[generation.slot.seq_id] = guess.tokens
                self._guesses[generation.slot.seq_id] = guess
                n_drafted += len(guess.tokens)
            if n_draft:
                drafts[generation.slot.seq_id] = draft[:n_draft]
                generation.n_match = n_match
                n_drafted += n_draft
        return drafts

    def _guess(self, generation: Generation, n_most: int, n_other: int, planner: Planner) -> Guess | None:
        """Return what the draft model expects, if that is worth its time."""
        if self._model is None or not planner.is_measured:
            return None
        assert generation.slot is not None
        decoded_ms = (time.perf_counter() - generation.first_token_at) * 1000
        guess = self._model.guess(
            generation.slot.seq_id, generation.to_prefill, n_most, n_other, decoded_ms, planner.pass_ms
        )  # fmt: skip
        if guess is None or generation.constraint is None:
            return guess
        n_valid = generation.constraint.n_valid(guess.tokens)
        return replace(guess, tokens=guess.tokens[:n_valid], sure=guess.sure[:n_valid]) if n_valid else None

    def _verify(self, generation: Generation, draft: Sequence[int], planner: Planner, extra_ms: float) -> None:
        """Choose the tokens behind the newest one, as long as they are those of the draft, and drop the rest of it."""
        slot, n_accepted = generation.slot, 0
        assert slot is not None
        seq_id = slot.seq_id
        for number, expected in enumerate(draft):
            token = self.next_token(generation, len(draft) - number)
            if token != expected:
                generation.pending = token
                break
            self._cache.note_decode(slot, token)
            n_accepted += 1
        if generation.slot is not None:
            self._cache.drop_draft(slot)
        if (guess := self._guesses.get(seq_id)) is not None and self._model is not None:
            self._model.note(guess, n_accepted)
            extra_ms += guess.ms
        else:
            planner.note_draft(generation.n_match, n_accepted, len(draft))
        generation.drafted = generation.drafted.plus(len(draft), n_accepted, n_accepted * planner.pass_ms(1) - extra_ms)


def _has_seed(steps: Sequence[tuple[Generation, int]]) -> bool:
    """Return whether a reply is to be repeated to the last bit, which depends on the number of threads."""
    return any(generation.sampling.seed is not None for generation, _ in steps)
