"""Child processes, real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.child import Child, Ended, claim_stdout, end_with_parent, python_command, rebuild_error, run_child
from edge.errors import BackendError, ModelFileError


def echo(*words: str) -> None:
    """Child: answer each line with the words and the line."""
    for line in sys.stdin:
        print(*words, line.strip(), flush=True)
    print("bye", file=sys.stderr)


def die(how: str) -> None:
    """Child: end badly."""
    print("out", flush=True)
    print("last words", file=sys.stderr, flush=True)
    if how == "code":
        sys.exit(3)
    if how == "hang":
        time.sleep(600)
    os.kill(os.getpid(), int(how))


def save() -> None:
    """Child: take half a second to end after Ctrl-C."""
    try:
        print("ready", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("saved", file=sys.stderr, flush=True)


def sulk() -> None:
    """Child: pay no attention to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(600)


def breed() -> None:
    """Child: start a grandchild and wait."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(grandchild.pid, flush=True)
    time.sleep(600)


def chatter() -> None:
    """Child: answer, while a library prints."""
    send = claim_stdout()
    print("a library's remark", flush=True)
    os.system("echo of a program")
    send(b"answer")


def follow() -> None:
    """Child: live as long as stdin."""
    end_with_parent(signal.SIGTERM)
    print("ready", flush=True)
    time.sleep(600)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return "test_child"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if Path("/proc").is_dir() else True


def test_a_conversation_in_lines(entry: str) -> None:
    with Child(python_command(f"{entry}:echo", "a", "b")) as child:
        assert child.ask(b"first") == b"a b first\n"
        assert child.ask(b"second") == b"a b second\n"
        child.close()
        child.close()


@pytest.mark.parametrize(
    ("how", "reason", "was_stopped"),
    [
        ("code", "ended with code 3 (last words)", False),
        (str(int(signal.SIGSEGV)), "died of SIGSEGV (last words)", False),
        (str(int(signal.SIGTERM)), "died of SIGTERM (last words)", True),
        (str(int(signal.SIGKILL)), "died of SIGKILL; the system may have run out of memory (last words)", True),
    ],
)
def test_the_end_is_explained(entry: str, how: str, reason: str, was_stopped: bool) -> None:
    ended = run_child(python_command(f"{entry}:die", how))
    assert (ended.reason, ended.was_stopped, ended.stdout) == (reason, was_stopped, b"out\n")
    with Child(python_command(f"{entry}:die", how)) as child:
        assert child.ask(b"hello?") == b"out\n"
        assert child.ask(b"still there?") == b""
        assert child.wait().reason == reason


def test_the_line_that_says_why_is_found_before_a_backtrace() -> None:
    said = "ggml.c:12: GGML_ASSERT(n > 0) failed\nlib.so(+0x12) [0x7f]\npython(_start+0x25) [0x4f]\n"
    assert Ended(-signal.SIGABRT, b"", said).reason == "died of SIGABRT (ggml.c:12: GGML_ASSERT(n > 0) failed)"
    assert Ended(1, b"", "ValueError: no\nException ignored in: <x>\n").last_line == "ValueError: no"
    assert Ended(1, b"", "Error in a word\nlast\n").last_line == "last"


def test_a_child_without_time_is_killed(entry: str) -> None:
    ended = run_child(python_command(f"{entry}:die", "hang"), timeout_s=1.0)
    assert ended.code is None
    assert ended.reason.startswith("did not end in time")


def test_what_a_callback_raises_ends_the_child(entry: str) -> None:
    def refuse() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child(python_command(f"{entry}:die", "hang"), on_wait=refuse, patience_s=5)


def test_what_libraries_print_is_no_answer(entry: str) -> None:
    ended = run_child(python_command(f"{entry}:chatter"))
    assert ended.stdout == b"answer\n"
    assert ended.stderr == "a library's remark\nof a program\n"


def test_a_patient_stop_lets_it_save(entry: str) -> None:
    with Child(python_command(f"{entry}:save")) as child:
        assert next(child.lines()) == b"ready\n"
        child.stop(patience_s=30)
        assert child.wait().stderr.splitlines()[-1] == "saved"


def test_a_stop_out_of_patience_kills(entry: str) -> None:
    with Child(python_command(f"{entry}:sulk")) as child:
        assert next(child.lines()) == b"ready\n"
        child.stop(patience_s=0.01)
        assert child.wait().code == -signal.SIGKILL


def test_a_stop_ends_what_it_started(entry: str) -> None:
    with Child(python_command(f"{entry}:breed")) as child:
        pid = int(next(child.lines()))
        assert is_alive(pid)
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_a_child_ends_with_its_parent(entry: str) -> None:
    child = Child(python_command(f"{entry}:follow"))
    assert next(child.lines()) == b"ready\n"
    child.close(patience_s=30)  # closing stdin is what a killed parent does


def test_a_child_inherits_no_surprise_from_the_environment(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    assert run_child(python_command(f"{entry}:die", "code")).code == 3


def test_a_missing_program_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        Child(["/nowhere/python"])
    with pytest.raises(FileNotFoundError):
        run_child(["/nowhere/python"])


def test_errors_of_a_child_come_back_by_name() -> None:
    assert isinstance(rebuild_error("ModelFileError", "m", "h"), ModelFileError)
    for unknown in ("ValueError", "__all__", "EdgeErro"):
        assert type(rebuild_error(unknown, "m", "h")) is BackendError


def test_a_running_child_says_what_it_takes() -> None:
    with Child(python_command(f"{__name__}:echo")) as child:
        assert child.ask(b"x") == b"x\n"
        assert child.memory_bytes > 1 << 20
        assert child.cpu_s > 0
        child.close()
        assert (child.memory_bytes, child.cpu_s) == (0, 0)
