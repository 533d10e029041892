"""The page at `/`, and the state that it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import edge_serve
from tests.serving import Serving, serving, wait_until
from tests.unit.serve.test_faults import ask, request

PAGE = Path(edge_serve.__file__).with_name("page.html")


def test_the_page_is_whole_and_asks_nobody_else(running: Serving) -> None:
    status, headers, body = running.ask("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body == PAGE.read_bytes()
    assert not re.search(rb"https?://|//[a-z]+\.|innerHTML|insertAdjacent|eval\(|\son[a-z]+=|\sstyle=", body)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "connect-src 'self'" in policy


def test_the_state_has_models_replies_tokens_and_memory() -> None:
    with serving(script=lambda _: "word " * 100_000, delay_s=0.01, n_ctx=100_000) as server:
        server.post("/v1/chat/completions", ask(max_tokens=3))
        with server.connect() as connection:
            connection.sendall(request(ask(stream=True)))
            wait_until(lambda: any(reply.text for reply in server.service.replies))
            _, _, state = server.ask("GET", "/status")
        assert (state["status"], state["tokens"]["generated"]) == ("ok", 3)
        (reply,) = state["replies"]
        assert (reply["model"], reply["state"]) == ("tiny", "generating")
        assert reply["characters"] > 0 and reply["prompt_done"] == reply["prompt_total"] > 0
        assert [(model["id"], model["status"]) for model in state["models"]] == [("tiny", "loaded")]
        assert state["memory_bytes"] > 1_000_000
        wait_until(lambda: server.ask("GET", "/status")[2]["replies"] == [])


def test_the_state_asks_for_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a" * 32)
    with serving(server={"keys_file": tmp_path / "keys"}) as server:
        assert server.ask("GET", "/")[0] == 200
        assert server.ask("GET", "/status")[0] == 401
        assert server.ask("GET", "/status", headers={"x-api-key": "a" * 32})[0] == 200


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not here to read the script")
def test_the_script_is_valid(tmp_path: Path) -> None:
    script = re.search(r"<script>(.*?)</script>", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None
    (tmp_path / "page.js").write_text(script[1], encoding="utf-8")
    subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)
