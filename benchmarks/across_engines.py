#!/usr/bin/env python3
"""Prefill on one engine, go on with another: what the next tokens lose, and what it saves.

    python benchmarks/across_engines.py --model model.gguf [--lengths 512,1024] [--steps 64] [--rounds 3] [--json FILE]

Two engines prefill the same tokens of several texts. Then each goes on from its own keys and values and from the other one's,
and is shown the same tokens one by one: the table has the divergence of its next-token distributions (KL, nats) and how often
the first choice is the same. For comparison, each engine also goes on from what it prefilled itself in other chunks (100 tokens
at a time).

Times are medians over the texts and rounds, in which the ways take turns: an engine's own prefill, and the other one's prefill,
export and import. Decode, too: where the engine that prefills fastest also decodes fastest, two engines side by side gain
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge.backends.base import Backend, open_backend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / name for name in ("docs/kv.md", "README.md", "edge/engine/scheduler.py", "docs/structured.md")]
BLOCK, OTHER_CHUNK = 128, 100


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def show(backend: Backend, tokens: list[int]) -> np.ndarray:
    """Show tokens one by one; return the logarithms of the next token's probabilities after each."""
    rows = []
    for token in tokens:
        backend.decode([(0, token)])
        rows.append(backend.logits(0))
    return log_softmax(np.stack(rows))


class Clock:
    """Milliseconds by name."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, work: Callable[..., T], *arguments: Any) -> T:
        started = time.perf_counter()
        result = work(*arguments)
        self.times[name].append((time.perf_counter() - started) * 1000)
        return result

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])


def prefill(backend: Backend, tokens: list[int], chunk: int | None = None) -> None:
    backend.rewind(0, 0)
    for start in range(0, len(tokens), chunk or len(tokens)):
        backend.prefill(0, tokens[start : start + (chunk or len(tokens))])


def export(backend: Backend, n: int) -> list[bytes]:
    return [backend.export_kv(0, start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def take(backend: Backend, blocks: list[bytes]) -> None:
    backend.rewind(0, 0)
    for block in blocks:
        backend.import_kv(0, block)


def measure(backends: dict[str, Backend], n: int, n_steps: int, rounds: int) -> dict[str, Any]:
    clock = Clock()
    pairs: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    tokenizer = next(iter(backends.values())).tokenizer
    for text in TEXTS:
        tokens = tokenizer.tokenize(text.read_text("utf-8"))[: n + n_steps]
        if len(tokens) < n + n_steps:
            print(f"{text.name} is too short for {n} tokens", file=sys.stderr)
            continue
        prompt, rest = tokens[:n], tokens[n:]
        blocks, own = {}, {}
        for _ in range(rounds):
            for name, backend in backends.items():
                clock.time(f"{name} prefill", prefill, backend, prompt)
                blocks[name] = clock.time(f"{name} export", export, backend, n)
            for name, backend in backends.items():
                for other, theirs in blocks.items():
                    clock.time(f"{other} to {name}", take, backend, theirs)
        for name, backend in backends.items():
            take(backend, blocks[name])
            own[name] = clock.time(f"{name} decode", show, backend, rest)
        for name, backend in backends.items():
            for other in backends:
                if other != name:
                    take(backend, blocks[other])
                    pairs[name, f"prefilled by {other}"].append((own[name], show(backend, rest)))
                    pairs[name, f"{other} as a whole"].append((own[name], own[other]))
            prefill(backend, prompt, OTHER_CHUNK)
            pairs[name, f"its own, in chunks of {OTHER_CHUNK}"].append((own[name], show(backend, rest)))
    rows = []
    for (name, what), found in pairs.items():
        kl = np.concatenate([(np.exp(a) * (a - b)).sum(-1) for a, b in found])
        same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in found])
        rows.append({
            "engine": name, "instead": what, "kl": float(kl.mean()), "kl_p99": float(np.percentile(kl, 99)),
            "top1": float(same.mean()), "n": len(kl),
        })  # fmt: skip
    return {"n_tokens": n, "rows": rows, "ms": {name: clock.median(name) for name in clock.times}, "n_steps": n_steps}


def report(result: dict[str, Any], names: list[str]) -> None:
    n, ms = result["n_tokens"], result["ms"]
    print(f"\n{n} tokens prefilled, {result['n_steps']} shown\n")
    print("| engine that goes on | instead of its own prefill | KL, mean | KL, 99 % | same first choice |")
    print("|---|---|---:|---:|---:|")
    for row in result["rows"]:
        print(f"| {row['engine']} | {row['instead']} | {row['kl']:.4f} | {row['kl_p99']:.4f} | {row['top1']:.1%} |")
    print(
        "\n| engine that goes on | own prefill | prefill by the other one + export + import | times faster | decode, tokens/s |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, other in zip(names, reversed(names), strict=True):
        whole = ms[f"{other} prefill"], ms[f"{other} export"], ms[f"{other} to {name}"]
        print(
            f"| {name} | {ms[f'{name} prefill']:,.0f} ms | {other}: {whole[0]:,.0f} + {whole[1]:.1f} + {whole[2]:.1f} ms "
            f"| {ms[f'{name} prefill'] / sum(whole):.2f} | {1000 * result['n_steps'] / ms[f'{name} decode']:.0f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=os.environ.get("EDGE_TEST_MODEL"), help="GGUF file")
    parser.add_argument("--engines", default="llamacpp,openvino", help="two engines, with a comma")
    parser.add_argument("--lengths", default="512,1024", help="tokens that are prefilled, with commas")
    parser.add_argument("--steps", type=int, default=64, help="tokens that are shown one by one")
    parser.add_argument("--rounds", type=int, default=3, help="of the times")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    options = parser.parse_args()
    if not options.model:
        parser.error("give --model, or set EDGE_TEST_MODEL")
    names, lengths = options.engines.split(","), [int(length) for length in options.lengths.split(",")]
    artifact, context = open_artifact(options.model), max(lengths) + options.steps + 64
    backends = {}
    for name in names:
        request = PlanRequest(backend=name, require="cpu", context=context, threads=options.threads, n_seq=1)
        backends[name] = open_backend(make_plan(probe(), artifact, request, safety=None))
    if len(names) != 2 or len({backend.neutral for backend in backends.values()} - {None}) != 1:
        parser.error("these engines do not share keys and values of this model")
    results = []
    for length in lengths:
        results.append(measure(backends, length, options.steps, options.rounds))
        report(results[-1], names)
    if options.json:
        options.json.write_text(json.dumps({"load_average": os.getloadavg()[0], "results": results}, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
