"""Encodings of a matrix in a package."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Blocks", "Dense", "Palette", "Weight", "read_palette", "read_vector", "save_vector", "to_files"]


@dataclass(frozen=True)
class Dense:
    """A plain matrix. values: float16 [rows, columns]."""

    values: NDArray[np.float16]

    def rows(self, start: int, stop: int) -> Dense:
        """Return rows [start, stop)."""
        return Dense(self.values[start:stop])

    def dequantise(self) -> NDArray[np.float32]:
        """Return the numbers that the device computes with, float32 [rows, columns]."""
        return self.values.astype(np.float32)


@dataclass(frozen=True)
class Blocks:
    """Integers with a scale, and possibly an offset, for each block of columns: scale * (codes - offset).

    codes: uint8 [rows, columns] below 16 when `bits` is 4, int8 when it is 8. scale, offset: float16 [rows, blocks].
    One block a row is per-channel quantisation.
    """

    codes: NDArray[np.uint8] | NDArray[np.int8]
    scale: NDArray[np.float16]
    offset: NDArray[np.float16] | None
    bits: int

    def rows(self, start: int, stop: int) -> Blocks:
        """Return rows [start, stop)."""
        offset = None if self.offset is None else self.offset[start:stop]
        return Blocks(self.codes[start:stop], self.scale[start:stop], offset, self.bits)

    def dequantise(self) -> NDArray[np.float32]:
        """Return the numbers that the device computes with, float32 [rows, columns]."""
        n_rows, n_blocks = self.scale.shape
        values = self.codes.astype(np.float32).reshape(n_rows, n_blocks, -1)
        if self.offset is not None:
            values -= self.offset.astype(np.float32)[..., None]
        values *= self.scale.astype(np.float32)[..., None]
        return values.reshape(n_rows, -1)


@dataclass(frozen=True)
class Palette:
    """Tables of 2**bits values, each for a group of rows, all of one size.

    indices: uint8 [rows, columns]; lut: float16 [groups, 2**bits].
    """

    indices: NDArray[np.uint8]
    lut: NDArray[np.float16]
    bits: int

    @property
    def group_size(self) -> int:
        """Rows that share a table."""
        return len(self.indices) // len(self.lut)

    def rows(self, start: int, stop: int) -> Palette:
        """Return rows [start, stop)."""
        step = math.gcd(self.group_size, start, stop)  # where a group is split, its parts become groups
        lut = self.lut.repeat(self.group_size // step, axis=0)[start // step : stop // step]
        return Palette(self.indices[start:stop], lut, self.bits)

    def dequantise(self) -> NDArray[np.float32]:
        """Return the numbers that the device computes with, float32 [rows, columns]."""
        table = self.lut.astype(np.float32).repeat(self.group_size, axis=0)
        return np.take_along_axis(table, self.indices.astype(np.intp), axis=1)


Weight = Dense | Blocks | Palette


def to_files(weight: Weight, folder: Path, name: str) -> Weight:
    """Return an encoding whose arrays are mapped files, which the system drops from memory when others need it.

    Args:
        weight: the encoding.
        folder: for the files; it has to exist as long as the result is used.
        name: of the matrix.
    """
    mapped: dict[str, Any] = {}
    for field in fields(weight):
        array = getattr(weight, field.name)
        if isinstance(array, np.ndarray):
            path = folder / f"{name}.{field.name}.npy"
            np.save(path, array)
            mapped[field.name] = np.asarray(np.load(path, mmap_mode="r"))
    return replace(weight, **mapped)


def read_palette(folder: Path, name: str) -> Palette | None:
    """Return the palette of a matrix that `to_files` wrote, its arrays mapped files; None if there is none."""
    indices, lut = folder / f"{name}.indices.npy", folder / f"{name}.lut.npy"
    if not indices.is_file():
        return None
    table = np.asarray(np.load(lut, mmap_mode="r"))
    return Palette(np.asarray(np.load(indices, mmap_mode="r")), table, table.shape[1].bit_length() - 1)


def save_vector(folder: Path, name: str, values: NDArray[np.float32]) -> None:
    """Write a norm or a bias beside palettes."""
    np.save(folder / f"{name}.npy", values)


def read_vector(folder: Path, name: str) -> NDArray[np.float32] | None:
    """Return a norm or a bias that `save_vector` wrote; None if there is none."""
    path = folder / f"{name}.npy"
    return np.load(path) if path.is_file() else None
