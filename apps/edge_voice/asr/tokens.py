"""The vocabulary of Moonshine models: a file of byte strings, each with its length in front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge.errors import ModelFileError
from edge.files import read_bytes

__all__ = ["Vocabulary"]

_MAX_BYTES = 16 << 20
_N_CONTROL = 3  # <unk>, <s>, </s>
_BLANK = "▁"


class Vocabulary:
    """Token ids to text.

    Args:
        file: tokenizer.bin of a Moonshine model. A token of up to 127 bytes has its length in one byte; a longer one in
            two, the lower seven bits first.

    Raises:
        ModelFileError: it is damaged, or cannot be read.
    """

    def __init__(self, file: Path) -> None:
        data, position = read_bytes(file, _MAX_BYTES), 0
        self._tokens: list[bytes] = []
        while position < len(data):
            size, start = data[position], position + 1
            if size >= 128 and start < len(data):
                size, start = size - 128 + 128 * data[start], start + 1
            if start + size > len(data):
                raise ModelFileError(f"{file.name} ends in the middle of a token.", "Pull the model again.")
            self._tokens.append(data[start : start + size])
            position = start + size

    def __len__(self) -> int:
        return len(self._tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without control tokens, and with one blank between words."""
        joined = b"".join(self._tokens[token] for token in tokens if _N_CONTROL <= token < len(self._tokens))
        return " ".join(joined.decode("utf-8", "replace").replace(_BLANK, " ").split())
