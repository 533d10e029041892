"""Reads the small files of a model folder: text and JSON that strangers wrote, bounded in size, with errors of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from edge.errors import ModelFileError

__all__ = ["MAX_JSON_BYTES", "parse_json", "read_bytes", "read_json", "read_text"]

MAX_JSON_BYTES = 16 << 20
"""Of a configuration file; the largest known, with thousands of added tokens, has 2 MB."""

T = TypeVar("T")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A whole file.

    Args:
        path: the file.
        max_bytes: the most it may have.

    Raises:
        ModelFileError: it is missing, no file, too large, or cannot be read.
    """
    try:
        if not path.is_file():
            raise ModelFileError(f"{path} is missing.", "Download or convert the model again.")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions and the disk.") from error
    if len(data) > max_bytes:
        raise ModelFileError(
            f"{path} has more than {max_bytes:,} bytes, so it is not what its name says.",
            "Download or convert the model again.",
        )
    return data


def read_text(path: Path, max_bytes: int) -> str:
    """A whole text file in UTF-8.

    Raises:
        ModelFileError: as `read_bytes`, or it is no UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is no text: {error}.", "Download or convert the model again.") from error


def read_json(path: Path, kind: type[T], max_bytes: int = MAX_JSON_BYTES) -> T:
    """A JSON file, checked against a type. Fields that the type does not name are passed over.

    Args:
        path: the file.
        kind: a msgspec.Struct.
        max_bytes: the most it may have.

    Raises:
        ModelFileError: as `read_bytes`, or it is no JSON, or not what the type says.
    """
    return parse_json(path, read_bytes(path, max_bytes), kind)


def parse_json(path: Path, data: bytes, kind: type[T]) -> T:
    """As `read_json`, of bytes that were read already; `path` is for messages."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: {error}.", "Download or convert the model again.") from error
