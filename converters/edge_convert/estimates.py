"""How much memory each step of a conversion holds at most, in bytes.

Fitted to what was measured for models of 135 million and a billion weights (docs/convert.md, "Memory"). Part of it is there
whatever the model: the libraries. Mapped files do not count: the system drops their pages when others need the room.
"""

from __future__ import annotations

from edge_convert.smaller.loss import ROWS_AT_ONCE
from edge_convert.smaller.writing import ANSWERS_AT_ONCE

__all__ = [
    "build_coreml",
    "build_onnx",
    "calibrate",
    "carry_onnx",
    "cut_layers",
    "distil",
    "evaluate",
    "merge_adapter",
    "quantise",
    "read_gguf",
    "read_texts",
    "tokenise_texts",
    "write_answers",
    "write_gguf",
]

_HERE = 30_000_000  # the command itself, while a step runs in a process of its own
_PYTHON = 45_000_000  # the process of a step, with numpy
_TORCH = 220_000_000  # with torch and transformers
_COREML = 270_000_000  # with coremltools, which imports torch
_BUILDER = 330_000_000  # with onnxruntime-genai's model builder
_LLAMA_CPP = 95_000_000  # a process of llama.cpp that computes
_CHUNK_TOKENS = 256  # of calibration text
_WINDOW_TABLES = 4  # of logits in float32, while a window is compared
_VOCABULARY_BYTES = 3_500  # a token, while a tokenizer is read and rebuilt in Python objects
_LOGITS_TOKENS = 512
_PROMPT_TOKENS = 64
_READ_BYTES = 2_500  # for each number of the hidden states of one window, where 8 are read at a time
_TRAINED_BYTES = 210  # for each number of the hidden states that a training step reads, in each layer


def read_gguf(n_vocab: int) -> int:
    """A GGUF file back to a checkpoint: its vocabulary in Python objects; weights pass through in pieces."""
    return _HERE + _PYTHON + _VOCABULARY_BYTES * n_vocab


def write_gguf(n_vocab: int, largest_bytes: int) -> int:
    """A checkpoint to a GGUF file: one tensor at a time, and then two tokenizers side by side."""
    return _HERE + max(_PYTHON + largest_bytes, _TORCH + 2_800 * n_vocab)


def calibrate(n_vocab: int) -> int:
    """The importance matrix: llama.cpp maps the weights, and computes the logits of a chunk."""
    return _HERE + _LLAMA_CPP + 4 * _CHUNK_TOKENS * n_vocab


def quantise(largest: int, *, is_wide: bool) -> int:
    """llama.cpp's quantiser: what becomes of the largest tensor, and before it that in float32 where the file has 16 bits."""
    return _HERE + _PYTHON + (largest * 3 // 4 if is_wide else largest * 19 // 4)


def carry_onnx(n_params: int, largest: int) -> int:
    """ONNX from a GGUF's own blocks: the builder writes matrix by matrix in float32, then blocks take their places."""
    return _HERE + _PYTHON + max(_BUILDER + 8 * largest, 2 * _PYTHON + n_params + 4 * largest)


def build_onnx(n_params: int, largest: int, *, is_quantised: bool) -> int:
    """ONNX by onnxruntime-genai's builder, which copies the whole graph in float32 into one message before it quantises."""
    return _HERE + _PYTHON + _BUILDER + (5 * n_params + 4 * largest if is_quantised else 8 * largest)


def build_coreml(n_params: int, largest: int, layer_params: int, columns: int, *, is_walked: bool, is_loaded: bool) -> int:
    """A Core ML package.

    Args:
        n_params: weights of the model.
        largest: of the largest tensor.
        layer_params: of one layer.
        columns: inputs of its widest matrix.
        is_walked: matrices are quantised here, each with the second moments of its inputs.
        is_loaded: the model does not fit its file's type and is loaded in float32.
    """
    whole = 4 * n_params if is_loaded else 0
    walked = whole + 4 * layer_params + 28 * columns**2 + n_params if is_walked else 0
    built = 3 * n_params + 4 * largest
    checked = 2 * (n_params + largest) + 10 * largest
    return _HERE + _COREML + max(whole + 4 * largest, walked, built, checked)


def evaluate(n_params: int, largest: int, n_vocab: int, *, is_wide: bool, n_evaluators: int) -> int:
    """The card: the checkpoint in float32, and its logits; then the results, Core ML packages by edge's evaluator.

    Args:
        n_params: weights of the model.
        largest: of the largest tensor.
        n_vocab: tokens.
        is_wide: the checkpoint's file is in float32 already, and is mapped.
        n_evaluators: packages that are computed at a time.
    """
    tables = _WINDOW_TABLES * _LOGITS_TOKENS * 4 * n_vocab
    reference = _TORCH + tables + (0 if is_wide else 4 * n_params)
    return _HERE + _PYTHON + max(reference, n_evaluators * (_COREML + 2 * (n_params + largest) + 10 * largest) + tables)


def merge_adapter(n_params: int, adapter_bytes: int) -> int:
    """Estimate merging a LoRA adapter: the model in float32, twice, and the adapter's matrices multiplied."""
    return _HERE + _TORCH + 8 * n_params + 4 * adapter_bytes


def write_answers(n_params: int, n_vocab: int, kv_numbers: int, answer_tokens: int) -> int:
    """Estimate the teacher writing answers: its weights, and for each answer of a batch KV and logits.

    Args:
        n_params: weights of the teacher.
        n_vocab: tokens.
        kv_numbers: numbers that a token stores in the KV cache.
        answer_tokens: of the longest answer.
    """
    kv_bytes = 2 * (_PROMPT_TOKENS + answer_tokens) * kv_numbers
    return _HERE + _TORCH + 2 * n_params + ANSWERS_AT_ONCE * (kv_bytes + 24 * n_vocab)


def tokenise_texts(n_vocab: int, n_tokens: int) -> int:
    """Estimate tokenising texts: the vocabulary and all tokens as Python objects."""
    return _HERE + _PYTHON + _VOCABULARY_BYTES * n_vocab + 60 * n_tokens


def read_texts(n_params: int, n_hidden: int) -> int:
    """Estimate the teacher reading texts; `n_hidden` numbers are the hidden states of one window."""
    return _HERE + _TORCH + 2 * n_params + _READ_BYTES * n_hidden


def cut_layers(n_params: int, width: int, columns: int, window: int, repair_tokens: int, n_logits: int) -> int:
    """Estimate choosing layers and fitting what is left.

    Args:
        n_params: weights of the teacher.
        width: of the hidden state.
        columns: inputs of the widest matrix of a layer.
        window: tokens of a window.
        repair_tokens: read to fit the layers; 0 without.
        n_logits: per token, where layers are chosen by divergence; else 0.
    """
    fit = 4 * repair_tokens * width + 16 * columns**2 if repair_tokens else 0
    return read_texts(n_params, window * width) + 16 * ROWS_AT_ONCE * n_logits + fit


def distil(n_params: int, n_trained: int, n_vocab: int, n_hidden: int) -> int:
    """Estimate a training: weights in float32 and both moments take 12 bytes each.

    Gradients (10 bytes) are gone while held-out texts are measured.

    Args:
        n_params: weights of the student.
        n_trained: of those, how many are trained.
        n_vocab: tokens.
        n_hidden: numbers of the hidden states that a step reads, in all layers.
    """
    logits = ROWS_AT_ONCE * n_vocab
    step = max(10 * n_trained + _TRAINED_BYTES * n_hidden, 16 * logits)
    return _HERE + _TORCH + 2 * n_params + 12 * n_trained + step + 4 * logits
