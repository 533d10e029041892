"""Frozen values that all rooms use, validated where they are made."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from edge.errors import UsageError, kind_of
from edge.messages import Message, Role, Tool, ToolCall

__all__ = [
    "NO_SYSTEM",
    "Chosen",
    "FinishReason",
    "Message",
    "PromptSize",
    "Role",
    "Sampling",
    "SamplingOptions",
    "Timing",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Usage",
    "kind_of",
]

NO_SYSTEM = "none"
"""As a system prompt: none at all, also not the one that a model's template has by itself."""

FinishReason = Literal["stop", "length", "repetition", "cancelled", "error"]


class _Given:
    """Notes which fields a Sampling was made with. No field itself, so that it is neither compared, shown nor copied as one."""

    __slots__ = ("_given",)

    if TYPE_CHECKING:
        _given: frozenset[str]
    else:

        def __new__(cls, *values: object, **named: object) -> Any:
            """Note the names of all values; `__init__` gets them next."""
            new = object.__new__(cls)
            names = [one.name for one in fields(cls)[: len(values)]]
            object.__setattr__(new, "_given", frozenset(names) | named.keys())
            return new

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Sampling], tuple[dict[str, Any]]]:
        return _make_sampling, ({name: getattr(self, name) for name in self._given},)


@dataclass(frozen=True, slots=True)
class Sampling(_Given):
    """Settings of the sampler. Names, order and meaning are those of llama.cpp's sampler chain: logit bias, penalties, DRY,
    top-k, typical-p, top-p, min-p, XTC, temperature, draw.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it (>= 0).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities add up to p (0 to 1; 1 keeps all).
        min_p: drop tokens less likely than min_p times the likeliest (0 to 1; 0 keeps all).
        typical_p: locally typical sampling (0 to 1; 1 turns it off).
        repeat_penalty: divides the logits of tokens seen in the last `repeat_last_n` (> 0; 1 turns it off).
        repeat_last_n: number of newest tokens that the penalties look at; -1 is the whole context, 0 none.
        frequency_penalty: subtracted per earlier occurrence (0 turns it off).
        presence_penalty: subtracted once when the token occurred (0 turns it off).
        dry_multiplier: strength of DRY, which punishes continuing a repeated sequence (0 turns it off).
        dry_base: base of DRY's exponential.
        dry_allowed_length: repeats up to this many tokens go unpunished.
        dry_penalty_last_n: number of newest tokens that DRY looks at; -1 is the whole context.
        dry_sequence_breakers: texts that end a repeated sequence.
        xtc_probability: chance that XTC drops all but the least likely of the top tokens (0 turns it off).
        xtc_threshold: the probability a token must have for XTC to count it as a top token.
        seed: makes the draw repeatable while no other reply runs, which can change the engine's last bits, and thus a token.
            None takes a fresh one.
        logit_bias: token id -> value added to its logit; -inf forbids the token.
        stop: texts that end the reply; they may span tokens and are not part of the reply.
        max_tokens: length of the longest reply in tokens; None is until the model stops or the window is full.
        max_repeats: how often a reply may repeat a long passage in a row, short ones more often, before it is stopped as a loop
            (finish reason "repetition"); 0 never stops one. See `edge.prompt.repetition`.

    Numbers of any library become int and float, `stop="END"` becomes `("END",)`, and text keys of `logit_bias` ids.

    What is not given inherits: a call's sampling from the conversation's, that from the assistant's, and that from the model's
    advice in the catalogue; see `over`. The defaults hold where nobody says anything.

    Raises:
        UsageError: a value has the wrong type, or is out of its range.

    Source: llama.cpp `common/sampling.cpp`; DRY by p-e-w; XTC by p-e-w; min-p by Nguyen et al., 2024.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    max_repeats: int = 0

    @property
    def is_greedy(self) -> bool:
        """True if the likeliest token is always taken. Dividing by a temperature near 0 would overflow float32."""
        return self.temperature < 1e-6

    @property
    def given(self) -> frozenset[str]:
        """Names of the fields that were given, also with their default value; the others inherit."""
        return self._given

    def over(self, base: Sampling) -> Sampling:
        """Return the values given here, and those given in `base` for the rest."""
        if not isinstance(base, Sampling):
            raise UsageError(f"base is an edge.Sampling, not {kind_of(base)}.", "For example: edge.Sampling()")
        return Sampling(**{name: getattr(self if name in self._given else base, name) for name in self._given | base._given})

    def __post_init__(self) -> None:
        for name, (kind, low, high, hint) in _NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            object.__setattr__(self, name, _number(name, value, kind, low, high, hint))
        for name in ("stop", "dry_sequence_breakers"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))


class SamplingOptions(TypedDict, total=False):
    """The fields of Sampling as keywords of `send`, `generate` and others."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    repeat_last_n: int
    frequency_penalty: float
    presence_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: str | Sequence[str]
    xtc_probability: float
    xtc_threshold: float
    seed: int | None
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    max_tokens: int | None
    max_repeats: int


