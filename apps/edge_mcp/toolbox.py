"""The tools of the servers that the user has allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from edge.errors import EdgeError
from edge_mcp.servers import FILE_NAME, read_servers

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.types import Tool

__all__ = ["Toolbox", "open_toolbox"]

Toolbox = Callable[[], "tuple[list[Tool], list[str]]"]
"""Connects the servers, and returns their tools and what the user should know; blocks meanwhile."""


@contextmanager
def open_toolbox(settings: Settings) -> Iterator[Toolbox | None]:
    """Yield what connects the servers of mcp.json and finds their tools; None without servers. The block ends them."""
    file = settings.paths.config_file.with_name(FILE_NAME)
    with ExitStack() as stack:

        def find() -> tuple[list[Tool], list[str]]:
            from edge_mcp.client import Connections, allowed_tools
            from edge_mcp.consent import Consent

            try:
                servers = read_servers(file)
                if not servers:
                    return [], []
                connections = stack.enter_context(Connections())
            except EdgeError as error:
                return [], [str(error)]
            return allowed_tools(servers, Consent(settings.paths.data_dir), connections)

        yield find if file.exists() else None
