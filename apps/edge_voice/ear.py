"""The listening half: blocks of sound become utterances, partial transcripts, endpoints and messages.

Speech is transcribed again and again while it goes on. A pause has its transcript made at once, before it is known whether the
speaker has finished, so that the message is there when the endpoint is.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from edge_voice.events import Endpoint, Final, Notice, Partial, SpeechStarted, Unclear
from edge_voice.segments import Segmenter
from edge_voice.stages import RATE
from edge_voice.transcriber import Job, Transcriber, Transcript

if TYPE_CHECKING:
    from edge.config.schema import VoiceSettings
    from edge_voice.events import VoiceEvent
    from edge_voice.stages import EndpointModel, Recogniser, Samples, Vad

__all__ = ["Ear", "common_words"]

_BEFORE_S = 0.4  # kept from before the frame in which speech was certain: its first sounds are quiet
_AFTER_S = 0.1  # of the pause goes to the recogniser, which cuts off last sounds otherwise
_PARTIAL_S = 0.4  # at least between two partial transcripts
_PARTIAL_LOAD = 3.0  # of the time of one passes before the next, so that the language model gets on
_GUESS_S = 0.09  # of silence, after which the transcript is made that becomes the message if nothing follows
_JUDGED_S = 0.1  # before a pause has been long enough, the endpoint model is asked, so that its answer is there by then
_AGAIN_S = 0.128  # after it has said no, it is asked again: a whole pause more is what a speaker would have to wait for
_AGAIN_LOAD = 2.0  # of the time that its answer took passes before: a busy or slow processor gets on with hearing
_COMPLETE = 0.5  # probability from which on the speaker has finished
_LEAST_VOICED_S = 0.2  # less speech than that is a noise
_TAIL_S = 8.0  # of an utterance that the endpoint model gets
_LONGEST_S = 120.0  # of an utterance
_LEFT_S = 5.0  # before the recogniser's longest speech, from which on a pause splits an utterance


class Ear:
    """Hears one utterance after the other. `feed` is called by one thread; events come from it and from the transcriber's.

    Args:
        vad, endpoint, recogniser: stages.
        settings: pauses and the language.
        on_event: takes the events.
        clock: seconds, the same as in `Block.at_s`.
        on_utterance: takes the sound of each message.
        is_threaded: False transcribes within `feed`, for tests.
    """

    def __init__(
        self,
        vad: Vad,
        endpoint: EndpointModel,
        recogniser: Recogniser,
        settings: VoiceSettings,
        on_event: Callable[[VoiceEvent], None],
        clock: Callable[[], float],
        *,
        on_utterance: Callable[[Samples], None] | None = None,
        is_threaded: bool = True,
    ) -> None:
        self._vad, self._endpoint = vad, endpoint
        self._emit, self._clock, self._on_utterance = on_event, clock, on_utterance
        self._pause_s, self._longest_pause_s = settings.pause_ms / 1000, settings.longest_pause_ms / 1000
        self._frame_s = vad.frame / RATE
        self._max_samples = int(recogniser.max_s * RATE)
        self._segments = Segmenter()
        self._lock = threading.RLock()
        self._transcriber = Transcriber(recogniser, settings.language, self._transcribed, is_threaded=is_threaded)
        self._rest: list[Samples] = []  # less than a frame
        self._before: deque[Samples] = deque(maxlen=int(_BEFORE_S / self._frame_s) + 1)
        self._tail: deque[Samples] = deque(maxlen=int(_TAIL_S / self._frame_s))
        self._held: list[tuple[Samples, float, float]] = []
        self._number = 0
        self._took_s = self._judging_s = 0.0
        self._last_end = 0
        self._begin()

    def _begin(self) -> None:
        """Forget the utterance."""
        self._number += 1
        self._frames: list[Samples] = []
        self._whole: list[Samples] = []
        self._part = 0
        self._transcripts: dict[int, Transcript] = {}  # the newest of each part
        self._asked_at = 0  # samples of the part at the last partial transcript
        self._guessed = False
        self._next_ask_s = self._pause_s
        self._judged: float | None = None  # by the endpoint model, of this pause
        self._n_total = 0
        self._waits_for: Endpoint | None = None

    @property
    def is_hearing(self) -> bool:
        """Return whether an utterance has begun whose message is not there yet."""
        return self._segments.is_open or self._waits_for is not None

    @property
    def is_finishing(self) -> bool:
        """Return whether an utterance has ended whose message is not there yet."""
        return self._waits_for is not None

    @property
    def is_speech(self) -> bool:
        """Return whether somebody speaks now."""
        return self._segments.is_open and self._segments.n_silent == 0

    def feed(self, samples: Samples, at_s: float) -> None:
        """Take the next block.

        Args:
            samples: at RATE, shape (BLOCK,).
            at_s: when its first sample was taken.
        """
        import numpy as np

        self._rest.append(samples)
        sound = np.concatenate(self._rest) if len(self._rest) > 1 else samples
        end_s = at_s + len(samples) / RATE
        n_frames = len(sound) // self._vad.frame
        for number in range(n_frames):
            start = number * self._vad.frame
            after = len(sound) - start - self._vad.frame
            self._frame(sound[start : start + self._vad.frame], end_s - after / RATE)
        self._rest = [sound[n_frames * self._vad.frame :]]

    def release(self) -> None:
        """End the utterance that is being heard, as the key does."""
        with self._lock:
            if self._segments.is_open:
                now = self._clock()
                self._end("released", now - self._segments.n_silent * self._frame_s)

    def forget(self) -> None:
        """Drop what is being heard."""
        with self._lock:
            self._transcriber.drop()
            self._segments.end()
            self._vad.reset()
            self._rest.clear()
            self._held.clear()
            self._before.clear()
            self._begin()

    def close(self) -> None:
        """End the transcriber."""
        self._transcriber.close()

    def _frame(self, frame: Samples, end_s: float) -> None:
        probability = self._vad.probability(frame)
        with self._lock:
            if self._waits_for is not None:  # for a transcript: what is said meanwhile is the next utterance
                self._held.append((frame, probability, end_s))
                return
            held, self._held = self._held, []
            for one in (*held, (frame, probability, end_s)):
                self._take(*one)

    def _take(self, frame: Samples, probability: float, end_s: float) -> None:
        step = self._segments.add(probability)
        if step == "silence":
            self._before.append(frame)
            return
        if step == "started":
            self._before.append(frame)
            self._started(end_s)
            return
        self._keep(frame)
        if step == "speech":
            self._guessed, self._next_ask_s, self._judged = False, self._pause_s, None
            self._speech()
        else:
            self._pause(end_s)
        if self._segments.is_open and self._n_total >= _LONGEST_S * RATE:
            self._end("length", end_s)

    def _started(self, end_s: float) -> None:
        began_s = end_s - self._segments.n_voiced * self._frame_s
        self._tail.clear()
        for frame in self._before:
            self._keep(frame)
        self._before.clear()
        self._emit(SpeechStarted(began_s))

    def _keep(self, frame: Samples) -> None:
        self._frames.append(frame)
        self._tail.append(frame)
        if self._on_utterance is not None:
            self._whole.append(frame)
        self._n_total += len(frame)

    def _speech(self) -> None:
        """Ask for a partial transcript when it is time."""
        size = self._part_size
        if size >= self._max_samples:
            self._split()
            return
        new_s = (size - self._asked_at) / RATE
        if new_s >= max(_PARTIAL_S, _PARTIAL_LOAD * self._took_s) and self._transcriber.is_idle:
            self._transcriber.submit(self._job(is_needed=False))

    def _pause(self, end_s: float) -> None:
        import numpy as np

        silent_s = self._segments.n_silent * self._frame_s
        if not self._guessed and silent_s >= _GUESS_S:
            self._guessed = True
            if self._speech_end > 0:
                self._transcriber.submit(self._job(is_needed=False))
        if silent_s >= self._pause_s and self._part_size > self._max_samples - _LEFT_S * RATE:
            self._split()
        if silent_s >= self._longest_pause_s:
            self._end("silence", end_s - silent_s)
            return
        until_s = self._next_ask_s - silent_s - self._frame_s / 2  # half a frame early rather than late
        if self._judged is None and until_s <= _JUDGED_S:
            began = time.perf_counter()
            self._judged = self._endpoint.probability(np.concatenate(self._tail))
            self._judging_s = time.perf_counter() - began
        if self._judged is not None and until_s <= 0:
            likely, self._judged = self._judged, None
            self._next_ask_s = silent_s + max(_AGAIN_S, _AGAIN_LOAD * self._judging_s)
            if likely >= _COMPLETE:
                self._end("model", end_s - silent_s)

    @property
    def _part_size(self) -> int:
        return sum(map(len, self._frames))

    @property
    def _speech_end(self) -> int:
        """Return where the last speech of the part ends, in samples; 0 or less if it has none."""
        return self._part_size - self._segments.n_silent * self._vad.frame

    def _job(self, *, is_needed: bool) -> Job:
        """Return the part so far, without the end of the pause behind it, as a job."""
        import numpy as np

        self._asked_at, end = self._part_size, self._speech_end
        sound = np.concatenate(self._frames)[: max(1, end + int(_AFTER_S * RATE))]
        return Job(sound, self._number, self._part, end, is_needed)

    def _split(self) -> None:
        """Have the part so far transcribed for good, and begin the next one."""
        self._transcriber.submit(self._job(is_needed=True))
        self._frames, self._asked_at = [], 0
        self._part += 1

    def _end(self, reason: Literal["model", "silence", "released", "length"], speech_end_s: float) -> None:
        if self._segments.n_voiced * self._frame_s < _LEAST_VOICED_S:
            self._segments.end()
            self._transcriber.drop()
            self._begin()
            self._emit(Unclear(self._clock()))
            return
        end = self._speech_end
        if end <= 0 and self._part > 0:  # a part that was split off had all that was said
            self._part, end = self._part - 1, 0
        newest = self._transcripts.get(self._part)
        newest = newest if newest is not None and newest.job.end >= end else None
        is_coming = (self._guessed or end == 0) and not self._transcriber.is_idle
        job = None if newest is not None or is_coming else self._job(is_needed=True)
        self._last_end = end
        self._waits_for = Endpoint(speech_end_s, self._clock(), reason)
        self._segments.end()
        self._vad.reset()
        self._emit(self._waits_for)
        if newest is not None:
            self._finish(newest)
        elif job is not None:
            self._transcriber.submit(job)

    def _transcribed(self, done: Transcript) -> None:
        """Take a transcript, from the transcriber's thread."""
        with self._lock:
            part = done.job.part
            if done.job.utterance != self._number:
                return
            if done.error is not None:
                self._emit(Notice(str(done.error)))
            self._took_s = done.took_s
            before = self._joined()
            self._transcripts[part] = done
            if self._waits_for is not None:
                if part == self._part and done.job.end >= self._last_end:
                    self._finish(done)
                return
            text = self._joined()
            if text:
                self._emit(Partial(text, common_words(before, text)))

    def _joined(self) -> str:
        texts = [self._transcripts[part].text for part in sorted(self._transcripts)]
        return " ".join(text for text in texts if text)

    def _finish(self, done: Transcript) -> None:
        """Emit the message, and be ready for the next utterance."""
        import numpy as np

        text, whole, audio_s = self._joined(), self._whole, self._n_total / RATE
        self._begin()
        if not text:
            self._emit(Unclear(self._clock()))
            return
        self._emit(Final(text, audio_s, done.took_s))
        if self._on_utterance is not None:
            self._on_utterance(np.concatenate(whole))


def common_words(one: str, other: str) -> str:
    """Return the words at the beginning of `other` that both texts have, without the last word of either."""
    first, second = one.split(), other.split()
    n = 0
    while n < min(len(first), len(second)) - 1 and first[n] == second[n]:
        n += 1
    return " ".join(second[:n])
