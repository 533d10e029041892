#!/usr/bin/env python3
"""Edge's backends against the engines that they wrap, and against others: one run, in turns, each in a process of its own.

    python benchmarks/engines.py --gguf q4_0.gguf --gguf q4_k_m.gguf --onnx onnx-int4/
        [--openvino q4_0.gguf --openvino-python venv/bin/python] [--rounds 7] [--threads N] [--json FILE]

  edge, llamacpp        edge's backend on a GGUF: chooses every token, asks whether it ends the reply, turns it into bytes
  llama.cpp             the same library, settings and file, in the loop of llama-bench: nothing but passes
  edge, onnx            edge's backend on an ONNX folder
  onnxruntime-genai     its generator on the same folder
  edge, openvino        edge's backend on a GGUF given with --openvino
  edge, openvino, bf16  the same with keys and values as bf16, where the CPU has AMX
  openvino-genai        its LLMPipeline; give the Python of an environment that has it (pip install openvino-genai)
  openvino-genai, f32   the same without bfloat16 and with its KV cache in 16 bits, as the others compute

All read the same number of tokens and then write greedily behind them. openvino-genai keeps its KV cache in 8 bits and reuses
prompts unless told otherwise, so it gets another prompt each time; every other setting is each engine's own default.
A round goes over all engines, the next one backwards; ratios are taken within a round, medians over them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Times = tuple[float, float, float]
"""(seconds to read the prompt, to the first token, from there to the last)"""


@dataclass(frozen=True)
class Case:
    """One engine with one model. `wraps` names what an engine of edge is compared with."""

    engine: str
    path: str
    n_threads: int
    n_tokens: int
    python: str = sys.executable
    wraps: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine}, {Path(self.path).stem}"


# -- the engines, each in its own process


def prompt_of(n_vocab: int, n_prompt: int, seed: int) -> list[int]:
    return [3 + (7919 * (index + 131 * seed)) % (n_vocab - 3) for index in range(n_prompt)]


def edge_plan(case: Case, backend: str, kv_type: str | None = None) -> Any:
    from edge.config import load_settings
    from edge.device import probe
    from edge.formats.artifact import open_artifact
    from edge.plan import PlanRequest, make_plan
    from edge.plan.placement import safety_here
    from edge.registry import ENGINES

    device = probe()
    request = PlanRequest(
        backend=backend,
        require="cpu",
        context=case.n_tokens,
        threads=case.n_threads,
        n_seq=1,
        kv_type_k=kv_type,
        kv_type_v=kv_type,
    )
    safety = safety_here(device, ENGINES.values(), load_settings().paths.cache_dir)
    return make_plan(device, open_artifact(case.path), request, safety=safety)


class Edge:
    """Any backend of edge."""

    backend_name = ""
    kv_type: str | None = None

    def __init__(self, case: Case) -> None:
        from edge.backends import open_backend

        self.plan = edge_plan(case, self.backend_name, self.kv_type)
        self.backend = open_backend(self.plan)

    def run(self, n_prompt: int, n_decode: int, seed: int) -> Times:
        from edge.bench.measure import measure

        sample = measure(self.backend, n_prompt, n_decode)
        return sample.prefill_s, sample.first_token_s, sample.decode_s


class EdgeLlamaCpp(Edge):
    backend_name = "llamacpp"


class EdgeOnnx(Edge):
    backend_name = "onnx"


class EdgeOpenVino(Edge):
    backend_name = "openvino"


class EdgeOpenVinoBfloat16(EdgeOpenVino):
    kv_type = "bf16"


class LlamaCpp:
    """The work of llama-bench, with the settings that edge would choose."""

    def __init__(self, case: Case) -> None:
        from edge.backends.llamacpp.library import load_library

        plan = self.plan = edge_plan(case, "llamacpp")
        library = self.library = load_library()
        params = library.llama_model_default_params()
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        params.n_gpu_layers, params.use_extra_bufts = 0, plan.use_extra_buffers
        self.model = library.llama_model_load_from_file(os.fsencode(plan.artifact.path), params)
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = plan.n_ctx, max(2048, plan.n_ubatch), plan.n_ubatch
        settings.n_threads, settings.n_threads_batch = plan.n_threads, plan.n_threads_batch
        settings.flash_attn_type = int(plan.flash_attention)
        self.context = library.llama_init_from_model(self.model, settings)
        self.n_vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))

    def run(self, n_prompt: int, n_decode: int, seed: int) -> Times:
        library, context = self.library, self.context
        library.llama_memory_clear(library.llama_get_memory(context), False)
        tokens = (ctypes.c_int32 * n_prompt)(*prompt_of(self.n_vocab, n_prompt, 0))
        started = time.perf_counter()
        for first in range(0, n_prompt, 2048):
            part = (ctypes.c_int32 * min(2048, n_prompt - first))(*tokens[first : first + 2048])
            library.llama_decode(context, library.llama_batch_get_one(part, len(part)))
        library.llama_synchronize(context)
        is_read = time.perf_counter()
        token = (ctypes.c_int32 * 1)()
        for n in range(n_decode):
            token[0] = 100 + n
            library.llama_decode(context, library.llama_batch_get_one(token, 1))
            library.llama_synchronize(context)
        return is_read - started, is_read - started, time.perf_counter() - is_read


class OnnxGenai:
    """The generator of onnxruntime-genai."""

    def __init__(self, case: Case) -> None:
        import onnxruntime_genai as og

        config = og.Config(case.path)
        options = {"intra_op_num_threads": case.n_threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.og, self.model = og, og.Model(config)
        about = json.loads((Path(case.path) / "genai_config.json").read_text("utf-8"))
        self.n_vocab = about["model"]["vocab_size"]

    def run(self, n_prompt: int, n_decode: int, seed: int) -> Times:
        import numpy as np

        n_all = n_prompt + n_decode + 1
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, min_length=n_all, max_length=n_all)
        generator = self.og.Generator(self.model, params)
        tokens = np.array(prompt_of(self.n_vocab, n_prompt, 0), np.int32)
        started = time.perf_counter()
        generator.append_tokens(tokens)
        is_read = time.perf_counter()
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(n_decode):
            generator.generate_next_token()
        ended = time.perf_counter()
        assert len(generator.get_sequence(0)) == n_all
        return is_read - started, first - started, ended - first


class OpenVino:
    """The LLMPipeline of openvino-genai, which reads a GGUF or a folder in OpenVINO's own format."""

    options: dict[str, str] = {}  # noqa: RUF012 (nobody changes it)

    def __init__(self, case: Case) -> None:
        import openvino_genai as genai

        self.genai = genai
        self.pipeline = genai.LLMPipeline(case.path, "CPU", INFERENCE_NUM_THREADS=case.n_threads, **self.options)
        self.n_vocab = len(self.pipeline.get_tokenizer().get_vocab())

    def run(self, n_prompt: int, n_decode: int, seed: int) -> Times:
        import numpy as np
        import openvino as ov

        genai = self.genai

        class Clock(genai.StreamerBase):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.times: list[float] = []

            def write(self, tokens: Any) -> Any:
                count = len(tokens) if isinstance(tokens, list) else 1
                self.times += [time.perf_counter()] * count
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = genai.GenerationConfig(
            max_new_tokens=n_decode + 1, min_new_tokens=n_decode + 1, ignore_eos=True, do_sample=False
        )
        tokens = np.array([prompt_of(self.n_vocab, n_prompt, 1 + seed)], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        clock = Clock()
        started = time.perf_counter()
        self.pipeline.generate(inputs, config, clock)
        assert len(clock.times) == n_decode + 1, len(clock.times)
        first = clock.times[0] - started
        return first, first, clock.times[-1] - clock.times[0]


class OpenVinoExact(OpenVino):
    """The same, computing what the others compute: no bfloat16, keys and values in 16 bits."""

    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}  # noqa: RUF012 (as above)


