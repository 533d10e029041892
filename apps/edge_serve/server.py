"""The server as a process: the socket, the signals, the model that is loaded at the start, and the end.

It answers from the first moment: requests wait for their model, and /health says that it is being loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from edge.errors import ConfigError, ConstraintError, EdgeError, UsageError
from edge.tiers.address import is_own_address
from edge_serve import limits
from edge_serve.app import App
from edge_serve.connection import Connection
from edge_serve.keys import Keys, read_keys
from edge_serve.offer import Offer
from edge_serve.security import Guard
from edge_serve.service import Service

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.config.schema import ServerSettings
    from edge.runtime import Runtime

__all__ = ["Server", "make_service", "open_socket", "url_of"]

_log = logging.getLogger("edge.serve")
_LATE_S = 5.0
_LAST_S = 1.0
"""Time to tell clients that their replies were stopped at once, in seconds."""
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
_LATE_ROUNDS = 5


def make_service(settings: Settings, runtime: Runtime, more: tuple[str, ...] = ()) -> Service:
    """Return what all requests share. `more` are models to load besides the default one.

    Raises:
        ConfigError: the server would be open to others without keys, or the file of keys is wrong.
        StorageError: that file cannot be read.
        BackendUnavailableError: traces are wanted, and the packages for them are not installed.
    """
    from edge.catalog import list_models

    server = settings.server
    keys = Keys() if server.keys_file is None else read_keys(server.keys_file)
    if not keys and server.socket is None and not is_own_address(server.host):
        raise ConfigError(
            f"Everybody who reaches {server.host} could use this server: it has no keys.",
            "Make one: openssl rand -hex 32 > keys.txt   then: edge serve --keys keys.txt",
        )
    service = Service(runtime, Offer(settings, list_models, more), settings, keys)
    if server.otel:
        from edge_serve.tracing import make_tracing

        service.tracing = make_tracing()
    return service


def open_socket(server: ServerSettings) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: the address or port cannot be used.
    """
    if server.socket is not None:
        return _open_unix(server.socket)
    try:
        family, *_, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=limits.CONNECTIONS)
    except OSError as error:
        hint = "Choose another one: edge serve --port 0 takes any that is free."
        raise UsageError(f"{server.host} port {server.port} cannot be listened on ({_reason(error)}).", hint) from None


def _reason(error: OSError) -> str:
    """Return why a call failed, without the address that Python 3.11 appends."""
    return (error.strerror or str(error)).partition(" (while ")[0]


def _open_unix(path: Path) -> socket.socket:
    """Return a socket in the file system that only this user may use."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_left_over(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(limits.CONNECTIONS)
    except OSError as error:
        listener.close()
        raise UsageError(f"{path} cannot be listened on ({_reason(error)}).", "Choose another path.") from None
    return listener


def _is_left_over(path: Path) -> bool:
    """Tell if a socket is there that nobody listens on any more."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) != 0


def url_of(listener: socket.socket) -> str:
    """Return the address for clients: a URL, or the path of a Unix socket."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


class Server(uvicorn.Server):
    """Serves until it is told to stop.

    Args:
        service: what all requests share.
        listener: a socket that listens.
        on_started: called once requests are accepted.
    """

    def __init__(self, service: Service, listener: socket.socket, on_started: Callable[[], None] = lambda: None) -> None:
        settings = service.settings.server
        self.service, self.signal_number = service, 0
        self._listener, self._on_started = listener, on_started
        guard = Guard(service.keys, settings.allowed_hosts, settings.allowed_origins)
        super().__init__(
            uvicorn.Config(
                App(service, guard),
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(limits.HEADER_S),
                timeout_graceful_shutdown=int(settings.grace_s + _LATE_S),
                h11_max_incomplete_event_size=limits.HEADER_BYTES,
            )
        )

    def run_until_stopped(self) -> None:
        """Serve until a signal or `stop`, then let running replies end, within `server.grace_s`."""
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of every broken request
        asyncio.run(self.serve(sockets=[self._listener]))

    def stop(self) -> None:
        """Stop serving. May be called from any thread and more than once; the second time ends replies at once."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is over already
                loop.call_soon_threadsafe(self._stop_now)

    _loop: asyncio.AbstractEventLoop | None = None
    _stopped: asyncio.Event | None = None

    async def main_loop(self) -> None:
        """Wait for the end, without waking up ten times a second as uvicorn does."""
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self.service.is_starting = True
        loading = asyncio.ensure_future(self._load_first())
        if self.should_exit:
            self._stopped.set()
        self._on_started()
        await self._stopped.wait()
        self._loop.call_later(self.service.settings.server.grace_s, self.service.stop_replies)
        loading.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals stop the server instead of ending the process."""
        before = {}
        with contextlib.suppress(ValueError):  # not in the main thread: `stop` is the only way
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as `nohup` wants it
                    before[number] = signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: object) -> None:
        """Stop serving; the second signal ends replies at once."""
        self.signal_number = sig
        self.should_exit, is_second = True, self.should_exit
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_now if not is_second else self._stop_hard)

    def _stop_now(self) -> None:
        if self._stopped is not None and self._stopped.is_set():
            self._stop_hard()
        elif self._stopped is not None:
            self.should_exit = True
            self._stopped.set()

    def _stop_hard(self) -> None:
        self.service.stop_replies()
        if self._loop is not None:
            self._loop.call_later(_LAST_S, self._close_connections)

    def _close_connections(self) -> None:
        self.force_exit = True
        for connection in list(self.server_state.connections):
            transport: Any = connection.transport
            transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running replies end, and unload the models, whose KV cache is written to the disk first."""
        for _ in range(_LATE_ROUNDS):  # what was sent before is accepted and read by the loop in so many, and is answered
            await asyncio.sleep(0)
        await super().shutdown(sockets)
        await asyncio.to_thread(self.service.runtime.close)
        if self.service.tracing is not None:
            await asyncio.to_thread(self.service.tracing.close)

    async def _load_first(self) -> None:
        """Load the models that the server was started with, the default one first, so that no request waits for them."""
        service = self.service
        for name in (service.settings.model, *service.offer.more):
            try:
                offered = await service.offer.find(name)
                async with service.runtime.ause(offered.reference) as assistant:
                    service.is_starting = False
                    with contextlib.suppress(ConstraintError):  # requests hear of it
                        await asyncio.to_thread(assistant.prepare_schema, {"type": "object"})  # the first takes longest
            except Exception as error:  # noqa: BLE001 (the others are loaded all the same, and requests hear of it)
                if name == service.settings.model:
                    service.problem = str(error)
                _log.error("%s could not be loaded: %s", name, error, exc_info=None if isinstance(error, EdgeError) else error)
            service.is_starting = False
