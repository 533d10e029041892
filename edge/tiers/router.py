"""Which questions are sent on to the next tier: by length, by rule, by how sure the first model is.

How sure a model is shows in its first answer: the entropy of the distributions that its tokens were drawn from, or how much a
second, drawn answer has in common with it. Neither knows what is true; both are cheap, and what a threshold of theirs is worth
is measured (benchmarks/escalation.py, docs/tiers.md).

Source: token entropy and agreement of samples as signals for cascades: Gupta et al., "Language Model Cascades: Token-Level
Uncertainty and Beyond" (2024); Yue et al., "Large Language Model Cascades with Mixture of Thoughts Representations" (2023).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from edge.errors import UsageError, kind_of

if TYPE_CHECKING:
    from edge.config.schema import EscalationSettings
    from edge.types import Message, TokenLogprob

__all__ = ["N_LIKELIEST", "EntropyMeter", "Route", "Router", "agreement_of", "entropy_of"]

N_LIKELIEST = 20
"""Tokens of each distribution that its entropy is computed from; the rest counts as one token."""

SECOND_TEMPERATURE = 0.7
"""Temperature of the second answer, where the first was not drawn with a higher one."""

Route: TypeAlias = "Callable[[Sequence[Message]], bool]"
"""A program's own rule: whether a prompt is to be sent on."""

_MOST_RULE_CHARS = 20_000


@dataclass(frozen=True)
class Router:
    """The rules. A question is sent on if one of them says so.

    Args:
        min_tokens: questions of at least so many tokens are sent on at once; None looks at no length.
        patterns: regular expressions; a question that one of them is found in is sent on at once. Case is ignored.
        route: a program's own rule, asked before the first model answers.
        max_entropy: answers whose tokens have a mean entropy above this, in nats, are dropped and the question is sent on;
            None measures none.
        min_agreement: the same for answers that have less in common with a second, drawn one, from 0 to 1.
        probe_tokens: so many tokens of the first answer are measured and held back; the rest is shown as it comes.

    Raises:
        UsageError: a pattern is not a regular expression, or the rule is not a function.
    """

    min_tokens: int | None = None
    patterns: tuple[str, ...] = ()
    route: Route | None = None
    max_entropy: float | None = None
    min_agreement: float | None = None
    probe_tokens: int = 32

    def __post_init__(self) -> None:
        if self.route is not None and not callable(self.route):
            raise UsageError(f"route is a function, not {kind_of(self.route)}.", "It takes messages and returns True or False.")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except (re.error, RecursionError) as error:
                what = f"{pattern[:80]!r} is not a regular expression: {error}."
                raise UsageError(what, "See escalation.patterns.") from None

    @classmethod
    def of(cls, settings: EscalationSettings, route: Route | None = None) -> Router:
        """Return the rules of the settings, and a program's own."""
        return cls(
            settings.min_tokens,
            settings.patterns,
            route,
            settings.max_entropy,
            settings.min_agreement,
            settings.probe_tokens,
        )

    @property
    def measures(self) -> bool:
        """True if it looks at the first model's answer."""
        return self.max_entropy is not None or self.min_agreement is not None

    def before(self, messages: Sequence[Message], count: Callable[[str], int]) -> str:
        """Return why a prompt is to be sent on before anybody answers; "" if it is not.

        Args:
            messages: the prompt; its last message of the user is the question.
            count: tokens of a text.
        """
        question = next((message.content for message in reversed(messages) if message.role == "user"), "")
        if self.route is not None and self.route(messages):
            return "the program's rule"
        for pattern in self.patterns:
            if re.search(pattern, question[:_MOST_RULE_CHARS], re.IGNORECASE):
                return f"the rule {pattern!r}"
        if self.min_tokens is not None and (n := count(question)) >= self.min_tokens:
            return f"length: {n:,} tokens"
        return ""

    def judge_entropy(self, entropy: float) -> str:
        """Return why an answer of this mean entropy, in nats, does not do; "" if it does."""
        if self.max_entropy is None or entropy <= self.max_entropy:
            return ""
        return f"entropy {entropy:.2f} above {self.max_entropy:.2f}"

    def judge_agreement(self, first: str, second: str) -> str:
        """Return why two answers do not agree enough; "" if they do."""
        if self.min_agreement is None or (share := agreement_of(first, second)) >= self.min_agreement:
            return ""
        return f"agreement {share:.2f} below {self.min_agreement:.2f}"

    def describe(self) -> list[str]:
        """Return the rules in words, one each."""
        found = [f"questions with {pattern!r}" for pattern in self.patterns]
        if self.route is not None:
            found.append("the program's rule")
        if self.min_tokens is not None:
            found.append(f"questions of {self.min_tokens:,} tokens or more")
        if self.max_entropy is not None:
            found.append(f"answers with an entropy above {self.max_entropy:g} nats over their first {self.probe_tokens} tokens")
        if self.min_agreement is not None:
            found.append(f"answers that agree by less than {self.min_agreement:g} with a second one")
        return found


class EntropyMeter:
    """The mean entropy of the tokens of an answer, as they come."""

    def __init__(self) -> None:
        self.n = 0
        self._sum = 0.0

    def add(self, tokens: Iterable[TokenLogprob]) -> None:
        """Take tokens with the likeliest ones in their place."""
        for token in tokens:
            self._sum += entropy_of(token)
            self.n += 1

    @property
    def mean(self) -> float:
        """Mean entropy of a token, in nats; 0 without any."""
        return self._sum / self.n if self.n else 0.0


def entropy_of(token: TokenLogprob) -> float:
    """Return the entropy of the distribution that a token was chosen from, in nats.

    What is not among `TokenLogprob.top` counts as one token, so this is a lower bound, and near where the likeliest ones are
    nearly all there is.
    """
    listed = [one.logprob for one in (token.top or (token,))]
    rest = max(0.0, 1.0 - math.fsum(math.exp(one) for one in listed))
    entropy = -math.fsum(math.exp(one) * one for one in listed if one > -math.inf)
    return max(0.0, entropy - (rest * math.log(rest) if rest > 1e-9 else 0.0))


def agreement_of(first: str, second: str) -> float:
    """Return how much two answers have in common: the F1 of their words, from 0 to 1, case and punctuation ignored."""
    one, other = (Counter(re.findall(r"\w+", text.casefold())) for text in (first, second))
    n_same = sum((one & other).values())
    if not one or not other:
        return float(one == other)
    return 2 * n_same / (sum(one.values()) + sum(other.values()))
