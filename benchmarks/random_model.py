#!/usr/bin/env python3
"""A checkpoint with random weights in the shape of a 1B Llama, to measure speed with: it writes nonsense as fast as a good one.

    python benchmarks/random_model.py OUT [--tokenizer CHECKPOINT] [--layers 16] ...
    edge convert OUT --to gguf,onnx --quant Q4_0,Q4_K_M --no-imatrix --no-card --out OUT-converted

The tokenizer is that of a checkpoint folder; without one, that of SmolLM2-135M, which is read back from its GGUF. Needs the
extra [convert].
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def smollm2_checkpoint(scratch: Path) -> Path:
    from edge.catalog import resolve
    from edge.config import load_settings
    from edge_convert.gguf.read_back import checkpoint_from_gguf

    return checkpoint_from_gguf(resolve("smollm2-135m", settings=load_settings()).path, scratch / "smollm2")


def make(out: Path, tokenizer: Path, given: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    config = json.loads((tokenizer / "config.json").read_text("utf-8"))
    width, head = given.hidden, given.hidden // given.heads
    config |= {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": given.ffn,
        "num_hidden_layers": given.layers, "num_attention_heads": given.heads, "num_key_value_heads": given.kv_heads,
        "head_dim": head, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "dtype": "bfloat16",
    }  # fmt: skip
    for note in ("source_quantised", "source_gguf"):
        config.pop(note, None)
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for layer in range(given.layers):
        name = f"model.layers.{layer}."
        shapes |= {
            name + "self_attn.q_proj.weight": (width, width), name + "self_attn.o_proj.weight": (width, width),
            name + "self_attn.k_proj.weight": (given.kv_heads * head, width),
            name + "self_attn.v_proj.weight": (given.kv_heads * head, width),
            name + "mlp.gate_proj.weight": (given.ffn, width), name + "mlp.up_proj.weight": (given.ffn, width),
            name + "mlp.down_proj.weight": (width, given.ffn),
            name + "input_layernorm.weight": (width,), name + "post_attention_layernorm.weight": (width,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        is_norm = len(shape) == 1
        values = torch.ones(shape) if is_norm else torch.randn(shape, generator=generator) * 0.02
        tensors[name] = values.to(torch.bfloat16)
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, out / name)
    print(f"{out}: {sum(tensor.numel() for tensor in tensors.values()) / 1e9:.2f} billion weights")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="a checkpoint folder (default: SmolLM2-135M)")
    for name, value in (("hidden", 2048), ("layers", 16), ("heads", 32), ("kv-heads", 8), ("ffn", 8192)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists already")
    with tempfile.TemporaryDirectory(prefix="edge-random-") as folder:
        make(given.out, given.tokenizer or smollm2_checkpoint(Path(folder)), given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
