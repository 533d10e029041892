"""Signs of life outside the screen: the window's title, and a notice when a long reply is done in an unfocused window."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edge_chat import format as fmt

__all__ = ["LONG_REPLY_S", "WindowSignals", "notice"]

LONG_REPLY_S = 10.0
"""A reply that took less is no reason for a notice."""

_MUTE = ("linux", "dumb")  # terminals that would show the sequences as text, or have no window
_OSC9 = ("iTerm.app", "WezTerm", "ghostty")  # that show OSC 9 as a notice of the desktop
_SAVE, _RESTORE = "\x1b[22;2t", "\x1b[23;2t"  # the terminal's own stack of titles


class WindowSignals:
    """The title of the terminal's window, and notices.

    Args:
        write: sends a control sequence to the terminal.
        environ: the environment.
        has_title: show a title (setting `chat.window_title`).
        has_notice: give notice (setting `chat.notify`).
        is_plain: use words only.
    """

    def __init__(
        self, write: Callable[[str], None], environ: Mapping[str, str], *, has_title: bool, has_notice: bool, is_plain: bool
    ) -> None:
        can_write = environ.get("TERM", "") not in _MUTE
        self._write = write
        self._notice = notice(environ) if has_notice and can_write else None
        self._has_title = has_title and can_write
        self._is_plain = is_plain
        self._shown = ""

    def show(self, title: str, *, is_writing: bool) -> None:
        """Show the title of the conversation in the window's title, with a mark while a reply is generated."""
        if not self._has_title:
            return
        name = " ".join(fmt.clean(title).split())
        text = (f"edge: {name}" if self._is_plain else f"edge – {name}") if name else "edge"
        if is_writing:
            text = f"generating, {text}" if self._is_plain else f"● {text}"
        if text != self._shown:
            self._write(("" if self._shown else _SAVE) + f"\x1b]0;{text}\x07")
            self._shown = text

    def restore(self) -> None:
        """Put the terminal's own title back."""
        if self._shown:
            self._shown = ""
            self._write(f"\x1b]0;\x07{_RESTORE}")

    def tell_done(self, title: str) -> None:
        """Give notice that a reply is complete."""
        if self._notice is not None:
            self._write(self._notice(" ".join(fmt.clean(title).split()) or "A conversation"))


def notice(environ: Mapping[str, str]) -> Callable[[str], str]:
    """Return what makes the control sequence of a notice: the desktop's (OSC 9) where the terminal has it, otherwise a bell."""
    program = environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") is None and (program in _OSC9 or "KITTY_WINDOW_ID" in environ):
        return lambda title: f"\x1b]9;edge has answered: {title}\x07"
    return lambda title: "\x07"
