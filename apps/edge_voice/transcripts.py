"""A whole sound as text: where somebody speaks, and the words of each stretch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edge_voice.registry import find_stage, open_stage
from edge_voice.segments import Segmenter
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.config import Settings
    from edge_voice.models import OnFetch
    from edge_voice.registry import StageKind
    from edge_voice.stages import Recogniser, Samples, Vad

__all__ = [
    "Segment",
    "Transcript",
    "find_speech",
    "models_for_sound",
    "open_for",
    "transcribe",
    "transcribe_segments",
]

_BEFORE_S, _AFTER_S = 0.4, 0.2  # kept around speech: its first and last sounds are quiet
_PAUSE_S = 0.5  # that ends a stretch
_LEAST_VOICED_S = 0.2  # less speech than that is a noise
_SEARCH_S = 8.0  # before the recogniser's longest speech, in which the quietest place to split is looked for


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech between two pauses.

    Attributes:
        start_s: where it begins in the sound, in seconds.
        end_s: where it ends.
        text: its words, never "".
        language: code such as "en".
    """

    start_s: float
    end_s: float
    text: str
    language: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of a sound.

    Attributes:
        text: of all segments; "" if nobody speaks.
        segments: in order.
        language: code of the language that is spoken most; "" if nobody speaks.
        audio_s: length of the sound, in seconds.
        took_s: time that it took, without opening the models, in seconds.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    audio_s: float
    took_s: float


def transcribe(
    array: NDArray[Any],
    rate: int,
    language: str | None = None,
    *,
    settings: Settings | None = None,
    on_fetch: OnFetch | None = None,
) -> Transcript:
    """Transcribe a sound. Silence and noise give no words. Models stay open for the next call, and one call runs at a time.

    Models that are missing are fetched.

    Args:
        array: shape (n,) or (n, channels); int16, int32, or floats within [-1, 1].
        rate: samples a second.
        language: code such as "de", or "auto" to find it out (needs Whisper); None is the setting voice.language, English.
        settings: stages and models folder; None loads those of the user.
        on_fetch: called with the progress of a download; see `edge_voice.models.OnFetch`.

    Raises:
        UsageError: the array is no sound, or no recogniser knows the language.
        BackendUnavailableError: a package of the extra "voice" is not installed.
        ModelNotFoundError: a model is not here, and edge is offline; the hint says how to fetch it.
        DownloadError, ChecksumError, StorageError: one could not be fetched.
    """
    from edge.config import load_settings
    from edge_voice.models import fetch_models
    from edge_voice.resample import mono

    samples = mono(array, rate)
    settings = settings or load_settings()
    with _one_at_a_time:
        fetch_models(models_for_sound(settings, language), settings, on_fetch)
        vad, recogniser, spoken = open_for(settings, language)
        began_s = time.perf_counter()
        segments = tuple(transcribe_segments(samples, vad, recogniser, spoken))
        took_s = time.perf_counter() - began_s
    text = " ".join(segment.text for segment in segments)
    return Transcript(text, segments, _most_spoken(segments), len(samples) / RATE, took_s)


_opened: dict[tuple[str, ...], Any] = {}
_one_at_a_time = threading.Lock()


def open_for(settings: Settings, language: str | None = None) -> tuple[Vad, Recogniser, str | None]:
    """Return the stages for a language, opened once, and the language to ask for: None to find it out. As `transcribe`."""
    from edge_voice.opening import choose_recogniser

    with_language = _with_language(settings, language)
    spoken = with_language.voice.language
    vad = _open_once("vad", settings.voice.vad, settings)
    recogniser = _open_once("recogniser", choose_recogniser(with_language), settings)
    return vad, recogniser, spoken


def models_for_sound(settings: Settings, language: str | None = None) -> list[str]:
    """Return the models of the catalogue that `transcribe` needs.

    Raises:
        UsageError: no recogniser knows the language.
    """
    from edge_voice.opening import choose_recogniser

    recogniser = choose_recogniser(_with_language(settings, language))
    rows = (find_stage("vad", settings.voice.vad), find_stage("recogniser", recogniser))
    return [row.model for row in rows if row.model]


