"""Child processes: start one that imports what this process imports, talk to it in lines, stop it, and say how it ended.

A library that crashes, hangs or keeps gigabytes does so in a child. Its stderr goes to a temporary file: nobody reads a pipe
while it works, and a full one would stop it. It leads a session of its own, so that Ctrl-C reaches the parent only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edge import errors

if TYPE_CHECKING:
    from edge.errors import EdgeError

__all__ = ["Child", "Ended", "claim_stdout", "end_with_parent", "python_command", "rebuild_error", "run_child"]

_START = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); module, _, name = sys.argv[2].partition(':'); "
    "del sys.argv[1:3]; getattr(importlib.import_module(module), name)(*sys.argv[1:])"
)
_STOPPED = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGKILL", "SIGHUP")}
_ERROR = re.compile(r"^[\w.]*(Error|Exception)(:|$)|_ASSERT\(|what\(\):")
_TAIL_BYTES = 16 << 10
_POLL_S = 0.1
_GOODBYE_S = 5.0


def python_command(entry: str, *arguments: str, unbuffered: bool = False) -> list[str]:
    """Return the command line of a Python child that calls a function and finds packages where this process does.

    Args:
        entry: "module:function".
        arguments: texts that the function is called with.
        unbuffered: whatever it prints is written at once.

    Raises:
        OSError: there is no Python interpreter to start (a frozen program).
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("there is no Python interpreter to start")
    # -I keeps the environment and the current folder out.
    flags = ["-I", "-u"] if unbuffered else ["-I"]
    return [sys.executable, *flags, "-c", _START, json.dumps(sys.path), entry, *arguments]


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a child process.

    Attributes:
        code: exit code, below 0 the signal; None where its time was over and it was killed.
        stdout: what it wrote there, in bytes; b"" where that was a pipe.
        stderr: the end of what it wrote there.
    """

    code: int | None
    stdout: bytes
    stderr: str

    @property
    def was_stopped(self) -> bool:
        """True if a person or the system stopped it, which says nothing about what it tried."""
        return self.code is not None and self.code < 0 and -self.code in _STOPPED

    @property
    def last_line(self) -> str:
        """The last line of stderr that names an error or a failed assertion, else its last line; "" if it wrote none."""
        lines = [line.strip()[:300] for line in self.stderr.splitlines() if line.strip()]
        return ([line for line in lines if _ERROR.search(line)] or lines or [""])[-1]

    @property
    def reason(self) -> str:
        """The end in words, to follow its name: "died of SIGSEGV", "ended with code 1 (its last line)"."""
        if self.code is None:
            return "did not end in time"
        how = f"ended with code {self.code}"
        if self.code < 0:
            known = {item.value: item.name for item in signal.Signals}
            how = f"died of {known.get(-self.code, f'signal {-self.code}')}"
            if self.code == -signal.SIGKILL:
                how += "; the system may have run out of memory"
        return f"{how} ({self.last_line})" if self.last_line else how


class Child:
    """A running child process with pipes for stdin and stdout. Use it in a `with` block, which kills what still runs.

    Any thread may call `stop`, `memory_bytes` and `cpu_s`; everything else belongs to one thread.

    Args:
        command: its command line, such as `python_command` returns.
        env: its environment; None inherits.
        cwd: its current folder; None inherits.
        merge: stderr goes to stdout, too.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, merge: bool = False
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merge else self._stderr,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except OSError:
            self._stderr.close()
            raise

    def send(self, line: bytes) -> None:
        """Write one line to its stdin. A child that is gone already is not an error here: `wait` says why."""
        assert self._process.stdin
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of its stdout until it closes."""
        assert self._process.stdout
        yield from iter(self._process.stdout.readline, b"")  # `yield from` a file would close it with the generator

    def ask(self, line: bytes) -> bytes:
        """Send one line and return the next line of stdout, b"" when the child has ended."""
        assert self._process.stdout
        self.send(line)
        return self._process.stdout.readline()

    @property
    def memory_bytes(self) -> int:
        """Memory that it takes now (resident set size); 0 if it has ended."""
        import psutil

        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    @property
    def cpu_s(self) -> float:
        """Processor time that it has taken, in seconds; 0 if it has ended."""
        import psutil

        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def wait(self) -> Ended:
        """Wait for its end."""
        return Ended(self._process.wait(), b"", _tail(self._stderr))

    def stop(self, patience_s: float = 0.0) -> None:
        """End it and everything that it started.

        Args:
            patience_s: it is asked with SIGINT first, and has this long to save its state, in seconds.
        """
        try:
            if patience_s and self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
                try:
                    self._process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    pass
        finally:  # also where the user has no patience for that
            if self._process.poll() is None:
                _kill(self._process)

    def close(self, patience_s: float = _GOODBYE_S) -> None:
        """Close its stdin, which asks it to end, wait, and kill what is left. May be called twice."""
        _close(self._process.stdin)
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.stop()
            _close(self._process.stdout)
            self._stderr.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close(0.0)


def run_child(
    command: Sequence[str],
    *,
    timeout_s: float | None = None,
    on_wait: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    patience_s: float = 0.0,
) -> Ended:
    """Run a child to its end, without stdin.

    Args:
        command: its command line.
        timeout_s: it is killed after this long; None is never.
        on_wait: called about ten times a second; what it raises ends the child and goes through.
        env, cwd: as for `Child`.
        patience_s: how long it may take to end after SIGTERM, before it is killed, when something else than its time ends it.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, cwd=cwd, start_new_session=True
        )
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        code: int | None = None
        try:
            while code is None and (deadline is None or time.monotonic() < deadline):
                try:
                    code = process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    if on_wait:
                        on_wait()
        except BaseException:
            if patience_s:
                process.terminate()
                try:
                    process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    pass
            raise
        finally:
            if process.poll() is None:
                _kill(process)
        stdout.seek(0)
        return Ended(code, stdout.read(), _tail(stderr))


def end_with_parent(how: signal.Signals) -> None:
    """Send this process a signal when its stdin closes. For a child whose parent keeps that pipe open as long as it lives."""

    def wait() -> None:
        while os.read(0, 4096):  # not through sys.stdin: its lock would be missing when the interpreter ends
            pass
        os.kill(os.getpid(), how)

    threading.Thread(target=wait, daemon=True).start()


def claim_stdout() -> Callable[[bytes], None]:
    """Keep this process's stdout for answers to its parent, and send what libraries print there to stderr.

    Returns:
        A function that writes one line to the parent.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def send(line: bytes) -> None:
        answers.write(line + b"\n")
        answers.flush()

    return send


def rebuild_error(kind: str, message: str, hint: str) -> EdgeError:
    """Return the error of a child by the name of its class; a name that edge does not know gives a BackendError."""
    known: type[EdgeError] = getattr(errors, kind) if kind in errors.__all__ else errors.BackendError
    return known(message, hint)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended meanwhile
    process.wait()


def _close(stream: IO[bytes] | None) -> None:
    assert stream is not None
    try:
        stream.close()
    except BrokenPipeError:
        pass  # what was left to write has no reader any more


def _tail(file: IO[bytes]) -> str:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _TAIL_BYTES))
    return file.read().decode("utf-8", "replace")
