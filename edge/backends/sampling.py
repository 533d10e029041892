"""llama.cpp's sampler chain in numpy, for engines that only return logits.

Each stage is a pure function over candidates: token ids and their logits, both shape (n,). `narrow` applies them in the order
that edge/types.py Sampling promises, `NumpySampler` adds the state (tokens so far, random draw).
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edge.backends.base import Sampler
from edge.errors import BackendError, ConstraintError, UsageError

if TYPE_CHECKING:
    from edge.backends.base import Mask
    from edge.types import Sampling

__all__ = [
    "Breakers",
    "NumpySampler",
    "best",
    "candidates",
    "check_bias",
    "check_mask",
    "check_tokens",
    "find_breakers",
    "likeliest_allowed",
    "narrow",
    "not_numbers",
    "probabilities",
    "seed_of",
]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]
Breakers = dict[int, list[tuple[int, ...]]]
"""First token of a DRY sequence breaker -> the token sequences that may follow it ((): the first token is enough)."""

MAX_BREAKER_CHARS = 40
MAX_BREAKER_TAIL = 20
_FEW = 256  # candidates to try first; in text, nearly always enough
_GROUPS = 1024  # of a vocabulary; their largest values bound the best ones
_FLOAT_MAX_LOG = 88.7228391


def check_bias(sampling: Sampling, n_vocab: int) -> None:
    """Check the tokens of logit_bias.

    Raises:
        UsageError: it names a token that the vocabulary does not have.
    """
    unknown = [token for token in sampling.logit_bias if not 0 <= token < n_vocab]
    if unknown:
        raise UsageError(f"logit_bias names token {unknown[0]}; the vocabulary ends at {n_vocab - 1}.")


def check_tokens(tokens: Sequence[int], n_vocab: int) -> None:
    """Check token ids.

    Raises:
        UsageError: the vocabulary does not have one.
    """
    wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
    if wrong is not None:
        raise UsageError(f"There is no token {wrong}.", f"The vocabulary has {n_vocab} tokens.")


def check_mask(allowed: Mask, n_vocab: int) -> None:
    """Check that a mask is of this vocabulary.

    Raises:
        UsageError: it is not.
    """
    if len(allowed) != n_vocab:
        raise UsageError(f"The mask has {len(allowed)} tokens, the vocabulary {n_vocab}.")


def likeliest_allowed(logits: Values, allowed: Mask, n_vocab: int) -> int:
    """Return the likeliest token that is allowed; nearly always the likeliest of all.

    Raises:
        BackendError: a logit is NaN.
        ConstraintError, UsageError: as `candidates`.
    """
    check_mask(allowed, n_vocab)
    best = _likeliest(logits)
    if allowed[best]:
        return best
    tokens = candidates(allowed, n_vocab, {})
    return int(tokens[_likeliest(logits[tokens])])


def candidates(allowed: Mask, n_vocab: int, logit_bias: Mapping[int, float]) -> Ids:
    """Return the tokens that may be chosen, shape (n,), n >= 1.

    Raises:
        ConstraintError: there is none.
        UsageError: the mask is not of this vocabulary.
    """
    check_mask(allowed, n_vocab)
    ids = np.flatnonzero(allowed)
    forbidden = [token for token, bias in logit_bias.items() if bias == -math.inf and allowed[token]]
    if forbidden:
        ids = ids[~np.isin(ids, forbidden)]
    if not len(ids):
        raise ConstraintError(
            "The reply cannot go on: no token is left that its schema or grammar allows.",
            "Check logit_bias, if you set it; otherwise simplify the schema or grammar.",
        )
    return ids


def not_numbers() -> BackendError:
    """Return the error of logits that contain NaN."""
    return BackendError("The model computed values that are not numbers.", "The model file may be damaged; fetch it again.")


def seed_of(seed: int | None) -> int:
    """Return the 32-bit seed to use: the given one, or a random one. Never 2**32 - 1, which means "random" to llama.cpp."""
    return (secrets.randbits(64) if seed is None else seed) % 0xFFFFFFFF


def probabilities(logits: Logits) -> Logits:
    """Softmax, shape (n,)."""
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def narrow(
    logits: npt.NDArray[np.float32],
    sampling: Sampling,
    history: Sequence[int],
    *,
    breakers: Breakers | None = None,
    xtc_draw: float = 1.0,
    allowed: Mask | None = None,
) -> tuple[Ids, Logits]:
    """Apply every stage before the draw.

    Args:
        logits: shape (n_vocab,).
        sampling: the settings.
        history: all tokens so far, oldest first; a setting of -1 for "how far back" means all of these.
        breakers: DRY's sequence breakers as `find_breakers` gives them.
        xtc_draw: a uniform random number in [0, 1); XTC acts when it is at most `xtc_probability`.
        allowed: the tokens that may remain; None is all.

    Returns:
        (ids, logits) of the tokens that remain, both shape (n,), n >= 1; softmax of the logits is the distribution.

    Raises:
        BackendError: a logit is NaN.
        ConstraintError: as `candidates`.
    """
    tokens = candidates(allowed, len(logits), sampling.logit_bias) if allowed is not None else None
    values = logits.astype(np.float32, copy=_is_changing(sampling))  # single precision, as in llama.cpp
    _likeliest(values)
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    _penalise(values, sampling, history)
    _dry(values, sampling, history, breakers or {})
    if tokens is None:
        return _cut(values, sampling, xtc_draw)
    ids, kept = _cut(values[tokens], sampling, xtc_draw)
    return tokens[ids], kept


def _cut(values: Values, sampling: Sampling, xtc_draw: float) -> tuple[Ids, Logits]:
    """Apply the stages that drop tokens, and the temperature. Returns indices of `values`, and logits."""
    if sampling.is_greedy:
        best = int(values.argmax())
        return np.array([best]), values[best : best + 1].astype(np.float64)
    is_xtc = sampling.xtc_probability > 0 and xtc_draw <= sampling.xtc_probability
    order = _first_cut(values, sampling, needs_order=is_xtc)
    if order is None:
        return np.arange(len(values)), values.astype(np.float64) / sampling.temperature
    ids, kept = order, values[order].astype(np.float64)
    if 0 < sampling.top_k < len(values):  # otherwise the first cut was that of the next stage that is on
        ids, kept = _typical(ids, kept, sampling.typical_p)
        ids, kept = _top_p(ids, kept, sampling.top_p)
    elif sampling.typical_p < 1:
        ids, kept = _top_p(ids, kept, sampling.top_p)
    ids, kept = _min_p(ids, kept, sampling.min_p)
    if is_xtc:
        ids, kept = _xtc(ids, kept, sampling.xtc_threshold)
    return ids, kept / sampling.temperature


def _is_changing(sampling: Sampling) -> bool:
    """Tell if a setting changes logits before any are dropped."""
    has_penalty = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1, 0, 0)
    return bool(sampling.logit_bias) or has_penalty or sampling.dry_multiplier != 0


def _likeliest(logits: npt.NDArray[np.float32]) -> int:
    """Return the likeliest token.

    Raises:
        BackendError: a logit is NaN.
    """
    best = int(logits.argmax())
    if math.isnan(logits[best]):  # argmax finds NaN first
        raise not_numbers()
    return best


def _first_cut(values: Values, sampling: Sampling, *, needs_order: bool) -> Ids | None:
    """Apply the first stage that is on to the whole vocabulary. Sorting all of it would take longer than all other stages
    together, so only what is left is sorted.

    Returns:
        Ids, shape (n,), best first; None where no token is dropped and no order is needed.
    """
    if 0 < sampling.top_k < len(values):
        return best(values, sampling.top_k)
    if sampling.typical_p < 1:
        return _typical(np.arange(len(values)), values.astype(np.float64), sampling.typical_p)[0]
    if sampling.top_p < 1:
        weights = np.exp(values - values.max())
        return _add_up(values, weights / weights.sum(dtype=np.float64), sampling.top_p, side="left")
    if sampling.min_p > 0:
        likely = np.flatnonzero(values >= values.max() + np.log(sampling.min_p))
        return likely[np.argsort(-values[likely], kind="stable")]
    return best(values, len(values)) if needs_order else None


def best(values: Values | Logits, n_best: int) -> Ids:
    """Return the indices of the largest values, largest first, equal ones in order. Shape (n_best,)."""
    if n_best >= len(values):
        return np.argsort(-values, kind="stable")
    # The largest of n groups are n values, so none below the least of them is among the n best.
    groups = (
        values[: len(values) // _GROUPS * _GROUPS].reshape(-1, _GROUPS).max(axis=0)
        if 4 * n_best <= _GROUPS <= len(values)
        else values
    )
    least = np.partition(groups, len(groups) - n_best)[len(groups) - n_best]
    chosen = np.flatnonzero(values >= least)
    order: Ids = chosen[np.argsort(-values[chosen], kind="stable")[:n_best]]
    return order


def _add_up(values: Values | Logits, shares: Values | Logits, p: float, *, side: Literal["left", "right"]) -> Ids:
    """Return the largest values whose shares add up to p, best first: tried with a few, then with more."""
    n_best = _FEW
    while True:
        order = best(values, n_best)
        n_keep = int(np.searchsorted(np.cumsum(shares[order], dtype=np.float64), p, side=side)) + 1
        if n_keep <= len(order) or n_best >= len(values):
            return order[:n_keep]
        n_best *= 16


def _penalise(values: Values, sampling: Sampling, history: Sequence[int]) -> None:
    last_n = sampling.repeat_last_n if sampling.repeat_last_n >= 0 else len(history)
    is_off = sampling.repeat_penalty == 1 and sampling.frequency_penalty == 0 and sampling.presence_penalty == 0
    if last_n == 0 or is_off:
        return
    counts = Counter(history[-last_n:])
    seen = np.fromiter(counts.keys(), dtype=np.int64, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    old = values[seen]
    scaled = np.where(old <= 0, old * sampling.repeat_penalty, old / sampling.repeat_penalty)
    values[seen] = scaled - times * sampling.frequency_penalty - sampling.presence_penalty


def _dry(values: Values, sampling: Sampling, history: Sequence[int], breakers: Breakers) -> None:
    """Penalise every token that would continue a repeat. The plain quadratic form of llama.cpp's Z-array algorithm."""
    last_n = sampling.dry_penalty_last_n if sampling.dry_penalty_last_n >= 0 else len(history)
    allowed = sampling.dry_allowed_length
    if sampling.dry_multiplier == 0 or last_n == 0:
        return
    recent = list(history[-last_n:])
    if len(recent) <= allowed:
        return
    limit = _repeat_limit(recent, breakers)
    if limit < allowed:
        return
    longest: dict[int, int] = {}
    newest = recent[-1]
    for end, token in enumerate(recent[:-1]):  # a repeat that ends at `end` would be continued by the token after it
        if token != newest and allowed > 0:
            continue
        length = 0
        while length < limit and length <= end and recent[end - length] == recent[-1 - length]:
            length += 1
        if length >= allowed:
            follower = recent[end + 1]
            longest[follower] = max(longest.get(follower, 0), length)
    max_exponent = int(_FLOAT_MAX_LOG / np.log(sampling.dry_base)) if sampling.dry_base > 1.000001 else 0
    for token, length in longest.items():
        if () in breakers.get(token, ()):
            continue
        exponent = length - allowed
        if max_exponent > 0:
            exponent = min(exponent, max_exponent)
        values[token] -= sampling.dry_multiplier * sampling.dry_base**exponent


