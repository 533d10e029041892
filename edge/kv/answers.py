"""Answers to requests that were answered before: the same prompt, nothing left to chance, the same everything.

They are kept in the block store, a block for each, so they are sealed, bounded, evicted and forgotten like everything there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edge.types import FinishReason, Sampling

if TYPE_CHECKING:
    from edge.kv.store import BlockStore

__all__ = ["Answer", "AnswerCache"]

_NAMESPACE = "answers"
_WITHOUT_CHANCE = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "xtc_probability", "xtc_threshold")
"""Fields of Sampling that change nothing at temperature 0, but for the first."""


class Answer(msgspec.Struct, frozen=True):
    """What was answered.

    Attributes:
        text: the reply.
        tokens: its token ids; empty where a stop text cut through them.
        reason: why it ended.
        total_ms: what it took when it was computed.
    """

    text: str
    tokens: tuple[int, ...]
    reason: FinishReason
    total_ms: float


class AnswerCache:
    """The answers in a block store. Thread-safe. Nothing that happens to the disk is raised: nothing is found then.

    Args:
        store: where they are kept; the caller closes it.
        model: fingerprint of weights and engine, 32 bytes.
        n_ctx: context window, which may have ended an answer.
    """

    def __init__(self, store: BlockStore, model: bytes, n_ctx: int) -> None:
        self._store = store
        self._model = model
        self._n_ctx = n_ctx

    def find(self, prompt: Sequence[int], sampling: Sampling) -> Answer | None:
        """What was answered to exactly this; None when it never was, or when chance has a say in the answer."""
        model = self._fingerprint(sampling)
        if model is None:
            return None
        match = self._store.match(model, _NAMESPACE, prompt, partial=False)
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

    def add(self, prompt: Sequence[int], sampling: Sampling, answer: Answer, owner: str = "") -> None:
        """Remember an answer, unless chance had a say in it or it was broken off.

        Args:
            prompt: what was asked.
            sampling: how its tokens were chosen.
            answer: the reply.
            owner: the conversation it belongs to, "" for none.
        """
        model = self._fingerprint(sampling)
        if model is None or answer.reason not in ("stop", "length"):
            return
        self._store.put(
            None,
            prompt,
            msgspec.msgpack.encode(answer),
            fingerprint=model,
            namespace=_NAMESPACE,
            start=0,
            prefill_ms=answer.total_ms,
            origin="decode",
            owner=owner or None,
        )

    def _fingerprint(self, sampling: Sampling) -> bytes | None:
        """The model and all settings that an answer depends on; None where it depends on chance."""
        from edge.kv.blocks import fingerprint

        if sampling.temperature != 0:
            return None
        fields = {name: value for name, value in dataclasses.asdict(sampling).items() if name not in _WITHOUT_CHANCE}
        return fingerprint(
            {"model": self._model.hex(), "n_ctx": self._n_ctx, **{name: repr(value) for name, value in fields.items()}}
        )
