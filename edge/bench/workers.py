"""The processes in which `edge tune` measures settings, as many as fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge.bench.losses import Tuned
from edge.bench.run import MEMORY_SHARE
from edge.bench.values import Setting
from edge.plan.receipt import Plan

__all__ = ["Workers"]

_MOST = 3


class Workers:
    """A process for each setting. Where there is no room for another one, the least recently used ones end.

    Args:
        open_worker: starts the process of a plan.
        available_bytes: memory for all of them.
        deadline: as for `Tuner`.
    """

    def __init__(self, open_worker: Callable[..., Tuned], available_bytes: int, deadline: float | None) -> None:
        self._open_worker, self._available_bytes, self._deadline = open_worker, available_bytes, deadline
        self._workers: dict[Setting, Tuned] = {}  # the one used last is at the end

    def get(self, setting: Setting, plan: Plan) -> Tuned:
        """Return the process of a setting, started if need be.

        Raises:
            EdgeError: it does not start.
        """
        worker = self._workers.pop(setting, None) or self.open(plan, deadline=self._deadline)
        self._workers[setting] = worker
        return worker

    def open(self, plan: Plan, **options: Any) -> Tuned:
        """Start a process that is the caller's, after making room for it.

        Raises:
            EdgeError: it does not start.
        """
        free = self._available_bytes * MEMORY_SHARE
        n_fit = max(1, min(_MOST, int(free // max(1, plan.memory.total_bytes))))
        while len(self._workers) >= n_fit:
            self._workers.pop(next(iter(self._workers))).close()
        return self._open_worker(plan, with_energy=False, **options)

    def drop(self, setting: Setting) -> None:
        """End a setting's process, which may be dead already."""
        worker = self._workers.pop(setting, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """End all of them."""
        while self._workers:
            self._workers.popitem()[1].stop()
