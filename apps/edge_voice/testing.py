"""Stages without devices and models, for tests of programs that talk: deterministic, on a clock that the test moves.

Words are tones (`ToneLanguage`): the voice makes them, the recogniser reads them, so that a whole talk can be tested.

    fake = FakeStages()
    talk = conversation.talk(stages=fake.opened, clock=fake.clock, is_threaded=False, hands_free=True)
    fake.microphone.hear(fake.language.sound("hello there"), pause_s=1.0)
    while not fake.microphone.is_done:
        talk.line.step()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edge.errors import CancelledError, SoundError
from edge_voice.echo import Headphones
from edge_voice.line import Stages
from edge_voice.stages import BLOCK, RATE, Block

if TYPE_CHECKING:
    from edge_voice.stages import EchoCanceller, Samples

__all__ = [
    "FakeEndpoint",
    "FakeMicrophone",
    "FakeRecogniser",
    "FakeSpeaker",
    "FakeSplitter",
    "FakeStages",
    "FakeVad",
    "FakeVoice",
    "ToneLanguage",
    "VirtualClock",
]

WORD_S = 0.25


class VirtualClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self._now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


class ToneLanguage:
    """Every word is a tone of 0.25 seconds; the pitch is its place in the vocabulary, which grows with what is said."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._adding = threading.Lock()

    def sound(self, text: str, rate: int = RATE) -> Samples:
        """Return a text as sound, float32, shape (n_words * WORD_S * rate,)."""
        import numpy as np

        t = np.arange(int(WORD_S * rate)) / rate
        words = [0.3 * np.sin(2 * np.pi * (300 + 20 * self._number(word)) * t) for word in text.split()]
        sound: Samples = np.concatenate([*words, np.zeros(0)]).astype(np.float32)
        return sound

    def text(self, sound: Samples) -> str:
        """Return the words of a sound at RATE; silence around them does not matter, half a word counts."""
        import numpy as np

        loud = np.flatnonzero(np.abs(sound) > 0.01)
        if not len(loud):
            return ""
        size, words = int(WORD_S * RATE), []
        for start in range(loud[0], loud[-1] + 1, size):
            piece = sound[start : min(start + size, loud[-1] + 1)]
            if len(piece) >= size // 2:
                spectrum = np.abs(np.fft.rfft(piece, 16 * size))
                pitch = spectrum.argmax() * RATE / (16 * size)
                number = round((pitch - 300) / 20)
                words.append(self._words[number] if 0 <= number < len(self._words) else "?")
        return " ".join(words)

    def _number(self, word: str) -> int:
        with self._adding:
            if word not in self._words:
                self._words.append(word)
            return self._words.index(word)


class FakeMicrophone:
    """Hears what a test lets it hear, then silence; each block lets its time pass.

    Attributes:
        is_lost: the next read fails, as of a device that was unplugged.
        n_open: how often it was opened and not closed.
    """

    name = "fake microphone"

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._blocks: list[Samples] = []
        self.is_lost = False
        self.n_open = 0

    def hear(self, sound: Samples, pause_s: float = 0.0) -> None:
        """Let it hear a sound at RATE, and silence behind it."""
        import numpy as np

        sound = np.concatenate([sound, np.zeros(int(pause_s * RATE), np.float32)])
        sound = np.pad(sound, (0, -len(sound) % BLOCK))
        self._blocks.extend(sound.reshape(-1, BLOCK))

    @property
    def is_done(self) -> bool:
        """Return whether everything was read."""
        return not self._blocks

    def read(self, timeout_s: float) -> Block:
        """See `Microphone.read`."""
        import numpy as np

        if self.is_lost:
            raise SoundError("The microphone is gone.", "Plug it in again.")
        block = Block(self._blocks.pop(0) if self._blocks else np.zeros(BLOCK, np.float32), self._clock())
        self._clock.advance(BLOCK / RATE)
        return block

    def close(self) -> None:
        """See `Microphone.close`."""
        self.n_open -= 1


class FakeSpeaker:
    """Plays as time passes, and notes what was heard.

    Attributes:
        played: (samples, rate) of all that was queued.
        is_lost: the next call fails, as of a device that was unplugged.
    """

    name = "fake loudspeaker"
    latency_s = 0.0
    on_played: Callable[[Samples, float], None] | None = None

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._until_s = clock()
        self.played: list[tuple[Samples, int]] = []
        self.is_lost = False
        self.n_stops = 0

    def play(self, samples: Samples, rate: int) -> None:
        """See `Speaker.play`."""
        self._check()
        self.played.append((samples, rate))
        self._until_s = max(self._until_s, self._clock()) + len(samples) / rate

    @property
    def waiting_s(self) -> float:
        """See `Speaker.waiting_s`."""
        self._check()
        return max(0.0, self._until_s - self._clock())

    def stop(self) -> float:
        """See `Speaker.stop`."""
        dropped = max(0.0, self._until_s - self._clock())
        self._until_s = self._clock()
        self.n_stops += 1
        return dropped

    def close(self) -> None:
        """See `Speaker.close`."""
        self.stop()

    def _check(self) -> None:
        if self.is_lost:
            raise SoundError("The loudspeaker is gone.", "Plug it in again.")


