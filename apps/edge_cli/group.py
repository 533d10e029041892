"""Command groups that import commands on use and suggest the closest name for an unknown one."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from edge_cli import output

__all__ = ["CONTEXT_SETTINGS", "Entry", "LazyGroup", "SuggestingGroup", "examples"]

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Entry(NamedTuple):
    """The location of a command ("module:attribute"), and its line in the list of commands."""

    home: str
    help: str


class SuggestingGroup(click.Group):
    """A group that suggests the closest command for an unknown name, and shows its help without one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            output.note(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if not ctx.resilient_parsing and not name.startswith("-") and name not in known:
            found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            guess = f" Did you mean {ctx.command_path} {found[0]}?" if found else ""
            raise click.UsageError(f"There is no command {ctx.command_path} {name}.{guess}", ctx)
        return super().resolve_command(ctx, args)

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
