"""A model hub on 127.0.0.1 that speaks the protocol of huggingface.co as huggingface_hub uses it, and misbehaves on demand.

Two servers, as in the real thing: the hub answers questions and redirects, and a content server on another port has the bytes.
A fault is put into a queue and used up by the next request of its kind.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

Kind = Literal["listing", "resolve", "content"]


@dataclass
class Repo:
    """One repository; its commit follows from its content."""

    files: dict[str, bytes]
    licence: str | None = "apache-2.0"
    gated: bool = False
    private: bool = False
    has_lfs: bool = True
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(self.files.items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


@dataclass
class Fault:
    """The faults of one request; by default there are none.

    Attributes:
        status: answer this instead.
        headers: with it.
        break_after: close the connection after so many bytes of content.
        stall_after: stop after so many bytes until `Hub.release` is set, then close the connection.
        content: send this instead of the file.
        endless: send the content over and over, in chunks, without saying how long it is.
        ignores_range: send the whole file although a part was asked for.
        location: redirect there.
        change: of the listing: file name -> fields to overwrite.
        body: send this text instead of the listing.
        wait_for: before the content, wait for this event.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    stall_after: int | None = None
    content: bytes | None = None
    endless: bool = False
    ignores_range: bool = False
    location: str | None = None
    change: dict[str, dict[str, Any]] = field(default_factory=dict)
    body: bytes | None = None
    wait_for: threading.Event | None = None


@dataclass
class Request:
    """A request that came in."""

    kind: Kind
    method: str
    path: str
    headers: dict[str, str]

    @property
    def range_start(self) -> int:
        """First byte that was asked for."""
        asked = self.headers.get("range", "bytes=0-")
        return int(asked.removeprefix("bytes=").split("-")[0])


class Hub:
    """The pair of servers. Used through `run_hub`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.token = "hf_test"
        self.faults: dict[Kind, deque[Fault]] = {"listing": deque(), "resolve": deque(), "content": deque()}
        self.requests: list[Request] = []
        self.sent: list[int] = []
        self.release = threading.Event()
        self.stalled = threading.Event()
        self._lock = threading.Lock()
        self._front = _serve(self, _Front)
        self._content = _serve(self, _Content)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._front.server_address[1]}"

    @property
    def content_url(self) -> str:
        return f"http://127.0.0.1:{self._content.server_address[1]}"

    def fail(self, kind: Kind, **fault: Any) -> Fault:
        """Let the next request of that kind go wrong."""
        made = Fault(**fault)
        self.faults[kind].append(made)
        return made

    def of(self, kind: Kind, method: str = "GET") -> list[Request]:
        """Requests of one kind so far."""
        with self._lock:
            return [request for request in self.requests if request.kind == kind and request.method == method]

    def take(self, kind: Kind, handler: BaseHTTPRequestHandler) -> Fault:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            self.requests.append(Request(kind, handler.command, handler.path, headers))
            return self.faults[kind].popleft() if self.faults[kind] else Fault()

    def close(self) -> None:
        self.release.set()
        for server in (self._front, self._content):
            server.shutdown()
            server.server_close()


@contextmanager
def run_hub(**repos: Repo) -> Iterator[Hub]:
    """A hub with these repositories; write "__" in a keyword for the "/" between owner and name."""
    hub = Hub()
    hub.repos.update({name.replace("__", "/"): repo for name, repo in repos.items()})
    try:
        yield hub
    finally:
        hub.close()


def _serve(hub: Hub, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            pass  # the client hung up, as it may

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


class _Front(_Handler):
    """Listings, and redirects to the content."""

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.list_repo("/".join(parts[2:4]), parts[4:])
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.reply(404)

    def find_repo(self, name: str, revision: str, fault: Fault, *, is_file: bool) -> Repo | None:
        """The repository, or None after an error was sent: the hub's own codes and headers."""
        repo = self.hub.repos.get(name)
        authorised = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if fault.status is not None:
            self.reply(fault.status, b"{}", fault.headers)
        elif self.headers.get("Authorization") not in (None, f"Bearer {self.hub.token}"):
            self.reply(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not authorised):
            # The hub does not tell the two apart for strangers.
            self.reply(404 if authorised else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif is_file and repo.gated and not authorised:
            self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif revision not in (*repo.revisions, repo.commit):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def list_repo(self, name: str, rest: list[str]) -> None:
        fault = self.hub.take("listing", self)
        revision = rest[1] if len(rest) > 1 else "main"
        repo = self.find_repo(name, revision, fault, is_file=False)
        if repo is None:
            return None
        if fault.body is not None:
            return self.reply(200, fault.body, {"Content-Type": "application/json"})
        with_blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        files = [
            {**_describe(file, content, repo, with_blobs), **fault.change.get(file, {})} for file, content in repo.files.items()
        ]
        document: Any
        if rest and rest[0] == "tree":
            document = [
                {"type": "file", "path": file["rfilename"], "oid": file["blobId"], "size": file["size"]} for file in files
            ]
        else:
            document = {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": repo.commit,
                "private": repo.private,
                "gated": "auto" if repo.gated else False,
                "downloads": 0,
                "likes": 0,
                "tags": [f"license:{repo.licence}"] if repo.licence else [],
                "cardData": {"license": repo.licence} if repo.licence else {},
                "siblings": files,
            }
        self.reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})
        return None

    def resolve(self, name: str, revision: str, file: str) -> None:
        fault = self.hub.take("resolve", self)
        repo = self.find_repo(name, revision, fault, is_file=True)
        if repo is None:
            return None
        if file not in repo.files:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = repo.files[file]
        etag = hashlib.sha256(content).hexdigest()
        headers = {
            "X-Repo-Commit": repo.commit,
            "ETag": f'"{etag[:32]}"',
            "Accept-Ranges": "bytes",
            "Location": fault.location or f"{self.hub.content_url}/{name}/{file}",
        }
        if repo.has_lfs:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        self.reply(302, b"Found.", headers | fault.headers)
        return None


