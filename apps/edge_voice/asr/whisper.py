"""Whisper base: a hundred languages in 74 million parameters, and which of them is spoken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.errors import BackendUnavailableError, CancelledError, ModelFileError, UsageError
from edge.files import read_text
from edge_voice.asr.invented import is_invented
from edge_voice.mel import log_mel
from edge_voice.registry import EXTRA_HINT
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["Whisper", "open_whisper"]

_WINDOW_S = 30.0
_PADDING_S, _LEAST_S = 5.0, 10.0
_TOKENS_A_SECOND = 8.0
_NO_SPEECH, _LEAST_LOGPROB = 0.6, -0.5  # beyond both it is silence; of clear speech they are 0.3 at most, and -0.4
_SURELY_NO_SPEECH = 0.85
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Heard:
    text: str
    language: str
    is_invented: bool
    is_silence: bool


def open_whisper(settings: Settings) -> Whisper:
    """Open the model of the catalogue. Raises as `edge.catalog.voice_folder` and `Whisper`."""
    from edge.catalog import voice_folder

    return Whisper(voice_folder("whisper-base", settings=settings))


class Whisper:
    """Transcribes any of Whisper's languages, with 8-bit weights.

    Args:
        folder: config.json, model.bin, tokenizer.json and vocabulary.json, in CTranslate2's layout.
        threads: CPU threads.

    Attributes:
        languages: codes of its languages.
        language: code of the language of the newest transcript.
        max_s: longest speech of one call, in seconds.

    Raises:
        BackendUnavailableError: ctranslate2 or tokenizers is not installed.
        ModelFileError: a file is missing, damaged, or of another model.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision"
    """

    max_s = _WINDOW_S - 1

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        try:
            import ctranslate2
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BackendUnavailableError(f"Whisper needs {error.name}, which is not installed.", EXTRA_HINT) from error
        self._ctranslate2 = ctranslate2
        try:
            self._tokenizer = Tokenizer.from_str(read_text(folder / "tokenizer.json", _MAX_BYTES))
            self._model = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=threads, inter_threads=1)
        except Exception as error:  # both raise plain exceptions of their own
            raise ModelFileError(f"{folder.name} is not a Whisper model: {error}.", "Pull the model again.") from error
        self._language_ids = self._find_languages()
        self.languages: tuple[str, ...] = tuple(self._language_ids)
        self._cancelled = False
        self.language = ""

    def transcribe(self, speech: Samples, *, language: str | None = None) -> str:
        """Return the words, "" for none.

        Args:
            speech: at RATE, up to max_s.
            language: code such as "de"; None finds it out (see `language`).

        Raises:
            CancelledError: `cancel` was called meanwhile.
            UsageError: it does not know the language.
        """
        if language is not None and language not in self._language_ids:
            raise UsageError(f"Whisper does not know the language {language!r}.", "Give a code such as de, fr, es or ja.")
        self._cancelled = False
        # Its makers pad everything to 30 s, and computing that takes as long as 30 s of speech. Less will do, but now and then
        # it begins to repeat itself: then it gets what it was trained with.
        heard = self._hear(speech, max(_LEAST_S, len(speech) / RATE + _PADDING_S), language)
        if heard.is_invented or heard.is_silence:
            heard = self._hear(speech, _WINDOW_S, language)
        self.language = heard.language
        return "" if heard.is_invented or heard.is_silence else heard.text

    def cancel(self) -> None:
        """End a running `transcribe` of another thread after its next step. Does nothing if none runs."""
        self._cancelled = True

    def _hear(self, speech: Samples, window_s: float, language: str | None) -> _Heard:
        padded = np.zeros(int(min(window_s, _WINDOW_S) * RATE), np.float32)
        speech = speech[: len(padded)]
        padded[: len(speech)] = speech
        states = self._model.encode(self._ctranslate2.StorageView.from_array(log_mel(padded)[None]))
        self._check()
        spoken = language or self._model.detect_language(states)[0][0][0].strip("<|>")
        self._check()
        ids = self._tokenizer.token_to_id
        prompt = [ids("<|startoftranscript|>"), self._language_ids[spoken], ids("<|transcribe|>"), ids("<|notimestamps|>")]
        n_most = math.ceil(len(speech) / RATE * _TOKENS_A_SECOND) + 4
        result = self._model.generate(
            states,
            [prompt],
            beam_size=1,
            max_length=min(448, n_most + len(prompt)),
            return_scores=True,
            return_no_speech_prob=True,
        )[0]
        self._check()
        tokens = result.sequences_ids[0]
        text = " ".join(self._tokenizer.decode(tokens).split())
        least = _NO_SPEECH if result.scores[0] < _LEAST_LOGPROB else _SURELY_NO_SPEECH
        is_silence = result.no_speech_prob > least
        return _Heard(text, spoken, is_invented(text, is_cut=len(tokens) >= n_most), is_silence)

    def _check(self) -> None:
        if self._cancelled:
            raise CancelledError("The transcription was stopped.")

    def _find_languages(self) -> dict[str, int]:
        """Return code -> id of the tokens <|en|>, <|de|> and so on: those between the first control token and its tasks."""
        ids = self._tokenizer.token_to_id
        first, last = ids("<|startoftranscript|>"), ids("<|translate|>")
        if first is None or last is None or ids("<|transcribe|>") is None or ids("<|notimestamps|>") is None:
            raise ModelFileError("The vocabulary is not Whisper's.", "Pull the model again.")
        names = ((token, self._tokenizer.id_to_token(token)) for token in range(first + 1, last))
        return {name.strip("<|>"): token for token, name in names if name}
