"""A small folder of documents, a collection, and an embedding model that knows a few words which mean the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.documents import Collection
from edge.embedding.base import EmbeddingEngine, EmbeddingInfo
from edge.embedding.embedder import Embedder

GUIDE = """# Guide

Read this first.

## Install

Run the installer, and restart the kettle.

## Repair

A kettle that leaks needs a new gasket.
Order it by its number.
"""
SAME = {"car": "automobile", "vehicle": "automobile", "cold": "freezing", "icy": "freezing", "physician": "doctor"}


class ConceptEngine(EmbeddingEngine):
    """Vectors of a text are the sum of those of its words; words of `SAME` share theirs."""

    def __init__(self, n_dims: int = 32) -> None:
        self.info = EmbeddingInfo(n_dims=n_dims, n_ctx=256, n_vocab=1 << 16, pooling="mean")
        self.max_batch_tokens, self.max_batch_texts = 4096, 32
        self.n_computed = 0

    def tokenize(self, text: str) -> list[int]:
        words = ("".join(filter(str.isalnum, word)) for word in text.lower().split())
        return [hash_of(SAME.get(word, word)) for word in words if word]

    def truncate(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens[: self.info.n_ctx])

    def compute(self, batch: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        self.n_computed += len(batch)
        rows = [sum(np.random.default_rng(token).normal(size=self.info.n_dims) for token in row) for row in batch]
        return np.array(rows, np.float32)

    def close(self) -> None:
        pass


def hash_of(word: str) -> int:
    """Return a number for a word, the same in every process."""
    return int.from_bytes(word.encode()[:8], "big") % 65_521


def concept_embedder(name: str = "concepts", n_dims: int = 32) -> Embedder:
    """Return the embedding model."""
    return Embedder(ConceptEngine(n_dims), name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a page, a source file and a note."""
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "guide.md").write_text(GUIDE)
    (folder / "deep/boil.py").write_text("import heat\n\n\ndef boil(water):\n    return heat.up(water, 100)\n")
    (folder / "note.txt").write_text("The teapot is in the cupboard.\n\nThe key is below the mat.\n")
    return folder


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """An empty collection that finds words only."""
    with Collection.open("test", store=tmp_path / "store", embedder="") as collection:
        yield collection