ENGINES = {
    "edge, llamacpp": EdgeLlamaCpp,
    "llama.cpp": LlamaCpp,
    "edge, onnx": EdgeOnnx,
    "edge, openvino": EdgeOpenVino,
    "edge, openvino, bf16": EdgeOpenVinoBfloat16,
    "onnxruntime-genai": OnnxGenai,
    "openvino-genai": OpenVino,
    "openvino-genai, f32": OpenVinoExact,
}


def work(case: Case) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print
    engine: Any = ENGINES[case.engine](case)
    engine.run(32, 4, 0)
    answers.write("{}\n")
    answers.flush()
    for seed, line in enumerate(sys.stdin):
        request = json.loads(line)
        times = engine.run(request["n_prompt"], request["n_decode"], 1 + seed)
        answers.write(json.dumps({"times": times, "peak_bytes": peak_bytes()}) + "\n")
        answers.flush()


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


# -- the parent


class Worker:
    """The process of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        command = [case.python, __file__, "--worker", json.dumps(asdict(case))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.case.name} died (code {self.process.wait()})")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(self, n_prompt: int, n_decode: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"n_prompt": n_prompt, "n_decode": n_decode}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def cases(given: argparse.Namespace, n_threads: int) -> Iterator[Case]:
    from edge.device import probe

    n_tokens = max(1024, given.prompt + given.decode + 1)
    for path in given.gguf:
        yield Case("edge, llamacpp", path, n_threads, n_tokens, wraps="llama.cpp")
        yield Case("llama.cpp", path, n_threads, n_tokens)
    for path in given.onnx:
        yield Case("edge, onnx", path, n_threads, n_tokens, wraps="onnxruntime-genai")
        yield Case("onnxruntime-genai", path, n_threads, n_tokens)
    for path in given.openvino:
        if path.endswith(".gguf"):
            yield Case("edge, openvino", path, n_threads, n_tokens, wraps="openvino-genai, f32")
            if "amx_bf16" in probe().cpu.features:
                yield Case("edge, openvino, bf16", path, n_threads, n_tokens, wraps="openvino-genai")
        for engine in ("openvino-genai", "openvino-genai, f32"):
            yield Case(engine, path, n_threads, n_tokens, python=given.openvino_python)


def bytes_a_token(case: Case, n_past: float) -> int | None:
    from edge.bench.bandwidth import decode_bytes
    from edge.bench.process import setting_of
    from edge.formats.artifact import open_artifact

    if case.engine == "openvino-genai" and not case.path.endswith(".gguf"):
        return (Path(case.path) / "openvino_model.bin").stat().st_size
    backend = "llamacpp" if case.path.endswith(".gguf") else "onnx"
    return decode_bytes(open_artifact(case.path), setting_of(edge_plan(case, backend)), n_past)


def summarise(given: argparse.Namespace, found: dict[Case, list[dict[str, Any]]], bandwidth: float) -> list[dict[str, Any]]:
    decode = {case: [given.decode / answer["times"][2] for answer in answers] for case, answers in found.items()}
    prefill = {case: [given.prompt / answer["times"][0] for answer in answers] for case, answers in found.items()}
    rows = []
    for case, answers in found.items():
        n_bytes = bytes_a_token(case, given.prompt + given.decode / 2)
        row = {
            "engine": case.engine,
            "model": Path(case.path).stem,
            "prefill_tokens_per_s": spread(prefill[case]),
            "decode_tokens_per_s": spread(decode[case]),
            "peak_bytes": max(answer["peak_bytes"] for answer in answers),
            "bytes_a_token": n_bytes,
            "bandwidth_share": round(statistics.median(decode[case]) * n_bytes / bandwidth, 3) if n_bytes else None,
        }
        other = next((o for o in found if o.engine == case.wraps and o.path == case.path), None)
        if other is not None:
            for name, values in (("prefill", prefill), ("decode", decode)):
                row[f"{name}_ratio"] = spread([a / b for a, b in zip(values[case], values[other], strict=True)])
        rows.append(row)
    return rows


def spread(values: list[float]) -> list[float]:
    """Return the median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [round(middle, 3), round(low, 3), round(high, 3)]


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        work(Case(**json.loads(sys.argv[2])))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gguf", action="append", default=[], metavar="FILE")
    parser.add_argument("--onnx", action="append", default=[], metavar="FOLDER")
    parser.add_argument(
        "--openvino", action="append", default=[], metavar="MODEL", help="a GGUF, or a folder in OpenVINO's own format"
    )
    parser.add_argument("--openvino-python", default="", metavar="FILE", help="the Python that has openvino-genai")
    parser.add_argument("--threads", type=int, default=0, help="default: all physical cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--json", type=Path, help="write the result here too")
    given = parser.parse_args()
    if not given.gguf and not given.onnx:
        parser.error("name a model: --gguf FILE or --onnx FOLDER")
    if given.openvino and not given.openvino_python:
        parser.error("say which Python has openvino-genai: --openvino-python FILE")

    from edge.bench.bandwidth import sweep_bytes
    from edge.bench.process import bandwidth_here
    from edge.device import probe

    device = probe()
    n_threads = given.threads or device.cpu.usable_performance
    n_bytes = sweep_bytes(device.memory.available_bytes)
    bandwidths = [bandwidth_here(n_threads, n_bytes)]
    workers = [Worker(case) for case in cases(given, n_threads)]
    found: dict[Case, list[dict[str, Any]]] = {worker.case: [] for worker in workers}
    try:
        for n in range(given.rounds):
            for worker in workers if n % 2 == 0 else reversed(workers):
                found[worker.case].append(worker.run(given.prompt, given.decode))
            sys.stderr.write(f"round {n + 1} of {given.rounds}\n")
            bandwidths.append(bandwidth_here(n_threads, n_bytes))
    except KeyboardInterrupt:  # what whole rounds measured still counts
        n_whole = min(len(answers) for answers in found.values())
        if n_whole == 0:
            raise
        found = {case: answers[:n_whole] for case, answers in found.items()}
        given.rounds = n_whole
    finally:
        for worker in workers:
            worker.close()
    bandwidth = max(bandwidths)
    rows = summarise(given, found, bandwidth)
    result = {
        "processor": f"{device.cpu.name}, {device.cpu.n_physical} cores",
        "threads": n_threads,
        "n_prompt": given.prompt,
        "n_decode": given.decode,
        "rounds": given.rounds,
        "bandwidth_bytes_per_s": bandwidth,
        "rows": rows,
    }
    print(f"{result['processor']}, {n_threads} threads, {given.prompt} read, {given.decode} written, {given.rounds} rounds;")
    print(f"memory can be read at {bandwidth / 1e9:.1f} GB/s. In brackets the ratio to the engine that is wrapped.\n")
    print("| engine | model | prefill t/s | decode t/s | memory MB | of bandwidth |")
    print("|---|---|---:|---:|---:|---:|")
    for row in rows:
        ratios = {name: f" ({row[f'{name}_ratio'][0]:.2f})" if f"{name}_ratio" in row else "" for name in ("prefill", "decode")}
        share = f"{row['bandwidth_share']:.0%}" if row["bandwidth_share"] else ""
        print(
            f"| {row['engine']} | {row['model']} | {row['prefill_tokens_per_s'][0]:.1f}{ratios['prefill']} "
            f"| {row['decode_tokens_per_s'][0]:.1f}{ratios['decode']} | {row['peak_bytes'] / 1e6:.0f} | {share} |"
        )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
