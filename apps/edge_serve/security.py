"""Refuses what does not come from a program that may use the server, before anything is read or done.

A page in a browser can send requests to this machine. So a Host that is not the server's own name is refused (DNS rebinding),
and so is every Origin that is not listed, without a preflight too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_serve.bodies import header
from edge_serve.call import Caller
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Scope

    from edge_serve.keys import Keys

__all__ = ["Guard"]

OPEN_PATHS = frozenset(("/", "/health", "/openapi.json"))
"""Paths that ask for no key: a page without data, whether the server is up, and how to ask it."""


@dataclass(frozen=True)
class Guard:
    """Decides who may use the server.

    Args:
        keys: of the clients.
        hosts: names of the server besides localhost and IP addresses.
        origins: of pages that may use it.
    """

    keys: Keys
    hosts: Collection[str] = ()
    origins: Collection[str] = ()

    def __post_init__(self) -> None:
        """Write hosts and origins as browsers do: a host in small letters without its port, an origin without a slash."""
        object.__setattr__(self, "hosts", frozenset(map(_name_of, self.hosts)))
        object.__setattr__(self, "origins", frozenset(origin.rstrip("/").lower() for origin in self.origins))

    def check(self, scope: Scope) -> Caller:
        """Return who asks.

        Raises:
            ApiError: the request is refused.
        """
        self._check_host(scope)
        self._check_origin(scope)
        if not self.keys or scope["path"] in OPEN_PATHS:
            return Caller()
        key = header(scope, b"x-api-key") or _bearer(header(scope, b"authorization"))
        if not key:
            raise ApiError(401, "This server asks for a key. Send it as Authorization: Bearer KEY.", code="missing_api_key")
        caller = self.keys.find(key)
        if caller is None:
            raise ApiError(401, "This server does not know that key. Check it.", code="invalid_api_key")
        return caller

    def cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return the headers that let a listed page read the response; none for all others."""
        origin = header(scope, b"origin")
        if not origin or origin not in self.origins:
            return []
        exposed = (b"access-control-expose-headers", b"x-request-id, x-edge-ignored, retry-after")
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"), exposed]

    def preflight(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return the headers that answer a browser's question before a request of a listed page.

        Raises:
            ApiError: the page is not listed.
        """
        self._check_host(scope)
        self._check_origin(scope)
        asked = header(scope, b"access-control-request-headers")
        return [  # besides `cors`, which every response gets: twice, a browser refuses it
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", asked.encode("latin-1") or b"authorization, content-type"),
            (b"access-control-max-age", b"600"),
        ]

    def _check_host(self, scope: Scope) -> None:
        if scope.get("server") is not None and scope["server"][1] is None:
            return  # a Unix socket, which no browser reaches
        host = _name_of(header(scope, b"host"))
        if host == "localhost" or host in self.hosts or _is_address(host):
            return
        raise ApiError(
            403,
            f"This server is not called {host[:100]!r}. Use its address, or start it with --allowed-host.",
            code="host_not_allowed",
        )

    def _check_origin(self, scope: Scope) -> None:
        origin = header(scope, b"origin")
        if not origin or origin in self.origins:
            return
        if origin == f"{scope['scheme']}://{header(scope, b'host')}":
            return  # the server's own page
        raise ApiError(
            403,
            f"Pages of {origin[:100]!r} may not use this server. To allow it: edge serve --allowed-origin.",
            code="origin_not_allowed",
        )


def _bearer(value: str) -> str:
    kind, _, key = value.partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port and the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