def _repeat_limit(recent: Sequence[int], breakers: Breakers) -> int:
    """Return how many tokens back the newest sequence breaker ends; repeats do not reach across it."""
    for back in range(len(recent)):
        matched = [
            len(tail)
            for tail in breakers.get(recent[-1 - back], ())
            if len(tail) <= back and all(tail[i] == recent[-1 - back + i + 1] for i in range(len(tail)))
        ]
        if matched:
            return back - max(matched)
    return len(recent)


def _typical(ids: Ids, values: Logits, p: float) -> tuple[Ids, Logits]:
    if p >= 1:
        return ids, values
    shares = probabilities(values)
    surprise = -np.log(shares, where=shares > 0, out=np.full_like(shares, -np.inf))
    entropy = float((shares * np.where(shares > 0, surprise, 0.0)).sum())
    kept = _add_up(-np.abs(surprise - entropy), shares, p, side="right")
    kept = kept[np.lexsort((ids[kept], -values[kept]))]
    return ids[kept], values[kept]


def _top_p(ids: Ids, values: Logits, p: float) -> tuple[Ids, Logits]:
    if p >= 1:
        return ids, values
    n_keep = int(np.searchsorted(np.cumsum(probabilities(values)), p, side="left")) + 1
    return ids[:n_keep], values[:n_keep]


