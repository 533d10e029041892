"""Models of any format as the evaluation needs them: tokens in, logits out.

Each format has a module here that opens a path as a `LogitModel`. A model is used by one thread.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import BackendError, BackendUnavailableError, ModelFileError, ModelNotFoundError
from edge.formats.gguf_shards import gguf_files, is_later_shard
from edge_convert.checkpoint import read_json, read_template

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
    "special_texts",
    "tokenise_with",
]

CONTEXT = 512
"""Context in tokens that a model is opened for: more than any window of the evaluation."""

# Format -> module that defines `open_model(path, n_threads, is_safe)`.
_OPENERS = {
    "checkpoint": "edge_convert.evaluate.logits_torch",
    "gguf": "edge_convert.evaluate.logits_gguf",
    "onnx": "edge_convert.evaluate.logits_onnx",
    "coreml": "edge_convert.evaluate.logits_coreml",
}


class LogitModel(ABC):
    """A loaded model.

    Attributes:
        tool: engine that computes it, with its version.
        n_vocab: logits per token.
    """

    tool: str
    n_vocab: int

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Compute the logits after each token of a text.

        Args:
            tokens: at most CONTEXT.

        Returns:
            float32 [n_tokens, n_vocab].
        """
        self._reset()
        return self._read(tokens, wants_all=True)

    def start(self, tokens: Sequence[int]) -> Logits:
        """Prefill tokens into an empty KV. Returns the logits after the last one, float32 [n_vocab]."""
        self._reset()
        return self._last(tokens)

    def step(self, token: int) -> Logits:
        """Decode one more token. Returns the logits after it, float32 [n_vocab]."""
        return self._last([token])

    def _last(self, tokens: Sequence[int]) -> Logits:
        last: Logits = self._read(tokens, wants_all=False)[-1]
        return last

    @abstractmethod
    def tokenise(self, text: str) -> list[int] | None:
        """Tokenise a text with the model's own tokenizer, beginning tokens included; None if it has none."""

    @abstractmethod
    def close(self) -> None:
        """Release the memory."""

    @abstractmethod
    def _reset(self) -> None:
        """Empty the KV."""

    @abstractmethod
    def _read(self, tokens: Sequence[int], *, wants_all: bool) -> Logits:
        """Process tokens behind those in the KV. Returns float32 [n, n_vocab]: all rows, or at least the last."""


def open_logits(path: Path, *, n_threads: int = 2, is_safe: bool = False) -> LogitModel:
    """Load a model.

    Args:
        path: a checkpoint folder, a .gguf file, an ONNX folder or an .mlpackage.
        n_threads: CPU threads.
        is_safe: avoid code paths that crash on some CPUs (llama.cpp's weight repacking).

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: it is not a model, or damaged.
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
    """Return the format of the model at a path: "checkpoint", "gguf", "onnx" or "coreml".

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
        f"{path} is not a model that can be evaluated.",
        "Give a .gguf file, a folder with genai_config.json (ONNX) or config.json (checkpoint), or an .mlpackage.",
    )


def model_in(path: Path) -> Path:
    """Return the only GGUF or package in a folder that `edge convert` made; any other path as it is."""
    inside = sorted([*path.glob("*.gguf"), *path.glob("*.mlpackage")]) if path.suffix != ".mlpackage" else []
    inside = [model for model in inside if not is_later_shard(model.name)]
    return inside[0] if len(inside) == 1 and not (path / "config.json").is_file() else path


def is_slow(form: str) -> bool:
    """Return whether edge's evaluator computes a format here, at seconds a token: Core ML off a Mac."""
    return form == "coreml" and platform.system() != "Darwin"


def greedy(model: LogitModel, tokens: Sequence[int], n: int) -> list[int]:
    """Decode n tokens greedily after a prompt, and return them."""
    found: list[int] = []
    logits = model.start(tokens)
    for _ in range(n):
        found.append(int(logits.argmax()))
        if len(found) < n:
            logits = model.step(found[-1])
    return found


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, of all files of a split model, or of all files below a folder."""
    if path.is_file():
        return sum(file.stat().st_size for file in gguf_files(path))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def tokenise_with(folder: Path, text: str) -> list[int] | None:
    """Tokenise a text with a folder's tokenizer.json; None if it has none."""
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    return list(tokenizer.encode(text).ids)


def chat_template(path: Path) -> str | None:
    """Return a model's chat template, as Jinja source, or None."""
    form = find_format(path)
    if form == "gguf":
        from edge.formats.gguf import read_header

        return read_header(path).chat_template
    folder = path if form != "coreml" else path.parent
    return read_template(folder)


def special_texts(path: Path) -> tuple[str, str]:
    """Return the texts of a model's beginning and end tokens, "" where it has none."""
    form = find_format(path)
    if form == "gguf":
        from gguf import GGUFReader

        reader = GGUFReader(path)
        tokens = reader.get_field("tokenizer.ggml.tokens")
        ids = [reader.get_field(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")]
        n_tokens = len(tokens.data) if tokens else 0
        texts = [
            str(tokens.contents(field.contents())) if tokens and field and field.contents() < n_tokens else "" for field in ids
        ]
        return texts[0], texts[1]
    folder = path if form != "coreml" else path.parent
    if not (folder / "tokenizer_config.json").is_file():
        return "", ""
    config = read_json(folder / "tokenizer_config.json")
    found = [config.get(f"{kind}_token") for kind in ("bos", "eos")]
    found = [token.get("content") if isinstance(token, dict) else token for token in found]
    bos, eos = (token if isinstance(token, str) else "" for token in found)
    return bos, eos
