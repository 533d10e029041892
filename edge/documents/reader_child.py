"""The child process that reads files: a line with a path and a kind comes in, a line with blocks goes out.

A parser of a large or hostile file may take all memory, hang or crash; then this process does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from edge.child import claim_stdout
from edge.documents.base import Block
from edge.documents.readers import Unreadable, largest_bytes, reader
from edge.files import open_file
from edge.units import one_line, reason

__all__ = ["Answer", "Question", "main"]

_MOST_CHARS = 32 << 20
"""Of the text of a file: a small archive may hold gigabytes."""
_MOST_BLOCKS = 2_000_000
_LONGEST_TITLE = 200


class Question(msgspec.Struct, array_like=True, frozen=True):
    """A file to read: its path as bytes, and its kind."""

    path: bytes
    kind: str


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What was read.

    Attributes:
        title: of the file; "" if it has none.
        blocks: of it.
        refused: why it cannot be read, as the end of a sentence; "" if it could.
        is_lasting: it will be refused again as long as its content is the same.
        is_last: the process ends after it, since a parser may have left it with much less memory.
    """

    title: str = ""
    blocks: list[Block] = []
    refused: str = ""
    is_lasting: bool = True
    is_last: bool = False


def main(memory_bytes: str) -> None:
    """Answer until stdin closes."""
    send = claim_stdout()
    _limit(int(memory_bytes))
    for line in sys.stdin.buffer:
        question = msgspec.msgpack.decode(bytes.fromhex(line.decode("ascii")), type=Question)
        answer = _read(question)
        send(msgspec.json.encode(answer))
        if answer.is_last:
            return


def _limit(memory_bytes: int) -> None:
    """Make the system refuse more memory than that, and large files, to this process. Not every system can."""
    import resource

    for what, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_FSIZE, 1 << 20), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):
            pass  # the parent watches memory and time, too


def _read(question: Question) -> Answer:
    try:
        with open_file(Path(os.fsdecode(question.path))) as file:
            data = file.read(largest_bytes(question.kind) + 1)
        if len(data) > largest_bytes(question.kind):
            return Answer(refused="it grew too large while it was read", is_lasting=False)
        title, blocks = reader(question.kind)(data)
        held: list[Block] = []
        n_chars = 0
        for block in blocks:
            n_chars += len(block.text)
            if n_chars > _MOST_CHARS or len(held) >= _MOST_BLOCKS:
                return Answer(refused=f"it holds more than {_MOST_CHARS >> 20} million characters of text", is_last=True)
            held.append(block)
    except Unreadable as refusal:
        return Answer(refused=str(refusal))
    except OSError as error:
        return Answer(refused=f"it cannot be read: {reason(error)}", is_lasting=False)
    except ImportError as error:
        hint = f"the package {error.name} is missing: pip install 'edge-assistant[docs]'"
        return Answer(refused=hint, is_lasting=False)
    except MemoryError:
        return Answer(refused="reading it takes too much memory", is_last=True)
    except RecursionError:
        return Answer(refused="it is nested too deeply")
    except Exception as error:  # noqa: BLE001 (a parser's bug about one file must not end the others)
        return Answer(refused=f"it is damaged: {one_line(reason(error))[:200] or type(error).__name__}")
    if not held:
        return Answer(refused="it holds no text")
    return Answer(one_line(title)[:_LONGEST_TITLE], held)
