"""Chooses the messages that enter the context window when not all of them fit.

The system prompt and the newest turns stay; the oldest turns go, whole turns at a time (a message of the user and all that
answers it), replaced by a summary where one is wanted. A full window is emptied down to half, so that the next turns only
append to the prompt, and the KV cache keeps its prefix until the window is full again.

Where the window begins depends on the conversation alone: the turns are replayed from the first, and at each message that
waited for an answer the window either had room or was emptied. So it is the same after a restart, continuing a conversation
never moves it back, and another branch of the conversation moves only what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from edge.errors import ContextFullError, UsageError
from edge.prompt.summary import SUMMARY_TITLE, Summary, update_summary
from edge.types import Message

__all__ = ["Window", "fit", "message_counter"]

Count = Callable[[Sequence[Message]], int]

_MAX_SUMMARY_TOKENS = 512
_EXCHANGE = (Message("user", "Hello"), Message("assistant", "Hello"))
_MARGIN = 2  # tokens by which text can come out longer where it meets other text
_POLICIES = ("drop", "summarise", "refuse")


@dataclass(frozen=True, slots=True)
class _Room:
    """The context window and the part of it that a prompt may have, in tokens; see `fit`."""

    n_ctx: int
    reserve: int
    n_ctx_train: int

    @property
    def n_prompt(self) -> int:
        return self.n_ctx - self.reserve

    def refusal(self, n_tokens: int) -> ContextFullError:
        """Return the error for a conversation that is longer, where nothing is to be left out."""
        needed, larger = self._larger(n_tokens + self.reserve)
        return ContextFullError(
            f"This conversation has {n_tokens:,} tokens; the context window of {self.n_ctx:,} holds {self.n_prompt:,} besides "
            "the reply.",
            f'Start a new conversation, {f"{larger}, " if larger else ""}or set window = "drop".',
            needed=needed,
            n_prompt=n_tokens,
            n_ctx=self.n_ctx,
        )

    def too_long(self, subject: str, n_tokens: int, n_fixed: int = 0) -> ContextFullError:
        """Return the error for a turn that alone does not fit, beside `n_fixed` tokens of the system prompt."""
        fixed = f" and {n_fixed:,} for the system prompt" if n_fixed else ""
        needed, larger = self._larger(n_tokens + n_fixed + self.reserve)
        return ContextFullError(
            f"{subject} {n_tokens:,} tokens. The context window has {self.n_ctx:,}, of which {self.reserve:,} are kept for the "
            f"reply{fixed}.",
            f"Shorten it, or {larger or 'send it in parts'}.",
            needed=needed,
            n_prompt=n_tokens + n_fixed,
            n_ctx=self.n_ctx,
        )

    def _larger(self, n_tokens: int) -> tuple[int, str]:
        """Return a window that holds so many tokens, and the advice to use it; "" if the model was not trained for one."""
        needed = 1024
        while needed < n_tokens:
            needed *= 2
        if self.n_ctx_train and needed > self.n_ctx_train >= n_tokens:
            needed = self.n_ctx_train
        is_trained = not self.n_ctx_train or needed <= self.n_ctx_train
        return needed, f"load the model with a larger context (--context {needed})" if is_trained else ""


@dataclass(frozen=True, slots=True)
class Window:
    """The messages that the model reads.

    Attributes:
        messages: system prompt (with a summary, if there is one) and the newest turns.
        dropped: indices of the messages left out.
        n_tokens: of the prompt made of `messages`.
        notice: for the user; None where everything fits.
        summary: of the dropped messages, for the next turn.
    """

    messages: list[Message]
    dropped: range
    n_tokens: int
    notice: str | None = None
    summary: Summary | None = None


def message_counter(count: Count, max_entries: int = 4096) -> Callable[[Message], int]:
    """Return a function that counts the tokens a message adds to a prompt, slightly too many rather than too few.

    Args:
        count: returns the tokens of the prompt made of some messages.
        max_entries: messages whose tokens are remembered.
    """

    @cache
    def count_base(n_messages: int) -> int:
        return count(_EXCHANGE[:n_messages])

    @lru_cache(maxsize=max_entries)
    def count_one(message: Message) -> int:
        # Counted behind other messages, since many templates take a message only where it belongs.
        n_base = 1 if message.role == "assistant" else 2
        return max(0, count([*_EXCHANGE[:n_base], message]) - count_base(n_base)) + _MARGIN

    return count_one


def fit(
    messages: Sequence[Message],
    *,
    n_ctx: int,
    reserve: int,
    count: Count,
    count_one: Callable[[Message], int],
    policy: str = "drop",
    summarise: Callable[[Sequence[Message]], str] | None = None,
    summary: Summary | None = None,
    n_ctx_train: int = 0,
) -> Window:
    """Choose the messages that the model reads.

    Args:
        messages: the conversation up to the message that is to be answered.
        n_ctx: context window in tokens.
        reserve: tokens to keep free for the reply.
        count: returns the exact tokens of the prompt made of some messages. The last call is for the messages of the window.
        count_one: returns the tokens that one message adds to a prompt, or more; see `message_counter`.
        policy: "drop" leaves old turns out, "summarise" replaces them by a summary, "refuse" raises.
        summarise: writes a summary of messages, an earlier summary in front as a system message. It may be given more than
            fits into the window, when a long conversation is continued with a small model. Without it "summarise" drops.
        summary: `Window.summary` of an earlier turn.
        n_ctx_train: context that the model was trained for, in tokens, which is the largest to recommend; 0 if unknown.

    Raises:
        ContextFullError: the last turn alone does not fit, or the policy is to refuse.
        UsageError: there is no message, an unknown policy, or no room at all beside the reply.
    """
    _check(messages, n_ctx, reserve, policy)
    window = _Room(n_ctx, reserve, n_ctx_train)
    room = window.n_prompt
    if (whole := _whole(messages, window, count, count_one, policy)) is not None:
        return whole
    head, rest = _split_head(messages)
    starts = _turn_starts(rest)
    if not starts:
        raise window.too_long("The system prompt has", count(messages))
    summarise = None if policy == "drop" else summarise
    n_summary = min(_MAX_SUMMARY_TOKENS, room // 4) if summarise is not None else 0
    sizes = [count_one(message) for message in rest]
    probe = rest[0] if sizes[0] <= room else replace(rest[0], content="Hello")  # a far too large text is never tokenised
    n_fixed = max(0, count([*head, probe]) - count_one(probe))
    first = _replay(rest, starts, sizes, n_fixed, room, n_summary)
    while True:
        gone, kept = rest[: starts[first]], rest[starts[first] :]
        made = update_summary(summary, gone, summarise, count_one, n_summary) if summarise is not None and gone else None
        front = head if made is None else _with_summary(head, made.text)
        n_tokens = count([*front, *kept])
        if n_tokens <= room:
            notice = _notice(len(gone), sum(sizes[: len(gone)]), n_ctx, made) if gone else None
            return Window([*front, *kept], range(len(head), len(head) + len(gone)), n_tokens, notice, made)
        # Only where count_one returned too little: drop turn by turn, and at last the summary.
        if first + 1 < len(starts):
            first += 1
        elif made is not None:
            summarise = None
        else:
            raise window.too_long(_subject(kept), n_tokens - n_fixed, n_fixed)


def _check(messages: Sequence[Message], n_ctx: int, reserve: int, policy: str) -> None:
    if policy not in _POLICIES:
        raise UsageError(f"{policy!r} is not a way to handle a full window.", f"Known are: {', '.join(_POLICIES)}.")
    if not messages:
        raise UsageError("There is no message to answer.", "Give at least one message.")
    if reserve >= n_ctx:
        raise UsageError(
            f"A reply of {reserve:,} tokens leaves no room in a context window of {n_ctx:,}.", "Ask for a shorter reply."
        )


def _whole(
    messages: Sequence[Message], window: _Room, count: Count, count_one: Callable[[Message], int], policy: str
) -> Window | None:
    """Return a window of all messages; None if they do not fit."""
    if policy != "refuse" and sum(map(count_one, messages)) > 2 * window.n_prompt:
        return None  # far above, an exact count is not needed
    n_tokens = count(messages)
    if n_tokens <= window.n_prompt:
        return Window(list(messages), range(0), n_tokens)
    if policy == "refuse":
        raise window.refusal(n_tokens)
    return None


def _split_head(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """Split a conversation into its system prompt and the rest."""
    n_head = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    return list(messages[:n_head]), list(messages[n_head:])


def _turn_starts(messages: Sequence[Message]) -> list[int]:
    """Return where turns begin: at each message of the user, and at the first message."""
    return [n for n, message in enumerate(messages) if n == 0 or message.role == "user"]


def _replay(
    messages: Sequence[Message], starts: Sequence[int], sizes: Sequence[int], n_fixed: int, room: int, n_summary: int
) -> int:
    """Go through the conversation as it happened, and return the first turn that is kept.

    Args:
        messages: without the system prompt.
        starts: index of each turn's first message.
        sizes: tokens of each message.
        n_fixed: tokens that are always there.
        room: tokens that the prompt may have.
        n_summary: tokens that a summary takes once turns were dropped.
    """
    ends = [*starts[1:], len(messages)]
    turn_sizes = [sum(sizes[start:end]) for start, end in zip(starts, ends, strict=True)]
    first, turn, held = 0, -1, n_fixed
    for n, (message, size) in enumerate(zip(messages, sizes, strict=True)):
        if turn + 1 < len(starts) and starts[turn + 1] == n:
            turn += 1
        held += size
        if message.role == "assistant" and n < len(messages) - 1:
            continue  # nothing was asked of the model here
        if held + (n_summary if first else 0) > room:
            while first < turn and held + n_summary > room // 2:
                held -= turn_sizes[first]
                first += 1
    return first


def _with_summary(head: Sequence[Message], text: str) -> list[Message]:
    body = f"{SUMMARY_TITLE}\n{text}"
    if not head:
        return [Message("system", body)]
    return [*head[:-1], replace(head[-1], content=f"{head[-1].content}\n\n{body}")]


def _notice(n_dropped: int, n_tokens: int, n_ctx: int, summary: Summary | None) -> str:
    what = "the oldest message is" if n_dropped == 1 else f"the oldest {n_dropped:,} messages are"
    how = "replaced by a summary in what the model reads" if summary else "left out of what the model reads"
    they = "It stays" if n_dropped == 1 else "They stay"
    return (
        f"This conversation is longer than the context window of {n_ctx:,} tokens: {what} (about {n_tokens:,} tokens) {how}. "
        f"{they} in the conversation."
    )


def _subject(messages: Sequence[Message]) -> str:
    return "This message has" if len(messages) == 1 else "This message, with what belongs to it, has"
