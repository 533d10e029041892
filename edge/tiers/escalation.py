"""The next tier of a model, and one turn's way to it: what the router says, what the user allows, what is held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edge.errors import UsageError, kind_of
from edge.tiers.base import Consent, Tier
from edge.tiers.router import N_LIKELIEST, EntropyMeter, Router
from edge.types import Message, Sampling

if TYPE_CHECKING:
    from edge.events import ReplyEvent
    from edge.reply_state import ReplyState
    from edge.request import Request
    from edge.types import TokenLogprob

__all__ = ["Escalation", "HeldEvents", "Relay"]

BY_HAND = "by hand"


@dataclass
class Escalation:
    """The next tier of a model. Its fields may be changed at any time; turns that run keep what they began with.

    Attributes:
        tier: takes what is sent on.
        router: says what is. Requests can be sent on by hand in any case.
        consent: see `Consent`; None lets nothing leave this device. A tier on this device needs none.
        is_on: the router is asked at all.
        sampling: of answers of the tier, where a request leaves something out: what the user set, without what suits the first
            model.
    """

    tier: Tier
    router: Router = field(default_factory=Router)
    consent: Consent | None = None
    is_on: bool = True
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        consent: object = self.consent
        if consent is not None and consent != "always" and not callable(consent):
            hint = "Pass a function that takes an Outgoing and returns True or False."
            raise UsageError(f'consent is a function or "always", not {kind_of(consent)}.', hint)

    def relay(self, request: Request) -> Relay | None:
        """Return the way of a request to the tier; None where it cannot or shall not be sent on."""
        wanted = request.escalate
        if wanted is False or (wanted is None and not self.is_on) or isinstance(request.prompt, str):
            return None
        if request.is_prefill_only or any(one is not None for one in (request.answer, request.shared, request.n_logprobs)):
            return None
        request = replace(request, sampling=request.sampling.over(self.sampling))
        consent = self.consent if request.consent is None else request.consent
        return Relay(self.tier, self.router, consent, request, why=BY_HAND if wanted else "")

    def describe(self) -> str:
        """Return in a sentence what is sent on, and where to."""
        rules = self.router.describe() if self.is_on else []
        return f"{self.tier.name} gets {'; '.join(rules) or 'what is sent on by hand'}."


class Relay:
    """One turn's way to the next tier.

    Args:
        tier, router, consent: as of `Escalation`.
        request: as the caller asked it.
        why: it is sent on in any case; "" leaves it to the router.

    Attributes:
        request: see above.
        why: it is sent on; "" while it is not.
        held: holds the first answer back while it is measured; None where nothing is measured.
    """

    def __init__(self, tier: Tier, router: Router, consent: Consent | None, request: Request, *, why: str = "") -> None:
        self.tier, self.router = tier, router
        self._consent, self.request = consent, request
        self._meter = EntropyMeter()
        self.why = why
        self.held: HeldEvents | None = None

    @property
    def request_messages(self) -> Sequence[Message]:
        """The messages of the prompt."""
        return [message for message in self.request.prompt if isinstance(message, Message)]

    @property
    def n_logprobs(self) -> int | None:
        """Likeliest tokens that the first answer is measured by; None measures none."""
        return N_LIKELIEST if self.held is not None and self.router.max_entropy is not None else None

    def decide_first(self, messages: Sequence[Message], count: Callable[[str], int]) -> None:
        """Ask the rules that need no answer."""
        if not self.why:
            self.why = self.router.before(messages, count)

    def hold(self, reply: ReplyState) -> HeldEvents | None:
        """Begin to measure, if a rule does, and return what takes the events of the first answer meanwhile."""
        self.held = HeldEvents(reply) if self.router.measures else None
        return self.held

    def measure(self, tokens: Sequence[TokenLogprob], *, is_end: bool = False) -> None:
        """Take tokens of the first answer, and decide once there are enough of them."""
        if self.held is None or self.held.is_open or self.why:
            return
        self._meter.add(tokens)
        if self._meter.n and (is_end or self._meter.n >= self.router.probe_tokens):
            self.why = self.router.judge_entropy(self._meter.mean)
            if not self.why and self.router.min_agreement is None:
                self.held.open()

    def compare(self, first: str, second: str) -> None:
        """Decide by how much two answers have in common."""
        self.why = self.why or self.router.judge_agreement(first, second)

    def second_sampling(self, sampling: Sampling, n_tokens: int) -> Sampling:
        """Return how a second answer is drawn, to be compared with a first one of so many tokens."""
        from edge.tiers.router import SECOND_TEMPERATURE

        temperature = max(sampling.temperature, SECOND_TEMPERATURE)
        seed = 1 if sampling.seed is None else sampling.seed + 1
        return replace(sampling, temperature=temperature, seed=seed, max_tokens=2 * n_tokens + 16)

    def allowed(self, request: Request) -> str:
        """Return why a request may not be sent on, for a notice; "" if it may. Asks for consent where that is needed."""
        if reason := self.tier.why_not(request):
            return f"This was not sent on to {self.tier.name}, because {reason}."
        outgoing = self.tier.outgoing(request, self.why)
        if outgoing is None or self._consent == "always":
            return ""
        if self._consent is None:
            return f"Nothing was sent to {outgoing.host} ({self.why}): nobody agreed that text leaves this device."
        return "" if self._consent(outgoing) else f"Nothing was sent to {outgoing.host}, as you wished."


class HeldEvents:
    """Takes the events of a first answer in place of its reply, and passes them on once it is decided that they are shown.

    Args:
        reply: gets them.

    Attributes:
        pieces: of the reply.
        is_open: they are passed on.
    """

    def __init__(self, reply: ReplyState) -> None:
        self._reply = reply
        self._events: list[ReplyEvent] = []
        self.pieces = reply.pieces
        self.is_open = False

    def emit(self, event: ReplyEvent) -> None:
        """Take an event."""
        if self.is_open:
            self._reply.emit(event)
        else:
            self._events.append(event)

    def note(self, text: str) -> None:
        """Take a notice."""
        from edge.events import Notice

        self.emit(Notice(text))

    def open(self) -> None:
        """Pass on what was held, and from now on everything."""
        self.is_open, events, self._events = True, self._events, []
        for event in events:
            self._reply.emit(event)
