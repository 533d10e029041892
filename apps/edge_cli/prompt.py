"""What `edge run` says to the model: the words on the command line, stdin and files."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_cli import output

if TYPE_CHECKING:
    from edge.conversation import Attachment

__all__ = ["read_prompt"]

MAX_INPUT_BYTES = 64 << 20
"""More than any context window holds; reading stops there, so that `edge run < /dev/zero` ends."""

_EXAMPLE = 'For example: edge run "What is the capital of France?"   or: cat notes.txt | edge run "Summarise"'
_WAIT_S = 3.0


def read_prompt(
    words: Sequence[str], files: Sequence[Path], *, use_stdin: bool, is_chatty: bool
) -> tuple[str, list[Attachment]]:
    """Put the message together.

    Args:
        words: the arguments; "-" alone stands for stdin.
        files: texts to attach.
        use_stdin: whether a pipe or file at stdin is read.
        is_chatty: say so when stdin keeps us waiting.

    Returns:
        The text and what is attached: stdin is the text where there are no words, and an attachment where there are.

    Raises:
        UsageError: there is nothing to say, or something is not text or cannot be read.
    """
    from edge.conversation import Attachment

    prompt = " ".join(words).strip()
    wants_stdin = prompt == "-"
    if wants_stdin:
        prompt = ""
    attachments = [Attachment(path.name, _read_file(path)) for path in files]
    if wants_stdin or (use_stdin and sys.stdin is not None and not output.is_terminal(sys.stdin)):
        piped = _read_stdin(is_chatty=is_chatty)
        if piped.strip() and prompt:
            attachments.append(Attachment("stdin", piped))
        elif not prompt:
            prompt = piped.strip("\r\n")
    if not prompt.strip():
        said = "There is nothing to do with what is attached" if attachments else "There is no prompt"
        raise UsageError(f"{said}: no words were given, and stdin is empty or a terminal.", _EXAMPLE)
    return prompt, attachments


def _read_stdin(*, is_chatty: bool) -> str:
    if sys.stdin is None:
        return ""
    reminder = threading.Timer(
        _WAIT_S, output.note, ["Waiting for the end of stdin, since it is not a terminal (--no-stdin ignores it) ..."]
    )
    reminder.daemon = True
    if is_chatty:
        reminder.start()
    try:
        data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}.", "Use --no-stdin to ignore it.") from error
    finally:
        reminder.cancel()
    return _text(data, "stdin")


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _text(file.read(MAX_INPUT_BYTES + 1), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def _text(data: bytes, name: str) -> str:
    if len(data) > MAX_INPUT_BYTES:
        raise UsageError(f"{name} is longer than {MAX_INPUT_BYTES >> 20} MiB.", "No model here reads that much.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"{name} is not UTF-8 text.", "Only texts can be read; convert it first.")
    return text
