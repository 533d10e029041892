"""Moonshine tiny: English in 27 million parameters, whose work grows with the length of what is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import CancelledError, ModelFileError, UsageError
from edge_voice.asr.invented import is_invented
from edge_voice.asr.tokens import Vocabulary
from edge_voice.sessions import OnnxModel
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["Moonshine", "open_moonshine"]

_START, _END = 1, 2
_SHORTEST = RATE // 2  # shorter sound is padded
_TOKENS_A_SECOND, _MORE_TOKENS = 6.5, 4  # nobody speaks faster; a model in a loop does
_LEAST_LOGPROB = -0.9  # mean of a transcript; of noise it is -1.1 and less, of clear speech above -0.4


def open_moonshine(settings: Settings) -> Moonshine:
    """Open the model of the catalogue. Raises as `edge.catalog.voice_folder` and `Moonshine`."""
    from edge.catalog import voice_folder

    return Moonshine(voice_folder("moonshine-tiny-en", settings=settings))


class Moonshine:
    """Transcribes English.

    Args:
        folder: encoder_model.ort, decoder_model_merged.ort and tokenizer.bin.
        threads: CPU threads.

    Attributes:
        languages: ("en",).
        language: "en".
        max_s: longest speech of one call, in seconds.

    Raises:
        ModelFileError: a file is missing, damaged, or of another model.

    Source: Jeffries et al. 2024, "Moonshine: Speech Recognition for Live Transcription and Voice Commands"
    """

    languages: tuple[str, ...] = ("en",)
    language = "en"
    max_s = 24.0

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        self._vocabulary = Vocabulary(folder / "tokenizer.bin")
        self._encoder = OnnxModel(folder / "encoder_model.ort", threads=threads, releases=True)
        self._decoder = OnnxModel(folder / "decoder_model_merged.ort", threads=threads)
        self._caches = [name for name in self._decoder.inputs if name.startswith("past_key_values.")]
        if not self._caches or len(self._decoder.outputs) != len(self._caches) + 1:
            raise ModelFileError("The decoder does not have Moonshine's inputs and outputs.", "Pull the model again.")
        shape = self._decoder.inputs[self._caches[0]]
        self._empty = np.zeros((1, shape[1], 0, shape[3]), np.float32)
        self._cancelled = False

    def transcribe(self, speech: Samples, *, language: str | None = None) -> str:
        """Return the words, "" for none.

        Args:
            speech: at RATE, up to max_s.
            language: "en" or None.

        Raises:
            CancelledError: `cancel` was called meanwhile.
            UsageError: it is another language.
        """
        if language not in (None, *self.languages):
            raise UsageError(f"Moonshine does not know the language {language!r}.", "Set voice.recogniser to whisper.")
        self._cancelled = False
        if len(speech) < _SHORTEST:
            speech = np.pad(speech, (0, _SHORTEST - len(speech)))
        sound = np.ascontiguousarray(speech, np.float32)[None]
        mask = np.ones(sound.shape, np.int64)
        states = self._encoder.run({"input_values": sound, "attention_mask": mask})[0]
        n_most = math.ceil(sound.shape[1] / RATE * _TOKENS_A_SECOND) + _MORE_TOKENS
        tokens, logprob = self._decode(states, mask, n_most)
        text = self._vocabulary.text(tokens)
        return "" if logprob < _LEAST_LOGPROB or is_invented(text, is_cut=len(tokens) == n_most) else text

    def cancel(self) -> None:
        """End a running `transcribe` of another thread soon. Does nothing if none runs."""
        self._cancelled = True
        self._encoder.cancel()
        self._decoder.cancel()

    def _decode(self, states: NDArray[np.float32], mask: NDArray[np.int64], n_most: int) -> tuple[list[int], float]:
        """Return the likeliest tokens, one by one, and the mean of their logarithmic probabilities.

        Args:
            states: of the encoder, shape (1, n_states, width).
            mask: of the sound, shape (1, n_samples); the decoder thins it out itself.
            n_most: tokens at most.
        """
        feed: dict[str, NDArray[Any]] = dict.fromkeys(self._caches, self._empty)
        feed["encoder_hidden_states"] = states
        feed["encoder_attention_mask"] = mask
        tokens: list[int] = []
        newest, total = _START, 0.0
        for number in range(n_most):
            if self._cancelled:
                raise CancelledError("The transcription was stopped.")
            feed["input_ids"] = np.array([[newest]], np.int64)
            feed["use_cache_branch"] = np.array([number > 0])
            logits, *caches = self._decoder.run(feed)
            new = zip(self._caches, caches, strict=True)
            # Keys and values of the sound are computed once.
            feed |= {name: cache for name, cache in new if number == 0 or ".decoder." in name}
            row = logits[0, -1]
            newest = int(row.argmax())
            total -= math.log(float(np.exp(row - row[newest]).sum()))
            if newest == _END:
                break
            tokens.append(newest)
        return tokens, total / (len(tokens) + 1)
