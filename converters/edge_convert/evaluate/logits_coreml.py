"""Core ML packages for the evaluation: real prediction on a Mac, the evaluator elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_convert.coreml.runner import Functions, PackageRunner, load_functions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

__all__ = ["CoreMLModel", "open_model"]


class CoreMLModel:
    """A package as a LogitModel (see edge_convert.evaluate.logits)."""

    def __init__(self, path: Path, functions: Functions) -> None:
        real = functions.engine == "coreml"
        self.tool = f"Core ML (coremltools {version('coremltools')})" if real else "edge's evaluator of Core ML programs"
        self.n_vocab = functions.info.vocab
        self._path = path
        self._functions = functions
        self._runner = PackageRunner(functions)

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits after each token, float32 [n_tokens, n_vocab]; token by token, since prefill computes none."""
        runner = PackageRunner(self._functions)
        return np.stack([runner.feed([token]) for token in tokens])

    def start(self, tokens: Sequence[int]) -> Logits:
        """Forget everything and read these tokens. Returns float32 [n_vocab] after the last one."""
        self._runner = PackageRunner(self._functions)
        return self._runner.feed(tokens)

    def step(self, token: int) -> Logits:
        """Read one more token. Returns float32 [n_vocab]."""
        return self._runner.feed([token])

    def tokenise(self, text: str) -> list[int] | None:
        """With the tokenizer that lies beside the package; None where there is none."""
        from tokenizers import Tokenizer

        path = self._path.parent / "tokenizer.json"
        if not path.is_file():
            return None
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        return list(tokenizer.encode(text).ids)

    def close(self) -> None:
        """Let go of the memory."""
        del self._runner, self._functions


def open_model(path: Path, *, n_threads: int, is_safe: bool) -> CoreMLModel:
    """Load a package.

    Args:
        path: the .mlpackage.
        n_threads, is_safe: of no meaning here; Core ML and numpy choose for themselves.

    Raises:
        ModelFileError: it is damaged, or not made by `edge convert`.
    """
    del n_threads, is_safe
    return CoreMLModel(path, load_functions(path))
