"""What an engine of embeddings does, and what is made with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EmbeddingEngine", "EmbeddingInfo", "Embeddings"]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of texts.

    Attributes:
        vectors: float32, (texts, dimensions), in the order of the texts; of length 1 if the model normalises.
        n_tokens: that were read of each text, with those that mark its beginning and end.
        model: name of the model.
        truncated: indices of texts that were cut to the model's window.
    """

    vectors: NDArray[np.float32]
    n_tokens: tuple[int, ...]
    model: str
    truncated: tuple[int, ...] = ()

    def similarity(self, other: Embeddings | None = None) -> NDArray[np.float32]:
        """Return the cosine similarity of each text with each one of `other`, by default with each other."""
        import numpy as np

        one, two = (
            vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            for vectors in (self.vectors, (self if other is None else other).vectors)
        )
        found: NDArray[np.float32] = one @ two.T
        return found


@dataclass(frozen=True, slots=True)
class EmbeddingInfo:
    """A loaded model in numbers.

    Attributes:
        n_dims: length of its vectors.
        n_ctx: longest text, in tokens.
        n_vocab: number of its token ids.
        pooling: "mean", "cls", "last", "max", or "model" where its graph pools.
        normalises: its vectors have length 1.
        shorter: shorter vectors it was trained for; () if none, (0,) if any.
        memory_bytes: of its weights.
    """

    n_dims: int
    n_ctx: int
    n_vocab: int
    pooling: str
    normalises: bool = True
    shorter: tuple[int, ...] = ()
    memory_bytes: int = 0


class EmbeddingEngine(ABC):
    """A model in memory. Not thread-safe: `Embedder` holds a lock.

    Attributes:
        info: the model in numbers.
        max_batch_tokens: most tokens of a batch, padding included where texts are padded.
        max_batch_texts: most texts of a batch.
    """

    info: EmbeddingInfo
    max_batch_tokens: int
    max_batch_texts: int

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a whole text, with those that mark its beginning and end."""

    @abstractmethod
    def truncate(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens cut to the window, with the mark of the end where the model has one."""

    @abstractmethod
    def compute(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return the pooled vectors, (texts, dimensions), not normalised.

        Args:
            batch: token ids of texts, within the limits above.

        Raises:
            BackendError: the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model. May be called twice."""
