"""The result of `edge ladder` as values that convert to JSON and back."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = ["FORMAT", "KINDS", "Kind", "Ladder", "Latency", "Rung", "Setup", "Stopped", "Turn", "Work", "best_of", "latency_of"]

FORMAT = 1
"""Version of the JSON of `edge ladder`, raised with every change that an older reader would misread."""

Kind = Literal["start", "lossless", "lossy"]
Stopped = Literal["", "interrupted", "late"]
KINDS: tuple[Kind, ...] = ("start", "lossless", "lossy")


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How one rung loads and asks the model. Names as in a Plan, unless they are explained.

    Attributes:
        path: of the model; bytes, since it need not be Unicode.
        weights: type of its weights, for people.
        kv_type: of keys and values; None is the engine's usual one.
        reuses: what was prefilled stays in memory; otherwise each prompt is computed from its first token.
        disk: it is also stored on the disk, and restored after a restart.
        read_ahead: a message is prefilled while it is typed.
        speculates: tokens are guessed where a reply repeats its prompt, and verified together.
        draft: path of a smaller model that guesses; None without one.
        prefill_with: engine that prefills long prompts for the one that decodes; None is that one.
    """

    path: bytes
    weights: str
    backend: str
    accelerator: str
    threads: int
    threads_batch: int
    n_ubatch: int
    flash_attention: bool
    kv_type: str | None = None
    reuses: bool = False
    disk: bool = False
    read_ahead: bool = False
    speculates: bool = False
    draft: bytes | None = None
    prefill_with: str | None = None


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The extent of the three workloads; it is the same on every rung.

    Attributes:
        name: "full", or how much smaller it is.
        n_turns: messages of the chat, in `n_sessions` runs of the program.
        n_sessions: the program is started so many times.
        n_words: of the system prompt, and of the document.
        n_reply: tokens of every reply.
        n_questions: about the document.
        n_items: to be scored.
        n_logits: tokens over which quality is measured.
    """

    name: str
    n_turns: int
    n_sessions: int
    n_words: int
    n_reply: int
    n_questions: int
    n_items: int
    n_logits: int


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One reply, from sending the message until it is complete and saved.

    Attributes:
        first_ms, total_ms: from sending to the first text, and to the end, in milliseconds.
        n_prompt, n_reused, n_restored, n_generated, n_drafted, n_accepted: tokens, as in `edge.Usage`.
        ahead_ms: prefill while the message was typed, before it was sent.
        text: the reply.
    """

    first_ms: float
    total_ms: float
    n_prompt: int
    n_reused: int
    n_restored: int
    n_generated: int
    n_drafted: int
    n_accepted: int
    ahead_ms: float
    text: str


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the turns of a workload.

    Attributes:
        first_s, total_s: until the first text, and until the end, in seconds.
        reused: share of the prompts' tokens that were not computed after sending.
        n_turns: turns measured.
        n_same: replies that are the same text as on the first rung.
    """

    first_s: float
    total_s: float
    reused: float
    n_turns: int
    n_same: int


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """One step, or a variant of it that was tried.

    Attributes:
        name: short and stable.
        title: for people.
        kind: whether it changes what the model computes beyond rounding.
        setup: how it ran; None where it could not be tried.
        is_taken: the next rungs stand on it.
        why: why it was not taken, or not tried; "" otherwise.
        chat, document: latencies; None where they were not measured.
        score_s: seconds for each scored item.
        ready_s: from starting the program until the model is loaded, mean over the restarts.
        kl, top1: mean divergence of the next-token distribution from that of the first rung, in nats, and the share of places
            with the same likeliest token.
        n_same_scores: scored items with the same answer as on the first rung.
        chat_turns, document_turns: every turn.
        scores: the answers.
    """

    name: str
    title: str
    kind: Kind
    setup: Setup | None = None
    is_taken: bool = False
    why: str = ""
    chat: Latency | None = None
    document: Latency | None = None
    score_s: float | None = None
    ready_s: float | None = None
    kl: float | None = None
    top1: float | None = None
    n_same_scores: int | None = None
    chat_turns: tuple[Turn, ...] = ()
    document_turns: tuple[Turn, ...] = ()
    scores: tuple[str, ...] = ()


class Ladder(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run.

    Attributes:
        format: see FORMAT.
        edge: version of edge.
        device: name of the machine.
        processor: name and number of cores.
        measured_at: UTC, "2026-11-26T10:40:00Z".
        model: name of the model.
        work: extent of the workloads.
        seconds: duration.
        stopped: why not every step was measured; "" if all were, or are impossible here.
        rungs: in order, with the variants that were not taken.
    """

    format: int
    edge: str
    device: str
    processor: str
    measured_at: str
    model: str
    work: Work
    seconds: float
    stopped: Stopped
    rungs: tuple[Rung, ...]

    @property
    def is_complete(self) -> bool:
        """Every step was measured, or is impossible here."""
        return not self.stopped


def latency_of(turns: Sequence[Turn], first: Sequence[Turn]) -> Latency | None:
    """Return the means of the turns of a workload; None without any.

    Args:
        turns: measured.
        first: those of the first rung, for comparing the texts.
    """
    if not turns:
        return None
    return Latency(
        first_s=statistics.fmean(turn.first_ms for turn in turns) / 1000,
        total_s=statistics.fmean(turn.total_ms for turn in turns) / 1000,
        reused=sum(turn.n_reused for turn in turns) / max(1, sum(turn.n_prompt for turn in turns)),
        n_turns=len(turns),
        n_same=sum(turn.text == other.text for turn, other in zip(turns, first, strict=False)),
    )


def best_of(ladder: Ladder, kinds: Sequence[Kind] = KINDS) -> Rung | None:
    """Return the highest rung that was taken among those up to the last of these kinds; None if nothing was measured."""
    return next((rung for rung in reversed(ladder.rungs) if rung.is_taken and rung.kind in kinds), None)
