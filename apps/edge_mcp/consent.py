"""What the user has allowed: servers by their whole command, tools by their description.

A server may change what it says about a tool later ("rug pull"), and descriptions are read by the model. So consent holds for a
hash of name, description and schema; what has changed is asked about again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from edge.files import read_record, write_private

__all__ = ["Consent", "mark_of_tool"]

FILE_NAME = "mcp-consent.json"


class _Record(msgspec.Struct, kw_only=True):
    servers: dict[str, str] = {}
    tools: dict[str, str] = {}


class Consent:
    """The user's decisions, in a private file.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._record = read_record(self._path, _Record) or _Record()

    def has_server(self, name: str, mark: str) -> bool:
        """Return whether the server may be used, as it is now."""
        return self._record.servers.get(name) == mark

    def knows_server(self, name: str) -> bool:
        """Return whether it was allowed once, perhaps with another command."""
        return name in self._record.servers

    def has_tool(self, server: str, tool: str, mark: str) -> bool:
        """Return whether the model may be told of a tool, as it describes itself now."""
        return self._record.tools.get(f"{server}__{tool}") == mark

    def knows_tool(self, server: str, tool: str) -> bool:
        """Return whether it was allowed once, perhaps with another description."""
        return f"{server}__{tool}" in self._record.tools

    def allow(self, server: str, mark: str, tools: dict[str, str]) -> None:
        """Allow a server and these of its tools (name -> mark), and no other of them."""
        self.forbid(server, is_saved=False)
        self._record.servers[server] = mark
        self._record.tools |= {f"{server}__{tool}": tool_mark for tool, tool_mark in tools.items()}
        self._save()

    def forbid(self, server: str, *, is_saved: bool = True) -> bool:
        """Take consent to a server and its tools back; return whether there was any."""
        was_known = self._record.servers.pop(server, None) is not None
        for key in [key for key in self._record.tools if key.startswith(f"{server}__")]:
            del self._record.tools[key]
        if is_saved:
            self._save()
        return was_known

    def _save(self) -> None:
        write_private(self._path, msgspec.json.format(msgspec.json.encode(self._record)))


def mark_of_tool(name: str, description: str, schema: dict[str, Any]) -> str:
    """Return the hash that consent to a tool holds for."""
    return hashlib.sha256(msgspec.json.encode([name, description, schema], order="sorted")).hexdigest()