def _make_sampling(values: dict[str, Any]) -> Sampling:
    """Make a Sampling again; pickle and copy call this."""
    return Sampling(**values)


_INT, _FLOAT = 2**31 - 1, 3.4e38  # what engines can hold; larger values would wrap round, or be infinite, without a word
_NUMBERS: dict[str, tuple[type[int] | type[float], float, float, str]] = {
    "temperature": (float, 0, _FLOAT, "0 always takes the likeliest token."),
    "top_k": (int, 0, _INT, "0 turns it off."),
    "top_p": (float, 0, 1, "1 turns it off."),
    "min_p": (float, 0, 1, "0 turns it off."),
    "typical_p": (float, 0, 1, "1 turns it off."),
    "repeat_penalty": (float, 1e-30, _FLOAT, "1 turns it off."),
    "repeat_last_n": (int, -1, _INT, "-1 is the whole context."),
    "frequency_penalty": (float, -_FLOAT, _FLOAT, "0 turns it off."),
    "presence_penalty": (float, -_FLOAT, _FLOAT, "0 turns it off."),
    "dry_multiplier": (float, 0, _FLOAT, "0 turns it off."),
    "dry_base": (float, 1, _FLOAT, "1.75 is usual."),
    "dry_allowed_length": (int, 0, _INT, "2 is usual."),
    "dry_penalty_last_n": (int, -1, _INT, "-1 is the whole context."),
    "xtc_probability": (float, 0, 1, "0 turns it off."),
    "xtc_threshold": (float, 0, 1, "0.1 is usual."),
    "seed": (int, -(2**63), 2**64 - 1, "None takes a fresh one."),
    "max_tokens": (int, 1, _INT, "Ask for at least one token; None sets no limit."),
    "max_repeats": (int, 0, _INT, "0 turns it off."),
}
_MAY_BE_NONE = ("seed", "max_tokens")


def _number(name: str, value: object, kind: type[int] | type[float], low: float, high: float, hint: str) -> int | float:
    """Return a number as a plain int or float, whatever library it comes from."""
    number: Any = None
    if kind is int and not isinstance(value, bool) and hasattr(value, "__index__"):
        number = operator.index(value)
    elif kind is float and not isinstance(value, bool) and isinstance(value, Real | Decimal):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
    if number is None:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is {wanted}, not {kind_of(value)}.", hint)
    if not low <= number <= high:  # NaN fails every comparison
        bounds = f"from {low:g} up" if high in (_INT, _FLOAT) else f"from {low:g} to {high:g}"
        raise UsageError(f"{name} is {value}, which is out of range.", f"Use a value {bounds}. {hint}")
    return kind(number)


def _texts(name: str, value: object) -> tuple[str, ...]:
    """Return texts as a tuple. A single str is one text, not its letters."""
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if texts is None or isinstance(value, bytes | Mapping) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{name} takes texts, not {kind_of(value)}.", f'For example: {name}=("END",)')
    if not all(texts):
        raise UsageError(f"{name} has an empty text, which every reply contains.", "Leave it out.")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} has a text that is not Unicode ({error.reason}).", "Remove lone surrogates.") from None
    return texts


