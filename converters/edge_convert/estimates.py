"""Peak memory of each step of a conversion, in bytes.

Fitted to measurements with models of 135 million and a billion weights (docs/convert.md, "Memory"). Part of it does not depend
on the model: the libraries. Mapped files do not count: the system drops their pages when others need the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_convert.smaller.recipe import ANSWERS_AT_ONCE, CHOICE_TOKENS, ROWS_AT_ONCE

if TYPE_CHECKING:
    from edge_convert.facts import Facts
    from edge_convert.smaller.recipe import Recipe

__all__ = [
    "build_coreml",
    "build_onnx",
    "calibrate",
    "cut_layers",
    "distil",
    "evaluate",
    "fit_blocks",
    "merge_adapter",
    "quantise",
    "read_gguf",
    "read_texts",
    "read_tokenizer",
    "recover",
    "tokenise_texts",
    "trim_vocabulary",
    "write_answers",
    "write_gguf",
]

_HERE = 30_000_000  # the command itself, while a step runs in a process of its own
_PYTHON = _HERE + 45_000_000  # and the process of a step, with numpy
_TORCH = _HERE + 220_000_000  # with torch and transformers
_COREML = 270_000_000  # with coremltools, which imports torch
_ONNX = 60_000_000  # with onnx, and pieces of weights
_LLAMA_CPP = 95_000_000  # a process of llama.cpp that computes
_VOCABULARY_BYTES = 3_500  # per token, while a tokenizer is read and rebuilt in Python objects
_PIECES = 200_000_000  # of the head, while logits are computed in pieces
_COMPARED_BYTES = 64 * 40  # per token of the vocabulary: logits of 64 tokens, and copies in float64
_CHUNK_TOKENS = 256  # of calibration text
_PROMPT_TOKENS = 64
_TABLE_BYTES = 4 * 512 * 4  # per token of the vocabulary: four tables of logits in float32, while a window is compared
_READ_BYTES = 2_500  # for each number of the hidden states of one window, where 8 are read at a time
_TRAINED_BYTES = 210  # for each number of the hidden states that a training step reads, in each layer


def read_gguf(facts: Facts) -> int:
    """Estimate reading a GGUF back: its vocabulary in Python objects; weights pass through in pieces; then two tokenizers."""
    return max(_PYTHON + _VOCABULARY_BYTES * facts.n_vocab, _TORCH + 2_800 * facts.n_vocab)


def write_gguf(facts: Facts) -> int:
    """Estimate writing a GGUF file: one tensor at a time, then two tokenizers, then a layer and two tables of logits."""
    written = _PYTHON + (4 if facts.quantised else 2) * facts.largest
    compared = _TORCH + _PIECES + 4 * facts.layer_params + _COMPARED_BYTES * facts.n_vocab
    return max(written, _TORCH + 2_800 * facts.n_vocab, compared)


def calibrate(facts: Facts) -> int:
    """Estimate the importance matrix: llama.cpp maps the weights, and computes the logits of a chunk."""
    return _HERE + _LLAMA_CPP + 4 * _CHUNK_TOKENS * facts.n_vocab


def quantise(facts: Facts) -> int:
    """Estimate llama.cpp's quantiser: the largest tensor quantised, plus its float32 copy if the file is 16-bit."""
    return _PYTHON + (facts.largest * 3 // 4 if facts.quantised else facts.largest * 19 // 4)


def read_tokenizer(facts: Facts) -> int:
    """Estimate reading only the tokenizer of a GGUF: its vocabulary in Python objects, then two tokenizers."""
    return _PYTHON + 2_800 * facts.n_vocab


def build_onnx(facts: Facts, precision: str) -> int:
    """Estimate writing ONNX: weights pass through in pieces, but for matrices in float32, which are transposed whole.

    The tokenizer of a GGUF is copied; that of a checkpoint goes through transformers.
    """
    fixed = _PYTHON + 600 * facts.n_vocab if facts.source_gguf else _TORCH + 2_000 * facts.n_vocab
    return fixed + _ONNX + (4 * facts.largest if precision == "fp32" else 0)


def build_coreml(facts: Facts, *, is_walked: bool) -> int:
    """Estimate building a Core ML package; `is_walked` if matrices are quantised with the second moments of their inputs.

    A Gemma cannot compute in 16 bits and is loaded in float32.
    """
    n_params, largest = facts.n_params, facts.largest
    whole = 4 * n_params if facts.architecture.is_gemma and not facts.is_wide else 0
    walked = whole + 4 * facts.layer_params + 28 * facts.columns**2 if is_walked else 0
    built = n_params + 4 * largest
    checked = 2 * (n_params + largest) + 7 * largest
    return _HERE + _COREML + max(whole + 4 * largest, walked, built, checked)


def evaluate(facts: Facts, n_evaluators: int) -> int:
    """Estimate the card: the checkpoint, a matrix in float32 at a time, and its logits; then `n_evaluators` Core ML packages.

    A Gemma in 16 bits is loaded in float32.
    """
    tables = _TABLE_BYTES * facts.n_vocab
    reference = (
        _PYTHON
        + _TORCH
        - _HERE
        + tables
        + (0 if facts.is_wide else 4 * (facts.n_params if facts.architecture.is_gemma else facts.largest))
    )
    package = _COREML + 2 * (facts.n_params + facts.largest) + 7 * facts.largest
    return max(reference, _PYTHON + n_evaluators * package + tables)


def merge_adapter(facts: Facts, adapter_bytes: int) -> int:
    """Estimate merging a LoRA adapter: the model in float32, twice, and the adapter's matrices multiplied."""
    return _TORCH + 8 * facts.n_params + 4 * adapter_bytes


def write_answers(facts: Facts, answer_tokens: int) -> int:
    """Estimate the teacher writing answers of so many tokens: its weights, and for each answer of a batch KV and logits."""
    kv_bytes = 2 * (_PROMPT_TOKENS + answer_tokens) * facts.n_layers * facts.kv_width
    return _TORCH + 2 * facts.n_params + ANSWERS_AT_ONCE * (kv_bytes + 24 * facts.n_vocab)


def tokenise_texts(facts: Facts, n_tokens: int) -> int:
    """Estimate tokenising texts: the vocabulary and all tokens as Python objects."""
    return _PYTHON + _VOCABULARY_BYTES * facts.n_vocab + 60 * n_tokens


def read_texts(facts: Facts, recipe: Recipe) -> int:
    """Estimate the teacher reading texts."""
    return _TORCH + 2 * facts.n_params + _READ_BYTES * recipe.trainings[0].window * facts.width


def cut_layers(facts: Facts, recipe: Recipe) -> int:
    """Estimate choosing layers, which computes logits where it goes by divergence, and fitting what is left."""
    logits = 16 * ROWS_AT_ONCE * facts.n_vocab if recipe.keep_layers and recipe.layers == "divergence" else 0
    fit = 4 * recipe.repair_tokens * facts.width + 16 * facts.columns**2 if recipe.repair_tokens else 0
    narrow = 24 * facts.model.inner**2 + 12 * CHOICE_TOKENS * facts.width if recipe.keep_ffn else 0
    return read_texts(facts, recipe) + logits + fit + narrow


def trim_vocabulary(facts: Facts) -> int:
    """Estimate a smaller vocabulary: the model, the rows that stay, and the vocabulary in Python objects."""
    return _TORCH + (4 if facts.is_wide else 2) * (facts.n_params + facts.largest) + _VOCABULARY_BYTES * facts.n_vocab


def distil(student: Facts, recipe: Recipe) -> int:
    """Estimate a training: weights in float32 and both moments take 12 bytes each.

    Gradients (10 bytes) are gone while held-out texts are measured.
    """
    n_trained = student.n_layers * student.layer_params
    n_hidden = recipe.training.batch * recipe.training.window * student.n_layers * student.width
    logits = ROWS_AT_ONCE * student.n_vocab
    step = max(10 * n_trained + _TRAINED_BYTES * n_hidden, 16 * logits)
    return _TORCH + 2 * student.n_params + 12 * n_trained + step + 4 * logits


def fit_blocks(facts: Facts, n_tokens: int) -> int:
    """Estimate fitting blocks: gradients of a batch in all layers, then moments of a layer's inputs and their inverse.

    A token's weight in each matrix of a layer, of about seven, is kept throughout.
    """
    n_hidden = 4 * 256 * facts.n_layers * facts.width
    walked = 2 * n_tokens * facts.width * 3 + 40 * facts.columns**2 + 16 * facts.layer_params
    weights = 4 * 7 * n_tokens * facts.n_layers
    return _TORCH + 2 * facts.n_params + weights + max(_TRAINED_BYTES * n_hidden + 16 * ROWS_AT_ONCE * facts.n_vocab, walked)


def recover(facts: Facts, recipe: Recipe) -> int:
    """Estimate training on a grid: beside what a training takes, codes, unquantised weights and parts, 6 bytes a weight."""
    assert recipe.recovery is not None
    plain = msgspec.structs.replace(recipe, training=recipe.recovery)
    return distil(facts, plain) + 6 * facts.n_layers * facts.layer_params
