"""Options that several commands share, and the settings they set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.names import ACCELERATORS
from edge_cli.completers import (
    complete_backend,
    complete_file,
    complete_kv_type,
    complete_model,
    complete_prefiller,
    complete_role,
    complete_setting,
)

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_cli.app import App

__all__ = [
    "backends_option",
    "days_option",
    "escalation_options",
    "json_option",
    "model_options",
    "plot_option",
    "read_size",
    "require_exclusive",
    "require_input",
    "sampling_options",
    "settings_from",
]

_MAX_DAYS = 36_500
Function = TypeVar("Function", bound=Callable[..., Any])

# Option -> the settings it sets. Values go through the same checks as those of the settings file.
_SETTINGS = {
    **{name: [name] for name in ("model", "backend", "require", "context", "threads", "gpu_layers", "system")},
    "kv_type": ["kv_type_k", "kv_type_v"],
    "parallel": ["engine.parallel"],
    "draft": ["engine.draft"],
    "prefill_with": ["engine.prefill_with"],
    "lora": ["engine.lora"],
    **{name: [f"server.{name}"] for name in ("host", "port", "socket", "max_waiting", "max_requests_each", "otel")},
    "keys": ["server.keys_file"],
    "docs": ["server.docs"],
    "allowed_host": ["server.allowed_hosts"],
    "allowed_origin": ["server.allowed_origins"],
    **{name: [f"server.{name}_s"] for name in ("timeout", "grace", "idle")},
    "memory": ["server.memory_gb"],
    "escalate_to": ["escalation.to"],
    "consent": ["escalation.consent"],
    **{name: [f"sampling.{name}"] for name in ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "stop")},
}

_MODEL = [
    click.option(
        "-m",
        "--model",
        metavar="MODEL",
        shell_complete=complete_model,
        help="Catalogue name, path of a GGUF file or of an ONNX or Core ML folder, or hf:, ollama: or pypi: reference.",
    ),
    click.option("--backend", metavar="NAME", shell_complete=complete_backend, help="Engine that runs the model."),
    click.option("--require", type=click.Choice(ACCELERATORS), help="Fail with exit code 4 rather than use anything else."),
    click.option("--context", metavar="TOKENS", help="Context window."),
    click.option("--threads", metavar="N", help="CPU threads."),
    click.option("--parallel", metavar="N", help="Replies side by side."),
    click.option(
        "--draft", metavar="MODEL", shell_complete=complete_model, help="Smaller model of the same family that guesses tokens."
    ),
    click.option(
        "--prefill-with",
        metavar="NAME",
        shell_complete=complete_prefiller,
        help="Engine that prefills long prompts for the one that decodes: a name, off, or auto for what edge tune measured.",
    ),
    click.option(
        "--lora",
        metavar="FILE[:SCALE]",
        multiple=True,
        shell_complete=complete_file,
        help="Apply a LoRA adapter of the model: a GGUF file, a folder that peft saved, or hf:OWNER/REPO; may be repeated.",
    ),
    click.option("--gpu-layers", metavar="N", help="Layers on the accelerator; -1 for all."),
    click.option(
        "--kv-type",
        metavar="TYPE",
        shell_complete=complete_kv_type,
        help="Type of the KV cache: f16, q8_0, q4_0, u8, bf16, f32.",
    ),
    click.option(
        "-s",
        "--set",
        "assignments",
        metavar="KEY=VALUE",
        multiple=True,
        shell_complete=complete_setting,
        help="Any other setting, such as sampling.repeat_penalty=1.1 (see edge config ls).",
    ),
]

_SAMPLING = [
    click.option("--system", metavar="TEXT", help="System prompt."),
    click.option("--role", metavar="NAME", shell_complete=complete_role, help="System prompt from your file prompts/NAME.md."),
    click.option("-t", "--temperature", metavar="T", help="0 always takes the likeliest token."),
    click.option("--top-p", metavar="P", help="Keep the likeliest tokens that add up to P."),
    click.option("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 keeps all."),
    click.option("--min-p", metavar="P", help="Drop tokens less likely than P times the likeliest."),
    click.option("--seed", metavar="N", help="Make the answer repeatable."),
    click.option("-n", "--max-tokens", metavar="N", help="Longest answer; auto is as long as the model likes."),
    click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before this text; may be repeated."),
]


_ESCALATION = [
    click.option(
        "--escalate-to",
        metavar="MODEL|openai:URL",
        shell_complete=complete_model,
        help="Larger model or server for what this one is not sure of (escalation.*, docs/tiers.md).",
    ),
    click.option(
        "--consent",
        type=click.Choice(["ask", "always"]),
        help="Ask each time before text leaves this device, or agree to all of it.",
    ),
]


def days_option(function: Function) -> Function:
    """Add `--days`, for pins that end."""

    def check(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
        if value is None or 0 < value <= _MAX_DAYS:  # click's own range lets NaN pass
            return value
        raise click.BadParameter(f"{value:g} is not a number of days above 0, {_MAX_DAYS:,} at most.", ctx, param)

    return click.option("--days", type=float, callback=check, metavar="N", help="Pin it for N days only, from now.")(function)


def backends_option(function: Function) -> Function:
    """Add `--backend`, which may be repeated, as `backends`."""
    return click.option(
        "--backend", "backends", metavar="NAME", multiple=True, shell_complete=complete_backend, help="Engine; may be repeated."
    )(function)


def plot_option(function: Function) -> Function:
    """Add `--plot`, as `plot_file`."""
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--plot", "plot_file", type=path, metavar="FILE", help="Write a plot (SVG).")(function)


def json_option(function: Function) -> Function:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def model_options(function: Function) -> Function:
    """Add the options that choose a model and how it is loaded."""
    return _apply(_MODEL, function)


def escalation_options(function: Function) -> Function:
    """Add the options of the next tier."""
    return _apply(_ESCALATION, function)


def sampling_options(function: Function) -> Function:
    """Add the system prompt and the sampling options."""
    return _apply(_SAMPLING, function)


def settings_from(app: App, options: Mapping[str, Any], defaults: Mapping[str, object] | None = None) -> Settings:
    """Return the merged settings with the options of this command line. `defaults` hold where no option sets a key.

    Raises:
        click.UsageError: an assignment is not KEY=VALUE.
        ConfigError: an option or another setting is wrong.
        UsageError, StorageError: there is no such role, or it cannot be read.
    """
    flags: dict[str, object] = dict(defaults or {})
    typed: dict[str, str] = {}
    for assignment in options.get("assignments", ()):
        name, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment} is not KEY=VALUE.", click.get_current_context())
        flags[name.strip()] = value
        typed[name.strip()] = f"--set {name.strip()}"
    for option, names in _SETTINGS.items():
        if options.get(option) not in (None, ()):
            flags.update(dict.fromkeys(names, options[option]))
            typed.update(dict.fromkeys(names, "--" + option.replace("_", "-")))
    if options.get("role") is not None:
        from edge.config.roles import read_role

        require_exclusive(("--role", options["role"]), ("--system", options["system"]))
        flags["system"] = read_role(options["role"], app.settings(flags, typed)).text
        typed["system"] = "--role"
    return app.settings(flags, typed)


def require_input(path: Path) -> None:
    """Check that a file to read is there.

    Raises:
        UsageError: it is not.
    """
    from edge.errors import UsageError
    from edge.files import exists

    if not exists(path):
        raise UsageError(f"There is no file {path}.", "Check the path.")


def require_exclusive(*given: tuple[str, object]) -> None:
    """Refuse options that exclude each other, given as pairs of name and value.

    Raises:
        click.UsageError: more than one is given.
    """
    if sum(bool(value) for _, value in given) > 1:
        names = " and ".join(name for name, _ in given)
        raise click.UsageError(f"{names} exclude each other.", click.get_current_context())


def _apply(decorators: list[Callable[[Any], Any]], function: Function) -> Function:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def read_size(text: str) -> int:
    """Read an amount of bytes such as 2GB, 500MB or 2G; units count in thousands. The type of an option.

    Raises:
        click.BadParameter: it is something else.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([kmgt]?)b?\s*", str(text), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size such as 2GB or 500MB.")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))
