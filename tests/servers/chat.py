"""A server on 127.0.0.1 with OpenAI's protocol for chats, which misbehaves on demand. A script says what each request gets."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 30.0


@dataclass
class Says:
    """What one request gets; by default an answer in three pieces.

    Attributes:
        pieces: texts of the answer.
        status, headers, body: of a response that is no stream, if the status is not 200 or the body is not None.
        kind: content type of the stream.
        raw: bytes in place of the events.
        cut_after: close the connection after so many pieces.
        stall_after: send nothing behind so many pieces until the server is released.
        comments_after: send comments behind so many pieces, until the client goes or the server is released.
        reason: of the end; None leaves it out.
        is_dropped: close the connection without a word.
    """

    pieces: tuple[str, ...] = ("Pa", "ri", "s")
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    kind: str = "text/event-stream"
    raw: bytes | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    comments_after: int | None = None
    reason: str | None = "stop"
    is_dropped: bool = False


@dataclass
class ChatServer:
    """A server that runs.

    Attributes:
        url: its address.
        script: what the next requests get; when it is empty, an answer.
        asked: bodies of the chats, oldest first.
        headers: of every request, names in lower case.
        paths: of every request.
        gone: set once a client has closed its connection in the middle of an answer.
        release: set to end what stalls.
    """

    url: str = ""
    script: deque[Says] = field(default_factory=deque)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def chat_server(*script: Says) -> Iterator[ChatServer]:
    """Run a server in a thread."""
    state = ChatServer(script=deque(script))
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        http.shutdown()
        http.server_close()
        thread.join(WAIT_S)


class _Handler(BaseHTTPRequestHandler):
    state: ChatServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._note()
        self._send(200, {}, b'{"object": "list", "data": [{"id": "listed-model"}, {"id": "other"}]}')

    def do_POST(self) -> None:
        self._note()
        self.state.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        says = self.state.script.popleft() if self.state.script else Says()
        if says.is_dropped:
            self.close_connection = True
            return
        if says.status != 200 or says.body is not None:
            self._send(says.status, says.headers, says.body or b"{}")
            return
        with contextlib.suppress(OSError):
            self._stream(says)

    def _note(self) -> None:
        self.state.paths.append(self.path)
        self.state.headers.append({name.lower(): value for name, value in self.headers.items()})

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, says: Says) -> None:
        self.send_response(200)
        self.send_header("Content-Type", says.kind)
        self.end_headers()  # closed at the end, as HTTP/1.0 is
        if says.raw is not None:
            self.wfile.write(says.raw)
            return
        for number, piece in enumerate(says.pieces):
            if number == says.cut_after:
                return
            if number == says.stall_after:
                self._wait()
            if number == says.comments_after:
                while not self.state.release.wait(0.02):
                    self._write(b": still here\n\n")
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}], "model": "real-model"})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": says.reason}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": len(says.pieces)}})
        self._write(b"data: [DONE]\n\n")

    def _event(self, value: object) -> None:
        self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.state.gone.set()
            raise

    def _wait(self) -> None:
        """Wait until the client goes, or the server is released."""
        self.connection.settimeout(0.02)
        until = time.monotonic() + WAIT_S
        while not self.state.release.is_set() and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1):
                    self.state.gone.set()
                    raise ConnectionResetError
        self.connection.settimeout(None)
