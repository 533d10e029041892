#!/usr/bin/env python3
"""The ONNX backend against a bare onnxruntime loop and against onnxruntime-genai's generator, in turns, in one process.

    python benchmarks/onnx_loop.py --model out/onnx-int4 [--rounds 40] [--threads 1] [--json onnx_loop.json]

  edge                 the backend: chooses every token greedily, asks whether it ends the reply, turns it into bytes
  bare onnxruntime     one session with its defaults, keys and values in place, argmax: nothing but passes
  onnxruntime-genai    its generator, greedy, with its defaults

Decode takes turns every few tokens, prefill every chunk; the order turns round each time. What counts is the median of the
ratios within a round, not the tokens per second, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge.backends.onnx.backend import OnnxBackend
from edge.device import probe
from edge.formats.artifact import open_artifact
from edge.formats.onnx import OnnxFolder, read_onnx_folder
from edge.plan import PlanRequest, make_plan
from edge.types import Sampling

N_CTX, N_PROMPT, N_STEPS, CHUNK = 2048, 256, 8, 128


class Edge:
    name = "edge"

    def __init__(self, path: Path, threads: int) -> None:
        request = PlanRequest(context=N_CTX, threads=threads, n_seq=1, n_ubatch=CHUNK)
        self.backend = OnnxBackend(make_plan(probe(), open_artifact(path), request))
        self.sampler = self.backend.open_sampler(Sampling(temperature=0))

    def read(self, tokens: list[int]) -> None:
        self.backend.rewind(0, 0)
        self.backend.prefill(0, tokens)

    def write(self, n_tokens: int) -> list[int]:
        written = []
        for _ in range(n_tokens):
            token = self.sampler.sample(0)
            self.backend.tokenizer.is_end(token)
            self.backend.tokenizer.token_bytes(token)
            self.backend.decode([(0, token)])
            written.append(token)
        return written


class Bare:
    name = "bare onnxruntime"

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime as ort

        self.folder: OnnxFolder = read_onnx_folder(path)
        if not self.folder.shares_buffer:
            raise SystemExit(f"{path} does not keep past and present in one buffer.")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(self.folder.model, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.shape = [1, self.folder.n_head_kv, N_CTX, self.folder.head_dim]
        self.kv = np.zeros((2, self.folder.n_layer, *self.shape), np.float32)
        names = ((self.folder.past_key, self.folder.present_key), (self.folder.past_value, self.folder.present_value))
        for part, (past, present) in enumerate(names):
            for layer in range(self.folder.n_layer):
                address = self.kv[part, layer].ctypes.data
                self.binding.bind_input(past[layer], "cpu", 0, np.float32, self.shape, address)
                self.binding.bind_output(present[layer], "cpu", 0, np.float32, self.shape, address)
        self.mask = np.ones((1, N_CTX), np.int64)
        self.logits = np.empty((1, CHUNK, self.folder.n_vocab), np.float32)
        self.length = 0

    def run(self, tokens: list[int]) -> None:
        ids, n = np.array([tokens]), len(tokens)
        self.length += n
        self.binding.bind_input("input_ids", "cpu", 0, np.int64, [1, n], ids.ctypes.data)
        self.binding.bind_input("attention_mask", "cpu", 0, np.int64, [1, self.length], self.mask.ctypes.data)
        self.binding.bind_output("logits", "cpu", 0, np.float32, [1, n, self.folder.n_vocab], self.logits.ctypes.data)
        self.session.run_with_iobinding(self.binding)
        self.newest = self.logits[0, n - 1]

    def read(self, tokens: list[int]) -> None:
        self.length = 0
        for start in range(0, len(tokens), CHUNK):
            self.run(tokens[start : start + CHUNK])

    def write(self, n_tokens: int) -> list[int]:
        written = []
        for _ in range(n_tokens):
            token = int(self.newest.argmax())
            self.run([token])
            written.append(token)
        return written


class Genai:
    name = "onnxruntime-genai"

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(str(path))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)
        self.generator: Any = None

    def read(self, tokens: list[int]) -> None:
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=N_CTX, do_sample=False)
        self.generator = self.og.Generator(self.model, params)
        self.generator.append_tokens(np.array([tokens], np.int32))

    def write(self, n_tokens: int) -> list[int]:
        written = []
        for _ in range(n_tokens):
            self.generator.generate_next_token()
            written.append(int(self.generator.get_next_tokens()[0]))
        return written


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    loops = [kind(given.model, given.threads) for kind in (Edge, Bare, Genai)]
    prompt = [3 + (7919 * n) % (loops[0].backend.info.n_vocab - 3) for n in range(N_PROMPT)]
    said = []
    for loop in loops:
        loop.read(prompt)
        said.append(loop.write(N_STEPS))
    print(f"the same {N_STEPS} tokens from all: {said[0] == said[1] == said[2]}")
    times: dict[str, dict[str, list[float]]] = {loop.name: {"prefill": [], "decode": []} for loop in loops}
    for n in range(given.rounds):
        order = loops if n % 2 == 0 else loops[::-1]
        if n % 8 == 0:  # also keeps the context short, so that all rounds are alike
            for loop in order:
                times[loop.name]["prefill"].append(timed(lambda loop=loop: loop.read(prompt)) / N_PROMPT)
        for loop in order:
            times[loop.name]["decode"].append(timed(lambda loop=loop: loop.write(N_STEPS)) / N_STEPS)
    result: dict[str, Any] = {"threads": given.threads, "rounds": given.rounds, "engines": {}}
    for what in ("prefill", "decode"):
        print(f"{what}:")
        ours = times["edge"][what]
        for loop in loops:
            theirs = times[loop.name][what]
            ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
            speed, ratio = 1 / statistics.median(theirs), statistics.median(ratios)
            low, high = statistics.quantiles(ratios, n=4)[::2] if loop.name != "edge" else (1.0, 1.0)
            print(f"  {loop.name:<18} {speed:8.1f} tokens/s   edge is {ratio:.3f} as fast ({low:.3f} to {high:.3f})")
            result["engines"].setdefault(loop.name, {})[what] = {"tokens_per_s": speed, "edge_ratio": ratio}
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
