"""The pipeline: resumed after any end, nothing half-written, nothing replaced unasked. No model is needed for that."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.errors import BackendError, EdgeError, ModelFileError, ModelTooLargeError, StorageError, UsageError
from edge_convert.peak import PeakMemory
from edge_convert.pipeline import FolderOf, Plan, Progress, Step, StepProgress, Work, check_resources, is_done, run


class Bench:
    """A plan of two preparing steps and two artifacts that counts what is done, and fails where it is told to."""

    def __init__(self, out: Path, *, force: bool = False, digest: str = "d" * 64, content: str = "one") -> None:
        self.calls: list[str] = []
        self.fail_in: dict[str, BaseException] = {}
        self.content = content
        names = ("prepare", "base", "gguf-A", "gguf-B")
        steps = tuple(
            Step(name=name, title=f"Do {name}", work=self._work(name), artifact=name.startswith("gguf"), seconds=1 + index)
            for index, name in enumerate(names)
        )
        self.plan = Plan(title="bench", out=out, digest=digest, steps=steps, force=force)

    def _work(self, name: str) -> Work:
        def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
            self.calls.append(name)
            (folder / "half.txt").write_text("half")
            on_progress("half", 0.5)
            if name in self.fail_in:
                raise self.fail_in[name]
            if name.startswith("gguf"):
                assert (folder_of("base") / "half.txt").read_text() == "half"
            (folder / "whole.txt").write_text(self.content)

        return work


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


ARTIFACTS = ["gguf-A", "gguf-A/half.txt", "gguf-A/whole.txt", "gguf-B", "gguf-B/half.txt", "gguf-B/whole.txt"]


def test_a_run_leaves_the_artifacts_and_nothing_else(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "out")
    seen: list[Progress] = []
    assert run(bench.plan, seen.append) == [tmp_path / "out/gguf-A", tmp_path / "out/gguf-B"]
    assert tree(tmp_path / "out") == ARTIFACTS
    assert [progress.total_share for progress in seen] == sorted(progress.total_share for progress in seen)
    assert seen[-1].total_share == 1.0
    assert seen[0].seconds_left is None
    assert all(progress.seconds_left is not None and progress.seconds_left >= 0 for progress in seen[2:])
    assert {(progress.step, progress.title) for progress in seen} == {
        (1, "Do prepare"),
        (2, "Do base"),
        (3, "Do gguf-A"),
        (4, "Do gguf-B"),
    }


def test_the_most_memory_of_each_step_is_told_also_after_a_resume(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "out")
    bench.fail_in["gguf-B"] = KeyboardInterrupt()
    seen: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        run(bench.plan, seen.append)
    first = {progress.title: progress.peak_bytes for progress in seen if progress.share == 1.0}
    assert list(first) == ["Do prepare", "Do base", "Do gguf-A"] and min(first.values()) > 10 << 20
    del bench.fail_in["gguf-B"]
    seen.clear()
    run(bench.plan, seen.append)
    assert {progress.title: progress.peak_bytes for progress in seen if progress.is_resumed} == first


def test_memory_of_children_counts() -> None:
    n_held = 100 << 20
    child = f"held = b'x' * {n_held}; input()"
    with PeakMemory() as peak:
        before = peak.n_bytes
        with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
            while peak.n_bytes < before + n_held:
                assert process.poll() is None
                time.sleep(0.01)
            process.communicate(b"\n")
    assert n_held < peak.n_bytes - before < 2 * n_held


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), BackendError("no"), OSError(errno.ENOSPC, "full")])
@pytest.mark.parametrize("where", ["prepare", "base", "gguf-A", "gguf-B"])
def test_a_failed_run_is_resumed(problem: BaseException, where: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = Bench(out)
    first.fail_in[where] = problem
    with pytest.raises((KeyboardInterrupt, BackendError, StorageError)) as caught:
        run(first.plan)
    if isinstance(problem, OSError):
        assert "full" in str(caught.value)
    assert not any(name.endswith(".tmp") or name.startswith("gguf") for name in tree(out))
    finished = first.calls[:-1]
    assert [step.name for step in first.plan.steps if is_done(first.plan, step)] == finished
    if not finished:
        assert not out.exists()
    second = Bench(out)
    seen: list[Progress] = []
    check_resources(second.plan)
    run(second.plan, seen.append)
    assert first.calls[:-1] + second.calls == ["prepare", "base", "gguf-A", "gguf-B"]
    assert [progress.title for progress in seen if progress.is_resumed] == [f"Do {name}" for name in finished]
    assert tree(out) == ARTIFACTS


@pytest.mark.parametrize("where", ["prepare", "base", "gguf-A", "gguf-B"])
def test_a_refused_model_leaves_nothing(where: str, tmp_path: Path) -> None:
    """The same command could only fail again: another file or request has another digest."""
    bench = Bench(tmp_path / "out")
    bench.fail_in[where] = ModelFileError("no")
    with pytest.raises(ModelFileError):
        run(bench.plan)
    assert not bench.plan.out.exists()


def test_what_progress_raises_stops_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "out")

    def stop(progress: Progress) -> None:
        if progress.step == 3 and progress.detail == "half":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench.plan, stop)
    assert not (tmp_path / "out/gguf-A").exists()
    again = Bench(tmp_path / "out")
    run(again.plan)
    assert again.calls == ["gguf-A", "gguf-B"]


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(Bench(out).plan)
    other = Bench(out, digest="e" * 64, content="two")
    with pytest.raises(UsageError, match="holds gguf-A, gguf-B already") as caught:
        check_resources(other.plan)
    assert "--force" in caught.value.hint
    with pytest.raises(UsageError, match="appeared while"):
        run(other.plan)
    assert (out / "gguf-A/whole.txt").read_text() == "one"
    forced = Bench(out, digest="e" * 64, content="two", force=True)
    check_resources(forced.plan)
    run(forced.plan)
    assert forced.calls == []  # it is the same conversion, and its steps were done
    assert [(out / name / "whole.txt").read_text() for name in ("gguf-A", "gguf-B")] == ["two", "two"]
    assert tree(out) == ARTIFACTS


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    bench = Bench(out)
    bench.fail_in["prepare"] = ModelFileError("no")
    with pytest.raises(ModelFileError):
        run(bench.plan)
    assert tree(out) == ["mine.txt"]
    run(Bench(out).plan)
    assert tree(out) == [*ARTIFACTS, "mine.txt"]


def test_a_refused_result_stays_out_and_is_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refuse() -> list[str]:
        raise ModelFileError("too bad")

    with pytest.raises(ModelFileError, match="too bad"):
        run(Bench(out).plan, choose=refuse)
    assert not (out / "gguf-A").exists()
    again = Bench(out)
    run(again.plan)
    assert again.calls == []
    assert tree(out) == ARTIFACTS


def test_only_what_is_chosen_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(Bench(out).plan, choose=lambda: ["gguf-B"]) == [out / "gguf-B"]
    assert tree(out) == ["gguf-B", "gguf-B/half.txt", "gguf-B/whole.txt"]


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "out")

    def second(progress: Progress) -> None:
        if progress.step == 2 and progress.share == 0.5:
            with pytest.raises(UsageError, match="Another process runs this conversion"):
                run(Bench(tmp_path / "out").plan)

    run(bench.plan, second)
    assert tree(tmp_path / "out") == ARTIFACTS


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_convert import pipeline
from tests.unit.convert.test_pipeline import Bench

out, point = Path(sys.argv[1]), sys.argv[2]
bench = Bench(out, force=True)
rename, kinds = Path.rename, point.split(":")

def kill(self, target):
    if kinds[0] == "before" and str(target).endswith(kinds[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(self, target)
    if kinds[0] == "after" and str(target).endswith(kinds[1]):
        os.kill(os.getpid(), signal.SIGKILL)

Path.rename = kill
if kinds[0] == "during":
    def stop(progress):
        if progress.title.endswith(kinds[1]) and progress.detail == "half":
            os.kill(os.getpid(), signal.SIGKILL)
    pipeline.run(bench.plan, stop)
pipeline.run(bench.plan)
"""


