"""`edge say`: text as speech."""

from __future__ import annotations

import codecs
import os
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.errors import SoundError, StorageError, UsageError
from edge.units import reason, size_text
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_file, complete_setting, complete_voice
from edge_cli.group import examples
from edge_cli.options import json_option, settings_from
from edge_cli.prompt import MAX_INPUT_BYTES
from edge_cli.streams import stdout_failure
from edge_cli.voice_models import fetch_voice

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.speech import Synthesis
    from edge_voice.stages import Samples

__all__ = ["say"]

_AHEAD_S = 8.0  # of sound made before it is heard
_POLL_S = 0.05
_STDOUT = "-"
_RATE = 24_000  # samples a second, of a file without any

EXAMPLES = examples(
    'edge say "Hello there."',
    'edge run "Tell me a joke" | edge say -',
    "edge say --out news.wav - < news.md",
    'edge say --voice kokoro/am_puck --speed 1.2 "Good morning."',
    'edge say --out - "Hello." | aplay -',
)


@click.command(epilog=EXAMPLES)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--out", metavar="FILE", shell_complete=complete_file, help="Write a WAV file instead of playing it; - is stdout."
)
@click.option("--voice", metavar="NAME", shell_complete=complete_voice, help="Voice, such as hibari or kokoro/am_puck.")
@click.option("--speed", type=click.FloatRange(0.5, 2), metavar="X", help="Pace; 1 is the usual one.")
@click.option("--language", metavar="CODE", help="Language of the text. Default: en.")
@click.option("--device", metavar="NAME", help="Loudspeaker, by its number or part of its name (see edge voice doctor).")
@click.option("--measure", is_flag=True, help="Measure again which voice is fast enough here.")
@click.option(
    "-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, shell_complete=complete_setting, help="Any other setting."
)
@json_option
@pass_app
def say(
    app: App,
    texts: tuple[str, ...],
    out: str | None,
    voice: str | None,
    speed: float | None,
    language: str | None,
    device: str | None,
    measure: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Say a text, or write it as a WAV file.

    All on this device. TEXT is Markdown or plain text; without any, or with -, it comes from stdin and is said while it
    arrives. Code, tables, addresses and emoji are not read out.

    The voice is the best one that this device computes fast enough, which is measured once. The voices are fetched when they
    are first used (104 MB).
    """
    if out is not None and device is not None:
        raise UsageError("--out writes a file, so no loudspeaker is used.", "Leave out --device or --out.")
    if out == _STDOUT and as_json:
        raise UsageError("stdout cannot be both a WAV file and JSON.", "Name a file with --out.")
    from edge_voice.speech import with_voice
    from edge_voice.tts.choice import models_for_speech

    settings = settings_from(app, options, {"voice.output": device, "voice.language": language})
    settings = with_voice(settings, voice, speed=speed)
    parts = iter([" ".join(texts)]) if texts and texts != (_STDOUT,) else _stdin_parts()
    missing = models_for_speech(settings)
    synthesis: Synthesis | None = None
    try:
        with _sink(out, settings) as play:  # first, so that nothing is fetched or measured where nothing could be heard
            fetch_voice(missing, settings)
            synthesis = _open(parts, settings, is_measured=measure)
            done = _Done(synthesis)
            for samples in synthesis:
                done.count(samples)
                play(samples, synthesis.rate)
    except KeyboardInterrupt:
        if synthesis is not None:
            synthesis.cancel()
        return signals.exit_code()
    if as_json:
        output.json_object(done.as_json(out))
    elif done.n_samples == 0:
        output.note("There is nothing to say: the text has no words.")
    elif out not in (None, _STDOUT):
        output.note(f"{out}: {done.duration_s:.1f} s, {synthesis.voice.name}")
    return 0


def _open(parts: Iterator[str], settings: Settings, *, is_measured: bool) -> Synthesis:
    """Measure if that is asked for, and open the voice."""
    from edge_voice.speech import synthesise
    from edge_voice.tts.choice import choose_voice, measure_kokoro

    if is_measured:
        measured = measure_kokoro(settings, on_measure=_note_measurement)
        output.note(f"Kokoro takes {measured.rtf:.2f} s for a second of speech here.")
    if settings.voice.voice is not None:
        return synthesise(parts, settings=settings)
    name, why = choose_voice(settings, on_measure=_note_measurement)
    if is_measured:
        output.note(f"Voice: {name} ({why})")
    return synthesise(parts, voice=f"{name}/{settings.voice.voice_name or ''}", settings=settings)


def _note_measurement(n_done: int, n_runs: int) -> None:
    if n_done == 0:
        output.note("Measuring once how fast this device speaks as Kokoro: some seconds.")


class _Done:
    """What was said so far, and how long it took."""

    def __init__(self, synthesis: Synthesis) -> None:
        self._synthesis = synthesis
        self._began = time.perf_counter()
        self.n_samples = 0
        self.first_sound_s: float | None = None

    def count(self, samples: Samples) -> None:
        """Note a piece of sound."""
        if self.first_sound_s is None:
            self.first_sound_s = time.perf_counter() - self._began
        self.n_samples += len(samples)

    @property
    def duration_s(self) -> float:
        """Length of the sound, in seconds."""
        return self.n_samples / self._synthesis.rate

    def as_json(self, out: str | None) -> dict[str, Any]:
        """Return what was said as a JSON value."""
        return {
            "voice": self._synthesis.voice.name,
            "rate": self._synthesis.rate,
            "duration_s": round(self.duration_s, 3),
            "first_sound_s": None if self.first_sound_s is None else round(self.first_sound_s, 3),
            "took_s": round(time.perf_counter() - self._began, 3),
            "out": out,
        }


@contextmanager
def _sink(out: str | None, settings: Settings) -> Iterator[Callable[[Samples, int], None]]:
    """Yield a function that takes the sound: to the loudspeaker, to a file, or to stdout once it is complete."""
    if out is None:
        with _loudspeaker(settings) as play:
            yield play
    elif out == _STDOUT:
        from edge_voice.keeping import wav_bytes

        pieces: list[tuple[Samples, int]] = []
        yield lambda samples, rate: pieces.append((samples, rate))
        _write_stdout(wav_bytes(_joined([samples for samples, _ in pieces]), pieces[0][1] if pieces else _RATE))
    else:
        with _file(Path(out)) as play:
            yield play


@contextmanager
def _loudspeaker(settings: Settings) -> Iterator[Callable[[Samples, int], None]]:
    from edge_voice.registry import open_stage

    try:
        speaker = open_stage("speaker", settings.voice.speaker, settings)
    except SoundError as error:
        raise SoundError(error.message, f"{error.hint} Or write a file: edge say --out speech.wav") from error

    def play(samples: Samples, rate: int) -> None:
        speaker.play(samples, rate)
        while speaker.waiting_s > _AHEAD_S:
            time.sleep(_POLL_S)

    try:
        yield play
        while speaker.waiting_s > 0:
            time.sleep(_POLL_S)
    finally:
        speaker.close()


@contextmanager
def _file(path: Path) -> Iterator[Callable[[Samples, int], None]]:
    """Write a WAV file beside its place, and put it there once it is whole."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it, such as speech.wav.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as raw, wave.open(raw, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE)

            def play(samples: Samples, rate: int) -> None:
                if file.getnframes() == 0:
                    file.setframerate(rate)
                file.writeframes(_pcm(samples))

            yield play
        partial.replace(path)
    except (OSError, wave.Error) as error:
        raise StorageError(f"{path} cannot be written: {reason(error)}.", "Choose another place.") from error
    finally:
        partial.unlink(missing_ok=True)


def _pcm(samples: Samples) -> bytes:
    import numpy as np

    return (np.clip(samples, -1, 32767 / 32768) * 32768).astype("<i2").tobytes()


def _joined(pieces: list[Samples]) -> Samples:
    import numpy as np

    return np.concatenate([*pieces, np.zeros(0, np.float32)])


def _write_stdout(data: bytes) -> None:
    sys.stdout.flush()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except (OSError, ValueError, AttributeError) as error:
        raise stdout_failure(error) from None


def _stdin_parts() -> Iterator[str]:
    """Yield the text of stdin as it arrives.

    Raises:
        UsageError: stdin is a terminal, or has no end.
    """
    if sys.stdin is None or output.is_terminal(sys.stdin):
        hint = 'For example: edge say "Hello there."   or: edge say - < text.md'
        raise UsageError("There is no text to say: no words were given, and stdin is a terminal.", hint)
    return _read_parts(sys.stdin.fileno())


def _read_parts(descriptor: int) -> Iterator[str]:
    decoder, n_bytes = codecs.getincrementaldecoder("utf-8")("replace"), 0
    while data := os.read(descriptor, 1 << 16):
        n_bytes += len(data)
        if n_bytes > MAX_INPUT_BYTES:
            raise UsageError(f"stdin is larger than {size_text(MAX_INPUT_BYTES)}.", "Split it into several runs.")
        yield decoder.decode(data)
    yield decoder.decode(b"", True)
