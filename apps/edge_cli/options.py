"""Options that several commands share, and the settings they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from edge.names import ACCELERATORS
from edge_cli.completers import complete_model, complete_setting

__all__ = ["flag_names", "flags_from", "json_option", "model_options", "sampling_options"]

Function = TypeVar("Function", bound=Callable[..., Any])

# Option -> the settings it sets. Values go through the same checks as those of the settings file.
_SETTINGS = {
    "model": ("model",),
    "backend": ("backend",),
    "require": ("require",),
    "context": ("context",),
    "threads": ("threads",),
    "gpu_layers": ("gpu_layers",),
    "kv_type": ("kv_type_k", "kv_type_v"),
    "system": ("system",),
    "temperature": ("sampling.temperature",),
    "top_p": ("sampling.top_p",),
    "top_k": ("sampling.top_k",),
    "min_p": ("sampling.min_p",),
    "seed": ("sampling.seed",),
    "max_tokens": ("sampling.max_tokens",),
    "stop": ("sampling.stop",),
}

_MODEL = [
    click.option(
        "-m",
        "--model",
        metavar="MODEL",
        shell_complete=complete_model,
        help="Catalogue name, path of a GGUF file or of an ONNX or Core ML folder, or hf:, ollama: or pypi: reference.",
    ),
    click.option("--backend", metavar="NAME", help="Engine that runs the model."),
    click.option(
        "--require",
        type=click.Choice(ACCELERATORS),
        help="Fail with exit code 4 rather than run on anything else.",
    ),
    click.option("--context", metavar="TOKENS", help="Context window."),
    click.option("--threads", metavar="N", help="CPU threads."),
    click.option("--gpu-layers", metavar="N", help="Layers on the accelerator; -1 is all."),
    click.option("--kv-type", metavar="TYPE", help="How the KV cache is kept: f16, q8_0 or q4_0."),
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
    click.option("--temperature", metavar="T", help="0 always takes the likeliest token."),
    click.option("--top-p", metavar="P", help="Keep the likeliest tokens that add up to P."),
    click.option("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 keeps all."),
    click.option("--min-p", metavar="P", help="Drop tokens less likely than P times the likeliest."),
    click.option("--seed", metavar="N", help="Make the answer repeatable."),
    click.option("--max-tokens", metavar="N", help="Longest answer."),
    click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before this text; may be repeated."),
]


def json_option(function: Function) -> Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def model_options(function: Function) -> Function:
    """Which model, and how it is loaded."""
    return _apply(_MODEL, function)


def sampling_options(function: Function) -> Function:
    """What is said to the model and how its tokens are chosen."""
    return _apply(_SAMPLING, function)


def flags_from(options: Mapping[str, Any]) -> dict[str, object]:
    """What was given on the command line, as dotted keys for `load_settings`.

    Raises:
        click.UsageError: an assignment is not KEY=VALUE.
    """
    flags: dict[str, object] = {}
    for assignment in options.get("assignments", ()):
        name, equals, value = assignment.partition("=")
        if not equals:
            raise click.UsageError(f"--set {assignment} is not KEY=VALUE.", click.get_current_context())
        flags[name.strip()] = value
    for option, names in _SETTINGS.items():
        if _is_given(options, option):
            flags.update(dict.fromkeys(names, options[option]))
    return flags


def flag_names(options: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> what was typed for it, for the errors of `load_settings`."""
    typed: dict[str, str] = {}
    for assignment in options.get("assignments", ()):
        name = assignment.partition("=")[0].strip()
        typed[name] = f"--set {name}"
    for option, names in _SETTINGS.items():
        if _is_given(options, option):
            typed.update(dict.fromkeys(names, "--" + option.replace("_", "-")))
    return typed


def _is_given(options: Mapping[str, Any], option: str) -> bool:
    return options.get(option) not in (None, ())


def _apply(decorators: list[Callable[[Any], Any]], function: Function) -> Function:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function
