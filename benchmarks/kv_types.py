#!/usr/bin/env python3
"""Measure the types of keys and values: bytes, speed, and how far the next token moves away from f16's.

    python benchmarks/kv_types.py --model path/to/model.gguf [--context 1024] [--steps 64] [--rounds 5] [--json kv_types.json]

Each type reads the same text and is then shown the same tokens, one by one; its logits are compared with those of f16 at each
step.
Speeds are medians over rounds in which the types take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.backends.llamacpp.backend import LlamaCppBackend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan

TYPES = [("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "q4_0")]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("EDGE_TEST_MODEL"), help="GGUF file")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "docs" / "kv.md", help="what is read")
    parser.add_argument("--context", type=int, default=1024, help="tokens that are read first")
    parser.add_argument("--steps", type=int, default=64, help="tokens that are shown one by one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    request = PlanRequest(backend="llamacpp", require="cpu", context=options.context + options.steps + 8, n_seq=1)
    plan = make_plan(probe(), open_artifact(options.model), request, safety=None)
    backends = {names: LlamaCppBackend(replace(plan, kv_type_k=names[0], kv_type_v=names[1])) for names in TYPES}
    tokens = next(iter(backends.values())).tokenizer.tokenize(options.text.read_text("utf-8"))[
        : options.context + options.steps
    ]
    prompt, shown = tokens[: options.context], tokens[options.context :]
    seen: dict[Any, list[np.ndarray]] = {names: [] for names in TYPES}
    reading: dict[Any, list[float]] = {names: [] for names in TYPES}
    decoding: dict[Any, list[float]] = {names: [] for names in TYPES}
    n_bytes = {}
    for number in range(options.rounds):
        for names, backend in backends.items():
            backend.rewind(0, 0)
            started = time.perf_counter()
            backend.prefill(0, prompt)
            read = time.perf_counter()
            for token in shown:
                backend.decode([(0, token)])
                logits = backend.logits(0)
                if number == 0:
                    seen[names].append(log_softmax(logits))
            reading[names].append(len(prompt) / (read - started))
            decoding[names].append(len(shown) / (time.perf_counter() - read))
            n_bytes[names] = len(backend.export_kv(0, 0, options.context)) / options.context
    rows = []
    for names in TYPES:
        pairs = list(zip(seen[TYPES[0]], seen[names], strict=True))
        rows.append(
            {
                "k": names[0],
                "v": names[1],
                "bytes_per_token": n_bytes[names],
                "prefill": statistics.median(reading[names]),
                "decode": statistics.median(decoding[names]),
                "kl": float(np.mean([(np.exp(a) * (a - b)).sum() for a, b in pairs])),
                "top1": float(np.mean([a.argmax() == b.argmax() for a, b in pairs])),
            }
        )
    print("| K | V | bytes a token | prefill | decode | mean KL to f16 | same first choice |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        speeds = [f"{row[name] / rows[0][name]:.2f}" for name in ("prefill", "decode")]
        print(
            f"| {row['k']} | {row['v']} | {row['bytes_per_token']:,.0f} | {speeds[0]} | {speeds[1]} | "
            f"{row['kl']:.4f} | {row['top1']:.1%} |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
