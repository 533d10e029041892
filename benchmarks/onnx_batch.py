#!/usr/bin/env python3
"""Several replies at once on the ONNX backend: in one pass against one after another, in turns, in one process.

    python benchmarks/onnx_batch.py --model out/onnx-int4 [--sequences 1 2 4] [--lengths 64] [--rounds 40] [--threads 1]

Both ways use the same backend, session and keys and values. They take turns every few tokens, forwards and backwards, so that
whatever else the machine does falls on both alike; what counts is the median of the ratios within a round, of the time and
of the processor time ("cpu"), which other programs hardly change. After that both ways are given the same replies, and the
largest difference of their logits is told.

`--gap` leaves every other sequence idle, which is then computed along; `--reopen` measures what other threads cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.backends.onnx.backend import OnnxBackend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.plan import PlanRequest, make_plan

N_STEPS, N_CTX = 8, 2048


def prompt_of(backend: OnnxBackend, seq_id: int, n_tokens: int) -> list[int]:
    return [3 + (7919 * n + 104729 * seq_id) % (backend.info.n_vocab - 3) for n in range(n_tokens)]


def write(backend: OnnxBackend, sequences: list[int], n_steps: int, *, is_batched: bool) -> None:
    """Decode greedily for all sequences."""
    for _ in range(n_steps):
        decode(backend, [(seq_id, int(backend.logits(seq_id).argmax())) for seq_id in sequences], is_batched=is_batched)


def decode(backend: OnnxBackend, steps: list[tuple[int, int]], *, is_batched: bool) -> None:
    """Decode one step for all sequences in one pass, or in a pass each."""
    for part in [steps] if is_batched else [[step] for step in steps]:
        backend.decode(part)


def agreement(backend: OnnxBackend, sequences: list[int], lengths: list[int], n_steps: int) -> dict[str, Any]:
    """Compare the two ways while both are given the tokens that one of them chose."""
    replies: list[list[tuple[int, int]]] = []
    seen: dict[bool, list[npt.NDArray[np.float32]]] = {}
    for is_batched in (False, True):
        read(backend, sequences, lengths)
        logits = seen[is_batched] = []
        for n in range(n_steps):
            if not is_batched:
                replies.append([(seq_id, int(backend.logits(seq_id).argmax())) for seq_id in sequences])
            decode(backend, replies[n], is_batched=is_batched)
            logits += [backend.logits(seq_id) for seq_id in sequences]
    pairs = list(zip(seen[False], seen[True], strict=True))
    return {
        "steps": n_steps,
        "largest_difference": round(max(float(np.abs(one - other).max()) for one, other in pairs), 4),
        "spread_of_logits": round(statistics.mean(float(one.std()) for one, _ in pairs), 2),
        "same_choice": sum(int(one.argmax() == other.argmax()) for one, other in pairs) / len(pairs),
    }


def read(backend: OnnxBackend, sequences: list[int], lengths: list[int]) -> None:
    for seq_id in range(backend.capabilities.n_seq):
        backend.rewind(seq_id, 0)
    for seq_id, n_tokens in zip(sequences, lengths, strict=True):
        backend.prefill(seq_id, prompt_of(backend, seq_id, n_tokens))


def measure(backend: OnnxBackend, sequences: list[int], lengths: list[int], n_rounds: int) -> dict[str, Any]:
    read(backend, sequences, lengths)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    for n in range(n_rounds):
        for is_batched in (False, True) if n % 2 == 0 else (True, False):
            for seq_id, n_tokens in zip(sequences, lengths, strict=True):
                backend.rewind(seq_id, n_tokens - 1)
                backend.prefill(seq_id, prompt_of(backend, seq_id, n_tokens)[-1:])
            started, began = time.perf_counter(), time.process_time()
            write(backend, sequences, N_STEPS, is_batched=is_batched)
            seconds[is_batched].append((time.perf_counter() - started) / N_STEPS)
            cpu[is_batched].append((time.process_time() - began) / N_STEPS)
    row: dict[str, Any] = {"sequences": sequences}
    for name, values in (("", seconds), ("cpu_", cpu)):
        ratios = [alone / together for alone, together in zip(values[False], values[True], strict=True)]
        low, middle, high = (round(ratio, 3) for ratio in statistics.quantiles(ratios, n=4))
        row |= {f"{name}ratio": middle, f"{name}quartiles": [low, high]}
        for way, key in (("one_after_another", False), ("in_one_pass", True)):
            row[f"{name}tokens_per_s_{way}"] = round(len(sequences) / statistics.median(values[key]), 1)
    return row


def reopen(backend: OnnxBackend, n_times: int) -> dict[str, Any]:
    """Measure how much longer the first pass takes after the number of threads has changed."""
    backend.rewind(0, 0)
    backend.prefill(0, prompt_of(backend, 0, 64))
    took: list[float] = []
    plain: list[float] = []
    worked: list[float] = []
    for n in range(n_times):
        for times, threads in ((plain, None), (took, 1 + n % 2)):
            if threads:
                backend.set_threads(threads, threads)
            started, began = time.perf_counter(), time.process_time()
            backend.decode([(0, 50)])
            times.append(time.perf_counter() - started)
            if threads:
                worked.append(time.process_time() - began)
    return {
        "reopen_s": round(statistics.median(took) - statistics.median(plain), 3),
        "reopen_cpu_s": round(statistics.median(worked), 3),
        "times": n_times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--lengths", type=int, default=64, help="tokens of the first prompt; each further one has half as many more"
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gap", action="store_true")
    parser.add_argument("--reopen", type=int, default=0, metavar="TIMES")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    step = 2 if given.gap else 1
    n_seq = step * max(given.sequences)
    request = PlanRequest(context=N_CTX, threads=given.threads, n_seq=n_seq)
    with OnnxBackend(make_plan(probe(), open_artifact(given.model), request)) as backend:
        results: dict[str, Any] = {"model": str(given.model), "threads": given.threads, **backend.info.details}
        rows = results["rows"] = []
        for count in given.sequences:
            sequences = [step * n for n in range(count)]
            lengths = [given.lengths + n * given.lengths // 2 for n in range(count)]
            row = measure(backend, sequences, lengths, given.rounds)
            if count > 1:
                row |= agreement(backend, sequences, lengths, 32)
            rows.append(row)
            print(json.dumps(row))
        if given.reopen:
            results["reopen"] = reopen(backend, given.reopen)
            print(json.dumps(results["reopen"]))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
