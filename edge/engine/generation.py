"""One reply that is asked of the engine, and the events that its listener gets."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.errors import BackendError, EdgeError
from edge.kv.cache import Reuse
from edge.prompt.repetition import RepetitionDetector
from edge.prompt.stream import StopMatcher, TextStream
from edge.types import Timing, Usage

if TYPE_CHECKING:
    from edge.adapters import Mix
    from edge.backends.base import Sampler
    from edge.engine.constraint import Matcher
    from edge.engine.drafting import Lookup
    from edge.kv.slots import Slot
    from edge.names import CacheHint, Priority
    from edge.types import FinishReason, Sampling, TokenLogprob

__all__ = ["Decoded", "Drafted", "Event", "Failed", "Finished", "Generation", "Prefilled", "SharedPrompt", "reply_error"]

_log = logging.getLogger("edge.scheduler")


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
        logprobs: of the tokens that begin in this text, if they were asked for.
    """

    text: str
    is_suspect: bool = False
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """End of a reply.

    Attributes:
        reason: why it ended.
        usage, timing: what it took.
        tokens: token ids of the reply, without the one that ended it; empty when a stop text did, which may split a token.
        held_back: how the engine was throttled meanwhile, in a few words; "" if it was not.
        stopped_by: the stop text that ended it; None if none did.
        is_partial: it has a constraint, and ended before its text was complete.
        end: how likely the token was that ended it, if that was asked for and a token did.
    """

    reason: FinishReason
    usage: Usage
    timing: Timing
    tokens: tuple[int, ...]
    held_back: str = ""
    stopped_by: str | None = None
    is_partial: bool = False
    end: TokenLogprob | None = None


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
class SharedPrompt:
    """One prompt that several replies begin with. The engine prefills it once, and each of them gets a copy of the sequence.

    Attributes:
        n_submitted: replies that were submitted.
        is_prefilled: the prompt is in the KV cache, as long as nobody else needs the room.
    """

    n_submitted: int = 0
    is_prefilled: bool = False


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
        mix: the adapters that it is computed with.
        shared: of replies to the same prompt, which wait until one of them has prefilled it; None for a prompt of its own.
        is_prefill_only: it ends once the prompt is in the KV cache, without a token of a reply.
        shown: special tokens whose text belongs to the reply, since its reader looks for them.
        constraint: says which tokens its schema or grammar allows; None allows all.
        n_logprobs: also give the logprob of each token, and of so many of the likeliest ones; None gives none.
        is_cancelled: whether `cancel` was called.
        is_arrival: a running chunk may be stopped for it.
        arrived: number in the order in which the scheduler received them.
        ms_per_token: prefill time of its newest chunks, in milliseconds a token; 0 before the first.
        n_interruptions: how often its current chunk was stopped for another prompt.
        is_repeating: its text only repeats itself; see `Sampling.max_repeats`.
        pending: a token that was chosen and shown behind a draft; None where the newest logits choose the next one.
        lookup: finds drafts in its text; None before the first.
        n_match: newest tokens that the place of its draft shares.
        drafted: what drafts did so far.
        end: how likely the token was that ended it; see `Finished`.
        n_forced: tokens that its constraint left no choice about, and that took no pass of their own.
        is_forwarding: the newest of them are not in the KV cache yet.
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
    mix: Mix = ()
    shown: frozenset[int] = frozenset()
    shared: SharedPrompt | None = None
    is_prefill_only: bool = False
    constraint: Matcher | None = None
    n_logprobs: int | None = None
    is_cancelled: bool = False
    slot: Slot | None = None
    sampler: Sampler | None = None
    reuse: Reuse = field(default_factory=Reuse)
    generated: list[int] = field(default_factory=list)
    held_back: str = ""
    is_arrival: bool = True
    arrived: int = 0
    ms_per_token: float = 0.0
    n_interruptions: int = 0
    pending: int | None = None
    lookup: Lookup | None = None
    n_match: int = 0
    drafted: Drafted = field(default_factory=Drafted)
    end: TokenLogprob | None = None
    n_forced: int = 0
    is_forwarding: bool = False
    started_at: float = 0.0
    prefilled_at: float = 0.0
    first_token_at: float = 0.0
    first_text_at: float = 0.0
    _stream: TextStream = field(default_factory=TextStream)
    _n_chars: int = 0  # of the text so far, also of what is withheld
    _n_shown: int = 0
    _logprobs: deque[tuple[int, TokenLogprob]] = field(default_factory=deque)  # not shown yet: where its token begins, and it
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

    def add(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Append a token that was chosen.

        Args:
            token: its id.
            logprob: how likely it was, if that was asked for.

        Raises:
            ConstraintError: its constraint does not allow it, or turned out to be too complex.
        """
        if self.constraint is not None:
            self.constraint.accept(token)
        self.first_token_at = self.first_token_at or time.perf_counter()
        self.generated.append(token)
        if logprob is not None:
            self._logprobs.append((self._n_chars, logprob))
        if self.lookup is not None:
            self.lookup.extend((token,))

    def show(self, data: bytes) -> bool:
        """Hand the text in the bytes of a token to the listener. Returns whether it completes a stop text."""
        decoded = self._stream.feed(data)
        self._n_chars += len(decoded)
        text, is_stopped = self._matcher.feed(decoded)
        self._tell(text)
        return is_stopped

    def show_rest(self) -> None:
        """Hand over what was withheld in case a character or a stop text followed."""
        text, is_stopped = self._matcher.feed(self._stream.final())
        self._tell(text if is_stopped else text + self._matcher.flush(), is_end=not is_stopped)

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
            n_forced=self.n_forced,
            n_foreign=self.reuse.n_foreign,
        )
        timing = Timing(
            queue_ms=(started - self.asked_at) * 1000,
            prefill_ms=(prefilled - started) * 1000,
            first_token_ms=(self.first_text_at - self.asked_at) * 1000 if self.first_text_at else 0.0,
            decode_ms=(now - self.first_token_at) * 1000 if self.first_token_at else 0.0,
            total_ms=(now - self.asked_at) * 1000,
        )
        tokens = () if is_stop_text else tuple(self.generated)
        stopped_by = self._matcher.matched if is_stop_text else None
        is_partial = self.constraint is not None and not self.constraint.is_complete
        return Finished(reason, usage, timing, tokens, self.held_back, stopped_by, is_partial, self.end)

    def _tell(self, text: str, *, is_end: bool = False) -> None:
        """Tell the listener of text that can be shown, and of the tokens that begin in it; at the end, of all that are left."""
        self._n_shown += len(text)
        logprobs = []
        while self._logprobs and (is_end or self._logprobs[0][0] < self._n_shown):
            logprobs.append(self._logprobs.popleft()[1])
        if text:
            self.is_repeating = self._repetition.feed(text) or self.is_repeating
            self.first_text_at = self.first_text_at or time.perf_counter()
        if text or logprobs:
            self.listener(Decoded(text, self._repetition.is_suspect, tuple(logprobs)))


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
