"""`edge serve`: the local server."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_collection, complete_model
from edge_cli.group import examples
from edge_cli.options import escalation_options, model_options, require_exclusive, sampling_options, settings_from

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["serve"]

EXAMPLES = examples(
    "edge serve",
    "edge serve smollm2-135m --port 8080",
    "edge serve --socket ~/.edge.sock",
    "edge serve --host 0.0.0.0 --keys keys.txt",
    "edge serve --memory 3 --idle 600",
    "edge serve smollm2-135m --lora pirate.gguf:0",
    "edge serve --escalate-to openai:https://gpu.example/v1 --consent always",
    "edge serve --port 0 --json",
    "edge serve --docs manual",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 edge serve --otel",
)


@click.command(epilog=EXAMPLES)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@model_options
@sampling_options
@escalation_options
@click.option("--host", metavar="ADDRESS", help="Address to listen on; any but this machine's own needs --keys.")
@click.option("--port", metavar="N", help="Port to listen on; 0 takes a free one.")
@click.option("--socket", metavar="PATH", help="Listen on a Unix socket instead.")
@click.option("--keys", metavar="FILE", help="File of the keys that clients must send: a name and a key a line.")
@click.option("--allowed-host", metavar="NAME", multiple=True, help="A name by which clients address the server.")
@click.option("--allowed-origin", metavar="URL", multiple=True, help="A web page's origin that may use it.")
@click.option("--max-waiting", metavar="N", help="Requests that may wait for a model; one more is refused.")
@click.option("--max-requests-each", metavar="N", help="Requests of one client (a key) at the same time.")
@click.option("--timeout", metavar="SECONDS", help="Longest time for one request.")
@click.option("--grace", metavar="SECONDS", help="Time that running replies have to end when the server is stopped.")
@click.option("--memory", metavar="GB", help="Memory that all loaded models may take together.")
@click.option("--idle", metavar="SECONDS", help="Unload a model that was not used for so long.")
@click.option(
    "--docs",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_collection,
    help="A collection of documents that clients may ask.",
)
@click.option("--otel", is_flag=True, default=None, help="Send traces to an OpenTelemetry collector, as OTEL_* variables say.")
@click.option(
    "--log", "log_form", type=click.Choice(("text", "json", "off")), default="text", help="Form of the access log, on stderr."
)
@click.option("--json", "as_json", is_flag=True, help="Print the start line as JSON.")
@pass_app
def serve(app: App, models: tuple[str, ...], log_form: str, as_json: bool, **options: Any) -> int:
    """Serve models to other programs, over HTTP.

    Each MODEL is loaded at the start, and the first answers requests that name none. Any other model that is on this device is
    loaded when a request names it.

    It listens on this machine only, unless told otherwise. Ctrl-C or SIGTERM stops it: running replies may end, within the time
    of --grace. OpenAI's clients use the address of the start line, with /v1.
    """
    from msgspec.structs import replace

    from edge.catalog import check_reference
    from edge.errors import BackendUnavailableError
    from edge.escalating import check_escalation

    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn", "prometheus_client")):
        raise BackendUnavailableError(
            "The server's packages are not installed.", "Install them: pip install 'edge-assistant[server]'"
        )
    require_exclusive(("MODEL", models), ("--model", options["model"]))
    require_exclusive(("--port", options["port"]), ("--socket", options["socket"]))
    require_exclusive(("--host", options["host"]), ("--socket", options["socket"]))
    settings = settings_from(app, options | {"model": models[0]} if models else options)
    for name in dict.fromkeys((settings.model, *models)):
        check_reference(name, settings)
    if note := check_escalation(settings):
        output.note(note)
    engine = replace(settings.engine, max_waiting=settings.server.max_waiting)
    # What a client sends is answered whole or refused; messages are left out in conversations only.
    settings = replace(settings, engine=engine, window="refuse")
    from edge_serve import access
    from edge_serve.server import Server, make_service, open_socket, url_of

    access.set_up(log_form)
    server = settings.server
    with app.runtime(settings) as runtime:
        service = make_service(settings, runtime, models[1:])
        with open_socket(server) as listener:
            url = url_of(listener)
            Server(service, listener, lambda: _say_started(url, settings, as_json)).run_until_stopped()
        if server.socket is not None:
            server.socket.unlink(missing_ok=True)
    return 0


def _say_started(url: str, settings: Settings, as_json: bool) -> None:
    if as_json:
        output.json_object({"url": url, "model": settings.model, "pid": os.getpid()}, compact=True)
    else:
        output.line(f"Serving {settings.model} at {url}  (OpenAI: {url}/v1; Ctrl-C stops it)")
    sys.stdout.flush()
