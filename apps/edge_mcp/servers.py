"""The servers of tools that the user names, in mcp.json beside the settings file.

    {"mcpServers": {"files": {"command": "npx", "args": ["-y", "some-server", "/home/ada/notes"]},
                    "search": {"url": "https://example.org/mcp", "headers": {"Authorization": "Bearer ..."}}}}

Other programs that use such servers have the same file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from edge.errors import ConfigError
from edge.files import exists, read_json

__all__ = ["FILE_NAME", "Server", "read_servers"]

FILE_NAME = "mcp.json"

_NAME = re.compile(r"[A-Za-z0-9-]{1,40}")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server: a program that is started, or an address.

    Attributes:
        command, args, env, cwd: of the program, which has the user's rights.
        url, headers: of the address.
    """

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = {}

    @property
    def shown(self) -> str:
        """What runs, or is asked, whole."""
        if self.url:
            return self.url
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        line = " ".join([*variables, shlex.join([self.command, *self.args])])
        return f"cd {shlex.quote(self.cwd)} && {line}" if self.cwd else line

    @property
    def mark(self) -> str:
        """A hash of all of it: consent holds for exactly this."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class _File(msgspec.Struct, frozen=True):
    servers: dict[str, Server] = msgspec.field(name="mcpServers", default_factory=dict)


def read_servers(path: Path) -> dict[str, Server]:
    """Return the servers of a file by name; none if there is no file.

    Raises:
        ConfigError: a server has no name, command or address that can be used.
        StorageError: the file cannot be read.
    """
    if not exists(path):
        return {}
    servers = read_json(path, _File).servers
    for name, server in servers.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{path}: {name!r} cannot be the name of a server.", "Use up to 40 letters, digits and -.")
        if bool(server.command) == bool(server.url):
            raise ConfigError(f"{path}: {name} needs either a command or a url.", 'For example: {"command": "npx", "args": []}')
        address = urlsplit(server.url)
        is_safe = address.scheme == "https" or (address.scheme == "http" and address.hostname in _LOOPBACK)
        if server.url and not is_safe:
            raise ConfigError(f"{path}: the url of {name} is not encrypted.", "Use https://, or http:// on this machine.")
    return {name: _in_its_folder(server, path.absolute().parent) for name, server in servers.items()}


def _in_its_folder(server: Server, folder: Path) -> Server:
    """Return a server whose program starts in its own folder, by default that of the file. What is in the folder that the user
    happens to be in (`node_modules`, `server.py`, a module for `python -m`) would run in its place, with the same consent.
    """
    return replace(server, cwd=os.path.normpath(folder / Path(server.cwd or "").expanduser())) if server.command else server
