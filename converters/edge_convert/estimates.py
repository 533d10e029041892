"""How much memory each step of a conversion holds at most, in bytes.

Fitted to what was measured for models of 135 million and a billion weights (docs/convert.md, "Memory"). Part of it is there
whatever the model: the libraries. Mapped files do not count: the system drops their pages when others need the room.
"""

from __future__ import annotations

__all__ = [
    "HERE",
    "PYTHON",
    "TORCH",
    "VOCABULARY_BYTES",
    "build_coreml",
    "build_onnx",
    "calibrate",
    "carry_onnx",
    "evaluate",
    "quantise",
    "read_gguf",
    "write_gguf",
]

HERE = 30_000_000
"""The command itself, while a step runs in a process of its own."""
PYTHON = 45_000_000
"""A process of a step, with numpy."""
TORCH = 220_000_000
"""The same with torch and transformers."""
_COREML = 270_000_000  # with coremltools, which imports torch
_BUILDER = 330_000_000  # with onnxruntime-genai's model builder
_LLAMA_CPP = 95_000_000  # a process of llama.cpp that computes
_CHUNK_TOKENS = 256  # of calibration text
_WINDOW_TABLES = 4  # of logits in float32, while a window is compared
VOCABULARY_BYTES = 3_500  # a token, while a tokenizer is read and rebuilt in Python objects
_LOGITS_TOKENS = 512


def read_gguf(n_vocab: int) -> int:
    """A GGUF file back to a checkpoint: its vocabulary in Python objects; weights pass through in pieces."""
    return HERE + PYTHON + VOCABULARY_BYTES * n_vocab


def write_gguf(n_vocab: int, largest_bytes: int) -> int:
    """A checkpoint to a GGUF file: one tensor at a time, and then two tokenizers side by side."""
    return HERE + max(PYTHON + largest_bytes, TORCH + 2_800 * n_vocab)


def calibrate(n_vocab: int) -> int:
    """The importance matrix: llama.cpp maps the weights, and computes the logits of a chunk."""
    return HERE + _LLAMA_CPP + 4 * _CHUNK_TOKENS * n_vocab


def quantise(largest: int, *, is_wide: bool) -> int:
    """llama.cpp's quantiser: what becomes of the largest tensor, and before it that in float32 where the file has 16 bits."""
    return HERE + PYTHON + (largest * 3 // 4 if is_wide else largest * 19 // 4)


def carry_onnx(n_params: int, largest: int) -> int:
    """ONNX from a GGUF's own blocks: the builder writes matrix by matrix in float32, then blocks take their places."""
    return HERE + PYTHON + max(_BUILDER + 8 * largest, 2 * PYTHON + n_params + 4 * largest)


def build_onnx(n_params: int, largest: int, *, is_quantised: bool) -> int:
    """ONNX by onnxruntime-genai's builder, which copies the whole graph in float32 into one message before it quantises."""
    return HERE + PYTHON + _BUILDER + (5 * n_params + 4 * largest if is_quantised else 8 * largest)


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
    return HERE + _COREML + max(whole + 4 * largest, walked, built, checked)


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
    reference = TORCH + tables + (0 if is_wide else 4 * n_params)
    return HERE + PYTHON + max(reference, n_evaluators * (_COREML + 2 * (n_params + largest) + 10 * largest) + tables)
