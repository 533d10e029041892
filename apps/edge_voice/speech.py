"""Text as sound, for programs: the voices by themselves, without a conversation or a device."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from edge.errors import CancelledError, UsageError
from edge_voice.sentences import Sentences
from edge_voice.spoken import spoken

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.models import OnFetch
    from edge_voice.stages import Samples, Voice
    from edge_voice.tts.choice import OnMeasure

__all__ = ["Synthesis", "speak", "synthesise", "with_voice"]

_LEAST_SPEED, _MOST_SPEED = 0.5, 2.0

_last: tuple[Settings, Voice] | None = None
_speaking = threading.Lock()


def speak(
    text: str,
    *,
    voice: str | None = None,
    speed: float | None = None,
    language: str | None = None,
    settings: Settings | None = None,
    on_fetch: OnFetch | None = None,
    on_measure: OnMeasure | None = None,
) -> tuple[Samples, int]:
    """Say a text. The voice stays open for the next call, and one call runs at a time.

    A model that is missing is fetched. Where no voice is named, a device is measured once, for some seconds.

    Args:
        text: Markdown or plain text of any length; code, tables, addresses and emoji are not read out.
        voice: "kokoro", "kokoro/am_puck", "hibari", "flite", "say", or a stage of your own; None is the setting voice.voice,
            which by default is the best one that this device computes fast enough.
        speed: 0.5 to 2; 1 is the usual pace. None is the setting voice.speed.
        language: code such as "en". None is the setting voice.language, English.
        settings: stages and models folder; None loads those of the user.
        on_fetch: called with the progress of a download; see `edge_voice.models.OnFetch`.
        on_measure: called with the progress of the measurement; see `edge_voice.tts.choice.measure_kokoro`.

    Returns:
        The sound, float32, shape (n_samples,), within [-1, 1], one channel, and its rate in samples a second. There are no
        samples if there is nothing to say.

    Raises:
        UsageError: there is no such voice, or the speed is out of range.
        BackendUnavailableError: a package of the extra "voice" is not installed, or no voice speaks the language.
        ModelNotFoundError: the model is not here, and edge is offline; the hint says how to fetch it.
        DownloadError, ChecksumError, StorageError: it could not be fetched.
    """
    import numpy as np

    global _last
    wanted = with_voice(_settings(settings), voice, speed=speed, language=language)
    with _speaking:
        if _last is None or _last[0] != wanted:
            _last = (wanted, _open(wanted, on_fetch, on_measure))
        opened = _last[1]
        sound = [samples for piece in _pieces([text], wanted.voice.language or "en") for samples in opened.speak(piece)]
    return np.concatenate([*sound, np.zeros(0, np.float32)]), opened.rate


class Synthesis:
    """Sound that is made while its text arrives; iterate over it. `cancel` may be called by any thread.

    Attributes:
        voice: that speaks.
        rate: samples a second.
    """

    def __init__(self, voice: Voice, pieces: Iterator[str]) -> None:
        self.voice = voice
        self.rate = voice.rate
        self._pieces = pieces
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[Samples]:
        """Yield the sound of each sentence in pieces: float32, shape (n_samples,), one channel, within [-1, 1]."""
        try:
            for piece in self._pieces:
                for samples in self.voice.speak(piece):
                    if self._cancelled.is_set():
                        return
                    yield samples
                if self._cancelled.is_set():
                    return
        except CancelledError:
            if not self._cancelled.is_set():
                raise

    def cancel(self) -> None:
        """End the sound soon, within a sentence, too."""
        self._cancelled.set()
        self.voice.cancel()


def synthesise(
    text: Iterable[str],
    *,
    voice: str | None = None,
    speed: float | None = None,
    language: str | None = None,
    settings: Settings | None = None,
    on_fetch: OnFetch | None = None,
    on_measure: OnMeasure | None = None,
) -> Synthesis:
    """Say a text while it arrives: its first clause as soon as that is complete, then sentence by sentence.

        with_sound = edge_voice.synthesise(reply)
        for samples in with_sound:
            play(samples, with_sound.rate)

    Args:
        text: parts of it, of any length, such as those of a reply; joined, they are the text.
        voice, speed, language, settings, on_fetch, on_measure: as for `speak`; so are the errors.
    """
    wanted = with_voice(_settings(settings), voice, speed=speed, language=language)
    return Synthesis(_open(wanted, on_fetch, on_measure), _pieces(text, wanted.voice.language or "en"))


def with_voice(settings: Settings, voice: str | None, *, speed: float | None = None, language: str | None = None) -> Settings:
    """Return settings with another voice, as `speak` takes it; None leaves a setting as it is.

    Raises:
        UsageError: the speed is out of range.
    """
    import msgspec

    if speed is not None and not _LEAST_SPEED <= speed <= _MOST_SPEED:
        raise UsageError(f"The speed cannot be {speed}.", f"It may be {_LEAST_SPEED} to {_MOST_SPEED:g}; 1 is the usual pace.")
    changed = settings.voice
    if voice is not None:
        name, _, who = voice.partition("/")
        changed = msgspec.structs.replace(changed, voice=None if name == "auto" else name, voice_name=who or None)
    if speed is not None:
        changed = msgspec.structs.replace(changed, speed=speed)
    if language is not None:
        changed = msgspec.structs.replace(changed, language=language)
    return msgspec.structs.replace(settings, voice=changed)


def _open(settings: Settings, on_fetch: OnFetch | None, on_measure: OnMeasure | None) -> Voice:
    from edge_voice.models import fetch_models
    from edge_voice.tts.choice import models_for_speech, open_voice

    fetch_models(models_for_speech(settings), settings, on_fetch)
    return open_voice(settings, on_measure=on_measure)


def _settings(settings: Settings | None) -> Settings:
    from edge.config import load_settings

    return settings if settings is not None else load_settings()


def _pieces(text: Iterable[str], language: str) -> Iterator[str]:
    """Yield the words of each piece that has any."""
    splitter = Sentences()
    for part in text:
        yield from filter(None, (spoken(piece, language) for piece in splitter.add(part)))
    yield from filter(None, (spoken(piece, language) for piece in splitter.end()))