def _biases(value: object) -> dict[int, float]:
    """Return biases of the logits by token id. JSON has text keys only, so "5" is token 5."""
    if not isinstance(value, Mapping):
        raise UsageError(f"logit_bias maps token ids to numbers; it is not {kind_of(value)}.", "For example: {1234: -5.0}")
    biases: dict[int, float] = {}
    for token, bias in value.items():
        key = int(token) if isinstance(token, str) and token.isascii() and token.isdecimal() else token
        name, hint = "A key of logit_bias", "It is the id of a token."
        number = int(_number(name, key, int, 0, _INT, hint))
        if bias == float("-inf"):
            biases[number] = bias
        else:
            biases[number] = _number(f"logit_bias[{number}]", bias, float, -_FLOAT, _FLOAT, "-inf forbids the token.")
    return biases


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn.

    Attributes:
        n_prompt: tokens of the prompt.
        n_reused: tokens of the prompt that were in the KV cache or on the disk and not computed.
        n_generated: tokens of the reply.
        n_restored: reused tokens that came from the disk.
        saved_ms: estimated time to compute the reused tokens, less the time to restore them.
        n_foreign: restored tokens that another engine had computed: near to what this one computes, not equal.
        is_answer_cached: nothing was computed: the same request was answered before.
        n_drafted: draft tokens that were computed in the hope that the reply would go on with them.
        n_accepted: draft tokens that the reply went on with.
        draft_saved_ms: estimated time that drafts saved; negative where they cost some.
        n_forced: generated tokens that a schema or grammar left no choice about, and that took no pass of their own.
    """

    n_prompt: int = 0
    n_reused: int = 0
    n_generated: int = 0
    n_restored: int = 0
    saved_ms: float = 0.0
    is_answer_cached: bool = False
    n_drafted: int = 0
    n_accepted: int = 0
    draft_saved_ms: float = 0.0
    n_forced: int = 0
    n_foreign: int = 0

    @property
    def n_computed(self) -> int:
        """Prompt tokens that were computed."""
        return self.n_prompt - self.n_reused

    @staticmethod
    def total(usages: Iterable[Usage]) -> Usage:
        """Add up the usage of several replies to one prompt, which counts once; see `Assistant.generate_choices`.

        Args:
            usages: at least one; what was reused is that of the reply which prefilled the prompt.
        """
        found = list(usages)
        first = min(found, key=lambda one: one.n_reused)
        sums = ("n_generated", "n_drafted", "n_accepted", "draft_saved_ms", "n_forced")
        return replace(first, **{name: sum(getattr(one, name) for one in found) for name in sums})


@dataclass(frozen=True, slots=True)
class PromptSize:
    """Size of a prompt, as `Conversation.count` and `Assistant.count` return it.

    Attributes:
        n_tokens: tokens of the prompt, with all that the chat template adds.
        n_ctx: context window, which the reply has to fit as well, in tokens.
    """

    n_tokens: int
    n_ctx: int

    @property
    def n_left(self) -> int:
        """Tokens that are left for the reply; below 0 if the prompt does not fit."""
        return self.n_ctx - self.n_tokens


@dataclass(frozen=True, slots=True)
class Chosen:
    """One of several answers, as `Assistant.choose` returns it. Written as text, it is the answer.

    Attributes:
        text: the likeliest answer.
        probabilities: of each answer, given that it is one of them; they add up to 1.
        total: the probability that the model gives one of these answers, of all that it might say. Small where it would rather
            say something else, so that the choice means little.
    """

    text: str
    probabilities: Mapping[str, float]
    total: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was where it was chosen, by the model alone: before the temperature and all other sampling settings.

    Attributes:
        token: its id.
        data: its bytes. A character may be spread over several tokens; a special token is written out, though the text of a
            reply leaves it out.
        logprob: natural logarithm of its probability, at most 0.
        top: the likeliest tokens in its place, the likeliest first; they have no `top` themselves.
    """

    token: int
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """Its bytes as text; U+FFFD for parts of characters."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one turn, in milliseconds of wall clock.

    Attributes:
        queue_ms: waiting for the engine while another turn used it.
        tokenize_ms: template and tokenizer.
        prefill_ms: computing the part of the prompt that was not in the cache.
        first_token_ms: from the request to the first text that can be shown; 0 without any.
        decode_ms: from the first token to the end, also while its text was withheld in case a stop text followed.
        total_ms: from the request to the end.
    """

    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0

    def tokens_per_s(self, n_generated: int) -> float:
        """Return the decode speed. The first token belongs to prefill and does not count; 0 with fewer than two tokens."""
        return (n_generated - 1) * 1000.0 / self.decode_ms if n_generated > 1 and self.decode_ms > 0 else 0.0
