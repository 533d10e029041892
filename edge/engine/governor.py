"""Throttles the engine while the device is hot, low on battery or short of memory.

`Governor.step` is a pure policy: readings and the time go in, limits come out. `Watch` reads the sensors in a thread of its
own and passes the limits on.

Two things are throttled, each in levels, and each changes at most once in `hold_s`:

- **Pace**, for heat and battery: three quarters, a half, a quarter. Fewer threads first; where that is not enough (one thread
  is left, or an accelerator computes) the engine rests between passes. While it stays hot, pace goes down level by level; it
  comes back level by level, each after `hold_s` without trouble.
- **Window**, for memory: half, a quarter; one reply at a time, and idle conversations leave the KV cache. The backend
  re-creates its cache for a smaller window, which is what frees memory.

Chunk alignment of prompts never changes, because stored KV blocks depend on it. The thresholds for throttling and for coming
back lie apart, so that a reading at the border changes nothing.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

from edge.config.schema import GovernorSettings
from edge.device.sensors import Readings
from edge.errors import BackendError
from edge.units import size_text

if TYPE_CHECKING:
    from edge.device.sensors import Sensors

__all__ = ["Governor", "Limits", "Watch", "Workload"]

_log = logging.getLogger("edge.governor")

_PACE_STEPS = 4  # the last one is a quarter; never a standstill
_MAX_PACE, _MAX_WINDOW = _PACE_STEPS - 1, 2
_MIN_WINDOW = 512
_HOT_HEADROOM_C = 3.0  # below the temperature at which the kernel slows down: about what a chunk adds before it is noticed
_COOL_GAP_C = 7.0
_BATTERY_GAP = 3
_MEMORY_GAP = 2.0
_STALL_COUNTS_BELOW = 0.25  # of memory available


@dataclass(frozen=True, slots=True)
class Workload:
    """The workload to throttle.

    Attributes:
        n_threads, n_threads_batch: of the plan, for decode and for prefill.
        n_ctx: the plan's context window, in tokens.
        kv_bytes: size of the KV cache for all of it.
        is_on_cpu: the CPU computes, so that fewer threads are less heat.
        keeps_threads: the number of threads must stay, since the last bits of decoded tokens depend on it (`kv.exact`).
        can_resize: the backend can make its KV cache smaller.
    """

    n_threads: int
    n_threads_batch: int
    n_ctx: int
    kv_bytes: int = 0
    is_on_cpu: bool = True
    keeps_threads: bool = False
    can_resize: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the engine.

    Attributes:
        n_threads, n_threads_batch: for decode and for prefill, at least 1.
        rest: share of the time in which the engine does nothing, from 0 to below 1.
        n_ctx: context window of turns that begin now, in tokens.
        single_reply: one reply at a time, and at most one idle conversation in the KV cache.
        note: for a status line: "hot: 2 of 4 threads"; "" while nothing is throttled.
        why: the readings that led to it, in words; "" while nothing is throttled.
    """

    n_threads: int
    n_threads_batch: int
    rest: float
    n_ctx: int
    single_reply: bool
    note: str = ""
    why: str = ""

    def with_window(self, n_ctx: int) -> Limits:
        """Return the same limits for a backend that could not resize its window; the note says so."""
        note = self.note.replace(f"window {self.n_ctx:,}", "one reply at a time")
        return replace(self, n_ctx=n_ctx, note=note)


