"""The message of `edge run`: words from the command line, stdin and files."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge.files import decode_text
from edge.units import size_text
from edge_cli import output
from edge_cli.streams import read_bytes, read_stdin

if TYPE_CHECKING:
    from edge.conversation import Attachment

__all__ = ["read_file", "read_prompt"]

MAX_INPUT_BYTES = 64 << 20
"""More than any context window holds. Reading stops there, so that `edge run < /dev/zero` ends."""

_EXAMPLE = 'For example: edge run "What is the capital of France?"   or: cat notes.txt | edge run "Summarise"'
_WAIT_S = 3.0
_STDIN = Path("-")


def read_prompt(
    words: Sequence[str], files: Sequence[Path], *, use_stdin: bool, is_chatty: bool, needs_text: bool = True
) -> tuple[str, list[Attachment]]:
    """Return the text of the message and its attachments.

    Stdin is the text if there are no words or a single "-", and an attachment otherwise, or if "-" is one of the files.

    Args:
        words: the arguments.
        files: texts to attach; "-" is stdin.
        use_stdin: read a pipe or file at stdin.
        is_chatty: say so while waiting for stdin.
        needs_text: refuse a message without text.

    Raises:
        UsageError: there is no text, a file is not text or cannot be read, or stdin is named and closed.
    """
    from edge.conversation import Attachment

    prompt = " ".join(words).strip()
    wants_stdin = prompt == "-"
    if wants_stdin:
        prompt = ""
    attaches_stdin = _STDIN in files
    if (wants_stdin and attaches_stdin) or list(files).count(_STDIN) > 1:
        raise UsageError("stdin cannot be read twice.", 'For example: cat notes.txt | edge run -f - "Summarise"')
    attachments = [
        Attachment("stdin", _read_stdin(is_chatty=is_chatty, is_named=True))
        if path == _STDIN
        else Attachment(path.name, read_file(path))
        for path in files
    ]
    for attachment in attachments:
        if not attachment.text:
            output.note(f"{output.plain(attachment.name)} is empty.")
    use_stdin = use_stdin and not attaches_stdin and sys.stdin is not None and not output.is_terminal(sys.stdin)
    if wants_stdin or use_stdin:
        piped = _read_stdin(is_chatty=is_chatty, is_named=wants_stdin)
        if piped.strip() and prompt:
            attachments.append(Attachment("stdin", piped))
        elif not prompt:
            prompt = piped.strip("\r\n")
    if needs_text and not prompt.strip():
        said = "There is no question about the attachments" if attachments else "There is no prompt"
        raise UsageError(f"{said}: no words were given, and stdin is empty or a terminal.", _EXAMPLE)
    return prompt, attachments


def _read_stdin(*, is_chatty: bool, is_named: bool) -> str:
    reminder = threading.Timer(
        _WAIT_S, output.note, ["Waiting for the end of stdin, which is not a terminal (--no-stdin ignores it) ..."]
    )
    reminder.daemon = True
    if is_chatty:
        reminder.start()
    try:
        data = (read_stdin if is_named else partial(read_bytes, sys.stdin))(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}.", "Use --no-stdin to ignore it.") from error
    finally:
        reminder.cancel()
    return _text(data, "stdin")


def read_file(path: Path) -> str:
    """Return the text of a file.

    Raises:
        UsageError: it cannot be read, is too large, or is not text.
    """
    try:
        with path.open("rb") as file:
            return _text(file.read(MAX_INPUT_BYTES + 1), str(path))
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory.", "Attach files one by one: -f FILE -f FILE") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def _text(data: bytes, name: str) -> str:
    if len(data) > MAX_INPUT_BYTES:
        raise UsageError(f"{name} is larger than {size_text(MAX_INPUT_BYTES)}.", "That is more than any model here can take.")
    return decode_text(data, name)
