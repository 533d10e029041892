"""Who may use the server: Host, Origin, content type and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from edge.config import Settings
from edge.config.schema import ServerSettings
from edge.errors import ConfigError, StorageError
from edge_serve.keys import read_keys
from edge_serve.server import make_service
from tests.serving import Serving, serving

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:99", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_a_host_that_is_not_the_servers_own_is_refused(running: Serving, host: str, status: int) -> None:
    assert running.post(CHAT, ASK, {"Host": host})[0] == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_a_page_of_another_origin_is_refused(running: Serving, origin: str) -> None:
    status, headers, body = running.post(CHAT, ASK, {"Origin": origin})
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in headers
    assert running.ask("OPTIONS", CHAT, headers={"Origin": origin, "Access-Control-Request-Method": "POST"})[0] == 403


def test_the_servers_own_page_may_use_it(running: Serving) -> None:
    assert running.post(CHAT, ASK, {"Origin": running.url})[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_form_could_send_is_refused(running: Serving, kind: str) -> None:
    assert running.post(CHAT, ASK, {"Content-Type": kind})[0] == 415


def test_listed_hosts_and_origins_are_let_in() -> None:
    page = "https://app.example.org"
    with serving(server={"allowed_origins": (page,), "allowed_hosts": ("edge.local",)}) as server:
        status, headers, _ = server.post(CHAT, ASK, {"Origin": page, "Host": "edge.local:80"})
        assert (status, headers["access-control-allow-origin"]) == (200, page)
        status, headers, _ = server.ask(
            "OPTIONS", CHAT, headers={"Origin": page, "Access-Control-Request-Headers": "authorization,content-type"}
        )
        assert (status, headers["access-control-allow-headers"]) == (204, "authorization,content-type")
        assert server.post(CHAT, ASK, {"Origin": "https://app.example.org.evil"})[0] == 403


def test_a_preflight_has_each_header_once_and_no_body() -> None:
    page = "https://App.example.org/"
    with serving(server={"allowed_origins": (page,), "allowed_hosts": ("Edge.local:8033",)}) as server:
        head = "Host: edge.local\r\nOrigin: https://app.example.org\r\nConnection: close\r\n"
        answer = server.raw(f"OPTIONS {CHAT} HTTP/1.1\r\n{head}\r\n".encode()).lower()
    assert answer.startswith(b"http/1.1 204")
    assert answer.count(b"access-control-allow-origin:") == 1  # a browser refuses two
    assert b"content-length" not in answer


KEYS = f"# clients\nann {'a' * 32}\n{'b' * 32}\n"


def test_a_key_is_asked_for_and_names_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "keys").write_text(KEYS)
    caplog.set_level("INFO", "edge.serve.access")
    with serving(server={"keys_file": tmp_path / "keys"}) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"x-api-key": "wrong"}):
            status, sent, body = server.post(CHAT, ASK, headers)
            assert (status, body["error"]["type"], sent["www-authenticate"]) == (401, "authentication_error", "Bearer")
        assert server.post(CHAT, ASK, {"x-api-key": "b" * 32})[0] == 200
        assert server.ask("GET", "/health")[0] == 200
        assert server.ask("GET", "/metrics")[0] == 401
        reply = OpenAI(base_url=f"{server.url}/v1", api_key="a" * 32).chat.completions.create(model="tiny", **ASK)
        assert reply.choices
    clients = [record.__dict__["line"]["client"] for record in caplog.records if record.name == "edge.serve.access"]
    assert "ann" in clients
    assert "a" * 32 not in caplog.text


def test_clients_do_not_see_what_others_asked(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    with serving(server={"keys_file": tmp_path / "keys"}) as server:

        def cached(key: str) -> int:
            _, _, body = server.post(CHAT, ASK, {"x-api-key": key * 32})
            n: int = body["usage"]["prompt_tokens_details"]["cached_tokens"]
            return n

        assert cached("a") == 0
        assert cached("b") == 0  # would be most of the prompt
        assert cached("a") > 0


def test_an_open_address_needs_keys() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ConfigError, match="has no keys"):
            make_service(Settings(server=ServerSettings(host=host)), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", f"a b {'c' * 32}\n", f"{'c' * 32}\n{'c' * 32}\n"])
def test_a_file_of_keys_that_is_wrong_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError):
        read_keys(tmp_path / "keys")
    with pytest.raises(StorageError):
        read_keys(tmp_path / "none")


def test_a_unix_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "edge.sock"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    with serving(server={"socket": path}) as server:
        assert server.url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