class _Content(_Handler):
    """The bytes. Knows nothing of tokens: a token that arrives here leaked."""

    def do_GET(self) -> None:
        hub = self.hub
        fault = hub.take("content", self)
        owner, name, *file = unquote(urlsplit(self.path).path).strip("/").split("/")
        if fault.status is not None:
            return self.reply(fault.status, b"", fault.headers)
        content = hub.repos[f"{owner}/{name}"].files["/".join(file)] if fault.content is None else fault.content
        if fault.wait_for is not None:
            fault.wait_for.wait(30)
        if fault.endless:
            return self.send_endlessly(content)
        start = self.range_start()
        is_part = "Range" in self.headers and not fault.ignores_range
        if is_part and start >= len(content):
            return self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        body = content[start:] if is_part else content
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(len(body)))
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for header, value in fault.headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self.send_body(body, fault)

    def range_start(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])

    def send_body(self, body: bytes, fault: Fault) -> None:
        for limit in (fault.break_after, fault.stall_after):
            if limit is not None:
                self.wfile.write(body[:limit])
                self.hub.sent.append(limit)
                if limit == fault.stall_after:
                    self.wfile.flush()
                    self.hub.stalled.set()
                    self.hub.release.wait(30)
                return self.hang_up()
        self.wfile.write(body)
        self.hub.sent.append(len(body))
        return None

    def send_endlessly(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        try:
            while sent < 100 * len(content) and not self.hub.release.is_set():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
                sent += len(content)
        finally:
            self.hub.sent.append(sent)
            self.close_connection = True


def _describe(name: str, content: bytes, repo: Repo, with_blobs: bool) -> dict[str, Any]:
    """One file of a listing."""
    described: dict[str, Any] = {"rfilename": name, "blobId": "0" * 40, "size": len(content)}
    if with_blobs and repo.has_lfs and name.endswith((".gguf", ".safetensors", ".onnx", ".data", "weight.bin")):
        sha256 = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
    return described
