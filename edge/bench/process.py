"""The parent's side of child.py: one worker process for one candidate."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec

from edge.bench.child import Answer, Bandwidth, Compute, Logits, Open, Passes, Prefill, Request, Run
from edge.bench.values import Sample, Setting
from edge.child import Child, python_command, rebuild_error
from edge.errors import BackendError
from edge.units import reason

if TYPE_CHECKING:
    from pathlib import Path

    from edge.bench.divergence import Divergence
    from edge.plan.receipt import Plan

__all__ = ["Worker", "bandwidth_here", "compute_here", "setting_of"]

_LEFT_OUT = ("artifact", "memory", "choices", "prefill")


class Worker:
    """A process with the model of a plan. Use it in a `with` block, or close it.

    Args:
        plan: which model to load, and how.
        with_energy: look for a meter of energy, too.
        deadline: the process is ended at this time, as of `time.monotonic()`; None lets it take as long as it does.
        unpacked: write the weights as float32 to this new file first, and load that. The caller removes it.

    Attributes:
        load_s: from opening the file to the end of a first step, in seconds.
        energy: source of energy figures, or why there is none; "" if not asked for.

    Raises:
        EdgeError: the model cannot be loaded, as the error that the backend raised.
        BackendError: the process died, or its time was over.
    """

    def __init__(
        self, plan: Plan, *, with_energy: bool = False, deadline: float | None = None, unpacked: Path | None = None
    ) -> None:
        self._child, self._deadline = _start(), deadline
        prefill = Prefill(plan=_values(plan.prefill.plan), least=plan.prefill.least) if plan.prefill is not None else None
        target = os.fsencode(unpacked) if unpacked is not None else b""
        path = os.fsencode(plan.artifact.path)
        request = Open(path=path, plan=_values(plan), with_energy=with_energy, unpacked=target, prefill=prefill)
        try:
            answer = self._ask(request)
            if answer.is_faster_next:  # time and memory are to be those of later loads
                self.close()
                self._child = _start()
                answer = self._ask(request)
        except BaseException:
            self.stop()
            raise
        self.load_s: float = answer.load_s or 0.0
        self.energy = answer.energy

    def run(self, n_prompt: int, n_decode: int) -> Sample:
        """Measure once.

        Raises:
            EdgeError: the backend's.
            BackendError: the process died.
        """
        sample = self._ask(Run(n_prompt=n_prompt, n_decode=n_decode)).sample
        assert sample is not None
        return sample

    def pass_ms(self) -> dict[int, float]:
        """Measure passes over several tokens, see `measure_passes`.

        Raises:
            As `run`.
        """
        return self._ask(Passes()).pass_ms or {}

    def write_logits(self, path: Path) -> None:
        """Write the logits of a text to a new file.

        Raises:
            As `run`; BackendError also if it cannot be written.
        """
        self._ask(Logits(path=os.fsencode(path), is_new=True))

    def compare_logits(self, path: Path) -> Divergence:
        """Compare with the logits that another process wrote.

        Raises:
            As `run`; BackendError also if they cannot be read.
            UnsupportedError: the vocabularies differ.
        """
        found = self._ask(Logits(path=os.fsencode(path), is_new=False)).divergence
        assert found is not None
        return found

    def close(self) -> None:
        """End the process. May be called twice."""
        self._child.close()

    def stop(self) -> None:
        """End the process at once, also in the middle of a measurement."""
        self._child.stop()
        self._child.close()

    def _ask(self, request: Request) -> Answer:
        if self._deadline is None:
            return _ask(self._child, request)
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self._child.stop)
        timer.daemon = True
        timer.start()
        try:
            return _ask(self._child, request)
        finally:
            timer.cancel()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def bandwidth_here(n_threads: int, n_bytes: int) -> float:
    """Measure the memory bandwidth in a process of its own, in bytes per second.

    Raises:
        EdgeError: it could not be measured.
    """
    child = _start()
    try:
        return _ask(child, Bandwidth(n_threads=n_threads, n_bytes=n_bytes)).bytes_per_s or 0.0
    finally:
        child.close()


def compute_here(n_threads: int) -> float:
    """Measure a float32 matrix product in a process of its own, in operations per second.

    Raises:
        EdgeError: it could not be measured.
    """
    child = _start()
    try:
        return _ask(child, Compute(n_threads=n_threads)).flops_per_s or 0.0
    finally:
        child.close()


def setting_of(plan: Plan) -> Setting:
    """Return the settings of a plan."""
    return Setting(
        backend=plan.backend,
        accelerator=plan.accelerator,
        threads=plan.n_threads,
        threads_batch=plan.n_threads_batch,
        n_ubatch=plan.n_ubatch,
        flash_attention=plan.flash_attention,
        kv_type_k=plan.kv_type_k,
        kv_type_v=plan.kv_type_v,
        gpu_layers=plan.gpu_layers,
        n_ctx=plan.n_ctx,
        prefill_with=plan.prefill.plan.backend if plan.prefill is not None else "",
    )


def _values(plan: Plan) -> dict[str, Any]:
    return {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in _LEFT_OUT}


def _start() -> Child:
    try:
        return Child(python_command("edge.bench.child:main"))
    except OSError as error:
        raise BackendError(
            f"The process that measures could not be started ({reason(error)}).", "Close other programs."
        ) from error


def _ask(child: Child, request: Request) -> Answer:
    line = child.ask(msgspec.json.encode(request))
    if not line:
        raise BackendError(f"The process that measured {child.wait().reason}.", "See: edge doctor")
    answer = msgspec.json.decode(line, type=Answer)
    if answer.problem is not None:
        raise rebuild_error(answer.problem.kind, answer.problem.message, answer.problem.hint)
    return answer
