"""Trains quantised matrices towards the unquantised model, and writes them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_convert.checkpoint import Checkpoint
from edge_convert.recover.grids import Stored
from edge_convert.recover.masters import GridMasters
from edge_convert.smaller.corpus import Corpus
from edge_convert.smaller.distill import distil, trained_weights
from edge_convert.smaller.models import open_model
from edge_convert.smaller.recipe import Training
from edge_convert.smaller.records import Report

__all__ = ["recover"]


def recover(
    blocks: Stored,
    checkpoint: Checkpoint,
    corpus: Corpus,
    hidden: Any,
    held_hidden: dict[str, Any],
    training: Training,
    folder: Path,
    on_progress: Callable[[str, float], None],
) -> Report:
    """Train quantised matrices and norms in place.

    Matrices that have no grid here, the embedding and the head stay as they are. If the divergence on the held-out texts did
    not fall, all does.

    Args:
        blocks: quantised from the checkpoint. Written when the training is over, so a run that is stopped leaves them as they
            were.
        checkpoint: the teacher.
        corpus, hidden, held_hidden, training, folder, on_progress: see `edge_convert.smaller.distill.distil`.

    Raises:
        ModelFileError: the training diverged.
    """
    student = open_model(checkpoint.folder)
    grids, parts, codes = {}, {}, {}
    for name, weight in trained_weights(student).items():
        grid = blocks.grid(_stored(name)) if weight.ndim == 2 else None
        if grid is not None:
            grids[name] = grid
            codes[name], read = blocks.read(_stored(name))
            codes[name] = codes[name].to(weight.device)
            parts[name] = {part: values.to(weight.device) for part, values in read.items()}
        elif weight.ndim == 2:
            weight.copy_(blocks.floats(_stored(name)))
    masters = GridMasters(grids, parts, codes)
    report = distil(student, corpus, hidden, held_hidden, training, folder, on_progress, masters)
    if not report.is_nearer:
        return report
    for name, weight in trained_weights(student).items():
        if name in grids:
            blocks.write(_stored(name), *masters.stored(name))
        elif weight.ndim == 1:
            blocks.write_floats(_stored(name), masters.vector(name))
    return report


def _stored(name: str) -> str:
    """Return the checkpoint's name of a weight."""
    return f"model.{name}" if name.startswith("norm.") else f"model.layers.{name}"