def _min_p(ids: Ids, values: Logits, p: float) -> tuple[Ids, Logits]:
    if p <= 0:
        return ids, values
    kept = values >= values.max() + np.log(p)
    return ids[kept], values[kept]


def _xtc(ids: Ids, values: Logits, threshold: float) -> tuple[Ids, Logits]:
    if threshold > 0.5:
        return ids, values
    n_top = int((probabilities(values) >= threshold).sum())
    return (ids[n_top - 1 :], values[n_top - 1 :]) if n_top > 1 else (ids, values)


def find_breakers(texts: Sequence[str], pieces: Sequence[bytes], tokenize: Callable[[str], Sequence[int]]) -> Breakers:
    """Find the tokens that begin a DRY sequence breaker.

    Args:
        texts: the breakers.
        pieces: bytes of every token of the vocabulary.
        tokenize: text to ids, for the rest of a breaker after its first token.

    Source: llama.cpp `get_overlapping_token_sequences`, after koboldcpp pull 982 by pi6am.
    """
    found: Breakers = {}
    for text in texts:
        breaker = text.encode()[:MAX_BREAKER_CHARS]
        for token, piece in enumerate(pieces):
            tails = found.setdefault(token, [])
            if breaker in piece:
                tails.append(())
                continue
            for n_inside in range(1, len(breaker)):
                if piece.endswith(breaker[:n_inside]):
                    rest = breaker[n_inside:].decode(errors="ignore")
                    tails.append(tuple(tokenize(rest))[:MAX_BREAKER_TAIL])
    return {token: tails for token, tails in found.items() if tails}


