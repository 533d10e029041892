"""Drafts for speculative decoding: what a reply may say next, and how much of it is worth computing ahead.

A draft is looked up in the reply's own prompt and text (`Lookup`): where its last tokens occurred before, it may go on as it
did then. The engine computes the newest token and the draft behind it in one pass, which takes less time than a pass for each.
The sampler then chooses token by token, as it would have without a draft, and the draft ends where it chose another one. So
every token comes from the same distribution, and a greedy or seeded reply is the same but for the engine's last bits.

`Planner` chooses the length: the one with the most expected tokens a second, from the measured time of passes (to begin with,
as `edge tune` measured it) and the measured share of draft tokens that came true. Where drafts do not pay, the length is 0.

Source: prompt lookup decoding (Saxena, 2023) and "Accelerating Large Language Model Decoding with Speculative Sampling" (Chen
et al., 2023), of which comparing the sampler's choice with a certain draft is a special case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge.backends.base import MAX_DRAFT

__all__ = ["Lookup", "Planner"]

_GRAMS = (8, 4, 2)  # tokens by which earlier places are found, the longest first
_LONGEST_MATCH = 32  # a longer one says no more
# Where a draft follows a match of so many tokens: how often a draft token comes true, to begin with.
_MATCHES = (2, 4, 8, 16, 32)
_PRIORS = (0.25, 0.45, 0.65, 0.8, 0.9)
_PRIOR_WEIGHT, _FORGET = 8.0, 0.98
# Time of a pass over so many tokens, as multiples of a pass over one, where nothing was measured (llama.cpp, Q4_1).
_COSTS: Mapping[int, float] = {1: 1.0, 2: 1.5, 4: 2.4, 8: 4.1, 16: 7.5, 32: 14.0}
_LARGEST = 32
_SMOOTHING = 0.2
_ROWS = 1.2  # a pass that ends in logits for each token takes about so many times longer than one for the last token alone
_MARGIN = 1.05  # a draft has to promise more than the noise of what was measured
_TRY_EVERY, _TRY_LENGTH, _TRY_MATCH = 200, 4, 8  # so that what was given up is found when it pays again


class Lookup:
    """Finds where the newest tokens of a text occurred before.

    Args:
        tokens: the text so far.
    """

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._places: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in _GRAMS)
        self._found: list[int] = []  # ends of earlier places of the newest grams, the longest first
        self._follow = 0  # the place that the last draft came from, moved along with the text; 0 for none
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens to the text."""
        text = self._tokens
        for token in tokens:
            text.append(token)
            end = len(text)
            self._follow = self._follow + 1 if self._follow and text[self._follow] == token else 0
            self._found = []
            for size, places in zip(_GRAMS, self._places, strict=True):
                if end >= size:
                    gram = tuple(text[end - size :])
                    earlier = places.get(gram)
                    if earlier is not None:
                        self._found.append(earlier)
                    places[gram] = end

    def draft(self, n_most: int) -> tuple[list[int], int]:
        """Return what followed the earlier place that shares the most newest tokens, and how many it shares.

        Args:
            n_most: tokens of the draft; a text that repeats itself is continued for so long.
        """
        best, n_match = 0, 0
        for place in dict.fromkeys([*([self._follow] if self._follow else []), *self._found]):
            n_same = self._n_same(place)
            if n_same > n_match:
                best, n_match = place, n_same
        if not n_match:
            return [], 0
        self._follow = best
        draft: list[int] = []
        text, n_text = self._tokens, len(self._tokens)
        for position in range(best, best + n_most):
            draft.append(text[position] if position < n_text else draft[position - n_text])
        return draft, n_match

    def _n_same(self, place: int) -> int:
        """Return how many tokens before `place` equal the newest ones."""
        text, end = self._tokens, len(self._tokens)
        n_same = 0
        while n_same < min(_LONGEST_MATCH, place) and text[place - 1 - n_same] == text[end - 1 - n_same]:
            n_same += 1
        return n_same


