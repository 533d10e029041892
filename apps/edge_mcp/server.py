"""`edge mcp serve`: the model as a tool of other programs, over stdin and stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edge
from edge_mcp.client import check_installed

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from edge.assistant import Assistant

__all__ = ["make_server"]

_MAX_TOKENS = 4096


def make_server(assistant: Assistant) -> MCPServer:
    """Return a server with the tool `ask`, which asks a loaded model.

    Args:
        assistant: the model; the caller closes it.

    Raises:
        BackendUnavailableError: the package mcp is missing.
    """
    check_installed()
    from mcp.server import MCPServer

    about = f"A language model on this device: {assistant.model_name}. What it is asked does not leave the device."
    server = MCPServer("edge", version=edge.__version__, instructions=about)

    @server.tool(description=f"Ask {assistant.model_name}, a small language model on this device, and return its answer.")
    async def ask(prompt: str, system: str = "", max_tokens: int = 1024, temperature: float = 0.0) -> str:
        messages = [edge.Message("system", system)] if system else []
        messages.append(edge.Message("user", prompt))
        n_tokens = min(max(1, max_tokens), _MAX_TOKENS)
        return await assistant.generate(messages, max_tokens=n_tokens, temperature=temperature)

    return server
