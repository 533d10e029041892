"""llama.cpp's sampler chain, with only those stages that a setting turns on."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.backends.base import Sampler
from edge.backends.sampling import candidates, check_bias, check_tokens, likeliest_allowed, not_numbers, seed_of
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.base import Mask
    from edge.backends.llamacpp.logits import Logits
    from edge.types import Sampling

__all__ = ["DryCache", "LlamaCppSampler"]

_MIN_KEEP = 1
_NO_PROBABILITY = 1e-12


class DryCache:
    """DRY samplers by their settings. Finding a breaker's tokens walks the whole vocabulary; copying a sampler does not."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._made: dict[tuple[object, ...], Any] = {}

    def new(self, vocab: Any, sampling: Sampling, last_n: int) -> Any:
        """Return a DRY sampler with an empty history; the caller frees it."""
        breakers = [text.encode() for text in sampling.dry_sequence_breakers]
        settings = (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, last_n)
        key = (*settings, *breakers)
        if key not in self._made:
            texts = (ctypes.c_char_p * max(len(breakers), 1))(*breakers)
            self._made[key] = self._library.llama_sampler_init_dry(vocab, *settings, texts, len(breakers))
        return self._library.llama_sampler_clone(self._made[key])

    def close(self) -> None:
        """Free them all."""
        for sampler in self._made.values():
            self._library.llama_sampler_free(sampler)
        self._made.clear()


class LlamaCppSampler(Sampler):
    """See `Sampler`. Made by LlamaCppBackend.open_sampler.

    Args:
        library: from `load_library`.
        vocab: the vocabulary pointer.
        logits: of the backend.
        dry: makes DRY samplers.
        sampling: the settings.
        history: tokens before the reply.
        lock: of the backend.
        n_ctx, n_vocab: of the backend.

    Raises:
        UsageError: logit_bias names a token that the vocabulary does not have.
    """

    def __init__(
        self,
        library: Any,
        vocab: Any,
        logits: Logits,
        dry: DryCache,
        sampling: Sampling,
        history: Sequence[int],
        *,
        lock: threading.RLock,
        n_ctx: int,
        n_vocab: int,
    ) -> None:
        self._library = library
        self._logits = logits
        self._lock = lock
        self._n_vocab = n_vocab
        self._candidates: npt.NDArray[np.void] | None = None
        chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        # Also frees a sampler that nobody closed; calling it twice does nothing.
        self._free = weakref.finalize(self, library.llama_sampler_free, chain)
        self._chain = chain
        try:
            self._bias = bias = self._biases(vocab, sampling, n_vocab)
            n_back = self._add_memory(vocab, dry, sampling, bias, n_ctx, n_vocab)
        except BaseException:
            self._free()
            raise
        self._is_plain_greedy = sampling.is_greedy and not bias and n_back == 0
        self._add_choice(sampling)
        if n_back:
            for token in history[-n_back:]:
                library.llama_sampler_accept(chain, token)

    def sample(self, seq_id: int, n_back: int = 0, allowed: Mask | None = None) -> int:
        with self._lock:
            self._check_open()
            logits, row = self._logits.newest(seq_id, n_back), self._logits.row(seq_id, n_back)
            if allowed is not None and self._is_plain_greedy:
                token = likeliest_allowed(logits, allowed, self._n_vocab)
            elif allowed is not None:
                token = self._sample_some(logits, candidates(allowed, self._n_vocab, self._bias))
            elif self._is_plain_greedy:
                token = int(logits.argmax())
            elif row is not None:
                token = int(self._library.llama_sampler_sample(self._chain, self._logits.context, row))
            else:
                token = self._sample_some(logits, None)
            if logits[token] != logits[token]:
                raise not_numbers()
            return token

    def accept(self, tokens: Sequence[int]) -> None:
        with self._lock:
            self._check_open()
            check_tokens(tokens, self._n_vocab)
            if not self._is_plain_greedy:
                for token in tokens:
                    self._library.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        self._free()

    def _check_open(self) -> None:
        if not self._free.alive:
            raise BackendError("The sampler is closed.", "Open another one.")

    def _biases(self, vocab: Any, sampling: Sampling, n_vocab: int) -> dict[int, float]:
        check_bias(sampling, n_vocab)
        # Some models list tokens that must never be generated, such as placeholders of images.
        count = ctypes.c_int32(0)
        suppressed = self._library.llama_vocab_get_suppress_tokens(vocab, ctypes.byref(count))
        never = {int(suppressed[i]): float("-inf") for i in range(count.value)}
        return {**{token: bias for token, bias in sampling.logit_bias.items() if bias}, **never}

    def _add_memory(
        self, vocab: Any, dry: DryCache, sampling: Sampling, bias: dict[int, float], n_ctx: int, n_vocab: int
    ) -> int:
        """Add bias, penalties and DRY where they do something. Returns how many tokens back they look."""
        library = self._library
        if bias:
            values = (library.llama_logit_bias * len(bias))(*bias.items())
            self._add(library.llama_sampler_init_logit_bias(n_vocab, len(bias), values))
        n_back = 0
        last_n = min(sampling.repeat_last_n, n_ctx) if sampling.repeat_last_n >= 0 else n_ctx  # llama.cpp allots that many
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if last_n and penalties != (1.0, 0.0, 0.0):
            self._add(library.llama_sampler_init_penalties(n_vocab, last_n, *penalties))
            n_back = last_n
        last_n = min(sampling.dry_penalty_last_n, n_ctx) if sampling.dry_penalty_last_n >= 0 else n_ctx
        if last_n and sampling.dry_multiplier:
            self._add(dry.new(vocab, sampling, last_n))
            n_back = max(n_back, last_n)
        return n_back

    def _add_choice(self, sampling: Sampling) -> None:
        library = self._library
        if sampling.is_greedy:
            self._add(library.llama_sampler_init_greedy())
            return
        seed = seed_of(sampling.seed)
        if sampling.top_k:
            self._add(library.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            # llama.cpp's entropy is NaN as soon as one token has probability 0, as a forbidden one has, and then no token is
            # dropped. So these go first.
            self._add(library.llama_sampler_init_min_p(_NO_PROBABILITY, _MIN_KEEP))
            self._add(library.llama_sampler_init_typical(sampling.typical_p, _MIN_KEEP))
        if sampling.top_p < 1:
            self._add(library.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP))
        if sampling.min_p > 0:
            self._add(library.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP))
        if sampling.xtc_probability > 0:
            threshold = sampling.xtc_threshold
            self._add(library.llama_sampler_init_xtc(sampling.xtc_probability, threshold, _MIN_KEEP, seed))
        if sampling.temperature != 1:
            self._add(library.llama_sampler_init_temp(sampling.temperature))
        self._add(library.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        if not sampler:
            raise BackendError("llama.cpp could not make a sampler.")
        self._library.llama_sampler_chain_add(self._chain, sampler)

    def _sample_some(self, logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64] | None) -> int:
        """Sample from a copy of these logits: those of some tokens, or all that the engine's output no longer holds."""
        import numpy as np

        library, n = self._library, len(logits) if ids is None else len(ids)
        if self._candidates is None:
            self._candidates = np.zeros(len(logits), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        some = self._candidates[:n]
        some["id"] = np.arange(n, dtype=np.int32) if ids is None else ids
        some["logit"] = logits if ids is None else logits[ids]
        array = library.llama_token_data_array(some.ctypes.data_as(library.llama_token_data_p), n, -1, False)
        library.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        library.llama_sampler_accept(self._chain, token)
        return token
