"""A turn of a model that has a next tier: who answers is decided before or behind the first answer, and said in the reply."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.engine.generation import Decoded, Finished
from edge.errors import BackendError, CancelledError
from edge.reply_reader import ReplyReader
from edge.tiers.base import Broke, Ended
from edge.turn import Turn

if TYPE_CHECKING:
    from edge.engine.generation import Prefilled
    from edge.errors import EdgeError
    from edge.prompt.reply_parser import ReplyParser
    from edge.request import Request
    from edge.tiers.base import TierEvent
    from edge.tiers.escalation import Relay

__all__ = ["TieredTurn"]


@dataclass(eq=False, kw_only=True)
class TieredTurn(Turn):
    """One turn, which another tier may answer. Whatever goes wrong there, the model here answers, and a notice says so.

    Args:
        relay: the request's way to the next tier.
    """

    relay: Relay

    def __post_init__(self) -> None:
        super().__post_init__()
        self._stays = False  # nothing is sent on any more
        self._text_broken_off = ""
        if self.relay.router.measures:
            self.answers = None  # an earlier answer cannot be measured

    def _ground(self) -> None:
        """As in `Turn`; whoever answers gets the passages, and consent is asked for them, too."""
        super()._ground()
        relay, prompt = self.relay, self.request.prompt
        if self._prompt is not prompt and not isinstance(self._prompt, str):
            relay.request = replace(relay.request, prompt=[*relay.request_messages[:-1], self._prompt[-1]])
        relay.request = replace(relay.request, grounding=None, docs=None)

    def _answer_round(self) -> Finished:
        relay = self.relay
        if self._stays:
            return self._answer_once()
        if not relay.why and self._n_rounds == 0:
            relay.decide_first(relay.request_messages, lambda text: len(self.prompting.tokenize(text)))
        if relay.why:
            return self._pass_on() or self._answer_once()
        return self._answer_and_measure() if self._n_rounds == 0 else self._answer_once()

    def _answer_and_measure(self) -> Finished:
        """Answer, hold the beginning back, and send the question on if the answer does not do."""
        relay = self.relay
        held = relay.hold(self.reply)
        finished = self._answer_once()
        if held is None:
            return finished
        if not self.reply.is_cancelled:
            relay.measure((), is_end=True)
            if not relay.why and not held.is_open and relay.router.min_agreement is not None:
                sampling = relay.second_sampling(self.request.sampling, len(finished.tokens))
                relay.compare(self._round.text, self._generate_summary(self._tokens, sampling))
        if not relay.why:
            held.open()
            return finished
        relay.held, is_whole = None, finished.reason in ("stop", "length")
        passed = self._pass_on()
        if passed is not None:
            return passed
        if is_whole:
            held.open()
            return finished
        return self._answer_once()

    def _pass_on(self) -> Finished | None:
        """Have the next tier answer the newest round; return None if it does not, which a notice says."""
        relay, reply, first = self.relay, self.reply, self._round
        request = self._request_now()
        refusal = relay.allowed(request)
        if reply.is_cancelled:
            raise CancelledError("The reply was stopped.")
        if refusal:
            self._stay(refusal)
            return None
        self._round, began = ReplyReader(reply), time.perf_counter()
        self._credit(relay.tier.name, relay.why)
        events: queue.SimpleQueue[TierEvent] = queue.SimpleQueue()
        reply.bind(relay.tier.start(request, events.put))
        while True:
            event = self._next_event(events)
            if isinstance(event, Ended) and event.reason == "cancelled":
                if reply.is_cancelled:
                    raise CancelledError("The reply was stopped.")
                return self._go_on_here(BackendError("It was stopped."), first)
            if isinstance(event, Ended):
                self._credit(event.answered_by or relay.tier.name, relay.why)
                return _finished(event, waited_ms=(began - self._asked_at) * 1000)
            if isinstance(event, Broke):
                return self._go_on_here(event.error, first)
            self._round.take(event)
            self._save_part()

    def _go_on_here(self, error: EdgeError, first: ReplyReader) -> Finished | None:
        """Have the model here answer, or continue what broke off. Returns None if nothing of an answer was shown."""
        name, text = self.reply.answered_by, self._round.text
        if not text:
            self._round = first
            self._stay(f"No answer from {name}: {error.message} {self.model} answered instead.")
            return None
        self._stay(f"The answer of {name} broke off: {error.message} {self.model} continued it.")
        self._credit(f"{name}, then {self.model}", self.relay.why)
        self._text_broken_off = text
        return self._answer_once()

    def _stay(self, notice: str) -> None:
        self.reply.note(notice)
        self._stays = True
        self._credit(self.model, "")

    def _credit(self, name: str, why: str) -> None:
        """Say who answers, and why it is not the model here."""
        self.reply.answered_by, self.reply.escalated = name, why
        if self.saver is not None:
            self.saver.credit(name)

    def _request_now(self) -> Request:
        """Return the request as it was asked, with the tool calls and results since then."""
        request, n_more = self.relay.request, len(self._prompt) - len(self.request.prompt)
        if not n_more:
            return replace(request, timeout_s=None)
        options = replace(request.options, tool_choice="auto")
        return replace(request, timeout_s=None, options=options, prompt=[*request.prompt, *self._prompt[-n_more:]])

    @property
    def _is_held(self) -> bool:
        held = self.relay.held
        return held is not None and not held.is_open

    def _show(self, event: Prefilled | Decoded) -> None:
        if isinstance(event, Decoded) and self.relay.held is not None:
            self.relay.measure(event.logprobs)
            event = replace(event, logprobs=())
            if self.relay.why and self._generation is not None:
                self._generation.cancel()
        super()._show(event)

    def _save_part(self) -> None:
        if not self._is_held:
            super()._save_part()

    def _new_reader(self, parser: ReplyParser | None) -> ReplyReader:
        return ReplyReader(self.relay.held or self.reply, parser, self._text_broken_off)

    @property
    def _n_logprobs(self) -> int | None:
        return self.relay.n_logprobs

    @property
    def _text_begun(self) -> str:
        return super()._text_begun or self._text_broken_off


def _finished(ended: Ended, waited_ms: float) -> Finished:
    """Return the end of a round that another tier answered, with times from when it was asked."""
    timing = ended.timing
    first_ms = timing.first_token_ms + waited_ms if timing.first_token_ms else 0.0
    timing = replace(timing, first_token_ms=first_ms, total_ms=timing.total_ms + waited_ms)
    return Finished(ended.reason, ended.usage, timing, (), stopped_by=ended.stopped_by, is_partial=ended.is_partial)
