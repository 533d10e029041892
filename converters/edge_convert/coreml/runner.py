"""The host's half of the program: feeds tokens to a package through coremltools' prediction interface.

It works with a real MLModel on a Mac and with the evaluator (mil.MilModel) elsewhere.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from edge.errors import BackendUnavailableError, ContextFullError
from edge.formats.coreml import PackageInfo, read_info

from .mil import MilModel
from .model import MASKED, STATE
from .tools import quiet_coremltools

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ComputeUnits", "Engine", "Functions", "PackageRunner", "Predictor", "causal_mask", "load_functions"]

Engine = Literal["coreml", "evaluator"]
ComputeUnits = Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"]


class Predictor(Protocol):
    """The part of coremltools' MLModel that is used."""

    def predict(self, data: dict[str, Any], state: Any = None) -> dict[str, NDArray[Any]]:
        """Run once."""

    def make_state(self) -> Any:
        """Return a new state."""


@dataclass(frozen=True)
class Functions:
    """The two functions of a package, loaded, and its description."""

    decode: Predictor
    prefill: Predictor
    info: PackageInfo
    engine: Engine


def load_functions(package: Path, engine: Engine | None = None, compute_units: ComputeUnits = "ALL") -> Functions:
    """Load a package for prediction.

    Args:
        package: an .mlpackage made by `edge convert`.
        engine: real prediction or the evaluator; None is real prediction on a Mac and the evaluator elsewhere.
        compute_units: that Core ML may use; the evaluator has none.

    Raises:
        ModelFileError: the package is damaged, or not made by `edge convert`.
        BackendUnavailableError: real prediction was asked for and this is not a Mac, or coremltools is missing.
    """
    on_mac = platform.system() == "Darwin"
    if engine == "evaluator" or (engine is None and not on_mac):
        decode = MilModel(package, function_name="decode")
        info = read_info(decode.user_defined_metadata, package.name)
        return Functions(decode, MilModel(package, function_name="prefill"), info, "evaluator")
    if not on_mac:
        raise BackendUnavailableError("Core ML predicts on a Mac only.", "Leave the engine out to use the evaluator here.")
    ct = quiet_coremltools()

    def load(name: str) -> Any:
        return ct.models.MLModel(str(package), compute_units=ct.ComputeUnit[compute_units], function_name=name)

    real = load("decode")
    return Functions(real, load("prefill"), read_info(dict(real.user_defined_metadata), package.name), "coreml")


class PackageRunner:
    """One sequence of tokens and its cache."""

    def __init__(self, functions: Functions) -> None:
        info = functions.info
        self._decode = functions.decode
        self._prefill = functions.prefill
        self._info = info
        self._tokens: list[int] = []
        self._state: Any = functions.decode.make_state() if info.stateful else None
        self._cache = None if info.stateful else np.zeros(info.cache_shape, np.float16)

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Prefill tokens in chunks, and decode the last one.

        Args:
            tokens: at least one.

        Returns:
            Logits after the last token, float32 [vocab].

        Raises:
            ContextFullError: they do not fit.
        """
        end = len(self._tokens) + len(tokens)
        if end > self._info.context:
            raise ContextFullError(
                f"{end} tokens do not fit the package's context of {self._info.context}.", "Convert with a larger --context."
            )
        done = len(self._tokens)
        self._tokens += [int(token) for token in tokens]
        while done < end - 1:
            # A chunk that would run past the context is shifted back: some tokens are computed again, with the same result.
            start = min(done, self._info.context - self._info.chunk)
            self._call(self._prefill, start, self._info.chunk)
            done = min(start + self._info.chunk, end - 1)
        return self._call(self._decode, end - 1, 1)["logits"].reshape(-1).astype(np.float32)

    def _call(self, model: Predictor, start: int, n_rows: int) -> dict[str, NDArray[Any]]:
        info = self._info
        tokens = np.zeros((1, n_rows), np.int32)  # rows after the last token hold token 0 and are overwritten later
        known = self._tokens[start : start + n_rows]
        tokens[0, : len(known)] = known
        data: dict[str, Any] = {
            "tokens": tokens,
            "position": np.array([start], np.int32),
            "mask": causal_mask(start, n_rows, info.context, None),
        }
        if info.window is not None:
            data["window_mask"] = causal_mask(start, n_rows, info.context, info.window)
        if self._cache is None:
            return model.predict(data, self._state)
        data[STATE] = self._cache.copy()  # coremltools changes fp16 inputs in place
        result = model.predict(data)
        self._cache[:, :, start : start + len(known)] = result["new_rows"][:, :, : len(known)]
        return result


def causal_mask(start: int, n_rows: int, context: int, window: int | None) -> NDArray[np.float16]:
    """Return the mask of `n_rows` tokens from position `start`.

    Args:
        start: position of the first.
        n_rows: number of tokens.
        context: cache rows.
        window: tokens that a token sees, itself included; None for all before it.

    Returns:
        float16 [1, 1, n_rows, context]: 0 where it may look, -10000 elsewhere.
    """
    rows, columns = np.arange(start, start + n_rows)[:, None], np.arange(context)[None, :]
    seen = columns <= rows
    if window is not None:
        seen &= columns > rows - window
    return np.where(seen, 0.0, MASKED).astype(np.float16)[None, None]
