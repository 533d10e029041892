"""A model as the evaluation sees it: tokens in, logits out, whatever its format.

Each format has a module here that makes a `LogitModel` of a path; `open_logits` chooses it. A model is used by one thread.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge.errors import BackendError, BackendUnavailableError, ModelFileError, ModelNotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

__all__ = [
    "CONTEXT",
    "LogitModel",
    "chat_template",
    "find_format",
    "greedy",
    "is_slow",
    "model_in",
    "open_logits",
    "size_on_disk",
    "tokenise_with",
]

CONTEXT = 512
"""Tokens that a model is opened for: more than any window of the evaluation."""

# Format -> where its `open_model(path, n_threads, is_safe)` is.
_OPENERS = {
    "checkpoint": "edge_convert.evaluate.logits_torch",
    "gguf": "edge_convert.evaluate.logits_gguf",
    "onnx": "edge_convert.evaluate.logits_onnx",
    "coreml": "edge_convert.evaluate.logits_coreml",
}


class LogitModel(Protocol):
    """A loaded model.

    Attributes:
        tool: what computes it, with its version.
        n_vocab: logits per token.
    """

    tool: str
    n_vocab: int

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Compute a text from its beginning.

        Args:
            tokens: at most CONTEXT.

        Returns:
            float32 [n_tokens, n_vocab]: what follows each token.
        """

    def start(self, tokens: Sequence[int]) -> Logits:
        """Forget everything, read these tokens, and keep their KV. Returns float32 [n_vocab] after the last one."""

    def step(self, token: int) -> Logits:
        """Read one more token. Returns float32 [n_vocab]."""

    def tokenise(self, text: str) -> list[int] | None:
        """The text as this model's own tokenizer splits it, with the tokens it begins texts with; None where it brings none."""

    def close(self) -> None:
        """Let go of the memory."""


def open_logits(path: Path, *, n_threads: int = 2, is_safe: bool = False) -> LogitModel:
    """Load a model.

    Args:
        path: a checkpoint folder, a .gguf file, an ONNX folder or an .mlpackage.
        n_threads: CPU threads that compute.
        is_safe: avoid code paths that are known to crash on some CPUs (llama.cpp's weight repacking).

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: it is no model, or damaged.
        BackendUnavailableError: the package that runs it is not installed.
        BackendError: the engine refused it.
    """
    form = find_format(path)
    try:
        opener = import_module(_OPENERS[form])
        model: LogitModel = opener.open_model(path, n_threads=n_threads, is_safe=is_safe)
    except ImportError as error:
        raise BackendUnavailableError(
            f"Running {path.name} needs a package that is not installed: {error.name or error}.",
            "pip install 'edge-assistant[convert]'",
        ) from error
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ModelFileError | BackendError):
            raise
        raise BackendError(f"{path} cannot be loaded: {error}.", "Convert it again, or try another format.") from error
    return model


def find_format(path: Path) -> str:
    """Which kind of model is at a path: "checkpoint", "gguf", "onnx" or "coreml".

    Raises:
        ModelNotFoundError: nothing is there.
        ModelFileError: it is none of these.
    """
    if not path.exists():
        raise ModelNotFoundError(f"There is no file or folder {path}.", "Check the path.")
    if path.suffix in (".mlpackage", ".mlmodelc"):
        return "coreml"
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if (path / "genai_config.json").is_file():
        return "onnx"
    if (path / "config.json").is_file():
        return "checkpoint"
    raise ModelFileError(
        f"{path} is no model that can be evaluated.",
        "Give a .gguf file, a folder with genai_config.json (ONNX) or config.json (checkpoint), or an .mlpackage.",
    )


def model_in(path: Path) -> Path:
    """The only GGUF or package in a folder that `edge convert` made; a path that is a model is that model."""
    inside = sorted([*path.glob("*.gguf"), *path.glob("*.mlpackage")]) if path.suffix != ".mlpackage" else []
    return inside[0] if len(inside) == 1 and not (path / "config.json").is_file() else path


def is_slow(form: str) -> bool:
    """Whether models of a format are not run here but computed by edge's evaluator, at seconds a token: Core ML off a Mac."""
    return form == "coreml" and platform.system() != "Darwin"


def greedy(model: LogitModel, tokens: Sequence[int], n: int) -> list[int]:
    """The n tokens that follow when the likeliest one is always taken."""
    found: list[int] = []
    logits = model.start(tokens)
    for _ in range(n):
        found.append(int(logits.argmax()))
        if len(found) < n:
            logits = model.step(found[-1])
    return found


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def tokenise_with(folder: Path, text: str) -> list[int] | None:
    """Split a text with a folder's tokenizer.json; None where it has none."""
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return list(tokenizer.encode(text).ids)


def chat_template(path: Path) -> str | None:
    """The chat template that a model brings, as Jinja source."""
    form = find_format(path)
    if form == "gguf":
        from edge.formats.gguf import read_header

        return read_header(path).chat_template
    folder = path if form != "coreml" else path.parent
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "tokenizer_config.json").is_file():
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        return found if isinstance(found, str) else None
    return None
