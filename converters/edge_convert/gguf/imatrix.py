"""The importance matrix: how much each input of each weight matrix matters, measured on a calibration text."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from edge.errors import ModelFileError, UsageError
from edge.files import open_file
from edge.units import reason
from edge_convert.gguf.engine import run_task

__all__ = ["calibration_chunks", "compute_imatrix", "read_calibration"]

_CHUNK_TOKENS = 256
_MIN_TOKENS = 64
_MAX_TEXT_BYTES = 16 << 20


def read_calibration(path: Path | None) -> str:
    """Read a calibration text.

    Args:
        path: of a text file in UTF-8; None is the one that ships with edge: English prose, questions and answers, technical
            text and code.

    Raises:
        UsageError: it cannot be read, or is not a text.
    """
    if path is None:
        return (resources.files("edge_convert") / "calibration.txt").read_text(encoding="utf-8")
    try:
        with open_file(path) as file:  # never waits for a FIFO
            data = file.read(_MAX_TEXT_BYTES + 1)
        text = data.decode("utf-8") if len(data) <= _MAX_TEXT_BYTES else ""
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The calibration text {path} cannot be read: {reason(error)}.", "Give a text file in UTF-8."
        ) from error
    if len(data) > _MAX_TEXT_BYTES:
        raise UsageError(f"{path} is larger than 16 MB.", "A few hundred kB of text are enough.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def calibration_chunks(model: Path, text: str, n_tokens: int) -> list[list[int]]:
    """Split a text into chunks of tokens.

    Args:
        model: a GGUF file, for its tokenizer.
        text: paragraphs, separated by empty lines.
        n_tokens: at most, in all.

    Returns:
        Chunks of at most 256 token ids.

    Raises:
        UsageError: the text is too short.
        BackendError: llama.cpp cannot read the tokenizer.
    """
    # By paragraph, since tokenising time grows faster than the text's length.
    paragraphs = [part + "\n\n" for part in text.split("\n\n") if part.strip()]
    ids = [token for part in run_task("tokenise", {"model": str(model), "texts": paragraphs}) for token in part][:n_tokens]
    if len(ids) < _MIN_TOKENS:
        raise UsageError(
            f"The calibration text has {len(ids)} tokens; at least {_MIN_TOKENS} are needed.", "Give a longer one."
        )
    chunks = [ids[start : start + _CHUNK_TOKENS] for start in range(0, len(ids), _CHUNK_TOKENS)]
    return [chunk for chunk in chunks if len(chunk) >= _MIN_TOKENS]


def compute_imatrix(
    model: Path, chunks: list[list[int]], out: Path, threads: int, text: str, on_progress: Callable[[float], None] | None = None
) -> Path:
    """Save the sum of squares of every input of every weight matrix over token chunks.

    Args:
        model: a GGUF file in 16 or 32 bits.
        chunks: token ids.
        out: file for it, see imatrix_file.py.
        threads: CPU threads.
        text: name of the text that the chunks are from.
        on_progress: called with the share that is done.

    Raises:
        BackendError: llama.cpp failed.
        ModelFileError: it computed nothing.
    """
    arguments = {"model": str(model), "chunks": chunks, "out": str(out), "threads": threads, "text": text}
    if not run_task("calibrate", arguments, on_progress):
        raise ModelFileError("The model has no weight matrix that could be calibrated.", "Convert without it: --no-imatrix")
    return out
