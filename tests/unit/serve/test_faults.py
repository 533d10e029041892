"""Broken requests, clients that go, and too many of them."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge_serve import limits
from tests.serving import WAIT_S, Serving, parse, read_all, serving, wait_until

CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def ask(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


def request(body: object, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"{HEAD}Content-Length: {len(data)}\r\n{headers}\r\n".encode() + data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"hi"',
        b'{"messages": \xff}',
        b'{"messages": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{}{}",
    ],
)
def test_a_body_that_is_not_json_is_400_in_the_protocols_form(running: Serving, body: bytes) -> None:
    status, _, answer = running.post(CHAT, body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "said", "param", "code"),
    [
        (
            "/v1/chat/completions",
            {"temperature": "hot"},
            "temperature is text, and should be a number or null",
            "temperature",
            "invalid_type",
        ),
        (
            "/v1/chat/completions",
            {"stream_options": []},
            "stream_options is a list, and should be an object or null",
            "stream_options",
            "invalid_type",
        ),
        ("/v1/embeddings", {}, "input is missing", "input", "missing_required_parameter"),
    ],
)
def test_a_wrong_type_and_a_missing_field_are_said_in_plain_words(
    running: Serving, path: str, body: dict[str, object], said: str, param: str, code: str
) -> None:
    status, _, answer = running.post(path, body)
    error = answer["error"]
    assert (status, error["message"], error["param"], error["code"]) == (400, f"The body is wrong: {said}.", param, code)


def test_claude_and_ollama_say_it_in_plain_words_too(running: Serving) -> None:
    _, _, claude = running.post("/v1/messages", {"messages": [{"role": "user", "content": "hi"}]})
    assert claude["error"]["message"] == "The body is wrong: max_tokens is missing."
    _, _, ollama = running.post("/api/generate", {"prompt": "hi", "options": {"lora": ["x"]}})
    assert ollama["error"] == "The options are wrong: lora[0] is text, and should be an object."


def test_text_of_any_kind_is_taken(running: Serving) -> None:
    for text in ("\x00\x01", "\N{GRINNING FACE}", '"\\\n', "<|im_end|>"):
        assert running.post(CHAT, ask(text, max_tokens=1))[0] == 200
    assert running.post(CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}')[0] in (200, 400)


@pytest.mark.parametrize(("path", "form"), [("/v1/nothing", "error"), ("/index.html", "error"), ("/../../etc/passwd", "error")])
def test_an_unknown_path_is_404(running: Serving, path: str, form: str) -> None:
    status, _, body = running.ask("GET", path)
    assert (status, form in body) == (404, True)


def test_a_wrong_method_is_405(running: Serving) -> None:
    status, headers, body = running.ask("GET", CHAT)
    assert (status, body["error"]["code"], headers["allow"]) == (405, "method_not_allowed", "POST")


def test_a_body_that_is_too_long_is_413_before_it_is_read(running: Serving) -> None:
    head = f"{HEAD}Content-Length: {10**8}\r\nConnection: close\r\n\r\n"
    assert parse(running.raw(head.encode()))[0] == 413


def test_a_chunked_body_that_is_too_long_is_413(running: Serving) -> None:
    head = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with running.connect() as connection:
        connection.sendall(head.encode())
        try:
            for _ in range(limits.BODY_BYTES // 0x100000 + 1):
                connection.sendall(chunk)
        except OSError:
            pass  # it is refused already
        assert b" 413 " in connection.recv(1000)


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"a" * 100_000,
        b"\x16\x03\x01",
    ],
)
def test_a_broken_or_huge_head_ends_the_connection(running: Serving, head: bytes) -> None:
    with running.connect() as connection:
        try:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it is refused already
        answer = read_all(connection)
    assert not answer or answer.split(b"\r\n", 1)[0].split()[1] in (b"400", b"431")
    assert running.ask("GET", "/health")[0] == 200


def test_a_request_that_does_not_arrive_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEADER_S", 0.2)
    monkeypatch.setattr(limits, "BODY_IDLE_S", 0.2)
    with serving() as server:
        assert server.raw(b"POST / HTTP/1.1\r\nHost") == b""
        assert server.raw(b"") == b""
        answer = server.raw(request(ask(), "Connection: close\r\n")[:-5])
        assert parse(answer)[0] == 408


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_while_its_reply_runs_stops_it(stream: bool) -> None:
    with serving(script=lambda _: "word " * 100_000, delay_s=0.01, n_ctx=100_000) as server:
        with server.connect() as connection:
            connection.sendall(request(ask(stream=stream)))
            wait_until(lambda: any(reply.text for reply in server.service.replies))
            (reply,) = server.service.replies
        wait_until(lambda: reply.is_done)
        assert reply.finish_reason == "cancelled"
        wait_until(lambda: server.service.counters.requests[CHAT, 499] == 1)
        assert not server.service.replies


def test_a_body_that_comes_in_drops_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_S", 0.3)
    with serving() as server, server.connect() as connection:
        connection.sendall(f"{HEAD}Content-Length: 100000\r\nConnection: close\r\n\r\n".encode())
        for _ in range(1000):
            try:
                connection.sendall(b" ")
            except OSError:
                break  # it was refused, and the connection closed
            if server.service.counters.requests[CHAT, 408]:
                break
            time.sleep(0.02)
        assert server.service.counters.requests[CHAT, 408] == 1


def test_a_client_that_goes_while_its_prompt_is_read_stops_that() -> None:
    with serving(prefill_delay_s=0.05, n_ctx=100_000) as server:
        with server.connect() as connection:
            connection.sendall(request(ask("x" * 50_000, stream=True)))
            wait_until(lambda: any(reply.progress != (0, 0) for reply in server.service.replies))
            (reply,) = server.service.replies
        wait_until(lambda: reply.is_done)
        assert reply.finish_reason == "cancelled"
        assert reply.progress[0] < reply.progress[1]


def test_a_client_that_goes_while_it_waits_is_never_answered() -> None:
    with (
        serving(script=lambda _: "word " * 100_000, delay_s=0.01, n_ctx=100_000, n_seq=1) as server,
        server.connect() as first,
    ):
        first.sendall(request(ask(stream=True)))
        wait_until(lambda: any(reply.text for reply in server.service.replies))
        (running,) = server.service.replies
        with server.connect() as second:
            second.sendall(request(ask("second", stream=True)))
            wait_until(lambda: len(server.service.replies) == 2)
            (waiting,) = server.service.replies.keys() - {running}
        wait_until(lambda: waiting.is_done)
        assert waiting.finish_reason == "cancelled"
        assert waiting.text == ""
        assert not running.is_done


def test_one_more_than_may_wait_is_refused_with_a_time() -> None:
    with (
        serving(script=lambda _: "word " * 100_000, delay_s=0.01, n_ctx=100_000, n_seq=1, server={"max_waiting": 1}) as server,
        server.connect() as first,
        server.connect() as second,
    ):
        first.sendall(request(ask(stream=True)))
        wait_until(lambda: len(server.service.replies) == 1)
        second.sendall(request(ask(stream=True)))
        wait_until(lambda: len(server.service.replies) == 2)
        status, headers, body = server.post(CHAT, ask())
        assert (status, body["error"]["type"], body["error"]["code"]) == (429, "rate_limit_error", "busy")
        assert 1 <= int(headers["retry-after"]) <= 60


def test_a_client_with_too_many_requests_leaves_room_for_others(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"ann {'a' * 32}\nbob {'b' * 32}\n")
    limits = {"keys_file": tmp_path / "keys", "max_requests_each": 2}
    ann, bob = ({"x-api-key": letter * 32} for letter in "ab")
    with serving(script=lambda _: "word " * 100_000, delay_s=0.001, n_ctx=100_000, server=limits) as server:
        with server.connect() as first, server.connect() as second:
            for connection in (first, second):
                connection.sendall(request(ask(stream=True), f"x-api-key: {ann['x-api-key']}\r\n"))
            wait_until(lambda: len(server.service.replies) == 2)
            status, headers, body = server.post(CHAT, ask(max_tokens=1), ann)
            assert (status, body["error"]["code"]) == (429, "busy") and int(headers["retry-after"]) >= 1
            assert server.ask("GET", "/v1/models", headers=ann)[0] == 200
            assert server.post(CHAT, ask(max_tokens=1), bob)[0] == 200
        wait_until(lambda: not server.service.replies)
        wait_until(lambda: server.post(CHAT, ask(max_tokens=1), ann)[0] == 200)


def test_health_is_answered_while_requests_are_refused(running: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS", 0)
    assert running.post(CHAT, ask(max_tokens=1))[0] == 429
    assert [running.ask("GET", path)[0] for path in ("/health", "/metrics")] == [200, 200]


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SEND_S", 0.2)
    text = " ".join(map(str, range(200_000)))
    with serving(script=lambda _: text, n_ctx=1 << 21) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(server.address)
        with connection:
            connection.sendall(request(ask(stream=True)))
            wait_until(lambda: bool(server.service.replies))
            (reply,) = server.service.replies
            wait_until(lambda: reply.is_done)
            assert reply.finish_reason == "cancelled"
            wait_until(lambda: not server.server.server_state.connections)  # though the client holds its end


@pytest.mark.parametrize("n_kept", [0, 1])
async def test_a_model_that_was_taken_as_the_client_went_is_given_back(n_kept: int) -> None:
    from types import SimpleNamespace

    from edge.assistant import Assistant
    from edge.backends.fake import FakeBackend
    from edge.runtime import Runtime
    from edge_serve.answers import hold_model
    from edge_serve.errors import ClientGoneError
    from edge_serve.offer import Offered

    async def race(awaitable: Any) -> Any:
        taken = await awaitable
        if not n_kept:
            raise ClientGoneError
        return taken

    async def find(_: object) -> Offered:
        return Offered("tiny", "tiny")

    async with Runtime(load=lambda *_, **__: Assistant(FakeBackend()), plan=lambda *_, **__: None) as runtime:
        service = SimpleNamespace(runtime=runtime, offer=SimpleNamespace(find=find), waits=set(), check_running=lambda: None)
        call: Any = SimpleNamespace(service=service, record=SimpleNamespace(), client=SimpleNamespace(race=race))
        try:
            async with hold_model(call, None):
                assert [model.n_users for model in runtime.loaded] == [n_kept]
        except ClientGoneError:
            assert not n_kept
        assert [model.n_users for model in runtime.loaded] == [0]


def test_a_stream_that_waits_has_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HELD_S", 0.05)
    monkeypatch.setattr(limits, "PING_S", 0.05)
    with serving(prefill_delay_s=0.2) as server:
        _, _, body = server.post(CHAT, ask("x" * 300, stream=True, max_tokens=1))
        assert b"\n\n: ping\n\n" in body


def test_an_engine_that_fails_before_the_headers_is_a_status_and_later_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.errors import BackendError

    with serving(n_ctx=4096) as server:
        server.post(CHAT, ask(max_tokens=1))
        backend = server.backends["tiny"]

        def fail(*_: object) -> None:
            raise BackendError("secret detail")

        with monkeypatch.context() as patch:
            patch.setattr(backend, "_decode", fail)
            status, _, body = server.post(CHAT, ask())
            assert (status, body["error"]["code"]) == (500, "engine_error")
            assert "secret" not in body["error"]["message"]
            status, _, body = server.post(CHAT, ask(stream=True))
            *_, last = [line for line in body.decode().split("\n\n") if line]
            assert status == 200
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_error"
            assert b"[DONE]" not in body
            body = server.post("/v1/responses", {"input": "hi", "stream": True})[2]
            data = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
            assert (data[-2]["type"], data[-2]["sequence_number"]) == ("response.failed", len(data) - 2)
            assert (data[-2]["response"]["status"], data[-2]["response"]["error"]["code"]) == ("failed", "server_error")
            assert data[-1]["error"]["code"] == "engine_error" and "secret" not in body.decode()
        assert server.post(CHAT, ask(max_tokens=1))[0] == 200


def test_the_time_of_a_request_is_bounded() -> None:
    with serving(script=lambda _: "word " * 100_000, delay_s=0.01, n_ctx=100_000, server={"timeout_s": 0.3}) as server:
        _, _, body = server.post(CHAT, ask())
        assert body["choices"][0]["finish_reason"] == "length"
        assert "longer than 0.3 seconds" in body["notices"][0]


def test_many_clients_that_go_at_random_leave_nothing_behind() -> None:
    import random

    choose = random.Random(1)
    with serving(script=lambda _: "word " * 200, n_ctx=100_000) as server:
        n_threads = threading.active_count()

        def visit(seed: int) -> None:
            with server.connect() as connection:
                connection.sendall(request(ask(str(seed) * choose.randint(1, 500), stream=bool(seed % 2))))
                connection.settimeout(choose.random() / 5)
                try:
                    read_all(connection)
                except TimeoutError:
                    pass

        clients = [threading.Thread(target=visit, args=(seed,)) for seed in range(40)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(WAIT_S)
        wait_until(lambda: not server.service.replies)
        wait_until(lambda: threading.active_count() <= n_threads + 6)  # of the event loop's pool
        (model,) = server.service.runtime.loaded
        wait_until(lambda: model.n_users == 0)  # also of requests that the server had not read when their clients left
        assert server.post(CHAT, ask(max_tokens=1))[0] == 200
