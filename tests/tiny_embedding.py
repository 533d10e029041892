"""Small embedding models with random weights: a BERT checkpoint, an ONNX folder, and an engine without a file, for apps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.embedding.base import EmbeddingEngine, EmbeddingInfo
from edge.embedding.embedder import Embedder

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "on",
    "##s",
    "mat",
    "##ting",
    "un",
    "##do",
    ".",
    ",",
]
POOLING = ("mean", "cls", "last", "max")
_FLAGS = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken", "max": "max_tokens"}


def write_checkpoint(folder: Path, *, pooling: str = "mean", window: int = 24) -> Any:
    """Write a checkpoint in the layout of sentence-transformers, and return the model of transformers."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=40, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": window}))
    _write_pooling(folder, pooling)
    return model


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=20)  # as MiniLM's file does
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))


def _write_pooling(folder: Path, pooling: str) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{flag}": mode == pooling for mode, flag in _FLAGS.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags))


def write_onnx_embedding(folder: Path, *, pooling: str | None = "mean", n_dims: int = 6) -> np.ndarray[Any, Any]:
    """Write a folder whose graph looks up the vector of each token, and return the table."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    table = np.random.default_rng(5).normal(size=(len(WORDS), n_dims)).astype(np.float32)
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")]
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", n_dims])
    node = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
    graph = helper.make_graph([node], "tiny", ids, [out], [numpy_helper.from_array(table, "table")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "model.onnx"))
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 24}))
    if pooling is not None:
        _write_pooling(folder, pooling)
    return table


class HashedEngine(EmbeddingEngine):
    """Vectors made of the words themselves: the same text gives the same vector, wherever it is in a batch."""

    def __init__(self, n_dims: int = 8) -> None:
        self.info = EmbeddingInfo(n_dims, 16, 1000, "mean", shorter=(4,))
        self.max_batch_tokens, self.max_batch_texts = 64, 4
        self.batches: list[list[int]] = []
        self.is_closed = False

    def tokenize(self, text: str) -> list[int]:
        return [1, *(int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "big") % 990 + 5 for word in text.split()), 2]

    def truncate(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens[: self.info.n_ctx])

    def compute(self, batch: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        self.batches.append([len(row) for row in batch])
        rows = [np.random.default_rng(row).normal(size=self.info.n_dims) for row in batch]
        return np.array(rows, np.float32)

    def close(self) -> None:
        self.is_closed = True


def load_hashed(model: str | None = None, **_: object) -> Embedder:
    """As `edge.embedding.load_embedder`, without a file."""
    return Embedder(HashedEngine(), model or "all-minilm-l6-v2")