def _with_language(settings: Settings, language: str | None) -> Settings:
    if language is None:
        return settings
    voice = msgspec.structs.replace(settings.voice, language=None if language == "auto" else language)
    return msgspec.structs.replace(settings, voice=voice)


def _open_once(kind: StageKind, name: str, settings: Settings) -> Any:
    key = (kind, name, str(settings.paths.models_dir))
    if key not in _opened:
        _opened[key] = open_stage(kind, name, settings)
    return _opened[key]


def transcribe_segments(samples: Samples, vad: Vad, recogniser: Recogniser, language: str | None) -> Iterator[Segment]:
    """Yield the segments of a sound, one by one.

    Args:
        samples: at RATE, one channel.
        vad: tells where somebody speaks.
        recogniser: transcribes that.
        language: code; None leaves it to the recogniser.
    """
    for start, end in find_speech(samples, vad, int(recogniser.max_s * RATE)):
        text = recogniser.transcribe(samples[start:end], language=language)
        if text:
            yield Segment(start / RATE, end / RATE, text, recogniser.language)


def find_speech(samples: Samples, vad: Vad, n_most: int) -> list[tuple[int, int]]:
    """Return where somebody speaks, as (start, end) in samples, with a little of the silence around it.

    Args:
        samples: at RATE, one channel.
        vad: is reset.
        n_most: samples of a stretch at most; longer ones are split where they are quietest.
    """
    vad.reset()
    frame, segmenter = vad.frame, Segmenter()
    n_pause, n_least = int(_PAUSE_S * RATE / frame), int(_LEAST_VOICED_S * RATE / frame)
    found: list[tuple[int, int]] = []
    probabilities: list[float] = []
    first = 0

    def close(last: int) -> None:
        if segmenter.n_voiced >= n_least:
            end = (last - segmenter.n_silent) * frame
            found.extend(_split(first, end, n_most, probabilities, frame))
        segmenter.end()

    n_frames = len(samples) // frame
    for number in range(n_frames):
        probabilities.append(vad.probability(samples[number * frame : (number + 1) * frame]))
        step = segmenter.add(probabilities[-1])
        if step == "started":
            first = (number + 1 - segmenter.n_voiced) * frame
        elif step == "pause" and segmenter.n_silent >= n_pause:
            close(number + 1)
    if segmenter.is_open:
        close(n_frames)
    return _widen(found, len(samples))


def _split(start: int, end: int, n_most: int, probabilities: Sequence[float], frame: int) -> Iterator[tuple[int, int]]:
    """Yield stretches of at most n_most samples, with room for what `_widen` adds."""
    n_room = n_most - int((_BEFORE_S + _AFTER_S) * RATE)
    while end - start > n_room:
        low, high = start + max(n_room - int(_SEARCH_S * RATE), n_room // 2), start + n_room
        quietest = min(range(low // frame, high // frame), key=probabilities.__getitem__)
        yield start, quietest * frame
        start = quietest * frame
    yield start, end


def _widen(found: Sequence[tuple[int, int]], n_samples: int) -> list[tuple[int, int]]:
    """Add the silence around each stretch, up to its neighbours."""
    widened: list[tuple[int, int]] = []
    for number, (start, end) in enumerate(found):
        left = widened[-1][1] if widened else 0
        right = found[number + 1][0] if number + 1 < len(found) else n_samples
        widened.append((max(left, start - int(_BEFORE_S * RATE)), min(right, end + int(_AFTER_S * RATE))))
    return widened


def _most_spoken(segments: Sequence[Segment]) -> str:
    seconds: dict[str, float] = {}
    for segment in segments:
        seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end_s - segment.start_s
    return max(seconds, key=seconds.__getitem__, default="")
