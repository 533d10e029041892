"""Targets of a recovery: the blocks of a GGUF file, or palettes for the Neural Engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_convert.facts import Facts
from edge_convert.manifest import Manifest
from edge_convert.pipeline import FolderOf

if TYPE_CHECKING:
    from edge_convert.checkpoint import Checkpoint
    from edge_convert.recover.fit import Assign
    from edge_convert.recover.grids import Stored

__all__ = ["REPORT", "Target", "gguf_target", "palettes_target"]

REPORT = "recovery.json"
"""File that says how a recovery went."""

_REFITS = 3  # times that fitting finds the best values of a palette for its codes


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The quantised weights that a recovery trains, and where a conversion stores them.

    Attributes:
        name: of what is trained, as a title has it.
        fitted, trained: the steps that fit and train it.
        path: file or folder of it, in the folder of either step.
        begin: writes it into a folder, as it is before it is fitted; the first argument is its path there.
        open: opens it there.
        assign: chooses parts and codes of a matrix; None is `edge_convert.recover.fit.assign`.
        extra_flops: of fitting, beside moments, gradients and error feedback.
        finish: writes the manifest of the finished folder, given what it says of the recovery; None if a later step builds the
            result.
    """

    name: str
    fitted: str
    trained: str
    path: str
    begin: Callable[[Path, FolderOf], None]
    open: Callable[[Path, Checkpoint], Stored]
    assign: Callable[[], Assign] | None = None
    extra_flops: float = 0.0
    finish: Callable[[Path, FolderOf, dict[str, str]], None] | None = None


def gguf_target(facts: Facts, name: str, plain: str) -> Target:
    """Return the blocks of a quantised GGUF file.

    Args:
        facts: of the unquantised model.
        name: of the quantisation.
        plain: step whose folder has the file as llama.cpp quantised it.
    """
    file_name = f"{facts.name}-{name}.gguf"

    def begin(path: Path, folder_of: FolderOf) -> None:
        shutil.copyfile(folder_of(plain) / file_name, path)

    def open_target(path: Path, checkpoint: Checkpoint) -> Stored:
        from edge_convert.recover.gguf_blocks import GgufBlocks

        return GgufBlocks(path, checkpoint)

    def finish(folder: Path, folder_of: FolderOf, lines: dict[str, str]) -> None:
        quantised = msgspec.json.decode((folder_of(plain) / "manifest.json").read_bytes(), type=Manifest)
        facts.write_manifest(folder, folder_of, "gguf", name, {**quantised.recipe, **lines})

    return Target(
        name=name,
        fitted=f"fitted-{name}",
        trained=f"gguf-{name}",
        path=file_name,
        begin=begin,
        open=open_target,
        finish=finish,
    )


def palettes_target(facts: Facts, bits: int) -> Target:
    """Return the palettes of a Core ML package, which are made before the package.

    Args:
        facts: of the unquantised model.
        bits: of a palette.
    """

    def begin(path: Path, _folder_of: FolderOf) -> None:
        path.mkdir()

    def open_target(path: Path, checkpoint: Checkpoint) -> Stored:
        from edge_convert.recover.palettes import PaletteFiles

        return PaletteFiles(path, checkpoint, bits)

    def assign() -> Assign:
        from edge_convert.recover.palettes import assign_palettes

        return assign_palettes

    return Target(
        name="palettes",
        fitted="fitted-ane",
        trained="trained-ane",
        path="palettes",
        begin=begin,
        open=open_target,
        assign=assign,
        # Values are fitted with a table of the weights that use them, which takes as many columns as there are values.
        extra_flops=_REFITS * facts.n_layers * facts.layer_params * facts.width * 2 * (1 << bits),
    )
