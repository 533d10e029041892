"""Cache of replies to exact repeats of a request at temperature 0.

Each reply is a block of the block store, so it is sealed, bounded, evicted and forgotten like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edge.kv.blocks import fingerprint, with_adapters
from edge.names import answer_namespace
from edge.types import FinishReason, Sampling

if TYPE_CHECKING:
    from edge.adapters import Adapter, Mix
    from edge.constraint import Constraint
    from edge.kv.store import BlockStore

__all__ = ["Answer", "AnswerCache"]

_IRRELEVANT = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "xtc_probability", "xtc_threshold")
"""Fields of Sampling that change nothing at temperature 0."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cached reply.

    Attributes:
        text: the reply.
        tokens: its token ids; empty if a stop string ended inside one.
        reason: why it ended.
        total_ms: time that computing it took.
        stopped_by: the stop text that ended it.
    """

    text: str
    tokens: tuple[int, ...]
    reason: FinishReason
    total_ms: float
    stopped_by: str | None = None


class AnswerCache:
    """The replies in a block store. Thread-safe. If the disk fails, nothing is found and nothing raised.

    Args:
        store: holds them; the caller closes it.
        model: fingerprint of weights and engine, 32 bytes.
        n_ctx: context window in tokens, which may have ended a reply.
        adapters: of the model.
    """

    def __init__(self, store: BlockStore, model: bytes, n_ctx: int, adapters: Sequence[Adapter] = ()) -> None:
        self._store = store
        self._model = model
        self._n_ctx = n_ctx
        self._adapters = adapters

    def find(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        namespace: str = "",
        constraint: Constraint | None = None,
        mix: Mix = (),
    ) -> Answer | None:
        """Return the reply to exactly this request in a namespace; None if there is none, or if sampling is random."""
        model = self._fingerprint(sampling, constraint, mix)
        if model is None:
            return None
        match = self._store.match(model, answer_namespace(namespace), prompt, partial=False)
        if len(match.blocks) != 1 or match.n_tokens != len(prompt):
            return None
        payload = self._store.read(match.blocks[0])
        if payload is None:
            return None
        self._store.touch([match.blocks[0].key])
        try:
            return msgspec.msgpack.decode(payload, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # of another version of edge

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        answer: Answer,
        owner: str = "",
        namespace: str = "",
        constraint: Constraint | None = None,
        mix: Mix = (),
    ) -> None:
        """Store a reply, unless sampling is random or the reply was interrupted.

        Args:
            prompt: token ids.
            sampling: of the reply.
            answer: the reply.
            owner: its conversation, "" for none.
            namespace: only requests of it find the reply.
            constraint: of the reply.
            mix: the adapters that it was computed with.
        """
        model = self._fingerprint(sampling, constraint, mix)
        if model is None or answer.reason not in ("stop", "length"):
            return
        self._store.put(
            None, prompt, msgspec.msgpack.encode(answer), fingerprint=model, namespace=answer_namespace(namespace), start=0,
            prefill_ms=answer.total_ms, origin="decode", owner=owner or None,
        )  # fmt: skip

    def _fingerprint(self, sampling: Sampling, constraint: Constraint | None, mix: Mix) -> bytes | None:
        """Return the fingerprint of the model and all settings that a reply depends on; None if sampling is random."""
        if sampling.temperature != 0:
            return None
        fields = {name: repr(value) for name, value in dataclasses.asdict(sampling).items() if name not in _IRRELEVANT}
        if constraint is not None:
            fields["constraint"] = repr(constraint)
        model = with_adapters(self._model, mix, self._adapters)
        return fingerprint({"model": model.hex(), "n_ctx": self._n_ctx, **fields})
