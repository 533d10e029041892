"""Writes the checkpoint of a sentence-embedding BERT as a GGUF file, in the names and values of llama.cpp's own converter.

Sources: convert_hf_to_gguf.py of llama.cpp (BertModel), and the layout of the safetensors format.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from edge.errors import ModelFileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["write_bert"]

_ALIGNMENT = 32
_INT, _STRING, _ARRAY = 5, 8, 9
_SCALARS = {int: (4, "<I"), float: (6, "<f"), bool: (7, "<?")}
_MOST_HEADER_BYTES = 16 << 20
_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_NORMAL, _CONTROL = 1, 3  # types of tokens
_PLACES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def write_bert(read: Callable[[str], bytes], out: IO[bytes], *, name: str) -> None:
    """Write a BERT checkpoint with float16 matrices. The same files give the same bytes.

    Args:
        read: returns the content of a file of the checkpoint, in the layout of sentence-transformers: config.json,
            sentence_bert_config.json, 1_Pooling/config.json, vocab.txt, model.safetensors.
        out: the file to write to.
        name: of the model.

    Raises:
        ModelFileError: the checkpoint is damaged, or not one of these.
    """
    try:
        config, pooling = json.loads(read("config.json")), json.loads(read("1_Pooling/config.json"))
        window = min(json.loads(read("sentence_bert_config.json"))["max_seq_length"], config["max_position_embeddings"])
        words = read("vocab.txt").decode().removesuffix("\n").split("\n")
        tensors = list(_tensors(read("model.safetensors"), config["num_hidden_layers"], window))
        modes = [number for mode, number in _POOLING.items() if pooling.get(mode)]
        if config["model_type"] != "bert" or len(modes) != 1 or len(words) != config["vocab_size"]:
            raise ValueError("it is not a BERT that pools in one way")
        metadata = _metadata(config, name, words, window, modes[0])
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelFileError(f"The checkpoint of {name} cannot be used: {error}.", "Fetch it again.") from error
    _write(out, metadata, tensors)


def _metadata(config: dict[str, Any], name: str, words: list[str], window: int, pooling: int) -> dict[str, Any]:
    special = {word: index for index, word in enumerate(words) if word.startswith("[") and word.endswith("]")}
    return {
        "general.architecture": "bert",
        "general.type": "model",
        "general.name": name,
        "general.file_type": 1,
        "bert.block_count": config["num_hidden_layers"],
        "bert.context_length": window,
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [_spelled(word, word in special) for word in words],
        "tokenizer.ggml.token_type": [_CONTROL if word in special else _NORMAL for word in words],
        "tokenizer.ggml.token_type_count": config["type_vocab_size"],
        "tokenizer.ggml.bos_token_id": special["[CLS]"],
        "tokenizer.ggml.eos_token_id": special["[SEP]"],
        "tokenizer.ggml.unknown_token_id": special["[UNK]"],
        "tokenizer.ggml.seperator_token_id": special["[SEP]"],
        "tokenizer.ggml.padding_token_id": special["[PAD]"],
        "tokenizer.ggml.cls_token_id": special["[CLS]"],
        "tokenizer.ggml.mask_token_id": special["[MASK]"],
    }


def _spelled(word: str, is_special: bool) -> str:
    """Return a word piece as llama.cpp spells it: one that begins a word is marked, instead of one that does not."""
    if is_special:
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _tensors(data: bytes, n_layer: int, window: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name in a GGUF, values)."""
    import numpy as np

    n_header = struct.unpack("<Q", data[:8])[0]
    if n_header > _MOST_HEADER_BYTES:
        raise ValueError("its header is too long")
    header, body = json.loads(data[8 : 8 + n_header]), memoryview(data)[8 + n_header :]
    places = dict(_PLACES)
    for layer in range(n_layer):
        places |= {f"encoder.layer.{layer}.{theirs}": f"blk.{layer}.{ours}" for theirs, ours in _IN_LAYER.items()}
    for theirs, ours in places.items():
        for part in ("weight", "bias"):
            if (about := header.get(f"{theirs}.{part}")) is None:
                if part == "weight":
                    raise ValueError(f"it has no {theirs}.{part}")
                continue
            if about["dtype"] != "F32":
                raise ValueError(f"its weights are {about['dtype']}, not F32")
            first, end = about["data_offsets"]
            values: NDArray[np.floating[Any]] = np.frombuffer(body[first:end], "<f4").reshape(about["shape"])
            if ours == "position_embd":
                values = values[:window]
            is_matrix = values.ndim == 2 and ours not in ("position_embd", "token_types")
            yield f"{ours}.{part}", values.astype("<f2") if is_matrix else values


def _write(out: IO[bytes], metadata: dict[str, Any], tensors: list[tuple[str, NDArray[Any]]]) -> None:
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    offset = 0
    for name, values in tensors:
        shape = values.shape[::-1]
        kind = 1 if values.dtype.itemsize == 2 else 0
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += _padded(values.nbytes)
    out.write(bytes(head).ljust(_padded(len(head)), b"\0"))
    for _, values in tensors:
        out.write(values.tobytes().ljust(_padded(values.nbytes), b"\0"))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind, items = (
            (_STRING, map(_text, value)) if isinstance(value[0], str) else (_INT, (struct.pack("<i", one) for one in value))
        )
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(items)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    number, layout = _SCALARS[type(value)]
    return struct.pack("<I", number) + struct.pack(layout, value)
