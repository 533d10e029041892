#!/usr/bin/env python3
"""Decode speed through our loops against llama.cpp's own benchmark loop, at the same settings, in one run.

    python benchmarks/decode_loop.py --model path/to/model.gguf [--rounds 60] [--threads 1] [--json decode_loop.json]

The library's loop is that of llama-bench: llama_decode of one token, llama_synchronize, in a plain context. Ours choose every
token, ask whether it ends the reply and turn it into bytes; the last one goes through the scheduler and its thread, as a chat
does. The loops take turns every few tokens, so that whatever else the machine does falls on all of them alike; what counts is
the median of the ratios of neighbours, not the tokens per second.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.backends.llamacpp.backend import LlamaCppBackend
from edge.backends.llamacpp.library import load_library
from edge.device import probe
from edge.engine.generation import Decoded, Failed, Finished, Generation
from edge.engine.scheduler import Scheduler
from edge.formats.artifact import open_artifact
from edge.plan import Plan, PlanRequest, make_plan
from edge.types import Sampling

PROMPT = "Here are the numbers from one to a thousand: " + ", ".join(str(n) for n in range(1, 40)) + ","
LIBRARY = "llama.cpp's own loop"
GREEDY, DEFAULT = Sampling(temperature=0.0), Sampling(seed=1)


Times = tuple[float, float]
"""(seconds of wall clock, seconds of processor time of all threads)"""


def now() -> Times:
    return time.perf_counter(), time.process_time()


def since(started: Times, n_tokens: int) -> Times:
    wall, cpu = now()
    return (wall - started[0]) / n_tokens, (cpu - started[1]) / n_tokens


class LibraryLoop:
    """The loop of `llama-bench -n`: nothing but passes."""

    def __init__(self, plan: Plan, prompt: list[int]) -> None:
        library = self.library = load_library()
        params = library.llama_model_default_params()
        no_devices = (ctypes.c_void_p * 1)(None)
        if plan.accelerator == "cpu":
            params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        params.n_gpu_layers, params.use_extra_bufts = plan.gpu_layers, plan.use_extra_buffers
        self.model = library.llama_model_load_from_file(os.fsencode(plan.artifact.path), params)
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = plan.n_ctx, plan.n_batch, plan.n_ubatch
        settings.n_threads, settings.n_threads_batch = plan.n_threads, plan.n_threads_batch
        settings.flash_attn_type = int(plan.flash_attention)
        self.context = library.llama_init_from_model(self.model, settings)
        self.n_prompt = len(prompt)
        self.token = (ctypes.c_int32 * 1)(prompt[-1])
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        library.llama_decode(self.context, library.llama_batch_get_one(tokens, len(prompt)))
        library.llama_synchronize(self.context)

    def run(self, n_tokens: int) -> Times:
        library, context, token = self.library, self.context, self.token
        library.llama_memory_seq_rm(library.llama_get_memory(context), 0, self.n_prompt, -1)
        started = now()
        for n in range(n_tokens):
            token[0] = 100 + n
            library.llama_decode(context, library.llama_batch_get_one(token, 1))
            library.llama_synchronize(context)
        return since(started, n_tokens)

    def close(self) -> None:
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)


class OurLoop:
    """Sample, end?, bytes, decode: what every engine of ours does for a token."""

    def __init__(self, plan: Plan, prompt: list[int], sampling: Sampling) -> None:
        self.backend = LlamaCppBackend(plan)
        self.prompt = prompt
        self.sampler = self.backend.open_sampler(sampling, prompt)
        self.backend.prefill(0, prompt)

    def run(self, n_tokens: int) -> Times:
        backend, sampler = self.backend, self.sampler
        backend.rewind(0, len(self.prompt) - 1)
        backend.prefill(0, self.prompt[-1:])
        backend.logits(0)
        started = now()
        for _ in range(n_tokens):
            token = sampler.sample(0)
            backend.tokenizer.is_end(token)
            backend.tokenizer.token_bytes(token)
            backend.decode([(0, token)])
        # The library's loop waits for its last pass; so does this one.
        backend.logits(0)
        return since(started, n_tokens)

    def close(self) -> None:
        self.sampler.close()
        self.backend.close()


class SchedulerLoop:
    """The engine thread with queue, text stream and stop texts: from the first piece of text to the end of the reply."""

    def __init__(self, plan: Plan, prompt: list[int], sampling: Sampling) -> None:
        self.scheduler = Scheduler(LlamaCppBackend(plan))
        self.prompt, self.sampling = prompt, sampling
        self.run(4)

    def run(self, n_tokens: int) -> Times:
        done = threading.Event()
        times: list[Times] = []
        events: list[Any] = []

        def listen(event: Any) -> None:
            if isinstance(event, Decoded):
                times.append(now())
            elif isinstance(event, Finished | Failed):
                events.append(event)
                done.set()

        sampling = replace(self.sampling, max_tokens=n_tokens + 1)
        self.scheduler.submit(Generation(list(self.prompt), sampling, listen))
        done.wait()
        if isinstance(events[0], Failed):
            raise events[0].error
        if len(times) != n_tokens + 1:
            raise SystemExit(f"the reply had {len(times)} pieces, not {n_tokens + 1}: choose another prompt")
        (first, first_cpu), (last, last_cpu) = times[0], times[-1]
        return (last - first) / n_tokens, (last_cpu - first_cpu) / n_tokens

    def close(self) -> None:
        self.scheduler.close()


def measure(loops: dict[str, Any], n_rounds: int, n_tokens: int) -> dict[str, list[Times]]:
    """Measure a token for every loop and round. The loops take turns, forwards and backwards; each run starts at the prompt."""
    names = list(loops)
    seconds: dict[str, list[Times]] = {name: [] for name in names}
    for n in range(n_rounds):
        for name in names if n % 2 == 0 else reversed(names):
            seconds[name].append(loops[name].run(n_tokens))
        if sys.stderr.isatty():
            sys.stderr.write(f"\r  round {n + 1} of {n_rounds}")
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 40 + "\r")
    return seconds


def summarise(seconds: dict[str, list[Times]]) -> list[dict[str, Any]]:
    """Return one row a loop: tokens a second, and the median and quartiles of its ratio to the library's loop."""
    reference = seconds[LIBRARY]
    rows = []
    for name, values in seconds.items():
        ratios = sorted(theirs[0] / ours[0] for theirs, ours in zip(reference, values, strict=True))
        cpu_ratios = [theirs[1] / ours[1] for theirs, ours in zip(reference, values, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "loop": name,
                "tokens_per_s": round(1 / statistics.median(wall for wall, _ in values), 2),
                "ratio": round(statistics.median(ratios), 4),
                "ratio_quartiles": [round(low, 4), round(high, 4)],
                "cpu_ratio": round(statistics.median(cpu_ratios), 4),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"), help="a GGUF file (default: EDGE_TEST_MODEL)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=8, help="tokens a turn")
    parser.add_argument("--threads", type=int, default=None, help="default: what the plan chooses")
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    if not given.model:
        parser.error("say which model: --model path/to/model.gguf")
    request = PlanRequest(threads=given.threads, context=1024, n_seq=1)
    plan = make_plan(probe(), open_artifact(given.model), request)
    with LlamaCppBackend(plan) as backend:
        prompt = backend.tokenizer.tokenize(PROMPT)
    makers: dict[str, Callable[[], Any]] = {
        LIBRARY: lambda: LibraryLoop(plan, prompt),
        "backend, greedy": lambda: OurLoop(plan, prompt, GREEDY),
        "backend, default sampling": lambda: OurLoop(plan, prompt, DEFAULT),
        "scheduler, greedy": lambda: SchedulerLoop(plan, prompt, GREEDY),
    }
    loops = {name: make() for name, make in makers.items()}
    try:
        rows = summarise(measure(loops, given.rounds, given.tokens))
    finally:
        for loop in loops.values():
            loop.close()
    result = {
        "model": Path(given.model).name,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "threads": plan.n_threads,
        "rounds": given.rounds,
        "tokens_per_round": given.tokens,
        "unit_of_ratios": "speed of the loop over speed of llama.cpp's own loop, median over rounds",
        "rows": rows,
    }
    print(f"{result['model']}, {plan.n_threads} threads, {given.rounds} rounds of {given.tokens} tokens\n")
    print(f"{'loop':<28}{'tokens/s':>10}{'ratio':>9}   {'quartiles':<16}{'CPU ratio':>9}")
    for row in rows:
        quartiles = "{:.3f} to {:.3f}".format(*row["ratio_quartiles"])
        figures = f"{row['tokens_per_s']:>10.1f}{row['ratio']:>9.3f}   {quartiles:<16}{row['cpu_ratio']:>9.3f}"
        print(f"{row['loop']:<28}{figures}")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