class NumpySampler(Sampler):
    """`narrow`, then a draw.

    Args:
        sampling: the settings.
        history: tokens before the reply.
        logits_of: returns the newest logits of a sequence, or those before its last n draft tokens, shape (n_vocab,).
        n_vocab: size of the vocabulary, to check logit_bias against.
        breakers: DRY's sequence breakers.

    Raises:
        UsageError: logit_bias names a token that the vocabulary does not have.
    """

    def __init__(
        self,
        sampling: Sampling,
        history: Sequence[int],
        logits_of: Callable[[int, int], npt.NDArray[np.float32]],
        n_vocab: int,
        breakers: Breakers | None = None,
    ) -> None:
        check_bias(sampling, n_vocab)
        self._sampling = sampling
        self._history = list(history)
        self._logits_of = logits_of
        self._n_vocab = n_vocab
        self._breakers = breakers
        self._random = np.random.default_rng(seed_of(sampling.seed))
        self._is_plain = sampling.is_greedy and not _is_changing(sampling)
        self._is_open = True

    def sample(self, seq_id: int, n_back: int = 0, allowed: Mask | None = None) -> int:
        self._check_open()
        if self._is_plain:
            token = self._greedy(self._logits_of(seq_id, n_back), allowed)
            self._history.append(token)
            return token
        xtc_draw = self._random.random() if self._sampling.xtc_probability > 0 else 1.0
        logits = self._logits_of(seq_id, n_back)
        ids, values = narrow(logits, self._sampling, self._history, breakers=self._breakers, xtc_draw=xtc_draw, allowed=allowed)
        token = int(ids[0]) if len(ids) == 1 else int(ids[self._draw(values)])
        self._history.append(token)
        return token

    def accept(self, tokens: Sequence[int]) -> None:
        self._check_open()
        check_tokens(tokens, self._n_vocab)
        self._history.extend(tokens)

    def close(self) -> None:
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("The sampler is closed.", "Open another one.")

    def _greedy(self, logits: npt.NDArray[np.float32], allowed: Mask | None) -> int:
        return _likeliest(logits) if allowed is None else likeliest_allowed(logits, allowed, self._n_vocab)

    def _draw(self, values: Logits) -> int:
        """Draw an index with the probabilities softmax(values)."""
        reached = np.cumsum(np.exp(values - values.max()))
        place = int(np.searchsorted(reached, self._random.random() * reached[-1], side="right"))
        return min(place, len(values) - 1)  # the product may round up to the end itself
