"""`edge convert --frontier`: a search of students, and one of them trained on and converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import UsageError
from edge.units import quoted
from edge_cli import output

if TYPE_CHECKING:
    from edge_convert.facts import Request
    from edge_convert.frontier.points import Frontier, Point
    from edge_convert.inputs import Input

__all__ = ["TEXT_MINUTES", "check_options", "convert_frontier", "print_frontier"]

CarryOut = Callable[["Request"], int]
TEXT_MINUTES = 20.0
"""Training of the chosen point where --distill-minutes does not say how long; text for so much is provided."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that belong to a frontier without one, and those that a search decides itself.

    Raises:
        click.UsageError: as said.
    """
    context = click.get_current_context()
    if not options["frontier"]:
        for name in ("minutes", "point", "at_least"):
            if options[name] is not None:
                raise click.UsageError(f"--{name.replace('_', '-')} is only for --frontier.", context)
        return
    if options["point"] and options["at_least"]:
        raise click.UsageError("Give either --point or --at-least.", context)
    for name in ("keep_layers", "keep_ffn", "recipe", "gate", "device"):
        if options[name]:
            option = "--for" if name == "device" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} does not go with --frontier, which finds out what to keep.", context)
    if options["at_least"]:
        from edge_convert.frontier.points import parse_limits

        parse_limits(options["at_least"])  # so that a mistake is reported before the work, not after


def convert_frontier(found: Input, out: Path, request: Request, options: Mapping[str, Any], carry_out: CarryOut) -> int:
    """Search a frontier unless `out` has one, show it, and go on with the chosen point.

    Args:
        found: the source.
        out: folder for the results.
        request: of the formats; its recipe says what texts and how many tokens.
        options: of the command.
        carry_out: makes a plan of a request, shows it and runs it; returns the exit code.

    Raises:
        UsageError: no point has that name, none meets the limits, or there is neither a frontier nor time to search one.
    """
    from edge_convert.frontier.report import REPORT, read_frontier
    from edge_convert.frontier.steps import FRONTIER

    folder = out / FRONTIER
    is_chosen = bool(options["point"] or options["at_least"])
    if not is_chosen or not (folder / REPORT).is_file():
        if options["minutes"] is None:
            raise UsageError(f"There is no frontier in {out} yet.", "Say how long to search: --minutes 60")
        code = carry_out(_search_request(request, options))
        if code or options["dry_run"]:
            return code
    frontier = read_frontier(folder)
    if not options["as_json"]:
        print_frontier(frontier)
    if not is_chosen:
        command = (
            f"edge convert {quoted(found.source)} --frontier --point {quoted(frontier.finalists[-1])} "
            f"--distill-minutes 20 --out {quoted(out)}"
        )
        output.note(f"To go on with a point: {command}")
        return 0
    point, why = _choose(frontier, options)
    output.note(f"Going on with {point.name}: {why}.")
    return carry_out(_point_request(request, frontier, point, folder, options))


def print_frontier(frontier: Frontier) -> None:
    """Print the points as a table; what it means goes to stderr."""
    from edge_convert.frontier.report import COLUMNS, notes, rows

    output.line()
    output.table(rows(frontier), COLUMNS)
    for note in notes(frontier):
        output.note(note)


def _search_request(request: Request, options: Mapping[str, Any]) -> Request:
    from msgspec.structs import replace

    from edge_convert.frontier.points import parse_limits

    limits = parse_limits(options["at_least"]) if options["at_least"] else {}
    return replace(request, frontier_minutes=options["minutes"], frontier_speed=limits.get("speed", 0.0), card=False)


def _choose(frontier: Frontier, options: Mapping[str, Any]) -> tuple[Point, str]:
    from edge_convert.frontier.points import choose_point, parse_limits

    if options["at_least"]:
        return choose_point(frontier, parse_limits(options["at_least"]))
    for point in frontier.points:
        if point.name == options["point"] and point.name in frontier.finalists:
            return point, "as you chose"
    raise UsageError(
        f"The frontier has no trained point {options['point']}.",
        f"Those that were trained to the end: {', '.join(frontier.finalists)}.",
    )


def _point_request(request: Request, frontier: Frontier, point: Point, folder: Path, options: Mapping[str, Any]) -> Request:
    """Return the request that goes on with a point: its weights, its tokens, the texts of the search."""
    from msgspec.structs import replace

    from edge_convert.frontier.points import WHOLE
    from edge_convert.smaller.recipe import Text
    from edge_convert.smaller.records import read_provenance

    recipe = request.smaller
    assert recipe is not None  # convert.py
    n_layers, inner = next((one.n_layers, one.inner) for one in frontier.points if one.name == WHOLE)
    texts = tuple(
        Text(name=text.name, tokens=text.n_tokens, held_out_tokens=text.n_held_out, answer_tokens=8)
        for text in read_provenance(folder / "text" / "corpus.json")
    )
    smaller = replace(
        recipe,
        keep_layers=point.n_layers if point.n_layers < n_layers else 0,
        keep_ffn=point.inner if point.inner < inner else 0,
        keep_vocab=frontier.n_vocab if frontier.n_vocab < frontier.whole_vocab else 0,
        layers=point.kept if point.n_layers < n_layers else recipe.layers,
        begin=str((folder / point.name).absolute()),
        texts=texts,
        training=replace(recipe.training, minutes=options["distill_minutes"] or TEXT_MINUTES, steps=0),
    )
    return replace(request, smaller=smaller)
