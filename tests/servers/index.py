"""A package index on 127.0.0.1 (PEP 503) for pip, with wheels made on the spot that carry a model; and a registry of npm."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def make_wheel(name: str, version: str, files: dict[str, bytes], *, raw_names: bool = False) -> bytes:
    """A wheel that pip accepts.

    Args:
        name, version: of the package; the name with underscores.
        files: path inside the wheel -> content.
        raw_names: write the paths as they are, "../" included, and leave them out of RECORD as an attacker would.
    """
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for path, content in files.items()
        if not (raw_names and ".." in path)
    )
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return out.getvalue()


def make_tarball(files: dict[str, bytes | str]) -> bytes:
    """A package as npm's registry has it: path -> content, or the target of a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Index:
    """The server. `wheels` is file name -> content; `downloads` says what was fetched; `refuse` gives the status that
    "simple" (the pages) or "files" are answered with. `tarballs` is file name -> content of packages of npm."""

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.tarballs: dict[str, bytes] = {}
        self.downloads: list[str] = []
        self.refuse: dict[str, int] = {}
        handler = type("Handler", (_Handler,), {"index": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def add(self, name: str, version: str, files: dict[str, bytes], **options: Any) -> bytes:
        """Publish a package; returns its wheel."""
        wheel = make_wheel(name, version, files, **options)
        self.wheels[f"{name}-{version}-py3-none-any.whl"] = wheel
        return wheel

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def run_index() -> Iterator[Index]:
    index = Index()
    try:
        yield index
    finally:
        index.close()


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self.path.strip("/").split("/")
        if parts[0] in self.index.refuse:
            return self.reply(self.index.refuse[parts[0]], b"")
        if parts[0] == "simple" and len(parts) == 2:
            package = parts[1].replace("-", "_")
            names = [name for name in self.index.wheels if name.split("-")[0] == package]
            page = "".join(f'<a href="/files/{name}">{name}</a>' for name in names)
            return self.reply(200 if names else 404, f"<!DOCTYPE html><html><body>{page}</body></html>".encode())
        if parts[0] == "files" and parts[-1] in self.index.wheels:
            self.index.downloads.append(parts[-1])
            return self.reply(200, self.index.wheels[parts[-1]], "application/octet-stream")
        if len(parts) > 2 and parts[-2] == "-" and parts[-1] in self.index.tarballs:
            self.index.downloads.append(parts[-1])
            return self.reply(200, self.index.tarballs[parts[-1]], "application/octet-stream")
        return self.reply(404, b"")

    def reply(self, status: int, body: bytes, kind: str = "text/html") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
