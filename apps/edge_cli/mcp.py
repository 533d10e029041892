"""`edge mcp`: servers of tools, what the user allows them, and the model as such a server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_collection
from edge_cli.group import SuggestingGroup, examples
from edge_cli.options import model_options, settings_from

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_mcp.client import RemoteTool
    from edge_mcp.consent import Consent
    from edge_mcp.servers import Server

__all__ = ["mcp"]

EXAMPLES = examples("edge mcp ls", "edge mcp allow files", "edge mcp forbid files", "edge mcp serve -m smollm2-135m")


@click.group(cls=SuggestingGroup, epilog=EXAMPLES)
def mcp() -> None:
    """Manage servers of tools (Model Context Protocol), or be one.

    Servers are named in mcp.json beside the settings file, in the form that other programs use. The chat uses those that you
    allowed, and asks before each call.
    """


@mcp.command("ls", epilog=examples("edge mcp ls"))
@pass_app
def list_servers(app: App) -> int:
    """List the servers, and what runs for each."""
    servers, consent = _read(app.settings())
    if not servers:
        output.note("There are no servers. Name them in mcp.json beside the settings file (docs/tools.md).")
    rows = [(name, _state(name, server, consent), output.plain(server.shown)) for name, server in servers.items()]
    output.table(rows)
    return 0


@mcp.command("allow", epilog=examples("edge mcp allow files", "edge mcp allow files --yes"))
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Allow it and all its tools without asking.")
@pass_app
def allow(app: App, name: str, yes: bool) -> int:
    """Allow a server and, one by one, its tools.

    It is shown whole what runs. A server has your rights: allow only programs that you trust. What a server says about a tool
    is read by the model; if that changes later, the tool is not used until you allow it again.
    """
    from edge_mcp.client import Connections

    servers, consent = _read(app.settings())
    server = _find(servers, name)
    output.note(f"This {'is asked' if server.url else 'runs with your rights'}:\n  {output.plain(server.shown)}")
    if not (yes or click.confirm("Allow it?", err=True)):
        return 1
    with Connections() as connections:
        tools = connections.connect(name, server)
    chosen = [tool for tool in tools if yes or _wants(tool)]
    consent.allow(name, server.mark, {tool.name: tool.mark for tool in chosen})
    output.note(f"{name} is allowed, with {len(chosen)} of {len(tools)} tools.")
    return 0


@mcp.command("forbid", epilog=examples("edge mcp forbid files"))
@click.argument("name")
@pass_app
def forbid(app: App, name: str) -> int:
    """Take back what you allowed a server."""
    _, consent = _read(app.settings())
    was_allowed = consent.forbid(name)
    output.note(f"{name} is not allowed any more." if was_allowed else f"{name} was not allowed.")
    return 0


@mcp.command("serve", epilog=examples("edge mcp serve", "edge mcp serve -m smollm2-135m --docs manual"))
@model_options
@click.option(
    "--docs",
    "names",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_collection,
    help="A collection of documents that they may search; may be repeated.",
)
@pass_app
def serve(app: App, names: tuple[str, ...], **options: Any) -> int:
    """Serve the tool `ask` to other programs, over stdin and stdout, until they leave.

    With --docs also the tool `search_documents`, which finds passages in these collections and in no others.
    """
    from edge.grounding.sources import open_collection
    from edge_mcp.server import make_server

    settings = settings_from(app, options)
    with contextlib.ExitStack() as stack:
        documents = [stack.enter_context(open_collection(name, settings.paths.documents_dir)) for name in dict.fromkeys(names)]
        assistant = stack.enter_context(app.load(settings=settings))
        server = make_server(assistant, documents)
        with contextlib.suppress(KeyboardInterrupt):
            server.run("stdio")
    return 0


def _read(settings: Settings) -> tuple[dict[str, Server], Consent]:
    from edge_mcp.consent import Consent
    from edge_mcp.servers import FILE_NAME, read_servers

    return read_servers(settings.paths.config_file.with_name(FILE_NAME)), Consent(settings.paths.data_dir)


def _find(servers: dict[str, Server], name: str) -> Server:
    from edge.errors import UsageError

    if name not in servers:
        known = f"There are: {', '.join(servers)}." if servers else "mcp.json beside the settings file names none."
        raise UsageError(f"There is no server {name!r}.", known)
    return servers[name]


def _state(name: str, server: Server, consent: Consent) -> str:
    if consent.has_server(name, server.mark):
        return "allowed"
    return "changed since it was allowed" if consent.knows_server(name) else "not allowed"


def _wants(tool: RemoteTool) -> bool:
    from msgspec.json import encode

    output.note(f"\n{output.plain(tool.name)}: {output.plain(tool.description) or 'no description'}")
    output.note(f"  {output.plain(encode(tool.schema).decode())}")  # the model reads what it says of arguments, too
    return click.confirm(f"Tell the model of {output.plain(tool.name)}?", default=True, err=True)
