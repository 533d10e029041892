"""The installed command `edge models`, as a child process, against a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.hub import Hub, Repo, run_hub
from tests.servers.models import make_model

EDGE = Path(sys.executable).with_name("edge")
LIMIT_S = 240
REFERENCE = "hf:acme/tiny:tiny.gguf"

Edge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with run_hub(acme__tiny=Repo({"tiny.gguf": make_model(tmp_path / "made.gguf")})) as hub:
        yield hub


@pytest.fixture
def environ(hub: Hub) -> dict[str, str]:
    return {**os.environ, "EDGE_HUB_ENDPOINT": hub.url}


@pytest.fixture
def edge(environ: dict[str, str]) -> Edge:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [EDGE, "models", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environ,
            timeout=LIMIT_S,
        )

    return run


def test_pull_list_show_and_remove(edge: Edge, hub: Hub) -> None:
    pulled = edge("pull", REFERENCE)
    assert pulled.returncode == 0, pulled.stderr
    path = Path(pulled.stdout.rstrip("\n"))
    assert path.read_bytes() == hub.repos["acme/tiny"].files["tiny.gguf"]
    assert "apache-2.0" in pulled.stderr
    assert "\x1b" not in pulled.stderr
    (listed,) = json.loads(edge("ls", "--here", "--json").stdout)
    assert (listed["path"], listed["owner"], listed["is_here"]) == (str(path), "edge", True)
    assert edge("show", REFERENCE, "--path").stdout == pulled.stdout
    assert edge("show", REFERENCE, "--verify").returncode == 0
    removed = edge("rm", REFERENCE)
    assert removed.returncode == 0, removed.stderr
    assert not path.exists()
    assert edge("rm", REFERENCE).returncode == 3


def test_ctrl_c_keeps_what_has_arrived_and_the_next_pull_resumes(edge: Edge, hub: Hub, environ: dict[str, str]) -> None:
    hub.fail("content", stall_after=1_000_000)
    child = subprocess.Popen(
        [EDGE, "models", "pull", REFERENCE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
    )
    assert child.stderr is not None
    # A line every tenth: two of them, and something has arrived.
    seen = [child.stderr.readline()]
    while seen[-1] and sum(line.startswith(b"Downloading") for line in seen) < 2:
        seen.append(child.stderr.readline())
    child.send_signal(signal.SIGINT)
    out, errors = child.communicate(timeout=LIMIT_S)
    assert (child.returncode, out) == (130, b"")
    assert b"run the same command again to resume" in errors
    assert b"Traceback" not in errors
    done = edge("pull", REFERENCE)
    assert done.returncode == 0, done.stderr
    assert hub.of("content")[-1].range_start > 0
    assert Path(done.stdout.rstrip("\n")).read_bytes() == hub.repos["acme/tiny"].files["tiny.gguf"]


def test_a_pull_that_is_refused(edge: Edge, hub: Hub) -> None:
    hub.repos["acme/tiny"].gated = True
    done = edge("pull", REFERENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "HF_TOKEN" in done.stderr
    hub.repos["acme/tiny"].private = True
    done = edge("pull", REFERENCE)
    assert (done.returncode, done.stdout) == (3, "")
    assert "acme/tiny" in done.stderr


def test_a_pull_without_network(edge: Edge, environ: dict[str, str]) -> None:
    environ["EDGE_HUB_OFFLINE"] = "1"
    done = edge("pull", REFERENCE)
    assert done.returncode != 0
    assert "offline" in done.stderr
