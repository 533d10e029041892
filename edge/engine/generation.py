"""One reply that is asked of the engine, and the events that its listener gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edge.errors import BackendError, EdgeError
from edge.kv.cache import Reuse
from edge.prompt.repetition import RepetitionDetector
from edge.prompt.stream import StopMatcher, TextStream
from edge.types import Timing, Usage

if TYPE_CHECKING:
    from edge.backends.base import Sampler
    from edge.engine.drafting import Lookup
    from edge.kv.slots import Slot
    from edge.names import CacheHint
    from edge.types import FinishReason, Sampling

__all__ = ["Decoded", "Drafted", "Event", "Failed", "Finished", "Generation", "Prefilled", "Priority", "reply_error"]

_log = logging.getLogger("edge.scheduler")

Priority = Literal["interactive", "background"]
"""Background work is prefilled only while nobody waits for a prompt, and gives up its sequence to those who do."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Progress of the prompt: `done` of `total` tokens are in the KV cache, reused ones included."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text that can be shown: whole characters, and no part of a stop text.

    Attributes:
        text: the text.
        is_suspect: it may be part of a loop; see `Sampling.max_repeats`.
    """

    text: str
    is_suspect: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """End of a reply.

    Attributes:
        reason: why it ended.
        usage, timing: what it took.
        tokens: token ids of the reply, without the one that ended it; empty when a stop text did, which may split a token.
        held_back: how the engine was throttled meanwhile, in a few words; "" if it was not.
        stopped_by: the stop text that ended it; None if none did.
    """

    reason: FinishReason
    usage: Usage
    timing: Timing
    tokens: tuple[int, ...]
    held_back: str = ""
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """End of a reply by an error; the text before it stands."""

    error: EdgeError


Event = Prefilled | Decoded | Finished | Failed


@dataclass(frozen=True, slots=True)
class Drafted:
    """What speculative decoding did for a reply.

    Attributes:
        n_tokens: draft tokens that were computed.
        n_accepted: those that came true.
        saved_ms: estimated time of a pass for each of those, less what the drafts took.
    """

    n_tokens: int = 0
    n_accepted: int = 0
    saved_ms: float = 0.0

    def plus(self, n_tokens: int, n_accepted: int, saved_ms: float) -> Drafted:
        """Return the sum with another draft."""
        return Drafted(self.n_tokens + n_tokens, self.n_accepted + n_accepted, self.saved_ms + saved_ms)


@dataclass(slots=True, eq=False)
class Generation:
    """One reply that is asked for. `cancel()` may be called from any thread; the rest belongs to the engine thread.

    Attributes:
        tokens: the prompt.
        sampling: how to choose tokens.
        listener: called with each event, in order; the last one is Finished or Failed.
        owner: id of the conversation, which the stored KV blocks belong to; "" for none.
        boundaries: positions in the prompt that later prompts are likely to share. Stored KV blocks end there, and checkpoints
            are taken there of models whose state can only be stored as a whole.
        asked_at: when it was asked for; like all times here, of `time.perf_counter`.
        priority: "background" for work that nobody waits for.
        hint: where its keys and values stay.
        namespace: only what was computed in it is reused; see `edge.kv.cache`.
        is_prefill_only: it ends once the prompt is in the KV cache, without a token of a reply.
        is_cancelled: whether `cancel` was called.
        arrived: number in the order in which the scheduler received them.
        ms_per_token: prefill time of its newest chunks, in milliseconds a token; 0 before the first.
        n_interruptions: how often its current chunk was stopped for another prompt.
        is_repeating: its text only repeats itself; see `Sampling.max_repeats`.
        pending: a token that was chosen and shown behind a draft; None where the newest logits choose the next one.
        lookup: finds drafts in its text; None before the first.
        n_match: newest tokens that the place of its draft shares.
        drafted: what drafts did so far.
    """

    tokens: list[int]
    sampling: Sampling
    listener: Callable[[Event], None]
    owner: str = ""
    boundaries: Sequence[int] = ()
    asked_at: float = field(default_factory=time.perf_counter)
    priority: Priority = "interactive"
    hint: CacheHint = "disk"
    namespace: str = ""
    is_prefill_only: bool = False
    is_cancelled: bool = False
    slot: Slot | None = None
    sampler: Sampler | None = None
    reuse: Reuse = field(default_factory=Reuse)
    generated: list[int] = field(default_factory=list)
    held_back: str = ""
    arrived: int = 0
    ms_per_token: float = 0.0
    n_interruptions: int = 0
    pending: int | None = None
    lookup: Lookup | None = None
    n_match: int = 0
    drafted: Drafted = field(default_factory=Drafted)
    started_at: float = 0.0
    prefilled_at: float = 0.0
    first_token_at: float = 0.0
    first_text_at: float = 0.0
    _stream: TextStream = field(default_factory=TextStream)
    is_repeating: bool = False
    _matcher: StopMatcher = field(init=False)
    _repetition: RepetitionDetector = field(init=False)

    def __post_init__(self) -> None:
        self._matcher = StopMatcher(self.sampling.stop)
        self._repetition = RepetitionDetector(self.sampling.max_repeats)

    def cancel(self) -> None:
        """Stop after the current chunk or token."""
        self.is_cancelled = True

    @property
    def to_prefill(self) -> list[int]:
        """All tokens that the sequence holds before it goes on: also those generated before it was preempted."""
        return [*self.tokens, *self.generated]

    @property
    def n_tokens(self) -> int:
        """How many tokens `to_prefill` has, without copying them."""
        return len(self.tokens) + len(self.generated)

    @property
    def n_left(self) -> int:
        """Number of tokens of the prompt that are still to be computed."""
        return len(self.tokens) + len(self.generated) - (self.slot.n_tokens if self.slot else 0)

    @property
    def is_prefilling(self) -> bool:
        """True while part of the prompt is still to be computed."""
        return self.slot is not None and self.n_left > (self.pending is not None)

    def add(self, token: int) -> None:
        """Append a token that was chosen."""
        self.first_token_at = self.first_token_at or time.perf_counter()
        self.generated.append(token)
        if self.lookup is not None:
            self.lookup.extend((token,))

    def show(self, data: bytes) -> bool:
        """Hand the text in the bytes of a token to the listener. Returns whether it completes a stop text."""
        text, is_stopped = self._matcher.feed(self._stream.feed(data))
        self._tell(text)
        return is_stopped

    def show_rest(self) -> None:
        """Hand over what was withheld in case a character or a stop text followed."""
        text, is_stopped = self._matcher.feed(self._stream.final())
        self._tell(text if is_stopped else text + self._matcher.flush())

    def finished(self, reason: FinishReason, *, is_stop_text: bool) -> Finished:
        """Return the event that ends this reply now."""
        now = time.perf_counter()
        started, prefilled = self.started_at or now, self.prefilled_at or now
        usage = Usage(
            n_prompt=len(self.tokens),
            n_reused=self.reuse.n_memory + self.reuse.n_disk,
            n_generated=len(self.generated),
            n_restored=self.reuse.n_disk,
            saved_ms=round(self.reuse.saved_ms, 1),
            n_drafted=self.drafted.n_tokens,
            n_accepted=self.drafted.n_accepted,
            draft_saved_ms=round(self.drafted.saved_ms, 1),
        )
        timing = Timing(
            queue_ms=(started - self.asked_at) * 1000,
            prefill_ms=(prefilled - started) * 1000,
            first_token_ms=(self.first_text_at - self.asked_at) * 1000 if self.first_text_at else 0.0,
            decode_ms=(now - self.first_token_at) * 1000 if self.first_token_at else 0.0,
            total_ms=(now - self.asked_at) * 1000,
        )
        tokens = () if is_stop_text else tuple(self.generated)
        return Finished(reason, usage, timing, tokens, self.held_back, self._matcher.matched if is_stop_text else None)

    def _tell(self, text: str) -> None:
        if text:
            self.is_repeating = self._repetition.feed(text) or self.is_repeating
            self.first_text_at = self.first_text_at or time.perf_counter()
            self.listener(Decoded(text, self._repetition.is_suspect))


def reply_error(error: Exception) -> EdgeError:
    """Return the error that ends one reply. Whatever its work raises ends that reply only, never the engine thread."""
    if isinstance(error, EdgeError):
        return error
    _log.error("A reply failed with an unexpected error", exc_info=error)
    wrapped = BackendError(
        f"This reply failed with an unexpected error: {error!r}.", "Other replies go on. Please report this."
    )
    wrapped.__cause__ = error
    return wrapped
