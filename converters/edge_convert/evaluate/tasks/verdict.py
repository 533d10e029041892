"""One sentence on what a model is good for, by fixed rules over measured shares.

The rules, the first that applies; a rule about something that was not measured does not apply:

1. A quarter of the long replies or more end in a loop, and the interval begins at a tenth: not usable as it is.
2. Three quarters of the questions and half of the instructions: short answers, and replies in a given form.
3. Three quarters of the questions: short answers; forms have to be enforced.
4. Half of the instructions: replies in a given form; facts have to be checked.
5. Two fifths of the questions or a quarter of the instructions: simple chat, with facts and forms checked.
6. Otherwise: experiments only.
"""

from __future__ import annotations

from edge_convert.evaluate.tasks.suite import Usefulness

__all__ = ["good_for"]

LOOPS, LOOPS_LOW = 0.25, 0.1
KNOWS, KNOWS_SOME = 0.75, 0.4
FOLLOWS, FOLLOWS_SOME = 0.5, 0.25


def good_for(found: Usefulness) -> str:
    """Return what a model is good for, with the figures that say so; "" if nothing was measured."""
    facts, told, long = found.facts, found.instructions, found.repetition
    knows = facts.right.value if facts and facts.right.n else None
    follows = told.followed.value if told and told.followed.n else None
    if knows is None and follows is None and not (long and long.loops.n):
        return ""
    is_looping = long is not None and long.loops.value >= LOOPS and long.loops.low >= LOOPS_LOW
    return f"{_use(knows or 0.0, follows or 0.0, is_looping=is_looping)}: {_figures(found)}."


def _use(knows: float, follows: float, *, is_looping: bool) -> str:
    if is_looping:
        return "Not usable as it is, since it repeats itself"
    if knows >= KNOWS and follows >= FOLLOWS:
        return "Good for short factual answers and for replies in a given form"
    if knows >= KNOWS:
        return "Good for short factual answers; enforce a form with a schema"
    if follows >= FOLLOWS:
        return "Good for replies in a given form; give it the facts, or check them"
    if knows >= KNOWS_SOME or follows >= FOLLOWS_SOME:
        return "Good for simple chat and trying things out; check its facts, and enforce a form with a schema"
    return "Good for experiments only"


def _figures(found: Usefulness) -> str:
    parts = []
    if (facts := found.facts) and facts.right.n:
        kept = f" ({100 * facts.kept.value:.0f}% of those that its teacher answers)" if facts.kept and facts.kept.n else ""
        parts.append(f"it answers {facts.right.n_yes} of {facts.right.n} simple questions{kept}")
    if (told := found.instructions) and told.followed.n:
        parts.append(f"follows {told.followed.n_yes} of {told.followed.n} instructions")
    if (long := found.repetition) and long.loops.n:
        parts.append(f"ends {long.loops.n_yes} of {long.loops.n} long replies in a loop")
    text = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
    return text if text.startswith("it ") else f"it {text}"
