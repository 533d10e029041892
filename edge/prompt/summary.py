"""Summaries of the messages that no longer fit into the context window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edge.types import Message, Sampling

if TYPE_CHECKING:
    from edge.prompt.prompting import Prompting

__all__ = ["SUMMARY_TITLE", "Summariser", "Summary", "newest_summary", "update_summary"]

SUMMARY_TITLE = "Summary of the earlier conversation:"
_SO_FAR = "Summary of what was said before:"
_TASK = "Summarise this conversation in a few sentences. Keep names, numbers, decisions and open questions."
_FAR_TOO_LONG = 16
"""A message of that many times the tokens that can be summarised is not counted exactly."""
_SAMPLING = Sampling(temperature=0, max_tokens=256, repeat_penalty=1.1)


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary of messages that no longer fit, to be passed to the next `fit`.

    Attributes:
        n_messages: number of messages it stands for.
        digest: of these messages, so that it is never used for others.
        text: the summary.
    """

    n_messages: int
    digest: str
    text: str


class Summariser:
    """Has the model summarise messages, as many at a time as it can read.

    Args:
        prompting: makes the prompts.
        n_ctx: context window, in tokens.
        generate: returns the model's answer to a prompt, given as token ids.
        on_notice: called with what the user should know.
    """

    def __init__(
        self,
        prompting: Prompting,
        n_ctx: int,
        generate: Callable[[list[int], Sampling], str],
        on_notice: Callable[[str], None],
    ) -> None:
        self._prompting = prompting
        self._room = n_ctx // 2
        self._generate = generate
        self._on_notice = on_notice

    def __call__(self, messages: Sequence[Message]) -> str:
        """Return a summary of the messages."""
        summary, part, size = "", list[str](), 0
        for message in messages:
            line = f"{message.role}: {message.content}"
            n_least = self._prompting.at_least(line, self._room * _FAR_TOO_LONG)
            n_tokens = n_least or len(self._prompting.tokenize(line))
            if part and size + n_tokens > self._room:
                summary, part, size = self._continue(summary, part), [], 0
            is_long = n_tokens > self._room
            part.append(self._truncate(message, line, n_tokens, is_least=n_least is not None) if is_long else line)
            size += min(n_tokens, self._room)
        return self._continue(summary, part)

    def _truncate(self, message: Message, line: str, n_tokens: int, *, is_least: bool) -> str:
        """Return the first part of a message that is too long, with a notice for the user and a mark for the model."""
        first = line[: self._room * _FAR_TOO_LONG] if is_least else line
        n_first = len(self._prompting.tokenize(first)) if is_least else n_tokens
        n_chars = len(first) * self._room // max(n_first, self._room)
        whose = {"user": "of yours", "assistant": "of the model"}.get(message.role, f"({message.role})")
        count = f"{'more than ' if is_least else ''}{n_tokens:,}"
        self._on_notice(
            f"A message {whose} has {count} tokens, too many to be summarised as a whole: of its "
            f"{len(message.content):,} letters only about the first {n_chars:,} are. It stays in the conversation."
        )
        return f"{line[:n_chars]} [the rest of this message is left out]"

    def _continue(self, summary: str, lines: Sequence[str]) -> str:
        so_far = f"{_SO_FAR}\n{summary}\n\n" if summary else ""
        question = Message("user", so_far + "\n\n".join(lines) + f"\n\n{_TASK}")
        return self._generate(self._prompting.encode([*self._prompting.system_message(""), question]), _SAMPLING)


def newest_summary(records: Sequence[Mapping[str, Any]]) -> Summary | None:
    """Return the summary in the newest record that has one. Records are input from outside, so its shape is checked."""
    stored = next((record["summary"] for record in reversed(records) if record.get("summary") is not None), None)
    try:
        return msgspec.convert(stored, Summary) if stored is not None else None
    except msgspec.ValidationError:
        return None  # the summary is written again


def update_summary(
    known: Summary | None,
    dropped: Sequence[Message],
    summarise: Callable[[Sequence[Message]], str],
    count_one: Callable[[Message], int],
    n_tokens: int,
) -> Summary:
    """Return a summary of the dropped messages: the known one, one that continues it, or a new one.

    Args:
        known: of an earlier turn.
        dropped: the messages it is to stand for.
        summarise: writes a summary of messages.
        count_one: tokens that one message adds to a prompt.
        n_tokens: the most that the summary may add.
    """
    digest = _digest(dropped)
    if known is not None and known.digest == digest:
        return known
    todo = list(dropped)
    if known is not None and known.n_messages < len(dropped) and known.digest == _digest(dropped[: known.n_messages]):
        todo = [Message("system", f"{SUMMARY_TITLE}\n{known.text}"), *dropped[known.n_messages :]]
    text = summarise(todo).strip()
    words = text.split(" ")
    while count_one(Message("system", f"{SUMMARY_TITLE}\n{text}")) > n_tokens and len(words) > 1:
        words = words[: len(words) * 3 // 4]
        text = " ".join(words) + " …"
    return Summary(len(dropped), digest, text)


def _digest(messages: Iterable[Message]) -> str:
    import hashlib  # slow to import, and rarely needed

    digest = hashlib.sha256()
    for message in messages:
        for text in (message.role, message.name or "", message.content):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
