"""What of a conversation enters the context window when not all of it fits.

The system prompt and the newest turns stay; the oldest turns go, whole turns at a time (a message of the user and all that
answers it), replaced by a summary where one is wanted. When the window is full it is emptied down to half, so that the turns
after that only append to the prompt, and the KV cache keeps its prefix until the window is full again.

Where the kept part begins is a function of the conversation alone: the turns are replayed from the first, and at each message
that waited for an answer the window either had room or was emptied. So it is the same after a restart, going on with a
conversation never moves it back, and another branch of the conversation moves only what differs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge.errors import ContextFullError, UsageError
from edge.prompt.summary import SUMMARY_TITLE, Summary, update_summary
from edge.types import Message

__all__ = ["MessageCounter", "Window", "fit"]

Count = Callable[[Sequence[Message]], int]

_MAX_SUMMARY_TOKENS = 512
_EXCHANGE = (Message("user", "Hello"), Message("assistant", "Hello"))
_MARGIN = 2  # tokens by which text can come out longer where it meets other text
_POLICIES = ("drop", "summarise", "refuse")


@dataclass(frozen=True, slots=True)
class Window:
    """What the model is given to read.

    Attributes:
        messages: system prompt (with a summary, if there is one) and the turns that are kept.
        dropped: which of the messages given are left out.
        n_tokens: of the prompt made of `messages`.
        notice: what to tell the user; None where everything fits.
        is_new: the message that is to be answered now is what moved messages out.
        summary: what stands for the dropped messages, to be kept for the next turn.
    """

    messages: list[Message]
    dropped: range
    n_tokens: int
    notice: str | None = None
    is_new: bool = False
    summary: Summary | None = None


class MessageCounter:
    """Says how many tokens a message adds to a prompt, and remembers it. Slightly too many rather than too few.

    Args:
        count: tokens of the prompt made of some messages.
        max_entries: messages to remember.
    """

    def __init__(self, count: Count, max_entries: int = 4096) -> None:
        self._count = count
        self._max_entries = max_entries
        self._memo: OrderedDict[Message, int] = OrderedDict()
        self._base_sizes: dict[int, int] = {}

    def __call__(self, message: Message) -> int:
        known = self._memo.get(message)
        if known is None:
            # Counted behind other messages, since many templates take a message only where it belongs.
            base = _EXCHANGE[:1] if message.role == "assistant" else _EXCHANGE
            if len(base) not in self._base_sizes:
                self._base_sizes[len(base)] = self._count(base)
            known = max(0, self._count([*base, message]) - self._base_sizes[len(base)]) + _MARGIN
            self._memo[message] = known
        self._memo.move_to_end(message)
        while len(self._memo) > self._max_entries:
            self._memo.popitem(last=False)
        return known


def fit(
    messages: Sequence[Message],
    *,
    n_ctx: int,
    reserve: int,
    count: Count,
    policy: str = "drop",
    count_one: Callable[[Message], int] | None = None,
    summarise: Callable[[Sequence[Message]], str] | None = None,
    summary: Summary | None = None,
) -> Window:
    """Choose what the model reads.

    Args:
        messages: the conversation up to the message that is to be answered.
        n_ctx: context window in tokens.
        reserve: tokens to keep free for the reply.
        count: tokens of the prompt made of some messages, exactly. The last call is for the messages of the window.
        policy: "drop" leaves old turns out, "summarise" replaces them by a summary, "refuse" raises.
        count_one: tokens that one message adds to a prompt, and no fewer; a `MessageCounter` that is kept from turn to turn
            saves counting every message again. None makes one for this call.
        summarise: writes a summary of messages; what an earlier summary stands for comes as a system message in front. It may
            be given more than fits into the window at once, when a long conversation is continued with a small model. Without
            it "summarise" does what "drop" does, and the notice says so.
        summary: `Window.summary` of an earlier turn.

    Raises:
        ContextFullError: the last turn alone does not fit, or the policy is to refuse.
        UsageError: there is no message, an unknown policy, or no room at all beside the reply.
    """
    room = _check(messages, n_ctx, reserve, policy)
    if policy == "refuse" or not _is_far_above(messages, room, count_one):
        n_tokens = count(messages)
        if n_tokens <= room:
            return Window(list(messages), range(0), n_tokens)
        if policy == "refuse":
            raise ContextFullError(
                f"This conversation has {n_tokens:,} tokens; the context window of {n_ctx:,} holds {room:,} besides the reply.",
                'Start a new conversation, load the model with a larger context, or set window = "drop".',
            )
    counter = count_one or MessageCounter(count)
    n_head = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    head, rest = list(messages[:n_head]), list(messages[n_head:])
    starts = _turn_starts(rest)
    if not starts:
        raise _too_long("The system prompt has", count(messages), n_ctx, reserve)
    if policy == "drop":
        summarise = None
    n_summary = min(_MAX_SUMMARY_TOKENS, room // 4) if summarise is not None else 0
    n_fixed = max(0, count([*head, rest[0]]) - counter(rest[0]))
    kept, is_new = _replay(rest, starts, [counter(message) for message in rest], n_fixed, room, n_summary)
    earlier = messages[: n_head + _last_request(rest)]
    if kept and not is_new and not _is_far_above(earlier, room, counter):
        is_new = count(earlier) <= room  # the replay counts a little too much, and emptied a window that still had room

    while True:
        made: Summary | None = None
        front, kept_messages = head, rest[starts[kept] :]
        if summarise is not None and kept > 0:
            made = update_summary(summary, rest[: starts[kept]], summarise, counter, n_summary)
            front = _with_summary(head, made.text)
        n_tokens = count([*front, *kept_messages])
        if n_tokens <= room:
            break
        # Only where count_one promised too little: go on, turn by turn, and at last without the summary.
        if kept + 1 < len(starts):
            kept, is_new = kept + 1, True
        elif made is not None:
            summarise = None
        else:
            raise _too_long(_subject(kept_messages), n_tokens - n_fixed, n_ctx, reserve, n_fixed)
    dropped = range(n_head, n_head + starts[kept])
    notice = _notice(dropped, sum(map(counter, rest[: starts[kept]])), n_ctx, made) if dropped else None
    return Window([*front, *kept_messages], dropped, n_tokens, notice, is_new, made)


def _check(messages: Sequence[Message], n_ctx: int, reserve: int, policy: str) -> int:
    """The room that a prompt has, in tokens."""
    if policy not in _POLICIES:
        raise UsageError(f"There is no way {policy!r} to handle a full window.", f"Known are: {', '.join(_POLICIES)}.")
    if not messages:
        raise UsageError("There is no message to answer.", "Give at least one message.")
    if reserve >= n_ctx:
        raise UsageError(
            f"A reply of {reserve:,} tokens leaves no room in a context window of {n_ctx:,}.", "Ask for a shorter reply."
        )
    return n_ctx - reserve


def _is_far_above(messages: Sequence[Message], room: int, count_one: Callable[[Message], int] | None) -> bool:
    """Whether messages need so much more room that they need not be counted exactly."""
    return count_one is not None and sum(map(count_one, messages)) > 2 * room


def _last_request(messages: Sequence[Message]) -> int:
    """How many messages there were when an answer was asked for the time before this one."""
    return next((n for n in range(len(messages) - 1, 0, -1) if messages[n - 1].role != "assistant"), 0)


def _turn_starts(messages: Sequence[Message]) -> list[int]:
    """Where turns begin: at each message of the user, and at the very first message."""
    return [n for n, message in enumerate(messages) if n == 0 or message.role == "user"]


def _replay(
    messages: Sequence[Message], starts: Sequence[int], sizes: Sequence[int], n_fixed: int, room: int, n_summary: int
) -> tuple[int, bool]:
    """Go through the conversation as it happened.

    Args:
        messages: without the system prompt.
        starts: index of each turn's first message.
        sizes: tokens of each message.
        n_fixed: tokens that are always there.
        room: tokens that the prompt may have.
        n_summary: tokens that a summary takes once turns were dropped.

    Returns:
        (the first turn that is kept, whether the last message moved it).
    """
    ends = [*starts[1:], len(messages)]
    turn_sizes = [sum(sizes[start:end]) for start, end in zip(starts, ends, strict=True)]
    kept, turn, held = 0, -1, n_fixed
    is_new = False
    for n, (message, size) in enumerate(zip(messages, sizes, strict=True)):
        if turn + 1 < len(starts) and starts[turn + 1] == n:
            turn += 1
        held += size
        is_new = False
        if message.role == "assistant" and n < len(messages) - 1:
            continue  # nothing was asked of the model here
        if held + (n_summary if kept else 0) > room:
            before = kept
            while kept < turn and held + n_summary > room // 2:
                held -= turn_sizes[kept]
                kept += 1
            is_new = kept > before
    return kept, is_new


def _with_summary(head: Sequence[Message], text: str) -> list[Message]:
    body = f"{SUMMARY_TITLE}\n{text}"
    if not head:
        return [Message("system", body)]
    return [*head[:-1], replace(head[-1], content=f"{head[-1].content}\n\n{body}")]


def _notice(dropped: range, n_tokens: int, n_ctx: int, summary: Summary | None) -> str:
    what = "the oldest message is" if len(dropped) == 1 else f"the oldest {len(dropped):,} messages are"
    how = "replaced by a summary in what the model reads" if summary else "left out of what the model reads"
    they = "It stays" if len(dropped) == 1 else "They stay"
    return (
        f"This conversation is longer than the context window of {n_ctx:,} tokens: {what} (about {n_tokens:,} tokens) {how}. "
        f"{they} in the conversation."
    )


def _subject(messages: Sequence[Message]) -> str:
    return "This message has" if len(messages) == 1 else "This message, with what belongs to it, has"


def _too_long(subject: str, n_tokens: int, n_ctx: int, reserve: int, n_fixed: int = 0) -> ContextFullError:
    fixed = f" and {n_fixed:,} for the system prompt" if n_fixed else ""
    needed = 1024
    while needed < n_tokens + n_fixed + reserve:
        needed *= 2
    return ContextFullError(
        f"{subject} {n_tokens:,} tokens. The context window has {n_ctx:,}, of which {reserve:,} are kept for the reply{fixed}.",
        f"Shorten it, or load the model with a larger context (--context {needed}).",
    )
