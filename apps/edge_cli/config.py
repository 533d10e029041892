"""`edge config`: show and change settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_setting_name, complete_setting_value
from edge_cli.group import SuggestingGroup, examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    pass

__all__ = ["config"]


@click.group(cls=SuggestingGroup)
def config() -> None:
    """Show and change settings.

    A flag overrides an EDGE_* variable, which overrides the settings file, which overrides the default.
    """


@config.command(epilog=examples("edge config ls", "edge config ls --changed --json"))
@click.option("--changed", is_flag=True, help="Only settings that differ from their default.")
@json_option
@pass_app
def ls(app: App, changed: bool, as_json: bool) -> None:
    """List all settings with their values and sources."""
    from edge.config import DEFAULT, get_value, setting_keys

    settings = app.settings()
    keys, sources = setting_keys(), settings.sources
    values = {name: get_value(settings, name) for name in keys if not changed or sources[name] != DEFAULT}
    if as_json:
        output.json_object(
            {
                name: {
                    "value": _plain(value),
                    "source": sources[name],
                    "allowed": keys[name].allowed,
                    "variable": keys[name].variable,
                }
                for name, value in values.items()
            }
        )
    else:
        rows = [(name, _show(value), sources[name]) for name, value in values.items()]
        output.table(rows, ("setting", "value", "from"))


@config.command(
    epilog=examples("edge config get sampling.temperature", "edge config get sampling", "edge config get paths --json")
)
@click.argument("key", shell_complete=complete_setting_name)
@json_option
@pass_app
def get(app: App, key: str, as_json: bool) -> None:
    """Show the value of a setting, or all settings of a section."""
    from edge.config import find_key, get_value, nearest, setting_keys
    from edge.errors import ConfigError

    settings = app.settings()
    sections = {name.rpartition(".")[0] for name in setting_keys()} - {""}
    if key in sections:
        values = {name: get_value(settings, name) for name in setting_keys() if name.startswith(f"{key}.")}
        if as_json:
            output.json_object({n: {"value": _plain(value), "source": settings.sources[n]} for n, value in values.items()})
        else:
            output.table([(name, _show(value)) for name, value in values.items()])
        return
    if "." not in key and key not in setting_keys():
        # A name without a dot may mean a section.
        raise ConfigError(f"There is no setting or section {key!r}.", nearest(key, [*sections, *setting_keys()]))
    value = get_value(settings, key)
    if as_json:
        output.json_object({"value": _plain(value), "source": settings.sources[find_key(key).name]})
    else:
        output.line(_show(value))


@config.command(
    "set",
    # So that -1 and -inf are values, not options.
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "edge config set model smollm2-135m",
        "edge config set sampling.temperature 0.2",
        'edge config set sampling.stop \'["###", "END"]\'',
        "edge config set chat.keys.quit-now ctrl+x",
        "edge config set gpu_layers -1",
    ),
)
@click.argument("key", shell_complete=complete_setting_name)
@click.argument("value", shell_complete=complete_setting_value)
@pass_app
def set_(app: App, key: str, value: str) -> None:
    """Write a setting to the settings file, which keeps its comments and order."""
    from edge.config import default_path, parse_text, split_key
    from edge.config.toml import set_in_file
    from edge.errors import ConfigError

    if key == "paths.config_file":
        raise ConfigError("A settings file cannot set its own path.", "Set the variable EDGE_CONFIG instead.")
    parsed = parse_text(key, value, "edge config set")
    parts = split_key(key)
    if isinstance(parsed, dict):
        (parsed,) = parsed.values()
    _check_name(app, key, value)
    path = default_path("paths.config_file")
    set_in_file(path, parts, "auto" if parsed is None else _plain(parsed))
    output.note(f"{key} is {_show(parsed)} in {path}")
    _warn_of_variable(key)


@config.command(epilog=examples("edge config unset sampling.temperature"))
@click.argument("key", shell_complete=complete_setting_name)
def unset(key: str) -> None:
    """Remove a setting from the settings file; an unknown one too, to repair the file."""
    from edge.config import default_path, find_key, split_key
    from edge.config.toml import unset_in_file
    from edge.errors import ConfigError

    path = default_path("paths.config_file")
    try:
        parts = split_key(key)
    except ConfigError:
        if not unset_in_file(path, key.split(".")):
            raise
        output.note(f"{key} is no longer in {path}")
        return
    if not unset_in_file(path, parts):
        output.note(f"{find_key(key).name} is not set in {path}")
        return
    output.note(f"{key} is no longer in {path}")
    _warn_of_variable(key)


@config.command(epilog=examples('$EDITOR "$(edge config path)"', "edge config path --json"))
@json_option
@pass_app
def path(app: App, as_json: bool) -> None:
    """Show the path of the settings file; with --json, all directories too."""
    from edge.config import default_path

    # Only --json needs the file's content: the path must be printed even if the file is broken.
    if as_json:
        paths = app.settings().paths
        names = ("config_file", "data_dir", "cache_dir", "models_dir", "conversations_file")
        output.json_object({name: str(getattr(paths, name)) for name in names})
    else:
        output.line(str(default_path("paths.config_file")))


def _check_name(app: App, key: str, value: str) -> None:
    """Refuse a value that names something that does not exist."""
    from edge.config import find_key
    from edge.errors import ConfigError
    from edge_cli.settings_check import CHECKED, check_setting

    name = find_key(key).name
    if name not in CHECKED:
        return
    try:
        settings = app.settings({key: value})
    except ConfigError:
        # Another setting is broken, and this command may be the repair.
        output.note(f"{key} was not checked, since another setting is broken: see edge doctor")
        return
    if why := check_setting(name, settings):
        output.note(f"{key} could not be checked: {why}")


def _warn_of_variable(key: str) -> None:
    """Warn if an environment variable overrides the file."""
    import os

    from edge.config import find_key

    found = find_key(key)
    entry = key[len(found.name) + 1 :]
    variable = f"{found.variable}_{entry.upper()}" if entry else found.variable
    if os.environ.get(variable):
        output.note(f"The variable {variable} is set and overrides the file.")


def _plain(value: Any) -> Any:
    """Return a setting's value as a type that TOML and JSON have."""
    from pathlib import Path

    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, dict):
        return {str(name): below for name, below in value.items()}
    return str(value) if isinstance(value, Path) else value


def _show(value: Any) -> str:
    """Format a setting's value as `edge config set` takes it."""
    value = _plain(value)
    if value is None:
        return "auto"
    if isinstance(value, (str, float)):
        return str(value)
    return json.dumps(value, ensure_ascii=False)
