"""Command groups that import commands on use and suggest the closest name for an unknown one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

import edge
from edge_cli import output

__all__ = ["CONTEXT_SETTINGS", "Entry", "LazyGroup", "SuggestingGroup", "examples"]

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Entry(NamedTuple):
    """The location of a command ("module:attribute"), and its line in the list of commands."""

    home: str
    help: str


class SuggestingGroup(click.Group):
    """A group that suggests a command for an unknown name, and shows its help without one.

    `edge help COMMAND` is the same as `edge COMMAND --help`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            output.note(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name in known or ctx.resilient_parsing or name.startswith("-"):
            return super().resolve_command(ctx, args)
        if name == "help" and not args[1:]:
            output.line(ctx.get_help())
            ctx.exit()
        if name == "help":
            return self.resolve_command(ctx, [*args[1:], "--help"])
        if name == "version" and ctx.parent is None:
            output.line(f"edge {edge.__version__}")
            ctx.exit()
        from edge_cli.suggest import explain, suggest

        *others, last = suggest(ctx, self, name) or [""]
        meant = f"{', '.join(others)} or {last}" if others else last
        why = explain(name) if ctx.parent is None else ""
        guess = f" {why}" if why else f" Did you mean {meant}?" if meant else ""
        raise click.UsageError(f"There is no command {ctx.command_path} {name}.{guess}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of their help, which click would truncate."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in commands if command])


class LazyGroup(SuggestingGroup):
    """A group whose commands are imported on use. `entries` maps names to entries."""

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **options: Any) -> None:
        super().__init__(*args, **options)
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._entries:
            return None
        module, _, attribute = self._entries[cmd_name].home.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._entries.items()])


def examples(*lines: str) -> str:
    """Return examples for the end of a help page, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
