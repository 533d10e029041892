"""Instructions that code can check: how many prompts a model answers in the form that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import msgspec

from edge_convert.evaluate.tasks.asks import Ask
from edge_convert.evaluate.tasks.checks import Check
from edge_convert.evaluate.tasks.intervals import Share, share_of

__all__ = ["Instruction", "InstructionsResult", "ask", "compare", "is_followed", "read_instructions"]

MAX_TOKENS = 128


class Instruction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt that says how to answer.

    Attributes:
        prompt: the message of the user.
        checks: all of them have to hold.
        kind: "length", "format", "JSON", "language", "words" or "case".
    """

    prompt: str
    checks: tuple[Check, ...]
    kind: str


class InstructionsResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a model follows instructions.

    Attributes:
        followed: share of the prompts whose reply keeps to all that it was told.
        teacher: the teacher's share of the same prompts; None without a teacher.
        kept: of the prompts that the teacher follows, the share that the model does, too.
        by_kind: kind of instruction -> share that the model follows.
    """

    followed: Share
    teacher: Share | None = None
    kept: Share | None = None
    by_kind: dict[str, Share] = {}


def read_instructions() -> list[Instruction]:
    """Read the prompts that ship with this package, written for edge."""
    lines = (files("edge_convert.evaluate") / "texts" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    return [msgspec.json.decode(line, type=Instruction) for line in lines]


def ask(instruction: Instruction) -> Ask:
    """Return the prompt of an instruction."""
    return Ask(messages=(("user", instruction.prompt),), max_tokens=MAX_TOKENS)


def is_followed(instruction: Instruction, reply: str) -> bool:
    """Return whether a reply keeps to all that its prompt says; one that only repeats the prompt does not."""
    is_echo = reply.strip().casefold() == instruction.prompt.casefold()
    return not is_echo and all(check.is_met(reply) for check in instruction.checks)


def compare(
    instructions: Sequence[Instruction], replies: Sequence[str], teacher: Sequence[str] | None = None
) -> InstructionsResult:
    """Judge replies, and compare them with the teacher's to the same prompts.

    Raises:
        ValueError: there are not as many replies as instructions.
    """
    own = [is_followed(one, reply) for one, reply in zip(instructions, replies, strict=True)]
    by_kind = {
        kind: share_of(met for one, met in zip(instructions, own, strict=True) if one.kind == kind)
        for kind in dict.fromkeys(one.kind for one in instructions)
    }
    if teacher is None:
        return InstructionsResult(followed=share_of(own), by_kind=by_kind)
    theirs = [is_followed(one, reply) for one, reply in zip(instructions, teacher, strict=True)]
    kept = share_of(mine for mine, met in zip(own, theirs, strict=True) if met)
    return InstructionsResult(followed=share_of(own), teacher=share_of(theirs), kept=kept, by_kind=by_kind)
