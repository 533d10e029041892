"""Tiny random decoders as ONNX folders, written node by node: what onnxruntime-genai's builder makes, and what it does not.

Two layers, a byte vocabulary with ChatML's specials, everything seeded. A folder takes half a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, N_CTX_TRAIN = 64, 4, 2, 32, 128, 2, 4096
SPECIALS = ("<|im_start|>", "<|im_end|>")
N_VOCAB = 256 + 1 + len(SPECIALS)
Kind = Literal["float", "int4"]


def write_onnx(
    folder: Path,
    *,
    kind: Kind = "float",
    attention: Literal["gqa", "plain"] = "gqa",
    shares: bool = True,
    kv: Literal["f32", "f16"] = "f32",
    soft_cap: bool = False,
    positions: bool = False,
    n_vocab: int = N_VOCAB,
    external: bool = True,
) -> Path:
    """Write a folder.

    Args:
        folder: where; made if it is not there.
        kind: of the matrices.
        attention: "gqa" is the fused operator; "plain" puts past and new rows together node by node, without rotation.
        shares: what genai_config.json says of one buffer for past and present.
        kv: type of everything that is computed.
        soft_cap: squash the logits, as Gemma 2 does.
        positions: let the model take position_ids.
        n_vocab: tokens that logits are given for; the tokenizer has N_VOCAB.
        external: keep the weights in a file of their own.
    """
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    model = _Decoder(kind, attention, kv, n_vocab, positions).build(soft_cap)
    onnx.save(model, folder / "model.onnx", save_as_external_data=external, location="model.onnx.data", size_threshold=1024)
    (folder / "genai_config.json").write_text(json.dumps(_config(n_vocab, shares and attention == "gqa", positions)))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """One token a byte, "he", and ChatML's two specials, with the ids that the tiny GGUF models have."""
    letters = _byte_letters()
    vocab = {letter: byte for byte, letter in enumerate(letters)} | {"he": 256}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {"id": 257 + n, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for n, text in enumerate(SPECIALS)
    ]
    model = {"type": "BPE", "vocab": vocab, "merges": [["h", "e"]]}
    content = {"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": SPECIALS[0], "eos_token": SPECIALS[1]}))


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _config(n_vocab: int, shares: bool, positions: bool) -> dict[str, Any]:
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    if positions:
        inputs["position_ids"] = "position_ids"
    return {
        "model": {
            "bos_token_id": 257,
            "eos_token_id": 258,
            "context_length": N_CTX_TRAIN,
            "vocab_size": n_vocab,
            "type": "llama",
            "decoder": {
                "filename": "model.onnx",
                "head_size": HEAD_DIM,
                "hidden_size": WIDTH,
                "num_attention_heads": HEADS,
                "num_hidden_layers": LAYERS,
                "num_key_value_heads": KV_HEADS,
                "session_options": {"provider_options": []},
                "inputs": inputs,
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"past_present_share_buffer": shares, "max_length": N_CTX_TRAIN},
    }


class _Decoder:
    def __init__(self, kind: Kind, attention: str, kv: str, n_vocab: int, positions: bool) -> None:
        from onnx import TensorProto

        self._kind, self._attention, self._n_vocab, self._positions = kind, attention, n_vocab, positions
        self._type = TensorProto.FLOAT if kv == "f32" else TensorProto.FLOAT16
        self._numpy = np.float32 if kv == "f32" else np.float16
        self._random = np.random.default_rng(11)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def build(self, soft_cap: bool) -> Any:
        """The model."""
        from onnx import TensorProto, helper

        self._port(self._inputs, "input_ids", TensorProto.INT64, ["batch", "tokens"])
        self._port(self._inputs, "attention_mask", TensorProto.INT64, ["batch", "total"])
        if self._positions:
            self._port(self._inputs, "position_ids", TensorProto.INT64, ["batch", "tokens"])
        self._port(self._outputs, "logits", self._type, ["batch", "tokens", self._n_vocab])
        self._lengths()
        x = self._node("Gather", [self._random_weight("embed", (self._n_vocab, WIDTH), 1.0), "input_ids"])
        if self._positions:  # a learned embedding, so that a wrong position shows
            table = self._random_weight("positions", (N_CTX_TRAIN, WIDTH), 0.5)
            x = self._node("Add", [x, self._node("Gather", [table, "position_ids"])])
        for layer in range(LAYERS):
            normed = self._norm(x, f"attn_norm.{layer}")
            q, k, v = (
                self._matmul(normed, f"{name}.{layer}", (WIDTH, heads * HEAD_DIM))
                for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
            )
            attended = self._fused(layer, q, k, v) if self._attention == "gqa" else self._plain(layer, q, k, v)
            x = self._node("Add", [x, self._matmul(attended, f"o.{layer}", (HEADS * HEAD_DIM, WIDTH))])
            normed = self._norm(x, f"ffn_norm.{layer}")
            gate = self._matmul(normed, f"gate.{layer}", (WIDTH, FFN))
            gate = self._node("Mul", [gate, self._node("Sigmoid", [gate])])
            up = self._node("Mul", [gate, self._matmul(normed, f"up.{layer}", (WIDTH, FFN))])
            x = self._node("Add", [x, self._matmul(up, f"down.{layer}", (FFN, WIDTH))])
        product = self._matmul(self._norm(x, "last_norm"), "lm_head", (WIDTH, self._n_vocab), None if soft_cap else "logits")
        if soft_cap:
            cap = self._constant("cap", np.array(8.0, self._numpy))
            squashed = self._node("Tanh", [self._node("Div", [product, cap])])
            self._node("Mul", [cap, squashed], "logits")
        graph = helper.make_graph(self._nodes, "tiny", self._inputs, self._outputs, self._weights)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _lengths(self) -> None:
        """As the builder does: how long the past is, from the mask."""
        one = self._constant("one", np.array([1], np.int64))
        summed = self._node("ReduceSum", ["attention_mask", one], keepdims=0)
        self._past_length = self._node("Cast", [self._node("Sub", [summed, one])], to=6)
        shape = self._node("Shape", ["attention_mask"])
        self._total_scalar = self._node("Gather", [shape, self._constant("one_scalar", np.array(1, np.int64))])
        self._total = self._node("Cast", [self._total_scalar], to=6)

    def _fused(self, layer: int, q: str, k: str, v: str) -> str:
        angles = np.outer(np.arange(N_CTX_TRAIN), 10000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM))
        caches = [self._constant(f"{f.__name__}_cache", f(angles).astype(self._numpy)) for f in (np.cos, np.sin)]
        past = self._past(layer)
        inputs = [q, k, v, *past, self._past_length, self._total, *caches]
        names = [f"attended.{layer}", f"present.{layer}.key", f"present.{layer}.value"]
        attributes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": 1, "scale": HEAD_DIM**-0.5}
        self._add("GroupQueryAttention", inputs, names, domain="com.microsoft", **attributes)
        return names[0]

    def _plain(self, layer: int, q: str, k: str, v: str) -> str:
        past_key, past_value = self._past(layer)
        keys = self._node("Concat", [past_key, self._heads(k, KV_HEADS)], f"present.{layer}.key", axis=2)
        values = self._node("Concat", [past_value, self._heads(v, KV_HEADS)], f"present.{layer}.value", axis=2)
        repeated = [self._repeat(each) for each in (keys, values)]
        scores = self._node("MatMul", [self._heads(q, HEADS), self._node("Transpose", [repeated[0]], perm=[0, 1, 3, 2])])
        scores = self._node("Mul", [scores, self._constant("scale", np.array(HEAD_DIM**-0.5, self._numpy))])
        # Row i of the new tokens stands at position total - n + i and sees the positions up to that.
        zero = self._constant("zero", np.array(0, np.int64))
        step = self._constant("one_scalar", np.array(1, np.int64))
        n_new = self._node("Gather", [self._node("Shape", ["input_ids"]), step])
        positions = self._node("Range", [zero, self._total_scalar, step])
        rows = self._node("Add", [self._node("Range", [zero, n_new, step]), self._node("Sub", [self._total_scalar, n_new])])
        rows = self._node("Unsqueeze", [rows, self._constant("axis1", np.array([1], np.int64))])
        hidden = self._node("Greater", [positions, rows])
        scores = self._node("Where", [hidden, self._constant("far", np.array(-1e4, self._numpy)), scores])
        mixed = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), repeated[1]])
        mixed = self._node("Transpose", [mixed], perm=[0, 2, 1, 3])
        return self._node("Reshape", [mixed, self._constant("flat", np.array([0, 0, HEADS * HEAD_DIM], np.int64))])

    def _heads(self, x: str, heads: int) -> str:
        shape = self._constant(f"heads{heads}", np.array([0, 0, heads, HEAD_DIM], np.int64))
        return self._node("Transpose", [self._node("Reshape", [x, shape])], perm=[0, 2, 1, 3])

    def _repeat(self, x: str) -> str:
        """Every KV head serves several query heads."""
        order = np.repeat(np.arange(KV_HEADS), HEADS // KV_HEADS)
        return self._node("Gather", [x, self._constant("order", order)], axis=1)

    def _past(self, layer: int) -> list[str]:
        names = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        for name in names:
            self._port(self._inputs, name, self._type, ["batch", KV_HEADS, "past", HEAD_DIM])
            self._port(
                self._outputs, name.replace("past_key_values", "present"), self._type, ["batch", KV_HEADS, "all", HEAD_DIM]
            )
        return names

    def _norm(self, x: str, name: str) -> str:
        weight = self._constant(name, (1 + 0.1 * self._random.standard_normal(WIDTH)).astype(self._numpy))
        return self._node("SimplifiedLayerNormalization", [x, weight], axis=-1, epsilon=1e-5)

    def _matmul(self, x: str, name: str, shape: tuple[int, int], output: str | None = None) -> str:
        weight = self._random.standard_normal(shape) * 1.5 / np.sqrt(shape[0])
        if self._kind == "float":
            return self._node("MatMul", [x, self._constant(name, weight.astype(self._numpy))], output)
        packed, scales = _int4(weight.T.astype(np.float32))
        inputs = [x, self._constant(f"{name}.q", packed), self._constant(f"{name}.s", scales.astype(self._numpy))]
        attributes = {"K": shape[0], "N": shape[1], "bits": 4, "block_size": 32, "accuracy_level": 4}
        return self._node("MatMulNBits", inputs, output, domain="com.microsoft", **attributes)

    def _random_weight(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        return self._constant(name, (self._random.standard_normal(shape) * scale).astype(self._numpy))

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        if not any(weight.name == name for weight in self._weights):
            self._weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _port(self, ports: list[Any], name: str, kind: int, shape: list[Any]) -> None:
        from onnx import helper

        ports.append(helper.make_tensor_value_info(name, kind, shape))

    def _node(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        name = output or f"t{len(self._nodes)}"
        self._add(op, inputs, [name], **attributes)
        return name

    def _add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(op, inputs, outputs, name=f"n{len(self._nodes)}", **attributes))


def _int4(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Rows in blocks of 32, as MatMulNBits takes them: two numbers a byte, the first in the lower half, 8 is zero."""
    blocks = weight.reshape(weight.shape[0], -1, 32)
    scales = np.abs(blocks).max(axis=2) / 7
    numbers = np.clip(np.round(blocks / scales[..., None]) + 8, 0, 15).astype(np.uint8)
    return numbers[..., ::2] | numbers[..., 1::2] << 4, scales.reshape(-1)
