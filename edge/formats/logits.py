"""Log-probabilities of logits, which everything that compares models computes alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["log_softmax"]


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities along the last axis, computed in float64."""
    import numpy as np

    shifted = np.array(logits, np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted
