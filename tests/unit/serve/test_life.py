"""The server as a process: start, end, health, counters and the access log."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from edge_serve import access
from edge_serve.server import open_socket
from tests.serving import WAIT_S, parse, read_all, serving, wait_until
from tests.unit.serve.test_faults import CHAT, ask, request

EDGE = Path(sys.executable).with_name("edge")


def test_running_replies_may_end_when_the_server_stops() -> None:
    with serving(script=lambda _: "word " * 20, delay_s=0.005, server={"grace_s": 30}) as server:
        with server.connect() as connection:
            connection.sendall(request(ask(stream=True), "Connection: close\r\n"))
            wait_until(lambda: any(reply.text for reply in server.service.replies))
            server.server.stop()
            status, _, body = parse(read_all(connection))
        assert status == 200
        assert body.endswith(b"data: [DONE]\n\n")
        with pytest.raises(OSError):
            server.connect()


def test_a_reply_that_does_not_end_in_time_is_stopped_and_told() -> None:
    with serving(script=lambda _: "word " * 100_000, delay_s=0.005, n_ctx=100_000, server={"grace_s": 0.1}) as server:
        with server.connect() as connection:
            connection.sendall(request(ask(stream=True)))
            wait_until(lambda: any(reply.text for reply in server.service.replies))
            server.server.stop()
            body = parse(read_all(connection))[2]
        assert json.loads(body.decode().strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "stopping"


def test_what_was_sent_before_the_end_is_answered() -> None:
    with serving() as server:
        server.post(CHAT, ask(max_tokens=1))
        may_go_on, loop = threading.Event(), server.server._loop
        assert loop is not None
        loop.call_soon_threadsafe(may_go_on.wait, WAIT_S)
        with server.connect() as connection:
            connection.sendall(request(ask(max_tokens=1)))
            server.server.stop()
            may_go_on.set()
            assert parse(read_all(connection))[0] == 200


def test_a_request_whose_model_comes_too_late_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.backends.fake import FakeBackend

    may_load, original = threading.Event(), FakeBackend.__init__

    def wait_first(self: FakeBackend, *arguments: Any, **options: Any) -> None:
        assert may_load.wait(WAIT_S)
        original(self, *arguments, **options)

    monkeypatch.setattr(FakeBackend, "__init__", wait_first)
    with serving() as server, server.connect() as connection:
        connection.sendall(request(ask(max_tokens=1), "Connection: close\r\n"))
        wait_until(lambda: server.server.server_state.tasks != set())
        server.server.stop()
        server.server.stop()  # at once
        status, _, body = parse(read_all(connection))  # while it is still being loaded
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
        may_load.set()


def test_a_second_signal_waits_for_no_client() -> None:
    """One that sends its body slowly would hold the server for the time that it may take, and for the grace."""
    with serving(server={"grace_s": 600}) as server, server.connect() as connection:
        connection.sendall(request(ask())[:-5])
        wait_until(lambda: server.server.server_state.tasks != set())
        server.server.stop()
        server.server.stop()
        assert b"HTTP/1.1 200" not in read_all(connection)


def test_a_server_is_loading_until_its_model_was_tried() -> None:
    with serving() as server:
        service = server.service
        wait_until(lambda: service.state == "ok")
        service.is_starting = True  # as before the list of models was read
        assert service.state == "loading"
        service.is_starting, service.problem = False, "no memory"
        assert service.state == "ok"  # a request has loaded it since
        service.runtime.unload("tiny")
        assert service.state == "failed"


def test_requests_wait_for_the_model_and_health_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.backends.fake import FakeBackend

    may_load = threading.Event()
    original = FakeBackend.__init__

    def wait_first(self: FakeBackend, *arguments: Any, **options: Any) -> None:
        assert may_load.wait(WAIT_S)
        original(self, *arguments, **options)

    monkeypatch.setattr(FakeBackend, "__init__", wait_first)
    with serving() as server:
        wait_until(lambda: server.ask("GET", "/health")[0] == 503)
        assert server.ask("GET", "/health")[2]["status"] == "loading"
        assert [model["status"] for model in server.ask("GET", "/v1/models")[2]["data"]] == ["loading"]
        with server.connect() as connection:
            connection.sendall(request(ask(max_tokens=1), "Connection: close\r\n"))
            may_load.set()
            assert parse(read_all(connection))[0] == 200
        assert server.ask("GET", "/health")[2]["status"] == "ok"


def test_a_model_that_cannot_be_loaded_is_an_error_of_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.backends.fake import FakeBackend
    from edge.errors import ModelFileError

    def fail(*_: object, **__: object) -> None:
        raise ModelFileError("The file is truncated.")

    monkeypatch.setattr(FakeBackend, "__init__", fail)
    with serving() as server:
        status, _, body = server.post(CHAT, ask())
        assert (status, body["error"]["message"]) == (500, "The file is truncated.")
        wait_until(lambda: server.ask("GET", "/health")[2]["status"] == "failed")


async def test_models_are_listed_only_where_a_name_is_not_known() -> None:
    from edge.catalog import Installed
    from edge.config import Settings
    from edge_serve.errors import ApiError
    from edge_serve.offer import Offer

    lists: list[int] = []
    installed = [Installed("tiny", "tiny", Path("tiny"), 0, "", "edge", ("tiny", "alias"), None, None)]

    def list_models(_: Settings) -> list[Installed]:
        lists.append(1)
        return installed

    offer = Offer(Settings(model="/models/own.gguf"), list_models)
    assert (await offer.find(None)).id == "own"
    assert [(await offer.find(name)).id for name in ("tiny", "alias", "tiny:latest", "own", "/models/own.gguf")] == [
        "tiny",
        "tiny",
        "tiny",
        "own",
        "own",
    ]
    assert len(lists) == 1
    with pytest.raises(ApiError, match="own, tiny"):
        await offer.find("new")
    offer._read_at = float("-inf")  # some seconds later
    installed.append(Installed("new", "new", Path("new"), 0, "", "edge", ("new",), None, None))
    assert (await offer.find("new")).id == "new"


def test_counters_are_there_for_prometheus() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with serving() as server:
        server.post(CHAT, ask(max_tokens=3))
        server.post(CHAT, b"{")
        server.ask("GET", "/secret-path")
        status, headers, body = server.ask("GET", "/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }
        assert found["edge_requests_total", CHAT, "200"] == 1
        assert found["edge_requests_total", CHAT, "400"] == 1
        assert found["edge_requests_total", "other", "404"] == 1
        assert found["edge_tokens_total", "generated", "tiny"] == 3
        assert found["edge_running_replies", "tiny"] == 0
        assert found["edge_request_seconds_count",] == 1
        assert b"secret-path" not in body


def test_the_log_has_a_line_a_request_and_no_text_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("text", "json"):
        access.set_up(form)
        try:
            with serving() as server:
                server.post(CHAT + "?secret=1", ask("my secret", max_tokens=2, secretfield=1))
        finally:
            logging.getLogger("edge.serve.access").handlers.clear()
            logging.getLogger("edge.serve.access").propagate = True
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "my secret" not in lines[0] and "secret=1" not in lines[0]
        if form == "json":
            line = json.loads(lines[0])
            assert (line["status"], line["model"], line["completion_tokens"]) == (200, "tiny", 2)


def test_models_named_at_the_start_are_loaded_and_the_first_is_the_default() -> None:
    with serving(models=("small", "other"), more=("other", "/models/own.gguf")) as server:
        wait_until(lambda: len(server.service.runtime.loaded) == 3)
        status, _, answer = server.post(CHAT, ask(max_tokens=1, model="own"))
        assert (status, answer["model"]) == (200, "own")
        assert [model["id"] for model in server.ask("GET", "/v1/models")[2]["data"]] == ["small", "other", "own"]
        assert set(server.backends) == {"small", "other", "/models/own.gguf"}


@pytest.mark.parametrize("arguments", [["nosuch"], ["smollm2-135m", "nosuch"], ["-m", "nosuch"]])
def test_an_unknown_model_ends_the_command_before_it_listens(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from edge_cli.main import run

    assert run(["serve", "--port", "0", *arguments]) != 0
    captured = capsys.readouterr()
    assert "There is no model named 'nosuch'" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("option", ["--port", "--host"])
def test_a_socket_has_neither_host_nor_port(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    from edge_cli.main import run

    assert run(["serve", "--socket", "x", option, "0"]) == 2
    assert f"{option} and --socket exclude each other" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_once() -> None:
    with serving() as server, pytest.raises(UsageError, match="cannot be listened on") as caught:
        from edge.config.schema import ServerSettings

        open_socket(ServerSettings(port=server.address[1]))
    assert "attempting" not in str(caught.value)


@pytest.mark.parametrize("number", [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)])
def test_the_command_serves_until_a_signal_and_ends_well(tmp_path: Path, number: int) -> None:
    from tests.unit.test_docs import write_fake_model

    write_fake_model(tmp_path / "fake.gguf")
    command = [str(EDGE), "serve", "--port", "0", "--json", str(tmp_path / "fake.gguf"), "--backend", "fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None and process.stderr is not None
        model, trouble = "", None
        try:
            line = json.loads(process.stdout.readline())
            assert line["pid"] == process.pid
            body = json.dumps(ask(max_tokens=1)).encode()
            asked = urllib.request.Request(line["url"] + CHAT, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
                model = json.load(answer)["model"]
        except (OSError, ValueError) as error:
            trouble = error
        process.send_signal(number)
        _, errors = process.communicate(timeout=WAIT_S)
        assert model == "fake", (trouble, process.returncode, errors)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_the_command_line_loads_nothing_of_the_server_before_it_serves() -> None:
    code = "import sys, edge_cli.main as main; main.run(['serve', '--help']); print({'starlette', 'uvicorn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_answers_are_sent_at_once_on_a_connection_that_stays_open() -> None:
    import socket

    with serving() as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(10)
        (open_one,) = server.server.server_state.connections
        accepted = open_one.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
