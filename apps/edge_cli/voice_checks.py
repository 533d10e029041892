"""The checks of `edge voice doctor`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

from edge_cli.checks import Check

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.devices import Device
    from edge_voice.soundcheck import LoopReport, SoundReport

__all__ = ["check_echo", "check_level", "check_loop", "check_models", "check_packages", "check_portaudio", "device_rows"]

State: TypeAlias = Literal["ok", "note", "broken"]
_QUIET_DB, _LOUD_ROOM_DB = -75.0, -35.0
_CLIPPED, _OFFSET = 0.001, 0.05
_SLOW_S, _FIRST_S = 0.4, 2.0
_DRIFT = 0.03  # 44.1 instead of 48 kHz is 0.09; a busy machine alone makes 0.01
_MIXER = {
    "darwin": "Allow your terminal in System Settings > Privacy & Security > Microphone, and raise the level in Sound.",
    "linux": "Raise or unmute it in your desktop's sound settings, or with: pavucontrol, wpctl, alsamixer",
}
_RAISE = _MIXER.get(sys.platform, "Raise or unmute it in the sound settings of your system.")


def check_packages() -> Iterator[Check]:
    """Check that the packages of the extra "voice" are installed."""
    from edge_voice.registry import EXTRA_HINT, STAGES

    # Echo has a check of its own: it works without its package, too.
    needed = dict.fromkeys(module for row in STAGES.values() if row.kind != "echo" for module in row.modules)
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        yield Check("packages", "broken", f"{', '.join(missing)} are not installed.", EXTRA_HINT)
    else:
        yield Check("packages", "ok", ", ".join(needed))


def check_models(settings: Settings) -> Iterator[Check]:
    """Check that the models are here, and can be opened."""
    from edge_voice.models import models_for_hearing, models_for_talk
    from edge_voice.transcripts import open_for
    from edge_voice.tts.choice import find_voices

    missing = models_for_talk(settings)
    if missing:
        fetch = "Fetch them: edge models pull voice   The first edge chat --voice does so, too."
        yield Check("models", "note", f"Not here yet: {', '.join(missing)}.", fetch)
        return
    open_for(settings)
    yield Check("models", "ok", ", ".join(models_for_hearing(settings)))
    voices = find_voices(settings)
    none = f"There is no voice for the language {settings.voice.language!r}: replies are not spoken."
    yield Check("voices", "ok", ", ".join(voices)) if voices else Check("voices", "note", none, "See docs/voice.md for voices.")


def check_echo(settings: Settings) -> Iterator[Check]:
    """Check how the model's own voice is kept out of the microphone."""
    from edge_voice.opening import choose_echo

    name, notices = choose_echo(settings)
    yield Check("echo", "note" if notices else "ok", notices[0] if notices else name)


def check_portaudio() -> Iterator[Check]:
    """Check that there is a library that plays and records."""
    from edge_voice.devices import load_portaudio

    yield Check("sound", "ok", load_portaudio().get_portaudio_version()[1].partition(",")[0])


def device_rows(devices: list[Device]) -> list[tuple[str, str]]:
    """Return a row for each device: its number, and what it is."""
    return [
        (
            f"{'*' if one.is_default else ' '} {one.index}",
            f"{one.name} ({one.system}, {one.rate:,} Hz, {one.channels} {'channel' if one.channels == 1 else 'channels'})",
        )
        for one in devices
    ]


def check_level(name: str, report: SoundReport) -> Iterator[Check]:
    """Judge what the microphone gives."""
    about = f"{name}: {report.rms_db:.0f} dB, loudest {report.peak_db:.0f} dB, background {report.floor_db:.0f} dB"
    wrong = list(_level_faults(report))
    if not wrong:
        yield Check("level", "ok", about)
    for state, text, hint in wrong:
        yield Check("level", state, f"{about}. {text}", hint)


def _level_faults(report: SoundReport) -> Iterator[tuple[State, str, str]]:
    if report.is_dead:
        yield "broken", "It gives nothing but silence: it is muted, or this program may not use it.", _RAISE
        return
    if report.clipped > _CLIPPED:
        yield "broken", f"It is too loud: {report.clipped:.1%} of the sound is clipped.", "Lower its level."
    if report.rms_db < _QUIET_DB:
        yield "note", "It is very quiet; speech should come at -40 to -12 dB.", _RAISE
    if report.floor_db > _LOUD_ROOM_DB:
        yield "note", "The background is loud: words may be missed.", "Move away from the noise, or use a headset."
    if abs(report.offset) > _OFFSET:
        yield "note", f"Its zero is off by {report.offset:+.2f}, as of a faulty sound card.", "Try another device or socket."
    if report.n_lost:
        yield "note", f"{report.n_lost:,} samples were lost.", "Close programs that keep the processor busy."
    if report.first_s > _FIRST_S:
        yield "note", f"Its first sound came after {report.first_s:.1f} s, as of Bluetooth.", "Use a headset with a cable."


def check_loop(report: LoopReport) -> Iterator[Check]:
    """Judge what of the loudspeaker came back to the microphone."""
    if report.sound.is_dead:
        yield Check("loop", "broken", "The microphone gave nothing while the loudspeaker played.", _RAISE)
        return
    if report.sound.clipped > _CLIPPED:
        yield Check("loop", "broken", "The loudspeaker is clipped in the microphone.", "Lower the volume or the microphone.")
        return
    if report.delay_s is None or report.loss_db is None or report.drift is None:
        text = f"The microphone heard {report.n_heard or 'none'} of 3 test sounds."
        yield Check(
            "loop", "note", text, "With headphones that is right. Otherwise raise the volume, or choose another device."
        )
        return
    about = f"heard after {report.delay_s * 1000:.0f} ms, {report.loss_db:.0f} dB quieter"
    if abs(report.drift) > _DRIFT:
        text = f"{about}, and {report.drift:+.1%} longer: a device has another rate than it says."
        yield Check("loop", "broken", text, "Choose the device by its other name or number, or set its rate in the system.")
    elif report.delay_s > _SLOW_S:
        text = f"{about}. That is slow, as of Bluetooth: interruptions are noticed late."
        yield Check("loop", "note", text, "Use devices with a cable.")
    elif report.n_heard < 3:
        yield Check("loop", "note", f"{about}, and {3 - report.n_heard} of 3 not at all.", "Raise the volume.")
    else:
        yield Check("loop", "ok", about)
