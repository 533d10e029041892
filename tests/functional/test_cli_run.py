"""The installed command `edge run`, as a child process, with the real model."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

EDGE = Path(sys.executable).with_name("edge")
# A stall anywhere in here is a failure, not a wait for ever. Far more than any of this takes.
LIMIT_S = 240

Edge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all of these tests, so that this machine is tried once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environ(model_path: Path, shared_cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "EDGE_MODEL": str(model_path),
        "EDGE_CACHE_DIR": str(shared_cache),
        "EDGE_CONTEXT": "1024",
        # The one in the template of this file leads the 4-bit model astray on short questions; see models/catalog.toml.
        "EDGE_SYSTEM": "You are a helpful assistant.",
    }


@pytest.fixture
def edge(environ: dict[str, str]) -> Edge:
    """Run `edge ARGS` to its end. stdin is empty unless given."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([EDGE, *arguments], input=stdin, capture_output=True, text=True, env=environ, timeout=LIMIT_S)

    return run


@contextmanager
def running(
    arguments: Sequence[str], environ: dict[str, str], *, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `edge ARGS`, and end it with the block: what a failed test leaves behind would fail another one."""
    with subprocess.Popen(
        [EDGE, *arguments], stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=environ, bufsize=0
    ) as child:
        try:
            yield child
        finally:
            child.kill()


STORY = ("run", "--max-tokens", "900", "--seed", "1", "Write a very long story about a lighthouse.")


def test_a_question_is_answered(edge: Edge) -> None:
    done = edge("run", "--temperature", "0", "--max-tokens", "60", "What is the capital of France?")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_nothing_is_left_open(edge: Edge, environ: dict[str, str]) -> None:
    environ["PYTHONWARNINGS"] = "error"
    done = edge("run", "--max-tokens", "2", "hi")
    assert (done.returncode, done.stderr) == (0, "")


def test_stdin_is_the_prompt(edge: Edge) -> None:
    done = edge("run", "--temperature", "0", "--max-tokens", "60", stdin="What is the capital of France?\n")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_a_pipe_goes_along_with_the_prompt(edge: Edge) -> None:
    text = "The lighthouse of Ploumanac'h is built of pink granite.\n"
    question = "What is the lighthouse built of? Answer in one sentence."
    done = edge("run", "--temperature", "0", "--max-tokens", "80", "--json", question, stdin=text)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "granite" in answer["text"]
    without = json.loads(edge("run", "--temperature", "0", "--max-tokens", "1", "--json", question).stdout)
    assert answer["usage"]["n_prompt"] > without["usage"]["n_prompt"] + 10


def test_json_holds_the_turn_and_its_receipt(edge: Edge, model_path: Path) -> None:
    arguments = ("run", "--json", "--seed", "7", "--max-tokens", "20", "Tell me a fact.")
    first, second = (json.loads(edge(*arguments).stdout) for _ in range(2))
    assert first["text"] == second["text"]
    assert first["usage"]["n_generated"] <= 20
    assert first["timing"]["tokens_per_s"] > 0
    plan = first["plan"]
    assert plan["artifact"]["path"] == str(model_path)
    assert plan["n_ctx"] >= 1024
    assert all(choice["reason"] for choice in plan["choices"])


def test_explain_and_stats_go_to_stderr(edge: Edge) -> None:
    done = edge("run", "--explain", "--stats", "--temperature", "0", "--max-tokens", "5", "Say yes.")
    assert done.returncode == 0, done.stderr
    assert "context" in done.stderr
    assert "tokens/s" in done.stderr
    assert "tokens/s" not in done.stdout


def test_estimate_only_loads_nothing(edge: Edge, model_path: Path) -> None:
    done = edge("run", "--estimate-only", "--json")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert memory["weights_bytes"] == pytest.approx(model_path.stat().st_size, rel=0.1)
    assert memory["total_bytes"] == sum(memory[part] for part in ("weights_bytes", "kv_bytes", "compute_bytes"))
    table = edge("run", "--estimate-only")
    assert "total" in table.stdout


def test_a_conversation_goes_on_in_another_process(edge: Edge) -> None:
    first = edge("run", "--continue", "--json", "--max-tokens", "20", "My name is Ada. Say hello to me.")
    second = edge("run", "--continue", "--json", "--max-tokens", "20", "What is my name?")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    before, after = json.loads(first.stdout), json.loads(second.stdout)
    assert before["conversation"] == after["conversation"]
    # The second prompt holds the whole first turn.
    assert after["usage"]["n_prompt"] > before["usage"]["n_prompt"] + before["usage"]["n_generated"]


def test_a_reader_that_leaves_ends_it_quietly(environ: dict[str, str]) -> None:
    with running(STORY, environ) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read(8)
        child.stdout.close()
        errors = child.stderr.read()
        assert child.wait(LIMIT_S) == 0
    assert errors == b""


def test_ctrl_c_stops_the_answer(environ: dict[str, str], edge: Edge) -> None:
    with running(("run", "--continue", *STORY[1:]), environ) as child:
        assert child.stdout is not None
        beginning = child.stdout.read(8)
        child.send_signal(signal.SIGINT)
        rest, errors = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 130
    assert b"Traceback" not in errors
    assert len(beginning + rest) < 4000
    # What was said is kept, and the conversation can go on.
    done = edge("run", "--continue", "--json", "--max-tokens", "5", "Go on.")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["n_prompt"] > 20


def test_ctrl_c_while_stdin_is_awaited(environ: dict[str, str]) -> None:
    read_end, write_end = os.pipe()
    with running(("run", "-v", "Summarise"), environ, stdin=read_end) as child:
        os.close(read_end)
        assert child.stderr is not None
        assert b"Waiting for the end of stdin" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        out, errors = child.communicate(timeout=LIMIT_S)
    os.close(write_end)
    assert (child.returncode, out) == (130, b"")
    assert b"Traceback" not in errors


def test_ctrl_c_while_the_model_is_being_loaded(environ: dict[str, str]) -> None:
    """stderr is a terminal here, so that the status line says when loading has begun."""
    ours, theirs = pty.openpty()
    seen, is_loading = bytearray(), threading.Event()

    def read() -> None:
        """Read all that is drawn: a terminal that nobody reads from stops the command once 4 KB are in it."""
        try:
            while more := os.read(ours, 1000):
                seen.extend(more)
                if b"loading" in seen:
                    is_loading.set()
        except OSError:
            pass  # the other end is closed, which is how a terminal says that there is no more

    reader = threading.Thread(target=read)
    with running(STORY, {**environ, "TERM": "xterm"}, stderr=theirs) as child:
        os.close(theirs)
        reader.start()
        assert is_loading.wait(LIMIT_S)
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=LIMIT_S)
    reader.join(LIMIT_S)
    os.close(ours)
    assert len(out) < 4000
    assert child.returncode == 130, bytes(seen)
    assert b"Traceback" not in seen
    assert b"ignored" not in seen
