"""Decodes with fewer threads while other programs use the cores, too.

The threads of a pass wait for each other at hundreds of barriers. Where another program has the core of one of them, each of
these waits lasts as long as that program's time slice, so several threads are many times slower than one. `Crowding` notices
it by the processor time of the engine thread, tries fewer threads for a few passes, and keeps what is faster; from time to
time it tries more again. Chunks of more than SHORT tokens keep theirs: they compute for so long between two barriers
that more threads help there in any case.

Measured in docs/builds.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["SHORT", "Crowding"]

SHORT = 64
"""Tokens up to which a chunk is computed with the threads of decode while others use the cores."""

_TRIAL_PASSES = 3
_OWN_SHARE = 0.8  # of a pass in which the engine thread computes, at least, where nobody else has its cores
_CROWDED_MS = 60.0  # passes have to lack processor time for so long before fewer threads are tried
_GAIN = 0.85  # fewer threads must take at most so much of the time
_FAILED = 1.5  # a pass that takes so many times as long ends a trial
_LEAST_HOLD_S, _MOST_HOLD_S = 1.0, 20.0  # between two trials
_COST = 10  # the next trial comes no sooner than after so many times what this one cost


class Crowding:
    """Chooses how many threads compute short passes. For the engine thread only.

    Args:
        set_threads: sets the threads of passes over one token a reply, and those of chunks.
        n_threads, n_threads_batch: of the plan, at least 1: as many as there are at most.
        clock: seconds of a monotonic clock.

    Attributes:
        n_threads: that decode now.
        most: that decode at most.
    """

    def __init__(
        self,
        set_threads: Callable[[int, int], None],
        n_threads: int,
        n_threads_batch: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._set_threads, self._clock = set_threads, clock
        self._in_engine = n_threads, n_threads_batch
        self.n_threads = self.most = n_threads
        self._most_batch = n_threads_batch
        self._before: tuple[int, float] | None = None  # during a trial: threads, and ms of a pass with them
        self._passes: list[float] = []  # the newest with so many threads and replies, in ms
        self._n_replies = 0
        self._lacked_ms = 0.0
        self._should_double = True  # when it tries more
        self._hold_s, self._next_trial_s = _LEAST_HOLD_S, 0.0

    def limit(self, n_threads: int, n_threads_batch: int) -> None:
        """Compute with so many threads at most from now on, and with all of them first."""
        self._most_batch, self._before = n_threads_batch, None
        self.most = n_threads
        self._choose(n_threads)

    def use_all(self) -> None:
        """Compute with all threads: the reply is to be repeated to the last bit."""
        if self.n_threads < self.most:
            self._before = None
            self._choose(self.most)

    def before_chunk(self, n_tokens: int) -> None:
        """Set the threads for a chunk of so many tokens, or for a pass with drafts."""
        is_short = self.n_threads < self.most and n_tokens <= SHORT
        self._set(min(self.n_threads, self._most_batch) if is_short else self._most_batch)

    def note_pass(self, n_replies: int, ms: float, own_ms: float) -> None:
        """Note a pass over one token of each reply, and choose the threads of the next one.

        Args:
            n_replies: of how many replies. Only passes over equally many are compared.
            ms: how long it took.
            own_ms: processor time of the engine thread meanwhile.
        """
        if self.most == 1:
            return
        if n_replies != self._n_replies:
            self._n_replies = n_replies
            self._end_trial(has_won=False) if self._before else self._passes.clear()
            return
        self._passes = [*self._passes[1 - _TRIAL_PASSES :], ms]
        if self._before:
            self._judge(*self._before)
            return
        self._lacked_ms = self._lacked_ms + ms if own_ms < _OWN_SHARE * ms else 0.0
        if len(self._passes) < 2 or self._clock() < self._next_trial_s:
            return
        if self._lacked_ms >= _CROWDED_MS and self.n_threads > 1:
            # One thread takes as long as all compute together.
            self._try(1 if own_ms * self.n_threads < ms else self.n_threads - 1)
        elif self.n_threads < self.most:
            self._try(min(self.most, 2 * self.n_threads if self._should_double else self.n_threads + 1))

    def _try(self, n_threads: int) -> None:
        self._before = self.n_threads, sum(self._passes) / len(self._passes)
        self._choose(n_threads)

    def _judge(self, n_before: int, ms_before: float) -> None:
        """End a trial once its passes tell which number is faster."""
        mean = sum(self._passes) / len(self._passes)
        if self._passes[-1] > _FAILED * ms_before:
            self._end_trial(has_won=False)
        elif len(self._passes) == _TRIAL_PASSES:
            self._end_trial(has_won=mean < ms_before * (_GAIN if self.n_threads < n_before else 1.0))

    def _end_trial(self, *, has_won: bool) -> None:
        assert self._before is not None
        (n_before, ms_before), self._before = self._before, None
        if self.n_threads > n_before:
            self._should_double = has_won or not self._should_double
        cost_s = max(0.0, sum(self._passes) - len(self._passes) * ms_before) / 1000
        self._hold_s = _LEAST_HOLD_S if has_won else min(_MOST_HOLD_S, max(2 * self._hold_s, _COST * cost_s))
        self._next_trial_s = self._clock() + self._hold_s
        self._choose(self.n_threads if has_won else n_before)

    def _choose(self, n_threads: int) -> None:
        self.n_threads, self._passes, self._lacked_ms = n_threads, [], 0.0
        self._set(self._most_batch)

    def _set(self, n_threads_batch: int) -> None:
        wanted = self.n_threads, n_threads_batch
        if wanted != self._in_engine:
            self._set_threads(*wanted)
            self._in_engine = wanted
