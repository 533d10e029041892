"""Opens the stages that the settings name, and chooses where they leave it open."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_voice.line import Stages
from edge_voice.registry import EXTRA_HINT, STAGES, open_stage
from edge_voice.sentences import Sentences
from edge_voice.spoken import spoken

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.registry import StageKind
    from edge_voice.stages import Voice

__all__ = ["choose_echo", "choose_recogniser", "open_stages"]


def open_stages(
    settings: Settings, *, on_measure: Callable[[int, int], None] | None = None, notices: tuple[str, ...] = ()
) -> Stages:
    """Open all stages of a line but the devices, which are opened when they are needed.

    Args:
        settings: that name them.
        notices: what the user should know besides; see `edge_voice.models.fetch_models`.
        on_measure: see `edge_voice.tts.choice.measure_kokoro`; the voice may be chosen by a measurement.

    Raises:
        UsageError: there is no such stage, or none for the language.
        BackendUnavailableError: a package of the extra "voice" is missing.
        ModelNotFoundError: a model is not here.
    """
    voice = settings.voice
    echo, about_echo = choose_echo(settings)
    spoken_by, about_voice = _open_voice(settings, on_measure)
    return Stages(
        vad=open_stage("vad", voice.vad, settings),
        endpoint=open_stage("endpoint", voice.endpoint, settings),
        recogniser=open_stage("recogniser", choose_recogniser(settings), settings),
        voice=spoken_by,
        echo=open_stage("echo", echo, settings),
        open_microphone=partial(open_stage, "microphone", voice.microphone, settings),
        open_speaker=partial(open_stage, "speaker", voice.speaker, settings),
        splitter=Sentences,
        wording=spoken,
        wake=open_stage("wake", voice.wake_word, settings) if voice.wake_word else None,
        notices=(*notices, *about_echo, *about_voice),
    )


def _open_voice(settings: Settings, on_measure: Callable[[int, int], None] | None) -> tuple[Voice | None, tuple[str, ...]]:
    """Return the voice, and what the user should know about it; None where no voice speaks the language."""
    from edge_voice.tts.choice import knows_language, open_voice

    if settings.voice.voice is None and not knows_language(settings):
        return None, (f"No voice here speaks the language {settings.voice.language!r}, so replies are not spoken.",)
    return open_voice(settings, on_measure=on_measure), ()


def choose_recogniser(settings: Settings) -> str:
    """Return the name of the recogniser: as set, or the first that knows the language.

    Raises:
        UsageError: none does.
    """
    voice = settings.voice
    return voice.recogniser or _first_for(voice.language, "recogniser")


def _first_for(language: str | None, kind: StageKind) -> str:
    for row in STAGES.values():
        if row.kind == kind and (not row.languages or language in row.languages):
            return row.name
    raise UsageError(f"No {kind} knows the language {language!r}.", "Name one with a setting, such as voice.recogniser.")


def choose_echo(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """Return the name of the echo stage, as set or by what is installed, and what the user should know about it."""
    if settings.voice.echo is not None:
        return settings.voice.echo, ()
    if importlib.util.find_spec("livekit") is not None:
        return "livekit", ()
    notice = (
        "There is no echo canceller, so the microphone is off while the model speaks; a key interrupts it. "
        f"{EXTRA_HINT}, or with headphones: edge config set voice.echo headphones"
    )
    return "half-duplex", (notice,)
