"""How much replies repeat themselves: words that come again in the same order, and replies that end in a loop.

Source: the share of repeated n-grams is seq-rep-4 of Welleck et al., Neural text generation with unlikelihood training, 2019;
loops are found as edge finds them in a chat (edge.prompt.repetition).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files

import msgspec

from edge.prompt.repetition import RepetitionDetector
from edge_convert.evaluate.passages import read_texts
from edge_convert.evaluate.tasks.asks import Ask
from edge_convert.evaluate.tasks.intervals import Mean, Share, mean_of, share_of

__all__ = ["RepetitionResult", "ask", "compare", "is_loop", "read_prompts", "repeated_share"]

MAX_TOKENS = 192
_N = 4  # words of an n-gram
_MAX_REPEATS = 3
_FEWEST_WORDS = 20


class RepetitionResult(msgspec.Struct, frozen=True, kw_only=True):
    """How much the replies of a model repeat themselves.

    Attributes:
        loops: share of the replies that end in a loop.
        repeated: share of the 4-grams of a reply that it had before, mean over the replies.
        teacher_loops: the teacher's; None without a teacher.
        teacher_repeated: the teacher's.
    """

    loops: Share
    repeated: Mean
    teacher_loops: Share | None = None
    teacher_repeated: Mean | None = None


def read_prompts() -> list[str]:
    """Read prompts that ask for long replies: those of the card's chat texts, and more."""
    more: list[str] = json.loads((files("edge_convert.evaluate") / "texts" / "open.json").read_text(encoding="utf-8"))
    return [*read_texts()[1], *more]


def ask(prompt: str) -> Ask:
    """Return a prompt with the length that its reply may have."""
    return Ask(messages=(("user", prompt),), max_tokens=MAX_TOKENS)


def compare(replies: Sequence[str], teacher: Sequence[str] | None = None) -> RepetitionResult:
    """Measure replies, and the teacher's. Those of fewer than 20 words are left out: they are too short to repeat anything."""
    replies, teacher = _long(replies), None if teacher is None else _long(teacher)
    return RepetitionResult(
        loops=share_of(map(is_loop, replies)),
        repeated=mean_of([repeated_share(reply) for reply in replies]),
        teacher_loops=None if teacher is None else share_of(map(is_loop, teacher)),
        teacher_repeated=None if teacher is None else mean_of([repeated_share(reply) for reply in teacher]),
    )


def _long(replies: Sequence[str]) -> list[str]:
    return [reply for reply in replies if len(re.findall(r"\w+", reply)) >= _FEWEST_WORDS]


def is_loop(reply: str) -> bool:
    """Return whether a reply repeats a passage over and over."""
    return RepetitionDetector(_MAX_REPEATS).feed(reply)


def repeated_share(reply: str) -> float:
    """Return the share of a reply's 4-grams of words that came in it before; 0 if it is shorter than that."""
    words = re.findall(r"\w+", reply.casefold())
    grams = list(zip(*(words[start:] for start in range(_N)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
