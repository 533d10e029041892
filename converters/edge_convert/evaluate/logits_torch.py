"""Logits of a checkpoint: transformers in float32, the usual reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from edge_convert.evaluate.logits import LogitModel, tokenise_with
from edge_convert.torch_device import compute_device
from edge_convert.torch_models import load_float32

if TYPE_CHECKING:
    from edge_convert.evaluate.logits import Logits

__all__ = ["open_model"]


class _TorchModel(LogitModel):
    def __init__(self, folder: Path, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        self._folder = folder
        self._device = compute_device()
        self._model: Any = load_float32(folder, self._device)
        self._past: Any = None
        on = "" if self._device.type == "cpu" else f" on {self._device.type}"
        self.tool = f"transformers {transformers.__version__}, torch {torch.__version__}{on}"
        self.n_vocab = int(self._model.config.vocab_size)

    def logits(self, tokens: Sequence[int]) -> Logits:
        with torch.inference_mode():
            found: Logits = self._model(self._ids(tokens), use_cache=False).logits[0].cpu().numpy()
        return found

    def _reset(self) -> None:
        self._past = None

    def _read(self, tokens: Sequence[int], *, wants_all: bool) -> Logits:
        with torch.inference_mode():
            output = self._model(self._ids(tokens), past_key_values=self._past, use_cache=True, logits_to_keep=1)
        self._past = output.past_key_values
        found: Logits = output.logits[0].cpu().numpy()
        return found

    def _ids(self, tokens: Sequence[int]) -> Any:
        return torch.tensor([list(tokens)], device=self._device)

    def tokenise(self, text: str) -> list[int] | None:
        return tokenise_with(self._folder, text)

    def close(self) -> None:
        self._model = self._past = None


def open_model(path: Path, *, n_threads: int, is_safe: bool) -> LogitModel:
    """Load a checkpoint folder; see `open_logits`."""
    return _TorchModel(path, n_threads)