@pytest.mark.parametrize(
    "point",
    [
        "during:base",
        "during:gguf-B",
        "before:base",
        "after:base",
        "after:gguf-A.old",
        "after:out/gguf-A",
        "before:out/gguf-B",
        "after:out/gguf-B",
    ],
)
def test_kill_9_anywhere_leaves_whole_artifacts_and_a_run_that_resumes(point: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(Bench(out, digest="0" * 64, content="old").plan)
    root = Path(__file__).parents[3]
    paths = os.pathsep.join(str(root / part) for part in (".", "apps", "converters"))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(out), point],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    for artifact in out.glob("gguf-*"):
        assert (artifact / "whole.txt").read_text() in ("old", "one")
    again = Bench(out, force=True)
    check_resources(again.plan)
    run(again.plan)
    assert tree(out) == ARTIFACTS
    assert [(out / name / "whole.txt").read_text() for name in ("gguf-A", "gguf-B")] == ["one", "one"]


def plan_that_needs(tmp_path: Path, **needs: int) -> Plan:
    step = Step(name="gguf-A", title="Do", work=lambda *_: None, artifact=True, **needs)  # type: ignore[arg-type]
    return Plan(title="large", out=tmp_path / "deep/out", digest="f" * 64, steps=(step,))


def test_room_and_memory_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"writes about 9000\.0 TB"):
        check_resources(plan_that_needs(tmp_path, disk_bytes=9 * 10**15))
    with pytest.raises(ModelTooLargeError, match=r"needs about 3\.0 GB of memory, and 2\.0 GB are free"):
        check_resources(plan_that_needs(tmp_path, memory_bytes=3 * 10**9), free_memory_bytes=2 * 10**9)
    check_resources(plan_that_needs(tmp_path, memory_bytes=10**9), free_memory_bytes=2 * 10**9)
    (tmp_path / "deep").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        check_resources(plan_that_needs(tmp_path))
    assert tree(tmp_path) == ["deep"]


@pytest.mark.parametrize(
    ("error", "said"), [(ModelFileError("no card"), "no card"), (OSError(errno.ENOSPC, "full"), "The disk of .* is full")]
)
def test_an_extra_step_that_fails_holds_nothing_back(error: Exception, said: str, tmp_path: Path) -> None:
    def fail(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        raise error

    def write(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        (folder / "model").write_text("weights")

    steps = (
        Step(name="model", title="", work=write, artifact=True),
        Step(name="card", title="", work=fail, artifact=True, is_extra=True),
    )
    plan = Plan(title="t", out=tmp_path / "out", digest="d" * 64, steps=steps)
    with pytest.raises(EdgeError, match=said):
        run(plan)
    assert tree(plan.out) != ["model", "model/model"]
    failures: list[str] = []
    assert run(plan, on_failure=lambda step, error: failures.append(f"{step.name}: {error.message}")) == [plan.out / "model"]
    assert len(failures) == 1 and re.match(f"card: {said}", failures[0])
    assert [path.name for path in plan.out.iterdir()] == ["model"]
