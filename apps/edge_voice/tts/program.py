"""Voices of other programs: flite (Debian and others have it), and `say` of macOS.

The program gets the text by a pipe, since others may see command lines, and writes the sound to a file that only this user may
read, in memory where the system has a folder for that. It is removed as soon as it was read.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError, CancelledError, UsageError

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["ProgramVoice", "has_flite", "has_say", "open_flite", "open_say"]

_MEMORY = Path("/dev/shm")  # noqa: S108 (a folder of this user's own is made in it)
_LIMIT_S = 60.0  # for a sentence
_WORDS_A_MINUTE = 175  # of `say` at its usual pace
_FLITE_VOICES = ("slt", "rms", "awb", "kal16", "kal")


class ProgramVoice:
    """A voice of edge_voice.stages.Voice that starts a program for each sentence.

    Args:
        command: reads text from stdin and writes a WAV file of 16 bits and one channel to OUT, which is one of its words.
        name: for people.
        rate: samples a second of what it writes.
        languages: codes of the languages that it speaks; () for any.
    """

    def __init__(self, command: Sequence[str], name: str, rate: int, languages: tuple[str, ...]) -> None:
        self.name, self.rate, self.languages = name, rate, languages
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._is_cancelled = False
        self._guard = threading.Lock()

    def speak(self, text: str) -> Iterator[Samples]:
        """See `edge_voice.stages.Voice.speak`.

        Raises:
            BackendUnavailableError: the program failed.
        """
        self._is_cancelled = False
        if not text.strip():
            return
        folder = str(_MEMORY) if _MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="edge-", dir=folder) as place:
            out = Path(place) / "sound.wav"
            self._run([str(out) if word == "OUT" else word for word in self._command], text)
            sound = _read(out, self.rate)
        if len(sound):
            yield sound

    def cancel(self) -> None:
        """See `edge_voice.stages.Voice.cancel`."""
        with self._guard:
            self._is_cancelled = True
            if self._process is not None:
                self._process.kill()

    def _run(self, command: Sequence[str], text: str) -> None:
        with self._guard:
            if self._is_cancelled:
                raise CancelledError("The voice was stopped.")
            try:
                self._process = process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
                )
            except OSError as error:
                raise self._failed(str(error)) from error
        try:
            _, errors = process.communicate(text.encode() + b"\n", timeout=_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"it took longer than {_LIMIT_S:.0f} s") from error
        finally:
            with self._guard:
                self._process = None
            if process.poll() is None:
                process.kill()
                process.wait()
        if self._is_cancelled:
            raise CancelledError("The voice was stopped.")
        if process.returncode != 0:
            last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise self._failed(last[0][:200])

    def _failed(self, why: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"{self._command[0]} failed: {why}", "Choose another voice: edge config set voice.voice NAME"
        )


def has_flite() -> bool:
    """Return True if flite is installed."""
    return shutil.which("flite") is not None


def has_say() -> bool:
    """Return True if this is a Mac, whose `say` speaks."""
    return sys.platform == "darwin" and shutil.which("say") is not None


def open_flite(settings: Settings) -> ProgramVoice:
    """Return flite's voice as the settings want it.

    Raises:
        BackendUnavailableError: flite is not installed.
        UsageError: it has no such voice.
    """
    program, voice = shutil.which("flite"), settings.voice.voice_name or _FLITE_VOICES[0]
    if program is None:
        raise BackendUnavailableError("flite is not installed.", "Install it (apt install flite), or choose another voice.")
    if voice not in _FLITE_VOICES:
        raise UsageError(f"flite has no voice {voice[:80]!r}.", f"There are: {', '.join(_FLITE_VOICES)}.")
    stretch = f"duration_stretch={1 / settings.voice.speed:.3f}"
    command = [program, "-voice", voice, "--setf", stretch, "-f", "/dev/stdin", "-o", "OUT"]
    return ProgramVoice(command, f"flite, {voice}", 8000 if voice == "kal" else 16_000, ("en",))


def open_say(settings: Settings) -> ProgramVoice:
    """Return the voice of macOS as the settings want it; a name is one that `say -v '?'` lists.

    Raises:
        BackendUnavailableError: this is not a Mac.
    """
    program, voice = shutil.which("say"), settings.voice.voice_name
    if program is None or not has_say():
        raise BackendUnavailableError("`say` is a program of macOS.", "Choose another voice: kokoro, hibari or flite.")
    chosen = ["-v", voice] if voice else []
    pace = str(round(_WORDS_A_MINUTE * settings.voice.speed))
    command = [program, *chosen, "-r", pace, "-f", "-", "-o", "OUT", "--file-format=WAVE", "--data-format=LEI16@22050"]
    return ProgramVoice(command, f"say{f', {voice}' if voice else ''}", 22_050, ())


def _read(path: Path, rate: int) -> Samples:
    """Return the sound of a WAV file.

    Raises:
        BackendUnavailableError: it is not what the program should have written.
    """
    import numpy as np

    try:
        with wave.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, rate):
                raise wave.Error(f"{file.getnchannels()} channels, {file.getframerate()} samples a second")
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise BackendUnavailableError(f"The voice wrote no sound that can be read: {error}", "Choose another voice.") from error
    sound: Samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    return sound
