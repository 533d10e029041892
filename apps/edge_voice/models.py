"""Models that a talk needs: which are missing, and fetching them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError

if TYPE_CHECKING:
    from edge.catalog import DownloadProgress
    from edge.config import Settings

__all__ = ["fetch_for_talk", "models_for_talk"]


def models_for_talk(settings: Settings) -> tuple[str, ...]:
    """Return the names of the models that a talk needs and that are not here.

    Raises:
        UsageError: there is no such stage, or none for the language.
        BackendUnavailableError: a package of the extra "voice" is missing, so that no model would help.
    """
    from edge.catalog import find_voice
    from edge_voice.hearing import models_for_hearing
    from edge_voice.tts.choice import models_for_speech

    _require_packages(settings)
    hearing = (name for name in models_for_hearing(settings) if find_voice(name, settings=settings) is None)
    return tuple(dict.fromkeys((*hearing, *models_for_speech(settings))))


def fetch_for_talk(settings: Settings, on_progress: Callable[[int, int, DownloadProgress], None]) -> None:
    """Fetch the models that a talk needs, unless they are here.

    Args:
        settings: stages, directories, offline mode.
        on_progress: called with the number of the model from 1, how many are missing, and its progress; may raise to stop it,
            and the next call resumes.

    Raises:
        UsageError, BackendUnavailableError: as `models_for_talk`.
        ModelNotFoundError: edge is offline and one is not here.
        DownloadError, ChecksumError, StorageError: one could not be fetched.
    """
    from edge.catalog import pull_voice

    missing = models_for_talk(settings)
    for number, name in enumerate(missing, 1):

        def report(progress: DownloadProgress, number: int = number) -> None:
            on_progress(number, len(missing), progress)

        pull_voice(name, settings=settings, on_progress=report)


def _require_packages(settings: Settings) -> None:
    from edge_voice.opening import choose_recogniser
    from edge_voice.registry import EXTRA_HINT, find_stage

    voice = settings.voice
    rows = (
        find_stage("microphone", voice.microphone),
        find_stage("speaker", voice.speaker),
        find_stage("vad", voice.vad),
        find_stage("endpoint", voice.endpoint),
        find_stage("recogniser", choose_recogniser(settings)),
    )
    missing = sorted({row.module for row in rows if row.module and find_spec(row.module) is None})
    if missing:
        raise BackendUnavailableError(f"Voice needs packages that are not installed: {', '.join(missing)}.", EXTRA_HINT)
