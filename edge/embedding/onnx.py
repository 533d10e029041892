"""Sentence-embedding models in ONNX folders: model.onnx and tokenizer.json, in the layout of sentence-transformers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edge.backends.onnx.session import load_runtime, wrap_errors
from edge.embedding.base import EmbeddingEngine, EmbeddingInfo
from edge.errors import BackendError, BackendUnavailableError, ModelFileError, ModelTooLargeError
from edge.files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OnnxEmbeddings", "is_onnx_folder"]

_MODEL, _TOKENIZER = "model.onnx", "tokenizer.json"
_BATCH_TOKENS, _BATCH_TEXTS = 4096, 32
_USUAL_WINDOW = 512
_Count = Annotated[int, msgspec.Meta(ge=2, le=1 << 20)]


class _Config(msgspec.Struct, frozen=True):
    """What counts of config.json; the last two are what vLLM reads."""

    max_position_embeddings: _Count = _USUAL_WINDOW
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()


class _Window(msgspec.Struct, frozen=True):
    max_seq_length: _Count | None = None


class _Pooling(msgspec.Struct, frozen=True):
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class _Module(msgspec.Struct, frozen=True):
    type: str = ""


def is_onnx_folder(path: Path) -> bool:
    """Return True for a folder with a sentence-embedding model, and no chat model, in ONNX."""
    return (path / _MODEL).is_file() and (path / _TOKENIZER).is_file() and not (path / "genai_config.json").is_file()


class OnnxEmbeddings(EmbeddingEngine):
    """See `EmbeddingEngine`.

    The pooling is that of 1_Pooling/config.json, the mean where there is none; a graph that pools itself is taken as it is.

    Args:
        folder: for which `is_onnx_folder` holds. It is not trusted: nothing in it is executed.
        n_threads: threads that compute.

    Raises:
        BackendUnavailableError: onnxruntime or tokenizers is not installed.
        ModelFileError: a file is damaged, or the graph is not one of these.
    """

    def __init__(self, folder: Path, n_threads: int) -> None:
        runtime = load_runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            with wrap_errors(f"load {folder / _MODEL}"):
                self._session: Any = runtime.InferenceSession(str(folder / _MODEL), options, providers=["CPUExecutionProvider"])
        except ModelTooLargeError:
            raise
        except BackendError as error:
            raise ModelFileError(f"{folder / _MODEL} cannot be used: {error.message}", "Fetch the model again.") from error
        self._tokenizer = _open_tokenizer(folder / _TOKENIZER)
        self._inputs = {one.name for one in self._session.get_inputs()}
        if "input_ids" not in self._inputs or self._inputs - {"input_ids", "attention_mask", "token_type_ids"}:
            raise _not_one(folder, f"its inputs are {', '.join(sorted(self._inputs))}")
        pooled = [one for one in self._session.get_outputs() if len(one.shape) == 2]
        states = [one for one in self._session.get_outputs() if len(one.shape) == 3]
        if not (pooled or states):
            raise _not_one(folder, "it has no output with a vector for each text or token")
        chosen = next((one for one in pooled if one.name == "sentence_embedding"), (states or pooled)[0])
        self._output, n_dims = chosen.name, chosen.shape[-1]
        if not isinstance(n_dims, int):
            raise _not_one(folder, "it does not say how long its vectors are")
        config = _read(folder / "config.json", _Config)
        window = _read(folder / "sentence_bert_config.json", _Window).max_seq_length
        modules = _read(folder / "modules.json", list[_Module])
        shorter = tuple(n for n in config.matryoshka_dimensions if 0 < n < n_dims)
        self._ends = bool(self._tokenizer.encode("").ids)
        self.max_batch_tokens, self.max_batch_texts = _BATCH_TOKENS, _BATCH_TEXTS
        self.info = EmbeddingInfo(
            n_dims=n_dims,
            n_ctx=min(window or config.max_position_embeddings, config.max_position_embeddings),
            n_vocab=self._tokenizer.get_vocab_size(),
            pooling="model" if len(chosen.shape) == 2 else _pooling_of(folder),
            normalises=not modules or any(one.type.endswith(".Normalize") for one in modules),
            shorter=shorter or ((0,) if config.is_matryoshka else ()),
            memory_bytes=(folder / _MODEL).stat().st_size,
        )

    def tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text.encode("utf-8", "replace").decode()).ids)

    def truncate(self, tokens: Sequence[int]) -> list[int]:
        kept = list(tokens[: self.info.n_ctx])
        if len(tokens) > len(kept) and self._ends:
            kept[-1] = tokens[-1]
        return kept

    def compute(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import numpy as np

        longest = max(map(len, batch))
        ids = np.zeros((len(batch), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        with wrap_errors("compute embeddings"):
            (out,) = self._session.run([self._output], {name: given[name] for name in self._inputs})
        states: NDArray[np.float32] = np.asarray(out, np.float32)
        if self.info.pooling == "mean":
            counts = mask[:, :, None].astype(np.float32)
            states = (states * counts).sum(1) / counts.sum(1)
        elif self.info.pooling == "cls":
            states = states[:, 0]
        elif self.info.pooling == "last":
            states = states[np.arange(len(batch)), mask.sum(1) - 1]
        elif self.info.pooling == "max":
            states = np.where(mask[:, :, None] > 0, states, -np.inf).max(1)
        return states

    def close(self) -> None:
        self._session = None


def _open_tokenizer(path: Path) -> Any:
    try:
        library = importlib.import_module("tokenizers")
    except ImportError as error:
        raise BackendUnavailableError(
            f"tokenizers cannot be loaded: {error}.", 'Install it: pip install "edge-assistant[onnx]"'
        ) from error
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise ModelFileError(f"{path} is damaged: {error}.", "Fetch the model again.") from error
    tokenizer.no_padding()  # files of MiniLM pad to 128 tokens, and truncate there
    tokenizer.no_truncation()
    return tokenizer


def _pooling_of(folder: Path) -> str:
    pooling = _read(folder / "1_Pooling" / "config.json", _Pooling)
    modes = {
        "cls": pooling.pooling_mode_cls_token,
        "mean": pooling.pooling_mode_mean_tokens,
        "max": pooling.pooling_mode_max_tokens,
        "last": pooling.pooling_mode_lasttoken,
    }
    chosen = [mode for mode, is_on in modes.items() if is_on]
    if len(chosen) > 1:
        raise _not_one(folder, f"it joins {len(chosen)} ways of pooling")
    if not chosen and (folder / "1_Pooling" / "config.json").is_file():
        raise _not_one(folder, "1_Pooling/config.json names no way of pooling that edge has")
    return chosen[0] if chosen else "mean"


def _read(path: Path, kind: Any) -> Any:
    """Return the content of a JSON file, that of an empty one where there is none."""
    return read_json(path, kind) if path.is_file() else kind() if isinstance(kind, type) else []


def _not_one(folder: Path, why: str) -> ModelFileError:
    return ModelFileError(f"{folder} cannot make embeddings: {why}.", "Use a model in the layout of sentence-transformers.")
