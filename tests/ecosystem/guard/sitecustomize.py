"""Python runs this first in the programs of others: one that asks for an address of another machine is refused, and named."""

from __future__ import annotations

import socket
import sys

_look_up = socket.getaddrinfo
_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def _check(host: object) -> None:
    if host not in ("127.0.0.1", "localhost", b"127.0.0.1", None):
        print(f"PHONED HOME: {host!r}", file=sys.stderr, flush=True)
        raise OSError(f"{host!r} is not this machine")


def _look_up_here(host: object, *rest: object, **more: object) -> object:
    _check(host)
    return _look_up(host, *rest, **more)  # type: ignore[arg-type]


def _connect_here(self: socket.socket, address: object) -> None:
    if isinstance(address, tuple):
        _check(address[0])
    _connect(self, address)  # type: ignore[arg-type]


def _try_here(self: socket.socket, address: object) -> int:
    if isinstance(address, tuple):
        _check(address[0])
    return _connect_ex(self, address)  # type: ignore[arg-type]


socket.getaddrinfo = _look_up_here  # type: ignore[assignment]
socket.socket.connect = _connect_here  # type: ignore[method-assign]
socket.socket.connect_ex = _try_here  # type: ignore[method-assign]
