"""Logits of a Core ML package: real prediction on a Mac, edge's evaluator elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_convert.coreml.runner import PackageRunner, load_functions
from edge_convert.evaluate.logits import LogitModel, tokenise_with

if TYPE_CHECKING:
    from edge_convert.evaluate.logits import Logits

__all__ = ["open_model"]


class _CoreMLModel(LogitModel):
    def __init__(self, path: Path) -> None:
        self._functions = load_functions(path)
        real = self._functions.engine == "coreml"
        self.tool = f"Core ML (coremltools {version('coremltools')})" if real else "edge's evaluator of Core ML programs"
        self.n_vocab = self._functions.info.vocab
        self._folder = path.parent
        self._runner = PackageRunner(self._functions)

    def tokenise(self, text: str) -> list[int] | None:
        return tokenise_with(self._folder, text)

    def close(self) -> None:
        del self._runner, self._functions

    def _reset(self) -> None:
        self._runner = PackageRunner(self._functions)

    def _read(self, tokens: Sequence[int], *, wants_all: bool) -> Logits:
        # Token by token for all logits, since prefill computes none.
        return np.stack([self._runner.feed(part) for part in ([[token] for token in tokens] if wants_all else [tokens])])


def open_model(path: Path, *, n_threads: int, is_safe: bool) -> LogitModel:
    """Load an .mlpackage; see `open_logits`. Core ML and numpy choose threads themselves."""
    return _CoreMLModel(path)
