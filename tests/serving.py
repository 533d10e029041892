"""A server of fake models in a thread, for tests."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.catalog import Installed
from edge.config import Settings
from edge.config.schema import EngineSettings, ServerSettings
from edge.grounding.sources import Sources
from edge.runtime import Runtime
from edge_serve.offer import Offer
from edge_serve.server import Server, make_service, open_socket, url_of
from edge_serve.service import Service
from tests.tiny_embedding import load_hashed

WAIT_S = 60.0


@dataclass
class Serving:
    """A server that runs.

    Attributes:
        url: its address.
        server, service: its parts.
        backends: of the models that were loaded, by name.
    """

    url: str
    server: Server
    service: Service
    backends: dict[str, FakeBackend] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def connect(self) -> socket.socket:
        """Return a connection."""
        return socket.create_connection(self.address, timeout=WAIT_S)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], Any]:
        """Send a JSON value, and return status, headers and the JSON value of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, data, {"Content-Type": "application/json", **(headers or {})})

    def ask(
        self, method: str, path: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Send a request, and return status, headers and the JSON value (or bytes) of the answer."""
        lines = {"Host": self.url.removeprefix("http://"), "Connection": "close", **(headers or {})}
        if data or method == "POST":
            lines["Content-Length"] = str(len(data))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        answer = self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        status, sent, body = parse(answer)
        return status, sent, json.loads(body) if sent.get("content-type") == "application/json" else body


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait until something is true."""
    until = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < until, "it never became true"
        time.sleep(0.01)


def read_all(connection: socket.socket) -> bytes:
    """Return everything until the other end closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers (lower case) and body of a response; a chunked body is joined."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        whole, rest = b"", body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            n = int(size or b"0", 16)
            whole, rest = whole + rest[:n], rest[n + 2 :]
        body = whole
    return int(first.split()[1]), headers, body


@contextlib.contextmanager
def serving(
    *,
    server: dict[str, Any] | None = None,
    models: tuple[str, ...] = ("tiny",),
    more: tuple[str, ...] = (),
    settings: dict[str, Any] | None = None,
    **backend: Any,
) -> Iterator[Serving]:
    """Run a server in a thread.

    Args:
        server: fields of `ServerSettings`.
        models: names of the models; the first is the default.
        more: models besides the first that are loaded at the start.
        settings: other fields of `Settings`.
        backend: options of `FakeBackend`.
    """
    chosen = ServerSettings(**{"port": 0, "grace_s": 1.0, **(server or {})})
    all_settings = Settings(
        model=models[0],
        server=chosen,
        window="refuse",
        engine=EngineSettings(max_waiting=chosen.max_waiting),
        **(settings or {}),
    )
    backends: dict[str, FakeBackend] = {}

    def load(name: str, *, settings: Settings, on_progress: Any) -> Assistant:
        backends[name] = FakeBackend(**{"n_ctx": 1024, **backend})
        return Assistant(
            backends[name],
            window=settings.window,
            max_waiting=settings.engine.max_waiting,
            sampling=settings.sampling,
            sources=Sources(settings.paths.documents_dir),
        )

    with Runtime(
        settings=all_settings, idle_s=chosen.idle_s, load=load, plan=lambda *_, **__: None, load_embedder=load_hashed
    ) as runtime:
        service = make_service(all_settings, runtime)
        service.offer = Offer(
            all_settings,
            lambda _: [Installed(name, name, Path(name), 0, "a test", "edge", (name,), None, None) for name in models],
            more,
        )
        with open_socket(chosen) as listener:
            started = threading.Event()
            running = Server(service, listener, started.set)
            thread = threading.Thread(target=running.run_until_stopped, name="server")
            thread.start()
            assert started.wait(WAIT_S)
            try:
                yield Serving(url_of(listener), running, service, backends)
            finally:
                running.stop()
                running.stop()
                thread.join(WAIT_S)
                assert not thread.is_alive()
