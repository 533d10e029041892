"""The fixtures of the contract, and tiny random models to test more of llama.cpp with.

Every test gets a `bench`: an open backend with empty sequences, and how exact its engine is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edge.backends.base import Backend
from edge.plan import Plan
from edge.prompt.tokenizers import Tokenizer
from tests.contract.coreml import write_package
from tests.contract.entries import CHUNK, ENTRIES, N_CTX, N_SEQ, Bench, make_plan
from tests.shared import made_once
from tests.tiny_onnx import write_onnx

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN = 64, 4, 2, 32, 128
SPECIALS = ("<|im_start|>", "<|im_end|>")


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = dict(zip(printable, map(chr, printable), strict=True))
    for n, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + n)
    return [letters[byte] for byte in range(256)]


class TinyModel:
    """Writes a random model of one architecture: two layers, a byte vocabulary, weights in float32."""

    def __init__(
        self, path: Path, architecture: str, *, n_layer: int = 2, seed: int = 7, kind: gguf.GGMLQuantizationType | None = None
    ) -> None:
        self.path = path
        self.kind = kind  # of the matrices; None is float32
        self.n_layer = n_layer
        self.writer = gguf.GGUFWriter(path, architecture)
        self._random = np.random.default_rng(seed)
        self.writer.add_name(f"tiny {architecture}")
        self.writer.add_context_length(4096)
        self.writer.add_embedding_length(WIDTH)
        self.writer.add_block_count(n_layer)
        self.writer.add_feed_forward_length(FFN)
        self.writer.add_layer_norm_rms_eps(1e-5)

    def add_attention(self, n_head: int = HEADS) -> None:
        """The numbers every attention model has."""
        self.writer.add_head_count(n_head)
        self.writer.add_head_count_kv(KV_HEADS)
        self.writer.add_key_length(HEAD_DIM)
        self.writer.add_value_length(HEAD_DIM)
        self.writer.add_rope_dimension_count(HEAD_DIM)

    def add_tokenizer(self) -> None:
        """One token a byte and ChatML's two specials."""
        tokens = [*_byte_letters(), "he", *SPECIALS]
        kinds = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2
        self.writer.add_tokenizer_model("gpt2")
        self.writer.add_tokenizer_pre("gpt-2")
        self.writer.add_token_list(tokens)
        self.writer.add_token_types(kinds)
        self.writer.add_token_merges(["h e"])
        self.writer.add_bos_token_id(257)
        self.writer.add_eos_token_id(258)
        self.writer.add_add_bos_token(False)

    def tensor(self, name: str, *shape: int, kind: str = "matrix") -> None:
        """Add a tensor; `shape` as numpy has it, the reverse of ggml's."""
        if kind == "norm":
            values = 1.0 + 0.1 * self._random.standard_normal(shape)
        else:
            values = self._random.standard_normal(shape) * (1.5 / np.sqrt(shape[-1]))
            if self.kind is not None:
                self.writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), self.kind), raw_dtype=self.kind)
                return
        self.writer.add_tensor(name, values.astype(np.float32))

    def norm(self, name: str, size: int = WIDTH) -> None:
        """Add the weights of a normalisation."""
        self.tensor(name, size, kind="norm")

    def add_ends(self, n_vocab: int = 259) -> None:
        """Embedding, last norm and output."""
        self.tensor("token_embd.weight", n_vocab, WIDTH)
        self.norm("output_norm.weight")
        self.tensor("output.weight", n_vocab, WIDTH)

    def add_attention_tensors(self, layer: int) -> None:
        """Query, key, value and output of one layer."""
        block = f"blk.{layer}"
        self.norm(f"{block}.attn_norm.weight")
        self.tensor(f"{block}.attn_q.weight", HEADS * HEAD_DIM, WIDTH)
        self.tensor(f"{block}.attn_k.weight", KV_HEADS * HEAD_DIM, WIDTH)
        self.tensor(f"{block}.attn_v.weight", KV_HEADS * HEAD_DIM, WIDTH)
        self.tensor(f"{block}.attn_output.weight", WIDTH, HEADS * HEAD_DIM)

    def add_ffn_tensors(self, layer: int) -> None:
        """The gated feed-forward part of one layer."""
        block = f"blk.{layer}"
        self.norm(f"{block}.ffn_norm.weight")
        self.tensor(f"{block}.ffn_gate.weight", FFN, WIDTH)
        self.tensor(f"{block}.ffn_up.weight", FFN, WIDTH)
        self.tensor(f"{block}.ffn_down.weight", WIDTH, FFN)

    def write(self) -> Path:
        """Finish the file."""
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def write_llama(path: Path, *, with_tokenizer: bool = True, kind: gguf.GGMLQuantizationType | None = None) -> Path:
    """A tiny model of the architecture "llama"."""
    model = TinyModel(path, "llama", kind=kind)
    model.add_attention()
    if with_tokenizer:
        model.add_tokenizer()
    else:
        model.writer.add_tokenizer_model("no_vocab")
        model.writer.add_vocab_size(259)
    model.add_ends()
    for layer in range(model.n_layer):
        model.add_attention_tensors(layer)
        model.add_ffn_tensors(layer)
    return model.write()


