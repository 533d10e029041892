"""A loaded embedding model: checks texts, sorts them by length, computes batches, and normalises as the model says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edge.embedding.base import EmbeddingEngine, EmbeddingInfo, Embeddings
from edge.errors import BackendError, CancelledError, ContextFullError, UsageError, kind_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Embedder", "Input", "OnEmbedded"]

Input = str | Sequence[int]
"""A text, or its token ids."""
OnEmbedded = Callable[[int, int], "bool | None"]
"""Called with (texts done, texts in all) after each batch; False stops."""
_MOST_CHARS_PER_TOKEN = 64


class Embedder:
    """Turns texts into vectors. May be used from any thread; one call computes at a time.

    Args:
        engine: the model.
        name: of the model.

    Attributes:
        name: of the model.
    """

    def __init__(self, engine: EmbeddingEngine, name: str) -> None:
        self._engine: EmbeddingEngine | None = engine
        self._info = engine.info
        self._lock = threading.Lock()
        self.name = name

    @property
    def info(self) -> EmbeddingInfo:
        """The model in numbers."""
        return self._info

    def embed(
        self,
        texts: Input | Sequence[Input],
        *,
        dimensions: int | None = None,
        truncate: bool = False,
        on_progress: OnEmbedded | None = None,
    ) -> Embeddings:
        """Return a vector for each text.

        Args:
            texts: one text or several; token ids of this model in place of a text are computed as they are.
            dimensions: shorter vectors, for models that were trained for it.
            truncate: cut texts that are longer than the model's window, instead of refusing them.
            on_progress: see `OnEmbedded`.

        Raises:
            UsageError: there is no text, one is empty, a token id or `dimensions` is not one of this model.
            ContextFullError: a text is longer than the window.
            CancelledError: on_progress said False.
            BackendError: the engine failed, or the embedder is closed.
        """
        import numpy as np

        n_dims = self._check_dimensions(dimensions)
        inputs = _listed(texts)
        rows: list[list[int]] = []
        with self._lock:  # tokenising waits, too: `close` frees the vocabulary
            engine = self._open_engine()
            rows = [self._tokens(engine, number, one, truncate) for number, one in enumerate(inputs)]
            truncated = tuple(number for number, row in enumerate(rows) if len(row) > self._info.n_ctx)
            rows = [engine.truncate(row) for row in rows]
        vectors = np.empty((len(rows), n_dims), np.float32)
        n_done = 0
        for batch in _batches([len(row) for row in rows], engine):
            with self._lock:
                found = self._open_engine().compute([rows[number] for number in batch])
            vectors[batch] = _finished(found, n_dims, normalises=self._info.normalises)
            n_done += len(batch)
            if on_progress is not None and on_progress(n_done, len(rows)) is False:
                raise CancelledError("Computing embeddings was stopped.")
        return Embeddings(vectors, tuple(map(len, rows)), self.name, truncated)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, with those that mark its beginning and end."""
        with self._lock:
            return len(self._open_engine().tokenize(text))

    def close(self) -> None:
        """Free the model. May be called twice."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Embedder {self.name}, {self._info.n_dims} dimensions, {self._info.n_ctx:,} tokens>"

    def _open_engine(self) -> EmbeddingEngine:
        if self._engine is None:
            raise BackendError("This embedding model is closed.", "Load it again.")
        return self._engine

    def _check_dimensions(self, dimensions: int | None) -> int:
        own, shorter = self._info.n_dims, self._info.shorter
        if dimensions is None or dimensions == own:
            return own
        if dimensions in shorter or (0 in shorter and 0 < dimensions < own):
            return dimensions
        listed = f"1 to {own}" if 0 in shorter else ", ".join(map(str, sorted({*shorter, own})))
        raise UsageError(
            f"dimensions is {dimensions}, and the vectors of {self.name} have {listed}.",
            "Leave dimensions out, or use one of these.",
        )

    def _tokens(self, engine: EmbeddingEngine, number: int, one: Input, truncate: bool) -> list[int]:
        """Return the tokens of a text, possibly more than the window has if they will be truncated."""
        n_ctx = self._info.n_ctx
        if isinstance(one, str):
            if not one.strip():
                raise UsageError(f"Text {number + 1} is empty.", "Leave out empty texts.")
            longest = n_ctx * _MOST_CHARS_PER_TOKEN  # beyond that, a text is cut before megabytes are tokenised
            tokens = engine.tokenize(one[:longest])
            is_least = len(one) > longest
            if is_least and len(tokens) <= n_ctx:  # blanks, or words that are one token
                tokens, is_least = engine.tokenize(one), False
        else:
            tokens, is_least = list(one), False
            wrong = [token for token in tokens if type(token) is not int or not 0 <= token < self._info.n_vocab]
            if wrong or not tokens:
                what = f"has a token {str(wrong[0])[:40]}" if wrong else "has no tokens"
                raise UsageError(
                    f"Text {number + 1} {what}; the token ids of {self.name} are 0 to {self._info.n_vocab - 1:,}.",
                    "Give texts, or ids of this model's own tokenizer.",
                )
        if len(tokens) > n_ctx and not truncate:
            least = "at least " if is_least else ""
            raise ContextFullError(
                f"Text {number + 1} has {least}{len(tokens):,} tokens, and {self.name} takes {n_ctx:,} at most.",
                "Split it into pieces, or ask for its beginning only: truncate=True, edge embed --truncate.",
                needed=0 if is_least else len(tokens),
                n_prompt=len(tokens),
                n_ctx=n_ctx,
                is_least=is_least,
            )
        return tokens


def _listed(texts: Input | Sequence[Input]) -> list[Input]:
    """Return what was given as a list of texts."""
    if isinstance(texts, str):
        return [texts]
    given = list(texts)
    if not given:
        raise UsageError("There is no text to embed.", "Give at least one.")
    if isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    for number, one in enumerate(given):
        if not isinstance(one, (str, list, tuple)):
            raise UsageError(f"Text {number + 1} is of the type {kind_of(one)}.", "Give texts, or lists of token ids.")
    return given  # type: ignore[return-value]


def _batches(lengths: Sequence[int], engine: EmbeddingEngine) -> Iterator[list[int]]:
    """Yield the indices of texts that are computed together: similar lengths, so that little is padded."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        longest = lengths[batch[0]] if batch else lengths[number]
        if batch and (len(batch) == engine.max_batch_texts or longest * (len(batch) + 1) > engine.max_batch_tokens):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _finished(vectors: NDArray[np.float32], n_dims: int, *, normalises: bool) -> NDArray[np.float32]:
    import numpy as np

    vectors = vectors[:, :n_dims]
    if not np.isfinite(vectors).all():
        raise BackendError("The model computed values that are no numbers.", "Fetch it again; its file may be damaged.")
    if normalises:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors
