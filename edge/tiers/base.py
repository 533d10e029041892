"""The contract of a tier: something that answers a request in place of a model, and what it is given and gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from edge.errors import EdgeError
from edge.types import FinishReason, Timing, Usage

if TYPE_CHECKING:
    from edge.events import ReplyEvent
    from edge.request import Request

__all__ = ["Broke", "Consent", "Ended", "Outgoing", "Tier", "TierEvent", "broke"]


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer of a tier.

    Attributes:
        reason: as of a reply.
        usage, timing: as of a reply, as far as they are known.
        stopped_by, is_partial: as of a reply.
        answered_by: who gave the answer, for people: "qwen3-4b", "qwen3-32b at gpu.example.org".
    """

    reason: FinishReason
    answered_by: str
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    stopped_by: str | None = None
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Broke:
    """A tier cannot answer, or its answer broke off."""

    error: EdgeError


def broke(error: Exception, unexpected: EdgeError) -> Broke:
    """Return the end of an answer that an error ended; one that nobody expected is the cause of `unexpected`."""
    if isinstance(error, EdgeError):
        return Broke(error)
    unexpected.__cause__ = error
    return Broke(unexpected)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What would leave this device.

    Attributes:
        url: where it would be posted.
        host: of that address.
        body: the JSON value that would be posted, all of it.
        is_encrypted: by TLS.
        has_key: an API key would be sent with it, which is not shown.
        why: it would be sent.
    """

    url: str
    host: str
    body: Mapping[str, Any]
    is_encrypted: bool
    has_key: bool = False
    why: str = ""

    @property
    def n_messages(self) -> int:
        """Number of messages."""
        return len(self.body["messages"])

    @property
    def n_chars(self) -> int:
        """Characters of all messages."""
        return sum(len(message.get("content") or "") for message in self.body["messages"])

    def summary(self) -> str:
        """Return where it would go and how much it is, on one line."""
        how = "" if self.is_encrypted else ", unencrypted"
        messages = "1 message" if self.n_messages == 1 else f"{self.n_messages:,} messages"
        return f"to {self.host}{how}: {messages}, {self.n_chars:,} characters"

    def text(self) -> str:
        """Return the whole request as text; a key is left out."""
        key = "\nAuthorization: Bearer (the key)" if self.has_key else ""
        return f"POST {self.url}{key}\n{json.dumps(self.body, ensure_ascii=False, indent=2)}"


Consent: TypeAlias = 'Callable[[Outgoing], bool] | Literal["always"]'
"""Says whether text may leave this device: a function that is asked each time, or "always"."""

TierEvent: TypeAlias = "ReplyEvent | Ended | Broke"
"""What a tier gives: the events of its answer, and one `Ended` or `Broke` at the end."""


class Tier(Protocol):
    """Answers requests in place of a model. Its methods may be called from several threads at once.

    Attributes:
        name: for people, before it is known who exactly answers.
        is_remote: text leaves this device.
    """

    name: str
    is_remote: bool

    def why_not(self, request: Request) -> str:
        """Return why it cannot take a request, to follow "because"; "" if it can."""

    def outgoing(self, request: Request, why: str = "") -> Outgoing | None:
        """Return what would leave this device for a request; None if nothing would. Uses no network."""

    def start(self, request: Request, put: Callable[[TierEvent], None]) -> Callable[[], None]:
        """Start to answer a request, without waiting.

        Args:
            request: as the caller asked it, before the first model's own settings were added.
            put: called with each event, from another thread, and at last with `Ended` or `Broke`.

        Returns:
            What cancels: `Ended` with the reason "cancelled" follows at once.
        """

    def close(self) -> None:
        """Free what it holds. May be called twice."""
