"""Speech in and out, all on the device: talk to a model, and hear it.

events.py    what happens while somebody talks, as frozen values
stages.py    the contracts of the stages: what each takes and returns, at which rate
registry.py  the stages by the names that settings use
sessions.py  ONNX models, opened so that they leave the processor to the language model
ear.py       the listening half: sound to messages; segments.py, where speech begins and ends; transcriber.py, its thread
mouth.py     the speaking half: replies to sound; heard.py, how much of a reply was heard
line.py      both halves on the same devices: interruptions, lost devices; opening.py, opens its stages;
             models.py, fetches the models that they need
talk.py      a conversation by voice; streams.py, its events for readers
keeping.py   what was said as WAV files, where that is asked for
audio.py     microphone and loudspeaker through PortAudio; device_stream.py, their streams; devices.py, which there are;
             ring.py, between callback and reader
resample.py  any rate and number of channels to one channel at 16 kHz
vad.py       tells speech from other sounds; endpoint.py, a finished utterance from a pause; mel.py, spectrograms for models
sentences.py splits a reply into pieces to speak; spoken.py, says one in words; plain_words.py, number_words.py, in English
asr/         recognisers; transcripts.py, a whole sound as text; wav.py, sound files
tts/         voices; speech.py, text as sound by themselves
hearing.py   hearing without speaking
levels.py    loudness of the microphone; soundcheck.py, what is wrong with it, and with the way from the loudspeaker
echo.py      takes the loudspeaker out of the microphone, or stays deaf meanwhile
testing.py   stages without devices and models

The packages of the extra "voice" are imported when a stage that needs one is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge_voice.hearing import Hearing, hear
    from edge_voice.speech import Synthesis, speak, synthesise
    from edge_voice.talk import Talk, TalkOptions, open_talk
    from edge_voice.transcripts import Segment, Transcript, transcribe

__all__ = [
    "Hearing",
    "Segment",
    "Synthesis",
    "Talk",
    "TalkOptions",
    "Transcript",
    "hear",
    "open_talk",
    "speak",
    "synthesise",
    "transcribe",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge_voice.hearing": ("Hearing", "hear"),
        "edge_voice.speech": ("Synthesis", "speak", "synthesise"),
        "edge_voice.talk": ("Talk", "TalkOptions", "open_talk"),
        "edge_voice.transcripts": ("Segment", "Transcript", "transcribe"),
    },
)
