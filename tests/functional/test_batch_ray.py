"""`edge batch --ray` on a local cluster of two nodes: one dies in the middle, and the answers are those of single runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import BackendUnavailableError, UsageError

pytestmark = pytest.mark.slow

# Read when Ray is imported: everything stays on the loopback address, and nobody is told of it.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
ray = pytest.importorskip("ray")
N, WAIT_S = 16, 400.0
EDGE = str(Path(sys.executable).with_name("edge"))


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster on this machine: a head without CPUs, and two nodes of one CPU."""
    from ray.cluster_utils import Cluster

    common = {"include_dashboard": False, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **common})
    try:
        cluster.workers = [cluster.add_node(num_cpus=1, **common) for _ in range(2)]
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_an_item_that_kills_its_worker_is_given_up_and_the_rest_goes_on(nodes: Any) -> None:
    from edge.cluster import Cluster

    items = [(number, b"die" if number == 3 else str(number).encode()) for number in range(12)]
    with Cluster(nodes.address) as cluster:
        assert cluster.n_workers == 2
        found = {done.number: done.data for done in cluster.map("tests.ray_worker:make", b"", iter(items))}
        assert found == {number: None if number == 3 else b"%d done" % number for number in range(12)}
        with pytest.raises(UsageError, match="It cannot work") as caught:
            list(cluster.map("tests.ray_worker:make", b"wrong", iter(items)))
        assert caught.value.hint == "Ask for something else."
    with Cluster(nodes.address) as cluster:
        running = cluster.map("tests.ray_worker:make", b"", iter([(n, str(n).encode()) for n in range(40)]))
        first = [next(running) for _ in range(4)]
        nodes.remove_node(nodes.workers[1], allow_graceful=False)
        rest = list(running)
        assert sorted(done.number for done in (*first, *rest)) == list(range(40))
    with pytest.raises(BackendUnavailableError, match="has 8 CPUs"):
        Cluster(nodes.address, n_cpus=8)


def test_no_cluster_is_said() -> None:
    from edge.cluster import Cluster

    with pytest.raises(BackendUnavailableError, match="There is no Ray cluster"):
        Cluster("127.0.0.1:1")


def test_a_batch_survives_the_death_of_a_node(nodes: Any, model_path: Path, tmp_path: Path) -> None:
    requests = tmp_path / "prompts.jsonl"
    subjects = ["France", "water", "the sun", "bread", "iron", "a cat", "Monday", "a book"]
    lines = []
    for number in range(N):
        body = {"messages": [{"role": "user", "content": f"Say something about {subjects[number % 8]}, in {number} words."}]}
        body |= {"temperature": 0, "max_tokens": 12}
        lines.append(json.dumps({"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}))
    requests.write_text("\n".join(lines) + "\n")

    def command(out: str, *more: str) -> list[str]:
        return [EDGE, "batch", str(requests), "--out", str(tmp_path / out), "-m", str(model_path), "--threads", "1", *more]

    spread = subprocess.Popen(command("spread.jsonl", "--ray", nodes.address), stderr=subprocess.PIPE, text=True)
    out, until = tmp_path / "spread.jsonl", time.monotonic() + WAIT_S
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert spread.poll() is None, spread.stderr.read() if spread.stderr else ""
        assert time.monotonic() < until
        time.sleep(0.05)
    nodes.remove_node(nodes.workers[0], allow_graceful=False)
    _, said = spread.communicate(timeout=WAIT_S)
    assert spread.returncode == 0, said
    assert "2 engines" in said
    assert "16 answers" in said
    subprocess.run(command("alone.jsonl"), check=True, stderr=subprocess.PIPE, timeout=WAIT_S)
    assert texts(out) == texts(tmp_path / "alone.jsonl")
    assert [custom_id for custom_id, _ in texts(out)] == [f"q{number}" for number in range(N)]
    assert not (tmp_path / "spread.errors.jsonl").exists()
    # It goes on where it was: with some answers taken away, the same command adds them and nothing else.
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[: N - 2]))
    again = subprocess.run(command("spread.jsonl", "--ray", nodes.address), stderr=subprocess.PIPE, text=True, timeout=WAIT_S)
    assert again.returncode == 0, again.stderr
    assert "2 answers" in again.stderr
    assert texts(out) == texts(tmp_path / "alone.jsonl")


def texts(path: Path) -> list[tuple[str, str]]:
    """Return (custom id, text) of each answer."""
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    return [(one["custom_id"], one["response"]["body"]["choices"][0]["message"]["content"]) for one in answers]
