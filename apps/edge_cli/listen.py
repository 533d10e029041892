"""`edge listen`: speech as text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import UsageError
from edge.files import open_file
from edge.units import duration_text, reason
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_file, complete_language, complete_microphone, complete_setting
from edge_cli.group import examples
from edge_cli.options import settings_from
from edge_cli.voice_models import fetch_voice

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.events import VoiceEvent
    from edge_voice.hearing import Hearing
    from edge_voice.stages import Samples

__all__ = ["listen"]

_INTERRUPTED = 130
_BAR = 10  # cells of the level
_QUIETEST_DB = -60.0

EXAMPLES = examples(
    "edge listen",
    "edge listen --once | edge run",
    "edge listen --file talk.wav > talk.txt",
    "edge listen --language de --json | jq -r .text",
    "ffmpeg -i film.mp4 -f wav - | edge listen --file -",
)


@click.command(epilog=EXAMPLES)
@click.option(
    "--file",
    metavar="WAV",
    shell_complete=complete_file,
    help="Transcribe a WAV file instead of the microphone; - is stdin.",
)
@click.option(
    "--language",
    metavar="CODE",
    shell_complete=complete_language,
    help="Language that is spoken, such as de; auto finds it out. Default: en.",
)
@click.option("--once", is_flag=True, help="End after the first utterance.")
@click.option(
    "--device",
    metavar="NAME",
    shell_complete=complete_microphone,
    help="Microphone, by its number or part of its name (see edge voice doctor).",
)
@click.option(
    "--keep-audio",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    shell_complete=complete_file,
    help="Keep what is said as WAV files; otherwise no sound is written to the disk.",
)
@click.option(
    "-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, shell_complete=complete_setting, help="Any other setting."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, with the transcript so far as well.")
@pass_app
def listen(
    app: App,
    file: str | None,
    language: str | None,
    once: bool,
    device: str | None,
    keep_audio: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Print what is said, a line for each utterance.

    Listens to the microphone until Ctrl-C, all on this device, and stores no sound. On a terminal the words appear while they
    are said. English is understood by a fast model (44 MB), other languages by a larger one (150 MB); each is fetched when it
    is first used.
    """
    if file is not None and (device or keep_audio):
        raise UsageError("--file does not use the microphone.", "Leave out --device and --keep-audio.")
    flags = {"voice.input": device, "voice.language": language, "voice.keep_audio": keep_audio}
    settings = settings_from(app, options, flags)
    if file is not None:
        return _transcribe(file, settings, once=once, as_json=as_json)
    from edge_voice.hearing import hear
    from edge_voice.models import models_for_hearing

    fetch_voice(models_for_hearing(settings), settings)
    with hear(settings) as hearing:
        kept = f"it is kept in {settings.voice.keep_audio}" if settings.voice.keep_audio else "no sound is stored"
        output.note(f"● Listening; {kept}. Ctrl-C ends it.")
        return _listen(hearing, once=once, as_json=as_json)


def _listen(hearing: Hearing, *, once: bool, as_json: bool) -> int:
    from edge_voice.events import Final
    from edge_voice.stages import RATE

    with output.Status() as status:
        display = _Display(status, as_json=as_json)
        try:
            for event in hearing:
                display.show(event)
                if once and isinstance(event, Final):
                    break
        except KeyboardInterrupt:
            status.clear()
            if once or signals.exit_code() != _INTERRUPTED:
                raise
    if hearing.n_lost:
        output.note(f"{hearing.n_lost / RATE:.1f} s of sound were lost, since the processor was too busy.")
    return 0


class _Display:
    """Events as lines: words to stdout, all else to stderr, and on a terminal the level and the words so far."""

    def __init__(self, status: output.Status, *, as_json: bool) -> None:
        self._status, self._as_json = status, as_json
        self._bar = self._text = ""

    def show(self, event: VoiceEvent) -> None:
        """Write what matters of an event."""
        from edge_voice import events

        if isinstance(event, events.Level):
            n_full = round(_BAR * min(1.0, max(0.0, 1 - event.rms_db / _QUIETEST_DB)))
            self._bar = "▮" * n_full + "▯" * (_BAR - n_full)
            self._refresh()
            return
        if isinstance(event, (events.Partial, events.Final, events.Unclear)):
            self._text = event.text if isinstance(event, events.Partial) else ""
        if self._as_json and isinstance(event, (events.SpeechStarted, events.Partial, events.Endpoint, events.Final)):
            self._write(lambda: output.json_object({"type": event.kind} | _fields(event), compact=True))
        elif isinstance(event, events.Final):
            self._write(lambda: output.line(event.text))
        elif isinstance(event, events.DeviceLost):
            self._write(lambda: output.note(f"{event.message} Waiting for it."))
        elif isinstance(event, events.DeviceBack):
            self._write(lambda: output.note(f"The microphone {event.name} is back."))
        elif isinstance(event, events.Notice):
            self._write(lambda: output.note(event.text))
        self._refresh()

    def _write(self, write: Callable[[], None]) -> None:
        self._status.clear()
        write()

    def _refresh(self) -> None:
        if self._bar:
            room = max(20, output.terminal_width(sys.stderr) - _BAR - 6)
            text = self._text if len(self._text) <= room else "…" + self._text[1 - room :]
            self._status.show(f"● {self._bar}  {text}")


def _fields(event: VoiceEvent) -> dict[str, Any]:
    """Return the fields of an event but for its kind; times of the clock say nothing outside of this process."""
    return {name: value for name, value in asdict(event).items() if name not in ("kind", "at_s", "speech_end_s")}


def _transcribe(file: str, settings: Settings, *, once: bool, as_json: bool) -> int:
    from edge_voice.stages import RATE
    from edge_voice.transcripts import models_for_sound, open_for, transcribe_segments

    samples = _read(file)
    fetch_voice(models_for_sound(settings), settings)
    vad, recogniser, language = open_for(settings)
    total_s = len(samples) / RATE
    with output.Status() as status:
        status.show("looking for speech")
        for segment in transcribe_segments(samples, vad, recogniser, language):
            status.clear()
            if as_json:
                output.json_object({"type": "final"} | asdict(segment), compact=True)
            else:
                output.line(segment.text)
            if once:
                break
            status.show_share(f"of {duration_text(total_s)}", segment.end_s / total_s)
    return 0


def _read(file: str) -> Samples:
    """Return the sound of a file, or of stdin."""
    from edge_voice.wav import read_wav

    if file != "-":
        try:
            with open_file(file) as stream:
                return read_wav(stream, file)
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {reason(error)}.", "Name a WAV file.") from error
    if sys.stdin is None or output.is_terminal(sys.stdin):
        raise UsageError("There is no sound: stdin is a terminal.", "For example: edge listen --file - < talk.wav")
    return read_wav(sys.stdin.buffer, "stdin")
