"""What a package says about itself: the layout a runtime needs, and logits to hold a prediction to.

`edge.formats.coreml` reads it again in the runtime; tests/unit/test_mlpackage.py holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from edge.errors import ModelFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["METADATA_KEY", "NO_NUMBERS", "Golden", "PackageInfo", "TopLogits", "read_info"]

METADATA_KEY = "io.edge.package"
"""Under this name the model's user-defined metadata holds a PackageInfo as JSON."""
NO_NUMBERS = 100.0
_N_TOP = 64


class TopLogits(msgspec.Struct, frozen=True):
    """The likeliest tokens at one position. log_probabilities are natural logarithms, in descending order."""

    tokens: list[int]
    log_probabilities: list[float]

    @classmethod
    def of(cls, logits: NDArray[np.floating]) -> TopLogits:
        """From logits [vocab]."""
        log_p = log_softmax(logits)
        top = np.argsort(-log_p, kind="stable")[:_N_TOP]
        return cls([int(token) for token in top], [round(float(log_p[token]), 5) for token in top])

    def divergence(self, logits: NDArray[np.floating]) -> float:
        """KL divergence in nats from these to logits [vocab], over the tokens here and all others as one.

        Logits that are no numbers count as NO_NUMBERS.
        """
        if not np.isfinite(logits).all():
            return NO_NUMBERS
        log_q = log_softmax(logits)[self.tokens]
        log_p = np.array(self.log_probabilities)
        p, q = np.exp(log_p), np.exp(log_q)
        rest_p, rest_q = max(1.0 - float(p.sum()), 1e-9), max(1.0 - float(q.sum()), 1e-9)
        return max(float((p * (log_p - log_q)).sum()) + rest_p * float(np.log(rest_p / rest_q)), 0.0)


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, its greedy continuation by the checkpoint, and the likeliest tokens before each token of the continuation.

    Attributes:
        prompt: tokens that are read first; longer than one prefill chunk where the context allows.
        continuation: tokens that are fed one by one after it.
        source: by the checkpoint in float32 (transformers). After the prompt, then after each fed token but the last.
        package: by this package, evaluated with rounding to fp16, at the same places.
    """

    prompt: list[int]
    continuation: list[int]
    source: list[TopLogits]
    package: list[TopLogits] = []


class PackageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime has to know of a package.

    Attributes:
        version: of this layout.
        variant, context, chunk, stateful: as in CoreMLOptions.
        n_layers, n_kv_heads, head_dim, vocab: sizes.
        window: tokens that layers with a sliding window see, themselves included; None where no second mask is needed.
        n_params: numbers in the checkpoint's tensors.
        n_ctx_train: longest context of the training, as its config says; 0 where it does not.
        encodings: how many matrices are stored in which way.
        golden: logits to hold a prediction to.
    """

    version: int = 1
    variant: Literal["fp16", "gpu", "ane"]
    context: int
    chunk: int
    stateful: bool
    n_layers: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    window: int | None
    n_params: int = 0
    n_ctx_train: int = 0
    encodings: dict[str, int]
    golden: Golden

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """[2 x layers, key heads, context, head dimension]; rows 2l are layer l's keys, 2l + 1 its values."""
        return 2 * self.n_layers, self.n_kv_heads, self.context, self.head_dim


def read_info(metadata: Mapping[str, str], name: str) -> PackageInfo:
    """What is in a package's user-defined metadata.

    Args:
        metadata: of the model.
        name: of the package, for messages.

    Raises:
        ModelFileError: it was not made by `edge convert`, or what it says is damaged.
    """
    if METADATA_KEY not in metadata:
        raise ModelFileError(f"{name} was not made by `edge convert`.", "Convert the checkpoint with `edge convert`.")
    try:
        return msgspec.json.decode(metadata[METADATA_KEY], type=PackageInfo)
    except msgspec.MsgspecError as error:
        raise ModelFileError(f"What {name} says about itself is damaged: {error}.", "Convert it again.") from error


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of logits [vocab], in double precision."""
    values = np.asarray(logits, np.float64)
    values = values - values.max()
    shifted: NDArray[np.float64] = values - np.log(np.exp(values).sum())
    return shifted
