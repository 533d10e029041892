"""llama.cpp in a child: what it says, how it ends, and that it never outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edge.errors import BackendError, ModelFileError
from edge_convert.gguf import engine
from edge_convert.gguf.engine import run_task

ROOT = Path(__file__).parents[4]


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(ModelFileError, match="cannot read the tokenizer"):
        run_task("tokenise", {"model": str(tmp_path / "bad.gguf"), "texts": ["a"]})
    arguments = {"source": str(tmp_path / "bad.gguf"), "out": str(tmp_path / "out.gguf"), "file_type": 2, "threads": 1}
    with pytest.raises(BackendError, match=r"could not quantise|ended"):
        run_task("quantise", arguments)
    assert children() == []


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(BackendError, match=r"ended with code 1 \(KeyError: 'nonsense'\) while it was to nonsense") as caught:
        run_task("nonsense", {})
    assert "report this" in caught.value.hint


@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, "SIGKILL; .*out of memory"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_child_that_is_killed(number: signal.Signals, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"import os; os.kill(os.getpid(), {int(number)})"
    monkeypatch.setattr(engine, "python_command", lambda entry: [sys.executable, "-c", code])
    with pytest.raises(BackendError, match=f"died of {said}") as caught:
        run_task("tokenise", {"model": "x", "texts": []})
    assert "report this" in caught.value.hint


def test_what_progress_raises_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(share: float) -> None:
        raise Stop

    talk = "import sys, json, time; print(json.dumps({'progress': 0.1}), flush=True); time.sleep(600)"
    monkeypatch.setattr(engine, "python_command", lambda entry: [sys.executable, "-c", talk])
    with pytest.raises(Stop):
        run_task("tokenise", {}, stop)
    assert children() == []


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    # The parent is killed while its child waits for a task that never comes to an end.
    code = (
        "import subprocess, sys, time\n"
        "from edge.child import python_command\n"
        "child = subprocess.Popen(python_command('edge_convert.gguf.engine_child:main'), stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "converters")])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 120
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
