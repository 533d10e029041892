"""Importance matrix: which inputs of each weight matrix matter, measured on a calibration text.

A quantiser that knows it spends its precision where the model looks.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from edge.errors import ModelFileError, UsageError
from edge_convert.gguf.engine import run_task

__all__ = ["CHUNK_TOKENS", "calibration_chunks", "compute_imatrix", "default_calibration"]

CHUNK_TOKENS = 256
_MIN_TOKENS = 64
_MAX_TEXT_BYTES = 16 << 20


def default_calibration() -> str:
    """The calibration text that comes with edge: English prose, questions and answers, technical text and code."""
    return (resources.files("edge_convert") / "calibration.txt").read_text(encoding="utf-8")


def read_calibration(path: Path | None) -> str:
    """A calibration text.

    Args:
        path: of a text file in UTF-8; None for the one that comes with edge.

    Raises:
        UsageError: it cannot be read, or is no text.
    """
    if path is None:
        return default_calibration()
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise UsageError(f"{path} is larger than 16 MB.", "A few hundred kB of text are enough.")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"The calibration text {path} cannot be read: {error}.", "Give a text file in UTF-8.") from error


def calibration_chunks(model: Path, text: str, n_tokens: int) -> list[list[int]]:
    """Cut a text into chunks of tokens.

    Args:
        model: a GGUF file, for its tokenizer.
        text: paragraphs, separated by empty lines.
        n_tokens: at most so many in all.

    Returns:
        Chunks of at most CHUNK_TOKENS ids.

    Raises:
        UsageError: the text is too short to say anything.
        BackendError: llama.cpp cannot read the tokenizer.
    """
    # By paragraph, since tokenising time grows faster than the text's length.
    paragraphs = [part + "\n\n" for part in text.split("\n\n") if part.strip()]
    ids = [token for part in run_task("tokenise", {"model": str(model), "texts": paragraphs}) for token in part][:n_tokens]
    if len(ids) < _MIN_TOKENS:
        raise UsageError(
            f"The calibration text has {len(ids)} tokens; at least {_MIN_TOKENS} are needed.", "Give a longer one."
        )
    chunks = [ids[start : start + CHUNK_TOKENS] for start in range(0, len(ids), CHUNK_TOKENS)]
    return [chunk for chunk in chunks if len(chunk) >= _MIN_TOKENS]


def compute_imatrix(
    model: Path, chunks: list[list[int]], out: Path, threads: int, on_progress: Callable[[float], None] | None = None
) -> Path:
    """Run a model over token chunks and save the mean square of every input of every weight matrix.

    Args:
        model: a GGUF file in 16 or 32 bits.
        chunks: token ids.
        out: .npz file: GGUF tensor name -> float32 [inputs].
        threads: CPU threads.
        on_progress: called with the share that is done.

    Raises:
        BackendError: llama.cpp failed.
        ModelFileError: it computed nothing.
    """
    arguments = {"model": str(model), "chunks": chunks, "out": str(out), "threads": threads}
    if not run_task("calibrate", arguments, on_progress):
        raise ModelFileError("The model has no weight matrix that could be weighted.", "Convert without it: --no-imatrix")
    return out
