"""Tools of other programs, over the Model Context Protocol, and this assistant as a tool of theirs.

servers.py   the servers that the user names, in mcp.json beside the settings file
consent.py   what the user has allowed: servers by their command, tools by their description
client.py    connections to servers, and their tools as edge's
toolbox.py   the tools of all servers that are allowed
server.py    `edge mcp serve`: asks the model for other programs

The package `mcp` (extra "tools") is imported when a server is used.
"""

from __future__ import annotations
