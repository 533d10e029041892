"""One sequence of tokens in a Core ML package: the host's half of its two functions.

The program does not know how far its cache is filled. The host passes the position of the first token of a call and a mask that
hides positions behind each token, so rewinding takes just a smaller position: whatever is behind it is hidden, and overwritten
later.

There are two kinds of package (docs/convert-coreml.md): the cache is a Core ML state (`_StateCache`), or an array of the host
(`_ArrayCache`).
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.backends.coreml.engine import CoreMLFunctions
    from edge.formats.coreml import PackageInfo

    Floats = npt.NDArray[np.float32]
    Halves = npt.NDArray[np.float16]

__all__ = ["CoreMLSequence", "attention_mask"]

STATE = "kv_cache"
"""Name of the cache in the program: of its state, or of an input."""
_MASKED = np.float32(-1e4)  # softmax gives exactly 0 for it in float16


def attention_mask(start: int, n_rows: int, context: int, window: int | None) -> Floats:
    """Return which positions each of `n_rows` tokens from position `start` may attend to.

    Args:
        start: position of the first.
        n_rows: how many.
        context: rows of the cache.
        window: tokens that a token sees, itself included; None for all before it.

    Returns:
        float32 [1, 1, n_rows, context]: 0 where it may, -10000 elsewhere.
    """
    rows, columns = np.arange(start, start + n_rows)[:, None], np.arange(context)[None, :]
    is_hidden = columns > rows
    if window is not None:
        is_hidden |= columns <= rows - window
    return np.where(is_hidden, _MASKED, np.float32(0))[None, None]


class _StateCache:
    """Keys and values in a Core ML state, which can only be read and written as a whole.

    So a copy is kept until the engine changes the state, and imported rows are written when the engine next runs: exporting or
    importing many blocks costs one transfer. coremltools returns float32 and refuses float16; the state itself is float16, so
    nothing is lost either way.
    """

    is_changed_by_run = True

    def __init__(self, maker: Any, shape: tuple[int, ...]) -> None:
        self._state = maker.make_state()
        self._shape = shape
        self._host: Floats | None = None
        self._is_ahead = False  # the copy holds rows that the state does not

    def run(self, function: Any, data: dict[str, Any], start: int, n_keep: int) -> dict[str, Any]:
        if self._is_ahead:
            self._state.write_state(STATE, self._host)
        self._host, self._is_ahead = None, False
        result: dict[str, Any] = function.predict(data, self._state)
        return result

    def read(self, start: int, end: int) -> Halves:
        return self._copy()[:, :, start:end].astype(np.float16)

    def write(self, start: int, rows: Halves, *, is_first: bool) -> None:
        if is_first and self._host is None:
            self._host = np.zeros(self._shape, np.float32)
        self._copy()[:, :, start : start + rows.shape[2]] = rows
        self._is_ahead = True

    def forget(self) -> None:
        self._host, self._is_ahead = None, False

    def _copy(self) -> Floats:
        if self._host is None:
            self._host = np.asarray(self._state.read_state(STATE), np.float32)
        return self._host


class _ArrayCache:
    """Keys and values in an array of the host, in float32: coremltools would convert float16 at each call."""

    is_changed_by_run = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._array = np.zeros(shape, np.float32)

    def run(self, function: Any, data: dict[str, Any], start: int, n_keep: int) -> dict[str, Any]:
        result: dict[str, Any] = function.predict({**data, STATE: self._array})
        self._array[:, :, start : start + n_keep] = result["new_rows"][:, :, :n_keep]
        return result

    def read(self, start: int, end: int) -> Halves:
        return self._array[:, :, start:end].astype(np.float16)

    def forget(self) -> None:
        pass  # rows behind the last token are hidden, and overwritten later

    def write(self, start: int, rows: Halves, *, is_first: bool) -> None:
        self._array[:, :, start : start + rows.shape[2]] = rows


class CoreMLSequence:
    """Tokens and their cache. Not thread-safe. Errors of coremltools go through and leave `tokens` unchanged.

    Args:
        functions: of the package.
        info: of the package.

    Attributes:
        tokens: of the cache, in order.
    """

    def __init__(self, functions: CoreMLFunctions, info: PackageInfo) -> None:
        self.tokens: list[int] = []
        self._functions = functions
        self._info = info
        shape = info.cache_shape
        self._cache = _StateCache(functions.decode, shape) if info.stateful else _ArrayCache(shape)
        self._chunk_start = 0

    def prefill(self, tokens: SequenceOf[int]) -> None:
        """Append at most `info.chunk` tokens; they fit."""
        start, n_new = len(self.tokens), len(tokens)
        assert 0 < n_new <= self._info.chunk, "the caller cuts chunks"
        self._fill(start, tokens)
        self.tokens.extend(tokens)
        self._chunk_start = start

    def decode(self, token: int) -> Floats:
        """Append one token.

        Returns:
            The logits after it, shape (n_vocab,).
        """
        position = len(self.tokens)
        logits = self._logits(position, token, n_keep=1)
        self.tokens.append(token)
        return logits

    def newest_logits(self) -> Floats:
        """Compute the logits after the last token of a chunk, which `prefill` does not return.

        Where that token ends an aligned chunk (counted from position 0), its keys and values stay those of `prefill`: `decode`
        may round them differently, and the same chunk must give the same bits in every prompt.

        Returns:
            Shape (n_vocab,).
        """
        last = len(self.tokens) - 1
        is_whole = len(self.tokens) % self._info.chunk == 0
        logits = self._logits(last, self.tokens[last], n_keep=0 if is_whole else 1)
        if is_whole and self._cache.is_changed_by_run:
            self._fill(self._chunk_start, self.tokens[self._chunk_start :])
        return logits

    def truncate(self, n_keep: int) -> None:
        """Drop all but the first `n_keep` tokens."""
        del self.tokens[n_keep:]
        if not n_keep:
            self._cache.forget()

    def read_rows(self, start: int, end: int) -> Halves:
        """Return keys and values of positions [start, end): float16 [2 x layers, key heads, end - start, head dimension]."""
        return self._cache.read(start, end)

    def append_rows(self, tokens: SequenceOf[int], rows: Halves) -> None:
        """Append tokens with keys and values from `read_rows`."""
        start = len(self.tokens)
        self._cache.write(start, rows, is_first=start == 0)
        self.tokens.extend(tokens)

    # -- inside

    def _fill(self, start: int, tokens: SequenceOf[int]) -> None:
        """Compute keys and values of tokens at [start, ...).

        Rows behind the last token are filled with token 0: they are hidden, and overwritten later. They must not run past the
        cache, so a chunk near its end begins earlier and computes some tokens again.
        """
        info = self._info
        first = min(start, info.context - info.chunk)
        fed = [*self.tokens[first:start], *tokens]
        self._cache.run(self._functions.prefill, self._inputs(first, fed, info.chunk), first, len(fed))

    def _logits(self, position: int, token: int, n_keep: int) -> Floats:
        result = self._cache.run(self._functions.decode, self._inputs(position, [token], 1), position, n_keep)
        return np.array(result["logits"], np.float32).reshape(-1)

    def _inputs(self, start: int, tokens: SequenceOf[int], n_rows: int) -> dict[str, Any]:
        info = self._info
        padded = np.zeros((1, n_rows), np.int32)
        padded[0, : len(tokens)] = tokens
        data: dict[str, Any] = {
            "tokens": padded,
            "position": np.array([start], np.int32),
            "mask": attention_mask(start, n_rows, info.context, None),
        }
        if info.window is not None:
            data["window_mask"] = attention_mask(start, n_rows, info.context, info.window)
        return data
