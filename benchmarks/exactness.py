#!/usr/bin/env python3
"""Measure how near the engines' logits come to the weights in a GGUF file.

    python benchmarks/exactness.py MODEL.gguf [MODEL.gguf ...] [--quant Q4_K_S ...] [--kv-type f16] [--tokens 512] [--json FILE]

The reference is llama.cpp on the same weights in float32. Both engines read the same text a few tokens at a time, and the
divergence of every next-token distribution is counted: from the reference, and between the engines.

--quant has llama.cpp quantise every matrix of the model to that type first. K-quants need rows of whole blocks of 256 weights,
so a Llama of another width is surrounded with zeros before (heads of zeros, norms scaled by the width): it computes the same.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge.backends.base import Backend, open_backend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan

ENGINES = ("llamacpp", "openvino")
STEP, SUPER_BLOCK = 16, 256


def rewrite(source: Path, target: Path, *, widen: bool = False) -> None:
    """Write a file's weights in float32; if wanted, with zeros up to a width of whole super-blocks."""
    reader = gguf.GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    arch = fields.pop("general.architecture").contents()
    old, heads, heads_kv = (
        fields[f"{arch}.{key}"].contents() for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    dim = fields[f"{arch}.attention.key_length"].contents() if f"{arch}.attention.key_length" in fields else old // heads
    group = heads // heads_kv
    new = -(-old // SUPER_BLOCK) * SUPER_BLOCK if widen else old
    new_heads = heads
    while widen and ((new_heads * dim) % SUPER_BLOCK or new_heads % group):
        new_heads += 1
    epsilon = f"{arch}.attention.layer_norm_rms_epsilon"
    changed: dict[str, Any] = {"general.file_type": 0}
    if widen:
        if arch != "llama":
            sys.exit(f"{source.name} is a {arch}; only a llama can be widened. Leave out --quant.")
        changed |= {f"{arch}.embedding_length": new, f"{arch}.attention.head_count": new_heads}
        changed |= {f"{arch}.attention.head_count_kv": new_heads // group, epsilon: fields[epsilon].contents() * old / new}
    writer = gguf.GGUFWriter(target, arch)
    for name, field in fields.items():
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name, field.contents()), field.types[0], inner)
    if widen and f"{arch}.attention.key_length" not in fields:
        writer.add_key_length(dim)
        writer.add_value_length(dim)
    rows = {"attn_q": new_heads * dim, "attn_k": new_heads // group * dim, "attn_v": new_heads // group * dim}
    rows |= {"attn_output": new, "ffn_down": new}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if widen:
            part = tensor.name.split(".")[-2]
            shape = [*values.shape[:-1], {"attn_output": new_heads * dim, "ffn_down": values.shape[-1]}.get(part, new)]
            if values.ndim == 2:
                shape[0] = rows.get(part, shape[0])
            else:
                values = values * np.float32(np.sqrt(old / new))
            wide = np.zeros(shape, np.float32)
            wide[tuple(slice(size) for size in values.shape)] = values
            values = wide
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source: Path, target: Path, kind: str) -> None:
    """Quantise every matrix with llama.cpp."""
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        sys.exit(f"llama.cpp cannot quantise {source.name} to {kind}.")


def read(path: Path, engine: str, kv_type: str, text: str, n_tokens: int) -> np.ndarray:
    """Return the logits after every token, float32 [n_tokens, n_vocab]."""
    types = {"kv_type_k": kv_type, "kv_type_v": kv_type}
    request = PlanRequest(backend=engine, require="cpu", context=n_tokens + 64, n_seq=1, **types)  # type: ignore[arg-type]
    with open_backend(make_plan(probe(), open_artifact(path), request, safety=None)) as backend:
        tokens = backend.tokenizer.tokenize(text)[:n_tokens]
        return np.concatenate(list(_steps(backend, tokens)))


def _steps(backend: Backend, tokens: list[int]) -> Any:
    backend.prefill(0, tokens[:1])
    yield backend.logits(0)[None]
    step = STEP if backend.capabilities.drafts else 1
    for start in range(1, len(tokens), step):
        token, *rest = tokens[start : start + step]
        backend.decode([(0, token)], {0: rest} if rest else {})
        yield np.array([backend.logits(0, n_back) for n_back in range(len(rest), -1, -1)])


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return how far logits diverge from a reference."""
    kl, same = [], []
    for start in range(0, len(ours), 32):  # a vocabulary may have 262,144 tokens
        p, q = (_log_softmax(rows[start : start + 32].astype(np.float64)) for rows in (theirs, ours))
        kl.append((np.exp(p) * (p - q)).sum(1))
        same.append(p.argmax(1) == q.argmax(1))
    values = np.concatenate(kl)
    return {
        "mean_kl": float(values.mean()),
        "p99_kl": float(np.quantile(values, 0.99)),
        "same": float(np.concatenate(same).mean()),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted: np.ndarray = logits - logits.max(1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(1, keepdims=True))
    return shifted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument(
        "--quant", action="append", default=[], metavar="TYPE", help="as llama.cpp calls it: Q4_K_S, Q5_K_S, Q6_K"
    )
    parser.add_argument("--kv-type", default="f16", help="of openvino; llama.cpp has f16")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "README.md", help="what is read")
    parser.add_argument("--tokens", type=int, default=512, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    text, found = given.text.read_text("utf-8"), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in given.models:
            for kind in given.quant or [""]:
                path = model
                if kind:
                    path = folder / f"{model.stem}-{kind}.gguf"
                    rewrite(model, folder / "wide.gguf", widen=True)
                    quantise(folder / "wide.gguf", path, kind)
                rewrite(path, folder / "exact.gguf")
                exact = read(folder / "exact.gguf", "llamacpp", "f16", text, given.tokens)
                logits = {
                    engine: read(path, engine, given.kv_type if engine == "openvino" else "f16", text, given.tokens)
                    for engine in ENGINES
                }
                pairs = [(engine, "exact", exact) for engine in ENGINES] + [("openvino", "llamacpp", logits["llamacpp"])]
                for engine, reference, theirs in pairs:
                    row = {"model": path.stem, "engine": engine, "reference": reference, **compare(logits[engine], theirs)}
                    found.append(row)
                    print(
                        f"{path.stem}  {engine} to {reference}: mean KL {row['mean_kl']:.5f}, p99 {row['p99_kl']:.4f}, "
                        f"same first choice {100 * float(row['same']):.1f} %",
                        flush=True,
                    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
