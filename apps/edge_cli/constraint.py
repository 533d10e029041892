"""What the answer of `edge run` has to be: --schema, --regex and --grammar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_cli.options import require_exclusive
from edge_cli.prompt import read_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.constraint import Constraint

__all__ = ["constraint_from", "constraint_options"]


def constraint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    file = click.Path(path_type=Path)
    for option in (
        click.option("--grammar", metavar="FILE", type=file, help="Keep to this grammar: Lark, or GBNF if FILE ends in .gbnf."),
        click.option("--regex", metavar="PATTERN", help="Keep to this regular expression."),
        click.option("--schema", metavar="FILE", type=file, help="Answer with JSON that keeps to this JSON Schema."),
    ):
        command = option(command)
    return command


def constraint_from(options: dict[str, Any]) -> Constraint | None:
    """Return what a command line asks of the answer; None for free text.

    Raises:
        UsageError: two of them are given, or a file cannot be read.
        ConstraintError: it is no schema, pattern or grammar.
    """
    from edge.constraint import Constraint

    schema, regex, grammar = options["schema"], options["regex"], options["grammar"]
    require_exclusive(
        ("--schema", schema is not None),
        ("--regex", regex is not None),
        ("--grammar", grammar is not None),
        ("--extract", options["extract"]),
    )
    if schema is not None:
        return Constraint.json_schema(read_file(schema))
    if regex is not None:
        return Constraint.regex(regex)
    if grammar is not None:
        text = read_file(grammar)
        return Constraint.gbnf(text) if grammar.suffix == ".gbnf" else Constraint.lark(text)
    return None
