"""The process that loads and measures one model: requests and answers are lines of JSON.

With a process of its own, the peak of memory is that of this model alone, and a crash of one engine leaves the others alone.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from edge.bench.divergence import Divergence
from edge.bench.values import Sample
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.device.energy import Meter

__all__ = [
    "Answer",
    "Bandwidth",
    "Compute",
    "Logits",
    "Open",
    "Passes",
    "Prefill",
    "Problem",
    "Request",
    "Run",
    "main",
    "serve",
    "to_problem",
]


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """Another engine that prefills: the fields of its Plan, and from how many tokens on."""

    plan: dict[str, Any]
    least: int


class Open(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load a model by the fields of a Plan, with `path` in place of the artifact and without memory and choices.

    With `unpacked`, its weights are written as float32 to this new file first, and that is loaded.
    """

    path: bytes  # it need not be Unicode, as JSON has to be
    plan: dict[str, Any]
    with_energy: bool = False
    unpacked: bytes = b""
    prefill: Prefill | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure the loaded model once."""

    n_prompt: int
    n_decode: int


class Passes(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure passes over several tokens with the loaded model."""


class Logits(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Write the logits of a text to a file, or compare with those of another engine that are there."""

    path: bytes
    is_new: bool


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure the memory bandwidth."""

    n_threads: int
    n_bytes: int


class Compute(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Measure a matrix product."""

    n_threads: int


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error: the name of its class in edge.errors, and its text."""

    kind: str
    message: str
    hint: str = ""


def to_problem(error: Exception) -> Problem:
    """Return an error as the parent is told of it."""
    if isinstance(error, EdgeError):
        return Problem(kind=type(error).__name__, message=error.message, hint=error.hint)
    if isinstance(error, MemoryError):
        return Problem(kind="ModelTooLargeError", message="Memory ran out.", hint="Close other programs.")
    return Problem(kind="BackendError", message=f"{type(error).__name__}: {error}")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request: one of these. `energy` names the source of energy figures, or why there is none;
    `is_faster_next` is that of the backend."""

    load_s: float | None = None
    energy: str = ""
    is_faster_next: bool = False
    sample: Sample | None = None
    pass_ms: dict[int, float] | None = None
    divergence: Divergence | None = None
    bytes_per_s: float | None = None
    flops_per_s: float | None = None
    problem: Problem | None = None


Request = Open | Run | Passes | Logits | Bandwidth | Compute
"""What the parent may ask."""


class _Server:
    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._meter: Meter | None = None

    def answer(self, request: Request) -> Answer:
        if isinstance(request, Open):
            return self._open(request)
        if isinstance(request, Bandwidth):
            from edge.bench.bandwidth import measure_bandwidth

            return Answer(bytes_per_s=measure_bandwidth(request.n_threads, request.n_bytes))
        if isinstance(request, Compute):
            from edge.bench.bandwidth import measure_compute

            return Answer(flops_per_s=measure_compute(request.n_threads))
        from edge.bench.divergence import compare_logits, write_logits
        from edge.bench.measure import measure, measure_passes

        assert self._backend is not None  # process.py sends Open first
        if isinstance(request, Passes):
            return Answer(pass_ms=measure_passes(self._backend))
        if isinstance(request, Logits):
            path = Path(os.fsdecode(request.path))
            if request.is_new:
                write_logits(self._backend, path)
                return Answer()
            return Answer(divergence=compare_logits(self._backend, path))
        return Answer(sample=measure(self._backend, request.n_prompt, request.n_decode, meter=self._meter))

    def _open(self, request: Open) -> Answer:
        from edge.backends import open_backend
        from edge.backends.paired import pair_with
        from edge.bench.measure import warm_up
        from edge.device.energy import find_meter
        from edge.formats.artifact import open_artifact
        from edge.plan.receipt import MemoryEstimate, Plan, PrefillPlan
        from edge.registry import load_entry

        artifact = open_artifact(Path(os.fsdecode(request.path)))

        def to_plan(values: dict[str, Any]) -> Plan:
            return Plan(**values, artifact=artifact, memory=MemoryEstimate(0, 0, 0, 0, 0), choices=())

        plan = to_plan(request.plan)
        if request.prefill is not None:
            plan = replace(plan, prefill=PrefillPlan(to_plan(request.prefill.plan), request.prefill.least))
        if request.unpacked:
            unpacked = Path(os.fsdecode(request.unpacked))
            load_entry("edge.backends.llamacpp.unpack:unpack")(artifact.path, unpacked, plan.n_threads, bits=32)
            plan = replace(plan, artifact=open_artifact(unpacked))
        started = time.perf_counter()
        self._backend = open_backend(plan)
        self._backend = pair_with(self._backend, plan, open_backend)
        warm_up(self._backend)
        load_s = time.perf_counter() - started
        energy = ""
        if request.with_energy:
            self._meter, energy = find_meter()
        return Answer(load_s=load_s, energy=energy, is_faster_next=self._backend.is_faster_next)

    def close(self) -> None:
        if self._meter is not None:
            self._meter.close()
        if self._backend is not None:
            self._backend.close()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    server = _Server()
    try:
        for line in requests:
            try:
                answer = server.answer(msgspec.json.decode(line, type=Request))
            except Exception as error:  # noqa: BLE001 (any error of an engine has to reach the parent as one line)
                answer = Answer(problem=to_problem(error))
            answers.write(msgspec.json.encode(answer) + b"\n")
            answers.flush()
    finally:
        server.close()


def main() -> None:
    """Serve stdin and stdout. Output of engines goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
