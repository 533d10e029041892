"""Stopping an engine half-way through a pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["watching"]


@contextmanager
def watching(should_stop: Callable[[], bool] | None, stop: Callable[[], None], poll_s: float = 0.02) -> Iterator[None]:
    """Ask `should_stop` from a thread of its own while the body runs, and call `stop` once when it says True.

    Args:
        should_stop: None watches nothing.
        stop: makes the running pass end soon; called from the watching thread.
        poll_s: seconds between two questions.

    Raises:
        Exception: any that `should_stop` raised; the pass was stopped then, too.
    """
    if should_stop is None:
        yield
        return
    is_done = threading.Event()
    failures: list[Exception] = []

    def watch() -> None:
        try:
            while not is_done.wait(poll_s):
                if should_stop():
                    stop()
                    return
        except Exception as error:  # noqa: BLE001 (raised again below, in the thread of the caller)
            failures.append(error)
            stop()

    watcher = threading.Thread(target=watch, name="edge-stop-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_done.set()
        watcher.join()
        if failures:  # also where the body raised because it was stopped
            raise failures[0]
