"""How far two engines' next-token distributions are apart: what another engine, layout or conversion costs in quality.

One engine writes its logits after each token of a text to a file, another one compares its own with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.backends.base import MAX_DRAFT
from edge.backends.paired import PairedBackend
from edge.errors import BackendError, UnsupportedError
from edge.formats.logits import log_softmax

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.base import Backend

__all__ = ["TEXT", "Divergence", "compare_logits", "text_logits", "write_logits"]

TEXT = """\
The harbour was quiet when the last ferry came in. Maria counted the passengers: eleven, and a dog that nobody seemed to own.
"Is this the island with the lighthouse?" asked a boy with a red cap. She shook her head and pointed north, where a light turned
slowly over the water.

To sort a list in Python without changing it, use sorted():

    def newest(files):
        return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)

Water boils at 100 degrees Celsius at sea level. On a mountain of 3,000 metres it boils at about 90, because the air pressure is
lower there, and so pasta takes longer to cook. In 1905 Albert Einstein published four papers; one of them explained the
photoelectric effect, for which he received the Nobel Prize in Physics."""
"""Prose, code and facts: what a chat is about."""
_MOST_TOKENS = 128


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a comparison.

    Attributes:
        mean: mean KL divergence of this engine's distributions from the other one's, in nats.
        agreement: share of the positions at which both have the same likeliest token.
        each: the divergence at each position.
    """

    mean: float
    agreement: float
    each: tuple[float, ...] = ()


def text_logits(backend: Backend, tokens: list[int], n_prompt: int = 1) -> npt.NDArray[np.float32]:
    """Return the logits after each token of a text from the `n_prompt`-th on, shape (tokens, n_vocab).

    The first `n_prompt` tokens are prefilled at once, the others decoded in passes as for drafts.
    """
    import numpy as np

    backend.rewind(0, 0)
    backend.prefill(0, tokens[:n_prompt])
    rows = [backend.logits(0)]
    step = 1 + MAX_DRAFT if backend.capabilities.drafts else 1
    for start in range(n_prompt, len(tokens), step):
        first, *rest = tokens[start : start + step]
        if rest:
            backend.decode([(0, first)], {0: rest})
        else:
            backend.decode([(0, first)])
        rows += [backend.logits(0, n_back) for n_back in range(len(rest), -1, -1)]
    backend.rewind(0, 0)
    return np.stack(rows)


def write_logits(backend: Backend, path: Path) -> None:
    """Write the logits of TEXT to a new file, with the tokens that they belong to.

    Raises:
        EdgeError: the backend's.
        OSError: it cannot be written.
    """
    import numpy as np

    tokens = backend.tokenizer.tokenize(TEXT)[: min(_MOST_TOKENS, backend.n_ctx - MAX_DRAFT - 1)]
    with path.open("xb") as file:
        np.savez(file, tokens=np.array(tokens), logits=text_logits(backend, tokens))


def compare_logits(backend: Backend, path: Path) -> Divergence:
    """Compare a backend with the one that wrote a file. Of a pair of engines, the first prefills half of the text.

    Raises:
        UnsupportedError: its vocabulary is another one.
        BackendError: one of them computed something else than numbers.
        EdgeError: the backend's.
        OSError: the file cannot be read.
    """
    import numpy as np

    with np.load(path) as file:
        tokens, theirs = file["tokens"].tolist(), file["logits"]
    if max(tokens) >= backend.info.n_vocab or theirs.shape[1] != backend.info.n_vocab:
        raise UnsupportedError("The vocabularies differ, so nothing can be said about the quality.")
    each, same = [], []
    n_prompt = len(tokens) // 2 if isinstance(backend, PairedBackend) else 1
    ours = text_logits(backend, tokens, n_prompt)
    for wanted, found in zip(theirs[n_prompt - 1 :], ours, strict=True):  # one by one: vocabularies are large
        p, q = log_softmax(wanted), log_softmax(found)
        each.append(float((np.exp(p) * (p - q)).sum()))
        same.append(wanted.argmax() == found.argmax())
    if not np.isfinite(each).all():  # max(0.0, NaN) would be 0: the same model
        raise BackendError("An engine computed logits that are not finite.", "See: edge doctor")
    return Divergence(mean=max(0.0, float(np.mean(each))), agreement=float(np.mean(same)), each=tuple(each))
