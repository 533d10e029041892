"""The user's editor on the message being written: a child process, and a private folder for its files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UsageError
from edge_chat.attachments import why

__all__ = ["Edited", "Editor", "editor_at", "editor_command"]

_EDITORS = ("nano", "vim", "vi")
_NAME = "message.md"
_RESCUED = f"{_NAME}.save"  # where nano puts a text that is not saved when it is told to end
# Editors that open a file at a line, and how.
_PLUS_LINE = {"nano", "vi", "vim", "nvim", "gvim", "emacs", "emacsclient", "micro", "kak", "joe", "ne", "mg", "ed"}
_COLON_LINE = {"hx", "helix", "subl", "zed"}
_GO_TO = {"code", "codium", "code-insiders", "cursor"}
_END_S = 3.0  # for saving; editors that need longer are killed


def editor_command(environ: Mapping[str, str], find: Callable[[str], str | None] = shutil.which) -> list[str]:
    """Return the user's editor as a command line: $VISUAL, $EDITOR, or the first common editor that `find` finds.

    Raises:
        UsageError: the variable is not a valid command line.
    """
    text = environ.get("VISUAL") or environ.get("EDITOR") or next(filter(find, _EDITORS), _EDITORS[0])
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"$VISUAL or $EDITOR is {text!r}, which is not a valid command ({error}).", "Correct the variable."
        ) from None


def editor_at(command: Sequence[str], path: str, line: int) -> list[str]:
    """Return the command line that opens a file in an editor, at the line where the editor is known to take one."""
    editor = os.path.basename(command[0]).removesuffix(".exe")  # noqa: PTH119 (no file)
    if editor in _PLUS_LINE:
        return [*command, f"+{line}", path]
    if editor in _COLON_LINE:
        return [*command, f"{path}:{line}"]
    if editor in _GO_TO:
        return [*command, "-g", f"{path}:{line}"]
    return [*command, path]


@dataclass(frozen=True, slots=True)
class Edited:
    """How an editor ended.

    Attributes:
        text: the message as the editor saved it; None if it failed, and the message is as it was.
        code: its exit code; negative for the signal that ended it.
        left: folder with text that the editor could not save as the message, such as a swap file; None without any.
    """

    text: str | None
    code: int
    left: Path | None = None


class Editor:
    """An editor on a text. `run` blocks in one thread, `end` ends it from another.

    Args:
        command: the command line, without the file.
        text: the message so far.

    Attributes:
        closed: set by the owner once the chat has the terminal and the text again.
    """

    def __init__(self, command: Sequence[str], text: str) -> None:
        self.closed = asyncio.Event()
        self._command = list(command)
        self._text = text
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_by = 0
        self._ending: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self) -> Edited:
        """Start the editor, wait for its end, and remove its files.

        Raises:
            UsageError: it cannot be started.
            OSError: its files cannot be written or read.
            UnicodeDecodeError: it wrote a text that is not UTF-8.
        """
        folder = Path(tempfile.mkdtemp(prefix="edge-message-"))
        left: Path | None = None
        try:
            path = folder / _NAME
            path.write_text(self._text, encoding="utf-8")
            with _same_terminal():
                code = self._run(path)
            was_stopped = self._ended_by != 0 or code < 0
            rescued = folder / _RESCUED
            if was_stopped and any(one.name not in (_NAME, _RESCUED) for one in folder.iterdir()):
                left = folder
            text = (rescued if was_stopped and rescued.exists() else path).read_text("utf-8")
            return Edited(text.rstrip("\n") if was_stopped or code == 0 else None, code, left)
        finally:
            if left is None:
                shutil.rmtree(folder, ignore_errors=True)

    def end(self, number: int) -> None:
        """End the editor and what it started with a signal; kill it if that does not help. Returns at once."""
        with self._lock:
            self._ended_by = number
            process = self._process
            if process is not None:
                self._ending = threading.Thread(target=_end, args=(process, number), name="edge-editor", daemon=True)
                self._ending.start()

    def _run(self, path: Path) -> int:
        with self._lock:
            if self._ended_by:
                return -self._ended_by
            try:
                self._process = subprocess.Popen([*self._command, str(path)])
            except OSError as error:
                hint = "Set $VISUAL or $EDITOR to an editor that is installed."
                raise UsageError(f"The editor {self._command[0]!r} cannot be started ({why(error)}).", hint) from None
        code = self._process.wait()
        with self._lock:
            ending = self._ending
        if ending is not None:
            ending.join()  # where the command is a script, the editor itself may still be saving
        return code


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and its descendants ($EDITOR may be a script), then SIGKILL to those that stay."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        alive = [first, *first.children(recursive=True)]
        for signal_number in (number, signal.SIGKILL):
            for one in alive:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    one.send_signal(signal_number)
            _, alive = psutil.wait_procs(alive, timeout=_END_S)


@contextlib.contextmanager
def _same_terminal() -> Iterator[None]:
    """Restore the modes of the terminal afterwards: an editor that is killed leaves its own."""
    if sys.platform == "win32":
        yield
        return
    import termios

    before = None
    with contextlib.suppress(OSError, ValueError, termios.error):  # no terminal
        before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError, ValueError, termios.error):  # it is gone
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
