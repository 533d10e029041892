"""Transcriptions beside the microphone: one thread, and of guesses that wait only the newest."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import CancelledError, EdgeError

if TYPE_CHECKING:
    from edge_voice.stages import Recogniser, Samples

__all__ = ["Job", "Transcriber", "Transcript"]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Speech to transcribe.

    Attributes:
        speech: at RATE.
        utterance: number of the utterance.
        part: number of its part, for utterances longer than the recogniser takes.
        end: samples of the part when it was handed over, of which all speech lies before the end.
        is_needed: it is not dropped for a newer one.
    """

    speech: Samples
    utterance: int
    part: int
    end: int
    is_needed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Transcript:
    """The words of a job.

    Attributes:
        text: "" for none.
        took_s: time that it took, in seconds.
        error: why there are none.
    """

    job: Job
    text: str
    took_s: float
    error: EdgeError | None = None


class Transcriber:
    """Runs a recogniser.

    Args:
        recogniser: used by this thread alone, but for its `cancel`.
        language: of the speech; None leaves it to the recogniser.
        on_done: called with every transcript, from the thread.
        is_threaded: False runs each job in `submit`, for tests.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        language: str | None,
        on_done: Callable[[Transcript], None],
        *,
        is_threaded: bool = True,
    ) -> None:
        self._recogniser, self._language, self._on_done = recogniser, language, on_done
        self._jobs: list[Job] = []
        self._is_running = self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="edge-voice-transcriber", daemon=True) if is_threaded else None
        if self._thread is not None:
            self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is being transcribed."""
        return not self._is_running and not self._jobs

    def submit(self, job: Job) -> None:
        """Transcribe speech; a guess that still waits is dropped for it."""
        if self._thread is None:
            self._on_done(self._transcribe(job))
            return
        with self._changed:
            self._jobs = [*(waiting for waiting in self._jobs if waiting.is_needed), job]
            self._changed.notify_all()

    def drop(self) -> None:
        """Forget what waits, and stop what runs."""
        with self._changed:
            self._jobs.clear()
        if self._is_running:
            self._recogniser.cancel()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._changed.notify_all()
        self._recogniser.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if self._is_closed:
                    return
                job = self._jobs.pop(0)
                self._is_running = True
            done = self._transcribe(job)
            self._is_running = False
            if not isinstance(done.error, CancelledError):
                with contextlib.suppress(CancelledError):
                    self._on_done(done)

    def _transcribe(self, job: Job) -> Transcript:
        began = time.perf_counter()
        try:
            text = self._recogniser.transcribe(job.speech, language=self._language)
        except EdgeError as error:
            return Transcript(job, "", time.perf_counter() - began, error)
        except Exception as error:  # noqa: BLE001 (of an engine; what it raises must not end the thread)
            wrapped = EdgeError(f"The recogniser failed: {error!r}.", "Choose another one: voice.recogniser")
            return Transcript(job, "", time.perf_counter() - began, wrapped)
        return Transcript(job, " ".join(text.split()), time.perf_counter() - began)