class FakeSplitter:
    """Splits at "." and, once, at ","."""

    def __init__(self) -> None:
        self._text = ""
        self._is_first = True

    def add(self, text: str) -> list[str]:
        """See `Splitter.add`."""
        self._text += text
        pieces: list[str] = []
        while True:
            ends = [self._text.find(mark) for mark in (".,".rstrip("," if not self._is_first else ""))]
            found = [end for end in ends if end >= 0]
            if not found:
                return pieces
            self._is_first = False
            pieces.append(self._text[: min(found) + 1])
            self._text = self._text[min(found) + 1 :]

    def end(self) -> list[str]:
        """See `Splitter.end`."""
        rest, self._text = self._text, ""
        return [rest] if rest else []


class FakeVad:
    """Takes every sound for speech."""

    frame = 512

    def probability(self, samples: Samples) -> float:
        """See `Vad.probability`."""
        return 1.0 if float(abs(samples).max()) > 0.01 else 0.0

    def reset(self) -> None:
        """See `Vad.reset`."""


class FakeEndpoint:
    """Says what it is told.

    Attributes:
        answer: the probability.
        n_asked: how often it was asked.
    """

    def __init__(self, answer: float = 1.0) -> None:
        self.answer = answer
        self.n_asked = 0

    def probability(self, speech: Samples) -> float:
        """See `EndpointModel.probability`."""
        self.n_asked += 1
        return self.answer


class FakeRecogniser:
    """Understands the tone language.

    Attributes:
        heard: all that it has transcribed.
    """

    languages: tuple[str, ...] = ("en",)
    language = "en"

    def __init__(self, language: ToneLanguage, max_s: float = 60.0) -> None:
        self._language = language
        self.max_s = max_s
        self.heard: list[str] = []

    def transcribe(self, speech: Samples, *, language: str | None = None) -> str:
        """See `Recogniser.transcribe`."""
        self.heard.append(self._language.text(speech))
        return self.heard[-1]

    def cancel(self) -> None:
        """See `Recogniser.cancel`."""


class FakeVoice:
    """Speaks the tone language, a word at a time."""

    name, rate = "fake voice", 24_000
    languages: tuple[str, ...] = ("en",)

    def __init__(self, language: ToneLanguage) -> None:
        self._language = language
        self._is_cancelled = False
        self.said: list[str] = []

    def speak(self, text: str) -> Iterator[Samples]:
        """See `Voice.speak`."""
        self._is_cancelled = False
        self.said.append(text)
        for word in text.split():
            if self._is_cancelled:
                raise CancelledError("The voice was stopped.")
            yield self._language.sound(word, self.rate)

    def cancel(self) -> None:
        """See `Voice.cancel`."""
        self._is_cancelled = True


class FakeStages:
    """All of them at once, on one clock, in one language.

    Attributes:
        opened: for `Line` or `open_talk`.
        clock, language, microphone, speaker, endpoint, recogniser, voice: the parts.
        has_microphone, has_speaker: False lets opening the device fail.
    """

    def __init__(self, *, echo: EchoCanceller | None = None) -> None:
        self.clock, self.language = VirtualClock(), ToneLanguage()
        self.microphone, self.speaker = FakeMicrophone(self.clock), FakeSpeaker(self.clock)
        self.endpoint, self.recogniser = FakeEndpoint(), FakeRecogniser(self.language)
        self.voice = FakeVoice(self.language)
        self.has_microphone = self.has_speaker = True
        self.opened = Stages(
            vad=FakeVad(),
            endpoint=self.endpoint,
            recogniser=self.recogniser,
            voice=self.voice,
            echo=echo or Headphones(),
            open_microphone=self._open_microphone,
            open_speaker=self._open_speaker,
            splitter=FakeSplitter,
            wording=_plain,
        )

    def _open_microphone(self) -> FakeMicrophone:
        if not self.has_microphone:
            raise SoundError("There is no microphone.", "Plug one in.")
        self.microphone.is_lost = False
        self.microphone.n_open += 1
        return self.microphone

    def _open_speaker(self) -> FakeSpeaker:
        if not self.has_speaker:
            raise SoundError("There is no loudspeaker.", "Plug one in.")
        self.speaker.is_lost = False
        return self.speaker


def _plain(text: str, language: str = "en") -> str:
    return "".join(c if c.isalnum() or c.isspace() else "" for c in text).strip()
