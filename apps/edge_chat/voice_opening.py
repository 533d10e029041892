"""Opens the voice of the chat: fetches models that are missing, measures once, and says what it does. It can be cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.errors import CancelledError
from edge.units import size_text

if TYPE_CHECKING:
    from edge.catalog import DownloadProgress
    from edge.config import Settings
    from edge_voice.events import VoiceEvent
    from edge_voice.line import Line

__all__ = ["VoiceOpening", "open_line"]

_POLL_S = 0.1
_PHASES = {"connect": "Looking for", "wait": "Waiting for another download of", "unpack": "Unpacking", "verify": "Checking"}


class VoiceOpening:
    """One attempt to open the voice. Its methods may be called by any thread.

    Args:
        show: takes what is done now, in words.
        is_loading: returns whether a model is being loaded, beside which nothing can be measured.
    """

    def __init__(self, show: Callable[[str], None], is_loading: Callable[[], bool]) -> None:
        self._show, self._is_loading = show, is_loading
        self._said = ""
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        """Return whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop at the next step. What was fetched stays for the next attempt."""
        self._cancelled.set()

    def say(self, text: str) -> None:
        """Show a step.

        Raises:
            CancelledError: the user has cancelled.
        """
        if self.is_cancelled:
            raise CancelledError("Voice was not turned on.", "What was fetched so far is kept: /voice goes on from there.")
        if text != self._said:
            self._said = text
            self._show(text)

    def fetched(self, number: int, n_models: int, progress: DownloadProgress) -> None:
        """Show the progress of a download; see `edge_voice.models.fetch_for_talk`."""
        of = f" of {size_text(progress.total_bytes)}" if progress.total_bytes else ""
        done = f": {size_text(progress.done_bytes)}{of}" if progress.phase == "download" else ""
        self.say(f"{_PHASES.get(progress.phase, 'Fetching')} {progress.name} ({number} of {n_models} for voice){done}")

    def measured(self, n_done: int, n_runs: int) -> None:
        """Show the progress of the measurement; see `edge_voice.tts.choice.measure_kokoro`."""
        while n_done == 0 and self._is_loading():
            self.say("Waiting for the model, then choosing a voice")
            time.sleep(_POLL_S)
        self.say(f"Measuring once how fast the voice Kokoro is here: {n_done + 1} of {n_runs}")


def open_line(
    settings: Settings, take: Callable[[VoiceEvent], None], on_spoken: Callable[[str], None], opening: VoiceOpening
) -> Line:
    """Fetch what is missing and open the line. Blocks meanwhile.

    Args:
        settings: stages, directories, offline mode.
        take: takes the events.
        on_spoken: called when a reply was spoken to its end.
        opening: says what is done.

    Raises:
        CancelledError: the user has cancelled.
        EdgeError: as `edge_voice.models.fetch_for_talk` and `edge_voice.opening.open_stages`.
    """
    from edge_voice.line import Line
    from edge_voice.models import fetch_for_talk
    from edge_voice.opening import open_stages

    notices = fetch_for_talk(settings, opening.fetched)
    stages = open_stages(settings, on_measure=opening.measured, notices=notices)
    return Line(stages, settings.voice, take, on_spoken=on_spoken)
