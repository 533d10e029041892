"""The parent's side of child.py: one worker process for one candidate."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec

from edge import errors
from edge.bench.child import Answer, Bandwidth, Open, Run
from edge.bench.values import Sample, Setting
from edge.errors import BackendError, EdgeError

if TYPE_CHECKING:
    from edge.plan.receipt import Plan

__all__ = ["Worker", "bandwidth_here", "setting_of"]

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edge.bench.child import main; main()"
_LEFT_OUT = ("artifact", "memory", "choices")
_GOODBYE_S = 5.0


class Worker:
    """A process with the model of a plan. Use it in a `with` block, or close it.

    Args:
        plan: what to load and how.
        with_energy: look for a meter of energy, too.

    Attributes:
        load_s: from opening the file to the end of a first step, in seconds.
        energy: where energy comes from, or why it is not known; "" where it was not asked for.

    Raises:
        EdgeError: the model cannot be loaded, as the error that the backend raised.
        BackendError: the process died.
    """

    def __init__(self, plan: Plan, *, with_energy: bool = False) -> None:
        self._child = _Child()
        try:
            values = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name not in _LEFT_OUT}
            answer = self._child.ask(Open(path=str(plan.artifact.path), plan=values, with_energy=with_energy))
        except BaseException:
            self._child.stop()
            raise
        self.load_s: float = answer.load_s or 0.0
        self.energy = answer.energy

    def run(self, n_prompt: int, n_decode: int) -> Sample:
        """Measure once.

        Raises:
            EdgeError: the backend's.
            BackendError: the process died.
        """
        sample = self._child.ask(Run(n_prompt=n_prompt, n_decode=n_decode)).sample
        assert sample is not None
        return sample

    def close(self) -> None:
        """End the process. May be called twice."""
        self._child.close()

    def stop(self) -> None:
        """End the process at once, also in the middle of a measurement."""
        self._child.stop()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def bandwidth_here(n_threads: int, n_bytes: int) -> float:
    """Bytes a second that memory can be read with, measured in a process of its own.

    Raises:
        EdgeError: it could not be measured.
    """
    child = _Child()
    try:
        return child.ask(Bandwidth(n_threads=n_threads, n_bytes=n_bytes)).bytes_per_s or 0.0
    finally:
        child.close()


def setting_of(plan: Plan) -> Setting:
    """What a plan runs with."""
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
    )


class _Child:
    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        try:
            # A group of its own: Ctrl-C reaches us only, and we end it.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise BackendError(f"No process could be started to measure in ({error}).", "Close other programs.") from error

    def ask(self, request: Open | Run | Bandwidth) -> Answer:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(msgspec.json.encode(request) + b"\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise BackendError(f"The process that measured {self._fate()}.", "See: edge doctor")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.problem is not None:
            problem = answer.problem
            kind: Any = getattr(errors, problem.kind, BackendError)
            raise (kind if issubclass(kind, EdgeError) else BackendError)(problem.message, problem.hint)
        return answer

    def close(self) -> None:
        if self._log.closed:
            return
        process = self._process
        with contextlib.suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(timeout=_GOODBYE_S)
        except subprocess.TimeoutExpired:
            process.kill()  # in the middle of a measurement that nobody wants any more
            process.wait()
        finally:
            if process.stdout is not None:
                process.stdout.close()
            self._log.close()

    def stop(self) -> None:
        """End it at once, also in the middle of a measurement."""
        self._process.kill()
        self.close()

    def _fate(self) -> str:
        """How it ended, and its last word."""
        code = self._process.wait()
        how = f"ended with code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"died of {signal.Signals(-code).name}"
        self._log.seek(0, 2)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"{how} ({lines[-1][:300]})" if lines else how
