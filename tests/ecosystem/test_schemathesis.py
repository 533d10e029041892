"""Requests that schemathesis makes from /openapi.json: none makes the server fail, every answer is as described."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import psutil
import pytest

from edge.types import Sampling
from edge_serve.operations import OPERATIONS
from tests.ecosystem.conftest import Others
from tests.prove import proof_size
from tests.serving import Serving, serving, wait_until

HERE = Path(__file__).parent
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance"
)
SEEDS = proof_size([1], list(range(1, 9)))

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")


def fuzz(others: Others, server: Serving, *options: str) -> None:
    """Let schemathesis ask a server, and fail with what it found."""
    command = ("schemathesis", "--config-file", HERE / "schemathesis.toml", "run", f"{server.url}/openapi.json", "--no-color")
    done = others.run(*command, *options, "--max-failures", "20", SCHEMATHESIS_HOOKS=str(HERE / "hooks.py"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"Tested: {len(OPERATIONS) - 1}" in done.stdout  # all but /openapi.json, where it has them from


def left_behind(server: Serving) -> tuple[int, int]:
    """Wait until nothing runs, and return the number of threads and of open files."""
    wait_until(lambda: not server.service.replies)
    wait_until(lambda: all(model.n_users == 0 for model in server.service.runtime.loaded))
    wait_until(lambda: not server.server.server_state.connections)
    return threading.active_count(), psutil.Process().num_fds()


@pytest.mark.prove
@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_any_request_gets_an_answer_as_it_is_described(others: Others, seed: int) -> None:
    with serving(models=("tiny", "other"), settings={"sampling": Sampling(max_tokens=2)}) as server:
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
        before = left_behind(server)
        n_examples = proof_size("2", "100")
        fuzz(others, server, "--seed", str(seed), "-n", n_examples, "--checks", f"{CHECKS},error_form")
        threads, files = left_behind(server)
        assert threads <= before[0] + 8  # the pool of the event loop
        assert files <= before[1] + 4
        assert len(server.backends) <= 2


def test_no_endpoint_forgets_to_ask_for_the_key(others: Others, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key-of-enough-letters-to-be-taken\n")
    with serving(server={"keys_file": keys}) as server:
        key = ("--header", f"Authorization: Bearer {keys.read_text().strip()}")
        fuzz(others, server, "--phases", "fuzzing", "-n", "1", "--mode", "positive", "--checks", "ignored_auth", *key)
