"""One sentence on what a model is good for, by fixed rules over measured shares.

The rules, the first that applies; a task counts if at least ten of its prompts were asked:

1. A quarter of the long replies or more end in a loop: not usable as it is.
2. Three quarters of the questions and half of the instructions: short answers, and replies in a given form.
3. Three quarters of the questions: short answers; forms have to be enforced.
4. Half of the instructions: replies in a given form; facts have to be checked.
5. Two fifths of the questions or a quarter of the instructions: simple chat, with facts and forms checked.
6. Otherwise: experiments only.
"""

from __future__ import annotations

from edge_convert.evaluate.tasks.intervals import Share
from edge_convert.evaluate.tasks.suite import Usefulness

__all__ = ["good_for"]

_FEWEST = 10
_LOOPS = 0.25
_KNOWS, _KNOWS_SOME = 0.75, 0.4
_FOLLOWS, _FOLLOWS_SOME = 0.5, 0.25


def good_for(found: Usefulness) -> str:
    """Return what a model is good for, with the figures that say so; "" if nothing was asked."""
    figures = _figures(found)
    return f"{_use(found)}: {figures}." if figures else ""


def _use(found: Usefulness) -> str:
    knows = _value(found.facts.right if found.facts else None)
    follows = _value(found.instructions.followed if found.instructions else None)
    loops = _value(found.repetition.loops if found.repetition else None)
    if knows is follows is loops is None:
        return "Too little was asked to say what it is good for"
    if loops is not None and loops >= _LOOPS:
        return "Not usable as it is, since it repeats itself"
    knows, follows = knows or 0.0, follows or 0.0
    if knows >= _KNOWS and follows >= _FOLLOWS:
        return "Good for short factual answers and for replies in a given form"
    if knows >= _KNOWS:
        return "Good for short factual answers; enforce a form with a schema"
    if follows >= _FOLLOWS:
        return "Good for replies in a given form; give it the facts, or check them"
    if knows >= _KNOWS_SOME or follows >= _FOLLOWS_SOME:
        return "Good for simple chat and trying things out; check its facts, and enforce a form with a schema"
    return "Good for experiments only"


def _value(share: Share | None) -> float | None:
    return share.value if share and share.n >= _FEWEST else None


def _figures(found: Usefulness) -> str:
    parts = []
    if (facts := found.facts) and facts.right.n:
        kept = f" ({100 * facts.kept.value:.0f}% of those that its teacher answers)" if facts.kept and facts.kept.n else ""
        parts.append(f"answers {facts.right.n_yes} of {facts.right.n} short questions{kept}")
    if (told := found.instructions) and told.followed.n:
        parts.append(f"follows {told.followed.n_yes} of {told.followed.n} instructions")
    if (long := found.repetition) and long.loops.n:
        parts.append(f"ends {long.loops.n_yes} of {long.loops.n} long replies in a loop")
    listed = [", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts
    return f"it {' and '.join(listed)}" if parts else ""
