"""Contracts of the stages. Each stands alone, and is replaced by name in the settings (registry.py).

Sound is float32, one channel, shape (n_samples,), within [-1, 1]. What comes from the microphone has `RATE` samples a second
everywhere; what goes to the loudspeaker has the voice's rate, which the loudspeaker resamples. Positions in time are seconds of
`time.monotonic`; lengths are seconds.

A stage is used by one thread at a time, except for the methods that say otherwise. A stage that holds threads or devices ends
them in `close`, which may be called twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "RATE",
    "Block",
    "EchoCanceller",
    "EndpointModel",
    "Microphone",
    "Recogniser",
    "Samples",
    "Speaker",
    "Splitter",
    "Vad",
    "Voice",
    "WakeWord",
    "Wording",
]

Samples: TypeAlias = "NDArray[np.float32]"
"""Sound: one channel, shape (n_samples,), within [-1, 1]."""

RATE = 16_000
"""Samples a second of all that comes from a microphone."""

BLOCK = 320
"""Samples of a block of the microphone: 20 ms, two frames of an echo canceller."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """20 ms of the microphone.

    Attributes:
        samples: float32, shape (BLOCK,).
        at_s: when its first sample was taken.
        n_lost: samples that the device dropped since the last block (input overflow).
    """

    samples: Samples
    at_s: float
    n_lost: int = 0


class Microphone(Protocol):
    """Source of sound, recording from `open_microphone` on. It resamples and mixes channels down itself.

    Attributes:
        name: of the device, for people.
    """

    name: str

    def read(self, timeout_s: float) -> Block | None:
        """Return the next block, in order, waiting for it; None if there is none within timeout_s.

        Raises:
            SoundError: the device is gone. The microphone is closed then; opening it again may work.
        """
        ...

    def close(self) -> None:
        """Stop recording and free the device."""
        ...


class Speaker(Protocol):
    """Sink of sound with a queue. All methods may be called by any thread.

    Attributes:
        name: of the device, for people.
        latency_s: time from a sample leaving the queue to its being heard, in seconds, as the device says.
        on_played: called with (samples at RATE, when they will be heard) for all that leaves the queue, silence included,
            from the thread that plays; it must be quick. The echo canceller listens here. None by default.
    """

    name: str
    latency_s: float
    on_played: Callable[[Samples, float], None] | None

    def play(self, samples: Samples, rate: int) -> None:
        """Queue sound behind what is queued, and return at once.

        Args:
            samples: float32, one channel.
            rate: samples a second.

        Raises:
            SoundError: the device is gone. The speaker is closed then; opening it again may work.
        """
        ...

    @property
    def waiting_s(self) -> float:
        """Length of the queued sound that has not been heard yet, in seconds; 0 once all was heard.

        Raises:
            SoundError: as `play`.
        """
        ...

    def stop(self) -> float:
        """Fall silent within 20 ms (a short fade), drop the queue, and return how much of it was not heard, in seconds."""
        ...

    def close(self) -> None:
        """Stop, and free the device."""
        ...


class Vad(Protocol):
    """Voice activity detector.

    Attributes:
        frame: samples that `probability` takes.
    """

    frame: int

    def probability(self, samples: Samples) -> float:
        """Return how likely a frame is speech, 0 to 1, given the frames since `reset`.

        Args:
            samples: at RATE, shape (frame,).
        """
        ...

    def reset(self) -> None:
        """Forget the frames so far."""
        ...


class EndpointModel(Protocol):
    """Tells a finished utterance from a pause."""

    def probability(self, speech: Samples) -> float:
        """Return how likely the speaker has finished, 0 to 1.

        Args:
            speech: the utterance so far with the pause at its end, at RATE; the model looks at its last 8 seconds.
        """
        ...


class Recogniser(Protocol):
    """Speech to text.

    Attributes:
        languages: codes such as "en"; () is any language.
        language: code of the language of its newest transcript.
        max_s: longest speech of one call, in seconds; callers split longer ones at pauses.
    """

    languages: tuple[str, ...]
    language: str
    max_s: float

    def transcribe(self, speech: Samples, *, language: str | None = None) -> str:
        """Return the words, "" for none.

        Args:
            speech: at RATE. Only speech: a recogniser may invent words for silence.
            language: code such as "de"; None leaves it to the model.

        Raises:
            CancelledError: `cancel` was called meanwhile.
            UsageError: it does not know the language.
        """
        ...

    def cancel(self) -> None:
        """End a running `transcribe` of another thread soon. Does nothing if none runs."""
        ...


class Voice(Protocol):
    """Text to speech.

    Attributes:
        name: for people.
        rate: samples a second of what it makes.
        languages: codes of the languages that it speaks.
    """

    name: str
    rate: int
    languages: tuple[str, ...]

    def speak(self, text: str) -> Iterator[Samples]:
        """Yield the sound of a sentence in pieces, in order, the first as soon as possible.

        Args:
            text: a sentence or clause of plain words (`edge_voice.spoken`); "" yields nothing.

        Raises:
            CancelledError: `cancel` was called meanwhile.
        """
        ...

    def cancel(self) -> None:
        """End a running `speak` of another thread soon. Does nothing if none runs."""
        ...


class WakeWord(Protocol):
    """Waits for a word. None ships with edge (docs/voice.md says why); a setting may name one of the user's."""

    def heard(self, samples: Samples) -> bool:
        """Return whether the word has just ended.

        Args:
            samples: the next block of the microphone, at RATE, shape (BLOCK,).
        """
        ...


class Splitter(Protocol):
    """Splits a reply, while it is generated, into pieces to speak: `edge_voice.sentences.Sentences`.

    The first piece may be a clause, so that speech begins soon; then whole sentences. A code block or a table is one piece.
    """

    def add(self, text: str) -> list[str]:
        """Take more of the reply, and return the pieces that are complete now.

        All pieces of `add` and `end`, joined, are the reply, to the character.
        """
        ...

    def end(self) -> list[str]:
        """Return what is left: the reply is over."""
        ...


class Wording(Protocol):
    """Says a piece of Markdown in words: `edge_voice.spoken.spoken`."""

    def __call__(self, text: str, language: str = "en") -> str:
        """Return the words to speak, "" for nothing: no markup, code, links or emoji, and numbers and times written out."""
        ...


class EchoCanceller(Protocol):
    """Takes what the loudspeaker plays out of what the microphone hears.

    Attributes:
        is_full_duplex: the user can be heard while the model speaks. If False, `clean` need not be asked then: the talk is
            half-duplex, and only the key interrupts.
    """

    is_full_duplex: bool

    def played(self, samples: Samples, at_s: float) -> None:
        """Note what the loudspeaker plays; called by the thread that plays (`Speaker.on_played`).

        Args:
            samples: at RATE, any number.
            at_s: when the first one will be heard.
        """
        ...

    def clean(self, block: Block) -> Samples:
        """Return a block of the microphone without the echo, shape (BLOCK,)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...
