"""onnxruntime-genai's model builder (0.18), which tests hold edge's own graphs against. Run as a program, since it prints,
changes sys.path and needs torch:

    CHECKPOINT OUT PRECISION [CHECKPOINT OUT PRECISION ...]

It reads a config in the layout of older versions of transformers, and ignores what it does not know. Here the checkpoint's
configuration is laid out as it reads it, and its faults are corrected.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_convert.checkpoint import Checkpoint, open_checkpoint

_OPTIONS = ["hf_token=false", "windowed_kv_cache=false"]  # no login; all layers keep KV of the full length
_QUANTISED = ["algo_config=k_quant", "block_size=32", "accuracy_level=1"]
_MIXED = "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"
_PART_BLOCKS = 1 << 16
"""Blocks that are quantised at a time: the search takes 1.5 kB for each."""


def adapt_config(config: Any, checkpoint: Checkpoint) -> Any:
    """Lay out a transformers config as the builder reads it.

    Args:
        config: of the model.
        checkpoint: the model.
    """
    model, rope = checkpoint.model, checkpoint.model.rope
    parameters = {**rope.scaling, "rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.partial != 1.0:
        parameters["partial_rotary_factor"] = rope.partial
    if rope.local_theta is not None:
        config.rope_local_base_freq = rope.local_theta
    if checkpoint.architecture.name == "Phi3ForCausalLM":
        parameters["type"] = rope.kind
        # The builder tells long from plain RoPE by this number.
        is_long = rope.kind == "longrope"
        config.original_max_position_embeddings = rope.original_context if is_long else model.n_positions
        if is_long:
            parameters["short_mscale"] = parameters["long_mscale"] = rope.attention_factor
    config.rope_parameters = parameters
    config.rope_theta = rope.theta
    # Where a config has a window and no list of layers (Mistral, Phi-3), the builder would give no layer a window.
    config.layer_types = list(model.layer_kinds)
    config.sliding_window = model.window
    config.tie_word_embeddings = checkpoint.is_tied
    return config


def build_with_genai(builds: Sequence[tuple[Path, Path, str]], work: Path) -> None:
    """Build models: checkpoint, the new folder, and "int4", "int8" or "fp32". All in one process, since it starts slowly."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(work / "hf")}
    arguments = [str(part) for build in builds for part in build]
    code = "from tests.onnx_builder import main; import sys; main(*sys.argv[1:])"
    root = Path(__file__).parents[1]
    paths = [str(root), str(root / "converters"), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def main(*arguments: str) -> None:
    """Build models; see the module."""
    from onnxruntime_genai.models import builder

    _fix(builder)
    _fix_quantiser()
    for checkpoint, out, precision in zip(arguments[0::3], arguments[1::3], arguments[2::3], strict=True):
        quantised = [] if precision == "fp32" else _QUANTISED
        extra = [*_OPTIONS, *quantised, *([_MIXED] if precision == "int4" else [])]
        with tempfile.TemporaryDirectory() as cache:
            options = builder.parse_extra_options(None, checkpoint, out, precision, "cpu", cache, extra)
            adapt_config(options["hf_details"]["hf_config"], open_checkpoint(Path(checkpoint)))
            builder.create_model(None, checkpoint, out, precision, "cpu", cache, **options)


def _fix(builder: Any) -> None:
    """Fix two places where the builder forgets a scaling of RoPE or applies it to the wrong layers."""
    plain = builder.Model.make_rope_init
    own = builder.LlamaModel.make_rope_init

    def make_rope_init(self: Any, config: Any) -> None:
        (own if config.rope_parameters["rope_type"] == "llama3" else plain)(self, config)

    builder.LlamaModel.make_rope_init = make_rope_init
    caches = builder.Model.make_rotary_embedding_caches

    def make_rotary_embedding_caches(self: Any, **names: Any) -> Any:
        if names.get("cos_cache_name") == "cos_cache_local":  # Gemma 3: the scaling is that of the global layers
            self.rope_attrs["rescale_factors"] = 1
        return caches(self, **names)

    builder.Model.make_rotary_embedding_caches = make_rotary_embedding_caches


def _fix_quantiser() -> None:
    """Quantise in pieces, since all blocks of a large vocabulary at once take 8 GB, and pack odd numbers of zero points.

    A row's zero points of 4 bits fill whole bytes; onnxruntime (1.32) packs all rows end to end, which fails where a row has an
    odd number of blocks.
    """
    import numpy as np
    import onnx
    from onnxruntime.quantization.neural_compressor import weight_only

    search, make_node = weight_only.quant_tensor_k_quant_cpu, weight_only.make_matmul_weight_only_node

    def in_pieces(data: Any, num_bits: int = 4, group_size: int = 32) -> tuple[Any, Any, Any]:
        step = max(1, _PART_BLOCKS * group_size // data.shape[1])
        parts = [search(data[start : start + step], num_bits, group_size) for start in range(0, len(data), step)]
        columns = zip(*((codes.astype(np.uint8), scale.astype(np.float32), zero) for codes, scale, zero in parts), strict=True)
        codes, scale, zero = (np.concatenate(column) for column in columns)
        return codes, scale, zero

    def make_padded_node(*, zero_point: Any, num_bits: int, k_blocks: int, **others: Any) -> tuple[Any, list[Any]]:
        if zero_point is None or num_bits != 4 or k_blocks % 2 == 0:
            node, tensors = make_node(zero_point=zero_point, num_bits=num_bits, k_blocks=k_blocks, **others)
            return node, tensors
        node, tensors = make_node(zero_point=None, num_bits=num_bits, k_blocks=k_blocks, **others)
        rows = zero_point.reshape(-1, k_blocks)
        padded = np.full((len(rows), k_blocks + 1), 8, np.uint8)
        padded[:, :k_blocks] = rows
        packed = padded[:, 0::2] | padded[:, 1::2] << 4
        name = others["node"].input[1] + "_zp"
        tensors.append(onnx.helper.make_tensor(name, onnx.TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True))
        node.input.append(name)
        return node, tensors

    weight_only.quant_tensor_k_quant_cuda = in_pieces
    weight_only.make_matmul_weight_only_node = make_padded_node
