"""Logits of an ONNX folder: plain onnxruntime, with past KV as inputs and present KV as outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from edge.errors import BackendError
from edge_convert.evaluate.logits import LogitModel, tokenise_with

if TYPE_CHECKING:
    from edge_convert.evaluate.logits import Logits

__all__ = ["open_model"]

_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class _OnnxModel(LogitModel):
    def __init__(self, folder: Path, n_threads: int) -> None:
        model = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.log_severity_level = 3  # errors only: warnings go to stderr
        file = folder / model["decoder"]["filename"]
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the only class that its errors have in common
            raise BackendError(f"{folder} cannot be loaded: {error}.", "Convert it again, or try another format.") from error
        self._folder = folder
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._head_size = model["decoder"]["head_size"]
        self._past: dict[str, Any] = {}
        self._n_past = 0
        self.tool = f"onnxruntime {onnxruntime.__version__}"
        self.n_vocab = int(model["vocab_size"])

    def _reset(self) -> None:
        self._n_past = 0
        self._past = {
            name: np.zeros((1, value.shape[1], 0, self._head_size), _TYPES[value.type])
            for name, value in self._inputs.items()
            if name.startswith("past_key_values.")
        }

    def _read(self, tokens: Sequence[int], *, wants_all: bool) -> Logits:
        n_all = self._n_past + len(tokens)
        feed: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, n_all), np.int64),
            **self._past,
        }
        if "position_ids" in self._inputs:
            feed["position_ids"] = np.arange(self._n_past, n_all, dtype=np.int64)[None]
        values = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        self._past = {name: values[name.replace("past_key_values.", "present.", 1)] for name in self._past}
        self._n_past = n_all
        return np.asarray(values["logits"][0], np.float32)

    def tokenise(self, text: str) -> list[int] | None:
        return tokenise_with(self._folder, text)

    def close(self) -> None:
        self._past = {}
        del self._session


def open_model(path: Path, *, n_threads: int, is_safe: bool) -> LogitModel:
    """Load a folder with a genai_config.json; see `open_logits`."""
    return _OnnxModel(path, n_threads)
