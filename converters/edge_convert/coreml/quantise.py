"""Chooses the encoding of each matrix for the unit of the device that a variant is made for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.formats.coreml import Variant
from edge_convert.checkpoint import Checkpoint

from .calibrate import calibration_tokens, walk_layers
from .carried import CarriedWeights
from .decoder import Decoder
from .grids import BLOCK, int4_blocks, int8_rows, palettes
from .weights import Blocks, Dense, Weight, read_palette, read_vector, to_files

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Encoder", "has_palette", "rows_together"]

SENSITIVE = ("down_proj", "v_proj")
"""Matrices that the ane variant stores in 8 bits: palettes cost them the most quality."""
_ROWS_TOGETHER = 16
"""Rows that share a palette of 64 values."""
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


@dataclass
class Encoder:
    """Encodes the matrices of a model.

    Attributes:
        checkpoint: the model.
        decoder: from its config.
        variant: of the package.
        source_gguf: whose blocks the gpu variant may take over.
        calibration: a text file; None is the text that ships with edge.
        palette_bits: of the ane variant, 4 or 6.
        folder: for the encoded matrices, until the package is written.
        fitted: a folder with all palettes of the ane variant, and norms that replace the checkpoint's; None finds palettes.
    """

    checkpoint: Checkpoint
    decoder: Decoder
    variant: Variant
    source_gguf: Path | None
    calibration: Path | None
    palette_bits: int
    folder: Path
    fitted: Path | None = None
    _weights: dict[str, Weight] = field(default_factory=dict, init=False)

    def prepare(self, model: Any, on_progress: Callable[[float], None]) -> None:
        """Quantise the matrices of the model from `load_reference`, whose weights calibration replaces."""
        if self.variant == "fp16":
            return
        if self.variant == "gpu" and self.source_gguf is not None:
            self._carry(self.source_gguf)
        if self.fitted is not None:
            self._take(self.fitted)
        for name in (_EMBEDDING, _HEAD):
            if name not in self._weights and f"{name}.weight" in self.checkpoint.tensors:
                self._keep(name, int8_rows(self._load(name)))
        if all(name in self._weights for name in self._matrices()):
            return
        tokens = calibration_tokens(self.checkpoint.folder, model, self.calibration)
        on_progress(0.2)
        walk_layers(model, tokens, self._quantise, lambda share: on_progress(0.2 + 0.8 * share))

    def weight(self, name: str) -> Weight:
        """Return the encoding of a matrix, by its name in the checkpoint without ".weight"."""
        if name not in self._weights:  # fp16: nothing was prepared
            self._keep(name, Dense(self._load(name).astype(np.float16)))
        return self._weights[name]

    def vector(self, name: str) -> NDArray[np.float32] | None:
        """Return a norm's weights or a bias, float32 [n]; None if the checkpoint does not have it."""
        trained = None if self.fitted is None else read_vector(self.fitted, name)
        if trained is not None:
            return trained
        return self.checkpoint.load_f32(name) if name in self.checkpoint.tensors else None

    def summary(self) -> dict[str, int]:
        """Return the number of matrices in each encoding."""
        return dict(sorted(Counter(_kind(weight) for weight in self._weights.values()).items()))

    def _keep(self, name: str, weight: Weight) -> None:
        self._weights[name] = to_files(weight, self.folder, name)

    def _matrices(self) -> list[str]:
        names = (name.removesuffix(".weight") for name in self.checkpoint.tensors if name.endswith(".weight"))
        return [name for name in names if len(self.checkpoint.tensors[f"{name}.weight"].shape) == 2]

    def _load(self, name: str) -> NDArray[np.float32]:
        return self.checkpoint.load_f32(f"{name}.weight")

    def _carry(self, path: Path) -> None:
        source = CarriedWeights(path, self.decoder, self.checkpoint.architecture)
        for name in self._matrices():
            blocks = source.find(name, self._load(name))
            if blocks is not None:
                self._keep(name, blocks)

    def _take(self, folder: Path) -> None:
        """Take over palettes as they are; the other matrices of the layers have 8 bits."""
        for name in self._matrices():
            palette = read_palette(folder, name)
            if palette is not None:
                self._weights[name] = palette
            elif name not in (_EMBEDDING, _HEAD):
                self._keep(name, int8_rows(self._load(name)))

    def _quantise(self, name: str, weight: NDArray[np.float32], hessian: NDArray[np.float32]) -> Weight:
        if name not in self._weights:
            self._keep(name, self._encode(name, weight, hessian))
        return self._weights[name]

    def _encode(self, name: str, weight: NDArray[np.float32], hessian: NDArray[np.float32]) -> Weight:
        if self.variant == "ane":
            if not has_palette(name):
                return int8_rows(weight)
            return palettes(weight, hessian, self.palette_bits, rows_together(len(weight), self.palette_bits))
        if weight.shape[1] % BLOCK:
            return int8_rows(weight)
        return int4_blocks(weight, hessian)


def has_palette(name: str) -> bool:
    """Return whether the ane variant stores a matrix of a layer as palettes, by its name without ".weight"."""
    return not name.endswith(SENSITIVE)


def rows_together(n_rows: int, bits: int) -> int:
    """Return the rows of a matrix that share a palette.

    64 values for each row would take as much space as 8-bit weights do in a narrow model.
    """
    return 1 if bits == 4 else math.gcd(n_rows, _ROWS_TOGETHER)


def _kind(weight: Weight) -> str:
    if isinstance(weight, Dense):
        return "fp16"
    if isinstance(weight, Blocks):
        per_row = weight.scale.shape[1] == 1
        return f"int{weight.bits} per row" if per_row else f"int{weight.bits} in blocks"
    rows = "row" if weight.group_size == 1 else f"{weight.group_size} rows"
    return f"palette of {1 << weight.bits} values per {rows}"