def write_longrope(path: Path) -> Path:
    """A tiny model with one rotation for up to 512 tokens of context and another one beyond."""
    model = TinyModel(path, "llama")
    model.add_attention()
    model.add_tokenizer()
    model.writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    model.writer.add_rope_scaling_orig_ctx_len(512)
    for name, factor in (("long", 4.0), ("short", 1.0)):
        model.writer.add_tensor(f"rope_factors_{name}.weight", np.full(HEAD_DIM // 2, factor, np.float32))
    model.add_ends()
    for layer in range(model.n_layer):
        model.add_attention_tensors(layer)
        model.add_ffn_tensors(layer)
    return model.write()


def write_gemma3(path: Path) -> Path:
    """A tiny model with a sliding window of 64 tokens in five of six layers."""
    model = TinyModel(path, "gemma3", n_layer=6)
    model.add_attention()
    model.add_tokenizer()
    model.writer.add_sliding_window(64)
    model.add_ends()
    for layer in range(model.n_layer):
        model.add_attention_tensors(layer)
        model.add_ffn_tensors(layer)
        block = f"blk.{layer}"
        model.norm(f"{block}.attn_q_norm.weight", HEAD_DIM)
        model.norm(f"{block}.attn_k_norm.weight", HEAD_DIM)
        model.norm(f"{block}.post_attention_norm.weight")
        model.norm(f"{block}.post_ffw_norm.weight")
    return model.write()


def write_mamba(path: Path) -> Path:
    """A tiny recurrent model."""
    inner, state, rank, kernel = 2 * WIDTH, 16, 4, 4
    model = TinyModel(path, "mamba")
    model.add_tokenizer()
    model.writer.add_ssm_conv_kernel(kernel)
    model.writer.add_ssm_inner_size(inner)
    model.writer.add_ssm_state_size(state)
    model.writer.add_ssm_time_step_rank(rank)
    model.writer.add_head_count(0)
    model.add_ends()
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        model.norm(f"{block}.attn_norm.weight")
        model.tensor(f"{block}.ssm_in.weight", 2 * inner, WIDTH)
        model.tensor(f"{block}.ssm_conv1d.weight", inner, kernel)
        model.tensor(f"{block}.ssm_conv1d.bias", inner)
        model.tensor(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        model.tensor(f"{block}.ssm_dt.weight", inner, rank)
        model.tensor(f"{block}.ssm_dt.bias", inner)
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        model.writer.add_tensor(f"{block}.ssm_a", decay)
        model.norm(f"{block}.ssm_d", inner)
        model.tensor(f"{block}.ssm_out.weight", WIDTH, inner)
    return model.write()


def write_lfm2(path: Path) -> Path:
    """A tiny hybrid model: a convolution layer, then an attention layer."""
    model = TinyModel(path, "lfm2")
    model.writer.add_head_count(WIDTH // HEAD_DIM)
    model.writer.add_head_count_kv([0, 1])
    model.writer.add_shortconv_l_cache(3)
    model.add_tokenizer()
    model.tensor("token_embd.weight", 259, WIDTH)
    model.norm("token_embd_norm.weight")
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        model.add_ffn_tensors(layer)
        if layer == 0:
            model.norm(f"{block}.attn_norm.weight")
            model.tensor(f"{block}.shortconv.conv.weight", WIDTH, 3)
            model.tensor(f"{block}.shortconv.in_proj.weight", 3 * WIDTH, WIDTH)
            model.tensor(f"{block}.shortconv.out_proj.weight", WIDTH, WIDTH)
        else:
            model.norm(f"{block}.attn_norm.weight")
            model.tensor(f"{block}.attn_q.weight", WIDTH, WIDTH)
            model.tensor(f"{block}.attn_k.weight", HEAD_DIM, WIDTH)
            model.tensor(f"{block}.attn_v.weight", HEAD_DIM, WIDTH)
            model.tensor(f"{block}.attn_output.weight", WIDTH, WIDTH)
            model.norm(f"{block}.attn_q_norm.weight", HEAD_DIM)
            model.norm(f"{block}.attn_k_norm.weight", HEAD_DIM)
    return model.write()


def write_bert(path: Path) -> Path:
    """A tiny encoder."""
    model = TinyModel(path, "bert")
    model.writer.add_head_count(HEADS)
    model.writer.add_layer_norm_eps(1e-5)
    model.writer.add_causal_attention(False)
    model.writer.add_token_type_count(2)
    model.add_tokenizer()
    model.tensor("token_embd.weight", 259, WIDTH)
    model.tensor("token_types.weight", 2, WIDTH)
    model.tensor("position_embd.weight", 4096, WIDTH)
    norms = ["token_embd_norm"]
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            model.tensor(f"{block}.{name}.weight", WIDTH, WIDTH)
        model.tensor(f"{block}.ffn_up.weight", FFN, WIDTH)
        model.tensor(f"{block}.ffn_down.weight", WIDTH, FFN)
        norms += [f"{block}.attn_output_norm", f"{block}.layer_output_norm"]
    for name in norms:
        model.norm(f"{name}.weight")
        model.norm(f"{name}.bias")
    return model.write()


_WRITERS: dict[str, Callable[[Path], Path]] = {
    "llama": write_llama,
    # In 4 bits the last bits of a result depend on how many tokens were computed together, as they do in real models.
    "llama q4_0": lambda path: write_llama(path, kind=gguf.GGMLQuantizationType.Q4_0),
    "llama without tokenizer": lambda path: write_llama(path, with_tokenizer=False),
    "llama longrope": write_longrope,
    "bert": write_bert,
    "gemma3": write_gemma3,
    "mamba": write_mamba,
    "lfm2": write_lfm2,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a tiny random model of an architecture; each is written once."""
    folder = tmp_path_factory.mktemp("tiny-models")

    def path_of(architecture: str) -> Path:
        path = folder / f"{architecture}.gguf"
        return path if path.exists() else _WRITERS[architecture](path)

    return path_of


@pytest.fixture(scope="session")
def tiny_architecture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a tiny random model of a kind that tests/contract/architectures.py knows; each is written once."""
    from tests.contract.architectures import write  # imports this module

    folder = tmp_path_factory.mktemp("tiny-architectures")

    def path_of(kind: str) -> Path:
        path = folder / f"{kind}.gguf"
        return path if path.exists() else write(path, kind)

    return path_of


@pytest.fixture(scope="session")
def plan_for() -> Callable[..., Plan]:
    """Makes a small plan for a GGUF file; keywords change it."""
    return make_plan


@pytest.fixture(scope="session")
def coreml_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a tiny Core ML package: "coreml" keeps its cache in a state, "coreml-explicit" has it passed in."""
    for package in ("torch", "coremltools"):
        pytest.importorskip(package, reason="needs the extra [convert]")

    def path_of(kind: str) -> Path:
        folder = made_once(
            tmp_path_factory,
            f"contract/{kind}",
            lambda path: write_package(path, context=N_CTX, chunk=CHUNK, stateful=kind == "coreml"),
        )
        return folder / "package" / "model.mlpackage"

    return path_of


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a tiny ONNX folder: "onnx" in floats, "onnx-int4", "onnx-plain" without the fused attention."""
    pytest.importorskip("onnx", reason="needs the extra [convert]")
    folder = tmp_path_factory.mktemp("onnx")
    changes: dict[str, dict[str, Any]] = {"onnx": {}, "onnx-int4": {"kind": "int4"}, "onnx-plain": {"attention": "plain"}}

    def path_of(kind: str) -> Path:
        path = folder / kind
        return path if path.exists() else write_onnx(path, **changes[kind])

    return path_of


@pytest.fixture(scope="session", params=[pytest.param(entry, id=entry.kind, marks=entry.marks) for entry in ENTRIES])
def opened(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Each backend once, open for the whole session."""
    bench = request.param.open(request, request.param.kind)
    yield bench
    bench.backend.close()


@pytest.fixture
def bench(opened: Bench) -> Bench:
    """A backend with empty sequences."""
    for seq_id in range(N_SEQ):
        opened.backend.rewind(seq_id, 0)
    return opened


@pytest.fixture
def backend(bench: Bench) -> Backend:
    """The backend of `bench`."""
    return bench.backend


@pytest.fixture
def tokenizer(opened: Bench) -> Tokenizer:
    """The tokenizer of the backend."""
    return opened.backend.tokenizer
