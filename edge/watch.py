"""Reads the sensors beside everything else, and hands over what the governor makes of them. See `edge.governor`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.errors import BackendError

if TYPE_CHECKING:
    from edge.governor import Governor, Limits
    from edge.sensors import Sensors

__all__ = ["Watch"]

_log = logging.getLogger("edge.governor")


class Watch:
    """A thread that looks at the sensors every few seconds. Off the engine's thread: a token costs nothing more because of it.

    Args:
        governor: decides; only this thread uses it from now on.
        sensors: of this machine.
        apply: called with the limits whenever they have changed, from this thread. Raises BackendError when nobody wants them
            any more, which ends the watch.
        period_s: instead of the sensors' own.
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
        """Stop looking. May be called twice."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        has_failed = False
        while not self._closed.is_set():
            try:
                self._look()
            except BackendError:
                return  # the assistant was closed meanwhile
            except Exception:  # noqa: BLE001 (a bug of ours; a thread's traceback would go over the chat, and what is held back stay so)
                if not has_failed:
                    _log.exception("The sensors could not be read")
                has_failed = True
            self._closed.wait(self._period_s)

    def _look(self) -> None:
        before = self._governor.limits
        limits = self._governor.step(self._sensors.read(), time.monotonic())
        if limits is not before:
            _log.info("%s (%s)", limits.note or "nothing is held back any more", limits.why or "all is well")
            self._apply(limits)
