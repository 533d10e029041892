"""Typed events of a conversation by voice, in the order in which they happen.

    with edge_voice.talk(conversation) as talk:
        for event in talk:
            match event:
                case events.Final(text=text): print("you:", text)
                case events.Speaking(sentence=sentence): print("model:", sentence)

Every event has a `kind`, by which type checkers tell them apart, too. Times are seconds of `time.monotonic`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edge.events import Notice

__all__ = [
    "DeviceBack",
    "DeviceLost",
    "Endpoint",
    "Final",
    "Interrupted",
    "Level",
    "Listening",
    "Notice",
    "Partial",
    "ReplyDone",
    "ReplyText",
    "Speaking",
    "SpeechStarted",
    "Timings",
    "Unclear",
    "VoiceEvent",
]

DeviceKind: TypeAlias = Literal["microphone", "speaker"]


@dataclass(frozen=True, slots=True)
class Listening:
    """The microphone was opened for what the user says, or closed. While it is open, an app has to show that.

    Attributes:
        is_on: speech is heard from now on.
    """

    is_on: bool
    kind: Literal["listening"] = field(default="listening", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Level:
    """Loudness of the microphone, about ten times a second while it is open.

    Attributes:
        rms_db: of the last tenth of a second, in dB below full scale: -90 (silence) to 0.
        peak_db: of its loudest sample, likewise.
        is_speech: the voice activity detector hears speech.
    """

    rms_db: float
    peak_db: float
    is_speech: bool = False
    kind: Literal["level"] = field(default="level", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """The user began to speak.

    Attributes:
        at_s: when.
    """

    at_s: float
    kind: Literal["speech_started"] = field(default="speech_started", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Partial:
    """The transcript so far of what is still being said. It may change.

    Attributes:
        text: all of it.
        stable: its beginning that two transcripts in a row agree on.
    """

    text: str
    stable: str = ""
    kind: Literal["partial"] = field(default="partial", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The user has finished.

    Attributes:
        speech_end_s: when the last sound of speech ended.
        at_s: when that was decided.
        reason: "model" (the endpoint model), "silence" (the longest pause was over), "released" (the key), or "length"
            (the longest utterance).
    """

    speech_end_s: float
    at_s: float
    reason: Literal["model", "silence", "released", "length"]
    kind: Literal["endpoint"] = field(default="endpoint", init=False, repr=False)

    @property
    def delay_s(self) -> float:
        """Time from the end of speech to the decision, in seconds."""
        return self.at_s - self.speech_end_s


@dataclass(frozen=True, slots=True)
class Final:
    """The transcript of an utterance; it is the user's message.

    Attributes:
        text: never empty; an utterance without words ends with `Unclear`.
        audio_s: length of the utterance, in seconds.
        transcribe_s: time that the last transcription took, in seconds.
    """

    text: str
    audio_s: float
    transcribe_s: float
    kind: Literal["final"] = field(default="final", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Unclear:
    """An utterance gave no words: a noise, or nothing that was understood.

    Attributes:
        at_s: when that was clear.
    """

    at_s: float
    kind: Literal["unclear"] = field(default="unclear", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class ReplyText:
    """A piece of the model's reply. Those of a reply, joined, are its text.

    Attributes:
        text: whole characters.
    """

    text: str
    kind: Literal["reply_text"] = field(default="reply_text", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Speaking:
    """What the loudspeaker plays now.

    Attributes:
        sentence: the sentence, as the reply has it.
        start: its place in the reply, in characters.
        heard: characters of the reply that have been heard, in whole words.
    """

    sentence: str
    start: int
    heard: int
    kind: Literal["speaking"] = field(default="speaking", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The user spoke, or pressed the key, while the model was speaking or about to. The loudspeaker is silent already.

    Attributes:
        heard: the part of the reply that was heard; the conversation holds this, marked as stopped.
        at_s: when the user began.
        silent_after_s: time from there to the order that silenced the loudspeaker, in seconds.
    """

    heard: str
    at_s: float
    silent_after_s: float
    kind: Literal["interrupted"] = field(default="interrupted", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of a turn, in seconds. None is a step that did not happen.

    Attributes:
        endpoint_s: from the end of speech to the endpoint.
        transcribe_s: of the last transcription.
        first_token_s: from the endpoint to the first text of the reply.
        first_sound_s: from the endpoint to the first sound handed to the loudspeaker.
        prefilled: tokens of the prompt that were in the KV cache when the message was sent.
        prompt: tokens of the prompt.
    """

    endpoint_s: float | None = None
    transcribe_s: float | None = None
    first_token_s: float | None = None
    first_sound_s: float | None = None
    prefilled: int = 0
    prompt: int = 0


@dataclass(frozen=True, slots=True)
class ReplyDone:
    """A reply is over: spoken to its end, interrupted, or failed.

    Attributes:
        text: of the reply, as it is saved.
        node_id: its message in the conversation; None if nothing was saved.
        timings: of the turn.
    """

    text: str
    node_id: int | None
    timings: Timings
    kind: Literal["reply_done"] = field(default="reply_done", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """A sound device is gone or cannot be opened. The talk goes on with what is left, and tries again.

    Attributes:
        device: which one.
        message: a line for the user, with what to do.
    """

    device: DeviceKind
    message: str
    kind: Literal["device_lost"] = field(default="device_lost", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class DeviceBack:
    """A sound device works again.

    Attributes:
        device: which one.
        name: its name.
    """

    device: DeviceKind
    name: str
    kind: Literal["device_back"] = field(default="device_back", init=False, repr=False)


VoiceEvent: TypeAlias = (
    Listening
    | Level
    | SpeechStarted
    | Partial
    | Endpoint
    | Final
    | Unclear
    | ReplyText
    | Speaking
    | Interrupted
    | ReplyDone
    | DeviceLost
    | DeviceBack
    | Notice
)
"""Any event of a conversation by voice."""
