"""What child processes of a conversion have in common: what they inherit, how they are let go, what is said of their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from edge import errors
from edge.errors import BackendError, EdgeError

__all__ = ["close_pipes", "died", "end_with_parent", "environment", "raised"]

_TAIL_LINES = 8


def environment(**more: str) -> dict[str, str]:
    """The environment of a child that imports what this process imports.

    Args:
        more: variables to set.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def close_pipes(child: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Let go of the stdin and stdout of a child that has ended."""
    assert child.stdin and child.stdout
    for stream in (child.stdin, child.stdout):
        try:
            stream.close()
        except BrokenPipeError:
            pass  # what was left to write has no reader any more


def end_with_parent(how: signal.Signals) -> None:
    """For a child whose stdin is a pipe that its parent keeps open: send itself a signal when the parent is gone."""

    def wait() -> None:
        while os.read(0, 4096):  # not through sys.stdin: its lock would be missing when the interpreter ends
            pass
        os.kill(os.getpid(), how)

    threading.Thread(target=wait, daemon=True).start()


def raised(kind: str, message: str, hint: str) -> EdgeError:
    """An error of a child again, by the name of its class; a name that is none of edge's errors gives a BackendError."""
    known = getattr(errors, kind) if kind in errors.__all__ else BackendError
    error: EdgeError = known(message, hint)
    return error


def died(who: str, code: int, said: str, hint: str, doing: str = "") -> BackendError:
    """What to say of a child that ended without a result.

    Args:
        who: the child.
        code: its exit code; below 0 the signal.
        said: its stderr, of which the end is shown.
        hint: what to do next, unless memory was short.
        doing: what it was at, such as " while it was to quantise".
    """
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    tail = "\n".join(said.strip().splitlines()[-_TAIL_LINES:])
    if code == -signal.SIGKILL:
        hint = "The system may have run out of memory. Close other programs, and run the same command again: it resumes."
    return BackendError(f"{who} {how}{doing}." + (f" It said:\n{tail}" if tail else ""), hint)
