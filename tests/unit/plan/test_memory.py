"""The memory estimate against llama.cpp itself: it loads random models of several families and says what it allots."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.formats.gguf import GGUFHeader, read_header
from edge.plan.memory import KV_BLOCKS, GGUFMemory, Layout, gguf_memory

MIB = 2**20
Shapes = dict[str, tuple[int, ...]]

# Loads a model the way the backend does, fills its context, and prints llama.cpp's log and how much the process grew.
CHILD = """
import json, sys
import llama_cpp.llama_cpp as llama

path, n_ctx, n_seq, n_ubatch, kv_k, kv_v, flash, fill = json.loads(sys.argv[1])
lines = []

@llama.llama_log_callback
def log(level, text, data):
    lines.append(text.decode("utf-8", "replace"))

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

llama.llama_log_set(log, None)
llama.llama_backend_init()
before = resident()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
assert model, "".join(lines)
params = llama.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_ubatch, n_ubatch
params.n_seq_max = params.n_outputs_max = n_seq + 1
params.kv_unified = params.swa_full = True
params.type_k, params.type_v, params.flash_attn_type = kv_k, kv_v, flash
params.n_threads = params.n_threads_batch = 1
context = llama.llama_init_from_model(model, params)
assert context, "".join(lines)
for start in range(0, fill, n_ubatch):
    n = min(n_ubatch, fill - start)
    batch = llama.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i in range(n):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = i % 100, start + i, 1, 0
        batch.logits[i] = i == n - 1
    assert llama.llama_decode(context, batch) == 0
