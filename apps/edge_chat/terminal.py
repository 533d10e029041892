"""The terminal as it is: bytes that are no text, pasted control characters, signals, and its end."""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import os
import re
import selectors
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from textual import events
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from textual.message import Message

__all__ = ["InputBytes", "TerminalDriver", "keep_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_READ_BYTES = 1 << 16
_POLL_S = 0.1
_IDLE_POLLS = 5  # after half a second of silence the rest of a character will not come

_PASTE_END = b"\x1b[201~"
_SPECIAL = re.compile(rb"\x1b\[(?:M|200~)")  # a mouse report in bytes (X10), and the beginning of pasted text
_SPECIAL_BYTES = 6
_MOUSE_BYTES = 3


@contextlib.contextmanager
def keep_signals() -> Iterator[None]:
    """Restore the signal handlers that the app replaces."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class InputBytes:
    """Turns what a terminal sends into text for textual's parser, and takes pasted text out of it.

    Bytes that are not UTF-8 become U+FFFD, and the bytes of a mouse report "!", so that the parser drops it: in this form
    they can be any bytes. Pasted text is not parsed, since textual takes an ESC in it for a key.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._seen = b""  # the end of what was passed on, which may be the beginning of a special sequence
        self._n_mouse = 0
        self._pasted: bytearray | None = None

    def feed(self, data: bytes) -> Iterator[tuple[str, str | None]]:
        """Yield (text for the parser, the text to put in the place of a paste that ends in it)."""
        while data:
            if self._n_mouse:
                n = min(self._n_mouse, len(data))
                self._n_mouse -= n
                data = data[n:]
                yield "!" * n, None
            elif self._pasted is not None:
                start = max(0, len(self._pasted) - len(_PASTE_END))
                self._pasted += data
                end = self._pasted.find(_PASTE_END, start)
                if end < 0:
                    return
                data = bytes(self._pasted[end + len(_PASTE_END) :])
                pasted, self._pasted = self._pasted[:end].decode("utf-8", "replace"), None
                yield _PASTE_END.decode(), pasted.replace("\0", "")
            else:
                data = yield from self._feed_text(data)

    def _feed_text(self, data: bytes) -> Generator[tuple[str, str | None], None, bytes]:
        """Pass on text up to the next special sequence; return the bytes after that."""
        found = _SPECIAL.search(self._seen + data)
        end = found.end() - len(self._seen) if found else len(data)
        if text := self._decode(data[:end]):
            yield text, None
        if found is None:
            self._seen = (self._seen + data)[1 - _SPECIAL_BYTES :]
        else:
            self._seen = b""
            if found[0].endswith(b"M"):
                self._n_mouse = _MOUSE_BYTES
            else:
                self._pasted = bytearray()
        return data[end:]

    def flush(self) -> str:
        """Return U+FFFD for a character whose rest has not come, else ""."""
        return self._decode(b"", True)


class TerminalDriver(LinuxDriver):
    """Textual's driver for terminals that misbehave. SIGTERM, SIGHUP, SIGINT and the end of the terminal quit the app."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._quit_app: Callable[[int], None] = app.quit_at_signal
        self._context = contextvars.copy_context()  # a signal comes anywhere
        screen = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else sys.stdout
        self._file: Any = _Screen(screen)
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, lambda received, _frame: self._quit(received))

    def _quit(self, number: int) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._quit_app, number, context=self._context)

    def _run_input_thread(self) -> None:
        try:
            self.run_input_thread()
        except Exception as error:  # noqa: BLE001 (a bug here ends the app as one elsewhere does)
            self._app.call_later(self._app._handle_exception, error)

    def run_input_thread(self) -> None:
        """Read the terminal until the app ends."""
        self._input, self._parser = InputBytes(), XTermParser(self._debug)
        n_idle = 0
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                n_idle = n_idle + 1
                if selector.select(_POLL_S):
                    n_idle = 0
                    if not self._read():
                        self._quit(signal.SIGHUP)
                        return
                elif n_idle == _IDLE_POLLS and (rest := self._input.flush()):
                    self._parse(rest, None)
                for event in self._parser.tick():
                    self.process_message(event)

    def _read(self) -> bool:
        """Handle what has come. Return whether the terminal is still there."""
        try:
            data = os.read(self.fileno, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for text, pasted in self._input.feed(data):
            self._parse(text, pasted)
        return bool(data)

    def _parse(self, text: str, pasted: str | None) -> None:
        for character in text:
            found: list[Message] = []
            try:
                found += self._parser.feed(character)
            except Exception:  # noqa: BLE001 (numbers no terminal sends: the sequence is dropped, the next one is new)
                self._parser = XTermParser(self._debug)
            for event in found:
                is_paste = isinstance(event, events.Paste) and pasted is not None
                self.process_message(events.Paste(pasted or "") if is_paste else event)


class _Screen:
    """Output for textual's writer thread, which would end at an error and leave the app waiting for it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the terminal is gone, as the reading thread notices
            self._file.write(text)
            self._file.flush()

    def flush(self) -> None:
        """Do nothing: every text is written at once."""

    def fileno(self) -> int:
        return self._file.fileno()
