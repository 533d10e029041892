"""Replies on the disk, so that a run that was stopped goes on, and a teacher answers once.

A file for each model, as its bytes, the versions of the engines and the way of answering make it; in it, replies by the hash
of their prompts. Losing it costs time only.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

import msgspec

from edge.errors import StorageError
from edge.files import read_record, write_private
from edge.formats.gguf_shards import gguf_files
from edge.hashes import file_sha256, join_sha256
from edge_convert.evaluate.tasks.asks import AnswerOptions, Ask
from edge_convert.manifest import tool_versions

__all__ = ["ReplyStore"]

_ENGINES = ("llama-cpp-python", "onnxruntime", "openvino", "coremltools", "transformers", "torch")
_FOLDER = "replies"
_MOST_FILES = 64
_MAX_BYTES = 16 << 20
_SAVE_EVERY_S = 2.0


class ReplyStore:
    """The stored replies of a model. Use it in a `with` block, which saves them however it ends.

    Args:
        model: path of the model.
        options: how it answers.
        cache_dir: where the replies are; None stores nothing.

    Raises:
        ModelFileError: the model cannot be read.
    """

    def __init__(self, model: Path, options: AnswerOptions, cache_dir: Path | None) -> None:
        self._file = cache_dir / _FOLDER / f"{_key(model, options, cache_dir)}.json" if cache_dir else None
        self._replies = (self._file and read_record(self._file, dict[str, str], _MAX_BYTES)) or {}
        self._saved_at = time.monotonic()
        self._is_changed = False

    def get(self, ask: Ask) -> str | None:
        """Return the stored reply to a prompt, or None."""
        return self._replies.get(_digest(ask))

    def put(self, ask: Ask, reply: str) -> None:
        """Store a reply; it is on the disk two seconds later, or at the end."""
        self._replies[_digest(ask)] = reply
        self._is_changed = True
        if time.monotonic() >= self._saved_at + _SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        if self._file is None or not self._is_changed:
            return
        with contextlib.suppress(StorageError):  # a full or read-only disk only costs time at the next run
            write_private(self._file, msgspec.json.encode(self._replies))
            self._is_changed = False
            for old in sorted(self._file.parent.glob("*.json"), key=_age)[_MOST_FILES:]:
                old.unlink(missing_ok=True)

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self._save()


def _key(model: Path, options: AnswerOptions, cache_dir: Path) -> str:
    files = {path.name: path for path in gguf_files(model)}
    if model.is_dir():
        files = {str(path.relative_to(model)): path for path in sorted(model.rglob("*")) if path.is_file()}
    weights = join_sha256([(name, file_sha256(path, cache_dir=cache_dir)) for name, path in files.items()])
    parts = (weights, options.n_parallel, options.backend, sorted(tool_versions(*_ENGINES).items()))
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _digest(ask: Ask) -> str:
    return hashlib.sha256(msgspec.json.encode(ask)).hexdigest()[:32]


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
