"""`edge doctor`: check this device, and suggest how to make it faster."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.group import examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.plan import Plan
    from edge_cli.checks import Check

__all__ = ["doctor", "show_checks"]

_COMMAND = re.compile(r": ((?:[A-Z_]+=\S+ )?(?:edge|sudo|make|pip|cp|ls|python) [^:]*)$")
_COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}


@click.command(epilog=examples("edge doctor", "edge doctor --json | jq .is_ok"))
@json_option
@pass_app
def doctor(app: App, as_json: bool) -> int:
    """Check this device and suggest how to make it faster.

    Checks the machine, the engines, the directories and the default model, and shows how that model would be run and why.
    Changes no settings, models or conversations; it tests once whether the engine's fastest kernels work here, and stores that
    in the cache directory. The exit code is 1 if something is broken.
    """
    from edge.plan.advice import advice
    from edge.plan.placement import safety_here
    from edge.registry import ENGINES
    from edge_cli import checks
    from edge_cli.devices import device_rows

    found: list[Check] = []
    settings = _settings(app, found)
    found += checks.guarded("settings", lambda: checks.check_names(settings))
    plans: list[Plan] = []
    with output.Status() as status:
        status.show("checking this machine")
        profile = app.probe()
        found += checks.guarded("engine", lambda: checks.check_engines(profile))
        status.show("testing the engine")
        cache_dir = settings.paths.cache_dir
        found += checks.guarded("canary", lambda: checks.check_safety(safety_here(profile, ENGINES.values(), cache_dir)))
        found += checks.guarded("directories", lambda: checks.check_directories(settings))
        found += checks.guarded("conversations", lambda: checks.check_conversations(settings))
        found += checks.guarded("disk cache", lambda: checks.check_disk_cache(settings, app.blocks))
        status.show("checking the model")

        def plan() -> Plan:
            plans.append(app.plan(settings=settings, download=False))
            return plans[-1]

        found += checks.guarded("model", lambda: checks.check_model(settings, plan))
        now = app.sense()
        found += checks.guarded("throttling", lambda: checks.check_governor(settings, plans[0] if plans else None, now))
        found += checks.guarded("chat app", checks.check_chat)
    advised = advice(profile, plans[0] if plans else None)
    is_ok = all(check.state != "broken" for check in found)
    if as_json:
        output.json_object(
            {
                "is_ok": is_ok,
                "checks": [asdict(check) for check in found],
                "device": profile.to_dict(),
                "plan": plans[0].to_dict() if plans else None,
                "advice": advised,
            }
        )
        return 0 if is_ok else 1
    output.table(device_rows(profile))
    output.line()
    show_checks(found)
    if plans:
        output.line(f"\nHow {settings.model} is run here, and why:")
        output.table([(choice.what, choice.value, choice.reason) for choice in plans[0].choices], indent="  ")
    if advised:
        _show_advice(advised)
    output.line("\nEverything is in order." if is_ok else "\nSomething is broken: see above.")
    return 0 if is_ok else 1


def _settings(app: App, found: list[Check]) -> Settings:
    """Return the user's settings; if they are broken, report that and return the defaults."""
    from edge.config import Settings
    from edge.errors import EdgeError
    from edge_cli.checks import Check

    try:
        settings = app.settings()
    except EdgeError as error:
        found.append(Check("settings", "broken", error.message, error.hint))
        return Settings()
    path = settings.paths.config_file
    found.append(Check("settings", "ok", str(path) if path.is_file() else f"defaults; {path} does not exist"))
    return settings


def show_checks(found: list[Check]) -> None:
    """Write findings as a table, each hint below its finding."""
    rows: list[tuple[str, str, str]] = []
    for check in found:
        rows.append((check.state, check.what, check.text))
        if check.hint and check.state != "ok":
            rows += [("", "", part) for part in _split_command(check.hint) if part]
    for text in output.table_lines(rows, stream=sys.stdout):
        state = text.partition(" ")[0]
        output.line(output.paint(state, _COLOURS[state], sys.stdout) + text[len(state) :] if state in _COLOURS else text)


def _show_advice(advised: list[str]) -> None:
    output.line("\nSuggestions to make it faster:")
    for text in advised:
        said, command = _split_command(text)
        output.table([("-", said)], indent="  ", gap=" ")
        if command:
            output.line(f"      {output.plain(command)}")


def _split_command(text: str) -> tuple[str, str]:
    """Split a text from the command at its end, which gets a line of its own on a terminal; "" if there is none."""
    found = _COMMAND.search(text) if output.is_terminal(sys.stdout) else None
    return (text[: found.start() + 1], found[1]) if found else (text, "")
