#!/usr/bin/env python3
"""Builds of llama.cpp and layouts of weights against each other: prefill of 512 tokens, and decode.

    python benchmarks/builds.py --model model.gguf                                  the installed build, repacking on and off
    python benchmarks/builds.py --model model.gguf --build generic=wheel-or-folder  another one beside it

Builds come from `python tools/build_llama.py --wheel-only --cmake-arg=-DNAME=VALUE`. Every combination gets a process of its
own that loads once; they are then asked for one measurement after the other, round and round, so that whatever else the
machine does falls on all of them alike. What counts are the ratios to the first row of each kind of weights.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FTYPES = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K_M": 15, "IQ4_NL": 25}
N_PREFILL, N_DECODE = 512, 16
TASKS = ("prefill", "decode")


@dataclass(frozen=True)
class Case:
    """One row: a build, a file and whether weights may be repacked."""

    build: str
    library: str
    weights: str
    model: str
    use_extra_buffers: bool

    @property
    def name(self) -> str:
        return f"{self.build}{'' if self.use_extra_buffers else ', no extra buffers'}"


# -- the worker: one case, measured whenever a line comes in


def load_binding() -> Any:
    from edge.backends.llamacpp.library import load_library

    return load_library()


def work(model_path: str, use_extra_buffers: bool, n_threads: int) -> None:
    """Read "prefill" or "decode" from stdin, write [seconds, processor seconds] a token to stdout; until stdin ends."""
    library = load_binding()
    params = library.llama_model_default_params()
    no_devices = (ctypes.c_void_p * 1)(None)
    params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    params.n_gpu_layers, params.use_extra_bufts = 0, use_extra_buffers
    model = library.llama_model_load_from_file(os.fsencode(model_path), params)
    settings = library.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = N_PREFILL + 256, N_PREFILL, N_PREFILL
    settings.n_threads = settings.n_threads_batch = n_threads
    context = library.llama_init_from_model(model, settings)
    memory = library.llama_get_memory(context)
    prompt = (ctypes.c_int32 * N_PREFILL)(*(100 + 7 * n % 5000 for n in range(N_PREFILL)))
    token = (ctypes.c_int32 * 1)(100)
    library.llama_decode(context, library.llama_batch_get_one(prompt, N_PREFILL))
    print(json.dumps(library.llama_print_system_info().decode()), flush=True)
    for line in sys.stdin:
        task = line.strip()
        # Decode goes on behind a short prompt, so that it is the weights that are read and not a long cache.
        library.llama_memory_clear(memory, False)
        if task == "decode":
            library.llama_decode(context, library.llama_batch_get_one(prompt, 32))
            library.llama_synchronize(context)
        started, started_cpu = time.perf_counter(), time.process_time()
        if task == "prefill":
            library.llama_decode(context, library.llama_batch_get_one(prompt, N_PREFILL))
            library.llama_synchronize(context)
        else:
            for _ in range(N_DECODE):
                library.llama_decode(context, library.llama_batch_get_one(token, 1))
                library.llama_synchronize(context)
        n_tokens = N_PREFILL if task == "prefill" else N_DECODE
        times = (time.perf_counter() - started) / n_tokens, (time.process_time() - started_cpu) / n_tokens
        print(json.dumps(times), flush=True)


class Worker:
    """The process of one case."""

    def __init__(self, case: Case, n_threads: int) -> None:
        command = [sys.executable, __file__, "--worker", case.model, str(int(case.use_extra_buffers)), str(n_threads)]
        environ = {**os.environ, "LLAMA_CPP_LIB_PATH": case.library} if case.library else None
        self.case = case
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        self.system_info: str = self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(f"{self.case.name} with {self.case.weights} died (code {code})")
        return json.loads(line)

    def ask(self, task: str) -> tuple[float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        wall, cpu = self.read()
        return wall, cpu

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


# -- the parent


def library_folder(source: str, scratch: Path) -> str:
    """Return the folder with libllama of a wheel or folder; "" for the installed one."""
    path = Path(source)
    if path.is_dir():
        return str(path)
    target = scratch / path.stem
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(target, [name for name in wheel.namelist() if name.startswith("llama_cpp/lib/")])
    return str(target / "llama_cpp/lib")


def requantise(model: Path, weights: str, scratch: Path) -> str:
    """Return the model with other weights, made from what it has. Worse as a model; as fast as a good one."""
    target = scratch / f"{model.stem}.{weights}.gguf"
    if not target.exists():
        library = load_binding()
        params = library.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = FTYPES[weights], True
        code = library.llama_model_quantize(os.fsencode(model), os.fsencode(target), ctypes.byref(params))
        if code != 0:
            raise SystemExit(f"llama.cpp could not make {weights} of {model}")
    return str(target)


def measure(workers: list[Worker], n_rounds: int) -> dict[tuple[Case, str], list[tuple[float, float]]]:
    """Measure every case and task, in rounds that go forwards and backwards."""
    times: dict[tuple[Case, str], list[tuple[float, float]]] = {}
    for n in range(n_rounds):
        for task in TASKS:
            for worker in workers if n % 2 == 0 else reversed(workers):
                times.setdefault((worker.case, task), []).append(worker.ask(task))
        sys.stderr.write(f"round {n + 1} of {n_rounds}\n")
    return times


def summarise(cases: list[Case], times: dict[tuple[Case, str], list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Return a row a case: tokens/s, and speed relative to the first case with the same weights and to the very first."""
    rows = []
    for case in cases:
        first = next(other for other in cases if other.weights == case.weights)
        row: dict[str, Any] = {"weights": case.weights, "build": case.name}
        for task in TASKS:
            mine = times[case, task]
            row[f"{task}_tokens_per_s"] = round(1 / statistics.median(wall for wall, _ in mine), 1)
            for label, other in (("ratio", first), ("overall", cases[0])):
                ratios = [theirs[1] / ours[1] for theirs, ours in zip(times[other, task], mine, strict=True)]
                row[f"{task}_{label}"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return rows


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL"), help="a GGUF file (default: EDGE_TEST_MODEL)")
    parser.add_argument("--build", action="append", default=[], metavar="NAME=WHEEL|FOLDER", help="one more build")
    parser.add_argument("--weights", default="Q4_1,Q4_0,Q8_0", help=f"of {', '.join(FTYPES)} (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--extra", choices=["both", "on", "off"], default="both", help="repacked weights")
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    if not given.model:
        parser.error("say which model: --model path/to/model.gguf")
    with tempfile.TemporaryDirectory(prefix="edge-builds-") as folder:
        scratch = Path(folder)
        builds = {"installed": ""}
        for text in given.build:
            name, _, source = text.partition("=")
            builds[name] = library_folder(source, scratch)
        files = {weights: requantise(Path(given.model), weights, scratch) for weights in given.weights.split(",")}
        extras = {"both": (True, False), "on": (True,), "off": (False,)}[given.extra]
        cases = [
            Case(name, library, weights, path, extra)
            for weights, path in files.items()
            for name, library in builds.items()
            for extra in extras
        ]
        workers = [Worker(case, given.threads) for case in cases]
        try:
            rows = summarise(cases, measure(workers, given.rounds))
        finally:
            for worker in workers:
                worker.close()
    infos = {worker.case.build: worker.system_info for worker in workers}
    result = {"model": Path(given.model).name, "threads": given.threads, "rounds": given.rounds, "builds": infos, "rows": rows}
    print("Ratios of speed by processor time, medians over rounds. 'of first': to the first row of the same weights.\n")
    print("| weights | build | prefill t/s | of first | overall | decode t/s | of first | overall |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        figures = [row[f"{task}_{what}"] for task in TASKS for what in ("tokens_per_s", "ratio", "overall")]
        print(f"| {row['weights']} | {row['build']} | " + " | ".join(f"{figure:g}" for figure in figures) + " |")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
