"""A tiny GGUF model of one layer that llama.cpp loads, and variations of it that it does not survive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

WIDTH, FFN, CONTEXT = 32, 64, 256
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = dict(zip(printable, map(chr, printable), strict=True))
    for n, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + n)
    return [letters[byte] for byte in range(256)]


TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_letters())


def write_gguf(
    path: Path,
    *,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    tokens: Sequence[str] = TOKENS,
    tokenizer: str = "gpt2",
    numbers: Mapping[str, int] = {},
    eps: float = 1e-5,
    template: str = TEMPLATE,
    types: Mapping[str, np.dtype[Any]] = {},
    extra_tensors: Mapping[str, Sequence[int]] = {},
) -> Path:
    """Write the model.

    Args:
        path: of the file.
        change: adds metadata.
        tokens, tokenizer: the vocabulary and its kind.
        numbers: instead of the usual values, by their key without the architecture.
        eps: of the norms.
        template: the chat template.
        types: tensor -> type, instead of float32.
        extra_tensors: more tensors, with their shapes.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    sizes = {
        "block_count": 1,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": 2,
        **numbers,
    }
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
    change(writer)
    shapes: dict[str, Sequence[int]] = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    shapes["blk.0.attn_norm.weight"] = shapes["blk.0.ffn_norm.weight"] = (WIDTH,)
    shapes.update({f"blk.0.attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")})
    shapes.update({f"blk.0.ffn_{name}.weight": (FFN, WIDTH) for name in ("gate", "up")})
    shapes["blk.0.ffn_down.weight"] = (WIDTH, FFN)
    random = np.random.default_rng(1)
    for name, shape in {**shapes, **extra_tensors}.items():
        values = np.ones(shape) if len(shape) == 1 else random.uniform(-0.1, 0.1, shape)
        writer.add_tensor(name, values.astype(types.get(name, np.dtype(np.float32))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