grown = resident() - before
print(json.dumps(["".join(lines), grown]))
"""


def run_llama(path: Path, layout: Layout, *, fill: int = 0) -> tuple[str, int]:
    """llama.cpp's log, and by how many bytes the process grew."""
    types = {"f16": 1, "q8_0": 8, "q4_0": 2}
    arguments = [
        str(path), layout.n_ctx, layout.n_seq, layout.n_ubatch, types[layout.kv_type_k], types[layout.kv_type_v],
        int(layout.flash_attention), fill,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    log, grown = json.loads(done.stdout.splitlines()[-1])
    return log, grown


def logged(log: str, pattern: str) -> float:
    """Sum of the sizes in MiB that lines of the log give."""
    return sum(float(size) for size in re.findall(pattern + r"\s*=\s*([\d.]+) MiB", log))


# -- random models. Names and shapes follow `load_arch_tensors` of llama.cpp's src/models/.

N_VOCAB = 4096


def attention(n_embd: int, n_head: int, n_kv: int, dim: int) -> Shapes:
    return {
        "attn_norm": (n_embd,), "attn_q": (n_embd, n_head * dim), "attn_k": (n_embd, n_kv * dim),
        "attn_v": (n_embd, n_kv * dim), "attn_output": (n_head * dim, n_embd), "ffn_norm": (n_embd,),
    }  # fmt: skip


def dense(n_embd: int, n_ff: int) -> Shapes:
    return {"ffn_gate": (n_embd, n_ff), "ffn_up": (n_embd, n_ff), "ffn_down": (n_ff, n_embd)}


def write(path: Path, arch: str, layers: list[Shapes], keys: Callable[[gguf.GGUFWriter], None], **top: tuple[int, ...]) -> Path:
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(len(layers))
    writer.add_context_length(8192)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(N_VOCAB)
    keys(writer)
    shapes = {**top, **{f"blk.{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer.items()}}
    for name, shape in shapes.items():
        full = name if name.endswith(("bias", "ssm_a", "ssm_d")) else f"{name}.weight"
        data = rng.standard_normal(shape[::-1], dtype=np.float32) * 0.02
        is_small = len(shape) == 1 or "conv" in name or name.endswith("ssm_a")
        writer.add_tensor(full, data if is_small else data.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama(path: Path, *, experts: int = 0, tied: bool = True, n_embd: int = 256, n_ff: int = 704) -> Path:
    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_embedding_length(n_embd)
        writer.add_feed_forward_length(n_ff)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(n_embd // 4)
        if experts:
            writer.add_expert_count(experts)
            writer.add_expert_used_count(2)

    feed: Shapes = dense(n_embd, n_ff)
    if experts:
        feed = {
            "ffn_gate_inp": (n_embd, experts), "ffn_gate_exps": (n_embd, n_ff, experts),
            "ffn_up_exps": (n_embd, n_ff, experts), "ffn_down_exps": (n_ff, n_embd, experts),
        }  # fmt: skip
    layer = {**attention(n_embd, 4, 2, n_embd // 4), **feed}
    top = {"token_embd": (n_embd, N_VOCAB), "output_norm": (n_embd,)} | ({} if tied else {"output": (n_embd, N_VOCAB)})
    return write(path, "llama", [layer] * 5, keys, **top)


def gemma3(path: Path) -> Path:
    """Sliding-window layers, and heads that are wider than n_embd / n_head."""
    n_embd, dim = 256, 128

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_embedding_length(n_embd)
        writer.add_feed_forward_length(1024)
        writer.add_head_count(4)
        writer.add_head_count_kv(1)
        writer.add_key_length(dim)
        writer.add_value_length(dim)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_sliding_window(512)

    layer = {
        **attention(n_embd, 4, 1, dim), **dense(n_embd, 1024), "attn_q_norm": (dim,), "attn_k_norm": (dim,),
        "post_attention_norm": (n_embd,), "post_ffw_norm": (n_embd,),
    }  # fmt: skip
    return write(path, "gemma3", [layer] * 7, keys, token_embd=(n_embd, N_VOCAB), output_norm=(n_embd,))


def lfm2(path: Path) -> Path:
    """A hybrid: short convolutions with a state, and attention in some layers."""
    n_embd, dim = 256, 64
    kv = [0, 0, 2, 0, 2]

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_embedding_length(n_embd)
        writer.add_feed_forward_length(640)
        writer.add_head_count(4)
        writer.add_head_count_kv(kv)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_shortconv_l_cache(3)

    common = {**dense(n_embd, 640), "attn_norm": (n_embd,), "ffn_norm": (n_embd,)}
    attend = {**attention(n_embd, 4, 2, dim), **common, "attn_q_norm": (dim,), "attn_k_norm": (dim,)}
    convolve = {
        **common, "shortconv.conv": (3, n_embd), "shortconv.in_proj": (n_embd, 3 * n_embd),
        "shortconv.out_proj": (n_embd, n_embd),
    }  # fmt: skip
    layers = [attend if heads else convolve for heads in kv]
    return write(path, "lfm2", layers, keys, token_embd=(n_embd, N_VOCAB), token_embd_norm=(n_embd,))


def mamba(path: Path) -> Path:
    """Recurrent layers only."""
    n_embd, inner, state, rank = 256, 512, 16, 16

    def keys(writer: gguf.GGUFWriter) -> None:
        writer.add_embedding_length(n_embd)
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(inner)
        writer.add_ssm_state_size(state)
        writer.add_ssm_time_step_rank(rank)
        writer.add_layer_norm_rms_eps(1e-5)

    layer: Shapes = {
        "attn_norm": (n_embd,), "ssm_in": (n_embd, 2 * inner), "ssm_conv1d": (4, inner), "ssm_conv1d.bias": (inner,),
        "ssm_x": (inner, rank + 2 * state), "ssm_dt": (rank, inner), "ssm_dt.bias": (inner,), "ssm_a": (state, inner),
        "ssm_d": (inner,), "ssm_out": (inner, n_embd),
    }  # fmt: skip
    return write(path, "mamba", [layer] * 4, keys, token_embd=(n_embd, N_VOCAB), output_norm=(n_embd,))


MODELS: dict[str, Callable[[Path], Path]] = {
    "llama": llama,
    "llama, untied, wide feed-forward": lambda path: llama(path, tied=False, n_ff=2048),
    "mixture of experts": lambda path: llama(path, experts=4),
    "gemma3": gemma3,
    "lfm2": lfm2,
    "mamba": mamba,
}
BASE = Layout(2048, 4, 512, "f16", "f16", True, 0, "cpu")


@pytest.mark.parametrize("layout", [BASE, replace(BASE, n_ctx=4096, n_ubatch=128, n_seq=1, kv_type_k="q8_0")], ids=["a", "b"])
@pytest.mark.parametrize("name", MODELS)
def test_what_llama_cpp_allots(name: str, layout: Layout, tmp_path: Path) -> None:
    path = MODELS[name](tmp_path / "model.gguf")
    layers = gguf_memory(read_header(path))
    estimate = layers.footprint(layout)
    log, _ = run_llama(path, layout)
    # llama.cpp's log gives two decimals; its weights count padding between tensors.
    assert estimate.host.weights / MIB == pytest.approx(logged(log, "CPU(?:_Mapped)? model buffer size"), rel=0.01, abs=0.02)
    cache = logged(log, "CPU KV buffer size") + logged(log, "CPU RS buffer size")
    assert cache > 0
    assert estimate.host.kv / MIB == pytest.approx(cache, abs=0.02)
    tables = layers.n_vocab * (340 + 4 * (layout.n_seq + 1)) + 4 * MIB
    buffers = logged(log, "CPU compute buffer size")
    assert (estimate.host.compute - tables) / MIB == pytest.approx(buffers, rel=0.25)


@pytest.mark.model
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    "layout", [replace(BASE, n_ctx=1024), replace(BASE, n_ctx=512, n_ubatch=128, kv_type_k="q8_0", kv_type_v="q8_0")]
)
def test_the_real_model_grows_by_the_estimate(layout: Layout, model_path: Path) -> None:
    """Loaded, its context filled to the last cell: the process grows by what was estimated."""
    estimate = gguf_memory(read_header(model_path)).footprint(layout)
    log, grown = run_llama(model_path, layout, fill=layout.n_ctx)
    assert estimate.total == pytest.approx(grown, rel=0.1)
    assert estimate.host.kv / MIB == pytest.approx(logged(log, "CPU KV buffer size"), abs=0.01)
    assert logged(log, "CPU compute buffer size") < estimate.host.compute / MIB


def header(arch: str, n_layer: int, n_head_kv: int | tuple[int, ...], **metadata: Any) -> GGUFHeader:
    """A header of 8 heads of 64 numbers, without tensors."""
    return GGUFHeader(
        version=3, metadata={f"{arch}.{key.replace('__', '.')}": value for key, value in metadata.items()}, tensors=(),
        data_offset=0, file_bytes=0, architecture=arch, name="", n_layer=n_layer, n_head=8, n_head_kv=n_head_kv, head_dim_k=64,
        head_dim_v=64, n_embd=512, n_ctx_train=8192, n_vocab=1000, sliding_window=None, chat_template=None, file_type="",
        n_params=0, tensors_bytes=0, is_recurrent=any(k.startswith("wkv") for k in metadata),
        is_hybrid=any(k.startswith(("ssm", "kda", "shortconv")) for k in metadata),
    )  # fmt: skip


KV_2 = 2 * 64  # two heads of keys
SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 1024, "ssm__state_size": 16, "ssm__group_count": 2}
SSM_STATE = 4 * (3 * (1024 + 2 * 2 * 16) + 16 * 1024)


@pytest.mark.parametrize(
    ("model", "key_width", "states"),
    [
        # Every layer attends and has a state.
        (header("falcon-h1", 2, 2, **SSM), (KV_2, KV_2), (SSM_STATE, SSM_STATE)),
        # Every fourth layer attends, the others have a state; the interval may be in the file.
        (header("qwen3next", 4, 2, **SSM), (0, 0, 0, KV_2), (SSM_STATE,) * 3 + (0,)),
        (header("qwen3next", 4, 2, full_attention_interval=2, **SSM), (0, KV_2, 0, KV_2), (SSM_STATE, 0, SSM_STATE, 0)),
        (header("qwen35", 3, 2, attention__recurrent_layers=(1, 0, 1), **SSM), (0, KV_2, 0), (SSM_STATE, 0, SSM_STATE)),
        # Layers without key-value heads are the recurrent ones.
        (header("jamba", 3, (0, 2, 0), **SSM), (0, KV_2, 0), (SSM_STATE, 0, SSM_STATE)),
        (
            header("kimi-linear", 2, (0, 2), kda__head_dim=32, ssm__conv_kernel=4),
            (0, KV_2),
            (4 * (3 * 3 * 8 * 32 + 32 * 32 * 8), 0),
        ),
        (header("rwkv7", 2, 0, wkv__head_size=64), (0, 0), (4 * (2 * 512 + 512 * 64),) * 2),
        # The last layers look into the cache of earlier ones.
        (header("gemma4", 4, 2, attention__shared_kv_layers=3), (KV_2, 0, 0, 0), (0,) * 4),
        (header("gemma3n", 22, 2), (KV_2,) * 20 + (0, 0), (0,) * 22),
        # Sliding-window layers may have heads of another width.
        (
            header("gemma4", 2, 2, attention__sliding_window_pattern=(True, False), attention__key_length_swa=32),
            (2 * 32, KV_2),
            (0, 0),
        ),
        (header("deci", 3, (2, 0, 4)), (KV_2, 0, 2 * KV_2), (0,) * 3),
    ],
    ids=lambda value: value.architecture if isinstance(value, GGUFHeader) else "",
)
def test_families_that_llama_cpp_treats_specially(model: GGUFHeader, key_width: Any, states: Any) -> None:
    """By hand after llama-hparams.cpp and src/models/; the families above are checked against llama.cpp itself."""
    layers = gguf_memory(model)
    assert layers.key_width == key_width
    assert layers.state_bytes == states
    # One state a sequence, and one for the sequence that export and import use.
    empty = layers.footprint(replace(BASE, n_ctx=1, n_seq=3))
    assert empty.host.kv == 4 * sum(states) + 256 * layers.cell_bytes("f16", "f16")


LAYERS = GGUFMemory(
    weights=(10 * MIB, 11 * MIB, 12 * MIB, 13 * MIB),
    input_bytes=100 * MIB,
    output_bytes=100 * MIB,
    is_tied=True,
    key_width=(512, 0, 512, 256),
    value_width=(512, 0, 512, 128),
    state_bytes=(0, 4096, 0, 0),
    n_embd=512,
    n_ff=2048,
    attention_width=512,
    n_head=8,
    n_vocab=50_000,
    n_masks=1,
)
layouts = st.builds(
    Layout,
    n_ctx=st.integers(1, 40_000),
    n_seq=st.integers(1, 16),
    n_ubatch=st.sampled_from([64, 128, 512]),
    kv_type_k=st.sampled_from(sorted(KV_BLOCKS)),
    kv_type_v=st.sampled_from(sorted(KV_BLOCKS)),
    flash_attention=st.booleans(),
    gpu_layers=st.integers(0, 6),
    accelerator=st.sampled_from(["cuda", "metal"]),
)


@given(layouts)
def test_moving_layers_to_the_accelerator_moves_their_bytes(layout: Layout) -> None:
    alone = LAYERS.footprint(replace(layout, gpu_layers=0))
    split = LAYERS.footprint(layout)
    n_device = min(layout.gpu_layers, LAYERS.n_layer + 1)
    copied = LAYERS.output_bytes if n_device else 0  # tied embeddings are in both places
    assert split.host.weights + split.device.weights == alone.host.weights + copied
    assert split.host.kv + split.device.kv == alone.host.kv
    assert (split.device.total == 0) == (n_device == 0)
    more = LAYERS.footprint(replace(layout, gpu_layers=layout.gpu_layers + 1))
    assert more.device.total >= split.device.total
    assert more.host.total <= split.host.total


@given(layouts, st.integers(1, 10_000))
def test_more_context_never_takes_less(layout: Layout, more: int) -> None:
    bigger = LAYERS.footprint(replace(layout, n_ctx=layout.n_ctx + more))
    assert bigger.host.total >= LAYERS.footprint(layout).host.total
    assert bigger.device.total >= LAYERS.footprint(layout).device.total


def test_layers_go_to_the_accelerator_from_the_back() -> None:
    one = LAYERS.footprint(replace(BASE, gpu_layers=1, accelerator="cuda"))
    assert one.device.weights == LAYERS.output_bytes  # the output comes first, and keeps no cells
    assert one.device.kv == 0
    two = LAYERS.footprint(replace(BASE, gpu_layers=2, accelerator="cuda"))
    assert two.device.weights == LAYERS.output_bytes + 13 * MIB
    assert two.device.kv == 2048 * (256 + 128) * 2
