"""Drafts from a second, smaller model with the same vocabulary.

Where a reply repeats nothing, `edge.engine.drafting.Lookup` finds nothing. A smaller model can still guess: it decodes a few
tokens ahead, always the likeliest, and the large model computes all of them in one pass. The sampler then chooses as ever, so
every token comes from the distribution that it would have come from without the guess.

Its KV cache follows each reply: what did not come true is rewound, what it has not seen is prefilled. A long prompt costs it a
prefill of its own, so it begins only when a reply has been decoded for as long as that takes: a short reply loses nothing, and
a long one at most what it could have gained (ski rental).

How much is guessed depends on the time of a pass of either model, measured, and on how often a guess of that probability came
true. Where guesses have not paid, none are made, but for a trial now and then.

Source: "Fast Inference from Transformers via Speculative Decoding" (Leviathan et al., 2023), with certain drafts, as in
`edge.engine.drafting`; the bound on the vocabularies' sizes is that of llama.cpp's `common/speculative.cpp`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import ContextFullError, EdgeError, UnsupportedError, UsageError
from edge.kv.tree import common_prefix

if TYPE_CHECKING:
    from edge.backends.base import Backend

__all__ = ["DraftModel", "Guess", "check_draft"]

_log = logging.getLogger("edge.scheduler")

_MOST_EXTRA = 128
"""Two models of one family may pad their vocabularies differently; beyond the common part nothing is guessed."""
_CATCH_UP = 128  # tokens that it prefills between two tokens of a reply
_AT_ONCE = 32  # so few are prefilled whatever they cost
# Probability that the draft model gives a token, from so much on: how often such a guess comes true, to begin with.
_SURE = (0.0, 0.3, 0.5, 0.7, 0.85, 0.95)
_PRIORS = (0.2, 0.4, 0.55, 0.7, 0.8, 0.9)
_PRIOR_WEIGHT, _FORGET = 8.0, 0.98
_SMOOTHING = 0.2
_MARGIN = 1.02  # a guess has to save more than the noise of what was measured
_FIRST, _JUDGED = 6, 10  # guesses that measure what passes of several lengths take, and those that show if guesses pay
_TRY_LENGTHS = (2, 4, 8)
_TRY_EVERY = 200  # tokens without a guess, so that what was given up is found when it pays again
_PLAIN_EVERY = 12  # rounds in which nothing is guessed, so that the time of a plain pass stays true


@dataclass(frozen=True, slots=True)
class Guess:
    """What the draft model expects a reply to go on with.

    Attributes:
        tokens: the draft.
        sure: probability that the draft model gave each of them.
        ms: time that it took.
        n_other: tokens that the pass computes anyway, beside the one in front of the draft.
        plain_ms, pass_ms: expected time of that pass without the draft, and with it.
    """

    tokens: tuple[int, ...]
    sure: tuple[float, ...]
    ms: float
    n_other: int
    plain_ms: float
    pass_ms: float


def check_draft(backend: Backend, draft: Backend) -> None:
    """Check that a model can draft for another one.

    Raises:
        UsageError: their vocabularies differ.
        UnsupportedError: the draft model cannot be rewound.
    """
    names = f"{draft.info.name} cannot draft for {backend.info.name}"
    ours, theirs = backend.tokenizer.vocabulary(), draft.tokenizer.vocabulary()
    hint = "Choose a smaller model of the same family, or one that edge convert made of it."
    if abs(len(ours) - len(theirs)) > _MOST_EXTRA:
        raise UsageError(f"{names}: it has {len(theirs):,} tokens in its vocabulary, the other {len(ours):,}.", hint)
    n_same = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if n_same is not None:
        raise UsageError(f"{names}: token {n_same} means something else in its vocabulary.", hint)
    if not draft.capabilities.rewind:
        raise UnsupportedError(
            f"{names}: guesses that do not come true must be taken back, which {draft.info.architecture} models cannot do.",
            "Choose a model without recurrent state or sliding window.",
        )


class DraftModel:
    """The second model. Belongs to the engine thread, like the first.

    Args:
        backend: open and empty, with as many sequences as the large model has; closed here.
        n_vocab: tokens of the large model's vocabulary.
        clock: seconds.

    Attributes:
        n_guessed, n_accepted: draft tokens so far, and those that came true.
    """

    def __init__(self, backend: Backend, n_vocab: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._backend, self._clock = backend, clock
        self._n_vocab = min(n_vocab, backend.info.n_vocab)
        self._held: dict[int, list[int]] = {seq_id: [] for seq_id in range(backend.capabilities.n_seq)}
        self._hits = [prior * _PRIOR_WEIGHT for prior in _PRIORS]
        self._tries = [_PRIOR_WEIGHT] * len(_PRIORS)
        self._pass_ms = self._prefill_ms = 0.0  # of one token; 0 before the first
        self._plain_ms = self._real_ms = 0.0  # time that what was guessed right would have taken without, and what it took
        self._n_rounds = self._n_guesses = self._n_declined = 0
        self._is_broken = False
        self.n_guessed = self.n_accepted = 0

    def guess(
        self, seq_id: int, tokens: Sequence[int], n_most: int, n_other: int, decoded_ms: float, pass_ms: Callable[[int], float]
    ) -> Guess | None:
        """Return a draft that is worth its time; None if there is none.

        Args:
            seq_id: sequence of the reply in the large model.
            tokens: the prompt and the reply so far, with the newest token.
            n_most: tokens of the draft, at most.
            n_other: tokens that the large model's pass computes anyway, beside the newest one.
            decoded_ms: how long the reply has been decoded.
            pass_ms: time of the large model's pass over so many tokens.
        """
        if self._is_broken or n_most < 1 or seq_id not in self._held or len(tokens) + n_most > self._backend.n_ctx:
            return None
        self._n_rounds += 1
        if self._n_rounds % _PLAIN_EVERY == 0:
            return None
        is_first, has_paid = self._n_guesses < _FIRST, self._has_paid
        self._n_declined += not has_paid
        if not has_paid and self._n_declined <= _TRY_EVERY:
            return None
        is_trial = is_first or not has_paid
        try:
            began = self._clock()
            if not self._follow(seq_id, tokens, decoded_ms):
                return None
            self._n_declined = 0
            found = self._decode_ahead(seq_id, n_most, n_other, pass_ms, is_trial=is_trial)
        except ContextFullError:  # other sequences hold the cells; those that still run come back
            self.release()
            return None
        except EdgeError as error:  # the reply goes on without
            _log.warning("The draft model failed and is not used any more: %s", error)
            self._is_broken = True
            return None
        if not has_paid:  # what was given up long ago counts less
            self._plain_ms, self._real_ms = self._plain_ms / 2, self._real_ms / 2
        ms, plain_ms = (self._clock() - began) * 1000, pass_ms(1 + n_other)
        if not found:
            self._note_time(plain_ms, plain_ms + ms)
            return None
        sure = tuple(probability for _, probability in found)
        return Guess(tuple(token for token, _ in found), sure, ms, n_other, plain_ms, pass_ms(1 + n_other + len(found)))

    def note(self, guess: Guess, n_accepted: int) -> None:
        """Note how many tokens of a draft came true."""
        self.n_guessed += len(guess.tokens)
        self.n_accepted += n_accepted
        for number, sure in enumerate(guess.sure[: n_accepted + 1]):
            bucket = _bucket(sure)
            self._hits[bucket] = self._hits[bucket] * _FORGET + (number < n_accepted)
            self._tries[bucket] = self._tries[bucket] * _FORGET + 1
        n_alone = 1 + guess.n_other
        self._note_time(guess.plain_ms * (n_alone + n_accepted) / n_alone, guess.pass_ms + guess.ms)

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """Compute with as many CPU threads as the large model."""
        if self._backend.capabilities.threads:
            self._backend.set_threads(n_threads, n_threads_batch)

    def release(self, busy: Sequence[int] = ()) -> None:
        """Empty all sequences but these."""
        for seq_id in self._held:
            if seq_id not in busy and self._held[seq_id]:
                self._backend.rewind(seq_id, 0)
                self._held[seq_id] = []

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    @property
    def _has_paid(self) -> bool:
        """True while replies were quicker than without, and until that is known."""
        return self._n_guesses < _FIRST + _JUDGED or self._plain_ms > _MARGIN * self._real_ms

    def _note_time(self, plain_ms: float, real_ms: float) -> None:
        self._n_guesses += 1
        if self._n_guesses > _FIRST:
            self._plain_ms = self._plain_ms * _FORGET + plain_ms
            self._real_ms = self._real_ms * _FORGET + real_ms

    def _follow(self, seq_id: int, tokens: Sequence[int], decoded_ms: float) -> bool:
        """Prefill what the draft model has not seen of a reply; False while that is not worth it, or not done."""
        held = self._held[seq_id]
        n_keep = min(common_prefix(held, tokens), len(tokens) - 1)
        if n_keep < len(held):
            self._backend.rewind(seq_id, n_keep)
            del held[n_keep:]
        missing = tokens[n_keep:]
        if len(missing) > _AT_ONCE:
            if self._prefill_ms and decoded_ms < len(missing) * self._prefill_ms:
                return False
            missing = missing[: _CATCH_UP if self._prefill_ms else _AT_ONCE]  # the first few measure it
        began = self._clock()
        self._backend.prefill(seq_id, missing)
        held.extend(missing)
        ms = (self._clock() - began) * 1000
        if len(missing) >= _AT_ONCE:
            self._prefill_ms = _smooth(self._prefill_ms, ms / len(missing))
        elif len(missing) <= 2:
            self._pass_ms = _smooth(self._pass_ms, ms)
        return len(held) == len(tokens)

    def _decode_ahead(
        self, seq_id: int, n_most: int, n_other: int, pass_ms: Callable[[int], float], *, is_trial: bool
    ) -> list[tuple[int, float]]:
        """Decode while another token promises more tokens a second.

        Returns:
            (token, its probability) of the part that is worth verifying.
        """
        found: list[tuple[int, float]] = []
        likely, expected = 1.0, [1.0]  # of all tokens so far; how many tokens of the reply a draft of each length promises
        n_most = min(n_most, _TRY_LENGTHS[self._n_guesses % len(_TRY_LENGTHS)]) if is_trial else n_most
        while True:
            token, probability = self._likeliest(seq_id)
            if self._backend.tokenizer.is_end(token):
                break
            found.append((token, probability))
            likely *= self._share(probability)
            expected.append(expected[-1] + likely)
            if len(found) == n_most or not (is_trial or self._goes_on(expected[-1], likely, len(found), n_other, pass_ms)):
                break
            started = self._clock()
            self._backend.decode([(seq_id, token)])
            self._held[seq_id].append(token)
            self._pass_ms = _smooth(self._pass_ms, (self._clock() - started) * 1000)
        if is_trial:
            return found
        return found[: max(range(len(expected)), key=lambda n: (expected[n] + n_other) / pass_ms(1 + n_other + n))]

    def _goes_on(self, expected: float, likely: float, n_draft: int, n_other: int, pass_ms: Callable[[int], float]) -> bool:
        """Tell if one more token of a draft promises more tokens a second."""
        now = (expected + n_other) / (pass_ms(1 + n_other + n_draft) + n_draft * self._pass_ms)
        share = sum(self._hits) / sum(self._tries)
        more = expected + n_other + likely * share
        return more / (pass_ms(2 + n_other + n_draft) + (n_draft + 1) * self._pass_ms) > now

    def _likeliest(self, seq_id: int) -> tuple[int, float]:
        """Return the likeliest next token that the large model knows, and its probability."""
        import numpy as np

        logits = self._backend.logits(seq_id)[: self._n_vocab]
        best = int(logits.argmax())
        return best, float(1.0 / np.exp(logits - logits[best]).sum())

    def _share(self, sure: float) -> float:
        bucket = _bucket(sure)
        return self._hits[bucket] / self._tries[bucket]


def _bucket(sure: float) -> int:
    return max((number for number, least in enumerate(_SURE) if sure >= least), default=0)


def _smooth(known: float, newest: float) -> float:
    """Return the mean that forgets. A time that another program stretched says little."""
    return known + _SMOOTHING * (min(newest, 2 * known) - known) if known else newest
