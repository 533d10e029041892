"""The teacher's last hidden states over the corpus, computed once and stored on disk.

They take a hundredth of the logits, and the head that both models share turns them into logits when they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_convert.smaller.models import open_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["hidden_rows", "open_hidden", "open_states", "write_hidden"]

_BATCH = 8
_COUNT = "done.txt"


def write_hidden(folder: Path, teacher: Path, windows: NDArray[np.int32], on_progress: Callable[[float], None]) -> Path:
    """Compute the last hidden states (after the last norm) of all windows, resuming a stopped run.

    Args:
        folder: for hidden.npy: bfloat16 as uint16 [n_windows, window, width].
        teacher: checkpoint folder.
        windows: tokens.
        on_progress: called with the share that is done.
    """
    model = open_model(teacher)
    shape = (*windows.shape, model.config.hidden_size)
    path = folder / "hidden.npy"
    count = (folder / _COUNT).read_text(errors="replace") if (folder / _COUNT).is_file() and path.is_file() else ""
    done = int(count) if count.isdecimal() else 0  # a power cut may have emptied the file
    if not done:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape).flush()  # type: ignore[no-untyped-call]
    stored = np.load(path, mmap_mode="r+")
    with torch.inference_mode():
        for start in range(done, len(windows), _BATCH):
            tokens = torch.from_numpy(windows[start : start + _BATCH].astype(np.int64)).to(model.device)
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
            stored[start : start + _BATCH] = hidden.cpu().view(torch.uint16).numpy()
            on_progress(min(1.0, (start + _BATCH) / len(windows)))
            if start % (64 * _BATCH) == 0:
                stored.flush()
                (folder / _COUNT).write_text(str(start + _BATCH))
    stored.flush()
    (folder / _COUNT).unlink(missing_ok=True)
    return path


def open_hidden(path: Path) -> Any:
    """Map the hidden states that `write_hidden` stored."""
    return np.load(path, mmap_mode="r")


def open_states(folder: Path, held_out: Iterable[str]) -> tuple[Any, dict[str, Any]]:
    """Map the hidden states of a step: those over the text to train on, and those over each held-out text."""
    return open_hidden(folder / "hidden.npy"), {name: open_hidden(folder / name / "hidden.npy") for name in held_out}


def hidden_rows(stored: Any, rows: Any) -> Any:
    """Read the hidden states of some windows, as a bfloat16 tensor [n, window, width] in main memory."""
    return torch.from_numpy(np.ascontiguousarray(stored[rows])).view(torch.bfloat16)
