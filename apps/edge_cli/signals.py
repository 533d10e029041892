"""SIGTERM and SIGHUP end a command as Ctrl-C does, with what it has saved; only the exit code differs."""

from __future__ import annotations

import signal

__all__ = ["catch", "exit_code"]

_NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_received: list[int] = []


def catch() -> None:
    """Raise KeyboardInterrupt in the main thread at SIGTERM and SIGHUP. `nohup` and the like keep their effect."""
    for number in _NUMBERS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


def exit_code() -> int:
    """Return the exit code of a command that was interrupted: 143 by SIGTERM, 129 by SIGHUP, else 130."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _interrupt(number: int, _frame: object) -> None:
    _received.append(number)
    # `timeout` and session managers send several: the second must not interrupt what saves the work.
    if len(_received) == 1:
        raise KeyboardInterrupt
