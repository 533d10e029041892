"""Jobs (a model and a measure) in processes of their own on this machine, or as tasks of an existing Ray cluster.

Quality jobs run side by side; speed is measured alone, one model after the other and round by round, so that other work of the
machine affects all models alike. An engine that crashes ends its child only; the job is tried once more on its safe path.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import msgspec

from edge.child import Child, python_command, rebuild_error
from edge.cluster import connect
from edge.errors import BackendError, EdgeError
from edge_convert.evaluate.card import Speed
from edge_convert.evaluate.measure import (
    Job,
    Problem,
    QualityJob,
    QualityResult,
    ReferenceJob,
    Reply,
    SpeedJob,
    load_reference,
)
from edge_convert.evaluate.passages import TextOptions, Window
from edge_convert.torch_device import VARIABLE

__all__ = ["LocalJobs", "RayJobs", "run_job"]

Paths = Mapping[str, Path]
Texts = Mapping[str, Mapping[int, Window]]
OnProgress = Callable[[str], None]


class LocalJobs:
    """Jobs in child processes on this machine.

    Args:
        n_threads: CPU threads of one model.
        n_jobs: quality jobs at a time.

    Attributes:
        machine: that speed is measured on.
    """

    def __init__(self, n_threads: int, n_jobs: int) -> None:
        self._n_threads, self._n_jobs = n_threads, n_jobs
        self.machine = f"{platform.system()} {platform.machine()}, {n_threads} of {os.cpu_count() or 1} CPU threads"

    def reference(self, path: Path, texts: TextOptions, folder: Path) -> QualityResult:
        """Run a ReferenceJob in a child."""
        job = ReferenceJob(path=str(path), n_threads=self._n_threads, texts=texts, folder=str(folder))
        return _quality(run_job(job))

    def qualities(self, models: Paths, texts: Texts, folder: Path, on_progress: OnProgress) -> dict[str, QualityResult]:
        """Compare models with the reference.

        Args:
            models: name -> path.
            texts: name -> the windows that it reads, by number.
            folder: the reference's logits, see `ReferenceJob`.
            on_progress: called with the name of each model that is finished.

        Raises:
            EdgeError: a model could not be measured; the others are stopped.
        """
        found: dict[str, QualityResult] = {}
        running: list[Child] = []
        with ThreadPoolExecutor(max(1, self._n_jobs)) as pool:
            waiting: dict[Future[Reply], str] = {}
            for name, path in models.items():
                job = QualityJob(path=str(path), n_threads=self._n_threads, windows=dict(texts[name]), folder=str(folder))
                waiting[pool.submit(run_job, job, running)] = name
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        name = waiting.pop(future)
                        found[name] = _quality(future.result())
                        on_progress(name)
            except BaseException:
                for future in waiting:
                    future.cancel()
                for child in tuple(running):  # threads take theirs out
                    child.stop()
                raise
        return {name: found[name] for name in models}

    def speeds(
        self, models: Paths, n_rounds: int, n_prefill: int, n_decode: int, on_progress: OnProgress
    ) -> dict[str, list[Speed]]:
        """Measure speed in rounds, one model after the other in each; see `qualities`."""
        found: dict[str, list[Speed]] = {name: [] for name in models}
        for _ in range(n_rounds):
            for name, path in models.items():
                job = SpeedJob(path=str(path), n_threads=self._n_threads, n_prefill=n_prefill, n_decode=n_decode)
                speed = run_job(job).speed
                assert speed is not None
                found[name].append(speed)
                on_progress(name)
        return found


def run_job(job: Job, running: list[Child] | None = None) -> Reply:
    """Run one job in a process of its own, which `running` holds meanwhile, so that another thread can stop it.

    Raises:
        EdgeError: the child's own.
        BackendError: it died twice, the second time on the safe path.
    """
    running = [] if running is None else running
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if isinstance(job, SpeedJob):
        environment[VARIABLE] = "cpu"  # as the other formats
    for attempt in (job, msgspec.structs.replace(job, is_safe=True)):
        with Child(python_command("edge_convert.evaluate.child:main"), env=environment) as child:
            running.append(child)
            try:
                line = child.ask(msgspec.json.encode(attempt))
                ended = child.wait()
            finally:
                running.remove(child)
        if line:
            return _checked(line)
        if ended.was_stopped or (ended.code or 0) >= 0:  # not a crash
            break
    raise BackendError(
        f"The process that measures {Path(job.path).name} {ended.reason}.",
        "If memory is short, close other programs, or evaluate fewer models at a time: --jobs 1",
    )


def _checked(data: bytes) -> Reply:
    reply = msgspec.json.decode(data, type=Reply)
    if reply.problem is not None:
        raise rebuild_error(reply.problem.kind, reply.problem.message, reply.problem.hint)
    return reply


def _quality(reply: Reply) -> QualityResult:
    assert reply.quality is not None
    return reply.quality


class RayJobs:
    """Jobs as tasks of a running Ray cluster. Each machine of it needs this package and the models at the same paths.

    Args:
        address: of the cluster: HOST:PORT, "auto", or ray://HOST:PORT.
        n_threads: CPU threads of one model, and CPUs that a task asks the cluster for.

    Attributes:
        machine: that speed is measured on; "" before.

    Raises:
        BackendUnavailableError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, address: str, n_threads: int) -> None:
        self._ray, self._is_ours = connect(address)
        self._n_threads = n_threads
        self.machine = ""

    def qualities(self, models: Paths, texts: Texts, folder: Path, on_progress: OnProgress) -> dict[str, QualityResult]:
        """See `LocalJobs`."""
        numbers = sorted({number for windows in texts.values() for number in windows})
        arrays = load_reference(folder, numbers)
        reference = self._ray.put({number: array[:] for number, array in zip(numbers, arrays, strict=True)})
        task = self._ray.remote(num_cpus=self._n_threads, max_calls=1, max_retries=0)(_quality_task)

        def submit(name: str, is_safe: bool) -> Any:
            windows = dict(texts[name])
            job = QualityJob(path=str(models[name]), n_threads=self._n_threads, is_safe=is_safe, windows=windows, folder="")
            return task.remote(msgspec.json.encode(job), reference)

        names = {submit(name, False): (name, False) for name in models}
        found: dict[str, QualityResult] = {}
        while names:
            done, _ = self._ray.wait(list(names), num_returns=1)
            name, is_safe = names.pop(done[0])
            try:
                data = self._ray.get(done[0])
            except self._ray.exceptions.RayError as error:
                if is_safe:
                    raise BackendError(
                        f"The Ray task that measures {name} failed: {error}", "See the log of its worker."
                    ) from error
                names[submit(name, True)] = (name, True)
                continue
            found[name] = _quality(_checked(data))
            on_progress(name)
        return {name: found[name] for name in models}

    def speeds(
        self, models: Paths, n_rounds: int, n_prefill: int, n_decode: int, on_progress: OnProgress
    ) -> dict[str, list[Speed]]:
        """See `LocalJobs`. All rounds are one task: they have to run on one machine to be compared."""
        task = self._ray.remote(num_cpus=self._n_threads, max_calls=1, max_retries=0)(_speed_task)
        paths = {name: str(path) for name, path in models.items()}
        try:
            data = self._ray.get(task.remote(paths, n_rounds, n_prefill, n_decode, self._n_threads))
        except self._ray.exceptions.RayError as error:
            raise BackendError(f"The Ray task that measures speed failed: {error}", "See the log of its worker.") from error
        for name in models:
            for _ in range(n_rounds):
                on_progress(name)
        self.machine, found = msgspec.json.decode(data, type=tuple[str, dict[str, list[Speed]]])
        return found

    def close(self) -> None:
        """Leave the cluster, which keeps running."""
        if self._is_ours:
            self._ray.shutdown()


def _quality_task(data: bytes, reference: dict[int, Any]) -> bytes:
    job = msgspec.json.decode(data, type=QualityJob)
    try:
        reply = job.run([reference[number] for number in job.windows])
    except EdgeError as error:
        reply = Reply(problem=Problem.of(error))
    return msgspec.json.encode(reply)


def _speed_task(paths: dict[str, str], n_rounds: int, n_prefill: int, n_decode: int, n_threads: int) -> bytes:
    local = LocalJobs(n_threads, 1)
    models = {name: Path(path) for name, path in paths.items()}
    return msgspec.json.encode((local.machine, local.speeds(models, n_rounds, n_prefill, n_decode, lambda name: None)))
