"""Shared by the tests of downloads: a small model, and the content of the models folder."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from edge.config import Settings

REFERENCE = "hf:acme/tiny-GGUF"
REPO = "acme/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"


def make_model(path: Path, seed: int = 0) -> bytes:
    """A whole GGUF file of 1.5 MB, small for a model and many pieces for a download."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_tensor("token_embd.weight", np.random.default_rng(seed).standard_normal((6000, 64)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def models(settings: Settings) -> list[Path]:
    """Everything under its final name."""
    return sorted(settings.paths.models_dir.rglob("*.gguf"))


def partials(settings: Settings) -> list[Path]:
    return sorted(settings.paths.models_dir.rglob("*.part"))
