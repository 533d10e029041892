"""`edge voice`: sound devices for talking to a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_microphone, complete_setting, complete_speaker
from edge_cli.group import SuggestingGroup, examples
from edge_cli.options import json_option, settings_from

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_cli.checks import Check
    from edge_voice.registry import StageKind
    from edge_voice.stages import Microphone, Speaker

__all__ = ["voice"]

_LEVEL_S = 2.0


@click.group(cls=SuggestingGroup)
def voice() -> None:
    """Check what a conversation by voice needs.

    Talk with: edge chat --voice. Only text: edge listen, edge say. More: docs/voice.md.
    """


@voice.command(epilog=examples("edge voice doctor", "edge voice doctor --silent", "edge voice doctor --json | jq .checks"))
@click.option(
    "--input",
    "device",
    metavar="NAME",
    shell_complete=complete_microphone,
    help="Microphone, by its number or part of its name.",
)
@click.option("--output", "speaker", metavar="NAME", shell_complete=complete_speaker, help="Loudspeaker, likewise.")
@click.option("--silent", is_flag=True, help="Play nothing: leave out the loop-back test.")
@click.option(
    "-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, shell_complete=complete_setting, help="Any other setting."
)
@json_option
@pass_app
def doctor(app: App, device: str | None, speaker: str | None, silent: bool, as_json: bool, **options: Any) -> int:
    """Check sound devices, levels and models for voice, and say what is wrong.

    Records for two seconds, then plays three short tones and looks for them in what the microphone hears. Nothing is stored.
    The exit code is 1 if something is broken. Devices are chosen with the settings voice.input and voice.output.
    """
    from edge_cli import voice_checks as checks
    from edge_cli.checks import guarded
    from edge_cli.doctor import show_checks
    from edge_voice.devices import list_devices

    settings = settings_from(app, options, {"voice.input": device, "voice.output": speaker})
    facts: dict[str, Any] = {"microphones": [], "loudspeakers": []}
    found = guarded("packages", checks.check_packages)
    found += guarded("models", lambda: checks.check_models(settings))
    found += guarded("echo", lambda: checks.check_echo(settings))
    found += guarded("sound", checks.check_portaudio)
    if found[-1].state == "ok":
        facts["microphones"], facts["loudspeakers"] = list_devices("input"), list_devices("output")
        _measure(settings, found, facts, is_silent=silent)
    is_ok = all(check.state != "broken" for check in found)
    if as_json:
        output.json_object({"is_ok": is_ok} | {name: _plain(value) for name, value in ({"checks": found} | facts).items()})
        return 0 if is_ok else 1
    for title in ("microphones", "loudspeakers"):
        if facts[title]:
            output.line(f"{title.capitalize()} (* is the system's choice):")
            output.table(checks.device_rows(facts[title]), indent="  ")
            output.line()
    show_checks(found)
    output.line("\nEverything is in order." if is_ok else "\nSomething is broken: see above.")
    return 0 if is_ok else 1


def _plain(value: Any) -> Any:
    """Return a dataclass, or a list of them, as JSON has it."""
    return [asdict(one) for one in value] if isinstance(value, list) else asdict(value)


def _measure(settings: Settings, found: list[Check], facts: dict[str, Any], *, is_silent: bool) -> None:
    """Listen, then play and listen. `found` gets the findings, `facts` what was measured."""
    from edge_cli.checks import guarded
    from edge_cli.voice_checks import check_level, check_loop
    from edge_voice.soundcheck import measure_loop, measure_sound

    def level(microphone: Microphone) -> Iterator[Check]:
        facts["level"] = measure_sound(microphone, _LEVEL_S)
        return check_level(microphone.name, facts["level"])

    def loop(microphone: Microphone, speaker: Speaker) -> Iterator[Check]:
        facts["loop"] = measure_loop(microphone, speaker)
        if facts["loop"].n_heard and facts["level"].is_dead:  # it is not: there was nothing to hear
            found[:] = [check for check in found if check.what != "level"]
        return check_loop(facts["loop"])

    with ExitStack() as stack, output.Status() as status:
        microphone = _open(stack, "microphone", settings.voice.microphone, settings, found)
        speaker = None if is_silent else _open(stack, "speaker", settings.voice.speaker, settings, found)
        if microphone is not None:
            status.show("● listening for two seconds: say something, or be quiet")
            found += guarded("level", lambda: level(microphone))
            if speaker is not None:
                status.show("● playing three short tones")
                found += guarded("loop", lambda: loop(microphone, speaker))


def _open(stack: ExitStack, kind: StageKind, name: str, settings: Settings, found: list[Check]) -> Any:
    """Return an open device; None if it cannot be opened, which is a finding."""
    from edge.errors import EdgeError
    from edge_cli.checks import Check
    from edge_voice.registry import open_stage

    try:
        device = open_stage(kind, name, settings)
    except EdgeError as error:
        found.append(Check(kind, "broken", error.message, error.hint))
        return None
    stack.callback(device.close)
    return device
