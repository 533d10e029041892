"""Hearing alone: what is said becomes events, and nothing is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from edge_voice.line import Line, Stages
from edge_voice.opening import choose_recogniser
from edge_voice.registry import open_stage
from edge_voice.streams import EventStream

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.events import VoiceEvent
    from edge_voice.models import OnFetch
    from edge_voice.stages import Microphone, Speaker

__all__ = ["Hearing", "hear", "open_hearing"]


def hear(settings: Settings | None = None, *, on_fetch: OnFetch | None = None) -> Hearing:
    """Open the microphone and listen until the result is closed. Models that are missing are fetched.

    Args:
        settings: stages, language and microphone; None loads those of the user.
        on_fetch: called with the progress of a download; see `edge_voice.models.OnFetch`.

    Raises:
        UsageError: there is no such stage, or none for the language.
        BackendUnavailableError: a package of the extra "voice" is missing.
        ModelNotFoundError: a model is not here, and edge is offline.
        DownloadError, ChecksumError, StorageError: one could not be fetched.
        SoundError: there is no microphone, or it cannot be used.
    """
    from edge.config import load_settings
    from edge_voice.models import fetch_models, models_for_hearing

    settings = settings or load_settings()
    fetch_models(models_for_hearing(settings), settings, on_fetch)
    return Hearing(open_hearing(settings), settings)


def open_hearing(settings: Settings) -> Stages:
    """Open the stages that hear, and a microphone that works. Raises as `hear`."""
    voice = settings.voice
    vad = open_stage("vad", voice.vad, settings)
    endpoint = open_stage("endpoint", voice.endpoint, settings)
    recogniser = open_stage("recogniser", choose_recogniser(settings), settings)
    opened = [open_stage("microphone", voice.microphone, settings)]  # an error here is the caller's, later ones are events

    def open_microphone() -> Microphone:
        microphone: Microphone = opened.pop() if opened else open_stage("microphone", voice.microphone, settings)
        return microphone

    return Stages(
        vad=vad,
        endpoint=endpoint,
        recogniser=recogniser,
        voice=None,
        echo=open_stage("echo", "headphones", settings),
        open_microphone=open_microphone,
        open_speaker=_no_speaker,
        splitter=_NoPieces,
        wording=_no_words,
    )


class Hearing:
    """What the microphone hears. `for` and `async for` yield the events, each once, until it is closed.

    Args:
        stages: opened; they are closed with it.
        settings: of voice.
    """

    def __init__(self, stages: Stages, settings: Settings) -> None:
        self._events = EventStream()
        always = msgspec.structs.replace(settings.voice, hands_free=True)
        self._line = Line(stages, always, self._events.add)

    @property
    def n_lost(self) -> int:
        """Samples that the microphone dropped, at `RATE`."""
        return self._line.n_lost

    def get(self, timeout_s: float | None = None) -> VoiceEvent | None:
        """Return the next event; None after the end, or after timeout_s seconds without one."""
        return self._events.get(timeout_s)

    def __iter__(self) -> Iterator[VoiceEvent]:
        return iter(self._events)

    def __aiter__(self) -> AsyncIterator[VoiceEvent]:
        return self._events.__aiter__()

    def close(self) -> None:
        """Close the microphone and end all threads. May be called twice."""
        self._line.close()
        self._events.end()

    def __enter__(self) -> Hearing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _NoPieces:
    """A splitter for replies that do not come."""

    def add(self, text: str) -> list[str]:
        return []

    def end(self) -> list[str]:
        return []


def _no_words(text: str, language: str = "en") -> str:
    return ""


def _no_speaker() -> Speaker:
    raise AssertionError("nothing is spoken")
