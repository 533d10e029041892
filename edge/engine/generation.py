"""One reply that is asked of the engine, and the events that its listener gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.kv.cache import Reuse
from edge.prompt.stream import StopMatcher, TextStream

if TYPE_CHECKING:
    from edge.backends.base import Sampler
    from edge.errors import EdgeError
    from edge.kv.slots import Slot
    from edge.types import FinishReason, Sampling, Timing, Usage

__all__ = ["Decoded", "Event", "Failed", "Finished", "Generation", "Prefilled"]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Part of the prompt is read: `done` of `total` tokens, reused ones included."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text that can be shown: whole characters, and no part of a stop text."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply is over.

    Attributes:
        reason: why.
        usage, timing: what it took.
        tokens: the token ids of the reply, without the one that ended it; empty when a stop text cut through them.
        held_back: what the governor held back meanwhile, in a few words; "" when nothing.
    """

    reason: FinishReason
    usage: Usage
    timing: Timing
    tokens: tuple[int, ...]
    held_back: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The reply broke off with an error; text that was written before it stands."""

    error: EdgeError


Event = Prefilled | Decoded | Finished | Failed


@dataclass(slots=True, eq=False)
class Generation:
    """One reply that was asked for. `cancel()` may be called from any thread; the rest belongs to the engine thread.

    Attributes:
        tokens: the prompt.
        sampling: how to choose tokens.
        listener: called with each event, in order; the last one is Finished or Failed.
        owner: the conversation that this is a turn of, "" for none: whose blocks on the disk its tokens become.
        boundaries: positions inside the prompt that later prompts are likely to share. Blocks on the disk end there, and models
            whose state can only be kept as a whole are kept there.
    """

    tokens: list[int]
    sampling: Sampling
    listener: Callable[[Event], None]
    owner: str = ""
    boundaries: Sequence[int] = ()
    asked_at: float = field(default_factory=time.perf_counter)
    slot: Slot | None = None
    sampler: Sampler | None = None
    reuse: Reuse = field(default_factory=Reuse)
    written: list[int] = field(default_factory=list)
    held_back: str = ""
    started_at: float = 0.0
    prefilled_at: float = 0.0
    first_token_at: float = 0.0
    first_text_at: float = 0.0
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _stream: TextStream = field(default_factory=TextStream)
    _matcher: StopMatcher | None = None

    def cancel(self) -> None:
        """Stop at the next chance: after the current chunk or token. Asking twice does nothing more."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether cancel() was called."""
        return self._cancelled.is_set()

    @property
    def is_reading(self) -> bool:
        """Whether part of the prompt is still to be computed."""
        return self.slot is not None and self.slot.n_tokens < len(self.tokens) + len(self.written)

    def show(self, data: bytes, *, is_last: bool = False) -> bool:
        """Turn bytes of tokens into text for the listener; True when a stop text came up."""
        if self._matcher is None:
            self._matcher = StopMatcher(self.sampling.stop)
        text = self._stream.feed(data)
        if is_last:
            text += self._stream.final()
        shown, is_stopped = self._matcher.feed(text)
        if is_last and not is_stopped:
            shown += self._matcher.flush()
        if shown:
            if not self.first_text_at:
                self.first_text_at = time.perf_counter()
            self.listener(Decoded(shown))
        return is_stopped