class Planner:
    """Chooses the length of drafts, for all replies of a scheduler. Learns from what came true and what passes cost.

    Args:
        costs: tokens of a pass -> its time, as a multiple of a pass over one, as far as `edge tune` measured it on this device;
            None or empty learns them from short chunks of prompts, and assumes high ones before.
    """

    def __init__(self, costs: Mapping[int, float] | None = None) -> None:
        self._costs = _complete(costs) if costs else _COSTS
        self._hits = [prior * _PRIOR_WEIGHT for prior in _PRIORS]
        self._tries = [_PRIOR_WEIGHT] * len(_PRIORS)
        self._ms: dict[int, float] = {}  # tokens of a pass -> its time
        self._chunk_ms: dict[int, float] = {}  # the same, expected from a chunk of a prompt
        self._n_declined = 0

    def length(self, n_match: int, n_other: int, n_most: int) -> int:
        """Return how many draft tokens promise the most tokens a second; 0 if none do.

        Args:
            n_match: newest tokens that the place of the draft shares.
            n_other: tokens that the pass computes anyway, beside the one in front of the draft.
            n_most: the most that are possible.
        """
        expected, likely = 1.0, 1.0
        best, best_rate = 0, _MARGIN * (1 + n_other) / self.pass_ms(1 + n_other)
        for n_draft in range(1, min(n_most, MAX_DRAFT) + 1):
            likely *= self._share(n_match + n_draft - 1)
            expected += likely
            rate = (expected + n_other) / self.pass_ms(1 + n_other + n_draft)
            if rate > best_rate:
                best, best_rate = n_draft, rate
        if not best and n_match >= _TRY_MATCH:
            self._n_declined += 1
            if self._n_declined % _TRY_EVERY == 0:
                return min(n_most, _TRY_LENGTH)
        return best

    def note_draft(self, n_match: int, n_accepted: int, n_draft: int) -> None:
        """Note how many tokens of a draft came true."""
        for number in range(min(n_accepted + 1, n_draft)):
            bucket = _bucket(n_match + number)
            self._hits[bucket] = self._hits[bucket] * _FORGET + (number < n_accepted)
            self._tries[bucket] = self._tries[bucket] * _FORGET + 1

    def note_pass(self, n_tokens: int, ms: float) -> None:
        """Note the time of a pass over so many tokens, one row of logits each."""
        _smooth(self._ms, n_tokens, ms)

    def note_chunk(self, n_tokens: int, ms: float) -> None:
        """Note the time of a chunk of a prompt, which has one row of logits; it counts where `edge tune` measured no costs.

        Nearly every turn ends its prompt with a short one. So the cost of a draft is known before the first draft: a process
        that is restarted often need not find out each time whether drafts pay, nor trust the costs of another engine.
        """
        if self._costs is _COSTS and 1 < n_tokens <= MAX_DRAFT + 1:
            _smooth(self._chunk_ms, n_tokens, _ROWS * ms)

    @property
    def is_measured(self) -> bool:
        """True once a pass was measured."""
        return bool(self._ms)

    def pass_ms(self, n_tokens: int) -> float:
        """Return the time that a pass over so many tokens takes, estimated from the nearest that were measured."""
        if not self._ms:
            return self._cost(n_tokens)
        known = self._chunk_ms | self._ms
        if n_tokens in known:
            return known[n_tokens]
        below, above = [n for n in known if n < n_tokens], [n for n in known if n > n_tokens]
        if self._chunk_ms and below and len(known) > 1:  # on the line through two that were measured
            first, last = (max(below), min(above)) if above else (min(below), max(below))
            slope = max(0.0, (known[last] - known[first]) / (last - first)) if last > first else 0.0
            return known[first] + slope * (n_tokens - first)
        nearest = min(known, key=lambda n: (abs(n - n_tokens), n))
        return known[nearest] * self._cost(n_tokens) / self._cost(nearest)

    def _cost(self, n_tokens: int) -> float:
        """Return the time of a pass in passes over one token, interpolated in the costs."""
        costs = self._costs
        below = max(n for n in costs if n <= min(n_tokens, _LARGEST))
        above = min((n for n in costs if n >= n_tokens), default=below)
        if above == below:
            return costs[below] * n_tokens / below if n_tokens > below else costs[below]
        return costs[below] + (costs[above] - costs[below]) * (n_tokens - below) / (above - below)

    def _share(self, n_match: int) -> float:
        bucket = _bucket(n_match)
        return self._hits[bucket] / self._tries[bucket]


def _smooth(times: dict[int, float], n_tokens: int, ms: float) -> None:
    known = times.get(n_tokens)
    # One that waited for another program says little.
    times[n_tokens] = ms if known is None else known + _SMOOTHING * (min(ms, 2 * known) - known)


def _bucket(n_match: int) -> int:
    return max((number for number, least in enumerate(_MATCHES) if n_match >= least), default=0)


def _complete(costs: Mapping[int, float]) -> dict[int, float]:
    """Return measured costs, made to rise with the tokens of a pass, up to the largest pass."""
    found = {1: 1.0}
    for n_tokens in sorted(costs):
        if n_tokens > 1:
            found[n_tokens] = max(costs[n_tokens], *found.values())
    *_, before, last = [1, *found]
    slope = (found[last] - found[before]) / (last - before) if last > before else _COSTS[2] - 1.0
    found[_LARGEST] = found.get(_LARGEST) or found[last] + slope * (_LARGEST - last)
    return found
