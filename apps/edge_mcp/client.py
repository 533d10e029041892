"""Connections to servers of tools, and their tools as edge's. One thread has the event loop that all of them share."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge.errors import BackendUnavailableError, EdgeError, UsageError
from edge.types import Tool
from edge.units import quoted
from edge_mcp.consent import Consent, mark_of_tool
from edge_mcp.servers import Server

if TYPE_CHECKING:
    from mcp import Client

__all__ = ["Connections", "RemoteTool", "allowed_tools", "check_installed"]

T = TypeVar("T")

_CONNECT_S = 30.0
_CALL_S = 120.0
_MAX_TOOLS = 128
_MAX_DESCRIPTION = 4000


@dataclass(frozen=True, slots=True)
class RemoteTool:
    """A tool as its server describes it, which nobody has checked.

    Attributes:
        name, description, schema: of the tool.
    """

    name: str
    description: str
    schema: dict[str, Any] = field(repr=False)

    @property
    def mark(self) -> str:
        """The hash that consent to it holds for."""
        return mark_of_tool(self.name, self.description, self.schema)


def check_installed() -> None:
    """Raise a BackendUnavailableError if the package mcp is missing."""
    if importlib.util.find_spec("mcp") is None:
        raise BackendUnavailableError(
            "Servers of tools need the package mcp, which is not installed.", "Run: pip install 'edge-assistant[tools]'"
        )


class Connections:
    """Open connections. Thread-safe; close it.

    Raises:
        BackendUnavailableError: the package mcp is missing.
    """

    def __init__(self) -> None:
        check_installed()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._clients: dict[str, Client] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="edge-mcp", daemon=True)
        self._thread.start()

    def connect(self, name: str, server: Server) -> list[RemoteTool]:
        """Start or reach a server, and return its tools.

        Raises:
            EdgeError: it cannot be started, or does not answer.
        """
        try:
            return self._run(self._connect(name, server), _CONNECT_S)
        except (TimeoutError, asyncio.TimeoutError):
            raise EdgeError(f"{name} did not answer within {_CONNECT_S:g} seconds.", f"Try it: {server.shown}") from None
        except Exception as error:
            raise EdgeError(f"{name} cannot be used: {_why(error)}.", f"Try it: {server.shown}") from error

    def call(self, server: str, tool: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool, and return the text of its result.

        Raises:
            EdgeError: it failed, or the server is gone.
        """
        client = self._clients.get(server)
        if client is None:
            raise EdgeError(f"{server} is not connected.", "")
        try:
            result = self._run(client.call_tool(tool, dict(arguments), read_timeout_seconds=_CALL_S), _CALL_S + 5)
        except Exception as error:
            raise EdgeError(f"{tool} failed: {_why(error)}.", "") from error
        text = "\n".join(_text_of(part) for part in result.content)
        if not result.content and result.structured_content is not None:
            text = msgspec.json.encode(result.structured_content).decode()
        if result.is_error:
            raise EdgeError(text or f"{tool} failed without a reason.", "")
        return text

    def close(self) -> None:
        """End all connections, and the programs that were started. May be called twice."""
        if self._loop.is_closed():
            return

        async def end() -> None:
            self._stop.set()
            await asyncio.wait(self._tasks, timeout=5) if self._tasks else None

        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            self._run(end(), 10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _connect(self, name: str, server: Server) -> list[RemoteTool]:
        ready: asyncio.Future[list[RemoteTool]] = self._loop.create_future()
        self._tasks.append(asyncio.create_task(self._hold(name, server, ready)))
        return await ready

    async def _hold(self, name: str, server: Server, ready: asyncio.Future[list[RemoteTool]]) -> None:
        """Hold a connection open until all are closed. It is opened and closed by the same task, as the package wants it."""
        from mcp import Client

        try:
            async with contextlib.AsyncExitStack() as stack:
                client = await stack.enter_async_context(Client(await _transport(server, stack)))
                tools = await _list_tools(client)
                self._clients[name] = client
                if not ready.done():
                    ready.set_result(tools)
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001 (whoever waits for the connection hears of it)
            if not ready.done():
                ready.set_exception(error)
        finally:
            self._clients.pop(name, None)


async def _transport(server: Server, stack: contextlib.AsyncExitStack) -> Any:
    if server.url:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        timeout = httpx2.Timeout(_CONNECT_S, read=_CALL_S)
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=server.headers, timeout=timeout))
        return streamable_http_client(server.url, http_client=http)
    from mcp import StdioServerParameters
    from mcp.client.stdio import stdio_client

    quiet = stack.enter_context(open(os.devnull, "w"))  # noqa: ASYNC230, PTH123, SIM115 (what it logs would spoil the screen)
    parameters = StdioServerParameters(command=server.command, args=list(server.args), env=server.env or None, cwd=server.cwd)
    return stdio_client(parameters, errlog=quiet)


async def _list_tools(client: Client) -> list[RemoteTool]:
    tools: list[RemoteTool] = []
    cursor: str | None = None
    while len(tools) < _MAX_TOOLS:
        page = await client.list_tools(cursor=cursor)
        tools += [RemoteTool(tool.name, (tool.description or "")[:_MAX_DESCRIPTION], tool.input_schema) for tool in page.tools]
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools[:_MAX_TOOLS]


def allowed_tools(servers: Mapping[str, Server], consent: Consent, connections: Connections) -> tuple[list[Tool], list[str]]:
    """Connect the servers that the user has allowed, and return the allowed tools, and what the user should know."""
    tools: list[Tool] = []
    notices: list[str] = []
    for name, server in servers.items():
        if not consent.has_server(name, server.mark):
            was = "was changed since you allowed it" if consent.knows_server(name) else "is not allowed yet"
            notices.append(f"The server {name} {was}, so it is not used: edge mcp allow {quoted(name)}")
            continue
        try:
            found = connections.connect(name, server)
        except EdgeError as error:
            notices.append(str(error))
            continue
        for tool in found:
            if consent.has_tool(name, tool.name, tool.mark):
                try:
                    made = to_tool(name, tool, connections)
                except UsageError as error:
                    notices.append(f"The tool {tool.name} of {name} cannot be used: {error.message}")
                    continue
                if any(made.name == other.name for other in tools):  # one would be called for the other
                    notices.append(f"The tool {tool.name} of {name} is left out: another one is called {made.name}, too.")
                else:
                    tools.append(made)
            elif consent.knows_tool(name, tool.name):
                notices.append(
                    f"The tool {tool.name} of {name} describes itself in another way now: edge mcp allow {quoted(name)}"
                )
    return tools, notices


def to_tool(server: str, tool: RemoteTool, connections: Connections) -> Tool:
    """Return a tool of a server as edge's. Its name begins with that of the server, so that no two clash."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{server}__{tool.name}")[:128]
    return Tool(name, tool.description, tool.schema, partial(_call, connections, server, tool.name))


def _call(connections: Connections, server: str, tool: str, /, **arguments: Any) -> str:
    return connections.call(server, tool, arguments)


def _text_of(part: Any) -> str:
    text = getattr(part, "text", None)
    return text if isinstance(text, str) else f"[{getattr(part, 'type', 'content')} left out]"


def _why(error: BaseException) -> str:
    while inner := getattr(error, "exceptions", None):  # a group of them, which Python 3.10 lacks
        error = inner[0]
    return str(error) or type(error).__name__