class _Level:
    """Level to which one thing is throttled; 0 is not at all. It changes at most once in `hold_s`."""

    def __init__(self, hold_s: float) -> None:
        self.level = 0
        self._hold_s = hold_s
        self._moved_s = -math.inf
        self._well_since_s: float | None = None

    def move(self, least: int, most: int, now_s: float) -> bool:
        """Go up to `least` at once, or down towards `most` by one after `hold_s` above it. Returns whether it moved."""
        if self.level <= most:
            self._well_since_s = None
        elif self._well_since_s is None:
            self._well_since_s = now_s
        if now_s - self._moved_s < self._hold_s:
            return False
        if self.level < least:
            self.level = least
        elif self._well_since_s is not None and now_s - self._well_since_s >= self._hold_s:
            self.level -= 1
        else:
            return False
        self._moved_s, self._well_since_s = now_s, None
        return True


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Levels that one kind of reading asks for: at least and at most."""

    name: str
    why: str = ""
    least: int = 0
    most: int = 0


class Governor:
    """Decides how far the engine is throttled; see the module.

    Args:
        workload: what can be throttled.
        settings: the thresholds.

    Attributes:
        limits: of the last step; nothing is throttled before the first.
    """

    def __init__(self, workload: Workload, settings: GovernorSettings | None = None) -> None:
        self._work = workload
        self._settings = settings or GovernorSettings()
        self._pace = _Level(self._settings.hold_s)
        self._window = _Level(self._settings.hold_s)
        self._pace_cause = self._window_cause = _Verdict("")
        self._oom_kills: int | None = None
        self.limits = self._make()

    def step(self, readings: Readings, now_s: float) -> Limits:
        """Return the limits that follow from new readings; the same object while nothing changes.

        Args:
            readings: a missing one counts as good.
            now_s: seconds of a monotonic clock.
        """
        hot, low = self._heat(readings), self._battery(readings)
        memory = self._memory(readings)
        has_moved = self._pace.move(max(hot.least, low.least), max(hot.most, low.most), now_s)
        has_moved |= self._window.move(memory.least, memory.most, now_s)
        worst = max(hot, low, key=lambda verdict: verdict.least)
        is_over = not next((v.most for v in (hot, low) if v.name == self._pace_cause.name), 0)
        # While it comes back, the note goes on naming the earlier cause.
        if worst.least and (has_moved or is_over):
            has_moved |= worst.name != self._pace_cause.name
            self._pace_cause = worst
        if memory.least and has_moved:
            self._window_cause = memory
        if has_moved:
            self.limits = self._make()
        return self.limits

    def _heat(self, readings: Readings) -> _Verdict:
        level = self._pace.level
        hottest, headroom, hot_c = readings.hottest_c, readings.headroom_c, self._settings.hot_c
        if hot_c is not None:
            headroom = hot_c + _HOT_HEADROOM_C - hottest if _is_number(hottest) else None
        why = f"{hottest:.0f} °C" if _is_number(hottest) else "the system reports heat"
        if readings.heat_level is not None and readings.heat_level > 0:
            named = min(_MAX_PACE, readings.heat_level)
            return _Verdict("hot", f"macOS reports thermal pressure {readings.heat_level}", named, named)
        if readings.is_throttled:
            return _Verdict("hot", f"{why}: the system has slowed the processor down", min(level + 1, _MAX_PACE), _MAX_PACE)
        if not _is_number(headroom):
            return _Verdict("hot")
        if headroom <= _HOT_HEADROOM_C:
            if hot_c is None:
                why += f", {headroom:.0f} below" if headroom > 0 else ","
                why += " where the system slows the processor down"
            return _Verdict("hot", why, min(level + 1, _MAX_PACE), _MAX_PACE)
        return _Verdict("hot", why, 0, _MAX_PACE if headroom < _HOT_HEADROOM_C + _COOL_GAP_C else 0)

    def _battery(self, readings: Readings) -> _Verdict:
        percent, low = readings.battery_percent, self._settings.battery_percent
        if not readings.is_on_battery or not _is_number(percent) or not 0 <= percent <= 100 or not low:
            return _Verdict("low battery")
        steps = ((low / 2, 3), (low, 2))
        least = next((level for border, level in steps if percent <= border), 0)
        most = next((level for border, level in steps if percent <= border + _BATTERY_GAP), 0)
        return _Verdict("low battery", f"battery at {percent} %", least, most)

    def _memory(self, readings: Readings) -> _Verdict:
        settings, level = self._settings, self._window.level
        kills, self._oom_kills = self._oom_kills, readings.n_oom_kills
        if kills is not None and readings.n_oom_kills is not None and readings.n_oom_kills > kills:
            why = "the kernel has killed a process of this control group for memory"
            return _Verdict("short of memory", why, _MAX_WINDOW, _MAX_WINDOW)
        if readings.memory_level is not None and readings.memory_level > 1:
            named = _MAX_WINDOW if readings.memory_level >= 4 else 1
            return _Verdict("short of memory", f"macOS reports memory pressure {readings.memory_level}", named, _MAX_WINDOW)
        least = most = 0
        why = ""
        is_scarce = True  # where nothing is known
        free, total = readings.available_bytes, readings.total_bytes
        if _is_number(free) and _is_number(total) and total > 0:
            # Programs also stall at memory limits of their own; using less here would not help them.
            is_scarce = free < total * _STALL_COUNTS_BELOW
            why = f"{size_text(int(free))} of {size_text(int(total))} available"
            border = total * settings.memory_percent / 100
            if border and free <= border:
                least = _MAX_WINDOW if free <= border / 2 else min(level + 1, _MAX_WINDOW)
            # A larger window must fit, or it would shrink again at once.
            if border and free <= border * _MEMORY_GAP + self._kv_bytes(level - 1) - self._kv_bytes(level):
                most = _MAX_WINDOW
        stall = readings.stall_percent if settings.stall_percent and is_scarce else None
        if _is_number(stall) and stall >= settings.stall_percent / _MEMORY_GAP:
            most = _MAX_WINDOW
            if stall >= settings.stall_percent:
                least = max(least, min(level + 1, _MAX_WINDOW))
                why += f"{', ' if why else ''}programs waited for memory {stall:.0f} % of the time"
        return _Verdict("short of memory", why, least, most)

    def _kv_bytes(self, level: int) -> int:
        """Return the size of the KV cache at a level."""
        work = self._work
        return work.kv_bytes * self._n_ctx(max(0, level)) // max(1, work.n_ctx)

    def _n_ctx(self, level: int) -> int:
        n_ctx = self._work.n_ctx
        if not self._work.can_resize or not level:
            return n_ctx
        return min(n_ctx, max(_MIN_WINDOW, (n_ctx >> level) // 256 * 256))

    def _make(self) -> Limits:
        work, pace, window = self._work, self._pace.level, self._window.level
        share = 1 - pace / _PACE_STEPS
        n_threads, n_threads_batch, done = work.n_threads, work.n_threads_batch, 1.0
        if work.is_on_cpu and not work.keeps_threads:
            n_threads = max(1, int(work.n_threads * share))
            n_threads_batch = max(1, int(work.n_threads_batch * share))
            done = n_threads / work.n_threads
        rest = max(0.0, 1 - share / done)
        n_ctx = self._n_ctx(window)
        notes, whys = [], []
        if pace:
            parts = [f"{n_threads} of {work.n_threads} threads"] if n_threads < work.n_threads else []
            parts += [f"rests {rest:.0%} of the time".replace("%", " %")] if rest >= 0.005 else []
            notes.append(f"{self._pace_cause.name}: {', '.join(parts)}")
            whys.append(self._pace_cause.why)
        if window:
            notes.append("short of memory: " + (f"window {n_ctx:,}" if n_ctx < work.n_ctx else "one reply at a time"))
            whys.append(self._window_cause.why)
        return Limits(n_threads, n_threads_batch, rest, n_ctx, window > 0, "; ".join(notes), "; ".join(whys))


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


class Watch:
    """A thread that reads the sensors every few seconds, so that the engine thread spends no time on it.

    Args:
        governor: decides; only this thread uses it from now on.
        sensors: of this machine.
        apply: called with changed limits, from this thread. A BackendError from it ends the watch.
        period_s: seconds between two readings; None is the sensors' own.
    """

    def __init__(
        self, governor: Governor, sensors: Sensors, apply: Callable[[Limits], None], *, period_s: float | None = None
    ) -> None:
        self._governor = governor
        self._sensors = sensors
        self._apply = apply
        self._period_s = sensors.period_s if period_s is None else period_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edge-governor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading the sensors. May be called twice."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        has_failed = False
        while not self._closed.is_set():
            try:
                before = self._governor.limits
                limits = self._governor.step(self._sensors.read(), time.monotonic())
                if limits is not before:
                    _log.info("%s (%s)", limits.note or "nothing is throttled any more", limits.why or "all is well")
                    self._apply(limits)
            except BackendError:
                return  # the assistant was closed meanwhile
            except Exception:  # noqa: BLE001 (a bug of ours must neither print over the chat nor end the watch)
                if not has_failed:
                    _log.exception("The sensors could not be read")
                has_failed = True
            self._closed.wait(self._period_s)
