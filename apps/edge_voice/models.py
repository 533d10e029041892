"""Models that speech in and out needs: which are missing, and fetching them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from edge.errors import BackendUnavailableError, DownloadError, EdgeError, ModelNotFoundError

if TYPE_CHECKING:
    from edge.catalog import DownloadProgress
    from edge.config import Settings

__all__ = ["OnFetch", "fetch_for_talk", "fetch_models", "models_for_hearing", "models_for_talk"]

OnFetch: TypeAlias = "Callable[[int, int, DownloadProgress], None]"
"""Takes the number of the model that is fetched, from 1, how many are missing, and its progress. It may raise to stop that; the
next call resumes."""


def models_for_hearing(settings: Settings) -> list[str]:
    """Return the names of the models that hearing needs.

    Raises:
        UsageError: there is no such stage, or none for the language.
    """
    from edge_voice.opening import choose_recogniser
    from edge_voice.registry import find_stage

    voice = settings.voice
    rows = (
        find_stage("vad", voice.vad),
        find_stage("endpoint", voice.endpoint),
        find_stage("recogniser", choose_recogniser(settings)),
    )
    return [row.model for row in rows if row.model]


def models_for_talk(settings: Settings) -> tuple[str, ...]:
    """Return the names of the models that a talk needs and that are not here.

    Raises:
        UsageError: there is no such stage, or none for the language.
        BackendUnavailableError: a package of the extra "voice" is missing, so that no model would help.
    """
    from edge.catalog import find_voice
    from edge_voice.tts.choice import models_for_speech

    _require_packages(settings)
    hearing = (name for name in models_for_hearing(settings) if find_voice(name, settings=settings) is None)
    return tuple(dict.fromkeys((*hearing, *models_for_speech(settings))))


def fetch_for_talk(settings: Settings, on_progress: OnFetch | None = None) -> tuple[str, ...]:
    """Fetch the models that a talk needs, unless they are here.

    Args:
        settings: stages, directories, offline mode.
        on_progress: see `OnFetch`.

    Returns:
        As `fetch_models`.

    Raises:
        UsageError, BackendUnavailableError: as `models_for_talk`.
        ModelNotFoundError, DownloadError, ChecksumError, StorageError: as `fetch_models`.
    """
    return fetch_models(models_for_talk(settings), settings, on_progress)


def fetch_models(names: Iterable[str], settings: Settings, on_progress: OnFetch | None = None) -> tuple[str, ...]:
    """Fetch models for voice unless they are here.

    Args:
        names: in the catalogue.
        settings: directories, offline mode, and the voice, which says whether another one would do.
        on_progress: see `OnFetch`.

    Returns:
        A line for each model that could not be fetched and that another one stands in for: a voice, where any will do.

    Raises:
        ModelNotFoundError: there is no such model, or edge is offline and it is not here.
        DownloadError, ChecksumError, StorageError: one could not be fetched.
    """
    from edge.catalog import find_voice, pull_voice
    from edge_voice.tts.choice import is_spare

    missing = [name for name in names if find_voice(name, settings=settings) is None]
    lines = []
    for number, name in enumerate(missing, 1):

        def report(progress: DownloadProgress, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number, len(missing), progress)

        try:
            pull_voice(name, settings=settings, on_progress=report)
        except (ModelNotFoundError, DownloadError) as error:
            if not is_spare(name, settings):
                raise
            lines.append(_without(name, error))
    return tuple(lines)


def _without(name: str, error: EdgeError) -> str:
    return f"The voice {name} could not be fetched, so another one speaks. {error}"


def _require_packages(settings: Settings) -> None:
    from edge_voice.opening import choose_echo, choose_recogniser
    from edge_voice.registry import EXTRA_HINT, find_stage

    voice = settings.voice
    rows = [
        find_stage("microphone", voice.microphone),
        find_stage("speaker", voice.speaker),
        find_stage("vad", voice.vad),
        find_stage("endpoint", voice.endpoint),
        find_stage("recogniser", choose_recogniser(settings)),
        find_stage("echo", choose_echo(settings)[0]),
    ]
    if voice.voice is not None:
        rows.append(find_stage("voice", voice.voice))
    missing = sorted({module for row in rows for module in row.modules if find_spec(module) is None})
    if missing:
        raise BackendUnavailableError(f"Voice needs packages that are not installed: {', '.join(missing)}.", EXTRA_HINT)
